import json

import pytest
import torch
from safetensors.torch import save_file

from saeuron import (
    ConceptStatistics,
    ConceptTable,
    Hookpoint,
    SaeuronError,
    Setting,
    load_sae,
    save_sae,
    write_settings,
)
from saeuron.checkpoints import Bundle, load_bundle, save_bundle
from saeuron.compact_table import CompactTable
from saeuron.concept_table import WholeTable
from saeuron.files import read_tensors, write_json, write_tensors

HOOKPOINT = Hookpoint("unet.up_blocks.1.attentions.1", "residual")
SETTINGS = {"cat": Setting(2, -5.0)}
KINDS = [
    {},
    {"activation": "batch_topk", "threshold": 1.5},
    {"activation": "jumprelu", "threshold": torch.linspace(0, 2, 64)},
    {"activation": "sigmoid_topk"},
]


@pytest.fixture
def make_table():
    def make(sae, concepts=("cat", "dog", "bird"), steps=3) -> ConceptTable:
        timesteps = [1 + 10 * step for step in range(steps)]
        statistics = ConceptStatistics(
            dict.fromkeys(concepts, "object"), timesteps, sae.n_latents, sae.fingerprint, sae.origin
        )
        statistics.sums = torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(0))
        statistics.counts += 1
        return WholeTable(statistics)

    return make


@pytest.fixture
def bundle(make_sae, make_table):
    sae = make_sae(hookpoint=HOOKPOINT, base_model="tinycanvas")
    return Bundle(sae, make_table(sae), SETTINGS, "# A card\n\nwith γ.", "mit")


@pytest.mark.parametrize("options", KINDS)
def test_an_sae_comes_back_as_it_was_saved(make_sae, make_tokens, tmp_path, options):
    sae, tokens = make_sae(hookpoint=HOOKPOINT, base_model="tinycanvas", **options), make_tokens(9, 16)
    sae.config = {"assignment": {"cat": 3}}
    save_bundle(Bundle(sae), tmp_path / "a.safetensors")
    again = load_sae(tmp_path / "a.safetensors")
    for name in ("d_in", "n_latents", "k", "activation", "hookpoint", "base_model", "fingerprint", "config"):
        assert getattr(again, name) == getattr(sae, name), name
    for name, tensor in sae.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    torch.testing.assert_close(again(tokens), sae(tokens))


def test_all_that_goes_with_it_comes_back(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "a.safetensors")
    again = load_bundle(tmp_path / "a.safetensors")
    assert isinstance(again.table, CompactTable)
    assert (again.settings, again.card, again.licence) == (SETTINGS, "# A card\n\nwith γ.", "mit")
    assert again.table.origin == bundle.sae.origin
    expected, got = (table.select("cat", 2, -5.0) for table in (bundle.table, again.table))
    assert torch.equal(got.latents, expected.latents) and got.fingerprint == again.sae.fingerprint


def test_a_bundle_loaded_and_saved_again_is_the_same_file(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "a.safetensors")
    save_bundle(load_bundle(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_file_says_what_it_is(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "a.safetensors")
    tensors, metadata = read_tensors(tmp_path / "a.safetensors")
    about = json.loads(metadata["saeuron"])
    assert (about["format"], about["version"]) == ("saeuron-bundle", 1)
    named = {"hookpoint": HOOKPOINT.name, "site": "residual", "base_model": "tinycanvas", "licence": "mit"}
    named |= {"d_in": 16, "n_latents": 64, "fingerprint": bundle.sae.fingerprint, "card": "# A card\n\nwith γ."}
    assert {key: about[key] for key in named} == named
    assert torch.equal(tensors["W_dec"], bundle.sae.W_dec)


def test_20_concepts_of_100_steps_add_less_than_4_megabytes(make_sae, make_table, tmp_path):
    sae = make_sae(d_in=4, n_latents=20_480, k=32)
    table = make_table(sae, [f"concept {n}" for n in range(20)], steps=100)
    save_bundle(Bundle(sae), tmp_path / "without.safetensors")
    save_bundle(Bundle(sae, table), tmp_path / "with.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("with", "without")]
    assert sizes[0] - sizes[1] < 4e6


def test_a_conversion_keeps_the_name_that_the_table_knows(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "a.safetensors")
    half = load_bundle(tmp_path / "a.safetensors", torch.float16)
    assert half.sae.W_enc.dtype == torch.float16
    half.table.check_belongs(half.sae.fingerprint)


def test_a_plain_sae_loads_as_a_bundle_with_nothing_beside_it(make_sae, tmp_path):
    save_sae(make_sae(), tmp_path)
    bundle = load_bundle(tmp_path)
    assert bundle.sae.fingerprint == make_sae().fingerprint
    assert (bundle.table, bundle.settings, bundle.card, bundle.licence) == (None, {}, "", "")


@pytest.mark.parametrize("options", KINDS)
def test_a_folder_keeps_every_activation(make_sae, make_tokens, tmp_path, options):
    sae, tokens = make_sae(**options), make_tokens(9, 16)
    save_sae(sae, tmp_path)
    again = load_sae(tmp_path)
    assert (again.activation, again.fingerprint) == (sae.activation, sae.fingerprint)
    torch.testing.assert_close(again.encode(tokens), sae.encode(tokens))


@pytest.mark.parametrize("name", ["", "cfg.json", "sae.safetensors"])
def test_a_folder_s_table_and_settings_are_picked_up(make_sae, make_table, tmp_path, name):
    save_sae(make_sae(), tmp_path)
    make_table(make_sae()).save(tmp_path / "table.safetensors")
    write_json(
        tmp_path / "settings.json",
        {"concepts": {"cat": {"latents": 2, "strength": -5.0, "per_timestep": True}}, "images": 60},
    )
    bundle = load_bundle(tmp_path / name)
    assert isinstance(bundle.table, ConceptTable) and bundle.settings == SETTINGS


def test_a_folder_s_table_of_another_sae_is_refused_by_name(make_sae, make_table, tmp_path):
    save_sae(make_sae(), tmp_path)
    make_table(make_sae(seed=5)).save(tmp_path / "table.safetensors")
    with pytest.raises(SaeuronError, match=r"table\.safetensors: the concept table was made with the SAE"):
        load_bundle(tmp_path)
    assert load_sae(tmp_path).n_latents == 64


def test_a_folder_named_after_a_hookpoint_says_it(make_sae, tmp_path):
    folder = tmp_path / "unet.up_blocks.1.attentions.2"
    save_sae(make_sae(), folder)
    assert load_sae(folder).hookpoint == Hookpoint("unet.up_blocks.1.attentions.2")
    (tmp_path / "mine").mkdir()
    save_sae(load_sae(folder), tmp_path / "mine")
    assert load_sae(tmp_path / "mine").hookpoint == Hookpoint("unet.up_blocks.1.attentions.2")


def test_the_table_of_another_sae_is_refused(bundle, make_sae, tmp_path):
    bundle.sae = make_sae(seed=5)
    with pytest.raises(SaeuronError, match="was made with the SAE"):
        save_bundle(bundle, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [({"cta": Setting()}, "the nearest are cat"), ({"cat": Setting(65)}, "keeps 64 a concept")],
)
def test_settings_that_the_table_cannot_serve_are_refused(bundle, tmp_path, settings, complaint):
    bundle.settings = settings
    with pytest.raises(SaeuronError, match=complaint):
        save_bundle(bundle, tmp_path / "a.safetensors")


def test_a_name_that_would_not_be_found_again_is_refused(bundle, tmp_path):
    with pytest.raises(SaeuronError, match=r"has to end in \.safetensors"):
        save_bundle(bundle, tmp_path / "a.bin")


def spoil(path, change=None, drop=(), **tensors):
    """Write the bundle at ``path`` again with other tensors, or with its description changed."""
    stored, metadata = read_tensors(path)
    about = json.loads(metadata["saeuron"]) | (change or {})
    about = {key: value for key, value in about.items() if key not in drop}
    write_tensors(path, stored | tensors, {"saeuron": json.dumps(about)})


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"change": {"format": "saeuron-concept-table"}}, "format is 'saeuron-concept-table'"),
        ({"change": {"version": 2}}, "version is 2"),
        ({"drop": ("k",)}, "its description lacks k"),
        ({"change": {"k": 65}}, "does not fit: k is 65"),
        ({"change": {"k": "many"}}, "k is 'many'"),
        ({"change": {"activation": "gelu"}}, "activation 'gelu' is unknown"),
        ({"change": {"site": "input"}}, "site is 'input'"),
        ({"change": {"settings": 5}}, "settings is 5"),
        ({"b_dec": torch.zeros(24)}, r"has b_dec of shape \[24\]"),
        ({"b_dec": torch.zeros(16)}, "its tensors have the fingerprint"),
        ({"surprise": torch.zeros(1)}, "holds surprise, which is not supported"),
        ({"table.values": torch.zeros(3)}, "do not have the shape"),
        ({"change": {"table": {"kept": 64}}}, "lacks table.concepts"),
    ],
)
def test_what_is_no_bundle_is_refused_by_file_and_field(bundle, tmp_path, wrong, complaint):
    path = tmp_path / "a.safetensors"
    save_bundle(bundle, path)
    spoil(path, **wrong)
    with pytest.raises(SaeuronError, match=complaint) as refusal:
        load_sae(path)
    assert "\n" not in str(refusal.value)


def test_a_table_with_latents_that_the_sae_lacks_is_refused(bundle, tmp_path):
    path = tmp_path / "a.safetensors"
    save_bundle(bundle, path)
    spoil(path, **{"table.latents": read_tensors(path)[0]["table.latents"] + 1})
    with pytest.raises(SaeuronError, match="latents that the SAE does not have"):
        load_bundle(path)


def test_files_that_are_something_else_are_refused_with_what_to_do(make_sae, tmp_path):
    save_file({"W_enc": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(SaeuronError, match="is not a bundle: if it holds the weights of an SAE, give its folder"):
        load_sae(tmp_path / "weights.safetensors")
    (tmp_path / "weights.ckpt").write_bytes(b"")
    with pytest.raises(SaeuronError, match=r"not an SAE file this program reads: give a bundle \(.safetensors\)"):
        load_sae(tmp_path / "weights.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SaeuronError, match=r"would hold cfg\.json and sae\.safetensors \(SAeUron.*model\.pt"):
        load_sae(tmp_path / "empty")
    save_sae(make_sae(), tmp_path / "all" / "unet.mid_block.attentions.0")
    with pytest.raises(SaeuronError, match=r"it holds .*unet\.mid_block\.attentions\.0"):
        load_sae(tmp_path / "all")


def test_a_full_disk_leaves_no_bundle_behind(bundle, tmp_path, full_disk):
    with pytest.raises(SaeuronError, match="No space left on device"):
        save_bundle(bundle, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_is_chosen_is_what_is_read(bundle, make_sae, tmp_path):
    """A bundle beside another SAE's files is itself, and a file of weights stands for its own layout alone."""
    other = make_sae(seed=9)
    save_sae(other, tmp_path)
    save_bundle(bundle, tmp_path / "mine.safetensors")
    torch.save({"never": "read"}, tmp_path / "ae.pt")
    assert load_sae(tmp_path / "mine.safetensors").fingerprint == bundle.sae.fingerprint
    for chosen in ("sae.safetensors", "cfg.json", "."):
        assert load_sae(tmp_path / chosen).fingerprint == other.fingerprint


def test_what_the_user_says_wins_over_the_files(bundle, make_sae, make_table, tmp_path):
    save_bundle(bundle, tmp_path / "a.safetensors")
    make_table(bundle.sae, concepts=("cat", "owl")).save(tmp_path / "other_table.safetensors")
    write_settings(tmp_path / "other.json", {"cat": Setting(1, -9.0)})
    told = {"hookpoint": "unet.mid_block.attentions.0", "site": "output"}
    files = {"table": tmp_path / "other_table.safetensors", "settings": tmp_path / "other.json"}
    found = load_bundle(tmp_path / "a.safetensors", **told, **files)
    assert found.sae.hookpoint == Hookpoint(told["hookpoint"], "output")
    assert list(found.table.concepts) == ["cat", "owl"] and found.settings == {"cat": Setting(1, -9.0)}
    make_table(make_sae(seed=9)).save(tmp_path / "foreign_table.safetensors")
    with pytest.raises(SaeuronError, match=r"foreign_table\.safetensors: the concept table was made with the SAE"):
        load_bundle(tmp_path / "a.safetensors", table=tmp_path / "foreign_table.safetensors")


@pytest.mark.parametrize(
    ("content", "complaint"), [("{", "not readable JSON"), ("[]", "a JSON list"), ('{"concepts": 3}', "concepts is 3")]
)
def test_settings_beside_an_sae_that_are_none_are_refused_by_name(make_sae, tmp_path, content, complaint):
    save_sae(make_sae(), tmp_path)
    (tmp_path / "settings.json").write_text(content, "utf-8")
    with pytest.raises(SaeuronError, match=rf"settings\.json.*{complaint}"):
        load_bundle(tmp_path)
    assert load_sae(tmp_path).n_latents == 64, "which needs none"
