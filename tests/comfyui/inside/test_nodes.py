"""The patches, the probe and its pictures: what they give, and what they refuse."""

from dataclasses import replace

import pytest
import torch


def edits_of(pack, model):
    return [patch.edit for patch in model.get_attachment(pack("host.memory").KEY) if patch.edit is not None]


def test_so_many_latents_are_ablated_as_the_user_says(pack, tinycanvas, neon, sae):
    (edit,) = edits_of(pack, neon(tinycanvas[0], "star: 4 × -8", mode="ablate"))
    chosen = edit.selection.at(500)
    assert type(edit).__name__ == "Ablate" and len(chosen.latents) == 4
    assert (chosen.strengths == -8).all()
    wanted = sae.bundle.table.select("star", 4).at(500)
    assert set(chosen.latents.tolist()) == set(wanted.latents.tolist())


def test_where_the_user_names_no_number_the_assigned_latent_is_ablated(pack, tinycanvas, neon, sae):
    assigned = sae.sae.config["assignment"]["star"]
    for mode in ("ablate", "paper-exact"):
        (edit,) = edits_of(pack, neon(tinycanvas[0], "star", mode=mode))
        assert edit.selection.at(500).latents.tolist() == [assigned] and edit.paper_exact == (mode == "paper-exact")


def test_the_tuned_mode_is_the_files_own(pack, sae):
    in_mode, setting = pack("patches").in_mode, pack("saeuron", "").Setting
    exact = setting(3, -5.0, paper_exact=True, scale="norm")
    assert in_mode(exact, "tuned", False) == exact
    assigned = setting(edit="ablate", select="assigned")
    assert in_mode(assigned, "shift", False) == replace(assigned, edit="shift", select="score", detect="assigned")


def test_steering_changes_the_picture(pack, tinycanvas, sae, sample):
    patch = pack("patches").FeatureSteerPatch
    plain = sample(tinycanvas[0])
    nothing = patch.execute(tinycanvas[0], sae, "3, 5", 1.0, 0.0).args[0]
    more = patch.execute(tinycanvas[0], sae, "3, 5", 1.0, 40.0).args[0]
    assert torch.equal(sample(nothing), plain) and not torch.equal(sample(more), plain)


@pytest.mark.parametrize("text", ["one", "", "99999", "-1"])
def test_latents_that_are_none_are_explained(pack, tinycanvas, sae, text):
    with pytest.raises(ValueError, match="latents"):
        pack("patches").FeatureSteerPatch.execute(tinycanvas[0], sae, text, 1.0, 0.0)


@pytest.mark.parametrize("mode", ["tuned", "ablate", "replace", "paper-exact"])
def test_every_mode_changes_the_picture(tinycanvas, neon, sample, mode):
    assert not torch.equal(sample(neon(tinycanvas[0], mode=mode)), sample(tinycanvas[0]))


def test_a_probe_sees_without_changing_and_maps_are_drawn(pack, tinycanvas, sae, sample):
    maps = pack("feature_maps")
    chosen = pack("concepts").ConceptSelector.execute(sae, "neon", 0, 0.0).args[0]
    model, record = maps.FeatureProbe.execute(tinycanvas[0], sae, "3, 5", chosen).args
    latents = sample(model)
    assert torch.equal(latents, sample(tinycanvas[0]))
    assert list(record.seen) == ["latent 3", "latent 5", "neon"] and len(record.seen["neon"]) == 6
    picture = tinycanvas[2].decode(latents)
    drawn, curve = maps.FeatureMap.execute(record, picture, 2, 0).args
    assert drawn.shape[0] == curve.shape[0] == 1 and drawn.shape[-1] == 3 and 0 <= drawn.min() <= drawn.max() <= 1
    with pytest.raises(ValueError, match="`picture` is 1"):
        maps.FeatureMap.execute(record, picture, 2, 1)


def test_a_probe_fires_more_where_the_concept_is_asked_for(pack, tinycanvas, sae, sample):
    maps = pack("feature_maps")
    chosen = pack("concepts").ConceptSelector.execute(sae, "neon", 0, 0.0).args[0]
    model, record = maps.FeatureProbe.execute(tinycanvas[0], sae, "", chosen).args
    means = []
    for style in ("neon", "sepia"):
        sample(model, f"An image of heart in {style} style.")
        means.append(torch.stack(list(record.seen["neon"].values())).mean())
    # The background fires these latents too, a little.
    assert means[0] > 1.3 * means[1]


def test_a_concept_is_plotted(pack, sae):
    (plot,) = pack("feature_maps").ConceptPlot.execute(sae, "neon", 3).args
    assert plot.shape[0] == 1 and plot.shape[-1] == 3 and plot.std() > 0.01


def test_pictures_go_through_the_vae_unharmed(tinycanvas):
    vae, image = tinycanvas[2], torch.rand(2, 32, 48, 3)
    assert (vae.decode(vae.encode(image)) - image).abs().max() < 1e-6


def test_an_enlarged_picture_goes_through_the_vae_unharmed(pack):
    small = torch.rand(2, 32, 48, 3)
    vae = pack("tinycanvas").PixelVae(8)
    large = vae.decode(pack("tinycanvas").PixelVae().encode(small))
    assert large.shape == (2, 256, 384, 3) and (large[:, ::8, ::8] - small).abs().max() < 1e-6
    assert (vae.decode(vae.encode(large)) - large).abs().max() < 1e-6


def test_tinycanvas_gives_a_latent_of_its_size(pack, tinycanvas):
    latent = pack("tinycanvas").TinyCanvas.execute(3, 8).args[3]
    assert latent["samples"].shape == (3, 12, 16, 16)


@pytest.mark.parametrize(("side", "warned"), [(16, False), (256, True)])
def test_tinycanvas_warns_where_it_is_asked_for_more_than_it_draws(pack, monkeypatch, side, warned):
    """512 pixels are 256 places of its latents; nothing is sampled to know."""
    said = []
    monkeypatch.setattr(pack("tinycanvas"), "tell", lambda _, text, warn: said.append((text, warn)))
    model = pack("tinycanvas").TinyCanvas.execute(1, 8).args[0]
    (wrapper,) = model.get_wrappers("outer_sample", "saeuron_size")
    noise = torch.zeros(1, 12, side, side)
    assert wrapper(lambda given: given, noise) is noise
    sentence = "⚠ TinyCanvas is asked for 512 × 512 and draws 32 × 32: connect its own LATENT to the sampler"
    assert said == ([(sentence, True)] if warned else [])


def finder_of(pack, model):
    return next(p.observer for p in model.get_attachment(pack("host.memory").KEY) if p.observer is not None)


def test_the_patch_tells_in_how_many_pictures_a_concept_was_found(pack, tinycanvas, neon, sample):
    model = neon(tinycanvas[0], "sepia, neon")
    finder = finder_of(pack, model)
    sample(model, "An image of heart in sepia style.", steps=10, shape=(2, 16, 16))
    assert finder.found == {"sepia": 2, "neon": 0}
    sample(model, "An image of star in candy style.", steps=10, shape=(2, 16, 16))
    assert finder.found == {"sepia": 0, "neon": 0}
    describe = pack("host.finding").describe
    assert describe({"sepia": 4, "neon": 0}, 4) == "sepia: found in 4 of 4 pictures; neon: in none"


def test_each_of_two_patches_counts_what_was_there_before_both(pack, tinycanvas, neon, sample):
    model = neon(neon(tinycanvas[0], "heart"), "sepia")
    sample(model, "An image of heart in sepia style.", steps=10)
    found = [p.observer.found for p in model.get_attachment(pack("host.memory").KEY) if p.observer is not None]
    assert found == [{"sepia": 1}, {"heart": 1}]


def test_counting_leaves_the_picture_as_it_is(pack, tinycanvas, sae, neon, sample):
    finder = finder_of(pack, neon(tinycanvas[0]))
    patch = pack("host.patching").Patch(sae.hookpoint, observer=finder, applies_to="positive", first=True)
    counted = pack("host.patching").attach(tinycanvas[0], patch, sae.patcher)
    assert torch.equal(sample(counted), sample(tinycanvas[0])) and finder.found == {"neon": 1}


def test_maps_share_a_scale_keep_proportions_and_say_what_hardly_fires(pack, monkeypatch):
    drawing = pack("drawing")
    figures = []
    monkeypatch.setattr(drawing, "_image", figures.append)
    loud, quiet = torch.rand(1, 4, 8) + 1, torch.full((1, 4, 8), 0.001)
    drawing.draw_maps({"loud": {900: loud, 100: loud}, "quiet": {900: quiet, 100: quiet}}, torch.rand(32, 64, 3), 2, 0)
    (figure,) = figures
    maps = [axis for axis in figure.axes if len(axis.images) == 2]
    assert {axis.images[1].norm.vmax for axis in maps} == {float(loud.max())}
    assert [axis.get_title().splitlines()[0] for axis in maps] == ["loud"] * 2 + ["quiet, hardly fires"] * 2
    assert {tuple(axis.images[0].get_extent()) for axis in maps} == {(0, 64, 32, 0)}
    assert figure.axes[-1].get_ylabel() == "activation"
