"""SAE Loader."""

import re
from pathlib import Path

from comfy_api.latest import io, ui

from ..saeuron import Hookpoint, SaeuronError
from ..saeuron.checkpoints import Bundle, load_bundle
from .host import files, headers, workflow
from .host.memory import manage_sae
from .host.sockets import ADVANCED, ALIASES, CATEGORY, LoadedSae, Sae, schema

SITES = ("from file", "output", "residual")
CONCEPTS = ("from file", "none")


class SaeLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronLoader",
            display_name="SAE Loader",
            category=CATEGORY,
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
                    "Leave empty where the file says it.",
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
        return workflow.told(headers.concepts_of, sae_name)

    @classmethod
    def fingerprint_inputs(cls, sae_name: str, **_) -> str:
        return str(files.stamp(*files.sources(sae_name)))

    @classmethod
    def execute(
        cls, sae_name: str, hookpoint: str = "", site: str = SITES[0], concepts: str = CONCEPTS[0]
    ) -> io.NodeOutput:
        path, site = files.path(sae_name), None if site == SITES[0] else site
        bundle = load_bundle(path, hookpoint=hookpoint.strip() or None, site=site)
        bundle.sae.hookpoint = bundle.sae.hookpoint or _guess(path, site)
        if concepts == CONCEPTS[1]:
            bundle.table, bundle.settings = None, {}
        loaded = LoadedSae(sae_name, bundle, manage_sae(bundle.sae, path))
        return io.NodeOutput(loaded, ui=ui.PreviewText(describe(bundle)))


def _guess(path: Path, site: str | None) -> Hookpoint:
    """Where an SAE reads whose file does not say: what the file or a folder it lies in is named after."""
    written = re.search(r"unet\.[\w.]*attentions\.\d+|transformer\.[a-z_]+\.\d+", str(path))
    if written is None:
        raise SaeuronError(
            f"{path.name} does not say which block it reads: write it into `hookpoint`, "
            "such as unet.up_blocks.1.attentions.1"
        )
    return Hookpoint(written[0], site or "output")


def describe(bundle: Bundle) -> str:
    """What the node shows under itself."""
    sae, table = bundle.sae, bundle.table
    lines = [
        f"{sae.hookpoint.name} ({sae.hookpoint.site})",
        f"width {sae.d_in}, {sae.n_latents} latents, {sae.activation} k {sae.k}",
    ]
    if sae.base_model:
        lines.append(f"for {sae.base_model}")
    if table is None:
        lines.append(
            "no concepts: teach it one with Learn Concept, give Concept Selector a table, or steer latents by number"
        )
    else:
        concepts = headers.offered(table.concepts)
        lines.append(f"{len(concepts)} concepts: {', '.join(concepts)}")
    return "\n".join(lines)
