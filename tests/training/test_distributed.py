"""Two processes on the CPU against one: the same files, tables and verdicts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import training.distributed
from saeuron import ConceptTable, Recording, save_sae
from training.__main__ import main
from training.canvas import NAMES
from training.distributed import gather, is_main, main_first, merge, of_main, own_device, share, whole

ROOT = Path(__file__).parents[2]
NAME = "unet.up_blocks.1.attentions.1"
PROMPTS = [
    {"prompt": f"An image of {thing} in {style} style.", "object": thing, "style": style}
    for thing in ("star", "heart", "circle")
    for style in ("neon", "candy")
]


def launch(*arguments, processes=2):
    """``accelerate launch`` with that many processes; returns what it printed."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    command += ["--num_processes", str(processes), "--main_process_port", "0", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    return ended


@pytest.fixture
def ranked(monkeypatch):
    """Be process ``rank`` of ``size``, and hear from the others what ``parts`` says."""

    def be(rank, size, parts=None):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        if parts is not None:
            monkeypatch.setattr(training.distributed, "gather", lambda _: parts)

    return be


def test_alone_everything_is_the_identity():
    table = ConceptTable({"a": "x"}, [1], 4, "f")
    assert is_main() and share([1, 2, 3]) == whole([1, 2, 3]) == [1, 2, 3]
    assert gather("a") == ["a"] and of_main("a") == "a" and own_device("cuda") == "cuda" and merge(table) is table
    with main_first():
        pass


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_shares_are_disjoint_and_make_the_whole_in_order(ranked, size, count):
    parts = []
    for rank in range(size):
        ranked(rank, size)
        parts.append(share(list(range(count))))
    ranked(0, size, parts)
    assert whole(parts[0]) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_process_has_its_own_gpu(ranked):
    ranked(1, 2)
    assert (own_device("cuda"), own_device("cpu"), own_device("cuda:3")) == ("cuda:1", "cpu", "cuda:3")


def test_record_by_its_own_command_writes_the_same_recording(tmp_path, files):
    options = ["record", "--output", tmp_path / "out", "--hookpoints", NAME, "unet.mid_block.attentions.0"]
    options += ["--images", 5, "--images-per-shard", 1, "--steps", 2, "--tokens-per-map", 3, "--batch", 2]
    assert main([*map(str, options)]) == 0
    alone = files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    ended = launch("-m", "training", *options)
    assert ended.returncode == 0, ended.stderr
    assert files(tmp_path / "out") == alone
    assert len(Recording(tmp_path / "out" / NAME).shards) == 5


@pytest.fixture
def bench(tmp_path, make_sae, make_table, small_sd, vit_weights):
    """The command lines of everything else that divides its work; ``{}`` in them is the folder of the results."""
    sae = make_sae()
    save_sae(sae, tmp_path / "sae")
    make_table(sae).save(tmp_path / "table")
    canvas = ConceptTable({"Bears": "object", "Cats": "object"}, [1, 501], sae.n_latents, sae.fingerprint, sae.origin)
    canvas.sums, canvas.counts = torch.rand(canvas.sums.shape), canvas.counts + 1
    canvas.save(tmp_path / "canvas")
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)), "utf-8")
    for kind, names in NAMES.items():
        torch.save(vit_weights(len(names)), tmp_path / f"{kind}.pth")
    common = f"--sae {tmp_path}/sae --steps 2 --batch 2"
    small = f"--model {small_sd} --height 64 --width 64"
    return [
        f"score {common} --prompts {tmp_path}/prompts.jsonl --images 7 --output {{}}/table.safetensors",
        f"evaluate {common} --table {tmp_path}/table --prompts {tmp_path}/prompts.jsonl --seeds 1 --targets neon star "
        "--latents 64 --strength -20 --output {}/evaluation",
        f"unlearncanvas {common} --table {tmp_path}/canvas {small} --judge-style {tmp_path}/style.pth "
        f"--judge-object {tmp_path}/object.pth --limit 3 --targets Bears --output {{}}/canvas",
    ]


def test_score_evaluate_and_unlearncanvas_find_the_same(tmp_path, bench):
    for line in bench:
        assert main(line.replace("{}", str(tmp_path / "alone")).split()) == 0
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from training.__main__ import main\n"
        "from training.distributed import processes\n"
        "assert processes() == 2\n"
        "for line in sys.argv[1:]:\n"
        "    assert main(line.split()) == 0\n",
        "utf-8",
    )
    lines = [line.replace("{}", str(tmp_path / "two")) for line in bench]
    ended = launch(program, *lines)
    assert ended.returncode == 0, ended.stderr
    one, two = (ConceptTable.load(tmp_path / name / "table.safetensors") for name in ("alone", "two"))
    assert torch.equal(one.counts, two.counts) and one.counts.sum() == 7 * 2 * 2
    # Sums of seven float32 means in another order.
    torch.testing.assert_close(two.sums, one.sums, rtol=1e-5, atol=1e-6)
    for name in ("evaluation/evaluation.json", "canvas/unlearncanvas.json"):
        assert (tmp_path / "two" / name).read_text("utf-8") == (tmp_path / "alone" / name).read_text("utf-8")


def test_an_error_ends_all_processes_in_one_line_each(tmp_path):
    ended = launch("-m", "training", "record", "--output", tmp_path / "out", "--steps", 0)
    assert ended.returncode != 0 and "--steps" in ended.stderr and not (tmp_path / "out").exists()
