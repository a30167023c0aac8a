import json

import pytest
import torch

import training.evaluation.sweep
from saeuron import SaeuronError, Setting, read_settings, save_sae
from training.common.prompts import read_prompts
from training.diffusion.sampling import Sampling
from training.evaluation.evaluate import paired
from training.evaluation.measures import Verdicts
from training.evaluation.sweep import Bench, Sweep, anchor_rows, grid, sweep

ROWS = [{"prompt": name, "object": name, "style": "plain"} for name in ("star",) * 6 + ("heart", "moon") * 6]
SEEDS = list(range(len(ROWS)))
SETTINGS = grid([1, 2, 4], [-1.0, -9.0], [True])
# UA, IRA, CRA of each setting, in order. The fourth is the best; the fifth never lets go of the star.
QUALITY = [(0.5, 1, 1), (0.6, 1, 1), (0.7, 1, 1), (0.9, 0.95, 1), (0.0, 1, 1), (0.7, 1, 1)]


@pytest.fixture
def bench(make_sae, make_table):
    sae = make_sae()
    return Bench(None, sae, make_table(sae), Sampling(steps=1))


@pytest.fixture
def drawn(monkeypatch):
    """Settings are drawn and judged as `QUALITY` says; the list holds each setting drawn and how many pictures."""
    calls = []

    def draw(_bench, _target, setting, rows, seeds):
        assert [ROWS[seed] for seed in seeds] == list(rows)
        calls.append((setting, len(rows)))
        return torch.full((len(rows), 1), float(SETTINGS.index(setting)))

    def judge(images, rows):
        ua, ira, cra = QUALITY[int(images[0])]
        found = {"object": [], "style": ["plain"] * round(cra * len(rows))}
        found["style"] += ["neon"] * (len(rows) - len(found["style"]))
        for names, share, wrong in ((["star"], 1 - ua, "moon"), (["heart", "moon"], ira, "star")):
            own = [n for n, row in enumerate(rows) if row["object"] in names]
            right = set(own[: round(share * len(own))])
            found["object"] += [(n, rows[n]["object"] if n in right else wrong) for n in own]
        found["object"] = [name for _, name in sorted(found["object"])]
        return Verdicts({kind: [row[kind] for row in rows] for kind in ("object", "style")}, found)

    monkeypatch.setattr(training.evaluation.sweep, "_draw", draw)
    monkeypatch.setattr(training.evaluation.sweep, "judge_tinycanvas", judge)
    return calls


def test_the_setting_with_the_best_worst_measure_wins_and_the_cost_is_told(bench, drawn, tmp_path):
    found, images = sweep(bench, "star", SETTINGS, ROWS, SEEDS, tmp_path / "journal")
    assert found == SETTINGS[3]
    assert images == sum(count for _, count in drawn)


def test_a_hopeless_setting_is_given_up_after_a_third_of_its_pictures(bench, drawn, tmp_path):
    settings = [SETTINGS[3], SETTINGS[4], SETTINGS[5]]
    assert sweep(bench, "star", settings, ROWS, SEEDS, tmp_path / "journal")[1] == 18 + 6 + 18
    assert drawn == [(settings[0], 6), (settings[0], 12), (settings[1], 6), (settings[2], 6), (settings[2], 12)]


def test_every_third_of_the_pictures_shows_the_target_as_often(bench, drawn, monkeypatch, tmp_path):
    seen, real = [], training.evaluation.sweep._draw

    def draw(bench, target, setting, rows, seeds):
        seen.append([row["object"] for row in rows])
        return real(bench, target, setting, rows, seeds)

    monkeypatch.setattr(training.evaluation.sweep, "_draw", draw)
    sweep(bench, "star", SETTINGS[:2], ROWS, SEEDS, tmp_path / "journal")
    assert seen[0].count("star") == 2 and seen[1].count("star") == 4


def test_a_finished_search_is_read_and_draws_nothing(bench, drawn, tmp_path):
    first = sweep(bench, "star", SETTINGS, ROWS, SEEDS, tmp_path / "journal")
    drawn.clear()
    assert sweep(bench, "star", SETTINGS, ROWS, SEEDS, tmp_path / "journal") == first
    assert drawn == []


@pytest.mark.parametrize("trials", [None, 4])
def test_interrupted_at_any_picture_and_started_again_it_goes_on_as_if_it_never_was(
    bench, drawn, monkeypatch, tmp_path, trials
):
    expected = sweep(bench, "star", SETTINGS, ROWS, SEEDS, tmp_path / "whole", trials)
    whole, real = list(drawn), training.evaluation.sweep._draw
    for done in range(len(whole)):
        drawn.clear()
        left = iter(range(done))

        def draw(*arguments, left=left):
            if next(left, None) is None:
                monkeypatch.setattr(training.evaluation.sweep, "_draw", real)
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(training.evaluation.sweep, "_draw", draw)
        with pytest.raises(KeyboardInterrupt):
            sweep(bench, "star", SETTINGS, ROWS, SEEDS, tmp_path / str(done), trials)
        assert sweep(bench, "star", SETTINGS, ROWS, SEEDS, tmp_path / str(done), trials) == expected
        assert [call for n, call in enumerate(drawn) if call not in drawn[:n]] == whole, f"after {done} pictures"


def test_fewer_trials_than_settings_are_chosen_by_the_seed_alone(bench, drawn, tmp_path):
    picked = []
    for n, seed in enumerate((0, 0, 1, 2)):
        drawn.clear()
        sweep(bench, "star", SETTINGS, ROWS, SEEDS, tmp_path / str(n), trials=3, seed=seed)
        picked.append([setting for setting, _ in drawn])
        assert 1 <= len(set(picked[-1])) <= 3
    assert picked[0] == picked[1] and len({tuple(own) for own in picked}) > 1


def test_a_setting_asked_for_twice_is_drawn_once(bench, drawn, tmp_path):
    sweep(bench, "star", SETTINGS[:2], ROWS, SEEDS, tmp_path / "journal", trials=2)
    for trials in (3, 4, 5):
        drawn.clear()
        sweep(bench, "star", SETTINGS, ROWS, SEEDS, tmp_path / "journal", trials=trials, seed=4)
        assert len(set(drawn)) == len(drawn)


def test_other_pictures_or_settings_are_another_search_in_the_same_journal(bench, drawn, tmp_path):
    for options in ({}, {"settings": SETTINGS[:3]}, {"seeds": SEEDS[::-1], "rows": ROWS[::-1]}, {"target": "moon"}):
        drawn.clear()
        named = {"target": "star", "settings": SETTINGS, "rows": ROWS, "seeds": SEEDS} | options
        sweep(bench, journal=tmp_path / "journal", **named)
        assert drawn


def test_one_setting_costs_nothing_and_leaves_no_journal(bench, drawn, tmp_path):
    assert sweep(bench, "star", SETTINGS[:1], ROWS, SEEDS, tmp_path / "journal") == (SETTINGS[0], 0)
    assert drawn == [] and not list(tmp_path.iterdir())


@pytest.fixture
def recipe(tmp_path, make_sae, make_table):
    sae = make_sae()
    make_table(sae).save(tmp_path / "table.safetensors")
    save_sae(sae, tmp_path / "sae", assignment={"star": 3, "neon": 9})

    def make(**options):
        named = {"sae": tmp_path / "sae", "table": tmp_path / "table.safetensors", "output": tmp_path / "out"}
        return Sweep(**(named | {"targets": ("star", "neon"), "images": 3, "steps": 1} | options))

    return make


def test_replacing_needs_no_search_and_no_picture(recipe):
    recipe(edit="replace", assigned=True).run()
    written = json.loads((recipe().output / "settings.json").read_text("utf-8"))
    assert written["images"] == 0
    expected = Setting(1, -1.0, edit="replace", select="assigned")
    assert read_settings(recipe().output / "settings.json") == {"star": expected, "neon": expected}


def test_several_targets_are_searched_and_all_their_pictures_counted(recipe, capsys):
    recipe(assigned=True, scale="norm", strengths=(-1.0, -5.0)).run()
    written = json.loads((recipe().output / "settings.json").read_text("utf-8"))
    assert 8 <= written["images"] <= 12 and f"at {written['images']} images" in capsys.readouterr().err
    for setting in read_settings(recipe().output / "settings.json").values():
        assert (setting.latents, setting.select, setting.scale) == (1, "assigned", "norm")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"edit": "erase"}, "edit 'erase' is unknown"),
        ({"scale": "max"}, "scale 'max' is unknown"),
        ({"targets": ("star", "moons")}, "the nearest are moon"),
        ({"targets": ("moon",), "assigned": True}, "'moon' has no assigned latent"),
        ({"strengths": ()}, "there is nothing to try"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(recipe, options, complaint):
    with pytest.raises(SaeuronError, match=complaint):
        recipe(**options).run()
    assert not recipe().output.exists()


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


def test_the_grid_holds_every_combination_once():
    found = grid([1, 2], [-1.0, -3.0, -9.0], [True, False])
    assert len(found) == len(set(found)) == 12 and Setting(2, -9.0, False) in found
    assert grid([1], [], [True]) == []
