import pytest
import torch

from saeuron import SaeuronError, Setting, build_edits
from training.common.prompts import read_prompts
from training.diffusion.sampling import Sampling, draw_all
from training.evaluation.attack import How, attack, encode, markdown, optimised, put, usable_tokens, with_room
from training.evaluation.judges import tinycanvas_judge
from training.evaluation.protocol import Protocol

FEW = Sampling(steps=2, batch=2)
STARS = [row for row in read_prompts("tinycanvas:evaluation") if row["object"] == "star"][:3]
HOW = How(iterations=4, tries=2, seed=0)


@pytest.fixture
def edits(make_sae, make_table):
    sae = make_sae()
    return {sae.hookpoint: build_edits(sae, make_table(sae), {"star": Setting(8, -5.0)})}


@pytest.fixture
def protocol(pipeline):
    return Protocol(pipeline, tinycanvas_judge(), STARS, [1, 2, 3], FEW)


def test_every_evaluation_prompt_has_room_for_five_tokens_and_keeps_its_own(pipeline):
    prompts = [row["prompt"] for row in read_prompts("tinycanvas:evaluation")]
    ids = with_room(pipeline, prompts, 5)
    plain = pipeline.tokenizer(prompts, padding="max_length", max_length=16).input_ids
    assert ids.shape == (90, 16)
    for own, before in zip(ids.tolist(), plain, strict=True):
        assert own[:1] + own[6:] == before[:-5]
        assert own[-1] == pipeline.tokenizer.eos_token_id


def test_a_prompt_without_room_is_refused(pipeline):
    with pytest.raises(SaeuronError, match="leaves no room for 5 more: the model reads 16"):
        with_room(pipeline, ["an image of a star and a heart and a moon in neon style"], 5)


def test_embeddings_put_in_by_hand_are_those_of_their_tokens(pipeline):
    ids = with_room(pipeline, [row["prompt"] for row in STARS], 5)
    prefix = usable_tokens(pipeline)[torch.arange(15).view(3, 5)]
    embedded = pipeline.text_encoder.get_input_embeddings().weight[prefix]
    assert torch.equal(encode(pipeline, ids, embedded), encode(pipeline, put(ids, prefix)))
    assert len(pipeline.text_encoder.get_input_embeddings()._forward_hooks) == 0


def test_no_prefix_ends_or_begins_a_prompt(pipeline):
    allowed = set(usable_tokens(pipeline).tolist())
    assert not allowed & set(pipeline.tokenizer.all_special_ids) and len(allowed) > 250


def test_prefixes_are_tokens_that_move_with_the_gradient_and_depend_on_the_seed_alone(protocol, edits):
    pipeline = protocol.pipeline
    ids, goal = with_room(pipeline, [row["prompt"] for row in STARS], 5), draw_all(pipeline, STARS, [1, 2, 3], FEW)

    def run(seed, lr=1.0):
        generator = torch.Generator().manual_seed(seed)
        return optimised(protocol, edits, ids, goal, How(iterations=4, tries=2, lr=lr), generator)

    found = run(0)
    assert len(found) == 2 and found[0].shape == (3, 5)
    assert not torch.equal(found[0], found[1])
    assert all(torch.equal(one, other) for one, other in zip(found, run(0), strict=True))
    assert not torch.equal(run(1)[0], found[0])
    still = run(0, lr=0.0)
    assert torch.equal(still[0], still[1])
    assert all(p.grad is None for p in pipeline.unet.parameters())


def test_an_attack_says_how_often_the_concept_came_back(protocol, edits):
    rows = [*STARS, {"prompt": "An image of heart.", "object": "heart", "style": "plain"}]
    found = attack(protocol.of(rows, [1, 2, 3, 4]), edits, "star", "object", HOW)
    assert (found["name"], found["kind"], found["images"]) == ("star", "object", 3)
    for name in ("before", "random", "after"):
        assert found[f"ua_{name}"] == found[f"ua_{name}_hits"] / 3
    again = attack(protocol.of(rows, [1, 2, 3, 4]), edits, "star", "object", HOW)
    assert len(found["prefixes"]) == 3 and found == again
    assert " ".join(markdown([found]).splitlines()[2].split()).startswith("| star | object | ")


def test_a_target_that_no_prompt_shows_is_refused(protocol, edits):
    with pytest.raises(SaeuronError, match="no prompt shows 'moon'"):
        attack(protocol, edits, "moon", "object", HOW)


@pytest.mark.parametrize("options", [{"tokens": 0}, {"tries": 0}, {"tries": 5, "iterations": 4}])
def test_an_attack_that_cannot_be_made_is_refused(options):
    with pytest.raises(SaeuronError, match="--tries"):
        How(**options)
