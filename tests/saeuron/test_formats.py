"""What a file's description finds is told in one sentence that names the field."""

import pytest
import torch

from saeuron import SaeuronError
from saeuron.formats import SaeDescription, check, check_floats, check_latents, check_timesteps


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "a.json lacks k"),
        ({"k": "4"}, "a.json: k is '4': input should be a valid integer"),
        ({"k": 4, "assignment": {"neon": -1}}, "a.json: assignment.neon is -1: input should be greater than or"),
        ({"k": 4, "assignment": {"x" * 61: -1}}, f"a.json: assignment.{'x' * 60} is -1: "),
        ([], "a.json: content is []: input should be"),
    ],
)
def test_the_first_field_that_is_wrong_is_named(content, says):
    with pytest.raises(SaeuronError) as refused:
        check(content, SaeDescription, "a.json")
    assert str(refused.value).startswith(says)


def test_what_fits_is_given_back_with_what_no_description_names():
    content = {"k": 4, "of a newer version": [1]}
    assert check(content, SaeDescription, "a.json") is content


@pytest.mark.parametrize(
    ("timesteps", "fit"),
    [
        (torch.tensor([0, 1000]), True),
        (torch.arange(1001), True),
        (torch.tensor([1001]), False),
        (torch.tensor([-1]), False),
        (torch.tensor([5, 5]), False),
        (torch.tensor([5.0]), False),
        (torch.tensor([[5]]), False),
        (torch.tensor([], dtype=torch.int64), False),
    ],
)
def test_timesteps_are_whole_numbers_from_0_to_1000_each_once(timesteps, fit):
    if fit:
        return check_timesteps(timesteps)
    with pytest.raises(SaeuronError, match="its timesteps"):
        check_timesteps(timesteps)


def test_latents_are_those_of_the_sae():
    check_latents(torch.tensor([0, 7]), 8, "table")
    check_latents(torch.tensor([], dtype=torch.int32), 8, "table")
    for wrong in ([8], [-1]):
        with pytest.raises(SaeuronError, match="its table names latents that the SAE does not have"):
            check_latents(torch.tensor(wrong), 8, "table")
    with pytest.raises(SaeuronError, match=r"its table has latents as torch\.float32"):
        check_latents(torch.tensor([1.0]), 8, "table")


def test_floats_are_floats():
    check_floats(torch.zeros(1, dtype=torch.float16), "values")
    with pytest.raises(SaeuronError, match=r"it holds values as torch\.int64 where"):
        check_floats(torch.tensor([1]), "values")
