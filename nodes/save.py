"""Save SAE."""

from pathlib import Path

from comfy_api.latest import io, ui

from ..saeuron import SaeuronError
from ..saeuron.checkpoints import LAYOUTS, Bundle, save_bundle
from .host import files, headers, workflow
from .host.sockets import LoadedSae, Sae, schema

SUFFIX = ".safetensors"


class SaveSae(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronSaveSae",
            display_name="Save SAE",
            description="Writes an SAE with all the concepts it knows as one file in models/saes, to share.",
            search_aliases=["export", "share", "bundle", "sparse autoencoder"],
            inputs=[
                Sae.Input("sae", tooltip="What SAE Loader loaded, or what Learn Concept has taught."),
                io.String.Input(
                    "filename",
                    default="my_sae",
                    tooltip="The name under models/saes; a folder may stand before it: `mine/neon`.",
                ),
                io.String.Input(
                    "licence",
                    default="",
                    placeholder="Apache-2.0",
                    tooltip="Under which licence others may use it. Empty: that of the file that was loaded.",
                ),
                io.String.Input(
                    "card",
                    multiline=True,
                    default="",
                    placeholder="What it is of, and what it was made with.",
                    tooltip="What others should know about it, as Markdown. Empty: the card of the loaded file.",
                ),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Whether a file of this name may be replaced by this one."
                ),
            ],
            outputs=[],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, filename: str | None) -> bool | str:
        return workflow.told(target, filename, bool(workflow.inputs(workflow.number(cls)).get("overwrite", False)))

    @classmethod
    def execute(cls, sae: LoadedSae, filename: str, licence: str, card: str, overwrite: bool) -> io.NodeOutput:
        path, own = target(filename, overwrite), sae.bundle
        save_bundle(
            Bundle(own.sae, own.table, own.settings, card.strip() or own.card, licence.strip() or own.licence), path
        )
        known = ", ".join(headers.offered(own.table.concepts)) if own.table else "none"
        size = path.stat().st_size / 1e6
        name = path.relative_to(files.folder().resolve()).as_posix()
        return io.NodeOutput(ui=ui.PreviewText(f"{name}, {size:.1f} MB\nconcepts: {known}"))


def target(filename: str, overwrite: bool) -> Path:
    """Where ``filename`` lies; raises SaeuronError where that is outside models/saes, taken, or of another format."""
    root, name = files.folder().resolve(), filename.strip().replace("\\", "/").removesuffix(SUFFIX)
    path = (root / f"{name}{SUFFIX}").resolve()
    if not Path(name).name.strip(".") or root not in path.parents:
        raise SaeuronError(f"`filename` is {filename[:60]!r}: give a name inside models/saes, such as `mine/neon`")
    if path.name in LAYOUTS or files.is_table(path.name):
        raise SaeuronError(f"`filename` is {filename[:60]!r}, which is read as a part of a folder: choose another name")
    if path.exists() and not overwrite:
        raise SaeuronError(f"{name}{SUFFIX} is there already: choose another `filename`, or switch `overwrite` on")
    return path
