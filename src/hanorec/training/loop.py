"""What both training loops share: a run's folder, its steps, its checkpoints, its log, its best state.

In: a model, its trainable parameters, the options. Out: a run folder that says how it was made (`config.json`),
what happened (`metrics.jsonl`) and, while it is unfinished, where it stands (`checkpoints.py`). The loops themselves
are in `train_sft.py` and `train_dpo.py`.
"""

from __future__ import annotations

import json
import math
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from hanorec import distributed
from hanorec.errors import DataError
from hanorec.models.scoring import batches
from hanorec.training import checkpoints


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def cosine_schedule(optimizer: torch.optim.Optimizer, total: int, warmup: float) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over a share of the steps, then half a cosine down to zero."""
    rising = max(1, round(warmup * total))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def optimizer_for(model: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what trains; matrices decay, vectors do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type == "cuda" for p in trainable)
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=fused or None)


class Run:
    """One training run in its folder.

        with Run(options, model, optimizer, schedule, total=...) as run:
            for batch in run.steps(users, lengths):
                for part, share in run.parts(batch):    of the batch, this process's
                    run.backward(...)
                norm = run.update()             sums gradients over processes, clips them, steps
                run.log(loss=...)
                run.consider(validation)        validates when it is time, keeps the best state
            run.finish(save)

    Whatever is random in a step is a function of seed and step, so a run that was stopped and resumed ends as if it had
    not been. Stopped by a signal, it finishes its step; stopped so or by a loss that is not finite, it leaves a
    checkpoint and says how to go on.
    """

    def __init__(
        self, options, model: torch.nn.Module, optimizer, schedule, *, total: int, running=None, compute=torch.float32
    ):
        self.folder, self.options = Path(options.output), options
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.total, self.running = total, running  # running: its `scale`, if it has one, is part of the state
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=compute == torch.float16)  # else it does nothing
        self.step, self.epoch, self.best, self.best_step = 0, 0, -math.inf, None
        self.best_weights: dict[str, torch.Tensor] = {}
        self.users: list[str] = []  # of the batch at hand, for an error's message
        self.lengths: Sequence[int] = []  # of every example, in tokens
        self.asked, self.stopping = False, False  # to stop: by a signal to this process; agreed on by all
        self.handlers: dict = {}
        self.bar = None
        if options.resume:
            self._load()

    # the loop

    def steps(self, users: Sequence[str], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield batches of example numbers from where the run stands to its end, in an order that seed and epoch
        decide. users, lengths: of each example, whose it is and how many tokens it has."""
        self.lengths = lengths
        an_epoch = math.ceil(len(users) / self.options.batch_size)
        current, order = None, []
        self.bar = tqdm(
            total=self.total,
            initial=self.step,
            desc=self.folder.name,
            unit="step",
            disable=not distributed.is_main_process(),
        )
        while self.step < self.total:
            self.epoch = self.step // an_epoch
            if current != self.epoch:
                current = self.epoch
                order = epoch_order(lengths, self.options.batch_size, self.options.seed, current)
            batch = order[self.step % an_epoch]
            self.users = [users[i] for i in batch]
            yield batch
            self.step += 1
            self.bar.update()
            if self.stopping and self.step < self.total:
                raise Stopped
            if self.step % self.options.checkpoint_every == 0 and self.step < self.total:
                self.save()
        self.bar.close()

    def parts(self, batch: list[int]) -> list[tuple[list[int], float]]:
        """This process's share of a step's examples, in as many parts as `forward_tokens` asks for, similar lengths
        together; and of each part the share of the batch that it is.

        Where weights are sharded, a forward takes all processes: one that has fewer parts gets some of no weight.
        """
        own = batch[distributed.rank() :: distributed.world_size()]
        found = batches([self.lengths[i] for i in own], self.options.forward_tokens)
        parts = [([own[k] for k in part], len(part) / len(batch)) for part in found]
        if distributed.is_sharded():
            parts += [(batch[:1], 0.0)] * (distributed.all_reduce_max(len(parts)) - len(parts))
        return parts

    def seed(self, part: list[int]) -> None:
        """Let what is random in a forward (dropout) depend on seed, step and examples alone."""
        torch.manual_seed(_mixed(self.options.seed, self.step, *part))

    def generator(self, *example: int) -> torch.Generator:
        """NoDO's noise of this step: for one example, or (without one) for all alike."""
        return torch.Generator().manual_seed(_mixed(self.options.seed, self.step, -1, *example))

    def backward(self, loss: torch.Tensor) -> None:
        """Add a part's gradients to the step's."""
        self.scaler.scale(loss).backward()

    def update(self) -> torch.Tensor:
        """An optimizer step on the gradients of all processes; returns their norm before clipping."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # a process may have no share of a small batch
                parameter.grad = torch.zeros_like(parameter)
        asked = torch.tensor([float(self.asked)], device=self.device)
        distributed.all_reduce_sum([*(p.grad for p in trained), asked])
        self.stopping = bool(asked)  # a signal that comes later stops all after the next step
        self.scaler.unscale_(self.optimizer)
        finite = not self.scaler.is_enabled()  # float16 overflows now and then: its scaler passes over that step
        norm = torch.nn.utils.clip_grad_norm_(trained, self.options.max_grad_norm, error_if_nonfinite=finite)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad()
        return distributed.full_tensor(norm)

    def log(self, **values: float) -> None:
        """A line of metrics.jsonl every `log_every` steps, and the progress bar."""
        numbers = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
        self.bar.set_postfix({k: f"{v:.3f}" for k, v in numbers.items() if k in ("loss", "accuracy")})
        if self.step % self.options.log_every == 0 or self.step + 1 == self.total:
            self._write({"step": self.step, **{k: round(v, 6) for k, v in numbers.items()}})

    def consider(self, measure: Callable[[], tuple[str, float]]) -> None:
        """Validate if it is time (every `validate_every` steps and at the end) and keep the state if it is best."""
        done = self.step + 1
        if done % self.options.validate_every and done != self.total:
            return
        name, value = measure()
        self._write({"step": self.step, "validation": round(value, 6), "measure": name})
        if distributed.is_main_process():
            tqdm.write(f"step {done}: {name} on validation {value:.4f}" + (" (best)" if value > self.best else ""))
        if value > self.best:
            self.best, self.best_step = value, done
            self.best_weights = {k: v.clone() for k, v in self._weights().items()}

    def finish(self, save: Callable[[Path, dict[str, torch.Tensor]], object]) -> None:
        """Put the best state back, give it to `save` with the run's folder and drop the checkpoint."""
        if self.best_weights:
            self._set_weights(self.best_weights)
        weights = self._weights()
        if distributed.is_main_process():
            save(self.folder, weights)
            finished = {"steps": self.total, "best_step": self.best_step, "best": self.best}
            checkpoints.replace_text(self.folder / "finished.json", json.dumps(finished, indent=1) + "\n")
            checkpoints.discard(self.folder)
        distributed.barrier()

    def __enter__(self) -> Run:
        if threading.current_thread() is threading.main_thread():
            self.handlers = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _stop(self, number: int, _) -> None:
        if self.asked:  # twice: at once
            raise KeyboardInterrupt
        self.asked = True
        print("stopping after this step; again, to stop at once", file=sys.stderr)

    def __exit__(self, kind, error, trace) -> None:
        for number, before in self.handlers.items():
            signal.signal(number, before)
        if self.bar is not None:
            self.bar.close()
        if isinstance(error, (ValueError, RuntimeError)) and "finite" in str(error):  # the losses' and clipping's words
            self.save()
            raise DataError(
                f"{self.folder}: stopped at step {self.step}: {error}. Its pairs are those of the users "
                f"{', '.join(self.users)}. The last good state (before that step) is in "
                f"{self.folder / checkpoints.NEWEST}"
            ) from error
        if isinstance(error, Stopped):
            self.save()
            raise DataError(f"{self.folder}: interrupted at step {self.step}; go on with --resume") from None
        if isinstance(error, KeyboardInterrupt):
            raise DataError(f"{self.folder}: stopped at once; go on with --resume, from the last checkpoint") from None

    # what is on disk

    def _write(self, line: dict) -> None:
        if distributed.is_main_process():
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _weights(self) -> dict[str, torch.Tensor]:
        """What trains, put together."""
        return {
            name: distributed.full_tensor(p.detach()) for name, p in self.model.named_parameters() if p.requires_grad
        }

    def _set_weights(self, weights: dict[str, torch.Tensor]) -> None:
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if trained.keys() != weights.keys():
            raise ValueError(f"weights of other layers ({len(weights)} there, {len(trained)} here)")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(distributed.distribute_like(weights[name], parameter))

    def save(self) -> None:
        """Write a checkpoint: everything that the rest of the run depends on."""
        tensors = {
            "weights": self._weights(),
            "best": self.best_weights,
            "optimizer": checkpoints.optimizer_tensors(self.model, self.optimizer),
        }
        if not distributed.is_main_process():
            return
        best = None if self.best_step is None else self.best
        scale, scaler = getattr(self.running, "scale", None), self.scaler.state_dict()
        state = dict(step=self.step, best=best, best_step=self.best_step, scale=scale, scaler=scaler)
        checkpoints.save(self.folder, tensors, state)

    def _load(self) -> None:
        checkpoints.load(self.folder, self._use)  # none: it was killed before its first, and starts anew
        log = self.folder / "metrics.jsonl"
        if distributed.is_main_process() and log.exists():  # lines written after the checkpoint are written again
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < self.step]
            checkpoints.replace_text(log, "".join(kept))

    def _use(self, tensors: dict, state: dict) -> None:
        """Take over a checkpoint. Errors: whatever says that it is not one of this run."""
        step, best, best_step, scale = (state[name] for name in ("step", "best", "best_step", "scale"))
        self._set_weights(tensors["weights"])
        checkpoints.set_optimizer(self.model, self.optimizer, tensors["optimizer"])
        self.best_weights = tensors["best"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.best_step = step, -math.inf if best is None else best, best_step
        if hasattr(self.running, "scale"):
            self.running.scale = scale
        for group, rate in zip(self.optimizer.param_groups, self.schedule.base_lrs):
            group["lr"] = rate * self.schedule.lr_lambdas[0](self.step)
        self.schedule.last_epoch = self.step


class Stopped(Exception):
    """Raised between two steps, where a signal asked the run to stop."""


def _mixed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence([number % 2**32 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)


def epoch_order(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """All examples in batches of `size` (the last one in what is left), in an order that seed and epoch decide. So that
    little is padded, every 50 batches' worth of the shuffled examples is sorted by length before it is cut."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    length = np.asarray(lengths)
    for start in range(0, len(order), 50 * size):
        some = order[start : start + 50 * size]
        order[start : start + 50 * size] = some[np.argsort(length[some], kind="stable")]
    found = [order[at : at + size].tolist() for at in range(0, len(order), size)]
    return [found[k] for k in generator.permutation(len(found))]


def total_steps(examples: int, options) -> int:
    """How many optimizer steps a run has: `epochs` passes over the examples, at most `max_steps`."""
    steps = max(1, math.ceil(options.epochs * math.ceil(examples / options.batch_size)))
    return min(steps, options.max_steps or steps)
