import pytest
import torch

from saeuron import (
    ConceptStatistics,
    SaeuronError,
    assign,
    assign_at_random,
    load_sae,
    read_assignment,
    save_sae,
    select_assigned,
)
from saeuron.concept_table import WholeTable

KINDS = {"neon": "style", "cat": "object", "dog": "object", "ink": "style"}


def table_of(scores, fingerprint="sae"):
    """A table whose scores are ``scores`` ``{concept: [latents]}`` at both of its timesteps, up to a constant."""
    statistics = ConceptStatistics(KINDS, (9, 5), 6, fingerprint)
    statistics.counts += 1
    for name, values in scores.items():
        statistics.sums[statistics.row(name)] = torch.tensor(values)
    return WholeTable(statistics)


def test_each_takes_its_best_free_latent_objects_before_styles_and_the_surest_first():
    # By share of the total: cat wants 0 (0.9), dog wants 0 too (0.6) and then 2; neon wants 0 and then 3, ink only 3.
    table = table_of(
        {
            "cat": [9.0, 0, 0, 0, 0, 1],
            "dog": [6.0, 0, 3, 0, 0, 1],
            "neon": [8.0, 0, 0, 2, 0, 0],
            "ink": [0.0, 0, 0, 5, 4, 1],
        }
    )
    scores = {name: table.scores(name).mean(0) for name in KINDS}
    found = assign(table)
    assert list(found) == list(KINDS) and len(set(found.values())) == 4
    order = sorted(("cat", "dog"), key=lambda name: -scores[name].max()) + sorted(
        ("neon", "ink"), key=lambda name: -scores[name].max()
    )
    taken = []
    for name in order:
        best = next(latent for latent in scores[name].argsort(descending=True).tolist() if latent not in taken)
        assert found[name] == best, name
        taken.append(best)


def test_scores_are_averaged_over_timesteps():
    table = table_of({"cat": [1.0] * 6, "dog": [1.0] * 6, "neon": [1.0] * 6, "ink": [1.0] * 6})
    cat = table.statistics.sums[table.statistics.row("cat")]
    cat[0, 1], cat[1, 4] = 3.0, 30.0
    assert assign(table, ["cat"]) == {"cat": 4}


def test_only_the_concepts_asked_for_take_latents():
    table = table_of({name: [5.0, 1, 1, 1, 1, 1] for name in ("cat", "neon")} | {"dog": [1.0] * 6, "ink": [1.0] * 6})
    assert assign(table, ["neon"]) == {"neon": 0}
    assert assign(table, ["neon", "cat"])["cat"] == 0, "objects come first"


def test_more_concepts_than_latents_are_refused():
    with pytest.raises(SaeuronError, match="4 concepts need a latent each and the SAE has only 3"):
        assign_at_random(KINDS, 3, seed=0)
    table = WholeTable(ConceptStatistics(KINDS, (9,), 3, "sae"))
    with pytest.raises(SaeuronError, match="only 3"):
        assign(table)


def test_random_latents_are_distinct_and_depend_on_the_seed_alone():
    one = assign_at_random(KINDS, 64, seed=0)
    assert list(one) == list(KINDS) and len(set(one.values())) == 4 and all(0 <= n < 64 for n in one.values())
    assert assign_at_random(KINDS, 64, seed=0) == one != assign_at_random(KINDS, 64, seed=1)


def test_an_assignment_travels_with_its_sae(make_sae, tmp_path):
    save_sae(make_sae(), tmp_path / "sae", assignment={"cat": 3, "neon": 60})
    assert read_assignment(load_sae(tmp_path / "sae")) == {"cat": 3, "neon": 60}


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [(None, "no latents assigned"), ({}, "no latents assigned"), ({"cat": 64}, "'cat' to 64"), ({"cat": "3"}, "'3'")],
)
def test_a_missing_or_impossible_assignment_is_refused(make_sae, assignment, complaint):
    sae = make_sae()
    sae.config = {} if assignment is None else {"assignment": assignment}
    with pytest.raises(SaeuronError, match=complaint):
        read_assignment(sae)


def test_a_concept_s_selection_is_its_one_latent_with_its_own_numbers():
    table = table_of({name: [1.0, 2, 3, 4, 5, 6] for name in KINDS})
    table.statistics.sums[table.statistics.row("cat"), 0, 2] = 7.0
    selection = select_assigned(table, {"cat": 2, "dog": 5}, "cat", strength=-4.0)
    assert selection.latents.tolist() == [[2], [2]] and selection.strengths.tolist() == [[-4.0], [-4.0]]
    assert selection.means.tolist() == [[7.0], [3.0]] and selection.kind_means.tolist() == [[5.0], [3.0]]
    assert (selection.concepts, selection.fingerprint) == (("cat",), "sae")


def test_a_concept_without_a_latent_is_refused_with_the_nearest():
    with pytest.raises(SaeuronError, match="'cats' has no assigned latent; the nearest that have are cat"):
        select_assigned(table_of({}), {"cat": 2}, "cats")


def test_of_two_that_want_one_latent_the_surer_gets_it_and_latent_0_is_one():
    kinds = {"dog": "object", "cat": "object", "sun": "object"}
    statistics = ConceptStatistics(kinds, (9, 5), 6, "sae")
    statistics.counts += 1
    for name, values in {"dog": [7.0, 0, 0, 0, 1, 2], "cat": [9.0, 0, 0, 1, 0, 0], "sun": [0.0, 0, 9, 0, 0, 0]}.items():
        statistics.sums[statistics.row(name)] = torch.tensor(values)
    table = WholeTable(statistics)
    scores = {name: table.scores(name).mean(0) for name in kinds}
    assert scores["dog"].argmax() == scores["cat"].argmax() == 0 and scores["cat"][0] > scores["dog"][0]
    assert assign(table) == {"dog": 5, "cat": 0, "sun": 2}


def test_another_kind_may_choose_first():
    table = table_of({name: [5.0, 0, 0, 0, 0, 0] for name in ("cat", "neon")} | {n: [1.0] * 6 for n in ("dog", "ink")})
    assert assign(table, ["cat", "neon"])["cat"] == 0 and assign(table, ["cat", "neon"], first="style")["neon"] == 0


def test_as_many_concepts_as_latents_are_enough():
    assert sorted(assign_at_random("abcdef", 6, seed=0).values()) == list(range(6))
