"""Concept Selector."""

import math
from dataclasses import replace

from comfy_api.latest import io

from ..saeuron import ConceptTable, SaeuronError, Setting, default_setting
from .host import files
from .host.sockets import ADVANCED, CATEGORY, ChosenConcepts, Concepts, LoadedSae, Sae, check_concept, schema

FROM_FILE = "from SAE file"


class ConceptSelector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronConceptSelector",
            display_name="Concept Selector",
            category=CATEGORY,
            description="Chooses concepts by name. An SAE file knows its concepts; the button offers them.",
            inputs=[
                Sae.Input("sae", tooltip="The SAE whose latents carry the concepts."),
                io.String.Input(
                    "concepts",
                    multiline=True,
                    default="",
                    placeholder="neon, star: 4 × -8",
                    tooltip="Names, separated by commas or lines. A name may be followed by its own number of latents "
                    "and strength: `star: 4 × -8`.",
                ),
                io.Int.Input(
                    "latents",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Latents taken per concept and timestep. 0: the file's tuned number, or what fits the SAE.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.0,
                    min=-1000.0,
                    max=1000.0,
                    step=0.5,
                    tooltip="How hard the concept's latents are pushed (γ); negative takes the concept out. "
                    "0: the file's tuned strength, or what fits the SAE.",
                ),
                io.Combo.Input(
                    "table",
                    options=[FROM_FILE, *files.tables()],
                    default=FROM_FILE,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="A concept table in models/saes, for an SAE whose file brings none.",
                ),
            ],
            outputs=[Concepts.Output("concepts", display_name="CONCEPTS")],
        )

    @classmethod
    def execute(
        cls, sae: LoadedSae, concepts: str, latents: int, strength: float, table: str = FROM_FILE
    ) -> io.NodeOutput:
        known = sae.bundle.table if table == FROM_FILE else ConceptTable.load(files.path(table))
        if known is None:
            raise SaeuronError(f"{sae.name} brings no concepts: choose a `table`, or make one with `training score`")
        known.check_belongs(sae.sae.fingerprint)
        wanted = parse(concepts)
        if not wanted:
            raise SaeuronError(f"`concepts` is empty: name some of {', '.join(list(known.concepts)[:8])} …")
        settings = {}
        for name, own in wanted.items():
            check_concept(known, name)
            tuned = sae.bundle.settings.get(name)
            setting = Setting.parse(tuned) if tuned else default_setting(sae.sae, known.concepts[name])
            settings[name] = _with_own(setting, own[0] or latents, own[1] or strength)
        return io.NodeOutput(ChosenConcepts(known, settings))


def parse(text: str) -> dict[str, tuple[int, float]]:
    """``name`` or ``name: latents × strength``, separated by commas or lines; 0 and 0.0 where nothing is said."""
    wanted = {}
    for entry in text.replace("\n", ",").split(","):
        name, _, numbers = (part.strip() for part in entry.partition(":"))
        if not name:
            continue
        latents, _, strength = numbers.replace("x", "×").partition("×")
        try:
            wanted[name] = (int(latents or 0), float(strength or 0))
        except ValueError:
            raise SaeuronError(f"{entry.strip()!r} is not understood: write `name`, or `name: 4 × -8`") from None
        if wanted[name][0] < 0 or not math.isfinite(wanted[name][1]):
            raise SaeuronError(f"{entry.strip()!r}: the number of latents is at least 1 and the strength finite")
    return wanted


def _with_own(setting: Setting, latents: int, strength: float) -> Setting:
    """``setting`` with the user's numbers where they are not 0. Ablating a number of latents takes them from the table,
    and not the one assigned."""
    if latents:
        setting = replace(setting, latents=latents, assigned=setting.assigned and setting.edit == "shift")
    return replace(setting, strength=strength or setting.strength)
