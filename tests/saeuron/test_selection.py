import pytest
import torch

from saeuron import SaeuronError, Selection


def select(latents, means, concept="cat", timesteps=(9, 5), strengths=-2.0, kind_means=0.5, fingerprint="sae"):
    latents = torch.tensor(latents)
    return Selection(
        timesteps=torch.tensor(timesteps),
        latents=latents,
        means=torch.tensor(means, dtype=torch.float32),
        kind_means=torch.full(latents.shape, float(kind_means)),
        strengths=torch.full(latents.shape, float(strengths)),
        concepts=(concept,),
        fingerprint=fingerprint,
    )


CAT = select([[1, 2], [3, 4]], [[0.1, 0.2], [0.3, 0.4]])


@pytest.mark.parametrize(
    ("timestep", "latents"), [(9, [1, 2]), (1000, [1, 2]), (7.5, [1, 2]), (6.5, [3, 4]), (0, [3, 4])]
)
def test_the_row_of_the_nearest_timestep_is_given(timestep, latents):
    assert CAT.at(timestep).latents.tolist() == latents


def test_a_timestep_may_be_a_tensor():
    assert CAT.at(torch.tensor(5)).latents.tolist() == [3, 4]


def test_empty_places_are_left_out_of_a_row():
    row = select([[1, -1], [-1, -1]], [[0.1, 0.2], [0.3, 0.4]]).at(9)
    assert row.latents.tolist() == [1]
    assert {len(field) for field in (row.means, row.kind_means, row.strengths)} == {1}


def test_a_selection_without_latents_is_empty():
    assert select([[-1], [-1]], [[0.0], [0.0]]).is_empty
    assert select([[], []], [[], []]).is_empty
    assert not select([[-1], [3]], [[0.0], [0.0]]).is_empty


def test_merging_keeps_every_latent_of_every_concept_with_its_own_numbers():
    dog = select([[7], [8]], [[0.7], [0.8]], "dog", strengths=-1, kind_means=0.9)
    merged = Selection.merge([CAT, dog])
    assert merged.concepts == ("cat", "dog")
    for timestep, own in ((9, CAT), (5, CAT), (9, dog), (5, dog)):
        row, expected = merged.at(timestep), own.at(timestep)
        for place, latent in enumerate(expected.latents.tolist()):
            (found,) = (row.latents == latent).nonzero().flatten()
            for field in ("means", "kind_means", "strengths"):
                assert getattr(row, field)[found] == getattr(expected, field)[place]


def test_a_doubly_selected_latent_goes_to_the_stronger_pull_whatever_the_order():
    weak = select([[1, 2], [4, 3]], [[0.05, 0.9], [0.1, 0.1]], "dog")
    for merged in (Selection.merge([CAT, weak]), Selection.merge([weak, CAT])):
        for timestep in (9, 5):
            assert len(merged.at(timestep).latents.unique()) == len(merged.at(timestep).latents) == 2
        row = merged.at(9)
        assert dict(zip(row.latents.tolist(), row.means.tolist(), strict=True)) == pytest.approx({1: 0.1, 2: 0.9})


def test_merging_one_selection_edits_the_same():
    row, merged = CAT.at(9), Selection.merge([CAT]).at(9)
    assert sorted(zip(*(vars(row)[f].tolist() for f in vars(row)), strict=True)) == sorted(
        zip(*(vars(merged)[f].tolist() for f in vars(merged)), strict=True)
    )


@pytest.mark.parametrize("other", [{"fingerprint": "another"}, {"timesteps": (9, 4)}, {"timesteps": (9, 5, 1)}])
def test_selections_that_do_not_belong_together_are_refused(other):
    rows = len(other.get("timesteps", (9, 5)))
    with pytest.raises(SaeuronError, match="the same SAE and the same timesteps"):
        Selection.merge([CAT, select([[1]] * rows, [[0.1]] * rows, **other)])
