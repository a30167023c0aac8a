"""Where an SAE reads whose file does not say so, guessed from what its file and folders are named after."""

import re
from pathlib import Path

from ...saeuron import SaeuronError
from ...saeuron.checkpoints.canonical import transformer_hookpoint

BLOCK = re.compile(
    r"(?<![a-z])(?:unet[._-])?(?P<part>down|mid|up)(?:[._-]?blocks?)?(?:[._-](?P<block>\d))?"
    r"[._-](?:(?:attentions?|attn)[._-])?(?P<attention>\d)(?!\d)",
    re.IGNORECASE,
)
REPOSITORIES = re.compile(r"(?<!comfyui-)(saeuron|saemnesia)", re.IGNORECASE)
"""Publishers whose repositories hold an SAE of `USUAL` where no name says another."""
USUAL = "unet.up_blocks.1.attentions.1"


def guess_hookpoint(sae_name: str, file: Path) -> tuple[str, str]:
    """A hookpoint in diffusers' naming, and what it was guessed from; raises SaeuronError where nothing tells.

    Understood are ``unet.up_blocks.1.attentions.1``, ``up_blocks_1_attentions_1``, ``up.1.1``, ``mid.0`` and the like,
    and ``transformer_blocks.18``, in the name and its folders, and in those of what it may be a link to.
    """
    names = [*reversed(Path(sae_name).parts), *reversed(file.resolve().parts)][:8]
    for name in names:
        for found in BLOCK.finditer(name):
            part, block, attention = found["part"].lower(), found["block"], found["attention"]
            if part == "mid" or block is not None:
                where = "mid_block" if part == "mid" else f"{part}_blocks.{block}"
                return f"unet.{where}.attentions.{attention}", f"the name {name[:40]}"
        if (found := transformer_hookpoint(name)) is not None:
            return found.name, f"the name {name[:40]}"
    for name in names:
        if REPOSITORIES.search(name):
            return USUAL, f"the name {name[:40]}"
    raise SaeuronError(f"{file.name} does not say which block it reads: write it into `hookpoint`, such as {USUAL}")
