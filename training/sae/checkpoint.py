"""Where a training stands: its checkpoint, and the SAE that it leaves in the end."""

from pathlib import Path

import torch

from saeuron import SaeuronError, SparseAutoencoder, load_sae
from saeuron.checkpoints.pickled import read_pickle
from saeuron.files import read_json, write_atomically

from ..common.progress import console
from .trainer import TrainingAutoencoder

NAME = "checkpoint.pt"


def finished(folder: Path, identity: str) -> SparseAutoencoder | None:
    """The SAE that a training of this identity has left in ``folder``, with its ``metrics`` and its ``steps``."""
    try:
        sae, metrics = load_sae(folder), read_json(folder / "metrics.json")
    except SaeuronError:
        return None
    if sae.config.get("identity") != identity:
        return None
    sae.metrics, sae.steps = metrics, sae.config["steps"]
    return sae


def read(folder: Path) -> dict | None:
    """The checkpoint in ``folder``, None where there is none; raises SaeuronError where it cannot be read."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state = read_pickle(path)
        return state | {"steps": state.get("steps")}
    except SaeuronError as error:
        raise SaeuronError(f"{path} is not a readable checkpoint; delete it to start anew") from error


def save(folder: Path, identity: str, step: int, steps: int, model: TrainingAutoencoder, optimizer, schedule) -> None:
    """Write all that it takes to go on after ``step`` of ``steps``."""
    state = {"identity": identity, "step": step, "steps": steps, "model": model.state_dict()}
    state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}

    def write(path: Path) -> None:
        with open(path, "wb") as file:  # given a name alone, torch would not tell of a full disk
            torch.save(state, file)

    write_atomically(folder / NAME, write)


def restore(state: dict, model: TrainingAutoencoder, optimizer, schedule) -> int:
    """Bring ``model`` and what trains it to where ``state`` was saved; returns its step."""
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SaeuronError(f"the checkpoint {NAME} is broken: delete it to start anew") from error
    if type(state.get("step")) is not int:
        raise SaeuronError(f"the checkpoint {NAME} is broken: delete it to start anew")
    console.print(f"continuing at step {state['step']}")
    return state["step"]
