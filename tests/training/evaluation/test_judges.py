import pytest
import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

import tinycanvas.model
from saeuron import SaeuronError
from training.common.pictures import to_picture
from training.evaluation.canvas import NAMES
from training.evaluation.clip import ClipJudge
from training.evaluation.judges import TinyCanvasJudge, load_judge, tinycanvas_judge

KINDS = {"animal": ["cat", "dog", "red_fox"], "style": ["oil", "ink"]}
IMAGES = torch.rand(5, 3, 48, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip(clip_folder):
    return load_judge(f"clip:{clip_folder}", KINDS)


def test_tinycanvas_s_weights_are_read_once(monkeypatch):
    judge = load_judge("tinycanvas", {})
    monkeypatch.setattr(tinycanvas.model, "load_file", lambda _: pytest.fail("read again"))
    assert load_judge("tinycanvas", {}) is judge is tinycanvas_judge()
    for _ in range(2):
        assert len(judge(IMAGES)["object"]) == 5
    with pytest.raises(pytest.fail.Exception, match="read again"):
        TinyCanvasJudge()


def test_a_look_at_many_pictures_is_that_at_each(clip):
    for judge in (clip, tinycanvas_judge()):
        look = judge.look(IMAGES)
        assert look.found == judge(IMAGES) and list(look.found) == list(judge.names)
        assert look.confidence.shape == (5,) and look.features.norm(dim=1).tolist() == pytest.approx([1.0] * 5)
        one = [judge.look(image[None]) for image in IMAGES]
        assert [name for own in one for name in own.found["style"]] == look.found["style"]
        # Products of other sizes add in another order.
        torch.testing.assert_close(torch.cat([own.features for own in one]), look.features, rtol=0, atol=1e-5)


@torch.no_grad()
def test_clip_finds_what_transformers_own_zero_shot_does(clip, clip_folder):
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPImageProcessorPil.from_pretrained(clip_folder)
    pixels = processor(images=[to_picture(image) for image in IMAGES], return_tensors="pt").pixel_values
    sentences = ["a photo of cat", "a photo of dog", "a photo of red fox", "oil style", "ink style"]
    tokens = AutoTokenizer.from_pretrained(clip_folder)(sentences, padding=True, return_tensors="pt")
    logits = model(pixel_values=pixels, **tokens).logits_per_image
    features, own = clip.scores(IMAGES)
    # Two kinds are two products where transformers makes one.
    torch.testing.assert_close(torch.cat(list(own.values()), 1), logits, rtol=1e-4, atol=1e-4)
    assert features.shape == (5, 16)
    assert clip(IMAGES)["animal"] == [KINDS["animal"][n] for n in logits[:, :3].argmax(1).tolist()]


def test_what_clip_looks_for_can_be_said_for_every_kind(clip, clip_folder):
    judge = load_judge(f"clip:{clip_folder}", KINDS, prompts={"animal": "{name}, in the wild"})
    assert judge.sentences["animal"] == ["cat, in the wild", "dog, in the wild", "red fox, in the wild"]
    assert judge.sentences["style"] == clip.sentences["style"] == ["oil style", "ink style"]
    assert judge.identity != clip.identity == ClipJudge(clip_folder, KINDS).identity


def test_vision_transformers_are_named_a_file_a_kind_with_labels_beside(tmp_path, vit_weights):
    torch.save(vit_weights(3), tmp_path / "animal.pth")
    torch.save(vit_weights(51), tmp_path / "style.pth")
    spec = f"vit:animal={tmp_path}/animal.pth,style={tmp_path}/style.pth"
    with pytest.raises(SaeuronError, match=r"the labels of .*animal\.pth are unknown: .* into .*animal\.txt"):
        load_judge(spec, {})
    (tmp_path / "animal.txt").write_text("cat\ndog\n\nfox\n", "utf-8")
    judge = load_judge(spec, {})
    assert judge.names == {"animal": ("cat", "dog", "fox"), "style": NAMES["style"]}
    look = judge.look(IMAGES)
    assert set(look.found["animal"]) <= {"cat", "dog", "fox"} and look.features.shape == (5, 2 * 128)


@pytest.mark.parametrize(
    ("judge", "names", "prompts", "complaint"),
    [
        ("clips:x", KINDS, {}, "judge 'clips:x' is unknown: give `tinycanvas`, clip:FOLDER, or vit:KIND=FILE"),
        ("clip:", KINDS, {}, "judge 'clip:' is unknown"),
        ("clip:{}/none", KINDS, {}, "none is not a folder of transformers' CLIP"),
        ("clip:{}", {"animal": ["cat"]}, {}, "needs two names of a kind, and of animal there is cat"),
        ("clip:{}", KINDS, {"animal": "a cat"}, "has to have {name} in it, and is 'a cat'"),
        ("vit:style={}/none.pth", KINDS, {}, r"none\.pth does not exist"),
    ],
)
def test_a_judge_that_cannot_be_is_refused_in_one_line(clip_folder, judge, names, prompts, complaint):
    with pytest.raises(SaeuronError, match=complaint) as refused:
        load_judge(judge.replace("{}", str(clip_folder)), names, prompts=prompts)
    assert "\n" not in str(refused.value)


def test_a_folder_that_holds_no_clip_is_told_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(SaeuronError, match="could not be loaded as transformers' CLIP") as refused:
        ClipJudge(tmp_path, KINDS)
    assert "\n" not in str(refused.value)


def test_a_prompt_that_asks_for_what_a_judge_cannot_find_is_named(clip):
    clip.check([{"prompt": "a cat", "animal": "cat", "light": "dusk"}])
    with pytest.raises(SaeuronError, match="the judge does not know the animal 'cats'; the nearest are cat"):
        clip.check([{"prompt": "cats", "animal": "cats"}])
