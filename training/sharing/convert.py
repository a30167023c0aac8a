"""``convert``: anyone's SAE → one bundle to share; SAeUron's pickles → tables and settings of this project."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import Positional, arg

from saeuron import (
    ConceptStatistics,
    ConceptTable,
    Hookpoint,
    SaeuronError,
    Setting,
    SparseAutoencoder,
    read_settings,
    write_settings,
)
from saeuron.checkpoints import Bundle, load_bundle, load_sae, save_bundle
from saeuron.concept_table import WholeTable

from ..common.config import save_config
from ..common.progress import console
from .pickles import read_pickle

KINDS = ("object", "style")
PICKLES = (".pkl", ".pickle", ".pth")


@dataclass
class Convert:
    """Turn an SAE of any known layout into one file to share, or SAeUron's pickles into tables and settings."""

    input: Annotated[Positional[Path], arg(metavar="INPUT")]
    """SAE (folder or bundle); or a concept table (.pkl) or class_params.pth of SAeUron, with --sae."""
    output: Path
    """Bundle to write (.safetensors); for a pickle the table (.safetensors) or the settings (.json)."""
    sae: Path | None = None
    """SAE that a pickled INPUT belongs to."""
    table: Path | None = None
    """Concept table to put into the bundle: one of this project, or SAeUron's .pkl."""
    settings: Path | None = None
    """Tuned settings to put into the bundle: settings.json, or SAeUron's class_params.pth."""
    hookpoint: str | None = None
    """Where the SAE reads, in diffusers' naming; default what its files or its folder's name say."""
    site: str | None = None
    """What of the block it reads: output or residual; default what its files say."""
    base_model: str | None = None
    """Model the SAE was trained on; default what its files say."""
    licence: str | None = None
    """SPDX name of the licence it is shared under."""
    card: Path | None = None
    """Markdown file that becomes the model card."""
    kind: str | None = None
    """Kind of a pickled table's concepts: object or style; default what its file name says."""
    timesteps: tuple[int, ...] = ()
    """Timesteps of a pickled table, first drawn first; default DDIM's of as many steps: 991 981 … 1 for 100."""

    def run(self) -> None:
        if self.input.is_file() and self.input.suffix in PICKLES and self.input.name != "state_dict.pth":
            self._convert_pickle()
        else:
            save_bundle(self._bundle(), self.output)
        save_config(self, self.output.parent)
        console.print(f"{self.output}, {self.output.stat().st_size / 1e6:.1f} MB", soft_wrap=True)

    def _convert_pickle(self) -> None:
        if self.sae is None:
            raise SaeuronError(f"{self.input} says nothing of its SAE: give --sae")
        sae = load_sae(self.sae)
        if self.input.suffix == ".pth":
            write_settings(self.output, read_class_params(self.input, sae.n_latents), fingerprint=sae.fingerprint)
        else:
            read_pickled_table(self.input, sae, self.kind, self.timesteps).save(self.output)

    def _bundle(self) -> Bundle:
        bundle = load_bundle(self.input)
        sae = bundle.sae
        if self.hookpoint or self.site:
            if not self.hookpoint and sae.hookpoint is None:
                raise SaeuronError(f"{self.input} does not say where it reads: --site needs --hookpoint")
            before = sae.hookpoint or Hookpoint(self.hookpoint)
            sae.hookpoint = Hookpoint(self.hookpoint or before.name, self.site or before.site)
        if sae.hookpoint is None:
            raise SaeuronError(f"{self.input} does not say where it reads: give --hookpoint")
        if self.base_model is not None:
            sae.base_model = self.base_model
        if self.table is not None:
            bundle.table = self._table(sae)
        if self.settings is not None:
            bundle.settings = self._settings(sae)
        if self.licence is not None:
            bundle.licence = self.licence
        if self.card is not None:
            bundle.card = _read_text(self.card)
        return bundle

    def _table(self, sae: SparseAutoencoder) -> ConceptTable:
        if self.table.suffix in PICKLES:
            return read_pickled_table(self.table, sae, self.kind, self.timesteps)
        return ConceptTable.load(self.table)

    def _settings(self, sae: SparseAutoencoder) -> dict[str, Setting]:
        if self.settings.suffix not in PICKLES:
            return read_settings(self.settings)
        return read_class_params(self.settings, sae.n_latents)


def read_pickled_table(
    path: Path, sae: SparseAutoencoder, kind: str | None = None, timesteps: tuple[int, ...] = ()
) -> WholeTable:
    """SAeUron's pickled table, ``dict[concept] → [prompts, steps, n_latents]``, as a table of ``sae``.

    ``kind`` defaults to what the file name says, ``timesteps`` to ``ddim_timesteps`` of as many steps. Raises
    SaeuronError where the file is anything else or does not fit.
    """
    kind = kind or _kind(path)
    if kind not in KINDS:
        raise SaeuronError(f"--kind {kind!r} is unknown; it is one of {', '.join(KINDS)}")

    def add_up(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        if tensor.dim() != 3 or tensor.shape[2] != sae.n_latents:
            raise SaeuronError(
                f"{path} holds a tensor of shape {list(tensor.shape)} "
                f"where [prompts, steps, {sae.n_latents}] is expected of this SAE"
            )
        return tensor.sum(0, dtype=torch.float32), len(tensor)

    content = read_pickle(path, add_up)
    if not content or not all(isinstance(value, tuple) for value in content.values()):
        raise SaeuronError(f"{path} is not a concept table: it has to hold one tensor a concept")
    steps = {len(total) for total, _ in content.values()}
    if len(steps) > 1:
        raise SaeuronError(f"{path} holds concepts of {' and '.join(map(str, sorted(steps)))} steps")
    timesteps = timesteps or ddim_timesteps(steps.pop())
    if any(len(total) != len(timesteps) for total, _ in content.values()) or len(set(timesteps)) < len(timesteps):
        raise SaeuronError(f"{path} has {len(next(iter(content.values()))[0])} steps: give each its own --timesteps")
    order = sorted(range(len(timesteps)), key=lambda step: timesteps[step])
    names = dict.fromkeys(map(str, content), kind)
    statistics = ConceptStatistics(
        names, [timesteps[step] for step in order], sae.n_latents, sae.fingerprint, sae.origin
    )
    for row, (total, count) in enumerate(content.values()):
        statistics.sums[row] = total[order]
        statistics.counts[row] = count
    statistics.squares = None  # a sum over the prompts is all that is kept of them
    return WholeTable(statistics)


def read_class_params(path: Path, n_latents: int) -> dict[str, Setting]:
    """SAeUron's ``class_params.pth``, ``dict[concept] → {percentile, multiplier}``, as settings."""
    found = {}
    for concept, values in read_pickle(path).items():
        try:
            count = latents_of(float(values["percentile"]), n_latents)
            found[str(concept)] = Setting(count, float(values["multiplier"]), paper_exact=True)
        except (KeyError, TypeError, ValueError) as error:
            raise SaeuronError(f"{path}, concept {concept!r}: {error!r} is not a percentile and a multiplier") from None
    return found


def latents_of(percentile: float, n_latents: int) -> int:
    """How many of ``n_latents`` scores lie over a percentile: of 20 480, 99.999, 99.995 and 99.99 leave 1, 2 and 3."""
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile {percentile} does not lie between 0 and 100")
    return math.ceil(round((1 - percentile / 100) * n_latents, 6))


def ddim_timesteps(steps: int, offset: int = 1) -> tuple[int, ...]:
    """Timesteps of Stable Diffusion's DDIM (leading spacing, of 1 000), first drawn first: 991, 981, …, 1 for 100."""
    return tuple(step * (1000 // steps) + offset for step in reversed(range(steps)))


def _kind(path: Path) -> str:
    for start, kind in (("cls_", "object"), ("style_", "style")):
        if path.name.startswith(start):
            return kind
    raise SaeuronError(f"{path.name} does not say whether its concepts are objects or styles: give --kind")


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SaeuronError(f"--card {path} could not be read: {error}") from None
