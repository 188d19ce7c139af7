"""The files of a checkpoint or an adapter, which are a stranger's: they are looked at before anything is built from
them.

In: a folder. Out: nothing, or an error in one line that names the file: what is cut or a pointer, what asks for more
than the weights hold, what is no data but code. What else a checkpoint says is compared with its weights when they are
loaded.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import SafetensorError, safe_open

from hanorec.data.untrusted import why_not_opened
from hanorec.errors import DataError

POINTER = b"version https://git-lfs.github.com"
MOST_JSON, MOST_TEMPLATE = 256 * 2**20, 2**20  # bytes
ALWAYS_BUILT = 1000  # modules of a kind; more than that takes tensors, one each at least
COUNTS = re.compile(  # names of numbers of modules in a config
    r"(num|n)_(\w+_)?(layers?|blocks?|experts|stages?|heads)|((en|de)coder_)?layers|depths?"
)
NAME = re.compile(r"[\w.]+")
OWN = {  # what an adapter of this project says that is not PEFT's default
    "r", "lora_alpha", "lora_dropout", "target_modules", "task_type", "inference_mode", "auto_mapping",
    "base_model_name_or_path", "revision", "peft_version", "peft_type",
}  # fmt: skip


def check_checkpoint(folder: Path) -> None:
    """Errors: DataError that names the file of a checkpoint which is cut, empty, a Git LFS pointer, too large or no
    regular file; or a number of layers in its config.json for which its weights have no tensors."""
    for path in sorted(folder.glob("**/*.jinja")):
        if not _open(path, MOST_TEMPLATE):
            raise DataError(f"{path}: is empty")
    for path in sorted(folder.glob("*.json")):
        content = _read_json(path)
        if path.name.endswith(("config.json", "tokenizer.json")) and not isinstance(content, dict):
            raise DataError(f"{path}: must be a mapping in JSON, not {type(content).__name__}")
    tensors = sum(len(_shapes(path)) for path in folder.glob("*.safetensors"))
    for name, count in _counts(_read_json(folder / "config.json")):
        if not 0 <= count <= max(tensors, ALWAYS_BUILT):
            raise DataError(f"{folder / 'config.json'}: {name} {count}, and its weights have {tensors} tensors")


def check_adapter(folder: Path) -> None:
    """Errors: DataError where an adapter has no safetensors, is no LoRA as this project writes it, or names layers by
    a pattern and not by their names, or where its rank is not that of its weights.

    PEFT reads patterns that take for ever, initializations that compute for hours, and a module to import.
    """
    weights, path = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if not weights.is_file() and (folder / "adapter_model.bin").exists():
        raise DataError(f"{folder}: adapter_model.bin can run code when it is read, so safetensors alone are read")
    shapes, config = _shapes(weights), _read_json(path)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise DataError(f"{path}: is not of a LoRA adapter")
    usual = LoraConfig().to_dict()
    for key in sorted(usual.keys() - OWN):
        if config.get(key, usual[key]) != usual[key]:
            raise DataError(f"{path}: {key} {config[key]!r}, where this project writes {usual[key]!r}")
    names = config.get("target_modules")
    if not isinstance(names, list) or not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
        raise DataError(f"{path}: target_modules must be a list of names, not {str(names)[:60]!r}")
    ranks = {shape[0] for name, shape in shapes.items() if ".lora_A." in name}
    if ranks != {config.get("r")}:
        raise DataError(f"{path}: r {config.get('r')!r}, and {weights.name} has {sorted(ranks)}")


def _counts(config: Any, prefix: str = "") -> list[tuple[str, int]]:
    """The numbers of modules in a config and those in it, by name."""
    found = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += _counts(value, f"{prefix}{key}.")
        elif COUNTS.fullmatch(key):
            values = value if isinstance(value, list) else [value]
            found += [(prefix + key, number) for number in values if type(number) is int]
    return found


def _open(path: Path, most: int) -> bytes:
    """What stands at the beginning of a file that may be read. Errors: DataError where it may not."""
    if reason := why_not_opened(path, most):
        raise DataError(f"{path}: cannot be read ({reason})")
    with open(path, "rb") as file:
        start = file.read(len(POINTER))
    if start == POINTER:
        raise DataError(f"{path}: a Git LFS pointer in place of the file; `git lfs pull` fetches the file")
    return start


def _read_json(path: Path) -> Any:
    _open(path, MOST_JSON)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error or 'nested too deeply'})") from error


def _shapes(path: Path) -> dict[str, list[int]]:
    """The shape of every tensor of a safetensors file, of which the header alone is read."""
    _open(path, 2**50)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
