import json
import sys

import pytest
import torch

import training.evaluation.nudity
import training.evaluation.protocol
from saeuron import ConceptStatistics, SaeuronError, save_sae
from saeuron.concept_table import WholeTable
from training.diffusion.load import load_model
from training.evaluation.nudity import COUNTED, Nudity, count, load_detector, markdown, read_csv, run

BELLY, FEET, FACE = "BELLY_EXPOSED", "FEET_EXPOSED", "FACE_FEMALE"


@pytest.fixture
def bench(tmp_path, small_sd, make_sae):
    """A folder with an SAE for the small model, a table with the concept `nudity`, and two prompts."""
    sae = make_sae()
    save_sae(sae, tmp_path / "sae")
    statistics = ConceptStatistics(
        {"nudity": "content", "clothes": "content"}, range(1, 1000, 100), 256, sae.fingerprint
    )
    statistics.sums = torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(0))
    statistics.counts += 1
    table = WholeTable(statistics)
    table.save(tmp_path / "table.safetensors")
    (tmp_path / "i2p.csv").write_text('prompt,sd_seed,other\n"a figure, painted",77,x\nan empty room,88,y\n', "utf-8")

    def make(**options):
        named = {"sae": tmp_path / "sae", "table": tmp_path / "table.safetensors", "output": tmp_path / "out"}
        named |= {"model": str(small_sd), "prompts": tmp_path / "i2p.csv"}
        named |= {"steps": 2, "height": 64, "width": 64, "batch": 1, "latents": 32, "strength": -20.0}
        return Nudity(**(named | options))

    return make


@pytest.fixture
def once(monkeypatch, small_sd):
    """The small model loaded once for a whole test, and a detector that finds a belly in the first picture it sees.

    Returns the prompts and seeds that are drawn.
    """
    pipeline, drawn, looks, real = load_model(str(small_sd)), [], [], training.evaluation.nudity.draw_all

    def draw(pipeline, rows, seeds, sampling, edits=None):
        drawn.extend((row["prompt"], seed) for row, seed in zip(rows, seeds, strict=True))
        return real(pipeline, rows, seeds, sampling, edits)

    def detect(image):
        looks.append(image)
        return [[BELLY, 0.9], [FACE, 0.9]] if len(looks) == 1 else [[FEET, 0.5]]

    monkeypatch.setattr(training.evaluation.protocol, "open_model", lambda *_: pipeline)
    monkeypatch.setattr(training.evaluation.nudity, "draw_all", draw)
    monkeypatch.setattr(training.evaluation.nudity, "load_detector", lambda: detect)
    return drawn


def test_labels_are_counted_that_the_papers_count_and_that_are_sure_enough():
    findings = [[(BELLY, 0.61), (BELLY, 0.9), (FACE, 0.99)], [(FEET, 0.59)], [(FEET, 0.6)], []]
    found = count(findings, 0.6)
    assert found["labels"] == dict.fromkeys(COUNTED, 0) | {BELLY: 2, FEET: 1}
    assert (found["total"], found["pictures"]) == (3, 2)


def test_prompts_and_their_seeds_come_from_the_file(tmp_path):
    path = tmp_path / "i2p.csv"
    path.write_text('id,prompt,sd_seed\n1,"one, two",7.0\n2,,8\n3,three,9\n', "utf-8")
    assert read_csv(path, "prompt", "sd_seed") == ([{"prompt": "one, two"}, {"prompt": "three"}], [7, 9])
    assert read_csv(path, "prompt", "none", 1) == ([{"prompt": "one, two"}], [0])


@pytest.mark.parametrize(
    ("text", "options", "complaint"),
    [
        ("prompts\na\n", {}, "has no column 'prompt'; the nearest are prompts"),
        ("prompt\n\n", {}, "holds no prompt"),
        ("prompt,sd_seed\na,x\n", {}, "the column 'sd_seed' holds something that is no number"),
        ("prompt\na\n", {"limit": 0}, "--limit has to be at least 1"),
        (None, {}, "could not be read: No such file"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, text, options, complaint):
    if text:
        (tmp_path / "i2p.csv").write_text(text, "utf-8")
    with pytest.raises(SaeuronError, match=complaint):
        read_csv(tmp_path / "i2p.csv", "prompt", "sd_seed", **options)


def test_two_prompts_are_drawn_before_and_after_and_counted(bench, tmp_path, once):
    report = run(bench(save_images=True))
    assert once == [("a figure, painted", 77)] * 2 + [("an empty room", 88)] * 2
    assert report["before"]["labels"][BELLY] == 1 and report["before"]["total"] == 1
    assert report["after"]["total"] == 0
    assert json.loads((tmp_path / "out" / "nudity.json").read_text("utf-8")) == report
    text = (tmp_path / "out" / "nudity.md").read_text("utf-8")
    assert "| BELLY_EXPOSED | 1 | 0 |" in " ".join(text.split()) and "2 prompts" in text and text == markdown(report)
    images = {path.name: path.read_bytes() for path in (tmp_path / "out" / "images").iterdir()}
    assert set(images) == {f"{when}-0000{n}.png" for when in ("before", "after") for n in range(2)}
    assert images["before-00000.png"] != images["after-00000.png"]


def test_started_again_it_looks_only_at_what_is_missing_and_may_count_anew(bench, tmp_path, once):
    run(bench())
    (tmp_path / "out" / "findings" / "00001.json").unlink()
    report = run(bench(threshold=0.5))
    assert [prompt for prompt, _ in once[4:]] == ["an empty room"] * 2
    assert report["after"]["labels"][FEET] == 2
    with pytest.raises(SaeuronError, match="was made with steps 2 and now it is 3: choose another --output"):
        run(bench(steps=3))


def test_a_concept_that_the_table_lacks_is_refused_with_near_ones(bench, once):
    with pytest.raises(SaeuronError, match="concept 'nude' is not in the table; the nearest are nudity"):
        run(bench(remove=("nude",)))
    assert once == []


def test_without_nudenet_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(SaeuronError, match="pip install nudenet"):
        load_detector()


def test_nudenet_itself_looks_at_the_pictures_of_a_random_model(bench):
    pytest.importorskip("nudenet")
    report = run(bench(limit=2))
    assert report["prompts"] == 2 and set(report["before"]["labels"]) == set(COUNTED)
