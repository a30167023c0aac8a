"""SAE Loader."""

from comfy_api.latest import io, ui

from ..saeuron.checkpoints import load_bundle
from .host import files, headers, workflow
from .host.guess import USUAL
from .host.memory import manage_sae
from .host.sockets import ADVANCED, ALIASES, LoadedSae, Sae, schema

SITES = ("from file", "output", "residual")
CONCEPTS = ("from file", "none")


class SaeLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronLoader",
            display_name="SAE Loader",
            description="Loads a sparse autoencoder, with its concepts where the file brings them.",
            search_aliases=[*ALIASES, "sparse autoencoder"],
            inputs=[
                io.Combo.Input("sae_name", options=files.names(), tooltip="A file or folder in models/saes."),
                io.String.Input(
                    "hookpoint",
                    default="",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="The block the SAE was trained on, such as unet.up_blocks.1.attentions.1. "
                    "Empty: what the file says, or else what it is named after.",
                ),
                io.Combo.Input(
                    "site",
                    options=list(SITES),
                    default=SITES[0],
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="What of the block the SAE reads: its output, or output minus input (residual).",
                ),
                io.Combo.Input(
                    "concepts",
                    options=list(CONCEPTS),
                    default=CONCEPTS[0],
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="The concepts that the file brings, or none of them: then the SAE knows what it is taught.",
                ),
            ],
            outputs=[Sae.Output("sae", display_name="SAE", tooltip="The autoencoder, and its concepts if it has any.")],
            is_output_node=False,
        )

    @classmethod
    def validate_inputs(cls, sae_name: str | None) -> bool | str:
        return workflow.told(check, sae_name, workflow.inputs(workflow.number(cls)))

    @classmethod
    def fingerprint_inputs(cls, sae_name: str, **_) -> str:
        return str(files.stamp(*files.sources(sae_name)))

    @classmethod
    def execute(
        cls, sae_name: str, hookpoint: str = "", site: str = SITES[0], concepts: str = CONCEPTS[0]
    ) -> io.NodeOutput:
        with workflow.plainly():
            path = files.path(sae_name)
            place, _ = headers.place_of(sae_name, hookpoint, None if site == SITES[0] else site)
            bundle = load_bundle(path, hookpoint=place.name, site=place.site)
        if concepts == CONCEPTS[1]:
            bundle.table, bundle.settings = None, {}
        loaded = LoadedSae(sae_name, bundle, manage_sae(bundle.sae, path))
        return io.NodeOutput(loaded, ui=ui.PreviewText(describe(sae_name, hookpoint, site, concepts)))


def check(sae_name: str, queued: dict) -> None:
    """Raise SaeuronError where the file cannot be read, its concepts are another SAE's, or nobody knows its block."""
    table = headers.concepts_of(sae_name)
    if table is not None:
        headers.check_belongs(table, headers.sae_of(sae_name).fingerprint, files.FROM_FILE, sae_name)
    hookpoint = queued.get("hookpoint", "")
    headers.place_of(sae_name, hookpoint if isinstance(hookpoint, str) else USUAL)


def describe(sae_name: str, hookpoint: str = "", site: str = SITES[0], concepts: str = CONCEPTS[0]) -> str:
    """What stands under the node, before it has run too: where it reads, what it is, and what it knows."""
    sae, table = headers.sae_of(sae_name), headers.concepts_of(sae_name) if concepts == CONCEPTS[0] else None
    place, said_by = headers.place_of(sae_name, hookpoint, None if site == SITES[0] else site)
    lines = [
        f"{place.name} ({place.site}), {said_by}",
        f"width {sae.d_in}, {sae.n_latents} latents, {sae.activation} k {sae.k}",
    ]
    if sae.base_model:
        lines.append(f"for {sae.base_model}")
    if table is None:
        lines.append("no concepts: teach it one with Learn Concept, or give Concept Selector a table")
    else:
        by_kind: dict[str, list[str]] = {}
        for name, kind in headers.offered(table.concepts).items():
            by_kind.setdefault(kind, []).append(name)
        lines += [f"{kind}: {', '.join(names)}" for kind, names in by_kind.items()]
    return "\n".join(lines)
