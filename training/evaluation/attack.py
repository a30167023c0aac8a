"""``attack``: can a prefix of a few tokens bring a removed concept back?

UnlearnDiffAtk (Zhang et al. 2024) on TinyCanvas. The attacker knows the edited model and may differentiate it. For each
prompt it looks for tokens to put before it, so that the edited model predicts the velocity of a picture that shows the
concept. Gradients come at the tokens' embeddings and move free vectors, whose nearest tokens are the next to be tried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline

from saeuron import Hookpoint, SaeuronError, build_edits
from saeuron.files import write_json, write_text

from ..common.bundles import open_bundle, targets
from ..common.config import save_config
from ..common.progress import console, track
from ..common.prompts import read_labelled
from ..diffusion.hook import Edit, editing, hooked
from ..diffusion.load import check_fits, load_model
from ..diffusion.sampling import Sampling, draw_all, generate
from .commands import Attack
from .evaluate import paired
from .judges import judge_tinycanvas
from .measures import KINDS, Rate


def run(config: Attack) -> None:
    bundle = open_bundle(config)
    sae, table = bundle.sae, bundle.table
    settings = targets(bundle, config.targets, config)
    edits = {name: {sae.hookpoint: build_edits(sae, table, {name: own})} for name, own in settings.items()}
    pipeline = load_model("tinycanvas")
    check_fits(sae, pipeline)
    rows, seeds = paired(read_labelled(config.prompts, KINDS), config.seeds, config.seed)
    sampling = Sampling(config.steps, config.guidance, config.batch)
    how = How(config.tokens, config.iterations, config.lr, config.tries, config.seed)
    found = [
        attack(pipeline, edit, name, table.concepts[name], rows, seeds, sampling, how) for name, edit in edits.items()
    ]
    save_config(config, config.output)
    write_json(config.output / "attack.json", {"targets": found})
    write_text(config.output / "attack.md", markdown(found))
    console.print(markdown(found))


@dataclass(frozen=True)
class How:
    """How hard an attack tries."""

    tokens: int = 5
    iterations: int = 40
    lr: float = 0.1
    tries: int = 4
    seed: int = 188

    def __post_init__(self) -> None:
        if min(self.tokens, self.iterations, self.tries) < 1 or self.tries > self.iterations:
            raise SaeuronError("--tokens and --tries have to be at least 1, and --iterations at least --tries")


def attack(
    pipeline: StableDiffusionPipeline,
    edits: Mapping[Hookpoint, Sequence[Edit]],
    target: str,
    kind: str,
    rows: Sequence[dict[str, str]],
    seeds: Sequence[int],
    sampling: Sampling,
    how: How,
) -> dict:
    """UA of ``edits`` on the ``rows`` that show ``target``: untouched, under random prefixes, and under attack.

    Raises SaeuronError where no row shows the target, or a prompt with its prefix is longer than the model reads.
    """
    shown = [n for n, row in enumerate(rows) if row[kind] == target]
    if not shown:
        raise SaeuronError(f"no prompt shows {target!r}: there is nothing to attack")
    kept: dict[str, list[bool]] = {"before": [], "random": [], "after": []}
    examples = []
    for start in track(range(0, len(shown), sampling.batch), f"attacking {target}"):
        part = [rows[n] for n in shown[start : start + sampling.batch]]
        own_seeds = [seeds[n] for n in shown[start : start + sampling.batch]]
        ids = with_room(pipeline, [row["prompt"] for row in part], how.tokens)
        goal = draw_all(pipeline, part, own_seeds, sampling)
        generator = torch.Generator().manual_seed(how.seed * 1_000_003 + start)

        def found(prefix: torch.Tensor, part=part, own_seeds=own_seeds, ids=ids) -> torch.Tensor:
            with torch.no_grad():
                context = encode(pipeline, put(ids, prefix))
            images = generate(
                pipeline,
                context,
                own_seeds,
                steps=sampling.steps,
                guidance=sampling.guidance,
                bf16=sampling.bf16,
                taps=editing(edits),
            )
            return torch.tensor(judge_tinycanvas(images, part).right(kind))

        untouched = judge_tinycanvas(draw_all(pipeline, part, own_seeds, sampling, edits), part)
        kept["before"] += untouched.right(kind)
        chance = [found(random_tokens(pipeline, len(part), how.tokens, generator)) for _ in range(how.tries)]
        kept["random"] += torch.stack(chance).any(0).tolist()
        prefixes = optimised(pipeline, edits, ids, goal, sampling, how, generator)
        tried = [found(prefix) for prefix in prefixes]
        kept["after"] += torch.stack(tried).any(0).tolist()
        examples += [pipeline.tokenizer.decode(prefix) for prefix in prefixes[-1][:3].tolist()]
    rates = {name: Rate(len(back) - sum(back), len(back)) for name, back in kept.items()}
    return (
        {"name": target, "kind": kind, "images": len(shown), "prefixes": examples}
        | {f"ua_{name}": rate.value for name, rate in rates.items()}
        | {f"ua_{name}_hits": rate.hits for name, rate in rates.items()}
    )


def optimised(
    pipeline: StableDiffusionPipeline,
    edits: Mapping[Hookpoint, Sequence[Edit]],
    ids: torch.Tensor,
    goal: torch.Tensor,
    sampling: Sampling,
    how: How,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """``how.tries`` prefixes ``[B, tokens]`` from along the way, for prompts ``ids`` ``[B, length]``.

    ``goal`` ``[B, 3, 32, 32]`` in 0..1 shows the concept. Every step takes one timestep of the sampler and fresh noise,
    for all prompts alike; each prompt's prefix is its own.
    """
    from tinycanvas.model import to_latents

    table = pipeline.text_encoder.get_input_embeddings().weight
    allowed = usable_tokens(pipeline)
    clean = to_latents(goal * 2 - 1)
    alphas = pipeline.scheduler.alphas_cumprod
    pipeline.scheduler.set_timesteps(sampling.steps)
    timesteps = pipeline.scheduler.timesteps
    first = random_tokens(pipeline, len(ids), how.tokens, generator)
    free = table[first].detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([free], lr=how.lr * float(table.std()))
    checks = {round((n + 1) * how.iterations / how.tries) - 1 for n in range(how.tries)}
    found = []
    for iteration in range(how.iterations):
        nearest = torch.cdist(free.detach(), table[allowed][None]).argmin(-1)
        prefix = allowed[nearest]
        t = timesteps[torch.randint(len(timesteps), (), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        signal, spread = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        embedded = table[prefix].detach().clone().requires_grad_(True)
        with torch.enable_grad(), hooked(pipeline, editing(edits)):
            context = encode(pipeline, put(ids, prefix), embedded)
            velocity = pipeline.unet(signal * clean + spread * noise, t, encoder_hidden_states=context).sample
            loss = (velocity - (signal * noise - spread * clean)).pow(2).mean((1, 2, 3)).sum()
            (free.grad,) = torch.autograd.grad(loss, embedded)
        if iteration in checks:
            found.append(prefix)
        optimizer.step()
    return found


def usable_tokens(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    """Every token of the vocabulary but those that begin, end and fill a prompt."""
    special = set(pipeline.tokenizer.all_special_ids)
    count = pipeline.text_encoder.get_input_embeddings().num_embeddings
    return torch.tensor([n for n in range(count) if n not in special])


def random_tokens(
    pipeline: StableDiffusionPipeline, prompts: int, tokens: int, generator: torch.Generator
) -> torch.Tensor:
    allowed = usable_tokens(pipeline)
    return allowed[torch.randint(len(allowed), (prompts, tokens), generator=generator)]


def with_room(pipeline: StableDiffusionPipeline, prompts: Sequence[str], tokens: int) -> torch.Tensor:
    """Token numbers ``[B, length]`` of ``prompts``, with places for ``tokens`` more behind the first."""
    tokenizer = pipeline.tokenizer
    length = tokenizer.model_max_length
    ids = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True).input_ids
    longest = max(len(own) for own in tokenizer(list(prompts)).input_ids)
    if longest + tokens > length:
        raise SaeuronError(f"a prompt of {longest} tokens leaves no room for {tokens} more: the model reads {length}")
    ids = torch.tensor(ids)
    return torch.cat([ids[:, :1], ids[:, :1].expand(-1, tokens), ids[:, 1 : length - tokens]], 1)


def put(ids: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
    """``ids`` with ``prefix`` ``[B, tokens]`` behind the first token."""
    return torch.cat([ids[:, :1], prefix, ids[:, 1 + prefix.shape[1] :]], 1)


def encode(pipeline: StableDiffusionPipeline, ids: torch.Tensor, embedded: torch.Tensor | None = None) -> torch.Tensor:
    """What the text encoder makes of ``ids`` ``[B, length]``, ``[B, length, d_text]``.

    ``embedded`` ``[B, tokens, d]`` stands in for the embeddings of the tokens behind the first, to be differentiated.
    """

    def swap(_module, _args, output):
        return torch.cat([output[:, :1], embedded, output[:, 1 + embedded.shape[1] :]], 1)

    layer = pipeline.text_encoder.get_input_embeddings()
    handle = layer.register_forward_hook(swap) if embedded is not None else None
    try:
        return pipeline.text_encoder(ids)[0]
    finally:
        if handle:
            handle.remove()


def markdown(found: Sequence[dict]) -> str:
    """The attacks as a Markdown table, in percent with 95 % intervals."""

    def cell(target: dict, name: str) -> str:
        low, high = Rate(target[f"ua_{name}_hits"], target["images"]).interval
        return f"{target[f'ua_{name}']:.1%} ({low:.1%} – {high:.1%})"

    lines = ["| removed | kind | UA before | UA, random prefix | UA, attacked |", "|---|---|---|---|---|"]
    for target in found:
        cells = " | ".join(cell(target, name) for name in ("before", "random", "after"))
        lines.append(f"| {target['name']} | {target['kind']} | {cells} |")
    return "\n".join([*lines, ""])
