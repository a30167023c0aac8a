import json

import torch
from safetensors.torch import save_file

from saeuron import Hookpoint, load_sae, save_sae

TENSORS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


def test_widths_may_go_by_sdxl_unbox_s_names(make_sae, make_tokens, tmp_path):
    """SAEmnesia's cfg.json is SAeUron's, with ``d_model`` and ``n_dirs_local`` for ``d_in`` and ``num_latents``."""
    sae, tokens = make_sae(), make_tokens(9, 16)
    (tmp_path / "cfg.json").write_text(json.dumps({"d_model": 16, "n_dirs_local": 64, "k": 4, "expansion_factor": 4}))
    save_file({stored: getattr(sae, own) for stored, own in TENSORS.items()}, tmp_path / "sae.safetensors")
    loaded = load_sae(tmp_path)
    assert (loaded.d_in, loaded.n_latents, loaded.k, loaded.hookpoint) == (16, 64, 4, None)
    torch.testing.assert_close(loaded.encode(tokens), sae.encode(tokens))


def test_a_published_folder_named_after_its_hookpoint_is_copied_byte_for_byte(make_sae, tmp_path):
    """Where the copy has that name too, its config needs not say what the name says."""
    sae, folders = make_sae(), [tmp_path / place / "unet.up_blocks.1.attentions.1" for place in ("published", "copy")]
    folders[0].mkdir(parents=True)
    (folders[0] / "cfg.json").write_text(json.dumps({"d_in": 16, "num_latents": 64, "k": 4, "batch_topk": True}))
    save_file({stored: getattr(sae, own) for stored, own in TENSORS.items()}, folders[0] / "sae.safetensors")
    loaded = load_sae(folders[0])
    assert loaded.hookpoint == Hookpoint("unet.up_blocks.1.attentions.1")
    save_sae(loaded, folders[1])
    for name in ("cfg.json", "sae.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
