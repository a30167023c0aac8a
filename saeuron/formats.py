"""What the JSON of each format has to be: one description each, checked before anything else is done with it."""

import reprlib
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict

from .errors import SaeuronError

T = TypeVar("T")
LAST = 1000
"""The largest timestep."""
LONGEST_PROMPT = 10_000
"""Letters that an atlas keeps of a prompt."""
NUMBERS = (torch.uint16, torch.int32, torch.int64)
"""What latents may be numbered in."""


def _line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has to be one line of text")
    return text


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("a name has to be one line of text")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_name)]
"""Of a concept or kind."""
Kinds = Annotated[dict[Name, Annotated[str, Field(max_length=200)]], Field(max_length=100_000)]
"""Concept → kind."""
Count = Annotated[int, Field(ge=0, lt=2**40)]
Size = Annotated[int, Field(ge=1, lt=2**40)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Shard = Annotated[str, Field(pattern=r"^shard-[0-9]{5,9}\.safetensors$")]
"""A file of the recording's own folder: no name leads elsewhere."""


class HeaderDescription(TypedDict):
    """What a table says of its concepts, by itself or in a bundle."""

    concepts: Kinds


class TableDescription(TypedDict):
    format: Literal["saeuron-concept-table"]
    version: Literal[1, 2]
    concepts: Kinds
    fingerprint: str
    n_latents: NotRequired[Size]
    origin: dict[str, Any]


class ContrastsDescription(TypedDict):
    unit: Annotated[Real, Field(gt=0)]


class CompactDescription(TypedDict):
    concepts: Kinds
    kept: Count
    scale: Annotated[Real, Field(gt=0)]
    origin: dict[str, Any]
    contrasts: NotRequired[ContrastsDescription | None]


class BundleDescription(TypedDict):
    format: Literal["saeuron-bundle"]
    version: Literal[1]
    hookpoint: Name | None
    site: Literal["output", "residual"] | None
    base_model: str
    d_in: Size
    n_latents: Size
    k: Size
    activation: str
    threshold: Real | None
    fingerprint: str
    config: dict[str, Any]
    table: CompactDescription | None
    settings: dict[Name, Any]
    licence: str
    card: str


class ManifestDescription(TypedDict):
    format: Literal["saeuron-recording"]
    version: Literal[1]
    hookpoint: Name
    site: Literal["output", "residual"]
    d_in: Size
    settings: dict[str, Any]
    settings_hash: str
    complete: bool
    shards: dict[Shard, Size]
    images: NotRequired[list[Size]]


class PromptsDescription(TypedDict):
    prompts: list[dict[str, str]]


class PartDescription(TypedDict):
    settings_hash: str
    shards: dict[Shard, Size]


class LessonDescription(TypedDict):
    format: Literal["saeuron-lesson"]
    version: Literal[2]
    identity: str


class JournalDescription(TypedDict):
    """The options of a command, and what it has read: a folder is continued by what its own say."""

    made_with: NotRequired[dict[str, Any]]


class SettingsDescription(TypedDict):
    concepts: dict[Name, dict[str, Any]]


class SaeDescription(TypedDict):
    """A ``cfg.json`` of SAeUron, SAEmnesia or this project."""

    format: NotRequired[Literal["saeuron-sae"]]
    version: NotRequired[Literal[1]]
    k: Size
    d_in: NotRequired[Size]
    d_model: NotRequired[Size]
    num_latents: NotRequired[Count]
    n_dirs_local: NotRequired[Count]
    expansion_factor: NotRequired[Count]
    activation: NotRequired[str]
    threshold: NotRequired[Real | None]
    hookpoint: NotRequired[Name | None]
    site: NotRequired[Literal["output", "residual"]]
    base_model: NotRequired[str]
    fingerprint: NotRequired[str | None]
    assignment: NotRequired[dict[Name, Count]]


class AtlasDescription(TypedDict):
    format: Literal["saeuron-atlas"]
    version: Literal[1]
    fingerprint: Annotated[str, Field(max_length=200)]
    n_latents: Annotated[int, Field(ge=1, le=2**20)]
    origin: dict[str, Any]
    settings: dict[str, Any]
    grid: Annotated[list[Annotated[int, Field(ge=1, le=256)]], Field(min_length=2, max_length=2)]
    pictures: Count
    parts: list[Size]


class PictureDescription(TypedDict):
    """One picture of an atlas; ``size`` is width and height on its sheet."""

    prompt: Annotated[str, Field(max_length=LONGEST_PROMPT)]
    key: Annotated[str, Field(max_length=64)]
    size: Annotated[list[Annotated[int, Field(ge=1, le=256)]], Field(min_length=2, max_length=2)]


class SheetDescription(TypedDict):
    pictures: Annotated[list[PictureDescription], Field(min_length=1)]


class CardsDescription(TypedDict):
    """Columns of one entry a latent, and lists of latents."""

    frequency: list[Real]
    area: list[Real]
    shown: list[Count]
    peak: list[Real]
    timestep: list[Annotated[int, Field(ge=0, le=LAST)]]
    crops: list[Annotated[int, Field(ge=0, le=12)]]
    words: list[Annotated[str, Field(max_length=2000)]]
    odds: list[Annotated[str, Field(pattern=r"^([0-9]{1,9}\.[0-9]( |$))*$")]]
    neighbours: list[Annotated[list[Count], Field(max_length=8)]]
    dead: list[Count]
    dense: list[Count]


class LabelDescription(TypedDict):
    text: Annotated[str, Field(max_length=200), AfterValidator(_line)]
    by: NotRequired[Annotated[str, Field(max_length=200), AfterValidator(_line)]]
    faithfulness: NotRequired[Annotated[Real, Field(ge=0, le=1)] | None]


class LabelsDescription(TypedDict):
    labels: dict[Annotated[str, Field(pattern=r"^[0-9]{1,7}$")], LabelDescription]


@cache
def _checker(description: type) -> TypeAdapter:
    return TypeAdapter(with_config(ConfigDict(strict=True, extra="allow"))(description))


def check(content: object, description: type[T], path: object) -> T:
    """``content`` as ``description`` has it; raises SaeuronError naming ``path`` and the first field that is wrong.

    Keys that a description does not name are left as they are: newer versions may say more.
    """
    try:
        _checker(description).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part)[:60] for part in first["loc"] if part != "[key]") or "content"
        if first["type"] == "missing":
            raise SaeuronError(f"{path} lacks {place}") from None
        shown = reprlib.repr(first["input"])
        raise SaeuronError(f"{path}: {place} is {shown}: {first['msg'].lower()}") from None
    return content


def check_timesteps(timesteps: torch.Tensor) -> None:
    """Raise SaeuronError unless a file's ``timesteps`` are some of 0…1000, each once."""
    whole = timesteps.dim() == 1 and timesteps.dtype == torch.int64
    if not whole or not 0 < len(timesteps) <= LAST + 1 or len(timesteps.unique()) < len(timesteps):
        raise SaeuronError(f"its timesteps are not some of the whole numbers 0 to {LAST}, each once")
    if not 0 <= int(timesteps.min()) <= int(timesteps.max()) <= LAST:
        raise SaeuronError(f"its timesteps do not lie between 0 and {LAST}")


def check_latents(latents: torch.Tensor, n_latents: int, what: str) -> None:
    """Raise SaeuronError where ``latents``, of the part of a file that is called ``what``, are not those of the SAE."""
    if latents.dtype not in NUMBERS:
        raise SaeuronError(f"its {what} has latents as {latents.dtype}, which is not supported")
    if latents.numel() and not 0 <= int(latents.long().min()) <= int(latents.long().max()) < n_latents:
        raise SaeuronError(f"its {what} names latents that the SAE does not have")


def check_floats(tensor: torch.Tensor, what: str) -> None:
    """Raise SaeuronError unless ``tensor``, called ``what``, holds floating-point numbers."""
    if not tensor.is_floating_point():
        raise SaeuronError(f"it holds {what} as {tensor.dtype} where floating-point numbers are expected")
