"""The sparse autoencoder: one hidden layer, few of its latents active on any token."""

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from .competition import compete
from .errors import SaeuronError
from .hookpoints import Hookpoint

ACTIVATIONS = ("topk", "batch_topk", "jumprelu", "sigmoid_topk")

_THRESHOLD_OF = {
    "topk": "no threshold",
    "batch_topk": "one number as threshold, or none",
    "jumprelu": "a tensor of one threshold per latent",
    "sigmoid_topk": "no threshold",
}


@dataclass(frozen=True)
class Code:
    """The active latents of tokens: ``values`` and ``latents``, both ``[..., k]``; unused places hold value 0."""

    values: torch.Tensor
    latents: torch.Tensor


class SparseAutoencoder(nn.Module):
    """``f = act(W_enc (x − b_dec) + b_enc)`` and ``x̂ = f W_dec + b_dec`` (SAeUron §3.1).

    ``W_enc`` and ``W_dec`` are ``[n_latents, d_in]``, ``b_enc`` is ``[n_latents]``, ``b_dec`` is ``[d_in]``. The
    activation is one of

    - ``topk``: of each token the ``k`` largest latents, through a ReLU;
    - ``batch_topk``: every latent over one threshold learnt in training, which stands for the batch-wide top k·B.
      Without a threshold, as SAeUron publishes them, it runs as ``topk``;
    - ``jumprelu``: every latent over a threshold of its own ``[n_latents]``, 0 for a plain ReLU. ``k`` decides nothing;
    - ``sigmoid_topk``: of each token the ``k`` largest latents, through a sigmoid (G-SAE), 0 elsewhere.

    Raises SaeuronError where the activation is unknown, ``k`` is out of range or the threshold is not of its kind.
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        k: int,
        activation: str = "topk",
        threshold: float | torch.Tensor | None = None,
        hookpoint: Hookpoint | None = None,
        base_model: str = "",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise SaeuronError(f"activation {activation!r} is unknown; it is one of {', '.join(ACTIVATIONS)}")
        if not 0 < k <= n_latents:
            raise SaeuronError(f"k is {k} and has to lie between 1 and the number of latents, {n_latents}")
        if (activation == "jumprelu") != isinstance(threshold, torch.Tensor):
            raise SaeuronError(f"a {activation} SAE takes {_THRESHOLD_OF[activation]}")
        self.d_in, self.n_latents, self.k = d_in, n_latents, k
        self.activation = activation
        if isinstance(threshold, torch.Tensor):
            if threshold.shape != (n_latents,):
                raise SaeuronError(f"threshold has shape {list(threshold.shape)} and there are {n_latents} latents")
            self.register_buffer("threshold", threshold.detach())  # goes where the weights go
        else:
            self.threshold = threshold
        self.hookpoint, self.base_model = hookpoint, base_model
        self.config: dict = {}
        self.metrics: dict = {}
        self._fingerprint: str | None = None
        self.rounding: tuple[float, float] | None = None  # kept for `compete`
        self.W_enc = nn.Parameter(torch.zeros(n_latents, d_in))
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.W_dec = nn.Parameter(torch.zeros(n_latents, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def origin(self) -> dict[str, object]:
        """Where this SAE reads, for the files that belong to it."""
        place = {"hookpoint": self.hookpoint.name, "site": self.hookpoint.site} if self.hookpoint else {}
        return place | {"d_in": self.d_in, "base_model": self.base_model}

    @property
    def uses_threshold(self) -> bool:
        """Whether latents are kept each by its own value, and not because few others are larger."""
        return self.activation in ("batch_topk", "jumprelu") and self.threshold is not None

    def check_width(self, tokens: torch.Tensor) -> None:
        if tokens.shape[-1] != self.d_in:
            raise SaeuronError(
                f"this SAE reads tokens of width {self.d_in} and the hookpoint gives {tokens.shape[-1]}: "
                "it belongs to another model or another block"
            )

    def pre_activations(self, tokens: torch.Tensor, latents: torch.Tensor | None = None) -> torch.Tensor:
        """``W_enc (x − b_dec) + b_enc`` ``[..., n_latents]``, or ``[..., m]`` for only those in ``latents`` ``[m]``."""
        self.check_width(tokens)
        weight, bias = (self.W_enc, self.b_enc) if latents is None else (self.W_enc[latents], self.b_enc[latents])
        bias = bias - weight @ self.b_dec
        return nn.functional.linear(tokens.to(weight.dtype), weight, bias)

    def encode_sparse(self, tokens: torch.Tensor, per_token: bool = False) -> Code:
        """The active latents of ``tokens`` ``[..., d_in]``. ``per_token`` runs a ``batch_topk`` as top-k."""
        pre = self.pre_activations(tokens)
        if self._competes(per_token):
            values, latents = pre.topk(self.k, dim=-1, sorted=False)
            return Code(self.strength(values), latents)
        kept = self._over(pre)
        width = max(int((kept > 0).sum(-1).max()), 1)
        return Code(*kept.topk(width, dim=-1, sorted=False))

    def encode(self, tokens: torch.Tensor, per_token: bool = False) -> torch.Tensor:
        """Dense latents ``[..., n_latents]`` of ``tokens`` ``[..., d_in]``."""
        pre = self.pre_activations(tokens)
        if not self._competes(per_token):
            return self._over(pre)
        values, latents = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, latents, self.strength(values))

    def encode_at(self, tokens: torch.Tensor, latents: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
        """Activations ``[T, m]`` of a few ``latents`` ``[m]`` on ``tokens`` ``[T, d_in]``, at O(T·m·d_in).

        Exact wherever an activation exceeds ``floor`` ``[m]``; elsewhere it may be given as it would be without
        competition from other latents.
        """
        values = self.encode_alone(tokens, latents)
        if self.uses_threshold:
            return values
        rows = (values > floor).any(-1).nonzero().squeeze(-1)
        return values.index_copy(0, rows, self.encode_in(tokens[rows], latents, floor)) if len(rows) else values

    def encode_where(
        self, tokens: torch.Tensor, latents: torch.Tensor, floor: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens ``[R]`` of ``[T, d_in]`` that may show one of ``latents`` ``[m]`` above its ``floor`` ``[m]``, and
        the activations ``[R, m]`` there, exact above the floor.

        Without competition from other latents activations are only larger, so that most tokens are ruled out at
        O(T·m·d_in). A GPU is waited for once.
        """
        values = self.encode_alone(tokens, latents)
        rows = (values > floor).any(-1).nonzero().squeeze(-1)
        if self.uses_threshold or len(rows) == 0:
            return rows, values[rows]
        return rows, self.encode_in(tokens[rows], latents, floor)

    def encode_in(self, tokens: torch.Tensor, latents: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
        """Activations ``[T, m]`` under competition on every one of ``tokens``, exact above ``floor`` ``[m]``."""
        if self.uses_threshold:
            return self.encode_alone(tokens, latents)
        pre, wins = compete(self, tokens, latents, floor)
        return torch.where(wins, self.strength(pre), 0)

    def encode_alone(self, tokens: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """What ``latents`` ``[m]`` would show ``[..., m]`` if no other competed: never too little."""
        pre = self.pre_activations(tokens, latents)
        return self._over(pre, latents) if self.uses_threshold else self.strength(pre)

    def _competes(self, per_token: bool) -> bool:
        return not self.uses_threshold or (per_token and self.activation == "batch_topk")

    def strength(self, pre: torch.Tensor) -> torch.Tensor:
        """What latents that won the top-k competition show; both functions keep the order that it was won in."""
        return pre.sigmoid() if self.activation == "sigmoid_topk" else pre.relu()

    def _over(self, pre: torch.Tensor, latents: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        threshold = self.threshold[latents] if self.activation == "jumprelu" else self.threshold
        return torch.where(pre > threshold, pre, 0).relu()

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Tokens ``[..., d_in]`` from dense latents ``[..., n_latents]``."""
        return code @ self.W_dec + self.b_dec

    def decode_sparse(self, code: Code) -> torch.Tensor:
        """Tokens ``[..., d_in]`` from active latents only: a weighted sum of k rows of ``W_dec``."""
        flat = nn.functional.embedding_bag(
            code.latents.flatten(0, -2), self.W_dec, per_sample_weights=code.values.flatten(0, -2), mode="sum"
        )
        return flat.view(*code.latents.shape[:-1], self.d_in) + self.b_dec

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decode_sparse(self.encode_sparse(tokens))

    @property
    def fingerprint(self) -> str:
        """What tables name this SAE by: 16 hexadecimal digits of the SHA-256 of its tensors as first asked for."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            own = (self.threshold,) if self.activation == "jumprelu" else ()
            for tensor in (self.W_enc, self.b_enc, self.W_dec, self.b_dec, *own):
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint
