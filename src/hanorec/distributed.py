"""One program in one process or in many, on one machine or several: who I am, what is mine, and what all have together.

Started by `accelerate launch` or `torchrun`, the processes share the work on every batch; started plainly there is one.
Each holds the whole model, unless `accelerate launch` is given an FSDP config: then each holds a share of every weight.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

T, R = TypeVar("T"), TypeVar("R")


def _state() -> PartialState:
    """Accelerate's view of it; made once. Without a GPU or the like, processes talk over gloo."""
    return PartialState(cpu=not torch.accelerator.is_available())


def rank() -> int:
    """This process's number among all."""
    return _state().process_index


def world_size() -> int:
    """How many processes there are."""
    return _state().num_processes


def is_main_process() -> bool:
    """Whether this process is the one that writes files and talks."""
    return _state().is_main_process


def device() -> torch.device:
    """This process's own: the fastest there is."""
    return _state().device


def barrier() -> None:
    """Until all processes are here."""
    _state().wait_for_everyone()


def map_over_ranks(work: Callable[[T], R], things: Sequence[T]) -> list[R]:
    """`work` done on all things, each by one process, for everyone. All processes work equally often (where weights are
    sharded, a forward takes all of them), so some work may be done twice."""
    own = things[rank() :: world_size()]
    again = -(-len(things) // world_size()) - len(own)  # 0 or 1
    shares = gather_object([[work(thing) for thing in (*own, *things[:again])]])
    return [result for row in zip(*shares) for result in row][: len(things)]


def all_gather(values: Sequence[Tensor], *columns: int) -> Tensor:
    """All processes' values, of each any number of [n, *columns], in one tensor on the CPU, without gradient."""
    own = torch.cat([torch.empty(0, *columns), *(value.detach().cpu() for value in values)])
    return own if world_size() == 1 else torch.tensor(sum(gather_object([own.tolist()]), [])).view(-1, *columns)


def all_reduce_max(number: int) -> int:
    """The largest of all processes' numbers."""
    return max(gather_object([number]))


def all_reduce_sum(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in place, in one message. Sharded ones are sums already."""
    tensors = [tensor for tensor in tensors if not isinstance(tensor, DTensor)]
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(total.view_as(tensor))


# sharded weights


def is_sharded() -> bool:
    """Whether weights are to be sharded: `accelerate launch` was given an FSDP config."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" and world_size() > 1


def shard_weights(model: torch.nn.Module, layers: Sequence[torch.nn.Module]) -> None:
    """Leave each process a share of every weight. A layer's are put together while it computes, and its gradients are
    summed over the processes."""
    mesh = init_device_mesh(device().type, (world_size(),))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)  # a sum, not a mean
        module.set_force_sum_reduction_for_comms(True)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor, put together from all processes where it is sharded; then all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, sharded if `other` is."""
    tensor = tensor.to(other.device)
    return distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor
