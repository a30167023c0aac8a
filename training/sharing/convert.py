"""``convert``: anyone's SAE → one bundle to share; SAeUron's pickles → tables and settings of this project."""

import math
from pathlib import Path
from typing import NamedTuple

import torch

from saeuron import (
    ConceptStatistics,
    ConceptTable,
    SaeuronError,
    Setting,
    SparseAutoencoder,
    read_settings,
    write_settings,
)
from saeuron.checkpoints import Bundle, load_bundle, load_sae, save_bundle
from saeuron.checkpoints.pickled import read_pickle
from saeuron.concept_table import WholeTable
from saeuron.files import check_finite

from ..common.bundles import place, tell_of, without_folder
from ..common.config import save_config
from ..common.results import tell
from .commands import Convert

PICKLES = (".pkl", ".pickle", ".pth")


def run(config: Convert) -> None:
    if config.output.exists() and not config.overwrite:
        raise SaeuronError(f"{config.output} is there already: choose another --output, or --overwrite")
    if config.input.is_file() and config.input.suffix in PICKLES and config.input.name != "state_dict.pth":
        _convert_pickle(config)
    else:
        save_bundle(_bundle(config), config.output)
    save_config(config, config.output.parent)
    size = config.output.stat().st_size
    tell(config, {"output": str(config.output), "bytes": size}, f"{config.output}, {size / 1e6:.1f} MB")


def _convert_pickle(config: Convert) -> None:
    if config.sae is None:
        raise SaeuronError(f"{config.input} says nothing of its SAE: give --sae")
    sae = load_sae(config.sae)
    if config.input.suffix == ".pth":
        settings = read_class_params(config.input, sae.n_latents)
        write_settings(config.output, settings, fingerprint=sae.fingerprint)
    else:
        read_pickled_table(config.input, sae, config.kind, config.timesteps).save(config.output)


def _bundle(config: Convert) -> Bundle:
    bundle = load_bundle(config.input)
    sae = bundle.sae
    place(sae, config.input, config)
    if sae.hookpoint is None:
        raise SaeuronError(f"{config.input} does not say where it reads: give --hookpoint")
    sae.base_model = without_folder(sae.base_model) if config.base_model is None else config.base_model
    if config.table is not None:
        bundle.table = _table(config, sae)
    if config.settings is not None:
        bundle.settings = _settings(config, sae)
    tell_of(bundle, config)
    return bundle


def _table(config: Convert, sae: SparseAutoencoder) -> ConceptTable:
    if config.table.suffix in PICKLES:
        return read_pickled_table(config.table, sae, config.kind, config.timesteps)
    return ConceptTable.load(config.table)


def _settings(config: Convert, sae: SparseAutoencoder) -> dict[str, Setting]:
    if config.settings.suffix not in PICKLES:
        return read_settings(config.settings)
    return read_class_params(config.settings, sae.n_latents)


class Summed(NamedTuple):
    """The sum of a concept's tensor over its prompts ``[steps, n_latents]``, and how many they are."""

    total: torch.Tensor
    count: int


def read_pickled_table(
    path: Path, sae: SparseAutoencoder, kind: str | None = None, timesteps: tuple[int, ...] = ()
) -> WholeTable:
    """SAeUron's pickled table, ``dict[concept] → [prompts, steps, n_latents]``, as a table of ``sae``.

    ``kind`` defaults to what the file name says, ``timesteps`` to ``ddim_timesteps`` of as many steps. Raises
    SaeuronError where the file is anything else or does not fit.
    """
    kind = kind or _kind(path)

    def add_up(tensor: torch.Tensor) -> Summed:
        fits = tensor.dim() == 3 and tensor.shape[2] == sae.n_latents
        if not fits or not tensor.numel() or not tensor.is_floating_point():
            raise SaeuronError(
                f"{path} holds a tensor of shape {list(tensor.shape)} "
                f"where [prompts, steps, {sae.n_latents}] is expected of this SAE"
            )
        total = tensor.sum(0, dtype=torch.float32)
        check_finite({"a concept": total}, path)
        return Summed(total, len(tensor))

    content = read_pickle(path, add_up)
    if not content or not all(isinstance(value, Summed) for value in content.values()):
        raise SaeuronError(f"{path} is not a concept table: it has to hold one tensor a concept")
    if len({str(name) for name in content}) < len(content):
        raise SaeuronError(f"{path} has two concepts of one name, as a number and as text")
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
    return WholeTable(statistics)


def read_class_params(path: Path, n_latents: int) -> dict[str, Setting]:
    """SAeUron's ``class_params.pth``, ``dict[concept] → {percentile, multiplier}``, as settings."""
    found = {}
    for concept, values in read_pickle(path).items():
        try:
            count = latents_of(float(values["percentile"]), n_latents)
            found[str(concept)] = Setting(count, float(values["multiplier"]), paper_exact=True)
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
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
    raise SaeuronError(
        f"{path.name} does not say what its concepts are: give --kind object, style or a word of your own"
    )
