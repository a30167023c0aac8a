"""`paper_exact` against the rule that SAeUron published, written down anew: densely, in one precision, by call."""

import pytest
import torch
from torch.nn.functional import linear, normalize

from saeuron import Ablate, ConceptStatistics, SparseAutoencoder
from saeuron.concept_table import WholeTable

D_IN, N_LATENTS, K, STEPS = 1280, 20480, 32, 100
CONCEPTS = ("Bears", "Cats", "Dogs")
FIRST_STEP, STRIDE = 991, 10  # of 100 DDIM steps


class Published:
    """One concept's removal by the published rule. It knows no timestep: it counts how often it was called."""

    def __init__(self, weights, table, concept, percentile, gamma):
        self.W_enc, self.b_enc, W_dec, self.b_dec = weights
        self.decoder = W_dec.T.contiguous()  # in float16 the product is ten times as fast this way round
        self.table, self.concept, self.percentile, self.gamma = table, concept, percentile, gamma
        self.calls = 0

    def selected(self, step):
        """The latents over the percentile of scores, with their scaling and their threshold, at one step."""
        means = {name: acts[:, step].float().mean(0) for name, acts in self.table.items()}
        rest = torch.cat([acts[:, step].float() for name, acts in self.table.items() if name != self.concept]).mean(0)
        own = means[self.concept]
        scores = own / (own.sum() + 1e-8) - rest / (rest.sum() + 1e-8)
        latents = (scores > torch.quantile(scores, self.percentile / 100)).nonzero().squeeze(1)
        everywhere = torch.stack([means[name][latents] for name in self.table]).mean(0)
        return latents, self.gamma * own[latents], everywhere

    def __call__(self, x):
        latents, scaling, threshold = self.selected(self.calls)
        self.calls += 1
        scaling, threshold = scaling.to(x.dtype), threshold.to(x.dtype)
        pre = torch.relu(linear(x - self.b_dec, self.W_enc, self.b_enc))
        values, places = pre.topk(K, dim=-1)
        f = torch.zeros_like(pre).scatter_(-1, places, values)
        recon = linear(f, self.decoder) + self.b_dec
        error = (recon - x).float()
        chosen = f[..., latents]
        f[..., latents] = torch.where(chosen > threshold, chosen * scaling, chosen)
        return (linear(f, self.decoder) + self.b_dec + error).to(x.dtype)


@pytest.fixture(scope="module")
def sae():
    """An SAE of the paper's size that reconstructs: its scale gives a latent of 5 back what its bias takes."""
    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(D_IN, N_LATENTS, K).requires_grad_(False)
    sae.W_dec.copy_(normalize(torch.randn(N_LATENTS, D_IN, generator=generator), dim=1))
    sae.W_enc.copy_(1.4 * sae.W_dec)
    sae.b_enc.copy_(-2 - 0.1 * torch.rand(N_LATENTS, generator=generator))
    sae.b_dec.copy_(0.1 * torch.randn(D_IN, generator=generator))
    _ = sae.fingerprint
    return sae


@pytest.fixture(scope="module")
def published_table():
    """{concept: [prompts, steps, latents]} as the published tables are, each concept with latents of its own."""
    generator = torch.Generator().manual_seed(1)
    table = {}
    for number, name in enumerate(CONCEPTS):
        acts = 0.01 * torch.rand(STEPS, N_LATENTS, generator=generator)
        own = torch.arange(3) + 100 * number
        acts[torch.arange(STEPS)[:, None], own + 5 * torch.arange(STEPS)[:, None]] += 0.5 + torch.rand(
            STEPS, 3, generator=generator
        )
        table[name] = acts.half().expand(2, -1, -1)  # two prompts alike: their mean needs no rounding
    return table


@pytest.fixture(scope="module")
def table(sae, published_table):
    """The same numbers as a table, by timestep in place of call."""
    timesteps = [FIRST_STEP - STRIDE * step for step in range(STEPS)]
    statistics = ConceptStatistics(dict.fromkeys(CONCEPTS, "object"), timesteps[::-1], N_LATENTS, sae.fingerprint)
    for name, acts in published_table.items():
        for step, timestep in enumerate(timesteps):
            statistics.add([[name]] * len(acts), timestep, acts[:, step].float())
    return WholeTable(statistics)


def tokens_with(sae, latents, seed, others=5):
    """Eight tokens that show ``others`` latents each; the first six of them show ``latents`` too."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(10_000, N_LATENTS, (8, others), generator=generator)
    sizes = 4.5 + torch.rand(8, others, generator=generator)
    x = (sizes[..., None] * sae.W_dec[picked]).sum(1) + sae.b_dec
    x[:6] += (5 * sae.W_dec[latents]).sum(0)
    return x[None] + 0.01 * torch.randn(1, 8, D_IN, generator=generator)


def difference(got, expected):
    """Relative, over a whole block's tokens."""
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("gamma", [-1.0, -10.0, -30.0])
@pytest.mark.parametrize(("percentile", "count"), [(99.999, 1), (99.99, 3)])
@pytest.mark.parametrize(
    ("dtype", "others", "tolerance"),
    # What issue 5 asks. In float16 both round, the published rule after every product and ours once at the end, and
    # where latents compete for a place among the k largest, the rounding decides between them.
    [(torch.float32, 5, 1e-5), (torch.float32, 60, 1e-5), (torch.float16, 5, 1e-3)],
    ids=["float32", "float32, crowded", "float16"],
)
def test_paper_exact_is_the_published_rule(
    sae, published_table, table, gamma, percentile, count, dtype, others, tolerance
):
    weights = [weight.detach().to(dtype) for weight in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)]
    rule = Published(weights, published_table, "Bears", percentile, gamma)
    exact = Published([weight.double() for weight in weights], published_table, "Bears", percentile, gamma)
    ours = SparseAutoencoder(D_IN, N_LATENTS, K).requires_grad_(False)
    ours._fingerprint = sae.fingerprint
    ours.load_state_dict(sae.state_dict())
    edit = Ablate(ours.to(dtype), table.select("Bears", count, gamma), paper_exact=True)
    for step in (0, 41, 99):
        timestep = FIRST_STEP - STRIDE * step
        latents = table.select("Bears", count).at(timestep).latents
        x = tokens_with(sae, latents, step, others).to(dtype)
        rule.calls = exact.calls = step
        published, got, truth = rule(x).double(), edit(x, timestep).double(), exact(x.double())
        assert rule.selected(step)[0].tolist() == sorted(latents.tolist())
        assert difference(got, published) < tolerance
        assert difference(got, truth) < tolerance
        changed = (got - x.double()).norm(dim=-1)[0]
        assert others > K or changed[:6].min() > 2 * changed[6:].max(), "the concept's tokens are those that it moves"
