"""Processes with nothing of the test's own in memory, which need not import torch and transformers anew: they are forked
from a server that has imported them and done nothing else."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable

from torch.multiprocessing.spawn import ProcessContext, start_processes

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["hanorec.models.lora", "hanorec.evaluation.ranking", "hanorec.hardness"])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_ranks(count: int, work: Callable, *arguments) -> ProcessContext:
    """Start `work` on `count` ranks, which see what `torchrun` tells its own."""
    details = (count, free_port(), work, arguments)
    return start_processes(_rank, details, nprocs=count, join=False, start_method="forkserver")


def run_ranks(count: int, work: Callable, *arguments) -> None:
    """The same, to the end. If one fails, the others are ended and its traceback is raised."""
    context = start_ranks(count, work, *arguments)
    while not context.join():
        pass


def _rank(rank: int, count: int, port: int, work: Callable, arguments: tuple) -> None:
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in (here | there).items()})
    work(*arguments)
