"""Sparse training against dense training written plainly, and what it costs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.sae import selection
from training.sae.codes import DenseCode, SparseCode
from training.sae.trainer import TrainingAutoencoder, batch_topk_threshold, descend

ROOT = Path(__file__).parents[3]
D_IN, N, K = 32, 256, 8
ACTIVATIONS = ["batch_topk", "topk", "sigmoid_topk"]


def tokens_of(count, seed):
    """Sparse sums of 64 fixed directions, and a little noise."""
    fixed = torch.Generator().manual_seed(1234)
    directions = torch.nn.functional.normalize(torch.randn(64, D_IN, generator=fixed), dim=1)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(count, 64, generator=generator).topk(4).indices
    code = torch.zeros(count, 64).scatter(1, chosen, 1 + torch.rand(count, 4, generator=generator))
    tokens = code @ directions + 0.02 * torch.randn(count, D_IN, generator=generator)
    return (tokens - tokens.mean(0)) / tokens.std()


def model_of(activation, sparse=True, n=N):
    model = TrainingAutoencoder(D_IN, n, K, activation, torch.Generator().manual_seed(0))
    model.sparse = sparse
    return model


def curve(model, steps=50, bf16=False, dead_after=150):
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    values = []
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = model.losses(tokens_of(128, step), dead_after, 8)
        (losses.fvu + losses.auxiliary / 32).backward()
        descend(model, optimizer)
        values.append([losses.fvu.item(), losses.auxiliary.item(), losses.l0.item()])
    return torch.tensor(values)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sparse_training_follows_the_curve_of_dense_training(activation):
    sparse, dense = model_of(activation), model_of(activation, sparse=False)
    one, other = curve(sparse), curve(dense)
    assert one[:, 1].max() > 0, "some latents die on the way"
    # Float32 sums in another order, carried through 50 steps of Adam.
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sparse.threshold, dense.threshold, rtol=1e-4, atol=0)
    assert torch.equal(sparse.tokens_since_fired, dense.tokens_since_fired)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_bfloat16_as_much_is_explained(activation):
    plain, half = (curve(model_of(activation), 150, bf16)[-20:, 0].mean() for bf16 in (False, True))
    torch.testing.assert_close(half, plain, rtol=0.01, atol=0)  # the one percent


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_the_dense_code(activation):
    gradients, tokens = [], tokens_of(100, 0)
    for sparse in (True, False):
        model = model_of(activation, sparse)
        losses = model.losses(tokens, 10**9, 1)
        assert isinstance(model.code(tokens), SparseCode if sparse else DenseCode)
        (losses.fvu + losses.code().pow(2).mean(0).sqrt().clamp(min=1e-3).sum()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)  # float32 sums in another order


def active(tokens, model):
    """The dense code as competition decides it over all of the batch."""
    pre = (tokens @ model.W_enc.T + model.b_enc).detach()
    return torch.where(pre >= batch_topk_threshold(pre.relu(), K), pre, 0)


@pytest.mark.parametrize("crowded", [0, 3, 20])
@pytest.mark.parametrize("n", [N, 1024, 1000])
def test_a_batch_s_competition_is_exact_however_uneven(monkeypatch, crowded, n):
    monkeypatch.setattr(selection, "PIECE", 1)  # 64 rows a piece
    model, tokens = model_of("batch_topk", n=n), tokens_of(200, 1)
    tokens[:crowded] *= 30
    code = model.code(tokens)
    assert len(code.values) == 200 * K
    torch.testing.assert_close(code.dense().detach(), active(tokens, model), rtol=1e-5, atol=1e-6)  # another order


def test_a_gpu_s_competition_is_the_same():
    pre = torch.randn(50, 1024, generator=torch.Generator().manual_seed(0))
    values, places = selection._candidates(pre, 400)
    expected = pre.flatten().topk(400)
    assert torch.equal(values.sort().values, expected.values.sort().values)
    assert torch.equal(places.sort().values, expected.indices.sort().values)


@pytest.mark.parametrize("width", [64, 1000, 1024])
def test_the_largest_of_a_token_are_found_in_groups(width):
    tokens = torch.randn(30, D_IN, generator=torch.Generator().manual_seed(0))
    weight, bias = torch.randn(width, D_IN, generator=torch.Generator().manual_seed(1)), torch.zeros(width)
    values, found = selection.largest_of_tokens(tokens, weight, bias, 4)
    expected = (tokens @ weight.T).topk(4).values
    torch.testing.assert_close(values.view(30, 4).sort(descending=True).values, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.row_starts, torch.arange(0, 121, 4)) and found.latent_starts[-1] == 120


@pytest.mark.parametrize("activation", ["batch_topk", "topk"])
def test_where_nothing_is_active_only_the_bias_learns(activation):
    model = model_of(activation)
    with torch.no_grad():
        model.b_enc -= 1000
    losses = model.losses(tokens_of(20, 0), 10**9, 1)
    losses.fvu.backward()
    assert losses.l0 == 0 and model.W_dec.grad.eq(0).all() and model.W_enc.grad.eq(0).all()
    assert model.b_dec.grad.isfinite().all()


def test_dead_latents_are_looked_for_only_once_there_may_be_some():
    model, asked = model_of("topk"), []
    counts = model.tokens_since_fired
    for step in range(30):
        before = model._longest_silence
        dead = (torch.where(model.code(tokens_of(64, step)).fired(), 0, counts + 64) > 640).sum()
        auxiliary = model.losses(tokens_of(64, step), 640, 8).auxiliary
        asked.append(model._longest_silence != before + 64)
        counts = model.tokens_since_fired
        assert (auxiliary > 0) == (dead > 0), step
    assert asked[0] and not any(asked[1:9]) and any(asked[9:]), asked


def test_a_loaded_model_looks_for_dead_latents_at_once():
    model, other = model_of("topk"), model_of("topk")
    model.losses(tokens_of(64, 0), 10**6, 8)
    other.tokens_since_fired += 2 * 10**6
    model.load_state_dict(other.state_dict())
    assert model.losses(tokens_of(64, 0), 10**6, 8).auxiliary > 0


@pytest.mark.parametrize("longest", [1e-3, 1e3], ids=["clipped", "as it is"])
def test_a_step_down_is_projection_clipping_adam_and_normalisation(longest):
    plain, ours = model_of("topk"), model_of("topk")
    slow, fast = (torch.optim.Adam(model.parameters(), lr=1e-2, fused=model is ours) for model in (plain, ours))
    for step in range(3):
        for model in (plain, ours):
            model.losses(tokens_of(64, step), 10**9, 1).fvu.backward()
        with torch.no_grad():
            plain.W_dec.grad -= (plain.W_dec.grad * plain.W_dec).sum(1, keepdim=True) * plain.W_dec
        torch.nn.utils.clip_grad_norm_(plain.parameters(), longest)
        slow.step(), slow.zero_grad()
        plain.W_dec.data = torch.nn.functional.normalize(plain.W_dec.data, dim=1)
        descend(ours, fast, longest)
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # Adam divides tiny gradients by themselves


@pytest.mark.parametrize("activation", ["batch_topk", "topk"])
def test_a_fitted_encoder_starts_at_its_best_size(activation):
    tokens, left = tokens_of(500, 0), {}
    for size in (0.9, 1.0, 1.1):
        model = model_of(activation)
        model.fit_encoder(tokens)
        model.W_enc.data *= size
        left[size] = model.losses(tokens, 10**9, 1).fvu.item()
    assert left[1.0] < min(left[0.9], left[1.1])
    assert left[1.0] < model_of(activation).losses(tokens, 10**9, 1).fvu.item()


MEMORY = """
import torch
from training.sae.trainer import TrainingAutoencoder, descend
torch.set_num_threads(1)

def peak():  # of this program alone; ru_maxrss would remember what started it
    return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

def train(d_in, n, batch, steps):
    model = TrainingAutoencoder(d_in, n, 16, {activation!r}, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    for _ in range(steps):
        model.losses(torch.randn(batch, d_in), 10**9, 1).fvu.backward()
        descend(model, optimizer)

train(16, 256, 64, 2)  # what the libraries take for themselves
before = peak()
train(192, 16384, 2048, 2)
print((peak() - before) / 4 / (4 * 2 * 192 * 16384 + 2048 * (192 + 16384)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a program's peak")
@pytest.mark.parametrize("activation", ["batch_topk", "topk"])
def test_training_takes_little_more_than_weights_gradients_states_and_a_batch(activation):
    program = MEMORY.replace("{activation!r}", repr(activation))
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    # Less than the weights, gradients and Adam's two states would mean that the peak was not seen.
    assert 0.4 < float(ended.stdout) <= 1.2


@pytest.mark.parametrize("n", [K, 4 * K - 1, 4 * K, 8 * K - 1])
def test_the_threshold_of_a_batch_is_exact_where_latents_are_few(n):
    """There are fewer of them than are looked at first, or than at a second look, which is twice as wide."""
    pre = torch.randn(7, n, generator=torch.Generator().manual_seed(0)).abs()  # no two alike
    pre[0] += 10  # one token has most of the batch's largest
    expected = pre.flatten().sort(descending=True).values[7 * K - 1]
    assert batch_topk_threshold(pre, K) == max(expected, torch.finfo(torch.float32).tiny)
    assert (torch.where(pre >= batch_topk_threshold(pre, K), pre, 0) > 0).sum() <= 7 * K


def test_the_threshold_begins_at_the_smallest_active_value_and_follows_it_by_a_hundredth():
    model = model_of("batch_topk")
    smallest = []
    for step in range(3):
        losses = model.losses(tokens_of(64, step), 10**9, 1)
        code = losses.code().detach()
        smallest.append(code[code > 0].min())
    average = smallest[0]
    for value in smallest[1:]:
        average = 0.99 * average + 0.01 * value
    torch.testing.assert_close(model.threshold, average)


def test_a_batch_in_which_nothing_fires_leaves_the_threshold_as_it_is():
    model = model_of("topk")
    before = model.b_enc.clone()
    for bias, expected in ((before - 1000, torch.zeros(())), (before, None), (before - 1000, None)):
        kept = model.threshold.clone()
        with torch.no_grad():
            model.b_enc.copy_(bias)
        model.losses(tokens_of(20, 0), 10**9, 1)
        assert model.threshold.isfinite()
        assert torch.equal(model.threshold, kept if expected is None else expected) == (bias is not before)


@pytest.mark.parametrize("k_aux", [1, 5, 10**6])
def test_the_auxiliary_loss_asks_so_many_dead_latents_of_each_token(k_aux):
    model, tokens = model_of("topk"), tokens_of(64, 0)
    fired = model.code(tokens).fired()
    model.tokens_since_fired.fill_(1000)
    losses = model.losses(tokens, 500, k_aux)
    dead = (~fired).nonzero().squeeze(-1)
    code = losses.code()
    residual = (tokens - (code @ model.W_dec + model.b_dec)).detach()
    values, places = model.pre_activations(tokens, dead).topk(min(k_aux, len(dead)), -1)
    asked = torch.zeros(len(tokens), len(dead)).scatter(-1, places, values.relu())
    expected = (residual - asked @ model.W_dec[dead]).pow(2).sum() / (tokens - tokens.mean(0)).pow(2).sum()
    assert len(dead) > 5
    torch.testing.assert_close(losses.auxiliary, expected)
