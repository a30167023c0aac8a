"""Feature Probe, Feature Map and Concept Plot: where, when and how strongly latents fire."""

from dataclasses import dataclass, field

import comfy.utils
import numpy
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..saeuron import ConceptTable, SaeuronError, SparseAutoencoder
from ..saeuron.atlas.survey import Seen, Survey
from ..saeuron.hookpoints import whole_timestep
from .concept_text import match_name
from .host import headers, workflow
from .host.blocks import block_of, check_width
from .host.memory import KEY, own_sae
from .host.patching import Patch, Place, attach
from .host.sockets import CATEGORY, ChosenConcepts, Concepts, FeatureRecord, LoadedSae, Sae, schema
from .patches import parse_latents, read_latents
from .seen import remember


@dataclass(eq=False)
class Probe:
    """What fired in one sampling: for each name, activations ``[B, h, w]`` by timestep, summed over its latents.

    ``surveyed`` is what every latent of the SAE did, for the atlas; ``sae_name`` is the file that it came from.
    ``edited`` says whether a patch of this pack changed what was drawn.
    """

    sae: SparseAutoencoder
    groups: dict[str, "Group"]
    sae_name: str = ""
    seen: dict[str, dict[int, torch.Tensor]] = field(default_factory=dict)
    survey: Survey | None = None
    surveyed: Seen | None = None
    edited: bool = False

    def begin(self, model: ModelPatcher) -> None:
        self.seen = {name: {} for name in self.groups}
        self.edited = any(patch.edit is not None for patch in model.get_attachment(KEY) or ())
        self.survey = self.surveyed = None

    @torch.no_grad()
    def see(self, tokens: torch.Tensor, place: Place) -> None:
        sae = own_sae(self.sae, place.model, tokens.device)
        chosen = tokens[place.rows.to(tokens.device)]
        if self.survey is None:
            self.survey = Survey(self.sae, len(chosen), place.height, place.width)
        if self.survey.fits(len(chosen), place.height, place.width):  # areas of a picture are not the picture
            self.survey.see(chosen, place.timestep, sae)
        for name, group in self.groups.items():
            latents = group.at(place.timestep).to(tokens.device)
            fired = sae.encode_at(chosen.flatten(0, 1), latents, torch.zeros(len(latents), device=tokens.device))
            maps = fired.float().sum(-1).view(len(chosen), place.height, place.width).cpu()
            self.seen[name].setdefault(whole_timestep(place.timestep), maps)

    def end(self, finished: bool) -> None:
        self.seen = self.seen if finished else {}
        self.surveyed = self.survey.finish() if finished and self.survey else None
        self.survey = None


@dataclass(frozen=True)
class Group:
    """The latents drawn as one map: always the same, or a concept's, which may change with the timestep."""

    source: object

    def at(self, timestep: float) -> torch.Tensor:
        return self.source if isinstance(self.source, torch.Tensor) else self.source.at(timestep).latents


class FeatureProbe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronFeatureProbe",
            display_name="Feature Probe",
            category=CATEGORY,
            description="Watches latents while the model samples, without changing it. Feature Map shows what it saw.",
            inputs=[
                io.Model.Input("model"),
                Sae.Input("sae"),
                io.String.Input(
                    "latents",
                    default="",
                    tooltip="Numbers of latents to watch, separated by commas. All are watched for the atlas and its "
                    "search by picture.",
                ),
                Concepts.Input("concepts", optional=True, tooltip="Concepts whose latents to watch."),
            ],
            outputs=[io.Model.Output(), FeatureRecord.Output("record", display_name="FEATURE RECORD")],
        )

    @classmethod
    def validate_inputs(cls, latents: str | None) -> bool | str:
        return workflow.told(read_latents, latents)

    @classmethod
    def execute(
        cls, model: ModelPatcher, sae: LoadedSae, latents: str, concepts: ChosenConcepts | None = None
    ) -> io.NodeOutput:
        check_width(sae.sae, block_of(model.model, sae.hookpoint), sae.hookpoint)
        groups = {}
        if latents.strip():
            groups |= {f"latent {n}": Group(n[None]) for n in parse_latents(latents, sae.sae.n_latents)}
        if concepts is not None:
            settings, table = concepts.settings, concepts.table
            groups |= {name: Group(setting.selection(sae.sae, table, name)) for name, setting in settings.items()}
        probe = Probe(sae.sae, groups, sae.name)
        patch = Patch(sae.hookpoint, observer=probe, applies_to="positive")
        return io.NodeOutput(attach(model, patch, sae.patcher), probe)


class FeatureMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronFeatureMap",
            display_name="Feature Map",
            category=CATEGORY,
            description="Draws what a Feature Probe saw: heat maps over the picture, and a curve over the timesteps.",
            search_aliases=["heatmap", "inspect latents"],
            inputs=[
                FeatureRecord.Input("record"),
                io.Image.Input("image", tooltip="The finished picture. It also makes this node wait for the sampling."),
                io.Int.Input("ranges", default=4, min=1, max=16, tooltip="Parts the sampling is cut into."),
                io.Int.Input("picture", default=0, min=0, max=4095, tooltip="Which picture of the batch."),
            ],
            outputs=[
                io.Image.Output("maps", display_name="maps"),
                io.Image.Output("curve", display_name="curve"),
            ],
        )

    @classmethod
    def execute(cls, record: Probe, image: torch.Tensor, ranges: int, picture: int) -> io.NodeOutput:
        if record.surveyed is not None:
            remember(record.sae_name, record.surveyed, image)
            if not record.groups:
                raise SaeuronError("the probe watches no latent by name: write its `latents`, or connect `concepts`")
        if not any(record.seen.values()):
            raise SaeuronError("the probe saw nothing: connect the MODEL of Feature Probe to the sampler")
        count = min(len(maps) for seen in record.seen.values() for maps in seen.values())
        if picture >= min(count, len(image)):
            raise SaeuronError(f"`picture` is {picture} and the batch holds {min(count, len(image))}, counted from 0")
        maps, curve = draw_maps(record.seen, image[picture], ranges, picture), draw_curves(record.seen, picture)
        return io.NodeOutput(maps, curve, ui=ui.PreviewImage(torch.cat([fit(maps, curve), curve])))


class ConceptPlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronConceptPlot",
            display_name="Concept Plot",
            category=CATEGORY,
            description="A concept's strongest latents, and their scores over the timesteps.",
            inputs=[
                Sae.Input("sae"),
                io.String.Input("concept", default="", tooltip="One concept of the SAE's table."),
                io.Int.Input("latents", default=5, min=1, max=20, tooltip="How many of its latents to draw."),
            ],
            outputs=[io.Image.Output("plot", display_name="plot")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, concept: str | None) -> bool | str:
        loader = workflow.linked(workflow.number(cls), "sae", "SAeUronLoader") or {}
        return workflow.told(check_concept, concept, loader.get("sae_name"))

    @classmethod
    def execute(cls, sae: LoadedSae, concept: str, latents: int) -> io.NodeOutput:
        table = sae.bundle.table
        plot = draw_scores(table, find_concept(concept, table, sae.name), latents)
        return io.NodeOutput(plot, ui=ui.PreviewImage(plot))


def find_concept(concept: str, table: ConceptTable | headers.Header | None, sae_name: str) -> str:
    """The one concept that is meant; raises SaeuronError where the SAE brings none of that name, or none at all."""
    if table is None:
        raise SaeuronError(f"{sae_name} brings no concepts to plot: choose an SAE file with a concept table")
    return match_name(concept, table)


def check_concept(concept: str, sae_name: str | None) -> None:
    """Raise SaeuronError where `find_concept` will."""
    if isinstance(sae_name, str) and workflow.told(headers.concepts_of, sae_name) is True:
        find_concept(concept, headers.concepts_of(sae_name), sae_name)


def draw_maps(seen: dict[str, dict[int, torch.Tensor]], image: torch.Tensor, ranges: int, picture: int) -> torch.Tensor:
    """One row a name, one column a range of timesteps: the picture with its heat map, ``[1, H, W, 3]``."""
    steps = sorted(next(iter(seen.values())), reverse=True)
    parts = [part for part in numpy.array_split(steps, min(ranges, len(steps))) if len(part)]
    figure, axes = _figure(len(seen), len(parts))
    for row, (name, maps) in zip(axes, seen.items(), strict=True):
        heat = [torch.stack([maps[int(t)][picture] for t in part]).mean(0) for part in parts]
        top = max(float(h.max()) for h in heat) or 1.0
        for axis, part, values in zip(row, parts, heat, strict=True):
            place = (0, image.shape[1], image.shape[0], 0)
            axis.imshow(image.cpu().numpy().clip(0, 1), extent=place)
            axis.imshow(values.numpy(), extent=place, cmap="inferno", alpha=0.6, vmin=0, vmax=top)
            axis.set_title(f"{name}\nt {part[0]}–{part[-1]}", fontsize=9)
            axis.axis("off")
    return _image(figure)


def draw_curves(seen: dict[str, dict[int, torch.Tensor]], picture: int) -> torch.Tensor:
    """Mean activation over the picture against the timestep, one line a name."""
    figure, axes = _figure(1, 1, (6, 3.5))
    for name, maps in seen.items():
        steps = sorted(maps, reverse=True)
        axes[0][0].plot(steps, [float(maps[t][picture].mean()) for t in steps], label=name)
    return _image(_labelled(figure, axes[0][0], "mean activation"))


def draw_scores(table: ConceptTable, concept: str, count: int) -> torch.Tensor:
    """Scores of the concept's ``count`` latents of highest mean score, against the timestep."""
    scores = table.scores(concept)
    figure, axes = _figure(1, 1, (6, 3.5))
    for latent in scores.mean(0).topk(min(count, scores.shape[1])).indices.tolist():
        axes[0][0].plot(table.timesteps.tolist(), scores[:, latent].tolist(), label=f"latent {latent}")
    axes[0][0].set_title(concept)
    return _image(_labelled(figure, axes[0][0], "score"))


def fit(images: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``images`` scaled to the size of ``like``, both ``[B, H, W, 3]``."""
    height, width = like.shape[1:3]
    return comfy.utils.common_upscale(images.movedim(-1, 1), width, height, "bilinear", "disabled").movedim(1, -1)


def _figure(rows: int, columns: int, size: tuple[float, float] | None = None):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (2.2 * columns, 2.6 * rows), dpi=110, layout="tight")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _labelled(figure, axis, quantity: str):
    axis.set_xlabel("timestep")
    axis.set_ylabel(quantity)
    axis.invert_xaxis()
    axis.legend(fontsize=8)
    return figure


def _image(figure) -> torch.Tensor:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(numpy.asarray(canvas.buffer_rgba())[None, :, :, :3].astype("float32") / 255)
