import json

import pytest
import torch

from saeuron import Ablate, ConceptStatistics, SaeuronError, Selection
from saeuron.assignment import select_assigned
from saeuron.checkpoints import Bundle, load_bundle, save_bundle
from saeuron.compact_table import CompactTable
from saeuron.concept_table import WholeTable
from saeuron.files import read_tensors, write_tensors

CONCEPTS = {"cat": "object", "dog": "object", "bird": "object", "oil": "style", "ink": "style"}
TIMESTEPS = [901, 501, 101]

# One rounding to float16 of a number between 0 and 1: 11 bits, and 6e-8 where there are none left.
HALF = {"rtol": 2**-11, "atol": 1e-7}


def new_table(n_latents=200, fingerprint="sae", scale=1.0, seed=0) -> WholeTable:
    statistics = ConceptStatistics(CONCEPTS, TIMESTEPS, n_latents, fingerprint, {"d_in": 16})
    generator = torch.Generator().manual_seed(seed)
    statistics.sums = scale * torch.rand(statistics.sums.shape, generator=generator).pow(4)
    statistics.counts += 2
    return WholeTable(statistics)


@pytest.mark.parametrize("per_timestep", [True, False])
@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_it_selects_as_the_whole_table_does(count, per_timestep):
    whole = new_table()
    for concept in CONCEPTS:
        expected = whole.select(concept, count, -3.0, per_timestep)
        got = CompactTable.of(whole).select(concept, count, -3.0, per_timestep)
        assert torch.equal(got.latents, expected.latents) and torch.equal(got.timesteps, expected.timesteps)
        assert torch.equal(got.strengths, expected.strengths)
        assert (got.concepts, got.fingerprint) == (expected.concepts, expected.fingerprint)
        torch.testing.assert_close(got.means, expected.means, **HALF)
        torch.testing.assert_close(got.kind_means, expected.kind_means, **HALF)


def test_its_selections_merge_with_the_whole_table_s():
    whole = new_table()
    merged = Selection.merge([CompactTable.of(whole).select("cat", 2), whole.select("oil", 2)])
    assert merged.concepts == ("cat", "oil")


def test_an_edit_made_of_it_is_the_whole_table_s_within_a_rounding(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    whole = new_table(sae.n_latents, sae.fingerprint)
    edits = [Ablate(sae, table.select("cat", 8, -3.0)) for table in (whole, CompactTable.of(whole))]
    expected, got = (edit(tokens, 501) for edit in edits)
    assert not torch.equal(expected, tokens)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_half_precision_suits_whatever_units_the_activations_have(scale):
    whole = new_table(scale=scale)
    expected, got = whole.select("cat", 5), CompactTable.of(whole).select("cat", 5)
    torch.testing.assert_close(got.means, expected.means, rtol=2**-11, atol=1e-7 * scale)


def test_plots_get_the_kept_latents_and_0_elsewhere():
    whole = new_table()
    compact = CompactTable.of(whole)
    for concept in CONCEPTS:
        expected = whole.scores(concept)
        strongest = expected.topk(64, dim=1).indices
        assert compact.scores(concept).shape == expected.shape
        torch.testing.assert_close(compact.scores(concept).gather(1, strongest), expected.gather(1, strongest), **HALF)
        kept = compact.scores(concept) != 0
        torch.testing.assert_close(compact.means(concept)[kept], whole.means(concept)[kept], **HALF)
        torch.testing.assert_close(compact.kind_mean(concept)[kept], whole.kind_mean(concept)[kept], **HALF)
        assert kept.sum(1).max() <= 2 * 64
    assert compact.concepts == CONCEPTS and compact.timesteps.tolist() == TIMESTEPS


def test_a_latent_that_training_assigned_is_kept_however_weak():
    whole = new_table()
    weakest = {"cat": int(whole.scores("cat").mean(0).argmin())}
    compact = CompactTable.of(whole, weakest)
    expected, got = (select_assigned(table, weakest, "cat") for table in (whole, compact))
    torch.testing.assert_close(got.means, expected.means, **HALF)
    torch.testing.assert_close(got.kind_means, expected.kind_means, **HALF)
    for per_timestep in (True, False):
        plain = CompactTable.of(whole).select("dog", 64, per_timestep=per_timestep)
        assert torch.equal(compact.select("dog", 64, per_timestep=per_timestep).latents, plain.latents)


def test_a_table_of_few_latents_is_kept_whole():
    whole = new_table(n_latents=12)
    compact = CompactTable.of(whole)
    torch.testing.assert_close(compact.scores("cat"), whole.scores("cat"), **HALF)
    assert compact.select("cat", 12).latents.shape == (3, 12)
    with pytest.raises(SaeuronError, match="keeps 12 a concept: give 0 to 12"):
        compact.select("cat", 13)


@pytest.mark.parametrize("count", [-1, 65])
def test_more_latents_than_it_keeps_are_refused_with_the_way_out(count):
    with pytest.raises(SaeuronError, match=f"is {count} and this shared table keeps 64 .* run `score` for a whole"):
        CompactTable.of(new_table()).select("cat", count)


def test_an_unknown_concept_is_refused_with_the_nearest():
    with pytest.raises(SaeuronError, match="'brid' is not in the table; the nearest are bird"):
        CompactTable.of(new_table()).select("brid", 1)


def test_the_table_of_another_sae_is_refused():
    with pytest.raises(SaeuronError, match="made with the SAE sae and this SAE is other"):
        CompactTable.of(new_table()).check_belongs("other")


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("kept", 65, "do not have the shape"),
        ("kept", -1, "kept"),
        ("kept", 2.5, "kept"),
        ("scale", 0.0, "scale"),
        ("table.latents", -1, "latents that the SAE does not have"),
        ("table.timesteps", 1001, "timesteps"),
        ("table.values", torch.int8, "table.values as torch.int8"),
    ],
)
def test_a_file_with_a_table_that_cannot_be_is_refused(make_sae, tmp_path, field, value, complaint):
    sae, path = make_sae(), tmp_path / "a.safetensors"
    save_bundle(Bundle(sae, CompactTable.of(new_table(sae.n_latents, sae.fingerprint))), path)
    tensors, metadata = read_tensors(path)
    about = json.loads(metadata["saeuron"])
    if field in about["table"]:
        about["table"][field] = value
    elif isinstance(value, torch.dtype):
        tensors[field] = tensors[field].to(value)
    else:
        tensors[field].view(-1)[0] = value
    write_tensors(path, tensors, {"saeuron": json.dumps(about)})
    with pytest.raises(SaeuronError, match=complaint) as refused:
        load_bundle(path)
    assert str(path) in str(refused.value)


def part_of(concepts: dict, n_latents: int = 200, scale: float = 1.0, seed: int = 0) -> WholeTable:
    statistics = ConceptStatistics(concepts, TIMESTEPS, n_latents, "sae", {"d_in": 16})
    statistics.sums = scale * torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(seed)).pow(4)
    statistics.counts += 2
    return WholeTable(statistics)


@pytest.mark.parametrize("scale", [1.0, 50.0], ids=["alike", "of larger activations"])
@pytest.mark.parametrize("assigned", [None, {"cat": 3, "dog": 4}], ids=["plain", "assigned"])
def test_a_merged_table_tells_of_each_concept_what_its_own_told(scale, assigned):
    old = part_of({"cat": "object", "dog": "object"})
    new = part_of({"dog": "object", "bird": "object", "oil": "style", "ink": "style"}, scale=scale, seed=1)
    merged = CompactTable.of(old, assigned).merged(CompactTable.of(new, kept=32))
    assert merged.concepts == {"cat": "object"} | new.concepts
    for name, own in {"cat": old, "dog": new, "bird": new, "oil": new, "ink": new}.items():
        got, expected = merged.select(name, 32, -1.0), own.select(name, 32, -1.0)
        assert torch.equal(got.latents, expected.latents)
        # Twice rounded to float16: as kept, and in the unit of the larger of both tables.
        torch.testing.assert_close(got.means, expected.means, rtol=2**-10, atol=2e-7 * scale)
    if assigned:
        got, expected = (select_assigned(table, assigned, "cat") for table in (merged, old))
        assert torch.equal(got.latents, expected.latents)
        torch.testing.assert_close(got.means, expected.means, rtol=2**-10, atol=2e-7 * scale)


def test_a_merged_table_keeps_as_much_as_both_do_and_is_of_one_sae():
    old, new = part_of({"cat": "object", "dog": "object"}), part_of({"oil": "style", "ink": "style"}, seed=1)
    for kept in ((64, 8), (8, 64)):
        merged = CompactTable.of(old, kept=kept[0]).merged(CompactTable.of(new, kept=kept[1]))
        assert merged.kept == 8 and not merged.has_contrasts
    with pytest.raises(SaeuronError, match="keeps 8 a concept"):
        merged.select("cat", 9)
    with pytest.raises(SaeuronError, match="was made with the SAE"):
        CompactTable.of(old).merged(CompactTable.of(new_table(fingerprint="other")))


def test_a_merged_table_has_the_first_one_s_timesteps():
    old = part_of({"cat": "object", "dog": "object"})
    statistics = ConceptStatistics({"oil": "style", "ink": "style"}, [900, 100], 200, "sae", {"d_in": 16})
    statistics.sums = torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(2))
    statistics.counts += 1
    new = WholeTable(statistics)
    merged = CompactTable.of(old).merged(CompactTable.of(new))
    assert merged.timesteps.tolist() == TIMESTEPS
    expected, got = new.select("oil", 3), merged.select("oil", 3)
    nearest = [0, 0, 1]  # 901, 501 and 101 among 900 and 100: 501 is nearer to 900
    assert torch.equal(got.latents, expected.latents[nearest])
