"""SAEs as others publish them, each from its file to a removed concept with nothing but nodes."""

import json
from pathlib import Path

import pytest
import torch

from saeuron.checkpoints import load_bundle
from saeuron.files import write_tensors
from tests.comfyui.test_http import drawn, judged
from tests.comfyui.workflows import find

pytestmark = pytest.mark.comfyui

OWN = Path(__file__).parents[2] / "tinycanvas" / "saes" / "tinycanvas.safetensors"
BLOCK = "unet.up_blocks.1.attentions.1"


@pytest.fixture(scope="module")
def published(server):
    """The SAE of TinyCanvas as sdxl-unbox and SAeUron lay theirs out, without our keys and without a table."""
    sae, saes = load_bundle(OWN).sae, server.base / "models" / "saes"
    tensors = {name: getattr(sae, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}

    unbox = saes / f"{BLOCK}_k{sae.k}_hidden{sae.n_latents}_auxk256_bs4096_lr0.0001" / "final"
    unbox.mkdir(parents=True)
    (unbox / "config.json").write_text(json.dumps({"d_model": sae.d_in, "n_dirs_local": sae.n_latents, "k": sae.k}))
    state = {"encoder.weight": tensors["W_enc"], "latent_bias": tensors["b_enc"], "pre_bias": tensors["b_dec"]}
    state["decoder.weight"] = tensors["W_dec"].T.contiguous()
    torch.save({"state_dict": state}, unbox / "state_dict.pth")

    folder = saes / "SAeUron" / "style.up.1.1"
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    folder.mkdir(parents=True)
    write_tensors(folder / "sae.safetensors", {theirs: tensors[own] for theirs, own in names.items()})
    about = {"expansion_factor": 8, "num_latents": 0, "k": sae.k, "d_in": sae.d_in, "normalize_decoder": True}
    (folder / "cfg.json").write_text(json.dumps(about | {"batch_topk": False, "multi_topk": False}))
    return {
        "sdxl-unbox": f"{unbox.relative_to(saes).as_posix()}/state_dict.pth",
        "SAeUron": f"{folder.relative_to(saes).as_posix()}/sae.safetensors",
    }


@pytest.mark.parametrize("layout", ["sdxl-unbox", "SAeUron"])
def test_from_a_published_file_to_a_removed_concept(server, load, published, layout):
    workflow = load("learn")
    loader, learn = (workflow[find(workflow, node)]["inputs"] for node in ("SAE Loader", "Learn Concept"))
    loader |= {"sae_name": published[layout], "concepts": "from file"}
    learn |= {field: "\n".join(learn[field].splitlines()[:8]) for field in ("shows", "lacks")} | {"steps": 15}
    server.forget()  # a ComfyUI of early 2026 does not show again what an earlier workflow has cached
    before, after = drawn(server, workflow, "Before", "After")
    assert judged(before)["style"].count("sepia") >= 3
    assert judged(after)["style"].count("sepia") <= 1  # eight short prompts teach less than twelve
    told = server.get_json("/saeuron/sae", sae=published[layout])["text"]
    assert told.startswith(BLOCK) and "guessed from the name" in told
    assert ("residual" in told) == (layout == "sdxl-unbox")
