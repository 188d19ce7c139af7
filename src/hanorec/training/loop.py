"""What both training loops share: the order of batches, a step's random numbers, the log, checkpoints, the best state.

In: the options, the model and its optimizer. Out: a run folder that says what happened (`metrics.jsonl`) and, while it
is unfinished, where it stands (`checkpoints.py`). The loops themselves, with forward, loss, backward and optimizer
step, are in `train_sft.py` and `train_dpo.py`.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from hanorec import distributed
from hanorec.data.batching import batches, epoch_order
from hanorec.errors import DataError, Interrupted
from hanorec.losses import NotFiniteError, RunningResponsiveness
from hanorec.randomness import mixed_seed
from hanorec.training import checkpoints


class MicroBatch(NamedTuple):
    """Examples of a batch that share a forward. weight: of each in the mean over the batch, 1 / its size; or 0 where
    this rank only keeps the others company."""

    indices: list[int]
    weight: float


class Run:
    """One training run in its folder: which batch is next, what is written down, which state is best.

    Whatever is random in a step is a function of seed, step and examples, so a run that was stopped and resumed ends as
    if it had not been. Stopped by a signal, it finishes its step; stopped so or by a loss that is not finite, it leaves
    a checkpoint and says how to go on.
    """

    def __init__(
        self,
        options,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        *,
        total: int,
        running: RunningResponsiveness | None = None,
    ):
        self.folder, self.options, self.total = Path(options.output), options, total
        self.model, self.optimizer, self.scaler, self.running = model, optimizer, scaler, running
        self.device = next(model.parameters()).device
        self.step, self.epoch, self.best = 0, 0, -math.inf
        self.start: float | None = None  # on validation before the first step, where a loop asked for it
        self.best_step: int | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.measure = ""  # what `best` is a value of
        self.users: list[str] = []  # those of the batch at hand, for an error's message
        self.lengths: Sequence[int] = []  # tokens of every example
        self.signalled = False  # whether this process was told to stop
        self.handlers: dict = {}
        self.bar: tqdm | None = None
        if options.resume:
            self._load()
        self.running_state = self._state_of_running()

    # the order of batches, and what is random in them

    def batches(self, users: Sequence[str], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
        """Yield batches of `size` prompts' numbers from where the run stands to its end, in an order that seed and
        epoch decide. users, lengths: whose each prompt is, and how many tokens it has with its responses."""
        self.lengths = lengths
        steps_per_epoch = math.ceil(len(users) / size)
        order_of, order = -1, []
        quiet = not distributed.is_main_process()
        self.bar = tqdm(total=self.total, initial=self.step, desc=self.folder.name, unit="step", disable=quiet)
        while self.step < self.total:
            self.epoch = self.step // steps_per_epoch
            if order_of != self.epoch:
                order_of = self.epoch
                order = epoch_order(lengths, size, self.options.seed, self.epoch)
            batch = order[self.step % steps_per_epoch]
            self.users = [users[i] for i in batch]
            yield batch
            self.step += 1
            self.running_state = self._state_of_running()
            self.bar.update()
            stop = distributed.all_reduce_max(int(self.signalled))  # a signal to one rank stops all after one step
            if stop and self.step < self.total:
                raise Interrupted
            if self.step % self.options.checkpoint_every == 0 and self.step < self.total:
                self.save()
        self.bar.close()

    def micro_batches(self, batch: list[int]) -> list[MicroBatch]:
        """This rank's examples of a batch, in as many forwards as `forward_tokens` asks for, similar lengths together.

        A rank without examples gets one of weight 0. Where weights are sharded a forward takes all ranks, so all get
        equally many micro-batches.
        """
        own = batch[distributed.rank() :: distributed.world_size()]
        groups = batches([self.lengths[i] for i in own], self.options.forward_tokens)
        micro_batches = [MicroBatch([own[k] for k in group], 1 / len(batch)) for group in groups]
        wanted = distributed.all_reduce_max(len(micro_batches)) if distributed.is_sharded() else 1
        return micro_batches + [MicroBatch(batch[:1], 0.0)] * (wanted - len(micro_batches))

    def seed(self, indices: Sequence[int]) -> None:
        """Let what is random in a forward (dropout) depend on seed, step and the forward's examples alone."""
        torch.manual_seed(mixed_seed(self.options.seed, self.step, *indices))

    def generator(self, *example: int) -> torch.Generator:
        """The source of NoDO's noise in this step: for one example, or (without one) for all alike."""
        return torch.Generator(self.device).manual_seed(mixed_seed(self.options.seed, self.step, -1, *example))

    def require_finite(self, name: str, values: Tensor) -> None:
        """Errors: NotFiniteError, on every rank, where any rank's values are not finite."""
        if distributed.all_reduce_max(int(not values.isfinite().all())):
            raise NotFiniteError(f"{name}: not finite")

    # the log and the best state

    def should_log(self) -> bool:
        return self.step % self.options.log_every == 0 or self.step + 1 == self.total

    def log(self, values: Mapping[str, float | Tensor]) -> None:
        """Write a line of metrics.jsonl, and show loss and accuracy beside the progress bar."""
        numbers = {k: float(v.detach() if isinstance(v, Tensor) else v) for k, v in values.items()}
        if self.bar is not None:
            self.bar.set_postfix({k: f"{v:.3f}" for k, v in numbers.items() if k in ("loss", "accuracy")})
        self._write({"step": self.step, **{k: round(v, 6) for k, v in numbers.items()}})

    def should_validate(self) -> bool:
        done = self.step + 1
        return done % self.options.validate_every == 0 or done == self.total

    def start_from(self, measure: str, value: float) -> None:
        """Log a validation of the weights before the first step, as step -1: what training has to beat."""
        self.start = value
        self._log_validation(-1, measure, value)

    def keep_if_best(self, measure: str, value: float) -> None:
        """Log a validation, and keep the current weights if no earlier ones were better."""
        done = self.step + 1
        self._log_validation(self.step, measure, value, " (best)" if value > self.best else "")
        self.measure = measure
        if value > self.best:
            self.best, self.best_step = value, done
            self.best_weights = {k: v.clone() for k, v in self._weights().items()}

    def finish(self, save: Callable[[Path, dict[str, Tensor], dict], object]) -> None:
        """Put the best state back, give it to `save` with the run's folder and how the run ended, and drop the
        checkpoints."""
        if self.best_weights:
            self._set_weights(self.best_weights)
        weights = self._weights()
        if distributed.is_main_process():
            finished = {"steps": self.total, "best_step": self.best_step, "best": self.best, "measure": self.measure}
            finished |= {} if self.start is None else {"start": self.start}
            save(self.folder, weights, finished)
            checkpoints.replace_text(self.folder / "finished.json", json.dumps(finished, indent=1) + "\n")
            checkpoints.discard(self.folder)
            if self.start is not None and self.best <= self.start:
                print(f"{self.folder}: on validation, no state that was looked at is above step 0 ({self.start:.4f})")
        distributed.barrier()

    def _log_validation(self, step: int, measure: str, value: float, note: str = "") -> None:
        self._write({"step": step, "validation": round(value, 6), "measure": measure})
        if distributed.is_main_process():
            tqdm.write(f"step {step + 1}: {measure} on validation {value:.4f}{note}")

    def _write(self, line: dict) -> None:
        if distributed.is_main_process():
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    # signals, and errors that stop a run

    def __enter__(self) -> Run:
        if threading.current_thread() is threading.main_thread():
            self.handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _on_signal(self, number: int, _) -> None:
        if self.signalled:  # twice: at once
            raise KeyboardInterrupt
        self.signalled = True
        print("stopping after this step; again, to stop at once", file=sys.stderr)

    def __exit__(self, kind, error, trace) -> None:
        for number, before in self.handlers.items():
            signal.signal(number, before)
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
            raise DataError(f"{self.folder}: interrupted at step {self.step}; go on with --resume") from None
        if isinstance(error, KeyboardInterrupt):
            raise DataError(f"{self.folder}: stopped at once; go on with --resume, from the last checkpoint") from None

    # checkpoints

    def save(self) -> None:
        """Write a checkpoint: everything that the rest of the run depends on. All ranks take part, one writes."""
        tensors = {
            "weights": self._weights(),
            "best": self.best_weights,
            "optimizer": checkpoints.optimizer_tensors(self.model, self.optimizer),
        }
        if not distributed.is_main_process():
            return
        best = None if self.best_step is None else self.best
        state = dict(step=self.step, start=self.start, best=best, best_step=self.best_step, running=self.running_state)
        checkpoints.save(self.folder, tensors, state | {"scaler": self.scaler.state_dict()})

    def _load(self) -> None:
        checkpoints.load(self.folder, self._restore)  # none: it was killed before its first, and starts anew
        log = self.folder / "metrics.jsonl"
        if distributed.is_main_process() and log.exists():  # lines written after the checkpoint are written again
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")] if self.step else []
            kept = [line for line in whole if json.loads(line)["step"] < self.step]
            checkpoints.replace_text(log, "".join(kept))

    def _restore(self, tensors: dict, state: dict) -> None:
        """Take over a checkpoint. Errors: whatever says that it is not one of this run."""
        step, best, best_step, running = (state[name] for name in ("step", "best", "best_step", "running"))
        self._set_weights(tensors["weights"])
        checkpoints.set_optimizer(self.model, self.optimizer, tensors["optimizer"])
        self.start, self.best_weights = state["start"], tensors["best"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.best_step = step, -math.inf if best is None else best, best_step
        if self.running is not None:
            self.running.load_state_dict(running)

    def _state_of_running(self) -> dict | None:
        return None if self.running is None else self.running.state_dict()

    def _weights(self) -> dict[str, Tensor]:
        """What trains, put together from all ranks."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return {name: distributed.full_tensor(p.detach()) for name, p in trained.items()}

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if trained.keys() != weights.keys():
            raise ValueError(f"weights of other layers ({len(weights)} there, {len(trained)} here)")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(distributed.distribute_like(weights[name], parameter))
