import pytest
import torch

from saeuron import SaeuronError, Selection
from saeuron.edits import Replace

ACTIVATIONS = pytest.mark.parametrize(
    "options",
    [{}, {"activation": "batch_topk", "threshold": 1.2}, {"activation": "sigmoid_topk"}],
    ids=["topk", "batch_topk", "sigmoid_topk"],
)


def select(sae, latents, threshold=0.4, timesteps=(901, 501, 101)):
    shape = (len(timesteps), len(latents))
    return Selection(
        timesteps=torch.tensor(timesteps),
        latents=torch.tensor(latents, dtype=torch.long).expand(shape).clone(),
        means=torch.full(shape, 0.3),
        kind_means=torch.full(shape, float(threshold)),
        strengths=torch.full(shape, -1.0),
        concepts=("cat",),
        fingerprint=sae.fingerprint,
    )


def frequent(sae, tokens, count=2):
    """Latents that fire on many of ``tokens``, though never on all."""
    return (sae.encode(tokens) > 0.4).flatten(0, -2).sum(0).topk(count).indices.tolist()


def firing(sae, tokens, latents, threshold=0.4):
    return (sae.encode(tokens)[..., latents] > threshold).any(-1)


@ACTIVATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tokens_that_fire_become_tokens_of_their_own_map_that_do_not(make_sae, make_tokens, options, dtype):
    sae, tokens = make_sae(**options), make_tokens(3, 60, 16).to(dtype)
    latents = frequent(sae, tokens)
    got, fires = Replace(sae, select(sae, latents))(tokens, 501), firing(sae, tokens, latents)
    assert fires.any(1).all() and not fires.all(1).any()
    assert got.dtype == dtype
    for before, after, shown in zip(tokens, got, fires, strict=True):
        clean = before[~shown]
        assert torch.equal(after[~shown], clean), "bit for bit"
        assert all((clean == token).all(-1).any() for token in after[shown])
    assert not firing(sae, got, latents).any()


def test_which_token_is_taken_is_the_rule_written_plainly(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    latents = frequent(sae, tokens)
    got, fires = Replace(sae, select(sae, latents), seed=5)(tokens, 501), firing(sae, tokens, latents)
    draw = torch.rand(60, generator=torch.Generator().manual_seed(5 * 1_000_003 + 501_000))
    for image in range(2):
        clean = (~fires[image]).nonzero().flatten().tolist()
        for place in fires[image].nonzero().flatten().tolist():
            assert torch.equal(got[image, place], tokens[image, clean[int(draw[place] * len(clean))]])


def test_an_image_is_edited_alike_whatever_else_is_in_the_batch(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(4, 60, 16)
    edit = Replace(sae, select(sae, frequent(sae, tokens)))
    together = edit(tokens, 501)
    for n in range(4):
        assert torch.equal(edit(tokens[n : n + 1], 501)[0], together[n])
    assert torch.equal(edit(tokens.flip(0), 501).flip(0), together)


def test_the_seed_and_the_timestep_decide_what_is_drawn_and_nothing_else_does(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    selection = select(sae, frequent(sae, tokens))
    edit = Replace(sae, selection)
    first = edit(tokens, 501)
    torch.rand(3)
    assert torch.equal(edit(tokens, 501), first) and torch.equal(Replace(sae, selection)(tokens, 501), first)
    assert not torch.equal(Replace(sae, selection, seed=1)(tokens, 501), first)
    assert not torch.equal(edit(tokens, 500.5), first)


def test_a_map_on_which_every_token_fires_is_left_as_it_came(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    latents = frequent(sae, tokens)
    full = tokens[0, firing(sae, tokens[0], latents)][:10]
    mixed = tokens[1, :10]
    batch = torch.stack([full, mixed])
    got = Replace(sae, select(sae, latents))(batch, 501)
    assert torch.equal(got[0], full) and not torch.equal(got[1], mixed)
    assert torch.equal(Replace(sae, select(sae, latents))(full[None], 501), full[None])


@ACTIVATIONS
def test_where_nothing_fires_the_very_tokens_are_handed_back(make_sae, make_tokens, options):
    sae, tokens = make_sae(**options), make_tokens(2, 5, 16)
    for selection in (select(sae, [7], threshold=1e6), select(sae, []), select(sae, [-1])):
        assert Replace(sae, selection)(tokens, 501) is tokens


def test_a_mask_says_how_far_a_token_goes_towards_the_one_it_takes(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    edit, mask = Replace(sae, select(sae, frequent(sae, tokens))), torch.ones(1, 60)
    mask[:, 20:40], mask[:, 40:] = 0.25, 0
    whole, got = edit(tokens, 501), edit(tokens, 501, mask)
    assert torch.equal(got[:, :20], whole[:, :20]) and torch.equal(got[:, 40:], tokens[:, 40:])
    part = slice(20, 40)
    # float32, one product and sum in another order
    torch.testing.assert_close(got[:, part], 0.75 * tokens[:, part] + 0.25 * whole[:, part], rtol=1e-5, atol=1e-6)


def test_outside_its_window_it_is_the_identity(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    edit = Replace(sae, select(sae, frequent(sae, tokens)), start=800, end=400.5)
    for timestep, acts in ((999, False), (800.1, False), (800, True), (501, True), (400.5, True), (400, False)):
        assert (edit(tokens, timestep) is not tokens) == acts, timestep


def test_the_tokens_given_are_never_written_to(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    before = tokens.clone()
    Replace(sae, select(sae, frequent(sae, tokens)))(tokens, 501)
    assert torch.equal(tokens, before)


def test_tokens_and_selections_that_do_not_fit_are_refused(make_sae, make_tokens):
    sae, other = make_sae(), make_sae(seed=9)
    with pytest.raises(SaeuronError, match=r"width 16 .* gives 24"):
        Replace(sae, select(sae, [3]))(make_tokens(1, 5, 24), 501)
    with pytest.raises(SaeuronError, match=f"{other.fingerprint} .* {sae.fingerprint}"):
        Replace(sae, select(other, [3]))


def test_each_timestep_has_its_own_thresholds(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(3, 60, 16)
    latents = frequent(sae, tokens)
    selection = select(sae, latents)
    selection.kind_means[0], selection.kind_means[2] = 0.8, 1e9
    edit = Replace(sae, selection)
    for timestep, threshold in ((901, 0.8), (501, 0.4)):
        changed = (edit(tokens, timestep) != tokens).any(-1)
        assert torch.equal(changed, firing(sae, tokens, latents, threshold))
    assert edit(tokens, 101) is tokens
