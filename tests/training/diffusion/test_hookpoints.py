import pytest
import torch

from saeuron import Hookpoint
from saeuron.hookpoints import names, to_tokens
from training.__main__ import main
from training.diffusion.hookpoints import places


def measured(unet, height, width):
    """``{name: (width, tokens)}`` as they are seen while the model runs."""
    seen = {}
    handles = []
    for name in names(unet):

        def hook(_module, _args, output, name=name):
            tokens = to_tokens(output[0])
            seen[name] = (tokens.shape[2], tokens.shape[1])

        handles.append(Hookpoint(name).module(unet).register_forward_hook(hook))
    text = torch.zeros(1, 1, unet.config.cross_attention_dim)
    with torch.no_grad():
        unet(torch.zeros(1, unet.config.in_channels, height, width), 1, text)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("size", [(16, 16), (24, 16)])
def test_widths_and_token_counts_are_those_of_a_run(pipeline, size):
    unet = pipeline.unet
    listed = {name: (width, rows * columns) for name, width, rows, columns in places(unet, *size)}
    assert listed == measured(unet, *size) and list(listed) == names(unet)


@pytest.mark.parametrize("size", [(16, 16), (20, 28)])
def test_three_levels_and_a_block_without_attention_are_counted_right(make_unet, size):
    unet = make_unet((8, 16, 24), (True, False, True), sample_size=16)
    listed = {name: (width, rows * columns) for name, width, rows, columns in places(unet, *size)}
    assert listed == measured(unet, *size)


def test_the_command_lists_every_block(pipeline, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["hookpoints", "tinycanvas"]) == 0
    told = capfd.readouterr().out
    own = pipeline.unet.config.sample_size
    for name, width, rows, columns in places(pipeline.unet, own, own):
        (line,) = (line for line in told.splitlines() if f" {name} " in line)
        assert f" {width} " in line and f" {rows * columns} ({rows} × {columns}) " in line


def test_another_size_gives_other_counts(pipeline, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    own = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    assert main(["hookpoints", "tinycanvas", "--height", str(2 * own), "--width", str(own)]) == 0
    told = capfd.readouterr().out
    assert f"{own} × {2 * own} pixels" in told
    rows, columns = places(pipeline.unet, 2 * own // pipeline.vae_scale_factor, own // pipeline.vae_scale_factor)[0][2:]
    assert f" {rows * columns} ({rows} × {columns}) " in told


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["nowhere"], "does not exist; give `tinycanvas`"), (["tinycanvas", "--height", "-8"], "have to be multiples of")],
)
def test_bad_input_gets_one_line(capfd, arguments, complaint):
    assert main(["hookpoints", *arguments]) == 2
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1 and complaint in told[0]
