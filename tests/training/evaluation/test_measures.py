import pytest
import torch

from saeuron import Setting
from tinycanvas.drawing import OBJECTS, STYLES, draw
from training.common.prompts import read_prompts
from training.diffusion.sampling import Sampling, draw_all
from training.evaluation.evaluate import evaluate, markdown, paired
from training.evaluation.judges import judge_tinycanvas
from training.evaluation.measures import Rate, Verdicts, measures

# Asked for and found, of eight pictures: three stars, of which one is still found.
VERDICTS = Verdicts(
    {
        "object": ["star", "star", "star", "circle", "circle", "heart", "heart", "moon"],
        "style": ["neon", "candy", "plain", "neon", "candy", "plain", "neon", "sepia"],
    },
    {
        "object": ["star", "heart", "circle", "circle", "star", "heart", "heart", "moon"],
        "style": ["neon", "candy", "plain", "neon", "neon", "plain", "sepia", "plain"],
    },
)
FEW = Sampling(steps=2, batch=2)


def test_an_object_s_measures_are_counted_by_the_book():
    rates = measures(VERDICTS, "star", "object")
    assert rates == {"ua": Rate(2, 3), "ira": Rate(4, 5), "cra": Rate(5, 8)}


def test_a_style_s_measures_are_counted_by_the_book():
    # Neon is found in two of its three pictures; of the other five, candy, plain and plain keep their style.
    assert measures(VERDICTS, "neon", "style") == {"ua": Rate(1, 3), "ira": Rate(3, 5), "cra": Rate(5, 8)}


@pytest.mark.parametrize(("target", "kind"), [("star", "object"), ("moon", "object"), ("plain", "style")])
def test_every_picture_is_counted_once_a_measure(target, kind):
    rates = measures(VERDICTS, target, kind)
    assert rates["ua"].total + rates["ira"].total == rates["cra"].total == 8


def test_accuracy_is_the_fraction_found_as_asked():
    assert (VERDICTS.accuracy("object"), VERDICTS.accuracy("style")) == (5 / 8, 5 / 8)


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [  # Wilson's score interval at 95 %, from Brown, Cai and DasGupta's formula by hand
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
        (95, 100, 0.8882, 0.9785),
    ],
)
def test_the_interval_is_wilson_s(hits, total, low, high):
    rate = Rate(hits, total)
    assert rate.interval == pytest.approx((low, high), abs=5e-5)  # the digits printed above
    assert rate.interval[0] <= rate.value <= rate.interval[1]


def test_a_rate_of_nothing_is_not_a_number():
    assert Rate(0, 0).value != Rate(0, 0).value and Rate(0, 0).interval[0] != Rate(0, 0).interval[0]


def test_the_judge_names_what_is_drawn_row_by_row():
    pairs = torch.tensor([(o, s) for o in range(len(OBJECTS)) for s in range(len(STYLES))] * 3)  # over one batch of 256
    images = draw(pairs[:, 0], pairs[:, 1], torch.Generator().manual_seed(0)) / 2 + 0.5
    rows = [{"object": OBJECTS[o], "style": STYLES[s]} for o, s in pairs.tolist()]
    verdicts = judge_tinycanvas(images, rows)
    assert verdicts.asked == {kind: [row[kind] for row in rows] for kind in ("object", "style")}
    # 99.5 % is what the judge promises of fresh drawings; of 270, two may be wrong.
    assert min(sum(verdicts.right(kind)) for kind in ("object", "style")) >= 268


def test_pictures_come_in_the_order_of_their_rows_whatever_the_batch(pipeline):
    rows = read_prompts("tinycanvas:evaluation")[:3]
    one, two = (draw_all(pipeline, rows, [4, 5, 6], Sampling(steps=2, batch=batch)) for batch in (1, 2))
    # Products of other sizes add in another order, see test_host.
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)
    assert (one[0] - one[1]).abs().max() > 0.01


def test_every_prompt_is_drawn_as_often_as_asked_and_no_seed_twice():
    rows = read_prompts("tinycanvas:evaluation")
    repeated, seeds = paired(rows, 3, 188)
    assert sorted(row["prompt"] for row in repeated) == sorted(row["prompt"] for row in rows * 3)
    assert len(set(seeds)) == len(seeds) == 270


@pytest.fixture
def evaluated(pipeline, make_sae, make_table):
    """The report of an edit of nothing, and of one of much, on four pictures."""
    sae, all_rows = make_sae(), read_prompts("tinycanvas:evaluation")
    settings = {"plain": Setting(latents=0), "ring": Setting(latents=64, strength=-20.0)}
    rows, seeds = paired([all_rows[n] for n in (0, 9, 10, 40)], 1, 188)
    return evaluate(pipeline, sae, make_table(sae), settings, rows, seeds, FEW)


def test_removing_nothing_leaves_the_verdicts_of_the_unedited_model(evaluated, pipeline):
    nothing, rows = evaluated["targets"][0], read_prompts("tinycanvas:evaluation")
    rows, seeds = paired([rows[n] for n in (0, 9, 10, 40)], 1, 188)
    expected = measures(judge_tinycanvas(draw_all(pipeline, rows, seeds, FEW), rows), "plain", "style")
    assert (nothing["name"], nothing["kind"]) == ("plain", "style")
    assert {key: nothing[key] for key in ("ua", "ira", "cra")} == {key: rate.value for key, rate in expected.items()}
    assert nothing["cra"] == evaluated["base"]["object"]


def test_the_report_says_how_each_target_was_removed_and_how_sure_it_is(evaluated):
    assert evaluated["images"] == 4 and set(evaluated["base"]) == {"object", "style"}
    ring = evaluated["targets"][1]
    assert Setting(**ring["setting"]) == Setting(latents=64, strength=-20.0)
    for key in ("ua", "ira", "cra"):
        low, high = ring[f"{key}_interval"]
        assert 0 <= low <= ring[key] <= high <= 1


def test_the_table_has_a_row_a_target(evaluated):
    lines = markdown(evaluated).splitlines()
    assert lines[0].split(" | ")[-3:] == ["UA", "IRA", "CRA |"]
    assert lines[2].startswith("| plain | style | ") and lines[3].startswith("| ring | object | ")
    assert "Unedited model on the same 4 seeds" in lines[-1]
