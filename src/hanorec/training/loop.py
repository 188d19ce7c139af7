"""What both training loops share: the step they are at, a step's random numbers, the log, checkpoints, the best state.

In: the options, the model, its optimizer and the schedule of batches. Out: a run folder that says what happened
(`metrics.jsonl`) and, while it is unfinished, where it stands (`checkpoints.py`). The loops themselves, with forward,
loss, backward and optimizer step, are in `train_sft.py` and `train_dpo.py`.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from hanorec import distributed, files
from hanorec.errors import DataError, Interrupted, MachineError, what_the_machine_lacks
from hanorec.losses import NotFiniteError, RunningResponsiveness
from hanorec.randomness import mixed_seed
from hanorec.related.batch_objectives import RunningGaps
from hanorec.training import checkpoints
from hanorec.training.checkpoints import set_trained_weights, trained_weights
from hanorec.training.digests import run_digests
from hanorec.training.metrics import LOG, append_line, drop_lines_from
from hanorec.training.options import RunOptions
from hanorec.training.schedule import Schedule
from hanorec.training.signals import StopSignal


@dataclass
class Best:
    """The best state that validation has seen so far. step: how many steps were done by then."""

    value: float = -math.inf
    step: int | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)


class Run:
    """One training run in its folder: which step is next, what is written down, which state is best.

    Whatever is random in a step is a function of seed, step and prompts, so a run that was stopped and resumed ends as
    if it had not been. Stopped by a signal, it finishes its step. Stopped by a signal or by a value that is not finite,
    it leaves a checkpoint and says how to go on.

    running: what an objective keeps from batch to batch, if anything.
    """

    def __init__(
        self,
        options: RunOptions,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        schedule: Schedule,
        *,
        running: RunningResponsiveness | RunningGaps | None = None,
    ):
        self.folder, self.options, self.schedule = Path(options.output), options, schedule
        self.model, self.optimizer, self.scaler, self.running = model, optimizer, scaler, running
        self.device = next(model.parameters()).device
        self.step, self.lines, self.best = 0, 0, Best()  # lines: of the log
        self.start: float | None = None  # on validation before the first step, where a loop asked for it
        self.measure = ""  # what the best value is a value of
        self.users: list[str] = []  # those of the batch at hand, for an error's message
        self.stop = StopSignal()
        self.bar: tqdm | None = None
        if options.resume:
            checkpoints.load(self.folder, self._restore)  # none: it was killed before its first, and starts anew
            self.lines = drop_lines_from(self.folder, self.step, self.lines)
        self.running_state = self._state_of_running()

    # the steps, and what is random in them

    def batches(self) -> Iterator[list[int]]:
        """Yield the prompts' numbers of every step, from where the run stands to its end."""
        total, quiet = self.schedule.steps, not distributed.is_main_process()
        self.bar = tqdm(total=total, initial=self.step, desc=self.folder.name, unit="step", disable=quiet)
        for batch in self.schedule.batches(self.step):
            self.users = [self.schedule.users[i] for i in batch]
            yield batch
            self.step += 1
            self.running_state = self._state_of_running()
            self.bar.update()
            stop = distributed.all_reduce_max(self.stop.received)  # a signal to one rank stops all after one step
            if stop and self.step < total:
                raise Interrupted(f"{self.folder}: stopped at step {self.step}; go on with --resume", stop)
            if self.step % self.options.checkpoint_every == 0 and self.step < total:
                self.save()
        self.bar.close()

    def seed(self, prompts: Sequence[int]) -> None:
        """Let what is random in a forward (dropout) depend on seed, step and the forward's prompts alone."""
        torch.manual_seed(mixed_seed(self.schedule.seed, self.step, *prompts))

    def generator(self, *prompt: int) -> torch.Generator:
        """The source of NoDO's noise in this step: for one prompt, or (without one) for all alike."""
        return torch.Generator(self.device).manual_seed(mixed_seed(self.schedule.seed, self.step, -1, *prompt))

    def require_finite(self, name: str, values: Tensor) -> None:
        """Errors: NotFiniteError, on every rank, where any rank's values are not finite."""
        if distributed.all_reduce_max(int(not values.isfinite().all())):
            raise NotFiniteError(f"{name}: not finite")

    # the log and the best state

    def should_log(self) -> bool:
        return self.step % self.options.log_every == 0 or self.step + 1 == self.schedule.steps

    def log(self, values: Mapping[str, float | Tensor]) -> None:
        """Write a line of metrics.jsonl, and show loss and accuracy beside the progress bar."""
        numbers = {k: float(v.detach() if isinstance(v, Tensor) else v) for k, v in values.items()}
        if self.bar is not None:
            self.bar.set_postfix({k: f"{v:.3f}" for k, v in numbers.items() if k in ("loss", "accuracy")})
        self._write({"step": self.step, **{k: round(v, 6) for k, v in numbers.items()}})

    def should_validate(self) -> bool:
        done = self.step + 1
        return done % self.options.validate_every == 0 or done == self.schedule.steps

    def start_from(self, measure: str, value: float) -> None:
        """Log a validation of the weights before the first step, as step -1: what training has to beat."""
        self.start = value
        self._log_validation(-1, measure, value)

    def keep_if_best(self, measure: str, value: float) -> None:
        """Log a validation, and keep the current weights if no earlier ones were better."""
        better = value > self.best.value
        self._log_validation(self.step, measure, value, " (best)" if better else "")
        self.measure = measure
        if better:
            weights = {name: tensor.clone() for name, tensor in trained_weights(self.model).items()}
            self.best = Best(value, self.step + 1, weights)

    def finish(self, save: Callable[[Path, dict[str, Tensor], dict], object]) -> None:
        """Put the best state back, give it to `save` with the run's folder and how the run ended, and drop the
        checkpoints. `save` forces what it writes to the disk, so that nothing is dropped before its heir is there."""
        best = self.best
        if best.weights:
            set_trained_weights(self.model, best.weights)
        weights = trained_weights(self.model)
        if distributed.is_main_process():
            finished: dict = {"steps": self.schedule.steps, "best_step": best.step, "best": best.value}
            finished |= {"measure": self.measure} | ({} if self.start is None else {"start": self.start})
            save(self.folder, weights, finished)
            self._log_to_disk()
            finished["files"] = run_digests(self.folder)
            files.replace_text(self.folder / "finished.json", json.dumps(finished, indent=1) + "\n")
            checkpoints.discard(self.folder)
            if self.start is not None and best.value <= self.start:
                print(f"{self.folder}: on validation, no state that was looked at is above step 0 ({self.start:.4f})")
        distributed.barrier()

    def _write(self, line: dict) -> None:
        append_line(self.folder, line)
        self.lines += 1

    def _log_to_disk(self) -> None:
        if (self.folder / LOG).exists():
            files.to_disk(self.folder / LOG)

    def _log_validation(self, step: int, measure: str, value: float, note: str = "") -> None:
        self._write({"step": step, "validation": round(value, 6), "measure": measure})
        if distributed.is_main_process():
            tqdm.write(f"step {step + 1}: {measure} on validation {value:.4f}{note}")

    # what stops a run, and checkpoints

    def __enter__(self) -> Run:
        self.stop.__enter__()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.stop.__exit__()
        try:
            self._say_how_it_ended(error)
        finally:
            files.unlock(self.folder)

    def _say_how_it_ended(self, error: BaseException | None) -> None:
        if self.bar is not None:
            self.bar.close()
        if isinstance(error, NotFiniteError):
            self.save()
            raise DataError(
                f"{self.folder}: stopped at step {self.step}: {error}. Its pairs are those of the users "
                f"{', '.join(self.users)}. The last good state (before that step) is in "
                f"{self.folder / checkpoints.NEWEST}"
            ) from error
        if isinstance(error, Interrupted):
            self.save()
        if isinstance(error, Exception) and (reason := what_the_machine_lacks(error)):
            raise MachineError(
                f"{self.folder}: stopped at step {self.step}: {reason}; {checkpoints.where_to_go_on(self.folder)}"
            ) from error
        if isinstance(error, KeyboardInterrupt):
            message = f"{self.folder}: stopped at once; go on with --resume, from the last checkpoint"
            raise Interrupted(message, self.stop.received or signal.SIGINT) from None

    def save(self) -> None:
        """Write a checkpoint: everything that the rest of the run depends on. All ranks take part, one writes."""
        tensors = {
            "weights": trained_weights(self.model),
            "best": self.best.weights,
            "optimizer": checkpoints.optimizer_tensors(self.model, self.optimizer),
        }
        if not distributed.is_main_process():
            return
        best = None if self.best.step is None else self.best.value
        state = dict(step=self.step, start=self.start, best=best, best_step=self.best.step, lines=self.lines)
        self._log_to_disk()  # the checkpoint counts on its lines
        checkpoints.save(
            self.folder, tensors, state | {"running": self.running_state, "scaler": self.scaler.state_dict()}
        )

    def _restore(self, tensors: dict, state: dict) -> None:
        """Take over a checkpoint. Errors: whatever says that it is not one of this run."""
        names = ("step", "lines", "best", "best_step", "running")
        step, lines, best, best_step, running = (state[name] for name in names)
        set_trained_weights(self.model, tensors["weights"])
        checkpoints.set_optimizer(self.model, self.optimizer, tensors["optimizer"])
        self.start = state["start"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.lines = step, lines
        self.best = Best(-math.inf if best is None else best, best_step, tensors["best"])
        if self.running is not None:
            self.running.load_state_dict(running)

    def _state_of_running(self) -> dict | None:
        return None if self.running is None else self.running.state_dict()
