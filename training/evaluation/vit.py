"""Judges that are vision transformers, in timm's naming: what UnlearnCanvas publishes for styles and for objects.

They are run here and not by timm, which needs torchvision and with it one certain version of torch. Size and depth are
read from the checkpoint, so that any of timm's plain ``vit_*_patch*`` with a class token serves as a judge.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from saeuron import SaeuronError
from saeuron.checkpoints.pickled import read_pickle
from saeuron.files import check_finite, read_tensors

from ..common.pictures import from_picture, to_picture
from .canvas import NAMES
from .judges import Judge

HEAD = 64  # channels of an attention head, in every size that timm offers
NESTED = ("model_state_dict", "state_dict", "model")


class VitJudge(Judge):
    """One judge of several kinds, each kind by the classifier in ``checkpoints[kind]`` with the labels ``names[kind]``.

    Features are those of all classifiers, one behind the other. Raises SaeuronError naming the file that is missing,
    broken, no vision transformer, or of other labels.
    """

    def __init__(self, checkpoints: Mapping[str, Path], names: Mapping[str, Sequence[str]], device: str) -> None:
        self.names, self.device = {kind: tuple(names[kind]) for kind in checkpoints}, device
        self.models = {kind: load_classifier(path, len(names[kind])) for kind, path in checkpoints.items()}
        heads = b"".join(model.head.weight.float().numpy().tobytes() for model in self.models.values())
        self.identity = f"vit:{hashlib.sha256(heads).hexdigest()[:12]}"
        for model in self.models.values():
            model.to(device)

    def scores(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        features = {
            kind: model.features(prepared(images, model.size).to(self.device)) for kind, model in self.models.items()
        }
        return torch.cat(list(features.values()), 1), {
            kind: self.models[kind].head(own) for kind, own in features.items()
        }


def labels_of(kind: str, checkpoint: Path) -> Sequence[str]:
    """What a classifier of ``kind`` tells apart: one name a line of the .txt beside it, or UnlearnCanvas's names."""
    beside = checkpoint.with_suffix(".txt")
    if beside.exists():
        try:
            return tuple(line.strip() for line in beside.read_text("utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise SaeuronError(f"{beside} could not be read: {error}") from None
    if kind not in NAMES:
        raise SaeuronError(f"the labels of {checkpoint} are unknown: write them, one a line, into {beside}")
    return NAMES[kind]


def prepared(images: torch.Tensor, size: int) -> torch.Tensor:
    """Pictures as the classifiers were trained on them: 8 bit, scaled to ``size`` × ``size``, and −1..1."""
    scaled = [to_picture(image).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    return torch.stack([from_picture(picture) for picture in scaled]).float() / 127.5 - 1


def load_classifier(path: Path, labels: int) -> "VisionTransformer":
    """The classifier in ``path``, a .safetensors file or a PyTorch file that holds nothing but tensors."""
    weights = _read(Path(path))
    try:
        model = VisionTransformer(weights)
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, IndexError) as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        raise SaeuronError(f"{path} is not a vision transformer in timm's naming: {reason}") from None
    if model.head.out_features != labels:
        raise SaeuronError(f"{path} tells {model.head.out_features} labels apart and the task has {labels}")
    return model.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, torch.Tensor]:
    weights = read_tensors(path)[0] if path.suffix == ".safetensors" else read_pickle(path)
    for name in NESTED:
        weights = weights[name] if isinstance(weights, dict) and isinstance(weights.get(name), dict) else weights
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise SaeuronError(f"{path} holds no state dict, neither as it is nor under {', '.join(NESTED)}")
    check_finite(weights, path)
    return {str(name).removeprefix("module."): value for name, value in weights.items()}


class VisionTransformer(nn.Module):
    """ViT with a class token, of the size of ``weights``: images ``[B, 3, size, size]`` → logits ``[B, labels]``."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        places = weights["pos_embed"].shape[1]
        depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
        self.size = round((places - 1) ** 0.5) * patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, places, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList([_Block(width, hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, weights["head.weight"].shape[0])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The class token ``[B, width]`` that the head reads."""
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        B, N, width = tokens.shape
        qkv = self.attn["qkv"](self.norm1(tokens)).view(B, N, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(B, N, width)
        tokens = tokens + self.attn["proj"](mixed)
        return tokens + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(tokens))))
