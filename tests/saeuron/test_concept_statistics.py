import pytest
import torch

from saeuron import ConceptStatistics, ConceptTable, SaeuronError, save_sae
from saeuron.concept_table import WholeTable
from saeuron.files import read_tensors, write_tensors
from tests.saeuron.pictures import CLOSE, CONCEPTS, TIMESTEPS, fill, new_statistics


def test_memory_does_not_grow_with_the_number_of_images(images, tmp_path):
    def size():
        statistics.save(tmp_path / "table")
        return (tmp_path / "table").stat().st_size, sum(tensor.nbytes for tensor in statistics.tensors.values())

    statistics = fill(new_statistics(), images)
    before = size()
    for _ in range(5):
        fill(statistics, images)
    assert size() == before


def test_an_image_without_any_concept_counts_for_none(images):
    statistics = fill(new_statistics(), images)
    before = [tensor.clone() for tensor in statistics.tensors.values()]
    statistics.add([[], []], 901, torch.ones(2, 12))
    statistics.add([], 901, torch.ones(0, 12))
    assert all(map(torch.equal, statistics.tensors.values(), before))


def test_an_unknown_concept_is_refused_with_the_nearest(images):
    statistics = fill(new_statistics(), images)
    table = WholeTable(statistics)
    for ask in (lambda: table.select("brid", 1), lambda: statistics.add([["brid"]], 901, torch.ones(1, 12))):
        with pytest.raises(SaeuronError, match="'brid' is not in the table; the nearest are bird"):
            ask()


def test_an_unrecorded_timestep_is_refused():
    with pytest.raises(SaeuronError, match="timestep 7 is not one of the table's 3"):
        new_statistics().add([["cat"]], 7, torch.ones(1, 12))


SHOWN = [("cat", "oil"), ("dog", "ink"), ("cat", "ink"), (), ("bird",)]


def observed(sae, tokens, rows=slice(None)):
    """Statistics of maps ``tokens`` ``[timestep][picture, token, d]``, in batches of two."""
    statistics = new_statistics(n_latents=sae.n_latents, fingerprint=sae.fingerprint)
    shown = SHOWN[rows]
    for timestep, maps in zip(TIMESTEPS, tokens, strict=True):
        for start in range(0, len(shown), 2):
            statistics.observe(sae, shown[start : start + 2], timestep, maps[rows][start : start + 2])
    return statistics


def test_observing_gathers_means_middles_and_what_is_shown_together(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(3, 5, 70, 16)
    found = observed(sae, tokens)
    means, middle = sae.encode(tokens).mean(2), tokens.mean(2)
    cat = [0, 2]
    torch.testing.assert_close(found.sums[0], means[:, cat].sum(1), **CLOSE)
    torch.testing.assert_close(found.more["tokens"][0], middle[:, cat].sum(1), **CLOSE)
    torch.testing.assert_close(found.more["all_sums"], means.sum(1), **CLOSE)
    torch.testing.assert_close(found.more["all_tokens"], middle.sum(1), **CLOSE)
    # Squares of numbers up to 10, added up in another order.
    torch.testing.assert_close(found.more["squares"], sae.pre_activations(middle).square().sum(1), rtol=1e-4, atol=1e-4)
    assert found.more["pictures"].tolist() == [5, 5, 5] and found.counts[:, 0].tolist() == [2, 1, 1, 1, 2]
    together = found.more["together"][:, :, 1]
    assert together[0].tolist() == [2, 0, 0, 1, 1] and torch.equal(together.diagonal(), found.counts[:, 1])


def test_statistics_come_back_as_they_were_saved(make_sae, make_tokens, tmp_path):
    sae = make_sae()
    statistics = observed(sae, make_tokens(3, 5, 20, 16))
    statistics.origin = {"hookpoint": "unet.mid_block.attentions.0"}
    statistics.save(tmp_path / "table.safetensors")
    again = ConceptStatistics.load(tmp_path / "table.safetensors")
    assert list(again.concepts.items()) == list(CONCEPTS.items()) and again.fingerprint == sae.fingerprint
    assert (again.origin["hookpoint"], again.n_latents) == ("unet.mid_block.attentions.0", 64)
    assert torch.equal(again.timesteps, statistics.timesteps) and again.tensors.keys() == statistics.tensors.keys()
    for name, tensor in statistics.tensors.items():
        assert torch.equal(again.tensors[name], tensor), name


def test_two_processes_gather_what_one_would(make_sae, make_tokens, tmp_path):
    sae, tokens = make_sae(), make_tokens(3, 5, 20, 16)
    for name, rows in (("a", slice(0, 2)), ("b", slice(2, None))):
        observed(sae, tokens, rows).save(tmp_path / name)
    merged = ConceptStatistics.load(tmp_path / "a")
    merged.merge(ConceptStatistics.load(tmp_path / "b"))
    for name, tensor in observed(sae, tokens).tensors.items():
        torch.testing.assert_close(merged.tensors[name], tensor, rtol=1e-4, atol=1e-4, msg=name)
    assert ConceptStatistics.load(tmp_path / "a").counts.sum() < merged.counts.sum(), "the file is not the statistics"


def test_a_file_of_version_1_is_read_and_knows_means_alone(images, make_sae, make_tokens, tmp_path):
    path, statistics = tmp_path / "table.safetensors", fill(new_statistics(), images)
    statistics.save(path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {"saeuron": metadata["saeuron"].replace('"version": 2', '"version": 1')})
    old = ConceptStatistics.load(path)
    assert old.more is None and torch.equal(old.sums, statistics.sums)
    sae = make_sae()
    newer = observed(sae, make_tokens(3, 5, 20, 16))
    newer.add([["cat"]], 901, torch.ones(1, 64))
    assert newer.more is None, "half of them says nothing of all"


def test_the_halves_of_guidance_are_compared_picture_by_picture(make_sae, make_tokens, tmp_path):
    sae, tokens, unguided = make_sae(), make_tokens(4, 20, 16), make_tokens(2, 20, 16, seed=9)
    found = ConceptStatistics(CONCEPTS, TIMESTEPS, 64, sae.fingerprint)
    found.observe(sae, [["cat"], ["cat"]], 901, tokens[:2])
    found.observe(sae, [["dog"], ["dog"]], 901, tokens[2:], unguided)
    torch.testing.assert_close(found.more["apart"][0], (unguided - tokens[2:]).mean(1).sum(0), **CLOSE)
    assert found.more["halves"].tolist() == [2, 0, 0]


def test_a_file_that_holds_unconditional_halves_themselves_is_read_as_what_it_was_fitted_as(
    make_sae, make_tokens, tmp_path
):
    path, sae, tokens, unguided = tmp_path / "old", make_sae(), make_tokens(2, 20, 16), make_tokens(2, 20, 16, seed=9)
    found = ConceptStatistics(CONCEPTS, TIMESTEPS, 64, sae.fingerprint)
    found.observe(sae, [["cat"], ["dog"]], 901, tokens, unguided)
    found.save(path)
    tensors, metadata = read_tensors(path)
    apart = tensors.pop("apart")
    tensors["unguided"] = torch.zeros_like(apart)
    tensors["unguided"][0] = unguided.mean(1).sum(0)
    write_tensors(path, tensors, metadata)
    torch.testing.assert_close(ConceptStatistics.load(path).more["apart"], apart, **CLOSE)


@pytest.mark.parametrize(
    "other",
    [{"fingerprint": "another"}, {"timesteps": [901, 501, 1]}, {"concepts": dict(reversed(CONCEPTS.items()))}],
    ids=["sae", "timesteps", "order of concepts"],
)
def test_tables_that_do_not_belong_together_are_refused(images, other):
    with pytest.raises(SaeuronError):
        new_statistics().merge(new_statistics(**other))


def test_a_file_that_is_no_table_is_refused_by_name(tmp_path, make_sae, images):
    path = tmp_path / "table.safetensors"
    save_sae(make_sae(), tmp_path)
    (tmp_path / "sae.safetensors").rename(path)
    with pytest.raises(SaeuronError, match=r"table\.safetensors is not a concept table"):
        ConceptTable.load(path)

    fill(new_statistics(), images).save(path)
    tensors, metadata = read_tensors(path)
    spoilt = [
        (tensors, {"saeuron": metadata["saeuron"].replace('"version": 2', '"version": 3')}),
        (tensors, {"saeuron": "[]"}),
        (tensors, {"saeuron": "{"}),
        (tensors | {"sums": torch.zeros(2, 3, 12)}, metadata),
        ({"sums": tensors["sums"]}, metadata),
    ]
    for content, description in spoilt:
        write_tensors(path, content, description)
        with pytest.raises(SaeuronError, match=r"table\.safetensors is not a concept table") as refused:
            ConceptTable.load(path)
        if content["sums"].shape != tensors["sums"].shape:
            assert "its tensors do not have the shape its description gives" in str(refused.value)

    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SaeuronError, match=r"table\.safetensors is not a readable"):
        ConceptTable.load(path)
