"""eval-unlearn's own runner, by its own command, with this project's wheel beside it."""

import importlib.util
import json
from pathlib import Path

import pytest
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

from tinycanvas.model import WEIGHTS, load_pipeline
from training.evaluation.harness import Technique

if importlib.util.find_spec("eval_unlearn") is None:
    pytest.skip("not installed here: run `make test-peers`", allow_module_level=True)

METRIC = {"target_concept": "neon", "prompts": "prompts.jsonl", "batch_size": 5}


@pytest.fixture
def benchmark(installed, run, tmp_path):
    """``benchmark(technique, metric)`` are the report of ``eval-unlearn run`` and the pictures that lie beside it."""
    rows = [
        {"prompt": f"An image of {thing} in {style} style.", "object": thing, "style": style}
        for thing in ("star", "heart", "moon", "cross")
        for style in ("neon", "sketch")
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")

    def go(technique: dict, metric: dict = METRIC, name: str = "saeuron_bench", code: int = 0):
        output = tmp_path / f"out-{len(list(tmp_path.glob('out-*')))}"
        config = {"technique": {"name": name, "config": technique}, "metric": {"name": "ua_ira_cra", "config": metric}}
        (tmp_path / "config.json").write_text(json.dumps(config | {"output_dir": str(output)}), "utf-8")
        told = run(installed / "python", "-m", "eval_unlearn.cli", "run", "-c", "config.json", cwd=tmp_path, code=code)
        if code:
            return told
        (report,) = output.glob("*_latest_report.json")
        pictures = {
            path.parent.name + path.stem.rpartition("_")[2]: path.read_bytes() for path in output.rglob("*.png")
        }
        return json.loads(report.read_text("utf-8")), pictures

    return go


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """TinyCanvas's UNet and text encoder as a diffusers folder, with a random VAE that fits them."""
    own, path = load_pipeline(), tmp_path_factory.mktemp("model")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(latent_channels=12, block_out_channels=(32, 32), sample_size=32, **blocks)
    parts = own.components | {"vae": vae, "scheduler": DDIMScheduler.from_config(own.scheduler.config)}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(path)
    return path


def fractions(report: dict) -> dict[str, float]:
    details = report["metric_result"]["details"]
    return {name: details[name]["value"] for name in ("ua", "ira", "cra", "kept")}


def test_it_lists_the_technique_and_the_metric(installed, run, tmp_path):
    told = run(installed / "python", "-m", "eval_unlearn.cli", "plugins", cwd=tmp_path)
    techniques, metrics = told.split("Techniques:")[1].split("Metrics:")
    assert "saeuron_bench" in techniques.split() and "ua_ira_cra" in metrics.split()


def test_its_runner_measures_a_removal_on_tinycanvas(benchmark):
    (before, plain), (after, edited) = benchmark({}), benchmark({"erase_concept": "neon"})
    assert fractions(before) == {"ua": 0.0, "ira": 1.0, "cra": 1.0, "kept": 1.0}
    assert before["erase_concept"] is None and after["erase_concept"] == "neon"
    # Four pictures each way: one may go wrong without any fault here.
    assert fractions(after)["ua"] >= 0.75 and fractions(after)["ira"] >= 0.75 and fractions(after)["cra"] >= 0.75
    assert after["metric_result"]["value"] == pytest.approx(sum(fractions(after)[m] for m in ("ua", "ira", "cra")) / 3)
    assert plain.keys() == edited.keys() == {f"{category}{n}" for category in ("target", "retain") for n in range(4)}


def test_our_metric_measures_a_technique_of_its_own(benchmark, folder):
    sampling = {"model_id": str(folder), "num_inference_steps": 2, "device": "cpu"}
    report, pictures = benchmark(sampling, name="free_run")
    totals = {name: report["metric_result"]["details"][name]["total"] for name in ("ua", "ira", "cra")}
    assert totals == {"ua": 4, "ira": 4, "cra": 8} and len(pictures) == 8


def test_our_technique_takes_any_diffusers_folder_and_an_sae_by_its_path(folder):
    sampling = {"model_id": str(folder), "num_inference_steps": 2}
    sae = str(WEIGHTS.parent / "saes" / "tinycanvas.safetensors")
    plain, edited = (Technique(**sampling, sae=sae, erase_concept=names) for names in ("", "neon"))
    prompts = ["An image of star in neon style."]
    assert plain.generate(prompts, seed=1)[0].tobytes() != edited.generate(prompts, seed=1)[0].tobytes()


def test_a_misspelt_concept_ends_the_run_with_its_nearest_names(benchmark):
    told = benchmark({"erase_concept": "neonn"}, code=1)
    assert "Run failed." in told and "SaeuronError" in told and "neon" in told.rsplit("SaeuronError", 1)[1]
