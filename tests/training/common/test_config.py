import json
from pathlib import Path

import pytest

from saeuron import SaeuronError
from training.common.config import ONCE, read_config, save_config
from training.evaluation.commands import Generate
from training.sae.commands import Record
from training.sharing.commands import Convert


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text, "utf-8")
        return tmp_path / name

    return write


def test_yaml_and_json_give_options_in_their_own_types(write):
    text = "sae: a.safetensors\nremove: [neon, star]\nstrength: -3\ndenoise: 5e-1\nbf16: true\n"
    text += "height: 64\nper-timestep: null\n"
    expected = {"sae": (Path("a.safetensors"),), "remove": ("neon", "star"), "strength": -3.0, "denoise": 0.5}
    expected |= {"bf16": True, "height": 64, "per_timestep": None}
    found = read_config(write("a.yaml", text), Generate)
    assert found == expected and isinstance(found["strength"], float)
    values = {"sae": ["a.safetensors"], "remove": ["neon", "star"], "strength": -3, "denoise": 0.5}
    values |= {"bf16": True, "height": 64, "per_timestep": None}
    assert read_config(write("a.json", json.dumps(values)), Generate) == expected


def test_what_a_command_saves_it_reads_back(tmp_path):
    for config in (
        Record(output=tmp_path, hookpoints=("a", "b"), height=64, overwrite=True, dry_run=True),
        Convert(input=tmp_path / "in", output=tmp_path / "out", timesteps=(3, 1)),
    ):
        save_config(config, tmp_path)
        path = tmp_path / f"{type(config).__name__.lower()}.config.json"
        again = type(config)(**read_config(path, type(config)))
        assert {**vars(again), **dict.fromkeys(ONCE)} == {**vars(config), **dict.fromkeys(ONCE)}


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.yaml", "imags: 3", "'imags' is no option of this command; the nearest are images"),
        ("a.yaml", "images: many", "images is 'many' and has to be a whole number or nothing"),
        ("a.yaml", "images: 1.5", "images is 1.5 and has to be a whole number or nothing"),
        ("a.yaml", "bf16: 3", "bf16 is 3 and has to be true or false"),
        ("a.yaml", "steps: true", "steps is True and has to be a whole number"),
        ("a.yaml", "hookpoints: [[a]]", "has to be a list, each text"),
        ("a.yaml", "guidance: {a: 1}", "has to be a number"),
        ("a.yaml", "dry_run: true", "'dry_run' is no option"),
        ("a.yaml", "- 1", "has to hold options by name"),
        ("a.yaml", "a: [", "is neither YAML nor JSON"),
        ("a.json", "{", "is not readable JSON"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(write, name, text, complaint):
    with pytest.raises(SaeuronError) as refused:
        read_config(write(name, text), Record)
    assert complaint in str(refused.value) and name in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SaeuronError, match=r"none\.yaml could not be read: No such file"):
        read_config(tmp_path / "none.yaml", Record)
