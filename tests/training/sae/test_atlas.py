"""``atlas``: drawn, interrupted and resumed, or drawn in halves and merged, it is the same."""

import json

import pytest
import torch

import training.sae.atlas
from saeuron import SaeuronError, save_sae
from saeuron.atlas import Atlas
from training.diffusion.sampling import generate
from training.sae.atlas import shape_of
from training.sae.commands import BuildAtlas


@pytest.fixture
def build(tmp_path, make_sae):
    """Runs the command: five pictures by three steps, in batches of two, saved after each; the folder."""
    save_sae(make_sae(), tmp_path / "sae")

    def run(name, **options):
        given = {"sae": tmp_path / "sae", "output": tmp_path / name, "prompts": "tinycanvas:anchor", "images": 5}
        BuildAtlas(**(given | {"steps": 3, "batch": 2} | options)).run()
        return tmp_path / name

    return run


def files(folder):
    """All that an atlas is, without the options it was made with."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".config.json"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_it_counts_every_token_of_the_conditional_half(build, capsys):
    atlas = Atlas.load(build("atlas", json=True))
    told = json.loads(capsys.readouterr().out)
    assert told["pictures"] == atlas.pictures == 5 and told["latents"] == 256
    assert atlas.grid == (8, 8) and atlas.counts.tokens.sum() == 5 * 3 * 64
    assert atlas.about["origin"]["hookpoint"] == "unet.up_blocks.1.attentions.1"
    assert atlas.picture(4).size == (32, 32)


def test_interrupted_and_resumed_it_is_the_same(build, monkeypatch):
    whole = files(build("whole"))
    left = iter(range(1))

    def interrupted(*given):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return generate(*given)

    monkeypatch.setattr(training.sae.atlas, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(training.sae.atlas, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build("killed")
    monkeypatch.setattr(training.sae.atlas, "generate", generate)
    assert files(build("killed")) == whole


def test_halves_that_are_merged_are_the_whole(build):
    whole = files(build("whole"))
    halves = build("one", part=(0, 2)), build("other", part=(2, 5))
    assert files(build("merged", merge=halves)) == whole
    with pytest.raises(SaeuronError, match="holds an atlas already"):
        build("merged", merge=halves)


def test_finished_it_draws_nothing_again(build, monkeypatch):
    build("atlas")
    monkeypatch.setattr(training.sae.atlas, "generate", None)
    build("atlas")


@pytest.mark.parametrize("change", [{"steps": 4}, {"seed": 9}, {"part": (3, 9)}])
def test_what_was_made_otherwise_is_refused(build, change):
    build("atlas")
    with pytest.raises(SaeuronError):
        build("atlas", **change)


def test_a_dry_run_writes_nothing(build, capsys):
    assert not build("atlas", dry_run=True).exists()
    assert "5 pictures" in capsys.readouterr().out


def test_maps_have_the_proportions_of_their_picture():
    assert shape_of(64, 1.0) == (8, 8) and shape_of(96, 2 / 3) == (8, 12) and shape_of(96, 1.5) == (12, 8)


def test_a_wide_picture_keeps_its_proportions(build):
    atlas = Atlas.load(build("atlas", height=32, width=48, images=1))
    assert atlas.grid == (8, 12) and atlas.picture(0).size == (48, 32)
    heat = atlas.strongest.heat.view(256, 12, 8, 12)
    assert torch.count_nonzero(heat) > 0
