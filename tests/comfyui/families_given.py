"""Small transformers of every family, with random weights: what both hosts are told to build and to be given."""

SIZES = {"square": (8, 8), "wide": (8, 12), "odd": (9, 14)}
# ComfyUI's PixArt counts places from 512 pixels on, and takes whole patches alone.
PIXART_SIZES = {"square": (64, 64), "wide": (48, 80), "tall": (64, 48)}
# The two hosts count an odd number of rows from different middles in Qwen-Image.
QWEN_SIZES = SIZES | {"odd": (7, 11)}
SIGMA = 0.5
CHANNELS = 4
TEXT, POOLED, LENGTH = 24, 12, 7

FLUX = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
}
QWEN = {
    "in_channels": 16,
    "out_channels": CHANNELS,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 6, 6),
}
# ComfyUI's class, the configuration there, and the one in diffusers.
COMFYUI_FLUX = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "context_in_dim": TEXT,
    "hidden_size": 32,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "txt_ids_dims": [],
}
FAMILIES = {
    "FluxTransformer2DModel": {
        "diffusers": FLUX | {"pooled_projection_dim": POOLED, "guidance_embeds": True, "axes_dims_rope": (4, 6, 6)},
        "model": "Flux",
        "comfyui": COMFYUI_FLUX | {"image_model": "flux", "vec_in_dim": POOLED, "guidance_embed": True},
    },
    "Flux2Transformer2DModel": {
        "diffusers": FLUX | {"in_channels": CHANNELS, "axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": True},
        "model": "Flux2",
        "comfyui": COMFYUI_FLUX
        | {
            "image_model": "flux2",
            "vec_in_dim": None,
            "guidance_embed": True,
            "mlp_ratio": 3.0,
            "axes_dim": [4, 4, 4, 4],
            "theta": 2000,
            "patch_size": 1,
            "qkv_bias": False,
            "ops_bias": False,
            "global_modulation": True,
            "mlp_silu_act": True,
            "default_ref_method": "index",
            "ref_index_scale": 10.0,
            "txt_ids_dims": [3],
        },
    },
    "ChromaTransformer2DModel": {
        "diffusers": FLUX
        | {
            "axes_dims_rope": (4, 6, 6),
            "approximator_num_channels": 64,
            "approximator_hidden_dim": 32,
            "approximator_layers": 2,
        },
        "model": "Chroma",
        "comfyui": COMFYUI_FLUX
        | {
            "image_model": "chroma",
            "in_channels": 16,
            "out_channels": 16,
            "in_dim": 64,
            "out_dim": 32,
            "hidden_dim": 32,
            "n_layers": 2,
            "vec_in_dim": POOLED,
        },
    },
    "SD3Transformer2DModel": {
        "diffusers": {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_layers": 3,
            "attention_head_dim": 64,
            "num_attention_heads": 3,
            "joint_attention_dim": TEXT,
            "caption_projection_dim": 192,
            "pooled_projection_dim": POOLED,
            "pos_embed_max_size": 16,
            "qk_norm": "rms_norm",
            "dual_attention_layers": (0,),
        },
        "model": "SD3",
        "comfyui": None,
    },
    "QwenImageTransformer2DModel": {
        "diffusers": QWEN | {"patch_size": 2},
        "model": "QwenImage",
        "comfyui": QWEN | {"image_model": "qwen_image"},
    },
    "ZImageTransformer2DModel": {
        "diffusers": {
            "in_channels": CHANNELS,
            "dim": 256,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 8,
            "n_kv_heads": 8,
            "cap_feat_dim": TEXT,
            "axes_dims": [8, 12, 12],
            "axes_lens": [256, 64, 64],
        },
        "model": "ZImage",
        "comfyui": {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": CHANNELS,
            "dim": 256,
            "cap_feat_dim": TEXT,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "qk_norm": True,
            "n_heads": 8,
            "n_kv_heads": 8,
            "axes_dims": [8, 12, 12],
            "axes_lens": [256, 64, 64],
            "rope_theta": 256.0,
            "multiple_of": 1,
            "ffn_dim_multiplier": 8.0 / 3.0,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
    },
    "PixArtTransformer2DModel": {
        "diffusers": {
            "num_attention_heads": 4,
            "attention_head_dim": 12,
            "in_channels": CHANNELS,
            "out_channels": 2 * CHANNELS,
            "num_layers": 2,
            "cross_attention_dim": 48,
            "sample_size": 64,
            "caption_channels": TEXT,
            "use_additional_conditions": False,
        },
        "model": "PixArtSigma",
        "comfyui": {
            "image_model": "pixart_sigma",
            "micro_condition": False,
            "num_heads": 4,
            "patch_size": 2,
            "hidden_size": 48,
            "in_channels": CHANNELS,
            "depth": 2,
            "caption_channels": TEXT,
            "model_max_length": LENGTH,
            "pe_interpolation": 1.0,
        },
    },
}
WITH_REFERENCES = ("FluxTransformer2DModel", "Flux2Transformer2DModel", "QwenImageTransformer2DModel")


def cases(family: str) -> dict[str, dict]:
    """By name, what a call of ``family`` is given: the latents' size, how many pictures, and whether a reference."""
    sizes = {"PixArtTransformer2DModel": PIXART_SIZES, "QwenImageTransformer2DModel": QWEN_SIZES}.get(family, SIZES)
    found = {name: {"size": size, "batch": 1, "reference": False} for name, size in sizes.items()}
    found["batch"] = {"size": sizes["wide"], "batch": 3, "reference": False}
    if family in WITH_REFERENCES:
        found["reference"] = {"size": sizes["wide"], "batch": 2, "reference": True}
    return found
