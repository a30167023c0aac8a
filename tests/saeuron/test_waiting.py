"""What edits ask of a device while they run, and that they can be compiled."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import saeuron
from saeuron import Ablate, Replace, Shift, Steer, competition, edits
from saeuron.detector import Detector
from tests.saeuron.test_edits import frequent, select

WAITING = (torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default)


class Waits(TorchDispatchMode):
    """Counts the operations that cannot go on before a GPU has told what a tensor holds."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in WAITING
        return func(*args, **(kwargs or {}))


def made(sae, tokens):
    latents = frequent(sae, tokens)
    selection = select(sae, latents)
    timesteps, ones = selection.timesteps, torch.ones(3, 1)
    detector = Detector(timesteps, torch.tensor(latents[:1]), ones, 0.01 * ones[:, 0], sae.fingerprint)
    return {
        "ablate": Ablate(sae, selection),
        "replace": Replace(sae, selection),
        "shift": Shift(sae, [selection], [detector]),
        "steer": Steer(sae, tuple(latents), scale=2.0),
        "steer by adding": Steer(sae, tuple(latents), add=1.0, scale=2.0),
    }


NAMES = pytest.mark.parametrize("name", ["ablate", "replace", "shift", "steer", "steer by adding"])


@NAMES
def test_a_device_is_asked_once_a_call_at_most(make_sae, make_tokens, monkeypatch, name):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    edit = made(sae, tokens)[name]
    monkeypatch.setattr(edits, "is_free_to_ask", lambda _: False)
    monkeypatch.setattr(competition, "_rounds_cheaply", lambda _: False)
    for module in (saeuron.selection, saeuron.detector):  # of timesteps, which are the host's own
        monkeypatch.setattr(module, "nearest_column", lambda timesteps, t: timesteps.tolist().index(t))
    expected = edit(tokens, 501)
    with Waits() as waits:
        got = edit(tokens, 501)
    assert waits.count <= 1 and torch.equal(got, expected) and not torch.equal(got, tokens)


@pytest.mark.parametrize(
    ("name", "dtype"), [("shift", torch.float32), ("ablate", torch.float16), ("replace", torch.bfloat16)]
)
def test_compiled_edits_give_the_same(make_sae, make_tokens, name, dtype):
    sae, tokens = make_sae(), make_tokens(2, 60, 16).to(dtype)
    edit = made(sae, tokens.float())[name]
    torch.compiler.reset()
    # What a compiler's backend makes of single operations is its own affair, and rounds differently.
    compiled = torch.compile(lambda given: edit(given, 501), backend="eager")
    assert torch.equal(compiled(tokens), edit(tokens, 501))
