"""Labels of latents: by CLIP, with how faithful they are, and as others have published them."""

import json

import pytest
import torch

from saeuron import SaeuronError
from saeuron.atlas import Atlas, Survey, labels
from saeuron.atlas.folder import key_of
from saeuron.atlas.sheets import to_image
from training.evaluation.commands import Label
from training.evaluation.label import faithfulness, published


@pytest.fixture
def atlas(make_sae, tmp_path):
    """24 pictures, red or blue, in which latent 1 fires where they are red and latent 2 where they are blue."""
    sae = make_sae(n_latents=32)
    survey = Survey(sae, 24, 4, 4)
    survey.calls = 1
    red = torch.arange(24) % 2 == 0
    for latent, where in ((1, red), (2, ~red)):
        survey.maps[where, :, latent] = 1 + torch.rand(12, 1)
    colour = torch.where(red[:, None], torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0]))
    images = [to_image(one[:, None, None].expand(3, 32, 32)) for one in colour]
    atlas = Atlas.create(tmp_path / "atlas", sae, (4, 4), {})
    prompts = ["a red thing" if one else "a blue thing" for one in red]
    atlas.add(survey.finish(), images, prompts, [key_of(number) for number in range(24)])
    atlas.save()
    return atlas


def test_clip_tells_two_kinds_of_pictures_apart_and_says_how_well(atlas, clip_folder):
    Label(atlas=atlas.folder, clip=clip_folder).run()
    found = labels.read(atlas.folder)
    assert set(found) == {"1", "2"} and all(label["by"] == "CLIP" for label in found.values())
    # Of random weights, so which word is whose is chance; that all red pictures look alike to it is not.
    assert all(label.get("faithfulness", 0) in (0, 1) for label in found.values())


def test_what_the_user_wrote_stays(atlas, tmp_path):
    labels.write(atlas.folder, {"1": {"text": "mine", "by": "you"}})
    file = tmp_path / "others.json"
    file.write_text(json.dumps({"1": "theirs", "2": " a  blue\nthing "}), "utf-8")
    Label(atlas=atlas.folder, published=file).run()
    found = labels.read(atlas.folder)
    assert found["1"]["text"] == "mine" and found["2"] == {"text": "a blue thing", "by": "others"}


def test_faithfulness_is_one_half_for_a_text_that_tells_nothing():
    strengths = torch.tensor([1.0, 0.9, 0.8, 0, 0, 0])
    assert faithfulness(torch.zeros(6), strengths) == 0.5
    assert faithfulness(strengths, strengths) == 1 and faithfulness(-strengths, strengths) == 0
    assert faithfulness(strengths[:4], strengths[:4]) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"3": {"label": "sea", "score": 1}}'),
        ("a.json", '[{"feature": 3, "description": "sea"}]'),
        ("a.jsonl", '{"index": 3, "label": "sea"}\n'),
        ("a.csv", "latent,label\n3,sea\n"),
    ],
)
def test_published_labels_come_in_many_forms(tmp_path, name, text):
    (tmp_path / name).write_text(text, "utf-8")
    assert published(tmp_path / name, 5, "them") == {"3": {"text": "sea", "by": "them"}}


@pytest.mark.parametrize("text", ['{"9": "sea"}', '{"x": "sea"}', '[{"label": "sea"}]', "[1]", "{"])
def test_a_table_that_does_not_fit_is_told(tmp_path, text):
    (tmp_path / "a.json").write_text(text, "utf-8")
    with pytest.raises(SaeuronError, match=r"a\.json"):
        published(tmp_path / "a.json", 5, "them")
