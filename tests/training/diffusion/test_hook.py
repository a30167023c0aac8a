import dataclasses

import pytest
import torch

from saeuron import Ablate, Hookpoint, SaeuronError
from saeuron.hookpoints import to_tokens
from training.diffusion.hook import editing, hooked
from training.diffusion.load import load_model
from training.diffusion.sampling import Sampling, generate

HOOKPOINT = Hookpoint("unet.up_blocks.1.attentions.1")
RESIDUAL = Hookpoint(HOOKPOINT.name, "residual")
OTHER = Hookpoint("unet.mid_block.attentions.0")
PROMPTS = ["An image of star in neon style.", "An image of circle.", "An image of heart in candy style."]

# What the samplers of diffusers say to the numpy of today.
SAYS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# Matrix products of other sizes add in another order; three guided steps make some 1e-6 of that in pixels of 0..1.
REORDERED = {"rtol": 0, "atol": 1e-4}


def draw(pipeline, prompts=PROMPTS[:2], seeds=None, **options):
    named = {"steps": 3, "guidance": 3.0} | options
    return generate(pipeline, prompts, seeds or range(len(prompts)), **named)


def hooks(pipeline):
    modules = [*pipeline.unet.modules(), *pipeline.text_encoder.modules(), *pipeline.vae.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def seen_at(pipeline, hookpoint, **options):
    """What a tap that changes nothing is told at every call: (tokens, timestep, conditional)."""
    calls = []

    def tap(tokens, timestep, conditional):
        calls.append((tokens, timestep, conditional))
        return tokens

    images = draw(pipeline, taps={hookpoint: tap}, **options)
    return calls, images


@pytest.fixture
def ablate(make_sae, make_table):
    """An edit that changes tokens wherever it runs."""
    sae = make_sae()
    return Ablate(sae, make_table(sae).select("neon", 32, strength=-5.0))


@pytest.fixture(params=["no latents", "only empty places"])
def empty(request, make_sae, make_table):
    """An edit of nothing."""
    sae = make_sae()
    chosen = make_table(sae).select("neon", 0 if request.param == "no latents" else 2)
    selection = dataclasses.replace(chosen, latents=torch.full_like(chosen.latents, -1))
    assert selection.is_empty
    return Ablate(sae, selection)


@pytest.mark.parametrize("size", [{}, {"height": 32, "width": 48}])
def test_an_edit_with_an_empty_selection_gives_the_same_images_bit_for_bit(pipeline, empty, size):
    assert torch.equal(draw(pipeline, taps=editing({HOOKPOINT: [empty]}), **size), draw(pipeline, **size))


def test_reading_changes_nothing_bit_for_bit(pipeline):
    for hookpoint in (HOOKPOINT, RESIDUAL):
        assert torch.equal(seen_at(pipeline, hookpoint)[1], draw(pipeline))


def test_after_an_edit_the_model_is_what_it_was(pipeline, ablate):
    before, count = draw(pipeline), hooks(pipeline)
    edited = draw(pipeline, taps=editing({HOOKPOINT: [ablate], OTHER: []}))
    assert not torch.equal(edited, before)
    assert hooks(pipeline) == count
    assert torch.equal(draw(pipeline), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_within_an_edit_leaves_no_hook_behind(pipeline, error):
    count, during = hooks(pipeline), []

    def tap(tokens, timestep, conditional):
        during.append(hooks(pipeline))
        raise error

    with pytest.raises(error):
        draw(pipeline, taps={OTHER: lambda tokens, *_: tokens, HOOKPOINT: tap})
    assert during == [count + 3], "two taps and one that remembers the timestep"
    assert hooks(pipeline) == count


def test_a_hookpoint_that_is_not_there_leaves_no_hook_behind(pipeline):
    count = hooks(pipeline)
    taps = {HOOKPOINT: lambda tokens, *_: tokens, Hookpoint("unet.up_blocks.9"): lambda tokens, *_: tokens}
    with pytest.raises(SaeuronError, match="the nearest are"), hooked(pipeline, taps):
        pass
    assert hooks(pipeline) == count


@pytest.mark.parametrize("edited", [False, True])
def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in(pipeline, ablate, edited):
    taps = editing({HOOKPOINT: [ablate]} if edited else {})
    together = draw(pipeline, PROMPTS, [5, 6, 7], taps=taps)
    for n, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(draw(pipeline, [prompt], [5 + n], taps=taps)[0], together[n], **REORDERED)
    assert (draw(pipeline, PROMPTS[:1], [6], taps=taps)[0] - together[0]).abs().max() > 0.01, "another seed does matter"


@SAYS
@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler-a", "dpm++2m", "heun"])
def test_a_table_of_25_ddim_steps_works_with_any_number_of_steps_of_any_sampler(ablate, sampler, steps):
    pipeline = load_model("tinycanvas", sampler=sampler)
    before = draw(pipeline, PROMPTS[:1], steps=steps)
    after = draw(pipeline, PROMPTS[:1], steps=steps, taps=editing({HOOKPOINT: [ablate]}))
    assert after.isfinite().all() and after.shape == (1, 3, 32, 32)
    assert not torch.equal(after, before)


@SAYS
def test_a_sampler_that_calls_the_model_twice_a_step_tells_each_call_its_own_timestep():
    pipeline = load_model("tinycanvas", sampler="heun")
    calls, _ = seen_at(pipeline, HOOKPOINT, steps=3)
    assert [timestep for _, timestep, _ in calls] == pipeline.scheduler.timesteps.tolist()
    assert len(calls) > 3


@pytest.mark.parametrize(("height", "width"), [(48, 32), (32, 48), (40, 56)])
def test_images_need_not_be_square_nor_of_the_table_s_size(pipeline, ablate, height, width):
    before = draw(pipeline, height=height, width=width)
    after = draw(pipeline, height=height, width=width, taps=editing({HOOKPOINT: [ablate]}))
    assert after.isfinite().all() and after.shape == (2, 3, height, width)
    assert not torch.equal(after, before)


def test_the_residual_is_the_output_minus_the_input(pipeline):
    expected = []
    handle = HOOKPOINT.module(pipeline.unet).register_forward_hook(
        lambda _module, args, output: expected.append(to_tokens(output[0] - args[0]))
    )
    try:
        calls, _ = seen_at(pipeline, RESIDUAL)
    finally:
        handle.remove()
    assert len(calls) == len(expected) == 3
    assert all(torch.equal(tokens, plain) for (tokens, _, _), plain in zip(calls, expected, strict=True))


def test_what_is_added_to_the_residual_arrives_at_the_output(pipeline):
    add = [lambda tokens, _timestep: tokens + 0.5]
    by_residual, by_output = (draw(pipeline, taps=editing({h: add})) for h in (RESIDUAL, HOOKPOINT))
    assert not torch.equal(by_output, draw(pipeline))
    # (output − input) + ½ + input rounds otherwise than output + ½.
    torch.testing.assert_close(by_residual, by_output, **REORDERED)


def test_edits_at_one_hookpoint_run_in_order(pipeline):
    double, add = (lambda tokens, _: tokens * 2), (lambda tokens, _: tokens + 1)
    both = draw(pipeline, taps=editing({HOOKPOINT: [double, add]}))
    assert torch.equal(both, draw(pipeline, taps=editing({HOOKPOINT: [lambda tokens, _: tokens * 2 + 1]})))


def test_without_guidance_every_row_is_conditional(pipeline, ablate):
    calls, images = seen_at(pipeline, HOOKPOINT, guidance=1.0)
    assert [(len(tokens), conditional) for tokens, _, conditional in calls] == [(2, slice(0, 2))] * 3
    assert not torch.equal(draw(pipeline, guidance=1.0, taps=editing({HOOKPOINT: [ablate]})), images)


def test_with_guidance_the_second_half_is_conditional(pipeline):
    guided, plain = (seen_at(pipeline, HOOKPOINT, guidance=guidance)[0][0] for guidance in (3.0, 1.0))
    assert (len(guided[0]), guided[2]) == (4, slice(2, 4))
    # Of the same noise: rows of a larger batch, see REORDERED; activations are of order 1 to 10.
    torch.testing.assert_close(guided[0][guided[2]], plain[0], rtol=1e-4, atol=1e-4)
    assert (guided[0][:2] - plain[0]).abs().max() > 0.01, "the unconditional rows are others"


def test_size_guidance_precision_and_edits_reach_the_pipeline(pipeline):
    seen = []

    def tap(tokens, _timestep, conditional):
        seen.append((tokens.shape, tokens.dtype, conditional, torch.is_autocast_enabled("cpu")))
        return tokens + 0.1

    options = {"steps": 1, "guidance": 3.0, "height": 24, "width": 40, "bf16": True}
    images = generate(pipeline, ["a star"], [0], Sampling(**options), {HOOKPOINT: tap})
    assert images.shape == (1, 3, 24, 40)
    ((shape, dtype, conditional, autocast),) = seen
    unedited, plain = (
        generate(pipeline, ["a star"], [0], Sampling(**options | {"bf16": own})) for own in (True, False)
    )
    assert shape[0] == 2 and conditional == slice(1, 2), "both halves of guidance"
    assert dtype == torch.bfloat16 and not autocast, "an edit is worked out in the precision that it asks for"
    assert not torch.equal(images, unedited) and not torch.equal(unedited, plain)
    unguided = generate(pipeline, ["a star"], [0], Sampling(**options | {"bf16": False, "guidance": 1.0}))
    assert not torch.equal(plain, unguided)
