"""What the panel asks the server: only atlases of SAEs that are offered, no path in, no path out."""

import io
import json
import urllib.error

import pytest
from PIL import Image

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


@pytest.mark.parametrize("path", ["cards", "latent", "crop", "pair"])
def test_only_saes_that_are_offered_are_opened(server, path):
    for name in ("../../etc", "/etc/passwd", "", "nothing.safetensors", "tinycanvas.atlas"):
        assert "models/saes" in refused(server.get, f"/saeuron/atlas/{path}", sae=name)


@pytest.mark.parametrize(
    "query", [{"latent": 1024}, {"latent": -1}, {"latent": "x"}, {"latent": 1, "rank": 12}, {"latent": 1, "side": 9999}]
)
def test_numbers_that_are_none_are_told(server, query):
    assert "whole number" in refused(server.get, "/saeuron/atlas/crop", sae=SAE, **query)


def test_no_picture_outside_the_previews_is_kept(server):
    stray = {"filename": "../../log.txt", "subfolder": ""}
    told = refused(server.post, "/saeuron/atlas/pair", {"sae": SAE, "latent": 1, "up": stray, "down": stray})
    assert "previews" in told and str(server.base) not in told


@pytest.mark.parametrize("text", [None, 3, "x" * 201])
def test_a_label_is_a_text(server, text):
    assert "letters" in refused(server.post, "/saeuron/atlas/label", {"sae": SAE, "latent": 1, "text": text})


def test_a_broken_atlas_is_told_without_where_it_lies(server):
    folder = server.base / "models" / "saes" / "tinycanvas.atlas"
    folder.mkdir(exist_ok=True)
    (folder / "atlas.json").write_text("{}")
    try:
        told = refused(server.get, "/saeuron/atlas/cards", sae=SAE)
        assert "atlas.json is not an atlas" in told and str(server.base) not in told
    finally:
        (folder / "atlas.json").unlink()
