"""From a command's options to an SAE with all that goes with it, and to the settings of what it removes."""

from collections.abc import Callable, Iterable
from pathlib import Path

from saeuron import Hookpoint, SaeuronError, Setting, SparseAutoencoder, choose_settings, read_settings
from saeuron.checkpoints import Bundle, load_bundle, load_sae

from .options import Reads, Removal, Sae, Shared
from .progress import console


def open_bundle(options: Sae) -> Bundle:
    """The SAE of ``options`` with its table and settings.

    The table is the one that ``options`` name, else the SAE's own. Settings are those of both, and of a concept that
    both have one of, the one that ``options`` name wins.
    """
    bundle = load_bundle(options.sae, table=getattr(options, "table", None))
    bundle.settings = bundle.settings | given_settings(options)
    place(bundle.sae, options.sae, options)
    return bundle


def given_settings(options: Sae) -> dict[str, Setting]:
    """What the settings file of ``options`` holds; nothing where they name none."""
    path = getattr(options, "settings", None)
    return read_settings(path) if path else {}


def with_table(bundle: Bundle, options: Sae) -> Bundle:
    """``bundle``, whose table is there; raises SaeuronError with what to do where it is not."""
    if bundle.table is None:
        raise SaeuronError(f"{options.sae} comes without a concept table: give --table, or make one with `score`")
    return bundle


def chosen(bundle: Bundle, concepts: Iterable[str], options: Removal) -> dict[str, Setting]:
    """How each of ``concepts`` is removed: as its setting or the SAE's default says, but for what ``options`` give.

    Raises SaeuronError where there is no table, or it does not know a concept.
    """
    changes = {name: getattr(options, name) for name in ("edit", "latents", "strength", "per_timestep", "paper_exact")}
    own = with_table(bundle, options)
    return choose_settings(own.sae, own.table, concepts, own.settings, **changes)


def targets(bundle: Bundle, names: Iterable[str], options: Removal) -> dict[str, Setting]:
    """As `chosen` of ``names``, or, where there are none, of all in the settings file, or else in the bundle."""
    settings = chosen(bundle, tuple(names) or given_settings(options) or bundle.settings, options)
    if not settings:
        raise SaeuronError("there is no target: give --targets or --settings")
    return settings


def tell_origin(settings: Iterable[str], bundle: Bundle, options: Removal, spelt: Callable[[str], str] = str) -> None:
    """Say on stderr where each of ``settings`` comes from; ``spelt`` is how a settings file may write a name."""
    given, own = ({spelt(name) for name in known} for known in (given_settings(options), bundle.settings))
    origins: dict[str, list[str]] = {}
    for name in settings:
        place = options.settings if spelt(name) in given else options.sae if spelt(name) in own else None
        origins.setdefault(f"from {place}" if place else "none of its own, so the default", []).append(name)
    for place, names in origins.items():
        shown = ", ".join(names) if len(names) < 8 else f"{', '.join(names[:7])} … ({len(names)})"
        console.print(f"setting of {shown}: {place}", soft_wrap=True, highlight=False, markup=False)


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


def tell_of(bundle: Bundle, options: Shared) -> None:
    """Give ``bundle`` the licence and the card that ``options`` name; what they do not name stays."""
    if options.licence is not None:
        bundle.licence = options.licence
    if options.card is not None:
        try:
            bundle.card = options.card.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SaeuronError(f"--card {options.card} could not be read: {error}") from None


def without_folder(model: str) -> str:
    """The name of a model without the folder it lies in; a name on the hub is left as it is."""
    path = Path(model).expanduser()
    return path.stem if path.is_absolute() or model.startswith(".") or path.exists() else model
