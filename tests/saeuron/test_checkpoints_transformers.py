"""Published SAEs of transformers: where each reads, what it computes at FLUX's width, and which cannot be used."""

import json

import pytest
import torch
from safetensors.torch import save_file

from saeuron import Hookpoint, SaeuronError, Steer, load_sae
from saeuron.families import Grid, Stream

D, N, K = 3072, 12288, 16
IMAGE = "transformer.transformer_blocks.18"
FOLDERS = {
    "SAE_flux_18": Hookpoint(IMAGE, "residual"),
    "cc3m-FLUX.1-dev.transformer_blocks.18-1": Hookpoint(IMAGE),
    "cc3m-FLUX.1-dev.single_transformer_blocks.9": Hookpoint("transformer.single_transformer_blocks.9"),
    "transformer_blocks.16.image_output": Hookpoint("transformer.transformer_blocks.16"),
}


def publish(folder, n=64, d=16, k=4):
    """The folder as its authors would write it, and its weights ``W_enc b_enc W_dec b_dec``."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    shapes = ((n, d), (n,), (n, d), (d,))
    enc, b_enc, dec, b_dec = (torch.rand(shape, generator=generator) - 0.5 for shape in shapes)
    if folder.name.startswith("SAE_flux"):
        stored = {"encoder.weight": enc, "latent_bias": b_enc, "decoder.weight": dec.T, "pre_bias": b_dec}
        torch.save({"state_dict": stored}, folder / "state_dict.pth")
        (folder / "config.json").write_text(json.dumps({"n_dirs_local": n, "d_model": d, "k": k}))
    elif folder.name.startswith("cc3m"):
        stored = {"encoder.weight": enc, "encoder.bias": b_enc, "decoder.weight": dec.T.contiguous(), "bias": b_dec}
        save_file(stored, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"features": d, "pages": n, "k": k, "sample": 1}))
    else:
        stored = {"encoder.weight": enc, "encoder.bias": b_enc, "W_dec": dec, "b_dec": b_dec}
        save_file(stored, folder / "sae.safetensors")
        config = {"activation": "topk", "expansion_factor": n // d, "num_latents": n, "k": k, "d_in": d}
        (folder / "cfg.json").write_text(json.dumps(config | {"normalize_decoder": True, "multi_topk": False}))
    return enc, b_enc, dec, b_dec


@pytest.mark.parametrize("name", FOLDERS)
def test_the_hookpoint_is_where_the_authors_put_it(tmp_path, name):
    publish(tmp_path / name)
    assert load_sae(tmp_path / name).hookpoint == FOLDERS[name]


@pytest.mark.parametrize("name", [name for name in FOLDERS if "single" not in name])
def test_an_edit_at_flux_s_width_is_the_dense_rule_on_the_pictures_tokens(tmp_path, name):
    """``x + Σ ((s − 1) f_i + a) W_dec[i]`` for the latents chosen, of a block's output that begins with text."""
    enc, b_enc, dec, b_dec = publish(tmp_path / name, N, D, K)
    sae = load_sae(tmp_path / name)
    generator = torch.Generator().manual_seed(2)
    before, image = (torch.randn(2, 5 + 12 + 3, D, generator=generator) for _ in range(2))
    grid, stream = Grid(3, 4, references=3), Stream("x", text_first=True)
    place, hookpoint = stream.place(image.shape[1], grid), sae.hookpoint
    tokens = hookpoint.read(image, before, place)
    read = (image - before if hookpoint.site == "residual" else image)[:, 5:17]
    assert torch.equal(tokens, read)
    pre = (read.double() - b_dec.double()) @ enc.double().T + b_enc.double()
    values, latents = pre.topk(K)
    code = torch.zeros_like(pre).scatter_(2, latents, values.relu())
    chosen = latents[0, 0, :3]
    change = (code[..., chosen] * (0.25 - 1) + 0.5) @ dec[chosen].double()
    edited = Steer(sae, tuple(chosen.tolist()), add=0.5, scale=0.25)(tokens, 500.0)
    result = hookpoint.write(image, tokens, edited, place)
    # Float32 sums of 3072 products, beside values of the order of ten.
    torch.testing.assert_close(result[:, 5:17].double(), image[:, 5:17].double() + change, rtol=1e-5, atol=1e-5)
    assert torch.equal(result[:, :5], image[:, :5]) and torch.equal(result[:, 17:], image[:, 17:])


@pytest.mark.parametrize("name", ["transformer_blocks.16.text_output", "cc3m-FLUX.1-dev.transformer_blocks.18-0"])
def test_an_sae_of_the_text_is_refused_with_the_reason(tmp_path, name):
    publish(tmp_path / name)
    with pytest.raises(SaeuronError, match="read the text's stream, whose tokens are no places of a picture"):
        load_sae(tmp_path / name)


def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "_CHECKPOINT_METADATA").touch()
    with pytest.raises(SaeuronError, match="Orbax checkpoint of JAX: convert it"):
        load_sae(tmp_path / "jax")
    (tmp_path / "sae_block_9.pt").touch()
    with pytest.raises(SaeuronError, match="normalised batch by batch, and the scale is not in the file"):
        load_sae(tmp_path / "sae_block_9.pt")
    (tmp_path / "text_encoder").mkdir()
    save_file({"weight": torch.zeros(2)}, tmp_path / "text_encoder" / "model.safetensors")
    (tmp_path / "text_encoder" / "config.json").write_text("{}")
    with pytest.raises(SaeuronError, match="is no SAE that this program reads"):
        load_sae(tmp_path / "text_encoder")
