"""Put the parts together: from a run's config to a model that can be asked.

In: a backbone's name or a run's folder. Out: an `ImageEncoder` with its `Backbone` (loaded, in evaluation mode,
on its device) or `Prompts` on top of it. Training scripts and `evaluate.py` load through here, so they agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm

from hanorec.backbone import Backbone, ImageEncoder, load_backbone
from hanorec.catalog import Catalog, DataError, read_images
from hanorec.preferences import Example
from hanorec.prompts import Prompts
from hanorec.ranking import MAIN_MEASURE, ask_model, point_measures
from hanorec.scoring import score
from hanorec.training import read_config

MODEL = "model"  # the folder of a run that holds the model or adapter


def encoder_for(backbone: Backbone, catalog: Catalog) -> ImageEncoder:
    """Read the catalogue's images once, for this backbone."""
    return ImageEncoder(backbone, read_images(catalog, range(len(catalog))))


def load_sft(folder: str | Path, *, dtype: str = "auto") -> tuple[Backbone, dict]:
    """The SFT model of a finished run, its adapter merged into the weights, and the run's config.

    Errors: DataError where the folder is no finished SFT run, or its adapter is of another backbone.
    """
    config, model = read_config(folder, "sft"), Path(folder) / MODEL
    if not (model / "adapter_config.json").is_file():
        return load_backbone(str(model), dtype=dtype), config
    backbone = load_backbone(config["backbone"], dtype=dtype)
    backbone.model = _with_adapter(backbone, model, f"backbone {config['backbone']!r}").merge_and_unload().eval()
    return backbone, config


def load_run(folder: str | Path) -> tuple[Backbone, dict]:
    """The model of a finished run of either kind and its config."""
    config = read_config(folder)
    if config["kind"] == "sft":
        return load_sft(folder, dtype=config["dtype"])
    backbone, _ = load_sft(config["sft"], dtype=config["dtype"])
    if weights_fingerprint(backbone.model) != config["reference"]:
        raise DataError(f"{folder}: was made from another SFT run than the one now in {config['sft']}")
    backbone.model = _with_adapter(backbone, Path(folder) / MODEL, f"SFT run {config['sft']!r}").eval()
    return backbone, config


def _with_adapter(backbone: Backbone, folder: Path, base: str) -> PeftModel:
    try:
        return PeftModel.from_pretrained(backbone.model, str(folder))
    except Exception as error:
        raise DataError(f"{folder}: its adapter does not fit the {base}: {str(error).splitlines()[0]}") from error


@torch.no_grad()
def weights_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over names and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_model(backbone: Backbone, folder: Path) -> None:
    """Write the model, or its adapter alone, into a run's folder in Hugging Face or PEFT format."""
    backbone.model.save_pretrained(folder / MODEL)
    if not isinstance(backbone.model, PeftModel):
        backbone.processor.save_pretrained(folder / MODEL)


def validation(prompts: Prompts, examples: Sequence[Example]) -> tuple[str, float]:
    """The measure that the best state is chosen by, and its value on held-out examples."""
    name = MAIN_MEASURE[prompts.task]
    return name, point_measures(prompts.task, ask_model(prompts, examples), examples)[name]


@torch.no_grad()
def reference_logps(prompts: Prompts, examples: Sequence[Example], responses: list, *, batch_size: int = 16) -> Tensor:
    """log π_ref of every response, [examples, responses an example], on the CPU: noise and dropout off, once a run."""
    prompts.encoder.backbone.model.eval()
    rows = []
    for start in tqdm(range(0, len(examples), batch_size), desc="reference", unit="batch", leave=False):
        asked = [prompts.prompt(example) for example in examples[start : start + batch_size]]
        rows.append(score(prompts.encoder, asked, responses[start : start + batch_size]).view(len(asked), -1).cpu())
    return torch.cat(rows)
