"""Hookpoints: named places in a model, in diffusers' naming, and the tokens that pass there."""

from dataclasses import dataclass

import torch
from torch import nn

from .errors import SaeuronError, nearest

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

    def read(self, output: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """The tokens ``[B, N, d]`` of this site, from a block's ``output`` and its input, ``[B, d, h, w]`` both."""
        return to_tokens(output - before if self.site == "residual" else output)

    def write(self, output: torch.Tensor, tokens: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
        """The block's ``output`` with ``edited`` in place of ``tokens``, as `read` gave them.

        Of a residual the difference is added to the output, not the input to the result: where a token is as it was,
        every bit of the output is.
        """
        return output + to_maps(edited - tokens, output) if self.site == "residual" else to_maps(edited, output)


def names(root: nn.Module, prefix: str = "unet") -> list[str]:
    """Every whole transformer block of a diffusers UNet, in the order of the model's definition."""
    return [f"{prefix}.{n}" for n, m in root.named_modules() if type(m).__name__ == "Transformer2DModel"]


def whole_timestep(timestep: float | torch.Tensor) -> int:
    """The whole number that a recording or table names ``timestep`` (0…1000) by, whatever host it comes from."""
    return round(float(timestep))


def to_tokens(maps: torch.Tensor) -> torch.Tensor:
    """Feature maps ``[B, d, h, w]`` as tokens ``[B, h·w, d]``, a view where the memory layout allows it."""
    return maps.flatten(2).transpose(1, 2)


def to_maps(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Tokens ``[B, h·w, d]`` back as maps in the shape of ``like`` ``[B, d, h, w]``."""
    return tokens.transpose(1, 2).reshape(like.shape)
