"""Run in ComfyUI's interpreter by ``test_agreement.py``: writes what ComfyUI computes to a safetensors file.

python host_run.py OUTPUT
"""

import importlib
import os
import sys

import torch
from safetensors.torch import save_file

os.environ["SAEURON_INSIDE_COMFYUI"] = "1"
conftest = importlib.import_module("conftest")  # brings ComfyUI onto the path, and the pack

PROMPTS = ["An image of heart in neon style.", "An image of moon in sepia style.", "An image of ring in mosaic style."]
STEPS, GUIDANCE, SEED = 25, 3.0, 5


class Keep:
    def __init__(self):
        self.tokens = []

    def begin(self, model):
        self.tokens = []

    def see(self, tokens, place):
        self.tokens.append(tokens[place.rows].clone())

    def end(self, finished):
        pass


def pack(name):
    return importlib.import_module(f"{conftest.PACK}.nodes.{name}")


def main(output: str) -> None:
    import comfy.sample

    model, clip, vae, *_ = pack("tinycanvas").TinyCanvas.execute().args
    sae = pack("loader").SaeLoader.execute("tinycanvas.safetensors").args[0]
    chosen = pack("concepts").ConceptSelector.execute(sae, "neon", 0, 0.0).args[0]
    edited = pack("patches").FeatureAblatePatch.execute(model, sae, chosen, mode="tuned", strength=1.0).args[0]
    patching, results = pack("host.patching"), {}
    for name, host in (("plain", model), ("edited", edited)):
        for index, prompt in enumerate(PROMPTS):
            keep = Keep()
            watched = patching.attach(host, patching.Patch(sae.hookpoint, observer=keep, applies_to="positive"))
            positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
            noise = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(SEED + index))
            options = {"denoise": 1.0, "disable_pbar": True, "seed": SEED}
            latent = comfy.sample.sample(
                watched, noise, STEPS, GUIDANCE, "ddim", "ddim_uniform", positive, negative, noise * 0, **options
            )
            results[f"{name}.{index}.image"] = vae.decode(latent)
            results[f"{name}.{index}.tokens"] = torch.stack(keep.tokens)
    # One call of the model, so that nothing of a sampler's own comes between the hosts.
    x = torch.randn(2, 12, 16, 16, generator=torch.Generator().manual_seed(SEED))
    results["call.x"] = x
    for name, host in (("plain", model), ("edited", edited)):
        results[f"call.{name}"] = call(host, clip, x)
    save_file({key: tensor.float().contiguous() for key, tensor in results.items()}, output)


def call(host, clip, x: torch.Tensor) -> torch.Tensor:
    """The model's prediction of v at timestep 500 for the first prompt."""
    import comfy.model_management
    import comfy.patcher_extension

    comfy.model_management.load_models_gpu([host, *host.get_nested_additional_models()])
    sigma = host.model.model_sampling.sigma(torch.tensor(500.0)).expand(len(x))
    scaled = x * (sigma[0] ** 2 + 1).sqrt()
    context = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPTS[0]))[0][0].expand(len(x), -1, -1)
    options = {
        "wrappers": comfy.patcher_extension.copy_nested_dicts(host.wrappers),
        "sigmas": sigma,
        "cond_or_uncond": [0],
    }
    with torch.inference_mode():
        denoised = host.model.apply_model(scaled, sigma, c_crossattn=context, transformer_options=options)
    # Back from the denoised picture x0 to v: x0 = √ᾱ x − √(1−ᾱ) v in the model's own scale.
    signal, spread = (1 / (sigma[0] ** 2 + 1)).sqrt(), (sigma[0] ** 2 / (sigma[0] ** 2 + 1)).sqrt()
    return (signal * x - denoised) / spread


if __name__ == "__main__":
    main(sys.argv[1])
