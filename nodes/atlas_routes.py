"""What the atlas panel asks the server. An atlas goes by the name of its SAE; no path comes in or goes out."""

import asyncio
import contextlib
import io
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from ..saeuron import SaeuronError, read_assignment
from ..saeuron.atlas import Atlas, sheets
from ..saeuron.atlas.cards import cards_as_json, curve_of, read_cards
from ..saeuron.atlas.labels import LONGEST
from ..saeuron.files import parse_json, write_atomically
from .concept_text import match_name
from .host import atlases, files, headers, workflow
from .seen import GONE, search_by_brush, seen_pictures

LARGEST = 512
"""Pixels of the longest side of a crop."""
LONGEST_QUESTION = 100_000
"""Bytes of what is posted."""


def register(routes) -> None:
    """Add the panel's routes to those of a PromptServer."""
    from aiohttp import web

    def answer(work: Callable) -> Callable:
        """A handler that tells what the user can mend as a sentence, and works apart from the server's own thread."""

        async def handler(request: web.Request) -> web.Response:
            try:
                given = dict(request.query)
                if request.method == "POST":
                    given |= await _posted(request)
                found = await asyncio.to_thread(work, given)
            except SaeuronError as error:
                return web.json_response({"error": workflow.sentence(error)}, status=400)
            if isinstance(found, bytes):
                return web.Response(body=found, content_type="image/webp", headers={"Cache-Control": "max-age=3600"})
            text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
            return web.Response(text=text, content_type="application/json")

        return handler

    async def _posted(request: web.Request) -> dict:
        body = b""
        async for part in request.content.iter_any():  # which may come without saying how long it is
            body += part
            if len(body) > LONGEST_QUESTION:
                raise SaeuronError("the question is too long")
        return parse_json(body.decode("utf-8", "replace"), "the question")

    for path, work in {
        "saes": saes,
        "cards": cards,
        "latent": latent,
        "crop": crop,
        "seen": seen,
        "pair": pair,
    }.items():
        routes.get(f"/saeuron/atlas/{path}")(answer(work))
    for path, work in {"label": label, "brush": brush, "pair": keep_pair}.items():
        routes.post(f"/saeuron/atlas/{path}")(answer(work))


def saes(_given: dict) -> dict:
    return {"saes": atlases.with_atlas()}


def cards(given: dict) -> str:
    """All that the grid needs: the atlas's columns, and its labels."""
    name = sae_name(given)
    with atlases.LOCK:
        columns = cards_as_json(atlases.checked_folder(name))
    # The last of two entries of one name counts, so that whatever a file calls its labels is not what is shown.
    return f'{columns[:-1]},"labels":{json.dumps(atlases.labels_of(name), ensure_ascii=False)}}}'


def latent(given: dict) -> dict:
    """What one card shows beside the columns: its curve, its pictures' prompts, the concepts it scores for."""
    name = sae_name(given)
    atlas = opened(atlases.checked_folder(name))
    number = latent_of(given, atlas)
    strongest = atlas.strongest
    pictures = [
        {"prompt": atlas.row(picture)["prompt"], "strength": round(float(strength), 3)}
        for picture, strength in zip(strongest.pictures[number].tolist(), strongest.strengths[number], strict=True)
        if picture >= 0
    ]
    about = {"curve": curve_of(atlas, number), "pictures": pictures, "concepts": scores_of(name, number)}
    return about | {"concept": concept_of(name, number), "pair": atlases.pair_time(name, number)}


def crop(given: dict) -> bytes:
    """A picture in which a latent is strong, with its heat map, as WebP."""
    atlas = opened(atlases.checked_folder(sae_name(given)))
    number, rank = latent_of(given, atlas), whole(given, "rank", atlas.strongest.pictures.shape[1])
    side = min(whole(given, "side", LARGEST + 1), LARGEST) or 96
    picture = int(atlas.strongest.pictures[number, rank])
    if picture < 0:
        raise SaeuronError(f"latent {number} has no picture {rank}")
    heat = atlas.strongest.heat[number, rank].float().view(atlas.grid) / 255
    image = atlas.picture(picture)
    strengths = atlas.strongest.strengths[number]
    # Weaker pictures stay darker than the strongest.
    light = float(strengths[rank] / strengths[0].clamp_min(1e-9)) ** 0.5
    shown = heat * 0 + 1 if given.get("heat") == "0" else heat * light
    return encoded(sheets.heated(image, shown, side, sheets.window(heat, image.size) if given.get("close") else None))


def seen(given: dict) -> dict | bytes:
    """The pictures that a probe saw in this session; with ``picture``, one of them."""
    pictures = seen_pictures()
    if "picture" not in given:
        return {"seen": [{"number": number, "sae": one.sae_name} for number, one in pictures.items()]}
    number = whole(given, "picture", 2**31)
    if number not in pictures:
        raise SaeuronError(GONE)
    return encoded(pictures[number].image)


def label(given: dict) -> dict:
    name = sae_name(given)
    number, text = latent_of(given, opened(atlases.checked_folder(name))), given.get("text")
    text = " ".join(text.split()) if isinstance(text, str) else ""
    if not isinstance(given.get("text"), str) or len(text) > LONGEST or not text.isprintable():
        raise SaeuronError(f"a label is a line of up to {LONGEST} letters")
    atlases.label(name, number, text)
    return {"labels": atlases.labels_of(name)}


def pair(given: dict) -> bytes:
    """One side of the pair that was drawn of a latent."""
    name = sae_name(given)
    number, side = latent_of(given, opened(atlases.checked_folder(name))), given.get("side")
    path = atlases.pair_path(name, number, "up" if side == "up" else "down")
    if not path.exists():
        raise SaeuronError(f"no pair was drawn of latent {number} yet")
    return path.read_bytes()


def keep_pair(given: dict) -> dict:
    """Keep two pictures that ComfyUI has just shown as a latent's pair."""
    name = sae_name(given)
    number = latent_of(given, opened(atlases.checked_folder(name)))
    for side in ("up", "down"):
        image = atlases.shown_picture(given.get(side))
        image.thumbnail((LARGEST, LARGEST))
        content = encoded(image)
        write_atomically(atlases.pair_path(name, number, side), lambda path, content=content: path.write_bytes(content))
    return {"pair": atlases.pair_time(name, number)}


def brush(given: dict) -> dict:
    """The latents that fire where a picture was brushed and not elsewhere, the first first."""
    name = sae_name(given)
    usual = opened(atlases.checked_folder(name)).usual
    return {"latents": search_by_brush(given.get("picture"), given.get("brush"), name, usual)}


def sae_name(given: dict) -> str:
    name = given.get("sae")
    if name not in files.names():
        raise SaeuronError(f"there is no file {str(name)[:60]!r} in models/saes")
    return name


def opened(folder: Path) -> Atlas:
    """The atlas in ``folder``, read again only when it has grown."""
    return _opened(folder, (folder / "atlas.json").stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _opened(folder: Path, _time: int) -> Atlas:
    return Atlas.load(folder)


def latent_of(given: dict, atlas: Atlas) -> int:
    return whole(given, "latent", atlas.about["n_latents"])


def whole(given: dict, name: str, under: int) -> int:
    """A whole number from 0 to under ``under``; 0 where it is not given."""
    try:
        number = int(given.get(name, 0))
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < under:
        raise SaeuronError(f"`{name}` has to be a whole number from 0 to {under - 1}")
    return number


def encoded(image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=85, lossless=max(image.size) <= sheets.LOSSLESS)
    return file.getvalue()


def scores_of(name: str, number: int) -> list[dict]:
    """The concepts of the SAE's own table for which this latent scores highest."""
    table = bundle_of(name).table
    if table is None:
        return []
    known = headers.offered(table.concepts)
    scores = {concept: float(_scores(table, concept)[number]) for concept in known}
    best = sorted(scores.items(), key=lambda item: -item[1])[:5]
    return [{"concept": concept, "score": round(score, 4)} for concept, score in best if score > 0]


def concept_of(name: str, number: int) -> str:
    """The concept of the SAE's own table that a latent stands for: by its label, else its first word, or assigned.

    Empty where there is none.
    """
    bundle = bundle_of(name)
    known = headers.offered(bundle.table.concepts) if bundle.table is not None else {}
    label = atlases.labels_of(name).get(str(number))
    called = label["text"] if label else read_cards(atlases.checked_folder(name))["words"][number].partition(" ")[0]
    names = [called] if known else []
    with contextlib.suppress(SaeuronError):
        names += [one for one, own in read_assignment(bundle.sae).items() if own == number and known]
    for one in names:
        with contextlib.suppress(SaeuronError):
            if (concept := match_name(one, bundle.table)) in known:
                return concept
    return ""


def bundle_of(name: str):
    """The SAE with its table, read again only when its files have changed."""
    return _bundle(name, files.stamp(*files.sources(name)))


@lru_cache(maxsize=2)
def _bundle(name: str, _stamp: object):
    from ..saeuron.checkpoints import load_bundle

    return load_bundle(files.path(name))


@lru_cache(maxsize=2048)
def _scores(table, concept: str):
    return table.scores(concept).mean(0)
