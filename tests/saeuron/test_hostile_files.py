"""Files by people who mean harm: nothing runs, little memory is taken, and one sentence says what is wrong."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saeuron import ConceptTable, Recording, SaeuronError, Setting, load_sae, read_settings, save_sae
from saeuron.checkpoints import Bundle, load_bundle, save_bundle
from saeuron.checkpoints.pickled import read_pickle
from saeuron.concept_table import WholeTable
from saeuron.contrasts import RIDGE
from saeuron.errors import LONGEST
from saeuron.files import read_json, read_tensors, write_text
from tests.fuzz.readers import make_sae, make_table
from training.sharing.convert import read_pickled_table

ROOT = Path(__file__).parents[2]


def refusal(read, path) -> str:
    with pytest.raises(SaeuronError) as refused:
        read(path)
    message = str(refused.value)
    assert len(message) <= LONGEST and message.isprintable()
    return message


def spoil(path: Path, *places: tuple) -> None:
    """Change a JSON file: each of ``places`` is the keys that lead to a value, and the value it gets."""
    content = json.loads(path.read_text("utf-8"))
    for *keys, last, value in places:
        within = content
        for key in keys:
            within = within[key]
        within[last] = value
    path.write_text(json.dumps(content), "utf-8")


@pytest.fixture
def folder(tmp_path):
    save_sae(make_sae(), tmp_path)
    return tmp_path


def peak_megabytes(code: str, *arguments: object) -> int:
    """By how many megabytes memory grows at most while ``code`` runs, in a process of its own, behind its imports."""
    program = f"""if True:
        import resource, sys
        from pathlib import Path
        from saeuron import ConceptTable, SaeuronError, load_sae
        from saeuron.checkpoints import dictionary_learning
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            {code}
        except SaeuronError:
            pass
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    command = [sys.executable, "-c", program, *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


DOUBLED = b")q\0" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(40))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04}(" + DOUBLED + b"K\x01u.",
        b"\x80\x04}(X\x01\0\0\0a" + DOUBLED + b"u.",
        b"\x80\x04}()" + b"\x85" * 2_000_000 + b"K\x01u.",
        b"\x80\x04}(X\x01\0\0\0a)" + b"\x85" * 500_000 + b"u.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x04}q\0(X\x01\0\0\0ah\0u.",
        b"(dp0\nI" + b"9" * 5000 + b"\nI1\ns.",
        b"}" * 3_000_000 + b".",
        b"\x80\x04}(K\x01K\x01\x88K\x02u.",
        b"\x80\x04}(G\x7f\xf8\0\0\0\0\0\0K\x01u.",
        b"",
    ],
    ids=["doubled key", "doubled value", "deep key", "deep value", "bytearray8", "bytes8", "itself", "digits", "many",
         "true as key", "NaN as key", "nothing"],
)  # fmt: skip
def test_a_pickle_that_would_hang_crash_or_fill_memory_is_refused_at_once(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    assert "is not a pickle of tensors, numbers and strings alone" in refusal(read_pickle, tmp_path / "a.pkl")


def test_a_torch_file_that_inflates_is_refused(tmp_path):
    torch.save({"a": torch.zeros(100)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    assert "compressed" in refusal(read_pickle, tmp_path / "b.pth")


def test_tensors_larger_than_their_file_are_refused_before_they_are_made(tmp_path):
    """An expanded tensor is one number in a file and gigabytes in whoever copies it."""
    torch.save({"a": torch.zeros(1).expand(400_000_000)}, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 2000
    assert "larger than their contents" in refusal(read_pickle, tmp_path / "a.pth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": torch.zeros(1).expand(400_000_000)}))
    assert "larger than their contents" in refusal(read_pickle, tmp_path / "a.pkl")
    assert peak_megabytes("dictionary_learning.read_pickle(sys.argv[1])", tmp_path / "a.pth") < 256


def test_torch_files_come_back_as_torch_reads_them(tmp_path):
    tied = torch.randn(3, 4)
    content = {
        "state_dict": torch.nn.Linear(3, 2).state_dict(),
        "k": torch.tensor(4),
        "lr": 0.5,
        "name": "x",
        7: [None],
    }
    content |= {"tied": tied, "view": tied.T[1:], "none": torch.empty(0, 3), "half": tied.half(), "flag": tied > 0}
    torch.save(content, tmp_path / "a.pth")
    found, expected = read_pickle(tmp_path / "a.pth"), torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(found) == list(expected) and (found["lr"], found["name"], found[7]) == (0.5, "x", [None])
    for name in ("k", "tied", "view", "none", "half", "flag"):
        assert torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype
    assert all(torch.equal(found["state_dict"][name], own) for name, own in expected["state_dict"].items())


@pytest.mark.parametrize("size", [{"num_latents": 50_000_000}, {"d_in": 2**39, "num_latents": 2**39}])
def test_sizes_that_a_config_declares_take_no_memory(folder, size):
    spoil(folder / "cfg.json", *size.items())
    assert "where its config says" in refusal(load_sae, folder)
    assert peak_megabytes("load_sae(sys.argv[1])", folder) < 256


def test_a_small_table_takes_little_memory(tmp_path):
    """Of an 89 KB file with many timesteps each concept's means would be gigabytes."""
    timesteps = torch.arange(50_000)
    about = {"format": "saeuron-concept-table", "version": 1, "concepts": {}, "fingerprint": "", "origin": {}}
    tensors = {"sums": torch.zeros(0, 50_000, 20_480), "counts": torch.zeros(0, 50_000), "timesteps": timesteps}
    save_file(tensors, tmp_path / "table.safetensors", {"saeuron": json.dumps(about)})
    assert "timesteps" in refusal(ConceptTable.load, tmp_path / "table.safetensors")
    assert peak_megabytes("ConceptTable.load(sys.argv[1])", tmp_path / "table.safetensors") < 256


def test_a_chosen_file_of_weights_is_the_one_that_is_read(folder):
    """Beside a good file lies one of another layout, which would be found first if the folder were asked."""
    good = load_sae(folder / "sae.safetensors").fingerprint
    torch.save({"a": 1}, folder / "ae.pt")
    (folder / "config.json").write_text("{}", "utf-8")
    assert load_sae(folder / "sae.safetensors").fingerprint == good


def test_a_link_that_waits_for_a_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious", "utf-8")
    for name in ("a.txt.tmp", ".a.txt.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "victim").read_text("utf-8") == "precious"


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/hostname", "shard-00000.safetensors/../../x", "a\nb", ""])
def test_a_shard_is_a_file_of_its_folder(tmp_path, name):
    from tests.saeuron.test_recording import record

    spoil(record(tmp_path) / "manifest.json", ("shards", {name: 10}))
    assert "manifest.json: shards." in refusal(Recording, tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "too large a number"),
        ('{"a": Infinity}', "Infinity is no finite number"),
        ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": 1e400}', "1e400 is no finite number"),
        ('{"a": "\\ud800"}', "surrogates"),
    ],
)
def test_json_that_python_reads_and_cannot_use_is_refused(tmp_path, text, complaint):
    (tmp_path / "a.json").write_text(text, "utf-8")
    assert complaint in refusal(read_json, tmp_path / "a.json")


@pytest.mark.parametrize(
    "values", [{"strength": float("nan")}, {"per_timestep": "false"}, {"latents": 1e400}, {"latents": 1.5}]
)
def test_settings_of_another_kind_are_not_taken_in_silence(tmp_path, values):
    (tmp_path / "settings.json").write_text(json.dumps({"concepts": {"cat": values}}), "utf-8")
    assert "settings.json" in refusal(read_settings, tmp_path / "settings.json")


@pytest.mark.parametrize("wrong", ["NaN", "infinity", "int8"])
def test_weights_that_are_no_numbers_are_refused_by_name(folder, wrong):
    tensors, _ = read_tensors(folder / "sae.safetensors")
    if wrong == "int8":
        tensors["W_dec"] = tensors["W_dec"].to(torch.int8)
    else:
        tensors["W_dec"][0, 0] = float("nan" if wrong == "NaN" else "inf")
    save_file(tensors, folder / "sae.safetensors")
    assert "W_dec" in refusal(load_sae, folder)


@pytest.mark.parametrize(("key", "value"), [("k", float("inf")), ("k", True), ("expansion_factor", 1e9), ("site", 3)])
def test_a_config_of_another_kind_is_refused_by_field(folder, key, value):
    spoil(folder / "cfg.json", (key, value))
    assert "cfg.json" in refusal(load_sae, folder)


@pytest.mark.parametrize("name", ["a\nb", "x" * 10_000, " ", "\u202e"])
def test_a_name_is_one_short_line(tmp_path, name):
    sae = make_sae()
    with pytest.raises(SaeuronError):
        make_table(sae).statistics.__class__({name: "style"}, [1], sae.n_latents, sae.fingerprint)
    path = tmp_path / "a.safetensors"
    save_bundle(Bundle(sae, make_table(sae), {}), path)
    tensors, metadata = read_tensors(path, endless=("contrasts.distances",))
    about = json.loads(metadata["saeuron"])
    about["table"]["concepts"] = {name: "style"} | dict(list(about["table"]["concepts"].items())[1:])
    save_file(tensors, path, {"saeuron": json.dumps(about)})
    refusal(load_bundle, path)


def test_a_name_may_be_any_other_text(tmp_path):
    """HTML, markup and formulas are nothing to a file; whoever shows a name shows it as it is."""
    sae, path = make_sae(), tmp_path / "a.safetensors"
    statistics = make_table(sae).statistics
    names = ["<img src=x onerror=alert(1)>", "[/x] $\\frac$", "a, b: c", 'say "no"']
    statistics.concepts = dict(zip(names, ("object", "object", "style", "style"), strict=True))
    statistics._rows = {name: row for row, name in enumerate(names)}
    save_bundle(Bundle(sae, WholeTable(statistics), {names[0]: Setting()}), path)
    assert list(load_bundle(path).table.concepts) == names


def test_an_error_is_one_short_line_whatever_it_repeats():
    message = str(SaeuronError(f"{'/long' * 100}/file\nis broken\x1b[31m: {'x' * 10_000}; delete it"))
    assert len(message) <= LONGEST and message.isprintable() and message.endswith("; delete it")


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkdir(tmp_path / "a.json")
    refusal(read_json, tmp_path / "a.json")
    os.mkdir(tmp_path / "a.safetensors")
    refusal(read_tensors, tmp_path / "a.safetensors")
    refusal(read_pickle, tmp_path / "a.json")


def test_statistics_that_are_of_no_pictures_are_told():
    """With such counts the normal equations have no solution."""
    sae = make_sae()
    statistics = make_table(sae).statistics
    statistics.more["pictures"] *= 0
    statistics.more["together"][:] = -RIDGE * torch.eye(len(statistics.concepts))[:, :, None]
    assert "of no pictures" in refusal(lambda table: table.contrasts(sae), WholeTable(statistics))


def test_keys_of_two_kinds_are_told_apart_by_name(tmp_path):
    torch.save({"ae": {1: torch.zeros(1), "x": torch.zeros(1)}}, tmp_path / "ae.pt")
    trainer = {"dict_class": "AutoEncoderTopK", "activation_dim": 8, "dict_size": 24, "k": 4}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}), "utf-8")
    assert "ae.pt lacks b_dec" in refusal(load_sae, tmp_path)
    sae, table = make_sae(), {1: torch.zeros(1, 2, 24), "1": torch.zeros(1, 2, 24)}
    (tmp_path / "cls_a.pkl").write_bytes(pickle.dumps(table))
    assert "two concepts of one name" in refusal(lambda path: read_pickled_table(path, sae), tmp_path / "cls_a.pkl")


def test_a_table_whose_concepts_hold_no_tensor_is_refused(tmp_path):
    (tmp_path / "cls_a.pkl").write_bytes(pickle.dumps({"a": (1,), "b": ()}))
    said = refusal(lambda path: read_pickled_table(path, make_sae()), tmp_path / "cls_a.pkl")
    assert "one tensor a concept" in said
