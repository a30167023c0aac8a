"""The options of this room's commands; what they do is imported when they run."""

from pathlib import Path

from ..common.options import Long, options

KINDS = ("object", "style")
"""What kinds of concepts TinyCanvas has."""

ORDER = (
    "none", "saeuron_paper", "saeuron", "saemnesia", "saemnesia_per", "gsae_per", "saeparate", "oracle",
    "learn_5", "learn_12", "learn_40", "default_unsupervised", "default",
)  # fmt: skip
"""The rows of the main table: nothing done, the methods, a model trained on without the concept, our own default."""

CONDITIONS: dict[str, dict[str, object]] = {
    "ddim 25": {"steps": 25},
    "ddim 10": {"steps": 10},
    "ddim 50": {"steps": 50},
    "ddim 100": {"steps": 100},
    "euler": {"sampler": "euler"},
    "dpm++2m": {"sampler": "dpm++2m"},
    "32 × 48": {"height": 32, "width": 48},
    "48 × 32": {"height": 48, "width": 32},
    "fine-tuned": {"finetuned": True},
}
"""Under which conditions a removal is tried again; what one does not name is as in the main table."""

QUICK: dict[str, object] = {
    "targets": ("circle", "star", "neon"),
    "images": 200,
    "train_batch": 1024,
    "train_steps": 600,
    "tune_steps": 300,
    "score_images": 180,
    "search_images": 12,
    "latents": (1, 4),
    "strengths": (-1.0, -10.0, -20.0),
    "seeds": 1,
    "steps": 15,
    "oracle_steps": 30,
    "extra_methods": ("default",),
    "extra_targets": ("star",),
    "conditions": ("ddim 10", "euler", "32 × 48"),
    "attack_seeds": 1,
}


@options
class Sizes:
    """What the SAEs of the league and the demo share."""

    expansion: int = 8
    """Latents per input channel."""
    k: int = 32
    """Active latents per token."""
    train_steps: int = 2500
    """Training steps of an SAE that begins from scratch."""
    tune_steps: int = 1500
    """Training steps of the supervised SAE that goes on from it: each concept is given a latent of its own."""


@options
class League(Long, Sizes):
    """Compare every method on TinyCanvas. Started again, it continues; finished rows are read, not made again."""

    output: Path = Path("out/league")
    """Folder for league.json, league.md, league.png and all that they are made from."""
    quick: bool = False
    """A small league in six minutes: few targets, pictures and steps. Wins over the options below."""
    methods: tuple[str, ...] = ORDER
    """Methods to compare."""
    targets: tuple[str, ...] = ()
    """Concepts to remove, each on its own; default all ten objects, and all styles but plain."""
    object_block: str = "unet.up_blocks.1.attentions.1"
    """Where objects are read and edited."""
    style_block: str = "unet.up_blocks.1.attentions.1"
    """Where styles are read and edited."""
    images: int = 600
    """Pictures recorded for the SAEs."""
    tokens_per_map: int = 32
    """Tokens kept of each feature map."""
    train_batch: int = 2048
    """Tokens per training step."""
    score_images: int = 540
    """Anchor pictures of each concept table."""
    search_images: int = 18
    """Anchor pictures per setting tried."""
    latents: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of latents that searches try (τ), of those a method may try."""
    strengths: tuple[float, ...] = (-1.0, -5.0, -10.0, -15.0, -20.0, -25.0, -30.0)
    """Multipliers that searches try (γ), of those a method may try."""
    seeds: int = 1
    """Pictures of each of the 90 evaluation prompts."""
    seed: int = 188
    """Seed of all that is made: recording, SAEs, tables, searches, lessons."""
    picture_seed: int = 2711
    """First seed of the pictures that are judged."""
    steps: int = 25
    """Denoising steps."""
    oracle_steps: int = 50
    """Training steps of each oracle, and of the fine-tuned copy."""
    extra_methods: tuple[str, ...] = ("saeuron", "saemnesia", "default_unsupervised", "default")
    """Methods that are also tried in sequence, on two concepts at once and under attack. The default and SAeUron are
    tried under other conditions too."""
    extra_targets: tuple[str, ...] = ("star", "neon")
    """Concepts that are removed under other conditions and under attack."""
    conditions: tuple[str, ...] = tuple(CONDITIONS)
    """Samplers, numbers of steps and sizes to try, and the model itself fine-tuned."""
    attack_seeds: int = 2
    """Pictures of each prompt that are attacked."""
    attack_iterations: int = 40
    """Gradient steps of each attack."""

    def run(self) -> None:
        from .league import league

        league(self)


@options
class Blocks(Long):
    """Train an SAE at every transformer block of TinyCanvas alone and compare what each can remove."""

    output: Path = Path("out/blocks")
    """Folder for the recordings, the SAEs, blocks.json and blocks.md."""
    targets: tuple[str, ...] = ("neon", "star")
    """Concepts to remove at each block."""
    images: int = 400
    """Images recorded."""
    tokens_per_map: int = 16
    """Tokens kept of each feature map."""
    expansion: int = 8
    """Latents per input channel."""
    k: int = 16
    """Active latents per token."""
    steps: int = 1500
    """Training steps of each SAE."""
    batch: int = 2048
    """Tokens per training step."""
    latents: tuple[int, ...] = (1, 4, 16)
    """Numbers of latents to try."""
    strengths: tuple[float, ...] = (-1.0, -5.0, -20.0)
    """Multipliers to try."""
    search_images: int = 30
    """Anchor pictures per setting tried."""
    seed: int = 0
    """Seed of everything."""

    def run(self) -> None:
        from .blocks import run

        run(self)


@options
class Oracle(Long):
    """Train TinyCanvas, which is the one model for this, on without concepts and keep the weights of its UNet."""

    output: Path
    """Folder for unet.safetensors."""
    without: tuple[str, ...]
    """Concepts whose captions get other drawings. None trains on as before: a fine-tuned copy."""
    steps: int = 100
    """Training steps."""
    batch: int = 48
    """Drawings a step, a third of them under captions of the removed concepts."""
    seed: int = 0
    """Seed of drawings, captions and noise."""

    def run(self) -> None:
        from .oracle import run

        run(self)


@options
class Demo(Long, Sizes):
    """Take three concepts out of TinyCanvas, one after another, and count what is left: six minutes on two cores."""

    output: Path = Path("out/demo")
    """Folder for everything that is made. A recording found there is continued or used again."""
    targets: tuple[str, ...] = ("neon", "heart", "moon")
    """Concepts to remove, each on its own."""
    hookpoint: str = "unet.up_blocks.1.attentions.1"
    """Where the SAE reads and the edit is made."""
    images: int = 300
    """Pictures recorded."""
    seeds: int = 2
    """Pictures of each of the 90 evaluation prompts."""
    seed: int = 0
    """Seed of everything."""

    def run(self) -> None:
        from .demo import demo

        demo(self)
