"""From a command's options to an SAE with all that goes with it, and to the settings of what it removes."""

from collections.abc import Iterable
from pathlib import Path

from saeuron import Hookpoint, SaeuronError, Setting, SparseAutoencoder, choose_settings
from saeuron.checkpoints import Bundle, load_bundle, load_sae

from .options import Reads, Removal, Sae


def open_bundle(options: Sae) -> Bundle:
    """The SAE of ``options`` with its table and settings, from files of its own where ``options`` name such."""
    given = {name: getattr(options, name, None) for name in ("table", "settings")}
    bundle = load_bundle(options.sae, **given)
    place(bundle.sae, options.sae, options)
    return bundle


def with_table(bundle: Bundle, options: Sae) -> Bundle:
    """``bundle``, whose table is there; raises SaeuronError with what to do where it is not."""
    if bundle.table is None:
        raise SaeuronError(f"{options.sae} comes without a concept table: give --table, or make one with `score`")
    return bundle


def chosen(bundle: Bundle, concepts: Iterable[str], options: Removal) -> dict[str, Setting]:
    """How each of ``concepts`` is removed: as its setting or the SAE's default says, but for what ``options`` give.

    Raises SaeuronError where there is no table, or it does not know a concept.
    """
    changes = {name: getattr(options, name) for name in ("edit", "latents", "strength", "per_timestep")}
    changes["paper_exact"] = options.paper_exact or None
    own = with_table(bundle, options)
    return choose_settings(own.sae, own.table, concepts, own.settings, **changes)


def targets(bundle: Bundle, names: Iterable[str], options: Removal) -> dict[str, Setting]:
    """As `chosen` of ``names``, or, where there are none, of the concepts that have a setting of their own."""
    settings = chosen(bundle, tuple(names) or bundle.settings, options)
    if not settings:
        raise SaeuronError("there is no target: give --targets or --settings")
    return settings


def open_sae(options: Sae) -> SparseAutoencoder:
    """The SAE of ``options`` alone."""
    sae = load_sae(options.sae)
    place(sae, options.sae, options)
    return sae


def place(sae: SparseAutoencoder, path: Path, options: Reads) -> None:
    """Let ``sae``, which is at ``path``, read where ``options`` say; raises SaeuronError where they say half of it."""
    if options.hookpoint or options.site:
        if not options.hookpoint and sae.hookpoint is None:
            raise SaeuronError(f"{path} does not say where it reads: --site needs --hookpoint")
        own = sae.hookpoint or Hookpoint(options.hookpoint)
        sae.hookpoint = Hookpoint(options.hookpoint or own.name, options.site or own.site)


def without_folder(model: str) -> str:
    """The name of a model without the folder it lies in; a name on the hub is left as it is."""
    path = Path(model).expanduser()
    return path.stem if path.is_absolute() or model.startswith(".") or path.exists() else model
