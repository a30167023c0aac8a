"""UnlearnCanvas's concepts, its prompts, and the report on how they were removed."""

from collections.abc import Sequence

import torch

from saeuron import SaeuronError
from saeuron.errors import nearest

from ..common.results import table
from .measures import MEASURES, Rate, Verdicts, measures

PLAIN = "Seed_Images"
"""What the style classifier calls a picture in no style."""

NAMES = {  # in the order of the classifiers' labels
    "object": (
        "Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes", "Flame", "Flowers", "Frogs",
        "Horses", "Human", "Jellyfish", "Rabbits", "Sandwiches", "Sea", "Statues", "Towers", "Trees", "Waterfalls",
    ),
    "style": (
        "Abstractionism", "Artist_Sketch", "Blossom_Season", "Bricks", "Byzantine", "Cartoon", "Cold_Warm",
        "Color_Fantasy", "Comic_Etch", "Crayon", "Cubism", "Dadaism", "Dapple", "Defoliation", "Early_Autumn",
        "Expressionism", "Fauvism", "French", "Glowing_Sunset", "Gorgeous_Love", "Greenfield", "Impressionism",
        "Ink_Art", "Joy", "Liquid_Dreams", "Magic_Cube", "Meta_Physics", "Meteor_Shower", "Monet", "Mosaic",
        "Neon_Lines", "On_Fire", "Pastel", "Pencil_Drawing", "Picasso", "Pop_Art", "Red_Blue_Ink", "Rust", PLAIN,
        "Sketch", "Sponge_Dabbed", "Structuralism", "Superstring", "Surrealism", "Ukiyoe", "Van_Gogh", "Vibrant_Flow",
        "Warm_Love", "Warm_Smear", "Watercolor", "Winter",
    ),
}  # fmt: skip
KINDS = tuple(NAMES)


def label(name: str) -> str:
    """A concept's name as UnlearnCanvas writes it, whether it came with spaces or with underscores."""
    return name.strip().replace(" ", "_")


def kind_of(name: str) -> str:
    """``object`` or ``style``; raises SaeuronError with near names where UnlearnCanvas has no concept ``name``."""
    for kind, names in NAMES.items():
        if name in names and name != PLAIN:
            return kind
    known = [known for names in NAMES.values() for known in names if known != PLAIN]
    raise SaeuronError(f"{name!r} is no concept of UnlearnCanvas; the nearest are {nearest(name, known)}")


def prompt(thing: str, style: str) -> str:
    return f"An image of {thing}." if style == PLAIN else f"An image of {thing} in {style.replace('_', ' ')} style."


def pictures(seeds: Sequence[int], limit: int | None = None) -> tuple[list[dict[str, str]], list[int]]:
    """What is drawn: each object in each style and in none, from each of ``seeds``; with the seed of every picture.

    A picture's seed is made of the protocol's seed and the prompt's number: it is the same whatever is removed, and no
    two pictures share it. ``limit`` picks that many, at random but always the same. Raises SaeuronError where there
    would be none.
    """
    if not seeds or (limit is not None and limit < 1):
        raise SaeuronError("--seeds needs at least one and --limit has to be at least 1")
    rows = [
        {"prompt": prompt(thing, style), "object": thing, "style": style}
        for thing in NAMES["object"]
        for style in NAMES["style"]
    ]
    drawn = [(row, seed * 1_000_003 + number) for seed in seeds for number, row in enumerate(rows)]
    if limit is not None:
        order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(0))
        drawn = [drawn[n] for n in sorted(order[:limit].tolist())]
    return [row for row, _ in drawn], [seed for _, seed in drawn]


def summary(rows: Sequence[dict[str, str]], results: Sequence[dict]) -> dict:
    """Accuracies without an edit, and UA, IRA, CRA of every removal; and of each kind, over all its single targets.

    ``results`` are the surveys, the first of them that of the unedited model.
    """
    asked = {kind: [row[kind] for row in rows] for kind in KINDS}
    base, *removals = results
    targets, pools = [], {}
    for result in removals:
        rates = measures(Verdicts(asked, result["found"]), result["targets"], result["kind"])
        targets.append(_entry(result["name"], result["kind"], rates, result["fid"]))
        pools.setdefault(result["kind"], []).append(rates)
    single = all(len(result["targets"]) == 1 for result in removals)
    means = [
        _entry(f"all {len(pool)}", kind, {key: Rate.pooled(rates[key] for rates in pool) for key in MEASURES}, None)
        for kind, pool in pools.items()
        if single and len(pool) > 1
    ]
    verdicts = Verdicts(asked, base["found"])
    return {
        "images": len(rows),
        "base": {kind: verdicts.rate(kind).values() for kind in KINDS} | {"fid": base["fid"]},
        "targets": targets,
        "means": means,
    }


def markdown(report: dict) -> str:
    """The report as a Markdown table, in percent with 95 % intervals."""

    def cell(rate: dict) -> str:
        return str(Rate(rate["hits"], rate["total"]))

    def distance(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    rows = [
        [entry["name"], entry["kind"], *(cell(entry[key]) for key in MEASURES), distance(entry["fid"])]
        for entry in report["targets"] + report["means"]
    ]
    base = report["base"]
    found = ", ".join(f"{kind} {cell(base[kind])}" for kind in KINDS)
    told = f"Unedited model on the same {report['images']} pictures: {found}, FID {distance(base['fid'])}."
    return "\n".join([table(["removed", "kind", "UA", "IRA", "CRA", "kept", "FID"], rows), "", told, ""])


def _entry(name: str, kind: str, rates: dict[str, Rate], fid: float | None) -> dict:
    return {"name": name, "kind": kind} | {key: rate.values() for key, rate in rates.items()} | {"fid": fid}
