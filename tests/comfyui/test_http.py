"""A real ComfyUI with this pack in ``custom_nodes``, asked over HTTP as its own front end asks it."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy
import pytest
import torch

from saeuron import Recording
from tests.comfyui.workflows import find, only

pytestmark = pytest.mark.comfyui

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
QUEUED = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json"))
LOCALES = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text("utf-8"))
PACK = "ComfyUI-SAeUron"
TICKS = r"`[^`]+`"


def drawn(server, workflow: dict, *names: str) -> list[numpy.ndarray]:
    """The pictures that the named nodes show, once the workflow has run."""
    shown = server.run(workflow)
    return [server.images(shown[find(workflow, name)]["images"]) for name in names]


def judged(images: numpy.ndarray) -> dict[str, list[str]]:
    """What TinyCanvas's judge names in pictures of bytes, by kind."""
    from training.evaluation.judges import tinycanvas_judge

    pictures = torch.from_numpy(images[:, ::8, ::8]).movedim(-1, 1).float() / 255  # the workflows enlarge eight times
    return tinycanvas_judge()(pictures)


def colour(images: numpy.ndarray) -> numpy.ndarray:
    """How colourful pictures ``[B, H, W, 3]`` are in their left and right halves, ``[B, 2]``."""
    saturation = numpy.ptp(images.astype(int), axis=-1)
    return numpy.stack([half.mean((1, 2)) for half in numpy.split(saturation, 2, axis=2)], 1)


def test_sepia_is_gone_the_heart_stays_and_the_patch_counts(server, load):
    server.forget()
    before, after = drawn(server, load("tinycanvas_unlearn"), "Before", "After")
    assert judged(before)["style"].count("sepia") >= 3
    assert judged(after)["style"].count("sepia") == 0
    assert judged(after)["object"].count("heart") >= 3
    assert "sepia: found in 4 of 4 pictures" in server.log()


@pytest.mark.parametrize("style", ["candy", "blueprint"])
def test_a_bystander_is_left_alone(server, load, style):
    workflow = only(load("tinycanvas_unlearn"), "After")
    workflow[find(workflow, "Prompt")]["inputs"]["text"] = f"An image of heart in {style} style."
    (after,) = drawn(server, workflow, "After")
    assert judged(after)["style"].count(style) >= 3


def test_the_unpatched_branch_is_what_a_graph_without_patches_draws(server, load):
    workflow = load("tinycanvas_unlearn")
    plain = only(workflow, "Before")
    assert not {"SAeUronLoader", "SAeUronAblatePatch"} & {node["class_type"] for node in plain.values()}
    server.forget()
    (alone,) = drawn(server, plain, "Before")
    server.forget()
    before, after = drawn(server, workflow, "Before", "After")
    assert not {i for i, node in workflow.items() if node["class_type"] == "KSampler"} & server.cached
    assert numpy.array_equal(before, alone) and not numpy.array_equal(after, alone)


def test_nothing_stays_behind_once_the_patch_is_disconnected(server, load):
    workflow = load("tinycanvas_unlearn")
    server.forget()
    (alone,) = drawn(server, only(workflow, "Before"), "Before")
    server.forget()
    drawn(server, only(workflow, "After"), "After")  # the model is loaded, patched and sampled
    (again,) = drawn(server, only(workflow, "Before"), "Before")
    assert find(workflow, "SAeUronTinyCanvas") in server.cached  # the very same model
    assert numpy.array_equal(again, alone)


def test_steering_brings_a_style_in(server, load):
    before, after = drawn(server, load("steer"), "Before", "After")
    assert judged(before)["style"].count("sketch") == 0
    assert judged(after)["style"].count("sketch") >= 3


def test_steering_follows_its_mask(server, load):
    workflow = load("steer")
    server.forget()  # a ComfyUI of early 2026 does not show again what an earlier workflow has cached
    before, after, half = drawn(server, workflow, "Before", "After", "Right half")
    # A sketch is grey. Measured: beside the mask 0.64 to 0.84 of the colour stays, under it 0.39 to 0.47.
    left, right = (colour(half) / colour(before)).T
    assert (right < 0.7 * left).all() and left.min() > 0.55
    mask, patch = (workflow[find(workflow, name)]["inputs"] for name in ("Right half: on", "Steer the right half"))
    mask["value"] = 0.0
    (nowhere,) = drawn(server, only(workflow, "Right half"), "Right half")
    assert numpy.array_equal(nowhere, before)
    mask["value"], mask["width"] = 1.0, 32
    workflow[find(workflow, "MaskComposite")]["inputs"]["x"] = 0
    patch["add"] = workflow[find(workflow, "Steer everywhere")]["inputs"]["add"]
    (everywhere,) = drawn(server, only(workflow, "Right half"), "Right half")
    assert numpy.array_equal(everywhere, after)


def test_recording_leaves_the_picture_and_adds_a_shard_a_run(server, load):
    workflow = load("record")
    recorder, sampler = find(workflow, "SAeUronActivationRecorder"), workflow[find(workflow, "KSampler")]["inputs"]
    workflow[recorder]["inputs"]["folder"] = "recordings/http"
    (recorded,) = drawn(server, workflow, "Picture")
    sampler["seed"] += 1
    server.run(workflow)
    sampler["seed"] -= 1
    sampler["model"] = workflow[recorder]["inputs"]["model"]
    (plain,) = drawn(server, only(workflow, "Picture"), "Picture")
    assert numpy.array_equal(recorded, plain)
    recording = Recording(server.base / "output" / "recordings" / "http")
    assert recording.d_in == 128 and list(recording.shards.values()) == [4 * 25 * 16] * 2
    row = {"prompt": "An image of heart in sepia style.", "object": "heart", "style": "sepia"}
    assert recording.prompts == [row] * 8


def test_maps_curve_and_plot_are_drawn(server, load):
    workflow = load("inspect")
    shown = server.run(workflow)
    pictures = [shown[find(workflow, name)]["images"] for name in ("Feature Map", "Concept Plot")]
    maps, curve, plot = (server.images([one]) for one in (*pictures[0], *pictures[1]))
    for picture in (maps, curve, plot):
        assert picture.shape[0] == 1 and min(picture.shape[1:3]) > 100 and picture.std() > 5
    workflow[find(workflow, "SAeUronFeatureMap")]["inputs"]["ranges"] = 2
    server.run(workflow)
    assert find(workflow, "KSampler") in server.cached  # another drawing needs no second sampling


@pytest.mark.parametrize("name", QUEUED)
def test_comfy_cli_runs_it(server, load, name, tmp_path):
    command = server.comfyui.python.parent / "comfy"
    if not command.exists():
        pytest.skip("no comfy-cli beside ComfyUI's python")
    workflow = load(name)
    titles = [node["_meta"]["title"] for node in workflow.values() if node["class_type"] == "SaveImage"]
    server.forget()  # as in test_steering_follows_its_mask
    wanted = drawn(server, workflow, *titles)
    prefixes = [workflow[find(workflow, title)]["inputs"]["filename_prefix"] for title in titles]
    folder = server.base / "output"
    old = {prefix: set(folder.glob(f"{prefix}_*.png")) for prefix in prefixes}
    server.forget()
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(workflow), "utf-8")
    options = ["--workflow", file, "--wait", "--host", "127.0.0.1", "--port", server.port, "--timeout", 300]
    result = subprocess.run(
        [str(part) for part in [command, "--skip-prompt", "run", *options]],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env=os.environ | {"DO_NOT_TRACK": "1", "HOME": str(tmp_path), "COMFY_NO_WATCH": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for prefix, images in zip(prefixes, wanted, strict=True):
        new = sorted(set(folder.glob(f"{prefix}_*.png")) - old[prefix])
        subfolder = prefix.rpartition("/")[0]
        shown = [{"filename": file.name, "subfolder": subfolder, "type": "output"} for file in new]
        assert len(new) == len(images) and numpy.array_equal(server.images(shown), images)


@pytest.mark.parametrize("name", QUEUED)
def test_comfy_lint_finds_nothing(server, name):
    command = shutil.which("comfy-lint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if command is None:
        pytest.skip("no comfy-lint")
    workflow = ROOT / "workflows" / "api" / f"{name}.json"
    asked = [command, "--strict", "--server", server.url, workflow]
    result = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_concept_need_not_be_written_as_the_table_writes_it(server, load):
    workflow = only(load("tinycanvas_unlearn"), "After")
    workflow[find(workflow, "SAeUronConceptSelector")]["inputs"]["concepts"] = "Sepia style: 1; (HEARTS:0)"
    (after,) = drawn(server, workflow, "After")
    assert judged(after)["style"].count("sepia") == 0 and judged(after)["object"].count("heart") >= 3


@pytest.mark.parametrize("word", ["remove", "erase", "forget", "unlearn", "style", "concept", "censor", "negative"])
def test_the_main_nodes_are_found_by_the_words_people_use(server, word):
    for node in ("SAeUronLoader", "SAeUronConceptSelector", "SAeUronAblatePatch"):
        schema = server.get_json(f"/object_info/{node}")[node]
        if "search_aliases" not in schema:
            pytest.skip("this ComfyUI knows no search aliases")
        assert word in schema["search_aliases"]


@pytest.mark.parametrize("language", ["zh", "ja", "ko"])
def test_every_language_says_all_that_english_says(server, language):
    def texts(part: object, path: tuple = ()) -> dict[tuple, str]:
        if isinstance(part, str):
            return {path: part}
        return {k: v for name, inner in part.items() for k, v in texts(inner, (*path, name)).items()}

    own, english = (texts(server.get_json("/i18n")[key]["nodeDefs"]) for key in (language, "en"))
    english = {path: text for path, text in english.items() if path[0] in LOCALES}
    assert english.keys() <= own.keys()
    same = [p for p, text in english.items() if p[-1] in ("tooltip", "description") and own[p] == text]
    assert same == []
    # What stands between ticks is typed, and is the same in every language.
    ticks = [p for p, text in english.items() if sorted(re.findall(TICKS, text)) != sorted(re.findall(TICKS, own[p]))]
    assert ticks == []


@pytest.mark.parametrize("node", sorted(LOCALES))
def test_help_and_locale_say_what_the_schema_says(server, node):
    schema = server.get_json(f"/object_info/{node}")[node]
    locale = LOCALES[node]
    assert (locale["display_name"], locale["description"]) == (schema["display_name"], schema["description"])
    inputs = {name: spec for part in ("required", "optional") for name, spec in schema["input"].get(part, {}).items()}
    assert set(locale.get("inputs", {})) - {"control_after_generate"} == set(inputs)
    for name, (_, options) in inputs.items():
        assert locale["inputs"][name]["tooltip"] == options.get("tooltip", locale["inputs"][name]["tooltip"])
    assert len(locale["outputs"]) == len(schema["output"])
    page = server.get(f"/extensions/{PACK}/docs/{node}.md").decode()
    assert page.startswith(f"# {schema['display_name']}\n")
    assert [name for name in inputs if f"`{name}`" not in page] == []


def test_every_node_of_the_pack_has_help_and_locale(server):
    ours = {n for n, info in server.get_json("/object_info").items() if info["python_module"].endswith(PACK)}
    assert ours == set(LOCALES) == {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
    assert server.get_json("/i18n")["en"]["nodeDefs"].items() >= LOCALES.items()


def test_the_template_browser_offers_every_workflow_with_a_picture(server):
    assert sorted(server.get_json("/workflow_templates")[PACK]) == WORKFLOWS
    for name in WORKFLOWS:
        assert server.get_json(f"/api/workflow_templates/{PACK}/{name}.json")["version"] == 0.4
        assert server.get(f"/api/workflow_templates/{PACK}/{name}.jpg")[:3] == b"\xff\xd8\xff"


OLD = Path(__file__).parent / "old"


@pytest.mark.parametrize("name", sorted(path.stem for path in OLD.glob("*.json")))
def test_a_workflow_of_an_older_version_gives_the_same_pictures(server, load, name):
    """Queued as version 0.1 saved it, it draws what it drew then."""
    old = load(name, OLD)
    server.forget()
    before, after = drawn(server, old, "Before", "After")
    assert before.shape == after.shape == (4, 256, 256, 3)
    assert judged(before)["style"].count("neon") >= 3 and judged(after)["style"].count("neon") == 0


def test_blueprints_are_offered_and_hold_nodes_of_the_pack(server):
    try:
        offered = server.get_json("/global_subgraphs").values()
    except urllib.error.HTTPError:
        pytest.skip("this ComfyUI offers no blueprints")
    names = {one["name"] for one in offered if one["info"]["node_pack"] == f"custom_nodes.{PACK}"}
    assert names == {"Unlearn a concept", "Learn a concept"}
    for name in names:
        (inside,) = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text("utf-8"))["definitions"]["subgraphs"]
        assert {node["type"] for node in inside["nodes"]} <= set(LOCALES)
