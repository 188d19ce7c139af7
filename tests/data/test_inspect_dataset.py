"""What is told of a dataset before anything is trained on it, and which commands are printed."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from hanorec.data.interactions import UserHistory
from hanorec.errors import exit_on_user_error
from hanorec.training.command_line import parse
from hanorec.training.dpo_options import DPOOptions
from hanorec.training.evaluation_options import EvaluationOptions
from hanorec.training.options import SFTOptions

SPEC = importlib.util.spec_from_file_location("inspect_dataset", ROOT / "data" / "inspect_dataset.py")
inspect_dataset = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = inspect_dataset
SPEC.loader.exec_module(inspect_dataset)


@pytest.fixture
def inspect(monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["inspect_dataset.py", *map(str, arguments)])
        status = 0
        try:
            with exit_on_user_error():
                inspect_dataset.main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


def written(folder, rows: dict[str, str], titles: list[str]):
    """A dataset of a few rows, in which item n has the n-th title, and an image if n is even."""
    (folder / "images").mkdir(parents=True)
    (folder / "titles.csv").write_text("item,title\n" + "".join(f"{n},{title}\n" for n, title in enumerate(titles)))
    for split in ("train", "val", "test"):
        (folder / f"{split}.tsv").write_text(rows[split])
    for n in range(0, len(titles), 2):
        Image.new("RGB", (40, 60)).save(folder / "images" / f"{n}.png")
    return folder


def test_what_is_in_a_dataset_is_counted_and_what_will_hurt_is_told(tmp_path, inspect):
    titles = [
        "red box",
        "red box",
        "12",
        "a very long title of words that $nobody$ knows",
        *(f"zyx{c}qwv" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    rows = {"train": "u\t0 1 2\nv\t2 4\n", "val": "u\t0 1 2 4\nv\t2 4 3\n", "test": "u\t0 1 2 4 9\nv\t2 4 3 0\n"}
    folder = written(tmp_path / "my data", rows, titles)
    (folder / "images" / "2.png").write_bytes(b"no image")
    (folder / "image_urls.csv").write_text("item,url\n1,https://example.org/1.png\n")
    status, said, warned = inspect(folder)
    assert status == 0
    for line in (
        "users             2: 2 in train.tsv, 2 in val.tsv, 2 in test.tsv",
        "items             30, 26 of them in no row of train.tsv",
        "interactions      9, 5 of them in train.tsv",
        "rows of train.tsv 2 to 3 items; half have at most 2, and 90 % at most 2",
        "cold targets      1 of 2 in val.tsv, 1 of 2 in test.tsv (in no row of train.tsv)",
        "images            15 of 30 items have one; 1 of 15 that were opened cannot be read; 40 x 60 pixels (medians)",
        "titles            1 repeat another item's, 1 have no letter",
        "longest titles    9 words (item 3)",
    ):
        assert line in said, said
    for line in ("2.png: not used as an image", "50% of targets are cold", "3 training targets are few"):
        assert line in warned
    assert (
        f"python tools/fit_vocabulary.py --data '{folder}' --output runs/my-data-tiny\n" in said
    )  # too cold for whole
    with Image.open(folder / "preview.png") as preview:
        assert preview.format == "PNG" and np.unique(preview.convert("L")).size > 10


def test_the_commands_are_taken_by_the_scripts_and_a_picture_that_cannot_be_written_takes_nothing_away(
    tmp_path, inspect, monkeypatch
):
    rows = {"train": "u\t0 1 2\nv\t2 4\n", "val": "u\t0 1 2\nv\t2 4\n", "test": "u\t0 1 2\nv\t2 4 0\n"}
    folder = written(tmp_path / "toy", rows, ["Reef Viden"] * 5)
    monkeypatch.setattr(inspect_dataset, "draw_preview", lambda *_: b"")
    monkeypatch.setattr(inspect_dataset, "sft_minutes", lambda *_: 12.4)
    status, said, warned = inspect(folder, "--preview", tmp_path / "none" / "preview.png")
    assert status == 0 and "preview.png: cannot be written (No such file or directory)" in warned
    assert not (folder / "preview.png").exists() and "SFT takes some 12 min on" in said
    commands = [shlex.split(line)[1:] for line in said.splitlines() if line.startswith("python ")]
    assert [command[0] for command in commands] == [
        "train_sft.py",
        "train_dpo.py",
        "evaluate.py",
    ]  # its words are known
    for command, kind in zip(commands, (SFTOptions, DPOOptions, EvaluationOptions)):
        monkeypatch.setattr(sys, "argv", command)
        parse(kind)


def test_a_prompt_beyond_the_context_is_told(backbone, data):
    titles = list(data.catalog.titles)
    titles[3] = "word " * 3000
    long = replace(data, catalog=replace(data.catalog, titles=tuple(titles)))
    rows = [UserHistory(str(user), (0, 1)) for user in range(200)] + [UserHistory("v", (0, 1, 3))]
    windows = inspect_dataset.windows_of(data, "val", rows, history=5)
    assert inspect_dataset.prompts_fit(backbone, data, windows)
    with pytest.warns(UserWarning, match=f"longest title in it is that of item {data.catalog.items[3]}"):
        assert not inspect_dataset.prompts_fit(backbone, long, windows)


@pytest.mark.parametrize(
    "length, users, tokens, cold, expected",
    [
        (41, 400, 9, False, ("whole titles", 20, 40, 8)),  # 16,000 targets: as many epochs as help
        (41, 1500, 9, False, ("whole titles", 20, 40, 3)),
        (41, 1500, 9, True, ("words", 20, 40, 3)),
        (41, 1500, 2, True, ("", 20, 40, 3)),
        (10, 1000, 9, False, ("whole titles", 9, 18, 8)),
        (3, 200_000, 2, False, ("", 5, 16, 0.5)),  # 400,000 targets
    ],
)
def test_options_follow_rows_and_titles(data, length, users, tokens, cold, expected):
    warm = data.warm[0]
    other = int(np.flatnonzero(data.counts == 0)[0]) if cold else warm
    rows = {"train": [UserHistory("u", tuple(range(length)))] * users, "val": [UserHistory("u", (warm, other))]}
    rows["test"] = rows["val"]
    windows = inspect_dataset.windows_of(data, "train", rows["train"][:1], inspect_dataset.history_for(rows["train"]))
    targets = len(windows) * users
    per_title = np.array([tokens * len(title.split()) // 2 for title in data.catalog.titles])
    advice = inspect_dataset.advise(data, rows, targets, per_title)
    assert advice == expected
