"""How concepts are removed: settings, their file, the defaults, and `build_edits`.

This is the one road from a concept's name to an edit. Both hosts, every command and every node take it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from .assignment import check_assigned, read_assignment, select_assigned
from .autoencoder import SparseAutoencoder
from .concept_table import ConceptTable
from .detector import Detector
from .edits import SCALES, Ablate, Edit, Replace, Shift
from .errors import SaeuronError, nearest
from .files import read_json, write_json
from .formats import SettingsDescription, check
from .redirect import Redirect
from .selection import Selection

EDITS = ("redirect", "ablate", "replace", "shift")
SOURCES = ("score", "assigned")


@dataclass(frozen=True)
class Setting:
    """How one concept is removed.

    ``edit`` is ``redirect``, ``ablate`` (SAeUron), ``replace`` (PER, which has no strength) or ``shift``. ``strength``
    is γ, negative to push the concept away. Redirect takes all else from the table's contrasts. For the others
    ``select`` says which latents are edited: the ``latents`` (τ) of highest score, at each timestep or once for all, or
    the one that supervised training assigned; ``scale`` and ``paper_exact`` are Ablate's. ``detect`` says what tells
    the maps that show the concept under ``shift``: assigned latents or those of the best scores; ``presence`` is
    `Detector.of`'s.
    """

    latents: int = 1
    strength: float = -1.0
    per_timestep: bool = True
    edit: str = "ablate"
    select: str = "score"
    scale: str = "mean"
    paper_exact: bool = False
    detect: str = "score"
    presence: float | None = None

    def __post_init__(self) -> None:
        """Raise SaeuronError on a value that cannot be."""
        for name, valid in (("edit", EDITS), ("select", SOURCES), ("detect", SOURCES), ("scale", SCALES)):
            if getattr(self, name) not in valid:
                raise SaeuronError(f"{name} {getattr(self, name)!r} is unknown; it is one of {', '.join(valid)}")
        for name in ("per_timestep", "paper_exact"):
            if not isinstance(getattr(self, name), bool):
                raise SaeuronError(f"{name} is {getattr(self, name)!r} and has to be true or false")
        if not isinstance(self.latents, int) or isinstance(self.latents, bool):
            raise SaeuronError(f"latents is {self.latents!r} and has to be a whole number")
        for name in ("strength", "presence"):
            value = getattr(self, name)
            if value is not None or name == "strength":
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise SaeuronError(f"{name} is {value!r} and has to be a finite number")
                object.__setattr__(self, name, float(value))

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> "Setting":
        """A setting from a file, of this version or an older one; raises SaeuronError on what it does not know."""
        if not isinstance(values, Mapping):
            raise SaeuronError(f"a setting is an object of names and values, and not {values!r}")
        values, known = dict(values), [field.name for field in fields(cls)]
        if "assigned" in values:  # until version 0.1 one word for two things
            source = SOURCES[bool(values.pop("assigned"))]
            values |= {"detect" if values.get("edit") == "shift" else "select": source}
        for name in values:
            if name not in known:
                raise SaeuronError(f"{name!r} is no part of a setting; the nearest are {nearest(str(name), known)}")
        return cls(**values)

    def values(self) -> dict[str, object]:
        """What `parse` reads, for a JSON file."""
        return asdict(self)

    def selection(self, sae: SparseAutoencoder, table: ConceptTable, concept: str) -> Selection:
        """The latents of ``concept`` that are edited."""
        if self.select == "assigned":
            return select_assigned(table, read_assignment(sae), concept, self.strength)
        return table.select(concept, self.latents, self.strength, self.per_timestep)

    def detector(self, sae: SparseAutoencoder, table: ConceptTable, concept: str) -> Detector:
        """What tells the maps that show ``concept``: one latent of each concept of its kind."""
        others = table.of_kind(concept)
        if self.detect == "assigned":
            assignment = read_assignment(sae)
            check_assigned(assignment, concept)
            latents = {name: assignment[name] for name in others if name in assignment}
        else:
            latents = {name: int(table.best_latents(name, 1, False)[0, 0]) for name in others}
        return Detector.of(table, concept, latents, self.presence)


DEFAULT = Setting(strength=-2.0, edit="redirect")
"""What the league found best, on every SAE and without any search: see docs/methods.md."""
OLDER = {
    "object": Setting(64, -3.0, edit="shift", detect="assigned", presence=0.1),
    "style": Setting(64, -2.0, edit="shift", detect="assigned", presence=0.1),
}
"""What was best for tables of version 1, which hold no contrasts, with an SAE that has assigned latents."""


def default_setting(sae: SparseAutoencoder, table: ConceptTable, concept: str) -> Setting:
    """How ``concept`` is removed where nobody says: as well as the table allows."""
    older = OLDER.get(table.kind(concept), OLDER["object"]) if sae.config.get("assignment") else Setting()
    return replace(older, edit=DEFAULT.edit, strength=DEFAULT.strength) if table.has_contrasts else older


def choose_settings(
    sae: SparseAutoencoder,
    table: ConceptTable,
    concepts: Iterable[str],
    known: Mapping[str, Setting],
    **changes: object,
) -> dict[str, Setting]:
    """The setting of each of ``concepts``: the one in ``known`` (a file's, a bundle's), else the SAE's default.

    ``changes`` that are not None replace what a setting says. Raises SaeuronError where the table does not know a
    concept, or a change cannot be.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    found = {}
    for name in concepts:
        table.kind(name)
        found[name] = replace(known.get(name) or default_setting(sae, table, name), **changes)
    return found


def build_edits(sae: SparseAutoencoder, table: ConceptTable, settings: Mapping[str, Setting]) -> list[Edit]:
    """The edits that remove every concept in ``settings``, one for all that are removed in the same way.

    Raises SaeuronError where the table is another SAE's, or knows less than a setting asks for.
    """
    table.check_belongs(sae.fingerprint)
    ways: dict[tuple[object, ...], list[str]] = {}
    for name, setting in settings.items():
        table.kind(name)
        ways.setdefault((setting.edit, setting.scale, setting.paper_exact), []).append(name)
    edits: list[Edit] = []
    for (edit, scale, paper_exact), names in ways.items():
        if edit == "redirect":
            strengths = {name: settings[name].strength for name in names}
            edits.append(Redirect(sae, table.contrasts(sae), strengths))
            continue
        selections = [settings[name].selection(sae, table, name) for name in names]
        if edit == "shift":
            edits.append(Shift(sae, selections, [settings[name].detector(sae, table, name) for name in names]))
        elif edit == "replace":
            edits.append(Replace(sae, Selection.merge(selections)))
        else:
            edits.append(Ablate(sae, Selection.merge(selections), paper_exact, scale))
    return edits


def read_settings(path: str | Path) -> dict[str, Setting]:
    """Concept → Setting from a ``settings.json``; raises SaeuronError naming the file and the concept that is wrong."""
    return parse_settings(check(read_json(Path(path)), SettingsDescription, path)["concepts"], path)


def parse_settings(concepts: Mapping[str, Mapping[str, object]], path: str | Path) -> dict[str, Setting]:
    """Concept → Setting from JSON values that ``path`` holds; SaeuronError names it and the concept that is wrong."""
    found = {}
    for name, values in concepts.items():
        try:
            found[name] = Setting.parse(values)
        except SaeuronError as error:
            raise SaeuronError(f"{path}, concept {name!r}: {error}") from None
    return found


def write_settings(path: str | Path, settings: Mapping[str, Setting], **notes: object) -> None:
    """Write what `read_settings` reads; ``notes`` are further JSON values, such as what the search cost."""
    write_json(Path(path), {"concepts": {name: setting.values() for name, setting in settings.items()}} | notes)
