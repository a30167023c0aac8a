"""How concepts are removed: one Setting a concept, and the edits they come to. Both hosts read the same ones."""

from collections.abc import Mapping
from dataclasses import dataclass

from .assignment import check_assigned, read_assignment, select_assigned
from .autoencoder import SparseAutoencoder
from .compact import CompactTable
from .concepts import ConceptTable
from .detector import Detector
from .edits import SCALES, Ablate, Replace, Shift
from .errors import SaeuronError
from .selection import Selection

EDITS = ("ablate", "replace", "shift")


@dataclass(frozen=True)
class Setting:
    """SAeUron's τ and γ for one concept, whether latents are chosen at each timestep or once, and what is done to them.

    ``edit`` is ``ablate``, ``replace`` (PER, which has no γ) or ``shift``; ``scale`` is Ablate's. ``assigned`` takes
    the one latent that supervised training gave the concept, and no other; under ``shift`` it is what tells the maps
    that show the concept, and ``presence`` is `Detector.of`'s.
    """

    latents: int = 1
    strength: float = -1.0
    per_timestep: bool = True
    edit: str = "ablate"
    scale: str = "mean"
    assigned: bool = False
    presence: float | None = None

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> "Setting":
        """A setting from a file; raises SaeuronError on an unknown name or a value that it cannot have."""
        try:
            plain = cls(**values)
            presence = None if plain.presence is None else float(plain.presence)
            numbers = int(plain.latents), float(plain.strength), bool(plain.per_timestep)
        except (TypeError, ValueError) as error:
            raise SaeuronError(str(error)) from None
        check_ways(plain.edit, plain.scale)
        return cls(*numbers, plain.edit, plain.scale, bool(plain.assigned), presence)

    def select(self, sae: SparseAutoencoder, table: ConceptTable | CompactTable, concept: str) -> Selection:
        """The latents of ``concept`` that this setting means."""
        if self.assigned and self.edit != "shift":
            return select_assigned(table, read_assignment(sae), concept, self.strength)
        return table.select(concept, self.latents, self.strength, self.per_timestep)

    def detector(self, sae: SparseAutoencoder, table: ConceptTable | CompactTable, concept: str) -> Detector:
        """What tells the maps that show ``concept``: the assigned latents of its kind, or those of the best scores."""
        table.row(concept)
        kin = [name for name, kind in table.concepts.items() if kind == table.concepts[concept]]
        if self.assigned:
            assignment = read_assignment(sae)
            check_assigned(assignment, concept)
            latents = {name: assignment[name] for name in kin if name in assignment}
        else:
            latents = {name: int(table.select(name, 1, per_timestep=False).latents[0, 0]) for name in kin}
        return Detector.of(table, concept, latents, self.presence)


# What the league found best without any search: see docs/methods.md.
DEFAULTS = {
    "object": Setting(64, -3.0, edit="shift", assigned=True, presence=0.1),
    "style": Setting(64, -2.0, edit="shift", assigned=True, presence=0.1),
}


def default_setting(sae: SparseAutoencoder, kind: str) -> Setting:
    """How a concept of ``kind`` is removed where nobody says: SAeUron's way, unless its latent was assigned to it."""
    return DEFAULTS.get(kind, DEFAULTS["object"]) if sae.config.get("assignment") else Setting()


def check_ways(edit: str, scale: str) -> None:
    """Raise SaeuronError where the edit or its scale is not one there is."""
    for name, value, valid in (("edit", edit, EDITS), ("scale", scale, SCALES)):
        if value not in valid:
            raise SaeuronError(f"{name} {value!r} is unknown; it is one of {', '.join(valid)}")


def removal(
    sae: SparseAutoencoder,
    table: ConceptTable | CompactTable,
    settings: Mapping[str, Setting],
    paper_exact: bool = False,
) -> list[Ablate | Replace | Shift]:
    """The edits that remove every concept in ``settings``, one for all that are removed in the same way.

    ``paper_exact`` is Ablate's.
    """
    table.check_belongs(sae.fingerprint)
    ways: dict[tuple[str, str], list[str]] = {}
    for name, setting in settings.items():
        ways.setdefault((setting.edit, setting.scale), []).append(name)
    edits = []
    for (edit, scale), names in ways.items():
        selections = [settings[name].select(sae, table, name) for name in names]
        if edit == "shift":
            detectors = [settings[name].detector(sae, table, name) for name in names]
            edits.append(Shift(sae, selections, detectors))
        elif edit == "replace":
            edits.append(Replace(sae, Selection.merge(selections)))
        else:
            edits.append(Ablate(sae, Selection.merge(selections), paper_exact, scale))
    return edits
