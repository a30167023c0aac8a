import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from saeuron.hookpoints import names
from tinycanvas.captions import all_captions
from tinycanvas.drawing import OBJECTS, STYLES, draw, random_labels
from tinycanvas.judge import Judge
from tinycanvas.model import MAX_TOKENS, WEIGHTS, PixelVAE, load_judge, load_tokenizer, to_images, to_latents, tokenize


def generate(pipeline, prompt, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    named = {"num_inference_steps": 2, "output_type": "pt", "generator": generator} | options
    return pipeline(prompt, **named).images


def test_it_is_an_ordinary_stable_diffusion_pipeline(pipeline):
    assert type(pipeline) is StableDiffusionPipeline
    assert isinstance(pipeline.unet, UNet2DConditionModel)
    assert isinstance(pipeline.text_encoder, CLIPTextModel) and isinstance(pipeline.tokenizer, CLIPTokenizer)
    image = generate(pipeline, "An image of circle in neon style.")
    assert image.shape == (1, 3, 32, 32) and image.min() >= 0 and image.max() <= 1


def test_its_modules_have_stable_diffusion_s_names(pipeline):
    assert "unet.up_blocks.1.attentions.1" in names(pipeline.unet)
    modules = dict(pipeline.unet.named_modules())
    for name in ("conv_in", "time_embedding.linear_1", "mid_block.attentions.0", "up_blocks.1.resnets.0", "conv_out"):
        assert name in modules
    for name in names(pipeline.unet):
        assert f"{name.removeprefix('unet.')}.transformer_blocks.0.attn2.to_k" in modules, "text enters there"


def test_its_schedule_is_stable_diffusion_s_with_v_prediction(pipeline):
    config = pipeline.scheduler.config
    assert (config.beta_schedule, config.beta_start, config.beta_end) == ("scaled_linear", 0.00085, 0.012)
    assert (config.prediction_type, config.num_train_timesteps, config.clip_sample) == ("v_prediction", 1000, False)


def test_a_seed_gives_one_image_and_a_prompt_changes_it(pipeline):
    image = generate(pipeline, "An image of circle in neon style.")
    assert torch.equal(generate(pipeline, "An image of circle in neon style."), image)
    for other in (
        generate(pipeline, "An image of circle in neon style.", seed=1),
        generate(pipeline, "An image of star in sepia style."),
        generate(pipeline, "An image of circle in neon style.", guidance_scale=1.0),
    ):
        assert (other - image).abs().max() > 0.01


def test_pictures_go_through_latents_without_loss():
    images = draw(torch.arange(9), torch.arange(9), torch.Generator().manual_seed(0))
    latents = to_latents(images)
    assert latents.shape == (9, 12, 16, 16)
    assert torch.equal(to_images(latents), images)
    assert torch.equal(PixelVAE().decode(latents).sample, images)
    assert torch.equal(PixelVAE().decode(latents, return_dict=False)[0], images)


def test_each_concept_s_name_has_tokens_of_its_own():
    tokenizer = load_tokenizer()
    ids = {name: tuple(tokenizer(name, add_special_tokens=False).input_ids) for name in (*OBJECTS, *STYLES)}
    assert len(set(ids.values())) == len(ids)
    for name, tokens in ids.items():
        assert tokens and tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens).strip() == name
        assert tuple(tokenizer(name.upper(), add_special_tokens=False).input_ids) == tokens


@pytest.mark.parametrize("kind", ["training", "anchor", "evaluation"])
def test_every_caption_fits_whole_and_differs_from_all_others(kind):
    tokenizer, texts = load_tokenizer(), [text for text, _, _ in all_captions(kind)]
    assert max(len(tokens) for tokens in tokenizer(texts).input_ids) <= MAX_TOKENS
    padded = tokenize(tokenizer, texts)
    assert padded.shape == (len(texts), MAX_TOKENS) and len(padded.unique(dim=0)) == len(texts)


def test_the_weights_are_safetensors_of_at_most_12_mb():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    model = [path for path in files if path.parent.name in ("unet", "text_encoder")]
    assert 0 < sum(path.stat().st_size for path in model) <= 12e6
    assert (WEIGHTS / "judge.safetensors").stat().st_size <= 12e6


def test_the_judge_knows_fresh_drawings():
    judge = load_judge()
    objects, styles = (torch.tensor(range(10)).repeat(90), torch.tensor(range(9)).repeat_interleave(100))
    images = draw(objects, styles, torch.Generator().manual_seed(20260101))
    with torch.no_grad():
        found = judge(images)
    for logits, asked in zip(found, (objects, styles), strict=True):
        assert (logits.argmax(1) == asked).float().mean() >= 0.995


def test_the_judge_gives_a_logit_a_name_and_its_features():
    judge = load_judge()
    images = draw(*random_labels(4, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1))
    objects, styles = judge(images)
    assert isinstance(judge, Judge) and not judge.training
    assert objects.shape == (4, len(OBJECTS)) and styles.shape == (4, len(STYLES))
    assert judge.features(images).shape == (4, 128)
