"""What supervision costs: a supervised training step of an SAE against an unsupervised one, in turns.

``python -m benchmarks.supervised_cost`` prints the median of each and of their quotient. Random tokens and labels do:
what is computed does not depend on them.
"""

import statistics
import time
from dataclasses import dataclass

import torch
import tyro

from saeuron import assign_at_random
from saeuron.recording import Tokens
from training.sae.commands import Weights
from training.sae.supervise import Supervision, supervised_losses
from training.sae.trainer import TrainingAutoencoder


@dataclass
class Cost:
    """Time supervised and unsupervised training steps in turns."""

    d_in: int = 128
    """Width of the tokens."""
    expansion: int = 8
    """Latents per input channel."""
    k: int = 16
    """Active latents per token."""
    batch: int = 2048
    """Tokens a step."""
    tokens_per_map: int = 32
    """Tokens of each map."""
    objects: int = 10
    """Labelled objects."""
    styles: int = 9
    """Labelled styles."""
    steps: int = 300
    """Pairs of steps that are timed."""
    threads: int = 1
    """Threads of torch."""
    device: str = "cpu"
    """cpu or cuda."""


def main(config: Cost) -> None:
    torch.set_num_threads(config.threads)
    generator = torch.Generator().manual_seed(0)
    batch, tokens, supervision = made_up(config, generator)
    model = TrainingAutoencoder(config.d_in, config.d_in * config.expansion, config.k, "batch_topk", generator)
    model = model.to(config.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step(supervised: bool) -> float:
        _wait(config.device)
        began = time.perf_counter()
        losses = model.losses(batch, 10**9, config.d_in // 2)
        total = losses.fvu
        if supervised:
            total = total + sum(supervised_losses(model, batch, losses.code, tokens, supervision, Weights()).values())
        total.backward()
        model.project_gradient()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.normalise_decoder()
        _wait(config.device)
        return 1000 * (time.perf_counter() - began)

    for _ in range(3):
        step(False), step(True)
    pairs = [(step(False), step(True)) for _ in range(config.steps)]
    plain, supervised = (statistics.median(times) for times in zip(*pairs, strict=True))
    extra = statistics.median(labelled / unlabelled for unlabelled, labelled in pairs) - 1
    print("| step | ms |\n|---|---|")
    print(
        f"| unsupervised | {plain:.2f} |\n| supervised | {supervised:.2f} |\n\nsupervision costs {extra:+.1%} of a step"
    )


def made_up(config: Cost, generator: torch.Generator) -> tuple[torch.Tensor, Tokens, Supervision]:
    """A batch of random tokens of whole maps, each of a prompt of its own with one object and one style."""
    maps = config.batch // config.tokens_per_map
    count = maps * config.tokens_per_map
    batch = torch.randn(count, config.d_in, generator=generator).to(config.device)
    prompt = torch.arange(maps).repeat_interleave(config.tokens_per_map)
    tokens = Tokens(batch, prompt, torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long))
    kinds = {f"object {n}": "object" for n in range(config.objects)}
    kinds |= {f"style {n}": "style" for n in range(config.styles)}
    targets = torch.zeros(maps, len(kinds))
    targets[torch.arange(maps), torch.randint(config.objects, (maps,), generator=generator)] = 1
    targets[torch.arange(maps), config.objects + torch.randint(config.styles, (maps,), generator=generator)] = 1
    return batch, tokens, Supervision(kinds, assign_at_random(kinds, config.d_in * config.expansion, 0), targets)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(tyro.cli(Cost))
