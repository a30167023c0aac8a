"""Labels of latents: ``labels.json``, latent → ``{"text", "by", "faithfulness"}``.

``by`` says who found it: ``you``, ``CLIP``, or whoever published it. ``faithfulness`` (0…1, or absent) is how well the
text tells on unseen pictures whether the latent fires there.
"""

from collections.abc import Mapping
from pathlib import Path

from .. import formats
from ..files import read_json, write_json

LONGEST = 200


def read(folder: Path) -> dict[str, dict]:
    """The labels in ``folder``; none where it holds no such file. Raises SaeuronError where the file is broken."""
    path = folder / "labels.json"
    return check(read_json(path).get("labels"), path) if path.exists() else {}


def write(folder: Path, labels: Mapping[str, dict]) -> None:
    """Write ``labels``, by number; raises SaeuronError as `check` does."""
    checked = check(dict(labels), folder / "labels.json")
    ordered = {key: checked[key] for key in sorted(checked, key=int)}
    write_json(folder / "labels.json", {"format": "saeuron-labels", "version": 1, "labels": ordered})


def join(*each: Mapping[str, dict]) -> dict[str, dict]:
    """Labels of several files, later ones over earlier ones; an empty text takes a label away."""
    joined = {latent: label for labels in each for latent, label in labels.items()}
    return {latent: label for latent, label in joined.items() if label["text"]}


def check(labels: object, path: Path) -> dict[str, dict]:
    """``labels`` as they may be used; raises SaeuronError naming the file and what is wrong."""
    return formats.check({"labels": labels}, formats.LabelsDescription, path)["labels"]
