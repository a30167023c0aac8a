"""Masks: where in a picture an edit acts, ``[M, H, W]`` in 0..1 with M the batch or 1."""

import torch

from ...saeuron import SaeuronError


def check_mask(mask: torch.Tensor | None, shape: torch.Size) -> None:
    """Raise SaeuronError unless ``mask`` fits latents of ``shape`` ``[B, C, h, w]``."""
    if mask is None:
        return
    pictures, height, width = mask.shape
    if pictures not in (1, shape[0]):
        raise SaeuronError(
            f"the mask holds {pictures} pictures and {shape[0]} are sampled: give one mask, or {shape[0]}"
        )
    if abs(height * shape[-1] / (width * shape[-2]) - 1) > 0.05:
        raise SaeuronError(
            f"the mask is {width} × {height} and the latent {shape[-1]} × {shape[-2]}: "
            "make a mask of the picture's proportions"
        )


def on_tokens(
    mask: torch.Tensor | None, pictures: torch.Tensor, height: int, width: int, device: torch.device
) -> torch.Tensor | None:
    """``mask`` for each of ``pictures`` ``[B]`` at the resolution of a feature map, ``[B, height·width]``."""
    if mask is None:
        return None
    small = torch.nn.functional.interpolate(mask[:, None].float(), (height, width), mode="area")
    return small.flatten(1)[pictures % len(mask)].to(device)
