"""What travels between the pack's nodes, and under which name."""

from dataclasses import dataclass, fields

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...saeuron import ConceptTable, Hookpoint, SaeuronError, Setting, SparseAutoencoder
from ...saeuron.checkpoints import Bundle
from ...saeuron.compact import CompactTable
from ...saeuron.errors import nearest

CATEGORY = "SAeUron"
ADVANCED = {"advanced": True}
"""What of an input older ComfyUIs take in ``extra_dict`` alone."""

Sae = io.Custom("SAE")
Concepts = io.Custom("CONCEPTS")
FeatureRecord = io.Custom("FEATURE_RECORD")


@dataclass(frozen=True, eq=False)
class LoadedSae:
    """An SAE with what came in its file; ``patcher`` is how ComfyUI loads, counts and offloads it."""

    name: str
    bundle: Bundle
    hookpoint: Hookpoint
    patcher: ModelPatcher

    @property
    def sae(self) -> SparseAutoencoder:
        return self.bundle.sae


@dataclass(frozen=True, eq=False)
class ChosenConcepts:
    """Concepts by name, each with how it is removed, and the table that knows their latents."""

    table: ConceptTable | CompactTable
    settings: dict[str, Setting]


def schema(**said: object) -> io.Schema:
    """A node's schema of what this ComfyUI understands: 0.8 knows no ``search_aliases``."""
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(**{name: value for name, value in said.items() if name in known})


def check_concept(table: object, name: str) -> None:
    """Raise SaeuronError with the nearest names unless ``table`` has the concept."""
    if name not in table.concepts:
        raise SaeuronError(f"concept {name!r} is not in the table; the nearest are {nearest(name, table.concepts)}")
