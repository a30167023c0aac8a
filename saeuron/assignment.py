"""One latent per concept (SAEmnesia): which latent each concept gets, before training makes it the concept's own."""

from collections.abc import Iterable

import torch

from .autoencoder import SparseAutoencoder
from .concept_table import ConceptTable
from .errors import SaeuronError, nearest
from .selection import Selection


def assign(table: ConceptTable, concepts: Iterable[str] | None = None, first: str = "object") -> dict[str, int]:
    """Concept → latent by SAEmnesia's greedy rule, no latent twice.

    Scores are averaged over timesteps. Concepts of the kind ``first`` choose before all others, and within that the one
    with the higher best score; each takes the best latent that is still free. ``concepts`` limits whom to ask, None
    means all of the table. Raises SaeuronError on a concept the table does not know, and where latents run out.
    """
    names = list(table.concepts) if concepts is None else list(concepts)
    _check_enough(len(names), table.n_latents)
    scores = {name: table.scores(name).mean(0) for name in names}
    order = sorted(names, key=lambda name: (table.concepts[name] != first, -float(scores[name].max())))
    taken = torch.zeros(table.n_latents, dtype=torch.bool)
    found = {}
    for name in order:
        found[name] = int(scores[name].masked_fill(taken, -torch.inf).argmax())
        taken[found[name]] = True
    return {name: found[name] for name in names}


def assign_at_random(concepts: Iterable[str], n_latents: int, seed: int) -> dict[str, int]:
    """Concept → latent, distinct latents drawn by ``seed``: for an SAE that is trained from scratch."""
    names = list(concepts)
    _check_enough(len(names), n_latents)
    latents = torch.randperm(n_latents, generator=torch.Generator().manual_seed(seed))[: len(names)]
    return dict(zip(names, latents.tolist(), strict=True))


def read_assignment(sae: SparseAutoencoder) -> dict[str, int]:
    """The assignment that training left in the SAE's ``cfg.json``; raises SaeuronError where there is none."""
    assignment = sae.config.get("assignment")
    if not isinstance(assignment, dict) or not assignment:
        raise SaeuronError("this SAE has no latents assigned to concepts: train one with `train --labels`")
    wrong = [name for name, latent in assignment.items() if type(latent) is not int or not 0 <= latent < sae.n_latents]
    if wrong:
        raise SaeuronError(f"cfg.json assigns {wrong[0]!r} to {assignment[wrong[0]]!r}, which is no latent of this SAE")
    return assignment


def select_assigned(
    table: ConceptTable,
    assignment: dict[str, int],
    concept: str,
    strength: float = -1.0,
) -> Selection:
    """The selection of ``concept``'s one assigned latent, the same at every timestep.

    ``strength`` is γ. Raises SaeuronError on a concept without an assigned latent or unknown to the table.
    """
    check_assigned(assignment, concept)
    latents = torch.full((len(table.timesteps), 1), assignment[concept])
    return table.selection(concept, latents, strength)


def check_assigned(assignment: dict[str, int], concept: str) -> None:
    """Raise SaeuronError where no latent was assigned to ``concept``."""
    if concept not in assignment:
        raise SaeuronError(
            f"concept {concept!r} has no assigned latent; the nearest that have are {nearest(concept, assignment)}"
        )


def _check_enough(concepts: int, n_latents: int) -> None:
    if concepts > n_latents:
        raise SaeuronError(f"{concepts} concepts need a latent each and the SAE has only {n_latents}")
