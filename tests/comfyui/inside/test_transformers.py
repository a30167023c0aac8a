"""The nodes on a small FLUX with random weights: sampled by ComfyUI's own samplers, guided and not."""

import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy_extras.nodes_torch_compile import set_torch_compile_wrapper

sys.path.append(str(Path(__file__).parents[1]))
from families_given import COMFYUI_FLUX, FAMILIES, LENGTH, POOLED, TEXT

CHANNELS = 16
DOUBLE, SINGLE = "transformer.transformer_blocks.1", "transformer.single_transformer_blocks.0"


@pytest.fixture(scope="module")
def flux():
    latents = {"in_channels": CHANNELS, "out_channels": CHANNELS}  # those that FLUX's latents have
    kind = comfy.supported_models.Flux(FAMILIES["FluxTransformer2DModel"]["comfyui"] | latents)
    kind.custom_operations = comfy.ops.manual_cast
    kind.set_inference_dtype(torch.float32, None)
    model = kind.get_model({}, "").eval()
    torch.manual_seed(1)
    for name, parameter in model.diffusion_model.named_parameters():
        torch.nn.init.ones_(parameter) if name.endswith("norm.weight") else torch.nn.init.normal_(parameter, std=0.15)
    return comfy.model_patcher.CoreModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture
def loaded(pack):
    """``loaded(hookpoint)``: an SAE of the model's width there, with a table of two concepts."""
    core, sockets, memory = pack("saeuron", ""), pack("host.sockets"), pack("host.memory")

    def make(hookpoint, width=32):
        torch.manual_seed(2)
        sae = core.SparseAutoencoder(width, 64, k=8, hookpoint=hookpoint)
        for name in ("W_enc", "W_dec"):
            setattr(sae, name, torch.nn.Parameter(torch.randn(64, width) / width**0.5, requires_grad=False))
        statistics = core.ConceptStatistics({"neon": "style", "plain": "style"}, [250, 500, 750], 64, sae.fingerprint)
        for timestep in (250, 500, 750):
            tokens = torch.randn(4, 24, width)
            tokens[::2] += 2 * sae.W_dec[:3].sum(0)
            statistics.observe(sae, [["neon"], ["plain"]] * 2, timestep, tokens)
        bundle = pack("checkpoints", "saeuron.").Bundle(sae)
        bundle.table = pack("concept_table", "saeuron.").WholeTable(statistics)
        return sockets.LoadedSae("random", bundle, memory.manage_sae(sae, Path("random.safetensors")))

    return make


def conditioning(seed):
    generator = torch.Generator().manual_seed(seed)
    context, pooled = torch.randn(1, LENGTH, TEXT, generator=generator), torch.randn(1, POOLED, generator=generator)
    return [[context, {"pooled_output": pooled, "guidance": 3.5}]]


def sample(model, cfg=1.0, size=(9, 14), batch=1, steps=3, positive=None):
    latent = torch.zeros(batch, CHANNELS, *size)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(4))
    options = {"disable_pbar": True, "seed": 4}
    positive, negative = positive or conditioning(1), conditioning(2)
    return comfy.sample.sample(model, noise, steps, cfg, "euler", "simple", positive, negative, latent, **options)


def patched(pack, node, model, sae, **options):
    if node == "steer":
        return pack("patches").FeatureSteerPatch.execute(model, sae, "3", 1.0, 2.0, **options).args[0]
    chosen = pack("concepts").ConceptSelector.execute(sae, "neon", 8, 0.0).args[0]
    options = {"mode": "ablate", "strength": 4.0} | options
    return pack("patches").FeatureAblatePatch.execute(model, sae, chosen, **options).args[0]


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("place", [(DOUBLE, "residual"), (SINGLE, "output")])
@pytest.mark.parametrize("node", ["steer", "ablate"])
def test_an_edit_acts_and_the_unpatched_model_is_bit_identical(pack, flux, loaded, node, place, cfg):
    sae, plain = loaded(pack("saeuron", "").Hookpoint(*place)), sample(flux, cfg)
    edited = patched(pack, node, flux, sae)
    results = [sample(edited, cfg)]
    assert not torch.equal(results[0], plain)
    assert torch.equal(sample(flux, cfg), plain)
    # At CFG 1 there is no negative half: all rows are the prompt's.
    one, other = (sample(patched(pack, node, flux, sae, applies_to=half), cfg) for half in ("positive", "negative"))
    if cfg == 1.0:
        assert torch.equal(one, results[0]) and torch.equal(other, plain)
    else:
        assert not torch.equal(one, results[0]) and not torch.equal(other, plain)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in flux.model.diffusion_model.modules()) == 0


def test_a_window_and_a_mask_count_in_the_flows_time_and_the_pictures_grid(pack, flux, loaded):
    sae, plain = loaded(pack("saeuron", "").Hookpoint(DOUBLE)), sample(flux, size=(8, 12))
    early = sample(patched(pack, "steer", flux, sae, end_percent=0.4), size=(8, 12))
    late = sample(patched(pack, "steer", flux, sae, start_percent=0.4), size=(8, 12))
    assert not torch.equal(early, plain) and not torch.equal(late, plain) and not torch.equal(early, late)
    mask = torch.zeros(1, 64, 96)
    assert torch.equal(sample(patched(pack, "steer", flux, sae, mask=mask), size=(8, 12)), plain)
    mask[:, :, 48:] = 1
    last = sample(patched(pack, "steer", flux, sae, mask=mask), size=(8, 12), steps=1)
    assert not torch.equal(last, sample(flux, size=(8, 12), steps=1))


def test_the_probe_and_the_recorder_see_the_pictures_tokens(pack, flux, loaded, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    sae = loaded(pack("saeuron", "").Hookpoint(SINGLE))
    model, record = pack("feature_maps").FeatureProbe.execute(flux, sae, "3, 5").args
    latent = sample(model, batch=2)
    assert latent.shape == (2, CHANNELS, 9, 14)
    maps = [m for seen in record.seen.values() for m in seen.values()]
    assert maps and all(m.shape[-2:] == (5, 7) for m in maps)
    node = pack("recorder").ActivationRecorder
    sample(node.execute(flux, SINGLE, "output", "mine", "a heart", "style=neon", 8, 1.0, 0).args[0])
    assert list((tmp_path / "mine").rglob("*.safetensors"))


def test_the_compile_node_keeps_the_edit(pack, flux, loaded):
    edited = patched(pack, "steer", flux, loaded(pack("saeuron", "").Hookpoint(DOUBLE, "residual")))
    expected = sample(edited, steps=1)
    compiled = edited.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager", keys=["diffusion_model"])
    # Another order of sums in float32.
    assert (sample(compiled, steps=1) - expected).abs().max() < 1e-3


def with_lora(model, strength=1.0):
    """``model`` with a LoRA on a block before the hookpoints, by diffusers' names, through ComfyUI's own loader."""
    generator = torch.Generator().manual_seed(5)
    name = "transformer.transformer_blocks.0.attn.to_out.0"
    shapes = {"lora_A": (4, 32), "lora_B": (32, 4)}
    lora = {f"{name}.{end}.weight": torch.randn(shape, generator=generator) for end, shape in shapes.items()}
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0.0)[0]


def test_an_edit_acts_on_what_a_lora_makes_of_the_model(pack, flux, loaded):
    sae = loaded(pack("saeuron", "").Hookpoint(DOUBLE, "residual"))
    lora = with_lora(flux)
    plain, with_it = sample(flux), sample(lora)
    assert not torch.equal(with_it, plain)
    before, after = sample(with_lora(patched(pack, "steer", flux, sae))), sample(patched(pack, "steer", lora, sae))
    assert torch.equal(before, after), "whichever node comes first"
    assert not torch.equal(after, with_it) and not torch.equal(after, sample(patched(pack, "steer", flux, sae)))
    assert torch.equal(sample(lora), with_it) and torch.equal(sample(flux), plain)


def test_a_partly_loaded_model_is_edited_alike(pack, flux, loaded, monkeypatch):
    """With room for a few of its weights, ComfyUI casts the others, LoRA and all, when they are needed."""
    edited = patched(pack, "steer", with_lora(flux), loaded(pack("saeuron", "").Hookpoint(DOUBLE, "residual")))
    expected = sample(edited)
    comfy.model_management.unload_all_models()
    load = comfy.model_management.LoadedModel.model_load
    few = flux.model_size() // 4
    monkeypatch.setattr(comfy.model_management.LoadedModel, "model_load", lambda own, *_, **__: load(own, few))
    found, partly = sample(edited), flux.model.model_lowvram
    comfy.model_management.unload_all_models()
    assert partly
    # The LoRA is added when the weight is cast instead of before; both are float32.
    assert (found - expected).abs().max() < 1e-5


class Words:
    """A text encoder whose texts differ at random but for the word neon, which always adds the same."""

    layer_idx = None

    def __init__(self):
        self.cond_stage_model = torch.nn.Linear(1, 1)
        self.patcher = comfy.model_patcher.ModelPatcher(self.cond_stage_model, torch.device("cpu"), torch.device("cpu"))

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        [[context, more]] = conditioning(zlib.crc32(text.encode()))
        return [[context + 3 * ("neon" in text), more]]


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_concept_is_learnt_and_then_taken_out(pack, flux, loaded, tmp_path, monkeypatch, cfg):
    monkeypatch.setattr(pack("host.files"), "folder", lambda: tmp_path)
    sae = loaded(pack("saeuron", "").Hookpoint(DOUBLE, "residual"))
    sae.bundle.table = None
    latent, plain = {"samples": torch.zeros(1, CHANNELS, 8, 12)}, sample(flux)
    shows = "\n".join(f"a neon {thing}" for thing in ("heart", "ring", "star", "moon", "house", "tree"))
    lesson = ("neon", "style", shows, shows.replace("neon", "plain"))
    clip = Words()

    def learn(model):
        output = pack("learn").LearnConcept.execute(model, clip, sae, *lesson, 4, cfg, 0, latent)
        return output.args[0], output.ui.as_dict()["text"][0]

    taught, told = learn(flux)
    assert "48 model calls" in told and "100% of those it was not fitted to" in told
    assert "kept from before" in learn(flux)[1] and "48 model calls" in learn(with_lora(flux))[1]
    chosen = pack("concepts").ConceptSelector.execute(taught, "neon", 0, 0.0).args[0]
    without = pack("patches").FeatureAblatePatch.execute(flux, taught, chosen, "tuned", 1.0).args[0]
    assert torch.equal(sample(flux), plain)
    text = clip.encode_from_tokens_scheduled
    neon, other = text("a neon heart"), text("a plain heart")
    changed = sample(without, cfg, (8, 12), positive=neon) - sample(flux, cfg, (8, 12), positive=neon)
    spared = sample(without, cfg, (8, 12), positive=other) - sample(flux, cfg, (8, 12), positive=other)
    assert changed.norm() > 5 * spared.norm()


def test_a_unets_sae_and_one_of_another_width_are_refused(pack, flux, loaded):
    hookpoint = pack("saeuron", "").Hookpoint
    with pytest.raises(ValueError, match=r"not in this model; the nearest are transformer\."):
        patched(pack, "steer", flux, loaded(hookpoint("unet.up_blocks.1.attentions.1")))
    with pytest.raises(ValueError, match=r"reads tokens of width 16 and .* gives 32"):
        patched(pack, "steer", flux, loaded(hookpoint(DOUBLE), width=16))


def test_a_transformers_blocks_are_read_from_the_header_of_its_checkpoint(pack, hollow, tmp_path):
    models, files = pack("host.model_files"), pack("host.files")
    blocks = models._blocks(*files.stamp(hollow(full_flux(), tmp_path / "flux.safetensors")))
    assert len(blocks) == 19 + 38 and set(blocks.values()) == {3072}
    assert {"transformer.transformer_blocks.18", "transformer.single_transformer_blocks.37"} < set(blocks)


def full_flux():
    width = {"hidden_size": 3072, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56]}
    text = {"context_in_dim": 4096, "vec_in_dim": 768, "guidance_embed": True}
    latents = {"in_channels": CHANNELS, "out_channels": CHANNELS}
    return comfy.supported_models.Flux(COMFYUI_FLUX | {"image_model": "flux"} | width | text | latents)


REFUSED = {
    "a UNet's": ({"sae_name": "tinycanvas.safetensors"}, "not in this model; the nearest are transformer."),
    "another family's": (
        {"sae_name": "flux.safetensors", "hookpoint": "transformer.layers.12"},
        "'transformer.layers.12' is not in this model; the nearest are transformer.transformer_blocks.12",
    ),
    "another width": (
        {"sae_name": "flux.safetensors"},
        "reads tokens of width 16 and transformer.transformer_blocks.1",
    ),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_does_not_fit_a_transformer_is_told_when_the_workflow_is_queued(
    pack, hollow, tmp_path, monkeypatch, which
):
    import folder_paths

    loader, sentence = REFUSED[which]
    paths, extensions = folder_paths.folder_names_and_paths["saes"]
    for folder, own in (("saes", [str(tmp_path), *paths]), ("diffusion_models", [str(tmp_path)])):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, (own, extensions))
    sae = pack("saeuron", "").SparseAutoencoder(16, 64, k=8, hookpoint=pack("saeuron", "").Hookpoint(DOUBLE))
    checkpoints = pack("checkpoints", "saeuron.")
    checkpoints.save_bundle(checkpoints.Bundle(sae), tmp_path / "flux.safetensors")
    hollow(full_flux(), tmp_path / "model.safetensors")
    queued = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "model.safetensors"}},
        "2": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["1", 0], "lora_name": "any.safetensors"}},
        "3": {"class_type": "SAeUronLoader", "inputs": loader},
        "4": {"class_type": "SAeUronSteerPatch", "inputs": {"model": ["2", 0], "sae": ["3", 0], "latents": "3"}},
    }
    workflow = pack("host.workflow")
    monkeypatch.setattr(workflow, "_queued", SimpleNamespace(get=lambda: queued))
    told = workflow.told(pack("host.model_files").check_place, "3", "4")
    assert sentence in told and len(told) <= workflow.LONGEST


def test_an_sae_of_the_texts_stream_is_refused_on_the_loader(pack, tmp_path):
    guess = pack("host.guess").guess_hookpoint
    with pytest.raises(ValueError, match="read the text's stream"):
        guess("cc3m-FLUX.1-dev.transformer_blocks.18-0.safetensors", tmp_path / "own.safetensors")
