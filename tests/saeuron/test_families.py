"""Families of transformers by what is told of them; the models themselves are in tests/training and tests/comfyui."""

import pytest
import torch

from saeuron.families import FAMILIES, Grid, Stream, family_of, width_of


def model(name="Flux", **about):
    return type(name, (), about)()


@pytest.mark.parametrize(
    ("about", "width"),
    [
        ({"inner_dim": 3, "hidden_size": 4}, 3),
        ({"hidden_size": 4, "dim": 5}, 4),
        ({"dim": 5}, 5),
        ({"config": {"hidden_size": 6}}, 6),
        ({"inner_dim": None, "config": {"inner_dim": 7, "num_attention_heads": 2, "attention_head_dim": 3}}, 7),
        ({"config": {"num_attention_heads": 2, "attention_head_dim": 4}}, 8),
    ],
)
def test_a_token_is_as_wide_as_the_model_says(about, width):
    assert width_of(model(**about)) == width


def test_a_family_is_known_by_the_class_of_either_host():
    for family in FAMILIES:
        assert family_of(model(family.diffusers)) is family
    assert family_of(model("Flux")).name == "FLUX.1"
    assert family_of(model("NextDiT", pad_tokens_multiple=32)).name == "Z-Image"
    assert family_of(model("NextDiT")).name == family_of(model("NextDiT", pad_tokens_multiple=None)).name == "Lumina 2"
    assert family_of(model("UNet2DConditionModel")) is None


def test_the_pictures_tokens_stand_before_the_text_or_behind_it():
    assert Stream("x").place(20, Grid(2, 3)) == slice(0, 6)
    assert Stream("x", text_first=True).place(20, Grid(2, 3)) == slice(14, 20)
    assert Stream("x", text_first=True).place(20, Grid(2, 3, references=4)) == slice(10, 16)
    assert Stream("x", text_first=True, multiple=8).place(20, Grid(2, 3)) == slice(12, 18), "padded to 8"
    assert Stream("x", text_first=True, multiple=3).place(20, Grid(2, 3)) == slice(14, 20), "not padded"


def test_a_block_is_given_tokens_by_name_or_place_and_returns_one_tensor_or_several():
    text, image, other = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    stream = Stream("hidden_states", position=1, output=1)
    assert stream.given((text,), {"hidden_states": image}) is image
    assert stream.given((text, image), {}) is image
    assert stream.returned(image) is image and stream.returned((text, image)) is image
    assert stream.replaced(image, other) is other
    assert stream.replaced((text, image, text), other) == (text, other, text)
    assert Stream("x").replaced((image, text), other) == (other, text)
