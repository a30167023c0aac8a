"""SAEs as managed models: counted and loaded with the model they edit, and cloned with it.

Clones are for another device, or without dynamic memory; each edits with an SAE of its own. `cpu:0` stands in for a
second device: ComfyUI tells it from `cpu`, torch does not.
"""

import comfy.model_management
import comfy.model_patcher
import comfy.multigpu
import pytest
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel

SECOND = torch.device("cpu", 0)
ROUNDING = 1e-4
"""Of values around 1: a matrix product sums in an order that depends on where its factors lie in memory."""

multigpu = pytest.mark.skipif(
    not hasattr(comfy.model_patcher.ModelPatcher, "deepclone_multigpu"), reason="this ComfyUI knows no second device"
)
dynamic = pytest.mark.skipif(
    not hasattr(comfy.model_patcher, "ModelPatcherDynamic"), reason="this ComfyUI has no dynamic memory"
)


def own_saes(pack, model):
    return [patcher.model for patcher in model.get_additional_models_with_key(pack("host.memory").KEY)]


@pytest.fixture
def used(pack, monkeypatch):
    """The SAEs that encoded something, by identity."""
    autoencoder, seen = pack("saeuron.autoencoder", ""), []
    encode = autoencoder.SparseAutoencoder.pre_activations

    def spy(sae, *args, **kwargs):
        if not any(sae is other for other in seen):
            seen.append(sae)
        return encode(sae, *args, **kwargs)

    monkeypatch.setattr(autoencoder.SparseAutoencoder, "pre_activations", spy)
    return seen


def test_an_sae_left_on_another_device_serves_all_the_same(pack, sae):
    moved = pack("host.memory").on_device(sae.sae, torch.device("meta"))
    assert {parameter.device.type for parameter in moved.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in sae.sae.parameters()} == {"cpu"}
    assert moved.fingerprint == sae.sae.fingerprint


def test_the_sae_is_loaded_and_counted_with_the_model(tinycanvas, neon, sae):
    model = neon(neon(tinycanvas[0]), start_percent=0.5)
    (loaded,) = model.get_nested_additional_models()
    assert loaded.model is sae.sae and loaded.model_size() >= sae.sae.W_enc.nbytes + sae.sae.W_dec.nbytes


@multigpu
@pytest.mark.parametrize("mode", ["tuned", "ablate", "replace"])
def test_a_clone_for_another_device_edits_alike_with_an_sae_of_its_own(pack, tinycanvas, neon, sae, sample, used, mode):
    patched = neon(tinycanvas[0], mode=mode)
    wanted = sample(patched)
    used.clear()
    clone = patched.deepclone_multigpu(new_load_device=SECOND)
    (own,) = own_saes(pack, clone)
    assert own is not sae.sae and own.fingerprint == sae.sae.fingerprint
    assert clone.model is not patched.model
    assert [patcher.load_device for patcher in clone.get_additional_models()] == [SECOND]
    encodes = mode != "tuned"  # this SAE's concepts are redirected, which takes no encode
    assert (sample(clone) - wanted).abs().max() < ROUNDING
    assert used == ([own] if encodes else [])
    used.clear()
    assert torch.equal(sample(patched), wanted)
    assert used == ([sae.sae] if encodes else [])


@multigpu
@pytest.mark.parametrize("order", ["patched before", "patched after"])
def test_prompts_shared_out_over_two_devices_are_edited_on_both(
    pack, tinycanvas, neon, sae, sample, used, monkeypatch, order
):
    devices = [comfy.model_management.get_torch_device(), SECOND]
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: devices)
    wanted = sample(neon(tinycanvas[0], mode="ablate"), negative="An image of circle in neon style.")
    used.clear()
    if order == "patched before":
        model = comfy.multigpu.create_multigpu_deepclones(neon(tinycanvas[0], mode="ablate"), 2)
    else:
        model = neon(comfy.multigpu.create_multigpu_deepclones(tinycanvas[0], 2), mode="ablate")
    found = sample(model, negative="An image of circle in neon style.")
    # One prompt a batch instead of two: matrix products round otherwise.
    assert (found - wanted).abs().max() < 1e-3
    (second,) = model.get_additional_models_with_key("multigpu")
    (own,) = own_saes(pack, second)
    assert own is not sae.sae and len(used) == 2 and all(any(one is other for other in used) for one in (own, sae.sae))


@multigpu
def test_a_probe_sees_the_same_on_another_device(pack, tinycanvas, sae, sample, used):
    chosen = pack("concepts").ConceptSelector.execute(sae, "neon", 0, 0.0).args[0]
    model, record = pack("feature_maps").FeatureProbe.execute(tinycanvas[0], sae, "3", chosen).args
    sample(model)
    wanted = record.seen
    used.clear()
    clone = model.deepclone_multigpu(new_load_device=SECOND)
    sample(clone)
    assert used == own_saes(pack, clone)
    differences = [
        (maps - wanted[name][t]).abs().max() for name, seen in record.seen.items() for t, maps in seen.items()
    ]
    assert differences and max(differences) < ROUNDING


@pytest.fixture
def dynamic_memory(monkeypatch):
    """Dynamic memory as far as a CPU has it: every patcher says that it is dynamic, unless asked not to be."""

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)


@dynamic
def test_the_compile_nodes_clone_of_a_dynamic_model_edits_alike(pack, tinycanvas, neon, sample, dynamic_memory):
    wanted = sample(neon(tinycanvas[0]))
    model = pack("tinycanvas").TinyCanvas.execute().args[0]
    loaded = pack("loader").SaeLoader.execute("tinycanvas.safetensors").args[0]
    chosen = pack("concepts").ConceptSelector.execute(loaded, "neon", 0, 0.0).args[0]
    patched = pack("patches").FeatureAblatePatch.execute(model, loaded, chosen, "tuned", 1.0).args[0]
    assert patched.is_dynamic() and loaded.patcher.is_dynamic()
    compiled = TorchCompileModel.execute(patched, "inductor").args[0]
    assert not compiled.is_dynamic() and compiled.model is not patched.model
    (own,) = compiled.get_additional_models_with_key(pack("host.memory").KEY)
    alone = own.clone(disable_dynamic=True)
    assert not alone.is_dynamic() and alone.model.fingerprint == loaded.sae.fingerprint
    # As the node clones it, but run as it is: to compile takes a minute, and `test_patching` has compiled models.
    assert torch.equal(sample(patched.clone(disable_dynamic=True)), wanted)


@multigpu
def test_an_sae_file_that_has_changed_is_not_taken_for_the_one_that_was_loaded(pack, tmp_path):
    memory, checkpoints = pack("host.memory"), pack("saeuron.checkpoints", "")
    saes = [pack("saeuron.autoencoder", "").SparseAutoencoder(128, 256, 4) for _ in range(2)]
    for sae in saes:
        torch.nn.init.normal_(sae.W_enc)
        checkpoints.save_sae(sae, tmp_path)
    patcher = memory.manage_sae(saes[0], tmp_path)
    with pytest.raises(ValueError, match="has changed"):
        patcher.deepclone_multigpu(new_load_device=SECOND)


def test_an_sae_that_no_model_manages_is_copied_in_passing(pack, tinycanvas, sae):
    memory = pack("host.memory")
    assert memory.own_sae(sae.sae, tinycanvas[0].model, torch.device("cpu")) is sae.sae
    moved = memory.own_sae(sae.sae, tinycanvas[0].model, torch.device("meta"))
    assert moved.W_enc.device.type == "meta" and sae.sae.W_enc.device.type == "cpu"
