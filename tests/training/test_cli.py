import ast
import dataclasses
import errno
import inspect
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import saeuron.files
from saeuron import (
    ConceptStatistics,
    ConceptTable,
    Hookpoint,
    Recording,
    Setting,
    default_setting,
    save_sae,
    write_settings,
)
from saeuron.checkpoints import Bundle, save_bundle
from saeuron.concept_table import WholeTable
from training.__main__ import COMMANDS, main, options
from training.common.config import MADE_WITH, ONCE

NAME = "unet.up_blocks.1.attentions.1"
STARS = [
    {"prompt": "An image of star in neon style.", "object": "star", "style": "neon"},
    {"prompt": "An image of heart.", "object": "heart", "style": "plain"},
    {"prompt": "An image of circle in neon style.", "object": "circle", "style": "neon"},
]


@pytest.fixture
def bench(tmp_path, make_sae, make_table):
    """A folder with an SAE and its table, another SAE and a narrower one with theirs, and a few prompts."""
    for name, sae in {"": make_sae(), "other-": make_sae(seed=1), "narrow-": make_sae(d_in=64)}.items():
        save_sae(sae, tmp_path / f"{name}sae")
        make_table(sae).save(tmp_path / f"{name}table")
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in STARS), "utf-8")
    (tmp_path / "plain.txt").write_text("a star\n", "utf-8")
    (tmp_path / "empty.txt").write_text("\n", "utf-8")
    return tmp_path


@pytest.fixture
def run(bench, capfd):
    """Run a command line in which {} is the bench's folder; returns the exit code and the lines on stderr."""

    def run(line, *more):
        capfd.readouterr()
        code = main([part.replace("{}", str(bench)) for part in line.split()] + list(more))
        return code, capfd.readouterr().err.splitlines()

    return run


GENERATE = "generate --sae {}/sae --table {}/table --output {}/out --steps 2 --prompts {}/prompts.jsonl"
EVALUATE = "evaluate --sae {}/sae --table {}/table --output {}/out --steps 2 --prompts {}/prompts.jsonl --seeds 1"
SWEEP = "sweep --sae {}/sae --table {}/table --output {}/out --steps 2 --prompts {}/prompts.jsonl --images 3"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("train --recording {} --output {}/out", "is not a recording"),
        ("record --output {}/out --hookpoints unet.up_blocks.1.attention.1", f"the nearest are {NAME}"),
        ("record --output {}/out --max-gb 0.01", "and --max-gb is 0.01: raise it"),
        ("record --output {}/out --prompts {}/empty.txt", "empty.txt holds no prompt"),
        ("record --output {}/out --prompts {}/none.txt", "none.txt could not be read"),
        ("record --output {}/out --model {}/none", "does not exist; give `tinycanvas`"),
        ("score --sae {}/none --output {}/out/table", "none is not a folder with cfg.json and sae.safetensors"),
        ("score --sae {}/narrow-sae --output {}/out/table", "width 64 and the hookpoint gives 128"),
        ("score --sae {}/sae --output {}/out/table --prompts {}/plain.txt", "names no concepts"),
        (GENERATE.replace("{}/sae", "{}/none"), "none is not a folder with cfg.json and sae.safetensors"),
        (GENERATE.replace("{}/table", "{}/none"), "none does not exist"),
        (GENERATE.replace("{}/table", "{}/other-table") + " --remove neon", "was made with the SAE"),
        (GENERATE.replace("{}/", "{}/narrow-", 2) + " --remove neon", "width 64 and the hookpoint gives 128"),
        (GENERATE + " --remove neom", "concept 'neom' is not in the table; the nearest are neon"),
        (GENERATE + " --remove neon --settings {}/none.json", "none.json does not exist"),
        (GENERATE.replace("prompts.jsonl", "empty.txt"), "empty.txt holds no prompt"),
        (GENERATE + " --sampler eular", "the nearest are euler"),
        (GENERATE.split(" --prompts")[0], "give --prompt or --prompts"),
        (EVALUATE, "give --targets or --settings"),
        (EVALUATE.replace("prompts.jsonl", "plain.txt") + " --targets neon", "'a star' does not say its object"),
        (EVALUATE.replace("{}/table", "{}/other-table") + " --targets neon", "was made with the SAE"),
        (EVALUATE.replace("{}/", "{}/narrow-", 2) + " --targets neon", "width 64 and the hookpoint gives 128"),
        (SWEEP + " --targets moon", "the prompts need some that show 'moon'"),
        (SWEEP + " --targets neon --strengths", "there is nothing to try"),
        ("demo --output {}/out --targets neom", "--targets 'neom' is unknown to TinyCanvas; the nearest are neon"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2_and_leaves_nothing(run, bench, line, complaint):
    code, told = run(line)
    assert code == 2
    assert len(told) == 1 and told[0].startswith("error: ") and complaint in told[0], told
    assert not (bench / "out").exists()


def test_of_a_command_of_its_own_nothing_else_reaches_the_terminal(bench):
    command = [sys.executable, "-m", "training", "score", "--sae", str(bench / "narrow-sae"), "--output", "table"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: this SAE reads tokens of width 64") and ended.stderr.count("\n") == 1


def test_brackets_in_a_path_are_told_as_they_are(run):
    assert run("score --sae {}/[bold]/[/x] --output {}/out")[1][0].endswith(
        "/[bold]/[/x] is not a folder with cfg.json and sae.safetensors"
    )


def test_a_full_disk_gets_one_line_and_leaves_nothing_half_written(run, bench, monkeypatch):
    synced = iter(range(4))  # the prompts, the manifest, the config and the first shard, though not its manifest

    def fsync(_descriptor):
        if next(synced, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saeuron.files.os, "fsync", fsync)
    code, told = run("record --output {}/out --images 2 --images-per-shard 1 --steps 1 --tokens-per-map 1")
    errors = [line for line in told if not line.startswith("recording: ")]
    assert code == 2 and len(errors) == 1 and "No space left on device" in errors[0]
    assert not list((bench / "out").rglob("*.tmp"))
    json.loads((bench / "out" / NAME / "manifest.json").read_text("utf-8"))


def test_a_missing_package_is_named_with_what_installs_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    code, told = run("hookpoints")
    assert code == 2 and told == ['error: the bench needs tyro: run `pip install ".[training]"` in its folder']


def test_an_interrupt_is_told_and_gives_130(run, monkeypatch):
    def interrupted(_self):
        raise KeyboardInterrupt

    monkeypatch.setattr(options("record"), "run", interrupted)
    code, told = run("record --output {}/out")
    assert code == 130 and "the same command continues" in told[0]


def documented(command):
    """{field: its docstring} as the source gives them."""
    found = {}
    for one in command.__mro__[-2::-1]:  # a command that declares an option anew may leave its text to the group
        for field, after in itertools.pairwise(ast.parse(inspect.getsource(one)).body[0].body):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_text:
                found[field.target.id] = " ".join(after.value.value.split())
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_of_every_option_what_it_is_and_its_default(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ended.value.code == 0
    fields = dataclasses.fields(options(name))
    texts = documented(options(name))
    assert texts.keys() == {field.name for field in fields}
    for field in fields:
        option, text = "--" + field.name.replace("_", "-"), texts[field.name]
        shown = f" {option}" in told or f" {field.name.upper()} " in told
        assert shown and text in told, option
        assert told[told.index(text) + len(text) :].lstrip().startswith(("(default: ", "(required)")), option


def cpu_seconds(*arguments):
    """What a fresh Python spends on ``arguments``, user and system; the least of three, and of a warm cache."""
    taken = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, *arguments], cwd=Path(__file__).parents[2], capture_output=True, check=True)
        after = os.times()
        taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(taken)


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in ("record", "sweep", "league", "push"))]
)
def test_help_opens_at_once(arguments):
    """Within half a second of what starting Python costs, in processor time, which other work does not change."""
    assert cpu_seconds("-m", "training", *arguments) < cpu_seconds("-c", "pass") + 0.5


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_imports_nothing_heavy(name):
    program = (
        "import sys\nfrom training.__main__ import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'matplotlib', 'optuna', 'scipy'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    command = [sys.executable, "-c", program, *filter(None, [name]), "--help"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_an_unknown_command_is_told_the_nearest(run):
    code, told = run("recrod --output {}/out")
    assert code == 2 and told == ["error: command 'recrod' is unknown; the nearest are record"]


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(f" {name} " in told for name in COMMANDS)


def saved_config(path, command):
    """The config saved at ``path``: every field of the command, resolved, but for those of one call alone."""
    config = json.loads(path.read_text("utf-8"))
    assert config.keys() - {MADE_WITH} == {field.name for field in dataclasses.fields(options(command))} - ONCE
    return config


def test_record_train_and_score_follow_each_other(run, bench):
    line = f"record --output {{}}/rec --hookpoints {NAME} --images 4 --images-per-shard 2 --steps 3 --batch 2"
    assert run(line)[0] == 0
    config = saved_config(bench / "rec" / "record.config.json", "record")
    assert (config["images"], config["steps"], config["tokens_per_map"], config["model"]) == (4, 3, 16, "tinycanvas")
    assert Recording(bench / "rec" / NAME).complete

    assert run(f"train --recording {{}}/rec/{NAME} --output {{}}/new --batch 32 --steps 5 --expansion 2 --k 4")[0] == 0
    config = saved_config(bench / "new" / "train.config.json", "train")
    assert (config["recording"], config["lr"]) == (str(bench / "rec" / NAME), 3e-4)

    line = "score --sae {}/new --output {}/new/table.safetensors --prompts {}/prompts.jsonl --steps 2"
    assert run(line)[0] == 0
    assert saved_config(bench / "new" / "table.config.json", "score")["prompts"] == f"{bench}/prompts.jsonl"
    table = ConceptTable.load(bench / "new" / "table.safetensors")
    assert list(table.concepts.values()).count("object") == 3 and len(table.timesteps) == 2


def test_generate_draws_pairs_and_a_grid(run, bench):
    code, told = run(GENERATE + " --remove neon star --latents 64 --strength -20")
    assert code == 0 and any(line.startswith("3 pairs of pictures") for line in told)
    names = {path.name for path in (bench / "out").iterdir()}
    pairs = {f"{when}-{n:04d}.png" for when in ("before", "after") for n in range(3)}
    assert names == pairs | {"grid.png", "generate.config.json"}
    before, after = ((bench / "out" / f"{when}-0000.png").read_bytes() for when in ("before", "after"))
    assert before != after
    config = saved_config(bench / "out" / "generate.config.json", "generate")
    assert (config["remove"], config["strength"]) == (["neon", "star"], -20.0)


def test_generate_without_a_concept_draws_each_picture_twice(run, bench):
    assert run(GENERATE.split(" --prompts")[0] + " --batch 1 --prompt", "a star", "a heart")[0] == 0
    for n in range(2):
        before, after = ((bench / "out" / f"{when}-{n:04d}.png").read_bytes() for when in ("before", "after"))
        assert before == after


def test_sweep_finds_settings_that_evaluate_and_generate_take(run, bench):
    assert run(SWEEP + " --targets neon --latents 1 4 --strengths -1 --per-timestep True")[0] == 0
    saved_config(bench / "out" / "sweep.config.json", "sweep")
    settings = json.loads((bench / "out" / "settings.json").read_text("utf-8"))
    assert settings["concepts"]["neon"]["latents"] in (1, 4) and 3 < settings["images"] <= 2 * 3

    assert run(EVALUATE + " --settings {}/out/settings.json")[0] == 0
    saved_config(bench / "out" / "evaluate.config.json", "evaluate")
    report = json.loads((bench / "out" / "evaluation.json").read_text("utf-8"))
    assert [target["name"] for target in report["targets"]] == ["neon"] and report["images"] == 3
    assert report["targets"][0]["setting"] == settings["concepts"]["neon"]
    assert "| neon | style |" in " ".join((bench / "out" / "evaluation.md").read_text("utf-8").split())
    assert run(GENERATE + " --remove neon --settings {}/out/settings.json")[0] == 0


def test_a_bundle_brings_its_table_and_settings_and_options_change_them(run, bench, make_sae, make_table):
    sae = make_sae()
    table = make_table(sae)
    save_bundle(Bundle(sae, table, {"neon": Setting(latents=8, strength=-4.0)}), bench / "bundle.safetensors")
    line = (
        "generate --sae {}/bundle.safetensors --output {}/out --steps 2 --prompts {}/prompts.jsonl --remove neon star"
    )
    assert run(line)[0] == 0
    (used,) = saved_config(bench / "out" / "generate.config.json", "generate")[MADE_WITH]["settings"]
    assert (used["neon"]["latents"], used["neon"]["strength"]) == (8, -4.0)
    assert used["star"] == default_setting(sae, table, "star").values(), "as ComfyUI's node does without a setting"
    assert run(f"{line} --strength -9 --output {{}}/other")[0] == 0
    (used,) = saved_config(bench / "other" / "generate.config.json", "generate")[MADE_WITH]["settings"]
    assert (used["neon"]["latents"], used["neon"]["strength"], used["star"]["strength"]) == (8, -9.0, -9.0)


def test_a_table_and_settings_beside_an_sae_are_found(run, bench):
    shutil.copyfile(bench / "table", bench / "sae" / "table.safetensors")
    write_settings(bench / "sae" / "settings.json", {"star": Setting(latents=3)})
    line = "evaluate --sae {}/sae --output {}/out --steps 2 --prompts {}/prompts.jsonl --seeds 1"
    assert run(line)[0] == 0
    report = json.loads((bench / "out" / "evaluation.json").read_text("utf-8"))
    assert [target["name"] for target in report["targets"]] == ["star"]


def test_an_sae_that_does_not_say_where_it_reads_is_told_on_the_command_line(run, bench, make_sae):
    save_sae(make_sae(hookpoint=None), bench / "nowhere")
    line = GENERATE.replace("{}/sae", "{}/nowhere") + " --remove neon"
    code, told = run(line)
    assert code == 2 and told == ["error: the SAE does not say where it reads: give --hookpoint"]
    assert run(line + " --site residual")[1][0].endswith("does not say where it reads: --site needs --hookpoint")
    assert run(f"{line} --hookpoint {NAME} --site residual")[0] == 0


def test_several_saes_remove_each_what_its_table_knows(run, bench, make_sae):
    other = make_sae(seed=3, hookpoint=Hookpoint("unet.mid_block.attentions.0"))
    statistics = ConceptStatistics(
        {"ember": "mood", "calm": "mood"}, [1, 500], other.n_latents, other.fingerprint, other.origin
    )
    statistics.sums += torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(0))
    statistics.counts += 1
    save_sae(other, bench / "moods")
    WholeTable(statistics).save(bench / "moods" / "table.safetensors")
    shutil.copyfile(bench / "table", bench / "sae" / "table.safetensors")
    line = "generate --sae {}/sae {}/moods --output {}/out --steps 2 --prompts {}/prompts.jsonl --remove neon ember"
    assert run(line)[0] == 0
    styles, moods = saved_config(bench / "out" / "generate.config.json", "generate")[MADE_WITH]["settings"]
    assert (list(styles), list(moods)) == (["neon"], ["ember"])
    assert "concept 'embers' is in no SAE's table; the nearest are ember" in run(line + " embers")[1][0]
    assert run(line + " --table {}/table")[1][0].startswith("error: --table, --settings, --hookpoint and --site belong")


def test_generate_says_how_many_tokens_an_edit_changed(run, bench, capfd):
    assert run(GENERATE + " --remove neon --latents 64 --strength -20 --json")[0] == 0
    line = (
        GENERATE.replace("{}", str(bench)).replace("/out", "/json")
        + " --remove neon --latents 64 --strength -20 --json"
    )
    assert main(line.split()) == 0
    told = json.loads(capfd.readouterr().out)
    (edit,) = told["edits"]
    assert 0 < edit["changed"] <= edit["tokens"] == 3 * 2 * 2 * 64, (
        "pictures × steps × with and without the prompt × tokens"
    )
    code, told = run(GENERATE.replace("{}/out", "{}/none") + " --remove neon --latents 0")
    assert code == 0 and any(line.startswith(f"no token was changed at {NAME}") for line in told)
    assert (bench / "none" / "before-0000.png").read_bytes() == (bench / "none" / "after-0000.png").read_bytes()


def test_generate_goes_on_where_it_was_interrupted(run, bench, interrupt_write):
    line = GENERATE + " --remove neon --batch 1"
    assert run(line)[0] == 0
    whole = {path.name: path.read_bytes() for path in (bench / "out").iterdir()}
    shutil.rmtree(bench / "out")
    interrupt_write(4, KeyboardInterrupt)  # the config, two pictures of the first pair, one of the second
    assert run(line)[0] == 130
    first = (bench / "out" / "after-0000.png").stat().st_mtime_ns
    assert run(line)[0] == 0
    assert {path.name: path.read_bytes() for path in (bench / "out").iterdir()} == whole
    assert (bench / "out" / "after-0000.png").stat().st_mtime_ns == first, "drawn once"
    code, told = run(line + " --guidance 5")
    assert code == 2 and "was made with guidance 3.0 and now it is 5.0" in told[0]


def test_generate_starts_from_a_picture_and_edits_where_a_mask_says(run, bench):
    line = GENERATE + " --remove neon --latents 64 --strength -20"
    left = np.zeros((32, 32), np.uint8)
    left[:, :16] = 255
    Image.fromarray(left).save(bench / "left.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(bench / "black.png")
    assert run(line + " --mask {}/black.png")[0] == 0
    pixels = {when: (bench / "out" / f"{when}-0000.png").read_bytes() for when in ("before", "after")}
    assert pixels["before"] == pixels["after"], "black is where nothing is edited"
    assert run(line.replace("{}/out", "{}/left") + " --mask {}/left.png")[0] == 0
    before, after = (
        np.array(Image.open(bench / "left" / f"{when}-0000.png")).astype(int) for when in ("before", "after")
    )
    assert (before != after).any()

    shutil.copyfile(bench / "out" / "before-0001.png", bench / "init.png")
    for denoise in ("0.5", "1"):
        assert run(f"{line.replace('{}/out', '{}/' + denoise)} --init-image {{}}/init.png --denoise {denoise}")[0] == 0
    start = np.array(Image.open(bench / "init.png")).astype(int)
    far = [np.abs(np.array(Image.open(bench / d / "before-0000.png")).astype(int) - start).mean() for d in ("0.5", "1")]
    assert far[0] < far[1], "the less is denoised, the nearer a picture stays to the one it starts from"
    assert run(line + " --init-image {}/init.png --denoise 0")[1][0].startswith(
        "error: --denoise is 0.0 and has to lie"
    )
    assert run(line.replace("{}/out", "{}/no") + " --init-image {}/no.png")[1][0].startswith("error: --init-image")


def test_a_negative_prompt_changes_the_picture(run, bench):
    for place, more in (("a", []), ("b", ["An image of heart."])):
        assert run(GENERATE.replace("{}/out", "{}/" + place), *(["--negative-prompt", *more] if more else []))[0] == 0
    assert (bench / "a" / "before-0000.png").read_bytes() != (bench / "b" / "before-0000.png").read_bytes()


def test_a_config_gives_options_and_the_command_line_wins(run, bench):
    text = (
        f"sae: {bench}/sae\ntable: {bench}/table\nprompts: {bench}/prompts.jsonl\nsteps: 2\nremove: [neon]\nseed: 5\n"
    )
    (bench / "a.yaml").write_text(text, "utf-8")
    assert run("generate --config {}/a.yaml --output {}/out --seed 6")[0] == 0
    config = saved_config(bench / "out" / "generate.config.json", "generate")
    assert (config["remove"], config["steps"], config["seed"]) == (["neon"], 2, 6)
    assert run("generate --config={}/out/generate.config.json --output {}/again")[0] == 0
    assert (bench / "again" / "after-0000.png").read_bytes() == (bench / "out" / "after-0000.png").read_bytes()
    with pytest.raises(SystemExit) as ended:  # what is not in the file is still asked for
        run("generate --config {}/a.yaml")
    assert ended.value.code == 2
    (bench / "a.yaml").write_text("remvoe: [neon]\n", "utf-8")
    code, told = run("generate --config {}/a.yaml --output {}/out")
    assert code == 2 and "'remvoe' is no option of this command; the nearest are remove" in told[0]


def test_only_declared_labels_are_concepts(run, bench):
    rows = [{"prompt": "a lake by Monet", "concepts": {"artist": "Monet"}, "source": "me"}]
    rows += [{"prompt": "a star", "concepts": {"artist": "nobody", "mood": "calm"}}]
    (bench / "own.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    line = "score --sae {}/sae --prompts {}/own.jsonl --steps 2 --output "
    assert run(line + "{}/all.safetensors")[0] == 0
    assert ConceptTable.load(bench / "all.safetensors").concepts == {
        "Monet": "artist",
        "nobody": "artist",
        "calm": "mood",
    }
    assert run(line + "{}/some.safetensors --labels artist")[0] == 0
    assert ConceptTable.load(bench / "some.safetensors").concepts == {"Monet": "artist", "nobody": "artist"}
    code, told = run(line + "{}/none.safetensors --labels artis")
    assert code == 2 and "no prompt says its 'artis'; the nearest are artist" in told[0]


@pytest.mark.parametrize(
    "line",
    [
        "record --output {}/dry --images 20 --steps 2",
        "score --sae {}/sae --output {}/dry/table.safetensors --steps 2",
        GENERATE.replace("{}/out", "{}/dry") + " --remove neon",
        "oracle --output {}/dry --without star",
        "demo --output {}/dry",
        "league --output {}/dry --quick",
        "blocks --output {}/dry",
        EVALUATE.replace("{}/out", "{}/dry") + " --targets neon",
        SWEEP.replace("{}/out", "{}/dry") + " --targets neon",
        EVALUATE.replace("evaluate", "attack").replace("{}/out", "{}/dry") + " --targets neon",
    ],
    ids=lambda line: line.split()[0],
)
def test_a_dry_run_tells_what_it_would_do_and_writes_nothing(run, bench, capfd, line):
    before = sorted(bench.rglob("*"))
    capfd.readouterr()
    assert main([*line.replace("{}", str(bench)).split(), "--dry-run", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert all(count > 0 for count in told["work"].values()) and told["work"] and told["bytes"] >= 0
    assert sorted(bench.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (GENERATE + " --remove neon --device cuda", "device 'cuda' is not there; use --device cpu"),
        ("record --output {}/out --device cuda", "device 'cuda' is not there; use --device cpu"),
        ("record --output {}/out --device gpu", "device 'gpu' is not there; use --device cpu"),
        (GENERATE + " --height 100", "--height and --width have to be multiples of 8"),
        ("score --sae {}/sae --output {}/out/table --width 100", "--height and --width have to be multiples of 8"),
        (GENERATE + " --remove neon --strength nan", "strength is nan and has to be a finite number"),
        (GENERATE + " --remove neon --strength inf", "strength is inf and has to be a finite number"),
        (EVALUATE + " --targets neon --strength nan", "strength is nan and has to be a finite number"),
    ],
)
def test_what_used_to_be_a_traceback_is_one_sentence(run, bench, line, complaint):
    if "--device cuda" in line and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, told = run(line)
    assert code == 2 and len(told) == 1 and complaint in told[0] and not (bench / "out").exists()


@pytest.mark.parametrize("module", ["tyro", "torch", "diffusers"])
def test_an_interrupt_while_importing_is_told_like_any_other(tmp_path, module):
    program = (
        "import builtins, os, signal, sys\nreal = builtins.__import__\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "def slow(name, *rest, **named):\n"
        f"    if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *rest, **named)\n"
        "builtins.__import__ = slow\nfrom training.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "record", "--output", str(tmp_path / "out")]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 130 and ended.stderr.splitlines() == [
        "interrupted; the same command continues where it can"
    ]


def test_an_oracle_of_other_concepts_does_not_take_the_one_that_is_there(run, bench):
    line = "oracle --output {}/out --steps 1 --batch 3 --without "
    assert run(line + "star")[0] == 0
    before = (bench / "out" / "unet.safetensors").read_bytes()
    assert "was made with without ['star'] and now it is ['heart']" in run(line + "heart")[1][0]
    assert (bench / "out" / "unet.safetensors").read_bytes() == before
