"""Whether ComfyUI gives memory back: a full-size SD 1.5, a LoRA and two patches, queued over and over.

    python -m benchmarks.comfyui_memory --comfyui ~/comfy/ComfyUI --runs 100

Starts a ComfyUI on the CPU with this pack and random weights (`random_sd15`), and queues two steps at 256 px through
the stock loader and LoRA loader and Feature Ablate Patch on up.1.1 and up.1.2 at once, each time with another seed. At
the end it prints how the server's resident memory grew since the tenth run, and whether the graph without patches still
draws what it drew before the first, to the last bit: a hook or an edit that stayed behind would show.
"""

import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import tyro
from rich.progress import track
from safetensors.torch import load_file, save_file

from saeuron import ConceptStatistics, Hookpoint, SparseAutoencoder
from saeuron.checkpoints import save_bundle
from saeuron.checkpoints.bundle import Bundle
from saeuron.concept_table import WholeTable

from .random_sd15 import FAMILIES, write

ROOT = Path(__file__).parents[1]
PORT = 8199
BLOCKS = {"objects": "unet.up_blocks.1.attentions.1", "styles": "unet.up_blocks.1.attentions.2"}
WIDTH, WARM = 1280, 10
WHOLE = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "applies_to": "both"}


@dataclass
class ComfyuiMemory:
    """Queue a patched full-size model many times and watch ComfyUI's resident memory."""

    comfyui: Path = Path("~/comfy/ComfyUI")
    """A ComfyUI with a virtual environment `.venv` or `venv` of its own."""
    runs: int = 100
    """Times that the workflow is queued."""
    expansion: int = 4
    """Latents per channel of the two random SAEs."""
    work: Path | None = None
    """Folder for the models, 2.2 GB, which are made where they are missing; default a temporary one."""

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            base = (self.work or Path(temporary)).absolute()
            make_models(base, self.expansion)
            with_server(self.comfyui.expanduser(), base, lambda process: watch(process, base, self.runs))


def make_models(base: Path, expansion: int) -> None:
    for folder in ("custom_nodes", "input", "output", "temp", "user"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / "ComfyUI-SAeUron"
    if not link.exists():
        link.symlink_to(ROOT, target_is_directory=True)
    checkpoint = base / "models" / "checkpoints" / "random.safetensors"
    if not checkpoint.exists():
        checkpoint.parent.mkdir(parents=True)
        write(checkpoint, FAMILIES["sd15"], seed=0)
    generator = torch.Generator().manual_seed(0)
    (base / "models" / "loras").mkdir(exist_ok=True)
    prefix = "lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_attn2_to_q"
    lora = {
        f"{prefix}.lora_down.weight": 0.05 * torch.randn(4, WIDTH, generator=generator),
        f"{prefix}.lora_up.weight": 0.05 * torch.randn(WIDTH, 4, generator=generator),
        f"{prefix}.alpha": torch.tensor(4.0),
    }
    save_file(lora, base / "models" / "loras" / "random.safetensors")
    (base / "models" / "saes").mkdir(exist_ok=True)
    for name, block in BLOCKS.items():
        save_bundle(random_bundle(block, expansion, generator), base / "models" / "saes" / f"{name}.safetensors")


def random_bundle(block: str, expansion: int, generator: torch.Generator) -> Bundle:
    """An SAE whose latents fire on anything, with a table of two concepts."""
    sae = SparseAutoencoder(WIDTH, WIDTH * expansion, 32, hookpoint=Hookpoint(block)).requires_grad_(False)
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(sae.W_dec.shape, generator=generator), dim=1))
    sae.W_enc.copy_(sae.W_dec)
    statistics = ConceptStatistics(
        {"this": "thing", "that": "thing"}, range(1, 1000, 20), sae.n_latents, sae.fingerprint
    )
    statistics.sums = 0.01 * torch.rand(statistics.sums.shape, generator=generator)
    statistics.counts += 1
    return Bundle(sae, WholeTable(statistics))


def with_server(comfyui: Path, base: Path, work) -> None:
    python = next(path for name in (".venv", "venv") if (path := comfyui / name / "bin" / "python").exists())
    command = [python, comfyui / "main.py", "--cpu", "--disable-api-nodes", "--port", PORT, "--base-directory", base]
    command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch"]
    with open(base / "log.txt", "wb") as log:
        process = subprocess.Popen([str(part) for part in command], cwd=base, stdout=log, stderr=log, env=os.environ)
    try:
        for _ in range(600):
            try:
                ask("/system_stats")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        work(psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(60)


def ask(path: str, content: dict | None = None) -> dict:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def workflow(seed: int, patched: bool) -> dict:
    """Two steps at 256 px, in API format; the latent is saved."""
    graph = {
        "checkpoint": ("CheckpointLoaderSimple", {"ckpt_name": "random.safetensors"}),
        "lora": (
            "LoraLoaderModelOnly",
            {"model": ["checkpoint", 0], "lora_name": "random.safetensors", "strength_model": 1.0},
        ),
        "positive": ("CLIPTextEncode", {"clip": ["checkpoint", 1], "text": "a bear"}),
        "negative": ("CLIPTextEncode", {"clip": ["checkpoint", 1], "text": ""}),
        "empty": ("EmptyLatentImage", {"width": 256, "height": 256, "batch_size": 1}),
        "save": ("SaveLatent", {"samples": ["sampler", 0], "filename_prefix": "patched" if patched else "plain"}),
    }
    model = ["lora", 0]
    for name in BLOCKS if patched else ():
        sae, chosen, patch = f"sae-{name}", f"concepts-{name}", f"patch-{name}"
        graph[sae] = ("SAeUronLoader", {"sae_name": f"{name}.safetensors"})
        graph[chosen] = (
            "SAeUronConceptSelector",
            {"sae": [sae, 0], "concepts": "this", "latents": 4, "strength": -2.0},
        )
        graph[patch] = (
            "SAeUronAblatePatch",
            {"model": model, "sae": [sae, 0], "concepts": [chosen, 0], "mode": "ablate"} | WHOLE,
        )
        model = [patch, 0]
    sampling = {"seed": seed, "steps": 2, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": model, "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["empty", 0]}
    graph["sampler"] = ("KSampler", links | sampling)
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in graph.items()}


def queue(graph: dict) -> None:
    try:
        number = ask("/prompt", {"prompt": graph})["prompt_id"]
    except urllib.error.HTTPError as error:
        raise SystemExit(error.read().decode()) from None
    while not (entry := ask(f"/history/{number}").get(number)):
        time.sleep(0.05)
    if entry["status"]["status_str"] != "success":
        raise SystemExit(json.dumps(entry["status"], indent=1))


def newest(base: Path, prefix: str) -> torch.Tensor:
    paths = sorted((base / "output").glob(f"{prefix}*.latent"), key=lambda path: path.stat().st_mtime_ns)
    return load_file(paths[-1])["latent_tensor"]


def watch(process: psutil.Process, base: Path, runs: int) -> None:
    queue(workflow(0, patched=False))
    before, used = newest(base, "plain"), []
    began = time.monotonic()
    for number in track(range(runs), "queueing"):
        queue(workflow(number + 1, patched=True))
        used.append(process.memory_info().rss / 2**20)
    seconds = (time.monotonic() - began) / runs
    queue(workflow(1, patched=True))
    edited = newest(base, "patched")
    queue(workflow(1, patched=False))
    plain = newest(base, "plain")
    queue(workflow(0, patched=False))
    same = torch.equal(newest(base, "plain"), before)
    first = used[min(WARM, runs) - 1]
    print(f"{runs} runs, {seconds:.1f} s each; resident memory {first:.0f} → {used[-1]:.0f} MiB")
    print(f"growth since run {min(WARM, runs)}: {used[-1] / first - 1:.2%}")
    print(f"the edit changed the latent: {not torch.equal(edited, plain)}")
    print(f"without patches the same latent as before: {same}")


if __name__ == "__main__":
    tyro.cli(ComfyuiMemory).run()
