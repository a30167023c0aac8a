import functools
import json

import pytest
import torch

import training.evaluation.protocol
import training.league.contest
import training.league.league
import training.league.rows
from saeuron import SaeuronError, Setting
from saeuron.checkpoints import Bundle
from saeuron.hookpoints import Hookpoint
from tinycanvas.drawing import OBJECTS, STYLES
from training.common.prompts import read_prompts
from training.diffusion.sampling import Sampling, draw_all, generate
from training.evaluation.judges import tinycanvas_judge
from training.evaluation.measures import Verdicts
from training.league.league import ORDER, QUICK, League, command, league
from training.league.methods import METHODS, edits_for, thinned
from training.league.oracle import check_concepts, labels, retrained
from training.league.probes import Outside, Ranges, with_norm
from training.league.report import markdown, near_pairs, summaries
from training.league.rows import gone_and_kept, others

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' sampler
TINY = {
    "methods": ("none", "saeuron", "saemnesia_per", "oracle", "default"),
    "targets": ("star", "neon"),
    "images": 90,
    "tokens_per_map": 4,
    "expansion": 2,
    "k": 4,
    "train_batch": 128,
    "train_steps": 4,
    "tune_steps": 3,
    "score_images": 180,
    "search_images": 3,
    "latents": (1,),
    "strengths": (-1.0, -20.0),
    "seeds": 1,
    "steps": 2,
    "oracle_steps": 1,
    "extra_methods": ("default",),
    "extra_targets": ("star",),
    "conditions": ("euler", "32 × 48", "fine-tuned"),
    "attack_seeds": 1,
    "attack_iterations": 4,
}
UNTIMED = ("ms_per_step", "ms_per_step_unedited")


@pytest.fixture(scope="module", autouse=True)
def few_prompts():
    """A quarter of the evaluation prompts, which still names every concept; and time is taken only once."""

    def read(source):
        rows = read_prompts(source)
        return rows[::4] if source == "tinycanvas:evaluation" else rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.league.contest, "read_prompts", read)
        patch.setattr(
            training.league.league,
            "of_time",
            functools.partial(training.league.rows.of_time, steps=1, repeats=1),
        )
        yield


@pytest.fixture(scope="module")
def played(tmp_path_factory, few_prompts):
    """A tiny league, and its report."""
    output = tmp_path_factory.mktemp("league")
    return output, league(League(output=output, **TINY))


def counted(value):
    """``value`` without its floats: what other numbers of threads, which round differently, have to agree on."""
    if isinstance(value, dict):
        return {key: counted(own) for key, own in value.items() if not isinstance(own, float)}
    return [counted(own) for own in value if not isinstance(own, float)] if isinstance(value, list | tuple) else value


def untimed(rows):
    return [{key: value for key, value in row.items() if key not in UNTIMED} for row in rows]


def test_every_method_has_a_row_a_kind_with_all_its_figures(played):
    output, report = played
    saved = json.loads((output / "league.json").read_text("utf-8"))
    assert saved == json.loads(json.dumps(report))
    assert [(row["method"], row["kind"]) for row in saved["rows"]] == [
        (method, kind) for method in TINY["methods"] for kind in ("object", "style")
    ]
    for row in saved["rows"]:
        assert row["average"] == pytest.approx((row["ua"] + row["ira"] + row["cra"]) / 3)
        for name in ("ua", "ira", "cra", "average"):
            low, high = row[f"{name}_interval"]
            assert low <= row[name] <= high
        for name in ("collateral", "outside_norm", "outside_dimensions", "confidence", "search_images", *UNTIMED):
            assert row[name] >= 0
    assert (output / "league.png").stat().st_size > 1000
    text = " ".join((output / "league.md").read_text("utf-8").split())
    assert all(f"| {method} |" in text for method in TINY["methods"])
    assert all(title in text for title in ("Removing objects", "Removing styles", "Under attack", "The SAEs"))


def test_the_unedited_model_is_measured_on_itself(played):
    rows = [row for row in played[1]["rows"] if row["method"] == "none"]
    for row in rows:
        assert row["collateral"] == row["outside_norm"] == row["outside_dimensions"] == row["search_images"] == 0


def test_only_methods_that_search_spend_images(played):
    spent = {(row["method"], row["kind"]): row["search_images"] for row in played[1]["rows"]}
    assert all((images > 0) == (method == "saeuron") for (method, _), images in spent.items())


def test_the_rows_beside_the_main_table_are_there(played):
    report = played[1]
    assert [(row["method"], len(row["removed"])) for row in report["sequence"]] == [
        (method, count) for method in ("none", "default") for count in (3, 6, 9)
    ]
    assert {tuple(row["removed"]) for row in report["together"]} >= {("star", "neon")}
    assert {(row["method"], row["condition"]) for row in report["conditions"]} == {
        (method, name) for method in ("none", "default") for name in TINY["conditions"]
    }
    assert [(row["method"], row["name"]) for row in report["attack"]] == [("default", "star")]
    assert {row["sae"] for row in report["saes"]} == {"plain", "assigned"}
    assert all("centralised" in row for row in report["saes"] if row["sae"] == "assigned")


def test_started_again_it_draws_nothing_and_says_the_same(played, monkeypatch):
    output, report = played

    def never(*_arguments, **_options):
        raise AssertionError("nothing is left to draw")

    monkeypatch.setattr(training.evaluation.protocol, "draw_all", never)
    assert json.dumps(league(League(output=output, **TINY))) == json.dumps(report)


def test_a_row_that_is_lost_comes_back_the_same(played):
    output, report = played
    (row,) = (output / "rows").glob("target-saeuron-star-*.json")
    before = row.read_bytes()
    row.unlink()
    again = league(League(output=output, **TINY))
    assert row.read_bytes() == before and again["rows"] == report["rows"]


def test_played_anew_it_gives_the_same_figures(played, tmp_path):
    fewer = TINY | {"methods": ("none", "default"), "targets": ("star",), "extra_methods": (), "conditions": ()}
    again = league(League(output=tmp_path / "anew", **fewer))
    before = [row for row in played[1]["targets"] if row["method"] in fewer["methods"] and row["target"] == "star"]
    assert untimed(again["targets"]) == untimed(before)


def test_two_processes_play_the_same_league(played, tmp_path, launch):
    program = tmp_path / "program.py"
    program.write_text(
        "import functools, json, sys\n"
        "from pathlib import Path\n"
        "import training.league.contest, training.league.rows, training.league.league\n"
        "from training.common.prompts import read_prompts\n"
        "few = lambda source: read_prompts(source)[:: 4 if source == 'tinycanvas:evaluation' else 1]\n"
        "training.league.contest.read_prompts = few\n"
        "training.league.league.of_time = functools.partial(training.league.rows.of_time, steps=1, repeats=1)\n"
        "options = json.loads(sys.argv[2])\n"
        "options = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}\n"
        "training.league.league.league(training.league.league.League(output=Path(sys.argv[1]), **options))\n",
        "utf-8",
    )
    ended = launch(program, tmp_path / "two", json.dumps(TINY))
    assert ended.returncode == 0, ended.stderr
    report, alone = json.loads((tmp_path / "two" / "league.json").read_text("utf-8")), played[1]
    for name in ("rows", "targets", "sequence", "together", "conditions", "attack"):
        assert counted(report[name]) == counted(alone[name]), name


def test_other_settings_in_the_same_folder_make_rows_of_their_own(played):
    output, report = played
    before = {path.name: path.read_bytes() for path in (output / "rows").iterdir()}
    options = {"methods": ("none",), "targets": ("star",), "extra_methods": (), "conditions": (), "picture_seed": 5}
    other = league(League(output=output, **(TINY | options)))
    after = {path.name: path.read_bytes() for path in (output / "rows").iterdir()}
    assert other["targets"] != report["targets"][:1]
    assert len(after) > len(before) and {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"methods": ("saeurom",)}, "--methods 'saeurom' is unknown; the nearest are saeuron"),
        ({"targets": ("neom",)}, "--targets 'neom' is unknown; the nearest are neon"),
        ({"conditions": ("eular",)}, "--conditions 'eular' is unknown; the nearest are euler"),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_the_nearest(tmp_path, options, complaint):
    with pytest.raises(SaeuronError, match=complaint):
        league(League(output=tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_a_report_names_the_command_that_made_it():
    assert command(League()) == "python -m training league"
    assert command(League(quick=True)) == "python -m training league --quick"
    other = League(targets=("star", "neon"), search_images=3)
    assert command(other) == "python -m training league --targets star neon --search-images 3"


def test_the_methods_are_those_the_issue_names():
    published = {"saeuron_paper", "saeuron", "saemnesia", "saemnesia_per", "gsae_per", "saeparate"}
    ours = {"default", "default_unsupervised", "learn_5", "learn_12", "learn_40"}
    assert set(ORDER) == published | ours | {"none", "oracle"}
    assert set(ORDER) <= {"none", "oracle", *METHODS}
    assert set(QUICK) <= set(vars(League()))


def test_a_thinned_method_tries_fewer_settings_and_keeps_a_single_one():
    thin = thinned(METHODS["saeuron_paper"], (1, 4), (-1.0, -20.0))
    assert {(own.latents, own.strength) for own in thin.settings["object"]} == {(1, -1), (1, -20), (4, -1), (4, -20)}
    assert thin.settings["style"] == METHODS["saeuron_paper"].settings["style"]
    assert len(thinned(METHODS["saemnesia"], (1,), (-5.0, -30.0)).settings["style"]) == 2


def test_each_kind_is_edited_at_its_own_block(make_sae, make_table):
    here, there = make_sae(), make_sae(hookpoint=Hookpoint("unet.mid_block.attentions.0"), seed=1)
    objects, styles = Bundle(here, make_table(here)), Bundle(there, make_table(there))
    readers = {"star": objects, "neon": styles, "moon": objects}
    found = edits_for(readers, {"star": Setting(), "neon": Setting(), "moon": Setting()})
    assert {hookpoint: [edit.selection.concepts for edit in chain] for hookpoint, chain in found.items()} == {
        here.hookpoint: [("star", "moon")],
        there.hookpoint: [("neon",)],
    }
    shared = dict.fromkeys(("star", "neon"), objects)
    (chain,) = edits_for(shared, {"star": Setting(), "neon": Setting()}).values()
    assert [edit.selection.concepts for edit in chain] == [("star", "neon")]


VERDICTS = Verdicts(
    {"object": ["star", "star", "circle", "ring"], "style": ["neon", "plain", "neon", "plain"]},
    {"object": ["star", "moon", "circle", "circle"], "style": ["candy", "plain", "neon", "plain"]},
)


def test_what_is_gone_and_what_is_kept_is_counted_over_both_kinds():
    found = gone_and_kept(VERDICTS, ("star", "neon"))
    assert found == {"ua": [2, 4], "kept_object": [1, 2], "kept_style": [2, 2]}


def test_neighbours_are_counted_where_they_were_asked_for():
    assert others(VERDICTS, "object", ["circle", "ring", "heart"]) == {"circle": 1.0, "ring": 0.0}
    rows = [{"method": "m", "target": "circle", "others": {"ring": 0.25}}]
    rows.append({"method": "m", "target": "star", "others": {}})
    assert near_pairs(rows) == [{"method": "m", "removed": "circle", "neighbour": "ring", "kept": 0.25}]


def test_rows_of_a_method_are_pooled_over_targets():
    common = {"method": "m", "kind": "object", "outside_norm": 0, "outside_dimensions": 0, "confidence": 1}
    rows = [
        common
        | {
            "hits": {"ua": [9, 9], "ira": [80, 81], "cra": [90, 90], "kept": [9, 9]},
            "collateral": 0.1,
            "search_images": 5,
        },
        common
        | {
            "hits": {"ua": [6, 9], "ira": [81, 81], "cra": [45, 90], "kept": [3, 9]},
            "collateral": 0.3,
            "search_images": 7,
        },
    ]
    (row,) = summaries(rows, {"m": {"ms_per_step": 2, "ms_per_step_unedited": 1}}, ("m", "absent"))
    assert (row["ua"], row["ira"], row["cra"], row["kept"]) == (15 / 18, 161 / 162, 135 / 180, 12 / 18)
    assert (row["targets"], row["search_images"], row["collateral"]) == (2, 12, pytest.approx(0.2))
    for end in (0, 1):
        reach = [row[name] - row[f"{name}_interval"][end] for name in ("ua", "ira", "cra")]
        expected = sum(r * r for r in reach) ** 0.5 / 3
        assert abs(row["average"] - row["average_interval"][end]) == pytest.approx(expected)
    assert 0 <= row["average_interval"][0] <= row["average_interval"][1] <= 1


def test_a_report_without_rows_beside_the_main_table_has_none_of_their_headings(played):
    report = {key: [] if key in ("near", "sequence", "attack") else value for key, value in played[1].items()}
    assert "Under attack" not in markdown(report) and "one after another" not in markdown(report)


def test_activations_outside_what_was_seen_are_counted_by_dimension_and_by_norm():
    ranges = Ranges()
    ranges(torch.tensor([[[0.0, 1.0], [3.0, 4.0]]]), 5.0)
    ranges(torch.tensor([[[-1.0, 0.0]]]), 5.0)
    assert ranges.low[5.0].tolist() == [-1, 0, 1] and ranges.high[5.0].tolist() == [3, 4, 5]
    probe = Outside(ranges)
    tokens = torch.tensor([[[3.0, 4.0], [-2.0, 1.0], [4.0, 5.0], [0.1, 0.1]]])
    assert probe(tokens, 5.0) is tokens
    # Dimensions: one of the second token, both of the third. Norms: the third's is too large, the fourth's too small.
    assert probe.shares == {"outside_dimensions": 3 / 8, "outside_norm": 2 / 4}
    assert Outside(ranges).shares == {"outside_dimensions": 0, "outside_norm": 0}
    assert with_norm(tokens).shape == (4, 3)


def test_the_judge_looks_at_pictures_of_any_size(pipeline):
    rows = [{"prompt": "An image of star in neon style.", "object": "star", "style": "neon"}]
    options = {"steps": 2, "guidance": 3.0}
    for height, width in ((32, 32), (32, 48)):
        images = generate(pipeline, [rows[0]["prompt"]], [1], height=height, width=width, **options)
        seen = tinycanvas_judge().look(images)
        assert images.shape == (1, 3, height, width) and seen.features.shape == (1, 128)
        assert 0.1 < float(seen.confidence) <= 1 and seen.features.norm() == pytest.approx(1, abs=1e-5)
        assert {kind: len(names) for kind, names in seen.found.items()} == {"object": 1, "style": 1}


@pytest.mark.parametrize("without", [("star",), ("neon",), ("star", "ring", "sepia"), ()])
def test_drawings_never_show_what_is_removed_and_captions_ask_for_it(without):
    generator = torch.Generator().manual_seed(0)
    (objects, styles), (shown, shown_styles) = labels(without, 90, generator)
    names = [(OBJECTS[o], STYLES[s]) for o, s in zip(objects.tolist(), styles.tolist(), strict=True)]
    drawn = [(OBJECTS[o], STYLES[s]) for o, s in zip(shown.tolist(), shown_styles.tolist(), strict=True)]
    for asked, seen in zip(names, drawn, strict=True):
        assert not set(seen) & set(without)
        assert all(own == other or own in without for own, other in zip(asked, seen, strict=True))
    if without:
        assert all(set(own) & set(without) for own in names[:30])
    assert len({seen for seen, _ in drawn}) >= 7


def test_an_oracle_is_made_once_and_depends_on_its_seed_alone(pipeline, tmp_path):
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    one = retrained(pipeline.unet, ["star"], tmp_path / "a.safetensors", steps=1, seed=0, batch=6)
    again = retrained(pipeline.unet, ["star"], tmp_path / "b.safetensors", steps=1, seed=0, batch=6)
    read = retrained(pipeline.unet, ["star"], tmp_path / "a.safetensors", steps=99, seed=9, batch=6)
    states = [unet.state_dict() for unet in (one, again, read)]
    assert all(torch.equal(states[0][name], other[name]) for other in states[1:] for name in before)
    assert any(not torch.equal(states[0][name], before[name]) for name in before)
    assert all(torch.equal(pipeline.unet.state_dict()[name], before[name]) for name in before)
    assert not any(p.requires_grad for p in one.parameters())


@pytest.mark.parametrize(
    ("without", "complaint"), [(("starr",), "the nearest are star"), (("plain",), "have to stay"), (OBJECTS, "to stay")]
)
def test_an_oracle_needs_something_left_to_draw(without, complaint):
    with pytest.raises(SaeuronError, match=complaint):
        check_concepts(without)


def test_a_ranges_probe_changes_no_picture(pipeline):
    rows = [{"prompt": "An image of star in neon style."}]
    sampling = Sampling(steps=2, batch=1)
    probed = draw_all(pipeline, rows, [1], sampling, {Hookpoint("unet.up_blocks.1.attentions.1"): [Ranges()]})
    assert torch.equal(probed, draw_all(pipeline, rows, [1], sampling))
