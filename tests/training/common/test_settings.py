import json

import pytest

from saeuron import Ablate, Replace, SaeuronError, Setting, removal
from training.common.settings import read_settings, write_settings
from training.evaluation.sweep import grid


def test_settings_come_back_as_they_were_written(tmp_path):
    settings = {"neon": Setting(4, -3.5, False), "star": Setting(), "moon": Setting(edit="replace", assigned=True)}
    write_settings(tmp_path / "settings.json", settings, fingerprint="abc")
    assert read_settings(tmp_path / "settings.json") == settings
    assert json.loads((tmp_path / "settings.json").read_text("utf-8"))["fingerprint"] == "abc"


def test_what_a_setting_leaves_out_is_the_default(tmp_path):
    (tmp_path / "settings.json").write_text('{"concepts": {"neon": {"strength": -7}}}', "utf-8")
    assert read_settings(tmp_path / "settings.json") == {"neon": Setting(1, -7.0, True)}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"neon": {}}', "has no `concepts`"),
        ('{"concepts": ["neon"]}', "has no `concepts`"),
        ('{"concepts": {"neon": {"latent": 3}}}', "concept 'neon': .*'latent'"),
        ('{"concepts": {"star": {}, "neon": {"latents": "many"}}}', "concept 'neon': .*'many'"),
        ('{"concepts": {"neon": 3}}', "concept 'neon': "),
        ('{"concepts": {"neon": {"edit": "erase"}}}', "concept 'neon': edit 'erase' is unknown; it is one of ablate"),
        ('{"concepts": {"neon": {"scale": "max"}}}', "concept 'neon': scale 'max' is unknown"),
        ('{"concepts": ', "is not readable JSON"),
    ],
)
def test_a_wrong_settings_file_is_refused_by_name_and_concept(tmp_path, content, complaint):
    (tmp_path / "settings.json").write_text(content, "utf-8")
    with pytest.raises(SaeuronError, match=rf"settings\.json.*{complaint}"):
        read_settings(tmp_path / "settings.json")


def test_the_grid_holds_every_combination_once():
    found = grid([1, 2], [-1.0, -3.0, -9.0], [True, False])
    assert len(found) == len(set(found)) == 12 and Setting(2, -9.0, False) in found
    assert grid([1], [], [True]) == []


def test_one_edit_removes_several_concepts_each_by_its_own_setting(make_sae, make_table):
    sae = make_sae()
    table = make_table(sae)
    (edit,) = removal(sae, table, {"neon": Setting(3, -2.0), "star": Setting(5, -7.0, False)}, paper_exact=True)
    assert edit.paper_exact and edit.selection.concepts == ("neon", "star")
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
        "moon": Setting(edit="replace", assigned=True),
        "star": Setting(5, -7.0),
        "heart": Setting(edit="replace", assigned=True),
        "ring": Setting(scale="norm"),
    }
    ablate, replace, scaled = removal(sae, make_table(sae), settings)
    assert isinstance(ablate, Ablate) and ablate.selection.concepts == ("neon", "star") and ablate.scale == "mean"
    assert isinstance(replace, Replace) and set(replace.selection.at(1).latents.tolist()) == {9, 12}
    assert isinstance(scaled, Ablate) and scaled.scale == "norm" and scaled.selection.concepts == ("ring",)
    assert removal(sae, make_table(sae), {}) == []


def test_an_assigned_latent_that_was_never_assigned_is_refused(make_sae, make_table):
    sae = make_sae()
    with pytest.raises(SaeuronError, match="no latents assigned"):
        removal(sae, make_table(sae), {"neon": Setting(assigned=True)})


def test_a_table_of_another_sae_is_refused_with_both_named(make_sae, make_table):
    sae, other = make_sae(), make_sae(seed=1)
    with pytest.raises(SaeuronError) as refused:
        removal(sae, make_table(other), {"neon": Setting()})
    assert sae.fingerprint in str(refused.value) and other.fingerprint in str(refused.value)


@pytest.mark.parametrize("latents", [-1, 257])
def test_more_latents_than_there_are_or_fewer_than_none_are_refused(make_sae, make_table, latents):
    sae = make_sae()
    with pytest.raises(SaeuronError, match=f"is {latents} and has to lie between 0 and 256"):
        removal(sae, make_table(sae), {"neon": Setting(latents)})
