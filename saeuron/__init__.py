"""SAeUron's method on tokens: sparse autoencoders, concept tables, selections, edits, recordings. Pure torch."""

import importlib

_MODULES = {
    "assignment": ("assign", "assign_at_random", "read_assignment", "select_assigned"),
    "autoencoder": ("Code", "SparseAutoencoder"),
    "checkpoints": ("load_sae", "save_sae"),
    "concept_statistics": ("ConceptStatistics",),
    "concept_table": ("ConceptTable",),
    "edits": ("Ablate", "Edit", "Replace", "Shift", "Steer", "Window"),
    "errors": ("SaeuronError",),
    "hookpoints": ("Hookpoint",),
    "redirect": ("Redirect",),
    "recording": ("Recording", "RecordingWriter"),
    "removal": ("Setting", "build_edits", "choose_settings", "default_setting", "read_settings", "write_settings"),
    "selection": ("Selection",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """Import a name's module when the name is first asked for: `SaeuronError` costs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
