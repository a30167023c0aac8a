"""Training of TinyCanvas from scratch: ``python -m tinycanvas.build``.

Five seeded stages, each writing its part of ``tinycanvas/weights``, and a gate that measures what the UNet draws:
tokenizer, judge, text, unet, gate, transformer. The unet and transformer stages checkpoint every 250 steps and continue
from there when started again.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from torch.nn.functional import cross_entropy

from ..captions import all_captions
from ..drawing import OBJECTS, STYLES, draw, random_labels
from ..judge import Judge
from ..model import MAX_TOKENS, WEIGHTS, build_text_encoder, load_tokenizer, tokenize
from .gate import gate
from .transformer import train_transformer
from .unet import train_unet

SEED = 20250118


def train_tokenizer(folder: Path = WEIGHTS) -> None:
    """A byte-pair vocabulary in CLIP's files (``vocab.json``, ``merges.txt``), learnt from the captions."""
    texts = [caption for kind in ("training", "anchor", "evaluation") for caption, _, _ in all_captions(kind)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    words = Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words, behavior="removed", invert=True)
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=510, initial_alphabet=letters, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    for token in [*(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "pad_token": "<|endoftext|>"}
    place = folder / "tokenizer"
    place.mkdir(parents=True, exist_ok=True)
    (place / "vocab.json").write_text(json.dumps(vocabulary))
    (place / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (place / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def train_judge(folder: Path = WEIGHTS, steps: int = 2000, batch: int = 128) -> None:
    """The judge sees worn drawings, so that it forgives what a diffusion model does to colours and edges."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED + 1)
    judge = Judge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        objects, styles = random_labels(batch, generator)
        images = _wear(draw(objects, styles, generator), generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(images.to(memory_format=torch.channels_last))
        loss = cross_entropy(logits[0].float(), objects) + cross_entropy(logits[1].float(), styles)
        _step(optimizer, schedule, loss)
        if (step + 1) % 100 == 0:
            print(f"judge step {step + 1} loss {loss.item():.4f}", flush=True)
    save_file(
        {name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}, folder / "judge.safetensors"
    )


def _wear(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Bend outlines, shift contrast and colour, blur and add noise, each picture by amounts of its own."""

    def amount(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return low + (high - low) * torch.rand(len(images), channels, 1, 1, generator=generator)

    images = _bend(images, amount(0, 2.5), generator)
    images = images * amount(0.85, 1.15) + amount(-0.15, 0.15, 3)
    blurred = nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = images.lerp(blurred, amount(0, 0.7))
    return images + torch.randn(images.shape, generator=generator) * amount(0, 0.3)


def _bend(images: torch.Tensor, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move every place by up to about ``pixels`` ``[B, 1, 1, 1]``, neighbours together."""
    size = images.shape[-1]
    field = torch.randn(len(images), 2, 6, 6, generator=generator) * (2 / size) * pixels / 1.5
    field = nn.functional.interpolate(field, (size, size), mode="bicubic", align_corners=False)
    still = nn.functional.affine_grid(torch.eye(2, 3).expand(len(images), -1, -1), images.shape, align_corners=False)
    return nn.functional.grid_sample(images, still + field.movedim(1, -1), padding_mode="border", align_corners=False)


def train_text(folder: Path = WEIGHTS, steps: int = 600, batch: int = 128) -> None:
    """The text encoder learns what its captions speak of before the UNet sees it, then stays as it is.

    Linear heads on the pooled state name object and style of every training caption; the heads are thrown away.
    """
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED + 2)
    tokenizer = load_tokenizer(folder)
    encoder = build_text_encoder(len(tokenizer))
    heads = nn.ModuleList([nn.Linear(128, len(OBJECTS)), nn.Linear(128, len(STYLES))])
    rows = all_captions("training")
    tokens = tokenize(tokenizer, [caption for caption, _, _ in rows])
    objects = torch.tensor([OBJECTS.index(name) for _, name, _ in rows])
    styles = torch.tensor([STYLES.index(name) for _, _, name in rows])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for step in range(steps):
        pick = torch.randint(len(rows), (batch,), generator=generator)
        pooled = encoder(tokens[pick]).pooler_output
        pooled = pooled + 0.3 * torch.randn(pooled.shape, generator=generator)
        loss = cross_entropy(heads[0](pooled), objects[pick]) + cross_entropy(heads[1](pooled), styles[pick])
        _step(optimizer, schedule, loss)
        if (step + 1) % 100 == 0:
            print(f"text step {step + 1} loss {loss.item():.4f}", flush=True)
    encoder.eval().half().save_pretrained(folder / "text_encoder")


def _step(optimizer: torch.optim.Optimizer, schedule, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


STAGES = {
    "tokenizer": train_tokenizer,
    "judge": train_judge,
    "text": train_text,
    "unet": train_unet,
    "gate": gate,
    "transformer": train_transformer,
}


def main(stages: list[str]) -> int:
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        print(f"error: no stage {unknown[0]!r}; the stages are {', '.join(STAGES)}", file=sys.stderr)
        return 2
    for name in stages or STAGES:
        STAGES[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
