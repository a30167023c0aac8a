import pytest

from saeuron import SaeuronError
from training.common.prompts import concepts, labels, read_labelled, read_prompts


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text, "utf-8")
        return str(tmp_path / name)

    return write


def test_a_text_file_holds_a_prompt_a_line(write):
    path = write("prompts.txt", "a star\n\n  {not: json}  \n")
    assert read_prompts(path) == [{"prompt": "a star"}, {"prompt": "{not: json}"}]


def test_a_jsonl_file_holds_concepts_beside_each_prompt(write):
    path = write("prompts.jsonl", '{"prompt": "a star", "object": "star"}\n\n{"prompt": "art", "year": 1907}\n')
    rows = read_prompts(path)
    assert [labels(row) for row in rows] == [{"object": "star"}, {"year": "1907"}]
    assert concepts(rows) == {"star": "object", "1907": "year"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"prompt": "a star"', "is not readable JSON"),
        ('"a star"', "holds a JSON str"),
        ('{"object": "star"}', "needs an object"),
        ('{"prompt": "  "}', "not empty"),
        ('{"prompt": 3}', "needs an object"),
    ],
)
def test_a_line_that_does_not_parse_is_named_with_its_file_and_number(write, line, complaint):
    path = write("prompts.jsonl", f'{{"prompt": "a heart"}}\n\n{line}\n')
    with pytest.raises(SaeuronError, match=rf"prompts\.jsonl, line 3: .*{complaint}"):
        read_prompts(path)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_prompts_is_refused_by_name(write, text):
    with pytest.raises(SaeuronError, match=r"prompts\.txt holds no prompt"):
        read_prompts(write("prompts.txt", text))


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for name, reason in [("nowhere.txt", "No such file"), (".", "Is a directory"), ("latin.txt", "utf-8")]:
        with pytest.raises(SaeuronError, match=f"could not be read: .*{reason}"):
            read_prompts(str(tmp_path / name))


@pytest.mark.parametrize("kind", ["training", "anchor", "evaluation"])
def test_tinycanvas_brings_three_labelled_sets(kind):
    rows = read_labelled(f"tinycanvas:{kind}", ("object", "style"))
    assert len(rows) == len({row["prompt"] for row in rows}) >= 90
    assert sorted(concepts(rows).values()) == ["object"] * 10 + ["style"] * 9


def test_a_set_that_tinycanvas_lacks_is_refused_with_those_it_has():
    with pytest.raises(SaeuronError, match="no prompts 'test'; it has training, anchor, evaluation"):
        read_prompts("tinycanvas:test")


def test_a_prompt_without_its_labels_is_refused_by_its_words(write):
    path = write("prompts.jsonl", '{"prompt": "a", "object": "star", "style": "neon"}\n{"prompt": "b", "style": "x"}\n')
    with pytest.raises(SaeuronError, match=r"the prompt 'b' does not say its object;"):
        read_labelled(path, ("object", "style"))


def test_a_name_of_two_kinds_is_refused():
    with pytest.raises(SaeuronError, match="'rose' is both a object and a style"):
        concepts([{"prompt": "a", "object": "rose"}, {"prompt": "b", "style": "rose"}])
