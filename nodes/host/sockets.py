"""What travels between the pack's nodes, and under which name."""

from dataclasses import dataclass, fields

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...saeuron import ConceptTable, Hookpoint, Setting, SparseAutoencoder
from ...saeuron.checkpoints import Bundle

CATEGORY = "SAeUron"
ADVANCED = {"advanced": True}
"""What of an input older ComfyUIs take in ``extra_dict`` alone."""

ALIASES = ["remove", "erase", "forget", "unlearn", "style", "concept", "censor", "negative"]
"""The words by which people look for the three nodes that take a concept out."""

Sae = io.Custom("SAE")
Concepts = io.Custom("CONCEPTS")
FeatureRecord = io.Custom("FEATURE_RECORD")


@dataclass(frozen=True, eq=False)
class LoadedSae:
    """An SAE with what came in its file; ``patcher`` is how ComfyUI loads, counts, offloads and clones it."""

    name: str
    bundle: Bundle
    patcher: ModelPatcher

    @property
    def sae(self) -> SparseAutoencoder:
        return self.bundle.sae

    @property
    def hookpoint(self) -> Hookpoint:
        return self.bundle.sae.hookpoint


@dataclass(frozen=True, eq=False)
class ChosenConcepts:
    """Concepts by name, each with how it is removed, and the table that knows their latents.

    ``counted`` are those of which the user said how many latents to take.
    """

    table: ConceptTable
    settings: dict[str, Setting]
    counted: frozenset[str] = frozenset()


def schema(**said: object) -> io.Schema:
    """A node's schema of what this ComfyUI understands: 0.8 knows no ``search_aliases``.

    ``has_intermediate_output`` shows what stands under a node again where it is cached, after a reload too.
    """
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(**{name: value for name, value in said.items() if name in known})
