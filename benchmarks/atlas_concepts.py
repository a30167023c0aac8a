"""Whether the atlas leads to every concept: words and pictures → latents → turned up, does the concept appear?

python -m benchmarks.atlas_concepts --atlas FOLDER

Nobody has labelled anything: a concept's word is typed into the panel's own search (`web/js/atlas/search.js`, run by
node), or a picture of it is brushed whole, as a person would look for it. The first few latents offered are steered in,
at a few strengths of their peak, into pictures whose prompts do not name the concept; TinyCanvas's judge says in how
many it then appears.
"""

import argparse
import json
import subprocess
from pathlib import Path

import torch

from saeuron import Steer
from saeuron.atlas import Atlas
from saeuron.atlas.cards import read_cards
from saeuron.atlas.labels import read
from saeuron.checkpoints import load_bundle
from tinycanvas.drawing import OBJECTS, STYLES
from training.common.results import table
from training.diffusion.hook import reading
from training.diffusion.load import load_model
from training.diffusion.sampling import Sampling, draw_all, generate
from training.evaluation.judges import tinycanvas_judge
from training.sae.atlas import Surveyor

ROOT = Path(__file__).parents[1]
SAE = ROOT / "tinycanvas" / "saes" / "tinycanvas.safetensors"
SEARCH = """
import {{ find, prepare }} from "{module}";
import {{ readFileSync }} from "node:fs";
const {{ cards, words }} = JSON.parse(readFileSync(0, "utf8"));
const own = prepare(cards);
const found = words.map((word) => [word, find(own, {{ text: word, filter: "alive" }}).slice(0, 10)]);
console.log(JSON.stringify(Object.fromEntries(found)));
"""
STRENGTHS = (1.0, 2.0, 3.0)
"""What is added, in parts of the latent's largest activation: where the slider is moved."""
ENOUGH = 0.8


def by_words(folder: Path, words: list[str]) -> dict[str, list[int]]:
    cards = read_cards(folder) | {"labels": read(folder)}
    program = SEARCH.format(module=(ROOT / "web" / "js" / "atlas" / "search.js").as_uri())
    command = ["node", "--no-warnings", "--input-type=module", "-e", program]
    asked = json.dumps({"cards": cards, "words": words})
    return json.loads(subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout)


def by_picture(pipeline, sae, sampling: Sampling, concept: str, usual: torch.Tensor) -> list[int]:
    """The latents offered for one picture that shows the concept, brushed whole."""
    surveyor = Surveyor(sae, 1, sampling)
    images = generate(pipeline, [shows(concept)], [7], sampling, {sae.hookpoint: reading(surveyor.see)})
    found = surveyor.of(images).finish().firing_in(torch.ones(8, 8), 0, usual)
    return found.topk(10).indices.tolist()


def shows(concept: str) -> str:
    return f"An image of heart in {concept} style." if concept in STYLES else f"An image of {concept}."


def neutral(concept: str, count: int) -> list[dict[str, str]]:
    """Prompts that do not name the concept: another style's pictures, or pictures of nothing in particular."""
    other = "sepia" if concept == "plain" else None
    if concept in OBJECTS:
        return [{"prompt": "An image."}] * count
    styled = f" in {other} style" if other else ""
    return [{"prompt": f"An image of {OBJECTS[number % len(OBJECTS)]}{styled}."} for number in range(count)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--atlas", type=Path, default=SAE.with_suffix(".atlas"))
    options.add_argument("--pictures", type=int, default=10)
    options.add_argument("--steps", type=int, default=25)
    options.add_argument("--candidates", type=int, default=5)
    given = options.parse_args()
    sae, pipeline, judge = load_bundle(SAE).sae, load_model("tinycanvas"), tinycanvas_judge()
    sampling = Sampling(steps=given.steps, guidance=3.0, batch=given.pictures)
    peaks, concepts = read_cards(given.atlas)["peak"], [*OBJECTS, *STYLES]
    words = by_words(given.atlas, concepts)

    def appears(concept: str, latent: int, strength: float) -> float:
        edits = {sae.hookpoint: [Steer(sae, (latent,), add=strength * peaks[latent])]} if strength else {}
        rows, kind = neutral(concept, given.pictures), "object" if concept in OBJECTS else "style"
        named = judge(draw_all(pipeline, rows, range(100, 100 + given.pictures), sampling, edits))[kind]
        return named.count(concept) / len(named)

    def tried(concept: str, way: str, latents: list[int]) -> tuple:
        """The best of the latents offered, or the first that is good enough."""
        best = (0.0, way, 0, "")
        for place, latent in enumerate(latents[: given.candidates], 1):
            for strength in STRENGTHS:
                best = max(best, (appears(concept, latent, strength), way, place, f"{latent} +{strength:g} peak"))
                if best[0] >= ENOUGH:
                    return best
        return best

    lines, usual = [], Atlas.load(given.atlas).usual
    for concept in concepts:
        found = tried(concept, "word", words[concept])
        if found[0] < ENOUGH:
            found = max(found, tried(concept, "picture", by_picture(pipeline, sae, sampling, concept, usual)))
        lines.append([concept, f"{appears(concept, 0, 0.0):.0%}", f"{found[0]:.0%}", *found[1:]])
        print(lines[-1], flush=True)
    print(table(["concept", "before", "turned up", "found by", "place", "latent"], lines))
    print(f"{sum(float(line[2].rstrip('%')) >= 100 * ENOUGH for line in lines)} of {len(lines)}")


if __name__ == "__main__":
    main()
