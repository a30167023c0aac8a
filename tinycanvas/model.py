"""The small diffusion model, in diffusers' and transformers' own classes, with Stable Diffusion's module names.

Text enters at 8 × 8 and 4 × 4 only: whatever the picture shows has passed ``up_blocks.1`` on its way to the last level.
A lossless pixel-unshuffle stands in for the VAE: 32 × 32 × 3 pixels are 16 × 16 × 12 latents.
"""

from pathlib import Path

import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .judge import Judge

WEIGHTS = Path(__file__).parent / "weights"
MAX_TOKENS = 16
DOWNSCALE = 2


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=12,
        out_channels=12,
        block_out_channels=(48, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(vocab_size: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
            projection_dim=128,
        )
    )


def load_tokenizer(folder: Path = WEIGHTS) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    options = {"padding": "max_length", "max_length": MAX_TOKENS, "truncation": True, "return_tensors": "pt"}
    return tokenizer(texts, **options).input_ids


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's scaled-linear schedule with v-prediction, as in SD 2.x-v."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def to_latents(images: torch.Tensor) -> torch.Tensor:
    return nn.functional.pixel_unshuffle(images, DOWNSCALE)


def to_images(latents: torch.Tensor) -> torch.Tensor:
    return nn.functional.pixel_shuffle(latents, DOWNSCALE)


class PixelVAE(ModelMixin, ConfigMixin):
    """What a pipeline asks of a VAE, with the lossless pixel shuffle in its place."""

    @register_to_config
    def __init__(self, scaling_factor: float = 1.0, latent_channels: int = 12, sample_size: int = 32) -> None:
        super().__init__()
        self.register_to_config(block_out_channels=(1, 1), force_upcast=False)
        self._anchor = nn.Parameter(torch.zeros(()), requires_grad=False)  # gives the module a dtype and a device

    def encode(self, images: torch.Tensor, **_: object) -> AutoencoderTinyOutput:
        return AutoencoderTinyOutput(latents=to_latents(images))

    def decode(self, latents: torch.Tensor, return_dict: bool = True, **_: object) -> DecoderOutput | tuple:
        images = to_images(latents)
        return DecoderOutput(sample=images) if return_dict else (images,)


def load_judge(folder: Path = WEIGHTS) -> Judge:
    judge = Judge()
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "judge.safetensors").items()})
    return judge.eval().requires_grad_(False)


def load_pipeline(folder: Path = WEIGHTS) -> StableDiffusionPipeline:
    """TinyCanvas as an ordinary Stable Diffusion pipeline: ``pipeline("An image of circle in neon style.")``."""
    pipeline = StableDiffusionPipeline(
        vae=PixelVAE(),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        tokenizer=load_tokenizer(folder),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.text_encoder):
        module.eval().requires_grad_(False)
    return pipeline
