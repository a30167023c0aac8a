"""The atlas: what latents do over pictures, counted as it is by hand, resumed and merged to the same files."""

import json

import pytest
import torch

from saeuron import SaeuronError
from saeuron.atlas import Atlas, Survey, merge_atlases
from saeuron.atlas.cards import cards_of, read_cards
from saeuron.atlas.folder import key_of
from saeuron.atlas.sheets import to_image

PROMPTS = ["a red heart", "a blue heart", "a red star", "a blue star", "a red moon", "a blue moon"]


@pytest.fixture
def random_sae(make_sae):
    return make_sae()


@pytest.fixture
def survey(random_sae):
    """Surveys so many pictures of 4 × 6 places over three timesteps, by number; and the tokens that were seen."""
    sae = random_sae

    def run(numbers):
        one, tokens = Survey(sae, len(numbers), 4, 6), {}
        for timestep in (901.0, 401.0, 1.0):
            generators = [torch.Generator().manual_seed(int(1000 * number + timestep)) for number in numbers]
            maps = torch.stack([torch.randn(24, sae.d_in, generator=own) for own in generators])
            tokens[timestep] = maps
            one.see(maps, timestep)
        return one.finish(), tokens

    return run


def images(numbers):
    return [to_image(torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(number))) for number in numbers]


def grow(atlas, survey, numbers):
    keys = [key_of(number) for number in numbers]
    atlas.add(survey(numbers)[0], images(numbers), [PROMPTS[n % 6] for n in numbers], keys)


@pytest.fixture
def build(random_sae, survey):
    """An atlas of numbered pictures in batches, saved."""

    def make(folder, *batches):
        atlas = Atlas.create(folder, random_sae, (4, 6), {"steps": 3})
        for numbers in batches:
            grow(atlas, survey, numbers)
        atlas.save()
        return atlas

    return make


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_survey_counts_what_dense_codes_say(random_sae, survey):
    seen, tokens = survey([0, 1])
    dense = torch.stack([random_sae.encode(maps) for maps in tokens.values()])  # [steps, pictures, places, latents]
    assert torch.allclose(seen.heat.float(), dense.mean(0), atol=2e-3)  # float16 of values around 1
    assert torch.equal(seen.counts.fired.sum(0), (dense > 0).sum((0, 1, 2)))
    assert torch.equal(seen.counts.fired[18], (dense[0] > 0).sum((0, 1)))
    assert seen.counts.tokens.tolist() == [48, *[0] * 7, 48, *[0] * 9, 48, 0]
    assert torch.equal(seen.counts.shown, (dense > 0).any(0).any(1).sum(0))
    assert torch.allclose(seen.counts.peak, dense.amax((0, 1, 2)))


def test_the_strongest_pictures_come_first_with_their_heat(random_sae, survey, build, tmp_path):
    build(tmp_path / "atlas", range(8), range(8, 20))
    heat = torch.cat([survey(range(8))[0].heat, survey(range(8, 20))[0].heat]).float()
    strengths, order = heat.amax(1).T.sort(dim=1, descending=True, stable=True)
    again = Atlas.load(tmp_path / "atlas")
    assert torch.equal(again.strongest.strengths, strengths[:, :12])
    there = strengths[:, :12] > 0
    assert torch.equal(again.strongest.pictures[there], order[:, :12][there].int())
    assert (again.strongest.pictures[~there] == -1).all()
    own = heat[order[5, 0], :, 5]
    assert torch.allclose(again.strongest.heat[5, 0].float() / 255, own / own.max(), atol=1 / 255)


def test_pictures_come_back_as_they_were(build, tmp_path):
    atlas = build(tmp_path / "atlas", range(5), range(5, 7))
    assert atlas.picture(6).tobytes() == images([6])[0].tobytes()
    assert atlas.row(6)["prompt"] == PROMPTS[0]


def test_what_was_not_saved_does_not_count_and_is_made_again_to_the_same_files(build, survey, tmp_path):
    build(tmp_path / "whole", range(4), range(4, 8), range(8, 9))
    build(tmp_path / "killed", range(4))
    killed = Atlas.load(tmp_path / "killed")
    grow(killed, survey, range(4, 8))  # and here it ends: nothing was saved
    resumed = Atlas.load(tmp_path / "killed")
    assert resumed.pictures == 4
    for numbers in (range(4, 8), range(8, 9)):
        grow(resumed, survey, numbers)
    resumed.save()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_two_halves_merged_are_the_whole(build, tmp_path):
    build(tmp_path / "whole", range(8), range(8, 16), range(16, 20))
    one, other = build(tmp_path / "one", range(8)), build(tmp_path / "other", range(8, 16), range(16, 20))
    merge_atlases(one, other, tmp_path / "merged")
    assert files(tmp_path / "merged") == files(tmp_path / "whole")


def test_a_picture_is_not_merged_twice(build, tmp_path):
    one, other = build(tmp_path / "one", range(4)), build(tmp_path / "other", range(3, 6))
    with pytest.raises(SaeuronError, match="share 1 pictures"):
        merge_atlases(one, other, tmp_path / "merged")


def test_words_are_those_that_the_latents_pictures_have_more_of(random_sae, tmp_path):
    atlas = Atlas.create(tmp_path / "atlas", random_sae, (2, 2), {})
    survey = Survey(random_sae, 12, 2, 2)
    survey.calls = 1
    red = torch.tensor(["red" in PROMPTS[number % 6] for number in range(12)])
    survey.maps[red, :, 3] = 1.0
    survey.maps[:, :, 4] = 0.5
    atlas.add(survey.finish(), images(range(12)), [PROMPTS[n % 6] for n in range(12)], list(map(str, range(12))))
    cards = cards_of(atlas)
    assert cards["words"][3] == "red" and float(cards["odds"][3]) > 1.5
    assert cards["words"][4] == ""  # it is in all of them
    assert cards["neighbours"][3] == [4]


def test_cards_are_kept_until_pictures_come(build, survey, tmp_path):
    atlas = build(tmp_path / "atlas", range(4))
    first = read_cards(tmp_path / "atlas")
    assert read_cards(tmp_path / "atlas") == first == json.loads((tmp_path / "atlas" / "cards.json").read_text("utf-8"))
    grow(atlas, survey, range(4, 6))
    atlas.save()
    assert read_cards(tmp_path / "atlas")["pictures"] == 6


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("version", 9, "version"),
        ("n_latents", -1, "n_latents"),
        ("n_latents", 10**9, "n_latents"),
        ("grid", [4096, 4096], "grid"),
        ("parts", [1], "parts"),
        ("n_latents", 7, "another size"),
        ("n_latents", 2**20, "another size"),
        ("grid", [256, 256], "grid"),
        ("fingerprint", 3, "fingerprint"),
    ],
)
def test_a_broken_atlas_is_told_by_name(build, tmp_path, field, value, told):
    build(tmp_path / "atlas", range(4))
    path = tmp_path / "atlas" / "atlas.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {field: value}), "utf-8")
    with pytest.raises(SaeuronError, match=told):
        Atlas.load(tmp_path / "atlas")


def test_a_brush_finds_what_fires_there_and_not_elsewhere(random_sae):
    survey = Survey(random_sae, 1, 4, 4)
    survey.calls = 1
    survey.maps[0, :, 1] = 1.0  # everywhere
    survey.maps[0, 5, 2] = 0.5  # in the second row, second column
    survey.maps[0, 15, 3] = 2.0  # in a corner
    brush = torch.zeros(8, 8)
    brush[2:4, 2:4] = 1
    found = survey.finish().firing_in(brush, 0)
    assert int(found.argmax()) == 2 and found[1] == 0 and found[3] <= 0
    usual = torch.zeros(random_sae.n_latents)
    whole = survey.finish().firing_in(torch.ones(8, 8), 0, usual)
    assert int(whole.argmax()) == 1  # where all is brushed, what the picture has more of than others comes first
    usual[2] = 10.0  # a latent that always fires tells less
    assert survey.finish().firing_in(brush, 0, usual)[2] < found[2]
