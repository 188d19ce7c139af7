"""The tiny backbone puts images into words, once each, whatever shares their batch and however often it is stopped."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from hanorec.data.catalog import read_catalog, read_descriptions
from hanorec.data.toy import STYLES, draw
from hanorec.errors import exit_on_user_error
from hanorec.models import encoding
from hanorec.models.backbone import load_backbone
from tools import pretrain_tiny


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "data" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


describe_items = script("describe_items")


@pytest.fixture
def folder(tmp_path):
    """A picture of each style, an item without an image, and one whose image is broken."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    titles = [f"{number},Comet {style * number}" for number, style in enumerate(STYLES)]
    for number, style in enumerate(STYLES):
        draw(style, rng).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "broken.png").write_text("no image")
    (tmp_path / "titles.csv").write_text("\n".join([*titles, "none,Alone", "broken,Broken"]) + "\n")
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch, capsys):
    def run(*more) -> tuple[int, str]:
        command = ["describe_items.py", "--data", folder, "--backbone", "tiny", "--new-tokens", 12, *more]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        status = 0
        try:
            with exit_on_user_error():
                describe_items.main()
        except SystemExit as stop:
            status = stop.code
        return status, "".join(capsys.readouterr())

    return run


@pytest.mark.filterwarnings("ignore:.*not used as an image")
def test_a_description_says_what_the_image_shows_whatever_shares_its_batch(folder, run):
    texts = []
    for size in (4, 1):
        status, out = run("--batch-size", size, "--output", folder / f"by-{size}.csv")
        assert status == 0 and f"descriptions of {len(STYLES)} of {len(STYLES) + 2} items" in out, out
        texts.append(read_descriptions(folder / f"by-{size}.csv", read_catalog(folder)))
    assert texts[0] == texts[1]
    assert [text.split(",")[0] for text in texts[0]] == [*STYLES, "", ""]


@pytest.mark.filterwarnings("ignore:.*not used as an image")
def test_what_is_there_is_kept_and_a_row_that_was_cut_off_is_made_again(folder, run):
    run()
    whole = (folder / "descriptions.csv").read_text()
    lines = whole.splitlines(keepends=True)
    (folder / "descriptions.csv").write_text("".join([lines[0], "0,mine\n", lines[2], lines[3][:4]]))
    assert run()[0] == 0
    assert (folder / "descriptions.csv").read_text() == whole.replace(lines[1], "0,mine\n")


def test_an_image_that_the_processor_refuses_is_named_and_gets_no_description(folder, run, monkeypatch):
    """As those of Qwen's do with what is 200 times as wide as high."""
    call = encoding.call_processor

    def refuse(backbone, *images):
        if any(image.width > 200 * image.height for image in images):
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return call(backbone, *images)

    monkeypatch.setattr(encoding, "call_processor", refuse)
    Image.new("RGB", (2000, 8)).save(folder / "images" / "none.png")
    status, out = run()
    assert status == 0 and f"descriptions of {len(STYLES)} of {len(STYLES) + 2} items" in out
    assert f"{folder / 'images' / 'none.png'}: not used as an image (ValueError: absolute aspect ratio" in out


def test_the_tiny_backbone_is_asked_as_its_pretraining_asked():
    """The example of a caption in tools/pretrain_tiny.py, with one item, and the same as ids."""
    backbone = load_backbone("tiny")
    text = describe_items.prompt_of(backbone, describe_items.TINY_QUESTION, "Comet Bara")
    asked = [pretrain_tiny.HISTORY, "\n", "<image>", "Comet Bara", "\n" + pretrain_tiny.DESCRIBE]
    ids = [id for part in asked for id in backbone.tokens(part)]
    assert backbone.tokens(text) == backbone.prefix + ids + backbone.separator


@pytest.mark.parametrize("title, shown", [("Comet", "Comet"), ("<image>", ""), ("a <end_of_utterance>", "")])
def test_a_title_that_names_a_special_token_is_not_shown(title, shown):
    text = describe_items.prompt_of(load_backbone("tiny"), "{image}[{title}]", title)
    assert text.count("<image>") == 1 and f"[{shown}]" in text


@pytest.mark.parametrize(
    "more, message",
    [
        (("--prompt", "What?"), "--prompt What?: must say {image} once"),
        (("--batch-size", 0), "--batch-size 0: must be a number of at least 1"),
    ],
)
def test_what_cannot_be_asked_is_an_error(folder, run, more, message):
    status, out = run(*more)
    assert status == 2 and message in out and not (folder / "descriptions.csv").exists()
