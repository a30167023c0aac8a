"""Supervision: what makes one latent a concept's own in training (SAEmnesia), or draws a concept's codes together.

Labels are those of the recorded prompts. The losses look at maps, one image at one timestep each, through the mean over
those of its tokens that are in the batch. Since a mean of pre-activations is the pre-activation of the mean, hardly
anything is computed beyond what training computes anyway.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import nn

from saeuron import ConceptStatistics, SaeuronError, SparseAutoencoder
from saeuron.concept_table import WholeTable
from saeuron.errors import nearest
from saeuron.recording import Tokens

from ..common.prompts import concepts
from .commands import Weights
from .trainer import TrainingAutoencoder

SAMPLED = 64
"""Tokens of a batch on which the size of pre-activations is measured: an unbiased sample at a fraction of the cost."""


@dataclass(frozen=True, eq=False)
class Supervision:
    """Which concepts there are (name → kind), which latent each is assigned, and what each recorded prompt shows.

    ``targets`` is ``[prompts, concepts]`` of 0 and 1; several concepts a prompt are usual.
    """

    kinds: dict[str, str]
    assignment: dict[str, int]
    targets: torch.Tensor

    @property
    def latents(self) -> torch.Tensor:
        return torch.tensor([self.assignment[name] for name in self.kinds])

    def of_kind(self, kind: str) -> torch.Tensor:
        """The columns ``[m]`` of the concepts of one kind."""
        return torch.tensor([column for column, own in enumerate(self.kinds.values()) if own == kind])


def read_targets(prompts: Sequence[dict[str, str]], kinds: Sequence[str]) -> tuple[dict[str, str], torch.Tensor]:
    """The labelled concepts (name → kind) and the targets ``[prompts, concepts]``, from the prompts of a recording.

    Raises SaeuronError on a kind that no prompt names.
    """
    known = concepts(list(prompts))
    for kind in kinds:
        if kind not in known.values():
            raise SaeuronError(
                f"the recorded prompts have no label {kind!r}; the nearest are {nearest(kind, set(known.values()))}"
            )
    named = {name: kind for name, kind in known.items() if kind in kinds}
    rows = [[float(prompt.get(kind) == name) for name, kind in named.items()] for prompt in prompts]
    return named, torch.tensor(rows)


def map_means(values: torch.Tensor, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Means ``[G, m]`` of ``values`` ``[B, m]`` over the tokens of each map, and each map's prompt ``[G]``."""
    keys, group, sizes = (tokens.prompt * 65536 + tokens.timestep).unique(return_inverse=True, return_counts=True)
    group, sizes = group.to(values.device), sizes.to(values)
    sums = torch.zeros(len(keys), values.shape[1], dtype=values.dtype, device=values.device)
    return sums.index_add(0, group, values) / sizes[:, None], keys // 65536


def supervised_losses(
    model: TrainingAutoencoder,
    batch: torch.Tensor,
    code: Callable[[], torch.Tensor],
    tokens: Tokens,
    supervision: Supervision,
    weights: Weights,
) -> dict[str, torch.Tensor]:
    """Each weighted loss by name, those of weight 0 left out, on normalised tokens ``batch`` ``[B, d_in]``.

    SAEmnesia's total is reconstruction + 3 · `bce` + 0.1 · `decorrelation` + 0.01 · ``mean |pre-activation|``. Unlike
    there, pre-activations are in training coordinates, reconstruction is a fraction of the variance, and the last mean
    is taken over a sample of the batch's tokens. SAEParate's term is `contrast`, on the token-mean of ``code()``,
    ``[B, n]``, which nothing else asks for.
    """
    losses = {}
    means, shown = map_means(batch, tokens)
    targets = supervision.targets[shown].to(batch.device)
    logits = model.pre_activations(means, supervision.latents.to(batch.device))
    if weights.bce:
        losses["bce"] = weights.bce * nn.functional.binary_cross_entropy_with_logits(logits, targets)
    if weights.decorrelation:
        parts = [logits[:, supervision.of_kind(kind)] for kind in dict.fromkeys(supervision.kinds.values())]
        losses["decorrelation"] = weights.decorrelation * decorrelation(parts)
    if weights.l1:
        sample = batch[:: max(len(batch) // SAMPLED, 1)]
        losses["l1"] = weights.l1 * model.pre_activations(sample).abs().mean()
    if weights.contrast:
        codes = map_means(code(), tokens)[0]
        labels = [targets[:, supervision.of_kind(kind)] for kind in dict.fromkeys(supervision.kinds.values())]
        terms = [contrast(codes, own, weights.temperature) for own in labels]
        losses["contrast"] = weights.contrast * torch.stack(terms).mean()
    return losses


def decorrelation(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean squared Pearson correlation over the batch between latents of different kinds.

    ``parts`` are the activations ``[G, m]`` of each kind's latents. 0 where there is only one kind.
    """
    standard = [nn.functional.normalize(part - part.mean(0), dim=0) for part in parts]
    pairs = [(a, b) for n, a in enumerate(standard) for b in standard[n + 1 :]]
    if not pairs:
        return torch.zeros((), device=parts[0].device)
    return torch.cat([(a.T @ b).pow(2).flatten() for a, b in pairs]).mean()


def contrast(codes: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """The supervised contrastive loss (Khosla et al. 2020, eq. 2), which SAEParate puts on latents.

    ``codes`` ``[G, n]`` are compared by cosine; two belong together where their ``labels`` ``[G, m]`` of 0 and 1 share
    a concept. Maps without a partner in the batch say nothing. SAEParate's GELU before the encoder is left out, which
    would make another architecture; and kinds are told apart one by one, not as pairs of an object and a style.
    """
    codes = nn.functional.normalize(codes, dim=1)
    itself = torch.eye(len(codes), dtype=torch.bool, device=codes.device)
    similar = (codes @ codes.T / temperature).masked_fill(itself, -torch.inf)
    log_share = (similar - similar.logsumexp(1, keepdim=True)).masked_fill(itself, 0)
    partners = ((labels @ labels.T) > 0) & ~itself
    count = partners.sum(1)
    of_each = -(log_share * partners).sum(1) / count.clamp(min=1)
    return of_each.sum() / (count > 0).sum().clamp(min=1)


@torch.no_grad()
def report(
    sae: SparseAutoencoder, tokens: Tokens, prompts: Sequence[dict[str, str]], supervision: Supervision
) -> dict[str, dict]:
    """What became of each concept's latent on held-out ``tokens``.

    ``strongest`` is the latent of the highest score (SAeUron eq. 7, averaged over timesteps), ``centralised`` whether
    it is the assigned one, ``score`` the assigned one's, and ``auroc`` how well its token-mean pre-activation tells the
    images that show the concept from the others (None where all do). Concepts that no image shows, or that are alone
    in their kind, are left out.
    """
    seen = supervision.targets[tokens.prompt.unique()].any(0).tolist()
    kinds = {name: kind for (name, kind), there in zip(supervision.kinds.items(), seen, strict=True) if there}
    kinds = {name: kind for name, kind in kinds.items() if list(kinds.values()).count(kind) > 1}
    statistics = ConceptStatistics(kinds, tokens.timestep.unique(sorted=True).tolist(), sae.n_latents, sae.fingerprint)
    for timestep in statistics.timesteps.tolist():
        part = tokens.pick(tokens.timestep == timestep)
        means, images = map_means(sae.encode(part.activations.to(sae.W_enc)).float(), part)
        names = [
            [name for name, kind in kinds.items() if prompts[image].get(kind) == name] for image in images.tolist()
        ]
        statistics.add(names, timestep, means)
    pre = sae.pre_activations(tokens.activations.to(sae.W_enc), supervision.latents.to(sae.W_enc.device)).float()
    together = Tokens(tokens.activations, tokens.prompt, torch.zeros_like(tokens.timestep), tokens.position)
    means, images = map_means(pre, together)
    found, table = {}, WholeTable(statistics)
    for column, name in enumerate(supervision.kinds):
        if name not in kinds:
            continue
        latent, scores = supervision.assignment[name], table.scores(name).mean(0)
        found[name] = {
            "kind": kinds[name],
            "latent": latent,
            "strongest": int(scores.argmax()),
            "centralised": int(scores.argmax()) == latent,
            "score": float(scores[latent]),
            "auroc": auroc(means[:, column], supervision.targets[images, column] > 0),
        }
    return found


def auroc(values: torch.Tensor, positive: torch.Tensor) -> float | None:
    """The chance that a positive's value exceeds a negative's, ties counting half; None without either."""
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return None
    ranks = torch.from_numpy(rankdata(values.cpu().double().numpy()))
    return float((ranks[positive.cpu()].sum() - count * (count + 1) / 2) / (count * others))
