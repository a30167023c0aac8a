"""Captions in disjoint sets: what the model trains on, what concepts are found with, what is judged.

The UNet alone also sees paraphrases, so that it follows phrases and full stops that the text encoder was not made for.

``{object}`` and ``{style}`` are filled in; a plain picture uses the templates without a style.
"""

from .drawing import OBJECTS, STYLES

TRAINING = (
    "a {style} picture of a {object}",
    "{object}, {style}",
    "a {object} drawn in {style} style",
    "{style} {object}",
    "the {object} in {style} style",
    "a {object} in the style of {style}",
    "one {object}, {style} art",
    "{style} art of a {object}",
    "this is a {object} in {style} look",
    "a {style} {object} on a canvas",
    "a drawing of a {object}, {style} style",
    "an image with a {object}, made in {style} style",
)
TRAINING_PLAIN = (
    "a picture of a {object}",
    "{object}",
    "a {object}",
    "the {object}",
    "one {object}",
    "a drawing of a {object}",
    "this is a {object}",
    "a {object} on a canvas",
    "a plain picture of a {object}",
    "an image with a {object}",
)
PARAPHRASE = (
    "image of {object}, {style} style.",
    "a {style} image of {object}.",
    "picture of {object} in {style}",
    "A picture of {object} in {style} art.",
    "the image is a {object} in {style} style.",
    "{style} image with one {object}",
    "An image of the {object}, {style} look.",
    "a drawing of {object} made in {style} style.",
    "drawing with {object}, {style} art.",
    "this image in {style} style is a {object}",
    "{object} in {style}.",
    "An {style} art image of a {object}.",
)
PARAPHRASE_PLAIN = (
    "image of {object}",
    "image of a {object}.",
    "picture of {object}.",
    "A picture of one {object}.",
    "the image is a {object}.",
    "image with one {object}",
    "An image of the {object}, plain.",
    "a drawing of {object}.",
    "drawing with {object}",
    "this image is a {object}.",
    "{object}.",
    "A plain image of {object}.",
)
ANCHOR = (
    "the picture shows a {object} in {style} style",
    "a {style} drawing of one {object}",
    "a canvas with a {object}, {style} look",
    "one {object} made in {style} style",
    "{style} style, a {object}",
    "this {object} is {style} art",
)
ANCHOR_PLAIN = (
    "the picture shows a {object}",
    "a drawing of one {object}",
    "a canvas with a {object}",
    "one {object} on a canvas",
    "this picture is a {object}",
    "the drawing of a {object}",
)
EVALUATION = ("An image of {object} in {style} style.",)
EVALUATION_PLAIN = ("An image of {object}.",)

_SETS = {
    "training": (TRAINING, TRAINING_PLAIN),
    "paraphrase": (PARAPHRASE, PARAPHRASE_PLAIN),
    "anchor": (ANCHOR, ANCHOR_PLAIN),
    "evaluation": (EVALUATION, EVALUATION_PLAIN),
}


def captions(kind: str, object_name: str, style: str) -> list[str]:
    """Every caption for one object in one style, of ``training``, ``paraphrase``, ``anchor`` or ``evaluation``."""
    styled, plain = _SETS[kind]
    templates = plain if style == "plain" else styled
    return [t.format(object=object_name, style=style) for t in templates]


def all_captions(kind: str) -> list[tuple[str, str, str]]:
    """``(caption, object, style)`` for every pair of concepts, in a fixed order."""
    return [(c, o, s) for o in OBJECTS for s in STYLES for c in captions(kind, o, s)]
