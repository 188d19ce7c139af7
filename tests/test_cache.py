"""What is computed once is computed once, and anew as soon as anything it depends on is another."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import SERVER
from safetensors import SafetensorError, safe_open

from hanorec import cache
from hanorec.cache import cached, content_fingerprint, files_fingerprint, weights_fingerprint
from hanorec.data.catalog import read_catalog
from hanorec.data.dataset import split_examples
from hanorec.models import images as catalog_images
from hanorec.models.backbone import load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora
from hanorec.models.packing import Prompt
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score, score_all


@pytest.fixture
def folder(toy_folder, tmp_path):
    """A dataset of its own, to be changed."""
    return shutil.copytree(toy_folder, tmp_path / "toy")


@pytest.fixture
def backbone(random_backbone, tmp_path):
    """A checkpoint of its own, to be changed: a function that loads it."""
    place = shutil.copytree(random_backbone, tmp_path / "backbone")
    load = lambda: load_backbone(str(place), dtype="float32", device=torch.device("cpu"))  # noqa: E731
    load.folder = place
    return load


def encoded(backbone, folder, cache, monkeypatch) -> int:
    """How many images go through the vision tower when the catalogue is opened."""
    count, encode = [], catalog_images.encode_images
    monkeypatch.setattr(catalog_images, "encode_images", lambda b, *some: count.extend(some[0]) or encode(b, *some))
    CatalogImages(backbone() if callable(backbone) else backbone, read_catalog(folder).images, frozen=True, cache=cache)
    monkeypatch.setattr(catalog_images, "encode_images", encode)
    return len(count)


def test_a_file_is_made_once_and_anew_where_it_is_cut_short_or_not_ours(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"a": torch.arange(1000.0)}

    for _ in range(2):
        assert cached(tmp_path, "x", "0" * 64, make)["a"].equal(torch.arange(1000.0))
    assert len(made) == 1
    cached(tmp_path, "x", "1" * 64, make)
    assert len(made) == 2
    path = tmp_path / f"x-{'0' * 20}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="damaged"):
        assert cached(tmp_path, "x", "0" * 64, make)["a"].equal(torch.arange(1000.0)) and len(made) == 3
    cached(tmp_path, "x", "0" * 63 + "1", make)  # the same name, another fingerprint
    assert len(made) == 4
    cached(None, "x", "0" * 64, make)
    assert len(made) == 5 and not list(tmp_path.glob("*.partial"))


def damage(kind, content):
    middle = len(content) // 2
    if kind == "a byte of a tensor":
        return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]
    if kind == "another type":
        return content.replace(b'"F32"', b'"I32"')
    if kind == "tensors exchanged":
        return content.replace(b'"a":', b'"c":').replace(b'"b":', b'"a":').replace(b'"c":', b'"b":')
    return {"half of it zeros": content[:middle] + bytes(len(content) - middle), "zeros": bytes(len(content)),
            "empty": b"", "longer": content + b"0"}[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["a byte of a tensor", "another type", "tensors exchanged", "half of it zeros",
                                  "zeros", "empty", "longer"])  # fmt: skip
def test_a_damaged_file_is_told_and_made_anew(tmp_path, kind):
    def make():
        return {
            "a": torch.arange(1000.0),
            "b": torch.arange(1000.0) / 7,
            "none": torch.zeros(0),
            "one": torch.tensor(2),
        }

    cached(tmp_path, "x", "0" * 64, make)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(kind, path.read_bytes()))
    with pytest.warns(UserWarning, match=f"{path.name}: damaged .*; made anew"):
        found = cached(tmp_path, "x", "0" * 64, make)
    assert all(found[name].equal(value) for name, value in make().items())
    assert cached(tmp_path, "x", "0" * 64, lambda: 1 / 0)["b"].equal(make()["b"])


def test_what_a_killed_process_left_in_the_cache_is_removed_after_an_hour(tmp_path):
    names = ("x-1.2.partial", ".tmpAbC", "x-3.4.partial")
    for name, age in zip(names, (4000, 4000, 60)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    cached(tmp_path, "x", "0" * 64, lambda: {"a": torch.ones(3)})
    assert {path.name for path in tmp_path.iterdir()} == {names[2], f"x-{'0' * 20}.safetensors"}


@pytest.mark.parametrize(
    "owner, name", [("os", "fsync"), ("Path", "mkdir"), ("Path", "replace"), ("cache", "save_file")]
)
def test_a_cache_that_cannot_be_written_is_a_warning_and_nothing_is_kept(tmp_path, monkeypatch, owner, name):
    """A full disk, a read-only one; safetensors has an error of its own."""
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def full(*_, **__):
        raise error if name == "save_file" else OSError(30, "Read-only file system")

    monkeypatch.setattr({"os": os, "Path": Path, "cache": cache}[owner], name, full)
    with pytest.warns(UserWarning, match=f"{tmp_path / 'c'}: the cache cannot be written .*(No space|Read-only)"):
        found = cached(tmp_path / "c", "x", "0" * 64, lambda: {"a": torch.ones(3)})
    assert found["a"].equal(torch.ones(3)) and not list(tmp_path.rglob("x-*"))


def test_images_are_encoded_once(backbone, folder, tmp_path, monkeypatch):
    items = len(read_catalog(folder))
    assert encoded(backbone, folder, tmp_path / "c", monkeypatch) == items
    assert encoded(backbone, folder, tmp_path / "c", monkeypatch) == 0
    live, kept = (
        CatalogImages(backbone(), read_catalog(folder).images, frozen=True, cache=cache)
        for cache in (None, tmp_path / "c")
    )
    assert live.blocks == kept.blocks and all(a.equal(b) for a, b in zip(live.contents, kept.contents))


def test_a_changed_image_or_setting_or_vision_weight_is_seen_and_a_changed_language_weight_does_not_matter(
    backbone, folder, tmp_path, monkeypatch
):
    def again(model=backbone):
        return encoded(model, folder, tmp_path / "c", monkeypatch)

    items = again()
    image = read_catalog(folder).images[3]
    Image.new("RGB", (40, 40), (200, 10, 10)).save(image)
    assert again() == items and again() == 0

    model = backbone()
    with torch.no_grad():
        model.model.model.text_model.norm.weight.mul_(2)
    assert again(model) == 0
    assert again(add_lora(model)) == 0  # an adapter on the language model changes no image either
    with torch.no_grad():
        next(model.model.model.vision_model.parameters()).mul_(1.01)
    assert again(model) == items

    settings = backbone.folder / "processor_config.json"
    config = json.loads(settings.read_text())
    config["image_processor"]["image_mean"] = [0.4, 0.5, 0.5]
    settings.write_text(json.dumps(config))
    assert again() == items and again() == 0


def test_shards_split_the_catalogue_and_change_one_by_one(backbone, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hanorec.models.images.SHARD_SIZE", 20)
    monkeypatch.setattr("hanorec.models.images.VISION_BATCH", 7)
    items = encoded(backbone, folder, tmp_path / "c", monkeypatch)
    shards = list((tmp_path / "c").glob("images-*"))
    assert len(shards) == -(-items // 20)
    with safe_open(shards[0], framework="pt") as file:
        assert len(file.get_tensor("block_lengths")) <= 20
    Image.new("RGB", (40, 40)).save(read_catalog(folder).images[25])
    assert encoded(backbone, folder, tmp_path / "c", monkeypatch) == 20


def test_items_without_an_image_or_with_a_broken_one_have_no_block(backbone, folder, tmp_path):
    images = read_catalog(folder).images
    images[1].unlink()
    images[2].write_bytes(b"no image")
    for _ in range(2):  # made, then from the cache
        with pytest.warns(UserWarning, match="1 of .* items are treated as without image"):
            model = backbone()
            images = CatalogImages(model, read_catalog(folder).images, frozen=True, cache=tmp_path / "c")
        assert [bool(images.placeholders(item)) for item in range(4)] == [True, False, False, True]
        assert torch.cat(images.features(model, [0, 3])).shape[0] == 2 * len(images.contents[0])


@pytest.fixture
def reference(backbone, folder, tmp_path, data, monkeypatch):
    """A function that asks for the reference's log-probabilities, and how many prompts it had to score."""
    examples = split_examples(data, "train", "next", users=9, rejected=2, candidates=6)
    scored = []

    def count(backbone, images, prompts, responses, **more):
        scored.append(len(prompts))
        return score(backbone, images, prompts, responses, **more)

    monkeypatch.setattr("hanorec.models.scoring.score", count)

    def ask(change=lambda model, prompts, responses: None):
        model = backbone()
        images = CatalogImages(model, read_catalog(folder).images, frozen=True, cache=tmp_path / "c")
        prompts = Prompts(model, images, data.catalog.titles, "next", list_candidates=False)
        responses = [[prompts.chosen(e), *prompts.rejected(e)] for e in examples]
        change(model, prompts, responses)
        before = sum(scored)
        x = [prompts.prompt(e) for e in examples]
        weights = weights_fingerprint(model.model.state_dict())
        table = score_all(model, images, x, responses, weights=weights, forward_tokens=200, cache=tmp_path / "c")
        return table, sum(scored) - before, (model, images, x, responses)

    return ask


def test_reference_log_probabilities_are_those_of_each_prompt_alone(reference):
    table, scored, (model, images, prompts, responses) = reference()
    assert table.shape == (27,) and scored == 9
    for row, prompt, answers in zip(table.view(9, 3), prompts, responses):
        with torch.no_grad():
            alone = [score(model, images, [prompt], [[answer]]) for answer in answers]
        torch.testing.assert_close(row, torch.cat(alone), atol=1e-4, rtol=0)


def test_reference_log_probabilities_are_computed_once_until_something_changes(reference, folder):
    def other_weights(model, prompts, responses):
        with torch.no_grad():
            model.model.model.text_model.norm.weight.mul_(2)

    first, *_ = reference()
    again, scored, _ = reference()
    assert scored == 0 and again.equal(first)
    assert reference(other_weights)[1] == 9
    assert reference(lambda model, prompts, responses: responses[0].reverse())[1] == 9
    assert reference(lambda model, prompts, responses: setattr(prompts, "question_alone", Prompt([5], [])))[1] == 9
    Image.fromarray(np.full((30, 30, 3), 7, np.uint8)).save(read_catalog(folder).images[0])
    assert reference()[1] == 9


def made_five_times(folder: Path, value: float) -> list[list[float]]:
    """What is found in five files of `folder`, which are made of `value` where they are not there."""
    make = lambda: time.sleep(0.3) or {"a": torch.full((500_000,), value)}  # noqa: E731
    return [cached(folder, f"x{turn}", "0" * 64, make)["a"].unique().tolist() for turn in range(5)]


def test_two_processes_that_make_the_same_file_at_once_both_succeed(tmp_path):
    """Each writes a file of its own and renames it: neither sees half of the other's."""
    with ProcessPoolExecutor(2, SERVER) as both:
        for found in both.map(made_five_times, (tmp_path, tmp_path), (1.0, 2.0)):
            assert all(values in ([1.0], [2.0]) for values in found)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"x{n}-{'0' * 20}.safetensors" for n in range(5))


def test_a_fingerprint_tells_contents_types_order_and_borders_apart(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"ab")
    zeros = np.zeros((2, 3), np.float32)
    different = [
        (),
        ("",),
        ("", ""),
        (b"",),
        (None,),
        ("ab",),
        ("a", "b"),
        ("b", "a"),
        (b"ab",),
        (file,),
        (zeros,),
        (zeros.T,),
        (zeros.reshape(6),),
        (zeros.view(np.int32),),
        (zeros.tobytes(),),
        (zeros + 1,),
    ]
    prints = [content_fingerprint(*parts) for parts in different]
    assert len(set(prints)) == len(different)
    assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in prints)


def test_a_fingerprint_depends_on_content_alone(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"same")
    assert content_fingerprint(tmp_path / "one") == content_fingerprint(tmp_path / "two")
    grid = np.arange(6).reshape(2, 3)
    assert content_fingerprint(grid.T) == content_fingerprint(grid.T.copy())
    # pinned: another value would throw away every cache that anyone has made
    assert content_fingerprint("é", b"", None) == "7a0c7f80275ffb9f5c7bdb9dba9a60026dcea418bff4536f09634abc58d133eb"


def test_a_fingerprint_refuses_what_has_no_bytes():
    for part in (3, ["a"], np.array([None])):
        with pytest.raises(TypeError, match="content_fingerprint takes"):
            content_fingerprint(part)


def test_the_fingerprint_of_files_is_the_sha_256_of_all_they_hold(tmp_path):
    for name, content in (("one", b"ab"), ("two", b"c")):
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / "one", tmp_path / "two"]
    assert files_fingerprint(files) == hashlib.sha256(b"abc").hexdigest() != files_fingerprint(files[::-1])
