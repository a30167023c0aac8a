"""Contrasts: what sets each concept apart from the others of its kind, fitted in closed form from statistics."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .autoencoder import SparseAutoencoder
from .concept_statistics import ConceptStatistics
from .errors import SaeuronError
from .formats import check_floats, check_latents
from .selection import nearest_column

DETECTING, CHANGING = 64, 192
"""How many latents detect a concept, and by how many latents the concepts of a kind are told from each other."""
ORDINARY = 2.0
"""How much it counts, beside being near, that a goal is like the rest of its kind."""
UNGUIDED = 1.0
"""How much the difference between the halves of guidance counts as scatter: no half shows a concept by being itself."""
RIDGE = 0.5
"""Pictures that the regression imagines of every concept, in which it has no effect."""


@dataclass(frozen=True, eq=False)
class Contrasts:
    """Detectors of all concepts, and what they add to a map, at each of ``timesteps`` ``[S]``.

    A concept's *score* of a map is ``Σ_i weights_i · pre-activation_i(mean token) − offset``: on average 0 where
    another concept of its kind is shown, and 1 where it is shown itself. ``latents`` and ``weights`` are ``[S, C, m]``,
    ``offsets`` ``[S, C]``. What a concept adds to a map's mean activations is ``effects`` ``[S, C, h]``, of the latents
    ``changed`` ``[S, C, h]``, by which the concepts of its kind differ most. ``distances`` ``[C, C]`` say how far apart
    concepts are, over all timesteps.

    Weights and effects have been rounded to float16, in ``unit``, the size of the largest effect: what a shared file
    holds is what was fitted.
    """

    concepts: dict[str, str]
    timesteps: torch.Tensor
    fingerprint: str
    latents: torch.Tensor
    weights: torch.Tensor
    offsets: torch.Tensor
    changed: torch.Tensor
    effects: torch.Tensor
    distances: torch.Tensor
    unit: float

    @classmethod
    @torch.no_grad()
    def fit(
        cls, statistics: ConceptStatistics, sae: SparseAutoencoder, residuals: torch.Tensor | None = None
    ) -> "Contrasts":
        """Fit all detectors and effects, one timestep after another.

        ``residuals`` ``[P, S, d_in]`` are mean tokens of pictures less the mean of their concept, where they are known:
        what else pictures differ in, of which nobody has said what it is.

        The model is additive: a map is an intercept, the effect of every concept that its picture shows, and noise.
        Ridge regression solves it from the sums alone, so that few and unbalanced pictures are enough: the mean of
        eleven pictures of neon is also the mean of whatever objects those eleven happen to show.

        Raises SaeuronError where the statistics are another SAE's, know only map means, or have no picture of a concept
        at some timestep.
        """
        statistics.check_belongs(sae.fingerprint)
        if statistics.more is None:
            raise SaeuronError(
                "this concept table holds means alone, which tell no map: run `score` again for a new one"
            )
        silent = [name for name in statistics.concepts if not bool((statistics.counts[statistics.row(name)] > 0).all())]
        if silent:
            raise SaeuronError(
                f"concept {silent[0]!r} has no images at some timesteps; run `score` with prompts that show it"
            )
        kinds, found = list(statistics.concepts.values()), []
        for column in range(len(statistics.timesteps)):
            own = None if residuals is None else residuals[:, column].float() @ sae.W_enc.detach().float().cpu().T
            try:
                step = _Step.solve(statistics, sae, column)
                found.append((*step.detectors(kinds, own), *step.changes(kinds), step.distances()))
            except torch.linalg.LinAlgError:
                raise SaeuronError("this concept table's sums are of no pictures: run `score` again") from None
        latents, weights, usual, changed, effects, distances = (
            torch.stack(parts) for parts in zip(*found, strict=True)
        )
        unit = float(effects.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
        weights, effects = (weights * unit).half().float() / unit, (effects / unit).half().float() * unit
        # From the rounded weights, so that rounding leaves the usual picture's score at 0.
        names = dict(statistics.concepts), statistics.timesteps, statistics.fingerprint
        return cls(*names, latents, weights, (weights * usual).sum(-1), changed, effects, distances.sum(0), unit)

    def row(self, concept: str) -> int:
        return list(self.concepts).index(concept)

    def others(self, concept: str) -> list[str]:
        """The other concepts of the same kind that were fitted together with it."""
        row = self.distances[self.row(concept)]
        kin = [name for name, kind in self.concepts.items() if kind == self.concepts[concept] and name != concept]
        return [name for name in kin if bool(row[self.row(name)].isfinite())]

    def goal(self, concept: str, without: Collection[str] = ()) -> str | None:
        """What ``concept`` is best turned into: of its kind, none of ``without``, near to it and ordinary for the kind.

        It has the smallest ``|e_g − e_c|² + 2 |e_g − ē|²``, ``ē`` being the mean of the kind: a style far from all
        others breaks more pictures than it saves by being the nearest. None where no concept is left.
        """
        kin = [self.row(name) for name in (concept, *self.others(concept))]
        apart = self.distances[kin][:, kin]
        # What the distances of points among themselves say of their distances to their mean.
        from_mean = apart.mean(0) - apart.mean() / 2
        costs = dict(zip(self.others(concept), (apart[0] + ORDINARY * from_mean)[1:].tolist(), strict=True))
        return min((name for name in costs if name not in without), key=costs.__getitem__, default=None)

    def probe(self, sae: SparseAutoencoder, concept: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The detector of ``concept`` folded with the encoder: score = ``vectors[t] · mean token − offsets[t]``.

        ``vectors`` are ``[S, d_in]``, ``offsets`` ``[S]``. Whatever the SAE's activation, nothing has to be encoded.
        """
        row = self.row(concept)
        latents, weights = self.latents[:, row], self.weights[:, row]
        encoder = sae.W_enc.detach().float().cpu()
        bias = sae.b_enc.detach().float().cpu() - encoder @ sae.b_dec.detach().float().cpu()
        vectors = torch.stack([own @ encoder[chosen] for own, chosen in zip(weights, latents, strict=True)])
        return vectors, self.offsets[:, row] - (weights * bias[latents]).sum(-1)

    def change(self, sae: SparseAutoencoder, concept: str, other: str | None) -> torch.Tensor:
        """What a map gains that comes to show ``other`` in place of ``concept``, decoded, ``[S, d_in]``.

        None stands for the mean of the rest of the kind, or for nothing at all where there is no rest.
        """
        own = self.effects[:, self.row(concept)]
        rows = [self.row(name) for name in ([other] if other else self.others(concept))]
        target = self.effects[:, rows].mean(1) if rows else torch.zeros_like(own)
        decoder, changed = sae.W_dec.detach().float().cpu(), self.changed[:, self.row(concept)]
        return torch.stack([gain @ decoder[chosen] for gain, chosen in zip(target - own, changed, strict=True)])

    def merged(self, other: "Contrasts") -> "Contrasts":
        """These and the concepts of ``other``, of the same SAE, at these timesteps; those of ``other`` win.

        Concepts that were not fitted together are infinitely far apart: neither is the other's goal or rival.
        """
        kept = [row for row, name in enumerate(self.concepts) if name not in other.concepts]
        columns = [nearest_column(other.timesteps, t) for t in self.timesteps.tolist()]

        def together(name: str) -> torch.Tensor:
            own, new = getattr(self, name)[:, kept], getattr(other, name)[columns]
            if own.dim() == 2:
                return torch.cat([own, new], 1)
            width = max(own.shape[2], new.shape[2])  # an empty place has weight or effect 0, of latent 0
            return torch.cat([nn.functional.pad(part, (0, width - part.shape[2])) for part in (own, new)], 1)

        names = ("latents", "weights", "offsets", "changed", "effects")
        distances = torch.full((len(kept) + len(other.concepts),) * 2, torch.inf)
        distances[: len(kept), : len(kept)] = self.distances[kept][:, kept]
        distances[len(kept) :, len(kept) :] = other.distances
        concepts = {name: kind for name, kind in self.concepts.items() if name not in other.concepts} | other.concepts
        unit = max(self.unit, other.unit)
        return Contrasts(
            concepts, self.timesteps, self.fingerprint, *map(together, names), distances=distances, unit=unit
        )

    def pack(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """The tensors and the JSON values of a file that holds these contrasts."""
        short = torch.uint16 if int(max(self.latents.max(), self.changed.max())) < 2**16 else torch.int32
        tensors = {"latents": self.latents.to(short), "changed": self.changed.to(short)}
        tensors |= {"weights": (self.weights * self.unit).half(), "effects": (self.effects / self.unit).half()}
        tensors |= {"offsets": self.offsets, "distances": self.distances}
        return {f"contrasts.{name}": tensor for name, tensor in tensors.items()}, {"unit": self.unit}

    @classmethod
    def unpack(
        cls,
        tensors: Mapping[str, torch.Tensor],
        about: Mapping[str, object],
        concepts: Mapping[str, str],
        timesteps: torch.Tensor,
        sae: SparseAutoencoder,
    ) -> "Contrasts":
        """The inverse of ``pack``; KeyError or SaeuronError on tensors that ``pack`` does not write."""
        names = ("latents", "weights", "offsets", "changed", "effects", "distances")
        latents, weights, offsets, changed, effects, distances = (tensors[f"contrasts.{name}"] for name in names)
        start, unit = (len(timesteps), len(concepts)), float(about["unit"])
        pairs = ((latents, weights), (changed, effects))
        right = all(one.shape == other.shape and one.shape[:2] == start and one.dim() == 3 for one, other in pairs)
        if not right or offsets.shape != start or distances.shape != (start[1],) * 2 or distances.isnan().any():
            raise SaeuronError("its contrasts do not have the shape its description gives")
        for numbers, values in pairs:
            check_latents(numbers, sae.n_latents, "contrasts")
            check_floats(values, "contrasts")
        values = weights.float() / unit, offsets.float(), changed.long(), effects.float() * unit, distances.float()
        return cls(dict(concepts), timesteps, sae.fingerprint, latents.long(), *values, unit)


@dataclass(frozen=True, eq=False)
class _Step:
    """One timestep: ``intercept`` ``[n]`` and effects ``pre`` ``[C, n]`` of pre-activations of the mean token, effects
    ``act`` ``[C, n]`` of mean activations, and the variance ``noise`` ``[n]`` that nothing explains, plus its median.
    ``apart`` ``[n]`` is by how much pre-activations differ in the unconditional half, 0 where nobody said.
    """

    intercept: torch.Tensor
    pre: torch.Tensor
    act: torch.Tensor
    noise: torch.Tensor
    apart: torch.Tensor

    @classmethod
    def solve(cls, statistics: ConceptStatistics, sae: SparseAutoencoder, column: int) -> "_Step":
        """Ridge regression by its normal equations, in mean tokens, which the encoder then takes to pre-activations."""
        more = statistics.more
        pictures, together = more["pictures"][column].double(), more["together"][:, :, column].double()
        count = len(together)
        gram = torch.zeros(count + 1, count + 1, dtype=torch.double)
        gram[0, 0], gram[1:, 1:] = pictures, together
        gram[0, 1:] = gram[1:, 0] = together.diagonal()
        penalty = torch.full((count + 1,), RIDGE, dtype=torch.double)
        penalty[0] = 0
        inverse = torch.linalg.inv(gram + penalty.diag())
        sums = torch.cat([more["all_tokens"][None, column], more["tokens"][:, column]]).double()
        act = inverse @ torch.cat([more["all_sums"][None, column], statistics.sums[:, column]]).double()
        W_enc, b_dec = sae.W_enc.detach().cpu(), sae.b_dec.detach().cpu()
        pre = (inverse @ sums).float() @ W_enc.float().T
        right = sums.float() @ W_enc.float().T
        bias = sae.b_enc.detach().float().cpu() - W_enc.float() @ b_dec.float()
        pre[0] += bias
        right += torch.cat([pictures[None], together.diagonal()]).float()[:, None] * bias
        explained = 2 * (pre.double() * right.double()).sum(0) - (pre.double() * (gram @ pre.double())).sum(0)
        kinds = len(set(statistics.concepts.values()))
        freedom = torch.maximum(pictures - (count + 1 - kinds), pictures / 3)
        variance = ((more["squares"][column].double() - explained) / freedom).clamp(min=0)
        noise = variance.clamp(min=1e-6 * float(variance.mean())).float()
        apart = more["apart"][column] / more["halves"][column].clamp(min=1)
        return cls(pre[0], pre[1:], act[1:].float(), noise + noise.median(), W_enc.float() @ apart)

    def detectors(self, kinds: list[str], residuals: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Linear discriminants of each concept against the rest of its kind: latents, weights, and the latents'
        pre-activations in a usual picture without the concept, each ``[C, m]``.

        ``w = Σ⁻¹ (e_c − ē_rest)`` on the latents where ``(e_c − ē_rest)² / noise`` is largest. Σ is the noise on the
        diagonal, and the scatter of the effects of every other kind and of the rest of the own kind: a combination of
        latents by which objects differ among themselves counts for little when neon is looked for. So does one by which
        the unconditional half differs from the other.
        """
        found = [self._detector(kinds, row, residuals) for row in range(len(kinds))]
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))

    def _detector(self, kinds: list[str], row: int, residuals: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        rest = [other for other, kind in enumerate(kinds) if kind == kinds[row] and other != row]
        groups = [_members(kinds, kind) for kind in dict.fromkeys(kinds) if kind != kinds[row]]
        centre = self.pre[rest].mean(0) if rest else torch.zeros_like(self.intercept)
        difference = self.pre[row] - centre
        latents = (difference.square() / self.noise).topk(min(DETECTING, len(difference))).indices
        d, sigma = difference[latents], self.noise[latents].diag()
        for group in filter(None, (rest, *groups)):
            spread = (self.pre[group] - self.pre[group].mean(0))[:, latents]
            sigma = sigma + spread.T @ spread / len(group)
        if residuals is not None:
            sigma = sigma + residuals[:, latents].T @ residuals[:, latents] / len(residuals)
        sigma = sigma + UNGUIDED * self.apart[latents].outer(self.apart[latents])
        weights = torch.linalg.solve(sigma, d)
        usual = self.intercept + centre + sum(self.pre[group].mean(0) for group in groups)
        return latents, weights / (weights @ d), usual[latents]

    def changes(self, kinds: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents by which the concepts of each kind differ most, and what each adds to them, ``[C, h]`` both."""
        changed = torch.empty(len(kinds), min(CHANGING, self.act.shape[1]), dtype=torch.long)
        for kind in dict.fromkeys(kinds):
            rows = _members(kinds, kind)
            centre = self.act[rows].mean(0) if len(rows) > 1 else 0
            changed[rows] = (self.act[rows] - centre).abs().amax(0).topk(changed.shape[1]).indices
        return changed, self.act.gather(1, changed)

    def distances(self) -> torch.Tensor:
        """Squared distances ``[C, C]`` of all concepts' effects, in units of the noise."""
        scaled = self.pre / self.noise.sqrt()
        return torch.cdist(scaled, scaled).square()


def _members(kinds: list[str], kind: str) -> list[int]:
    return [row for row, own in enumerate(kinds) if own == kind]
