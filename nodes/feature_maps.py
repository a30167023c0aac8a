"""Feature Probe, Feature Map and Concept Plot: where, when and how strongly latents fire."""

from dataclasses import dataclass, field

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..saeuron import ConceptTable, SaeuronError, SparseAutoencoder
from ..saeuron.atlas.survey import Seen, Survey
from ..saeuron.hookpoints import whole_timestep
from .concept_text import match_name
from .drawing import draw_curves, draw_maps, draw_scores
from .host import headers, workflow
from .host.blocks import check_width
from .host.memory import KEY, own_sae
from .host.model_files import check_place
from .host.patching import Patch, Place, attach
from .host.sockets import ChosenConcepts, Concepts, FeatureRecord, LoadedSae, Sae, bounded, schema
from .patches import check_latents, choose_latents
from .seen import remember

NOTHING = "there is nothing to watch: write `latents`, or connect `concepts`"
UNSEEN = "the probe sees nothing: connect the MODEL of Feature Probe to the sampler"


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
            description="Watches latents while the model samples, without changing it. Feature Map shows what it saw.",
            inputs=[
                io.Model.Input("model"),
                Sae.Input("sae"),
                io.String.Input(
                    "latents",
                    default="",
                    tooltip="Latents to watch, by number or label, separated by commas. All are watched for the atlas "
                    "and its search by picture.",
                ),
                Concepts.Input("concepts", optional=True, tooltip="Concepts whose latents to watch."),
            ],
            outputs=[io.Model.Output(), FeatureRecord.Output("record", display_name="FEATURE RECORD")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, latents: str | None) -> bool | str:
        number = workflow.number(cls)
        return workflow.first_told((check_place, latents, number), (check_watched, latents, number))

    @classmethod
    def execute(
        cls, model: ModelPatcher, sae: LoadedSae, latents: str, concepts: ChosenConcepts | None = None
    ) -> io.NodeOutput:
        check_width(sae.sae, model.model, sae.hookpoint)
        groups = {}
        if latents.strip():
            chosen = choose_latents(latents, sae.name, sae.sae.n_latents)
            groups |= {f"latent {n}": Group(torch.tensor([n])) for n, _ in chosen}
        if concepts is not None:
            settings, table = concepts.settings, concepts.table
            groups |= {name: Group(setting.selection(sae.sae, table, name)) for name, setting in settings.items()}
        probe = Probe(sae.sae, groups, sae.name)
        patch = Patch(sae.hookpoint, observer=probe, applies_to="positive")
        return io.NodeOutput(attach(model, patch, sae.patcher), probe)


def check_watched(latents: str, node_id: str | None) -> None:
    """Raise SaeuronError where there would be nothing to watch, or nothing to watch it in."""
    if latents.strip():
        check_latents(latents, node_id)
    if node_id is None:
        return  # an early ComfyUI does not tell: it is told as it runs
    named = latents.strip() or "concepts" in workflow.inputs(node_id)
    if not named and "SAeUronAtlasRecorder" not in workflow.followers(node_id, 1):
        raise SaeuronError(NOTHING)
    if not workflow.followers(node_id, 0):
        raise SaeuronError(UNSEEN)


class FeatureMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronFeatureMap",
            display_name="Feature Map",
            description="Draws what a Feature Probe saw: heat maps over the picture, and a curve over the timesteps.",
            search_aliases=["heatmap", "inspect latents"],
            inputs=[
                FeatureRecord.Input("record"),
                io.Image.Input("image", tooltip="The finished picture. It also makes this node wait for the sampling."),
                bounded("ranges", 4, (1, 16), tooltip="Parts the sampling is cut into."),
                bounded("picture", 0, (0, 4095), tooltip="Which picture of the batch."),
            ],
            outputs=[
                io.Image.Output("maps", display_name="maps"),
                io.Image.Output("curve", display_name="curve"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, record: Probe, image: torch.Tensor, ranges: int, picture: int) -> io.NodeOutput:
        if record.surveyed is not None:
            remember(record.sae_name, record.surveyed, image)
        if not record.groups:
            raise SaeuronError(NOTHING)
        if not any(record.seen.values()):
            raise SaeuronError(UNSEEN)
        count = min(len(maps) for seen in record.seen.values() for maps in seen.values())
        if picture >= min(count, len(image)):
            raise SaeuronError(f"`picture` is {picture} and the batch holds {min(count, len(image))}, counted from 0")
        maps, curve = draw_maps(record.seen, image[picture], ranges, picture), draw_curves(record.seen, picture)
        shown = ui.PreviewImage(maps)
        shown.values += ui.PreviewImage(curve).values
        return io.NodeOutput(maps, curve, ui=shown)


class ConceptPlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronConceptPlot",
            display_name="Concept Plot",
            description="A concept's strongest latents, and their scores over the timesteps.",
            inputs=[
                Sae.Input("sae"),
                io.String.Input("concept", default="", tooltip="One concept of the SAE's table."),
                bounded("latents", 5, (1, 20), tooltip="How many of its latents to draw."),
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
