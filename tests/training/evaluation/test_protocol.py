"""The commands on a user's own model and own kinds of concepts: a small random Stable Diffusion, judged by CLIP."""

import json
from types import SimpleNamespace

import pytest
import torch

import training.diffusion.alike
import training.evaluation.protocol
from saeuron import ConceptStatistics, SaeuronError, Setting, default_setting, save_sae, write_settings
from saeuron.checkpoints import Bundle, save_bundle
from saeuron.concept_table import WholeTable
from training.common.bundles import chosen, open_bundle, targets
from training.diffusion.load import load_model
from training.evaluation.attack import check_attackable, expected, to_latents
from training.evaluation.commands import Attack, Evaluate, Generate, Nudity, Sweep, UnlearnCanvas

KINDS = {"cat": "animal", "dog": "animal", "fox": "animal", "oil": "medium", "ink": "medium"}
PROMPTS = [
    {"prompt": f"a {animal} in {medium}", "concepts": {"animal": animal, "medium": medium}}
    for animal in ("cat", "dog", "fox")
    for medium in ("oil", "ink")
]
OWN = Setting(latents=32, strength=-20.0)


@pytest.fixture
def sae(make_sae):
    return make_sae()


@pytest.fixture
def table(sae):
    statistics = ConceptStatistics(KINDS, range(1, 1000, 100), sae.n_latents, sae.fingerprint, sae.origin)
    statistics.sums = torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(0))
    statistics.counts += 1
    return WholeTable(statistics)


@pytest.fixture
def bundle(tmp_path, sae, table):
    """A bundle that says how a cat is removed."""
    save_bundle(Bundle(sae, table, {"cat": OWN}), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


@pytest.fixture(scope="module")
def model(small_sd):
    return load_model(str(small_sd))


@pytest.fixture
def drawn(monkeypatch, model):
    """The small model is loaded once for all tests; the list holds the prompt of each picture drawn by the protocol."""
    prompts, real, parting = [], training.evaluation.protocol.draw_all, training.diffusion.alike.denoise

    def draw(pipeline, rows, seeds, sampling, edits=None):
        prompts.extend(row["prompt"] for row in rows)
        return real(pipeline, rows, seeds, sampling, edits)

    def denoise(pipeline, texts, *arguments):
        prompts.extend(texts)
        return parting(pipeline, texts, *arguments)

    monkeypatch.setattr(training.evaluation.protocol, "open_model", lambda *_: model)
    monkeypatch.setattr(training.evaluation.protocol, "draw_all", draw)
    monkeypatch.setattr(training.diffusion.alike, "denoise", denoise)
    return prompts


@pytest.fixture
def command(tmp_path, small_sd, clip_folder, bundle, drawn):
    """A command's options: the bundle alone, the small model at 64 × 64 pixels, the prompts and CLIP."""
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)), "utf-8")

    def make(kind, **options):
        named = {"sae": bundle, "model": str(small_sd), "output": tmp_path / "out", "judge": f"clip:{clip_folder}"}
        named |= {"prompts": str(tmp_path / "prompts.jsonl"), "steps": 2, "height": 64, "width": 64, "batch": 6}
        return kind(**(named | options))

    return make


def test_own_kinds_of_concepts_are_evaluated_on_an_own_model_by_a_bundle_alone(command, tmp_path, drawn):
    command(Evaluate, seeds=1, targets=("cat", "ink")).run()
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))
    assert list(report["base"]) == ["animal", "medium"] and report["images"] == 6
    assert [(own["name"], own["kind"]) for own in report["targets"]] == [("cat", "animal"), ("ink", "medium")]
    for own in report["targets"]:
        assert all(0 <= own[key] <= 1 for key in ("ua", "ira", "cra", "kept"))
    assert 6 <= len(drawn) <= 3 * 6, "a picture that an edit leaves alone is the unedited one"
    text = " ".join((tmp_path / "out" / "evaluation.md").read_text("utf-8").split())
    assert "| cat | animal |" in text and "Unedited model on the same 6 seeds: animal" in text


def test_an_evaluation_that_was_interrupted_draws_only_what_is_missing(command, tmp_path, drawn, capsys):
    command(Evaluate, seeds=1, targets=("cat",)).run()
    first = json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))
    drawn.clear()
    command(Evaluate, seeds=1, targets=("cat", "ink")).run()
    assert len(drawn) == 6
    again = json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))
    assert again["base"] == first["base"] and again["targets"][0] == first["targets"][0]
    for other in ({"judge_prompts": ("animal={name}",)}, {"latents": 3}, {"steps": 3}):
        with pytest.raises(SaeuronError, match=r"was made with .* and now it is .*: choose another --output"):
            command(Evaluate, seeds=1, targets=("cat",), **other).run()


def test_a_setting_for_an_own_kind_is_searched_on_an_own_model(command, tmp_path, drawn):
    command(Sweep, targets=("fox",), latents=(1, 8), strengths=(-5.0,), per_timestep=(True,), images=6).run()
    found = json.loads((tmp_path / "out" / "settings.json").read_text("utf-8"))
    assert found["concepts"].keys() == {"fox"} and found["images"] == len(drawn) > 6
    assert Setting.parse(found["concepts"]["fox"]).latents in (1, 8)


def test_an_own_kind_is_attacked_on_an_own_model(command, tmp_path, drawn):
    command(Attack, seeds=1, targets=("cat",), tokens=2, iterations=2, tries=1).run()
    (found,) = json.loads((tmp_path / "out" / "attack.json").read_text("utf-8"))["targets"]
    assert (found["name"], found["kind"], found["images"]) == ("cat", "animal", 2)
    assert all(0 <= found[f"ua_{when}"] <= 1 for when in ("before", "random", "after"))
    assert len(found["prefixes"]) == 2


@pytest.mark.parametrize("kind", [Evaluate, Attack, Generate, Nudity, UnlearnCanvas])
@pytest.mark.parametrize("assigned", [False, True])
def test_a_concept_without_a_setting_is_removed_as_the_node_removes_it(kind, assigned, tmp_path, sae, table):
    if assigned:
        sae.config = {"assignment": {name: n for n, name in enumerate(KINDS)}}
    save_bundle(Bundle(sae, table, {"cat": OWN}), tmp_path / "own.safetensors")
    needed = {"output": tmp_path, "model": "m", "prompts": tmp_path, "judge_style": tmp_path, "judge_object": tmp_path}
    known = kind.__dataclass_fields__
    path = tmp_path / "own.safetensors"
    options = kind(sae=path, **{name: value for name, value in needed.items() if name in known})
    own = open_bundle(options)
    found = chosen(own, ["cat", "dog", "ink"], options)
    assert found == {"cat": OWN} | {name: default_setting(own.sae, own.table, name) for name in ("dog", "ink")}
    options.strength, options.per_timestep = -7.0, False
    changed = chosen(own, ["cat"], options)["cat"]
    assert (changed.latents, changed.strength, changed.per_timestep) == (OWN.latents, -7.0, False)


def test_a_settings_file_wins_over_the_bundle_and_the_bundle_over_the_default(command, tmp_path, bundle, capsys):
    write_settings(tmp_path / "settings.json", {"dog": Setting(5), "oil": Setting(6)})
    options = command(Evaluate, seeds=1, settings=tmp_path / "settings.json", dry_run=False)
    own = open_bundle(options)
    assert list(targets(own, (), options)) == ["dog", "oil"], "without --targets those of the file are meant"
    options.targets = ("dog", "cat", "ink")
    assert targets(own, options.targets, options) == {
        "dog": Setting(5),
        "cat": OWN,
        "ink": default_setting(own.sae, own.table, "ink"),
    }
    options.run()
    told = capsys.readouterr().err.splitlines()
    assert f"setting of dog: from {tmp_path}/settings.json" in told
    assert f"setting of cat: from {bundle}" in told
    assert "setting of ink: none of its own, so the default" in told


def test_a_folder_with_its_table_and_settings_beside_is_enough(tmp_path, sae, table, command):
    save_sae(sae, tmp_path / "sae")
    table.save(tmp_path / "sae" / "table.safetensors")
    write_settings(tmp_path / "sae" / "settings.json", {"fox": Setting(2)})
    command(Evaluate, seeds=1, sae=tmp_path / "sae").run()
    (own,) = json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))["targets"]
    assert (own["name"], own["setting"]["latents"]) == ("fox", 2)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"judge": None}, "need a judge: give --judge `tinycanvas`, clip:FOLDER"),
        ({"judge": "tinycanvas"}, "does not say its object and style"),
        (
            {"labels": ("animal",), "targets": ("ink",)},
            "'ink' is of the kind medium, and prompts and judge tell animal",
        ),
        ({"hookpoint": "unet.up_blocks.9"}, "hookpoint 'unet.up_blocks.9' is not in this model; .* as --model"),
        ({"hookpoint": "unet.up_blocks.3.attentions.0"}, "width 128 and the hookpoint gives 32: it belongs to another"),
        ({"targets": ("cats",)}, "concept 'cats' is not in the table; the nearest are cat"),
        ({"judge_prompts": ("animal=a cat",)}, "has to have {name} in it"),
    ],
)
@pytest.mark.parametrize("kind", [Evaluate, Sweep, Attack])
def test_what_does_not_fit_is_refused_before_anything_is_drawn(kind, options, complaint, command, drawn, tmp_path):
    with pytest.raises(SaeuronError, match=complaint):
        command(kind, **({"targets": ("cat",)} | options)).run()
    assert drawn == [] and not (tmp_path / "out").exists()


def test_a_dry_run_counts_pictures_and_writes_nothing(command, tmp_path, drawn, capsys):
    command(Evaluate, seeds=2, targets=("cat", "ink"), dry_run=True).run()
    assert "36 pictures" in capsys.readouterr().out and drawn == [] and not (tmp_path / "out").exists()


def test_pictures_become_the_latents_that_draw_them(pipeline, model):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    latents = to_latents(pipeline, images)
    assert torch.equal(pipeline.vae.decode(latents).sample / 2 + 0.5, (images * 2 - 1) / 2 + 0.5)
    assert to_latents(model, torch.rand(2, 3, 64, 64)).shape == (2, 4, 8, 8)


def test_what_a_model_should_predict_depends_on_what_it_was_trained_to(pipeline, model):
    clean, noise = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(expected(model, clean, noise, 0.6, 0.8), noise)
    assert torch.equal(expected(pipeline, clean, noise, 0.6, 0.8), 0.6 * noise - 0.8 * clean)
    other = SimpleNamespace(scheduler=SimpleNamespace(config=SimpleNamespace(prediction_type="flow")))
    with pytest.raises(SaeuronError, match="a model that predicts flow cannot be attacked"):
        expected(other, clean, noise, 0.6, 0.8)


@pytest.mark.parametrize("pipeline", [{"unet": None, "text_encoder_2": None}, {"transformer": None}])
def test_sdxl_and_transformers_are_told_that_they_cannot_be_attacked(pipeline):
    with pytest.raises(SaeuronError, match=r"the one text encoder of an SD 1\.x or 2\.x"):
        check_attackable(SimpleNamespace(**pipeline))
