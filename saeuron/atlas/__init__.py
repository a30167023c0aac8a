"""The atlas: what every latent of an SAE does over many pictures, in a folder that grows. See docs/atlas.md."""

from .folder import Atlas, merge_atlases
from .survey import Survey

__all__ = ["Atlas", "Survey", "merge_atlases"]
