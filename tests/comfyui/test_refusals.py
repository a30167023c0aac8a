"""What users get wrong is told in one sentence, on the node that it is about, before anything is sampled."""

import json
import re
import urllib.error

import pytest

from saeuron import ConceptStatistics, Hookpoint, SparseAutoencoder, save_sae
from tests.comfyui.workflows import find, only

pytestmark = pytest.mark.comfyui

BLOCK = "unet.up_blocks.1.attentions.1"
UNLEARN = "tinycanvas_unlearn"
LAST = {UNLEARN: "After", "steer": "Right half", "record": "Picture", "inspect": "Concept Plot"}
"""Of each workflow one node that needs those that are given bad input; ComfyUI runs what does not need them."""


@pytest.fixture(scope="module")
def bad_files(server):
    """An SAE file that is none, an SAE of another width, and a table of another SAE, in ``models/saes``."""
    folder = server.base / "models" / "saes"
    (folder / "corrupt.safetensors").write_bytes(b"this is not a safetensors file" * 100)
    wide = SparseAutoencoder(64, 1024, 4, hookpoint=Hookpoint(BLOCK)).requires_grad_(False)
    save_sae(wide, folder / "wide")
    other = ConceptStatistics({"neon": "style", "candy": "style"}, [981, 1], 512, "0" * 16)
    other.save(folder / "other_table.safetensors")


@pytest.mark.parametrize(
    ("name", "node", "changes", "says"),
    [
        (UNLEARN, "SAeUronConceptSelector", {"concepts": "neom style, star"}, "'neom style' is not in .* neon"),
        (UNLEARN, "SAeUronConceptSelector", {"concepts": "star: many"}, "'star: many' is not understood"),
        (UNLEARN, "SAeUronConceptSelector", {"concepts": " "}, "`concepts` is empty: name some of"),
        (UNLEARN, "SAeUronConceptSelector", {"table": "other_table.safetensors"}, "made with the SAE 0000000000000000"),
        (UNLEARN, "SAeUronLoader", {"sae_name": "gone.safetensors"}, "'gone.safetensors' is not in models/saes"),
        (UNLEARN, "SAeUronLoader", {"sae_name": "corrupt.safetensors"}, "corrupt.safetensors is not a readable"),
        ("steer", "SAeUronSteerPatch", {"latents": "a lot"}, "numbers separated by commas"),
        ("record", "SAeUronActivationRecorder", {"folder": "../elsewhere"}, "inside ComfyUI's output folder"),
        ("record", "SAeUronActivationRecorder", {"labels": "heart"}, "write `object=cat, style=Van Gogh`"),
        ("inspect", "SAeUronConceptPlot", {"concept": "neom"}, "the nearest are neon"),
    ],
)
def test_what_the_user_wrote_is_checked_when_the_workflow_is_queued(server, load, bad_files, name, node, changes, says):
    """The sentence stands on the node that it is about, once, and nothing has run."""
    workflow = only(load(name), LAST[name])
    workflow[find(workflow, node)]["inputs"] |= changes
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/prompt", {"prompt": workflow})
    errors = json.loads(refused.value.read())["node_errors"]
    assert list(errors) == [find(workflow, node)]
    (error,) = errors[find(workflow, node)]["errors"]
    field, _, sentence = error["details"].partition(" - ")
    assert field in workflow[find(workflow, node)]["inputs"]
    assert re.search(says, sentence) and len(sentence) < 200 and str(server.base) not in sentence


@pytest.mark.parametrize(
    ("name", "change", "where", "says"),
    [
        ("tinycanvas_unlearn", ("SAeUronConceptSelector", "concepts", "neom"), "SAeUronConceptSelector", "neon"),
        ("tinycanvas_unlearn", ("SAeUronConceptSelector", "concepts", ""), "SAeUronConceptSelector", "`concepts`"),
        ("tinycanvas_unlearn", ("SAeUronLoader", "sae_name", "gone.safetensors"), "SAeUronLoader", "gone.safetensors"),
        (
            "tinycanvas_unlearn",
            ("SAeUronLoader", "sae_name", "corrupt.safetensors"),
            "SAeUronLoader",
            "corrupt.safetensors",
        ),
        (
            "tinycanvas_unlearn",
            ("SAeUronLoader", "hookpoint", "unet.up_blocks.1.attentions.7"),
            "SAeUronAblatePatch",
            f"the nearest are {BLOCK}",
        ),
        (
            "tinycanvas_unlearn",
            ("SAeUronConceptSelector", "table", "other_table.safetensors"),
            "SAeUronConceptSelector",
            "made with the SAE 0000000000000000",
        ),
        ("steer", ("SAeUronLoader", "sae_name", "wide/sae.safetensors"), "SAeUronSteerPatch", "width 64 .* gives 128"),
        ("steer", ("SAeUronSteerPatch", "latents", "a lot"), "SAeUronSteerPatch", "numbers separated by commas"),
        # The sampler is the first to know the picture's size, and it has not begun.
        ("steer", ("All of it: off", "width", 64), "KSampler", "the mask is 64 × 32"),
        ("record", ("SAeUronActivationRecorder", "folder", "../elsewhere"), "SAeUronActivationRecorder", "`folder`"),
        ("inspect", ("SAeUronConceptPlot", "concept", "neom"), "SAeUronConceptPlot", "neon"),
    ],
)
def test_bad_input_is_refused_before_sampling(server, load, bad_files, name, change, where, says):
    workflow = only(load(name), LAST[name])
    node, widget, value = change
    workflow[find(workflow, node)]["inputs"][widget] = value
    with pytest.raises(server.Refused, match=says) as refused:
        server.run(workflow)
    assert refused.value.node == find(workflow, where)
    sentence = refused.value.message
    assert len(sentence.splitlines()) == 1 and len(sentence) < 300 and str(server.base) not in sentence
    assert not {i for i, n in workflow.items() if n["class_type"] in ("KSampler", "VAEDecode")} & refused.value.ran


def test_the_server_tells_the_concepts_of_an_sae(server, bad_files):
    concepts = server.get_json("/saeuron/concepts", sae="tinycanvas.safetensors")["concepts"]
    assert concepts["neon"] == "style" and concepts["heart"] == "object"
    assert server.get_json("/saeuron/concepts", sae="wide/sae.safetensors")["concepts"] == {}
    for name, status in [("gone.safetensors", 404), ("corrupt.safetensors", 400)]:
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.get("/saeuron/concepts", sae=name)
        assert refused.value.code == status and name in json.loads(refused.value.read())["error"]
