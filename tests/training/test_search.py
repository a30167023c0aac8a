import pytest

import training.search
from saeuron import SaeuronError, Setting
from training.evaluate import paired
from training.judging import Sampling, Verdicts
from training.prompts import read_prompts
from training.search import anchor_rows, search


@pytest.fixture
def table(make_sae, make_table):
    return make_table(make_sae())


@pytest.mark.parametrize(("target", "kind"), [("neon", "style"), ("star", "object"), ("plain", "style")])
@pytest.mark.parametrize("images", [2, 3, 45, 400])
def test_a_third_of_the_pictures_show_the_target_and_the_rest_do_not(table, target, kind, images):
    rows, seeds = anchor_rows(read_prompts("tinycanvas:anchor"), table, target, images, seed=3)
    assert len(rows) == len(seeds) == len(set(seeds)) == images
    assert sum(row[kind] == target for row in rows) == max(images // 3, 1)


@pytest.mark.parametrize("target", ["neon", "star"])
def test_neither_prompts_nor_seeds_of_the_evaluation_are_searched_on(table, target):
    judged, judged_seeds = paired(read_prompts("tinycanvas:evaluation"), 5, 188)
    rows, seeds = anchor_rows(read_prompts("tinycanvas:anchor"), table, target, 600, seed=3)
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in judged}
    assert not set(seeds) & set(judged_seeds)


def test_bystanders_are_many_and_each_prompt_comes_once_before_any_comes_twice(table):
    rows, _ = anchor_rows(read_prompts("tinycanvas:anchor"), table, "neon", 90, seed=3)
    others = [row for row in rows if row["style"] != "neon"]
    assert len({row["prompt"] for row in others}) == 60
    assert {row["style"] for row in others} == {row["style"] for row in read_prompts("tinycanvas:anchor")} - {"neon"}


def test_the_choice_of_prompts_depends_on_the_seed_alone(table):
    rows = read_prompts("tinycanvas:anchor")
    assert anchor_rows(rows, table, "neon", 30, 1) == anchor_rows(rows, table, "neon", 30, 1)
    assert anchor_rows(rows, table, "neon", 30, 1) != anchor_rows(rows, table, "neon", 30, 2)


def test_a_target_that_cannot_be_searched_is_refused(table):
    rows = read_prompts("tinycanvas:anchor")
    with pytest.raises(SaeuronError, match="the nearest are neon"):
        anchor_rows(rows, table, "neonn", 30, 0)
    for some in ([row for row in rows if row["style"] == "neon"], [row for row in rows if row["style"] != "neon"]):
        with pytest.raises(SaeuronError, match="some that show 'neon' and some that do not"):
            anchor_rows(some, table, "neon", 30, 0)
    with pytest.raises(SaeuronError, match="at least 2 pictures"):
        anchor_rows(rows, table, "neon", 1, 0)


def test_the_setting_with_the_best_worst_measure_wins(pipeline, make_sae, table, monkeypatch):
    """The judge is replaced: what it finds in each round is laid down here, to know the right answer."""
    rows = [{"prompt": f"a {name}", "object": name, "style": "plain"} for name in ("star", "star", "heart", "moon")]
    # (objects found, styles right): UA, IRA, CRA of 1, ½, 1; then ½, 1, 1; ½, 1, 1 again; 1, 1, ½; and 1, 1, ¾.
    rounds = [
        (["moon", "moon", "heart", "star"], 4),
        (["moon", "star", "heart", "moon"], 4),
        (["star", "moon", "heart", "moon"], 4),
        (["moon", "moon", "heart", "moon"], 2),
        (["moon", "moon", "heart", "moon"], 3),
    ]
    tried = iter(rounds)

    def judge(_images, asked):
        objects, styles = next(tried)
        found = {"object": objects, "style": ["plain"] * styles + ["neon"] * (4 - styles)}
        return Verdicts({kind: [row[kind] for row in asked] for kind in ("object", "style")}, found)

    monkeypatch.setattr(training.search, "judge_tinycanvas", judge)
    candidates = [Setting(latents) for latents in range(1, 6)]
    sae, sampling = make_sae(), Sampling(steps=1, batch=4)
    for count, winner in [(1, 1), (2, 1), (4, 1), (5, 5)]:
        tried = iter(rounds)
        found = search(pipeline, sae, table, "star", candidates[:count], rows, [0, 1, 2, 3], sampling)
        assert found == Setting(winner), f"of the first {count}"
