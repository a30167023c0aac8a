"""SAeUron's method on tokens: sparse autoencoders, concept tables, selections, edits, recordings. Pure torch."""

from .assignment import assign, assign_at_random, read_assignment, select_assigned
from .autoencoder import Code, SparseAutoencoder
from .checkpoints import load_sae, save_sae
from .concept_statistics import ConceptStatistics
from .concept_table import ConceptTable
from .edits import Ablate, Edit, Replace, Shift, Steer, Window
from .errors import SaeuronError
from .hookpoints import Hookpoint
from .recording import Recording, RecordingWriter
from .removal import Setting, build_edits, choose_settings, default_setting, read_settings, write_settings
from .selection import Selection

__all__ = [
    "Ablate",
    "Code",
    "ConceptStatistics",
    "ConceptTable",
    "Edit",
    "Hookpoint",
    "Recording",
    "RecordingWriter",
    "Replace",
    "SaeuronError",
    "Selection",
    "Setting",
    "Shift",
    "SparseAutoencoder",
    "Steer",
    "Window",
    "assign",
    "assign_at_random",
    "build_edits",
    "choose_settings",
    "default_setting",
    "load_sae",
    "read_assignment",
    "read_settings",
    "save_sae",
    "select_assigned",
    "write_settings",
]
