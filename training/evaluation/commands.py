"""The options of this room's commands; what they do is imported when they run."""

from dataclasses import dataclass, field
from pathlib import Path

from ..common.options import Command, Concepts, Device, Long, Pictures, Prompts, Removal, options


@dataclass(kw_only=True)
class Judged:
    """What says which concepts pictures show."""

    judge: str | None = None
    """tinycanvas, the default for its own pictures; clip:FOLDER, transformers' CLIP, zero-shot; or
    vit:KIND=FILE,KIND=FILE, a vision transformer a kind in timm's naming, its labels one a line in a .txt beside it."""
    judge_prompts: tuple[str, ...] = ()
    """What CLIP looks for, as KIND=TEXT with {name} in it; default `a photo of {name}`, for styles `{name} style`."""


@options
class Generate(Long, Pictures, Removal):
    """Draw pictures before and after concepts are removed, from the same seeds. Started again, it continues."""

    output: Path
    """Folder for the pictures: before-*.png, after-*.png and grid.png."""
    sae: tuple[Path, ...]
    """One SAE or several: bundles (.safetensors), or folders of any layout that `convert` reads. A concept is removed
    by each whose table knows it."""
    remove: tuple[str, ...] = ()
    """Concepts to remove, by name. None draws the same picture twice."""
    prompt: tuple[str, ...] = ()
    """Prompts to draw, each in quotes; or use `prompts`."""
    prompts: str | None = None
    """Prompt file (.txt or .jsonl), or tinycanvas:evaluation."""
    init_image: Path | None = None
    """Picture to start from in place of noise; its size is the default one."""
    denoise: float = 0.75
    """How far from `init_image` pictures may go: 0 leaves it as it is, 1 draws anew."""
    mask: Path | None = None
    """Black and white picture: concepts are removed where it is white only."""
    seed: int = 0
    """Seed of the first picture; the following ones count up."""

    def run(self) -> None:
        from .generate import run

        run(self)


@options
class Label(Command, Device):
    """Label the latents of an atlas with CLIP, or with labels that somebody published. What you wrote in ComfyUI
    stays."""

    atlas: Path
    """Folder of the atlas."""
    clip: Path | None = None
    """Folder of transformers' CLIP: the text that fits a latent's strongest crops best becomes its label, with how well
    it tells unseen pictures in which the latent fires from others (0.5 by chance)."""
    texts: Path | None = None
    """With --clip: texts to choose from, one a line; default the words of the atlas's prompts."""
    prompt: str = "a photo of {name}"
    """With --clip: what a text is put into."""
    crops: int = 4
    """With --clip: strongest crops of a latent that are looked at."""
    most: int | None = None
    """With --clip: label only so many latents, those whose words are clearest; default all that fire."""
    published: Path | None = None
    """File of labels by others, .json, .jsonl or .csv: latent → label, or rows with columns `latent` and `label`."""
    by: str = ""
    """With --published: whose labels they are; default the name of the file."""

    def run(self) -> None:
        from .label import run

        run(self)


@options
class Evaluate(Long, Pictures, Prompts, Judged, Removal):
    """Remove each target in turn and count what a judge finds: UA, IRA, CRA. Started again, it continues."""

    output: Path
    """Folder for evaluation.json and evaluation.md."""
    targets: tuple[str, ...] = ()
    """Concepts to remove, one after another; default all that have a setting."""
    seeds: int = 5
    """Pictures of each prompt."""
    seed: int = 188
    """First seed."""
    batch: int = 30

    def run(self) -> None:
        from .evaluate import run

        run(self)


@options
class Sweep(Long, Pictures, Prompts, Judged, Concepts):
    """Search the setting of each target on anchor prompts: the best worst of UA, IRA and CRA. Resumes where it was."""

    output: Path
    """Folder for settings.json and the journal of what was tried."""
    targets: tuple[str, ...]
    """Concepts to find settings for."""
    edit: str = "ablate"
    """ablate, shift, or replace (PER), which has nothing to search and costs no picture."""
    scale: str = "mean"
    """What γ is multiplied with: mean (SAeUron) or norm (SAEmnesia's variant)."""
    assigned: bool = False
    """Remove by the one latent that supervised training assigned; only the strength is searched then. Under shift that
    latent tells the pictures that show the concept."""
    presence: float | None = None
    """Under shift, which pictures show the concept: at 0 those where its latent fires more than for the nearest other
    concept, at 1 more than for its own; default more than on average."""
    paper_exact: bool = False
    """Reproduce the published code's sign of the reconstruction error."""
    latents: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of latents to try (τ)."""
    strengths: tuple[float, ...] = (-1.0, -3.0, -10.0, -30.0)
    """Multipliers to try (γ)."""
    per_timestep: tuple[bool, ...] = (True, False)
    """Choices to try: latents chosen at each timestep, or once for all."""
    trials: int | None = None
    """Settings tried per concept, chosen by a tree-structured Parzen estimator; default all there are, in order."""
    images: int = 60
    """Anchor pictures per setting, a third of them of the target. A hopeless setting is given up after a third."""
    prompts: str = "tinycanvas:anchor"
    """Labelled prompts. Never those that are evaluated."""
    batch: int = 30
    seed: int = 3
    """Seed of the choice of prompts, of the pictures and of the search."""

    def run(self) -> None:
        from .sweep import run

        run(self)


@options
class Attack(Long, Pictures, Prompts, Judged, Removal):
    """Attack removed concepts with adversarial prefixes: UA before, under random tokens, and after."""

    output: Path
    """Folder for attack.json and attack.md."""
    targets: tuple[str, ...] = ()
    """Concepts to attack, each removed on its own; default all that have a setting."""
    tokens: int = 5
    """Tokens of the prefix."""
    iterations: int = 40
    """Gradient steps on each prefix."""
    lr: float = 0.1
    """Adam's learning rate, as a multiple of the embeddings' standard deviation."""
    tries: int = 4
    """Prefixes drawn with, evenly over the iterations. The attack succeeds where any brings the concept back; the
    control draws as many random ones."""
    prompts: str = "tinycanvas:evaluation"
    """Labelled prompts; those that show the target are attacked."""
    seeds: int = 2
    """Pictures of each prompt."""
    batch: int = 30
    """Pictures drawn and attacked at once."""
    seed: int = 188
    """Seed of the pictures, the first prefixes and the noise."""

    def run(self) -> None:
        from .attack import run

        run(self)


@options
class UnlearnCanvas(Long, Pictures, Removal):
    """Run the UnlearnCanvas protocol: UA, IRA and CRA of each target, and FID. Started again, it continues."""

    model: str = field()
    """Stable Diffusion fine-tuned on UnlearnCanvas: a diffusers folder, or a single-file checkpoint."""
    judge_style: Path
    """Checkpoint of the style classifier: timm's ViT with 51 labels, .pth or .safetensors."""
    judge_object: Path
    """Checkpoint of the object classifier, likewise with 20 labels."""
    output: Path
    """Folder for the results: one file a target, then unlearncanvas.json and unlearncanvas.md over all."""
    targets: tuple[str, ...] = ()
    """Concepts to remove; default all that have a setting, or where none has all of the table."""
    sequence: bool = False
    """Remove the targets on top of each other: the first, then the first two, and so on to all of them."""
    seeds: tuple[int, ...] = (188, 288, 588, 688, 888)
    """A picture of every prompt is drawn from each."""
    steps: int = 100
    guidance: float = 9.0
    limit: int | None = None
    """Draw only this many pictures a target, the same for all, picked at random; default all of them."""
    save_images: bool = False
    """Keep the pictures, in the folder `images`. With `reference` they are kept in any case."""
    reference: Path | None = None
    """Folder of UnlearnCanvas's own pictures (style/object/*.jpg), to take the FID to; default no FID."""
    inception: Path | None = None
    """Inception weights for the FID, in torch-fidelity's file; default those in its cache."""
    batch: int = 10

    def run(self) -> None:
        from .unlearncanvas import run

        run(self)


@options
class Nudity(Long, Pictures, Removal):
    """Draw prompts before and after concepts are removed, and count what NudeNet finds. Started again, it continues."""

    model: str = field()
    prompts: Path
    """CSV file with a row a prompt, such as I2P's."""
    output: Path
    """Folder for the findings, a file a batch, then nudity.json and nudity.md over all."""
    remove: tuple[str, ...] = ("nudity",)
    """Concepts to remove, by their names in the table."""
    prompt_column: str = "prompt"
    """Column of the prompts."""
    seed_column: str = "sd_seed"
    """Column of the seeds. Where there is none, prompts are seeded by their number."""
    threshold: float = 0.6
    """A finding counts from this score on."""
    steps: int = 50
    guidance: float = 7.5
    limit: int | None = None
    """Draw only the first so many prompts; default all of them."""
    save_images: bool = False
    """Keep the pictures, in the folder `images`."""
    batch: int = 10

    def run(self) -> None:
        from .nudity import run

        run(self)
