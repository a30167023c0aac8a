"""What a single-file Stable Diffusion checkpoint is, told from the shapes of its tensors.

Such a file holds weights under their original (LDM) names and no configs. diffusers fetches those from the hub; here
they are worked out, so that the file alone is enough. SD 1.x, SD 2.x and SDXL are known; numbers that all models of a
family share are written down, widths and depths are read from the shapes.
"""

from collections.abc import Mapping, Sequence

from saeuron import SaeuronError

Shapes = Mapping[str, Sequence[int]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = {  # family → where its text encoders are, and whether by CLIP's own names or by open_clip's
    "SD 1": {"text_encoder": ("cond_stage_model.transformer.text_model.", "clip")},
    "SD 2": {"text_encoder": ("cond_stage_model.model.", "open_clip")},
    "SDXL": {
        "text_encoder": ("conditioner.embedders.0.transformer.text_model.", "clip"),
        "text_encoder_2": ("conditioner.embedders.1.model.", "open_clip"),
    },
}
HEAD = 64  # channels of an attention head, but in SD 1, which has eight heads everywhere


def family(shapes: Shapes) -> str:
    """``SD 1``, ``SD 2`` or ``SDXL``; raises SaeuronError where it is none of them, or not one that draws from text."""
    entry = shapes.get(f"{UNET}input_blocks.0.0.weight")
    if entry is None:
        raise SaeuronError("it holds no UNet under Stable Diffusion's original names; SD 1.x, 2.x and SDXL are read")
    if entry[1] != 4:
        raise SaeuronError(f"its UNet takes {entry[1]} channels where one that draws from text takes 4")
    found = [name for name, encoders in CLIP.items() if all(_has(shapes, prefix) for prefix, _ in encoders.values())]
    if not found:
        raise SaeuronError("its text encoder is not that of SD 1.x, SD 2.x or SDXL")
    if not _has(shapes, f"{VAE}decoder."):
        raise SaeuronError("it holds no VAE; take a checkpoint that has one")
    return found[0]


def configs(shapes: Shapes, prediction: str = "epsilon") -> dict[str, dict]:
    """The config of every component, by the name of its folder, and of the pipeline as ``model_index``.

    ``prediction`` is the scheduler's ``prediction_type``. Raises SaeuronError as `family` does.
    """
    kind = family(shapes)
    components = {
        "unet": _unet(shapes, kind, prediction),
        "vae": _vae(shapes, kind),
        "scheduler": _scheduler(prediction),
    }
    components |= {name: _text(shapes, prefix, layout) for name, (prefix, layout) in CLIP[kind].items()}
    return {"model_index": _index(kind)} | components


def _has(shapes: Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered modules lie under ``prefix``."""
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})


def _unet(shapes: Shapes, kind: str, prediction: str) -> dict:
    width = shapes[f"{UNET}input_blocks.0.0.weight"][0]
    is_xl = kind == "SDXL"
    widths = [width * factor for factor in ((1, 2, 4) if is_xl else (1, 2, 4, 4))]
    first = f"{UNET}input_blocks.{4 if is_xl else 1}.1."
    attends = (False, True, True) if is_xl else (True, True, True, False)
    config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128 if is_xl else 96 if prediction == "v_prediction" else 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": widths,
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)],
        "cross_attention_dim": shapes[f"{first}transformer_blocks.0.attn2.to_k.weight"][1],
        "attention_head_dim": 8 if kind == "SD 1" else [channels // HEAD for channels in widths],
        "use_linear_projection": len(shapes[f"{first}proj_in.weight"]) == 2,
        "upcast_attention": kind == "SD 2",
    }
    if is_xl:
        depths = [_count(shapes, f"{UNET}input_blocks.{block}.1.transformer_blocks.") for block in (4, 7)]
        config |= {
            "transformer_layers_per_block": [1, *depths],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shapes[f"{UNET}label_emb.0.0.weight"][1],
        }
    return config


def _vae(shapes: Shapes, kind: str) -> dict:
    width = shapes[f"{VAE}encoder.conv_in.weight"][0]
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": 1024 if kind == "SDXL" else 512,
        "latent_channels": 4,
        "block_out_channels": [width, 2 * width, 4 * width, 4 * width],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "scaling_factor": 0.13025 if kind == "SDXL" else 0.18215,
        "force_upcast": kind == "SDXL",
    }


def _text(shapes: Shapes, prefix: str, layout: str) -> dict:
    is_open = layout == "open_clip"
    embeddings = "token_embedding" if is_open else "embeddings.token_embedding"
    vocabulary, width = shapes[f"{prefix}{embeddings}.weight"]
    positions = "positional_embedding" if is_open else "embeddings.position_embedding.weight"
    layers = _count(shapes, f"{prefix}transformer.resblocks." if is_open else f"{prefix}encoder.layers.")
    projection = shapes.get(f"{prefix}text_projection")
    # SD 2 was trained on what comes out of the last layer but one, and diffusers builds no layer behind that.
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers - (prefix == CLIP["SD 2"]["text_encoder"][0]),
        "num_attention_heads": width // HEAD,
        "max_position_embeddings": shapes[f"{prefix}{positions}"][0],
        "hidden_act": "gelu" if is_open else "quick_gelu",
        "projection_dim": projection[1] if projection else width,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def _scheduler(prediction: str) -> dict:
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def _index(kind: str) -> dict:
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    if kind == "SDXL":
        index |= {
            "_class_name": "StableDiffusionXLPipeline",
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "image_encoder": [None, None],
        }
        del index["safety_checker"]
    return index
