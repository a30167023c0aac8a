import pytest
import torch

from saeuron import Hookpoint, SaeuronError
from saeuron.families import UNET, Grid, Stream
from saeuron.hookpoints import names, place_of, to_maps, to_tokens


@pytest.fixture(scope="module")
def unet(make_unet):
    """A UNet of Stable Diffusion's make, as small as it goes."""
    return make_unet((8, 8), (True, False))


def test_every_transformer_block_has_a_name(unet):
    assert names(unet) == [
        "unet.down_blocks.0.attentions.0",
        "unet.up_blocks.1.attentions.0",
        "unet.up_blocks.1.attentions.1",
        "unet.mid_block.attentions.0",
    ]


def test_a_hookpoint_finds_its_module(unet):
    assert Hookpoint("unet.up_blocks.1.attentions.1").module(unet) is unet.up_blocks[1].attentions[1]


@pytest.mark.parametrize("wrong", ["unet.up_blocks.1.attentions.2", "unet.up_blocks.1", "up_blocks.1.attentions.1"])
def test_a_wrong_name_is_refused_with_the_nearest_valid_ones(unet, wrong):
    with pytest.raises(SaeuronError) as refusal:
        Hookpoint(wrong).module(unet)
    assert wrong in str(refusal.value) and "unet.up_blocks.1.attentions.1" in str(refusal.value)


def test_an_unknown_site_is_refused_with_the_valid_ones():
    with pytest.raises(SaeuronError, match="'input' is unknown; it is one of output, residual"):
        Hookpoint("unet.mid_block.attentions.0", "input")


def test_maps_become_tokens_row_by_row_and_back(make_tokens):
    maps = make_tokens(2, 5, 3, 4)
    tokens = to_tokens(maps)
    assert tokens.shape == (2, 12, 5)
    assert torch.equal(tokens[1, 1 * 4 + 2], maps[1, :, 1, 2])
    assert torch.equal(to_maps(tokens, maps), maps)
    assert torch.equal(to_maps(tokens.contiguous(), maps), maps)


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 12, 5)], ids=["maps", "tokens"])
@pytest.mark.parametrize("site", ["output", "residual"])
def test_what_is_read_and_written_back_is_the_site_s(make_tokens, shape, site):
    output, before, hookpoint = make_tokens(*shape), make_tokens(*shape, seed=2), Hookpoint("unet.mid_block", site)
    flat = to_tokens if len(shape) == 4 else (lambda tokens: tokens)
    tokens = hookpoint.read(output, before, slice(None))
    assert torch.equal(tokens, flat(output - before if site == "residual" else output))
    change = make_tokens(*tokens.shape, seed=3)
    written = flat(hookpoint.write(output, tokens, tokens + change, slice(None)))
    # A residual is a difference of numbers around 1, so that what comes back is rounded once more.
    torch.testing.assert_close(written, flat(output) + change, rtol=1e-5, atol=1e-6)
    assert torch.equal(hookpoint.write(output, tokens, tokens, slice(None)), output), "to the last bit"


@pytest.mark.parametrize("site", ["output", "residual"])
def test_text_beside_the_picture_is_neither_read_nor_written(make_tokens, site):
    output, before, hookpoint = make_tokens(2, 12, 5), make_tokens(2, 12, 5, seed=2), Hookpoint("a", site)
    place = slice(3, 9)
    tokens = hookpoint.read(output, before, place)
    assert torch.equal(tokens, (output - before if site == "residual" else output)[:, place])
    assert torch.equal(hookpoint.read(output, before[:, place], place), tokens), "of the input the picture's alone do"
    written = hookpoint.write(output, tokens, tokens + 1, place)
    assert torch.equal(written[:, :3], output[:, :3]) and torch.equal(written[:, 9:], output[:, 9:])
    torch.testing.assert_close(written[:, place], output[:, place] + 1, rtol=1e-5, atol=1e-6)


def test_a_hookpoint_knows_the_width_of_its_tokens(unet):
    assert Hookpoint("unet.up_blocks.1.attentions.1").width(unet) == 8


def test_the_grid_is_the_maps_own_or_the_one_that_is_told(make_tokens):
    assert place_of(UNET, make_tokens(2, 5, 3, 4), None) == (None, 3, 4)
    assert place_of(Stream("x", text_first=True), make_tokens(2, 20, 5), Grid(2, 3)) == (slice(14, 20), 2, 3)


def test_the_blocks_of_a_transformer_have_names_too():
    lists = {"transformer_blocks": [None] * 2, "single_transformer_blocks": [None]}
    blocks = ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0"]
    assert names(type("FluxTransformer2DModel", (), lists)()) == [f"transformer.{block}" for block in blocks]
