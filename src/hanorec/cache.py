"""What is computed once and kept on disk: image features, item neighbours, reference log-probabilities.

A file is named after a fingerprint of everything its content depends on, so it cannot go stale: where a title, an
image, a weight or a setting changes, another name is looked for and not found. It is written whole or not at all,
and read memory-mapped, so what is never used is never read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hanorec import distributed


def cached(
    folder: Path | None, kind: str, fingerprint: str, make: Callable[[], dict[str, Tensor]], *, together: bool = False
) -> dict[str, Tensor]:
    """What `make` returns, from `folder` where it has been made before; without a folder it is always made.

    kind: the first part of the file's name. fingerprint: hex digits, of all that `make` depends on. together: `make`
    takes all ranks, so if one rank finds no file, all make it. A file that was cut short or that something else wrote
    is made again.
    """
    if folder is None:
        return make()
    path = folder / f"{kind}-{fingerprint[:20]}.safetensors"
    stored = None
    with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("made_from") == fingerprint:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    missing = distributed.all_reduce_max(int(stored is None)) if together else stored is None
    if stored is not None and not missing:
        return stored
    tensors = make()
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{uuid4().hex}.partial")  # another run may be making the same file
    save_file(tensors, partial, {"made_from": fingerprint})
    partial.replace(path)
    return tensors


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
