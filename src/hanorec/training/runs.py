"""A run's folder, from the first look to the finished model: may it be used, how was it made, what came out.

In: the options of a training script, or a folder. Out: the folder with its `config.json`; a finished run's model as a
`Backbone` with its config; or one clear error. Rank 0 alone writes.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hanorec import __version__, distributed, files
from hanorec.errors import DataError
from hanorec.models.backbone import TILES, Backbone, load_backbone
from hanorec.models.checkpoint import check_adapter
from hanorec.training.digests import (
    changed_files,
    check_run,
    data_digests,
    listed,
    start_digests,
    warn_of_changed_data,
)
from hanorec.training.dpo_options import DPOOptions
from hanorec.training.model_card import write_model_card
from hanorec.training.options import SFTOptions, cache_folder
from hanorec.training.run_config import (
    MODEL,
    NOT_KEPT,
    is_run,
    read_config,
    read_json,
    run_options,
    sft_options,
    start_of,
)

# What may change on --resume: how many tokens are in memory at a time, and when something is written down.
OF_MEMORY, OF_LOGGING = {"forward_tokens", "gradient_checkpointing"}, {"checkpoint_every", "log_every"}
Options = SFTOptions | DPOOptions


def check_output(options: Options) -> None:
    """Refuse, before any work is done, an output folder that may not be used.

    Errors: DataError where it is no folder, holds the cache, or is not empty and neither --overwrite nor --resume is
    given; where --overwrite would replace what is no run or what the new run starts from, where --resume meets no run
    or a finished one, or where another process trains in it.
    """
    folder, start = Path(options.output), _start(options)
    if not distributed.is_main_process():
        return
    files.check_new_folder(folder)
    if (cache := cache_folder(options.cache, options.output)).resolve().is_relative_to(folder.resolve()):
        raise DataError(f"--cache {cache}: lies in the run's folder; give one outside of it")
    if folder.exists() and folder.resolve() == Path(start).resolve():
        raise DataError(f"--output {folder}: is what this run starts from; give another folder")
    if options.resume:
        if not (folder / "config.json").is_file():
            raise DataError(f"{folder}: nothing to resume (no config.json)")
        if (folder / "finished.json").is_file():
            files.remove_leftovers(folder, "checkpoint*", f"{MODEL}.new", f"{MODEL}/.tmp*")
            raise DataError(f"{folder}: this run is finished; nothing to resume")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not options.overwrite:
            raise DataError(f"{folder}: exists and is not empty; give --overwrite to replace it or --resume to go on")
        if not (folder / "config.json").is_file():
            raise DataError(f"{folder}: is not a run's folder (no config.json), so --overwrite leaves it alone")
    if (folder / "config.json").is_file():
        files.lock(folder)  # and again when training begins
        files.unlock(folder)


def open_run(options: Options, data: Path) -> None:
    """Make the run's folder and write its config.json, or check that the run to resume is this one. Then the folder is
    locked: this process alone trains in it.

    data: the folder of the rows and titles that it learns from. Warns where this dataset has changed since the run that
    it starts from was made. Errors: DataError as `check_output` raises it, and where --resume meets a run of other
    settings or of another version, or one whose dataset or start has changed since.
    """
    check_output(options)
    folder, start = Path(options.output).resolve(), _start(options)  # a link stays a link to what is written
    kind = "dpo" if isinstance(options, DPOOptions) else "sft"
    config: dict[str, Any] = {"kind": kind, "version": __version__}
    config |= {k: v for k, v in vars(options).items() if k not in NOT_KEPT}
    if options.resume:
        _check_same_run(folder, config, start, data)
        if distributed.is_main_process():
            files.lock(folder)
            known = read_json(folder / "config.json")
            files.replace_text(folder / "config.json", json.dumps(known | config, indent=1) + "\n")
        return
    if is_run(start):
        warn_of_changed_data(start, data)
    config["made_from"] = {"start": start_digests(start), "data": data_digests(data)}
    if distributed.is_main_process():  # the folder appears with its config.json, or not at all
        fresh = folder.with_name(f".{folder.name}.new")
        fresh.mkdir(parents=True, exist_ok=True)
        files.lock(fresh)  # two that begin at once meet here
        if (folder / "config.json").is_file():
            files.lock(folder)
        files.remove(folder)
        files.replace_text(fresh / "config.json", json.dumps(config, indent=1) + "\n")
        fresh.rename(folder)
        files.to_disk(folder.parent)
    distributed.barrier()


def _start(options: Options) -> str:
    """What a run starts from: the SFT run of stage 2, the checkpoint or SFT run of stage 1."""
    return options.sft if isinstance(options, DPOOptions) else options.backbone


def _check_same_run(folder: Path, config: dict, start: str, data: Path) -> None:
    before = read_json(folder / "config.json")
    changed = {
        k: f"{k}: {before.get(k)!r} then, {v!r} now" for k, v in config.items() if before.get(k) != v and k != "output"
    }
    if settings := [text for name, text in changed.items() if name not in OF_MEMORY | OF_LOGGING]:
        raise DataError(f"{folder}: was started with other settings ({'; '.join(settings)})")
    known = before.get("made_from", {})
    for place, name, now in (("data", data, data_digests(data)), ("start", start, start_digests(start))):
        if names := changed_files(known.get(place, {}), now):
            raise DataError(f"{folder}: {listed(names)} of {name} changed since this run was started; it cannot go on")
    if changed:
        bits = "; its sums may differ in their last bits" if changed.keys() & OF_MEMORY else ""
        warnings.warn(f"{folder}: goes on with {', '.join(changed.values())}{bits}", stacklevel=3)


def load_start(
    name: str, *, dtype: str = "auto", views: str = "one", remote_code: bool = False, changed_run: bool = False
) -> Backbone:
    """What SFT starts from: a checkpoint, or the model of a finished SFT run, its adapter merged into the weights.

    name, dtype, views, remote_code: as in `load_backbone`, or name the run's folder. changed_run: as in `check_run`.
    Errors: DataError as `load_backbone` and `check_run` raise it, where the run is none of SFT or not finished, or its
    adapter is of another backbone.
    """
    if not is_run(name):
        return load_backbone(name, dtype=dtype, views=views, remote_code=remote_code)
    read_config(name, "sft")
    own = sft_options(name)
    check_run(name, changed_run=changed_run)
    backbone = _load_model(Path(name), dtype=dtype, views=views, remote_code=remote_code)
    tiles = any(hasattr(backbone.processor.image_processor, setting) for setting in TILES)
    whole = not (Path(name) / MODEL / "adapter_config.json").is_file()
    if whole and tiles and views == "many" and own.image_views == "one":
        raise DataError(f"--image-views many: {name} was trained whole on images as one view, and keeps to it")
    return backbone


def load_sft(
    folder: str | Path, *, dtype: str | None = None, remote_code: bool = False, changed_run: bool = False
) -> tuple[Backbone, SFTOptions]:
    """The SFT model of a finished run, its adapter merged into the weights, and how it was trained.

    dtype: precision of the weights, as in `load_backbone` (None: as in the SFT run). remote_code: whether a
    checkpoint's Python files may run; what the run's config says of it is not trusted. changed_run: as in `check_run`.
    Errors: DataError as `load_start` raises it.
    """
    read_config(folder, "sft")
    sft = sft_options(folder)
    how: Any = {"dtype": dtype or sft.dtype, "views": sft.image_views, "remote_code": remote_code}
    return load_start(str(folder), changed_run=changed_run, **how), sft


def load_run(
    folder: str | Path, *, remote_code: bool = False, changed_run: bool = False
) -> tuple[Backbone, SFTOptions]:
    """The model of a finished run of either kind, and how it reads prompts (`sft_options`).

    remote_code, changed_run: as in `load_sft`. Errors: DataError as `check_run` and `load_backbone` raise it, and where
    an adapter does not fit.
    """
    own, sft = run_options(folder), sft_options(folder)
    check_run(folder, changed_run=changed_run)
    how = {"dtype": own.dtype, "views": sft.image_views, "remote_code": remote_code}
    return _load_model(Path(folder), **how), sft


def _load_model(folder: Path, **how: Any) -> Backbone:
    """The model of a finished run; the adapter of an SFT run is merged. how: arguments of `load_backbone`."""
    model = folder / MODEL
    if not (model / "adapter_config.json").is_file():
        return load_backbone(str(model), **how)
    start, config = start_of(folder), read_config(folder)
    if is_run(start):
        backbone = _load_model(Path(start), **how)
    else:
        commit = config.get("made_from", {}).get("start", {}).get("commit")
        backbone = load_backbone(start, commit=commit, **how)
    backbone.model = _with_adapter(backbone, model, start).eval()
    if config["kind"] == "sft":
        backbone.model = backbone.model.merge_and_unload().eval()
    return backbone


def save_model(backbone: Backbone, folder: Path, weights: dict[str, Tensor], finished: dict) -> None:
    """Write the model, or its adapter alone, into a run's folder in Hugging Face or PEFT format, with a model card.
    `model/` appears whole and on the disk, or not at all.

    weights: those that trained, put together from all ranks. finished: how training ended, for the card.
    """
    model = folder / f"{MODEL}.new"
    files.remove(model)
    try:
        _save_weights(backbone, model, weights)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        write_model_card(model, folder, config, finished)
        files.replace_folder(model, folder / MODEL)
    finally:
        files.remove(model)


def _save_weights(backbone: Backbone, model: Path, weights: dict[str, Tensor]) -> None:
    state = {"state_dict": weights} if distributed.is_sharded() else {}
    backbone.model.save_pretrained(model, **state)
    if not isinstance(backbone.model, PeftModel):
        backbone.processor.save_pretrained(model)
        return
    path = model / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"].sort()  # PEFT writes a set, in another order every time
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _with_adapter(backbone: Backbone, folder: Path, base: str) -> PeftModel:
    check_adapter(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it would say of missing layers is said below
            model = PeftModel.from_pretrained(backbone.model, str(folder))
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            missing = set(file.keys()) ^ set(get_peft_model_state_dict(model, save_embedding_layers=False))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{folder}: its adapter does not fit {base}: {str(error).splitlines()[0]}") from error
    if missing:
        examples = ", ".join(sorted(missing)[:2])
        raise DataError(f"{folder}: its adapter does not fit {base}: {len(missing)} layers differ, e.g. {examples}")
    return model
