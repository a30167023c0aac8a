"""How concepts are removed: one Setting a concept, and the edits they come to. Both hosts read the same ones."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from .assignment import read_assignment, select_assigned
from .autoencoder import SparseAutoencoder
from .compact import CompactTable
from .concepts import ConceptTable
from .edits import SCALES, Ablate, Replace, Shift
from .errors import SaeuronError
from .selection import Selection

EDITS = ("ablate", "replace", "shift")


@dataclass(frozen=True)
class Setting:
    """SAeUron's τ and γ for one concept, whether latents are chosen at each timestep or once, and what is done to them.

    ``edit`` is ``ablate``, ``replace`` (PER, which has no γ) or ``shift``; ``scale`` is Ablate's. ``assigned`` takes
    the one latent that supervised training gave the concept, and no other; under ``shift`` it is what tells the maps
    that show the concept. ``presence`` limits the edit to such maps, see `Selection`; None edits whichever token
    fires, as the papers do.
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
            return select_assigned(table, read_assignment(sae), concept, self.strength, self.presence)
        return table.select(concept, self.latents, self.strength, self.per_timestep, self.presence)

    def detector(self, sae: SparseAutoencoder, table: ConceptTable | CompactTable, concept: str) -> Selection:
        """The latent that tells the maps that show ``concept``: the assigned one, or that of the best score."""
        if self.assigned:
            return select_assigned(table, read_assignment(sae), concept, presence=self.presence)
        return table.select(concept, 1, per_timestep=False, presence=self.presence)


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
    """The edits that remove every concept in ``settings``: one for all that are ablated or replaced in the same way.

    ``paper_exact`` is Ablate's; the published code knows no presence, so a setting's is left out then.
    """
    table.check_belongs(sae.fingerprint)
    ways: dict[tuple[str, str], list[Selection]] = {}
    shifts = []
    for name, setting in settings.items():
        if setting.edit == "shift":
            shifts.append(Shift(sae, setting.select(sae, table, name), setting.detector(sae, table, name)))
            continue
        own = dataclasses.replace(setting, presence=None) if paper_exact else setting
        ways.setdefault((own.edit, own.scale), []).append(own.select(sae, table, name))
    return shifts + [
        Replace(sae, Selection.merge(selections))
        if edit == "replace"
        else Ablate(sae, Selection.merge(selections), paper_exact, scale)
        for (edit, scale), selections in ways.items()
    ]
