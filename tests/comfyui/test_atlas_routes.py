"""What the panel asks the server: only atlases of SAEs that are offered, no path in, no path out."""

import io
import json
import urllib.error
import urllib.request

import pytest
import torch
from PIL import Image

from saeuron import SparseAutoencoder, save_sae
from saeuron.atlas import Atlas, Survey

pytestmark = pytest.mark.comfyui

SAE = "tinycanvas.safetensors"


def refused(call, *given, **query) -> str:
    with pytest.raises(urllib.error.HTTPError) as error:
        call(*given, **query)
    assert error.value.code == 400
    return json.loads(error.value.read())["error"]


def test_the_embedded_sae_comes_with_an_atlas(server):
    assert server.get_json("/saeuron/atlas/saes")["saes"][SAE] is True
    cards = server.get_json("/saeuron/atlas/cards", sae=SAE)
    assert cards["latents"] == 1024 == len(cards["words"]) == len(cards["frequency"])
    assert sum("neon" in words.split(" ") for words in cards["words"]) > 5


def test_a_card_tells_of_its_pictures_and_its_concepts(server):
    about = server.get_json("/saeuron/atlas/latent", sae=SAE, latent=251)
    assert len(about["curve"]) == 20 and about["concepts"][0]["concept"] == "neon"
    assert "neon" in about["pictures"][0]["prompt"]
    crop = Image.open(io.BytesIO(server.get("/saeuron/atlas/crop", sae=SAE, latent=251, rank=0, side=96)))
    assert crop.format == "WEBP" and max(crop.size) == 96


def test_a_latent_is_taken_out_as_the_concept_that_it_is_called(server):
    card = server.get_json("/saeuron/atlas/latent", sae=SAE, latent=251)
    assert card["concept"] == "neon"  # its prompts' first word, and it is assigned to it
    asked = {"sae": SAE, "latent": 218}
    try:
        for label, concept in (("Hearts", "heart"), ("my own", "")):
            server.post("/saeuron/atlas/label", asked | {"text": label})
            assert server.get_json("/saeuron/atlas/latent", **asked)["concept"] == concept
    finally:
        server.post("/saeuron/atlas/label", asked | {"text": ""})


@pytest.mark.parametrize("path", ["cards", "latent", "crop", "pair"])
def test_only_saes_that_are_offered_are_opened(server, path):
    for name in ("../../etc", "/etc/passwd", "", "nothing.safetensors", "tinycanvas.atlas"):
        assert "models/saes" in refused(server.get, f"/saeuron/atlas/{path}", sae=name)


def number(name: str, most: int) -> str:
    return f"`{name}` has to be a whole number from 0 to {most}"


PATH = "/saeuron/atlas"
CARD = {"sae": SAE, "latent": 251}
BRUSH = "a brush is rows of numbers, up to 64 a side"
GONE = "this picture is no longer kept: run its workflow again"
STRAY = "this picture is not among the previews of this session: draw the pair again"


def shown(name: str, **more: str) -> dict:
    """What the panel posts of two pictures in ComfyUI's folder for previews."""
    return {"sae": SAE, "latent": 1, "up": {"filename": name, **more}, "down": {"filename": name, **more}}


# What is asked with GET or posted, and what the server says.
ASKED = [
    ("get", "crop", {"sae": SAE, "latent": 1024}, number("latent", 1023)),
    ("get", "crop", {"sae": SAE, "latent": -1}, number("latent", 1023)),
    ("get", "crop", {"sae": SAE, "latent": "9" * 5000}, number("latent", 1023)),
    ("get", "crop", CARD | {"rank": 12}, number("rank", 11)),
    ("get", "crop", CARD | {"side": 9999}, number("side", 512)),
    ("get", "crop", {"sae": "few/sae.safetensors", "latent": 5, "rank": 1}, "latent 5 has no picture 1"),
    ("get", "pair", {"sae": SAE, "latent": 5}, "no pair was drawn of latent 5 yet"),
    ("get", "seen", {"picture": "x"}, number("picture", 2**31 - 1)),
    ("get", "seen", {"picture": 12345}, GONE),
    ("get", "cards", {"sae": "../" * 99}, f"there is no file {('../' * 20)!r} in models/saes"),
    ("post", "brush", {"sae": SAE, "picture": 12345, "brush": [[1]]}, GONE),
    ("post", "label", CARD | {"text": None}, "a label is a line of up to 200 letters"),
    ("post", "label", CARD | {"text": "x" * 201}, "a label is a line of up to 200 letters"),
    ("post", "label", CARD | {"text": "a\u202eb"}, "a label is a line of up to 200 letters"),
    ("post", "label", CARD | {"text": "x" * 100_000}, "the question is too long"),
    ("post", "label", [1], "the question holds a JSON list where an object is expected"),
    ("post", "pair", shown("../../user/comfyui.log"), STRAY),
    ("post", "pair", shown("comfyui.log", subfolder="../user"), STRAY),
    ("post", "pair", shown("comfyui.log", subfolder="\0"), STRAY),
    ("post", "pair", shown("none.png"), STRAY),
    ("post", "pair", shown("x" * 5000), STRAY),
    ("post", "pair", shown("broken.png"), "this picture cannot be read: draw the pair again"),
    ("post", "pair", shown("huge.png"), "this picture is 8193 × 1 pixels, and 8192 a side are the most"),
]


@pytest.fixture(scope="module")
def odd_files(server):
    """Previews that are none, and an SAE whose atlas holds one picture."""
    previews = server.base / "temp"
    previews.mkdir(exist_ok=True)
    (previews / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"spoilt" * 9)
    Image.new("RGB", (8193, 1)).save(previews / "huge.png")
    folder = server.base / "models" / "saes" / "few"
    sae = SparseAutoencoder(8, 16, 2).requires_grad_(False)
    save_sae(sae, folder)
    survey = Survey(sae, 1, 2, 2)
    survey.see(torch.ones(1, 4, 8), 500)
    atlas = Atlas.create(folder / "few.atlas", sae, (2, 2), {})
    atlas.add(survey.finish(), [Image.new("RGB", (16, 16))], ["a heart"], ["1"])
    atlas.save()


@pytest.mark.parametrize(("method", "path", "given", "says"), ASKED, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_is_told_in_one_sentence(server, odd_files, method, path, given, says):
    if method == "get":
        told = refused(server.get, f"{PATH}/{path}", **given)
    else:
        told = refused(server.post, f"{PATH}/{path}", given)
    assert told == says


def test_a_question_of_any_depth_is_answered(server):
    for deep in ("[" * 90_000, '{"a":' * 15_000):
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}{PATH}/label", deep.encode())
        assert "deep" in refused(urllib.request.urlopen, request) or "JSON" in refused(urllib.request.urlopen, request)


def test_a_brush_is_rows_of_numbers_over_a_picture_that_was_seen(server, load):
    server.run(load("atlas"))
    picture = server.get_json(f"{PATH}/seen")["seen"][0]["number"]
    asked = {"sae": SAE, "picture": picture}
    assert server.post(f"{PATH}/brush", asked | {"brush": [[1, 1], [0, 0]]})["latents"]
    for brush in ("all", [], [[]], [["1"]], [[1], [1, 2]], [[1] * 65]):
        told = refused(server.post, f"{PATH}/brush", asked | {"brush": brush})
        assert told == BRUSH


def test_a_broken_atlas_is_told_without_where_it_lies(server):
    folder = server.base / "models" / "saes" / "tinycanvas.atlas"
    folder.mkdir(exist_ok=True)
    (folder / "atlas.json").write_text("{}")
    try:
        told = refused(server.get, "/saeuron/atlas/cards", sae=SAE)
        assert told.startswith("tinycanvas.atlas/atlas.json lacks") and str(server.base) not in told
    finally:
        (folder / "atlas.json").unlink()
