"""Cards: what a panel shows of every latent, worked out of an atlas once and kept beside it as ``cards.json``.

Columns, one entry a latent, so that 20 000 of them are read at once: how often and where it fires, its words, the
latents that fire with it. Words are the ones that its pictures' prompts have more of than others.
"""

import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch

from ..errors import SaeuronError
from ..files import read_json, write_text
from ..formats import CardsDescription, check
from .folder import KEPT, Atlas, read_about
from .survey import BINS, UNIT

FORMAT, VERSION = "saeuron-atlas-cards", 1
WORDS, NEIGHBOURS = 8, 8
PRIOR = 20.0
"""Words that the prior counts for, spread as they are over all prompts."""
TOLD = 1.5
"""Standard deviations of the log-odds below which a word tells nothing."""
DENSE = 0.3
"""Share of all tokens from which on a latent says little about any of them."""
VOCABULARY = 20_000
"""Words that are counted, the most frequent."""
CHUNK = 512


def cards_of(atlas: Atlas) -> dict:
    """The columns of every latent's card."""
    counts = atlas.counts
    fired, tokens = counts.fired.sum(0), counts.tokens.sum().clamp_min(1)
    frequency = fired / tokens
    middle = (torch.arange(BINS) + 0.5) * 1000 / BINS
    rate = counts.sums / counts.tokens.clamp_min(1)[:, None]
    timestep = (rate * middle[:, None]).sum(0) / rate.sum(0).clamp_min(1e-9)
    words, odds = words_of(atlas)
    return {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": atlas.about["fingerprint"],
        "pictures": atlas.pictures,
        "latents": atlas.about["n_latents"],
        "frequency": _rounded(frequency, 6),
        "area": _rounded(fired / counts.ground.clamp_min(1), 3),
        "shown": counts.shown.tolist(),
        "peak": _rounded(counts.peak, 3),
        "timestep": [round(value) for value in timestep.tolist()],
        "crops": (atlas.strongest.pictures >= 0).sum(1).tolist(),
        "dead": (fired == 0).nonzero().squeeze(-1).tolist(),
        "dense": (frequency > DENSE).nonzero().squeeze(-1).tolist(),
        "words": words,
        "odds": odds,
        "neighbours": neighbours_of(atlas),
    }


def read_cards(folder: Path) -> dict:
    """The cards of the atlas in ``folder``: those kept there, or made anew where pictures came since, and then kept.

    Raises SaeuronError where the atlas or its cards are broken.
    """
    return _read_cards(folder, _stamps(folder))


def cards_as_json(folder: Path) -> str:
    """`read_cards` as a JSON object, written once for as long as the atlas stays as it is."""
    read_cards(folder)  # which may keep them anew
    return _as_json(folder, _stamps(folder))


def _stamps(folder: Path) -> tuple[int, ...]:
    paths = (folder / "atlas.json", folder / "cards.json")
    return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)


@lru_cache(maxsize=2)
def _as_json(folder: Path, stamps: tuple[int, ...]) -> str:
    return json.dumps(_read_cards(folder, stamps), ensure_ascii=False, separators=(",", ":"))


@lru_cache(maxsize=4)
def _read_cards(folder: Path, _known: tuple[int, ...]) -> dict:
    path, about = folder / "cards.json", read_about(folder)
    kept = read_json(path) if path.exists() else {}
    current = {"format": FORMAT, "version": VERSION, "pictures": about["pictures"], "latents": about["n_latents"]}
    current["fingerprint"] = about["fingerprint"]
    if all(kept.get(name) == value for name, value in current.items()):
        return _checked(kept, path)
    cards = cards_of(Atlas.load(folder))
    with contextlib.suppress(SaeuronError):  # a folder that nobody may write to is read as well as another
        write_text(path, json.dumps(cards, ensure_ascii=False, separators=(",", ":")))
    return cards


def _checked(cards: dict, path: Path) -> dict:
    check(cards, CardsDescription, path)
    n, lists = cards["latents"], ("dead", "dense")
    columns = [name for name in CardsDescription.__annotations__ if name not in lists]
    latents = [*itertools.chain(*cards["neighbours"], *(cards[name] for name in lists))]
    odds = all(
        len(own.split()) == len(words.split()) for own, words in zip(cards["odds"], cards["words"], strict=False)
    )
    if any(len(cards[name]) != n for name in columns) or max(latents, default=0) >= n or not odds:
        raise SaeuronError(f"{path} does not fit its atlas: delete it, and it is made anew")
    return cards


def curve_of(atlas: Atlas, latent: int) -> list[float]:
    """Mean activation of ``latent`` over all tokens, by timestep in BINS parts of 0…1000."""
    return _rounded(atlas.counts.sums[:, latent] / UNIT / atlas.counts.tokens.clamp_min(1), 6)


def words_in(prompt: str) -> set[str]:
    return {word for word in re.findall(r"[^\W\d_][\w'’-]*", prompt.lower()) if len(word) > 1 or not word.isascii()}


def words_of(atlas: Atlas) -> tuple[list[str], list[str]]:
    """Of every latent its words and by how many standard deviations each is more frequent, both joined by spaces.

    Log-odds with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008). A picture counts by the square of
    how strong the latent is in it, against its strongest; a word counts once a prompt.
    """
    prompts = [words_in(row["prompt"]) for row in atlas.all_rows()]
    counted = Counter(word for words in prompts for word in sorted(words))
    vocabulary = sorted(word for word, _ in counted.most_common(VOCABULARY))
    if not vocabulary:
        return [""] * atlas.about["n_latents"], [""] * atlas.about["n_latents"]
    number = {word: index for index, word in enumerate(vocabulary)}
    places = torch.tensor([[number[w], p] for p, words in enumerate(prompts) for w in sorted(words) if w in number]).T
    has = _sparse(places, torch.ones(places.shape[1]), (len(vocabulary), len(prompts)))
    total = torch.bincount(places[0], minlength=len(vocabulary)).float()[:, None]
    prior = PRIOR * total / total.sum()
    found, odds = [], []
    for strengths in _by_latents(atlas):
        weight = (strengths / strengths.amax(0).clamp_min(1e-9)) ** 2
        own = torch.sparse.mm(has, weight)
        rest = (total - own).clamp_min(0)
        told = _log_odds(own, prior) - _log_odds(rest, prior)
        told = told / (1 / (own + prior) + 1 / (rest + prior)).sqrt()
        best, chosen = told.topk(min(WORDS, len(vocabulary)), 0)
        for values, words in zip(best.T.tolist(), chosen.T.tolist(), strict=True):
            kept = [(vocabulary[word], value) for value, word in zip(values, words, strict=True) if value >= TOLD]
            found.append(" ".join(word for word, _ in kept))
            odds.append(" ".join(f"{value:.1f}" for _, value in kept))
    return found, odds


def _log_odds(count: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    of = count.sum(0) + PRIOR
    return ((count + prior) / (of - count - prior)).log()


def neighbours_of(atlas: Atlas) -> list[list[int]]:
    """Of every latent those that fire in the same pictures, by the cosine of their strengths, the nearest first."""
    n, count = atlas.about["n_latents"], atlas.pictures
    pictures, latents, strengths = atlas.codes()
    norm = torch.zeros(n).index_add_(0, latents, strengths**2).sqrt().clamp_min(1e-9)
    unit = _sparse(torch.stack([latents, pictures]), strengths / norm[latents], (n, count))
    found = []
    for start, part in zip(range(0, n, CHUNK), _by_latents(atlas), strict=True):
        alike = torch.sparse.mm(unit, part / norm[start : start + CHUNK])
        alike[torch.arange(start, start + part.shape[1]), torch.arange(part.shape[1])] = -1
        best, nearest = alike.topk(min(NEIGHBOURS, n), 0)
        for values, others in zip(best.T.tolist(), nearest.T.tolist(), strict=True):
            found.append([other for value, other in zip(values, others, strict=True) if value > 0.05])
    return found


def _sparse(places: torch.Tensor, values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.sparse_coo_tensor(places, values, size, check_invariants=True).coalesce()


def _by_latents(atlas: Atlas) -> Iterator[torch.Tensor]:
    """Strengths ``[pictures, CHUNK]`` of the latents, CHUNK by CHUNK."""
    pictures, latents, strengths = atlas.codes()
    order = latents.argsort(stable=True)
    pictures, latents, strengths = pictures[order], latents[order], strengths[order]
    n = atlas.about["n_latents"]
    for start in range(0, n, CHUNK):
        first, last = torch.searchsorted(latents, torch.tensor([start, start + CHUNK])).tolist()
        part = torch.zeros(atlas.pictures, min(CHUNK, n - start))
        part[pictures[first:last], latents[first:last] - start] = strengths[first:last]
        yield part


def _rounded(values: torch.Tensor, digits: int) -> list[float]:
    return [round(value, digits) for value in values.double().tolist()]


__all__ = ["KEPT", "cards_as_json", "cards_of", "curve_of", "read_cards", "words_in"]
