"""These tests run in ComfyUI's own interpreter, started by ``test_inside.py``; elsewhere nothing is collected."""

import importlib.util
import json
import os
import struct
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
PACK = "a_name_of_comfyuis_choice"

inside = os.environ.get("SAEURON_INSIDE_COMFYUI") == "1"
collect_ignore_glob = [] if inside else ["test_*.py"]


def load_pack():
    """Import ComfyUI for the CPU, and the pack as its loader does: from its folder, under a name of its choice."""
    sys.path.insert(0, str(COMFYUI))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    importlib.import_module(f"{PACK}.nodes.host.files").register()


if inside:
    load_pack()


@pytest.fixture(scope="session")
def pack():
    """``pack("host.patching")`` is the module ``nodes/host/patching.py``; with ``""`` behind it, of any folder."""
    return lambda name, folder="nodes.": importlib.import_module(f"{PACK}.{folder}{name}")


@pytest.fixture(scope="session")
def tinycanvas(pack):
    """MODEL, CLIP and VAE."""
    return pack("tinycanvas").TinyCanvas.execute().args


@pytest.fixture(scope="session")
def sae(pack):
    return pack("loader").SaeLoader.execute("tinycanvas.safetensors").args[0]


@pytest.fixture(scope="session")
def prompt(tinycanvas):
    """Conditioning of a text."""
    clip = tinycanvas[1]
    return lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))


@pytest.fixture
def neon(pack, sae):
    """A patch that takes neon out."""

    def patched(model, concepts="neon", **options):
        chosen = pack("concepts").ConceptSelector.execute(sae, concepts, 0, 0.0).args[0]
        options = {"mode": "tuned", "strength": 1.0} | options
        return pack("patches").FeatureAblatePatch.execute(model, sae, chosen, **options).args[0]

    return patched


@pytest.fixture
def sample(tinycanvas, prompt):
    """Latents sampled from ``model`` with the stock sampler."""
    import comfy.sample
    import torch

    def run(model, text="An image of heart in neon style.", negative="", cfg=3.0, steps=6, sampler="euler", **options):
        batch, height, width = options.pop("shape", (1, 16, 16))
        latent = options.pop("latent", torch.zeros(batch, 12, height, width))
        positive = prompt(text) if isinstance(text, str) else text
        negative = prompt(negative) if isinstance(negative, str) else negative
        noise = comfy.sample.prepare_noise(latent, options.get("seed", 7))
        settings = {"scheduler": "normal", "disable_pbar": True, "seed": 7} | options
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, settings.pop("scheduler"), positive, negative, latent, **settings
        )

    return run


@pytest.fixture
def hollow():
    """A checkpoint of a model of ``config``, all header: its weights are a hole in the file, which takes no room."""
    import torch

    def write(config, path):
        config.set_inference_dtype(torch.float16, None)
        header, offset = {}, 0
        for name, tensor in config.get_model({}, device=torch.device("meta")).diffusion_model.state_dict().items():
            offsets = [offset, offset := offset + 2 * tensor.numel()]
            about = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": offsets}
            header[f"model.diffusion_model.{name}"] = about
        written = json.dumps(header).encode()
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(written)) + written)
            file.truncate(8 + len(written) + offset)
        return path

    return write


def hooks_left(model) -> int:
    return sum(len(module._forward_hooks) for module in model.model.diffusion_model.modules())
