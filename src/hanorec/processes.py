"""One program in one process or in many, on one machine or several: who I am, what is mine, and what all have together.

Started by `accelerate launch` or `torchrun`, the processes share the work on every batch; started plainly there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

T = TypeVar("T")


def _state() -> PartialState:
    """Accelerate's view of it; made once. Without a GPU or the like, processes talk over gloo."""
    return PartialState(cpu=not torch.accelerator.is_available())


def rank() -> int:
    """This process's number among all."""
    return _state().process_index


def count() -> int:
    """How many processes there are."""
    return _state().num_processes


def is_first() -> bool:
    """Whether this process is the one that writes files and talks."""
    return _state().is_main_process


def device() -> torch.device:
    """This process's own: the fastest there is."""
    return _state().device


def wait() -> None:
    """Until all processes are here."""
    _state().wait_for_everyone()


def mine(things: Sequence[T]) -> list[T]:
    """This process's share of some things: every `count`-th."""
    return list(things[rank() :: count()])


def joined(own: Sequence[T]) -> list[T]:
    """All processes' shares, put back into the order that `mine` took them from."""
    if count() == 1:
        return list(own)
    shares = gather_object([list(own)])
    missing = object()
    return [thing for row in zip_longest(*shares, fillvalue=missing) for thing in row if thing is not missing]


def everyones(values: Sequence[Tensor]) -> Tensor:
    """All processes' values, of each any number of [n], in one tensor on the CPU, without gradient."""
    own = torch.cat([torch.empty(0), *(value.detach().cpu() for value in values)])
    return own if count() == 1 else torch.tensor(sum(gather_object([own.tolist()]), []))


def summed(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in place, in one message."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(total.view_as(tensor))
