"""Feature Ablate Patch and Feature Steer Patch."""

from dataclasses import replace
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..saeuron import Setting, Steer, build_edits
from ..saeuron.redirect import Redirect
from .host import atlases, files, headers, workflow
from .host.finding import Finder
from .host.model_files import check_place, check_same_sae, loader_of
from .host.patching import Patch, attach
from .host.roles import APPLIES_TO
from .host.sockets import ADVANCED, ALIASES, ChosenConcepts, Concepts, LoadedSae, Sae, bounded, schema
from .host.telling import Told
from .latent_text import Entry, read_curve, read_entries, resolved

WAYS = {
    "tuned": {},
    "redirect": {"edit": "redirect"},
    "ablate": {"edit": "ablate", "paper_exact": False},
    "replace": {"edit": "replace"},
    "shift": {"edit": "shift"},
    "paper-exact": {"edit": "ablate", "scale": "mean", "paper_exact": True},
}
"""Modes, and what each makes of a concept's setting."""
WHOLE_MAP = ("redirect", "shift")
"""Edits that first tell which maps show the concept."""


def _where() -> list[io.Input]:
    """The inputs that both patches share: when, on which conditioning, and where in the picture."""
    percent, slider = (0.0, 1.0, 0.01), {"display_mode": io.NumberDisplay.slider, "extra_dict": ADVANCED}
    return [
        bounded("start_percent", 0.0, percent, tooltip="Where in the sampling the edit begins.", **slider),
        bounded("end_percent", 1.0, percent, tooltip="Where in the sampling the edit ends.", **slider),
        io.Combo.Input(
            "applies_to",
            options=list(APPLIES_TO),
            default=APPLIES_TO[0],
            extra_dict=ADVANCED,
            tooltip="Edit while the model follows the positive prompt, the negative one, or both.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where in the picture to edit; a later `start_percent` leaves the rest as it was. Without a mask: "
            "everywhere.",
        ),
    ]


class FeatureAblatePatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronAblatePatch",
            display_name="Feature Ablate Patch",
            description="Takes concepts out of a model while it samples. The model itself stays as it is.",
            search_aliases=[*ALIASES, "ablate"],
            inputs=[
                io.Model.Input("model"),
                Sae.Input("sae"),
                Concepts.Input("concepts"),
                io.Combo.Input(
                    "mode",
                    options=list(WAYS),
                    default="tuned",
                    tooltip="tuned: as the SAE file says for each concept, else redirect where its table allows. "
                    "redirect: pictures that show the concept come to show another of its kind. ablate: push the "
                    "concept's latents away (SAeUron). replace: give tokens that show the concept the content of "
                    "tokens that do not (PER). shift: take from pictures that show the concept what it adds on "
                    "average. paper-exact: as SAeUron's published code does it, for published strengths.",
                ),
                bounded(
                    "strength",
                    1.0,
                    (-2.0, 2.0, 0.05),
                    display_mode=io.NumberDisplay.slider,
                    tooltip="0 leaves the concepts, 1 takes them out, 2 twice as hard, which few pictures bear; below "
                    "0 they are turned up.",
                ),
                *_where(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, strength: float | None) -> bool | str:
        # What asks for an input checks its range itself, and workflows of before 0.2 may hold any up to 10.
        number = workflow.number(cls)
        return workflow.first_told((check_same_sae, number), (check_place, True, number))

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        sae: LoadedSae,
        concepts: ChosenConcepts,
        mode: str,
        strength: float,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        applies_to: str = APPLIES_TO[0],
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        if strength == 0 or not concepts.settings:
            return io.NodeOutput(model, ui=ui.PreviewText("Nothing is taken out."))
        settings = {
            name: in_mode(replace(setting, strength=setting.strength * strength), mode, name in concepts.counted)
            for name, setting in concepts.settings.items()
        }
        headers.check_belongs(concepts.table, sae.sae.fingerprint, files.FROM_FILE, sae.name)
        told = ui.PreviewText("Its table cannot tell which pictures show a concept.")
        if concepts.table.has_contrasts:
            detector = Redirect(sae.sae, concepts.table.contrasts(sae.sae), dict.fromkeys(settings, -1.0))
            told = Told("Waiting for the sampler.", workflow.number(cls))
            finder = Finder(detector, told)
            model = attach(model, Patch(sae.hookpoint, observer=finder, applies_to="positive", first=True), sae.patcher)
        for edit in build_edits(sae.sae, concepts.table, settings):
            patch = Patch(sae.hookpoint, edit, None, applies_to, start_percent, end_percent, mask)
            model = attach(model, patch, sae.patcher)
        return io.NodeOutput(model, ui=told)


def in_mode(setting: Setting, mode: str, counted: bool) -> Setting:
    """``setting`` as ``mode`` has it; ``counted`` where its number of latents is the user's.

    An assigned latent changes its part between edits of whole maps and the others: there it detects, here it is edited.
    """
    changed = replace(setting, **WAYS[mode])
    if (changed.edit in WHOLE_MAP) == (setting.edit in WHOLE_MAP):
        return changed
    if changed.edit in WHOLE_MAP:
        return replace(changed, select="score", detect=setting.select)
    return replace(changed, select="score" if counted else setting.detect)


class FeatureSteerPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronSteerPatch",
            display_name="Feature Steer Patch",
            description="Turns chosen latents of an SAE up or down while a model samples.",
            search_aliases=["steer", "latent", "sparse autoencoder"],
            inputs=[
                io.Model.Input("model"),
                Sae.Input("sae"),
                io.String.Input(
                    "latents",
                    default="0",
                    tooltip="Latents by number or by the label they have in the atlas, separated by commas; each may "
                    "say its own: `407 neon: +8; 12: x0.5 20-80%; 3: +2 off`.",
                ),
                bounded(
                    "scale",
                    1.0,
                    (-100.0, 100.0, 0.1),
                    tooltip="What their activations are multiplied with. 1 leaves them, 0 switches them off.",
                ),
                bounded(
                    "add",
                    0.0,
                    (-1000.0, 1000.0, 0.5),
                    tooltip="What is added to their activations on every token.",
                ),
                *_where(),
                io.String.Input(
                    "curve",
                    default="",
                    optional=True,
                    extra_dict=ADVANCED,
                    placeholder="0%: 1, 50%: 0.2",
                    tooltip="How much of it all to do over the sampling, as points that are joined by lines. "
                    "Empty: all of it, always.",
                ),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, latents: str | None) -> bool | str:
        number = workflow.number(cls)
        return workflow.first_told((check_place, latents, number), (check_steering, latents, number))

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        sae: LoadedSae,
        latents: str,
        scale: float,
        add: float,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        applies_to: str = APPLIES_TO[0],
        mask: torch.Tensor | None = None,
        curve: str = "",
    ) -> io.NodeOutput:
        alike: dict[tuple, list[int]] = {}
        for latent, entry in choose_latents(latents, sae.name, sae.sae.n_latents):
            # What says one of the two for itself leaves the other alone.
            own = (1.0, 0.0) if entry.add is not None or entry.scale is not None else (scale, add)
            how = (own[0] if entry.scale is None else entry.scale, own[1] if entry.add is None else entry.add)
            if entry.on:
                alike.setdefault((*how, entry.part or (start_percent, end_percent)), []).append(latent)
        for (factor, added, part), numbers in alike.items():
            edit = Steer(sae.sae, numbers, add=added, scale=factor)
            patch = Patch(sae.hookpoint, edit, None, applies_to, *part, mask, read_curve(curve))
            model = attach(model, patch, sae.patcher)
        return io.NodeOutput(model)


def check_steering(latents: str, node_id: str | None) -> None:
    """Raise SaeuronError where `latents`, or the `curve` beside it, cannot be read."""
    check_latents(latents, node_id)
    curve = workflow.inputs(node_id).get("curve", "")
    if isinstance(curve, str):
        read_curve(curve)


def choose_latents(text: str, sae_name: str, n_latents: int) -> list[tuple[int, Entry]]:
    """The latents that ``text`` names by number or label, each with its entry; raises SaeuronError as `resolved`."""
    return resolved(read_entries(text), partial(atlases.latent_named, sae_name), n_latents)


def check_latents(text: str, node_id: str | None) -> None:
    """Raise SaeuronError where `choose_latents` will, as far as the SAE's file tells."""
    loader = loader_of(node_id)
    if loader is None:
        read_entries(text)
    else:
        choose_latents(text, loader["sae_name"], headers.sae_of(loader["sae_name"]).n_latents)
