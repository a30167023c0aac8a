"""SAeUron's method on tokens: sparse autoencoders, concept tables, selections, edits, recordings. Pure torch."""

from .autoencoder import Code, SparseAutoencoder
from .checkpoints import load_sae, save_sae
from .concepts import ConceptTable
from .edits import Ablate
from .errors import SaeuronError
from .hookpoints import Hookpoint
from .recording import Recording, RecordingWriter
from .selection import Selection

__all__ = [
    "Ablate",
    "Code",
    "ConceptTable",
    "Hookpoint",
    "Recording",
    "RecordingWriter",
    "SaeuronError",
    "Selection",
    "SparseAutoencoder",
    "load_sae",
    "save_sae",
]
