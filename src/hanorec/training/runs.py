"""A run's folder, from the first look to the finished model: may it be used, how was it made, what came out.

In: the options of a training script, or a folder. Out: the folder with its `config.json`; a finished run's model as a
`Backbone` with its config; or one clear error. Rank 0 alone writes.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hanorec import __version__, distributed, files
from hanorec.cache import content_fingerprint, files_fingerprint
from hanorec.errors import DataError
from hanorec.models.backbone import TILES, Backbone, load_backbone
from hanorec.training.dpo_options import DPOOptions
from hanorec.training.model_card import write_model_card
from hanorec.training.options import SFTOptions, cache_folder, complete_sft

MODEL = "model"  # the folder of a run that holds the model or adapter
READ = ("train.tsv", "val.tsv", "titles.csv", "descriptions.csv", "negatives.tsv")  # a dataset's files
NOT_SETTINGS = ("resume", "overwrite", "cache")  # options that change nothing about what a run computes
Options = SFTOptions | DPOOptions


def check_output(options: Options) -> None:
    """Refuse, before any work is done, an output folder that may not be used.

    Errors: DataError where it is not empty and neither --overwrite nor --resume is given, where --overwrite would
    replace what is no run or what the new run starts from, where --resume meets no run or a finished one, where another
    process trains in it, or where it holds the cache, which is written before it.
    """
    folder, start = Path(options.output), start_of(options)
    if not distributed.is_main_process():
        return
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


def start_of(options: Options) -> str:
    """What a run starts from: the SFT run of stage 2, the checkpoint or SFT run of stage 1."""
    return options.sft if isinstance(options, DPOOptions) else options.backbone


def open_run(options: Options, data: Path) -> None:
    """Make the run's folder and write its config.json, or check that the run to resume had the same settings. Then
    the folder is locked: this process alone trains in it.

    data: the folder of the rows and titles that it learns from. Errors: DataError as `check_output` raises it, and
    where --resume meets a run of other settings or of another version, or one whose rows, titles or SFT run, its start
    and reference, have changed since.
    """
    check_output(options)
    folder = Path(options.output).resolve()  # a link stays a link to what is written
    kind = "dpo" if isinstance(options, DPOOptions) else "sft"
    config = {"kind": kind, "version": __version__}
    config |= {k: v for k, v in vars(options).items() if k not in NOT_SETTINGS}
    if is_run(start_of(options)):
        config["reference"] = model_fingerprint(start_of(options))
    config["rows"] = content_fingerprint(*(data / name for name in READ if (data / name).is_file()))
    if options.resume:
        before = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        changed = [f"{k}: {before.get(k)!r} then, {v!r} now" for k, v in config.items() if before.get(k) != v]
        if changed:
            raise DataError(f"{folder}: was started with other settings ({'; '.join(changed)})")
        if distributed.is_main_process():
            files.lock(folder)
        return
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


def is_run(name: str | Path) -> bool:
    """Whether this is the folder of a run, finished or not, and no checkpoint of a model."""
    try:
        return "kind" in json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def read_config(folder: str | Path, kind: str | None = None) -> dict:
    """The config.json of a finished run, of a kind ("sft" or "dpo") if given. Errors: DataError where it is not one."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        actual = config["kind"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: not a run's folder ({path.name}: {error})") from error
    if kind and actual != kind:
        raise DataError(f"{folder}: a run of kind {actual!r}, not {kind!r}")
    if not (Path(folder) / "finished.json").is_file():
        raise DataError(f"{folder}: this run is not finished; go on with --resume")
    return config


def sft_options(folder: str | Path) -> SFTOptions:
    """How the model of a finished run reads prompts: the options of the SFT run that it is, or that it started from,
    with the run's own dataset. Errors: DataError as `read_config` raises it, and for a DPO run of version 0.2.0 that
    reads prompts otherwise than its SFT run."""
    config = read_config(folder)
    sft = config if config["kind"] == "sft" else read_config(config["sft"], "sft")
    options = SFTOptions(**{field.name: sft[field.name] for field in fields(SFTOptions) if field.name in sft})
    complete_sft(options)
    if config["kind"] == "dpo":  # version 0.2.0 let stage 2 differ from stage 1
        for name in {field.name for field in fields(SFTOptions)} - {field.name for field in fields(DPOOptions)}:
            if config.get(name, getattr(options, name)) != getattr(options, name):
                raise DataError(f"{folder}: has another {name} than its SFT run, which version 0.2.0 alone can read")
    return replace(options, data=config["data"])


def load_start(name: str, *, dtype: str = "auto", views: str = "one", remote_code: bool = False) -> Backbone:
    """What SFT starts from: a checkpoint, or the model of a finished SFT run, its adapter merged into the weights.

    name, dtype, views, remote_code: as in `load_backbone`, or name the run's folder. Errors: DataError as
    `load_backbone` raises it, where the run is none of SFT or not finished, its adapter is of another backbone, or its
    own start has changed since.
    """
    how: Any = {"dtype": dtype, "views": views, "remote_code": remote_code}
    if not is_run(name):
        return load_backbone(name, **how)
    config, model = read_config(name, "sft"), Path(name) / MODEL
    check_weights(name)
    if not (model / "adapter_config.json").is_file():
        backbone = load_backbone(str(model), **how)
        tiles = any(hasattr(backbone.processor.image_processor, setting) for setting in TILES)
        if tiles and views == "many" and config["image_views"] == "one":
            raise DataError(f"--image-views many: {name} was trained whole on images as one view, and keeps to it")
        return backbone
    check_start(name, config, config["backbone"])
    backbone = load_start(config["backbone"], **how)
    backbone.model = _with_adapter(backbone, model, f"backbone {config['backbone']!r}").merge_and_unload().eval()
    return backbone


def load_sft(folder: str | Path, *, dtype: str | None = None, remote_code: bool = False) -> tuple[Backbone, SFTOptions]:
    """The SFT model of a finished run, its adapter merged into the weights, and how it was trained.

    dtype: precision of the weights, as in `load_backbone` (None: as in the SFT run). remote_code: whether a
    checkpoint's Python files may run; what the run's config says of it is not trusted.
    Errors: DataError as `load_start` raises it.
    """
    read_config(folder, "sft")
    sft = sft_options(folder)
    return load_start(str(folder), dtype=dtype or sft.dtype, views=sft.image_views, remote_code=remote_code), sft


def load_run(folder: str | Path, *, remote_code: bool = False) -> tuple[Backbone, SFTOptions]:
    """The model of a finished run of either kind, and how it reads prompts (`sft_options`).

    remote_code: as in `load_sft`. Errors: DataError as `load_sft` raises it, and where a DPO run's SFT run is not the
    one that it started from.
    """
    config = read_config(folder)
    if config["kind"] == "sft":
        return load_sft(folder, remote_code=remote_code)
    check_start(folder, config, config["sft"])
    check_weights(folder)
    backbone, _ = load_sft(config["sft"], dtype=config["dtype"], remote_code=remote_code)
    backbone.model = _with_adapter(backbone, Path(folder) / MODEL, f"SFT run {config['sft']!r}").eval()
    return backbone, sft_options(folder)


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


def model_fingerprint(folder: str | Path) -> str:
    """SHA-256 over the weight files of a finished run, as they are on disk: the same whatever device or precision they
    are loaded to. Errors: DataError where there are none."""
    files = sorted((Path(folder) / MODEL).glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder}: not a run's folder (no weights in {MODEL}/)")
    return files_fingerprint(files)


def check_weights(folder: str | Path) -> None:
    """Errors: DataError where a weight file of a finished run is cut short, emptied or none."""
    for path in sorted((Path(folder) / MODEL).glob("*.safetensors")):
        try:
            safe_open(path, framework="pt").keys()
        except (OSError, SafetensorError) as error:
            raise DataError(f"{folder}: its weights cannot be read ({path}: {error}); train it again") from error


def check_start(folder: str | Path, config: dict, start: str) -> None:
    """Errors: DataError where a run started from an SFT run, and another one is in its place."""
    if "reference" in config and model_fingerprint(start) != config["reference"]:
        raise DataError(f"{folder}: was made from another SFT run than the one now in {start}")


def _with_adapter(backbone: Backbone, folder: Path, base: str) -> PeftModel:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it would say of missing layers is said below
            model = PeftModel.from_pretrained(backbone.model, str(folder))
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            missing = set(file.keys()) ^ set(get_peft_model_state_dict(model))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{folder}: its adapter does not fit the {base}: {str(error).splitlines()[0]}") from error
    if missing:
        examples = ", ".join(sorted(missing)[:2])
        raise DataError(f"{folder}: its adapter does not fit the {base}: {len(missing)} layers differ, e.g. {examples}")
    return model
