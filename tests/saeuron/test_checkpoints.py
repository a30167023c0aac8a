import json

import pytest
import torch
from safetensors.torch import save_file

from saeuron import Hookpoint, SaeuronError, SparseAutoencoder, load_sae, save_sae

# cfg.json as SAeUron's own code writes it, key for key.
SAEURON = {
    "expansion_factor": 4,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": 4,
    "batch_topk": True,
    "sample_topk": False,
    "input_unit_norm": False,
    "multi_topk": False,
    "d_in": 16,
}
TENSORS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


@pytest.fixture
def publish(tmp_path, make_sae):
    """Writes a folder as SAeUron's authors would; ``drop`` and ``replace`` spoil its tensors, options its cfg.json."""

    def write(drop=(), replace=None, dtype=torch.float32, **options):
        folder = tmp_path / "published"
        folder.mkdir()
        with open(folder / "cfg.json", "w") as file:
            json.dump(SAEURON | options, file)
        tensors = {name: getattr(make_sae(), own).detach().to(dtype) for name, own in TENSORS.items()}
        tensors = {name: tensor for name, tensor in (tensors | (replace or {})).items() if name not in drop}
        save_file(tensors, folder / "sae.safetensors")
        return folder

    return write


def assert_same_bytes(one, other):
    for name in ("cfg.json", "sae.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"num_latents": 64}, {"multi_topk": True, "normalize_decoder": False}])
def test_a_published_checkpoint_round_trips_byte_for_byte(publish, tmp_path, options, dtype):
    folder = publish(dtype=dtype, **options)
    assert list(json.loads((folder / "cfg.json").read_text())) == list(SAEURON)
    save_sae(load_sae(folder), tmp_path / "copy")
    assert_same_bytes(folder, tmp_path / "copy")


def test_a_published_checkpoint_encodes_as_it_says(publish, make_sae, make_tokens):
    sae, tokens = load_sae(publish()), make_tokens(5, 16)
    assert (sae.d_in, sae.n_latents, sae.k, sae.activation, sae.threshold) == (16, 64, 4, "batch_topk", None)
    assert torch.equal(sae.encode(tokens), make_sae().encode(tokens))


def test_no_number_of_latents_means_width_times_expansion(publish):
    assert load_sae(publish(num_latents=0)).n_latents == 16 * 4


def test_the_number_of_latents_goes_before_the_expansion(publish):
    assert load_sae(publish(num_latents=64, expansion_factor=999)).n_latents == 64


def test_what_a_published_checkpoint_is_told_afterwards_is_kept(publish, tmp_path):
    sae = load_sae(publish(normalize_decoder=False))
    sae.threshold, sae.hookpoint = 0.5, Hookpoint("unet.mid_block.attentions.0")
    save_sae(sae, tmp_path / "copy")
    again = load_sae(tmp_path / "copy")
    assert (again.threshold, again.hookpoint) == (0.5, sae.hookpoint)
    assert again.config["normalize_decoder"] is False


def test_our_config_has_every_key_of_saeuron_s(make_sae, tmp_path):
    sae = make_sae(activation="batch_topk", threshold=0.75)
    save_sae(sae, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "cfg.json").read_text("utf-8"))
    assert {name: config[name] for name in SAEURON} == SAEURON | {"num_latents": 64}
    sae.config = {"multi_topk": True, "normalize_decoder": False}
    save_sae(sae, tmp_path / "b")
    config = json.loads((tmp_path / "b" / "cfg.json").read_text("utf-8"))
    assert config["multi_topk"] is True and config["normalize_decoder"] is False


def test_our_own_checkpoint_keeps_everything_it_was_told(make_sae, tmp_path, make_tokens):
    hookpoint = Hookpoint("unet.up_blocks.1.attentions.1", "residual")
    sae = make_sae(activation="batch_topk", threshold=0.75, hookpoint=hookpoint, base_model="tinycanvas")
    save_sae(sae, tmp_path / "a", steps=10)
    again = load_sae(tmp_path / "a")
    for name in ("d_in", "n_latents", "k", "activation", "threshold", "hookpoint", "base_model", "fingerprint"):
        assert getattr(again, name) == getattr(sae, name), name
    assert again.config["steps"] == 10
    tokens = make_tokens(5, 16)
    assert torch.equal(again.encode(tokens), sae.encode(tokens))
    save_sae(again, tmp_path / "b")
    assert_same_bytes(tmp_path / "a", tmp_path / "b")


def test_saving_what_was_trained_on_or_converted_since_loading_gives_a_loadable_folder(make_sae, tmp_path):
    save_sae(make_sae(), tmp_path / "a")
    converted, tuned = load_sae(tmp_path / "a", torch.float16), load_sae(tmp_path / "a")
    tuned.b_enc += 1
    for sae in (converted, tuned):
        save_sae(sae, tmp_path / "b")
        again = load_sae(tmp_path / "b")
        assert torch.equal(again.b_enc, sae.b_enc)
        assert again.fingerprint == sae.fingerprint != make_sae().fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_fingerprint_is_the_one_that_it_was_yesterday(tmp_path, dtype):
    """Files name their SAE by it, so that no version may count it otherwise. Of the bytes that the file has."""
    sae = SparseAutoencoder(2, 4, 1).requires_grad_(False)
    for number, weight in enumerate((sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)):
        weight.copy_(torch.arange(weight.numel()).view_as(weight) / 8 - number)
    save_sae(sae, tmp_path)
    assert load_sae(tmp_path, dtype).fingerprint == "92e0889295171f2f"
    written = json.loads((tmp_path / "cfg.json").read_text("utf-8"))
    assert (written["format"], written["version"]) == ("saeuron-sae", 1)


def test_a_converted_sae_still_answers_to_its_file_s_tables(make_sae, tmp_path):
    save_sae(make_sae(), tmp_path)
    half = load_sae(tmp_path, torch.float16)
    assert half.W_enc.dtype == torch.float16
    assert half.fingerprint == make_sae().fingerprint


def refusal_of(folder):
    """The one sentence, naming ``folder``, with which loading it is refused."""
    with pytest.raises(SaeuronError) as refusal:
        load_sae(folder)
    message = str(refusal.value)
    assert str(folder) in message and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sample_topk": True}, "sample_topk"),
        ({"input_unit_norm": True}, "input_unit_norm"),
        ({"transcode": True}, "transcode"),
        ({"skip_connection": True}, "skip_connection"),
        ({"activation": "groupmax"}, "groupmax"),
        ({"format": "saeuron-concept-table"}, "saeuron-concept-table"),
        ({"version": 99}, "99"),
        ({"k": 65}, "k is 65"),
        ({"k": "many"}, "many"),
        ({"d_in": None}, "d_in is None"),
        ({"hookpoint": "unet.mid_block.attentions.0", "site": "input"}, "input"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused(publish, options, complaint):
    message = refusal_of(publish(**options))
    assert complaint in message and "cfg.json" in message


def test_a_missing_tensor_is_refused_by_name(publish):
    assert "sae.safetensors lacks W_dec, b_dec" in refusal_of(publish(drop=("W_dec", "b_dec")))


def test_a_misshapen_tensor_is_refused_with_both_shapes(publish):
    message = refusal_of(publish(replace={"W_dec": torch.zeros(16, 64)}))
    assert "sae.safetensors has W_dec of shape [16, 64] where its config says [64, 16]" in message


@pytest.mark.parametrize("name", ["cfg.json", "sae.safetensors"])
def test_a_missing_or_truncated_file_is_refused_by_name(publish, name):
    folder = publish()
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    assert name in refusal_of(folder)
    (folder / name).unlink()
    assert f"{name} does not exist" in refusal_of(folder)


def test_a_missing_folder_is_refused_by_name(tmp_path):
    assert "cfg.json and sae.safetensors" in refusal_of(tmp_path / "nowhere")


def test_tensors_of_another_sae_are_refused(make_sae, tmp_path):
    save_sae(make_sae(), tmp_path / "a")
    save_sae(make_sae(seed=5), tmp_path / "b")
    (tmp_path / "b" / "sae.safetensors").replace(tmp_path / "a" / "sae.safetensors")
    assert "sae.safetensors is not the file cfg.json was written for" in refusal_of(tmp_path / "a")


def test_a_full_disk_leaves_no_checkpoint_behind(make_sae, tmp_path, full_disk):
    with pytest.raises(SaeuronError, match="No space left on device"):
        save_sae(make_sae(), tmp_path)
    assert list(tmp_path.iterdir()) == []
