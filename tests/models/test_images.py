"""What a backbone does with the image files of a catalogue that are not as they should be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from hanorec.models import encoding
from hanorec.models.backbone import describe
from hanorec.models.images import CatalogImages
from tools import families


def files(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(len(sizes))]
    for path, size in zip(paths, sizes):
        Image.new("RGB", size, (200, 100, 0)).save(path)
    return paths


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("build", [families.qwen2_vl, families.qwen2_5_vl, families.qwen3_vl], ids=lambda b: b.__name__)
def test_an_image_that_the_processor_refuses_is_named_and_left_out(build, frozen, tmp_path):
    torch.manual_seed(0)
    model, processor = build()
    paths = files(tmp_path, [(60, 40), (2000, 8), (8, 2000), (3000, 1)])
    with pytest.warns(UserWarning) as caught:
        images = CatalogImages(describe(model.eval(), processor), paths, frozen=frozen)
    messages = [str(each.message) for each in caught if "image" in str(each.message)]
    for path, message in zip(paths[1:], messages):
        assert message.startswith(f"{path}: not used as an image (ValueError: absolute aspect ratio must be smaller")
    assert messages[3:] == ["3 of 4 items are treated as without image: unusable file"]
    assert [bool(images.placeholders(item)) for item in range(4)] == [True, False, False, False]


def test_files_that_are_not_opened_are_not_hashed_either(backbone, tmp_path):
    """A sparse file of 60 GiB would fill the memory, a pipe would be waited for."""
    paths = files(tmp_path, [(60, 40)] * 5)
    os.truncate(paths[1], 60 * 2**30)
    for path in paths[2:]:
        path.unlink()
    os.mkfifo(paths[2])
    paths[3].symlink_to(paths[3])
    with pytest.warns(UserWarning, match="4 of 5 items are treated as without image"):
        images = CatalogImages(backbone, paths, frozen=True, cache=tmp_path / "cache")
    assert [bool(images.placeholders(item)) for item in range(5)] == [True, False, False, False, False]


def test_features_of_files_that_were_read_otherwise_are_made_anew(backbone, monkeypatch):
    before = encoding.features_made_from(backbone, None)
    monkeypatch.setattr(encoding, "DECODING", encoding.DECODING + 1)
    assert encoding.features_made_from(backbone, None) != before
