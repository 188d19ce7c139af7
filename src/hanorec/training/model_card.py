"""The model card of a finished run, in Hugging Face's format: `model/README.md`.

In: a run's config and how its training ended. Out: Markdown with the hub's metadata in front.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from hanorec.errors import shown
from hanorec.training.run_config import is_run

KINDS = {"sft": "supervised fine-tuning", "dpo": "preference optimization"}


def write_model_card(model: Path, folder: Path, config: dict, finished: dict) -> None:
    """Write README.md into the folder of a run's model.

    folder: the run's, which the card names. config: the content of config.json. finished: that of finished.json: steps,
    best_step, best, measure and, of a DPO run, start.
    """
    kind, base = config["kind"], config["backbone"] if config["kind"] == "sft" else config["sft"]
    adapter = (model / "adapter_config.json").is_file()
    metadata = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["hanorec", "sequential-recommendation", "dpo" if kind == "dpo" else "sft"],
    }
    if kind == "sft" and base != "tiny" and not Path(base).exists():
        metadata["base_model"] = base  # an id of the Hugging Face hub
    note = " (an SFT run: its model is the frozen reference and the base of this adapter)" if kind == "dpo" else ""
    start = f" (before the first step {finished['start']:.4f})" if "start" in finished else ""
    options = "\n".join(
        f"| `{name}` | `{json.dumps(value)}` |" for name, value in config.items() if name not in ("kind", "made_from")
    )
    (model / "README.md").write_text(
        f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---

# {folder.name}: a vision-language recommender after {KINDS[kind]}

Reads a user's history as item images and titles and names the next item. Made with the reference implementation of
HaNoRec (arXiv 2511.18740), stage {"1" if kind == "sft" else "2"} of 2.

- **Base**: {shown(base)}{note}
- **Data**: {shown(config["data"] or "the toy catalogue that comes with the code")}
- **Best state**: step {finished["best_step"]} of {finished["steps"]}, {finished["measure"]} {finished["best"]:.4f} on \
{config["validate_users"]} validation users{start}. `evaluate.py --runs {folder}` measures it on the test split.

## Load it

```python
{_how_to_load(folder, base, adapter, on_run=is_run(base))}
```

or, as this project's scripts do: `backbone, sft = hanorec.training.runs.load_run("{folder}")`, where `sft` says how it
reads prompts. An adapter is merged by `backbone.model.merge_and_unload().save_pretrained(DIR)`.

## Options

| option | value |
| --- | --- |
{options}
""",
        encoding="utf-8",
    )


def _how_to_load(folder: Path, base: str, adapter: bool, on_run: bool) -> str:
    """Python that loads a run's model. on_run: whether its base is the model of an SFT run, and no checkpoint."""
    if not adapter:
        return (
            "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
            f'model = AutoModelForImageTextToText.from_pretrained("{folder}/model")\n'
            f'processor = AutoProcessor.from_pretrained("{folder}/model")'
        )
    if not on_run and base == "tiny":
        return (
            "from peft import PeftModel\nfrom hanorec.models.backbone import load_backbone\n\n"
            f'model = PeftModel.from_pretrained(load_backbone("tiny").model, "{folder}/model")'
        )
    if not on_run:
        return (
            "from peft import PeftModel\nfrom transformers import AutoModelForImageTextToText\n\n"
            f'base = AutoModelForImageTextToText.from_pretrained("{base}")\n'
            f'model = PeftModel.from_pretrained(base, "{folder}/model")'
        )
    return (
        "from peft import PeftModel\nfrom hanorec.training.runs import load_sft\n\n"
        f'reference, _ = load_sft("{base}")  # the SFT model, its own adapter merged\n'
        f'policy = PeftModel.from_pretrained(reference.model, "{folder}/model")'
    )
