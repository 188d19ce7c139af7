"""A run's folder: may it be used, how was it made, is it finished.

In: the options of a training script. Out: the folder with its `config.json`, or one clear error. The first process
alone looks and writes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hanorec import distributed
from hanorec.errors import DataError
from hanorec.training import checkpoints


def check_output(options) -> None:
    """Refuse, before any work is done, an output folder that may not be used.

    Errors: DataError where it is not empty and neither --overwrite nor --resume is given, where --overwrite would
    replace what is no run, or where --resume meets no run or a finished one.
    """
    folder = Path(options.output)
    if not distributed.is_main_process():
        return
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
    if distributed.is_main_process():  # the folder appears with its config.json, or not at all
        fresh = folder.with_name(f"{folder.name}.new")
        for old in (fresh, folder):
            shutil.rmtree(old, ignore_errors=True)
        fresh.mkdir(parents=True)
        checkpoints.replace_text(fresh / "config.json", json.dumps(config, indent=1) + "\n")
        fresh.rename(folder)
    distributed.barrier()


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
