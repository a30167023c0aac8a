"""The UNet stage: v-prediction on drawings without end, conditioned by the frozen text encoder."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from .captions import all_captions
from .drawing import OBJECTS, STYLES, draw, random_labels
from .model import WEIGHTS, build_scheduler, build_unet, load_tokenizer, to_latents, tokenize

SEED = 20250118
WORK = Path("out/tinycanvas")


@dataclass(frozen=True)
class Cycle:
    """One rise and fall of the learning rate; a cycle starts from the averaged weights of the one before."""

    steps: int
    lr: float


CYCLES = (Cycle(5200, 1.5e-3), Cycle(3600, 1e-3))


def train_unet(
    folder: Path = WEIGHTS, work: Path = WORK, cycles: tuple[Cycle, ...] = CYCLES, batch: int = 64
) -> UNet2DConditionModel:
    """Run the cycles that are not done yet and write the UNet, in half precision."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    contexts = CaptionContexts(folder)
    unet = build_unet().to(memory_format=torch.channels_last)
    first_seed = SEED + 1000
    for number, cycle in enumerate(cycles):
        average = _run(cycle, unet, contexts, batch, first_seed, work / f"unet-{number}.pt")
        first_seed += cycle.steps
        with torch.no_grad():
            for parameter, averaged in zip(unet.parameters(), average, strict=True):
                parameter.copy_(averaged.half())
    unet.half().save_pretrained(folder / "unet")
    return unet


def _run(
    cycle: Cycle,
    unet: UNet2DConditionModel,
    contexts: "CaptionContexts",
    batch: int,
    first_seed: int,
    checkpoint: Path,
) -> list[torch.Tensor]:
    """AdamW over one cycle, a tenth of the captions dropped for guidance; returns the exponential average."""
    parameters = list(unet.parameters())
    average, start = [p.detach().clone() for p in parameters], 0
    optimizer = torch.optim.AdamW(parameters, lr=cycle.lr, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, cycle.lr, total_steps=cycle.steps, pct_start=0.05, cycle_momentum=False
    )
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start, average = state["step"], state["average"]
        unet.load_state_dict(state["unet"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    compiled = torch.compile(unet)
    alphas = build_scheduler().alphas_cumprod
    began, running = time.time(), 0.0
    for step in range(start, cycle.steps):
        loss = denoising_loss(compiled, contexts, alphas, batch, torch.Generator().manual_seed(first_seed + step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - min(0.999, (step + 1) / (step + 10)))
        running += loss.item()
        if (step + 1) % 50 == 0:
            pace = (time.time() - began) / (step + 1 - start)
            print(f"unet step {step + 1}/{cycle.steps} loss {running / 50:.4f} {pace:.2f} s/step", flush=True)
            running = 0.0
        if (step + 1) % 500 == 0 or step + 1 == cycle.steps:
            state = {"step": step + 1, "unet": unet.state_dict(), "average": average}
            state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return average


def denoising_loss(
    unet: nn.Module, contexts: "CaptionContexts", alphas: torch.Tensor, batch: int, generator: torch.Generator
) -> torch.Tensor:
    """Mean squared error of the predicted velocity ``v = √ᾱ ε − √(1−ᾱ) x₀`` on one batch of fresh drawings."""
    objects, styles = random_labels(batch, generator)
    clean = to_latents(draw(objects, styles, generator))
    context = contexts.pick(objects, styles, generator)
    # What a picture shows is decided while it is nearly all noise: half of the steps are taken from there.
    t = torch.randint(1000, (batch,), generator=generator)
    t = torch.where(torch.rand(batch, generator=generator) < 0.5, t, 800 + t // 5)
    noise = torch.randn(clean.shape, generator=generator)
    signal, spread = alphas[t].sqrt()[:, None, None, None], (1 - alphas[t]).sqrt()[:, None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        noisy = (signal * clean + spread * noise).to(memory_format=torch.channels_last)
        velocity = unet(noisy, t, context).sample
    return nn.functional.mse_loss(velocity.float(), signal * noise - spread * clean)


class CaptionContexts:
    """Encoded training captions, looked up by object and style; every tenth is replaced by the empty one."""

    @torch.no_grad()
    def __init__(self, folder: Path) -> None:
        tokenizer = load_tokenizer(folder)
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
        rows = all_captions("training")
        self.encoded = encoder(tokenize(tokenizer, [caption for caption, _, _ in rows])).last_hidden_state
        self.empty = encoder(tokenize(tokenizer, [""])).last_hidden_state
        pairs = [(OBJECTS.index(o), STYLES.index(s)) for _, o, s in rows]
        shape = (len(OBJECTS), len(STYLES))
        self.counts = torch.tensor([[pairs.count((o, s)) for s in range(shape[1])] for o in range(shape[0])])
        self.firsts = torch.tensor([[pairs.index((o, s)) for s in range(shape[1])] for o in range(shape[0])])

    def pick(self, objects: torch.Tensor, styles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        chance = torch.rand(len(objects), generator=generator)
        context = self.encoded[self.firsts[objects, styles] + (chance * self.counts[objects, styles]).long()]
        dropped = torch.rand(len(objects), generator=generator) < 0.1
        return torch.where(dropped[:, None, None], self.empty, context)
