"""Activation Recorder."""

from pathlib import Path

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..saeuron import Hookpoint, Recording, RecordingWriter, SaeuronError, formats
from ..saeuron.files import read_json
from ..saeuron.hookpoints import SITES, whole_timestep
from ..saeuron.recording import Tokens, bytes_per_token
from .host import workflow
from .host.blocks import block_of, check_known
from .host.identity import identity
from .host.model_files import blocks_of
from .host.patching import Patch, Place, attach
from .host.sockets import CATEGORY, schema
from .host.telling import Told


class ActivationRecorder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronActivationRecorder",
            display_name="Activation Recorder",
            category=CATEGORY,
            description="Writes what passes a block while the model samples, to train an SAE on. Each finished "
            "sampling adds one file to the recording; an interrupted one adds nothing.",
            search_aliases=["record activations", "sparse autoencoder", "dataset"],
            inputs=[
                io.Model.Input("model"),
                io.String.Input(
                    "hookpoint",
                    default="unet.up_blocks.1.attentions.1",
                    tooltip="The block to record, in diffusers' naming.",
                ),
                io.Combo.Input("site", options=list(SITES), tooltip="The block's output, or output minus input."),
                io.String.Input("folder", default="recordings/first", tooltip="Folder under ComfyUI's output folder."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the pictures were asked to show."),
                io.String.Input(
                    "labels",
                    default="",
                    tooltip="Concepts by kind, for scores and supervised training: `object=cat, style=Van Gogh`.",
                ),
                io.Int.Input(
                    "tokens_per_map",
                    default=16,
                    min=1,
                    max=65536,
                    tooltip="Tokens kept of each feature map, chosen at random.",
                ),
                io.Float.Input(
                    "max_gb", default=10.0, min=0.001, max=100000.0, step=0.1, tooltip="The most the folder may hold."
                ),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, tooltip="Seed of the choice of tokens."),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool | str:
        # ComfyUI repeats the sentence for every input that is asked for here, so the others are asked of the workflow.
        return workflow.told(check, folder, workflow.number(cls))

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        hookpoint: str,
        site: str,
        folder: str,
        prompt: str,
        labels: str,
        tokens_per_map: int,
        max_gb: float,
        seed: int,
    ) -> io.NodeOutput:
        place = Hookpoint(hookpoint.strip(), site)
        block_of(model.model, place)
        row = {"prompt": prompt} | parse_labels(labels)
        recorder = Recorder(output_folder(folder), place, row, tokens_per_map, max_gb, seed)
        recorder.told = Told(recorder.holds(), workflow.number(cls))
        patched = attach(model, Patch(place, observer=recorder, applies_to="positive"))
        return io.NodeOutput(patched, ui=recorder.told)


def check(folder: str, node_id: str | None) -> None:
    """Raise SaeuronError where the inputs queued cannot be recorded with; links are not known yet."""
    queued = workflow.inputs(node_id)
    place = Hookpoint(str(queued.get("hookpoint")).strip(), str(queued.get("site")))
    parse_labels(labels if isinstance(labels := queued.get("labels"), str) else "")
    blocks = blocks_of(node_id)
    if blocks is not None and isinstance(queued.get("hookpoint"), str):
        check_known(place.name, blocks)
    if all(isinstance(queued.get(name), int | float) for name in ("tokens_per_map", "max_gb")):
        Recorder(output_folder(folder), place, {}, queued["tokens_per_map"], queued["max_gb"], 0)


def output_folder(name: str) -> Path:
    """``name`` under ComfyUI's output folder; raises SaeuronError where it would lie elsewhere."""
    root = Path(folder_paths.get_output_directory()).resolve()
    try:
        folder = (root / name).resolve()
    except (OSError, ValueError):  # too long, or with a zero byte
        folder = root
    if root not in folder.parents:
        raise SaeuronError(f"`folder` is {name[:60]!r}: name a folder inside ComfyUI's output folder")
    return folder


def parse_labels(text: str) -> dict[str, str]:
    """``kind=name`` pairs separated by commas."""
    pairs = [part.split("=", 1) for part in text.split(",") if part.strip()]
    if any(len(pair) != 2 or not all(side.strip() for side in pair) for pair in pairs):
        raise SaeuronError(f"`labels` is {text[:60]!r}: write `object=cat, style=Van Gogh`")
    return {kind.strip(): name.strip() for kind, name in pairs}


class Recorder:
    """Keeps some tokens of every map of one sampling in memory, and writes them when it has finished.

    ``row`` is the prompt with its concepts, ``max_gb`` the most the folder may hold, in 10⁹ bytes.
    """

    def __init__(
        self,
        folder: Path,
        hookpoint: Hookpoint,
        row: dict,
        tokens_per_map: int,
        max_gb: float,
        seed: int,
    ) -> None:
        self.folder, self.hookpoint, self.row = folder, hookpoint, row
        self.tokens_per_map, self.max_gb, self.seed = tokens_per_map, max_gb, seed
        self.parts: list[Tokens] = []
        self.told: Told | None = None
        self.check()

    def check(self) -> None:
        """Raise SaeuronError where the folder is full, or was begun in another way than this."""
        held = sum(file.stat().st_size for file in self.folder.glob("shard-*.safetensors"))
        self.room = int(self.max_gb * 1e9) - held
        if self.room <= 0:
            raise SaeuronError(
                f"{self.folder.name} holds {held / 1e9:.3f} GB: raise `max_gb`, or choose another folder"
            )
        own = {"hookpoint": self.hookpoint.name, "site": self.hookpoint.site, "tokens_per_map": self.tokens_per_map}
        self._check_same(own)

    def begin(self, model: ModelPatcher) -> None:
        self.check()
        self.model = identity(model)  # only now, since nodes between the recorder and the sampler may add a LoRA
        self._check_same({"model": self.model})
        self.parts = []
        self.pictures = 0
        self.generator = torch.Generator().manual_seed(self.seed)

    def see(self, tokens: torch.Tensor, place: Place) -> None:
        rows = place.rows.nonzero().squeeze(-1)
        count = min(self.tokens_per_map, tokens.shape[1])
        position = torch.rand(len(rows), tokens.shape[1], generator=self.generator).argsort(1)[:, :count]
        self.room -= position.numel() * bytes_per_token(tokens.shape[2])
        if self.room < 0 and self.parts:
            return  # full: what was taken so far is still written, whole
        kept = tokens[rows[:, None].to(tokens.device), position.to(tokens.device)]
        picture = place.pictures[rows, None].expand_as(position)
        timestep = torch.full_like(position, whole_timestep(place.timestep))
        fields = (picture, timestep, position)
        self.parts.append(Tokens(kept.flatten(0, 1).half().cpu(), *(field.flatten() for field in fields)))
        self.pictures = max(self.pictures, int(place.pictures.max()) + 1)

    def end(self, finished: bool) -> None:
        if finished and self.parts:
            tokens = Tokens.cat(self.parts)
            settings = {"model": self.model, "tokens_per_map": self.tokens_per_map}
            writer = RecordingWriter(self.folder, self.hookpoint, tokens.activations.shape[1], None, settings)
            writer.append([self.row] * self.pictures, tokens, self.seed)
            if self.told is not None:
                self.told.say(self.holds())
        self.parts = []

    def holds(self) -> str:
        """What the folder holds by now."""
        if not (self.folder / "manifest.json").exists():
            return f"{self.folder.name} is empty yet"
        recording = Recording(self.folder)
        size = sum((self.folder / name).stat().st_size for name in recording.shards)
        return (
            f"{self.folder.name} holds {len(recording)} tokens of {len(recording.prompts)} pictures, "
            f"{size / 1e9:.3f} of {self.max_gb:g} GB"
        )

    def _check_same(self, own: dict[str, object]) -> None:
        """Raise SaeuronError unless the folder is new, or was recorded with what ``own`` says."""
        manifest = self.folder / "manifest.json"
        if not manifest.exists():
            return
        content = formats.check(read_json(manifest), formats.ManifestDescription, manifest.name)
        before = content | content.get("settings", {})
        for name, value in own.items():
            if before.get(name) != value:
                raise SaeuronError(
                    f"{self.folder.name} was recorded with {name} {before.get(name)} and this is {value}: "
                    "choose another folder"
                )
