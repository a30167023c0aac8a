"""The project as ``pip install`` brings it: a wheel in an environment of its own, used outside the repository."""

from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
PLACES = {"saeuron": "saeuron", "saeuron_bench": "training", "tinycanvas": "tinycanvas"}


def test_every_folder_of_code_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    folders = {
        ".".join([name, *path.parent.relative_to(ROOT / folder).parts])
        for name, folder in PLACES.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(listed) == folders


def test_the_library_is_there_from_anywhere_and_costs_no_torch(installed, run, tmp_path):
    program = "import saeuron, sys; print(saeuron.__file__, 'torch' in sys.modules)"
    place, heavy = run(installed / "python", "-c", program, cwd=tmp_path).split()
    assert heavy == "False" and Path(place).is_relative_to(installed.parent)


def test_the_command_lists_its_commands_under_its_own_name(installed, run, tmp_path):
    told = run(installed / "saeuron", "--help", cwd=tmp_path)
    assert told.startswith("usage: saeuron COMMAND") and " record " in told
    assert run(installed / "saeuron", "record", "--help", cwd=tmp_path).startswith("usage: saeuron record")


def test_a_job_on_the_embedded_model_runs_in_an_empty_folder(installed, run, tmp_path):
    told = run(installed / "saeuron", "hookpoints", "tinycanvas", cwd=tmp_path)
    assert "| unet.up_blocks.1.attentions.1 " in told
    sae = "unet.up_blocks.1.attentions.1"
    run(installed / "saeuron", "record", "--images", "2", "--steps", "2", "--output", "recording", cwd=tmp_path)
    assert (tmp_path / "recording" / sae / "manifest.json").exists()
    bundle = run(installed / "python", "-c", "import tinycanvas; print(tinycanvas.__path__[0])", cwd=tmp_path).strip()
    line = ["generate", "--sae", f"{bundle}/saes/tinycanvas.safetensors", "--remove", "neon", "--steps", "2"]
    run(installed / "saeuron", *line, "--prompt", "An image of star in neon style.", "--output", "out", cwd=tmp_path)
    assert (tmp_path / "out" / "after-0000.png").exists()
