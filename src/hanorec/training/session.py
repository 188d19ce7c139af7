"""Put the parts together: from a run's config to a model that can be asked.

In: a backbone's name or a run's folder. Out: an `ImageEncoder` with its `Backbone` (loaded, in evaluation mode,
on its device) or `Prompts` on top of it. Training scripts and `evaluate.py` load through here, so they agree.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from hanorec import distributed
from hanorec.cache import cached, weights_fingerprint
from hanorec.data.catalog import Catalog, content_fingerprint
from hanorec.data.examples import Example
from hanorec.errors import DataError
from hanorec.evaluation.ranking import MAIN_MEASURE, ask_model, point_measures
from hanorec.models.backbone import Backbone, load_backbone
from hanorec.models.images import ImageEncoder
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import batches, score
from hanorec.training.runs import read_config

MODEL = "model"  # the folder of a run that holds the model or adapter
MERGED = "merged"  # and, if asked for, that of the model with its adapter merged


def encoder_for(
    backbone: Backbone,
    catalog: Catalog,
    *,
    frozen: bool = False,
    cache: Path | None = None,
    pixels: int | None = None,
) -> ImageEncoder:
    """The catalogue's images as this backbone sees them. frozen, cache, pixels: see `ImageEncoder`."""
    return ImageEncoder(backbone, catalog.images, frozen=frozen, cache=cache, pixels=pixels)


def load_sft(folder: str | Path, *, dtype: str | None = None) -> tuple[Backbone, dict]:
    """The SFT model of a finished run, its adapter merged into the weights, and the run's config. dtype: the run's,
    if not given.

    Errors: DataError where the folder is no finished SFT run, or its adapter is of another backbone.
    """
    config, model = read_config(folder, "sft"), Path(folder) / MODEL
    how = {"dtype": dtype or config["dtype"], "views": config["image_views"], "remote_code": config["remote_code"]}
    if not (model / "adapter_config.json").is_file():
        return load_backbone(str(model), **how), config
    backbone = load_backbone(config["backbone"], **how)
    backbone.model = _with_adapter(backbone, model, f"backbone {config['backbone']!r}").merge_and_unload().eval()
    return backbone, config


def load_run(folder: str | Path) -> tuple[Backbone, dict]:
    """The model of a finished run of either kind and its config."""
    config = read_config(folder)
    if config["kind"] == "sft":
        return load_sft(folder, dtype=config["dtype"])
    backbone, _ = load_sft(config["sft"], dtype=config["dtype"])
    if weights_fingerprint(backbone.model.state_dict()) != config["reference"]:
        raise DataError(f"{folder}: was made from another SFT run than the one now in {config['sft']}")
    backbone.model = _with_adapter(backbone, Path(folder) / MODEL, f"SFT run {config['sft']!r}").eval()
    return backbone, config


def _with_adapter(backbone: Backbone, folder: Path, base: str) -> PeftModel:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it would say of missing layers is said below
            model = PeftModel.from_pretrained(backbone.model, str(folder))
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            missing = set(file.keys()) ^ set(get_peft_model_state_dict(model))
    except Exception as error:
        raise DataError(f"{folder}: its adapter does not fit the {base}: {str(error).splitlines()[0]}") from error
    if missing:
        some = ", ".join(sorted(missing)[:2])
        raise DataError(f"{folder}: its adapter does not fit the {base}: {len(missing)} layers differ, e.g. {some}")
    return model


def save_model(backbone: Backbone, folder: Path, weights: dict[str, Tensor], *, merge: bool = False) -> None:
    """Write the model, or its adapter alone, into a run's folder in Hugging Face or PEFT format. weights: those that
    trained, put together. merge: the model with its adapter in its weights too, as a checkpoint of its own."""
    held = {"state_dict": weights} if distributed.is_sharded() else {}
    backbone.model.save_pretrained(folder / MODEL, **held)
    if not isinstance(backbone.model, PeftModel):
        backbone.processor.save_pretrained(folder / MODEL)
        return
    path = folder / MODEL / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"].sort()  # PEFT writes a set, in another order every time
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if merge:
        backbone.model.merge_and_unload().save_pretrained(folder / MERGED)
        backbone.processor.save_pretrained(folder / MERGED)


def validation(prompts: Prompts, examples: Sequence[Example], forward_tokens: int) -> tuple[str, float]:
    """The measure that the best state is chosen by, and its value on held-out examples."""
    name = MAIN_MEASURE[prompts.task]
    answers = ask_model(prompts, examples, forward_tokens=forward_tokens)
    return name, point_measures(prompts.task, answers, examples)[name]


@torch.no_grad()
def reference_logps(
    prompts: Prompts,
    examples: Sequence[Example],
    responses: list[list[list[int]]],
    weights: str,
    *,
    forward_tokens: int = 8192,
    cache: Path | None = None,
) -> Tensor:
    """log π_ref of every response, [examples, responses an example], on the CPU: noise and dropout off, once a run.

    weights: the fingerprint of the reference. What else it depends on, tokens and images, is added here.
    """
    asked = [prompts.prompt(example) for example in examples]

    def make() -> dict[str, Tensor]:
        prompts.encoder.backbone.model.eval()
        lengths = [len(prompt.ids) + sum(map(len, answers)) for prompt, answers in zip(asked, responses)]
        parts = batches(lengths, forward_tokens)
        with tqdm(total=len(asked), desc="reference", unit="prompt", leave=False) as bar:

            def logps(batch: list[int]) -> Tensor:
                bar.update(distributed.world_size() * len(batch))
                found = score(prompts.encoder, [asked[i] for i in batch], [responses[i] for i in batch])
                return found.view(len(batch), -1).cpu()

            found = torch.cat(distributed.map_over_ranks(logps, parts))
        return {"logps": found[torch.tensor(sum(parts, [])).argsort()]}

    sequences = [
        ids for prompt, answers in zip(asked, responses) for ids in (prompt.ids, prompt.images, *answers)
    ]  # fmt: skip
    fingerprint = content_fingerprint(
        weights,
        prompts.encoder.fingerprint,
        np.array([len(ids) for ids in sequences], dtype=np.int32),
        np.array([id for ids in sequences for id in ids], dtype=np.int32),
    )
    return cached(cache, "reference", fingerprint, make)["logps"]
