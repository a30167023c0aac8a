"""Training of TinyCanvas from scratch: ``python -m tinycanvas.train all``.

Four stages, each seeded and each writing its part of ``tinycanvas/weights``: tokenizer, judge, text encoder, UNet. The
UNet stage checkpoints every few hundred steps and continues from there when started again.
"""

import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from .captions import all_captions
from .drawing import OBJECTS, STYLES, draw
from .judge import Judge
from .model import MAX_TOKENS, WEIGHTS, build_scheduler, build_text_encoder, build_unet, load_tokenizer, to_latents

SEED = 20250118


def _labels(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.randint(len(OBJECTS), (batch,), generator=generator),
        torch.randint(len(STYLES), (batch,), generator=generator),
    )


def train_tokenizer(folder: Path = WEIGHTS) -> None:
    """A byte-pair vocabulary in CLIP's files (``vocab.json``, ``merges.txt``), learnt from the captions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    texts = [c for kind in ("training", "anchor", "evaluation") for c, _, _ in all_captions(kind)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        pattern=__import__("tokenizers").Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True
    )
    alphabet = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=510, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda kv: kv[1]))
    for letter in alphabet:
        vocab.setdefault(letter + "</w>", len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocab))
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def train_judge(folder: Path = WEIGHTS, steps: int = 1500, batch: int = 128) -> None:
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED + 1)
    judge = Judge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        objects, styles = _labels(batch, generator)
        images = draw(objects, styles, generator)
        images = images + torch.randn(images.shape, generator=generator) * 0.1 * torch.rand(
            batch, 1, 1, 1, generator=generator
        )
        with torch.autocast("cpu", torch.bfloat16):
            object_logits, style_logits = judge(images.to(memory_format=torch.channels_last))
        loss = cross_entropy(object_logits.float(), objects) + cross_entropy(style_logits.float(), styles)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"judge step {step} loss {loss.item():.4f}", flush=True)
    judge.eval()
    save_file({k: v.half().contiguous() for k, v in judge.state_dict().items()}, folder / "judge.safetensors")
    judge.load_state_dict({k: v.half().float() for k, v in judge.state_dict().items()})
    objects, styles = _labels(10_000, generator)
    with torch.no_grad():
        predictions = [judge(draw(o, s, generator)) + (o, s) for o, s in zip(objects.split(500), styles.split(500))]
    print("judge object", sum((p[0].argmax(1) == p[2]).sum().item() for p in predictions) / 10_000)
    print("judge style", sum((p[1].argmax(1) == p[3]).sum().item() for p in predictions) / 10_000)


def train_text(folder: Path = WEIGHTS, steps: int = 600) -> None:
    """The text encoder learns what its captions speak of before the UNet sees it, then stays as it is.

    A linear head on the pooled state names object and style of every training caption; the heads are thrown away.
    """
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED + 2)
    tokenizer = load_tokenizer(folder)
    encoder = build_text_encoder(len(tokenizer))
    heads = nn.ModuleList([nn.Linear(128, len(OBJECTS)), nn.Linear(128, len(STYLES))])
    rows = all_captions("training")
    tokens = _tokenize(tokenizer, [caption for caption, _, _ in rows])
    objects = torch.tensor([OBJECTS.index(o) for _, o, _ in rows])
    styles = torch.tensor([STYLES.index(s) for _, _, s in rows])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for step in range(steps):
        pick = torch.randint(len(rows), (128,), generator=generator)
        pooled = encoder(tokens[pick]).pooler_output
        pooled = pooled + 0.3 * torch.randn(pooled.shape, generator=generator)
        loss = cross_entropy(heads[0](pooled), objects[pick]) + cross_entropy(heads[1](pooled), styles[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"text step {step} loss {loss.item():.4f}", flush=True)
    encoder.eval()
    encoder.half().save_pretrained(folder / "text_encoder")
    encoder.float()
    for kind in ("anchor", "evaluation"):
        rows = all_captions(kind)
        pooled = encoder(_tokenize(tokenizer, [c for c, _, _ in rows])).pooler_output
        right = [
            (heads[0](pooled).argmax(1) == torch.tensor([OBJECTS.index(o) for _, o, _ in rows])).float().mean(),
            (heads[1](pooled).argmax(1) == torch.tensor([STYLES.index(s) for _, _, s in rows])).float().mean(),
        ]
        print(f"text {kind}: object {right[0]:.3f} style {right[1]:.3f}")


def _tokenize(tokenizer, texts: list[str]) -> torch.Tensor:
    return tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def _sample(unet, contexts, empty, generator, steps=25, scale=3.0):
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    x = torch.randn(len(contexts), 12, 16, 16, generator=generator)
    both = torch.cat([empty.expand_as(contexts), contexts])
    for t in scheduler.timesteps:
        with torch.autocast("cpu", torch.bfloat16):
            v = unet(torch.cat([x, x]).to(memory_format=torch.channels_last), t, both).sample.float()
        unconditional, conditional = v.chunk(2)
        x = scheduler.step(unconditional + scale * (conditional - unconditional), t, x).prev_sample
    return nn.functional.pixel_shuffle(x, 2)


def train_unet(
    folder: Path = WEIGHTS,
    work: Path = Path("out/tinycanvas"),
    steps: int = 6000,
    batch: int = 64,
    lr: float = 1.5e-3,
    minutes: float = math.inf,
) -> None:
    from transformers import CLIPTextModel

    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    tokenizer = load_tokenizer(folder)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
    rows = all_captions("training")
    with torch.no_grad():
        contexts = encoder(_tokenize(tokenizer, [c for c, _, _ in rows])).last_hidden_state
        empty = encoder(_tokenize(tokenizer, [""])).last_hidden_state
        tests = all_captions("evaluation")
        test_contexts = encoder(_tokenize(tokenizer, [c for c, _, _ in tests])).last_hidden_state
    by_pair: dict[tuple[int, int], list[int]] = {}
    for i, (_, o, s) in enumerate(rows):
        by_pair.setdefault((OBJECTS.index(o), STYLES.index(s)), []).append(i)
    counts = torch.tensor([[len(by_pair[o, s]) for s in range(len(STYLES))] for o in range(len(OBJECTS))])
    firsts = torch.tensor([[by_pair[o, s][0] for s in range(len(STYLES))] for o in range(len(OBJECTS))])

    unet = build_unet().to(memory_format=torch.channels_last)
    print("parameters", sum(p.numel() for p in unet.parameters()))
    average = {k: v.clone() for k, v in unet.state_dict().items()}
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    alphas = build_scheduler().alphas_cumprod
    judge = Judge()
    from safetensors.torch import load_file

    judge.load_state_dict({k: v.float() for k, v in load_file(folder / "judge.safetensors").items()})
    judge.eval()
    start = 0
    checkpoint = work / "unet.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start = state["step"]
        unet.load_state_dict(state["unet"])
        average = state["average"]
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    compiled = torch.compile(unet)
    parameters = dict(unet.named_parameters())
    began = time.time()
    running = 0.0
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(SEED + 1000 + step)
        objects, styles = _labels(batch, generator)
        x0 = to_latents(draw(objects, styles, generator))
        pick = firsts[objects, styles] + (torch.rand(batch, generator=generator) * counts[objects, styles]).long()
        context = contexts[pick]
        drop = torch.rand(batch, generator=generator) < 0.1
        context = torch.where(drop[:, None, None], empty, context)
        # What a picture shows is decided while it is nearly all noise: half of the steps are taken from there.
        t = torch.randint(1000, (batch,), generator=generator)
        t = torch.where(torch.rand(batch, generator=generator) < 0.5, t, 800 + t // 5)
        noise = torch.randn(x0.shape, generator=generator)
        a = alphas[t].sqrt()[:, None, None, None]
        b = (1 - alphas[t]).sqrt()[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            v = compiled((a * x0 + b * noise).to(memory_format=torch.channels_last), t, context).sample
        loss = mse_loss(v.float(), a * noise - b * x0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            names = list(parameters)
            torch._foreach_lerp_([average[n] for n in names], [parameters[n] for n in names], 1 - decay)
        running += loss.item()
        if (step + 1) % 50 == 0:
            rate = (time.time() - began) / (step + 1 - start)
            print(f"unet step {step + 1} loss {running / 50:.4f} {rate:.3f} s/step", flush=True)
            running = 0.0
        timeup = time.time() - began > minutes * 60
        if (step + 1) % 500 == 0 or step + 1 == steps or timeup:
            state = {"step": step + 1, "unet": unet.state_dict(), "average": average}
            state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            probe = build_unet()
            probe.load_state_dict(average)
            probe.eval().to(memory_format=torch.channels_last)
            images = _sample(probe, test_contexts, empty, torch.Generator().manual_seed(1))
            with torch.no_grad():
                found = judge(images)
            right_object = (found[0].argmax(1) == torch.tensor([OBJECTS.index(o) for _, o, _ in tests])).float().mean()
            right_style = (found[1].argmax(1) == torch.tensor([STYLES.index(s) for _, _, s in tests])).float().mean()
            print(f"unet step {step + 1} generated: object {right_object:.3f} style {right_style:.3f}", flush=True)
            _save_grid(images, work / f"grid_{step + 1}.png")
        if timeup:
            break
    final = build_unet()
    final.load_state_dict(average)
    final.half().save_pretrained(folder / "unet")


def _save_grid(images: torch.Tensor, path: Path) -> None:
    from PIL import Image

    columns = len(STYLES)
    grid = images.view(-1, columns, 3, 32, 32).permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels = ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    Image.fromarray(pixels).resize((pixels.shape[1] * 3, pixels.shape[0] * 3), 0).save(path)


if __name__ == "__main__":
    import sys

    stage = sys.argv[1]
    if stage == "tokenizer":
        train_tokenizer()
    if stage == "judge":
        train_judge()
    if stage == "text":
        train_text()
    if stage == "unet":
        train_unet(**{k: float(v) if "." in v else int(v) for k, v in (a.split("=") for a in sys.argv[2:])})
