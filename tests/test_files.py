"""Files and folders are on the disk whole or not at all, and links are replaced, not followed."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from processes import SERVER

from hanorec import files
from hanorec.errors import DataError


def test_a_file_that_cannot_be_written_leaves_the_one_before_and_nothing_beside(tmp_path, monkeypatch):
    files.replace_text(tmp_path / "a.json", "before")
    for owner, name in ((os, "fsync"), (Path, "replace")):

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(OSError, match="No space left"):
                files.replace_text(tmp_path / "a.json", "after")
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "before")]
    files.replace_text(tmp_path / "a.json", "after")
    assert (tmp_path / "a.json").read_text() == "after"


@pytest.mark.parametrize("target", ["mine", "nothing", "link", "folder"])
def test_a_link_is_replaced_and_its_target_left_alone(tmp_path, target):
    """To a file, to nothing, to itself, to a folder; the name of what is written aside cannot be foreseen."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / target)
    (tmp_path / "link.partial").symlink_to(tmp_path / "mine")
    files.replace_text(tmp_path / "link", "new")
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_text() == "new"
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "nothing").exists()
    assert not list((tmp_path / "folder").iterdir())


def test_leftovers_of_the_killed_are_removed_when_they_are_old_and_nobody_is_there(tmp_path):
    def left():
        for name in ("a.json.1.partial", ".tmpAbC", "model/.tmpD", "checkpoint.old/state.json", "model/config.json"):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("half")
            for old in (path, path.parent):
                os.utime(old, (time.time() - 4000,) * 2)
        (tmp_path / "young.partial").write_text("half")

    def there():
        return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}

    left()
    before = there()
    with ProcessPoolExecutor(1, SERVER) as other:
        other.submit(files.lock, tmp_path).result()
        files.remove_leftovers(tmp_path, "checkpoint*", "model/.tmp*")
        assert there() == before | {files.LOCK}
    files.remove_leftovers(tmp_path, "checkpoint*", "model/.tmp*")  # a lock of one that has died counts no more
    assert there() == {"model/config.json", "young.partial"}


def test_a_folder_takes_the_place_of_a_folder_or_a_link_once_it_is_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    for name in ("link", "folder", "new"):
        fresh = tmp_path / "fresh"
        (fresh / "deep").mkdir(parents=True)
        (fresh / "deep" / "file").write_text("content")
        forced, to_disk = [], files.to_disk
        monkeypatch.setattr(files, "to_disk", lambda path, forced=forced, to_disk=to_disk: forced.append(path.name))
        files.replace_folder(fresh, tmp_path / name)
        monkeypatch.undo()
        assert sorted(forced[:3]) == ["deep", "file", "fresh"] and forced[3:] == [tmp_path.name]
        assert [path.name for path in (tmp_path / name).iterdir()] == ["deep"] and not (tmp_path / name).is_symlink()
        assert not fresh.exists()
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["file", "file/run", "file/deep/run", "loop", "loop/run", "to-file/run"])
def test_where_no_folder_can_be_the_error_says_what_is_in_the_way(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-file").symlink_to("file")
    with pytest.raises(DataError, match=f"{name}: cannot be a folder, .*/(file|loop) is none"):
        files.check_new_folder(tmp_path / name)
    (tmp_path / "link").symlink_to("nothing-yet")
    for fine in (tmp_path, tmp_path / "new" / "run", tmp_path / "link", tmp_path / "link" / "run"):
        files.check_new_folder(fine)
