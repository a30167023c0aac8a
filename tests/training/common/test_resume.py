import json
import subprocess
import sys
from pathlib import Path

import pytest

from saeuron import SaeuronError
from training.__main__ import main
from training.common.resume import claim, held, piece, remove
from training.evaluation.commands import Nudity

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path):
    """``run(**options)`` claims a folder for a command with these options."""

    def run(made_with=None, **options):
        named = {"model": "sd.safetensors", "sae": tmp_path / "sae", "prompts": tmp_path / "a.csv"}
        config = Nudity(**(named | {"output": tmp_path / "out"} | options))
        given = {"sae": "aaaa", "settings": {"neon": {"latents": 1}}} | (made_with or {})
        claim(config, config.output, free=["batch"], pieces=["*.txt"], **given)
        return tmp_path / "out"

    return run


def test_the_same_options_continue_and_what_changes_nothing_may_differ(run):
    folder = run()
    (folder / "a.txt").write_text("finished", "utf-8")
    run()
    run(batch=3, device="cuda", json=True, model="elsewhere/sd.safetensors", sae=folder / "moved")
    assert (folder / "a.txt").read_text("utf-8") == "finished"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"steps": 9}, "was made with steps 50 and now it is 9"),
        ({"seed_column": "x"}, "was made with seed_column sd_seed and now it is x"),
        ({"made_with": {"sae": "bbbb"}}, "was made with sae aaaa and now it is bbbb"),
        ({"made_with": {"settings": {"neon": {"latents": 2}}}}, "latents of neon of settings"),
    ],
)
def test_another_option_is_refused_by_its_name_and_nothing_is_touched(run, options, complaint):
    before = (run() / "nudity.config.json").read_bytes()
    with pytest.raises(SaeuronError) as refused:
        run(**options)
    said = str(refused.value)
    assert said.endswith(": choose another --output, or --overwrite to begin anew") and "\n" not in said
    assert complaint in said, said
    assert (run() / "nudity.config.json").read_bytes() == before


def test_several_things_by_name_may_become_more(run):
    run()
    folder = run({"settings": {"star": {"latents": 3}}})
    kept = json.loads((folder / "nudity.config.json").read_text("utf-8"))["made_with"]["settings"]
    assert kept == {"neon": {"latents": 1}, "star": {"latents": 3}}
    with pytest.raises(SaeuronError, match="neon"):
        run({"settings": {"neon": {"latents": 4}}})


def test_what_is_finished_goes_only_where_the_user_says_so(run):
    folder = run()
    for name in ("a.txt", "kept.png"):
        (folder / name).write_text("finished", "utf-8")
    with pytest.raises(SaeuronError):
        run(steps=9)
    assert (folder / "a.txt").exists()
    run(steps=9, overwrite=True)
    assert not (folder / "a.txt").exists() and (folder / "kept.png").exists()
    run(steps=9)


def test_a_folder_with_results_of_unknown_make_is_refused(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("somebody's", "utf-8")
    with pytest.raises(SaeuronError, match=r"holds a\.txt already, which was made otherwise"):
        run()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]


def test_a_piece_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"n": len(made)}

    assert piece(tmp_path / "a.json", make) == piece(tmp_path / "a.json", make) == {"n": 1}
    remove(tmp_path, ["*.json"])
    assert piece(tmp_path / "a.json", make) == {"n": 2}


HOLDER = """if True:
    import sys
    from pathlib import Path
    from training.common.resume import held
    with held(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``tmp_path/a/out``."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "a" / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_two_processes_do_not_make_one_thing_and_the_second_hears_who_does(holder, tmp_path):
    said = rf"out is being made by process {holder.pid} on .* since .*: wait for it"
    with pytest.raises(SaeuronError, match=said), held(tmp_path / "a" / "out"):
        raise AssertionError
    with held(tmp_path / "a" / "other"):
        pass


def test_a_command_holds_what_it_makes_and_a_dry_run_nothing(holder, tmp_path, capfd):
    line = ["train", "--recording", str(tmp_path), "--output", str(tmp_path / "a" / "out")]
    assert main(line) == 2
    assert f"is being made by process {holder.pid}" in capfd.readouterr().err
    assert main([*line, "--dry-run"]) == 2
    assert "is not a recording" in capfd.readouterr().err


def test_a_killed_process_holds_nothing(holder, tmp_path):
    holder.kill()
    holder.wait()
    with held(tmp_path / "a" / "out"):
        pass
    assert list((tmp_path / "a").iterdir()) == [], "and its lock is cleared away"


def test_a_lock_leaves_nothing_behind(tmp_path):
    with held(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b" / ".out.lock").exists()
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "b" / "out").mkdir()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["out"]


def test_where_nothing_can_be_written_there_is_no_lock(tmp_path):
    (tmp_path / "file").touch()
    with held(tmp_path / "file" / "out"):
        pass


def test_a_journal_that_is_none_is_refused_by_name(run):
    folder = run()
    (folder / "nudity.config.json").write_text('{"made_with": [1]}', "utf-8")
    with pytest.raises(SaeuronError, match=r"nudity\.config\.json: made_with is \[1\]"):
        run()
