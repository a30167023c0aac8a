import json
import sys

import pytest
import torch
from PIL import Image

import training.evaluation.protocol
import training.evaluation.unlearncanvas
from saeuron import ConceptStatistics, SaeuronError, Setting, save_sae, write_settings
from saeuron.concept_table import WholeTable
from training.common.bundles import open_bundle
from training.diffusion.load import load_model
from training.evaluation.canvas import NAMES, PLAIN, kind_of, markdown, pictures, summary
from training.evaluation.fid import load_metric
from training.evaluation.unlearncanvas import UnlearnCanvas, plan, run

CONCEPTS = {"Bears": "object", "Architectures": "object", "Van Gogh": "style", "Abstractionism": "style"}


@pytest.fixture
def bench(tmp_path, small_sd, make_sae, vit_weights):
    """A folder with an SAE for the small model, its table of four concepts, and two judges at random."""
    sae = make_sae()
    save_sae(sae, tmp_path / "sae")
    statistics = ConceptStatistics(CONCEPTS, range(1, 1000, 100), sae.n_latents, sae.fingerprint, sae.origin)
    statistics.sums = torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(0))
    statistics.counts += 1
    table = WholeTable(statistics)
    table.save(tmp_path / "table.safetensors")
    for kind, names in NAMES.items():
        torch.save({"model_state_dict": vit_weights(len(names))}, tmp_path / f"{kind}.pth")

    def make(**options):
        named = {"sae": tmp_path / "sae", "table": tmp_path / "table.safetensors", "output": tmp_path / "out"}
        named |= {"judge_style": tmp_path / "style.pth", "judge_object": tmp_path / "object.pth"}
        named |= {"model": str(small_sd), "steps": 2, "height": 64, "width": 64, "limit": 2, "batch": 2}
        return UnlearnCanvas(**(named | {"latents": 32, "strength": -20.0} | options))

    return make


@pytest.fixture
def once(monkeypatch, small_sd):
    """The small model loaded once for a whole test; returns the list of pictures drawn, by their prompts."""
    pipeline, drawn, real = load_model(str(small_sd)), [], training.evaluation.protocol.draw_all

    def draw(pipeline, rows, seeds, sampling, edits=None):
        drawn.extend((row["prompt"], seed) for row, seed in zip(rows, seeds, strict=True))
        return real(pipeline, rows, seeds, sampling, edits)

    monkeypatch.setattr(training.evaluation.protocol, "open_model", lambda *_: pipeline)
    monkeypatch.setattr(training.evaluation.protocol, "draw_all", draw)
    return drawn


def test_the_benchmark_is_20_objects_in_50_styles_and_none_from_5_seeds():
    assert (len(NAMES["object"]), len(NAMES["style"])) == (20, 51)
    assert all(list(names) == sorted(set(names)) for names in NAMES.values()), "the order of the classifiers' labels"
    rows, seeds = pictures((188, 288, 588, 688, 888))
    assert len(rows) == len(set(seeds)) == 20 * 51 * 5
    prompts = [row["prompt"] for row in rows]
    assert prompts.count("An image of Bears in Van Gogh style.") == prompts.count("An image of Bears.") == 5
    assert {(row["object"], row["style"]) for row in rows} == {(o, s) for o in NAMES["object"] for s in NAMES["style"]}


def test_a_limit_picks_from_all_and_leaves_each_picture_its_seed():
    every, picked = (list(zip(*pictures((188, 288), limit), strict=True)) for limit in (None, 40))
    assert len(picked) == 40 and all(pair in every for pair in picked)
    assert min(len({row[kind] for row, _ in picked}) for kind in ("object", "style")) > 10
    assert all(pair in picked for pair in zip(*pictures((188, 288), 20), strict=True)), "more pictures add to fewer"
    assert len(pictures((188,), limit=10**6)[0]) == 20 * 51
    for wrong in ({"seeds": ()}, {"seeds": (188,), "limit": 0}):
        with pytest.raises(SaeuronError, match="--limit has to be at least 1"):
            pictures(**wrong)


def test_names_are_told_apart_and_near_ones_offered():
    assert kind_of("Van_Gogh") == "style" and kind_of("Sea") == "object"
    with pytest.raises(SaeuronError, match="'Bear' is no concept of UnlearnCanvas; the nearest are Bears"):
        kind_of("Bear")
    with pytest.raises(SaeuronError, match="no concept"):
        kind_of(PLAIN)


def result(name, targets, kind, objects, styles, fid=None):
    return {"name": name, "targets": targets, "kind": kind, "found": {"object": objects, "style": styles}, "fid": fid}


def test_the_report_counts_by_the_book_and_averages_over_targets():
    rows = [{"object": o, "style": s} for o, s in (("Bears", "Monet"), ("Cats", "Monet"), ("Bears", "Winter"))]
    objects, styles = ["Bears", "Cats", "Bears"], ["Monet", "Monet", "Winter"]
    base = result("base", [], "", objects, ["Monet", "Winter", "Winter"], fid=12.0)
    bears = result("Bears", ["Bears"], "object", ["Cats", "Cats", "Bears"], styles, fid=34.5)
    cats = result("Cats", ["Cats"], "object", ["Cats", "Bears", "Bears"], styles)
    report = summary(rows, [base, bears, cats])
    assert [report["base"][kind]["hits"] for kind in ("object", "style")] == [3, 2]
    ua, ira, cra = (report["targets"][0][key] for key in ("ua", "ira", "cra"))
    assert [(r["hits"], r["total"]) for r in (ua, ira, cra)] == [(1, 2), (1, 1), (3, 3)]
    (mean,) = report["means"]
    assert (mean["name"], mean["kind"]) == ("all 2", "object")
    assert [(mean[key]["hits"], mean[key]["total"]) for key in ("ua", "ira", "cra")] == [(2, 3), (2, 3), (6, 6)]
    lines = [" ".join(line.split()) for line in markdown(report).splitlines()]
    assert lines[2].startswith("| Bears | object | 50.0% (") and lines[2].endswith("| 34.50 |")
    assert lines[4].startswith("| all 2 | object |") and lines[4].endswith("| – |")
    assert lines[-1].endswith("FID 12.00.")


def test_of_a_sequence_all_removed_so_far_are_counted_and_nothing_is_averaged():
    rows = [{"object": o, "style": "Monet"} for o in ("Bears", "Cats", "Dogs")]
    found = [["Cats", "Cats", "Dogs"], ["Cats", "Dogs", "Dogs"]]
    steps = [["Bears"], ["Bears", "Cats"]]
    results = [result(f"0{n}", steps[n], "object", found[n], ["Monet"] * 3) for n in range(2)]
    report = summary(rows, [result("base", [], "", ["Bears", "Cats", "Dogs"], ["Monet"] * 3), *results])
    assert [entry["ua"]["hits"] / entry["ua"]["total"] for entry in report["targets"]] == [1, 1]
    assert [entry["ira"]["total"] for entry in report["targets"]] == [2, 1] and report["means"] == []


def test_a_report_in_which_no_picture_shows_the_target_is_valid_json():
    rows = [{"object": "Cats", "style": "Monet"}]
    base = result("base", [], "", ["Cats"], ["Monet"])
    report = summary(rows, [base, result("Bears", ["Bears"], "object", ["Cats"], ["Monet"])])
    assert report["targets"][0]["ua"]["value"] is None
    json.dumps(report, allow_nan=False)
    assert "| – |" in " ".join(markdown(report).splitlines()[2].split())


def test_the_whole_protocol_runs_on_two_pictures(bench, tmp_path, once):
    report = run(bench())
    assert report["images"] == 2 and [entry["name"] for entry in report["targets"]] == [
        "Bears",
        "Architectures",
        "Van_Gogh",
        "Abstractionism",
    ]
    assert len(once) == 5 * 2 and set(once[2:4]) == set(once[:2]), "every target is drawn from the same noise"
    for entry in report["targets"]:
        assert entry["ua"]["total"] + entry["ira"]["total"] == entry["cra"]["total"] == 2
    saved = json.loads((tmp_path / "out" / "unlearncanvas.json").read_text("utf-8"))
    assert saved == json.loads(json.dumps(report))
    assert "| Van_Gogh | style |" in " ".join((tmp_path / "out" / "unlearncanvas.md").read_text("utf-8").split())
    config = json.loads((tmp_path / "out" / "unlearncanvas.config.json").read_text("utf-8"))
    assert (config["guidance"], config["seeds"]) == (9.0, [188, 288, 588, 688, 888])


def test_started_again_it_draws_only_what_is_missing(bench, tmp_path, once):
    first = run(bench(targets=("Bears",)))
    assert len(once) == 2 * 2
    second = run(bench(targets=("Bears", "Van Gogh")))
    assert len(once) == 3 * 2 and second["targets"][0] == first["targets"][0]
    run(bench(targets=("Van_Gogh", "Bears"), save_images=True))
    assert len(once) == 3 * 2


@pytest.mark.parametrize("other", [{"steps": 3}, {"seeds": (188,)}, {"strength": -1.0}, {"paper_exact": True}])
def test_results_made_with_other_settings_are_refused_by_name(bench, once, other):
    run(bench(targets=("Bears",)))
    with pytest.raises(SaeuronError, match=r"was made with .* and now it is .*: choose another --output"):
        run(bench(targets=("Bears",), **other))


def test_a_sequence_removes_one_after_another(bench, tmp_path, once):
    report = run(bench(targets=("Bears", "Architectures"), sequence=True, save_images=True))
    assert [entry["name"] for entry in report["targets"]] == ["01-Bears", "02-Architectures"]
    kept = sorted(path.relative_to(tmp_path / "out" / "images").as_posix() for path in tmp_path.rglob("*.png"))
    assert kept == [f"{name}/0000{n}.png" for name in ("01-Bears", "02-Architectures", "base") for n in range(2)]
    pixels = [(tmp_path / "out" / "images" / name / "00000.png").read_bytes() for name in ("base", "02-Architectures")]
    assert pixels[0] != pixels[1]


def test_settings_are_found_under_either_way_of_writing_a_name(bench, tmp_path):
    tuned = {"Van_Gogh": Setting(latents=3, strength=-2.0), "Bears": Setting(latents=4)}
    write_settings(tmp_path / "settings.json", tuned)
    config = bench(settings=tmp_path / "settings.json", latents=None, strength=None)
    assert [(entry.name, entry.settings) for entry in plan(config, open_bundle(config))] == [
        ("Van_Gogh", {"Van Gogh": tuned["Van_Gogh"]}),
        ("Bears", {"Bears": tuned["Bears"]}),
    ]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"targets": ("Bear",)}, "no concept of UnlearnCanvas; the nearest are Bears"),
        ({"targets": ("Cats",)}, "concept 'Cats' is not in the table"),
        ({"targets": ("Bears", "Van Gogh"), "sequence": True}, "give --targets of one kind"),
        ({"limit": 0}, "--limit has to be at least 1"),
        ({"judge_style": "object.pth"}, "tells 20 labels apart and the task has 51"),
        ({"reference": "."}, "holds 0 pictures"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(bench, tmp_path, once, options, complaint):
    paths = {key: tmp_path / value for key, value in options.items() if key in ("judge_style", "reference")}
    with pytest.raises(SaeuronError, match=complaint):
        run(bench(**(options | paths)))
    assert once == [] and not (tmp_path / "out").exists()


class Metric:
    """In the place of torchmetrics' FID: keeps what it is given."""

    device = "cpu"

    def reset(self):
        self.seen = {True: 0, False: 0}

    def update(self, images, real):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 64, 64)
        self.seen[real] += len(images)

    def compute(self):
        return torch.tensor(100.0 * self.seen[True] + self.seen[False])


def test_fid_is_taken_of_pictures_in_a_style_that_show_no_target(bench, tmp_path, once, monkeypatch):
    monkeypatch.setattr(training.evaluation.unlearncanvas, "load_metric", lambda *_: Metric())
    for style, thing, count in (("Monet", "Bears", 3), ("Monet", "Cats", 4), (PLAIN, "Cats", 5)):
        for n in range(count):
            path = tmp_path / "real" / style / thing / f"{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (80, 96)).save(path)
    report = run(bench(targets=("Bears",), limit=12, steps=1, seeds=(188,), reference=tmp_path / "real"))
    rows, _ = pictures((188,), limit=12)
    styled = [row for row in rows if row["style"] != PLAIN]
    assert report["base"]["fid"] == 100 * 7 + len(styled)
    assert report["targets"][0]["fid"] == 100 * 4 + sum(row["object"] != "Bears" for row in styled)


def test_fid_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(SaeuronError, match="pip install torchmetrics torch-fidelity"):
        load_metric(None, "cpu")
