"""Learn Concept where only its inside tells: what a lesson depends on, pictures, and models that cannot teach."""

import pytest
import torch

SHOWS = "a neon drawing of one heart\none star made in neon style\nneon style, a ring"
LACKS = "a sketch drawing of one heart\none star made in sepia style\ncandy style, a ring"


@pytest.fixture
def learn(pack, tinycanvas, sae, tmp_path, monkeypatch):
    """Learn Concept on three prompts of each sort in four steps, keeping lessons in ``tmp_path``."""
    monkeypatch.setattr(pack("host.files"), "folder", lambda: tmp_path)
    said = []
    monkeypatch.setattr(pack("learn"), "tell", lambda _, text: said.append(text))

    def run(model=tinycanvas[0], sae=sae, **options):
        options = {"kind": "style", "shows": SHOWS, "lacks": LACKS, "steps": 4, "cfg": 3.0, "seed": 0} | options
        with torch.inference_mode():
            output = pack("learn").LearnConcept.execute(model, tinycanvas[1], sae, "neon", **options)
        return output.args[0], said[-1]

    return run


def with_lora(model, scale: float):
    """``model`` with a weight patch, as a LoRA loader adds it."""
    key = next(name for name in model.model_state_dict() if name.endswith("attn1.to_q.weight"))
    patched = model.clone()
    patched.add_patches({key: ("diff", (torch.full_like(model.model_state_dict()[key], scale),))}, 1.0)
    return patched


def test_every_model_has_a_lesson_of_its_own_and_none_is_drawn_twice(learn, tinycanvas):
    assert learn()[1] == "neon: 6 of 6 to draw, 24 model calls"
    assert learn()[1] == "neon: 0 of 6 to draw, 0 model calls"
    lora = with_lora(tinycanvas[0], 0.05)
    assert learn(lora)[1] == "neon: 6 of 6 to draw, 24 model calls"
    assert learn(with_lora(tinycanvas[0], 0.05))[1] == "neon: 0 of 6 to draw, 0 model calls"
    assert learn(with_lora(tinycanvas[0], 0.04))[1] == "neon: 6 of 6 to draw, 24 model calls"
    assert learn(cfg=2.0)[1] == "neon: 6 of 6 to draw, 24 model calls"


def test_what_the_sae_knew_it_still_knows(learn, sae):
    taught = learn()[0].bundle.table
    assert taught.has_contrasts and {*sae.bundle.table.concepts, "without neon"} == set(taught.concepts)


def test_pictures_are_looked_at_and_not_drawn(learn, tinycanvas):
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(6, 40, 64, 3, generator=generator)  # of another size and shape than the model draws
    both = {"images": pictures[:3], "other_images": pictures[3:], "vae": tinycanvas[2]}
    assert learn(shows="", lacks="", **both)[1] == "neon: 6 of 6 to draw, 48 model calls"
    drawn = {"images": pictures[:3], "vae": tinycanvas[2]}
    assert learn(shows="", **drawn)[1] == "neon: 6 of 6 to draw, 60 model calls"  # 3 × 8 looks, 3 × (4 steps + 8)


def test_one_picture_thrice_is_one_picture(learn, tinycanvas):
    with pytest.raises(ValueError, match="not learnt from 1 `images`: give 3"):
        learn(shows="", images=torch.zeros(3, 32, 32, 3), vae=tinycanvas[2])


def test_a_patched_model_teaches_nothing(learn, tinycanvas, neon):
    with pytest.raises(ValueError, match="connect the model that goes into the patch"):
        learn(neon(tinycanvas[0]))


def test_the_model_is_as_it_was(learn, tinycanvas, sample):
    before = sample(tinycanvas[0])
    learn(seed=1)
    assert torch.equal(sample(tinycanvas[0]), before)
