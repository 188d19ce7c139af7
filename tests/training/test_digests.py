"""A run, and what it was made from, are compared with what they were: a byte that changed is an error with its file."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hanorec.errors import DataError, exit_on_user_error
from hanorec.models.backbone import hub_commit
from hanorec.training import digests
from hanorec.training.digests import check_run, model_digests, warn_of_changed_data
from hanorec.training.dpo_options import DPOOptions
from hanorec.training.options import SFTOptions
from hanorec.training.run_config import sft_options, start_of
from hanorec.training.runs import load_run, open_run

FEW = "--max-steps 2 --validate-users 4 --batch-size 4 --log-every 1".split()
DATA, BASE = ("--data", "toy", "--candidates", "8"), ("--backbone", "base")


def call(name, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        with exit_on_user_error():
            importlib.import_module(name).main()


@pytest.fixture(scope="module")
def made(tmp_path_factory, toy_folder, random_backbone):
    """A dataset, a checkpoint, an SFT run of its weights, one of an adapter, and a DPO run on each."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(toy_folder, folder / "toy")
    shutil.copytree(random_backbone, folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        call("train_sft", *DATA, *BASE, "--output", "sft", *FEW)
        call("train_sft", *DATA, *BASE, "--output", "lora", *FEW, "--lora", "on")
        call("train_dpo", "--sft", "sft", "--output", "dpo", *FEW)
        call("train_dpo", "--sft", "lora", "--output", "dpo-lora", *FEW)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A copy of it that a test may damage, as the working directory."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def flip(path: Path, at: float) -> None:
    """Change one bit, at a share of the file."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


def edit(path: Path, **change) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change, indent=2))


@pytest.mark.parametrize("run", ["sft", "lora", "dpo", "dpo-lora"])
def test_a_run_that_nobody_touched_is_loaded_without_a_word(here, run, recwarn):
    load_run(run)
    assert not [str(warning.message) for warning in recwarn if "chang" in str(warning.message)]


DAMAGES = [
    ("sft", "sft", "model/model.safetensors", lambda path: flip(path, 0.7)),
    ("sft", "sft", "model/tokenizer.json", lambda path: flip(path, 0.5)),
    ("sft", "sft", "model/processor_config.json", lambda path: path.write_bytes(b"")),
    ("sft", "sft", "model/chat_template.jinja", lambda path: path.write_bytes(b"")),
    ("sft", "sft", "model/config.json", lambda path: path.write_bytes(path.read_bytes()[:50])),
    ("sft", "sft", "config.json", lambda path: edit(path, item_view="title")),
    ("sft", "sft", "config.json", lambda path: edit(path, history=2)),
    ("sft", "sft", "model/tokenizer_config.json", Path.unlink),
    ("sft", "sft", "model/added_tokens.json", lambda path: path.write_text("{}")),
    ("dpo", "dpo", "model/adapter_model.safetensors", lambda path: flip(path, 0.9)),
    ("dpo", "dpo", "model/adapter_config.json", lambda path: edit(path, lora_alpha=72)),
    ("dpo", "sft", "model/model.safetensors", lambda path: flip(path, 0.7)),
    ("dpo-lora", "lora", "model/adapter_config.json", lambda path: edit(path, lora_alpha=72)),
    ("lora", "base", "model.safetensors", lambda path: flip(path, 0.7)),
    ("lora", "base", "tokenizer.json", lambda path: flip(path, 0.5)),
    ("dpo-lora", "base", "model.safetensors", lambda path: flip(path, 0.7)),
]


@pytest.mark.parametrize(
    "run, folder, file, damage", DAMAGES, ids=[f"{run} {folder}/{f}" for run, folder, f, _ in DAMAGES]
)
def test_a_file_that_changed_is_an_error_with_its_name(here, run, folder, file, damage):
    damage(here / folder / file)
    with pytest.raises(DataError, match=rf"{folder}.*{file}.* --changed-run"):
        check_run(run)
    with pytest.warns(UserWarning, match=rf"{folder}.*{file}"):
        check_run(run, changed_run=True)


@pytest.mark.parametrize("script", ["train_sft", "train_dpo", "evaluate"])
def test_every_script_refuses_a_run_that_changed_and_goes_on_where_it_is_asked_to(here, script, capsys):
    edit(here / "sft" / "config.json", seed=7)
    given = {
        "train_sft": ("--backbone", "sft", "--output", "more", *DATA, *FEW),
        "train_dpo": ("--sft", "sft", "--output", "more", *FEW),
        "evaluate": ("--runs", "lora", "sft", "--baselines", "random", "--users", "3"),
    }[script]
    with pytest.raises(SystemExit) as stop:
        call(script, *given)
    out, errors = capsys.readouterr()
    assert stop.value.code == 2 and errors.splitlines()[-1].startswith("error: sft: config.json changed since")
    assert not (here / "more").exists() and "|" not in out  # nothing was trained, and no run ranked
    call(script, *given, "--changed-run")
    assert "warning: sft: config.json changed since this run was finished" in capsys.readouterr().err


def test_a_run_that_was_made_anew_is_another_start(here):
    shutil.rmtree(here / "sft")
    call("train_sft", *DATA, *BASE, "--output", "sft", *FEW, "--seed", "9")
    with pytest.raises(
        DataError, match=r"dpo: was made from another SFT run than the one now in sft \(config.json, model/mod"
    ):
        check_run("dpo")


def test_a_run_of_an_older_version_is_read_with_a_line(here):
    for name in ("sft", "dpo"):
        edit(here / name / "finished.json", files=None)
    with pytest.warns(
        UserWarning, match="dpo: whether its files have changed cannot be told; an older version made it"
    ):
        load_run("dpo")


def test_what_a_run_was_made_from_is_found_beside_it_or_named(here, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for run in ("dpo", "dpo-lora"):
        load_run(here / run)
    (here / "base").rename(here / "renamed")
    load_run(here / "dpo")  # its SFT run was trained whole and needs no base
    with pytest.raises(
        DataError, match=r"lora: was made from base, which is not there any more; put it back, or beside"
    ):
        load_run(here / "dpo-lora")
    (here / "sft").rename(here / "first")
    with pytest.raises(DataError, match=r"dpo: was made from sft, which is not there any more; put it back, or beside"):
        load_run(here / "dpo")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"task": "nxt"}, r"task.*'nxt'"),
        ({"history": "five"}, r"history.*'five'"),
        ({"history": 0}, r"history 0"),
        ({"item_view": 3}, r"item-view.*'3'"),
        ({"backbone": 3}, r"backbone cannot be 3"),
        ({"data": ["a"]}, r"data cannot be \[\"a\"\]"),
        ({"dtype": "float8"}, r"dtype.*'float8'"),
        ({"list_candidates": {}}, r"list_candidates takes a single value"),
        ({"image_pixels": None}, r"image_pixels cannot be null"),
        ({"epochs": float("nan")}, r"epochs nan"),
        ({"protocol": "release"}, r"protocol release"),
    ],
)
@pytest.mark.parametrize("run", ["sft", "dpo"])
def test_a_config_is_read_through_the_checks_of_the_options(here, run, change, said):
    edit(here / "sft" / "config.json", **change)
    with pytest.raises(DataError, match=rf"^sft.config.json: .*{said}"):
        sft_options(run)


@pytest.mark.parametrize(
    "content, said",
    [
        ("[]", "damaged .config.json: no mapping"),
        ("[" * 100_000, "damaged .config.json"),
        ('{"kind": ["sft"]}', "its kind is"),
        ("", "damaged .config.json"),
        ("{", "damaged .config.json"),
    ],
)
def test_a_config_that_is_no_mapping_of_options_is_a_line(here, content, said):
    (here / "sft" / "config.json").write_text(content)
    with pytest.raises(DataError, match=rf"sft: not a run's folder.*{said}"):
        sft_options("dpo")


@pytest.mark.parametrize("name", ["dtype", "backbone", "task", "item_view"])
def test_an_option_that_a_config_lacks_is_named(here, name):
    content = json.loads((here / "sft" / "config.json").read_text())
    del content[name]
    (here / "sft" / "config.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"sft.config.json: has no {name}$"):
        sft_options("sft")
    content["version"] = "0.2.0"  # which had other options
    (here / "sft" / "config.json").write_text(json.dumps(content))
    assert sft_options("sft").history is None


def test_a_dataset_that_was_edited_is_told_by_file(here):
    images = sorted((here / "toy" / "images").iterdir())
    edits = [
        ("titles.csv", lambda path: path.write_text(path.read_text().replace("a", "e"))),
        ("train.tsv", lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))),
        ("images/", lambda path: images[0].write_bytes(images[0].read_bytes() + b" ")),
        ("descriptions.csv", lambda path: path.write_text("item,description\n")),
    ]
    named = []
    for name, change in edits:
        change(here / "toy" / name)
        named = sorted([*named, name])
        said = ", ".join(named[:3]) + (" and 1 more" if len(named) > 3 else " changed")
        with pytest.warns(UserWarning, match=f"^toy: {said}.* since dpo was made from it"):
            warn_of_changed_data("dpo", Path("toy"))
    shutil.copytree(here / "toy", here / "other")
    warn_of_changed_data("dpo", Path("other"))  # another dataset is no change


def test_files_that_nothing_is_read_from_are_no_change(here):
    for path in ("toy/README.md", "toy/images/Thumbs.db", "toy/test.tsv", "base/README.md", "sft/model/README.md"):
        (here / path).write_text("anything")
    check_run("dpo-lora")
    check_run("dpo")
    warn_of_changed_data("dpo", Path("toy"))


def test_a_large_file_is_read_again_where_its_size_or_time_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "LARGE", 10)
    path, read = tmp_path / "model.safetensors", []
    path.write_bytes(bytes(20))
    known = model_digests(tmp_path)
    fingerprint = digests.files_fingerprint
    monkeypatch.setattr(digests, "files_fingerprint", lambda paths: read.append(paths) or fingerprint(paths))
    assert model_digests(tmp_path, known) == known and not read
    os.utime(path, ns=(1, 1))
    assert not digests.changed_files(known, model_digests(tmp_path, known)) and len(read) == 1
    path.write_bytes(bytes(19) + b"1")
    assert digests.changed_files(known, model_digests(tmp_path, known)) == ["model.safetensors"] and len(read) == 2


def test_a_checkpoint_of_the_hub_is_read_at_the_commit_that_a_run_was_made_from(here, monkeypatch):
    """In the hub's own cache, whose newest commit has other weights."""
    cache = here / "hub" / "models--someone--small"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    first, second = "1" * 40, "2" * 40
    for commit in (first, second):
        shutil.copytree(here / "base", cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(first)
    call("train_sft", *DATA, "--backbone", "someone/small", "--output", "hub-lora", *FEW, "--lora", "on")
    assert hub_commit("someone/small") == first and start_of("hub-lora") == "someone/small"
    before, _ = load_run("hub-lora")
    (cache / "refs" / "main").write_text(second)
    flip(cache / "snapshots" / second / "model.safetensors", 0.7)
    after, _ = load_run("hub-lora")
    assert hub_commit("someone/small") == second
    assert all(weight.equal(after.model.state_dict()[name]) for name, weight in before.model.state_dict().items())


RESUMED = {
    "sft": SFTOptions(data="toy", backbone="base", output="again"),
    "lora": SFTOptions(data="toy", backbone="lora", output="again"),
    "dpo": DPOOptions(data="toy", sft="sft", output="again"),
}


@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED.keys())
def test_a_resumed_run_may_change_memory_and_logging_and_nothing_else(here, options, recwarn):
    open_run(options, Path("toy"))
    resumed = replace(options, resume=True)
    for refused in ({"learning_rate": 1.0}, {"validate_every": 3}, {"seed": 4, "log_every": 2}):
        with pytest.raises(DataError, match=f"was started with other settings .{next(iter(refused))}: "):
            open_run(replace(resumed, **refused), Path("toy"))
    open_run(replace(resumed, output="../here/again", cache="elsewhere"), Path("toy"))  # which change nothing
    assert not recwarn.list
    open_run(replace(resumed, checkpoint_every=7), Path("toy"))
    assert "goes on with checkpoint_every: 200 then, 7 now" in str(recwarn.pop().message)
    open_run(replace(resumed, forward_tokens=2000), Path("toy"))
    assert "forward_tokens: 8192 then, 2000 now; its sums may differ in their last bits" in str(recwarn.pop().message)
    assert json.loads((here / "again" / "config.json").read_text())["forward_tokens"] == 2000


@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED.keys())
def test_a_run_is_not_resumed_on_other_data_or_another_start(here, options):
    open_run(options, Path("toy"))
    start = Path(options.sft if isinstance(options, DPOOptions) else options.backbone)
    file = start / ("model/tokenizer.json" if (start / "model/tokenizer.json").is_file() else "config.json")
    for path, folder in ((Path("toy/val.tsv"), "toy"), (file, str(start))):
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        with pytest.raises(DataError, match=f"{path.name} of {folder} changed since this run was started"):
            open_run(replace(options, resume=True), Path("toy"))
        path.write_bytes(before)
    open_run(replace(options, resume=True), Path("toy"))
