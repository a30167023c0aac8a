"""Trying settings on anchor prompts: which pictures are drawn, and the plain search through a short list."""

from collections.abc import Sequence

from diffusers import StableDiffusionPipeline

from saeuron import ConceptTable, SaeuronError, Setting, SparseAutoencoder, removal

from .judging import Sampling, draw_all, judge_tinycanvas, measures
from .progress import console


def anchor_rows(
    rows: Sequence[dict], table: ConceptTable, target: str, images: int, seed: int
) -> tuple[list[dict], list[int]]:
    """Prompts and seeds for ``images`` pictures: a third show the target, the rest spread over the other prompts."""
    import random

    if images < 2:
        raise SaeuronError(f"a search draws at least 2 pictures a setting, and {images} is fewer")
    kind = table.concepts[target] if target in table.concepts else table.row(target)
    shuffled = random.Random(seed).sample(list(rows), len(rows))
    own = [row for row in shuffled if row[kind] == target]
    others = [row for row in shuffled if row[kind] != target]
    if not own or not others:
        raise SaeuronError(f"the prompts need some that show {target!r} and some that do not")
    third = max(images // 3, 1)
    picked = [own[n % len(own)] for n in range(third)] + [others[n % len(others)] for n in range(images - third)]
    return picked, [seed * 1_000_003 + n for n in range(len(picked))]


def search(
    pipeline: StableDiffusionPipeline,
    sae: SparseAutoencoder,
    table: ConceptTable,
    target: str,
    candidates: Sequence[Setting],
    rows: list[dict],
    seeds: list[int],
    sampling: Sampling,
) -> Setting:
    """The candidate whose worst of UA, IRA and CRA is best; their sum decides between equals."""
    kind = table.concepts[target]
    best, best_value = candidates[0], (-1.0, -1.0)
    for candidate in candidates:
        images = draw_all(pipeline, rows, seeds, sampling, {sae.hookpoint: removal(sae, table, {target: candidate})})
        rates = [rate.value for rate in measures(judge_tinycanvas(images, rows), target, kind).values()]
        value = (min(rates), sum(rates))
        console.print(f"{target}: {candidate}  UA {rates[0]:.2f}  IRA {rates[1]:.2f}  CRA {rates[2]:.2f}")
        if value > best_value:
            best, best_value = candidate, value
    return best
