"""Labels and latents of a few pictures, and the statistics of them."""

import torch

from saeuron import ConceptStatistics
from saeuron.concept_table import WholeTable

CONCEPTS = {"cat": "object", "dog": "object", "bird": "object", "oil": "style", "ink": "style"}
TIMESTEPS = [901, 501, 101]

# Means of a few float32 values of order 1, summed in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def new_statistics(**options):
    named = {"concepts": CONCEPTS, "timesteps": TIMESTEPS, "n_latents": 12, "fingerprint": "sae"} | options
    return ConceptStatistics(**named)


def draw_images(make_tokens):
    """Labels and latents of 30 images: ``latents[timestep][image]``; every object is seen in every style."""
    objects, styles = ("cat", "dog", "bird"), ("oil", "ink")
    labels = [(objects[n % 3], styles[n % 2]) for n in range(30)]
    return labels, {t: make_tokens(30, 12, seed=t).relu() for t in TIMESTEPS}


def fill(statistics, images, rows=slice(None), batch=7):
    labels, latents = images
    labels = labels[rows]
    for timestep, values in latents.items():
        values = values[rows]
        for start in range(0, len(labels), batch):
            statistics.add(labels[start : start + batch], timestep, values[start : start + batch])
    return statistics


def table_of(images, **options):
    return WholeTable(fill(new_statistics(**options), images))


def plain_means(images, shows):
    """[timesteps, latents] of the images whose labels ``shows`` accepts, in float64."""
    labels, latents = images
    chosen = [n for n, names in enumerate(labels) if shows(names)]
    return torch.stack([latents[t][chosen].double().mean(0) for t in TIMESTEPS])
