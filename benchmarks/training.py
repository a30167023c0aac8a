"""Training an SAE: ours and its peers, step by step in turns, on the same tokens.

``python -m benchmarks.training`` prints one table and writes it as JSON. Peers that are not installed say so; `make
test-peers` makes an environment that has them, ``.venv-peers/bin/python -m benchmarks.training`` uses it.

Tokens are sparse sums of the rows of a random dictionary, so that there is something to find. All have the same
learning rate and the same Adam. The fraction of variance unexplained (FVU) is that of tokens none was trained on, after
as many tokens for each.
"""

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from training.sae.trainer import TrainingAutoencoder, descend

SIZES = {"128/1024": (128, 1024, 200), "320/5120": (320, 5120, 60), "1280/20480": (1280, 20480, 12)}
LR, NEVER = 1e-3, 10**9


class Ours:
    package = None

    def __init__(self, d_in: int, n_latents: int, k: int, device: str, activation: str, bf16: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = TrainingAutoencoder(d_in, n_latents, k, activation, generator).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LR, fused=True)
        self.device, self.bf16 = device, bf16

    def losses(self, tokens: torch.Tensor):
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            return self.model.losses(tokens, NEVER, 1)

    def step(self, tokens: torch.Tensor) -> None:
        self.losses(tokens).fvu.backward()
        descend(self.model, self.optimizer)

    @torch.no_grad()
    def reconstruct(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.code(tokens).decode(self.model.W_dec) + self.model.b_dec

    def phases(self, tokens: torch.Tensor) -> dict[str, float]:
        """Seconds of each part of a step, one after the other."""
        weights = [self.model.W_enc, self.model.b_enc]
        if self.bf16:
            tokens_, weights = tokens.bfloat16(), [weight.detach().bfloat16() for weight in weights]
        else:
            tokens_, weights = tokens, [weight.detach() for weight in weights]
        product = timed(self.device, lambda: torch.nn.functional.linear(tokens_, *weights))[0]
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            encoded = timed(self.device, lambda: self.model.code(tokens))[0]
            forward, losses = timed(self.device, lambda: self.model.losses(tokens, NEVER, 1))
        backward = timed(self.device, losses.fvu.backward)[0]
        projected = timed(self.device, self.model.project_gradient)[0]
        whole = timed(self.device, lambda: descend(self.model, self.optimizer))[0]
        normalised = timed(self.device, self.model.normalise_decoder)[0]
        return {
            "encoder product": product,
            "competition": encoded - product,
            "decoding, losses, counting": forward - encoded,
            "backward": backward,
            "projection and normalisation": projected + normalised,
            "clipping and Adam": whole - projected - normalised,
        }


class Sparsify:
    package = "eai-sparsify"

    def __init__(self, d_in: int, n_latents: int, k: int, device: str) -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        self.sae = SparseCoder(d_in, SparseCoderConfig(num_latents=n_latents, k=k), device=device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=LR, fused=True)
        self.since_fired = torch.zeros(n_latents, dtype=torch.long, device=device)

    def step(self, tokens: torch.Tensor) -> None:
        """As its trainer does with one local SAE and Adam."""
        self.sae.set_decoder_norm_to_unit_norm()
        out = self.sae(tokens, dead_mask=self.since_fired > NEVER)
        (out.fvu + out.auxk_loss / 32).backward()
        fired = torch.zeros_like(self.since_fired, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        self.since_fired += len(tokens)
        self.since_fired[fired] = 0
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def reconstruct(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.sae(tokens).sae_out


class DictionaryLearning:
    package = "dictionary-learning"

    def __init__(self, d_in: int, n_latents: int, k: int, device: str) -> None:
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

        options = {"layer": 0, "lm_name": "none", "lr": LR, "warmup_steps": 0, "seed": 0, "device": device}
        self.trainer = BatchTopKTrainer(10**6, d_in, n_latents, k, **options)
        self.trainer.optimizer = torch.optim.Adam(self.trainer.ae.parameters(), lr=LR, fused=True)
        self.done = 0

    def step(self, tokens: torch.Tensor) -> None:
        self.trainer.update(self.done, tokens)
        self.done += 1

    @torch.no_grad()
    def reconstruct(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.trainer.ae.decode(self.trainer.ae.encode(tokens, use_threshold=False))


class SAELens:
    package = "sae-lens"

    def __init__(self, d_in: int, n_latents: int, k: int, device: str) -> None:
        from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        from sae_lens.saes.sae import TrainStepInput

        self.sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=n_latents, k=k, device=device))
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=LR, fused=True)
        self.dead = torch.zeros(n_latents, dtype=torch.bool, device=device)
        self.input = lambda tokens: TrainStepInput(tokens, {}, self.dead, 0, False)

    def step(self, tokens: torch.Tensor) -> None:
        out = self.sae.training_forward_pass(self.input(tokens))
        with torch.no_grad():
            out.feature_acts.bool().float().sum(-2).bool()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def reconstruct(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.sae.training_forward_pass(self.input(tokens)).sae_out


TRAINERS: dict[str, tuple[type, tuple]] = {
    "ours, BatchTopK, bfloat16": (Ours, ("batch_topk", True)),
    "ours, TopK, bfloat16": (Ours, ("topk", True)),
    "ours, BatchTopK, float32": (Ours, ("batch_topk", False)),
    "ours, TopK, float32": (Ours, ("topk", False)),
    "sparsify, TopK": (Sparsify, ()),
    "dictionary_learning, BatchTopK": (DictionaryLearning, ()),
    "SAELens, BatchTopK": (SAELens, ()),
}


def main() -> None:
    config = arguments()
    torch.set_num_threads(config.threads)
    warnings.simplefilter("ignore")
    sizes = {"16/64": (16, 64, 4)} if config.tiny else {name: SIZES[name] for name in config.sizes}
    rows, phases = [], {}
    for name, (d_in, n_latents, steps) in sizes.items():
        found, phases[name] = measure(config, d_in, n_latents, config.steps or steps)
        rows += [{"size": name} | row for row in found]
    print(table(rows))
    print(phase_table(phases))
    about = {"device": device_name(config.device), "torch": torch.__version__, "threads": config.threads}
    about |= {"batch": config.batch, "k": config.k, "lr": LR, "rows": rows, "phases_ms": phases}
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def arguments() -> argparse.Namespace:
    """By argparse, since the peers' environment has no other parser."""
    parser = argparse.ArgumentParser(description="Time training steps of ours and of its peers in turns.")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="d_in/latents")
    parser.add_argument("--only", nargs="+", default=list(TRAINERS), choices=list(TRAINERS), help="trainers")
    parser.add_argument("--batch", type=int, default=4096, help="tokens a step")
    parser.add_argument("--k", type=int, default=32, help="active latents a token")
    parser.add_argument("--steps", type=int, help="steps of each trainer; default 200, 60, 12 by size")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tiny", action="store_true", help="a size that takes seconds, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("out/benchmarks/training.json"), help="where JSON goes")
    config = parser.parse_args()
    if config.tiny:
        config.batch, config.k = 64, 4
    return config


def measure(config: argparse.Namespace, d_in: int, n_latents: int, steps: int) -> tuple[list[dict], dict]:
    """A row a trainer, and the milliseconds of each phase of ours."""
    sample = source(d_in, n_latents, config.k, config.device)
    unseen, first = sample(config.batch), sample(config.batch)
    trainers, rows = {}, {name: {"trainer": name} for name in config.only}
    for name in config.only:
        kind, options = TRAINERS[name]
        try:
            rows[name]["version"] = version(kind.package) if kind.package else "this"
            trainers[name] = kind(d_in, n_latents, config.k, config.device, *options)
            if kind is Ours:  # as `train` does
                trainers[name].model.fit_encoder(first)
        except (ImportError, PackageNotFoundError):
            rows[name]["version"] = None
    times = {name: [] for name in trainers}
    for step in range(steps + 1):
        tokens = sample(config.batch)
        order = list(trainers)
        for name in order[step % len(order) :] + order[: step % len(order)]:
            seconds = timed(config.device, lambda name=name, tokens=tokens: trainers[name].step(tokens))[0]
            if step:  # the first one warms up
                times[name].append(1000 * seconds)
    for name, trainer in trainers.items():
        left = (unseen - trainer.reconstruct(unseen)).pow(2).sum() / (unseen - unseen.mean(0)).pow(2).sum()
        quartiles = statistics.quantiles(times[name], n=4) if steps > 1 else times[name] * 3
        rows[name] |= {"ms": quartiles[1], "ms_from": quartiles[0], "ms_to": quartiles[2]}
        rows[name] |= {"tokens_per_s": 1000 * config.batch / quartiles[1], "fvu": float(left), "steps": steps + 1}
    peers = [row["tokens_per_s"] for name, row in rows.items() if name in trainers and row["version"] != "this"]
    for name in trainers:
        rows[name]["of_best_peer"] = rows[name]["tokens_per_s"] / max(peers) if peers else None
    phases = {}
    for name, trainer in trainers.items():
        if isinstance(trainer, Ours):
            taken = [trainer.phases(tokens) for _ in range(max(3, steps // 4))]
            phases[name] = {part: 1000 * statistics.median(one[part] for one in taken) for part in taken[0]}
    return list(rows.values()), phases


def source(d_in: int, n_latents: int, k: int, device: str) -> Callable[[int], torch.Tensor]:
    """Draws tokens: ``k / 2`` of ``n_latents / 2`` directions each, some far more often than others, and noise."""
    generator = torch.Generator(device).manual_seed(1)
    random = {"generator": generator, "device": device}
    directions = torch.nn.functional.normalize(torch.randn(n_latents // 2, d_in, **random), dim=1)

    def sample(count: int) -> torch.Tensor:
        chosen = (torch.rand(count, max(k // 2, 1), **random).pow(2) * len(directions)).long()
        sizes = torch.empty(chosen.shape, device=device).exponential_(generator=generator) + 0.5
        tokens = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=sizes, mode="sum")
        tokens += 0.1 * torch.randn(count, d_in, **random) / d_in**0.5
        return tokens * (d_in / tokens.pow(2).sum(1).mean()).sqrt()

    mean = sample(8192).mean(0)
    return lambda count: sample(count) - mean


def timed(device: str, work: Callable) -> tuple[float, object]:
    """Seconds that ``work`` takes, and what it gives."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    wait()
    began = time.perf_counter()
    result = work()
    wait()
    return time.perf_counter() - began, result


def table(rows: list[dict]) -> str:
    lines = ["| size | trainer | version | ms a step (quartiles) | tokens/s | of the best peer's | FVU |"]
    lines.append("|---|---|---|--:|--:|--:|--:|")
    for row in rows:
        if row["version"] is None:
            lines.append(f"| {row['size']} | {row['trainer']} | not installed | | | | |")
            continue
        ratio = f"{row['of_best_peer']:.2f}" if row["of_best_peer"] else ""
        spread = f"{row['ms']:.1f} ({row['ms_from']:.1f}–{row['ms_to']:.1f})"
        lines.append(
            f"| {row['size']} | {row['trainer']} | {row['version']} | {spread} | {row['tokens_per_s']:,.0f} | {ratio} "
            f"| {row['fvu']:.4f} |"
        )
    return "\n".join(lines)


def phase_table(phases: dict[str, dict[str, dict[str, float]]]) -> str:
    parts = [part for size in phases.values() for taken in size.values() for part in taken]
    parts = list(dict.fromkeys(parts))
    lines = ["", "| size | ours, ms | " + " | ".join(parts) + " |", "|---|---|" + "--:|" * len(parts)]
    for size, trainers in phases.items():
        for name, taken in trainers.items():
            lines.append(f"| {size} | {name} | " + " | ".join(f"{taken[part]:.1f}" for part in parts) + " |")
    return "\n".join(lines)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device != "cpu" else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
