"""How a concept is removed: how many latents, how hard, chosen when. Read and written as ``settings.json``."""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

from saeuron import Ablate, ConceptTable, SaeuronError, Selection, SparseAutoencoder
from saeuron.files import read_json, write_json


@dataclass(frozen=True)
class Setting:
    """SAeUron's τ and γ for one concept, and whether latents are chosen at each timestep or once."""

    latents: int = 1
    strength: float = -1.0
    per_timestep: bool = True


def grid(latents: list[int], strengths: list[float], per_timestep: list[bool]) -> list[Setting]:
    return [Setting(*values) for values in itertools.product(latents, strengths, per_timestep)]


def read_settings(path: Path) -> dict[str, Setting]:
    """Concept → Setting; raises SaeuronError naming the file and the concept that is wrong."""
    concepts = read_json(path).get("concepts")
    if not isinstance(concepts, dict):
        raise SaeuronError(f"{path} is not a settings file: it has no `concepts`")
    return {name: _setting(path, name, values) for name, values in concepts.items()}


def _setting(path: Path, name: str, values: dict) -> Setting:
    try:
        setting = Setting(**values)
        return Setting(int(setting.latents), float(setting.strength), bool(setting.per_timestep))
    except (TypeError, ValueError) as error:
        raise SaeuronError(f"{path}, concept {name!r}: {error}") from None


def write_settings(path: Path, settings: dict[str, Setting], **notes: object) -> None:
    write_json(path, {"concepts": {name: dataclasses.asdict(s) for name, s in settings.items()}} | notes)


def ablation(
    sae: SparseAutoencoder, table: ConceptTable, settings: dict[str, Setting], paper_exact: bool = False
) -> Ablate:
    """One edit that removes every concept in ``settings``."""
    table.check_belongs(sae.fingerprint)
    selections = [
        table.select(name, setting.latents, setting.strength, setting.per_timestep)
        for name, setting in settings.items()
    ]
    return Ablate(sae, Selection.merge(selections), paper_exact)
