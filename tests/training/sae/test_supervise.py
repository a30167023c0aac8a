import json

import numpy as np
import pytest
import torch

from saeuron import (
    ConceptStatistics,
    Hookpoint,
    Recording,
    RecordingWriter,
    SaeuronError,
    assign,
    assign_at_random,
    load_sae,
    read_assignment,
)
from saeuron.concept_table import WholeTable
from saeuron.recording import Tokens
from training.sae.commands import Weights
from training.sae.supervise import (
    SAMPLED,
    Supervision,
    auroc,
    contrast,
    decorrelation,
    map_means,
    read_targets,
    report,
    supervised_losses,
)
from training.sae.train import Train, train
from training.sae.trainer import Normalisation, TrainingAutoencoder

HOOKPOINT = Hookpoint("unet.up_blocks.1.attentions.1")
D_IN, PLACES = 16, 6
OBJECTS, STYLES = ("cat", "dog", "owl"), ("neon", "ink")
PROMPTS = [{"prompt": f"{o} {s}", "object": o, "style": s} for o in OBJECTS for s in STYLES for _ in range(4)]
KINDS = dict.fromkeys(OBJECTS, "object") | dict.fromkeys(STYLES, "style")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32, a few hundred terms in another order


def synthetic(prompts, seed):
    """Tokens of ``prompts`` at two timesteps: a direction for the object on half the places, one for the style on all.

    On top of them two of ten further directions, which say nothing.
    """
    fixed = torch.Generator().manual_seed(1234)
    atoms = torch.nn.functional.normalize(torch.randn(15, D_IN, generator=fixed), dim=1)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = [], []
    for prompt in prompts:
        for timestep in (901, 101):
            for place in range(PLACES):
                token = 2 * atoms[3 + STYLES.index(PROMPTS[prompt]["style"])]
                if place % 2:
                    token = token + 3 * atoms[OBJECTS.index(PROMPTS[prompt]["object"])]
                noise = 5 + torch.randint(10, (2,), generator=generator)
                rows.append(token + atoms[noise].sum(0) + 0.05 * torch.randn(D_IN, generator=generator))
                columns.append((prompt, timestep, place))
    return Tokens(torch.stack(rows), *torch.tensor(columns).T)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """All prompts spread over four shards of six, each of which shows every object and style."""
    folder = tmp_path_factory.mktemp("recording")
    writer = RecordingWriter(folder, HOOKPOINT, D_IN, PROMPTS, {"model": "tinycanvas"})
    for shard in range(4):
        writer.write(shard, synthetic(range(shard, len(PROMPTS), 4), shard), seed=shard)
    writer.finish()
    return folder


@pytest.fixture
def recipe(recording, tmp_path):
    def make(**options):
        named = {"recording": recording, "output": tmp_path / "sae", "expansion": 4, "k": 4, "steps": 30, "batch": 64}
        named |= {"lr": 3e-3, "checkpoint_every": 8, "log_every": 10, "dead_after": 1000, "labels": ("object", "style")}
        return Train(**(named | options))

    return make


@pytest.fixture
def supervision():
    kinds, targets = read_targets(PROMPTS, ("object", "style"))
    return Supervision(kinds, {"cat": 3, "neon": 9, "ink": 1, "dog": 30, "owl": 12}, targets)


def model_of(activation="batch_topk", seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = TrainingAutoencoder(D_IN, 64, 4, activation, generator)
    with torch.no_grad():
        model.b_enc += 0.3 * torch.randn(64, generator=generator)
        model.b_dec += 0.1 * torch.randn(D_IN, generator=generator)
        model.threshold += 1.3
    return model


def test_targets_say_what_each_prompt_shows():
    kinds, targets = read_targets(PROMPTS, ("style", "object"))
    assert kinds == KINDS and targets.shape == (24, 5) and (targets.sum(1) == 2).all()
    for prompt, row in zip(PROMPTS, targets, strict=True):
        assert {name for name, own in zip(kinds, row, strict=True) if own} == {prompt["object"], prompt["style"]}


def test_only_the_kinds_asked_for_are_labels():
    kinds, targets = read_targets([*PROMPTS, {"prompt": "a cat", "object": "cat"}], ("style",))
    assert kinds == dict.fromkeys(STYLES, "style") and targets[-1].tolist() == [0, 0]


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(SaeuronError, match="no label 'objects'; the nearest are object"):
        read_targets(PROMPTS, ("objects",))


def test_means_are_taken_over_the_tokens_of_one_image_at_one_timestep():
    tokens = synthetic([0, 5, 7], seed=0).pick(torch.randperm(36, generator=torch.Generator().manual_seed(0))[:30])
    means, shown = map_means(tokens.activations, tokens)
    maps = sorted(set(zip(tokens.prompt.tolist(), tokens.timestep.tolist(), strict=True)))
    assert shown.tolist() == [prompt for prompt, _ in maps]
    for (prompt, timestep), mean in zip(maps, means, strict=True):
        rows = (tokens.prompt == prompt) & (tokens.timestep == timestep)
        torch.testing.assert_close(mean, tokens.activations[rows].mean(0), **CLOSE)


def test_batches_by_map_cut_no_map_but_at_their_ends(recording):
    opened = Recording(recording)
    whole, seen = 0, []
    for tokens in opened.batches(64, 0, 0, by_map=True):
        keys = list(zip(tokens.prompt.tolist(), tokens.timestep.tolist(), strict=True))
        runs = [key for n, key in enumerate(keys) if n == 0 or key != keys[n - 1]]
        assert len(runs) == len(set(runs)), "tokens of a map stand together"
        whole += sum(keys.count(key) == PLACES for key in runs)
        seen += zip(keys, tokens.position.tolist(), strict=True)
    assert len(seen) == len(set(seen)) == len(opened) // 64 * 64
    assert whole >= 4 * 8, "of ten or eleven in each batch, at most two are cut"
    again = torch.cat([tokens.position for tokens in opened.batches(64, 0, 0, by_map=True)])
    assert torch.equal(again, torch.tensor([place for _, place in seen]))


def test_the_losses_are_those_written_plainly(supervision):
    model, tokens = model_of(), synthetic(range(0, 24, 2), seed=3)
    batch = tokens.activations
    code = model.activate((batch @ model.W_enc.T + model.b_enc).relu())
    got = supervised_losses(model, batch, lambda: code, tokens, supervision, Weights(contrast=0.5))

    maps = sorted(set(zip(tokens.prompt.tolist(), tokens.timestep.tolist(), strict=True)))
    pre = batch @ model.W_enc.T + model.b_enc
    rows = [(tokens.prompt == prompt) & (tokens.timestep == timestep) for prompt, timestep in maps]
    logits = torch.stack([pre[own].mean(0) for own in rows])
    bce, logit_of = 0, {name: logits[:, latent] for name, latent in supervision.assignment.items()}
    for name, kind in KINDS.items():
        target = torch.tensor([float(PROMPTS[prompt][kind] == name) for prompt, _ in maps])
        share = logit_of[name].sigmoid()
        bce = bce - (target * share.log() + (1 - target) * (1 - share).log()).mean() / len(KINDS)
    squares = [
        np.corrcoef(logit_of[o].detach().numpy(), logit_of[s].detach().numpy())[0, 1] ** 2
        for o in OBJECTS
        for s in STYLES
    ]
    sample = pre[:: len(batch) // SAMPLED]
    torch.testing.assert_close(got["bce"], 3 * bce, rtol=1e-4, atol=1e-6)  # logarithms of saturated sigmoids
    assert got["decorrelation"].item() == pytest.approx(0.1 * np.mean(squares), rel=1e-4)
    torch.testing.assert_close(got["l1"], 0.01 * sample.abs().mean(), **CLOSE)

    codes = torch.stack([code[own].mean(0) for own in rows])
    by_kind = [
        plain_contrast(codes, [PROMPTS[prompt][kind] for prompt, _ in maps], 0.07) for kind in ("object", "style")
    ]
    assert got["contrast"].item() == pytest.approx(0.5 * np.mean(by_kind), rel=1e-4)


def plain_contrast(codes, names, temperature):
    """The supervised contrastive loss in loops and float64."""
    units = torch.nn.functional.normalize(codes.detach().double(), dim=1)
    similar = (units @ units.T / temperature).exp()
    losses = []
    for anchor, name in enumerate(names):
        partners = [n for n, other in enumerate(names) if other == name and n != anchor]
        rest = sum(similar[anchor, n] for n in range(len(names)) if n != anchor)
        if partners:
            losses.append(-sum((similar[anchor, n] / rest).log() for n in partners) / len(partners))
    return float(sum(losses) / len(losses))


def test_maps_without_a_partner_say_nothing_to_the_contrastive_loss():
    codes = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    labels = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 0], [0, 0]])
    loss = contrast(codes, labels, 0.07)
    loss.backward()
    assert loss.isfinite() and codes.grad.isfinite().all()
    expected = plain_contrast(codes, ["a", "a", "b", "c", "d"], 0.07)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert contrast(codes.detach(), torch.eye(5), 0.07) == 0


def test_one_kind_alone_has_nothing_to_be_decorrelated_from():
    assert decorrelation([torch.randn(9, 3)]) == 0
    part = torch.randn(9, 1)
    torch.testing.assert_close(decorrelation([part, -2 * part + 1]), torch.ones(()), **CLOSE)


def test_losses_of_weight_zero_are_not_worked_out(supervision):
    model, tokens = model_of(), synthetic(range(4), seed=3)
    code = torch.zeros(len(tokens), 64)
    weights = Weights(bce=0, decorrelation=0, l1=0, contrast=0)
    assert supervised_losses(model, tokens.activations, lambda: code, tokens, supervision, weights) == {}


@pytest.mark.parametrize("init", [False, True], ids=["from scratch", "fine-tuned"])
def test_after_training_each_concept_s_latent_is_its_strongest(recipe, recording, tmp_path, init):
    options = {"steps": 400, "lr": 1e-2}
    if init:
        sae = train(recipe(labels=(), output=tmp_path / "plain", **options))
        table = table_of(sae, recording)
        table.save(tmp_path / "table.safetensors")
        options |= {"init": tmp_path / "plain", "table": tmp_path / "table.safetensors", "lr": 3e-3}
    sae = train(recipe(**options))
    told = json.loads((recipe().output / "metrics.json").read_text("utf-8"))["concepts"]
    assert told.keys() == KINDS.keys()
    assert all(own["centralised"] and own["auroc"] > 0.95 and own["score"] > 0 for own in told.values()), told
    found = read_assignment(load_sae(recipe().output))
    named = read_targets(PROMPTS, ("object", "style"))[0]
    expected = assign(table, named) if init else assign_at_random(named, sae.n_latents, 0)
    assert found == expected == {name: own["latent"] for name, own in told.items()}
    assert sae.metrics["fvu"] < 0.4  # the labels cost some: without them it is 0.2


def table_of(sae, folder):
    opened = Recording(folder)
    statistics = ConceptStatistics(KINDS, (101, 901), sae.n_latents, sae.fingerprint)
    tokens = Tokens.cat([opened.read(name) for name in opened.shards])
    for timestep in (101, 901):
        part = tokens.pick(tokens.timestep == timestep)
        means, images = map_means(sae.encode(part.activations.float()), part)
        statistics.add([[PROMPTS[n]["object"], PROMPTS[n]["style"]] for n in images.tolist()], timestep, means)
    return WholeTable(statistics)


@pytest.mark.parametrize("activation", ["batch_topk", "sigmoid_topk"])
def test_interrupted_and_started_again_it_gives_the_same_files(recipe, tmp_path, interrupt_step, activation):
    train(recipe(activation=activation, contrast=0.1))
    interrupt_step(19)
    again = recipe(activation=activation, contrast=0.1, output=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again)
    assert (again.output / "checkpoint.pt").exists()
    train(again)
    for name in ("cfg.json", "sae.safetensors", "metrics.json"):
        assert (again.output / name).read_bytes() == (recipe().output / name).read_bytes(), name


def test_a_gated_sae_is_trained_saved_and_read_as_one(recipe):
    sae = train(recipe(activation="sigmoid_topk", steps=300, lr=1e-2))
    again = load_sae(recipe().output)
    tokens = synthetic(range(4), seed=9).activations
    code = again.encode(tokens)
    assert again.activation == "sigmoid_topk" and code.max() <= 1 and ((code > 0).sum(1) == 4).all()
    assert torch.equal(code, sae.encode(tokens))
    assert again.config["normalize_decoder"] is False
    assert sae.metrics["fvu"] < 0.5  # four latents between 0 and 1; the mean alone gives 1


@pytest.mark.parametrize("activation", ["batch_topk", "topk", "sigmoid_topk"])
def test_folding_and_unfolding_give_the_same_function(activation):
    model, raw = model_of(activation), 3 * synthetic(range(6), seed=4).activations + 7
    normalisation = Normalisation.of(raw)
    sae = model.fold(normalisation)
    tokens = normalisation(raw)
    pre = tokens @ model.W_enc.T + model.b_enc
    if activation == "batch_topk":
        code = torch.where(pre > model.threshold, pre, 0)
    else:
        kept = pre >= pre.topk(4, dim=1).values[:, -1:]
        code = torch.where(kept, pre.sigmoid() if activation == "sigmoid_topk" else pre.relu(), 0)
    expected = (code @ model.W_dec + model.b_dec) / normalisation.scale + normalisation.mean
    # float32, and a mean of several times the spread
    assert (sae.decode(sae.encode(raw)) - expected).abs().max() / expected.abs().max() < 1e-4
    back = TrainingAutoencoder.unfold(sae, normalisation)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", *(["threshold"] if activation == "batch_topk" else [])):
        torch.testing.assert_close(getattr(back, name), getattr(model, name), rtol=1e-4, atol=1e-4)


def test_the_report_skips_concepts_that_no_image_shows(supervision):
    sae = model_of().fold(Normalisation(torch.zeros(D_IN), 1.0))
    cats_and_dogs = synthetic([0, 4, 8, 12], seed=1)  # no owl
    told = report(sae, cats_and_dogs, PROMPTS, supervision)
    assert told.keys() == {"cat", "dog", "neon", "ink"}
    statistics = ConceptStatistics({"cat": "object", "dog": "object"}, (101, 901), 64, "")
    for timestep in (101, 901):
        part = cats_and_dogs.pick(cats_and_dogs.timestep == timestep)
        means, images = map_means(sae.encode(part.activations), part)
        statistics.add([[PROMPTS[n]["object"]] for n in images.tolist()], timestep, means)
    table = WholeTable(statistics)
    assert told["cat"]["score"] == pytest.approx(float(table.scores("cat").mean(0)[3]), rel=1e-4)
    assert told["cat"]["strongest"] == int(table.scores("cat").mean(0).argmax())


def test_a_contrastive_sae_leaves_no_assignment(recipe):
    sae = train(recipe(bce=0.0, decorrelation=0.0, l1=0.0, contrast=0.1))
    assert "concepts" not in sae.metrics
    with pytest.raises(SaeuronError, match="no latents assigned"):
        read_assignment(load_sae(recipe().output))


def test_the_chance_is_counted_pair_by_pair():
    values = torch.tensor([0.1, 0.4, 0.4, 0.8, 0.2])
    positive = torch.tensor([False, True, False, True, False])
    pairs = [(p > n) + 0.5 * (p == n) for p in values[positive] for n in values[~positive]]
    assert auroc(values, positive) == pytest.approx(float(sum(pairs) / len(pairs)))
    assert auroc(values, torch.ones(5, dtype=torch.bool)) is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"labels": ("colour",)}, "no label 'colour'"),
        ({"table": "table.safetensors"}, "give both"),
        ({"labels": ()} | {"table": "table.safetensors", "init": "sae"}, "give both"),
        ({"expansion": 1, "k": 1, "activation": "relu"}, "it is one of batch_topk, topk, sigmoid_topk"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(recipe, options, complaint):
    with pytest.raises(SaeuronError, match=complaint):
        train(recipe(**options))
    assert not recipe().output.exists()


def test_an_sae_of_another_block_is_not_trained_on(recipe, recording, tmp_path):
    train(recipe(labels=()))
    folder = tmp_path / "elsewhere"
    writer = RecordingWriter(folder, Hookpoint("unet.mid_block.attentions.0"), D_IN, PROMPTS, {})
    for shard in range(2):
        writer.write(shard, Recording(recording).read(f"shard-{shard:05d}.safetensors"), seed=0)
    writer.finish()
    with pytest.raises(SaeuronError, match=r"up_blocks\.1.* and the recording is of unet\.mid_block"):
        train(recipe(recording=folder, init=recipe().output, output=tmp_path / "on"))


def test_a_concept_alone_in_its_kind_is_trained_and_left_out_of_the_report():
    """Nothing of its kind can be told apart from it: its losses are finite, and no score is worked out."""
    prompts = [{"prompt": "a", "object": "cat", "light": "dusk"}, {"prompt": "b", "object": "dog", "light": "dusk"}]
    kinds, targets = read_targets(prompts, ["object", "light"])
    alone = Supervision(kinds, {"cat": 1, "dusk": 2, "dog": 3}, targets)
    generator = torch.Generator().manual_seed(0)
    model = TrainingAutoencoder(16, 32, 4, "topk", generator)
    batch = torch.randn(40, 16, generator=generator)
    number = torch.arange(40)
    tokens = Tokens(batch, number % 2, number // 2 % 2, number)
    weights = Weights(contrast=1.0)
    losses = supervised_losses(model, batch, model.losses(batch, 10**9, 1).code, tokens, alone, weights)
    assert set(losses) == {"bce", "decorrelation", "l1", "contrast"}
    assert all(loss.isfinite() for loss in losses.values())
    sae = model.fold(Normalisation(torch.zeros(16), 1.0))
    found = report(sae, tokens, prompts, alone)
    assert set(found) == {"cat", "dog"}
