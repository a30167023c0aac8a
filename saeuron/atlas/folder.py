"""The folder an atlas lies in, how it grows, and how two become one. docs/atlas.md describes every file."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image

from ..autoencoder import SparseAutoencoder
from ..errors import SaeuronError, check_same
from ..files import parse_json, read_json, read_tensors, write_json, write_tensors
from ..formats import LONGEST_PROMPT, AtlasDescription, SheetDescription, check
from .sheets import cut, sheet_size, write_sheet
from .strongest import KEPT, Strongest
from .survey import BINS, UNIT, Counts, Seen

FORMAT, VERSION = "saeuron-atlas", 1
MOST = 256
"""Latents that are remembered of one picture, the strongest."""
MOST_PLACES = 256


@dataclass(eq=False)
class Atlas:
    """What latents of one SAE do over pictures, as far as the folder says; ``about`` is its ``atlas.json``."""

    folder: Path
    about: dict
    counts: Counts
    strongest: Strongest
    unsaved: int = field(default=0, init=False)

    @classmethod
    def create(cls, folder: str | Path, sae: SparseAutoencoder, grid: tuple[int, int], settings: dict) -> "Atlas":
        """An empty atlas that is to lie in ``folder``; ``settings`` are how its pictures are drawn."""
        about = {"format": FORMAT, "version": VERSION, "fingerprint": sae.fingerprint, "n_latents": sae.n_latents}
        about |= {"origin": sae.origin, "settings": settings, "grid": list(grid), "pictures": 0, "parts": []}
        return cls(Path(folder), about, Counts.zeros(sae.n_latents), Strongest.none(sae.n_latents, grid[0] * grid[1]))

    @classmethod
    def load(cls, folder: str | Path) -> "Atlas":
        """The atlas in ``folder``; raises SaeuronError naming the file that is missing, broken or something else."""
        folder = Path(folder)
        about = read_about(folder)
        path = folder / f"statistics-{about['pictures']:06d}.safetensors"
        tensors, _ = read_tensors(path)
        n, places = about["n_latents"], about["grid"][0] * about["grid"][1]
        with torch.device("meta"):  # what atlas.json claims takes no memory before the file is known to hold it
            empty = vars(Counts.zeros(n)) | vars(Strongest.none(n, places))
        for name, tensor in empty.items():
            if name not in tensors or tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
                raise SaeuronError(f"{path} is of another size than atlas.json says, or lacks {name}")
        if bool((tensors["pictures"] >= about["pictures"]).any()) or bool((tensors["strengths"] < 0).any()):
            raise SaeuronError(f"{path} names pictures that the atlas does not hold, or strengths below 0")
        counts = Counts(**{name: tensors[name] for name in vars(Counts.zeros(1))})
        return cls(folder, about, counts, Strongest(*(tensors[name] for name in ("pictures", "strengths", "heat"))))

    @property
    def pictures(self) -> int:
        return self.about["pictures"]

    @property
    def usual(self) -> torch.Tensor:
        """Mean activation of every latent over all tokens of all pictures, ``[n_latents]``."""
        return (self.counts.sums.sum(0) / UNIT / self.counts.tokens.sum().clamp_min(1)).float()

    @property
    def grid(self) -> tuple[int, int]:
        return tuple(self.about["grid"])

    def check_belongs(self, fingerprint: str) -> None:
        if self.about["fingerprint"] != fingerprint:
            raise SaeuronError(
                f"the atlas was made with the SAE {self.about['fingerprint']} and this SAE is {fingerprint}: "
                "build one for it with `training atlas`"
            )

    def add(self, seen: Seen, images: Sequence[Image.Image], prompts: Sequence[str], keys: Sequence[str]) -> None:
        """Add the pictures of one survey; ``keys`` are names by which the same pictures are known again.

        Raises SaeuronError where one is there already. Nothing counts before `save`.
        """
        if not len(seen.heat) == len(images) == len(prompts) == len(keys):
            raise SaeuronError(f"the survey saw {len(seen.heat)} pictures and {len(images)} are given")
        number, first = len(self.about["parts"]), self.pictures
        rows = [
            {"prompt": prompt[:LONGEST_PROMPT], "key": key, "size": list(image.size)}
            for prompt, key, image in zip(prompts, keys, images, strict=True)
        ]
        write_sheet(images, self.folder / "parts" / f"{number:06d}.webp")
        write_part(self.folder, number, rows, *codes_of(seen.strengths))
        self.counts = self.counts.plus(seen.counts)
        self.strongest.add_maps(first, seen.on_grid(self.grid))
        self.about["parts"].append(len(images))
        self.about["pictures"] = first + len(images)
        self.unsaved += len(images)

    def save(self) -> None:
        """Make all that was added count: statistics first, ``atlas.json`` last, which alone says what counts."""
        tensors = vars(self.counts) | vars(self.strongest)
        write_tensors(self.folder / f"statistics-{self.pictures:06d}.safetensors", tensors)
        write_json(self.folder / "atlas.json", self.about)
        for old in self.folder.glob("statistics-*.safetensors"):
            if old.stem != f"statistics-{self.pictures:06d}":
                old.unlink(missing_ok=True)
        self.unsaved = 0

    def part_of(self, picture: int) -> tuple[int, int]:
        """The part that picture number ``picture`` lies in, and its place there."""
        for number, count in enumerate(self.about["parts"]):
            if picture < count:
                return number, picture
            picture -= count
        raise SaeuronError(f"the atlas holds {self.pictures} pictures")

    def picture(self, number: int) -> Image.Image:
        part, place = self.part_of(number)
        sizes = [row["size"] for row in self.rows(part)]
        return cut(_sheet(self.folder / "parts" / f"{part:06d}.webp", sizes), sizes, place)

    def row(self, number: int) -> dict:
        """``prompt``, ``key`` and ``size`` of one picture."""
        part, place = self.part_of(number)
        return self.rows(part)[place]

    def rows(self, part: int) -> list[dict]:
        return read_part(self.folder, part, self.about["n_latents"], self.about["parts"][part])[0]

    def all_rows(self) -> list[dict]:
        return [row for part in range(len(self.about["parts"])) for row in self.rows(part)]

    def codes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of all pictures the strongest latents: picture, latent and strength, ``[M]`` each."""
        found, first = [], 0
        for part, count in enumerate(self.about["parts"]):
            _, starts, latents, strengths = read_part(self.folder, part, self.about["n_latents"], count)
            pictures = torch.repeat_interleave(torch.arange(first, first + count), starts.diff())
            found.append((pictures, latents, strengths))
            first += count
        none = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
        return tuple(torch.cat(column) for column in zip(*(found or [none]), strict=True))


def merge_atlases(one: Atlas, other: Atlas, folder: str | Path) -> Atlas:
    """Both in a new ``folder``, the pictures of ``one`` first: what one atlas of all the pictures would be.

    Raises SaeuronError where they are of different SAEs, drawn differently, or share a picture.
    """
    advice = "only atlases that are made alike can be merged"
    keys = ("fingerprint", "n_latents", "origin", "grid", "settings")
    check_same(one.folder, *({key: atlas.about[key] for key in keys} for atlas in (one, other)), advice)
    shared = {row["key"] for row in one.all_rows()} & {row["key"] for row in other.all_rows()}
    if shared:
        raise SaeuronError(f"{one.folder} and {other.folder} share {len(shared)} pictures, which would count twice")
    folder = Path(folder)
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    parts = [(atlas, number) for atlas in (one, other) for number in range(len(atlas.about["parts"]))]
    for new, (atlas, old) in enumerate(parts):
        for suffix in ("webp", "safetensors"):
            shutil.copyfile(atlas.folder / "parts" / f"{old:06d}.{suffix}", folder / "parts" / f"{new:06d}.{suffix}")
    about = one.about | {"pictures": one.pictures + other.pictures, "parts": one.about["parts"] + other.about["parts"]}
    strongest = Strongest(*(tensor.clone() for tensor in vars(one.strongest).values()))
    strongest.add(*vars(other.strongest.shifted(one.pictures)).values())
    merged = Atlas(folder, about, one.counts.plus(other.counts), strongest)
    merged.save()
    return merged


def read_about(folder: Path) -> dict:
    """``atlas.json``, checked; raises SaeuronError naming what does not fit."""
    path = folder / "atlas.json"
    about = check(read_json(path), AtlasDescription, path)
    if about["grid"][0] * about["grid"][1] > MOST_PLACES:
        raise SaeuronError(f"{path} gives a grid of more than {MOST_PLACES} places")
    if sum(about["parts"]) != about["pictures"]:
        raise SaeuronError(f"{path} lists parts that do not hold the {about['pictures']} pictures it counts")
    return about


def codes_of(strengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The MOST strongest latents of each of the pictures ``strengths`` ``[B, n]``: starts, latents, strengths.

    Those of picture ``b`` lie from ``starts[b]`` to ``starts[b + 1]``.
    """
    kept, latents = strengths.float().topk(min(MOST, strengths.shape[1]), 1)
    chosen = kept > 0
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), chosen.sum(1).cumsum(0)])
    return starts, latents[chosen], kept[chosen]


def write_part(folder: Path, number: int, rows: list[dict], *codes: torch.Tensor) -> None:
    starts, latents, strengths = codes
    narrow = torch.uint16 if not len(latents) or int(latents.max()) < 2**16 else torch.int32
    tensors = {"starts": starts.int(), "latents": latents.to(narrow), "strengths": strengths.half()}
    write_tensors(folder / "parts" / f"{number:06d}.safetensors", tensors, {"pictures": json.dumps(rows)})


def read_part(folder: Path, number: int, n_latents: int, count: int) -> tuple:
    """``rows, starts, latents, strengths`` of a part of ``count`` pictures; raises SaeuronError where it is broken."""
    path = folder / "parts" / f"{number:06d}.safetensors"
    status = path.stat() if path.exists() else None
    return _read_part(path, n_latents, count, status and (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=256)
def _read_part(path: Path, n_latents: int, count: int, _stamp: object) -> tuple:
    tensors, metadata = read_tensors(path)
    try:
        rows = parse_json(f'{{"pictures": {metadata["pictures"]}}}', path)
        rows = check(rows, SheetDescription, path)["pictures"]
        starts, latents, strengths = (tensors[name] for name in ("starts", "latents", "strengths"))
    except KeyError as error:
        raise SaeuronError(f"{path} lacks {error}") from None
    starts, latents = starts.long(), latents.long()
    fits = len(rows) == count and starts.shape == (count + 1,) and latents.dim() == 1
    fits = fits and latents.shape == strengths.shape and bool(((latents >= 0) & (latents < n_latents)).all())
    if not fits or starts[0] != 0 or starts[-1] != len(latents) or bool((starts.diff() < 0).any()):
        raise SaeuronError(f"{path} is not a part of this atlas: its sizes do not fit")
    return rows, starts, latents, strengths.float()


def _sheet(path: Path, sizes: list[list[int]]) -> Image.Image:
    if not path.exists():
        raise SaeuronError(f"{path} does not exist")
    return _read_sheet(path, path.stat().st_mtime_ns, sheet_size(sizes))


@lru_cache(maxsize=32)
def _read_sheet(path: Path, _time: int, size: tuple[int, int]) -> Image.Image:
    try:
        sheet = Image.open(path, formats=["WEBP"])
        if sheet.size != size:  # known before anything is decoded
            raise SaeuronError(
                f"{path} is {sheet.size[0]} × {sheet.size[1]} pixels where {size[0]} × {size[1]} are said"
            )
        return sheet.convert("RGB")
    except OSError as error:
        raise SaeuronError(f"{path} is not a readable picture: {error}") from None


def key_of(*parts: object) -> str:
    """The key of a picture that is made of ``parts``, such as its prompt and its seed."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]


__all__ = ["BINS", "FORMAT", "KEPT", "VERSION", "Atlas", "key_of", "merge_atlases", "read_about"]
