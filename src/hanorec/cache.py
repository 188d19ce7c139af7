"""What is computed once and kept on disk: image features, item neighbours, reference log-probabilities.

A file is named after a fingerprint of everything its content depends on, so it cannot go stale: where a title, an
image, a weight or a setting changes, another name is looked for and not found. It is written whole or not at all,
and carries a fingerprint of its content, too, which is checked whenever it is read.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hanorec import distributed, files


def cached(
    folder: Path | None, kind: str, fingerprint: str, make: Callable[[], dict[str, Tensor]], *, together: bool = False
) -> dict[str, Tensor]:
    """What `make` returns, from `folder` where it has been made before; without a folder it is always made.

    kind: the first part of the file's name. fingerprint: hex digits, of all that `make` depends on. together: `make`
    takes all ranks, so if one rank finds no file, all make it. A file that something else wrote is made again, and so
    is one that is damaged, with a warning. Where the folder cannot be written, a warning says so, and nothing is kept.
    """
    if folder is None:
        return make()
    path = folder / f"{kind}-{fingerprint[:20]}.safetensors"
    files.remove_leftovers(folder)
    stored = _read(path, fingerprint)
    missing = distributed.all_reduce_max(int(stored is None)) if together else stored is None
    if stored is not None and not missing:
        return stored
    tensors = make()
    partial = path.with_name(f"{path.stem}.{uuid4().hex}{files.PARTIAL}")  # another run may be making the same file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {"made_from": fingerprint, "content": weights_fingerprint(tensors)})
        files.to_disk(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = str(error).replace(f": '{partial}'", "").replace(f" -> '{path}'", "")
        warnings.warn(f"{folder}: the cache cannot be written ({reason}); going on without it", stacklevel=2)
    return tensors


def _read(path: Path, fingerprint: str) -> dict[str, Tensor] | None:
    """What a file of the cache holds; None where there is none that was made from this, or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("made_from") != fingerprint or "content" not in about:  # version 0.2.0 kept no "content"
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        if weights_fingerprint(tensors) == about["content"]:
            return tensors
        reason = "its content is not what was written"
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error)
    warnings.warn(f"{path}: damaged ({reason}); made anew", stacklevel=3)
    return None


def content_fingerprint(*parts: str | bytes | Path | np.ndarray | None) -> str:
    """SHA-256, as 64 hex digits, of the parts in order; of a Path, what the file holds and not its name.

    Every part enters by its type and its own digest, so moving a character from one part to the next, or
    giving text as bytes, changes the result. A cache keeps it to know what it was made from.
    """
    total = hashlib.sha256()
    for part in parts:
        if part is None:
            kind, data = "none", b""
        elif isinstance(part, str):
            kind, data = "str", part.encode()
        elif isinstance(part, bytes):
            kind, data = "bytes", part
        elif isinstance(part, Path):
            kind, data = "file", part.read_bytes()
        elif isinstance(part, np.ndarray) and not part.dtype.hasobject:
            kind, data = f"array {part.dtype.str} {part.shape}", part.tobytes()
        else:
            raise TypeError(
                f"content_fingerprint takes str, bytes, Path, numpy array or None, not {type(part).__name__}"
            )
        total.update(hashlib.sha256(kind.encode()).digest() + hashlib.sha256(data).digest())
    return total.hexdigest()


def files_fingerprint(paths: Iterable[Path]) -> str:
    """SHA-256, as 64 hex digits, of what the files hold, one after the other; read in parts, however large they are."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while part := file.read(2**24):
                digest.update(part)
    return digest.hexdigest()


@torch.no_grad()
def weights_fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256, as 64 hex digits, of the tensors' names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
