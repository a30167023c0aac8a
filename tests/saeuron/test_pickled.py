"""What a pickle of tensors, numbers and text may hold comes back, whichever protocol wrote it; the rest is named."""

import collections
import pickle

import pytest
import torch

from saeuron import SaeuronError
from saeuron.checkpoints.pickled import read_pickle

CONTENT = {
    "name": "γ", "bytes": b"x", "deep": {"list": [1, 2.5, None, True, False, ["x"]]},
    "tuple": (1, (2,), (), (1, 2, 3, 4)), 7: -3, "large": 2**70, "empty": {}, "none": [],
    "ordered": collections.OrderedDict(a=1),
}  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back_from_every_protocol(tmp_path, protocol):
    content = {name: value for name, value in CONTENT.items() if name != "bytes" or protocol > 2}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_pickle(tmp_path / "a.pkl")
    assert found == content and list(found) == list(content)


@pytest.mark.parametrize("protocol", range(6))
def test_sizes_and_devices_come_back_as_numbers_and_text(tmp_path, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": torch.Size([2, 3]), "b": torch.device("cuda", 1)}, protocol))
    assert read_pickle(tmp_path / "a.pkl") == {"a": (2, 3), "b": "cpu"}


@pytest.mark.parametrize("protocol", range(3, 6))
def test_tensors_come_back_from_every_protocol_that_writes_bytes(tmp_path, protocol):
    tensor = torch.arange(6.0).view(2, 3)
    content = {"a": tensor, "own": torch.nn.Parameter(2 * tensor)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_pickle(tmp_path / "a.pkl")
    assert torch.equal(found["a"], tensor) and torch.equal(found["own"], 2 * tensor)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x80\x02K\x01.", "holds a int where a dictionary is expected"),
        (b"\x80\x02}q\x00.trailing", None),
        (b"\x80\x02}", "pickle exhausted before seeing STOP"),
        (b"\x80\x02N" + b"N" * 1_000_001 + b".", "it is too long"),
        (b"\x80\x02ctorch\nSize\nK\x01R.", "it calls Size in an unknown way"),
        (b"\x80\x02K\x01)R.", "it calls what is no function in an unknown way"),
        (b"\x80\x02cos\nsystem\n.", "it asks for os.system, which may do harm and is never given"),
        (b"\x80\x02}K\x01a.", "it appends to what is no list"),
        (b"\x80\x02(K\x01d.", "it has a key that is neither text nor a whole number"),
    ],
)
def test_what_no_file_of_tensors_says_is_named(tmp_path, content, says):
    (tmp_path / "a.pkl").write_bytes(content)
    if says is None:
        assert read_pickle(tmp_path / "a.pkl") == {}
        return
    with pytest.raises(SaeuronError) as refused:
        read_pickle(tmp_path / "a.pkl")
    assert says in str(refused.value) and "a.pkl" in str(refused.value)
