"""Several processes at one job: which of them this is, its share of the work, and the parts put together again.

``accelerate launch`` and ``torchrun`` say which process this is in its environment. Without them there is one process,
and everything here is the identity. What processes exchange is small and lies on the CPU, so they talk through gloo.
"""

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch.distributed

from saeuron import ConceptTable

PATIENCE = timedelta(days=7)  # one process may wait for the others as long as they work
T = TypeVar("T")


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this is the process that writes what all of them found."""
    return rank() == 0


def own_device(name: str) -> str:
    """``cuda`` as the one GPU that belongs to this process; any other device as it is."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" and processes() > 1 else name


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
    _join()
    values: list = [None] * processes()
    torch.distributed.all_gather_object(values, value)
    return values


def of_main(value: T) -> T:
    """The main process's ``value``, on every process."""
    return gather(value)[0]


def barrier() -> None:
    """Wait for all processes to come here."""
    if processes() > 1:
        _join()
        torch.distributed.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block, and then all others do."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def merge(table: ConceptTable) -> ConceptTable:
    """``table`` with what every process gathered in its own of the same concepts and timesteps, on every process."""
    if processes() > 1:
        _join()
        for tensor in (table.sums, table.counts):
            torch.distributed.all_reduce(tensor)
    return table


def _join() -> None:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        atexit.register(torch.distributed.destroy_process_group)
