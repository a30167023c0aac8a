"""The flow stage: rectified flow on drawings without end, conditioned by the text encoder of the UNet."""

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..drawing import OBJECTS, STYLES, draw, random_labels
from ..flow import build_transformer, velocity
from ..model import WEIGHTS, to_latents
from .cycles import Cycle, run_cycles
from .unet import CaptionContexts, practise

SEED = 20251124
WORK = Path("out/tinycanvas")
CYCLES = (
    Cycle(4000, 2e-3, muon=True),
    Cycle(4000, 1.5e-3, muon=True, rolled=12, guidance=4.0),
    Cycle(2000, 1e-3, muon=True, rolled=16, guidance=4.0, paraphrases=True),
)


def train_transformer(
    folder: Path = WEIGHTS, work: Path = WORK, cycles: tuple[Cycle, ...] = CYCLES, batch: int = 64
) -> FluxTransformer2DModel:
    """Run the cycles that are not done yet and write the transformer, in half precision."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    transformer = build_transformer()
    _start_as_identity(transformer)

    def loss_for(cycle: Cycle):
        contexts = CaptionContexts(folder, cycle.captions, pooled=True)
        return lambda generator: flow_loss(transformer, contexts, cycle, batch, generator)

    run_cycles(transformer, cycles, 0, SEED + 1000, work / "transformer.pt", loss_for)
    transformer.half().save_pretrained(folder / "transformer")
    return transformer


def _start_as_identity(transformer: FluxTransformer2DModel) -> None:
    """Modulations and the last layer begin at 0, so that every block begins as the identity (Peebles and Xie, 2023)."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and ("norm" in name or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def flow_loss(
    transformer: nn.Module, contexts: CaptionContexts, cycle: Cycle, batch: int, generator: torch.Generator
) -> torch.Tensor:
    """The mean squared error of the velocity on fresh drawings.

    ``rolled`` rows start from what the model itself makes of a noisier row, as sampling does; the velocity asked of
    them still leads to the caption's drawing.
    """
    objects, styles = random_labels(batch, generator)
    objects = practise(objects, OBJECTS, cycle, 0.5, generator)
    styles = practise(styles, STYLES, cycle, 0.1, generator)
    clean = to_latents(draw(objects, styles, generator))
    context = contexts.pick(objects, styles, generator)
    noise = torch.randn(clean.shape, generator=generator)
    # What a picture shows is decided early, so noisy levels come more often (Esser et al., 2024).
    sigma = (0.5 + torch.randn(batch, generator=generator)).sigmoid()
    level = sigma[:, None, None, None]
    noisy = clean.lerp(noise, level)
    rolled = slice(0, cycle.rolled)
    if cycle.rolled:
        before = sigma[rolled] + (1 - sigma[rolled]) * torch.rand(cycle.rolled, generator=generator)
        start = clean[rolled].lerp(noise[rolled], before[:, None, None, None])
        scale = 1 + (cycle.guidance - 1) * torch.rand(cycle.rolled, 1, 1, 1, generator=generator)
        direction = guided_velocity(transformer, start, before, context[rolled], contexts.empty, scale)
        noisy[rolled] = start + (level[rolled] - before[:, None, None, None]) * direction
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        found = velocity(transformer, noisy, sigma, context[:, :-1], context[:, -1])
    weight = (level / 0.05).clamp(max=1)
    target = (noisy - clean) / level.clamp(min=0.02)
    return (weight * (found.float() - target)).square().mean()


@torch.no_grad()
def guided_velocity(
    transformer: nn.Module,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    context: torch.Tensor,
    empty: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """The velocity that sampling follows, guided by ``scale`` ``[B, 1, 1, 1]`` away from the ``empty`` caption's.

    Contexts have the pooled text behind their tokens, ``[B, L + 1, d]``.
    """
    both = torch.cat([context, empty.expand_as(context)])
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        pair = velocity(transformer, noisy.repeat(2, 1, 1, 1), sigma.repeat(2), both[:, :-1], both[:, -1])
    told, untold = pair.float().chunk(2)
    return untold + scale * (told - untold)
