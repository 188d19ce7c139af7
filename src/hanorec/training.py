"""What both training loops share: a run's folder, its steps, its checkpoints, its log, its best state.

In: a model, its trainable parameters, the options. Out: a run folder that says how it was made (`config.json`),
what happened (`metrics.jsonl`) and, while it is unfinished, where it stands (`checkpoint/`). The loops themselves
are in `train_sft.py` and `train_dpo.py`.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from hanorec.catalog import DataError
from hanorec.scoring import batches

UNFINISHED = "checkpoint"


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn what a user can mend into one line on stderr and exit status 2; warnings into one line each."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' own affairs
    try:
        yield
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


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
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate)


class Run:
    """One training run in its folder.

        with Run(options, model, optimizer, schedule, total=...) as run:
            for batch in run.steps(users):
                ...
                run.log(loss=...)
                run.consider(validation)        validates when it is time, keeps the best state
            run.finish(save)

    Interrupted or stopped by a loss that is not finite, it leaves a checkpoint and says how to go on.
    """

    def __init__(self, options, model: torch.nn.Module, optimizer, schedule, *, total: int, running=None):
        self.folder, self.options = Path(options.output), options
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.total, self.running = total, running  # running: its `scale`, if it has one, is part of the state
        self.step, self.epoch, self.best, self.best_step = 0, 0, -math.inf, None
        self.best_weights: dict[str, torch.Tensor] = {}
        self.generator = torch.Generator().manual_seed(options.seed)  # NoDO's noise, a stream of its own
        self.users: list[str] = []  # of the batch at hand, for an error's message
        self.lengths: Sequence[int] = []  # of every example, in tokens
        self.bar = None
        if options.resume:
            self._load()

    # the loop

    def steps(self, users: Sequence[str], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield batches of example numbers from where the run stands to its end, in an order that seed and epoch
        decide. users, lengths: of each example, whose it is and how many tokens it has."""
        self.lengths = lengths
        an_epoch = math.ceil(len(users) / self.options.batch_size)
        current = None
        self.bar = tqdm(total=self.total, initial=self.step, desc=self.folder.name, unit="step")
        while self.step < self.total:
            self.epoch = self.step // an_epoch
            if current != self.epoch:
                current, order = (
                    self.epoch,
                    epoch_order(lengths, self.options.batch_size, self.options.seed, self.epoch),
                )
            batch = order[self.step % an_epoch]
            self.users = [users[i] for i in batch]
            yield batch
            self.step += 1
            self.bar.update()
            if self.step % self.options.checkpoint_every == 0 and self.step < self.total:
                self.save()
        self.bar.close()

    def parts(self, batch: list[int]) -> list[list[int]]:
        """A step's examples in as many parts as `forward_tokens` asks for, similar lengths together."""
        found = batches([self.lengths[i] for i in batch], self.options.forward_tokens)
        return [[batch[k] for k in part] for part in found]

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
        tqdm.write(f"step {done}: {name} on validation {value:.4f}" + (" (best)" if value > self.best else ""))
        if value > self.best:
            self.best, self.best_step = value, done
            self.best_weights = {k: v.clone() for k, v in self._weights().items()}

    def finish(self, save: Callable[[Path], object]) -> None:
        """Put the best state back, save it into the run's folder and drop the checkpoint."""
        if self.best_weights:
            self._set_weights(self.best_weights)
        save(self.folder)
        self._write_json("finished.json", {"steps": self.total, "best_step": self.best_step, "best": self.best})
        shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.bar is not None:
            self.bar.close()
        if isinstance(error, (ValueError, RuntimeError)) and "finite" in str(error):  # the losses' and clipping's words
            self.save()
            raise DataError(
                f"{self.folder}: stopped at step {self.step}: {error}. Its pairs are those of the users "
                f"{', '.join(self.users)}. The last good state (before that step) is in {self.folder / UNFINISHED}"
            ) from error
        if isinstance(error, KeyboardInterrupt):
            self.save()
            raise DataError(f"{self.folder}: interrupted at step {self.step}; go on with --resume") from None

    # what is on disk

    def _write(self, line: dict) -> None:
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _write_json(self, name: str, value: dict) -> None:
        (self.folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def _set_weights(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(weights[name])

    def save(self) -> None:
        """Write checkpoint/ anew, whole or not at all: it is prepared beside and renamed."""
        fresh = self.folder / f"{UNFINISHED}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in self._weights().items()}, fresh / "weights.safetensors")
        if self.best_weights:
            save_file(self.best_weights, fresh / "best.safetensors")
        torch.save(
            {
                "optimizer": self.optimizer.state_dict(),
                "torch": torch.get_rng_state(),
                "noise": self.generator.get_state(),
            },
            fresh / "optimizer.pt",
        )
        state = dict(
            step=self.step, best=self.best, best_step=self.best_step, scale=getattr(self.running, "scale", None)
        )
        (fresh / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")
        old = self.folder / f"{UNFINISHED}.old"
        shutil.rmtree(old, ignore_errors=True)
        if (self.folder / UNFINISHED).exists():
            (self.folder / UNFINISHED).rename(old)
        fresh.rename(self.folder / UNFINISHED)
        shutil.rmtree(old, ignore_errors=True)

    def _load(self) -> None:
        folder = next((f for f in (self.folder / UNFINISHED, self.folder / f"{UNFINISHED}.old") if f.is_dir()), None)
        if folder is not None:  # else it was killed before its first checkpoint, and starts anew
            self._load_from(folder)
        log = self.folder / "metrics.jsonl"
        if log.exists():  # lines written after the checkpoint are written again
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < self.step]
            log.write_text("".join(kept), encoding="utf-8")

    def _load_from(self, folder: Path) -> None:
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            self._set_weights(load_file(folder / "weights.safetensors"))
            tensors = torch.load(folder / "optimizer.pt", weights_only=True)
            self.optimizer.load_state_dict(tensors["optimizer"])
            if (folder / "best.safetensors").exists():
                self.best_weights = load_file(folder / "best.safetensors")
        except Exception as error:
            raise DataError(f"{folder}: not a whole checkpoint of this run: {error}") from error
        torch.set_rng_state(tensors["torch"])
        self.generator.set_state(tensors["noise"])
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
        if hasattr(self.running, "scale"):
            self.running.scale = state["scale"]
        for group, rate in zip(self.optimizer.param_groups, self.schedule.base_lrs):
            group["lr"] = rate * self.schedule.lr_lambdas[0](self.step)
        self.schedule.last_epoch = self.step


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


def check_output(options) -> None:
    """Refuse, before any work is done, an output folder that may not be used.

    Errors: DataError where it is not empty and neither --overwrite nor --resume is given, where --overwrite would
    replace what is no run, or where --resume meets no run or a finished one.
    """
    folder = Path(options.output)
    if options.resume:
        if not (folder / "config.json").is_file():
            raise DataError(f"{folder}: nothing to resume (no config.json)")
        if (folder / "finished.json").is_file():
            raise DataError(f"{folder}: this run is finished; nothing to resume")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not options.overwrite:
            raise DataError(f"{folder}: exists and is not empty; give --overwrite to replace it or --resume to go on")
        if not (folder / "config.json").is_file():
            raise DataError(f"{folder}: is not a run's folder (no config.json), so --overwrite leaves it alone")


def open_run(options, kind: str) -> None:
    """Make the run's folder and write its config.json, or check that the run to resume had the same settings.

    Errors: DataError as `check_output` raises it, and where --resume meets a run of other settings.
    """
    check_output(options)
    folder = Path(options.output)
    config = {"kind": kind} | {k: v for k, v in vars(options).items() if k not in ("resume", "overwrite", "cache")}
    if options.resume:
        before = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        changed = [f"{k}: {before.get(k)!r} then, {v!r} now" for k, v in config.items() if before.get(k) != v]
        if changed:
            raise DataError(f"{folder}: was started with other settings ({'; '.join(changed)})")
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def read_config(folder: str | Path, kind: str | None = None) -> dict:
    """The config.json of a finished run, of a kind ("sft" or "dpo") if given. Errors: DataError where it is not one."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = config["kind"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: not a run's folder ({path.name}: {error})") from error
    if kind and found != kind:
        raise DataError(f"{folder}: a run of kind {found!r}, not {kind!r}")
    if not (Path(folder) / "finished.json").is_file():
        raise DataError(f"{folder}: this run is not finished; go on with --resume")
    return config
