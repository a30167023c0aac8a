"""What SAE files say of their concepts, read from their headers: for questions that come before an SAE is loaded."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ...saeuron import ConceptTable, SaeuronError
from ...saeuron.checkpoints import LAYOUTS
from ...saeuron.files import parse_json
from ...saeuron.formats import HeaderDescription, check
from ...saeuron.learning import WITHOUT
from . import files


@dataclass(frozen=True, eq=False)
class Header:
    """The concepts of a table, name → kind, and the SAE it belongs to. It answers as a ConceptTable does."""

    concepts: dict[str, str]
    fingerprint: str
    kind = ConceptTable.kind
    check_belongs = ConceptTable.check_belongs


def concepts_of(sae_name: str, table_name: str = files.FROM_FILE) -> Header | None:
    """The header of the table chosen for an SAE; None where it is to come with the SAE and does not.

    Raises SaeuronError where a file is missing or none of ours, and where the table is another SAE's.
    """
    file = files.path(sae_name)
    own = file.parent / "table.safetensors" if file.name in LAYOUTS else file
    own = _read(*files.stamp(own)) if own.exists() else None
    if table_name == files.FROM_FILE:
        return own if own is not None and own.concepts else None
    given = _read(*files.stamp(files.path(table_name)))
    if file.name not in LAYOUTS:
        given.check_belongs(own.fingerprint)
    return given


def offered(concepts: dict[str, str]) -> dict[str, str]:
    """``concepts`` without the counterparts that learnt ones have beside them, which nobody takes out."""
    return {name: kind for name, kind in concepts.items() if not _is_counterpart(name, concepts)}


def _is_counterpart(name: str, concepts: dict[str, str]) -> bool:
    return name.startswith(WITHOUT) and concepts.get(name.removeprefix(WITHOUT)) == concepts[name]


@lru_cache(maxsize=64)
def _read(stamp: tuple[str, int, int]) -> Header:
    path = Path(stamp[0])
    try:
        with safe_open(path, framework="pt") as file:
            about = parse_json((file.metadata() or {})["saeuron"], path.name)
        table = about.get("table", about)  # a bundle's, or the file is one
        if table:
            check(table, HeaderDescription, path.name)
        return Header(dict(table["concepts"]) if table else {}, str(about["fingerprint"]))
    except (OSError, SafetensorError):
        raise SaeuronError(f"{path.name} is not a readable safetensors file: copy or download it again") from None
    except (KeyError, SaeuronError):
        raise SaeuronError(
            f"{path.name} is neither an SAE nor a concept table of this pack: convert it with `training convert`"
        ) from None
