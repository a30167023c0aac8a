"""Learn Concept and Save SAE in a real ComfyUI: an SAE that knows no concept is taught one."""

import json
import re
import time
import urllib.error

import numpy
import pytest
from safetensors.torch import load_file

from tests.comfyui.test_http import drawn, judged
from tests.comfyui.workflows import find, only

pytestmark = pytest.mark.comfyui


def lessons(server) -> list:
    return sorted((server.base / "models" / "saes" / "learnt").glob("*.lesson"))


def finished(server) -> int:
    """How many prompts the one lesson holds."""
    return int(load_file(lessons(server)[0])["done"].sum()) if lessons(server) else 0


def drawn_for_learning(server) -> list[tuple[int, int, int]]:
    """Of every run of Learn Concept: prompts to draw, of how many, and the model calls that take."""
    told = re.findall(r"SAeUron: .*: (\d+) of (\d+) to draw, (\d+) model calls", server.log())
    return [tuple(map(int, numbers)) for numbers in told]


@pytest.fixture(scope="module")
def learnt(server):
    """The workflow `learn`, interrupted and queued again; its lesson is then whole.

    How many prompts were kept, and what both runs said that they would draw. Tests before may have run it: their lesson
    is thrown away.
    """
    from tests.comfyui.conftest import ROOT

    for lesson in lessons(server):
        lesson.unlink()
    server.forget()
    told = len(drawn_for_learning(server))
    workflow = json.loads((ROOT / "workflows" / "api" / "learn.json").read_text("utf-8"))
    number = server.queue(only(workflow, "After"))
    deadline = time.monotonic() + 300
    while finished(server) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    server.post("/interrupt", {})
    assert "execution_interrupted" in [kind for kind, _ in server.wait(number)["status"]["messages"]]
    kept = finished(server)
    server.run(only(workflow, "After"))
    return kept, drawn_for_learning(server)[told:]


def test_an_interrupt_loses_nothing_that_was_finished(server, learnt):
    kept, (first, second) = learnt
    assert first == (24, 24, 600)
    assert 3 <= kept < 24 and second == (24 - kept, 24, 25 * (24 - kept))
    assert finished(server) == 24


def test_sepia_is_learnt_and_gone_and_the_heart_stays(server, learnt, load):
    before, after = drawn(server, load("learn"), "Before", "After")
    assert judged(before)["style"].count("sepia") >= 3
    assert judged(after)["style"].count("sepia") == 0
    assert judged(after)["object"].count("heart") >= 3


@pytest.mark.parametrize("style", ["candy", "blueprint"])
def test_a_bystanders_picture_stays(server, learnt, load, style):
    workflow = load("learn")
    workflow[find(workflow, "Prompt")]["inputs"]["text"] = f"An image of heart in {style} style."
    before, after = drawn(server, workflow, "Before", "After")
    assert judged(before)["style"].count(style) >= 3
    assert judged(after) == judged(before)
    # A detector of a dozen prompts errs on a map here and there. One level in 255 is not seen; measured: 0.25.
    assert numpy.abs(before.astype(int) - after).mean() < 1


def test_what_is_learnt_is_never_drawn_again(server, learnt, load):
    (first,) = drawn(server, only(load("learn"), "After"), "After")
    server.forget()
    workflow = only(load("learn"), "After")
    (second,) = drawn(server, workflow, "After")
    assert find(workflow, "SAeUronLearnConcept") not in server.cached
    assert drawn_for_learning(server)[-1] == (0, 24, 0)
    assert numpy.array_equal(first, second)


def test_a_lesson_is_not_offered_as_an_sae(server, learnt):
    options = server.get_json("/object_info/SAeUronLoader")["SAeUronLoader"]["input"]["required"]["sae_name"]
    assert lessons(server) and "learnt" not in str(options)


def test_what_is_saved_is_what_was_learnt(server, learnt, load):
    workflow = load("learn")
    (wanted,) = drawn(server, only(workflow, "After"), "After")
    teacher, selector = find(workflow, "SAeUronLearnConcept"), find(workflow, "SAeUronConceptSelector")
    inputs = {"sae": [teacher, 0], "filename": "mine/sepia", "licence": "CC0-1.0", "card": "Sepia.", "overwrite": False}
    saving = workflow | {"save": {"class_type": "SAeUronSaveSae", "inputs": inputs, "_meta": {"title": "Save"}}}
    (text,) = server.run(only(saving, "Save"))["save"]["text"]
    assert text.startswith("mine/sepia.safetensors") and text.endswith("concepts: sepia")
    assert server.get_json("/saeuron/concepts", sae="mine/sepia.safetensors")["concepts"] == {"sepia": "style"}

    loader = find(workflow, "SAeUronLoader")
    workflow[loader]["inputs"] |= {"sae_name": "mine/sepia.safetensors", "concepts": "from file"}
    for node in (selector, find(workflow, "SAeUronAblatePatch")):
        workflow[node]["inputs"]["sae"] = [loader, 0]
    (loaded,) = drawn(server, only(workflow, "After"), "After")
    # The same numbers, which lie elsewhere in memory: sums may be vectorised in other parts, and round otherwise.
    assert numpy.abs(loaded.astype(int) - wanted).max() <= 1

    inputs["card"] = "Sepia, again."
    assert "is there already" in refusal(server, only(saving, "Save"), "save")
    inputs["overwrite"] = True
    server.run(only(saving, "Save"))


def refusal(server, workflow: dict, node: str) -> str:
    """The one sentence that ``node`` refuses to be queued with."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/prompt", {"prompt": workflow})
    errors = json.loads(refused.value.read())["node_errors"]
    assert list(errors) == [node]
    (error,) = errors[node]["errors"]
    sentence = error["details"].partition(" - ")[2]
    assert len(sentence) < 200 and str(server.base) not in sentence
    return sentence


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": " "}, "name a concept"),
        ({"shows": "one heart\na sepia star", "lacks": "one heart\na ring\na moon"}, "both to show sepia and not to"),
        ({"shows": "sepia heart\nsepia star"}, "from 2 prompts that show it: give 3, better 12"),
        ({"images": ["14", 0]}, "connect the checkpoint's to `vae`"),
        ({"other_images": ["14", 0], "vae": ["2", 2]}, "to `images`"),
    ],
)
def test_a_lesson_that_cannot_be_is_refused_when_it_is_queued(server, load, changes, says):
    workflow = load("learn")
    teacher, loader = find(workflow, "SAeUronLearnConcept"), find(workflow, "SAeUronLoader")
    pictures = {"width": 32, "height": 32, "batch_size": 2, "color": 255}
    workflow["14"] = {"class_type": "EmptyImage", "inputs": pictures, "_meta": {"title": "Pictures"}}
    workflow[teacher]["inputs"] |= changes
    workflow["judge"] = {"class_type": "SAeUronSaveSae", "_meta": {"title": "Save"}}
    workflow["judge"]["inputs"] = {"sae": [teacher, 0], "filename": "x", "licence": "", "card": "", "overwrite": False}
    kept = {i: workflow[i] for i in (find(workflow, "SAeUronTinyCanvas"), loader, teacher, "judge", "14")}
    assert says in refusal(server, kept, teacher)


@pytest.mark.parametrize("name", ["", "../elsewhere", "/tmp/x", "sae", "a_table", "mine/..\\..\\x"])
def test_nothing_is_written_outside_the_folder_or_under_another_formats_name(server, load, name):
    workflow = only(load("learn"), "SAeUronLoader")
    inputs = {"sae": [find(workflow, "SAeUronLoader"), 0], "filename": name, "licence": "", "card": ""}
    workflow["save"] = {"class_type": "SAeUronSaveSae", "inputs": inputs | {"overwrite": True}}
    assert "`filename` is" in refusal(server, workflow, "save")


def test_an_sae_without_concepts_says_what_to_do(server, load):
    workflow = only(load("tinycanvas_unlearn"), "After")
    workflow[find(workflow, "SAeUronLoader")]["inputs"]["concepts"] = "none"
    assert "teach it one with Learn Concept" in refusal(server, workflow, find(workflow, "SAeUronConceptSelector"))
