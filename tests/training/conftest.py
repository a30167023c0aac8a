"""TinyCanvas as it is committed, random SAEs and tables that fit it, and what it takes to kill a command."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

import saeuron.files
from benchmarks.ldm import Size
from benchmarks.random_sd15 import write, write_tokenizer
from saeuron import ConceptStatistics, Hookpoint, SparseAutoencoder
from saeuron.concept_table import WholeTable
from tinycanvas.drawing import OBJECTS, STYLES
from training.diffusion.load import load_model

ROOT = Path(__file__).parents[2]
HOOKPOINT = Hookpoint("unet.up_blocks.1.attentions.1")


@pytest.fixture(scope="session")
def pipeline():
    """The committed model with its DDIM sampler. Whoever wants another sampler loads their own."""
    return load_model("tinycanvas")


@pytest.fixture(scope="session")
def small_sd(tmp_path_factory) -> Path:
    """A single-file SD 1.5 at a tenth of its width, with random weights. Draw it at 64 × 64, or it takes a while."""
    path = tmp_path_factory.mktemp("small-sd") / "model.safetensors"
    write(path, Size(unet=32, vae=32, clip=(64, 2)), seed=0)
    return path


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A folder of transformers' CLIP, two layers of 32 with random weights, for pictures of 32 × 32."""
    folder = tmp_path_factory.mktemp("clip")
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=layers | {"max_position_embeddings": 40, "eos_token_id": 49407, "bos_token_id": 49406},
        vision_config=layers | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def vit_weights() -> Callable[..., dict[str, torch.Tensor]]:
    """A vision transformer's weights in timm's naming, at random: two layers of 128, pictures of 48 × 48."""

    def make(labels=5, width=128, seed=0):
        sizes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width), "norm1": (width,), "norm2": (width,)}
        sizes = {f"blocks.{block}.{name}": size for block in range(2) for name, size in sizes.items()}
        sizes |= {"patch_embed.proj": (width, 3, 16, 16), "norm": (width,), "head": (labels, width)}
        shapes = {f"{name}.weight": size for name, size in sizes.items()}
        shapes |= {f"{name}.bias": size[:1] for name, size in sizes.items()}
        shapes |= {"cls_token": (1, 1, width), "pos_embed": (1, 10, width)}
        generator = torch.Generator().manual_seed(seed)
        return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    return make


@pytest.fixture
def make_sae() -> Callable[..., SparseAutoencoder]:
    """An SAE of random weights that fits TinyCanvas at ``hookpoint``, and whose latents fire there."""

    def make(d_in=128, n_latents=256, k=16, seed=0, hookpoint=HOOKPOINT) -> SparseAutoencoder:
        generator = torch.Generator().manual_seed(seed)
        sae = SparseAutoencoder(d_in, n_latents, k, hookpoint=hookpoint, base_model="tinycanvas").requires_grad_(False)
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(n_latents, d_in, generator=generator), dim=1))
        sae.W_enc.copy_(sae.W_dec)
        return sae

    return make


@pytest.fixture
def make_table() -> Callable[..., WholeTable]:
    """A table of all of TinyCanvas's concepts for ``sae``, as if scored with 25 DDIM steps, with random means."""

    def make(sae, timesteps=tuple(range(1, 1000, 40)), seed=0) -> WholeTable:
        kinds = dict.fromkeys(OBJECTS, "object") | dict.fromkeys(STYLES, "style")
        statistics = ConceptStatistics(kinds, timesteps, sae.n_latents, sae.fingerprint, sae.origin)
        statistics.sums = torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(seed))
        statistics.counts += 1
        return WholeTable(statistics)

    return make


@pytest.fixture
def files() -> Callable[[Path], dict[str, bytes]]:
    """Every file under a folder with its bytes. TensorBoard's are left out: they hold the time of day."""

    def read(folder: Path) -> dict[str, bytes]:
        found = (path for path in sorted(folder.rglob("*")) if path.is_file() and "tensorboard" not in path.parts)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}

    return read


@pytest.fixture
def interrupt_write(monkeypatch) -> Callable[[int, type[BaseException]], None]:
    """Call with ``n`` and an exception: the write that comes after ``n`` others ends in it. Undone by itself then."""

    def arm(count: int, exception: type[BaseException]) -> None:
        real, left = os.replace, iter(range(count))

        def replace(source, target):
            if next(left, None) is None:
                monkeypatch.setattr(saeuron.files.os, "replace", real)
                raise exception
            real(source, target)

        monkeypatch.setattr(saeuron.files.os, "replace", replace)

    return arm


@pytest.fixture
def killed() -> Callable[..., None]:
    """Run ``python -m training`` with arguments in a process of its own, which SIGKILL ends at its write ``n + 1``."""
    program = """if True:
        import os, signal, sys
        real, left = os.replace, iter(range(int(sys.argv[1])))
        def replace(source, target):
            if str(target).startswith(sys.argv[2]) and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)
        os.replace = replace
        from training.__main__ import main
        main(sys.argv[3:])
    """

    def run(*arguments: object, output: Path, after: int) -> None:
        command = [sys.executable, "-c", program, str(after), str(output), *map(str, arguments), "--output", output]
        process = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
        assert process.returncode == -signal.SIGKILL, process.stderr

    return run


@pytest.fixture(scope="session")
def launch():
    """``launch(*arguments, processes=2)`` is ``accelerate launch`` with so many; gives what it printed and its code."""

    def run(*arguments, processes=2):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
        command += ["--num_processes", str(processes), "--main_process_port", "0", "--mixed_precision", "no"]
        command += ["--dynamo_backend", "no", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)

    return run
