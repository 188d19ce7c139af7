"""What a run's folder says of itself: how it was made, from what, and how its model reads prompts.

In: the folder of a run. Out: the content of its `config.json`, which is read with the care that a stranger's file needs
and checked as a command line is; or one clear error.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

from hanorec import __version__
from hanorec.errors import DataError
from hanorec.training.command_line import read_options
from hanorec.training.dpo_options import DPOOptions
from hanorec.training.options import SFTOptions, complete_sft

MODEL = "model"  # the folder of a run that holds the model or adapter
NOT_KEPT = {"resume", "overwrite", "cache", "changed_run"}  # options that are no property of a run
FROM_SFT = {field.name for field in fields(SFTOptions)} - {field.name for field in fields(DPOOptions)}


def is_run(name: str | Path) -> bool:
    """Whether this is the folder of a run, finished or not, and no checkpoint of a model."""
    try:
        return "kind" in json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def read_json(path: Path) -> dict:
    """A file of a run. Errors: DataError where it cannot be read or is no mapping."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path.parent}: not a run's folder, or damaged ({path.name}: {error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path.parent}: not a run's folder, or damaged ({path.name}: no mapping)")
    return content


def read_config(folder: str | Path, kind: str | None = None) -> dict:
    """The config.json of a finished run, of a kind ("sft" or "dpo") if given. Errors: DataError where it is not one."""
    config = read_json(path := Path(folder) / "config.json")
    actual = config.get("kind")
    if actual not in ("sft", "dpo"):
        raise DataError(f"{folder}: not a run's folder ({path.name}: its kind is {actual!r})")
    if kind and actual != kind:
        raise DataError(f"{folder}: a run of kind {actual!r}, not {kind!r}")
    if not (Path(folder) / "finished.json").is_file():
        raise DataError(f"{folder}: this run is not finished; go on with --resume")
    return config


def run_options(folder: str | Path, kind: str | None = None) -> SFTOptions | DPOOptions:
    """The options of a finished run, checked as a command line is; of a DPO run, what its model is loaded by (sft, data
    and dtype), so that those of older versions are read.

    Errors: DataError as `read_config` raises it, and where an option is missing or has a value that it does not take.
    """
    config, path = read_config(folder, kind), Path(folder) / "config.json"
    options: type[SFTOptions | DPOOptions] = DPOOptions if config["kind"] == "dpo" else SFTOptions
    names = {field.name for field in fields(options)} - NOT_KEPT
    if config["kind"] == "dpo":
        names = {"sft", "data", "dtype"}
    if (missing := names - config.keys()) and config.get("version") == __version__:
        raise DataError(f"{path}: has no {', '.join(sorted(missing))}")
    return read_options(options, {name: config[name] for name in names & config.keys()}, path)


def sft_options(folder: str | Path) -> SFTOptions:
    """How the model of a finished run reads prompts: the options of the SFT run that it is, or that it started from,
    with the run's own dataset. Errors: DataError as `run_options` raises it, and for a DPO run of version 0.2.0 that
    reads prompts otherwise than its SFT run."""
    own = run_options(folder)
    if isinstance(own, DPOOptions):
        start = start_of(folder)
        config, options = read_config(folder), sft_options(start)
        for name in FROM_SFT:  # version 0.2.0 let stage 2 differ from stage 1
            if config.get(name, getattr(options, name)) != getattr(options, name):
                raise DataError(f"{folder}: has another {name} than its SFT run, which version 0.2.0 alone can read")
        return replace(options, data=own.data)
    try:
        complete_sft(own)
    except DataError as error:
        raise DataError(f"{Path(folder) / 'config.json'}: {error}") from error
    return own


def but_for_the_seed(folder: str | Path) -> tuple[str, int]:
    """What else than its seed a finished run was made with, as text, and the seed: two runs with one text differ by
    their seeds alone. What it started from counts by its own settings, for that has a seed, too."""
    config = {key: value for key, value in read_config(folder).items() if key not in ("output", "made_from")}
    seed, start = config.pop("seed", None), start_of(folder)
    if is_run(start):
        config["sft" if config["kind"] == "dpo" else "backbone"] = but_for_the_seed(start)[0]
    return json.dumps(config, sort_keys=True), seed


def start_of(folder: str | Path) -> str:
    """What a finished run was made from: an SFT run, a checkpoint's folder, or a name (tiny, or the hub's). A folder is
    where it was then, or else beside the run.

    Errors: DataError where it is in neither place.
    """
    own = run_options(folder)
    name = own.sft if isinstance(own, DPOOptions) else own.backbone
    from_hub = "commit" in read_config(folder).get("made_from", {}).get("start", {})
    if name == "tiny" or from_hub or Path(name).exists():
        return name
    beside = Path(folder).resolve().parent / Path(name).name
    if beside.exists():
        return str(beside)
    if isinstance(own, DPOOptions) or "made_from" in read_config(folder):
        raise DataError(f"{folder}: was made from {name}, which is not there any more; put it back, or beside {folder}")
    return name
