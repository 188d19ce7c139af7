"""Raw folders, made up by hand, and what the package reads of the datasets that converters make of them."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from hanorec.data.catalog import read_catalog
from hanorec.data.interactions import read_sequences


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """A raw folder with these files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def covers(folder: Path, *names: str) -> Path:
    """An image each, `n` pixels wide for the n-th name, so that they can be told apart."""
    for width, name in enumerate(names, 1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, 9)).save(folder / name)
    return folder


def read(out: Path, split: str = "test") -> dict[str, str]:
    """The rows of a split, items by user, as the package reads them."""
    catalog = read_catalog(out)
    rows = read_sequences(out / f"{split}.tsv", catalog)
    return {row.user: " ".join(catalog.items[item] for item in row.items) for row in rows}


def titles(out: Path) -> dict[str, str]:
    catalog = read_catalog(out)
    return dict(zip(catalog.items, catalog.titles))


def images(out: Path) -> dict[str, int]:
    return {path.name: Image.open(path).size[0] for path in sorted((out / "images").iterdir())}


def steps(out: Path) -> list[tuple[int, int, int]]:
    """Users, items and interactions after each step, from prepared.json."""
    counted = json.loads((out / "prepared.json").read_text())["steps"]
    return [(step["users"], step["items"], step["interactions"]) for step in counted]
