"""How a concept is removed: by which latents, how hard, in which way. Read and written as ``settings.json``."""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

from saeuron import (
    Ablate,
    ConceptTable,
    Replace,
    SaeuronError,
    Selection,
    SparseAutoencoder,
    read_assignment,
    select_assigned,
)
from saeuron.edits import SCALES
from saeuron.files import read_json, write_json

EDITS = ("ablate", "replace")


@dataclass(frozen=True)
class Setting:
    """SAeUron's τ and γ for one concept, whether latents are chosen at each timestep or once, and what is done to them.

    ``edit`` is ``ablate`` or ``replace`` (PER, which has no γ); ``scale`` is Ablate's. ``assigned`` takes the one
    latent that supervised training gave the concept, and no other.
    """

    latents: int = 1
    strength: float = -1.0
    per_timestep: bool = True
    edit: str = "ablate"
    scale: str = "mean"
    assigned: bool = False


def grid(latents: list[int], strengths: list[float], per_timestep: list[bool]) -> list[Setting]:
    return [Setting(*values) for values in itertools.product(latents, strengths, per_timestep)]


def check_ways(edit: str, scale: str) -> None:
    """Raise SaeuronError where the edit or its scale is not one there is."""
    for name, value, valid in (("edit", edit, EDITS), ("scale", scale, SCALES)):
        if value not in valid:
            raise SaeuronError(f"{name} {value!r} is unknown; it is one of {', '.join(valid)}")


def read_settings(path: Path) -> dict[str, Setting]:
    """Concept → Setting; raises SaeuronError naming the file and the concept that is wrong."""
    concepts = read_json(path).get("concepts")
    if not isinstance(concepts, dict):
        raise SaeuronError(f"{path} is not a settings file: it has no `concepts`")
    return {name: _setting(path, name, values) for name, values in concepts.items()}


def _setting(path: Path, name: str, values: dict) -> Setting:
    try:
        setting = Setting(**values)
        check_ways(setting.edit, setting.scale)
        numbers = int(setting.latents), float(setting.strength), bool(setting.per_timestep)
        return Setting(*numbers, setting.edit, setting.scale, bool(setting.assigned))
    except (TypeError, ValueError) as error:
        raise SaeuronError(f"{path}, concept {name!r}: {error}") from None


def write_settings(path: Path, settings: dict[str, Setting], **notes: object) -> None:
    write_json(path, {"concepts": {name: dataclasses.asdict(s) for name, s in settings.items()}} | notes)


def removal(
    sae: SparseAutoencoder, table: ConceptTable, settings: dict[str, Setting], paper_exact: bool = False
) -> list[Ablate | Replace]:
    """The edits that remove every concept in ``settings``: one for all concepts that are removed in the same way."""
    table.check_belongs(sae.fingerprint)
    ways: dict[tuple[str, str], list[Selection]] = {}
    for name, setting in settings.items():
        ways.setdefault((setting.edit, setting.scale), []).append(_select(sae, table, name, setting))
    return [
        Replace(sae, Selection.merge(selections))
        if edit == "replace"
        else Ablate(sae, Selection.merge(selections), paper_exact, scale)
        for (edit, scale), selections in ways.items()
    ]


def ablation(
    sae: SparseAutoencoder, table: ConceptTable, settings: dict[str, Setting], paper_exact: bool = False
) -> Ablate:
    """One edit that removes every concept in ``settings`` by ablation, whatever else they say."""
    table.check_belongs(sae.fingerprint)
    selections = [_select(sae, table, name, setting) for name, setting in settings.items()]
    return Ablate(sae, Selection.merge(selections), paper_exact)


def _select(sae: SparseAutoencoder, table: ConceptTable, name: str, setting: Setting) -> Selection:
    if setting.assigned:
        return select_assigned(table, read_assignment(sae), name, setting.strength)
    return table.select(name, setting.latents, setting.strength, setting.per_timestep)
