import json

import pytest
import torch

import training.sae.score
from saeuron import ConceptTable, Hookpoint, SaeuronError, save_sae
from saeuron.concept_statistics import map_means
from training.common.prompts import read_prompts
from training.diffusion.sampling import Sampling, generate
from training.sae.commands import Score
from training.sae.score import score

ROWS = [
    {"prompt": "An image of star in neon style.", "object": "star", "style": "neon"},
    {"prompt": "An image of circle in neon style.", "object": "circle", "style": "neon"},
    {"prompt": "An image of star in candy style.", "object": "star", "style": "candy"},
]


@pytest.fixture
def recipe(tmp_path):
    """Three labelled pictures by three steps, in batches of two and one."""

    def make(rows=ROWS, **options):
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
        named = {"sae": tmp_path / "sae", "output": tmp_path / "out" / "table.safetensors", "prompts": str(prompts)}
        return Score(**(named | {"steps": 3, "batch": 2} | options))

    return make


@pytest.fixture
def drawn(monkeypatch):
    """The prompts and seeds of every batch that `score` draws."""
    batches = []

    def spy(pipeline, prompts, seeds, *options):
        batches.append((prompts, seeds))
        return generate(pipeline, prompts, seeds, *options)

    monkeypatch.setattr(training.sae.score, "generate", spy)
    return batches


def scored(config, sae, pipeline):
    """The table of a command's options."""
    return score(pipeline, sae, read_prompts(config.prompts), Sampling.of(config), config.images, config.seed)


def plain_means(sae, pipeline, config, batches):
    """{timestep: [images, latents]} in float64: every token of every picture encoded, none left out."""
    latents = {}

    def tap(tokens, timestep, conditional):
        latents.setdefault(int(timestep), []).append(sae.encode(tokens[conditional]).double().mean(1))
        return tokens

    for prompts, seeds in batches:
        generate(pipeline, prompts, seeds, steps=config.steps, guidance=config.guidance, taps={sae.hookpoint: tap})
    return {timestep: torch.cat(parts) for timestep, parts in sorted(latents.items())}


@pytest.mark.parametrize("options", [{}, {"images": 5}, {"guidance": 1.0}], ids=["each once", "repeated", "unguided"])
def test_means_are_those_of_all_tokens_of_all_pictures_that_show_the_concept(
    pipeline, make_sae, recipe, drawn, options
):
    sae, config = make_sae(), recipe(**options)
    table = scored(config, sae, pipeline)
    pictures = [(prompt, seed) for prompts, seeds in drawn for prompt, seed in zip(prompts, seeds, strict=True)]
    assert len({seed for _, seed in pictures}) == len(pictures) == (config.images or len(ROWS))
    assert {prompt for prompt, _ in pictures} == {row["prompt"] for row in ROWS}
    latents = plain_means(sae, pipeline, config, list(drawn))
    assert table.timesteps.tolist() == list(latents) and len(latents) == 3
    assert table.concepts == {"star": "object", "neon": "style", "circle": "object", "candy": "style"}
    for name in table.concepts:
        shows = [n for n, (prompt, _) in enumerate(pictures) if name in prompt]
        expected = torch.stack([means[shows].mean(0) for means in latents.values()])
        assert expected.sum() > 0
        # float32 means of 64 tokens, and of a few pictures
        torch.testing.assert_close(table.means(name).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' samplers to numpy
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_any_sampler_fills_its_own_timesteps(make_sae, recipe, tmp_path, sampler):
    save_sae(make_sae(), tmp_path / "sae")
    recipe(sampler=sampler).run()
    table = ConceptTable.load(recipe().output)
    assert len(table.timesteps) == 3 and table.scores("neon").isfinite().all()
    table.check_belongs(make_sae().fingerprint)
    assert table.origin["hookpoint"] == make_sae().hookpoint.name


def test_an_image_s_means_are_over_its_tokens(make_sae):
    sae = make_sae()
    tokens = torch.randn(3, 20, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(map_means(sae, tokens), sae.encode(tokens).mean(1))
    assert map_means(sae, tokens.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("rows", "options", "complaint"),
    [
        ([{"prompt": "a star"}], {}, "names no concepts"),
        ([*ROWS, {"prompt": "a star", "style": "star"}], {}, "'star' is both a object and a style"),
        (ROWS, {"steps": 0}, "--steps"),
        (ROWS, {"batch": 0}, "--batch"),
        (ROWS, {"images": -1}, "--images"),
    ],
)
def test_prompts_and_options_that_do_not_fit_are_refused(pipeline, make_sae, recipe, rows, options, complaint):
    with pytest.raises(SaeuronError, match=complaint):
        scored(recipe(rows, **options), make_sae(), pipeline)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ({"hookpoint": None}, "does not say where it reads"),
        ({"hookpoint": Hookpoint("unet.up_blocks.1.attention.1")}, "the nearest are unet"),
        ({"d_in": 64}, "width 64 and the hookpoint gives 128"),
    ],
)
def test_an_sae_that_does_not_fit_is_refused(pipeline, make_sae, recipe, made, complaint):
    with pytest.raises(SaeuronError, match=complaint):
        scored(recipe(), make_sae(**made), pipeline)
