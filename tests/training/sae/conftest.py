"""What it takes to interrupt a training, and to count how often the model is called."""

import pytest

import training.sae.build
import training.sae.record
import training.sae.sources
from training.sae.trainer import TrainingAutoencoder


@pytest.fixture
def interrupt_step(monkeypatch):
    """Call with ``n``: the training step after ``n`` others is interrupted before it changes anything."""

    def arm(count):
        real, left = TrainingAutoencoder.losses, iter(range(count))

        def losses(*args):
            if next(left, None) is None:
                monkeypatch.setattr(TrainingAutoencoder, "losses", real)
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(TrainingAutoencoder, "losses", losses)

    return arm


@pytest.fixture
def calls(pipeline, monkeypatch):
    """Commands find the loaded TinyCanvas; how often its UNet was run, as the only entry of a list."""
    for module in (training.sae.build, training.sae.record, training.sae.sources):
        monkeypatch.setattr(module, "open_model", lambda _options: pipeline)
    count = [0]
    handle = pipeline.unet.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    yield count
    handle.remove()
