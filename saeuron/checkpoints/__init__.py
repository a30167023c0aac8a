"""SAE checkpoints: one file a format, and the door that finds which it is."""

from .saeuron import load_sae, save_sae

__all__ = ["load_sae", "save_sae"]
