"""A word is learnt from prompts that show it and prompts that do not; what is finished is kept."""

import pytest
import torch

from saeuron import ConceptStatistics, SaeuronError, Setting, build_edits
from saeuron.compact_table import CompactTable
from saeuron.concept_table import WholeTable
from saeuron.files import read_tensors, write_tensors
from saeuron.learning import SCENES, SUBJECTS, WITHOUT, Learner, Lesson

TIMESTEPS = [901, 501, 101]
LESSON = Lesson.of("neon", "style", [f"neon {n}" for n in range(6)], [f"plain {n}" for n in range(8)])


@pytest.fixture
def world(make_sae):
    """An SAE, and what a prompt's picture looks like to it: ``{timestep: [1, 30, 16]}``, neon or not."""
    sae = make_sae(k=16)
    added = torch.randn(16, generator=torch.Generator().manual_seed(5))

    def draw(number, neon):
        generator = torch.Generator().manual_seed(number)
        own = sae.b_dec + 0.5 * torch.randn(16, generator=generator) + neon * added
        return {t: (own + torch.randn(1, 30, 16, generator=generator), None) for t in TIMESTEPS}

    return sae, draw


def learnt(world, path=None, only=None, lesson=LESSON):
    sae, draw = world
    learner = Learner(sae, lesson, TIMESTEPS, "a model", path)
    for number in learner.waiting[:only]:
        learner.observe(number, draw(number, lesson.prompts[number][1]))
    return learner


def test_without_prompts_the_same_scenes_are_asked_for_with_the_word_and_without():
    look, thing = Lesson.of("neon"), Lesson.of(" lava  lamp ", "object")
    assert look.shows == tuple(f"{subject}, neon" for subject in SUBJECTS) and look.lacks == SUBJECTS
    assert (
        thing.name == "lava lamp" and thing.shows[0] == f"a lava lamp {SCENES[0]}" and len(thing.lacks) == len(SCENES)
    )
    assert look.prompts[:2] == [(look.shows[0], True), (look.lacks[0], False)] and len(look.prompts) == 24


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"name": "  "}, "there is nothing to learn"),
        (
            {"name": "neon", "shows": ["a", "b", "c"], "lacks": ["d", "b", "e"]},
            "the prompt 'b' is said both",
        ),
        (
            {"name": "neon", "shows": ["a", "a", "b"]},
            "is not learnt from 2 prompts that show it: give 3, better",
        ),
        ({"name": "neon", "lacks": ["a", " "]}, "from 1 prompts that do not: give 3"),
    ],
)
def test_lessons_that_cannot_be_are_refused_with_what_to_do(given, complaint):
    with pytest.raises(SaeuronError, match=complaint):
        Lesson.of(**given)


def test_what_is_learnt_is_told_on_pictures_that_were_not_seen(world):
    sae, draw = world
    learner = learnt(world)
    assert learner.trust() > 0.8
    vectors, offsets = learner.table().contrasts(sae).probe(sae, "neon")
    for neon in (True, False):
        scores = [float(draw(100 + n, neon)[901][0].mean((0, 1)) @ vectors[2] - offsets[2]) for n in range(30)]
        assert (sum(scores) / 30 > 0.5) == neon


def test_a_word_that_changes_nothing_is_not_to_be_trusted(world):
    sae, draw = world
    learner = Learner(sae, LESSON, TIMESTEPS)
    for number in learner.waiting:
        learner.observe(number, draw(number, False))
    assert learner.trust() < 0.8


def test_removing_what_was_learnt_turns_it_into_the_pictures_without_it(world):
    sae, draw = world
    table = learnt(world).table()
    (edit,) = build_edits(sae, table, {"neon": Setting(strength=-1.0, edit="redirect")})
    assert edit.contrasts.goal("neon") == WITHOUT + "neon"
    vectors, offsets = edit.contrasts.probe(sae, "neon")
    neon = torch.cat([draw(200 + n, True)[501][0] for n in range(20)])
    before, after = (maps.mean(1) @ vectors[1] - offsets[1] for maps in (neon, edit(neon, 501)))
    assert float(before.mean()) > 0.6 and float(after.mean()) < 0.4


def test_the_unconditional_half_does_not_count_as_showing_what_half_the_lesson_shows(world):
    """Its picture is nobody's: of a lesson with neon in half its pictures it looks like half neon, and is not."""
    sae, draw = world
    learner = Learner(sae, LESSON, TIMESTEPS)
    away = torch.randn(16, generator=torch.Generator().manual_seed(8))

    def unguided(number):
        return {t: maps + away for t, (maps, _) in draw(500 + number, False).items()}

    for number in learner.waiting:
        shown = draw(number, LESSON.prompts[number][1])
        learner.observe(number, {t: (shown[t][0], unguided(number)[t]) for t in TIMESTEPS})
    vectors, offsets = learner.table().contrasts(sae).probe(sae, "neon")
    scores = [float(unguided(100 + n)[901].mean((0, 1)) @ vectors[2] - offsets[2]) for n in range(30)]
    # 0 is what pictures without neon come to; counted over the whole lesson these come to 6 in 14, its share of neon.
    assert abs(sum(scores) / 30) < 0.2


def test_interrupted_anywhere_it_goes_on_to_the_same_file(world, tmp_path):
    learnt(world, tmp_path / "whole")
    for stopped in (1, 6, 13):
        path = tmp_path / str(stopped)
        assert len(learnt(world, path, only=stopped).waiting) == len(LESSON.prompts) - stopped
        again = learnt(world, path)
        assert again.waiting == [] and path.read_bytes() == (tmp_path / "whole").read_bytes()
    assert Learner(world[0], LESSON, TIMESTEPS, "a model", tmp_path / "whole").waiting == [], "nothing is drawn twice"


@pytest.mark.parametrize("other", ["model", "lesson", "timesteps", "sae"])
def test_what_was_learnt_of_something_else_is_begun_anew(world, make_sae, tmp_path, other):
    learnt(world, tmp_path / "kept")
    sae = make_sae(seed=4) if other == "sae" else world[0]
    lesson = Lesson.of("neon", "style", [*LESSON.shows, "more"], LESSON.lacks) if other == "lesson" else LESSON
    timesteps = TIMESTEPS[:2] if other == "timesteps" else TIMESTEPS
    learner = Learner(sae, lesson, timesteps, "another" if other == "model" else "a model", tmp_path / "kept")
    assert len(learner.waiting) == len(lesson.prompts)


def test_a_kind_that_is_not_said_is_learnt():
    assert Lesson.of("neon").kind == "learnt" and Lesson.of(" neon  sign ", "style").kind == "style"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"done": torch.zeros(3, dtype=torch.bool)}, "its list of finished prompts is broken"),
        ({"done": None}, "its list of finished prompts is broken"),
        ({"middles": torch.zeros(1)}, "its mean tokens are broken"),
        ({"sums": None}, "sums"),
    ],
)
def test_a_lesson_that_is_broken_is_refused_by_name(world, tmp_path, change, says):
    path = tmp_path / "kept"
    learnt(world, path, only=2)
    tensors, metadata = read_tensors(path)
    spoilt = {name: own for name, own in (tensors | change).items() if own is not None}
    write_tensors(path, spoilt, metadata)
    with pytest.raises(SaeuronError, match=r"kept is not readable: .*; delete it to begin anew") as refused:
        Learner(world[0], LESSON, TIMESTEPS, "a model", path)
    assert says in str(refused.value)


def test_a_file_that_is_no_lesson_is_not_continued(world, tmp_path):
    write_tensors(tmp_path / "kept", {"a": torch.zeros(1)})
    assert len(Learner(world[0], LESSON, TIMESTEPS, "a model", tmp_path / "kept").waiting) == len(LESSON.prompts)


def test_a_prompt_that_was_not_seen_at_every_timestep_is_refused(world):
    sae, draw = world
    learner = Learner(sae, LESSON, TIMESTEPS)
    with pytest.raises(SaeuronError, match="not called at timestep 501"):
        learner.observe(0, {t: maps for t, maps in draw(0, True).items() if t != 501})
    assert learner.waiting[0] == 0 and not learner.statistics.counts.any()


def test_what_was_learnt_joins_a_table_that_knows_other_concepts(world):
    sae, draw = world
    statistics = ConceptStatistics({"cat": "object", "dog": "object"}, [951, 301, 1], sae.n_latents, sae.fingerprint)
    for timestep in (951, 301, 1):
        for number in range(12):
            statistics.observe(sae, [["cat" if number % 2 else "dog"]], timestep, draw(300 + number, False)[901][0])
    known, new = (WholeTable(s) for s in (statistics, learnt(world).statistics))
    compact = [CompactTable.of(table, contrasts=table.contrasts(sae)) for table in (known, new)]
    both = compact[0].merged(compact[1])
    assert list(both.concepts) == ["cat", "dog", "neon", "without neon"]
    assert torch.equal(both.timesteps, known.timesteps)
    expected, got = (table.select("cat", 8, -3.0).at(301) for table in (compact[0], both))
    assert torch.equal(got.latents, expected.latents)
    torch.testing.assert_close(got.means, expected.means, rtol=1e-2, atol=1e-4)  # rounded to float16 once more
    # Of the lesson's timesteps 101 and 501 are as near to 301; the first of equals holds.
    assert torch.equal(both.select("neon", 8).at(301).latents, compact[1].select("neon", 8).at(101).latents)
    vectors = both.contrasts(sae).probe(sae, "cat")[0]
    torch.testing.assert_close(vectors, compact[0].contrasts(sae).probe(sae, "cat")[0])
    fitted = both.contrasts(sae)
    assert fitted.goal("cat") == "dog" and fitted.goal("neon") == "without neon"
    tensors, about = both.pack()
    again = CompactTable.unpack(tensors, about, sae).contrasts(sae).probe(sae, "neon")[0]
    torch.testing.assert_close(again, fitted.probe(sae, "neon")[0], rtol=1e-3, atol=1e-4)
