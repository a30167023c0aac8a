"""TinyCanvas-Flow: a second small diffusion model, a transformer of FLUX's architecture trained with rectified flow.

It shares drawings, captions, judge and text encoder with the UNet. A picture is 8 × 8 tokens of 2 × 2 latents, which
makes 4 × 4 pixels each; the text encoder gives both FLUX's sequence of text and its pooled text.
"""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn

PATCH = 2
WIDTHS = {"attention_head_dim": 32, "num_attention_heads": 4, "joint_attention_dim": 128, "pooled_projection_dim": 128}


def build_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=48,
        num_layers=2,
        num_single_layers=4,
        axes_dims_rope=(8, 12, 12),
        **WIDTHS,
    )


def build_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents ``[B, C, h, w]`` as FLUX's tokens ``[B, h/2 · w/2, 4C]``."""
    return nn.functional.pixel_unshuffle(latents, PATCH).flatten(2).mT


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Tokens back as latents ``[B, C, height, width]``."""
    maps = tokens.mT.unflatten(2, (height // PATCH, width // PATCH))
    return nn.functional.pixel_shuffle(maps, PATCH)


def velocity(
    transformer: nn.Module, latents: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """Noise minus drawing as the model sees it, ``[B, C, h, w]``, from ``latents`` at noise levels ``sigma`` ``[B]``.

    ``context`` ``[B, L, d]`` and ``pooled`` ``[B, d]`` are the encoded captions.
    """
    height, width = latents.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height // PATCH), torch.arange(width // PATCH), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()
    tokens = transformer(
        hidden_states=pack(latents),
        encoder_hidden_states=context,
        pooled_projections=pooled,
        timestep=sigma,
        img_ids=places,
        txt_ids=torch.zeros(context.shape[1], 3),
        return_dict=False,
    )[0]
    return unpack(tokens, height, width)
