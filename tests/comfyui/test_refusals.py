"""What users get wrong is told in one sentence, on the node that it is about, before anything is sampled."""

import ast
import json
import re
import struct
import urllib.error
from pathlib import Path

import pytest

from saeuron import ConceptStatistics, Hookpoint, SparseAutoencoder, save_sae
from tests.comfyui.test_atlas_routes import ASKED, BRUSH
from tests.comfyui.workflows import find, only

pytestmark = pytest.mark.comfyui

NODES = Path(__file__).parents[2] / "nodes"
TINYCANVAS_ATLAS = NODES.parent / "tinycanvas" / "saes" / "tinycanvas.atlas"
BLOCK = "unet.up_blocks.1.attentions.1"
SELECTOR, LOADER, PATCH, PLOT = "Concept Selector", "SAE Loader", "Feature Ablate Patch", "Concept Plot"
LEARN, PROBE, RECORDER, STEER = "Learn Concept", "Feature Probe", "Activation Recorder", "Steer the right half"
UNLEARN = "tinycanvas_unlearn"
LAST = {UNLEARN: "After", "steer": "Right half", "record": "Picture", "inspect": PLOT, "learn": "After"}
"""Of each workflow one node that needs those that are given bad input; ComfyUI runs what does not need them."""
LONG = "x" * 300

# Workflow, what is changed, the node that says it, and what it says.
QUEUED = [
    (
        UNLEARN,
        {SELECTOR: {"concepts": "neom style, star"}},
        SELECTOR,
        "concept 'neom style' is not in the table; the nearest are neon",
    ),
    (
        UNLEARN,
        {SELECTOR: {"concepts": "star: many"}},
        SELECTOR,
        "'star: many' is not understood: write `name`, `name: 0.5` or `name: 4 × -8`",
    ),
    (UNLEARN, {SELECTOR: {"concepts": "star: 1 × " + "9" * 400}}, SELECTOR, "a strength has to be a finite number"),
    (
        UNLEARN,
        {SELECTOR: {"concepts": " "}},
        SELECTOR,
        "`concepts` is empty: name some of circle, plain, neon, candy, sketch, blueprint, sepia, mosaic …",
    ),
    (UNLEARN, {SELECTOR: {"concepts": LONG}}, SELECTOR, "is not in the table"),
    (
        UNLEARN,
        {SELECTOR: {"table": "other_table.safetensors"}},
        SELECTOR,
        "of another SAE than tinycanvas.safetensors: choose a table that was made with this one",
    ),
    (
        UNLEARN,
        {LOADER: {"concepts": "none"}},
        SELECTOR,
        "tinycanvas.safetensors brings no concepts: teach it one with Learn Concept, or choose a `table`",
    ),
    (
        UNLEARN,
        {LOADER: {"sae_name": "gone.safetensors"}},
        LOADER,
        "'gone.safetensors' is not in models/saes; the nearest are",
    ),
    (
        UNLEARN,
        {LOADER: {"sae_name": "corrupt.safetensors"}},
        LOADER,
        "corrupt.safetensors is not a readable safetensors file: copy or download it again",
    ),
    (
        UNLEARN,
        {LOADER: {"sae_name": "stranger.safetensors"}},
        LOADER,
        "stranger.safetensors is no SAE or table that this pack reads: see the help page of SAE Loader",
    ),
    (
        UNLEARN,
        {LOADER: {"sae_name": "nameless/sae.safetensors"}},
        LOADER,
        f"sae.safetensors does not say which block it reads: write it into `hookpoint`, such as {BLOCK}",
    ),
    (
        UNLEARN,
        {LOADER: {"hookpoint": "unet.up_blocks.1.attentions.7"}},
        PATCH,
        f"hookpoint 'unet.up_blocks.1.attentions.7' is not in this model; the nearest are {BLOCK}",
    ),
    (
        UNLEARN,
        {LOADER: {"hookpoint": "transformer.transformer_blocks.18"}},
        PATCH,
        "hookpoint 'transformer.transformer_blocks.18' is not in this model; the nearest are unet.",
    ),
    (
        UNLEARN,
        {"Second loader": {"sae_name": "wide/sae.safetensors"}, PATCH: {"sae": "Second loader →0"}},
        PATCH,
        "with tinycanvas.safetensors and the SAE here is sae.safetensors: connect one SAE to both",
    ),
    (
        "steer",
        {LOADER: {"sae_name": "wide/sae.safetensors"}},
        STEER,
        f"of width 64 and {BLOCK} of this model gives 128: it belongs to another model or another block",
    ),
    (
        "steer",
        {STEER: {"latents": "a lot"}},
        STEER,
        "`latents` names 'a lot', which is no label in this SAE's atlas: write 12, 407 or 407 neon: +8; 12: x0.5",
    ),
    ("steer", {STEER: {"latents": ": +8"}}, STEER, "`latents` holds ': +8', which names no latent: write 12, 407"),
    ("steer", {STEER: {"latents": "3: loud"}}, STEER, "`latents` holds '3: loud', and 'loud' is not understood: write"),
    ("steer", {STEER: {"latents": "glow: +1"}}, STEER, "'glow' is the label of the latents 3, 4: give the number"),
    ("steer", {STEER: {"latents": " "}}, STEER, "the SAE's latents are 0 to 1023, and none is given"),
    ("steer", {STEER: {"curve": "often"}}, STEER, "`curve` holds 'often': write points such as 0%: 1, 50%: 0.2"),
    (
        "steer",
        {"Atlas Card": {}, LOADER: {"sae_name": "nameless/sae.safetensors", "hookpoint": BLOCK}},
        "Atlas Card",
        "nameless/sae.safetensors has no atlas yet: build one with `training atlas` or Atlas Recorder",
    ),
    (
        "steer",
        {"Atlas Card": {}, LOADER: {"sae_name": "wide/sae.safetensors"}},
        "Atlas Card",
        "wide.atlas is the atlas of another SAE than wide/sae.safetensors: build one for it",
    ),
    ("steer", {STEER: {"latents": "3, 1024"}}, STEER, "the SAE's latents are 0 to 1023, and 1024 is none of them"),
    (
        "record",
        {RECORDER: {"folder": "../elsewhere"}},
        RECORDER,
        "`folder` is '../elsewhere': name a folder inside ComfyUI's output folder",
    ),
    ("record", {RECORDER: {"labels": "heart"}}, RECORDER, "`labels` is 'heart': write `object=cat, style=Van Gogh`"),
    (
        "record",
        {RECORDER: {"hookpoint": "unet.nowhere"}},
        RECORDER,
        "hookpoint 'unet.nowhere' is not in this model; the nearest are",
    ),
    (
        "record",
        {RECORDER: {"folder": "full"}},
        RECORDER,
        "full holds 1.500 GB: raise `max_gb`, or choose another folder",
    ),
    (
        "record",
        {RECORDER: {"folder": "begun"}},
        RECORDER,
        "begun was recorded with tokens_per_map 4 and this is 16: choose another folder",
    ),
    ("inspect", {PLOT: {"concept": "neom"}}, PLOT, "concept 'neom' is not in the table; the nearest are neon"),
    (
        "inspect",
        {LOADER: {"sae_name": f"{BLOCK}/sae.safetensors"}},
        PLOT,
        "brings no concepts to plot: choose an SAE file with a concept table",
    ),
    (
        "inspect",
        {PROBE: {"concepts": None}, "last": "Picture"},
        PROBE,
        "there is nothing to watch: write `latents`, or connect `concepts`",
    ),
    (
        "inspect",
        {"KSampler": {"model": "TinyCanvas →0"}, "last": "Feature Map"},
        PROBE,
        "the probe sees nothing: connect the MODEL of Feature Probe to the sampler",
    ),
    (
        "learn",
        {"Other patch": {}, LEARN: {"model": "Other patch →0"}},
        LEARN,
        "patch of this pack, and would teach what is left of it: connect the model that goes into the patch",
    ),
    (
        "learn",
        {"Pictures": {}, LEARN: {"images": "Pictures →0"}},
        LEARN,
        "pictures are learnt from through a VAE: connect the checkpoint's to `vae`",
    ),
    (
        "learn",
        {"Pictures": {}, LEARN: {"other_images": "Pictures", "vae": "TinyCanvas →2"}},
        LEARN,
        "`other_images` are the like without the concept: connect pictures that show it to `images`",
    ),
    (
        "save",
        {"Save SAE": {"filename": "../mine"}},
        "Save SAE",
        "`filename` is '../mine': give a name inside models/saes, such as `mine/neon`",
    ),
    (
        "save",
        {"Save SAE": {"filename": "mine/sae"}},
        "Save SAE",
        "`filename` is 'mine/sae', which is read as a part of a folder: choose another name",
    ),
    (
        "save",
        {"Save SAE": {"filename": "corrupt"}},
        "Save SAE",
        "corrupt.safetensors is there already: choose another `filename`, or switch `overwrite` on",
    ),
]

WHILE_RUNNING = [
    # The sampler is the first to know the picture's size, and it has not begun.
    (
        "steer",
        {"All of it: off": {"width": 64}},
        "KSampler",
        "the mask is 64 × 32 and the latent 16 × 16: make a mask of the picture's proportions",
    ),
    (
        "inspect",
        {"Feature Map": {"picture": 4}, "last": "Feature Map"},
        "Feature Map",
        "`picture` is 4 and the batch holds 4, counted from 0",
    ),
    (
        "learn",
        {"Pictures": {}, LEARN: {"images": "Pictures →0", "vae": "TinyCanvas →2"}},
        LEARN,
        "sepia is not learnt from 2 `images`: give 3 different ones, better 12",
    ),
]
EXTRA = {
    "Second loader": ("SAeUronLoader", {"hookpoint": "", "site": "from file", "concepts": "from file"}),
    "Other patch": (
        "SAeUronSteerPatch",
        {
            "model": "TinyCanvas →0",
            "sae": "SAE Loader →0",
            "latents": "3",
            "scale": 0.0,
            "add": 0.0,
            "start_percent": 0.0,
            "end_percent": 1.0,
            "applies_to": "both",
        },
    ),
    "Pictures": ("EmptyImage", {"width": 32, "height": 32, "batch_size": 2, "color": 255}),
    "Atlas Card": ("SAeUronAtlasCard", {"sae": "SAE Loader →0", "latents": "251"}),
    "Save SAE": ("SAeUronSaveSae", {"sae": "SAE Loader →0", "licence": "", "card": "", "overwrite": False}),
}
"""Nodes that are added where a case names them, and their inputs; `node →n` is a link to its output n."""
ENDS = ("Save SAE", "Atlas Card")
"""Those of them that show something, so that ComfyUI runs what they need."""
ONLY_INSIDE = ("has changed since it was loaded", "are not supported yet", "are sampled: give one mask")
"""Sentences that want files exchanged meanwhile, large weights, or several masks: `inside/` has them."""


@pytest.fixture(scope="module")
def bad_files(server):
    """Files that are none, SAEs of another width and without a name, a table of another SAE, and recordings."""
    folder = server.base / "models" / "saes"
    (folder / "corrupt.safetensors").write_bytes(b"this is not a safetensors file" * 100)
    stranger = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (folder / "stranger.safetensors").write_bytes(struct.pack("<Q", len(stranger)) + stranger + bytes(4))
    wide = SparseAutoencoder(64, 1024, 4, hookpoint=Hookpoint(BLOCK)).requires_grad_(False)
    save_sae(wide, folder / "wide")
    plain = SparseAutoencoder(128, 256, 4).requires_grad_(False)
    save_sae(plain, folder / "nameless")
    save_sae(plain, folder / BLOCK)
    atlas = folder / "wide" / "wide.atlas" / "atlas.json"
    atlas.parent.mkdir()
    atlas.write_bytes((TINYCANVAS_ATLAS / "atlas.json").read_bytes())
    glow = {"3": {"text": "glow"}, "4": {"text": "Glow"}}
    (folder / "tinycanvas.atlas").mkdir(exist_ok=True)
    (folder / "tinycanvas.atlas" / "labels.json").write_text(json.dumps({"labels": glow}), "utf-8")
    other = ConceptStatistics({"neon": "style", "candy": "style"}, [981, 1], 512, "0" * 16)
    other.save(folder / "other_table.safetensors")
    for name, more in (("full", {}), ("begun", {"tokens_per_map": 4})):
        recording = server.base / "output" / name
        recording.mkdir(parents=True)
        manifest = {"format": "saeuron-recording", "version": 1, "hookpoint": BLOCK, "site": "output", "d_in": 320}
        manifest |= {"settings": more, "settings_hash": "", "complete": False, "shards": {}}
        (recording / "manifest.json").write_text(json.dumps(manifest))
    with open(server.base / "output" / "full" / "shard-00000.safetensors", "wb") as file:
        file.truncate(1_500_000_000)  # a hole: it takes no room on the disk


@pytest.fixture
def ask(load, bad_files):
    """The workflow of a name, changed, as far as one node needs it; what it then says is that node's business."""

    def build(name: str, changes: dict) -> dict:
        workflow, changes = load(UNLEARN if name == "save" else name), dict(changes)
        last = changes.pop("last", next((one for one in ENDS if one in changes), LAST.get(name)))
        for title in changes.keys() & EXTRA.keys():
            kind, inputs = EXTRA[title]
            workflow[title] = {"class_type": kind, "inputs": dict(inputs), "_meta": {"title": title}}
        for title, new in [*((t, EXTRA[t][1]) for t in changes if t in EXTRA), *changes.items()]:
            inputs = workflow[find(workflow, title)]["inputs"]
            for field, value in new.items():
                node, _, output = value.partition(" →") if isinstance(value, str) else ("", "", "")
                linked = output.isdigit() and find(workflow, node)
                inputs[field] = [linked, int(output)] if linked else value
                if value is None:
                    del inputs[field]
        return only(workflow, last)

    return build


def test_every_sentence_of_the_nodes_is_asked_for():
    asked = [says for *_, says in (*QUEUED, *WHILE_RUNNING, *ASKED, (BRUSH,))]
    for file in sorted(NODES.rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        names = {
            n.targets[0].id: n.value
            for n in tree.body
            if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)
        }
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "SaeuronError"):
                continue
            said = names.get(getattr(call.args[0], "id", ""), call.args[0])
            parts = said.values if isinstance(said, ast.JoinedStr) else [said]
            fixed = [part.value for part in parts if isinstance(part, ast.Constant)]
            if not fixed or any(inside in part for part in fixed for inside in ONLY_INSIDE):
                continue
            pieces = [piece for piece in (part.strip(" ;:") for part in fixed) if len(piece) > 8]
            assert [one for one in asked for piece in pieces if piece in one or one in piece], (file.name, pieces)


@pytest.mark.parametrize(("name", "changes", "where", "says"), QUEUED, ids=lambda value: str(value)[:40])
def test_what_can_be_known_is_told_when_the_workflow_is_queued(server, ask, name, changes, where, says):
    """The sentence stands on the node that it is about, once, and nothing has run."""
    workflow = ask(name, changes)
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/prompt", {"prompt": workflow})
    errors = json.loads(refused.value.read())["node_errors"]
    assert find(workflow, where) in errors, errors
    (error,) = errors[find(workflow, where)]["errors"]
    field, _, sentence = error["details"].partition(" - ")
    assert field in workflow[find(workflow, where)]["inputs"]
    assert says in sentence
    check_sentence(sentence, server)


@pytest.mark.parametrize(("name", "changes", "where", "says"), WHILE_RUNNING, ids=lambda value: str(value)[:40])
def test_the_rest_is_told_before_anything_is_sampled_in_vain(server, ask, name, changes, where, says):
    workflow = ask(name, changes)
    with pytest.raises(server.Refused) as refused:
        server.run(workflow)
    assert refused.value.node == find(workflow, where) and says in refused.value.message
    check_sentence(refused.value.message, server)


def check_sentence(sentence: str, server) -> None:
    """One line that fits a toast, without a path, the name of a class, or a hash."""
    assert len(sentence) < 200 and len(sentence.splitlines()) == 1
    assert str(server.base) not in sentence and "/home" not in sentence and "Error" not in sentence
    assert not re.search(r"(^|\s)/\w|\b(?=\w*[a-f])(?=\w*\d)[0-9a-f]{12,}\b", sentence)


def test_the_server_tells_the_concepts_of_an_sae(server, bad_files):
    concepts = server.get_json("/saeuron/concepts", sae="tinycanvas.safetensors")["concepts"]
    assert concepts["neon"] == "style" and concepts["heart"] == "object"
    assert server.get_json("/saeuron/concepts", sae="wide/sae.safetensors")["concepts"] == {}
    for name, status in [("gone.safetensors", 404), ("corrupt.safetensors", 400)]:
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.get("/saeuron/concepts", sae=name)
        assert refused.value.code == status and name in json.loads(refused.value.read())["error"]


def test_the_server_tells_what_an_sae_is_before_it_is_loaded(server, bad_files):
    text = server.get_json("/saeuron/sae", sae="tinycanvas.safetensors")["text"]
    assert "unet.up_blocks.1.attentions.1 (output), its file" in text and "object: circle, ring" in text
    guessed = server.get_json("/saeuron/sae", sae=f"{BLOCK}/sae.safetensors")["text"]
    assert "guessed from the name unet.up_blocks.1.attentions.1" in guessed and "no concepts" in guessed


@pytest.mark.parametrize(
    ("written", "understood"),
    [
        ("Neon", "neon (style): taken out"),
        ("hearts", "heart (object): taken out"),
        ("neon style", "neon (style): taken out"),
        ("neon; heart", "neon (style): taken out\nheart (object): taken out"),
        ("(neon:0.5)", "neon (style): taken out, 0.5 of its strength"),
        ("neon:0.5", "neon (style): taken out, 0.5 of its strength"),
        ("neon: -1", "neon (style): turned up"),
        ("neon: 4 * -8", "neon (style): taken out, 4 latents, strength -8"),
        ("neon: 0", "neon (style): left as it is"),
        ("neom", "⚠ neom"),
    ],
)
def test_what_is_understood_is_told_while_it_is_written(server, written, understood):
    try:
        text = server.get_json("/saeuron/understood", sae="tinycanvas.safetensors", text=written)["text"]
        assert text == understood
    except urllib.error.HTTPError as refused:
        assert understood.startswith("⚠") and "the nearest are neon" in json.loads(refused.read())["error"]
