"""Training in cycles: what the stages of the two diffusion models share."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .muon import Muon

ENDS = ("conv_in", "conv_out", "x_embedder", "proj_out")
"""The first and the last layer of a model, which AdamW trains whatever the rest is trained by."""


@dataclass(frozen=True)
class Cycle:
    """One rise and fall of the learning rate; a cycle starts from the averaged weights of the one before.

    ``misled`` and ``rolled`` are the rows of a batch that learn to correct what sampling gets wrong, see `noisy_batch`;
    ``guidance`` is the most that rolled rows are guided by. Half of the rows show one of the ``practised`` objects,
    a tenth one of the ``practised`` styles. ``paraphrases`` adds those captions to the training ones.
    """

    steps: int
    lr: float
    muon: bool = False
    late: float = 0.0
    misled: int = 0
    rolled: int = 0
    guidance: float = 1.0
    practised: tuple[str, ...] = ()
    paraphrases: bool = False

    @property
    def captions(self) -> tuple[str, ...]:
        return ("training", "paraphrase") if self.paraphrases else ("training",)


def run_cycles(
    model: nn.Module,
    cycles: tuple[Cycle, ...],
    first: int,
    first_seed: int,
    checkpoint: Path,
    loss_for: Callable[[Cycle], Callable[[torch.Generator], torch.Tensor]],
) -> None:
    """Run ``cycles`` from number ``first`` on; ``model`` is left with their averaged weights, in half precision.

    ``loss_for`` makes of a cycle the function that draws a batch and gives its loss. Every cycle has a checkpoint of
    its own, ``unet-0.pt`` for ``unet.pt``, and goes on from it.
    """
    for number, cycle in enumerate(cycles):
        if number < first:
            continue
        seed = first_seed + sum(done.steps for done in cycles[:number])
        place = checkpoint.with_stem(f"{checkpoint.stem}-{number}")
        average = _run(cycle, model, loss_for(cycle), seed, place)
        with torch.no_grad():
            for parameter, averaged in zip(model.parameters(), average, strict=True):
                parameter.copy_(averaged.half())


def _run(
    cycle: Cycle,
    model: nn.Module,
    loss_of: Callable[[torch.Generator], torch.Tensor],
    first_seed: int,
    checkpoint: Path,
) -> list[torch.Tensor]:
    """One cycle; returns the exponential average of the weights."""
    parameters = list(model.parameters())
    average, start = [p.detach().clone() for p in parameters], 0
    optimizers = _optimizers(model, cycle)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer, cycle.lr, total_steps=cycle.steps, pct_start=0.05, cycle_momentum=False
        )
        for optimizer in optimizers
    ]
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start, average = state["step"], state["average"]
        model.load_state_dict(state["model"])
        for part, saved in zip([*optimizers, *schedules], state["parts"], strict=True):
            part.load_state_dict(saved)
    began, running = time.time(), 0.0
    for step in range(start, cycle.steps):
        loss = loss_of(torch.Generator().manual_seed(first_seed + step))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - min(0.999, (step + 1) / (step + 10)))
        running += loss.item()
        if (step + 1) % 50 == 0:
            pace = (time.time() - began) / (step + 1 - start)
            print(
                f"{checkpoint.stem} step {step + 1}/{cycle.steps} loss {running / 50:.4f} {pace:.2f} s/step", flush=True
            )
            running = 0.0
        if (step + 1) % 250 == 0 or step + 1 == cycle.steps:
            parts = [part.state_dict() for part in [*optimizers, *schedules]]
            state = {"step": step + 1, "model": model.state_dict(), "average": average, "parts": parts}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return average


def _optimizers(model: nn.Module, cycle: Cycle) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for matrices and convolutions between the first and the last, and AdamW for the rest."""
    named = dict(model.named_parameters())
    inner = {n for n, p in named.items() if cycle.muon and p.ndim > 1 and not n.startswith(ENDS)}
    rest = [p for n, p in named.items() if n not in inner]
    optimizers = [torch.optim.AdamW(rest, lr=cycle.lr, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)]
    return [*optimizers, Muon([named[n] for n in named if n in inner], cycle.lr)] if inner else optimizers
