import collections
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saeuron import ConceptTable, Hookpoint, SaeuronError, Setting, load_sae, read_settings, save_sae
from saeuron.checkpoints import load_bundle
from saeuron.checkpoints.pickled import read_pickle
from training.__main__ import main
from training.sharing.convert import Convert, ddim_timesteps, latents_of, read_pickled_table

N = 256
CONCEPTS = ("Cats", "Dogs", "Trees")


@pytest.fixture
def published(tmp_path, make_sae):
    """A folder as SAeUron's authors publish it: no hookpoint in cfg.json, and a name that says it."""
    folder = tmp_path / "unet.up_blocks.1.attentions.1"
    save_sae(make_sae(hookpoint=None), folder)
    config = json.loads((folder / "cfg.json").read_text())
    for ours in ("format", "version", "threshold", "fingerprint", "base_model"):
        config.pop(ours)
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def latents():
    """concept → float16 [prompts, steps, n], as SAeUron gathers them; another number of prompts for each."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(2 + n, 100, N, generator=generator).half() for n, name in enumerate(CONCEPTS)}


@pytest.fixture
def table(tmp_path, latents):
    path = tmp_path / "cls_latents_dict_unet.up_blocks.1.attentions.1.pkl"
    path.write_bytes(pickle.dumps(latents))
    return path


@pytest.fixture
def params(tmp_path):
    path = tmp_path / "class_params.pth"
    torch.save(
        {"Cats": {"percentile": 99.5, "multiplier": -10.0}, "Dogs": {"percentile": 99.999, "multiplier": -1}}, path
    )
    return path


def test_one_call_makes_a_bundle_of_all_that_saeuron_publishes(published, table, params, tmp_path, latents):
    (tmp_path / "card.md").write_text("# Objects\n", "utf-8")
    line = ["convert", str(published), "--output", str(tmp_path / "out" / "objects.safetensors")]
    line += ["--table", str(table), "--settings", str(params), "--card", str(tmp_path / "card.md")]
    assert main([*line, "--licence", "mit", "--base-model", "sd15-unlearncanvas"]) == 0
    bundle = load_bundle(tmp_path / "out" / "objects.safetensors")
    assert bundle.sae.fingerprint == load_sae(published).fingerprint
    assert bundle.sae.hookpoint == Hookpoint("unet.up_blocks.1.attentions.1")
    assert (bundle.sae.base_model, bundle.licence, bundle.card) == ("sd15-unlearncanvas", "mit", "# Objects\n")
    assert bundle.settings["Cats"] == Setting(2, -10.0, paper_exact=True), (
        "published strengths bring the published rule"
    )
    selection = bundle.table.select("Cats", 2, -10.0)
    expected = latents["Cats"].float().mean(0).flip(0)  # by timestep, from the last drawn to the first
    torch.testing.assert_close(selection.means, expected.gather(1, selection.latents), rtol=1e-3, atol=1e-3)
    config = json.loads((tmp_path / "out" / "convert.config.json").read_text())
    assert config["licence"] == "mit" and config["input"] == str(published)


@pytest.mark.parametrize("options", [{}, {"site": "residual"}, {"hookpoint": "unet.mid_block.attentions.0"}])
def test_options_win_over_what_the_files_say(published, tmp_path, options):
    Convert(input=published, output=tmp_path / "a.safetensors", **options).run()
    asked = {"hookpoint": "unet.up_blocks.1.attentions.1", "site": "output"} | options
    assert load_sae(tmp_path / "a.safetensors").hookpoint == Hookpoint(asked["hookpoint"], asked["site"])


def test_a_bundle_is_converted_once_more_without_losing_anything(published, table, tmp_path):
    Convert(input=published, output=tmp_path / "a.safetensors", table=table, licence="mit").run()
    Convert(input=tmp_path / "a.safetensors", output=tmp_path / "b.safetensors", base_model="sd15").run()
    again = load_bundle(tmp_path / "b.safetensors")
    assert (again.licence, again.sae.base_model) == ("mit", "sd15") and list(again.table.concepts) == list(CONCEPTS)


def test_a_pickled_table_becomes_a_table_of_its_sae(published, table, tmp_path, latents):
    Convert(input=table, output=tmp_path / "table.safetensors", sae=published).run()
    found = ConceptTable.load(tmp_path / "table.safetensors")
    found.check_belongs(load_sae(published).fingerprint)
    assert found.concepts == dict.fromkeys(CONCEPTS, "object")
    assert found.timesteps.tolist() == list(range(1, 1000, 10))
    for name in CONCEPTS:
        # float32 sums of at most four float16 values
        torch.testing.assert_close(found.means(name), latents[name].float().mean(0).flip(0), rtol=1e-6, atol=1e-6)


def test_class_params_become_settings(published, params, tmp_path):
    Convert(input=params, output=tmp_path / "settings.json", sae=published).run()
    assert read_settings(tmp_path / "settings.json") == {
        "Cats": Setting(2, -10.0, paper_exact=True),
        "Dogs": Setting(1, -1.0, paper_exact=True),
    }


@pytest.mark.parametrize(("percentile", "count"), [(99.999, 1), (99.995, 2), (99.99, 3), (100, 0), (0, 20_480)])
def test_a_percentile_of_20_480_latents_means_as_many_as_lie_over_it(percentile, count):
    assert latents_of(percentile, 20_480) == count
    scores = torch.randn(20_480, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if 0 < percentile < 100:  # the published rule
        assert int((scores > scores.quantile(percentile / 100)).sum()) == count


def test_timesteps_are_those_of_stable_diffusion_s_ddim():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(steps_offset=1, timestep_spacing="leading")
    for steps in (25, 50, 100):
        scheduler.set_timesteps(steps)
        assert ddim_timesteps(steps) == tuple(scheduler.timesteps.tolist())
    assert ddim_timesteps(100)[:2] == (991, 981) and ddim_timesteps(100)[-1] == 1


def test_other_timesteps_may_be_given(published, table):
    timesteps = tuple(range(999, 899, -1))
    found = read_pickled_table(table, load_sae(published), timesteps=timesteps)
    assert found.timesteps.tolist() == sorted(timesteps)
    usual = read_pickled_table(table, load_sae(published))
    assert torch.equal(found.statistics.sums, usual.statistics.sums)


@pytest.mark.parametrize("name", ["style_latents_dict_x.pkl", "cls_latents_dict_x.pkl", "mine.pkl"])
def test_the_kind_is_what_the_file_s_name_says_or_the_option(published, table, name):
    sae, path = load_sae(published), table.rename(table.with_name(name))
    kind = {"s": "style", "c": "object"}.get(name[0])
    if kind:
        assert set(read_pickled_table(path, sae).concepts.values()) == {kind}
    else:
        with pytest.raises(SaeuronError, match=r"mine\.pkl does not say .* give --kind"):
            read_pickled_table(path, sae)
    assert set(read_pickled_table(path, sae, "animal").concepts.values()) == {"animal"}
    assert set(read_pickled_table(path, sae, "style").concepts.values()) == {"style"}


def dumped(content, protocol=4):
    return pickle.dumps(content, protocol=protocol)


class Harmful:
    """Its unpickling would create a file in the working folder."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


class Stateful:
    def __getstate__(self):
        return {"x": 1}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "content",
    [
        {"Cats": Harmful()},
        Harmful(),
        {"Cats": Stateful()},
        {"Cats": eval},
        {"Cats": collections.deque([1])},
        {"Cats": Path()},
    ],
    ids=["call", "bare call", "state", "function", "class", "object"],
)
def test_a_pickle_of_anything_else_is_refused_and_nothing_of_it_runs(tmp_path, monkeypatch, content, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.pkl").write_bytes(dumped(content, protocol))
    with pytest.raises(SaeuronError, match=r"table\.pkl is not a pickle of tensors, numbers and strings alone"):
        read_pickle(tmp_path / "table.pkl")
    assert not (tmp_path / "harm").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_code_hidden_in_a_tensor_s_own_contents_is_refused(tmp_path, monkeypatch):
    """Each tensor of a pickle is a torch file of its own, which torch would unpickle freely."""
    monkeypatch.chdir(tmp_path)

    class Hidden:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (dumped(Harmful()),)

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Hidden(), 0, (1,), (1,), False, collections.OrderedDict())

    (tmp_path / "table.pkl").write_bytes(dumped({"Cats": Tensor()}))
    with pytest.raises(SaeuronError, match=r"table\.pkl is not a pickle of tensors"):
        read_pickle(tmp_path / "table.pkl")
    assert not (tmp_path / "harm").exists()


def test_a_harmful_file_of_torch_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"Cats": Harmful()}, tmp_path / "class_params.pth")
    with pytest.raises(SaeuronError, match=r"class_params\.pth is not a pickle of tensors"):
        read_pickle(tmp_path / "class_params.pth")
    assert not (tmp_path / "harm").exists()


def test_a_tensor_larger_than_its_contents_is_refused(tmp_path):
    class Tensor:
        def __reduce__(self):
            storage = torch.zeros(4)._typed_storage()
            return torch._utils._rebuild_tensor_v2, (storage, 0, (5,), (1,), False, collections.OrderedDict())

    (tmp_path / "table.pkl").write_bytes(dumped({"Cats": Tensor()}))
    with pytest.raises(SaeuronError, match="larger than its contents"):
        read_pickle(tmp_path / "table.pkl")


@pytest.mark.parametrize(
    "content", [torch.rand(3, 4).half(), torch.rand(6, 8)[::2, 1::3], torch.rand(2, 0), torch.rand(5).bfloat16()]
)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_come_back_as_they_were(tmp_path, content, protocol):
    (tmp_path / "table.pkl").write_bytes(dumped({"a": content, "b": [1, 2.5, "text", None, True]}, protocol))
    if protocol == 2:  # which has no bytes, and asks for a codec instead
        with pytest.raises(SaeuronError, match=r"_codecs\.encode"):
            read_pickle(tmp_path / "table.pkl")
        return
    found = read_pickle(tmp_path / "table.pkl")
    assert torch.equal(found["a"], content) and found["a"].dtype == content.dtype
    assert found["b"] == [1, 2.5, "text", None, True]


def test_a_table_is_never_in_memory_whole(tmp_path):
    """Eleven more concepts of 33 MB each, of which 360 MB would stay if they were kept, cost no more than one."""
    program = """if True:
        import resource, sys
        from pathlib import Path
        from saeuron.checkpoints.pickled import read_pickle
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = read_pickle(Path(sys.argv[1]), lambda tensor: float(tensor[0, 0, 0]))
        assert list(found.values()) == [float(n) for n in range(len(found))], found
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    grown = []
    for count in (1, 12):
        content = {f"concept {n}": torch.full((8, 100, 20_480), n, dtype=torch.float16) for n in range(count)}
        (tmp_path / "table.pkl").write_bytes(dumped(content))
        command = [sys.executable, "-c", program, str(tmp_path / "table.pkl")]
        ended = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        grown.append(int(ended.stdout))
    assert grown[1] < grown[0] + 100, grown


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"Cats": torch.zeros(2, 100, 8)}, r"shape \[2, 100, 8\] where \[prompts, steps, 256\] is expected"),
        ({"Cats": torch.zeros(2, N)}, r"shape \[2, 256\] where"),
        ({"Cats": 5}, "one tensor a concept"),
        ({}, "one tensor a concept"),
        ([1], "holds a list where a dictionary is expected"),
        ({"Cats": torch.zeros(1, 100, N), "Dogs": torch.zeros(1, 50, N)}, "concepts of 50 and 100 steps"),
    ],
)
def test_a_pickle_that_is_no_table_is_refused_by_name(published, tmp_path, content, complaint):
    path = tmp_path / "cls_latents_dict.pkl"
    path.write_bytes(dumped(content))
    with pytest.raises(SaeuronError, match=complaint) as refusal:
        read_pickled_table(path, load_sae(published))
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("convert {}/none --output {}/a.safetensors", "none is not a folder with cfg.json and sae.safetensors"),
        ("convert {}/mine --output {}/a.safetensors", "mine does not say where it reads: give --hookpoint"),
        ("convert {}/mine --output {}/a.safetensors --site residual", "--site needs --hookpoint"),
        ("convert {}/mine --output {}/a.safetensors --hookpoint unet.x --site input", "site 'input' is unknown"),
        ("convert {sae} --output {}/a.bin", "has to end in .safetensors"),
        ("convert {sae} --output {}/a.safetensors --table {}/none.safetensors", "none.safetensors does not exist"),
        ("convert {sae} --output {}/a.safetensors --table {}/none_.pkl --kind object", "none_.pkl does not exist"),
        ("convert {sae} --output {}/a.safetensors --card {}/none.md", "--card"),
        ("convert {table} --output {}/a.safetensors", "says nothing of its SAE: give --sae"),
        ("convert {table} --sae {sae} --output {}/a.safetensors --timesteps 3 2 1", "has 100 steps: give each its own"),
        ("convert {params} --sae {}/none --output {}/a.json", "none is not a folder"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    published, table, params, make_sae, tmp_path, capfd, line, complaint
):
    save_sae(make_sae(hookpoint=None), tmp_path / "mine")
    names = {"{sae}": published, "{table}": table, "{params}": params, "{}": tmp_path}
    before = sorted(tmp_path.rglob("*"))
    for key, value in names.items():
        line = line.replace(key, str(value))
    assert main(line.split()) == 2
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1 and complaint in told[0], told
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("values", [{"percentile": 99}, {"percentile": 101, "multiplier": -1}, 5])
def test_params_of_another_make_are_refused_by_concept(published, tmp_path, values):
    torch.save({"Cats": values}, tmp_path / "class_params.pth")
    with pytest.raises(SaeuronError, match=r"class_params\.pth, concept 'Cats'"):
        Convert(input=tmp_path / "class_params.pth", output=tmp_path / "settings.json", sae=published).run()
