"""SAeUron's method on tokens: sparse autoencoders, concept tables, selections, edits, recordings. Pure torch."""

from .assignment import assign, assign_at_random, read_assignment, select_assigned
from .autoencoder import Code, SparseAutoencoder
from .checkpoints import load_sae, save_sae
from .concepts import ConceptTable
from .edits import Ablate, Replace, Shift, Steer
from .errors import SaeuronError
from .hookpoints import Hookpoint
from .recording import Recording, RecordingWriter
from .selection import Selection
from .settings import Setting, default_setting, removal

__all__ = [
    "Ablate",
    "Code",
    "ConceptTable",
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
    "assign",
    "assign_at_random",
    "default_setting",
    "load_sae",
    "read_assignment",
    "removal",
    "save_sae",
    "select_assigned",
]
