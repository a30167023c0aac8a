"""TinyCanvas: the embedded small model as ComfyUI's own MODEL, CLIP and VAE, from the files in the pack."""

import json
from fractions import Fraction
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from torch import nn

from .host import workflow
from .host.memory import manage
from .host.sockets import bounded, schema
from .host.telling import tell

WEIGHTS = Path(__file__).parents[1] / "tinycanvas" / "weights"
DOWNSCALE, SIDE = 2, 16
"""Pixels a side of a latent's place, and places a side of the latents it was trained on."""


class TinyCanvas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronTinyCanvas",
            display_name="TinyCanvas",
            description="A small model that draws ten objects in nine styles at 32 × 32, to try the nodes without a "
            "checkpoint. `An image of heart in sepia style.` Give the sampler its LATENT, 25 steps, CFG 3.",
            search_aliases=["example model"],
            inputs=[
                bounded("batch_size", 4, (1, 64), optional=True, tooltip="Pictures in the latent given here."),
                bounded(
                    "enlarge",
                    8,
                    (1, 16),
                    optional=True,
                    tooltip="How many times larger its VAE gives the pictures, so that they can be looked at.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.Clip.Output(),
                io.Vae.Output(),
                io.Latent.Output(tooltip="Empty, of the size the model draws."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, batch_size: int = 1, enlarge: int = 1) -> io.NodeOutput:
        # What is left out is as it was in workflows that are older than the two inputs.
        model = load_model()
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "saeuron_size", warn_of_size(workflow.number(cls)))
        latent = {"samples": torch.zeros(batch_size, PixelLatents.latent_channels, SIDE, SIDE)}
        return io.NodeOutput(model, load_clip(), PixelVae(enlarge), latent | {"downscale_ratio_spacial": DOWNSCALE})


def warn_of_size(node_id: str | None):
    """A wrapper of the sampling that tells, under the node, of pictures larger than the model knows."""

    def wrapper(executor, noise, *args, **kwargs):
        height, width = (DOWNSCALE * side for side in noise.shape[-2:])
        if max(height, width) > 2 * DOWNSCALE * SIDE:
            asked = f"TinyCanvas is asked for {width} × {height} and draws {DOWNSCALE * SIDE} × {DOWNSCALE * SIDE}"
            tell(node_id, f"⚠ {asked}: connect its own LATENT to the sampler", warn=True)
        return executor(noise, *args, **kwargs)

    return wrapper


class PixelLatents(comfy.latent_formats.LatentFormat):
    """Twelve channels at half the resolution: pixels, unshuffled."""

    latent_channels = 12
    spacial_downscale_ratio = DOWNSCALE


class Multiple(Fraction):
    """Channels of a level, as a multiple of the first level's: ComfyUI multiplies, and wants a whole number back."""

    def __mul__(self, other: int) -> int:
        return int(Fraction(self) * other)

    __rmul__ = __mul__


def operations(groups: int) -> type:
    """ComfyUI's layers with ``groups`` groups in every normalisation, where its UNet would write 32."""

    class Operations(comfy.ops.manual_cast):
        class GroupNorm(comfy.ops.manual_cast.GroupNorm):
            def __init__(self, num_groups: int, *args, **kwargs) -> None:
                super().__init__(groups, *args, **kwargs)

    return Operations


def load_model(disable_dynamic: bool = False) -> ModelPatcher:
    """MODEL, which ComfyUI makes anew for another device, or without dynamic memory."""
    config = json.loads((WEIGHTS / "unet" / "config.json").read_text())
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    down = [int("CrossAttn" in kind) for kind in config["down_block_types"]]
    up = [int("CrossAttn" in kind) for kind in config["up_block_types"]]
    model_config = comfy.supported_models.SD15(
        {
            "image_size": config["sample_size"],
            "in_channels": config["in_channels"],
            "out_channels": config["out_channels"],
            "model_channels": channels[0],
            "channel_mult": [Multiple(c, channels[0]) for c in channels],
            "num_res_blocks": [layers] * len(channels),
            "transformer_depth": [depth for depth in down for _ in range(layers)],
            # ComfyUI takes these from the end.
            "transformer_depth_output": [depth for depth in reversed(up) for _ in range(layers + 1)],
            "transformer_depth_middle": 1,
            "context_dim": config["cross_attention_dim"],
            "use_spatial_transformer": True,
            "use_linear_in_transformer": False,
            "legacy": False,
            "adm_in_channels": None,
            "use_temporal_attention": False,
        }
    )
    model_config.unet_config |= {"num_heads": config["attention_head_dim"], "num_head_channels": -1}
    model_config.latent_format = PixelLatents()
    model_config.custom_operations = operations(config["norm_num_groups"])
    model_config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(model_config, comfy.model_base.ModelType.V_PREDICTION)
    names = comfy.utils.unet_to_diffusers(model_config.unet_config)
    stored = comfy.utils.load_torch_file(str(WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors"))
    model.diffusion_model.load_state_dict({names[name]: tensor.float() for name, tensor in stored.items()})
    patcher = manage(model, disable_dynamic)
    patcher.cached_patcher_init = (load_model, ())
    return patcher


class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None) -> None:
        config = json.loads((WEIGHTS / "text_encoder" / "config.json").read_text())

        def tokenizer(**options):
            return comfy.sd1_clip.SDTokenizer(
                str(WEIGHTS / "tokenizer"),
                max_length=config["max_position_embeddings"],
                embedding_size=config["hidden_size"],
                **options,
            )

        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=tokenizer)


class TextModel(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None) -> None:
        config = json.loads((WEIGHTS / "text_encoder" / "config.json").read_text())
        special = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["pad_token_id"]}
        super().__init__(
            device=device,
            max_length=config["max_position_embeddings"],
            textmodel_json_config=config,
            dtype=dtype,
            special_tokens=special,
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class ClipModel(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None) -> None:
        super().__init__(device, dtype, model_options or {}, clip_model=TextModel)


def load_clip(disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """CLIP; its patcher is made anew as MODEL's is."""

    class Target:
        params: dict = {}  # noqa: RUF012 (ComfyUI copies it)
        clip, tokenizer = ClipModel, Tokenizer

    options = {"disable_dynamic": True} if disable_dynamic else {}  # which older ComfyUIs neither ask for nor know
    clip = comfy.sd.CLIP(Target, model_options={"dtype": torch.float32}, **options)
    clip.patcher.cached_patcher_init = (_load_clip_patcher, ())
    stored = comfy.utils.load_torch_file(str(WEIGHTS / "text_encoder" / "model.safetensors"))
    prefix = "" if any(name.startswith("text_model.") for name in stored) else "text_model."
    stored = {prefix + name: tensor for name, tensor in stored.items()}
    # ComfyUI's text model always has room for CLIP's whole vocabulary; ours is the beginning of it.
    name = "text_model.embeddings.token_embedding.weight"
    room = torch.zeros(clip.cond_stage_model.state_dict()[f"clip_l.transformer.{name}"].shape)
    room[: len(stored[name])] = stored[name]
    clip.load_sd(stored | {name: room})
    return clip


def _load_clip_patcher(disable_dynamic: bool = False) -> ModelPatcher:
    return load_clip(disable_dynamic).patcher


class PixelVae:
    """What nodes ask of a VAE, with the lossless pixel shuffle in its place. Images are ``[B, H, W, 3]`` in 0..1.

    They are ``enlarge`` times as large as the model draws them, each pixel a square.
    """

    latent_channels = PixelLatents.latent_channels
    patcher = None

    def __init__(self, enlarge: int = 1) -> None:
        self.enlarge = enlarge
        self.downscale_ratio = self.upscale_ratio = DOWNSCALE * enlarge

    def decode(self, latents: torch.Tensor, *_, **__) -> torch.Tensor:
        pixels = (nn.functional.pixel_shuffle(latents.float(), DOWNSCALE) / 2 + 0.5).clamp(0, 1)
        return nn.functional.interpolate(pixels, scale_factor=self.enlarge, mode="nearest").movedim(1, -1)

    def encode(self, images: torch.Tensor, *_, **__) -> torch.Tensor:
        pixels = images[..., :3].movedim(-1, 1) * 2 - 1
        height, width = (size // self.downscale_ratio * self.downscale_ratio for size in pixels.shape[-2:])
        pixels = nn.functional.avg_pool2d(pixels[..., :height, :width], self.enlarge)
        return nn.functional.pixel_unshuffle(pixels, DOWNSCALE)

    decode_tiled, encode_tiled = decode, encode

    def spacial_compression_decode(self) -> int:
        return self.downscale_ratio

    spacial_compression_encode = spacial_compression_decode

    def temporal_compression_decode(self) -> None:
        return None

    temporal_compression_encode = temporal_compression_decode
