"""What training and edits take in memory at their peak, beside what they cannot do without.

    python -m benchmarks.memory

Each is measured in a process of its own. Training cannot do without weights, gradients, Adam's two states and a batch
with its pre-activations; an edit not without the tokens it gives back. `benchmarks.score_memory` is for scoring, and
`benchmarks.comfyui_memory` for a host that offloads.
"""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch

from saeuron import Ablate

from .common import begin, options, tell
from .edits import dense, make_tokens, random_sae, selection
from .trainers import Ours

MB = 2**20


def main(arguments: list[str] | None = None) -> None:
    config = begin(options("Measure the peak memory of training and of edits.", "memory", 1), arguments)
    sizes = [(16, 1024, 256)] if config.tiny else [(320, 5120, 4096), (1280, 20480, 4096)]
    jobs = [(f"training {d_in}/{n}, batch {batch}", training, (d_in, n, batch)) for d_in, n, batch in sizes]
    d_in, n, side = (32, 512, 4) if config.tiny else (1280, 20480, 16)
    jobs += [(f"{name} {d_in}/{n}, {2 * side**2} tokens", edit, (d_in, n, side, name)) for name in ("ablate", "dense")]
    rows = [{"name": name} | measured(config, work, values) for name, work, values in jobs]
    lines = [
        [row["name"], f"{row['peak'] / MB:.0f}", f"{row['needed'] / MB:.0f}", f"{row['peak'] / row['needed']:.2f}"]
        for row in rows
    ]
    tell(config, ["what", "peak, MB", "what it cannot do without, MB", "times"], lines, rows=rows)


def measured(config, work: Callable, values: tuple) -> dict[str, int]:
    """The bytes that ``work`` says it needs, and those that it takes at its peak, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (config, work, values))


def _measure(config, work: Callable, values: tuple) -> dict[str, int]:
    torch.set_num_threads(config.threads)
    work(config, *(values if config.tiny else (16, 512, 4, *values[3:])))[0]()  # what libraries take for themselves
    run, needed = work(config, *values)
    before = _now(config)
    run()
    return {"needed": needed, "peak": _peak(config) - before}


def _now(config) -> int:
    """Bytes that are held now; the peak counts from here."""
    if config.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far; Linux alone knows this
    return _status("VmRSS")


def _peak(config) -> int:
    return torch.cuda.max_memory_allocated() if config.device != "cpu" else _status("VmHWM")


def _status(name: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def training(config, d_in: int, n_latents: int, batch: int) -> tuple[Callable, int]:
    def run() -> None:
        trainer = Ours(d_in, n_latents, 16, config.device, "batch_topk", False)
        for _ in range(2):
            trainer.step(torch.randn(batch, d_in, device=config.device))

    return run, 4 * (4 * 2 * d_in * n_latents + batch * (d_in + n_latents))


def edit(config, d_in: int, n_latents: int, side: int, name: str) -> tuple[Callable, int]:
    sae = random_sae(d_in, n_latents, min(32, n_latents // 16), config.device)
    tokens, chosen = make_tokens(sae, 2, side, {n_latents - 1: 1.0}), selection(sae, [n_latents - 1], 0.1)
    own = Ablate(sae, chosen)
    return (lambda: dense(sae, chosen, tokens) if name == "dense" else own(tokens, 500)), 4 * tokens.numel()


if __name__ == "__main__":
    main()
