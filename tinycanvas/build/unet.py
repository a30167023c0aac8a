"""The UNet stage: v-prediction on drawings without end, conditioned by the frozen text encoder."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from ..captions import all_captions
from ..drawing import OBJECTS, STYLES, draw, random_labels
from ..model import WEIGHTS, build_scheduler, build_unet, load_tokenizer, to_latents, tokenize
from .cycles import Cycle, run_cycles

SEED = 20250118
WORK = Path("out/tinycanvas")


HARD = ("star", "circle", "cross", "diamond", "candy")
CYCLES = (
    Cycle(5200, 1.5e-3, late=0.5),
    Cycle(4500, 1e-3, muon=True, misled=12, rolled=16),
    Cycle(2000, 1e-3, muon=True, misled=12, rolled=20, guidance=4.0),
    Cycle(1000, 8e-4, muon=True, misled=12, rolled=20, guidance=4.0, practised=("star", "circle", "diamond")),
    Cycle(2200, 1e-3, muon=True, misled=12, rolled=20, guidance=4.0, practised=HARD),
    Cycle(1000, 8e-4, muon=True, misled=12, rolled=20, guidance=4.0, practised=HARD, paraphrases=True),
)


def train_unet(
    folder: Path = WEIGHTS, work: Path = WORK, cycles: tuple[Cycle, ...] = CYCLES, batch: int = 64, first: int = 0
) -> UNet2DConditionModel:
    """Run the cycles from number ``first`` on that are not done yet and write the UNet, in half precision.

    ``first`` over 0 starts from the weights in ``folder``.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    unet = build_unet()
    if first:
        before = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        unet.load_state_dict(before.state_dict())
    unet = unet.to(memory_format=torch.channels_last)
    compiled = torch.compile(unet)
    alphas = build_scheduler().alphas_cumprod

    def loss_for(cycle: Cycle) -> Callable[[torch.Generator], torch.Tensor]:
        contexts = CaptionContexts(folder, cycle.captions)

        def loss(generator: torch.Generator) -> torch.Tensor:
            noisy, t, context, target = noisy_batch(unet, contexts, alphas, cycle, batch, generator)
            with torch.autocast("cpu", torch.bfloat16):
                velocity = compiled(noisy.to(memory_format=torch.channels_last), t, context).sample
            return nn.functional.mse_loss(velocity.float(), target)

        return loss

    run_cycles(unet, cycles, first, SEED + 1000, work / "unet.pt", loss_for)
    unet.half().save_pretrained(folder / "unet")
    return unet


@torch.no_grad()
def noisy_batch(
    unet: nn.Module,
    contexts: "CaptionContexts",
    alphas: torch.Tensor,
    cycle: Cycle,
    batch: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, ...]:
    """Noisy latents, timesteps, captions and the velocities ``v = √ᾱ ε − √(1−ᾱ) x₀`` to predict, on fresh drawings.

    Most rows are a drawing plus noise. In sampling, though, the noisy picture is the model's own work, and text that
    is followed only where the picture agrees is not followed at all. So ``misled`` rows show, under the noise,
    another drawing at the same place than the caption speaks of; and ``rolled`` rows show what the model itself makes
    of a noisier row. Their target still is the caption's drawing.
    """
    objects, styles = random_labels(batch, generator)
    objects = practise(objects, OBJECTS, cycle, 0.5, generator)
    styles = practise(styles, STYLES, cycle, 0.1, generator)
    others, other_styles = random_labels(cycle.misled, generator)
    same_style = torch.rand(cycle.misled, generator=generator) < 0.5
    m, r = cycle.misled, cycle.misled + cycle.rolled
    place = generator.get_state()
    clean = to_latents(draw(objects[:m], styles[:m], generator)) if m else torch.empty(0, 12, 16, 16)
    shown = clean
    if m:
        generator.set_state(place)
        wrong = to_latents(draw(others, torch.where(same_style, styles[:m], other_styles), generator))
        shown = clean.lerp(wrong, torch.rand(m, 1, 1, 1, generator=generator))
    rest = to_latents(draw(objects[m:], styles[m:], generator))
    clean, shown = torch.cat([clean, rest]), torch.cat([shown, rest])
    context = contexts.pick(objects, styles, generator)

    t = torch.randint(1000, (batch,), generator=generator)
    # What a picture shows is decided while it is nearly all noise.
    t = torch.where(torch.rand(batch, generator=generator) < cycle.late, 800 + t // 5, t)
    t[:m] = 500 + t[:m] // 2
    t[m:r] = 400 + t[m:r] * 6 // 10
    signal, spread = (part[:, None, None, None] for part in (alphas[t].sqrt(), (1 - alphas[t]).sqrt()))
    noise = torch.randn(clean.shape, generator=generator)
    noisy = signal * shown + spread * noise
    if r > m:
        earlier = t[m:r] + ((999 - t[m:r]) * torch.rand(r - m, generator=generator)).long()
        before, after = (part[:, None, None, None] for part in (alphas[earlier].sqrt(), (1 - alphas[earlier]).sqrt()))
        start = before * clean[m:r] + after * noise[m:r]
        velocity = _guided(unet, start, earlier, context[m:r], contexts.empty, cycle.guidance, generator)
        noisy[m:r] = signal[m:r] * (before * start - after * velocity)
        noisy[m:r] += spread[m:r] * (after * start + before * velocity)
    noise = (noisy - signal * clean) / spread.clamp(min=1e-3)
    return noisy, t, context, signal * noise - spread * clean


def practise(
    labels: torch.Tensor, names: tuple[str, ...], cycle: Cycle, share: float, generator: torch.Generator
) -> torch.Tensor:
    """``labels``, where a ``share`` of them is replaced by those of ``names`` that the cycle practises."""
    hard = torch.tensor([names.index(name) for name in cycle.practised if name in names])
    if len(hard) == 0:
        return labels
    drawn = hard[torch.randint(len(hard), labels.shape, generator=generator)]
    return torch.where(torch.rand(labels.shape, generator=generator) < share, drawn, labels)


def _guided(
    unet: nn.Module,
    noisy: torch.Tensor,
    t: torch.Tensor,
    context: torch.Tensor,
    empty: torch.Tensor,
    most: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """The velocity that sampling would follow, guided by between 1 and ``most``."""
    if most > 1:
        noisy, t, context = noisy.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([context, empty.expand_as(context)])
    with torch.autocast("cpu", torch.bfloat16):
        velocity = unet(noisy.to(memory_format=torch.channels_last), t, context).sample.float()
    if most == 1:
        return velocity
    told, untold = velocity.chunk(2)
    scale = 1 + (most - 1) * torch.rand(len(told), 1, 1, 1, generator=generator)
    return untold + scale * (told - untold)


class CaptionContexts:
    """Encoded captions of some sets, looked up by object and style; every tenth is replaced by the empty one.

    With ``pooled`` the pooled text stands behind the tokens as one more.
    """

    @torch.no_grad()
    def __init__(self, folder: Path, sets: tuple[str, ...] = ("training",), pooled: bool = False) -> None:
        tokenizer = load_tokenizer(folder)
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
        rows = sorted((row for name in sets for row in all_captions(name)), key=lambda row: row[1:])

        def encode(captions: list[str]) -> torch.Tensor:
            found = encoder(tokenize(tokenizer, captions))
            parts = [found.last_hidden_state, *([found.pooler_output[:, None]] if pooled else [])]
            return torch.cat(parts, dim=1)

        self.encoded, self.empty = encode([caption for caption, _, _ in rows]), encode([""])
        pairs = [(OBJECTS.index(o), STYLES.index(s)) for _, o, s in rows]
        shape = (len(OBJECTS), len(STYLES))
        self.counts = torch.tensor([[pairs.count((o, s)) for s in range(shape[1])] for o in range(shape[0])])
        self.firsts = torch.tensor([[pairs.index((o, s)) for s in range(shape[1])] for o in range(shape[0])])

    def pick(self, objects: torch.Tensor, styles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        chance = torch.rand(len(objects), generator=generator)
        context = self.encoded[self.firsts[objects, styles] + (chance * self.counts[objects, styles]).long()]
        dropped = torch.rand(len(objects), generator=generator) < 0.1
        return torch.where(dropped[:, None, None], self.empty, context)
