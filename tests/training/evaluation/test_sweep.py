import json

import pytest

import training.evaluation.sweep
from saeuron import SaeuronError, Setting, read_settings, save_sae
from saeuron.checkpoints import Bundle
from training.common.prompts import read_prompts
from training.diffusion.sampling import Sampling
from training.evaluation.judges import tinycanvas_judge
from training.evaluation.measures import Verdicts
from training.evaluation.protocol import Protocol, anchor_rows, paired
from training.evaluation.sweep import Sweep, grid, sweep

ROWS = [{"prompt": name, "object": name, "style": "plain"} for name in ("star",) * 6 + ("heart", "moon") * 6]
IMAGES = len(ROWS)
SETTINGS = grid([1, 2, 4], [-1.0, -9.0], [True])
# UA, IRA, CRA of each setting, in order. The fourth is the best; the fifth never lets go of the star.
QUALITY = [(0.5, 1, 1), (0.6, 1, 1), (0.7, 1, 1), (0.9, 0.95, 1), (0.0, 1, 1), (0.7, 1, 1)]


@pytest.fixture
def protocol():
    """Each of `ROWS` is drawn once in a search of so many images."""
    return Protocol(None, tinycanvas_judge(), ROWS, (), Sampling(steps=1))


@pytest.fixture
def bundle(make_sae, make_table):
    return Bundle(make_sae(), make_table(make_sae()))


@pytest.fixture
def search(protocol, bundle):
    """`sweep` with all that is the same in every test."""

    def run(target="star", settings=SETTINGS, journal=None, rows=ROWS, images=IMAGES, **options):
        return sweep(protocol.of(rows), bundle, target, settings, images, journal, **options)

    return run


@pytest.fixture
def drawn(monkeypatch):
    """Settings are drawn and judged as `QUALITY` says; the list holds each setting drawn and how many pictures."""
    calls = []

    def tried(protocol, _bundle, _target, setting):
        rows = protocol.rows
        assert len(set(protocol.seeds)) == len(rows)
        calls.append((setting, len(rows)))
        ua, ira, cra = QUALITY[SETTINGS.index(setting)]
        found = {"object": [row["object"] for row in rows], "style": ["plain"] * len(rows)}
        for kind, names, share, wrong in (
            ("object", ["star"], 1 - ua, "moon"),
            ("object", ["heart", "moon"], ira, "star"),
            ("style", ["star", "heart", "moon"], cra, "neon"),
        ):
            own = [n for n, row in enumerate(rows) if row["object"] in names]
            # Of the second part so many are right that with those of the first they come to the share of all.
            before = sum(row["object"] in names for row in ROWS) - len(own) if len(rows) > IMAGES // 3 else 0
            right = round(share * (before + len(own))) - round(share * before)
            for n in own[right:]:
                found[kind][n] = wrong
        return Verdicts(protocol.asked, found)

    monkeypatch.setattr(training.evaluation.sweep, "tried", tried)
    return calls


def test_the_setting_with_the_best_worst_measure_wins_and_the_cost_is_told(search, drawn, tmp_path):
    found, images = search(journal=tmp_path / "journal")
    assert found == SETTINGS[3]
    assert images == sum(count for _, count in drawn)


def test_a_hopeless_setting_is_given_up_after_a_third_of_its_pictures(search, drawn, tmp_path):
    settings = [SETTINGS[3], SETTINGS[4], SETTINGS[5]]
    assert search(settings=settings, journal=tmp_path / "journal")[1] == 18 + 6 + 18
    assert drawn == [(settings[0], 6), (settings[0], 12), (settings[1], 6), (settings[2], 6), (settings[2], 12)]


def test_every_third_of_the_pictures_shows_the_target_as_often(search, drawn, monkeypatch, tmp_path):
    seen, real = [], training.evaluation.sweep.tried

    def tried(protocol, *arguments):
        seen.append([row["object"] for row in protocol.rows])
        return real(protocol, *arguments)

    monkeypatch.setattr(training.evaluation.sweep, "tried", tried)
    search(settings=SETTINGS[:2], journal=tmp_path / "journal")
    assert seen[0].count("star") == 2 and seen[1].count("star") == 4


def test_a_finished_search_is_read_and_draws_nothing(search, drawn, tmp_path):
    first = search(journal=tmp_path / "journal")
    drawn.clear()
    assert search(journal=tmp_path / "journal") == first
    assert drawn == []


@pytest.mark.parametrize("trials", [None, 4])
def test_interrupted_at_any_picture_and_started_again_it_goes_on_as_if_it_never_was(
    search, drawn, monkeypatch, tmp_path, trials
):
    expected = search(journal=tmp_path / "whole", trials=trials)
    whole, real = list(drawn), training.evaluation.sweep.tried
    for done in range(len(whole)):
        drawn.clear()
        left = iter(range(done))

        def tried(*arguments, left=left):
            if next(left, None) is None:
                monkeypatch.setattr(training.evaluation.sweep, "tried", real)
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(training.evaluation.sweep, "tried", tried)
        with pytest.raises(KeyboardInterrupt):
            search(journal=tmp_path / str(done), trials=trials)
        assert search(journal=tmp_path / str(done), trials=trials) == expected
        assert [call for n, call in enumerate(drawn) if call not in drawn[:n]] == whole, f"after {done} pictures"


def test_fewer_trials_than_settings_are_chosen_by_the_seed_alone(search, drawn, tmp_path):
    picked = []
    for n, seed in enumerate((0, 0, 1, 2)):
        drawn.clear()
        search(journal=tmp_path / str(n), trials=3, seed=seed)
        picked.append([setting for setting, _ in drawn])
        assert 1 <= len(set(picked[-1])) <= 3
    assert picked[0] == picked[1] and len({tuple(own) for own in picked}) > 1


def test_a_setting_asked_for_twice_is_drawn_once(search, drawn, tmp_path):
    search(settings=SETTINGS[:2], journal=tmp_path / "journal", trials=2)
    for trials in (3, 4, 5):
        drawn.clear()
        search(journal=tmp_path / "journal", trials=trials, seed=4)
        assert len(set(drawn)) == len(drawn)


def test_other_pictures_or_settings_are_another_search_in_the_same_journal(search, drawn, tmp_path):
    others = ({"settings": SETTINGS[:3]}, {"anchor_seed": 1}, {"rows": ROWS[::-1]}, {"images": 15}, {"target": "moon"})
    for options in ({}, *others):
        drawn.clear()
        search(journal=tmp_path / "journal", **options)
        assert drawn


def test_one_setting_costs_nothing_and_leaves_no_journal(search, drawn, tmp_path):
    assert search(settings=SETTINGS[:1], journal=tmp_path / "journal") == (SETTINGS[0], 0)
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
