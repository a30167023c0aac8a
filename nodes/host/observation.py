"""Drawing pictures, or looking at given ones, to see what passes an SAE's hookpoint."""

from collections.abc import Callable

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ...saeuron import SaeuronError
from ...saeuron.families import family_of
from ...saeuron.hookpoints import whole_timestep
from .blocks import check_width, root_of, sigma_of, timestep_of
from .memory import KEY
from .patching import Patch, Place, attach
from .sockets import LoadedSae

SIDES = {768: 64, 1024: 96, 2048: 128}
"""By the width of the text a family of models reads: the side of the latents it was trained on."""
PATCHED = (
    "this model already carries a patch of this pack, and would teach what is left of it: "
    "connect the model that goes into the patch"
)
Seen = dict[int, tuple[torch.Tensor, torch.Tensor | None]]
"""By timestep the tokens ``[B, N, d]`` of the positive prompt, and of the negative one where the model was guided."""


class Half:
    """The tokens of one half of guidance, by timestep; on the CPU, since a whole sampling's may be half a gigabyte."""

    def __init__(self) -> None:
        self.seen: dict[int, torch.Tensor] = {}

    def begin(self, model: ModelPatcher) -> None:
        self.seen = {}

    def see(self, tokens: torch.Tensor, place: Place) -> None:
        if place.rows.any():
            own = tokens[place.rows.to(tokens.device)].detach().cpu()
            self.seen.setdefault(whole_timestep(place.timestep), own)

    def end(self, finished: bool) -> None:
        pass


class Watched:
    """A MODEL whose tokens at the hookpoint of ``sae`` are seen, those of the positive prompt and of the negative one.

    Raises SaeuronError where the hookpoint is not in the model, the SAE is of another width, or the model has been
    patched by this pack already.
    """

    def __init__(self, model: ModelPatcher, sae: LoadedSae) -> None:
        check_width(sae.sae, model.model, sae.hookpoint)
        if model.get_attachment(KEY):
            raise SaeuronError(PATCHED)
        self.positive, self.negative = Half(), Half()
        for half, rows in ((self.positive, "positive"), (self.negative, "negative")):
            model = attach(model, Patch(sae.hookpoint, observer=half, applies_to=rows), sae.patcher)
        self.model = model

    def timesteps(self, sigmas: torch.Tensor) -> list[int]:
        sampling = self.model.get_model_object("model_sampling")
        return [whole_timestep(float(timestep_of(sampling, sigma[None])[0])) for sigma in sigmas]

    def sampling_sigmas(self, steps: int) -> torch.Tensor:
        """What Euler's method goes through, the last 0 included."""
        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "normal", steps).cpu()

    def spread_sigmas(self, count: int) -> torch.Tensor:
        """Those of ``count`` timesteps spread evenly over 0…1000, the noisiest first."""
        timesteps = (torch.arange(count).flip(0) + 0.5) * 1000 / count
        return sigma_of(self.model.get_model_object("model_sampling"), timesteps.floor()).cpu()

    def draw(
        self, positive: list, negative: list, cfg: float, sigmas: torch.Tensor, noise: torch.Tensor, step: Callable
    ) -> tuple[torch.Tensor, Seen]:
        """Latents sampled by Euler's method from ``noise`` ``[B, C, h, w]``, and the tokens seen on the way."""
        sampler = comfy.samplers.sampler_object("euler")
        return self._run(sampler, positive, negative, cfg, sigmas, noise, torch.zeros_like(noise), step)

    def look(
        self, latent: torch.Tensor, positive: list, sigmas: torch.Tensor, noise: torch.Tensor, step: Callable
    ) -> Seen:
        """The tokens of ``latent`` ``[B, C, h, w]`` with ``noise`` added as each of ``sigmas`` says, one call each."""
        return self._run(Looks(), positive, positive, 1.0, sigmas, noise, latent, step)[1]

    def _run(self, sampler, positive, negative, cfg, sigmas, noise, latent, step):
        latent = comfy.sample.sample_custom(
            self.model, noise, cfg, sampler, sigmas, positive, negative, latent, None, lambda *_: step(), True, seed=0
        )
        unguided = self.negative.seen
        return latent, {t: (tokens, unguided.get(t)) for t, tokens in self.positive.seen.items()}


class Looks(comfy.samplers.Sampler):
    """No sampler: it noises the latent as each sigma says, and shows it to the model once."""

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *_, **__):
        sampling = guider.inner_model.model_sampling
        for sigma in sigmas:
            noised = sampling.noise_scaling(sigma.view(1), noise, latent_image)
            guider(noised, sigma.expand(len(noised)), **extra_args)
            callback()
        return latent_image


def latent_size(model: ModelPatcher, latent: dict | None) -> tuple[int, int, int]:
    """Channels, height and width of the latents to draw: those of ``latent``, or what the model was trained on."""
    form, config = model.get_model_object("latent_format"), model.model.model_config.unet_config
    if latent is None:
        usual = 64 if family_of(root_of(model.model)) is None else 128
        side = SIDES.get(config.get("context_dim"), config.get("image_size", usual))
        return form.latent_channels, side, side
    # Empty Latent Image of newer ComfyUIs counts in pixels of a usual model, and says so.
    ratio = latent.get("downscale_ratio_spacial") or downscale(model)
    sides = (max(1, round(side * ratio / downscale(model))) for side in latent["samples"].shape[-2:])
    return form.latent_channels, *sides


def downscale(model: ModelPatcher) -> int:
    """Pixels a side of a latent's place."""
    return getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)


def fitted(pictures: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """``pictures`` ``[B, H, W, 3]``, cropped to the middle and scaled to ``height`` × ``width``."""
    method = "area" if pictures.shape[1] >= height and pictures.shape[2] >= width else "bicubic"
    return comfy.utils.common_upscale(pictures[..., :3].movedim(-1, 1), width, height, method, "center").movedim(1, -1)
