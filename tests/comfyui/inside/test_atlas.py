"""The atlas in the graph: what a probe saw is recorded and searched, and latents are written each in its own way."""

import pytest
import torch


@pytest.fixture
def own_saes(pack, tmp_path, monkeypatch):
    """The user's folder of SAEs, empty, beside the embedded one."""
    import folder_paths

    files = pack("host.files")
    _, extensions = folder_paths.folder_names_and_paths[files.FOLDER]
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, files.FOLDER, ([str(tmp_path), str(files.EMBEDDED)], extensions)
    )
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


@pytest.fixture
def recorded(pack, tinycanvas, sae, sample):
    """The record of two neon hearts, and their pictures."""
    model, record = pack("feature_maps").FeatureProbe.execute(tinycanvas[0], sae, "").args
    return record, tinycanvas[2].decode(sample(model, shape=(2, 16, 16)))


def edits_of(pack, model):
    return [patch for patch in model.get_attachment(pack("host.memory").KEY) if patch.edit is not None]


def test_every_latent_is_surveyed_at_its_place(pack, recorded, sae):
    seen = recorded[0].surveyed
    assert seen.heat.shape == (2, 64, 1024) and seen.grid == (8, 8)
    assert int(seen.counts.fired.sum()) > 0 and seen.counts.tokens.sum() == 2 * 6 * 64


def test_pictures_are_added_to_a_copy_of_the_atlas_that_came_along_and_only_once(pack, recorded, own_saes):
    recorder = pack("atlas_recorder").AtlasRecorder
    before = pack("atlas", "saeuron.").Atlas.load(pack("host.files").EMBEDDED / "tinycanvas.atlas").pictures
    for _ in range(2):
        image, latents = recorder.execute(*recorded, "An image of heart in neon style.").args
        assert torch.equal(image, recorded[1]) and "neon" in latents.splitlines()[0]
        atlas = pack("atlas", "saeuron.").Atlas.load(own_saes / "tinycanvas.atlas")
        assert atlas.pictures == before + 2
    assert atlas.row(before)["prompt"] == "An image of heart in neon style."
    assert pack("host.atlases").folder_of("tinycanvas.safetensors") == own_saes / "tinycanvas.atlas"
    assert not [name for name in pack("host.files").names() if ".atlas" in name]


def test_a_label_is_written_to_the_users_folder_and_names_the_latent(pack, tinycanvas, sae, own_saes):
    atlases = pack("host.atlases")
    atlases.label(sae.name, 251, "glowing rim")
    assert (own_saes / "tinycanvas.atlas" / "labels.json").exists()
    steer = pack("patches").FeatureSteerPatch
    (patch,) = edits_of(pack, steer.execute(tinycanvas[0], sae, "Glowing rim: +3", 1.0, 0.0).args[0])
    assert patch.edit.latents == (251,) and patch.edit.add == 3
    atlases.label(sae.name, 251, "")
    assert "251" not in atlases.labels_of(sae.name)


def test_a_card_says_what_a_latent_is(pack, sae):
    crops, text = pack("atlas_card").AtlasCard.execute(sae, "251, 5").args
    assert crops.shape == (2, 128, 768, 3) and crops[1, :, :128].std() > 0.05
    assert text.splitlines()[1].startswith("251: ") and "scores for neon" in text


def test_latents_say_each_its_own_way(pack, tinycanvas, sae):
    text = "251 neon: +8; 12: x0.5 20-80%; 3; 7: +1 off"
    steer = pack("patches").FeatureSteerPatch
    patches = edits_of(pack, steer.execute(tinycanvas[0], sae, text, 2.0, 5.0).args[0])
    ways = {patch.edit.latents: (patch.edit.add, patch.edit.scale, patch.start, patch.end) for patch in patches}
    assert ways == {(251,): (8, 1, 0, 1), (12,): (0, 0.5, 0.2, 0.8), (3,): (5, 2, 0, 1)}


def test_a_curve_makes_some_of_the_edit_and_none_of_it(pack, tinycanvas, sae, sample):
    steer = pack("patches").FeatureSteerPatch

    def drawn(curve):
        return sample(steer.execute(tinycanvas[0], sae, "251: +8", 1.0, 0.0, curve=curve).args[0])

    plain, whole = sample(tinycanvas[0]), drawn("")
    assert torch.equal(drawn("0%: 0"), plain) and torch.equal(drawn("0%: 1"), whole)
    falling = drawn("0%: 1, 50%: 0")
    assert not torch.equal(falling, whole) and not torch.equal(falling, plain)


@pytest.mark.parametrize("text", ["nothing of the kind", "3: loud", "3: 90-10%", ": +3"])
def test_what_is_not_understood_is_told(pack, tinycanvas, sae, text):
    with pytest.raises(ValueError, match="`latents`"):
        pack("patches").FeatureSteerPatch.execute(tinycanvas[0], sae, text, 1.0, 0.0)


def test_a_brush_over_what_was_seen_finds_latents(pack, recorded, sae):
    seen = pack("seen")
    seen.remember(sae.name, recorded[0].surveyed, recorded[1])
    number = next(iter(seen.seen_pictures()))
    found = seen.search_by_brush(number, [[1, 1], [0, 0]], sae.name)
    heat = recorded[0].surveyed.heat[1].float()
    assert found and heat[:32, found[0]].mean() > heat[32:, found[0]].mean()
    for broken in ([], [[]], [[1], [1, 2]], "all", [["1"]], [[1] * 65]):
        with pytest.raises(ValueError, match="brush"):
            seen.search_by_brush(number, broken, sae.name)
