"""Trainers of SAEs that are timed beside each other: ours, and those of other libraries, as their own trainers step.

All have the same learning rate and the same Adam.
"""

import argparse

import torch

from training.sae.trainer import TrainingAutoencoder, descend

from .common import timed

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

    def phases(self, config: argparse.Namespace, tokens: torch.Tensor) -> dict[str, float]:
        """Seconds of each part of a step, one after the other."""
        weights = [self.model.W_enc, self.model.b_enc]
        if self.bf16:
            tokens_, weights = tokens.bfloat16(), [weight.detach().bfloat16() for weight in weights]
        else:
            tokens_, weights = tokens, [weight.detach() for weight in weights]
        product = timed(config, lambda: torch.nn.functional.linear(tokens_, *weights))[0]
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            encoded = timed(config, lambda: self.model.code(tokens))[0]
            forward, losses = timed(config, lambda: self.model.losses(tokens, NEVER, 1))
        backward = timed(config, losses.fvu.backward)[0]
        projected = timed(config, self.model.project_gradient)[0]
        whole = timed(config, lambda: descend(self.model, self.optimizer))[0]
        normalised = timed(config, self.model.normalise_decoder)[0]
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


class Repository:
    """The SAeUron repository's own trainer, whose folder is on the path; wants einops, natsort, simple-parsing."""

    package = None

    def __init__(self, d_in: int, n_latents: int, k: int, device: str) -> None:
        from SAE.config import SaeConfig
        from SAE.sae import Sae

        self.sae = Sae(d_in, SaeConfig(num_latents=n_latents, k=k, batch_topk=True), device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=LR, fused=True)
        self.since_fired = torch.zeros(n_latents, dtype=torch.long, device=device)

    def step(self, tokens: torch.Tensor) -> None:
        self.sae.set_decoder_norm_to_unit_norm()
        out = self.sae(tokens[None], dead_mask=self.since_fired > NEVER)
        (out.fvu + out.auxk_loss / 32).backward()
        fired = torch.zeros_like(self.since_fired, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.since_fired += len(tokens)
        self.since_fired[fired] = 0

    @torch.no_grad()
    def reconstruct(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.sae(tokens[None]).sae_out


TRAINERS: dict[str, tuple[type, tuple]] = {
    "ours, BatchTopK, bfloat16": (Ours, ("batch_topk", True)),
    "ours, TopK, bfloat16": (Ours, ("topk", True)),
    "ours, BatchTopK, float32": (Ours, ("batch_topk", False)),
    "ours, TopK, float32": (Ours, ("topk", False)),
    "sparsify, TopK": (Sparsify, ()),
    "dictionary_learning, BatchTopK": (DictionaryLearning, ()),
    "SAELens, BatchTopK": (SAELens, ()),
    "SAeUron's repository, BatchTopK": (Repository, ()),
}
