"""Hookpoints: named places in a model, in diffusers' naming, and the tokens that pass there."""

from dataclasses import dataclass

import torch
from torch import nn

from .errors import SaeuronError, nearest
from .families import UNET, Grid, Stream, family_of, width_of

SITES = ("output", "residual")


@dataclass(frozen=True)
class Hookpoint:
    """A transformer block of the model (``unet.up_blocks.1.attentions.1``) and what of it is read.

    ``site`` is ``output``, the block's output as it is, or ``residual``, output minus input.
    """

    name: str
    site: str = "output"

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise SaeuronError(f"site {self.site!r} is unknown; it is one of {', '.join(SITES)}")

    def module(self, root: nn.Module) -> nn.Module:
        """The module of this name in ``root`` (the part after ``unet.``); raises SaeuronError with near names."""
        known = names(root)
        if self.name not in known:
            raise SaeuronError(
                f"hookpoint {self.name!r} is not in this model; the nearest are {nearest(self.name, known)}"
            )
        return root.get_submodule(self.name.split(".", 1)[1])

    def stream(self, root: nn.Module) -> Stream:
        """How the block of this name in ``root`` is given the picture's tokens and returns them."""
        family, kind = family_of(root), self.name.split(".")[1]
        return next(b.in_diffusers for b in family.blocks if b.diffusers == kind) if family else UNET

    def width(self, root: nn.Module) -> int:
        """The width of the tokens here; raises SaeuronError as `module` does."""
        module = self.module(root)
        return width_of(root) if family_of(root) else module.config.in_channels

    def read(self, output: torch.Tensor, before: torch.Tensor | None, place: slice | None = None) -> torch.Tensor:
        """The tokens ``[B, N, d]`` of this site, from a block's ``output`` and its input.

        Both are ``[B, d, h, w]``; or ``[B, L, d]`` where the picture's tokens stand at ``place``. An input that was
        kept for a block which writes in place holds those alone.
        """
        if output.ndim == 4:
            return to_tokens(output - before if self.site == "residual" else output)
        tokens = output[:, place]
        if self.site == "output":
            return tokens
        return tokens - (before if before.shape == tokens.shape else before[:, place])

    def write(
        self, output: torch.Tensor, tokens: torch.Tensor, edited: torch.Tensor, place: slice | None = None
    ) -> torch.Tensor:
        """The block's ``output`` with ``edited`` in place of ``tokens``, as `read` gave them.

        Of a residual the difference is added to the output, not the input to the result: where a token is as it was,
        every bit of the output is.
        """
        if output.ndim == 4:
            return output + to_maps(edited - tokens, output) if self.site == "residual" else to_maps(edited, output)
        result = output.clone()
        result[:, place] = output[:, place] + (edited - tokens) if self.site == "residual" else edited
        return result


def place_of(stream: Stream, image: torch.Tensor, grid: Grid | None) -> tuple[slice | None, int, int]:
    """Where the picture's tokens are in ``image``, None in feature maps; and the height and width of their grid."""
    if image.ndim == 4:
        return None, *image.shape[-2:]
    return stream.place(image.shape[1], grid), grid.height, grid.width


def names(root: nn.Module) -> list[str]:
    """Every hookpoint of a diffusers model: whole transformer blocks of a UNet, or the blocks of a transformer."""
    family = family_of(root)
    if family is None:
        return [f"unet.{n}" for n, m in root.named_modules() if type(m).__name__ == "Transformer2DModel"]
    return [f"transformer.{b.diffusers}.{n}" for b in family.blocks for n in range(len(getattr(root, b.diffusers)))]


def whole_timestep(timestep: float | torch.Tensor) -> int:
    """The whole number that a recording or table names ``timestep`` (0…1000) by, whatever host it comes from."""
    return round(float(timestep))


def to_tokens(maps: torch.Tensor) -> torch.Tensor:
    """Feature maps ``[B, d, h, w]`` as tokens ``[B, h·w, d]``, a view where the memory layout allows it."""
    return maps.flatten(2).transpose(1, 2)


def to_maps(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Tokens ``[B, h·w, d]`` back as maps in the shape of ``like`` ``[B, d, h, w]``."""
    return tokens.transpose(1, 2).reshape(like.shape)
