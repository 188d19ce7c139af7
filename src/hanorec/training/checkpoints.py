"""Where an unfinished run stands, on disk: written whole or not at all, and read with care.

In: tensors by name and a few numbers. Out: `checkpoint/` in the run's folder, and `checkpoint.old/`, the one before it:
safetensors and JSON alone, so that reading one runs no code. A checkpoint is prepared beside, forced to the disk and
renamed; whatever moment a run dies at, one of the two is whole.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hanorec import distributed, files
from hanorec.cache import content_fingerprint, weights_fingerprint
from hanorec.errors import DataError, MachineError

NEWEST, BEFORE, FRESH = "checkpoint", "checkpoint.old", "checkpoint.new"


def save(folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
    """Write a checkpoint: a safetensors file for each entry of `tensors`, and state.json.

    Errors: MachineError where the disk does not take it; the last good checkpoint stays.
    """
    fresh, newest, before = folder / FRESH, folder / NEWEST, folder / BEFORE
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name, group in tensors.items():
            here = {key: value.detach().cpu().contiguous() for key, value in group.items()}
            save_file(here, fresh / f"{name}.safetensors")
        state = state | {"digest": _digest(state, tensors)}
        (fresh / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")
        for path in (*fresh.iterdir(), fresh):
            files.to_disk(path)
    except Exception as error:  # safetensors has errors of its own
        shutil.rmtree(fresh, ignore_errors=True)
        raise MachineError(
            f"{fresh}: the checkpoint of step {state['step']} cannot be written ({error}); {where_to_go_on(folder)}"
        ) from error
    if newest.exists():
        shutil.rmtree(before, ignore_errors=True)
        newest.rename(before)
    fresh.rename(newest)
    files.to_disk(folder)


def where_to_go_on(folder: Path) -> str:
    """For a message to one whose machine failed."""
    last = next((folder / name for name in (NEWEST, BEFORE) if (folder / name).is_dir()), None)
    if last is None:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {last}: when that is mended, go on with --resume"


def load(folder: Path, use: Callable[[dict[str, dict[str, Tensor]], dict], None]) -> bool:
    """Give the newest whole checkpoint to `use`; False where there is none yet.

    `use` may refuse it by an exception. A newest one that is damaged or refused is passed over with a warning for the
    one before it. Errors: DataError where there are checkpoints but none can be used.
    """
    existing = [path for path in (folder / NEWEST, folder / BEFORE) if path.is_dir()]
    problems = []
    for path in existing:
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
            if state.pop("digest") != _digest(state, tensors):
                raise ValueError("its content is not what was written")
            use(tensors, state)
        except Exception as error:
            problems.append(f"{path}: not a whole checkpoint of this run ({type(error).__name__}: {error})")
            continue
        if problems:
            warnings.warn(f"{problems[0]}; going on from the one before, of step {state['step']}", stacklevel=2)
        return True
    if problems:
        raise DataError("; ".join(problems))
    return False


def _digest(state: dict, tensors: dict[str, dict[str, Tensor]]) -> str:
    """Of all that a checkpoint holds, 64 hex digits."""
    weights = (part for name in sorted(tensors) for part in (name, weights_fingerprint(tensors[name])))
    return content_fingerprint(json.dumps(state, sort_keys=True), *weights)


def discard(folder: Path) -> None:
    """Remove a finished run's checkpoints."""
    for name in (NEWEST, BEFORE, FRESH):
        shutil.rmtree(folder / name, ignore_errors=True)


def trained_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """What trains, by name, put together from all ranks."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: distributed.full_tensor(p.detach()) for name, p in trained.items()}


def set_trained_weights(model: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """The way back. Errors: ValueError for weights of other layers than those that train."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if trained.keys() != weights.keys():
        raise ValueError(f"weights of other layers ({len(weights)} there, {len(trained)} here)")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(distributed.distribute_like(weights[name], parameter))


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as "<what> <parameter's name>" → tensor."""
    return {
        f"{what} {name}": distributed.full_tensor(torch.as_tensor(value))
        for name, parameter in model.named_parameters()
        for what, value in optimizer.state.get(parameter, {}).items()
    }


def set_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The way back. Errors: KeyError for a parameter that the model does not have."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        what, name = key.split(" ", 1)
        parameter = parameters[name]
        state = optimizer.state.setdefault(parameter, {})
        if what == "step":
            state[what] = value.to(parameter.device if optimizer.defaults.get("fused") else "cpu")
        else:
            state[what] = distributed.distribute_like(value, parameter)
