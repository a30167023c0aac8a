"""Edited pictures are drawn from where they part from the unedited ones, and are those drawn from the beginning."""

import sys

import pytest
import torch

from saeuron import build_edits, choose_settings
from saeuron.checkpoints import load_bundle
from tinycanvas.model import WEIGHTS
from training.common.prompts import read_prompts
from training.diffusion.alike import can_part, draw_unedited
from training.diffusion.load import variant
from training.diffusion.sampling import Sampling, draw_all, generate, text_embeddings

SAMPLING = Sampling(steps=6, batch=4)


@pytest.fixture(scope="module")
def edits():
    """The edits that remove each of three concepts, with the default of the embedded SAE."""
    bundle = load_bundle(WEIGHTS.parent / "saes" / "tinycanvas.safetensors")

    def removing(name):
        settings = choose_settings(bundle.sae, bundle.table, [name], bundle.settings)
        return {bundle.sae.hookpoint: build_edits(bundle.sae, bundle.table, settings)}

    return {name: removing(name) for name in ("star", "neon", "sepia")}


@pytest.mark.parametrize("how", [{}, {"guidance": 1.0}, {"negative_prompt": "a dog"}], ids=str)
def test_they_are_the_pictures_drawn_from_the_beginning(pipeline, edits, how):
    rows = read_prompts("tinycanvas:evaluation")[:60:10]
    sampling = Sampling(**({"steps": 6, "batch": 4} | how))
    seeds = list(range(len(rows)))
    unedited = draw_unedited(pipeline, [row["prompt"] for row in rows], seeds, sampling, edits)
    # Sums of another batch may be added in another order, in float32.
    close = {"rtol": 0, "atol": 1e-3}
    torch.testing.assert_close(unedited.images, draw_all(pipeline, rows, seeds, sampling), **close)
    for name, own in edits.items():
        torch.testing.assert_close(unedited.edited(name, own), draw_all(pipeline, rows, seeds, sampling, own), **close)


def test_what_an_edit_leaves_alone_is_not_drawn(pipeline, edits):
    rows = read_prompts("tinycanvas:evaluation")[:60:10]
    prompts, drawn = [row["prompt"] for row in rows], []
    unedited = draw_unedited(pipeline, prompts, list(range(len(rows))), SAMPLING, edits)
    for name, own in edits.items():
        shows = torch.tensor([name in row.values() for row in rows])
        assert (unedited.parts[name][shows] == 0).all()
        handle = pipeline.unet.register_forward_pre_hook(lambda _, args: drawn.append(len(args[0]) // 2))
        again = unedited.edited(name, own)
        handle.remove()
        kept = unedited.parts[name] == SAMPLING.steps
        assert torch.equal(again[kept], unedited.images[kept])
    left = sum(int((SAMPLING.steps - parts).sum()) for parts in unedited.parts.values())
    assert sum(drawn) == left < 0.8 * len(edits) * len(rows) * SAMPLING.steps


def test_where_no_picture_parts_the_unedited_ones_are_given(pipeline):
    unedited = draw_unedited(pipeline, ["a star"], [0], SAMPLING, {"nothing": {}})
    assert torch.equal(unedited.edited("nothing", {}), unedited.images)


def test_samplers_with_a_memory_of_their_own_allow_no_parting(pipeline):
    assert can_part(pipeline, SAMPLING, 100)
    assert not can_part(variant(pipeline, sampler="dpm++2m"), SAMPLING, 100)
    assert not can_part(pipeline, SAMPLING, 10**6), "their steps would take 25 GB"
    assert not can_part(pipeline, Sampling(init_image=torch.zeros(3, 128, 128)), 100)


def test_a_text_is_encoded_once(pipeline):
    count = [0]
    handle = pipeline.text_encoder.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    texts = ["a text nobody has given before", "another one"]
    first = generate(pipeline, texts, [0, 1], steps=1)
    before = count[0]
    assert torch.equal(generate(pipeline, texts, [0, 1], steps=1), first) and before > 0
    assert torch.equal(text_embeddings(pipeline, texts[::-1]), text_embeddings(pipeline, texts).flip(0))
    handle.remove()
    assert count[0] == before


def test_of_many_texts_the_last_are_remembered_and_none_is_confused_with_another(pipeline, monkeypatch):
    sampling = sys.modules[text_embeddings.__module__]
    monkeypatch.setattr(sampling, "KEPT", 4)
    texts = [f"An image of star number {number}." for number in range(10)]
    together = text_embeddings(pipeline, texts)
    assert [text for text, _ in sampling._texts[pipeline.text_encoder]] == texts[-4:]
    again = torch.cat([text_embeddings(pipeline, [text]) for text in (texts[9], texts[6], texts[0])])
    # Encoded alone a text is rounded otherwise than among others.
    torch.testing.assert_close(again, together[[9, 6, 0]], rtol=1e-4, atol=1e-5)
    kept = sampling._texts[pipeline.text_encoder]
    assert [text for text, _ in kept] == [texts[8], texts[9], texts[6], texts[0]], "those that were asked for last"
    assert all(own.untyped_storage().nbytes() == own.nbytes for own in kept.values()), "each alone in memory"
