"""Concept Selector: what is understood, what it comes to, and what is refused."""

from dataclasses import astuple, replace

import pytest

NOTHING = (0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("neon", {"neon": NOTHING}),
        ("neon; heart\nmoon", {"neon": NOTHING, "heart": NOTHING, "moon": NOTHING}),
        ("Van Gogh, star: 4 × -8", {"Van Gogh": NOTHING, "star": (4, -8.0, 1.0)}),
        ("star: 2x-1.5, neon: 4 * −8", {"star": (2, -1.5, 1.0), "neon": (4, -8.0, 1.0)}),
        ("star: 4 ×, moon: × -2", {"star": (4, 0.0, 1.0), "moon": (0, -2.0, 1.0)}),
        ("neon:0.5, moon: 2, star: -0.5", {"neon": (0, 0.0, 0.5), "moon": (0, 0.0, 2.0), "star": (0, 0.0, -0.5)}),
        (
            "(neon:0.5), ((heart)), neon lamp: 50%",
            {"neon": (0, 0.0, 0.5), "heart": NOTHING, "neon lamp": (0, 0.0, 0.5)},
        ),
        ("(neon, heart:0.5)", {"neon": NOTHING, "heart": (0, 0.0, 0.5)}),
        ("star (shape), : , ,", {"star (shape)": NOTHING}),
        ("a: b: 0.5", {"a: b": (0, 0.0, 0.5)}),
        ('"Night, starry": 0.5, "a: b"', {"Night, starry": (0, 0.0, 0.5), "a: b": NOTHING}),
        ('12" vinyl, "neon": 4 × -8', {'12" vinyl': NOTHING, "neon": (4, -8.0, 1.0)}),
    ],
)
def test_concepts_are_read_with_their_own_numbers(pack, text, parsed):
    assert {name: astuple(own) for name, own in pack("concept_text").parse(text).items()} == parsed


@pytest.mark.parametrize("text", ["star: many", "star: -1 × 2", "star: 1 × nan", "star: 1 × 1e999", "star: 0.5 0.5"])
def test_concepts_that_cannot_be_read_are_explained(pack, text):
    with pytest.raises(ValueError, match="star"):
        pack("concept_text").parse(text)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Neon", "neon"),
        ("hearts", "heart"),
        ("CROSSES", "cross"),
        ("neon style", "neon"),
        ("style neon", "neon"),
        ("Heart objects", "heart"),
        ("van gogh", "Van_Gogh"),
        ("Van-Gogh style", "Van_Gogh"),
        ("dog", "Dogs"),
        ("sandwich", "Sandwiches"),
        ("butterflies", "Butterfly"),
        ("Cats", "cats"),
        ("glass", "Glass"),
        ("style", "style"),
    ],
)
def test_names_are_understood_as_they_come_to_mind(pack, written, meant):
    styles, objects = (
        ("neon", "Van_Gogh", "style"),
        ("heart", "cross", "Dogs", "Sandwiches", "Butterfly", "cats", "Glass"),
    )
    concepts = dict.fromkeys(styles, "style") | dict.fromkeys(objects, "object")
    header = pack("host.headers").Header(concepts, "0" * 16)
    assert pack("concept_text").match_name(written, header) == meant


def test_names_that_differ_in_little_stay_apart(pack):
    header = pack("host.headers").Header(dict.fromkeys(("cat", "cats", "Dog", "dog"), "object"), "0" * 16)
    match = pack("concept_text").match_name
    assert [match(name, header) for name in ("cats", "Cat", "Dog", "dog")] == ["cats", "cat", "Dog", "dog"]
    for name in ("DOG", "a cat"):
        with pytest.raises(ValueError, match="is not in the table; the nearest are"):
            match(name, header)


def settings_of(pack, sae, text, latents=0, strength=0.0):
    return pack("concepts").ConceptSelector.execute(sae, text, latents, strength).args[0].settings


def test_a_share_is_of_the_concepts_own_strength(pack, sae):
    own = settings_of(pack, sae, "neon")["neon"]
    assert settings_of(pack, sae, "(Neon:0.5)") == {"neon": replace(own, strength=own.strength / 2)}
    assert settings_of(pack, sae, "neon: -1") == {"neon": replace(own, strength=-own.strength)}
    assert settings_of(pack, sae, "neon: 0.5", strength=-8.0) == {"neon": replace(own, strength=-4.0)}
    assert list(settings_of(pack, sae, "neon: 0, hearts")) == ["heart"]


def test_without_numbers_a_concept_is_removed_as_on_the_command_line(pack, sae):
    removal = pack("saeuron.removal", "")
    bundle = sae.bundle
    wanted = removal.choose_settings(bundle.sae, bundle.table, ["neon", "star"], bundle.settings)
    assert settings_of(pack, sae, "neon, star") == wanted


def test_what_was_understood_is_told(pack, sae):
    shown = pack("concepts").ConceptSelector.execute(sae, "neon style: 0.5; star: 4 × -8", 0, 0.0).ui.as_dict()["text"]
    lines = shown[0].splitlines()
    assert lines == ["neon (style): redirect, strength -1", "star (object): ablate, 4 latents, strength -8"]


def test_an_unknown_concept_names_the_nearest(pack, sae):
    with pytest.raises(ValueError, match="neon"):
        pack("concepts").ConceptSelector.execute(sae, "neonn", 0, 0.0)


def test_no_concept_is_explained(pack, sae):
    with pytest.raises(ValueError, match="`concepts` is empty"):
        pack("concepts").ConceptSelector.execute(sae, " ", 0, 0.0)
