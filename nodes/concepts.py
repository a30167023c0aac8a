"""Concept Selector."""

from dataclasses import replace

from comfy_api.latest import io, ui

from ..saeuron import ConceptTable, SaeuronError, Setting, choose_settings, default_setting
from .concept_text import Wanted, match, parse
from .host import files, headers, workflow
from .host.files import FROM_FILE
from .host.sockets import ADVANCED, ALIASES, CATEGORY, ChosenConcepts, Concepts, LoadedSae, Sae, schema


class ConceptSelector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronConceptSelector",
            display_name="Concept Selector",
            category=CATEGORY,
            description="Chooses concepts by name. An SAE file knows its concepts; the button offers them.",
            search_aliases=ALIASES,
            inputs=[
                Sae.Input("sae", tooltip="The SAE whose latents carry the concepts."),
                io.String.Input(
                    "concepts",
                    multiline=True,
                    default="",
                    placeholder="neon, heart: 0.5",
                    tooltip="Names, separated by commas or lines. A number behind a name is the share of its own "
                    "strength, and a negative one turns it up: `heart: 0.5`, `moon: -1`.",
                ),
                io.Int.Input(
                    "latents",
                    default=0,
                    min=0,
                    max=1024,
                    extra_dict=ADVANCED,
                    tooltip="Latents taken per concept and timestep. 0: the file's tuned number, or what fits the SAE.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.0,
                    min=-1000.0,
                    max=1000.0,
                    step=0.5,
                    extra_dict=ADVANCED,
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
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, concepts: str | None) -> bool | str:
        loader = workflow.linked(workflow.number(cls), "sae", "SAeUronLoader") or {}
        table = workflow.inputs(workflow.number(cls)).get("table", FROM_FILE)
        bare = loader.get("concepts") == "none" and table == FROM_FILE
        return workflow.told(check, concepts, loader.get("sae_name"), table, bare)

    @classmethod
    def execute(
        cls, sae: LoadedSae, concepts: str, latents: int, strength: float, table: str = FROM_FILE
    ) -> io.NodeOutput:
        known = sae.bundle.table if table == FROM_FILE else ConceptTable.load(files.path(table))
        wanted = read(concepts, known, sae.name)
        headers.check_belongs(known, sae.sae.fingerprint, table, sae.name)
        settings = {}
        for name, own in wanted.items():
            count, push = own.latents or latents, own.strength or strength
            changes = {"latents": count or None, "strength": push or None, "select": "score" if count else None}
            # A number of latents is SAeUron's τ, and the strength beside it its γ: they are meant for its own edit.
            redirects = default_setting(sae.sae, known, name).edit == "redirect"
            changes["edit"] = "ablate" if own.latents and redirects else None
            (setting,) = choose_settings(sae.sae, known, [name], sae.bundle.settings, **changes).values()
            settings[name] = replace(setting, strength=setting.strength * own.share)
        counted = frozenset(name for name, own in wanted.items() if own.latents or latents)
        chosen = ChosenConcepts(known, settings, counted)
        return io.NodeOutput(chosen, ui=ui.PreviewText(describe(chosen)))


def read(text: str, known: ConceptTable | headers.Header | None, sae_name: str) -> dict[str, Wanted]:
    """The concepts that ``text`` names, as the table ``known`` calls them; raises SaeuronError where it names none.

    A share of 0 leaves the concept as it is, so it is left out.
    """
    return {name: own for name, own in matched(text, known, sae_name).items() if own.share != 0}


def matched(text: str, known: ConceptTable | headers.Header | None, sae_name: str) -> dict[str, Wanted]:
    """What `read` gives, and the concepts that are left as they are."""
    if known is None:
        raise SaeuronError(f"{sae_name} brings no concepts: teach it one with Learn Concept, or choose a `table`")
    wanted = match(parse(text), known)
    if not wanted:
        raise SaeuronError(
            f"`concepts` is empty: name some of {', '.join(list(headers.offered(known.concepts))[:8])} …"
        )
    return wanted


def understood(sae_name: str, text: str = "", table: str = FROM_FILE) -> str:
    """What stands under the node while somebody writes."""
    known = headers.concepts_of(sae_name, table)
    return "\n".join(f"{name} ({known.kind(name)}): {own}" for name, own in matched(text, known, sae_name).items())


def check(text: str, sae_name: str | None, table: str, bare: bool) -> None:
    """Raise SaeuronError where ``text`` cannot be read, or names what the files do not know; ``bare`` are without."""
    parse(text)
    if isinstance(sae_name, str) and isinstance(table, str) and workflow.told(headers.concepts_of, sae_name) is True:
        read(text, None if bare else headers.concepts_of(sae_name, table), sae_name)


def describe(chosen: ChosenConcepts) -> str:
    """What was chosen, a line a concept."""
    return "\n".join(f"{name} ({chosen.table.kind(name)}): {_way(one)}" for name, one in chosen.settings.items())


def _way(setting: Setting) -> str:
    if setting.edit == "redirect":
        return f"redirect, strength {setting.strength:g}"
    latents = "its assigned latent" if setting.select == "assigned" else f"{setting.latents} latents"
    return f"{setting.edit}, {latents}, strength {setting.strength:g}"
