"""What the files of a run, and those that it was made from, were when it was made; and which of them have changed.

In: the folder of a model, of a dataset or of a run. Out: a digest a file, which `config.json` and `finished.json` keep;
later an error, or a warning, that names the files which are no longer what they were.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from hanorec.cache import content_fingerprint, files_fingerprint
from hanorec.data.dataset import TOY_FOLDER
from hanorec.data.untrusted import IMAGE_SUFFIXES
from hanorec.errors import DataError
from hanorec.models import tiny
from hanorec.models.backbone import hub_commit
from hanorec.training.run_config import MODEL, is_run, read_config, read_json, start_of

LARGE = 2**30  # bytes: a file above is read again where its size or its time differ
OF_A_MODEL = (
    "config.json", "*.safetensors", "*.safetensors.index.json", "adapter_config.json", "*processor*.json",
    "chat_template*", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "*.py",
)  # fmt: skip
OF_A_DATASET = ("train.tsv", "val.tsv", "*titles.csv", "descriptions.csv", "negatives.tsv")
IMAGES = "images/"


Digests = dict[str, str]  # by the file's name: SHA-256 as 64 hex digits, of a large file also its size and time


def model_digests(folder: Path, known: Digests | None = None, *, within: str = "") -> Digests:
    """Of every file in a folder that a checkpoint or an adapter is loaded from.

    known: digests of an earlier time, of which those of large files stand where size and time do. within: what comes
    before a file's name, such as "model/".
    """
    paths = {path for pattern in OF_A_MODEL for path in folder.glob(pattern) if path.is_file()}
    return {(name := within + path.name): file_digest(path, (known or {}).get(name, "")) for path in sorted(paths)}


def data_digests(folder: Path) -> Digests:
    """Of a dataset's rows, titles and lists. Its images are one entry, by their names and sizes alone."""
    paths = {path for pattern in OF_A_DATASET for path in folder.glob(pattern) if path.is_file()}
    digests = {path.name: file_digest(path) for path in sorted(paths)}
    if (folder / IMAGES).is_dir():
        entries = [entry for entry in os.scandir(folder / IMAGES) if entry.is_file()]
        images = [entry for entry in entries if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES]
        digests[IMAGES] = content_fingerprint("\n".join(sorted(f"{e.name} {e.stat().st_size}" for e in images)))
    return digests


def file_digest(path: Path, known: str = "") -> str:
    """known: its digest of an earlier time."""
    about = path.stat()
    if about.st_size <= LARGE:
        return files_fingerprint([path])
    mark = f" {about.st_size} {about.st_mtime_ns}"
    return known if known.endswith(mark) else files_fingerprint([path]) + mark


def changed_files(before: Digests, now: Digests) -> list[str]:
    """The names of files that are there on one side alone, or whose content differs."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name, "")[:64] != now.get(name, "")[:64])


def listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def run_digests(folder: Path, known: Digests | None = None) -> Digests:
    """Of every file of a run that is read once it is finished. known: as in `model_digests`."""
    model = model_digests(folder / MODEL, known, within=f"{MODEL}/")
    return {"config.json": file_digest(folder / "config.json")} | model


def start_digests(start: str, known: Digests | None = None) -> Digests:
    """Of the files of a run or of a checkpoint's folder; of a checkpoint of the hub, its commit. known: as in
    `model_digests`."""
    if is_run(start):
        return run_digests(Path(start), known)
    folder = tiny.PRETRAINED if start == "tiny" else Path(start)
    return model_digests(folder, known) if folder.is_dir() else {"commit": hub_commit(start)}


def check_run(folder: str | Path, *, changed_run: bool = False) -> None:
    """Compare the files of a finished run, and of what it was made from, with what they were when it was made.

    changed_run: a file that has changed is a warning, and no error. A run that older versions made cannot be checked,
    which is said. Errors: DataError that names run and file.
    """

    def report(problem: str) -> None:
        if not changed_run:
            raise DataError(
                f"{problem}; put back what was there, or give --changed-run to go on with what is there now"
            )
        warnings.warn(problem, stacklevel=3)

    folder, config = Path(folder), read_config(folder)
    files = read_json(folder / "finished.json").get("files")
    if not files:
        warnings.warn(
            f"{folder}: whether its files have changed cannot be told; an older version made it", stacklevel=2
        )
    elif names := changed_files(files, run_digests(folder, files)):
        report(f"{folder}: {listed(names)} changed since this run was finished")
    if not (folder / MODEL / "adapter_config.json").is_file():
        return  # its model stands alone
    start, known = start_of(folder), config.get("made_from", {}).get("start", {})
    if is_run(start):
        check_run(start, changed_run=changed_run)
    if known and "commit" not in known and (names := changed_files(known, start_digests(start, known))):
        kind = "SFT run" if is_run(start) else "checkpoint"
        report(f"{folder}: was made from another {kind} than the one now in {start} ({listed(names)} changed)")


def warn_of_changed_data(folder: str | Path, data: Path) -> None:
    """Warn where a finished run was made from this very dataset, and the dataset has changed since."""
    config = read_config(folder)
    known = config.get("made_from", {}).get("data")
    if known is None or Path(config["data"] or TOY_FOLDER).resolve() != data.resolve():
        return
    if names := changed_files(known, data_digests(data)):
        warnings.warn(f"{data}: {listed(names)} changed since {folder} was made from it", stacklevel=2)
