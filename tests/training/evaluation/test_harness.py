import json
import re

import pytest
from safetensors.torch import save_file

from saeuron import SaeuronError
from training.common.pictures import to_picture
from training.common.prompts import read_prompts
from training.diffusion.sampling import generate
from training.evaluation.harness import Metric, Technique

PROMPTS = ["An image of star in neon style.", "An image of heart."]


def test_without_a_concept_it_draws_the_unedited_model_from_seeds_that_count_up(pipeline):
    technique = Technique(model_id="tinycanvas", num_inference_steps=2, guidance_scale=4.0, seed=5)
    pictures = [*technique.generate(PROMPTS), *technique.generate(PROMPTS[:1])]
    images = generate(pipeline, [*PROMPTS, PROMPTS[0]], [5, 6, 7], steps=2, guidance=4.0)
    assert [picture.tobytes() for picture in pictures] == [to_picture(image).tobytes() for image in images]


def test_a_seed_of_the_harness_is_that_of_the_first_picture_every_time():
    technique = Technique(steps=2)
    first, again = (technique.generate(PROMPTS, seed=3) for _ in range(2))
    assert [picture.tobytes() for picture in first] == [picture.tobytes() for picture in again]
    assert first[0].tobytes() != technique.generate(PROMPTS, seed=4)[0].tobytes()


def test_several_concepts_can_be_removed_at_once():
    plain, edited = (Technique(steps=2, erase_concept=names).generate(PROMPTS, seed=0) for names in ("", "neon, heart"))
    assert all(before.tobytes() != after.tobytes() for before, after in zip(plain, edited, strict=True))


def test_a_judge_is_given_by_its_files(tmp_path, vit_weights):
    (tmp_path / "style.txt").write_text("plain\nneon\nsketch\n", "utf-8")
    save_file(vit_weights(labels=3), tmp_path / "style.safetensors")
    rows = [{"prompt": f"A star in {style} style.", "style": style, "object": "star"} for style in ("neon", "sketch")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    metric = Metric(
        target_concept="neon", judge=f"vit:style={tmp_path / 'style.safetensors'}", prompts=f"{tmp_path}/prompts.jsonl"
    )
    pictures = Technique(steps=2).generate([row["prompt"] for row in rows])
    metric.update(pictures, [], {"concepts": rows})
    assert metric.verdicts.asked == {"style": ["neon", "sketch"]}, "objects are none of this judge's business"
    assert set(metric.verdicts.found["style"]) <= {"plain", "neon", "sketch"}


def test_copies_of_a_prompt_stand_side_by_side():
    rows = read_prompts("tinycanvas:evaluation")
    assert Metric(target_concept="star", copies=2).rows == [row for row in rows for _ in range(2)]


@pytest.mark.parametrize(
    ("plugin", "config", "told"),
    [
        (Technique, {"erase_concept": "neonn"}, "neon"),
        (Technique, {"erase_concept": "neon", "model_id": "nowhere"}, "model nowhere does not exist"),
        (Technique, {"erase": "neon"}, "'erase' is no option here; the nearest are erase_concept"),
        (Metric, {}, "\"target_concept\" '' is in no prompt"),
        (Metric, {"target_concept": "starr"}, "\"target_concept\" 'starr' is in no prompt; the nearest are star"),
        (
            Metric,
            {"target_concept": "star, neon"},
            "has to be of one kind that judge and prompts tell apart: object",
        ),
        (Metric, {"target_concept": "star", "judge": "me"}, "judge 'me' is unknown"),
        (Metric, {"target_concept": "star", "copies": 0}, "have to be at least 1"),
        (Metric, {"target_concept": "star", "concept": "star"}, "'concept' is no option here"),
    ],
)
def test_bad_values_are_one_sentence(plugin, config, told):
    with pytest.raises(SaeuronError, match=re.escape(told)) as error:
        plugin(**config)
    assert "\n" not in str(error.value)


def test_another_model_needs_an_sae(small_sd):
    with pytest.raises(SaeuronError, match='"erase_concept" needs "sae"'):
        Technique(model_id=str(small_sd), erase_concept="neon")
