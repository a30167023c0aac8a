"""Two processes on the CPU against one: the same files, tables and verdicts."""

import json
import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import training.common.processes
from saeuron import ConceptStatistics, Recording, load_sae, save_sae
from training.__main__ import main
from training.common.processes import (
    alone,
    gather,
    is_main,
    joined,
    main_first,
    merge,
    of_main,
    own_device,
    share,
    whole,
)
from training.evaluation.canvas import NAMES

NAME = "unet.up_blocks.1.attentions.1"
PROMPTS = [
    {"prompt": f"An image of {thing} in {style} style.", "object": thing, "style": style}
    for thing in ("star", "heart", "circle")
    for style in ("neon", "candy")
]


@pytest.fixture
def ranked(monkeypatch):
    """Be process ``rank`` of ``size``, and hear from the others what ``parts`` says."""

    def be(rank, size, parts=None):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        if parts is not None:
            monkeypatch.setattr(training.common.processes, "gather", lambda _: parts)

    return be


def test_alone_everything_is_the_identity():
    statistics = ConceptStatistics({"a": "x"}, [1], 4, "f")
    assert is_main() and share([1, 2, 3]) == whole([1, 2, 3]) == [1, 2, 3]
    assert torch.equal(joined(torch.ones(2)), torch.ones(2))
    assert (
        gather("a") == ["a"]
        and of_main("a") == "a"
        and own_device("cuda") == "cuda"
        and merge(statistics) is statistics
    )
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


def test_a_process_may_work_alone_among_others(ranked):
    ranked(1, 2)
    with alone():
        assert is_main() and share([1, 2, 3]) == whole([1, 2, 3]) == [1, 2, 3] and own_device("cuda") == "cuda:1"
    assert not is_main()


def test_a_process_has_its_own_gpu(ranked):
    ranked(1, 2)
    assert (own_device("cuda"), own_device("cpu"), own_device("cuda:3")) == ("cuda:1", "cpu", "cuda:3")


def test_record_by_its_own_command_writes_the_same_recording(tmp_path, files, launch):
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
    canvas = ConceptStatistics(
        {"Bears": "object", "Cats": "object"}, [1, 501], sae.n_latents, sae.fingerprint, sae.origin
    )
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


def test_score_evaluate_and_unlearncanvas_find_the_same(tmp_path, bench, launch):
    for line in bench:
        assert main(line.replace("{}", str(tmp_path / "alone")).split()) == 0
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from training.__main__ import main\n"
        "from training.common.processes import processes\n"
        "assert processes() == 2\n"
        "for line in sys.argv[1:]:\n"
        "    assert main(line.split()) == 0\n",
        "utf-8",
    )
    lines = [line.replace("{}", str(tmp_path / "two")) for line in bench]
    ended = launch(program, *lines)
    assert ended.returncode == 0, ended.stderr
    one, two = (ConceptStatistics.load(tmp_path / name / "table.safetensors") for name in ("alone", "two"))
    assert torch.equal(one.counts, two.counts) and one.counts.sum() == 7 * 2 * 2
    # Sums of seven float32 means in another order.
    torch.testing.assert_close(two.sums, one.sums, rtol=1e-5, atol=1e-6)
    for name in ("evaluation/evaluation.json", "canvas/unlearncanvas.json"):
        assert (tmp_path / "two" / name).read_text("utf-8") == (tmp_path / "alone" / name).read_text("utf-8")


def curves(folder):
    """Every scalar in TensorBoard's log, name → values."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("activation", ["batch_topk", "topk"])
def test_train_follows_the_same_curve_to_the_same_sae(tmp_path, activation, launch):
    record = f"record --output {tmp_path} --images 6 --images-per-shard 2 --steps 4 --tokens-per-map 32 --batch 2"
    assert main(record.split()) == 0
    options = f"train --recording {tmp_path / NAME} --expansion 2 --k 8 --activation {activation} --batch 96 --lr 1e-3"
    options += " --labels object style --steps 16 --dead-after 300 --log-every 1 --checkpoint-every 5 --output"
    assert main([*options.split(), str(tmp_path / "alone")]) == 0
    ended = launch("-m", "training", *options.split(), tmp_path / "two")
    assert ended.returncode == 0, ended.stderr
    alone, two = curves(tmp_path / "alone"), curves(tmp_path / "two")
    assert set(alone) == {"fvu", "l0", "auxiliary", "dead", "bce", "decorrelation", "l1"} and len(alone["fvu"]) == 16
    assert max(alone["auxiliary"]) > 0 and alone["fvu"][-1] < alone["fvu"][0]
    for name, values in alone.items():
        # Float32 sums in another order; Adam's first steps divide tiny gradients by themselves.
        assert two[name] == pytest.approx(values, rel=1e-3, abs=1e-5), name
    one, other = load_sae(tmp_path / "alone"), load_sae(tmp_path / "two")
    torch.testing.assert_close(other.W_dec, one.W_dec, rtol=0, atol=1e-3)
    assert not (tmp_path / "two" / "checkpoint.pt").exists()


def test_a_batch_that_does_not_divide_is_refused(tmp_path, launch):
    record = f"record --output {tmp_path} --images 2 --images-per-shard 1 --steps 2 --tokens-per-map 32 --batch 2"
    assert main(record.split()) == 0
    train = f"train --recording {tmp_path / NAME} --expansion 2 --k 8 --batch 33 --output {tmp_path / 'sae'}"
    ended = launch("-m", "training", *train.split())
    assert ended.returncode != 0 and "multiple of the 2 processes" in ended.stderr and not (tmp_path / "sae").exists()


def test_an_error_ends_all_processes_in_one_line_each(tmp_path, launch):
    ended = launch("-m", "training", "record", "--output", tmp_path / "out", "--steps", 0)
    assert ended.returncode != 0 and "--steps" in ended.stderr and not (tmp_path / "out").exists()


def test_a_command_that_does_not_divide_its_work_says_so(ranked, capsys):
    ranked(1, 2)
    assert main(["hookpoints", "tinycanvas"]) == 2
    assert "hookpoints does not divide its work" in capsys.readouterr().err
