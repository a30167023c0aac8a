"""The hook in a real ComfyUI: every way of sampling, and nothing left behind."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from comfy_extras.nodes_torch_compile import set_torch_compile_wrapper

import nodes as comfyui_nodes


def hooks_left(model):
    return sum(len(module._forward_hooks) for module in model.model.diffusion_model.modules())


class Witness:
    """Remembers which rows it was told are meant, at which timesteps, and how many tokens it saw."""

    def __init__(self):
        self.places, self.shapes, self.finished = [], [], None

    def begin(self, model):
        self.places, self.shapes = [], []

    def see(self, tokens, place):
        self.places.append(place)
        self.shapes.append(tuple(tokens.shape))

    def end(self, finished):
        self.finished = finished


@pytest.fixture
def watched(pack, sae):
    """``watched(model, applies_to)`` gives a model, its witness, and the model's own calls (x, t, context)."""

    def watch(model, applies_to="positive"):
        witness, calls = Witness(), []

        def spy(executor, x, t, c_concat=None, c_crossattn=None, *args, **kwargs):
            calls.append(
                (x.shape, t.clone(), c_crossattn.clone(), float(executor.class_obj.model_sampling.timestep(t[:1])[0]))
            )
            return executor(x, t, c_concat, c_crossattn, *args, **kwargs)

        patching = pack("host.patching")
        model = patching.attach(model, patching.Patch(sae.hookpoint, observer=witness, applies_to=applies_to))
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "spy", spy)
        return model, witness, calls

    return watch


def assert_roles_are_right(witness, calls, positives):
    """The rows named positive are those whose context is one of ``positives``."""
    assert len(witness.places) == len(calls) > 0
    for place, (_, _, context, timestep) in zip(witness.places, calls, strict=True):
        positive = torch.stack([torch.stack([(row == p).all() for p in positives]).any() for row in context])
        assert torch.equal(place.rows, positive)
        assert place.timestep == timestep


def context_of(conditioning):
    return conditioning[0][0][0]


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "ddim"])
@pytest.mark.parametrize("cfg", [3.0, 1.0])
def test_roles_and_timesteps_with_guidance(tinycanvas, watched, sample, prompt, sampler, cfg):
    model, witness, calls = watched(tinycanvas[0])
    positive, negative = prompt("a neon heart"), prompt("a plain circle")
    sample(model, positive, negative, cfg=cfg, sampler=sampler)
    assert_roles_are_right(witness, calls, [context_of(positive)])
    assert witness.finished


def test_roles_with_areas(tinycanvas, watched, sample, prompt):
    model, witness, calls = watched(tinycanvas[0])
    left, rest = prompt("a neon heart"), prompt("a plain circle")
    positive = comfyui_nodes.ConditioningSetArea().append(left, 64, 128, 0, 0, 1.0)[0] + rest
    sample(model, positive, prompt("a candy moon"), shape=(2, 16, 32))
    assert_roles_are_right(witness, calls, [context_of(left), context_of(rest)])


def guided(guider, seed=7, steps=4):
    latent = torch.zeros(1, 12, 16, 16)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
    return guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=seed)


@pytest.mark.parametrize("nested", [False, True])
def test_roles_with_two_prompts_of_their_own_guidance(tinycanvas, watched, prompt, nested):
    model, witness, calls = watched(tinycanvas[0])
    first, second, negative = (prompt(text) for text in ("a neon heart", "a candy moon", "a plain circle"))
    guider = Guider_DualCFG(model)
    guider.set_conds(first, second, negative)
    guider.set_cfg(3.0, 2.0, nested=nested)
    guided(guider)
    assert_roles_are_right(witness, calls, [context_of(first), context_of(second)])


def test_roles_with_perp_neg(tinycanvas, watched, prompt):
    model, witness, calls = watched(tinycanvas[0])
    positive, negative, empty = (prompt(text) for text in ("a neon heart", "a candy moon", ""))
    guider = Guider_PerpNeg(model)
    guider.set_conds(positive, negative, empty)
    guider.set_cfg(3.0, 1.0)
    guided(guider)
    assert_roles_are_right(witness, calls, [context_of(positive)])


def test_roles_with_perturbed_attention(tinycanvas, watched, sample, prompt):
    model, witness, calls = watched(PerturbedAttentionGuidance.execute(tinycanvas[0], 2.0).args[0])
    positive = prompt("a neon heart")
    sample(model, positive, "a plain circle")
    assert len(calls) == 12, "the guidance asks for a call of its own each step"
    assert_roles_are_right(witness, calls, [context_of(positive)])


def test_the_size_is_read_from_the_tensor(tinycanvas, watched, sample):
    model, witness, _ = watched(tinycanvas[0])
    sample(model, shape=(3, 16, 24), steps=2)
    assert {(place.height, place.width) for place in witness.places} == {(8, 12)}
    assert witness.places[0].pictures.tolist() == [0, 1, 2, 0, 1, 2]


def test_the_edit_changes_the_picture_and_disconnecting_it_restores_every_bit(tinycanvas, neon, sample):
    before = sample(tinycanvas[0])
    edited = sample(neon(tinycanvas[0]))
    assert not torch.equal(before, edited)
    assert torch.equal(before, sample(tinycanvas[0]))
    assert hooks_left(tinycanvas[0]) == 0


def test_the_same_edit_gives_the_same_picture(tinycanvas, neon, sample):
    model = neon(tinycanvas[0])
    assert torch.equal(sample(model), sample(model))


def test_strength_zero_leaves_the_model_itself(tinycanvas, neon):
    assert neon(tinycanvas[0], strength=0.0) is tinycanvas[0]


def test_a_picture_does_not_depend_on_its_batch(tinycanvas, neon, sample):
    model = neon(tinycanvas[0])
    noise = torch.randn(3, 12, 16, 16, generator=torch.Generator().manual_seed(3))
    together = sample(model, latent=noise, shape=(3, 16, 16))
    assert together.shape == (3, 12, 16, 16)
    # Batched matrix products round otherwise than single ones.
    alone = sample(model, latent=noise[:1])
    assert (together[:1] - alone).abs().max() < 1e-3


@pytest.mark.parametrize("applies_to", ["positive", "negative"])
def test_an_edit_of_one_side_differs_from_an_edit_of_both(tinycanvas, neon, sample, applies_to):
    both, one = neon(tinycanvas[0]), neon(tinycanvas[0], applies_to=applies_to)
    results = [sample(model, negative="An image of circle in neon style.") for model in (tinycanvas[0], both, one)]
    assert not any(torch.equal(results[2], other) for other in results[:2])


def test_outside_its_window_an_edit_does_nothing(tinycanvas, neon, sample):
    """Ablated, since that goes on to the end; redirected, the concept is gone by then and nothing is left to do."""
    early = neon(tinycanvas[0], mode="ablate", start_percent=0.0, end_percent=0.5)
    late = neon(tinycanvas[0], mode="ablate", start_percent=0.5, end_percent=1.0)
    whole, nothing = sample(neon(tinycanvas[0], mode="ablate")), sample(tinycanvas[0])
    results = [sample(early), sample(late), whole, nothing]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
    both = sample(neon(neon(tinycanvas[0], mode="ablate", end_percent=0.5), mode="ablate", start_percent=0.5))
    assert torch.equal(both, whole)


def test_a_mask_of_zeros_leaves_every_bit_and_one_of_ones_edits_all(tinycanvas, neon, sample):
    assert torch.equal(sample(neon(tinycanvas[0], mask=torch.zeros(1, 32, 32))), sample(tinycanvas[0]))
    assert torch.equal(sample(neon(tinycanvas[0], mask=torch.ones(1, 32, 32))), sample(neon(tinycanvas[0])))


@pytest.mark.parametrize("shape", [(1, 32, 64), (2, 32, 32)])
def test_a_mask_that_does_not_fit_is_refused_before_sampling(tinycanvas, neon, sample, shape):
    with pytest.raises(ValueError, match="the mask"):
        sample(neon(tinycanvas[0], mask=torch.ones(shape)))
    assert hooks_left(tinycanvas[0]) == 0


@pytest.mark.parametrize("mode", ["tuned", "ablate"])
def test_two_patches_alike_share_one_encode(tinycanvas, neon, sample, pack, mode):
    one = neon(tinycanvas[0], "neon, star", mode=mode)
    two = neon(neon(tinycanvas[0], mode=mode), "star", mode=mode)
    assert len([p for p in two.get_attachment(pack("host.memory").KEY) if p.edit is not None]) == 1
    assert torch.equal(sample(one), sample(two))


def test_a_window_of_the_sampling_is_one_of_timesteps(tinycanvas, pack, sae):
    """It covers what ComfyUI's own comparison of sigmas covers, but for the timestep in whose middle it may end."""
    sampling = tinycanvas[0].get_model_object("model_sampling")
    steps = torch.arange(1000)
    sigmas = sampling.sigma(steps)
    for start, end in ((0.0, 1.0), (0.0, 0.5), (0.25, 0.75), (0.123, 0.987), (0.5, 0.5)):
        window = pack("host.patching").Patch(sae.hookpoint, start=start, end=end).window(sampling)
        inside = (sigmas <= sampling.percent_to_sigma(start)) & (sigmas >= sampling.percent_to_sigma(end))
        covered = torch.tensor([window.covers(t) for t in steps.tolist()])
        differ = steps[covered != inside]
        assert all(min(abs(999 * (1 - edge) - t) for edge in (start, end)) <= 0.5 for t in differ.tolist())


def test_a_window_follows_the_sampling_that_a_later_node_sets(tinycanvas, neon, sample):
    """Zero terminal SNR moves every sigma, and so the timesteps at which a sampling is half done."""
    half = neon(tinycanvas[0], mode="ablate", end_percent=0.5)
    models = (tinycanvas[0], half, neon(tinycanvas[0], mode="ablate"))
    results = [sample(ModelSamplingDiscrete().patch(model, "v_prediction", True)[0]) for model in models]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


def test_img2img(tinycanvas, neon, watched, sample):
    model, witness, _ = watched(neon(tinycanvas[0]))
    latent = torch.rand(1, 12, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sample(model, latent=latent, denoise=0.5)
    assert max(place.timestep for place in witness.places) < 600
    plain = sample(tinycanvas[0], latent=latent, denoise=0.5)
    assert not torch.equal(plain, sample(neon(tinycanvas[0]), latent=latent, denoise=0.5))


def test_lora_and_edit_go_together(tinycanvas, neon, sample):
    key = "diffusion_model.output_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    weight = tinycanvas[0].model.state_dict()[key]
    patch = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * weight.std()
    adapted = tinycanvas[0].clone()
    adapted.add_patches({key: (patch,)})
    results = [sample(m) for m in (tinycanvas[0], adapted, neon(adapted), neon(tinycanvas[0]))]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
    assert torch.equal(results[0], sample(tinycanvas[0]))


def test_an_exception_leaves_no_hook(tinycanvas, neon, sample):
    model = neon(tinycanvas[0])

    def fail(executor, *args, **kwargs):
        raise RuntimeError("out of memory")

    broken = model.clone()
    broken.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fail", fail)
    before = sample(tinycanvas[0])
    with pytest.raises(RuntimeError, match="out of memory"):
        sample(broken)
    assert hooks_left(tinycanvas[0]) == 0
    assert torch.equal(before, sample(tinycanvas[0]))


def test_an_interrupt_leaves_no_hook_and_tells_the_observer(tinycanvas, watched, sample):
    model, witness, _ = watched(tinycanvas[0])

    def stop(step, *_):
        if step == 2:
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, callback=stop)
    assert hooks_left(tinycanvas[0]) == 0 and witness.finished is False


@pytest.fixture
def scarce_memory(pack, monkeypatch):
    """Call with a number: an edit of more maps at once is out of memory. Gives how many each edit was given."""
    ablate, given = pack("saeuron.edits", "").Ablate, []
    apply = ablate.apply

    def arm(most):
        def scarce(edit, flat, maps, *rest):
            given.append(maps)
            if maps > most:
                raise comfy.model_management.OOM_EXCEPTION("out of memory")
            return apply(edit, flat, maps, *rest)

        monkeypatch.setattr(ablate, "apply", scarce)
        return given

    return arm


def test_an_edit_that_is_out_of_memory_is_made_of_fewer_maps_at_once_and_says_so(
    tinycanvas, neon, sample, scarce_memory, caplog
):
    model, shape = neon(tinycanvas[0], mode="ablate"), (3, 16, 16)
    wanted = sample(model, shape=shape, steps=1)
    given = scarce_memory(2)
    found = sample(model, shape=shape, steps=1)
    assert given == [6, 3, 1, 1, 1, 1, 1, 1], "both prompts of three pictures"
    # Batched matrix products round otherwise than single ones.
    assert (found - wanted).abs().max() < 1e-3
    assert "out of memory in an edit; trying again with 1 maps at once" in caplog.text


def test_where_not_even_one_map_has_room_the_error_is_the_hosts_and_nothing_stays(
    tinycanvas, neon, sample, scarce_memory
):
    before = sample(tinycanvas[0])
    scarce_memory(0)
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        sample(neon(tinycanvas[0], mode="ablate"))
    assert hooks_left(tinycanvas[0]) == 0
    assert torch.equal(before, sample(tinycanvas[0]))


def test_compiled_models_are_edited_too(tinycanvas, neon, sample):
    """Also when the compiled model ran unpatched first, and again afterwards."""
    compiled = tinycanvas[0].clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    plain, edited = sample(tinycanvas[0]), sample(neon(tinycanvas[0]))
    # Dynamo's graph calls the same kernels in another order.
    assert (sample(compiled) - plain).abs().max() < 1e-3
    assert (sample(neon(compiled)) - edited).abs().max() < 1e-3
    assert (sample(compiled) - plain).abs().max() < 1e-3


def test_another_block(tinycanvas, watched, pack, sample, sae):
    patching, hookpoint = pack("host.patching"), type(sae.hookpoint)("unet.mid_block.attentions.0", "residual")
    witness = Witness()
    sample(patching.attach(tinycanvas[0], patching.Patch(hookpoint, observer=witness)), steps=1)
    assert witness.shapes == [(2, 16, 128)]


def test_a_hookpoint_that_is_not_there_names_the_nearest(tinycanvas, pack, sae):
    with pytest.raises(ValueError, match=r"unet\.up_blocks\.1\.attentions\.1"):
        pack("host.blocks").block_of(tinycanvas[0].model, type(sae.hookpoint)("unet.up_blocks.1.attentions.7"))


def test_an_sae_of_another_width_is_refused(tinycanvas, pack, sae):
    wide = pack("saeuron.autoencoder", "").SparseAutoencoder(1280, 2560, 4)
    with pytest.raises(ValueError, match=r"1280.*128"):
        pack("host.blocks").check_width(wide, tinycanvas[0].model, sae.hookpoint)
