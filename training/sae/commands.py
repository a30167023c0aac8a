"""The options of this room's commands; what they do is imported when they run."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Record:
    """Record activations of a diffusion model while it draws prompts. Started again, it continues."""

    output: Path
    """Folder for the recordings, one subfolder a hookpoint."""
    model: str = "tinycanvas"
    """`tinycanvas`, a diffusers folder, or a single-file checkpoint."""
    prompts: str = "tinycanvas:training"
    """Prompt file (.txt or .jsonl), or tinycanvas:training | anchor | evaluation."""
    hookpoints: tuple[str, ...] = ("unet.up_blocks.1.attentions.1",)
    """Transformer blocks to read, in diffusers' naming."""
    site: str = "output"
    """What of the block is read: output, or residual (output − input)."""
    images: int | None = None
    """Number of images; default one a prompt. Prompts are shuffled and repeat when there are fewer."""
    steps: int = 50
    """Denoising steps."""
    guidance: float = 3.0
    """Classifier-free guidance scale. Only the conditional half is recorded."""
    sampler: str = "ddim"
    """ddim, euler, euler-a, dpm++2m or heun."""
    height: int | None = None
    """Height in pixels; default the model's own."""
    width: int | None = None
    """Width in pixels; default the model's own."""
    tokens_per_map: int = 16
    """Tokens kept of each feature map, chosen at random."""
    images_per_shard: int = 64
    """Images whose tokens are shuffled together into one shard file."""
    batch: int = 16
    """Images drawn at once."""
    max_gb: float = 10.0
    """The most the recordings may take on disk, in GB (10⁹ bytes), all hookpoints together."""
    seed: int = 0
    """Seed of the prompt order, the images and the choice of tokens."""
    device: str = "cpu"
    """cpu or cuda."""
    bf16: bool = False
    """Run the model under bfloat16 autocast."""

    def run(self) -> None:
        from .record import record

        record(self)


@dataclass
class Train:
    """Train a sparse autoencoder on a recording. Started again, it continues where its last checkpoint was; what is
    finished is not trained again."""

    recording: Path
    """Folder of one recording (the one that holds manifest.json)."""
    output: Path
    """Folder for the SAE, its checkpoint and its logs."""
    expansion: int = 16
    """Latents per input channel."""
    k: int = 32
    """Active latents per token."""
    activation: str = "batch_topk"
    """batch_topk (k·B largest of a batch, one threshold afterwards), topk (k largest of each token), or sigmoid_topk
    (those through a sigmoid, as in G-SAE)."""
    steps: int | None = None
    """Optimiser steps; default what `epochs` amounts to."""
    epochs: int = 5
    """Passes over the recording, where `steps` is not given."""
    batch: int = 4096
    """Tokens per step."""
    lr: float = 3e-4
    """Adam's learning rate; decays linearly to 0 over the last four fifths of the steps."""
    aux: float = 1 / 32
    """Weight of the auxiliary loss that revives dead latents."""
    k_aux: int | None = None
    """Dead latents used by the auxiliary loss per token; default half the input width."""
    dead_after: int = 10_000_000
    """A latent counts as dead once it has not fired for this many tokens."""
    init: Path | None = None
    """SAE to train on from, in place of random weights; its number of latents, k and activation hold."""
    labels: tuple[str, ...] = ()
    """Kinds of the recorded prompts' labels that supervise the training, such as `object style`; default none."""
    table: Path | None = None
    """Concept table of `init`, whose scores assign each concept its latent; without one they are drawn at random."""
    bce: float = 3.0
    """With labels: weight of the cross-entropy that makes assigned latents name what an image shows (SAEmnesia)."""
    decorrelation: float = 0.1
    """With labels: weight of the squared correlation between assigned latents of different kinds (SAEmnesia)."""
    l1: float = 0.01
    """With labels: weight of the mean absolute pre-activation (SAEmnesia)."""
    contrast: float = 0.0
    """With labels: weight of the contrastive loss that gathers the codes of a concept (SAEParate)."""
    temperature: float = 0.07
    """Temperature of the contrastive loss."""
    seed: int = 0
    """Seed of the initialisation and of the order of tokens."""
    device: str = "cpu"
    """cpu or cuda. On a GPU the matrix products run under bfloat16 autocast."""
    log_every: int = 100
    """Steps between lines on the console and points in TensorBoard."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""

    def run(self) -> None:
        from .train import train

        train(self)


@dataclass
class Score:
    """Draw labelled prompts and average what every latent does, per concept and timestep."""

    sae: Path
    """Folder of the SAE (cfg.json and sae.safetensors)."""
    output: Path
    """The concept table to write, a .safetensors file."""
    model: str = "tinycanvas"
    """`tinycanvas`, a diffusers folder, or a single-file checkpoint."""
    prompts: str = "tinycanvas:anchor"
    """Prompt file (.jsonl with concepts), or tinycanvas:training | anchor | evaluation."""
    images: int | None = None
    """Number of images; default one a prompt. Prompts are shuffled and repeat when there are fewer."""
    steps: int = 25
    """Denoising steps; the table's timesteps."""
    guidance: float = 3.0
    """Classifier-free guidance scale. Only the conditional half is read."""
    sampler: str = "ddim"
    """ddim, euler, euler-a, dpm++2m or heun."""
    height: int | None = None
    """Height in pixels; default the model's own."""
    width: int | None = None
    """Width in pixels; default the model's own."""
    batch: int = 16
    """Images drawn at once."""
    seed: int = 1
    """Seed of the prompt order and the images."""
    device: str = "cpu"
    """cpu or cuda."""
    bf16: bool = False
    """Run the model under bfloat16 autocast."""

    def run(self) -> None:
        from .score import run

        run(self)
