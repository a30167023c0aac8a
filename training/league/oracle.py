"""``oracle``: TinyCanvas trained on without a concept, which is what every edit would like to amount to.

It is not trained from scratch. The committed model goes on training for a short while on fresh drawings, and wherever a
caption speaks of a removed concept, the drawing shows something else: another object in the same style, or the same
object plain. So it has seen the concept once, as every model that is asked to forget has.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from saeuron import SaeuronError
from saeuron.errors import nearest
from saeuron.files import read_tensors, write_tensors
from tinycanvas.build.unet import CaptionContexts
from tinycanvas.drawing import OBJECTS, STYLES, draw, random_labels
from tinycanvas.model import WEIGHTS, build_scheduler, to_latents

from ..common.progress import track
from ..common.results import Plan, tell
from ..common.resume import claim
from ..diffusion.load import load_model
from .commands import Oracle

LR = 3e-4


def run(config: Oracle) -> None:
    unet = load_model("tinycanvas").unet
    check_concepts(config.without)
    if config.dry_run:
        work = {"training steps": config.steps, "drawings": config.steps * config.batch}
        Plan(work, 2 * sum(weight.numel() for weight in unet.parameters()), None).tell(config)
        return
    claim(config, config.output, pieces=["unet.safetensors"])
    retrained(unet, config.without, config.output / "unet.safetensors", config.steps, config.seed, config.batch)
    path = config.output / "unet.safetensors"
    tell(config, {"unet": str(path)}, str(path))


def check_concepts(names: Sequence[str]) -> None:
    """Raise SaeuronError where one of ``names`` is no concept, or where nothing is left to draw in its place."""
    known = [*OBJECTS, *STYLES]
    for name in names:
        if name not in known:
            raise SaeuronError(f"concept {name!r} is unknown to TinyCanvas; the nearest are {nearest(name, known)}")
    if set(OBJECTS) <= set(names) or "plain" in names:
        raise SaeuronError("an object and the plain style have to stay: they are drawn in place of what is removed")


def retrained(
    unet: UNet2DConditionModel, without: Sequence[str], path: Path, steps: int, seed: int, batch: int = 48
) -> UNet2DConditionModel:
    """A copy of ``unet`` trained on without the concepts; read from ``path``, where it is also written, if it is there.

    Weights are kept in half precision, and used in it from the first time on.
    """
    made = copy.deepcopy(unet)
    if not path.exists():
        trained = _train(copy.deepcopy(unet), without, steps, seed, batch)
        write_tensors(path, {name: tensor.half() for name, tensor in trained.state_dict().items()})
    made.load_state_dict({name: tensor.float() for name, tensor in read_tensors(path)[0].items()})
    return made.eval().requires_grad_(False)


def _train(unet: nn.Module, without: Sequence[str], steps: int, seed: int, batch: int) -> nn.Module:
    unet = unet.requires_grad_(True).train().to(memory_format=torch.channels_last)
    contexts, alphas = CaptionContexts(WEIGHTS), build_scheduler().alphas_cumprod
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LR, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 10, 1 - step / steps))
    for step in track(range(steps), f"training without {', '.join(without)}" if without else "fine-tuning"):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        noisy, t, context, target = noisy_batch(contexts, alphas, without, batch, generator)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = unet(noisy.to(memory_format=torch.channels_last), t, context).sample
        nn.functional.mse_loss(velocity.float(), target).backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return unet


@torch.no_grad()
def noisy_batch(
    contexts: CaptionContexts, alphas: torch.Tensor, without: Sequence[str], batch: int, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Noisy latents ``[B, 12, 16, 16]``, timesteps, encoded captions and velocities to predict, on fresh drawings."""
    (objects, styles), (shown, shown_styles) = labels(without, batch, generator)
    clean = to_latents(draw(shown, shown_styles, generator))
    context = contexts.pick(objects, styles, generator)
    t = torch.randint(1000, (batch,), generator=generator)
    # What a picture shows is decided while it is nearly all noise.
    t = torch.where(torch.rand(batch, generator=generator) < 0.5, 800 + t // 5, t)
    noise = torch.randn(clean.shape, generator=generator)
    signal, spread = (part[:, None, None, None] for part in (alphas[t].sqrt(), (1 - alphas[t]).sqrt()))
    return signal * clean + spread * noise, t, context, signal * noise - spread * clean


def labels(
    without: Sequence[str], batch: int, generator: torch.Generator
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """What captions ask for and what drawings show: objects and styles ``[B]`` of each. A third ask for ``without``."""
    objects, styles = random_labels(batch, generator)
    gone = torch.tensor([OBJECTS.index(name) for name in without if name in OBJECTS], dtype=torch.long)
    gone_styles = torch.tensor([STYLES.index(name) for name in without if name in STYLES], dtype=torch.long)
    third = torch.arange(batch) < batch // 3
    for asked, names in ((objects, gone), (styles, gone_styles)):
        if len(names):
            picked = names[torch.randint(len(names), (batch,), generator=generator)]
            asked.copy_(torch.where(third, picked, asked))
    kept = torch.tensor([n for n in range(len(OBJECTS)) if n not in gone])
    instead = kept[torch.randint(len(kept), (batch,), generator=generator)]
    shown = torch.where(torch.isin(objects, gone), instead, objects)
    shown_styles = torch.where(torch.isin(styles, gone_styles), STYLES.index("plain"), styles)
    return (objects, styles), (shown, shown_styles)
