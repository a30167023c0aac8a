import json
import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from saeuron import Hookpoint, Recording, RecordingWriter, SaeuronError, SparseAutoencoder, load_sae, save_sae
from saeuron.recording import Tokens
from training.sae.measure import measure
from training.sae.train import Train, train
from training.sae.trainer import Normalisation, TrainingAutoencoder, batch_topk_threshold

HOOKPOINT = Hookpoint("unet.up_blocks.1.attentions.1", "residual")
D_IN, ATOMS, ACTIVE = 16, 32, 3
RESULTS = ("cfg.json", "sae.safetensors", "metrics.json")


def synthetic(rows, seed):
    """Tokens made as an SAE supposes: three of 32 fixed directions each, around a mean, on a scale of their own."""
    fixed = torch.Generator().manual_seed(1234)
    atoms = torch.nn.functional.normalize(torch.randn(ATOMS, D_IN, generator=fixed), dim=1)
    mean = 5 * torch.randn(D_IN, generator=fixed)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, ATOMS, generator=generator).topk(ACTIVE).indices
    code = torch.zeros(rows, ATOMS).scatter(1, chosen, 1 + torch.rand(rows, ACTIVE, generator=generator))
    numbers = torch.arange(rows)
    return Tokens(mean + 3 * code @ atoms, numbers % 7, 1 + 40 * (numbers % 5), numbers % 64)


def write_recording(folder, shards=4, rows=600, finish=True, last=None):
    """A recording of synthetic tokens; ``last`` are other rows for its last shard."""
    writer = RecordingWriter(folder, HOOKPOINT, D_IN, [{"prompt": "a cat"}] * 7, {"model": "tinycanvas"})
    for shard in range(shards):
        tokens = last if last is not None and shard == shards - 1 else synthetic(rows, shard)
        writer.write(shard, tokens, seed=shard)
    if finish:
        writer.finish()
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("recording"))


@pytest.fixture
def recipe(recording, tmp_path):
    """The options of a short training: 30 steps of 128 tokens, a checkpoint every 8."""

    def make(**options):
        named = {"recording": recording, "output": tmp_path / "sae", "expansion": 4, "k": 4, "steps": 30}
        named |= {"batch": 128, "lr": 3e-3, "checkpoint_every": 8, "log_every": 10, "dead_after": 1000}
        return Train(**(named | options))

    return make


def results(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


@pytest.mark.parametrize("activation", ["batch_topk", "topk"])
def test_an_sae_of_sparse_tokens_explains_nearly_all_of_them(recipe, activation):
    sae = train(recipe(steps=600, lr=1e-2, activation=activation))
    # The mean alone gives 1. With three of 32 directions in 16 channels, 600 steps come to 0.1.
    assert sae.metrics["fvu"] < 0.2
    assert sae.metrics["l0"] == pytest.approx(4, rel=0.1)
    assert set(sae.metrics["fvu_by_timestep"]) == {"1", "41", "81", "121", "161"}
    again = load_sae(recipe().output)
    assert (again.fingerprint, again.hookpoint, again.base_model) == (sae.fingerprint, HOOKPOINT, "tinycanvas")
    assert (again.k, again.activation, again.n_latents) == (4, activation, 64)


@pytest.mark.parametrize(("lr", "useless"), [(1e-2, False), (10.0, True)])
def test_an_sae_that_explains_nothing_is_told_to_be_no_use(recipe, lr, useless, capsys):
    explained = 1 - train(recipe(lr=lr)).metrics["fvu"]
    assert (explained < 0.1) == useless
    assert (f"⚠ the SAE explains {max(0, explained):.0%} of what it reads" in capsys.readouterr().err) == useless


def test_decoder_rows_keep_unit_length(recipe):
    sae = train(recipe())
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64), rtol=0, atol=1e-6)  # float32 rounding


def test_the_metrics_saved_are_those_of_the_saved_sae_on_the_shard_held_out(recipe, recording):
    train(recipe())
    held_out = Recording(recording).read("shard-00003.safetensors")
    saved = json.loads((recipe().output / "metrics.json").read_text("utf-8"))
    assert saved == json.loads(json.dumps(measure(load_sae(recipe().output), held_out)))
    assert json.loads((recipe().output / "cfg.json").read_text("utf-8"))["metrics"] == saved


def test_the_held_out_shard_is_never_trained_on(recipe, tmp_path):
    train(recipe())
    other = write_recording(tmp_path / "other", last=synthetic(600, seed=99))
    train(recipe(recording=other, output=tmp_path / "sae 2"))
    before, after = results(tmp_path / "sae"), results(tmp_path / "sae 2")
    assert after["sae.safetensors"] == before["sae.safetensors"]
    assert after["metrics.json"] != before["metrics.json"]


def test_the_seed_decides_everything(recipe, tmp_path):
    train(recipe()), train(recipe(output=tmp_path / "same")), train(recipe(output=tmp_path / "other", seed=1))
    assert results(tmp_path / "same") == results(tmp_path / "sae")
    assert results(tmp_path / "other")["sae.safetensors"] != results(tmp_path / "sae")["sae.safetensors"]


def test_progress_is_logged(recipe, capsys):
    train(recipe())
    printed = capsys.readouterr().err
    assert all(f"step {step}/30  fvu 0." in printed for step in (10, 20, 30))
    logged = EventAccumulator(str(recipe().output / "tensorboard")).Reload()
    assert {"fvu", "auxiliary", "l0", "dead"} <= set(logged.Tags()["scalars"])
    assert [event.step for event in logged.Scalars("fvu")] == [10, 20, 30]


@pytest.mark.parametrize("activation", ["batch_topk", "topk"])
def test_interrupted_at_any_step_and_started_again_it_gives_the_same_files(
    recipe, tmp_path, interrupt_step, activation
):
    train(recipe(activation=activation))
    for done in (0, 7, 8, 9, 14, 23, 29):  # checkpoints are at 8, 16 and 24; an epoch is 14 steps
        output = tmp_path / str(done)
        interrupt_step(done)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(activation=activation, output=output))
        assert (output / "checkpoint.pt").exists() == (done >= 8)
        train(recipe(activation=activation, output=output))
        assert results(output) == results(tmp_path / "sae"), f"after {done} steps"


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_interrupted_at_any_write_and_started_again_it_gives_the_same_files(
    recipe, tmp_path, files, interrupt_write, exception
):
    train(recipe())
    expected = files(tmp_path / "sae")
    assert expected.keys() == {*RESULTS, "train.config.json"}
    for done in range(7):  # the config, three checkpoints, the SAE's two files, the metrics
        shutil.rmtree(tmp_path / "sae")
        interrupt_write(done, exception)
        with pytest.raises(exception):
            train(recipe())
        train(recipe())
        assert files(tmp_path / "sae") == expected, f"after {done} writes"


def test_interrupted_time_and_again_it_gives_the_same_files(recipe, tmp_path, interrupt_step, capsys):
    train(recipe())
    for _ in range(3):
        interrupt_step(9)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(output=tmp_path / "again"))
    capsys.readouterr()
    train(recipe(output=tmp_path / "again"))
    assert "continuing at step 24" in capsys.readouterr().err
    assert results(tmp_path / "again") == results(tmp_path / "sae")


def test_killed_and_started_again_it_gives_the_same_files(recipe, recording, tmp_path, files, killed, capsys):
    train(recipe())
    expected = files(tmp_path / "sae")
    shutil.rmtree(tmp_path / "sae")
    values = {"expansion": 4, "k": 4, "steps": 30, "batch": 128, "lr": 3e-3}
    values |= {"checkpoint-every": 8, "log-every": 10, "dead-after": 1000, "recording": recording}
    options = [part for name, value in values.items() for part in (f"--{name}", value)]
    killed("train", *options, output=tmp_path / "sae", after=2)
    assert any(".checkpoint.pt." in name for name in files(tmp_path / "sae")), (
        "killed in the middle of its second checkpoint"
    )
    capsys.readouterr()
    train(recipe())
    assert "continuing at step 8" in capsys.readouterr().err
    assert files(tmp_path / "sae") == expected


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"k": 5}, {"lr": 1e-3}, {"steps": 31}, {"batch": 64}], ids=lambda other: next(iter(other))
)
def test_a_checkpoint_of_other_settings_is_refused_untouched(recipe, files, interrupt_step, other):
    interrupt_step(10)
    with pytest.raises(KeyboardInterrupt):
        train(recipe())
    before = files(recipe().output)
    with pytest.raises(
        SaeuronError, match=f"was made with {next(iter(other))} .* and now it is .*: choose another --output"
    ):
        train(recipe(**other))
    assert files(recipe().output) == before


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"k": 5}, {"lr": 1e-3}, {"steps": 29}], ids=lambda other: next(iter(other))
)
def test_a_finished_sae_is_never_overwritten_unless_the_user_says_so(recipe, files, other):
    train(recipe())
    before = files(recipe().output)
    with pytest.raises(
        SaeuronError, match=f"was made with {next(iter(other))} .* and now it is .*: choose another --out"
    ):
        train(recipe(**other))
    assert files(recipe().output) == before
    anew = train(recipe(**other, overwrite=True))
    assert results(recipe().output) != {name: before[name] for name in RESULTS}
    assert train(recipe(**other)).fingerprint == anew.fingerprint


def test_somebody_else_s_sae_in_the_folder_is_refused(recipe, files):
    sae = train(recipe(output=recipe().output / "first"))
    save_sae(sae, recipe().output)
    before = files(recipe().output)
    with pytest.raises(SaeuronError, match=r"holds sae\.safetensors already, which was made otherwise"):
        train(recipe())
    assert files(recipe().output) == before


def test_a_finished_training_goes_on_for_more_steps(recipe, capsys):
    first = train(recipe(steps=20))
    capsys.readouterr()
    longer = train(recipe(steps=60))
    assert "training on from step 20" in capsys.readouterr().err
    assert longer.steps == 60 and longer.metrics["fvu"] < first.metrics["fvu"]
    assert longer.config["identity"] == first.config["identity"]
    assert not (recipe().output / "checkpoint.pt").exists()
    assert train(recipe(steps=60)).fingerprint == longer.fingerprint


def test_interrupted_while_it_goes_on_it_gives_the_same_files(recipe, tmp_path, interrupt_step, interrupt_write, files):
    for name in ("at once", "steps", "writes"):
        train(recipe(steps=20, output=tmp_path / name))
    train(recipe(steps=40, output=tmp_path / "at once"))
    interrupt_step(15)  # a checkpoint is at 24 and 32
    with pytest.raises(KeyboardInterrupt):
        train(recipe(steps=40, output=tmp_path / "steps"))
    train(recipe(steps=40, output=tmp_path / "steps"))
    assert results(tmp_path / "steps") == results(tmp_path / "at once")
    for done in range(6):  # the config, two checkpoints and a last one, the SAE's two files
        output = tmp_path / str(done)
        shutil.copytree(tmp_path / "writes", output)
        interrupt_write(done, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(steps=40, output=output))
        train(recipe(steps=40, output=output))
        assert results(output) == results(tmp_path / "at once"), f"after {done} writes"


def test_a_dry_run_tells_what_it_takes_and_writes_nothing(recipe, capsys):
    recipe(dry_run=True).run()
    told = capsys.readouterr().out
    assert "30 training steps" in told and f"{30 * 128:,} tokens" in told and "seconds of work" in told
    assert not recipe().output.exists()


def test_a_path_in_a_recording_of_today_does_not_reach_the_sae(recipe, tmp_path):
    writer = RecordingWriter(tmp_path / "old", HOOKPOINT, D_IN, [{"prompt": "a cat"}] * 7, {"model": "/home/me/sd15"})
    for shard in range(3):
        writer.write(shard, synthetic(600, shard), seed=shard)
    writer.finish()
    assert train(recipe(recording=tmp_path / "old")).base_model == "sd15"


def test_a_checkpoint_that_is_none_is_refused_by_name(recipe):
    recipe().output.mkdir()
    (recipe().output / "checkpoint.pt").write_bytes(b"half a checkpoint")
    with pytest.raises(SaeuronError, match=r"checkpoint\.pt is not a readable checkpoint; delete it"):
        train(recipe())


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ({"finish": False}, "is not finished; run `record` on it again"),
        ({"shards": 1}, "has one shard and training holds one out"),
        ({"shards": 2, "rows": 100}, "there are 100 tokens to train on, fewer than one --batch of 128"),
    ],
)
def test_a_recording_that_cannot_be_trained_on_is_refused(recipe, tmp_path, made, complaint):
    with pytest.raises(SaeuronError, match=complaint):
        train(recipe(recording=write_recording(tmp_path / "recording", **made)))
    assert not recipe().output.exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"k": 0}, "--k is 0"),
        ({"k": 65}, "--k is 65 and the SAE has only 64 latents"),
        ({"steps": 0}, "--steps is 0"),
        ({"steps": None, "epochs": 0}, "--epochs is 0"),
        ({"log_every": 0}, "--log-every is 0"),
        ({"activation": "relu"}, "it is one of batch_topk, topk"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(recipe, options, complaint):
    with pytest.raises(SaeuronError, match=complaint):
        train(recipe(**options))
    assert not recipe().output.exists()


def test_a_missing_device_is_refused(recipe):
    if torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(SaeuronError, match="use --device cpu"):
        train(recipe(device="cuda"))


def random_model(activation, seed=0):
    """A model in training coordinates with nothing at zero, and the normalisation of the tokens it reads."""
    generator = torch.Generator().manual_seed(seed)
    model = TrainingAutoencoder(D_IN, 64, 4, activation, generator)
    with torch.no_grad():
        model.W_enc += 0.1 * torch.randn(64, D_IN, generator=generator)
        model.b_enc += 0.1 * torch.randn(64, generator=generator)
        model.b_dec += 0.1 * torch.randn(D_IN, generator=generator)
        model.threshold += 1.3
    return model, Normalisation.of(synthetic(500, seed=5).activations)


@pytest.mark.parametrize("activation", ["batch_topk", "topk"])
def test_folding_gives_the_same_function_on_raw_tokens(activation):
    model, normalisation = random_model(activation)
    raw = synthetic(200, seed=6).activations
    pre = (normalisation(raw) @ model.W_enc.T + model.b_enc).relu()
    least = model.threshold if activation == "batch_topk" else pre.topk(4, dim=1).values[:, -1:]
    code = torch.where(pre >= least, pre, 0)
    expected = (code @ model.W_dec + model.b_dec) / normalisation.scale + normalisation.mean
    sae = model.fold(normalisation, hookpoint=HOOKPOINT)
    got = sae.decode(sae.encode(raw))
    # float32, and a mean some three times the spread: a few of its digits go where x − mean is taken in another order.
    assert (got - expected).abs().max() / expected.abs().max() < 1e-4
    assert torch.equal(sae.encode(raw) > 0, code > 0)
    assert 1 < (code > 0).sum(1).float().mean() < 20


def test_normalised_tokens_have_mean_zero_and_mean_square_one():
    tokens = synthetic(500, seed=5).activations
    normal = Normalisation.of(tokens)(tokens)
    torch.testing.assert_close(normal.mean(0), torch.zeros(D_IN), rtol=0, atol=1e-5)  # float32 sums of 500
    torch.testing.assert_close(normal.pow(2).mean(), torch.ones(()), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("rows", "latents", "k"), [(1, 8, 3), (5, 8, 8), (64, 256, 4), (200, 40, 16), (7, 1000, 1)])
def test_the_batch_threshold_is_the_smallest_of_the_flattened_top_k(rows, latents, k):
    pre = torch.randn(rows, latents, generator=torch.Generator().manual_seed(rows)).abs()
    assert batch_topk_threshold(pre, k) == pre.flatten().topk(k * rows).values[-1]


@pytest.mark.parametrize("crowded", [1, 3])
def test_the_batch_threshold_is_exact_where_a_few_rows_hold_all_that_is_large(crowded):
    pre = torch.rand(50, 300, generator=torch.Generator().manual_seed(0))
    pre[:crowded] += 10
    assert batch_topk_threshold(pre, 4) == pre.flatten().topk(200).values[-1]


def test_a_latent_that_is_zero_is_never_active():
    pre = torch.zeros(10, 30)
    pre[0, :5] = 1.0
    model = TrainingAutoencoder(D_IN, 30, 4, "batch_topk", torch.Generator().manual_seed(0))
    assert torch.equal(model.activate(pre), pre)
    assert batch_topk_threshold(pre, 4) > 0


def test_each_activation_keeps_what_it_says():
    pre = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).relu()
    by_batch, by_token = (random_model(activation)[0].activate(pre) for activation in ("batch_topk", "topk"))
    assert (by_batch > 0).sum() == 40 * 4 and len((by_batch > 0).sum(1).unique()) > 1
    assert ((by_token > 0).sum(1) == 4).all()
    for kept in (by_batch, by_token):
        assert torch.equal(kept, torch.where(kept > 0, pre, 0))


def test_the_losses_are_those_written_plainly():
    model, normalisation = random_model("topk")
    tokens = normalisation(synthetic(100, seed=7).activations)
    model.tokens_since_fired += 10**6
    losses = model.losses(tokens, dead_after=1000, k_aux=3)
    pre = (tokens @ model.W_enc.T + model.b_enc).relu()
    code = torch.where(pre >= pre.topk(4, dim=1).values[:, -1:], pre, 0)
    dead = ~(code > 0).any(0)
    assert 0 < dead.sum() < 64 and torch.equal(model.tokens_since_fired > 1000, dead)
    residual, variance = tokens - code @ model.W_dec - model.b_dec, (tokens - tokens.mean(0)).pow(2).sum()
    rest = pre[:, dead]
    rest = torch.where(rest >= rest.topk(3, dim=1).values[:, -1:], rest, 0)
    close = {"rtol": 1e-5, "atol": 0}  # sums of 1600 float32
    torch.testing.assert_close(losses.fvu, residual.pow(2).sum() / variance, **close)
    torch.testing.assert_close(losses.auxiliary, (residual - rest @ model.W_dec[dead]).pow(2).sum() / variance, **close)
    assert losses.l0 == 4


def test_the_auxiliary_loss_moves_dead_latents_only():
    model, normalisation = random_model("topk")
    tokens = normalisation(synthetic(100, seed=7).activations)
    model.tokens_since_fired += 10**6
    model.losses(tokens, dead_after=1000, k_aux=3).auxiliary.backward()
    dead = model.tokens_since_fired > 1000
    assert model.W_dec.grad[~dead].eq(0).all() and model.W_enc.grad[~dead].eq(0).all()
    assert model.W_dec.grad[dead].ne(0).any()
    assert model.b_dec.grad is None, "b_dec stays out of it"


@pytest.mark.parametrize("activation", ["batch_topk", "topk"])
def test_the_auxiliary_loss_revives_dead_latents(activation):
    dead = {}
    for weight in (0, 1 / 32):
        generator = torch.Generator().manual_seed(0)
        model = TrainingAutoencoder(D_IN, 64, 4, activation, generator)
        with torch.no_grad():
            model.W_enc[16:] *= 0.1  # too faint ever to be among the largest
        tokens = synthetic(3000, seed=1).activations
        tokens = Normalisation.of(tokens)(tokens)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(300):
            losses = model.losses(tokens[torch.randint(3000, (128,), generator=generator)], 1000, D_IN // 2)
            (losses.fvu + weight * losses.auxiliary).backward()
            optimizer.step()
            optimizer.zero_grad()
            model.normalise_decoder()
        dead[weight] = (model.tokens_since_fired > 1000).float().mean().item()
    assert dead[0] > 0.5 and dead[1 / 32] < 0.6 * dead[0], dead


@pytest.mark.parametrize("activation", ["batch_topk", "topk"])
def test_bfloat16_products_change_the_losses_little(activation):
    losses = []
    for enabled in (False, True):
        model, normalisation = random_model(activation)
        model.tokens_since_fired += 10**6
        tokens = normalisation(synthetic(100, seed=7).activations)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(model.losses(tokens, 1000, 3))
        (losses[-1].fvu + losses[-1].auxiliary).backward()
        assert model.threshold.dtype == torch.float32
    # bfloat16 keeps 8 bits: half a percent a product, and some latents change places at the edge of the top k.
    for name in ("fvu", "auxiliary"):
        torch.testing.assert_close(getattr(losses[1], name), getattr(losses[0], name), rtol=0.05, atol=0)


def test_the_gradient_left_is_across_the_decoder_s_rows():
    model, normalisation = random_model("topk")
    model.normalise_decoder()
    model.losses(normalisation(synthetic(100, seed=7).activations), 10**9, 3).fvu.backward()
    model.project_gradient()
    along = (model.W_dec.grad * model.W_dec).sum(1)
    assert along.abs().max() < 1e-6 * model.W_dec.grad.abs().max() * D_IN  # float32 rounding of sums of 16


def test_measures_are_those_of_a_small_sae_worked_out_by_hand():
    sae = SparseAutoencoder(2, 3, 1).requires_grad_(False)
    sae.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    sae.W_dec.copy_(sae.W_enc)
    activations = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0], [3.0, 2.0]])
    tokens = Tokens(activations.half(), torch.zeros(4), torch.tensor([1, 1, 41, 41]), torch.arange(4))
    # One latent a token meets all but the last, of which (0, 2) is left: a square of 4.
    variance = (activations - torch.tensor([2.25, 1.25])).pow(2).sum().item()
    found = measure(sae, tokens)
    assert found["fvu"] == pytest.approx(4 / variance)
    assert found["fvu_by_timestep"] == {1: 0.0, 41: pytest.approx(4 / 5)}
    assert (found["dead"], found["l0"], found["tokens"]) == (pytest.approx(1 / 3), 1.0, 4)
