"""A bundle and an atlas at the size of a published SAE (20 480 latents, 2 000 pictures), of seeded random numbers."""

import random
from pathlib import Path

import torch
from PIL import Image

from saeuron import Hookpoint, SparseAutoencoder
from saeuron.atlas import Atlas
from saeuron.atlas.folder import key_of
from saeuron.atlas.survey import BINS, Counts, Seen
from saeuron.checkpoints import Bundle, save_bundle

WORDS = [
    first + last
    for first in ("sun", "moon", "rain", "stone", "wood", "glass", "snow", "fire", "wind", "night", "river", "cloud")
    for last in ("light", "fall", "house", "bird", "field", "man", "flower", "way", "bow", "storm", "cat", "song")
]


def write(folder: Path, latents: int = 20480, pictures: int = 2000, batch: int = 40, seed: int = 0) -> None:
    """``synthetic.safetensors`` and ``synthetic.atlas`` in ``folder``."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    sae = SparseAutoencoder(8, latents, 4, hookpoint=Hookpoint("unet.up_blocks.1.attentions.1"))
    sae.requires_grad_(False)
    sae.W_enc.normal_()
    sae.W_dec.normal_()
    save_bundle(Bundle(sae), folder / "synthetic.safetensors")
    atlas = Atlas.create(folder / "synthetic.atlas", sae, (16, 16), {})
    for start in range(0, pictures, batch):
        heat = torch.zeros(batch, 256, latents, dtype=torch.float16)
        spots = batch * 6000
        where = torch.randint(batch, (spots,)), torch.randint(256, (spots,)), (torch.rand(spots) ** 2 * latents).long()
        heat[where] = torch.rand(spots).half() + 0.1
        counts = Counts.zeros(latents)
        fired = (heat > 0).sum((0, 1))
        counts.fired.copy_(torch.stack([fired] * BINS))
        counts.sums.copy_(counts.fired * 2048)
        counts.tokens.fill_(batch * 256)
        counts.shown.copy_((heat > 0).any(1).sum(0))
        counts.ground.copy_(counts.shown * 256 * BINS)
        counts.peak.copy_(heat.amax((0, 1)).float())
        noise = (torch.rand(batch, 8, 8, 3) * 255).byte().numpy()
        images = [Image.fromarray(one).resize((256, 256), Image.Resampling.BICUBIC) for one in noise]
        prompts = [" ".join(chance.sample(WORDS, 8)) for _ in images]
        keys = [key_of(start + number) for number in range(batch)]
        for own in range(0, batch, 16):
            part = slice(own, min(own + 16, batch))
            share = counts if own == 0 else Counts.zeros(latents)
            atlas.add(Seen(heat[part], (16, 16), share), images[part], prompts[part], keys[part])
    atlas.save()
