"""``attack``: can a prefix of a few tokens bring a removed concept back?

UnlearnDiffAtk (Zhang et al. 2024). The attacker knows the edited model and may differentiate it. For each prompt it
looks for tokens to put before it, so that the edited model denoises a noisy picture that shows the concept towards that
picture. Gradients come at the tokens' embeddings and move free vectors, whose nearest tokens are the next to be tried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

from saeuron import Hookpoint, SaeuronError

from ..common.bundles import open_bundle, targets
from ..common.progress import track
from ..common.results import report, table
from ..common.resume import piece
from ..diffusion.denoiser import reads_one_text
from ..diffusion.hook import Edit, editing, hooked
from ..diffusion.sampling import draw_all, generate, plan
from .commands import Attack
from .measures import Rate
from .protocol import Protocol, begin, open_protocol

PIECES = ("attacks/*.json", "attack.json", "attack.md")
WHEN = ("before", "random", "after")
HALF_SCALE = 1024.0
"""What a loss is multiplied with where gradients are in half precision, which has no numbers as small as they are."""


def run(config: Attack) -> None:
    bundle = open_bundle(config)
    settings = targets(bundle, config.targets, config)
    how = How(config.tokens, config.iterations, config.lr, config.tries, config.seed)
    protocol = open_protocol(config, bundle, config.seeds)
    check_attackable(protocol.pipeline)
    removals = protocol.singles(bundle.table, settings)
    if config.dry_run:
        shown = sum(row[own.kind] == own.name for own in removals for row in protocol.rows)
        plan(protocol.pipeline, protocol.sampling, shown * (2 + 2 * how.tries)).tell(config)
        return
    begin(config, protocol, bundle, removals, PIECES)
    found = [
        piece(
            config.output / "attacks" / f"{own.name}.json",
            lambda own=own: attack(protocol, own.edits(bundle), own.name, own.kind, how),
        )
        for own in removals
    ]
    report(config, "attack", {"targets": found}, markdown(found))


def check_attackable(pipeline: StableDiffusionPipeline) -> None:
    """Raise SaeuronError where ``pipeline`` has not the one text encoder that an attack differentiates."""
    if not reads_one_text(pipeline):
        raise SaeuronError(
            "an attack goes through the one text encoder of an SD 1.x or 2.x, and this model has others: "
            "give such a one as --model"
        )


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


def attack(protocol: Protocol, edits: Mapping[Hookpoint, Sequence[Edit]], target: str, kind: str, how: How) -> dict:
    """UA of ``edits`` on the prompts that show ``target``: untouched, under random prefixes, and under attack.

    Raises SaeuronError where no prompt shows the target, or one with its prefix is longer than the model reads.
    """
    pipeline, sampling = protocol.pipeline, protocol.sampling
    shown = [n for n, row in enumerate(protocol.rows) if row[kind] == target]
    if not shown:
        raise SaeuronError(f"no prompt shows {target!r}: there is nothing to attack")
    back: dict[str, list[bool]] = {when: [] for when in WHEN}
    examples = []
    for start in track(range(0, len(shown), sampling.batch), f"attacking {target}"):
        numbers = shown[start : start + sampling.batch]
        rows, seeds = [protocol.rows[n] for n in numbers], [protocol.seeds[n] for n in numbers]
        ids = with_room(pipeline, [row["prompt"] for row in rows], how.tokens)
        goal = draw_all(pipeline, rows, seeds, sampling)
        generator = torch.Generator().manual_seed(how.seed * 1_000_003 + start)

        def shows(images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([name == target for name in protocol.judge(images)[kind]])

        def under(prefix: torch.Tensor, ids=ids, seeds=seeds) -> torch.Tensor:
            with torch.no_grad():
                context = encode(pipeline, put(ids, prefix))
            return shows(generate(pipeline, context, seeds, sampling, editing(edits)))

        back["before"] += shows(draw_all(pipeline, rows, seeds, sampling, edits)).tolist()
        chance = [random_tokens(pipeline, len(rows), how.tokens, generator) for _ in range(how.tries)]
        back["random"] += torch.stack([under(prefix) for prefix in chance]).any(0).tolist()
        prefixes = optimised(protocol, edits, ids, goal, how, generator)
        back["after"] += torch.stack([under(prefix) for prefix in prefixes]).any(0).tolist()
        examples += [pipeline.tokenizer.decode(prefix) for prefix in prefixes[-1][:3].tolist()]
    rates = {when: Rate(len(own) - sum(own), len(own)) for when, own in back.items()}
    return (
        {"name": target, "kind": kind, "images": len(shown), "prefixes": examples}
        | {f"ua_{when}": rate.value for when, rate in rates.items()}
        | {f"ua_{when}_hits": rate.hits for when, rate in rates.items()}
    )


def optimised(
    protocol: Protocol,
    edits: Mapping[Hookpoint, Sequence[Edit]],
    ids: torch.Tensor,
    goal: torch.Tensor,
    how: How,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """``how.tries`` prefixes ``[B, tokens]`` from along the way, for prompts ``ids`` ``[B, length]``.

    ``goal`` ``[B, 3, H, W]`` in 0..1 shows the concept. Every step takes one timestep of the sampler and fresh noise,
    for all prompts alike; each prompt's prefix is its own.
    """
    pipeline = protocol.pipeline
    embeddings = pipeline.text_encoder.get_input_embeddings().weight
    device, dtype = embeddings.device, pipeline.unet.dtype
    table, allowed = embeddings.float(), usable_tokens(pipeline).to(device)
    clean = to_latents(pipeline, goal)
    alphas = pipeline.scheduler.alphas_cumprod
    pipeline.scheduler.set_timesteps(protocol.sampling.steps)
    timesteps = pipeline.scheduler.timesteps.cpu().long()
    first = random_tokens(pipeline, len(ids), how.tokens, generator)
    free = table[first.to(device)].detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([free], lr=how.lr * float(table.std()))
    checks = {round((n + 1) * how.iterations / how.tries) - 1 for n in range(how.tries)}
    scale = 1.0 if dtype == torch.float32 else HALF_SCALE
    found = []
    for iteration in range(how.iterations):
        nearest = torch.cdist(free.detach(), table[allowed][None]).argmin(-1)
        prefix = allowed[nearest]
        t = timesteps[torch.randint(len(timesteps), (), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator).to(device)
        signal, spread = (float(part.sqrt()) for part in (alphas[t], 1 - alphas[t]))
        embedded = embeddings[prefix].detach().clone().requires_grad_(True)
        noisy = (signal * clean + spread * noise).to(dtype)
        with torch.enable_grad(), hooked(pipeline, editing(edits)):
            context = encode(pipeline, put(ids, prefix.cpu()), embedded)
            predicted = pipeline.unet(noisy, t.to(device), encoder_hidden_states=context).sample.float()
            wanted = expected(pipeline, clean, noise, signal, spread)
            loss = (predicted - wanted).pow(2).mean((1, 2, 3)).sum()
            (gradient,) = torch.autograd.grad(scale * loss, embedded)
        free.grad = gradient.float() / scale
        if iteration in checks:
            found.append(prefix.cpu())
        optimizer.step()
    return found


@torch.no_grad()
def to_latents(pipeline: StableDiffusionPipeline, images: torch.Tensor) -> torch.Tensor:
    """Pictures ``[B, 3, H, W]`` in 0..1 as the latents that the UNet denoises, in float32; one at a time, as VAEs are
    large."""
    vae = pipeline.vae
    encoded = [
        retrieve_latents(vae.encode(image[None].to(vae.device, vae.dtype) * 2 - 1), sample_mode="argmax")
        for image in images
    ]
    return torch.cat(encoded).float() * vae.config.scaling_factor


def expected(
    pipeline: StableDiffusionPipeline, clean: torch.Tensor, noise: torch.Tensor, signal: float, spread: float
) -> torch.Tensor:
    """What the UNet would predict of ``signal * clean + spread * noise`` if it knew ``clean``."""
    kinds = {"epsilon": noise, "v_prediction": signal * noise - spread * clean, "sample": clean}
    kind = pipeline.scheduler.config.prediction_type
    if kind not in kinds:
        raise SaeuronError(f"a model that predicts {kind} cannot be attacked: one of {', '.join(kinds)} can")
    return kinds[kind]


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
        return pipeline.text_encoder(ids.to(pipeline.text_encoder.device))[0]
    finally:
        if handle:
            handle.remove()


def markdown(found: Sequence[dict]) -> str:
    """The attacks as a Markdown table, in percent with 95 % intervals."""
    rows = [
        [own["name"], own["kind"], *(str(Rate(own[f"ua_{when}_hits"], own["images"])) for when in WHEN)]
        for own in found
    ]
    return table(["removed", "kind", "UA before", "UA, random prefix", "UA, attacked"], rows) + "\n"
