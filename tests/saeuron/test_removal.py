import json
from dataclasses import replace

import pytest
import torch

from saeuron import (
    Ablate,
    ConceptStatistics,
    Replace,
    SaeuronError,
    Setting,
    build_edits,
    choose_settings,
    default_setting,
    read_settings,
    write_settings,
)
from saeuron.concept_table import WholeTable
from saeuron.removal import DEFAULT

KINDS = dict.fromkeys(("star", "moon", "heart", "ring"), "object") | dict.fromkeys(("neon", "sepia"), "style")


@pytest.fixture
def make_table():
    """A table of random means for an SAE, at 25 timesteps."""

    def make(sae) -> WholeTable:
        statistics = ConceptStatistics(KINDS, range(1, 1000, 40), sae.n_latents, sae.fingerprint, sae.origin)
        statistics.sums = torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(0))
        statistics.counts += 1
        return WholeTable(statistics)

    return make


def test_settings_come_back_as_they_were_written(tmp_path):
    settings = {"neon": Setting(4, -3.5, False), "star": Setting(), "moon": Setting(edit="replace", select="assigned")}
    write_settings(tmp_path / "settings.json", settings, fingerprint="abc")
    assert read_settings(tmp_path / "settings.json") == settings
    assert json.loads((tmp_path / "settings.json").read_text("utf-8"))["fingerprint"] == "abc"


def test_what_a_setting_leaves_out_is_the_default(tmp_path):
    (tmp_path / "settings.json").write_text('{"concepts": {"neon": {"strength": -7}}}', "utf-8")
    assert read_settings(tmp_path / "settings.json") == {"neon": Setting(1, -7.0, True)}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"neon": {}}', "lacks concepts"),
        ('{"concepts": ["neon"]}', "concepts is .'neon'."),
        (
            '{"concepts": {"neon": {"latent": 3}}}',
            "concept 'neon': 'latent' is no part of a setting; the nearest are latents",
        ),
        ('{"concepts": {"star": {}, "neon": {"latents": "many"}}}', "concept 'neon': .*'many'"),
        ('{"concepts": {"neon": 3}}', "concepts.neon is 3"),
        (
            '{"concepts": {"neon": {"edit": "erase"}}}',
            "concept 'neon': edit 'erase' is unknown; .* redirect, ablate",
        ),
        ('{"concepts": {"neon": {"scale": "max"}}}', "concept 'neon': scale 'max' is unknown"),
        ('{"concepts": ', "is not readable JSON"),
    ],
)
def test_a_wrong_settings_file_is_refused_by_name_and_concept(tmp_path, content, complaint):
    (tmp_path / "settings.json").write_text(content, "utf-8")
    with pytest.raises(SaeuronError, match=rf"settings\.json.*{complaint}"):
        read_settings(tmp_path / "settings.json")


def test_one_edit_removes_several_concepts_each_by_its_own_setting(make_sae, make_table):
    sae = make_sae()
    table = make_table(sae)
    (edit,) = build_edits(sae, table, {"neon": Setting(3, -2.0), "star": Setting(5, -7.0, False)})
    assert edit.selection.concepts == ("neon", "star")
    chosen = edit.selection.at(481)
    by_strength = {strength: set(chosen.latents[chosen.strengths == strength].tolist()) for strength in (-2.0, -7.0)}
    star = set(table.scores("star").mean(0).topk(5).indices.tolist())
    neon = set(table.scores("neon")[table.timesteps.tolist().index(481)].topk(3).indices.tolist())
    assert by_strength == {-7.0: star, -2.0: neon - star}, "the stronger of two that choose the same latent"


def test_concepts_removed_in_the_same_way_share_an_edit(make_sae, make_table):
    sae = make_sae()
    sae.config["assignment"] = {"moon": 9, "heart": 12}
    settings = {
        "neon": Setting(3, -2.0),
        "moon": Setting(edit="replace", select="assigned"),
        "star": Setting(5, -7.0),
        "heart": Setting(edit="replace", select="assigned"),
        "ring": Setting(scale="norm"),
    }
    ablate, replaced, scaled = build_edits(sae, make_table(sae), settings)
    assert isinstance(ablate, Ablate) and ablate.selection.concepts == ("neon", "star") and ablate.scale == "mean"
    assert isinstance(replaced, Replace) and set(replaced.selection.at(1).latents.tolist()) == {9, 12}
    assert isinstance(scaled, Ablate) and scaled.scale == "norm" and scaled.selection.concepts == ("ring",)
    assert build_edits(sae, make_table(sae), {}) == []


def test_an_assigned_latent_that_was_never_assigned_is_refused(make_sae, make_table):
    sae = make_sae()
    with pytest.raises(SaeuronError, match="no latents assigned"):
        build_edits(sae, make_table(sae), {"neon": Setting(select="assigned")})


def test_a_table_of_another_sae_is_refused_with_both_named(make_sae, make_table):
    sae, other = make_sae(), make_sae(seed=1)
    with pytest.raises(SaeuronError) as refused:
        build_edits(sae, make_table(other), {"neon": Setting()})
    assert sae.fingerprint in str(refused.value) and other.fingerprint in str(refused.value)


@pytest.mark.parametrize("latents", [-1, 65])
def test_more_latents_than_there_are_or_fewer_than_none_are_refused(make_sae, make_table, latents):
    sae = make_sae()
    with pytest.raises(SaeuronError, match=f"is {latents} and has to lie between 0 and 64"):
        build_edits(sae, make_table(sae), {"neon": Setting(latents)})


def test_published_and_own_rules_are_edits_of_their_own(make_sae, make_table):
    sae = make_sae()
    settings = {"neon": Setting(paper_exact=True), "star": Setting()}
    published, own = build_edits(sae, make_table(sae), settings)
    assert published.paper_exact and published.selection.concepts == ("neon",) and not own.paper_exact


def test_the_user_s_word_goes_before_the_file_s_and_that_before_the_default(make_sae, make_table):
    sae = make_sae()
    table, known = make_table(sae), {"neon": Setting(4, -7.0)}
    found = choose_settings(sae, table, ["neon", "star"], known, strength=-2.5, latents=None)
    assert found == {"neon": Setting(4, -2.5), "star": replace(default_setting(sae, table, "star"), strength=-2.5)}
    with pytest.raises(SaeuronError, match="'noen' is not in the table; the nearest are neon"):
        choose_settings(sae, table, ["noen"], known)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"edit": "shift", "assigned": True, "presence": 0.1},
            {"edit": "shift", "detect": "assigned", "presence": 0.1},
        ),
        ({"edit": "shift", "assigned": False}, {"edit": "shift"}),
        ({"edit": "ablate", "assigned": True}, {"select": "assigned"}),
        ({"latents": 3, "strength": -5}, {"latents": 3, "strength": -5.0}),
    ],
)
def test_settings_of_older_files_mean_what_they_meant(old, new):
    assert Setting.parse(old) == Setting(**new)


@pytest.mark.parametrize(
    "values",
    [
        {"presence": "high"}, {"edit": "melt"}, {"colour": 1}, {"latents": None}, {"latents": 1.5}, {"strength": True},
        {"strength": float("nan")}, {"strength": float("inf")}, {"per_timestep": "false"}, {"paper_exact": 1},
        {"select": "best"}, {"detect": "all"}, ["latents"], 3,
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(values):
    with pytest.raises(SaeuronError):
        Setting.parse(values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"per_timestep": "false"}, "per_timestep is 'false' and has to be true or false"),
        ({"latents": 1.5}, "latents is 1.5 and has to be a whole number"),
        ({"strength": None}, "strength is None and has to be a finite number"),
        ({"presence": "high"}, "presence is 'high' and has to be a finite number"),
        ({"edit": "melt"}, "edit 'melt' is unknown; it is one of"),
        ({"latent": 1}, "'latent' is no part of a setting; the nearest are latents"),
    ],
)
def test_what_cannot_be_in_a_setting_is_named_with_what_can(values, says):
    with pytest.raises(SaeuronError) as refused:
        Setting.parse(values)
    assert str(refused.value).startswith(says)


def test_a_setting_comes_back_from_its_own_values():
    setting = Setting(4, -2.5, False, "replace", "assigned", "norm", True, "assigned", 0.25)
    assert Setting.parse(json.loads(json.dumps(setting.values()))) == setting


@pytest.mark.parametrize("assigned", [True, False])
def test_every_default_pushes_away_and_a_third_kind_is_removed_as_any_other(make_sae, assigned):
    sae = make_sae()
    sae.config = {"assignment": {"cat": 3, "neon": 7, "dusk": 9}} if assigned else {}
    kinds = {"cat": "object", "dog": "object", "neon": "style", "ink": "style", "dusk": "light", "dawn": "light"}
    statistics = ConceptStatistics(kinds, [1], sae.n_latents, sae.fingerprint)
    statistics.sums += torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(0))
    statistics.counts += 1
    table = WholeTable(statistics)
    found = {name: default_setting(sae, table, name) for name in ("cat", "neon", "dusk")}
    assert all(setting.strength < 0 for setting in found.values())
    assert {setting.edit for setting in found.values()} == ({"shift"} if assigned else {"ablate"})
    assert found["dusk"] == found["cat"] and DEFAULT.strength < 0
    assert (found["neon"] == found["cat"]) is not assigned
    (edit,) = build_edits(sae, table, {"dusk": found["dusk"]})
    assert edit(torch.ones(1, 2, sae.d_in), 1).shape == (1, 2, sae.d_in)
