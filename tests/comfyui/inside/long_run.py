"""Run in ComfyUI's interpreter by ``python -m tests.endurance``: samples patched and unpatched in turn.

python long_run.py TIMES

Every patched sampling has nodes of its own, in every mode by turns, as where a user goes on changing a workflow.
"""

import importlib
import json
import os
import sys

import torch

os.environ["SAEURON_INSIDE_COMFYUI"] = "1"
conftest = importlib.import_module("conftest")  # brings ComfyUI onto the path, and the pack


def pack(name):
    return importlib.import_module(f"{conftest.PACK}.nodes.{name}")


def main(times: int) -> None:
    import comfy.sample

    torch.set_num_threads(1)
    plain, clip, *_ = pack("tinycanvas").TinyCanvas.execute().args
    sae = pack("loader").SaeLoader.execute("tinycanvas.safetensors").args[0]
    patches = pack("patches")
    texts = ("An image of heart in neon style.", "")
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts)
    latent = torch.zeros(1, 12, 16, 16)

    def sample(model):
        noise, options = comfy.sample.prepare_noise(latent, 7), {"disable_pbar": True, "seed": 7}
        return comfy.sample.sample(model, noise, 2, 3.0, "euler", "normal", positive, negative, latent, **options)

    def patched(mode):
        if mode == "steer":
            return patches.FeatureSteerPatch.execute(plain, sae, "3, 4", 0.0, 1.0).args[0]
        chosen = pack("concepts").ConceptSelector.execute(sae, "neon", 0, 0.0).args[0]
        return patches.FeatureAblatePatch.execute(plain, sae, chosen, mode=mode, strength=1.0).args[0]

    first, modes = sample(plain), [*patches.WAYS, "steer"]
    seen, found = {}, {"hooks_left": 0, "other_pictures": 0, "unpatched_changed": 0}
    for number in range(times):
        mode = modes[number % len(modes)]
        edited = sample(patched(mode))
        found["other_pictures"] += not torch.equal(edited, seen.setdefault(mode, edited))
        found["unpatched_changed"] += not torch.equal(sample(plain), first)
        found["hooks_left"] += conftest.hooks_left(plain)
    assert all(not torch.equal(edited, first) for edited in seen.values()), "what is patched looks otherwise"
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
