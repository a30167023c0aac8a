import re
from itertools import combinations

import pytest

from tinycanvas.captions import all_captions, captions
from tinycanvas.drawing import OBJECTS, STYLES

SETS = ("training", "paraphrase", "anchor", "evaluation")


def test_the_sets_share_no_caption():
    for one, other in combinations(SETS, 2):
        assert not {text for text, _, _ in all_captions(one)} & {text for text, _, _ in all_captions(other)}


@pytest.mark.parametrize("kind", SETS)
def test_every_pair_of_concepts_has_its_captions_and_no_caption_comes_twice(kind):
    rows = all_captions(kind)
    assert {(o, s) for _, o, s in rows} == {(o, s) for o in OBJECTS for s in STYLES}
    assert len({text for text, _, _ in rows}) == len(rows)
    assert [text for text, o, s in rows if (o, s) == ("star", "neon")] == captions(kind, "star", "neon")


def test_training_and_anchors_paraphrase_and_the_evaluation_asks_as_unlearncanvas_does():
    assert min(len(captions(kind, "star", style)) for kind in SETS[:3] for style in ("neon", "plain")) >= 6
    assert captions("evaluation", "star", "neon") == ["An image of star in neon style."]
    assert captions("evaluation", "star", "plain") == ["An image of star."]


@pytest.mark.parametrize("kind", SETS)
def test_a_caption_names_its_own_concepts_and_no_others(kind):
    for text, shape, style in all_captions(kind):
        words = re.findall(r"\w+", text.lower())
        assert [word for word in words if word in OBJECTS] == [shape]
        assert [word for word in words if word in STYLES and word != "plain"] == [style] * (style != "plain")
