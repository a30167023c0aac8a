"""What the formats share: every SAE as ``W_enc[n,d] b_enc[n] W_dec[n,d] b_dec[d]``, wherever it comes from."""

import math
import re
from pathlib import Path

import torch

from ..autoencoder import SparseAutoencoder
from ..errors import SaeuronError
from ..files import check_finite
from ..hookpoints import Hookpoint

TRANSFORMER = re.compile(
    r"(?<![a-z])(?<!attentions\.\d\.)(?P<kind>single_transformer_blocks|transformer_blocks|layers)[._](?P<number>\d+)(?!\d)"
    r"(?:-(?P<stream>[01])(?!\d)|\.(?P<output>image_output|text_output))?"
)
FLUX = re.compile(r"SAE_flux_(\d+)(?!\d)")
HOOKPOINT = re.compile(r"unet\.(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+(?=_|$)")


def number(path: Path, config: dict, *keys: str) -> int:
    """The first of ``keys`` that ``config``, read from ``path``, gives as a whole number over 0."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**40:
            return value
    raise SaeuronError(f"{path} has no usable value for {' or '.join(keys)}")


def scalar(path: Path, stored: dict, name: str, default: float) -> float:
    """The one number that ``path`` stores under ``name``, or ``default`` where it stores none."""
    value = stored.get(name)
    try:
        found = default if value is None else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise SaeuronError(f"{path} has {name} as something other than one finite number")
    return found


def tensors_of(
    path: Path, stored: dict, names: dict[str, str], d_in: int, n_latents: int, ignore: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """The tensors of ``path`` under their own names, in their own shapes.

    ``names`` maps each stored name to an own one, with ``.T`` behind it where the file holds the transpose; ``ignore``
    are stored names that encoding and decoding do not need. Raises SaeuronError where a tensor is missing, unknown, of
    another shape than the config says, or holds anything but finite floating-point numbers.
    """
    missing = sorted(set(names) - set(stored))
    unknown = sorted(set(stored) - set(names) - set(ignore), key=str)
    if missing:
        raise SaeuronError(f"{path} lacks {', '.join(missing)}")
    if unknown:
        raise SaeuronError(f"{path} holds {', '.join(map(str, unknown[:5]))}, which is not supported")
    shapes = {"W_enc": (n_latents, d_in), "W_dec": (n_latents, d_in), "b_enc": (n_latents,), "b_dec": (d_in,)}
    shapes["threshold"] = (n_latents,)
    own = {}
    for name, target in names.items():
        target, transposed = target.removesuffix(".T"), target.endswith(".T")
        expected = shapes[target][::-1] if transposed else shapes[target]
        tensor = stored[name]
        if not isinstance(tensor, torch.Tensor) or tensor.shape != expected:
            found = (
                f"of shape {list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else f"as {type(tensor).__name__}"
            )
            raise SaeuronError(f"{path} has {name} {found} where its config says {list(expected)}")
        if not tensor.is_floating_point():
            raise SaeuronError(f"{path} has {name} as {tensor.dtype} where floating-point numbers are expected")
        own[target] = tensor.T.contiguous() if transposed else tensor
    check_finite(own, path)
    return own


def build(path: Path, tensors: dict[str, torch.Tensor], k: int, activation: str, **options) -> SparseAutoencoder:
    """An SAE of own ``tensors``; what SparseAutoencoder refuses is told with the name of ``path``, the config."""
    n_latents, d_in = tensors["W_enc"].shape
    try:
        with torch.device("meta"):  # its own tensors would take as much again before they are replaced
            sae = SparseAutoencoder(d_in, n_latents, k, activation, **options)
    except (SaeuronError, TypeError) as error:
        raise SaeuronError(f"{path} does not fit: {error}") from None
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        setattr(sae, name, torch.nn.Parameter(tensors[name], requires_grad=False))
    return sae


def without_input_bias(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same function for a format that encodes ``W x + b``: with ``b_enc + W_enc b_dec``, ours gives that too."""
    shift = tensors["W_enc"].double() @ tensors["b_dec"].double()
    return tensors | {"b_enc": (tensors["b_enc"].double() + shift).to(tensors["b_enc"].dtype)}


def hookpoint_of(folder: Path, site: str = "output") -> Hookpoint | None:
    """The hookpoint that a folder is named after, as publishers name theirs; ``final`` counts for its parent."""
    folder = folder.absolute()
    name = folder.parent.name if folder.name == "final" else folder.name
    if found := HOOKPOINT.match(name):
        return Hookpoint(found.group(), site)
    return transformer_hookpoint(name, site)


def transformer_hookpoint(name: str, site: str = "output") -> Hookpoint | None:
    """The hookpoint that ``name`` holds of a transformer; SaeuronError where its tokens are a text's."""
    if found := FLUX.search(name):
        return Hookpoint(f"transformer.transformer_blocks.{found[1]}", site)
    if found := TRANSFORMER.search(name):
        if found["stream"] == "0" or found["output"] == "text_output":
            raise SaeuronError(
                f"{name} read the text's stream, whose tokens are no places of a picture: "
                "take the SAE of the picture's stream"
            )
        return Hookpoint(f"transformer.{found['kind']}.{found['number']}", site)
    return None
