"""Atlas Recorder."""

import torch
from comfy_api.latest import io, ui

from ..saeuron import SaeuronError
from ..saeuron.atlas import Atlas
from ..saeuron.atlas.cards import read_cards
from ..saeuron.atlas.folder import key_of
from ..saeuron.atlas.sheets import to_image
from .atlas_card import line
from .feature_maps import UNSEEN, Probe
from .host import atlases, workflow
from .host.sockets import FeatureRecord, schema
from .seen import remember

OFFERED = 10


class AtlasRecorder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronAtlasRecorder",
            display_name="Atlas Recorder",
            description="Adds pictures that a Feature Probe saw to the atlas of its SAE, which the Atlas panel shows.",
            search_aliases=["atlas", "explore latents", "what does a latent mean", "sparse autoencoder"],
            inputs=[
                FeatureRecord.Input("record", tooltip="Of a Feature Probe whose MODEL goes into the sampler."),
                io.Image.Input("image", tooltip="The finished pictures."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the pictures were asked to show: latents are searched by these words.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="IMAGE", tooltip="The pictures, as they came."),
                io.String.Output(
                    "latents",
                    display_name="latents",
                    tooltip="The latents that tell these pictures from others, a line each, the first first.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, record: Probe, image: torch.Tensor, prompt: str) -> io.NodeOutput:
        if record.surveyed is None:
            raise SaeuronError(UNSEEN)
        remember(record.sae_name, record.surveyed, image)
        with workflow.plainly():
            if record.edited:
                told = "Nothing added: a patch changes what this model draws."
            else:
                added, atlas = add(record, image, prompt.strip())
                told = f"{added} pictures added" if added else "these pictures are in it already"
                told = f"{told}, {atlas.pictures} in the atlas of {record.sae_name}"
            return io.NodeOutput(image, strongest(record), ui=ui.PreviewText(told))


def strongest(record: Probe) -> str:
    """The OFFERED latents that tell the pictures of a record from others, a line each, with what the atlas knows."""
    folder, seen = atlases.folder_of(record.sae_name), record.surveyed
    usual = Atlas.load(folder).usual if folder else None
    everywhere = torch.ones(seen.grid)
    values = sum(seen.firing_in(everywhere, picture, usual) for picture in range(len(seen.heat)))
    latents = values.topk(min(OFFERED, len(values))).indices.tolist()
    if folder is None:
        return "\n".join(map(str, latents))
    cards, labels = read_cards(folder), atlases.labels_of(record.sae_name)
    return "\n".join(line(cards, labels, latent) for latent in latents)


def add(record: Probe, image: torch.Tensor, prompt: str) -> tuple[int, Atlas]:
    """Add the pictures ``[B, H, W, 3]`` in 0..1 of a record to its SAE's atlas, all or none; how many, and the atlas.

    The same pictures are not added twice.
    """
    seen = record.surveyed
    images = [to_image(one.movedim(-1, 0)) for one in image]
    keys = [key_of(prompt, one.tobytes().hex()) for one in images]
    with atlases.LOCK:
        folder = atlases.folder_to_grow(record.sae_name)
        if (folder / "atlas.json").exists():
            atlas = Atlas.load(folder)
            atlas.check_belongs(record.sae.fingerprint)
        else:
            atlas = Atlas.create(folder, record.sae, seen.grid, {"recorded": "in ComfyUI"})
        if {row["key"] for row in atlas.all_rows()} & set(keys):
            return 0, atlas
        atlas.add(seen, images, [prompt] * len(images), keys)
        atlas.save()
    return len(images), atlas
