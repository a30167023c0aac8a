"""`learn` teaches an SAE a word, from prompts or pictures; what is finished is kept, and drawn once."""

import numpy as np
import pytest
import torch
from PIL import Image

import training.sae.learn
from saeuron import SaeuronError, Setting, build_edits, choose_settings
from saeuron.checkpoints import Bundle, load_bundle, save_bundle
from saeuron.learning import WITHOUT
from training.__main__ import main
from training.diffusion.sampling import draw_all
from training.sae.commands import Learn
from training.sae.learn import run


@pytest.fixture
def calls(pipeline, monkeypatch):
    """Commands find the loaded TinyCanvas; how often its UNet was run, as the only entry of a list."""
    monkeypatch.setattr(training.sae.learn, "open_model", lambda _options: pipeline)
    count = [0]
    handle = pipeline.unet.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    yield count
    handle.remove()


@pytest.fixture
def recipe(tmp_path, make_sae, calls):
    """Three prompts that show neon and three that do not, by two steps, in batches of two; an SAE without a table."""
    save_bundle(Bundle(make_sae(), card="# Mine\n", licence="MIT"), tmp_path / "own.safetensors")
    for name, style in (("shows", "neon"), ("lacks", "plain")):
        lines = [f"An image of {shape} in {style} style." for shape in ("star", "heart", "circle")]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), "utf-8")

    def make(**options):
        named = {"name": "neon", "kind": "style", "sae": tmp_path / "own.safetensors", "steps": 2, "batch": 2}
        named |= {"shows": str(tmp_path / "shows.txt"), "lacks": str(tmp_path / "lacks.txt")}
        return Learn(**(named | {"output": tmp_path / "out" / "neon.safetensors"} | options))

    return make


@pytest.fixture
def folders(tmp_path):
    """Options for three pink pictures that show it, and three grey ones."""
    for name, colour in (("pink", (255, 0, 200)), ("grey", (90, 90, 90))):
        (tmp_path / name).mkdir()
        for n in range(3):
            pixels = np.zeros((40, 48, 3), np.uint8)
            pixels[5 * n :, 8:] = colour
            Image.fromarray(pixels).save(tmp_path / name / f"{n}.png")
    return {"images": tmp_path / "pink", "other_images": tmp_path / "grey", "shows": None, "lacks": None}


def test_what_is_learnt_is_removed_and_all_else_of_the_bundle_is_kept(recipe, pipeline, calls, capsys):
    run(recipe())
    assert calls[0] == 3 * 2, "three batches of two steps"
    assert "6 of 6 pictures will be drawn" in " ".join(capsys.readouterr().err.split())
    bundle = load_bundle(recipe().output)
    assert bundle.table.concepts == {"neon": "style", WITHOUT + "neon": "style"}
    assert (bundle.card, bundle.licence) == ("# Mine\n", "MIT")
    settings = choose_settings(bundle.sae, bundle.table, ["neon"], bundle.settings)
    rows, sampling = [{"prompt": "An image of moon in neon style."}], training.sae.learn.Sampling(steps=2)
    edits = {bundle.sae.hookpoint: build_edits(bundle.sae, bundle.table, settings)}
    assert not torch.equal(*(draw_all(pipeline, rows, [0], sampling, own) for own in (None, edits)))


def test_interrupted_at_any_write_it_goes_on_to_the_same_files_and_then_draws_nothing(
    recipe, files, interrupt_write, calls, tmp_path
):
    run(recipe())
    whole = files(recipe().output.parent)
    assert whole.keys() == {"neon.safetensors", "neon.lesson.safetensors", "neon.config.json"}
    for done in (2, 4):  # the config and one prompt, in the middle of a batch; the config and three
        run_config = recipe(overwrite=True)
        interrupt_write(done, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            run(run_config)
        calls[0] = 0
        run(recipe())
        assert files(recipe().output.parent) == whole and calls[0] < 3 * 2 + (done == 2)
    calls[0] = 0
    run(recipe())
    assert calls[0] == 0 and files(recipe().output.parent) == whole


def test_pictures_are_noised_and_looked_at_once_a_timestep(recipe, folders, calls):
    run(recipe(**folders))
    assert calls[0] == 6 * 8
    run(recipe(**folders))
    assert calls[0] == 6 * 8
    bundle = load_bundle(recipe().output)
    assert len(bundle.table.timesteps) == 8 and bundle.table.has_contrasts


def test_a_second_word_joins_the_first_and_settings_of_others_stay(recipe, folders, tmp_path):
    run(recipe(**folders))
    first = load_bundle(recipe().output)
    first.settings = {"neon": Setting(strength=-3.0, edit="redirect")}
    save_bundle(first, tmp_path / "first.safetensors")
    second = {"sae": tmp_path / "first.safetensors", "output": tmp_path / "out" / "pink.safetensors", "name": "pink"}
    run(recipe(**folders | second))
    bundle = load_bundle(tmp_path / "out" / "pink.safetensors")
    assert list(bundle.table.concepts) == ["neon", WITHOUT + "neon", "pink", WITHOUT + "pink"]
    assert bundle.table.has_contrasts and bundle.settings == first.settings


def test_a_table_of_means_alone_gives_way_and_this_is_said(recipe, folders, make_sae, make_table, tmp_path, capsys):
    sae = make_sae()
    save_bundle(Bundle(sae, make_table(sae), {"star": Setting()}), tmp_path / "old.safetensors")
    run(recipe(**folders, sae=tmp_path / "old.safetensors"))
    assert "holds means alone, so the bundle knows neon in place" in " ".join(capsys.readouterr().err.split())
    bundle = load_bundle(recipe().output)
    assert list(bundle.table.concepts) == ["neon", WITHOUT + "neon"] and bundle.settings == {}


def test_a_word_that_is_not_told_reliably_is_said_to_be_and_written_all_the_same(recipe, folders, monkeypatch, capsys):
    monkeypatch.setattr(training.sae.learn.Learner, "trust", lambda _self: 0.6)
    run(recipe(**folders))
    said = " ".join(capsys.readouterr().err.split())
    assert "neon is not told reliably, in 60% of pictures" in said and "give more prompts" in said
    assert recipe().output.exists()


def test_another_model_or_lesson_is_refused_by_name(recipe, folders, monkeypatch):
    run(recipe(**folders))
    with pytest.raises(SaeuronError, match="was made with lesson"):
        run(recipe(**folders | {"images": folders["other_images"], "other_images": folders["images"]}))
    monkeypatch.setattr(training.sae.learn, "identity", lambda *_: "tinycanvas@other")
    with pytest.raises(SaeuronError, match="was made with model tinycanvas@"):
        run(recipe(**folders))


def test_a_dry_run_tells_and_writes_nothing(recipe, capsys):
    run(recipe(dry_run=True))
    told = capsys.readouterr().out
    assert "6 pictures" in told and "12 denoising steps" in told and not recipe().output.parent.exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": " "}, "there is nothing to learn"),
        ({"shows": "{}/none.txt"}, "none.txt holds no prompt"),
        ({"shows": "{}/one.txt"}, "neon is not learnt from 1 prompts that show it"),
        ({"lacks": "{}/shows.txt"}, "is said both to show neon and not to"),
        ({"sae": "{}/narrow.safetensors"}, "width 64 and the hookpoint gives 128"),
        ({"output": "{}/own.safetensors"}, "is the SAE that is read"),
        ({"output": "{}/out/neon"}, "has to end in .safetensors"),
        ({"images": "{}/pink"}, "give both folders"),
        ({"images": "{}/pink", "other_images": "{}/grey"}, "give one of the two"),
        (
            {"images": "{}/empty", "other_images": "{}/grey", "shows": None, "lacks": None},
            "holds no different pictures",
        ),
        ({"images": "{}/pink", "other_images": "{}/pink", "shows": None, "lacks": None}, "are one picture"),
    ],
)
def test_what_cannot_be_learnt_is_one_sentence(recipe, folders, make_sae, tmp_path, options, complaint, calls):
    (tmp_path / "none.txt").write_text("\n", "utf-8")
    (tmp_path / "one.txt").write_text("a neon star\n", "utf-8")
    (tmp_path / "empty").mkdir()
    save_bundle(Bundle(make_sae(d_in=64)), tmp_path / "narrow.safetensors")
    placed = {
        name: type(getattr(recipe(), name) or tmp_path)(value.replace("{}", str(tmp_path))) if value else None
        for name, value in options.items()
    }
    with pytest.raises(SaeuronError) as refused:
        run(recipe(**placed))
    assert complaint in str(refused.value) and "\n" not in str(refused.value)
    assert calls[0] == 0 and not (tmp_path / "out").exists()


def test_it_is_a_command(recipe, tmp_path, capsys):
    line = [
        "learn",
        "neon",
        "--sae",
        str(tmp_path / "own.safetensors"),
        "--output",
        str(tmp_path / "out" / "n.safetensors"),
    ]
    assert main([*line, "--steps", "2", "--dry-run"]) == 0
    assert "24 pictures" in capsys.readouterr().out
