"""Run in ComfyUI's interpreter by ``test_transformers.py``: the tokens of one small transformer, at every hookpoint.

python transformers_run.py FAMILY INPUTS OUTPUT
"""

import importlib
import os
import sys

import torch
from safetensors.torch import load_file, save_file

os.environ["SAEURON_INSIDE_COMFYUI"] = "1"
conftest = importlib.import_module("conftest")  # brings ComfyUI onto the path, and the pack
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
given_families = importlib.import_module("families_given")


def pack(name, folder="nodes."):
    return importlib.import_module(f"{conftest.PACK}.{folder}{name}")


class Keep:
    def __init__(self):
        self.tokens, self.place = None, None

    def begin(self, model): ...

    def see(self, tokens, place):
        self.tokens, self.place = tokens.clone(), place

    def end(self, finished): ...


def build(family: str, weights: dict[str, torch.Tensor]):
    """A ModelPatcher around ComfyUI's own class with diffusers' ``weights``."""
    import comfy.model_detection
    import comfy.model_patcher
    import comfy.ops
    import comfy.supported_models
    from comfy.ldm.modules.diffusionmodules.mmdit import TimestepEmbedder

    given = given_families.FAMILIES[family]
    native = dict(weights) if family.startswith("Qwen") else convert(dict(weights))
    native |= {name: tensor for name, tensor in weights.items() if name.startswith("distilled_guidance_layer")}
    native = {_chroma(name): tensor for name, tensor in native.items()}
    if family.startswith("Flux2"):
        native |= {_flux2(name): tensor for name, tensor in weights.items() if _flux2(name)}
    config = given["comfyui"] or comfy.model_detection.detect_unet_config(native, "")
    kind = getattr(comfy.supported_models, given["model"])(dict(config))
    kind.custom_operations = comfy.ops.manual_cast
    kind.set_inference_dtype(torch.float32, None)
    model = kind.get_model({}, "").eval()
    if family.startswith("ZImage"):
        # ComfyUI writes the width of the embedding of time for a model as wide as the real one.
        model.diffusion_model.t_embedder = TimestepEmbedder(1024, output_size=256, operations=comfy.ops.manual_cast)
    missing, unexpected = model.diffusion_model.load_state_dict(native, strict=False)
    assert not unexpected and all("pos_embed" in name or "y_embedding" in name for name in missing), (
        missing,
        unexpected,
    )
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def convert(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By ComfyUI's own names for diffusers' weights; of two families it knows the real sizes alone."""
    import comfy.model_detection
    import comfy.utils

    if "pos_embed.proj.weight" in weights and "adaln_single.linear.weight" in weights:
        original, width = comfy.utils.pixart_to_diffusers, weights["pos_embed.proj.weight"].shape[0]
        comfy.utils.pixart_to_diffusers = lambda config, **options: original(config | {"hidden_size": width}, **options)
    if "x_embedder.weight" in weights:
        weights.setdefault("x_embedder.bias", torch.empty(weights["x_embedder.weight"].shape[0]))
        native = comfy.model_detection.convert_diffusers_mmdit(dict(weights), "")
        return native if "context_embedder.bias" in weights else {k: t for k, t in native.items() if k != "img_in.bias"}
    return comfy.model_detection.convert_diffusers_mmdit(dict(weights), "")


def _chroma(name: str) -> str:
    if not name.startswith("distilled_guidance_layer.layers"):
        return name
    return name.replace("linear_1", "in_layer").replace("linear_2", "out_layer")


FLUX2 = {
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
}


def _flux2(name: str) -> str | None:
    module, _, end = name.rpartition(".")
    return f"{FLUX2[module]}.{end}" if module in FLUX2 else None


def call(host, family: str, x, context, pooled, reference) -> torch.Tensor:
    """One call of the model, as the sampler makes it."""
    import comfy.patcher_extension

    sampling = host.model.model_sampling
    discrete = family.startswith("PixArt")
    sigma = (sampling.sigma(torch.tensor(500.0)) if discrete else torch.tensor(given_families.SIGMA)).expand(len(x))
    if discrete:
        x = x * (sigma[0] ** 2 + 1).sqrt()  # the sampler's scale, which the model divides by
    options = {
        "wrappers": comfy.patcher_extension.copy_nested_dicts(host.wrappers),
        "sigmas": sigma,
        "cond_or_uncond": [0],
    }
    extra = {}
    if family.startswith(("Flux", "SD3")):
        extra["y"] = pooled
    if family.startswith("Flux"):
        extra["guidance"] = torch.full((len(x),), 3.5)
    if family.startswith("Chroma"):
        extra["guidance"] = torch.zeros(len(x))
    if family.startswith("ZImage"):
        extra["num_tokens"] = context.shape[1]
    if reference is not None:
        extra["ref_latents"] = [reference]
    with torch.inference_mode():
        return host.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options, **extra)


class Add:
    """An edit that adds ``amount`` to every token; the same tensor where that is nothing."""

    def __init__(self, sae, amount):
        self.sae, self.amount = sae, amount

    def __call__(self, tokens, timestep, mask=None):
        return tokens + self.amount if self.amount else tokens


def rest_of(host, patched, hookpoint, run) -> bool:
    """Whether all but the picture's tokens leave the block at ``hookpoint`` bit for bit, and some of those not."""
    from comfy.patcher_extension import WrappersMP

    blocks = pack("host.blocks")
    block, stream = blocks.block_of(host.model, hookpoint), blocks.stream_of(host.model, hookpoint)
    raw, after, handles = [], [], []

    def keep(place):
        def hook(_module, args, kwargs, output):
            parts = [output] if torch.is_tensor(output) else [part for part in output if part is not None]
            place.extend(part.clone() for part in parts)
            place.append(stream.returned(output).clone())

        return hook

    def last(executor, *args, **kwargs):
        handles.append(block.register_forward_hook(keep(after), with_kwargs=True))
        return executor(*args, **kwargs)

    handles.append(block.register_forward_hook(keep(raw), with_kwargs=True))
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "after", last)
    run(patched)
    for handle in handles:
        handle.remove()
    changed = (raw[-1] != after[-1]).any(-1).sum(1)
    others = sum(int((a != b).any(-1).sum()) for a, b in zip(raw[:-1], after[:-1], strict=True))
    return changed, others


def main(family: str, inputs: str, output: str) -> None:
    given = load_file(inputs)
    weights = {name[len("weights.") :]: t for name, t in given.items() if name.startswith("weights.")}
    host = build(family, weights)
    patching, saeuron = pack("host.patching"), pack("saeuron", "")
    results, names = {}, sorted({name.split("|")[1] for name in given if name.startswith("tokens|")})
    for case in given_families.cases(family):
        x, context, pooled = (given[f"{case}.{part}"] for part in ("x", "context", "pooled"))
        reference = given.get(f"{case}.reference")
        if family.startswith("Qwen"):
            x, reference = x[:, :, None], None if reference is None else reference[:, :, None]

        def run(model, inputs=(x, context, pooled, reference)):
            return call(model, family, *(None if part is None else part.clone() for part in inputs))

        plain = run(host)
        for name in names:
            for site in ("output", "residual"):
                keep, hookpoint = Keep(), saeuron.Hookpoint(name, site)
                seen = run(patching.attach(host, patching.Patch(hookpoint, observer=keep)))
                assert torch.equal(seen, plain), "looking changes nothing"
                assert keep.place.timestep == 500
                results[f"{case}|{name}|{site}"] = keep.tokens
                results[f"{case}|{name}|{site}|grid"] = torch.tensor([keep.place.height, keep.place.width])
                width = keep.tokens.shape[-1]
                sae = saeuron.SparseAutoencoder(width, 8, k=1, hookpoint=hookpoint)
                for amount in (0.0, 1.0):
                    patch = patching.Patch(hookpoint, edit=Add(sae, amount))
                    patched = patching.attach(host, patch)
                    if not amount:
                        assert torch.equal(run(patched), plain), "an empty edit is bit-identical"
                        continue
                    changed, others = rest_of(host, patched, hookpoint, run)
                    count = keep.tokens.shape[1]
                    assert changed.tolist() == [count] * len(x), (changed, count)
                    assert others == count * len(x), "text, padding and references leave bit for bit"
        assert torch.equal(run(host), plain), "nothing stays behind"
    save_file({key: tensor.contiguous() for key, tensor in results.items()}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
