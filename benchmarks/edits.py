"""What an edit costs in a step of Stable Diffusion 1.5: ours beside the published dense rule, and what else one takes.

    python -m benchmarks.edits

An SAE of random weights, 1280 → 20 480, k = 32, reads a guided picture's tokens: sparse sums of its decoder's rows, so
that latents fire as they do in a trained one. A concept is one latent, as in SAeUron's styles. With ``--repository``
the SAeUron repository's own hook is timed too. The UNet has seeded random weights at full size. A negative prompt is a
second pass where there would be one; so is NAG as ComfyUI has it, which also mixes what self-attention gives.
"""

import sys
from collections.abc import Callable

import torch
from torch import nn

from saeuron import Ablate, Replace, Selection, Shift, SparseAutoencoder, Steer
from saeuron.contrasts import Contrasts
from saeuron.detector import Detector
from saeuron.redirect import Redirect

from .common import begin, in_turns, options, shown, spread, tell

FLOOR, VALUE, COUNT = 0.1, 2.0, 50
"""Above which value a concept is edited, what its latent has where it is present, and how many concepts are many."""


def main(arguments: list[str] | None = None) -> None:
    parser = options("Time edits of SD 1.5's tokens.", "edits", 7)
    parser.add_argument("--pixels", type=int, nargs="+", default=[256, 512], help="sides of the picture")
    parser.add_argument("--repository", help="folder of the SAeUron repository, to time its own hook")
    parser.add_argument("--no-unet", dest="unet", action="store_false", help="leave out the UNet, which takes 3.4 GB")
    config = begin(parser, arguments)
    if config.repository:
        sys.path.append(config.repository)
    size = (32, 512, 4) if config.tiny else (1280, 20480, 32)
    sae, found, lines = random_sae(*size, config.device), [], []
    unet = make_unet(config) if config.unet else None
    for pixels in [64] if config.tiny else config.pixels:
        rows = of_edits(config, sae, pixels)
        if unet is not None:
            rows += of_unet(config, unet, pixels)
        step = next((row["ms"] for row in rows if row["name"] == "UNet, a guided call"), None)
        dense = rows[0]["ms"]
        for row in rows:
            row |= {"pixels": pixels, "times_dense": dense / row["ms"], "of_step": step and row["ms"] / step}
            share = f"{row['of_step']:.2%}" if step else ""
            lines.append([pixels, row["name"], shown(row), f"{row['times_dense']:.1f}", share])
        found += rows
    tell(config, ["px", "what", "ms (quartiles)", "× cheaper than dense", "of a step"], lines, rows=found)


def random_sae(d_in: int, n_latents: int, k: int, device: str) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(d_in, n_latents, k).requires_grad_(False)
    sae.W_dec.copy_(nn.functional.normalize(torch.randn(n_latents, d_in, generator=generator), dim=1))
    sae.W_enc.copy_(sae.W_dec)
    sae.b_dec.copy_(torch.randn(d_in, generator=generator))
    return sae.to(device)


def make_tokens(sae: SparseAutoencoder, maps: int, side: int, present: dict[int, float]) -> torch.Tensor:
    """Tokens ``[maps, side², d_in]`` of ``k / 2`` latents each, beside those of ``present``: latent → share of tokens.

    The last `COUNT` latents belong to concepts, and are in no token otherwise.
    """
    generator, count = torch.Generator().manual_seed(1), maps * side * side
    chosen = torch.randint(sae.n_latents - COUNT, (count, max(sae.k // 2, 1)), generator=generator)
    sizes = 0.5 + torch.empty(chosen.shape).exponential_(generator=generator)
    W_dec = sae.W_dec.cpu()
    tokens = nn.functional.embedding_bag(chosen, W_dec, per_sample_weights=sizes, mode="sum") + sae.b_dec.cpu()
    tokens += 0.1 * torch.randn(count, sae.d_in, generator=generator) / sae.d_in**0.5
    for latent, share in present.items():
        tokens += VALUE * (torch.rand(count, 1, generator=generator) < share) * W_dec[latent]
    return tokens.view(maps, -1, sae.d_in).to(sae.W_dec.device)


def selection(sae: SparseAutoencoder, latents: list[int], floor: float) -> Selection:
    latents, ones = torch.tensor([latents]), torch.ones(1, len(latents))
    names = tuple(f"concept {latent}" for latent in latents[0].tolist())
    return Selection(torch.tensor([500]), latents, VALUE * ones, floor * ones, -ones, names, sae.fingerprint)


def of_edits(config, sae: SparseAutoencoder, pixels: int) -> list[dict]:
    """A row an edit, for a guided picture: two maps of a sixteenth of the picture's side, halved once more."""
    side, n = max(pixels // 32, 1), sae.n_latents
    one, many = [n - 1], list(range(n - COUNT, n))
    without, some, all_ = (make_tokens(sae, 2, side, {n - 1: share}) for share in (0.0, 0.25, 1.0))
    mixed = make_tokens(sae, 2, side, dict.fromkeys(many, 1 / COUNT) | {n - 1: 1.0})
    concept, fifty = selection(sae, one, FLOOR), selection(sae, many, FLOOR)
    single, several = Ablate(sae, concept), Ablate(sae, fifty)
    high = Ablate(sae, selection(sae, one, VALUE / 2))
    detectors = [detector(sae, [own, *(other for other in many[-20:] if other != own)]) for own in many[-20:]]
    shift = Shift(sae, [selection(sae, [own], FLOOR) for own in many[-20:]], detectors)
    redirect = Redirect(sae, random_contrasts(sae), {"concept 0": -2.0})
    works: dict[str, Callable] = {
        "dense rule, as published": lambda: dense(sae, concept, all_),
        "absent": lambda: high(without, 500),
        "absent, where half of the tokens have to be looked at": lambda: single(without, 500),
        "ablate, present on a quarter of the tokens": lambda: single(some, 500),
        "ablate, present on every token": lambda: single(all_, 500),
        "ablate, fifty concepts, one of them on every token": lambda: several(all_, 500),
        "ablate, fifty concepts, all of them here and there": lambda: several(mixed, 500),
        "replace, present on a quarter": lambda: Replace(sae, concept)(some, 500),
        "shift, present, beside twenty": lambda: shift(all_, 500),
        "steer one latent": lambda: Steer(sae, (n - 1,), scale=2.0)(all_, 500),
        "redirect (the default), one of twenty concepts": lambda: redirect(all_, 500),
    }
    if config.repository:
        hook, maps = repository_hook(sae, one), all_.transpose(1, 2).unflatten(2, (side, side)).contiguous()
        works["the repository's hook"] = lambda: hook(maps)
    taken = in_turns(config, works)
    return [{"name": name} | spread(taken[name]) for name in works]


@torch.no_grad()
def dense(sae: SparseAutoencoder, chosen: Selection, tokens: torch.Tensor) -> torch.Tensor:
    """The published rule: encode, decode, edit, decode again, and give back the error."""
    code, now = sae.encode(tokens), chosen.at(500, tokens.device)
    error = tokens - sae.decode(code)
    own = code[..., now.latents]
    code[..., now.latents] = torch.where(own > now.kind_means, now.strengths * now.means * own, own)
    return sae.decode(code) + error


def detector(sae: SparseAutoencoder, latents: list[int]) -> Detector:
    means = torch.full((1, len(latents)), VALUE)
    return Detector(torch.tensor([500]), torch.tensor(latents), means, torch.tensor([VALUE / 4]), sae.fingerprint)


def random_contrasts(sae: SparseAutoencoder, concepts: int = 20, width: int = 64) -> Contrasts:
    """What is fitted from pictures, at random: what it costs does not depend on it."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randint(sae.n_latents, (1, concepts, width), generator=generator)
    weights = torch.rand(1, concepts, width, generator=generator)
    names = {f"concept {n}": "style" for n in range(concepts)}
    offsets, distances = torch.full((1, concepts), -1e3), torch.rand(concepts, concepts, generator=generator)
    own = (latents, weights, offsets, latents, weights, distances)
    return Contrasts(names, torch.tensor([500]), sae.fingerprint, *own, 1.0)


def repository_hook(sae: SparseAutoencoder, latents: list[int]) -> Callable[[torch.Tensor], object]:
    from SAE.config import SaeConfig
    from SAE.sae import Sae
    from utils.hooks import SAEMaskedUnlearningHook

    own = Sae(sae.d_in, SaeConfig(num_latents=sae.n_latents, k=sae.k), sae.W_dec.device).requires_grad_(False)
    own.encoder.weight.copy_(sae.W_enc)
    own.W_dec.copy_(sae.W_dec)
    own.b_dec.copy_(sae.b_dec)
    hook = object.__new__(SAEMaskedUnlearningHook)  # its own beginning reads tables of all prompts
    hook.sae, hook.preserve_error, many = own, True, 10**4
    hook.top_feature_idxs, hook.timestep_idx = [torch.tensor(latents)] * many, 0
    hook.scaling_factors = [torch.full((len(latents),), -VALUE)] * many
    hook.all_concept_avg_acts = [torch.full((len(latents),), FLOOR)] * many
    return lambda maps: hook(None, None, (maps,))


def make_unet(config) -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    small = {"block_out_channels": (64, 64, 64, 64), "cross_attention_dim": 32} if config.tiny else {}
    unet = UNet2DConditionModel(**({"sample_size": 64, "cross_attention_dim": 768} | small))
    return unet.requires_grad_(False).eval().to(config.device)


def of_unet(config, unet: nn.Module, pixels: int) -> list[dict]:
    """A step without edits, with guidance and without, and with a second look at the text."""
    side, width = pixels // 8, unet.config.cross_attention_dim
    latents = torch.randn(2, unet.config.in_channels, side, side, device=config.device)
    text = torch.randn(2, 77, width, device=config.device)

    @torch.no_grad()
    def call(maps: int) -> None:
        unet(latents[:maps], 500, encoder_hidden_states=text[:maps])

    def normalised(_module, _args, output: torch.Tensor) -> torch.Tensor:
        """As ComfyUI's node does by its defaults to what self-attention gives."""
        without, under = output.chunk(2)
        led = 5 * under - 4 * without
        ratio = (led.norm(p=1, dim=-1, keepdim=True) / under.norm(p=1, dim=-1, keepdim=True)).clamp(min=1e-6)
        return torch.cat([without, 0.5 * led * ratio.clamp(max=1.5) / ratio + 0.5 * under])

    def attending() -> None:
        modules = [module for name, module in unet.named_modules() if name.endswith("attn1")]
        handles = [module.register_forward_hook(normalised) for module in modules]
        call(2)
        for handle in handles:
            handle.remove()

    alone, guided = "UNet, a call without guidance", "UNet, a guided call"
    works = {guided: lambda: call(2), alone: lambda: call(1), "with NAG": attending}
    config.rounds, before = min(config.rounds, 2), config.rounds
    taken = in_turns(config, works)
    config.rounds = before
    rows = [{"name": name} | spread(taken[name]) for name in (guided, alone)]
    pairs = {"a negative prompt beside no guidance": guided, "NAG beside no guidance": "with NAG"}
    for name, own in pairs.items():
        extra = [with_it - plain for with_it, plain in zip(taken[own], taken[alone], strict=True)]
        rows.append({"name": name} | spread(extra))
    return rows


if __name__ == "__main__":
    main()
