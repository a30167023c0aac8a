"""Options that several commands share, each declared here once. A command inherits the groups that it needs.

Nothing heavy is imported: these are read for ``--help``.
"""

from dataclasses import dataclass
from inspect import get_annotations
from pathlib import Path
from typing import TypeVar

T = TypeVar("T", bound=type)


def options(command: T) -> T:
    """The class as a dataclass of options: a command's own first, those it shares after them, `Command`'s last."""
    own = get_annotations(command)
    command = dataclass(kw_only=True)(command)
    last = {name: None for kind in (Command, Kept, Long) for name in get_annotations(kind)}
    shared = [name for name in command.__dataclass_fields__ if name not in {*own, *last}]
    order = [*own, *shared, *(name for name in last if name in command.__dataclass_fields__)]
    command.__dataclass_fields__ = {name: command.__dataclass_fields__[name] for name in order}
    return command


@dataclass(kw_only=True)
class Command:
    """What every command takes."""

    config: Path | None = None
    """File of options, YAML or JSON, such as the *.config.json that lies beside every output. The command line wins."""
    json: bool = False
    """Print results as JSON."""


@dataclass(kw_only=True)
class Kept(Command):
    """What is finished is kept, unless the user says otherwise."""

    overwrite: bool = False
    """Begin anew where the output holds something already. Without it, what was made alike is continued or kept, and
    what was made otherwise is refused."""


@dataclass(kw_only=True)
class Long(Kept):
    """Work that takes a while."""

    dry_run: bool = False
    """Say what would be done, how long it may take and what it needs on disk; write nothing."""


@dataclass(kw_only=True)
class Device:
    """Where tensors live."""

    device: str = "cpu"
    """cpu or cuda. On a GPU a Stable Diffusion runs in float16."""
    bf16: bool = False
    """Run the model under bfloat16 autocast."""


@dataclass(kw_only=True)
class Model(Device):
    """Which diffusion model."""

    model: str = "tinycanvas"
    """`tinycanvas`, a diffusers folder, or a single-file checkpoint."""
    lora: Path | None = None
    """LoRA to add to the model, a .safetensors file."""


@dataclass(kw_only=True)
class Pictures(Model):
    """How pictures are drawn."""

    steps: int = 25
    """Denoising steps; any number works with any table."""
    guidance: float = 3.0
    """Classifier-free guidance scale."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    sampler: str = "ddim"
    """ddim, euler, euler-a, dpm++2m or heun."""
    height: int | None = None
    """Height in pixels; default the model's own."""
    width: int | None = None
    """Width in pixels; default the model's own."""
    batch: int = 16
    """Pictures drawn at once."""
    seed: int = 0
    """Seed of everything that is random."""


@dataclass(kw_only=True)
class Prompts:
    """What is drawn, and which concepts it shows."""

    prompts: str = "tinycanvas:evaluation"
    """Prompt file (.txt, or .jsonl with concepts), or tinycanvas:training | anchor | evaluation."""
    labels: tuple[str, ...] = ()
    """Kinds of concepts that prompts name, such as `object style`; default all that the file names."""


@dataclass(kw_only=True)
class Reads:
    """Where an SAE reads, for files that do not say."""

    hookpoint: str | None = None
    """Where the SAE reads, in diffusers' naming; default what its files say."""
    site: str | None = None
    """What of the block it reads: output or residual; default what its files say."""


@dataclass(kw_only=True)
class Sae(Reads):
    """Which SAE."""

    sae: Path
    """SAE: a bundle (.safetensors), or a folder of any layout that `convert` reads."""


@dataclass(kw_only=True)
class Shared:
    """What a bundle says of itself, for whoever gets it."""

    licence: str | None = None
    """SPDX name of the licence it is shared under."""
    card: Path | None = None
    """Markdown file that becomes the model card."""


@dataclass(kw_only=True)
class Concepts(Sae):
    """An SAE with its concept table."""

    table: Path | None = None
    """Concept table made with the SAE (.safetensors); default the one in the bundle, or beside the SAE."""


@dataclass(kw_only=True)
class Removal(Concepts):
    """How concepts are removed. What is not given is as the concept's own setting says, or else the SAE's default."""

    settings: Path | None = None
    """settings.json with a setting per concept, as sweep writes it; default those in the bundle, or beside the SAE."""
    edit: str | None = None
    """ablate (SAeUron), replace or shift; default the setting's own, as with the four below."""
    latents: int | None = None
    """Latents removed per concept and timestep (τ)."""
    strength: float | None = None
    """Multiplier of the removed latents (γ), negative to push the concept away."""
    per_timestep: bool | None = None
    """Choose latents at each timestep, or once for all."""
    paper_exact: bool | None = None
    """Reproduce the published code's sign of the reconstruction error."""
