"""What SAE files say of themselves: for questions that come before an SAE is loaded into a workflow."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ...saeuron import ConceptTable, Hookpoint, SaeuronError, SparseAutoencoder
from ...saeuron.checkpoints import LAYOUTS, load_sae
from ...saeuron.files import parse_json
from ...saeuron.formats import HeaderDescription, check
from ...saeuron.learning import WITHOUT
from . import files
from .guess import guess_hookpoint


@dataclass(frozen=True, eq=False)
class Header:
    """The concepts of a table, name → kind, and the SAE it belongs to. It answers as a ConceptTable does."""

    concepts: dict[str, str]
    fingerprint: str
    kind = ConceptTable.kind


@dataclass(frozen=True)
class SaeHeader:
    """What is known of an SAE without its weights.

    ``hookpoint`` is None where neither file nor folder says it; ``stated`` is whether it is the file that does.
    """

    d_in: int
    n_latents: int
    k: int
    activation: str
    hookpoint: Hookpoint | None
    base_model: str
    fingerprint: str
    stated: bool = True

    @classmethod
    def of(cls, sae: SparseAutoencoder, folder: Path) -> "SaeHeader":
        """Of an SAE loaded from a published layout, which may have its hookpoint from the name of its folder."""
        place = sae.hookpoint
        stated = bool(sae.config.get("hookpoint")) or (place is not None and place.name not in str(folder))
        return cls(sae.d_in, sae.n_latents, sae.k, sae.activation, place, sae.base_model, sae.fingerprint, stated)


def sae_of(sae_name: str) -> SaeHeader:
    """The header of an SAE file. One whose layout has none is read wholly, once.

    Raises SaeuronError where the file is missing, broken, or none of the layouts that are read.
    """
    file = files.path(sae_name)
    if file.name in LAYOUTS:
        return _of_layout(file.name, *files.stamp(*files.sources(sae_name)))
    return _of_bundle(*files.stamp(file))


def place_of(sae_name: str, hookpoint: str = "", site: str | None = None) -> tuple[Hookpoint, str]:
    """Where an SAE reads, and what says so: `hookpoint`, its file, or else what its file or folders are named after."""
    sae, file = sae_of(sae_name), files.path(sae_name)
    site = site or (sae.hookpoint.site if sae.hookpoint else files.usual_site(file))
    if hookpoint.strip():
        return Hookpoint(hookpoint.strip(), site), "`hookpoint`"
    if sae.stated and sae.hookpoint:
        return Hookpoint(sae.hookpoint.name, site), "its file"
    name, said_by = guess_hookpoint(sae_name, file)
    return Hookpoint(name, site), f"guessed from {said_by}"


def concepts_of(sae_name: str, table_name: str = files.FROM_FILE) -> Header | None:
    """The header of the table chosen for an SAE; None where it is to come with the SAE and does not.

    Raises SaeuronError where a file is missing or none of ours, and where the table is another SAE's.
    """
    file = files.path(sae_name)
    own = file.parent / "table.safetensors" if file.name in LAYOUTS else file
    own = _table(*files.stamp(own)) if own.exists() else None
    if table_name == files.FROM_FILE:
        return own if own is not None and own.concepts else None
    given = _table(*files.stamp(files.path(table_name)))
    check_belongs(given, sae_of(sae_name).fingerprint, table_name, sae_name)
    return given


def check_belongs(table: Header | ConceptTable, fingerprint: str, table_name: str, sae_name: str) -> None:
    """Raise SaeuronError, by the names of the files, where ``table`` was made with another SAE."""
    if table.fingerprint != fingerprint:
        named = "these concepts are" if table_name == files.FROM_FILE else f"{table_name} is"
        raise SaeuronError(f"{named} of another SAE than {sae_name}: choose a table that was made with this one")


def offered(concepts: dict[str, str]) -> dict[str, str]:
    """``concepts`` without the counterparts that learnt ones have beside them, which nobody takes out."""
    return {name: kind for name, kind in concepts.items() if not _is_counterpart(name, concepts)}


def _is_counterpart(name: str, concepts: dict[str, str]) -> bool:
    return name.startswith(WITHOUT) and concepts.get(name.removeprefix(WITHOUT)) == concepts[name]


@lru_cache(maxsize=64)
def _table(stamp: tuple[str, int, int]) -> Header:
    path = Path(stamp[0])
    about = _about(path)
    try:
        table = about.get("table", about)  # a bundle's, or the file is one
        if table:
            check(table, HeaderDescription, path.name)
        return Header(dict(table["concepts"]) if table else {}, str(about["fingerprint"]))
    except (KeyError, TypeError, ValueError):
        raise _stranger(path) from None


@lru_cache(maxsize=64)
def _of_bundle(stamp: tuple[str, int, int]) -> SaeHeader:
    about = _about(Path(stamp[0]))
    try:
        hookpoint = Hookpoint(about["hookpoint"], about["site"]) if about["hookpoint"] else None
        own = {name: about[name] for name in ("d_in", "n_latents", "k", "activation", "base_model", "fingerprint")}
        return SaeHeader(**own, hookpoint=hookpoint)
    except (KeyError, TypeError, ValueError):
        raise _stranger(Path(stamp[0])) from None


@lru_cache(maxsize=16)
def _of_layout(weights: str, *stamps: tuple[str, int, int]) -> SaeHeader:
    folder = Path(stamps[0][0]).parent
    return SaeHeader.of(load_sae(folder / weights), folder)


def _about(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            return parse_json((file.metadata() or {})["saeuron"], path.name)
    except (OSError, SafetensorError):
        raise SaeuronError(f"{path.name} is not a readable safetensors file: copy or download it again") from None
    except (KeyError, TypeError, ValueError, SaeuronError):
        raise _stranger(path) from None


def _stranger(path: Path) -> SaeuronError:
    return SaeuronError(f"{path.name} is no SAE or table that this pack reads: see the help page of SAE Loader")
