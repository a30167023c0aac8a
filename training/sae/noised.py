"""Pictures that are there already: noised at several timesteps and looked at once each, in place of being drawn."""

import hashlib
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image, ImageOps

from saeuron import Hookpoint, SaeuronError
from saeuron.learning import FEWEST

from ..common.pictures import from_picture
from ..diffusion.hook import hooked
from ..diffusion.load import Pipeline, variant
from ..diffusion.sampling import Sampling

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TIMESTEPS = (62, 187, 312, 437, 562, 687, 812, 937)
"""The middles of eight equal parts of 0…1000."""


def pictures_in(folder: Path, option: str) -> dict[str, Path]:
    """The pictures of a folder by a hash of their bytes; raises SaeuronError where there are too few to learn from."""
    if not folder.is_dir():
        raise SaeuronError(f"{option} {folder} is not a folder: give one of pictures ({', '.join(SUFFIXES)})")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    found = {hashlib.sha256(path.read_bytes()).hexdigest()[:16]: path for path in files}
    if len(found) < FEWEST:
        raise SaeuronError(
            f"{option} {folder} holds {len(found) or 'no'} different pictures ({', '.join(SUFFIXES)}): "
            f"give {FEWEST}, better 12"
        )
    return found


def check_apart(own: dict[str, Path], others: dict[str, Path]) -> None:
    """Raise SaeuronError where a picture is in both folders."""
    both = [name for name in own if name in others]
    if both:
        raise SaeuronError(f"{own[both[0]]} and {others[both[0]]} are one picture: leave it in one folder")


@torch.no_grad()
def look(
    pipeline: Pipeline, path: Path, text: str, seed: int, sampling: Sampling, hookpoint: Hookpoint
) -> dict[int, tuple[torch.Tensor, None]]:
    """By timestep the tokens ``[1, N, d_in]`` of one picture under ``text``, one model call at each of `TIMESTEPS`."""
    if not hasattr(pipeline, "unet"):
        raise SaeuronError("pictures are noised as a UNet's are, and this model is a transformer: give prompts")
    unet, seen, tokens = pipeline.unet, {}, []
    side = unet.config.sample_size * pipeline.vae_scale_factor
    height, width = sampling.height or side, sampling.width or side
    latents = _encode(pipeline, _read(path, height, width))
    scheduler = variant(pipeline, "ddim").scheduler  # whose noised latents are what the model was trained on
    generator = torch.Generator().manual_seed(seed)
    embeds, more = _conditions(pipeline, text, height, width)
    pipeline._guidance_scale = 1.0  # as a call of the pipeline would set it: no half is unconditional

    def tap(maps, _timestep, _conditional):
        tokens.append(maps)
        return maps

    device = unet.device
    with hooked(pipeline, {hookpoint: tap}), torch.autocast(device.type, torch.bfloat16, enabled=sampling.bf16):
        for timestep in TIMESTEPS:
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            noised = scheduler.add_noise(latents, noise, torch.tensor([timestep]))
            unet(noised, torch.tensor(timestep, device=device), encoder_hidden_states=embeds, **more)
            seen[timestep] = tokens.pop(), None
    return seen


def _read(path: Path, height: int, width: int) -> torch.Tensor:
    """The middle of a picture at this size, ``[1, 3, H, W]`` in −1..1."""
    try:
        picture = ImageOps.fit(Image.open(path).convert("RGB"), (width, height))
    except OSError as error:
        raise SaeuronError(f"{path} is not a readable picture: {error}") from None
    return from_picture(picture)[None].float() / 127.5 - 1


def _encode(pipeline: Pipeline, picture: torch.Tensor) -> torch.Tensor:
    vae, dtype = pipeline.vae, pipeline.unet.dtype
    own = vae.dtype
    if own == torch.float16 and getattr(vae.config, "force_upcast", False):
        vae.to(torch.float32)  # SDXL's overflows in half precision
    try:
        encoded = vae.encode(picture.to(vae.device, vae.dtype))
    finally:
        if vae.dtype != own:
            vae.to(own)
    found = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents  # a tiny VAE's
    return (found * vae.config.scaling_factor).to(dtype)


def _conditions(pipeline: Pipeline, text: str, height: int, width: int) -> tuple[torch.Tensor, dict]:
    """What the model is told beside the latents: the encoded prompt, and SDXL's size."""
    device = pipeline.unet.device
    if isinstance(pipeline, StableDiffusionXLPipeline):
        embeds, _, pooled, _ = pipeline.encode_prompt(text, device=device, do_classifier_free_guidance=False)
        ids = torch.tensor([[height, width, 0, 0, height, width]], device=device, dtype=embeds.dtype)
        return embeds, {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
    return pipeline.encode_prompt(text, device, 1, False)[0], {}
