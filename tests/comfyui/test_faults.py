"""What goes wrong around a patch in a real ComfyUI leaves nothing behind: afterwards it draws what it always did."""

import copy
import json
import time
from pathlib import Path

import numpy
import pytest

from tests.comfyui.test_http import drawn
from tests.comfyui.workflows import find, only

pytestmark = pytest.mark.comfyui

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone(server):
    """The workflow `tinycanvas_unlearn`, one picture in four steps; and what each branch draws in a fresh server."""
    workflow = json.loads((ROOT / "workflows" / "api" / "tinycanvas_unlearn.json").read_text("utf-8"))
    workflow[find(workflow, "SAeUronTinyCanvas")]["inputs"] |= {"batch_size": 1, "enlarge": 1}
    for node in workflow.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 4
    pictures = {}
    for name in ("Before", "After"):
        server.forget()
        (pictures[name],) = drawn(server, only(workflow, name), name)
    assert not numpy.array_equal(pictures["Before"], pictures["After"])
    return workflow, pictures


@pytest.fixture
def all_is_as_before(server, alone):
    """The server draws both branches anew, with the model that it has, and no bit differs."""
    yield
    workflow, pictures = alone
    for name, wanted in pictures.items():
        (again,) = drawn(server, only(workflow, name), name)
        assert find(only(workflow, name), "KSampler") not in server.cached
        assert numpy.array_equal(again, wanted)


def other_seed(workflow: dict, name: str, seed: int) -> dict:
    """What draws the picture that the node ``name`` saves, from another seed."""
    changed = copy.deepcopy(only(workflow, name))
    changed[find(changed, "KSampler")]["inputs"]["seed"] = seed
    return changed


def test_an_exception_in_another_node(server, alone, all_is_as_before):
    workflow = other_seed(alone[0], "After", 1)
    saver = find(workflow, "After")
    workflow[saver]["inputs"]["filename_prefix"] = "../../outside"
    with pytest.raises(server.Refused) as refused:
        server.run(workflow)
    assert refused.value.node == saver and find(workflow, "KSampler") in refused.value.ran


def test_an_interrupt_in_the_middle_of_a_sampling(server, alone, all_is_as_before):
    workflow = other_seed(alone[0], "After", 2)
    workflow[find(workflow, "KSampler")]["inputs"]["steps"] = 900
    number = server.queue(workflow)
    while not server.get_json("/queue")["queue_running"]:
        time.sleep(0.05)
    time.sleep(1)
    server.post("/interrupt", {})
    last, about = server.wait(number)["status"]["messages"][-1]
    assert last == "execution_interrupted" and about["node_id"] == find(workflow, "KSampler")


def test_the_models_are_unloaded_between_two_samplings(server, alone, all_is_as_before):
    drawn(server, other_seed(alone[0], "After", 3), "After")
    server.forget()


def test_many_prompts_queued_at_once_each_get_their_own_picture(server, alone, all_is_as_before):
    workflow, names = alone[0], ["Before", "After"] * 3
    wanted = [drawn(server, other_seed(workflow, name, 4 + n), name)[0] for n, name in enumerate(names)]
    server.forget()
    numbers = [server.queue(other_seed(workflow, name, 4 + n)) for n, name in enumerate(names)]
    for number, name, picture in zip(numbers, names, wanted, strict=True):
        shown = server.outputs(server.wait(number))
        assert numpy.array_equal(server.images(shown[find(workflow, name)]["images"]), picture)
