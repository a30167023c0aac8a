"""Several processes at one job: which of them this is, its share of the work, and the parts put together again.

``accelerate launch`` and ``torchrun`` say which process this is in its environment. Without them there is one process,
and everything here is the identity. Processes talk through gloo about what lies on the CPU, through NCCL on GPUs.
"""

import atexit
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from saeuron.errors import SaeuronError

if TYPE_CHECKING:
    import torch

    from saeuron import ConceptStatistics

PATIENCE = timedelta(days=7)  # one process may wait for the others as long as they work
T = TypeVar("T")


_alone = False


def rank() -> int:
    return 0 if _alone else int(os.environ.get("RANK", 0))


def processes() -> int:
    return 1 if _alone else int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def alone() -> Iterator[None]:
    """In the block this process works as if there were no others: it waits for none and shares nothing."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def is_main() -> bool:
    """Whether this is the process that writes what all of them found."""
    return rank() == 0


def own_device(name: str) -> str:
    """``cuda`` as the one GPU that belongs to this process; any other device as it is."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name


def check_device(name: str) -> None:
    """Raise SaeuronError where the device called ``name`` is not there."""
    import torch

    if name != "cpu" and not (name.split(":")[0] == "cuda" and torch.cuda.is_available()):
        raise SaeuronError(f"device {name!r} is not there; use --device cpu")


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of ``items``: every one that comes ``processes()`` places after another."""
    return items[rank() :: processes()]


def whole(part: Sequence[T]) -> list[T]:
    """What ``share`` divided and every process worked at, in its first order, on every process."""
    parts = gather(list(part))
    return [own[place] for place in range(len(parts[0])) for own in parts if place < len(own)]


def gather(value: T) -> list[T]:
    """The ``value`` of every process, in the order of their ranks, on every process."""
    if processes() == 1:
        return [value]
    values: list = [None] * processes()
    _join().all_gather_object(values, value)
    return values


def of_main(value: T) -> T:
    """The main process's ``value``, on every process."""
    return gather(value)[0]


def barrier() -> None:
    """Wait for all processes to come here."""
    if processes() > 1:
        _join().barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block, and then all others do."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def merge(statistics: "ConceptStatistics") -> "ConceptStatistics":
    """``statistics`` and what all other processes gathered for the same concepts and timesteps, on every process."""
    if processes() > 1:
        group = _join()
        for tensor in statistics.tensors.values():
            group.all_reduce(tensor)
    return statistics


def joined(tensor: "torch.Tensor") -> "torch.Tensor":
    """The ``tensor`` of every process, put together along its first axis; all are of one shape."""
    if processes() == 1:
        return tensor
    import torch

    parts = [torch.empty_like(tensor) for _ in range(processes())]
    _join().all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def sum_gradients(parameters: "Iterable[torch.nn.Parameter]") -> None:
    """Give every process the sum of all processes' gradients."""
    if processes() > 1:
        group = _join()
        for parameter in parameters:
            group.all_reduce(parameter.grad)


def _join() -> ModuleType:
    """torch.distributed, this process being one of the group. Imported here: one process alone has no need of it."""
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
        atexit.register(torch.distributed.destroy_process_group)
    return torch.distributed
