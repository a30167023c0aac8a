"""A judge that was trained for nothing in particular: CLIP, zero-shot, from a local folder.

Each concept is a sentence, and the one whose embedding lies nearest to the picture's is what the picture shows.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers

from saeuron import SaeuronError

from ..common.pictures import to_picture
from .judges import Judge

PROMPTS = {"style": "{name} style"}
PROMPT = "a photo of {name}"
"""What a concept of any other kind is put into."""


class ClipJudge(Judge):
    """Tells ``names`` (kind → names) apart, by what transformers' CLIP in ``folder`` makes of sentences with them.

    ``prompts[kind]`` is the sentence of a kind, with ``{name}`` in it. Features are the pictures' embeddings. Raises
    SaeuronError where the folder holds no CLIP, or a kind has fewer than two names.
    """

    def __init__(
        self,
        folder: Path,
        names: Mapping[str, Sequence[str]],
        device: str = "cpu",
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        self.names, self.device = {kind: tuple(dict.fromkeys(own)) for kind, own in names.items()}, device
        for kind, own in self.names.items():
            if len(own) < 2:
                raise SaeuronError(f"a judge needs two names of a kind to tell apart, and of {kind} there are {own}")
        self.model, self.tokenizer, self.processor = _load(Path(folder))
        self.model.to(device).eval().requires_grad_(False)
        self.sentences = {kind: self._sentences(kind, prompts or {}) for kind in self.names}
        self.texts = {kind: self._texts(sentences) for kind, sentences in self.sentences.items()}
        content = b"".join(own.cpu().numpy().tobytes() for own in self.texts.values())
        self.identity = f"clip:{hashlib.sha256(content).hexdigest()[:12]}"

    def scores(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pixels = self.processor(images=[to_picture(image) for image in images], return_tensors="pt").pixel_values
        pooled = self.model.vision_model(pixel_values=pixels.to(self.device))[1]
        features = torch.nn.functional.normalize(self.model.visual_projection(pooled), dim=1)
        scale = self.model.logit_scale.exp()
        return features, {kind: scale * features @ texts.T for kind, texts in self.texts.items()}

    def _sentences(self, kind: str, prompts: Mapping[str, str]) -> list[str]:
        prompt = prompts.get(kind) or PROMPTS.get(kind, PROMPT)
        if "{name}" not in prompt:
            raise SaeuronError(f"the judge's prompt for {kind} has to have {{name}} in it, and is {prompt!r}")
        return [prompt.replace("{name}", name.replace("_", " ")) for name in self.names[kind]]

    @torch.no_grad()
    def _texts(self, sentences: Sequence[str]) -> torch.Tensor:
        """Embeddings ``[len(sentences), F]`` of length 1."""
        length = self.model.config.text_config.max_position_embeddings
        options = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
        tokens = self.tokenizer(list(sentences), **options).to(self.device)
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)[1]
        return torch.nn.functional.normalize(self.model.text_projection(pooled), dim=1)


def _load(folder: Path) -> tuple[transformers.CLIPModel, transformers.CLIPTokenizer, object]:
    if not (folder / "config.json").exists():
        raise SaeuronError(f"{folder} is not a folder of transformers' CLIP: it has no config.json")
    # The one that scales pictures with PIL; the other wants torchvision, and with it one certain version of torch.
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    parts = (transformers.CLIPModel, transformers.CLIPTokenizer, processor)
    try:
        return tuple(part.from_pretrained(folder, local_files_only=True) for part in parts)
    except Exception as error:  # transformers raises many kinds; all of them mean the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SaeuronError(f"{folder} could not be loaded as transformers' CLIP: {reason}") from error
