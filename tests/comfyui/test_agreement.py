"""The two hosts agree: the same model, seed and edit give the same activations and the same verdicts."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saeuron import build_edits, choose_settings, load_sae
from saeuron.checkpoints import load_bundle
from training.diffusion.hook import editing, hooked
from training.diffusion.load import load_model
from training.diffusion.sampling import generate
from training.evaluation.judges import tinycanvas_judge

INSIDE = Path(__file__).parent / "inside"
# The file is tuned to choose latents once for all timesteps, and so does the node.
SAE = Path(__file__).parents[2] / "tinycanvas" / "saes" / "tinycanvas.safetensors"
PROMPTS = ["An image of heart in neon style.", "An image of moon in sepia style.", "An image of ring in mosaic style."]
pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def comfyui_results(comfyui, tmp_path_factory):
    output = tmp_path_factory.mktemp("agreement") / "comfyui.safetensors"
    environment = os.environ | {"COMFYUI_PATH": str(comfyui.path), "PYTHONPATH": str(INSIDE)}
    command = [str(comfyui.python), str(INSIDE / "host_run.py"), str(output)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return load_file(output)


@pytest.fixture(scope="module")
def edit():
    bundle = load_bundle(SAE)
    settings = choose_settings(bundle.sae, bundle.table, ["neon"], bundle.settings)
    return build_edits(bundle.sae, bundle.table, settings)[0]


@pytest.mark.parametrize("name", ["plain", "edited"])
def test_one_call_of_the_model_agrees(comfyui_results, edit, name):
    pipeline = load_model("tinycanvas")
    pipeline._guidance_scale = 1.0  # set by its own call, which this goes around
    taps = editing({load_sae(SAE).hookpoint: [edit]}) if name == "edited" else {}
    tokens = pipeline.tokenizer(
        PROMPTS[0], padding="max_length", max_length=pipeline.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    with torch.no_grad(), hooked(pipeline, taps):
        context = pipeline.text_encoder(tokens).last_hidden_state.expand(2, -1, -1)
        velocity = pipeline.unet(comfyui_results["call.x"], torch.tensor(500), context).sample
    found = comfyui_results[f"call.{name}"]
    # The hosts' attention and normalisation round differently in float32.
    assert (found - velocity).norm() / velocity.norm() < 1e-3


@pytest.mark.parametrize("name", ["plain", "edited"])
def test_whole_samplings_agree(comfyui_results, edit, name):
    pipeline, hookpoint = load_model("tinycanvas"), load_sae(SAE).hookpoint
    images = []
    for index, prompt in enumerate(PROMPTS):
        seen = []

        def tap(tokens, timestep, conditional, seen=seen):
            tokens = edit(tokens, timestep) if name == "edited" else tokens
            seen.append(tokens[conditional].clone())
            return tokens

        images.append(generate(pipeline, [prompt], [5 + index], steps=25, guidance=3.0, taps={hookpoint: tap}))
        found = comfyui_results[f"{name}.{index}.tokens"]
        first = seen[0]
        # The first step sees the same noise, but for the 0.3 % by which ComfyUI scales it at a sigma below its largest.
        assert (found[0] - first).norm() / first.norm() < 0.02
    ours = tinycanvas_judge()(torch.cat(images))
    theirs = torch.cat([comfyui_results[f"{name}.{i}.image"] for i in range(len(PROMPTS))]).movedim(-1, 1)
    assert tinycanvas_judge()(theirs) == ours
