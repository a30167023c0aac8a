"""Recordings: activations on disk, as a folder of shuffled shards with one manifest.

A shard is a safetensors file of ``activations`` ``[N, d_in]`` (float16), ``prompt`` (uint32), ``timestep`` and
``position`` (uint16), its rows already shuffled. ``manifest.json`` says what was recorded and lists the finished
shards; ``prompts.json`` holds the prompts and their labels. A shard that the manifest does not list is not part of the
recording. Where several processes write one recording, each but the first lists its shards in a ``part-….json`` of its
own, which the first enters in the manifest when it opens or finishes the recording.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import SaeuronError, check_same
from .files import read_json, read_tensors, write_json, write_tensors
from .formats import ManifestDescription, PartDescription, PromptsDescription, check
from .hookpoints import Hookpoint

FORMAT, VERSION = "saeuron-recording", 1
COLUMNS = {"prompt": torch.uint32, "timestep": torch.uint16, "position": torch.uint16}


@dataclass(frozen=True)
class Tokens:
    """Rows of a recording: ``activations`` ``[N, d_in]``; ``prompt``, ``timestep``, ``position`` ``[N]`` int64."""

    activations: torch.Tensor
    prompt: torch.Tensor
    timestep: torch.Tensor
    position: torch.Tensor

    def __len__(self) -> int:
        return len(self.activations)

    def pick(self, rows: torch.Tensor | slice) -> "Tokens":
        return Tokens(self.activations[rows], self.prompt[rows], self.timestep[rows], self.position[rows])

    @staticmethod
    def cat(parts: list["Tokens"]) -> "Tokens":
        fields = ("activations", "prompt", "timestep", "position")
        return Tokens(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))


def bytes_per_token(d_in: int) -> int:
    return 2 * d_in + 4 + 2 + 2


class RecordingWriter:
    """Writes shards in any order and can be started again on a folder it was interrupted in.

    ``settings`` are what made the activations; a folder begun with others is refused by name, never mixed. A recording
    is planned, its ``prompts`` known from the start (with more of them at the end it grows, and its shards stay), or,
    where ``prompts`` is None, grows by `append`.

    Several processes write one planned recording, each with a ``part`` of its own and shards that no other writes. Part
    0 opens the folder before all others, and finishes it after they are done.
    """

    def __init__(
        self,
        folder: str | Path,
        hookpoint: Hookpoint,
        d_in: int,
        prompts: list[dict] | None,
        settings: dict,
        part: int = 0,
    ) -> None:
        self.folder, self.part = Path(folder), part
        self._own: dict[str, int] = {}
        self.manifest = {
            "format": FORMAT,
            "version": VERSION,
            "hookpoint": hookpoint.name,
            "site": hookpoint.site,
            "d_in": d_in,
            "dtype": "float16",
            "settings": settings,
            "settings_hash": settings_digest(settings, hookpoint, d_in),
            "complete": False,
            "shards": {},
        }
        path = self.folder / "manifest.json"
        if path.exists():
            self._continue(check(read_json(path), ManifestDescription, path), prompts)
        else:
            write_json(self.folder / "prompts.json", {"prompts": prompts or []})
            write_json(path, self.manifest)
        if part == 0:
            self._gather()

    def _continue(self, before: dict, prompts: list[dict] | None) -> None:
        """Go on with what lies in the folder, whose manifest is ``before``; with more prompts than it had, it grows."""
        keys = ("hookpoint", "site", "d_in")
        old, new = (
            {key: of.get(key) for key in keys} | _identity(of.get("settings", {})) for of in (before, self.manifest)
        )
        check_same(self.folder, old, new, "choose another folder, or delete this one")
        known = _read_prompts(self.folder)
        self.manifest = before
        if prompts is None or prompts == known:
            return
        if prompts[: len(known)] != known:
            fewer = known[: len(prompts)] == prompts
            told = f"{len(known)} images and now it is {len(prompts)}" if fewer else "other prompts"
            raise SaeuronError(f"{self.folder} was made with {told}: choose another folder")
        self.manifest["images"] = [*self.planned(len(known)), len(prompts)]
        self.manifest["complete"] = False
        write_json(self.folder / "prompts.json", {"prompts": prompts})
        self._save()

    def planned(self, images: int) -> list[int]:
        """How many images it had each time that it grew, the last of them ``images``."""
        return self.manifest.get("images", [images])

    def has(self, shard: int) -> bool:
        return _shard_name(shard) in self.manifest["shards"]

    def write(self, shard: int, tokens: Tokens, seed: int) -> None:
        """Shuffle the rows by ``seed``, write them as shard number ``shard`` and enter it in the manifest."""
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
        # A larger number would be an infinity in half precision, which no SAE can be trained on.
        largest = torch.finfo(torch.float16).max
        tensors = {"activations": tokens.activations[order].clamp(-largest, largest).half()}
        tensors |= {name: getattr(tokens, name)[order].to(dtype) for name, dtype in COLUMNS.items()}
        write_tensors(self.folder / _shard_name(shard), tensors)
        self._own[_shard_name(shard)] = len(tokens)
        self._enter({_shard_name(shard): len(tokens)})
        self._save()

    def append(self, prompts: list[dict], tokens: Tokens, seed: int) -> None:
        """Add a shard with prompts of its own, which ``tokens.prompt`` counts from 0. Complete after every shard."""
        known = _read_prompts(self.folder)
        write_json(self.folder / "prompts.json", {"prompts": known + prompts})
        moved = Tokens(tokens.activations, tokens.prompt + len(known), tokens.timestep, tokens.position)
        self.manifest["complete"] = True
        self.write(len(self.manifest["shards"]), moved, seed)

    @property
    def bytes(self) -> int:
        """What the finished shards take on disk, but for their headers."""
        return sum(self.manifest["shards"].values()) * bytes_per_token(self.manifest["d_in"])

    def finish(self) -> None:
        """Say that the recording is complete, with the shards that other processes wrote."""
        self._gather()
        self.manifest["complete"] = True
        self._save()

    def _enter(self, shards: dict[str, int]) -> None:
        self.manifest["shards"] = dict(sorted((self.manifest["shards"] | shards).items()))

    def _save(self) -> None:
        if self.part == 0:
            write_json(self.folder / "manifest.json", self.manifest)
        else:
            content = {"settings_hash": self.manifest["settings_hash"], "shards": self._own}
            write_json(self.folder / f"part-{self.part:05d}.json", content)

    def _gather(self) -> None:
        """Enter in the manifest what the other processes list; their lists are then gone."""
        found = sorted(self.folder.glob("part-*.json"))
        parts = {path: check(read_json(path), PartDescription, path) for path in found}
        for part in parts.values():
            if part.get("settings_hash") == self.manifest["settings_hash"]:
                self._enter(part["shards"])
        if parts:
            self._save()
        for path in parts:
            path.unlink(missing_ok=True)


class Recording:
    """A recording opened for reading, ``complete`` or only begun; SaeuronError where it is missing, broken or empty."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "manifest.json").exists():
            inside = sorted(path.parent.name for path in self.folder.glob("*/manifest.json"))
            hint = f"; it holds the recordings {', '.join(inside)}" if inside else ""
            raise SaeuronError(f"{self.folder} is not a recording: it has no manifest.json{hint}")
        path = self.folder / "manifest.json"
        manifest = check(read_json(path), ManifestDescription, path)
        self.shards: dict[str, int] = manifest["shards"]
        self.complete: bool = manifest["complete"]
        if not self.shards:
            raise SaeuronError(f"{self.folder} has no finished shard; run `record` on it again to continue")
        missing = [name for name in self.shards if not (self.folder / name).exists()]
        if missing:
            raise SaeuronError(f"{self.folder} lacks {', '.join(missing[:3])}, which its manifest lists")
        self.hookpoint = Hookpoint(manifest["hookpoint"], manifest["site"])
        self.d_in: int = manifest["d_in"]
        self.settings: dict = manifest["settings"]
        self.settings_hash: str = manifest["settings_hash"]

    @property
    def prompts(self) -> list[dict]:
        return _read_prompts(self.folder)

    def __len__(self) -> int:
        return sum(self.shards.values())

    def read(self, shard: str) -> Tokens:
        """The rows of one shard; raises SaeuronError where the file is not what the manifest says."""
        tensors, _ = read_tensors(self.folder / shard)
        count, kinds = self.shards[shard], {"activations": torch.float16, **COLUMNS}
        shapes = dict.fromkeys(kinds, (count,)) | {"activations": (count, self.d_in)}
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        if found != {name: (kind, shapes[name]) for name, kind in kinds.items()}:
            raise SaeuronError(
                f"{self.folder / shard} is not the shard its manifest lists; delete the folder and record again"
            )
        return Tokens(tensors["activations"], *(tensors[name].long() for name in COLUMNS))

    def batches(
        self,
        size: int,
        seed: int,
        epoch: int,
        interleave: int = 4,
        shards: list[str] | None = None,
        by_map: bool = False,
    ) -> Iterator[Tokens]:
        """One pass over the recording in batches of ``size``, mixed from ``interleave`` shards at a time.

        ``shards`` names those to read, None all of them. ``by_map`` keeps the tokens of one map (one image at one
        timestep) together, where the end of a batch does not cut them. The order depends on ``seed`` and ``epoch``
        only. Rows that do not fill a last batch are left for other epochs.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        names = list(self.shards) if shards is None else shards
        names = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
        rest: list[Tokens] = []
        for start in range(0, len(names), interleave):
            pool = Tokens.cat(rest + [self.read(name) for name in names[start : start + interleave]])
            order = mixed(pool, generator, by_map)
            whole = len(pool) // size * size
            for at in range(0, whole, size):
                yield pool.pick(order[at : at + size])
            rest = [pool.pick(order[whole:])]


def mixed(tokens: Tokens, generator: torch.Generator, by_map: bool = False) -> torch.Tensor:
    """The rows of ``tokens`` in a random order, in which ``by_map`` keeps those of one map together."""
    return _maps_together(tokens, generator) if by_map else torch.randperm(len(tokens), generator=generator)


def _maps_together(tokens: Tokens, generator: torch.Generator) -> torch.Tensor:
    """The rows of ``tokens`` in an order that takes one map after another, the maps at random."""
    maps = torch.stack([tokens.prompt, tokens.timestep]).unique(dim=1, return_inverse=True)[1]
    rank = torch.randperm(int(maps.max()) + 1, generator=generator)
    return rank[maps].argsort(stable=True)


def _shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.safetensors"


def _read_prompts(folder: Path) -> list[dict]:
    path = folder / "prompts.json"
    return check(read_json(path), PromptsDescription, path)["prompts"]


def settings_digest(settings: dict, hookpoint: Hookpoint, d_in: int) -> str:
    """What tells recordings made with other ``settings``, or elsewhere, apart; 16 hexadecimal digits."""
    return _hash([_identity(settings), hookpoint.name, hookpoint.site, d_in])


def _identity(settings: dict) -> dict:
    """The ``settings`` that decide what is recorded. How many images are drawn, and how many at once, does not."""
    return {name: value for name, value in settings.items() if name not in ("batch", "images")}


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
