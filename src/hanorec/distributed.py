"""One program on one rank or on many, on one machine or several: which rank is this, what is its share, what do all
ranks have together.

Started by `accelerate launch` or `torchrun`, the ranks share the work on every batch; started plainly there is one.
Each holds the whole model, unless `accelerate launch` is given an FSDP config: then each holds a shard of every weight.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")
R = TypeVar("R")


def _state() -> PartialState:
    """Accelerate's view of the ranks, made once. Without a GPU or the like they talk over gloo."""
    return PartialState(cpu=not torch.accelerator.is_available())


def rank() -> int:
    """The number of this process, from 0."""
    return _state().process_index


def world_size() -> int:
    """The number of processes."""
    return _state().num_processes


def is_main_process() -> bool:
    """Whether this is rank 0, which alone writes files and talks."""
    return _state().is_main_process


def device() -> torch.device:
    """The device of this rank: the fastest there is."""
    return _state().device


def barrier() -> None:
    """Wait until all ranks are here."""
    _state().wait_for_everyone()


def map_over_ranks(work: Callable[[T], R], things: Sequence[T]) -> list[R]:
    """[work(thing) for thing in things], each done by one rank and known to all afterwards.

    All ranks work equally often (where weights are sharded, a forward takes all of them), so some work may be done
    twice.
    """
    share = things[rank() :: world_size()]
    again = -(-len(things) // world_size()) - len(share)  # 0 or 1
    of_ranks = gather_object([[work(thing) for thing in (*share, *things[:again])]])
    return [result for turn in zip(*of_ranks) for result in turn][: len(things)]


def all_gather_rows(values: Tensor) -> Tensor:
    """The rows of all ranks' tensors in one, on this rank's device: its own carry their gradient, the others none. A
    loss of the result has on each rank the gradient of its own rows; the sum over ranks is that of the whole batch."""
    if world_size() == 1:
        return values
    shares = [torch.tensor(share).to(values) for share in gather_object([values.detach().tolist()])]
    rows = [share.reshape(-1, *values.shape[1:]) for share in shares]
    rows[rank()] = values
    return torch.cat(rows)


def all_reduce_max(number: int) -> int:
    """The largest of all ranks' numbers."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number, device=device())
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return int(largest)


def all_reduce_sum(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, in place, in one message. Sharded gradients are sums already."""
    tensors = [tensor for tensor in tensors if not isinstance(tensor, DTensor)]
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(total.view_as(tensor))


def all_reduce_gradients(model: torch.nn.Module) -> None:
    """Sum the gradients of what trains over all ranks: losses are shares of the batch's, so a sum is its gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if world_size() > 1:
        taking_part = torch.tensor([int(p.grad is not None) for p in trained], device=device())
        torch.distributed.all_reduce(taking_part, op=torch.distributed.ReduceOp.MAX)
        for parameter, somewhere in zip(trained, taking_part.tolist()):
            if parameter.grad is None and somewhere:  # an image encoder on a rank whose prompts show no image
                parameter.grad = torch.zeros_like(parameter)
    all_reduce_sum([p.grad for p in trained if p.grad is not None])


# sharded weights


def is_sharded() -> bool:
    """Whether weights are to be sharded: `accelerate launch` was given an FSDP config."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" and world_size() > 1


def shard_weights(model: torch.nn.Module, layers: Iterable[torch.nn.Module]) -> None:
    """Leave each rank a shard of every weight. A layer's shards are put together while it computes, and its gradients
    are summed over the ranks."""
    mesh = init_device_mesh(device().type, (world_size(),))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)  # type: ignore[operator]  # a sum, not a mean
        module.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor, put together where it is sharded; then all ranks must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, sharded if `other` is."""
    tensor = tensor.to(other.device)
    return distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor
