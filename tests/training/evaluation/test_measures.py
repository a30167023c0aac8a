import pytest
import torch

import training.evaluation.protocol
from saeuron import SaeuronError, Setting
from saeuron.checkpoints import Bundle
from tinycanvas.drawing import OBJECTS, STYLES, draw
from training.common.prompts import read_prompts
from training.diffusion.sampling import Sampling, draw_all
from training.evaluation.evaluate import evaluate, markdown
from training.evaluation.judges import tinycanvas_judge
from training.evaluation.measures import Rate, Verdicts, measures
from training.evaluation.protocol import Protocol, Removal, paired

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
    assert rates == {"ua": Rate(2, 3), "ira": Rate(4, 5), "cra": Rate(5, 8), "kept": Rate(3, 3)}


def test_a_style_s_measures_are_counted_by_the_book():
    # Neon is found in two of its three pictures; of the other five, candy, plain and plain keep their style.
    rates = measures(VERDICTS, "neon", "style")
    assert rates == {"ua": Rate(1, 3), "ira": Rate(3, 5), "cra": Rate(5, 8), "kept": Rate(3, 3)}


def test_kept_is_what_a_removal_leaves_of_its_own_pictures():
    # Of the pictures asked to be plain, the star is gone and the heart is there.
    assert measures(VERDICTS, "plain", "style")["kept"] == Rate(1, 2)


def test_of_three_kinds_the_other_two_are_pooled_and_of_one_there_is_nothing_to_pool():
    asked = {"animal": ["cat", "cat", "dog"], "medium": ["oil", "ink", "oil"], "light": ["day", "day", "night"]}
    found = {"animal": ["dog", "cat", "dog"], "medium": ["oil", "oil", "oil"], "light": ["day", "night", "night"]}
    rates = measures(Verdicts(asked, found), "cat", "animal")
    assert rates == {"ua": Rate(1, 2), "ira": Rate(1, 1), "cra": Rate(4, 6), "kept": Rate(2, 4)}
    alone = measures(Verdicts({"animal": asked["animal"]}, {"animal": found["animal"]}), "cat", "animal")
    assert alone == {"ua": Rate(1, 2), "ira": Rate(1, 1), "cra": Rate(0, 0), "kept": Rate(0, 0)}
    assert str(alone["cra"]) == "–" and alone["cra"].values()["value"] is None


def test_verdicts_on_two_lots_of_pictures_are_those_on_all():
    def part(pictures):
        return Verdicts(*({kind: names[pictures] for kind, names in own.items()} for own in (asked, found)))

    asked, found = VERDICTS.asked, VERDICTS.found
    assert part(slice(3)) + part(slice(3, None)) == VERDICTS


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
    asked = Protocol(None, tinycanvas_judge(), rows, range(len(rows)), FEW).asked
    assert asked == {kind: [row[kind] for row in rows] for kind in ("object", "style")}
    verdicts = Verdicts(asked, tinycanvas_judge()(images))
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


SETTINGS = {"plain": Setting(latents=0), "ring": Setting(latents=64, strength=-20.0)}


@pytest.fixture
def protocol(pipeline):
    """Four pictures."""
    rows = read_prompts("tinycanvas:evaluation")
    return Protocol(pipeline, tinycanvas_judge(), *paired([rows[n] for n in (0, 9, 10, 40)], 1, 188), FEW)


@pytest.fixture
def bundle(make_sae, make_table):
    return Bundle(make_sae(), make_table(make_sae()))


@pytest.fixture
def evaluated(protocol, bundle):
    """The report of an edit of nothing, and of one of much."""
    return evaluate(protocol, bundle, SETTINGS)


def test_removing_nothing_leaves_the_verdicts_of_the_unedited_model(evaluated, protocol):
    nothing = evaluated["targets"][0]
    images = draw_all(protocol.pipeline, protocol.rows, protocol.seeds, FEW)
    expected = measures(Verdicts(protocol.asked, tinycanvas_judge()(images)), "plain", "style")
    assert (nothing["name"], nothing["kind"]) == ("plain", "style")
    assert {key: nothing[key] for key in expected} == {key: rate.value for key, rate in expected.items()}
    assert nothing["cra"] == evaluated["base"]["object"]


def test_the_report_says_how_each_target_was_removed_and_how_sure_it_is(evaluated):
    assert evaluated["images"] == 4 and set(evaluated["base"]) == {"object", "style"}
    ring = evaluated["targets"][1]
    assert Setting(**ring["setting"]) == Setting(latents=64, strength=-20.0)
    for key in ("ua", "ira", "cra", "kept"):
        low, high = ring[f"{key}_interval"]
        assert 0 <= low <= ring[key] <= high <= 1


def test_the_table_has_a_row_a_target(evaluated):
    lines = [" ".join(line.split()) for line in markdown(evaluated).splitlines()]
    assert lines[0].split(" | ")[-4:] == ["UA", "IRA", "CRA", "kept |"]
    assert lines[2].startswith("| plain | style | ") and lines[3].startswith("| ring | object | ")
    assert "Unedited model on the same 4 seeds" in lines[-1]


def test_what_was_found_is_kept_a_file_a_removal_and_never_drawn_again(
    protocol, bundle, evaluated, tmp_path, monkeypatch
):
    drawn, real = [], training.evaluation.protocol.draw_all

    def draw(pipeline, rows, seeds, sampling, edits=None):
        drawn.extend(seeds)
        return real(pipeline, rows, seeds, sampling, edits)

    monkeypatch.setattr(training.evaluation.protocol, "draw_all", draw)
    monkeypatch.setattr(training.evaluation.protocol, "can_part", lambda *_: False)  # every picture whole
    assert evaluate(protocol, bundle, SETTINGS, tmp_path) == evaluated
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.json", "plain.json", "ring.json"]
    assert drawn == [*protocol.seeds] * 3, "every removal is drawn from the same noise"
    drawn.clear()
    (tmp_path / "ring.json").unlink()
    assert evaluate(protocol, bundle, SETTINGS, tmp_path) == evaluated
    assert drawn == [*protocol.seeds]


def test_a_concept_of_a_kind_that_is_not_judged_is_refused(protocol, bundle):
    one_kind = protocol.of(
        [{"prompt": row["prompt"], "object": row["object"]} for row in protocol.rows], protocol.seeds
    )
    with pytest.raises(SaeuronError, match="'neon' is of the kind style, and prompts and judge tell object apart"):
        evaluate(one_kind, bundle, {"neon": Setting()})
    found = one_kind.survey(Removal("ring", ("ring",), "object"), bundle)
    assert one_kind.rates(found)["cra"].total == 0
