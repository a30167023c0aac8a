"""What it takes to interrupt a training."""

import pytest

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
