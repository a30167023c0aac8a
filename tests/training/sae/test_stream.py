"""An SAE trained while the model draws: no recording, and hardly another SAE."""

import json

import pytest

import training.sae.build
import training.sae.record
import training.sae.sources
from saeuron import SaeuronError, load_sae
from saeuron.recording import Tokens
from training.sae.commands import Record, Train
from training.sae.record import record
from training.sae.sources import Streamed
from training.sae.train import train

HOOKPOINT = "unet.up_blocks.1.attentions.1"


@pytest.fixture
def options(tmp_path):
    """Options of `record`: twelve pictures in six shards, two steps each, all tokens of a map."""
    named = {"prompts": "tinycanvas:training", "images": 12, "steps": 2, "batch": 2, "tokens_per_map": 64}
    return named | {"images_per_shard": 2, "hookpoints": (HOOKPOINT,), "output": tmp_path / "recording"}


@pytest.fixture
def recipe(options, tmp_path, calls):
    def make(**changes):
        (tmp_path / "stream.json").write_text(json.dumps(options, default=str), "utf-8")
        named = {"stream": tmp_path / "stream.json", "output": tmp_path / "sae", "expansion": 2, "k": 8, "epochs": 2}
        return Train(**(named | {"batch": 64, "lr": 3e-3, "checkpoint_every": 5, "log_every": 100} | changes))

    return make


def test_it_sees_what_a_recording_would_hold_and_keeps_the_same_part_apart(options, calls, pipeline):
    folder = record(Record(**options))[0]
    recorded, streamed = training.sae.sources.Recorded(folder), Streamed(Record(**options), pipeline)
    assert (streamed.rows, streamed.digest, streamed.d_in) == (recorded.rows, recorded.digest, recorded.d_in)
    assert streamed.prompts == recorded.prompts and streamed.settings == recorded.settings

    def sorted_rows(tokens):
        order = (tokens.prompt * 10**7 + tokens.timestep * 10**3 + tokens.position).argsort()
        return tokens.pick(order)

    def everything(source):
        return Tokens.cat([tokens for _, tokens in source.batches(64, 0, 0, source.rows // 64, False)])

    for of in (everything, lambda source: source.held_out()):
        one, other = sorted_rows(of(recorded)), sorted_rows(of(streamed))
        assert all((getattr(one, name) == getattr(other, name)).all() for name in ("activations", "prompt", "position"))


def test_nothing_but_the_sae_is_written_and_nothing_finished_is_drawn_again(recipe, calls, tmp_path):
    sae = train(recipe())
    # Five parts of two pictures, two steps and 64 tokens: 20 batches of 64, passed over twice.
    assert sae.steps == 40 and sae.hookpoint.name == HOOKPOINT
    assert {path.name for path in tmp_path.iterdir()} == {"sae", "stream.json"}
    assert calls[0] == 6 * 2, "every picture is drawn once, two at a time in two steps"
    assert train(recipe()).fingerprint == sae.fingerprint and calls[0] == 6 * 2


def test_interrupted_it_goes_on_to_the_same_sae_and_draws_its_window_again(recipe, calls, tmp_path, interrupt_step):
    expected = train(recipe()).fingerprint
    for done in (3, 12, 37):  # the second window, of one part, begins with step 32
        output = tmp_path / str(done)
        interrupt_step(done)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(output=output))
        calls[0] = 0
        assert train(recipe(output=output)).fingerprint == expected
        # The first part tells how tokens are normalised; then what is left, and the part held out.
        assert calls[0] == {3: 12, 12: 12, 37: 6}[done]


def test_it_explains_as_much_as_from_a_recording(recipe, options, calls, tmp_path):
    streamed = train(recipe(epochs=6))
    recorded = train(recipe(epochs=6, stream=None, recording=record(Record(**options))[0], output=tmp_path / "other"))
    assert recorded.steps == streamed.steps
    # Windows of eight pictures differ more than mixed recordings do; over hundreds of pictures it is a percent.
    assert streamed.metrics["fvu"] < 1.1 * recorded.metrics["fvu"] < 0.9


def test_labels_supervise_it_too(recipe):
    sae = train(recipe(labels=("object", "style"), expansion=4))
    assert "diamond" in sae.metrics["concepts"] and "sunset" in sae.metrics["concepts"]


def test_other_options_of_the_pictures_are_refused(recipe, options):
    train(recipe())
    options["steps"] = 3
    with pytest.raises(SaeuronError, match="was made with recording"):
        train(recipe())
    assert load_sae(recipe().output).config["steps"] == 40


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"images": 2}, "--images 2 come to one shard of 2"),
        ({"hookpoints": (HOOKPOINT, "unet.up_blocks.1.attentions.0")}, "give one of --hookpoints"),
        ({"hookpoints": ("unet.up_blocks.1.attention.1",)}, f"the nearest are {HOOKPOINT}"),
        ({"tokens_per_map": 0}, "have to be at least 1"),
        ({"image": 3}, "'image' is no option of this command; the nearest are images"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(recipe, options, calls, changes, complaint):
    options |= changes
    with pytest.raises(SaeuronError) as refused:
        train(recipe())
    assert complaint in str(refused.value) and calls[0] == 0 and not recipe().output.exists()


def test_tokens_come_from_one_place(recipe, tmp_path):
    for wrong in ({"recording": tmp_path}, {"stream": None}):
        with pytest.raises(SaeuronError, match="give --recording, or with --stream a file"):
            train(recipe(**wrong))


def test_a_dry_run_counts_the_pictures_and_draws_next_to_none(recipe, calls, capsys):
    recipe(dry_run=True).run()
    told = capsys.readouterr().out
    assert "12 pictures" in told and "40 training steps" in told and calls[0] < 6
    assert not recipe().output.exists()
