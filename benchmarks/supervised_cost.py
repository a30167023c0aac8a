"""What supervision costs: a supervised training step of an SAE against an unsupervised one, in turns.

    python -m benchmarks.supervised_cost

Random tokens and labels do: what is computed does not depend on them.
"""

import statistics

import torch

from saeuron import assign_at_random
from saeuron.recording import Tokens
from training.sae.commands import Weights
from training.sae.supervise import Supervision, supervised_losses
from training.sae.trainer import TrainingAutoencoder

from .common import begin, in_turns, options, shown, spread, tell

OBJECTS, STYLES = 10, 9
SIZES = {"128/1024": (128, 1024, 16, 2048), "640/5120": (640, 5120, 32, 4096)}
"""Width, latents, active latents a token and tokens a step."""


def main(arguments: list[str] | None = None) -> None:
    parser = options("Time supervised and unsupervised training steps in turns.", "supervised_cost", 300)
    parser.add_argument("--size", default="128/1024", choices=list(SIZES), help="d_in/latents")
    parser.add_argument("--tokens-per-map", type=int, default=32, help="tokens of each map")
    config = begin(parser, arguments)
    d_in, n_latents, k, batch = (16, 64, 4, 256) if config.tiny else SIZES[config.size]
    step = steps(config, d_in, n_latents, k, batch)
    times = in_turns(config, {"unsupervised": lambda: step(False), "supervised": lambda: step(True)})
    pairs = zip(times["unsupervised"], times["supervised"], strict=True)
    ratio = statistics.median(labelled / unlabelled for unlabelled, labelled in pairs)
    rows = [{"name": name} | spread(taken) for name, taken in times.items()]
    tell(config, ["step", "ms (quartiles)"], [[row["name"], shown(row)] for row in rows], rows=rows, ratio=ratio)
    print(f"supervision costs {ratio - 1:+.1%} of a step")


def steps(config, d_in: int, n_latents: int, k: int, batch: int):
    """A training step, supervised or not, of one model and its optimizer."""
    generator = torch.Generator().manual_seed(0)
    tokens, supervision = made_up(config, d_in, n_latents, batch, generator)
    model = TrainingAutoencoder(d_in, n_latents, k, "batch_topk", generator).to(config.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step(supervised: bool) -> None:
        losses = model.losses(tokens.activations, 10**9, d_in // 2)
        total = losses.fvu
        if supervised:
            terms = supervised_losses(model, tokens.activations, losses.code, tokens, supervision, Weights())
            total = total + sum(terms.values())
        total.backward()
        model.project_gradient()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.normalise_decoder()

    return step


def made_up(config, d_in: int, n_latents: int, batch: int, generator: torch.Generator) -> tuple[Tokens, Supervision]:
    """Random tokens of whole maps, each of a prompt of its own with one object and one style."""
    maps = batch // config.tokens_per_map
    count = maps * config.tokens_per_map
    activations = torch.randn(count, d_in, generator=generator).to(config.device)
    prompt = torch.arange(maps).repeat_interleave(config.tokens_per_map)
    tokens = Tokens(activations, prompt, torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long))
    kinds = {f"object {n}": "object" for n in range(OBJECTS)} | {f"style {n}": "style" for n in range(STYLES)}
    targets = torch.zeros(maps, len(kinds))
    targets[torch.arange(maps), torch.randint(OBJECTS, (maps,), generator=generator)] = 1
    targets[torch.arange(maps), OBJECTS + torch.randint(STYLES, (maps,), generator=generator)] = 1
    return tokens, Supervision(kinds, assign_at_random(kinds, n_latents, 0), targets)


if __name__ == "__main__":
    main()
