"""A bundle and an atlas at the size of a published SAE (20 480 latents, 2 000 pictures), of seeded random numbers.

Files, sizes and words are those of a real atlas; nothing was sampled.
"""

import random
from pathlib import Path

import torch
from PIL import Image

from saeuron import Hookpoint, SparseAutoencoder
from saeuron.atlas import Atlas
from saeuron.atlas.folder import MOST, key_of, write_part
from saeuron.atlas.sheets import write_sheet
from saeuron.atlas.strongest import KEPT
from saeuron.checkpoints import Bundle, save_bundle

WORDS = [
    first + last
    for first in ("sun", "moon", "rain", "stone", "wood", "glass", "snow", "fire", "wind", "night", "river", "cloud")
    for last in ("light", "fall", "house", "bird", "field", "man", "flower", "way", "bow", "storm", "cat", "song")
]
PART = 16


def write(folder: Path, latents: int = 20480, pictures: int = 2000, seed: int = 0) -> None:
    """``synthetic.safetensors`` and ``synthetic.atlas`` in ``folder``."""
    torch.manual_seed(seed)
    sae = SparseAutoencoder(8, latents, 4, hookpoint=Hookpoint("unet.up_blocks.1.attentions.1")).requires_grad_(False)
    sae.W_enc.normal_()
    sae.W_dec.normal_()
    save_bundle(Bundle(sae), folder / "synthetic.safetensors")
    atlas = Atlas.create(folder / "synthetic.atlas", sae, (16, 16), {})
    for start in range(0, pictures, PART):
        write_pictures(atlas, start, min(PART, pictures - start), random.Random(seed + start))
    rare = torch.rand(latents) ** 4
    counts, strongest = atlas.counts, atlas.strongest
    counts.tokens.fill_(pictures * 256)
    counts.fired.copy_((rare * pictures * 256 * torch.rand(len(counts.fired), 1)).long())
    counts.sums.copy_(counts.fired * 2048)
    counts.shown.copy_((rare * pictures).long())
    counts.ground.copy_(counts.shown * 256 * len(counts.fired))
    counts.peak.uniform_(0.1, 8)
    strongest.pictures.copy_(torch.randint(pictures, (latents, KEPT)))
    strongest.strengths.copy_(torch.rand(latents, KEPT).sort(1, descending=True).values)
    places = torch.arange(16) - torch.rand(latents, KEPT, 2, 1) * 16
    spots = (-(places[:, :, 0, :, None] ** 2 + places[:, :, 1, None] ** 2) / 20).exp()
    strongest.heat.copy_((spots.flatten(2) * 255).byte())
    atlas.save()


def write_pictures(atlas: Atlas, start: int, count: int, chance: random.Random) -> None:
    """One part of ``count`` pictures of coloured clouds, their prompts and codes."""
    clouds = (torch.rand(count, 8, 8, 3) * 255).byte().numpy()
    images = [Image.fromarray(one).resize((256, 256), Image.Resampling.BICUBIC) for one in clouds]
    number, latents = len(atlas.about["parts"]), atlas.about["n_latents"]
    prompts = [" ".join(chance.sample(WORDS, 8)) for _ in images]
    rows = [{"prompt": p, "key": key_of(start + n), "size": [256, 256]} for n, p in enumerate(prompts)]
    chosen = torch.stack([torch.randperm(latents)[:MOST] for _ in images])
    write_sheet(images, atlas.folder / "parts" / f"{number:06d}.webp")
    write_part(atlas.folder, number, rows, torch.arange(count + 1) * MOST, chosen.flatten(), torch.rand(count * MOST))
    atlas.about["parts"].append(count)
    atlas.about["pictures"] += count
