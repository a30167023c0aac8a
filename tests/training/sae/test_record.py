import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel

import training.sae.record
from benchmarks.ldm import Size
from benchmarks.random_sd15 import write
from saeuron import Hookpoint, Recording, SaeuronError
from training.diffusion.sampling import generate
from training.sae.record import Record, record

NAME, OTHER = "unet.up_blocks.1.attentions.1", "unet.mid_block.attentions.0"
WRITES = 15  # of the two hookpoints below: 1 config, 2 × (prompts, manifest), 2 × 2 × (shard, manifest), 2 × finish


def recipe(output, **options):
    """Four pictures in two shards, at two hookpoints, by two steps."""
    named = {"hookpoints": (NAME, OTHER), "images": 4, "steps": 2, "tokens_per_map": 3} | options
    return Record(output=output, **({"images_per_shard": 2, "batch": 2} | named))


@pytest.fixture
def model_calls(monkeypatch):
    """How often the UNet was run, as the only entry of a list."""
    count, real = [0], UNet2DConditionModel.forward

    def forward(self, *args, **kwargs):
        count[0] += 1
        return real(self, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)
    return count


def maps_of(pipeline, recording, hookpoint, recipe):
    """{timestep: conditional tokens [B, N, d]}, drawn again from the prompts and seeds the recording names."""
    maps = {}

    def tap(tokens, timestep, conditional):
        maps[int(timestep)] = tokens[conditional].half()
        return tokens

    prompts = [row["prompt"] for row in recording.prompts]
    seeds = [recipe.seed * 1_000_003 + n for n in range(len(prompts))]
    generate(pipeline, prompts, seeds, steps=recipe.steps, guidance=recipe.guidance, taps={hookpoint: tap})
    return maps


@pytest.mark.parametrize("site", ["output", "residual"])
def test_every_row_is_what_the_model_computed_for_that_prompt_timestep_and_position(tmp_path, pipeline, site):
    asked = recipe(tmp_path, site=site, images=3, images_per_shard=3, batch=3, seed=2)
    for folder, name in zip(record(asked), asked.hookpoints, strict=True):
        recording = Recording(folder)
        assert (recording.hookpoint, recording.d_in) == (Hookpoint(name, site), 128)
        maps = maps_of(pipeline, recording, recording.hookpoint, asked)
        tokens = recording.read("shard-00000.safetensors")
        assert set(tokens.timestep.tolist()) == maps.keys()
        rows = zip(tokens.timestep.tolist(), tokens.prompt.tolist(), tokens.position.tolist(), strict=True)
        assert torch.equal(tokens.activations, torch.stack([maps[t][n, place] for t, n, place in rows]))


def test_each_map_gives_its_share_of_tokens_and_no_place_twice(tmp_path):
    for folder in record(recipe(tmp_path)):
        recording = Recording(folder)
        assert recording.complete and len(recording.shards) == 2
        places = []
        for shard in recording.shards:
            tokens = recording.read(shard)
            places += zip(tokens.prompt.tolist(), tokens.timestep.tolist(), tokens.position.tolist(), strict=True)
        assert len(places) == len(set(places)) == 4 * 2 * 3, "images × steps × tokens a map"
        assert len({(prompt, timestep) for prompt, timestep, _ in places}) == 4 * 2


def test_several_hookpoints_cost_one_pass_over_the_model(tmp_path, model_calls):
    record(recipe(tmp_path / "one", hookpoints=(NAME,)))
    alone, model_calls[0] = model_calls[0], 0
    record(recipe(tmp_path / "two"))
    assert model_calls[0] == alone > 0


def test_fewer_prompts_than_images_repeat_evenly(tmp_path):
    (tmp_path / "prompts.txt").write_text("a star\n\na heart\n", "utf-8")
    (folder,) = record(recipe(tmp_path / "out", prompts=str(tmp_path / "prompts.txt"), hookpoints=(NAME,), steps=1))
    assert sorted(row["prompt"] for row in Recording(folder).prompts) == ["a heart", "a heart", "a star", "a star"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' sampler to numpy
@pytest.mark.parametrize("options", [{}, {"sampler": "euler"}, {"guidance": 1.0}, {"height": 32, "width": 48}])
def test_another_sampler_size_or_no_guidance_is_recorded_too(tmp_path, options):
    (folder,) = record(recipe(tmp_path, hookpoints=(NAME,), tokens_per_map=1000, **options))
    recording = Recording(folder)
    places = torch.cat([recording.read(shard).position for shard in recording.shards])
    every = 8 * 12 if "width" in options else 8 * 8  # a quarter of the pixels' sides; a map that has no more gives all
    assert places.bincount().tolist() == [4 * 2] * every


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_interrupted_at_any_write_and_started_again_it_gives_the_same_files(
    tmp_path, files, interrupt_write, monkeypatch, pipeline, exception
):
    monkeypatch.setattr(training.sae.record, "open_model", lambda *_: pipeline)  # once is enough
    out = tmp_path / "out"  # the same for all, since the saved config names it
    record(recipe(out))
    expected = files(out)
    for done in range(WRITES):
        shutil.rmtree(out)
        interrupt_write(done, exception)
        with pytest.raises(exception):
            record(recipe(out))
        assert files(out) != expected
        record(recipe(out))
        assert files(out) == expected, f"after {done} writes"


def test_interrupted_time_and_again_it_draws_no_finished_shard_twice(tmp_path, interrupt_write, model_calls):
    record(recipe(tmp_path / "at once"))
    once, model_calls[0] = model_calls[0], 0
    interrupt_write(WRITES - 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        record(recipe(tmp_path / "again"))
    record(recipe(tmp_path / "again"))
    record(recipe(tmp_path / "again"))
    assert model_calls[0] == once


@pytest.mark.parametrize("after", [2, 5], ids=["between prompts and manifest", "between shard and manifest"])
def test_killed_and_started_again_it_gives_the_same_files(tmp_path, files, killed, after):
    options = ["--hookpoints", NAME, "--images", 4, "--steps", 2, "--tokens-per-map", 3]
    options += ["--images-per-shard", 2, "--batch", 2]
    killed("record", *options, output=tmp_path / "out", after=after - 1)
    left = files(tmp_path / "out")
    assert any(name.endswith(".tmp") for name in left), "killed in the middle of a write"
    record(recipe(tmp_path / "out", hookpoints=(NAME,)))
    resumed = files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    record(recipe(tmp_path / "out", hookpoints=(NAME,)))
    assert resumed == files(tmp_path / "out")


def refusal(config, model_calls):
    """The one line with which ``config`` is refused before the model has run or anything is written."""
    with pytest.raises(SaeuronError) as refused:
        record(config)
    assert model_calls[0] == 0 and not config.output.exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_too_little_space_is_refused_before_any_work_with_the_numbers(tmp_path, model_calls):
    # 1000 images × 50 steps × 16 tokens × 264 bytes (128 halves, a uint32 and two uint16) × 2 hookpoints
    asked = recipe(tmp_path / "out", images=1000, steps=50, tokens_per_map=16, max_gb=0.2)
    message = refusal(asked, model_calls)
    assert "needs 0.422 GB and --max-gb is 0.2" in message and "at most 473 images" in message


def test_the_space_asked_for_is_the_space_taken(tmp_path):
    asked = 4 * 2 * 60 * 264
    (folder,) = record(recipe(tmp_path, tokens_per_map=60, hookpoints=(NAME,), max_gb=asked / 1e9))
    taken = sum(path.stat().st_size for path in folder.glob("shard-*"))
    assert 0 <= taken - asked < 2 * 1000, "a header of some 400 bytes a shard is not counted"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"hookpoints": (NAME, "unet.up_blocks.1.attention.1")}, f"the nearest are {NAME}, "),
        ({"site": "input"}, "output, residual"),
        ({"prompts": "tinycanvas:evaluatoin"}, "training, anchor, evaluation"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt could not be read"),
        ({"model": "nowhere"}, "model nowhere does not exist"),
        ({"sampler": "dpm"}, "the nearest are dpm++2m"),
        ({"images": -1}, "--images"),
        ({"steps": 0}, "--steps"),
        ({"batch": 0}, "--batch"),
        ({"height": 36}, "--height and --width have to be multiples of 8"),
        ({"width": 0}, "--height and --width have to be multiples of 8"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(tmp_path, model_calls, options, complaint):
    assert complaint in refusal(recipe(tmp_path / "out", **options), model_calls)


def test_an_empty_prompt_file_is_refused_by_name(tmp_path, model_calls):
    (tmp_path / "none.txt").write_text(" \n\n", "utf-8")
    message = refusal(recipe(tmp_path / "out", prompts=str(tmp_path / "none.txt")), model_calls)
    assert "none.txt holds no prompt" in message


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"steps": 3}, {"site": "residual"}, {"tokens_per_map": 4}, {"prompts": "tinycanvas:anchor"}],
    ids=lambda other: next(iter(other)),
)
def test_a_folder_begun_with_other_settings_is_refused_untouched(tmp_path, files, other):
    record(recipe(tmp_path))
    before = files(tmp_path)
    with pytest.raises(SaeuronError, match=r"was made with .*: choose another folder"):
        record(recipe(tmp_path, **other))
    assert files(tmp_path) == before


def test_a_batch_size_changes_neither_what_is_recorded_nor_whose_recording_it_is(tmp_path, files):
    record(recipe(tmp_path, batch=4, images=4, images_per_shard=4, hookpoints=(NAME,)))
    recorded = Recording(tmp_path / NAME)
    record(recipe(tmp_path, batch=1, images=4, images_per_shard=4, hookpoints=(NAME,)))
    assert Recording(tmp_path / NAME).settings_hash == recorded.settings_hash
    record(recipe(tmp_path / "alone", batch=1, images=4, images_per_shard=4, hookpoints=(NAME,)))
    together, alone = (
        Recording(place / NAME).read("shard-00000.safetensors") for place in (tmp_path, tmp_path / "alone")
    )
    assert torch.equal(together.position, alone.position) and torch.equal(together.prompt, alone.prompt)
    # half precision of sums that a batch of another size adds up in another order
    torch.testing.assert_close(together.activations, alone.activations, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("first", [2, 3], ids=["whole shards", "a part of one"])
def test_a_recording_grows_and_keeps_its_shards(tmp_path, files, model_calls, first):
    (folder,) = record(recipe(tmp_path, images=first, hookpoints=(NAME,)))
    before, model_calls[0] = files(folder), 0
    record(recipe(tmp_path, images=6, hookpoints=(NAME,)))
    grown, after = Recording(folder), files(folder)
    assert all(after[name] == content for name, content in before.items() if name.startswith("shard-"))
    assert grown.complete and len(grown.prompts) == 6 and len(grown) == 6 * 2 * 3, "images × steps × tokens a map"
    places = torch.cat([grown.read(shard).prompt for shard in grown.shards]).unique()
    assert places.tolist() == list(range(6))
    (whole,) = record(recipe(tmp_path / "at once", images=6, hookpoints=(NAME,)))
    assert Recording(whole).prompts == grown.prompts, "more images leave the first ones their prompts"
    calls = model_calls[0]
    record(recipe(tmp_path, images=6, hookpoints=(NAME,)))
    assert model_calls[0] == calls, "what has grown is not drawn again"


def test_a_recording_interrupted_while_it_grows_goes_on(tmp_path, interrupt_write):
    record(recipe(tmp_path, images=3, hookpoints=(NAME,)))
    interrupt_write(4, KeyboardInterrupt)  # prompts, manifest, config, a shard, and not its manifest
    with pytest.raises(KeyboardInterrupt):
        record(recipe(tmp_path, images=6, hookpoints=(NAME,)))
    (folder,) = record(recipe(tmp_path, images=6, hookpoints=(NAME,)))
    assert Recording(folder).complete and len(Recording(folder)) == 6 * 2 * 3


def test_fewer_images_than_there_are_and_other_prompts_are_refused(tmp_path, files):
    record(recipe(tmp_path, hookpoints=(NAME,)))
    before = files(tmp_path)
    with pytest.raises(SaeuronError, match="was made with 4 images and now it is 2"):
        record(recipe(tmp_path, images=2, hookpoints=(NAME,)))
    assert files(tmp_path) == before


def test_another_model_at_the_same_path_is_noticed_and_no_path_is_kept(tmp_path, small_sd):
    shutil.copyfile(small_sd, tmp_path / "sd.safetensors")
    options = {"model": str(tmp_path / "sd.safetensors"), "height": 64, "width": 64, "images": 1}
    options |= {"hookpoints": ("unet.up_blocks.1.attentions.1",)}
    (folder,) = record(recipe(tmp_path / "out", **options))
    model = Recording(folder).settings["model"]
    assert model.startswith("sd@") and str(tmp_path) not in json.dumps(Recording(folder).settings)
    write(tmp_path / "sd.safetensors", Size(unet=32, vae=32, clip=(64, 2)), seed=1)
    with pytest.raises(SaeuronError, match=f"was made with model {model} and now it is sd@"):
        record(recipe(tmp_path / "out", **options))


def test_a_dry_run_tells_what_it_takes_and_writes_nothing(tmp_path, capsys):
    Record(output=tmp_path / "out", images=1000, steps=50, dry_run=True, hookpoints=(NAME,)).run()
    told = capsys.readouterr().out
    assert ("1,000 pictures" in told and "50,000 denoising steps" in told and "0.211 GB" in told) or "211 MB" in told
    assert not (tmp_path / "out").exists()
