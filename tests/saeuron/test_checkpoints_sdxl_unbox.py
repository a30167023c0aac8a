import json

import pytest
import torch

from saeuron import Hookpoint, SaeuronError, load_sae

FOLDER = "unet.down_blocks.2.attentions.1_k4_hidden64_auxk256_bs4096_lr0.0001/final"
CONFIG = {"n_dirs_local": 64, "d_model": 16, "k": 4, "auxk": 256, "dead_steps_threshold": 2441}


@pytest.fixture
def publish(tmp_path, make_tokens):
    """Writes a folder as sdxl-unbox would, and returns it with its tensors; ``drop`` and options spoil it."""

    def write(drop=(), wrap="state_dict", **options):
        folder = tmp_path / FOLDER
        folder.mkdir(parents=True)
        stored = {
            "pre_bias": make_tokens(16, seed=1),
            "latent_bias": make_tokens(64, seed=2),
            "stats_last_nonzero": torch.zeros(64, dtype=torch.long),
            "encoder.weight": make_tokens(64, 16, seed=3),
            "decoder.weight": make_tokens(64, 16, seed=4).T,  # column major, as it is trained
        }
        torch.save({wrap: {n: t for n, t in stored.items() if n not in drop}}, folder / "state_dict.pth")
        (folder / "config.json").write_text(json.dumps(CONFIG | options))
        torch.save(100 * torch.ones(64), folder / "mean.pt")
        torch.save(100 * torch.ones(64), folder / "std.pt")
        return folder, stored

    return write


def test_it_encodes_and_decodes_as_the_formula_says(publish, make_tokens):
    """Top-k first and the ReLU after it, which on these weights cuts some of the k largest."""
    folder, stored = publish()
    sae, tokens = load_sae(folder), make_tokens(200, 16, seed=9)
    sae.b_enc -= 4
    pre = (tokens - stored["pre_bias"]) @ stored["encoder.weight"].T + stored["latent_bias"] - 4
    values, latents = pre.topk(4)
    assert (values < 0).any() and (values > 0).any()
    code = torch.zeros_like(pre).scatter_(1, latents, torch.relu(values))
    torch.testing.assert_close(sae.encode(tokens), code, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(code), code @ stored["decoder.weight"].T + stored["pre_bias"])


def test_the_folder_s_name_says_the_hookpoint_and_the_format_the_site(publish):
    folder, _ = publish()
    assert load_sae(folder).hookpoint == Hookpoint("unet.down_blocks.2.attentions.1", "residual")


def test_a_folder_named_otherwise_says_no_hookpoint(publish, tmp_path):
    folder, _ = publish()
    folder.rename(tmp_path / "mine")
    assert load_sae(tmp_path / "mine").hookpoint is None


def test_the_folder_above_names_the_one_to_give(publish):
    folder, _ = publish()
    with pytest.raises(SaeuronError, match=f"is not the folder of an SAE; it holds .*{FOLDER}"):
        load_sae(folder.parent)


@pytest.mark.parametrize("name", ["state_dict.pth", "config.json"])
def test_a_file_of_the_folder_stands_for_the_folder(publish, name):
    folder, _ = publish()
    assert load_sae(folder / name).n_latents == 64


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"drop": ("latent_bias", "pre_bias")}, "state_dict.pth lacks latent_bias, pre_bias"),
        ({"wrap": "model"}, "state_dict.pth lacks state_dict"),
        ({"d_model": 24}, r"state_dict.pth has encoder.weight of shape \[64, 16\] where its config says \[64, 24\]"),
        ({"n_dirs_local": None}, "config.json has no usable value for n_dirs_local"),
        ({"k": 0}, "config.json has no usable value for k"),
        ({"k": 65}, "config.json does not fit: k is 65"),
    ],
)
def test_what_does_not_fit_is_refused_by_file_and_field(publish, options, complaint):
    folder, _ = publish(**options)
    with pytest.raises(SaeuronError, match=complaint):
        load_sae(folder)


class Harmful:
    """Its unpickling would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_of_anything_but_tensors_is_refused_unopened(publish, tmp_path):
    folder, stored = publish()
    torch.save({"state_dict": stored, "more": Harmful(tmp_path / "harm")}, folder / "state_dict.pth")
    with pytest.raises(SaeuronError, match=r"state_dict\.pth is not a pickle of tensors.* asks for io\.open"):
        load_sae(folder)
    assert not (tmp_path / "harm").exists()


def test_a_truncated_file_is_refused_by_name(publish):
    folder, _ = publish()
    whole = (folder / "state_dict.pth").read_bytes()
    (folder / "state_dict.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SaeuronError, match=r"state_dict\.pth .*it is not whole"):
        load_sae(folder)
