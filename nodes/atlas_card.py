"""Atlas Card: what latents are, for those who stay in the graph."""

import numpy
import torch
from comfy_api.latest import io, ui

from ..saeuron.atlas import Atlas, sheets
from ..saeuron.atlas.cards import read_cards
from .host import atlases, headers, workflow
from .host.sockets import LoadedSae, Sae, schema
from .patches import check_latents, choose_latents

SIDE = 128


class AtlasCard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SAeUronAtlasCard",
            display_name="Atlas Card",
            description="Shows what latents are by the SAE's atlas: their strongest pictures, words and concepts.",
            search_aliases=["atlas", "what does a latent mean", "explain latent"],
            inputs=[
                Sae.Input("sae"),
                io.String.Input("latents", default="0", tooltip="Latents by number or label, separated by commas."),
            ],
            outputs=[
                io.Image.Output("crops", display_name="crops", tooltip="A strip of pictures for each latent."),
                io.String.Output("text", display_name="text", tooltip="A line for each latent."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, latents: str | None) -> bool | str:
        number = workflow.number(cls)
        loader = workflow.linked(number, "sae", "SAeUronLoader") or {}
        return workflow.first_told((check_atlas, loader.get("sae_name")), (check_latents, latents, number))

    @classmethod
    def execute(cls, sae: LoadedSae, latents: str) -> io.NodeOutput:
        with workflow.plainly():
            folder = atlases.checked_folder(sae.name)
            atlas, cards, labels = Atlas.load(folder), read_cards(folder), atlases.labels_of(sae.name)
            numbers = [latent for latent, _ in choose_latents(latents, sae.name, atlas.about["n_latents"])]
            text = "\n".join(line(cards, labels, latent, sae.bundle.table) for latent in numbers)
            strips = torch.stack([strip(atlas, latent) for latent in numbers])
        return io.NodeOutput(strips, text, ui=ui.PreviewImage(strips))


def check_atlas(sae_name: str) -> None:
    """Raise SaeuronError where the SAE has no atlas; that its file is none is told on its loader."""
    if workflow.told(headers.sae_of, sae_name) is True:
        atlases.checked_folder(sae_name)


def line(cards: dict, labels: dict, latent: int, table=None) -> str:
    """``251 neon: 15.1 % of all places; words neon; scores for neon 0.08``."""
    name = labels.get(str(latent), {}).get("text", "")
    told = [f"{100 * cards['frequency'][latent]:.2g} % of all places" if cards["shown"][latent] else "dead"]
    if cards["words"][latent]:
        told.append(f"words {cards['words'][latent]}")
    if table is not None:
        scores = {concept: float(table.scores(concept).mean(0)[latent]) for concept in table.concepts}
        best = [f"{concept} {score:.2g}" for concept, score in sorted(scores.items(), key=lambda one: -one[1])[:3]]
        told.append(f"scores for {', '.join(best)}")
    return f"{latent} {name}".strip() + ": " + "; ".join(told)


def strip(atlas: Atlas, latent: int, count: int = 6) -> torch.Tensor:
    """The strongest pictures of a latent side by side, ``[SIDE, count · SIDE, 3]`` in 0..1; black beyond the last."""
    found = torch.zeros(SIDE, count * SIDE, 3)
    for rank, picture in enumerate(atlas.strongest.pictures[latent, :count].tolist()):
        if picture >= 0:
            heat = atlas.strongest.heat[latent, rank].float().view(atlas.grid) / 255
            image = torch.from_numpy(numpy.array(sheets.heated(atlas.picture(picture), heat, SIDE))).float() / 255
            found[: image.shape[0], rank * SIDE : rank * SIDE + image.shape[1]] = image
    return found
