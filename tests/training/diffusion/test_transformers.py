"""Pipelines around a transformer in diffusers: what taps see, what edits leave, and the commands from end to end."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from saeuron import Hookpoint, SaeuronError
from saeuron.checkpoints import load_bundle
from saeuron.hookpoints import names
from tinycanvas.model import load_tokenizer
from training.__main__ import main
from training.diffusion.hook import hooked
from training.diffusion.hookpoints import places
from training.diffusion.load import load_model
from training.diffusion.sampling import generate, timesteps_of
from training.sae.commands import Record
from training.sae.sources import Streamed

PROMPTS = ["a neon heart", "a plain circle"]

HEADS = {"attention_head_dim": 8, "num_attention_heads": 2}
SMALL = HEADS | {"sample_size": 8, "in_channels": 4, "num_layers": 2}


def parts(kind: str) -> dict:
    torch.manual_seed(3)
    tokenizer = load_tokenizer()
    size = len(tokenizer)
    text = CLIPTextConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        eos_token_id=size - 1,
        bos_token_id=size - 2,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        shift_factor=0.1,
    )
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    if kind == "FluxPipeline":
        transformer = diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            **HEADS,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(2, 2, 4),
        )
        encoders = {"text_encoder": CLIPTextModel(text), "text_encoder_2": CLIPTextModel(text)}
        tokenizers = {"tokenizer": tokenizer, "tokenizer_2": tokenizer}
        return {"transformer": transformer, "vae": vae, "scheduler": flow, **encoders, **tokenizers}
    if kind == "StableDiffusion3Pipeline":
        transformer = diffusers.SD3Transformer2DModel(
            out_channels=4,
            **SMALL,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
        )
        encoders = {name: CLIPTextModelWithProjection(text) for name in ("text_encoder", "text_encoder_2")}
        others = {"text_encoder_3": None, "tokenizer_3": None, "tokenizer": tokenizer, "tokenizer_2": tokenizer}
        return {"transformer": transformer, "vae": vae, "scheduler": flow, **encoders, **others}
    transformer = diffusers.PixArtTransformer2DModel(
        **SMALL,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=16,
        use_additional_conditions=False,
    )
    t5 = T5EncoderModel(T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    return {
        "transformer": transformer,
        "vae": vae,
        "scheduler": DDIMScheduler(),
        "text_encoder": t5,
        "tokenizer": tokenizer,
    }


@pytest.fixture(scope="module", params=["FluxPipeline", "StableDiffusion3Pipeline", "PixArtSigmaPipeline"])
def folder(request, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    getattr(diffusers, request.param)(**parts(request.param)).save_pretrained(place)
    return place


@pytest.fixture
def pipeline(folder):
    return load_model(str(folder))


def draw(pipeline, taps=None, **options):
    how = {"steps": 2, "guidance": 3.0, "height": 16, "width": 24} | options
    return generate(pipeline, PROMPTS, [1, 2], taps=taps, **how)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_taps_are_told_the_timestep_and_the_prompts_own_rows(pipeline, guidance):
    """With guidance and without, alone and stacked: the rows of the prompt are those that it alone decides."""
    hookpoint = Hookpoint(names(pipeline.transformer)[-1])
    calls = {}
    for negative in ("a moon", "sepia"):
        own = calls[negative] = []

        def tap(tokens, timestep, conditional, own=own):
            own.append((timestep, tokens.clone(), conditional))
            return tokens

        draw(pipeline, {hookpoint: tap}, guidance=guidance, steps=1, negative_prompt=negative)
    for (timestep, one, conditional), (_, other, _) in zip(calls["a moon"], calls["sepia"], strict=True):
        same = (one == other).flatten(1).all(1)
        expected = torch.zeros(len(one), dtype=torch.bool)
        expected[conditional] = True
        assert torch.equal(same, expected)
        assert round(timestep) in timesteps_of(pipeline, sampling_of(steps=1))


def sampling_of(**options):
    from training.diffusion.sampling import Sampling

    return Sampling(**({"height": 16, "width": 24} | options))


def test_tokens_are_those_of_the_grid(pipeline):
    latents = (16 // pipeline.vae_scale_factor, 24 // pipeline.vae_scale_factor)
    for name, width, rows, columns in places(pipeline.transformer, *latents):
        shapes = set()
        draw(pipeline, {Hookpoint(name): lambda tokens, *_, shapes=shapes: shapes.add(tokens.shape[1:]) or tokens})
        assert shapes == {(rows * columns, width)}


@pytest.mark.parametrize("site", ["output", "residual"])
def test_an_empty_edit_is_bit_identical_and_an_edit_leaves_nothing_behind(pipeline, site):
    plain = draw(pipeline)
    hookpoint = Hookpoint(names(pipeline.transformer)[0], site)
    assert torch.equal(draw(pipeline, {hookpoint: lambda tokens, *_: tokens}), plain)
    assert not torch.equal(draw(pipeline, {hookpoint: lambda tokens, *_: tokens + 1}), plain)
    assert torch.equal(draw(pipeline), plain)
    assert not pipeline.transformer._forward_pre_hooks


def test_a_mask_is_on_the_pictures_grid(pipeline):
    mask = torch.zeros(16, 24)
    mask[:, 12:] = 1
    seen = []

    def tap(tokens, _timestep, _conditional, mask):
        seen.append(mask)
        return tokens

    with hooked(pipeline, {Hookpoint(names(pipeline.transformer)[0]): tap}, mask):
        draw(pipeline, steps=1)
    rows, columns = places(pipeline.transformer, 16 // pipeline.vae_scale_factor, 24 // pipeline.vae_scale_factor)[0][
        2:
    ]
    assert torch.equal(seen[0].view(rows, columns)[0], (torch.arange(columns) >= columns // 2).float())


def test_a_unets_hookpoint_is_refused_with_the_nearest(pipeline):
    with pytest.raises(SaeuronError, match=r"not in this model; the nearest are transformer\."):
        draw(pipeline, {Hookpoint("unet.up_blocks.1.attentions.1"): lambda tokens, *_: tokens})


def test_the_commands_from_end_to_end(folder, tmp_path, capsys):
    """hookpoints, build (which records, trains and scores) and generate, on an SAE of a transformer's block."""
    place = names(load_model(str(folder)).transformer)[0]
    assert main(["hookpoints", str(folder), "--json"]) == 0
    assert place in {row["hookpoint"] for row in json.loads(capsys.readouterr().out)}
    rows = [{"prompt": f"a {style} heart", "style": style} for style in ("neon", "plain", "sepia")]
    prompts, bundle = tmp_path / "prompts.jsonl", tmp_path / "mine.safetensors"
    prompts.write_text("\n".join(json.dumps(row) for row in rows))
    how = ["--steps", "2", "--height", "16", "--width", "24", "--model", str(folder)]
    build = ["build", "--prompts", str(prompts), "--output", str(bundle), "--hookpoint", place, "--tokens-per-map", "8"]
    assert main([*build, "--expansion", "2", "--k", "4", "--train-steps", "2", "--train-batch", "8", *how]) == 0
    assert load_bundle(bundle).sae.hookpoint.name == place
    remove = ["generate", "--sae", str(bundle), "--remove", "neon", "--prompt", "a neon heart", *how]
    assert main([*remove, "--output", str(tmp_path / "pictures")]) == 0
    assert (tmp_path / "pictures" / "after-0000.png").exists()


def test_a_training_that_streams_draws_as_many_tokens_as_it_plans_for(folder, pipeline, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"a {style} heart"}) for style in ("neon", "plain", "sepia")))
    place = names(pipeline.transformer)[-1]
    size = {"height": 16, "width": 24, "steps": 2, "tokens_per_map": 1000}
    recipe = Record(
        prompts=str(prompts), output=tmp_path, model=str(folder), hookpoints=[place], images_per_shard=2, **size
    )
    streamed = Streamed(recipe, pipeline)
    latents = (16 // pipeline.vae_scale_factor, 24 // pipeline.vae_scale_factor)
    _, _, rows, columns = places(pipeline.transformer, *latents)[0]
    assert len(streamed.held_out().activations) == streamed.per_picture == 2 * rows * columns
