"""What is computed once is computed once, and anew as soon as anything it depends on is another."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from hanorec.cache import cached
from hanorec.data.catalog import read_catalog
from hanorec.data.dataset import split_examples
from hanorec.models.backbone import load_backbone
from hanorec.models.images import ImageEncoder
from hanorec.models.lora import add_lora
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score
from hanorec.training.session import encoder_for, reference_logps


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
    count, encode = [], ImageEncoder._encode
    monkeypatch.setattr(ImageEncoder, "_encode", lambda self, *some: count.extend(some[0]) or encode(self, *some))
    encoder_for(backbone() if callable(backbone) else backbone, read_catalog(folder), frozen=True, cache=cache)
    monkeypatch.setattr(ImageEncoder, "_encode", encode)
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
    assert cached(tmp_path, "x", "0" * 64, make)["a"].equal(torch.arange(1000.0)) and len(made) == 3
    cached(tmp_path, "x", "0" * 63 + "1", make)  # the same name, another fingerprint
    assert len(made) == 4
    cached(None, "x", "0" * 64, make)
    assert len(made) == 5 and not list(tmp_path.glob("*.partial"))


def test_images_are_encoded_once(backbone, folder, tmp_path, monkeypatch):
    items = len(read_catalog(folder))
    assert encoded(backbone, folder, tmp_path / "c", monkeypatch) == items
    assert encoded(backbone, folder, tmp_path / "c", monkeypatch) == 0
    live, kept = (
        encoder_for(backbone(), read_catalog(folder), frozen=True, cache=cache) for cache in (None, tmp_path / "c")
    )
    assert live.blocks == kept.blocks and all(a.equal(b) for a, b in zip(live.held, kept.held))


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
    add_lora(model.model)  # an adapter on the language model changes no image either
    assert again(model) == 0
    with torch.no_grad():
        next(model.model.model.vision_model.parameters()).mul_(1.01)
    assert again(model) == items

    settings = backbone.folder / "processor_config.json"
    config = json.loads(settings.read_text())
    config["image_processor"]["image_mean"] = [0.4, 0.5, 0.5]
    settings.write_text(json.dumps(config))
    assert again() == items and again() == 0


def test_shards_split_the_catalogue_and_change_one_by_one(backbone, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hanorec.models.images.SHARD", 20)
    monkeypatch.setattr("hanorec.models.images.TOGETHER", 7)
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
            encoder = encoder_for(backbone(), read_catalog(folder), frozen=True, cache=tmp_path / "c")
        assert not encoder.block(1) and not encoder.block(2) and encoder.block(0) and encoder.block(3)
        assert torch.cat(encoder.each([0, 3])).shape[0] == 2 * len(encoder.held[0])


@pytest.fixture
def asked(backbone, folder, tmp_path, data):
    """A function that asks for the reference's log-probabilities, and how many prompts it had to score."""
    examples = split_examples(data, "train", "next", users=9, rejected=2, candidates=6)
    scored = []

    def ask(monkeypatch, weights="w", change=lambda prompts, responses: None):
        encoder = encoder_for(backbone(), read_catalog(folder), frozen=True, cache=tmp_path / "c")
        prompts = Prompts(encoder, data.catalog.titles, "next", list_candidates=False)
        responses = [[prompts.chosen(e), *prompts.rejected(e)] for e in examples]
        change(prompts, responses)
        count = lambda e, p, r, **k: scored.append(len(p)) or score(e, p, r, **k)  # noqa: E731
        monkeypatch.setattr("hanorec.training.session.score", count)
        before = sum(scored)
        table = reference_logps(
            prompts, examples, responses, weights, forward_tokens=200, cache=tmp_path / "c"
        )  # fmt: skip
        return table, sum(scored) - before, (encoder, prompts, examples, responses)

    return ask


def test_reference_log_probabilities_are_those_of_each_prompt_alone(asked, monkeypatch):
    table, scored, (encoder, prompts, examples, responses) = asked(monkeypatch)
    assert table.shape == (9, 3) and scored == 9
    for row, example, answers in zip(table, examples, responses):
        with torch.no_grad():
            alone = [score(encoder, [prompts.prompt(example)], [[answer]]) for answer in answers]
        torch.testing.assert_close(row, torch.cat(alone), atol=1e-4, rtol=0)


def test_reference_log_probabilities_are_computed_once_until_something_changes(asked, monkeypatch, folder):
    first, *_ = asked(monkeypatch)
    again, scored, _ = asked(monkeypatch)
    assert scored == 0 and again.equal(first)
    assert asked(monkeypatch, weights="other")[1] == 9
    assert asked(monkeypatch, change=lambda prompts, responses: responses[0].reverse())[1] == 9
    assert asked(monkeypatch, change=lambda prompts, responses: setattr(prompts, "question", [5]))[1] == 9
    Image.fromarray(np.full((30, 30, 3), 7, np.uint8)).save(read_catalog(folder).images[0])
    assert asked(monkeypatch)[1] == 9
