"""How good an SAE is, on tokens that it has not seen."""

import torch

from saeuron import SparseAutoencoder
from saeuron.recording import Tokens


@torch.no_grad()
def measure(sae: SparseAutoencoder, tokens: Tokens) -> dict:
    """What the SAE does on tokens it has not seen, as inference runs it.

    ``fvu`` is the fraction of variance unexplained, also per timestep; ``dead`` the fraction of latents that fire on
    none of the tokens; ``l0`` the mean number of active latents.
    """
    unexplained, fired, active = [], torch.zeros(sae.n_latents, dtype=torch.bool), 0
    for start in range(0, len(tokens), 4096):
        batch = tokens.activations[start : start + 4096].to(sae.W_enc)
        code = sae.encode(batch)
        unexplained.append((batch - sae.decode(code)).pow(2).sum(1).cpu())
        fired |= (code > 0).any(0).cpu()
        active += int((code > 0).sum())
    left = torch.cat(unexplained).double()
    activations = tokens.activations.double()
    variance = (activations - activations.mean(0)).pow(2).sum()
    by_timestep = {}
    for timestep in tokens.timestep.unique(sorted=True).tolist():
        rows = tokens.timestep == timestep
        own = activations[rows]
        by_timestep[timestep] = float(left[rows].sum() / (own - own.mean(0)).pow(2).sum())
    return {
        "fvu": float(left.sum() / variance),
        "dead": float((~fired).float().mean()),
        "l0": active / len(tokens),
        "tokens": len(tokens),
        "fvu_by_timestep": by_timestep,
    }
