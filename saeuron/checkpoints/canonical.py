"""What the formats share: every SAE as ``W_enc[n,d] b_enc[n] W_dec[n,d] b_dec[d]``, wherever it comes from."""

import re
from pathlib import Path

import torch

from ..autoencoder import SparseAutoencoder
from ..errors import SaeuronError
from ..hookpoints import Hookpoint

TRANSFORMER = re.compile(
    r"(?P<kind>single_transformer_blocks|transformer_blocks|layers)\.(?P<number>\d+)"
    r"(?:-(?P<stream>[01])|\.(?P<output>image_output|text_output))?(?=_|$)"
)
FLUX = re.compile(r"SAE_flux_(\d+)$")
HOOKPOINT = re.compile(r"unet\.(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+(?=_|$)")


def read_torch(path: Path) -> dict:
    """A torch file of tensors, numbers and strings; SaeuronError names one that is missing or holds anything else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SaeuronError(f"{path} does not exist") from None
    except Exception as error:  # torch raises many kinds; all of them mean the same to the user
        raise SaeuronError(
            f"{path} is broken, or it holds Python objects besides tensors, which are never unpickled"
        ) from error
    if not isinstance(content, dict):
        raise SaeuronError(f"{path} holds a {type(content).__name__} where tensors by name are expected")
    return content


def number(path: Path, config: dict, *keys: str) -> int:
    """The first of ``keys`` that ``config``, read from ``path``, gives as a whole number over 0."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    raise SaeuronError(f"{path} has no usable value for {' or '.join(keys)}")


def scalar(path: Path, stored: dict, name: str, default: float) -> float:
    """The one number that ``path`` stores under ``name``, or ``default`` where it stores none."""
    value = stored.get(name)
    try:
        return default if value is None else float(value)
    except (TypeError, ValueError, RuntimeError):
        raise SaeuronError(f"{path} has {name} as something other than one number") from None


def tensors_of(
    path: Path, stored: dict, names: dict[str, str], d_in: int, n_latents: int, ignore: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """The tensors of ``path`` under their own names, in their own shapes.

    ``names`` maps each stored name to an own one, with ``.T`` behind it where the file holds the transpose; ``ignore``
    are stored names that encoding and decoding do not need. Raises SaeuronError where a tensor is missing, unknown or
    of another shape than the config says.
    """
    missing, unknown = sorted(set(names) - set(stored)), sorted(set(stored) - set(names) - set(ignore))
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
            found = f"of shape {list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else f"as {tensor!r}"
            raise SaeuronError(f"{path} has {name} {found} where its config says {list(expected)}")
        own[target] = tensor.T.contiguous() if transposed else tensor
    return own


def build(path: Path, tensors: dict[str, torch.Tensor], k: int, activation: str, **options) -> SparseAutoencoder:
    """An SAE of own ``tensors``; what SparseAutoencoder refuses is told with the name of ``path``, the config."""
    n_latents, d_in = tensors["W_enc"].shape
    try:
        sae = SparseAutoencoder(d_in, n_latents, k, activation, **options)
    except SaeuronError as error:
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
    if found := FLUX.match(name):
        return Hookpoint(f"transformer.transformer_blocks.{found[1]}", site)
    if found := TRANSFORMER.search(name):
        if found["stream"] == "0" or found["output"] == "text_output":
            raise SaeuronError(
                f"{name} read the text's stream, whose tokens are no places of a picture: "
                "take the SAE of the picture's stream"
            )
        return Hookpoint(f"transformer.{found['kind']}.{found['number']}", site)
    return None
