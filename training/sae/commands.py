"""The options of this room's commands; what they do is imported when they run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..common.options import Concepts, Device, Long, Pictures, Prompts, Sae, Shared, options


@options
class Record(Long, Pictures, Prompts):
    """Record activations of a diffusion model while it draws prompts. Started again, it continues; with more images,
    it grows."""

    output: Path
    """Folder for the recordings, one subfolder a hookpoint."""
    prompts: str = "tinycanvas:training"
    hookpoints: tuple[str, ...] = ("unet.up_blocks.1.attentions.1",)
    """Transformer blocks to read, in diffusers' naming."""
    site: str = "output"
    """What of the block is read: output, or residual (output − input)."""
    images: int | None = None
    """Number of images; default one a prompt. Prompts are shuffled and repeat when there are fewer."""
    steps: int = 50
    tokens_per_map: int = 16
    """Tokens kept of each feature map, chosen at random. Only the conditional half is recorded."""
    images_per_shard: int = 64
    """Images whose tokens are shuffled together into one shard file."""
    max_gb: float = 10.0
    """The most the recordings may take on disk, in GB (10⁹ bytes), all hookpoints together."""

    def run(self) -> None:
        from .record import run

        run(self)


@dataclass(kw_only=True)
class Weights:
    """What each supervised loss counts beside the reconstruction: SAEmnesia's values, and SAEParate's term left out."""

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


@options
class Train(Long, Device, Weights):
    """Train a sparse autoencoder on a recording, or while a model draws. Started again, it continues where its last
    checkpoint was; what is finished is not trained again, or with more --steps trained on."""

    output: Path
    """Folder for the SAE, its checkpoint and its logs."""
    recording: Path | None = None
    """Folder of one recording (the one that holds manifest.json)."""
    stream: Path | None = None
    """In place of a recording, a file of `record`'s options (YAML or JSON): its tokens are drawn when they are needed,
    and never written. Four shards of --images-per-shard are in memory at a time."""
    expansion: int = 16
    """Latents per input channel."""
    k: int = 32
    """Active latents per token."""
    activation: str = "batch_topk"
    """batch_topk (k·B largest of a batch, one threshold afterwards), topk (k largest of each token), or sigmoid_topk
    (those through a sigmoid, as in G-SAE)."""
    steps: int | None = None
    """Optimiser steps; default what `epochs` amounts to. A finished training goes on where this is more than it had:
    Adam's moments begin anew, and the learning rate is at every step what it is in a training of so many steps."""
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
    seed: int = 0
    """Seed of the initialisation and of the order of tokens."""
    device: str = "cpu"
    """cpu or cuda. On a GPU the matrix products run under bfloat16 autocast."""
    bf16: bool = False
    """Run the matrix products under bfloat16 autocast on the CPU too."""
    log_every: int = 100
    """Steps between lines on the console and points in TensorBoard."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""

    def run(self) -> None:
        from .train import run

        run(self)


@options
class Score(Long, Pictures, Prompts, Sae):
    """Draw labelled prompts and average what every latent does, per concept and timestep."""

    output: Path
    """The concept table to write, a .safetensors file."""
    prompts: str = "tinycanvas:anchor"
    images: int | None = None
    """Number of images; default one a prompt. Prompts are shuffled and repeat when there are fewer."""
    seed: int = 1
    """Seed of the prompt order and the images."""

    def run(self) -> None:
        from .score import run

        run(self)


@options
class Learn(Long, Pictures, Concepts):
    """Teach an SAE a word, from prompts or pictures that show it and others that do not. Started again, it
    continues."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """The word, such as neon."""
    output: Path
    """Bundle to write (.safetensors): the SAE, with all that was known and the word. What is finished is kept beside
    it, in NAME.lesson.safetensors."""
    kind: str = ""
    """object or style; default neither, which is learnt as a style is."""
    shows: str | None = None
    """Prompt file of pictures that show it; default twelve that are made of the word."""
    lacks: str | None = None
    """Prompt file of pictures that do not; default twelve of ordinary scenes."""
    images: Path | None = None
    """Folder of pictures that show it, in place of prompts: nothing is sampled."""
    other_images: Path | None = None
    """Folder of pictures that do not, to go with --images."""

    def run(self) -> None:
        from .learn import run

        run(self)


@options
class BuildAtlas(Long, Pictures, Prompts, Sae):
    """Draw prompts and keep what every latent does in an atlas, to be looked at in ComfyUI. Started again, it
    continues."""

    output: Path
    """Folder for the atlas; ComfyUI looks for it beside the SAE, as mine.atlas for mine.safetensors."""
    prompts: str = "tinycanvas:anchor"
    images: int | None = None
    """Number of images; default one a prompt. Prompts are shuffled and repeat when there are fewer."""
    part: tuple[int, int] | None = None
    """Draw only the images from the first number up to, not including, the second: a part to be merged later."""
    merge: tuple[Path, ...] = ()
    """Draw nothing: make one atlas of these two, which hold different parts."""

    def run(self) -> None:
        from .atlas import run

        run(self)


@options
class Build(Long, Pictures, Prompts, Shared):
    """Make an SAE of your own in one command: train while the model draws, score where prompts say what they show, and
    bundle. Started again, it continues."""

    output: Path
    """Bundle to write (.safetensors), such as models/saes/mine.safetensors. The work lies beside it, in mine.build."""
    prompts: str = "tinycanvas:training"
    hookpoint: str = "unet.up_blocks.1.attentions.1"
    """Transformer block to read, in diffusers' naming."""
    site: str = "output"
    """What of the block is read: output, or residual (output − input)."""
    images: int | None = None
    """Number of images to train on; default one a prompt."""
    score_images: int | None = None
    """Number of images to score with; default one a prompt."""
    steps: int = 50
    tokens_per_map: int = 16
    """Tokens kept of each feature map, chosen at random."""
    stream: bool = True
    """Keep the tokens in memory, a few pictures' at a time. Without it all are recorded on disk first, and an epoch is
    a pass over all of them."""
    max_gb: float = 10.0
    """Without --stream, the most the recording may take on disk, in GB (10⁹ bytes)."""
    expansion: int = 16
    """Latents per input channel."""
    k: int = 32
    """Active latents per token."""
    epochs: int = 5
    """Passes over the tokens of each picture."""
    train_steps: int | None = None
    """Optimiser steps; default what `epochs` amounts to."""
    train_batch: int = 4096
    """Tokens per optimiser step."""
    lr: float = 3e-4
    """Adam's learning rate."""

    def run(self) -> None:
        from .build import run

        run(self)
