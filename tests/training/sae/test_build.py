"""`build` makes an SAE of one's own in one command, and continues each stage where it was."""

import json

import pytest

from saeuron import SaeuronError, build_edits, choose_settings
from saeuron.checkpoints import load_bundle
from training.__main__ import main
from training.sae.build import run
from training.sae.commands import Build

ROWS = [
    {"prompt": f"An image of {shape} in {style} style.", "object": shape, "style": style}
    for shape in ("star", "heart")
    for style in ("neon", "candy")
]
HOOKPOINT = "unet.up_blocks.1.attentions.1"


@pytest.fixture
def recipe(tmp_path, calls):
    """Four labelled pictures by two steps, eight tokens each, and four optimiser steps of sixteen."""

    def make(rows=ROWS, **options):
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
        named = {"prompts": str(prompts), "output": tmp_path / "saes" / "mine.safetensors", "steps": 2, "batch": 2}
        named |= {"tokens_per_map": 8, "stream": False, "expansion": 2, "k": 4, "train_steps": 4, "train_batch": 16}
        return Build(**(named | options))

    return make


def test_one_command_makes_a_bundle_that_removes_what_prompts_name(recipe, tmp_path, capsys, calls):
    (tmp_path / "card.md").write_text("# Mine\n", "utf-8")
    run(recipe(licence="MIT", card=tmp_path / "card.md"))
    said = capsys.readouterr()
    assert "8 pictures" in said.err and "4 training steps" in said.err and "on disk" in said.err
    assert "4 concepts" in said.out
    bundle = load_bundle(recipe().output)
    assert (bundle.licence, bundle.card, bundle.sae.hookpoint.name) == ("MIT", "# Mine\n", HOOKPOINT)
    assert bundle.table.concepts == {"star": "object", "neon": "style", "candy": "style", "heart": "object"}
    settings = choose_settings(bundle.sae, bundle.table, ["neon"], bundle.settings)
    assert build_edits(bundle.sae, bundle.table, settings)
    calls[0] = 0
    run(recipe(licence="MIT", card=tmp_path / "card.md"))
    assert calls[0] == 0, "nothing is drawn twice"


def test_by_default_no_recording_is_written(recipe, calls, interrupt_write):
    run(recipe(stream=True))
    whole = recipe().output.read_bytes()
    assert {path.name for path in recipe().output.with_suffix(".build").iterdir()} >= {"sae", "table.safetensors"}
    assert not recipe().output.with_suffix(".build").joinpath("recording").exists()
    calls[0] = 0
    run(recipe(stream=True))
    assert calls[0] == 0, "nothing is drawn twice"
    interrupt_write(4, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(stream=True, overwrite=True))
    run(recipe(stream=True))
    assert recipe().output.read_bytes() == whole


def test_interrupted_in_any_stage_it_goes_on_to_the_same_bundle(recipe, interrupt_write, tmp_path):
    run(recipe())
    whole = recipe().output.read_bytes()
    for done in (3, 9, 14):
        interrupt_write(done, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            run(recipe(overwrite=True))
        run(recipe())
        assert recipe().output.read_bytes() == whole, f"after {done} writes"


def test_prompts_without_labels_give_an_sae_without_a_table(recipe, capsys):
    run(recipe([{"prompt": row["prompt"]} for row in ROWS]))
    assert "no concepts yet, which `learn` adds" in capsys.readouterr().out
    assert load_bundle(recipe().output).table is None


def test_a_dry_run_tells_the_cost_and_writes_nothing(recipe, capsys):
    run(recipe(dry_run=True, json=True))
    told = json.loads(capsys.readouterr().out)
    assert told["work"] == {"pictures": 8, "denoising steps": 16, "training steps": 4, "tokens": 64}
    # Tokens of 264 bytes at least: 4 pictures × 2 steps × 8.
    assert told["bytes"] > 4 * 2 * 8 * 264 and told["seconds"] > 0
    assert not recipe().output.parent.exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rows": [ROWS[0]]}, "'star' is the only object that the prompts name"),
        ({"score_images": 1}, "--score-images 1 draws no picture of"),
        ({"images": 1}, "--images has to be at least 2"),
        ({"hookpoint": "unet.up_blocks.1.attention.1"}, f"the nearest are {HOOKPOINT}"),
        ({"k": 0}, "--k is 0"),
        ({"max_gb": 1e-9}, "and --max-gb is 1e-09"),
        ({"labels": ("mood",)}, "no prompt says its 'mood'"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(recipe, options, complaint):
    with pytest.raises(SaeuronError) as refused:
        run(recipe(**options))
    assert complaint in str(refused.value) and not recipe().output.parent.exists()


def test_a_file_of_other_make_is_not_written_over(recipe, tmp_path):
    recipe().output.parent.mkdir()
    recipe().output.write_bytes(b"somebody's")
    with pytest.raises(SaeuronError, match="is there already: choose another --output"):
        run(recipe())


def test_other_options_are_refused_by_name(recipe):
    run(recipe([{"prompt": row["prompt"]} for row in ROWS]))
    with pytest.raises(SaeuronError, match="was made with prompts"):
        run(recipe())


def test_it_is_a_command(recipe, capsys):
    line = ["build", "--prompts", recipe().prompts, "--output", str(recipe().output), "--steps", "1", "--dry-run"]
    assert main([*line, "--tokens-per-map", "64", "--train-batch", "32"]) == 0
    assert "nothing was written" in capsys.readouterr().out
