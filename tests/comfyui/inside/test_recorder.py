"""Activation Recorder: what it writes, which model it names, and what it refuses."""

import folder_paths
import pytest
import torch


@pytest.fixture
def output(tmp_path):
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_output_directory(before)


@pytest.fixture
def recorder(pack, output, tinycanvas):
    def record(model=tinycanvas[0], **options):
        settings = {
            "hookpoint": "unet.up_blocks.1.attentions.1",
            "site": "output",
            "folder": "recordings/one",
            "prompt": "a neon heart",
            "labels": "object=heart, style=neon",
            "tokens_per_map": 8,
            "max_gb": 1.0,
            "seed": 0,
        } | options
        return pack("recorder").ActivationRecorder.execute(model, **settings).args[0]

    return record


def test_each_sampling_adds_a_whole_shard(pack, output, recorder, sample, tinycanvas):
    model = recorder()
    plain = sample(tinycanvas[0], shape=(2, 16, 16), steps=4)
    assert torch.equal(sample(model, shape=(2, 16, 16), steps=4), plain)
    sample(model, steps=4)
    recording = pack("saeuron", "").Recording(output / "recordings" / "one")
    assert recording.complete and list(recording.shards.values()) == [2 * 4 * 8, 4 * 8]
    tokens = recording.read(next(iter(recording.shards)))
    assert recording.prompts == [{"prompt": "a neon heart", "object": "heart", "style": "neon"}] * 3
    assert sorted(tokens.prompt.unique().tolist()) == [0, 1] and len(tokens.timestep.unique()) == 4
    assert recording.read(list(recording.shards)[1]).prompt.unique().tolist() == [2]


def test_an_interrupted_sampling_adds_nothing(pack, output, recorder, sample):
    def stop(step, *_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(recorder(), callback=stop)
    assert not list(output.rglob("shard-*"))


def test_a_full_folder_is_refused_before_sampling(output, recorder, sample):
    sample(recorder(), steps=2)
    with pytest.raises(ValueError, match="max_gb"):
        recorder(max_gb=1e-6)


@pytest.fixture
def other(pack):
    """A checkpoint of the same family: one tensor is another."""
    model = pack("tinycanvas").load_model()
    with torch.no_grad():
        model.model.diffusion_model.get_parameter("middle_block.0.in_layers.2.weight").mul_(1.01)
    return model


def with_lora(model, strength, seed=1):
    """``model`` with a random weight patch such as a LoRA gives, not yet loaded."""
    key = "diffusion_model.middle_block.0.in_layers.2.weight"
    shape, generator = model.model.state_dict()[key].shape, torch.Generator().manual_seed(seed)
    model = model.clone()
    model.add_patches({key: (0.01 * torch.randn(shape, generator=generator),)}, strength)
    return model


def test_models_are_told_apart_by_their_weights_and_patches(pack, tinycanvas, other):
    identity, plain = pack("host.identity").identity, tinycanvas[0]
    same = [plain, plain.clone(), pack("tinycanvas").load_model()]
    assert len({identity(model) for model in same}) == 1
    different = [plain, other, with_lora(plain, 1.0), with_lora(plain, 0.5), with_lora(plain, 1.0, seed=2)]
    assert len({identity(model) for model in different}) == 5
    assert identity(with_lora(plain, 0.5)) == identity(with_lora(plain, 0.5))


def test_a_model_is_itself_while_its_weights_are_patched(pack, tinycanvas, sample):
    identity = pack("host.identity").identity
    before = identity(tinycanvas[0])
    sample(with_lora(tinycanvas[0], 1.0), steps=1)
    assert tinycanvas[0].backup, "the patched weights stay in place until another clone is loaded"
    assert identity(tinycanvas[0]) == before


def test_a_recording_names_its_model(pack, output, recorder, sample, tinycanvas):
    sample(recorder(), steps=1)
    recording = pack("saeuron", "").Recording(output / "recordings" / "one")
    assert recording.settings["model"] == pack("host.identity").identity(tinycanvas[0])


def test_another_model_is_not_recorded_into_the_same_folder(recorder, sample, tinycanvas, other):
    sample(recorder(), steps=1)
    for model in (other, with_lora(tinycanvas[0], 1.0)):
        with pytest.raises(ValueError, match=r"was recorded with model SD15 .* and this is SD15 .*another folder"):
            sample(recorder(model), steps=1)
    sample(recorder(), steps=1)


@pytest.mark.parametrize(("name", "value"), [("tokens_per_map", 4), ("site", "residual")])
def test_a_folder_begun_in_another_way_is_refused_before_sampling(recorder, sample, name, value):
    sample(recorder(), steps=1)
    with pytest.raises(ValueError, match=rf"was recorded with {name} .* and this is {value}"):
        recorder(**{name: value})


@pytest.mark.parametrize("folder", ["../elsewhere", "/tmp/elsewhere", ""])
def test_recordings_stay_in_the_output_folder(recorder, folder):
    with pytest.raises(ValueError, match="output folder"):
        recorder(folder=folder)


def test_bad_labels_are_explained(recorder):
    with pytest.raises(ValueError, match="object=cat"):
        recorder(labels="heart")
