import errno
import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError

import saeuron.files
from saeuron import SaeuronError
from saeuron.errors import nearest
from saeuron.files import read_json, read_tensors, write_atomically, write_json, write_tensors, write_text


def test_json_and_tensors_come_back_as_they_went(tmp_path, make_tokens):
    write_json(tmp_path / "deep" / "a.json", {"γ": [1, 2.5, None]})
    assert read_json(tmp_path / "deep" / "a.json") == {"γ": [1, 2.5, None]}
    tensors = {"view": make_tokens(3, 4).T, "half": make_tokens(2).half(), "none": torch.empty(0, 5)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"note": "here"})
    read, metadata = read_tensors(tmp_path / "a.safetensors")
    assert metadata == {"note": "here"}
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_json_is_written_to_be_read_by_people(tmp_path):
    write_json(tmp_path / "a.json", {"γ": [1]})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n "γ": [\n  1\n ]\n}\n'


def test_nothing_but_the_file_is_left_beside_it(tmp_path):
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text("utf-8") == "two"


def half_a_file(path):
    path.write_text("ha", "utf-8")
    raise OSError(errno.ENOSPC, "No space left on device")


def half_the_tensors(_tensors, path, metadata=None):
    path.write_bytes(b"ha")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    target = tmp_path / "a"
    write_text(target, "old")
    monkeypatch.setattr(saeuron.files, "save_file", half_the_tensors)
    for attempt in (lambda: write_atomically(target, half_a_file), lambda: write_tensors(target, {})):
        with pytest.raises(SaeuronError, match="No space left on device") as refusal:
            attempt()
        assert str(target) in str(refusal.value)
        assert list(tmp_path.iterdir()) == [target] and target.read_text("utf-8") == "old"


def test_a_disk_that_fills_only_at_the_sync_leaves_nothing(tmp_path, full_disk):
    with pytest.raises(SaeuronError, match="No space left on device"):
        write_text(tmp_path / "a.txt", "new")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_half_written(tmp_path):
    def interrupted(path):
        path.write_text("ha", "utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.txt", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_leftover_of_a_killed_run_is_written_over(tmp_path):
    """One of a writer that is gone; another's that is still at work stays."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in ("a", "a.txt", "a.b.txt"):
        (tmp_path / f".{name}.{gone.pid}.abc.tmp").write_text("half", "utf-8")
        (tmp_path / f".{name}.{os.getpid()}.abc.tmp").write_text("half", "utf-8")
        write_text(tmp_path / name, "whole")
        assert sorted(path.name for path in tmp_path.glob(f".{name}.*")) == [f".{name}.{os.getpid()}.abc.tmp"]
        for path in tmp_path.glob(".*"):
            path.unlink()


def test_new_files_have_the_permissions_of_any_new_file_and_old_ones_keep_theirs(tmp_path):
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / "new", {"a": torch.ones(1)})
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    write_tensors(tmp_path / "new", {"a": torch.zeros(1)})
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_two_writers_of_one_file_leave_one_whole_file(tmp_path):
    """Each writes under a name of its own, so that neither tears the other's."""

    def slow(text):
        def write(temporary):
            temporary.write_text(text[:5], "utf-8")
            write_text(tmp_path / "a", "between")
            temporary.write_text(text, "utf-8")

        return write

    write_atomically(tmp_path / "a", slow("the last to be renamed"))
    assert (tmp_path / "a").read_text("utf-8") == "the last to be renamed"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SaeuronError, match="could not be written"):
        write_text(tmp_path / "file" / "a.txt", "x")


@pytest.mark.parametrize("read", [read_json, read_tensors])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(SaeuronError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_broken_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(SaeuronError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_a_truncated_tensor_file_is_named(tmp_path, make_tokens):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": make_tokens(100)})
    whole = path.read_bytes()
    for length in (0, 5, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SaeuronError, match=r"a\.safetensors is not a readable safetensors file"):
            read_tensors(path)


def test_the_nearest_names_come_first_and_case_does_not_matter():
    assert nearest("circel", ["Square", "Circle", "Ring"]).startswith("Circle")
    assert nearest("zzz", ["b", "a"]) == "b, a"
    assert nearest("x", []) == "none"
