"""SAE Loader and the files: what is chosen is what is read."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import pytest
import torch


@pytest.fixture
def saes(tmp_path, monkeypatch):
    """``models/saes``, empty but for TinyCanvas's own."""
    paths, extensions = folder_paths.folder_names_and_paths["saes"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "saes", ([str(tmp_path), *paths], extensions))
    folder_paths.filename_list_cache.pop("saes", None)
    yield tmp_path
    folder_paths.filename_list_cache.pop("saes", None)


@pytest.fixture
def two_saes(pack, saes, sae):
    """A bundle and, in the same folder, another SAE in SAeUron's layout, with a table of its own."""
    statistics = pack("saeuron", "").ConceptStatistics
    other = pack("saeuron.autoencoder", "").SparseAutoencoder(128, 256, 4, hookpoint=sae.hookpoint)
    pack("saeuron", "").save_sae(other, saes / "both")
    statistics({"this": "thing", "that": "thing"}, [981, 1], 256, other.fingerprint).save(
        saes / "both" / "table.safetensors"
    )
    pack("saeuron.checkpoints", "").save_bundle(sae.bundle, saes / "both" / "mine.safetensors")
    return {"both/mine.safetensors": sae.sae.fingerprint, "both/sae.safetensors": other.fingerprint}


def test_the_sae_that_is_chosen_is_the_one_that_is_loaded(pack, two_saes):
    loader = pack("loader").SaeLoader
    assert set(two_saes) <= set(pack("host.files").names())
    for name, fingerprint in two_saes.items():
        loaded = loader.execute(name).args[0]
        assert loaded.sae.fingerprint == fingerprint and loaded.name == name
    stamps = {name: loader.fingerprint_inputs(name) for name in two_saes}
    table = pack("host.files").path("both/table.safetensors")
    table.touch()
    assert {name: loader.fingerprint_inputs(name) != before for name, before in stamps.items()} == {
        "both/mine.safetensors": False,
        "both/sae.safetensors": True,
    }


def test_concepts_are_known_before_an_sae_is_loaded(pack, two_saes, sae):
    headers = pack("host.headers")
    assert headers.concepts_of("both/mine.safetensors").concepts == sae.bundle.table.concepts
    assert headers.concepts_of("both/sae.safetensors").concepts == {"this": "thing", "that": "thing"}
    table = "both/table.safetensors"
    assert headers.concepts_of("both/sae.safetensors", table).concepts == {"this": "thing", "that": "thing"}
    with pytest.raises(ValueError, match="is of another SAE than"):
        headers.concepts_of("both/mine.safetensors", table)


def test_what_a_header_tells_follows_the_file(pack, saes, sae):
    headers, checkpoints = pack("host.headers"), pack("saeuron.checkpoints", "")
    checkpoints.save_bundle(sae.bundle, saes / "one.safetensors")
    assert "neon" in headers.concepts_of("one.safetensors").concepts
    checkpoints.save_bundle(replace(sae.bundle, table=None), saes / "one.safetensors")
    assert headers.concepts_of("one.safetensors") is None


@pytest.mark.parametrize(
    ("name", "hookpoint"),
    [
        ("unet.up_blocks.1.attentions.2/sae.safetensors", "unet.up_blocks.1.attentions.2"),
        (
            "unet.down_blocks.2.attentions.1_k10_hidden5120_auxk256_bs4096_lr0.0001/final/state_dict.pth",
            "unet.down_blocks.2.attentions.1",
        ),
        ("sdxl_up.0.1/model.pt", "unet.up_blocks.0.attentions.1"),
        ("mid_block_attentions_0/ae.pt", "unet.mid_block.attentions.0"),
        ("models--bcywinski--SAeUron_coco/snapshots/3f2a/sae.safetensors", "unet.up_blocks.1.attentions.1"),
        ("SAE_flux_18/state_dict.pth", "transformer.transformer_blocks.18"),
        ("cc3m-FLUX.1-dev.transformer_blocks.18-1/model.safetensors", "transformer.transformer_blocks.18"),
        ("flux_single_transformer_blocks.9_k32.safetensors", "transformer.single_transformer_blocks.9"),
        ("z-image/transformer.layers.12/sae.safetensors", "transformer.layers.12"),
        ("unet.mid_block.attentions.0.transformer_blocks.3/sae.safetensors", "unet.mid_block.attentions.0"),
        ("backup/sae.safetensors", None),
        ("group-2-1/sae.safetensors", None),
    ],
)
def test_a_hookpoint_is_guessed_from_names(pack, tmp_path, name, hookpoint):
    guess = pack("host.guess").guess_hookpoint
    if hookpoint is None:
        with pytest.raises(ValueError, match="does not say which block it reads"):
            guess(name, tmp_path / name)
    else:
        assert guess(name, tmp_path / name)[0] == hookpoint


@pytest.fixture
def sdxl_unbox(saes, sae):
    """TinyCanvas's SAE as sdxl-unbox publishes theirs, without a table, in a folder that names its block."""
    folder = saes / "unet.up_blocks.1.attentions.1_k32_hidden1024" / "final"
    folder.mkdir(parents=True)
    own = sae.sae
    (folder / "config.json").write_text(json.dumps({"d_model": own.d_in, "n_dirs_local": own.n_latents, "k": 32}))
    state = {
        "encoder.weight": own.W_enc.detach(),
        "latent_bias": own.b_enc.detach(),
        "decoder.weight": own.W_dec.detach().T.contiguous(),
        "pre_bias": own.b_dec.detach(),
    }
    torch.save({"state_dict": state}, folder / "state_dict.pth")
    torch.save(torch.zeros(own.n_latents), folder / "mean.pt")
    folder_paths.filename_list_cache.pop("saes", None)
    return folder


def test_a_file_of_torch_is_offered_read_and_told_of(pack, sdxl_unbox):
    name = f"{sdxl_unbox.parent.name}/final/state_dict.pth"
    offered = pack("host.files").names()
    assert name in offered and not any(one.endswith("mean.pt") for one in offered)
    shown = pack("loader").SaeLoader.execute(name)
    place = pack("saeuron", "").Hookpoint("unet.up_blocks.1.attentions.1", "residual")
    assert shown.args[0].hookpoint == place
    assert "residual" in shown.ui.as_dict()["text"][0] and "no concepts" in shown.ui.as_dict()["text"][0]
    assert pack("host.headers").place_of(name, "unet.mid_block.attentions.0")[0].site == "residual"


def test_a_pickle_with_code_is_refused(pack, sdxl_unbox):
    with open(sdxl_unbox / "state_dict.pth", "wb") as file:
        pickle.dump({"state_dict": Path("x")}, file)
    with pytest.raises(ValueError, match=r"asks for pathlib\.PosixPath") as refused:
        pack("loader").SaeLoader.execute(f"{sdxl_unbox.parent.name}/final/state_dict.pth")
    assert str(sdxl_unbox) not in str(refused.value)


def test_a_models_blocks_are_read_from_the_header_of_its_checkpoint(pack, hollow, tmp_path):
    import comfy.supported_models

    config = comfy.supported_models.SD15(
        comfy.supported_models.SD15.unet_config
        | {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "num_res_blocks": [2] * 4,
            "channel_mult": [1, 2, 4, 4],
        }
        | {"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3}
        | {"transformer_depth_middle": 1, "num_heads": 8, "use_spatial_transformer": True, "adm_in_channels": None}
    )
    models, files = pack("host.model_files"), pack("host.files")
    blocks = models._blocks(*files.stamp(hollow(config, tmp_path / "sd15.safetensors")))
    assert len(blocks) == 16 and blocks["unet.up_blocks.1.attentions.1"] == 1280
    assert blocks["unet.down_blocks.0.attentions.0"] == 320
    (tmp_path / "none.safetensors").write_bytes(b"nothing of the kind")
    assert models._blocks(*files.stamp(tmp_path / "none.safetensors")) is None


def test_a_family_without_a_unet_is_named(pack, sae):
    import comfy.supported_models

    model = SimpleNamespace(
        diffusion_model=torch.nn.Identity(), model_config=comfy.supported_models.Lumina2({"image_model": "lumina2"})
    )
    with pytest.raises(ValueError, match="family Lumina2 are not supported"):
        pack("host.blocks").block_of(model, sae.hookpoint)
