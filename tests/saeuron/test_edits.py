import pytest
import torch

from saeuron import Ablate, SaeuronError, Selection, SparseAutoencoder
from saeuron.edits import join

TOPK = {}
BATCH_TOPK = {"activation": "batch_topk", "threshold": 1.2}
ACTIVATIONS = pytest.mark.parametrize("options", [TOPK, BATCH_TOPK], ids=["topk", "batch_topk"])

# What the issue asks of float32: the sparse rule sums the same terms in another order.
RELATIVE = 1e-5


def plainly(sae, selection, tokens, timestep, mask=None, paper_exact=False):
    """The method as the papers write it, dense and in float64: encode, edit, decode, put the error back."""
    W_enc, b_enc, W_dec, b_dec = (w.double() for w in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    x = tokens.double()
    pre = torch.relu((x - b_dec) @ W_enc.T + b_enc)
    if sae.threshold is None or paper_exact:
        kept = pre >= pre.topk(sae.k, dim=-1).values[..., -1:]
    else:
        kept = pre > sae.threshold
    f = torch.where(kept, pre, 0)
    edited = f.clone()
    column = min(range(len(selection.timesteps)), key=lambda c: abs(selection.timesteps[c].item() - timestep))
    for place, latent in enumerate(selection.latents[column].tolist()):
        factor = selection.strengths[column, place].double() * selection.means[column, place].double()
        fires = f[..., latent] > selection.kind_means[column, place].double()
        edited[..., latent] = torch.where(fires, factor * f[..., latent], f[..., latent])
    recon, recon_edited = f @ W_dec + b_dec, edited @ W_dec + b_dec
    result = recon_edited + (recon - x) if paper_exact else recon_edited + (x - recon)
    return result if mask is None else x + mask[..., None] * (result - x)


def relative_difference(got, expected):
    return ((got.double() - expected).abs().max() / expected.abs().max()).item()


def select(sae, latents, means=None, kind_means=0.4, strengths=-3.0, timesteps=(901, 501, 101), concept="cat"):
    """A selection of ``latents`` at every timestep, with other means at each."""
    shape = (len(timesteps), len(latents))
    if means is None:
        means = 0.3 + 0.1 * torch.arange(shape[0] * shape[1]).reshape(shape)
    return Selection(
        timesteps=torch.tensor(timesteps),
        latents=torch.tensor(latents, dtype=torch.long).expand(shape).clone(),
        means=torch.as_tensor(means).float().expand(shape).clone(),
        kind_means=torch.full(shape, float(kind_means)),
        strengths=torch.full(shape, float(strengths)),
        concepts=(concept,),
        fingerprint=sae.fingerprint,
    )


def frequent(sae, tokens, count=3):
    """Latents that fire on many of ``tokens``, though never on all."""
    return (sae.encode(tokens) > 0.4).flatten(0, -2).sum(0).topk(count).indices.tolist()


@pytest.fixture
def full_encodes(monkeypatch):
    """The number of times any SAE worked out all its latents, as the only entry of a list."""
    count, original = [0], SparseAutoencoder.pre_activations

    def counting(self, tokens, latents=None):
        count[0] += latents is None
        return original(self, tokens, latents)

    monkeypatch.setattr(SparseAutoencoder, "pre_activations", counting)
    return count


@ACTIVATIONS
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("paper_exact", [False, True])
def test_the_edit_agrees_with_the_rule_written_plainly(make_sae, make_tokens, options, masked, paper_exact):
    sae, tokens = make_sae(**options), make_tokens(2, 60, 16)
    selection = select(sae, frequent(sae, tokens))
    mask = make_tokens(2, 60, seed=2).clamp(0, 1) if masked else None
    got = Ablate(sae, selection, paper_exact)(tokens, 501, mask)
    assert relative_difference(got, plainly(sae, selection, tokens, 501, mask, paper_exact)) < RELATIVE
    assert not torch.equal(got, tokens)


@ACTIVATIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_costs_one_rounding_of_the_result(make_sae, make_tokens, options, dtype):
    sae, tokens = make_sae(**options), make_tokens(2, 60, 16).to(dtype)
    selection = select(sae, frequent(sae, tokens))
    got = Ablate(sae, selection)(tokens, 501)
    assert got.dtype == dtype
    # Rounding to nearest is off by at most half of eps, relatively; the other half is for float32's share.
    assert relative_difference(got, plainly(sae, selection, tokens, 501)) < torch.finfo(dtype).eps


@ACTIVATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tokens_without_the_concept_pass_bit_for_bit(make_sae, make_tokens, options, dtype):
    sae, tokens = make_sae(**options), make_tokens(2, 60, 16).to(dtype)
    latents = frequent(sae, tokens)
    shows_it = (sae.encode(tokens)[..., latents] > 0.4).any(-1)
    got = Ablate(sae, select(sae, latents))(tokens, 501)
    assert shows_it.any() and not shows_it.all()
    assert torch.equal(got[~shows_it], tokens[~shows_it])
    assert (got[shows_it] != tokens[shows_it]).any(-1).all()


def test_the_tokens_given_are_never_written_to(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    before = tokens.clone()
    Ablate(sae, select(sae, frequent(sae, tokens)))(tokens, 501)
    assert torch.equal(tokens, before)


@pytest.mark.parametrize("paper_exact", [False, True])
def test_an_empty_selection_hands_back_the_very_tokens_and_encodes_nothing(
    make_sae, make_tokens, full_encodes, paper_exact
):
    sae, tokens = make_sae(), make_tokens(2, 5, 16)
    assert Ablate(sae, select(sae, []), paper_exact)(tokens, 501) is tokens
    assert Ablate(sae, select(sae, [-1, -1]), paper_exact)(tokens, 501) is tokens
    assert full_encodes == [0]


def test_tokens_that_all_lack_the_concept_are_handed_back_without_a_full_encode(make_sae, make_tokens, full_encodes):
    sae, tokens = make_sae(), make_tokens(2, 5, 16)
    assert Ablate(sae, select(sae, [7], kind_means=1e6))(tokens, 501) is tokens
    assert full_encodes == [0]


@pytest.mark.parametrize("paper_exact", [False, True])
def test_a_mask_of_zero_keeps_a_token_bit_for_bit_and_one_image_s_mask_serves_all(make_sae, make_tokens, paper_exact):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    edit, mask = Ablate(sae, select(sae, frequent(sae, tokens)), paper_exact), torch.ones(1, 60)
    mask[:, 30:] = 0
    got = edit(tokens, 501, mask)
    assert torch.equal(got[:, 30:], tokens[:, 30:])
    assert torch.equal(got[:, :30], edit(tokens, 501)[:, :30])


@pytest.mark.parametrize(("timestep", "recorded"), [(999, 901), (720.5, 901), (600, 501), (0, 101), (101.0, 101)])
def test_the_nearest_recorded_timestep_is_used(make_sae, make_tokens, timestep, recorded):
    sae, tokens = make_sae(), make_tokens(1, 60, 16)
    edit = Ablate(sae, select(sae, frequent(sae, tokens)))
    assert torch.equal(edit(tokens, timestep), edit(tokens, recorded))
    assert not torch.equal(edit(tokens, timestep), edit(tokens, 501 if recorded != 501 else 901))


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 4 * 6), (2, 5 * 3)])
def test_any_number_of_tokens_and_images_is_edited(make_sae, make_tokens, shape):
    sae, tokens = make_sae(), make_tokens(*shape, 16)
    selection = select(sae, list(range(64)), kind_means=0)
    got = Ablate(sae, selection)(tokens, 501)
    assert got.shape == tokens.shape
    assert relative_difference(got, plainly(sae, selection, tokens, 501)) < RELATIVE


def test_tokens_that_are_a_view_of_feature_maps_are_edited_alike(make_sae, make_tokens):
    sae, view = make_sae(), make_tokens(2, 16, 4 * 6).transpose(1, 2)
    edit = Ablate(sae, select(sae, frequent(sae, view)))
    assert torch.equal(edit(view, 501), edit(view.contiguous(), 501))


@ACTIVATIONS
def test_several_concepts_cost_one_encode(make_sae, make_tokens, full_encodes, options):
    sae, tokens = make_sae(**options), make_tokens(2, 60, 16)
    a, b, c = frequent(sae, tokens)
    merged = Selection.merge([select(sae, [latent]) for latent in (a, b, c)])
    full_encodes[0] = 0
    got = Ablate(sae, merged)(tokens, 501)
    assert full_encodes[0] <= 1
    assert relative_difference(got, plainly(sae, merged, tokens, 501)) < RELATIVE


def test_a_latent_that_two_concepts_select_is_edited_once(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    latents = frequent(sae, tokens, 1)
    strong, weak = select(sae, latents, strengths=-5), select(sae, latents, strengths=-1)
    for order in ([strong, weak], [weak, strong]):
        assert torch.equal(Ablate(sae, Selection.merge(order))(tokens, 501), Ablate(sae, strong)(tokens, 501))


def test_tokens_of_another_width_are_refused_with_both_widths_named(make_sae, make_tokens):
    sae = make_sae()
    for selection in (select(sae, [3]), select(sae, [])):
        with pytest.raises(SaeuronError, match=r"width 16 .* gives 24"):
            Ablate(sae, selection)(make_tokens(1, 5, 24), 501)


def test_a_selection_of_another_sae_is_refused_with_both_named(make_sae):
    sae, other = make_sae(), make_sae(seed=9)
    with pytest.raises(SaeuronError) as refusal:
        Ablate(sae, select(other, [3]))
    assert sae.fingerprint in str(refusal.value) and other.fingerprint in str(refusal.value)


@ACTIVATIONS
@pytest.mark.parametrize("paper_exact", [False, True])
def test_scaled_by_the_norm_of_the_code_it_agrees_with_the_rule_written_plainly(
    make_sae, make_tokens, options, paper_exact
):
    sae, tokens = make_sae(**options), make_tokens(2, 60, 16)
    sae.W_dec.mul_(torch.linspace(0.5, 2, 64)[:, None])
    latents = frequent(sae, tokens)
    selection = select(sae, latents)
    f = sae.encode(tokens, per_token=paper_exact).double()
    size = f.norm(dim=-1, keepdim=True) / sae.W_dec[latents].double().norm(dim=-1)
    own = f[..., latents]
    change = torch.where(own > 0.4, (-3.0 * size - 1) * own, 0) @ sae.W_dec[latents].double()
    error = f @ sae.W_dec.double() + sae.b_dec.double() - tokens.double()
    expected = tokens.double() + change + (2 * error if paper_exact else 0)
    got = Ablate(sae, selection, paper_exact, scale="norm")(tokens, 501)
    assert relative_difference(got, expected) < RELATIVE
    shows_it = (own > 0.4).any(-1)
    assert paper_exact or torch.equal(got[~shows_it], tokens[~shows_it])


def test_outside_its_window_it_is_the_identity(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    selection = select(sae, frequent(sae, tokens))
    edit = Ablate(sae, selection, start=800, end=400.5)
    for timestep, acts in ((999, False), (800.1, False), (800, True), (501, True), (400.5, True), (400, False)):
        assert (edit(tokens, timestep) is not tokens) == acts, timestep
    assert torch.equal(edit(tokens, 501), Ablate(sae, selection)(tokens, 501))
    assert Ablate(sae, selection, paper_exact=True, start=500)(tokens, 501) is tokens


def test_an_unknown_scale_is_refused(make_sae):
    sae = make_sae()
    with pytest.raises(SaeuronError, match="'median' is unknown; it is one of mean, norm"):
        Ablate(sae, select(sae, [3]), scale="median")


def test_gradients_flow_through_an_edit_where_they_are_kept(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16).requires_grad_(True)
    edit = Ablate(sae, select(sae, frequent(sae, tokens.detach())))
    moved = edit(tokens, 501)
    moved.sum().backward()
    untouched = (moved == tokens).all(-1)
    assert torch.equal(tokens.grad[untouched], torch.ones(int(untouched.sum()), 16))
    assert (tokens.grad[~untouched] != 1).any()


def test_two_ablations_join_into_the_one_of_both_selections(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 40, 16)
    one, two = (select(sae, [latent], concept=name) for latent, name in zip(frequent(sae, tokens), "ab", strict=False))
    joined = join(Ablate(sae, one), Ablate(sae, two))
    assert joined.selection.concepts == ("a", "b")
    assert torch.equal(joined(tokens, 501), Ablate(sae, Selection.merge([one, two]))(tokens, 501))
    assert not torch.equal(joined(tokens, 501), Ablate(sae, one)(tokens, 501))


def test_ablations_of_other_timesteps_options_or_saes_do_not_join(make_sae):
    sae, other = make_sae(), make_sae(seed=1)
    one = Ablate(sae, select(sae, [3]))
    assert join(one, Ablate(sae, select(sae, [4], timesteps=(901, 501, 1)))) is None
    assert join(one, Ablate(sae, select(sae, [4]), scale="norm")) is None
    assert join(one, Ablate(sae, select(sae, [4]), start=500)) is None
    assert join(one, Ablate(other, select(other, [4]))) is None
