"""Raw files as others publish them, read row by row.

In flows a folder: CSV, TSV or JSON lines, packed with gzip or not, and images in folders of any depth. Out flow rows
with the numbers of their lines, and the image file of every item. A file is known by its columns, for copies rename
it. A line that cannot be read is an error that names file and line, or it is counted and left out (`BadLines`).
"""

from __future__ import annotations

import ast
import csv
import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from hanorec.data.untrusted import IMAGE_SUFFIXES, listing, why_not_opened
from hanorec.errors import DataError

LONGEST_LINE = 64 * 2**20  # bytes; a file without line ends would fill the memory
TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".gz", ".dat", ".data", ".inter", ".item")
GZIP = b"\x1f\x8b"
Fits = Callable[[str, list[str]], bool]  # of a file's kind ("csv", "tsv", "json") and its first row's cells or keys


class BadLines:
    """What becomes of a line that cannot be read: an error or, where they are skipped, a count."""

    def __init__(self, skip: bool = False):
        self.skip, self.count, self.first = skip, 0, ""

    def __call__(self, path: Path, line: int, reason: str, lines: int = 1) -> None:
        """Errors: DataError with file, line and reason, unless bad lines are skipped."""
        if not self.skip:
            raise DataError(f"{path}:{line}: {reason}")
        self.count += lines
        self.first = self.first or f"{path}:{line}: {reason}"


def text_lines(path: Path, bad: BadLines, encoding: str = "utf-8-sig") -> Iterator[tuple[int, str]]:
    """(number, text without its end) of every line. Errors: DataError where the file cannot be read to its end."""
    if reason := why_not_opened(path, sys.maxsize):
        raise DataError(f"{path}: cannot be read ({reason})")
    number = 0
    with open(path, "rb") as start:
        packed = start.read(2) == GZIP
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
                if len(line) == LONGEST_LINE:
                    raise DataError(f"{path}:{number}: the line is longer than {LONGEST_LINE:,} bytes")
                try:
                    text = line.decode(encoding if number == 1 else encoding.removesuffix("-sig"))
                except UnicodeDecodeError as error:
                    bad(path, number, f"not {error.encoding.upper()}, byte 0x{line[error.start]:02x}")
                    continue
                yield number, text.rstrip("\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the gzip file is cut short or damaged after line {number} ({error})") from None


def csv_rows(path: Path, bad: BadLines, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of every row of a CSV that is not blank. With tabs between cells, quotes mean
    something only where they are around a whole cell."""
    if delimiter == "\t":
        for number, line in text_lines(path, bad):
            if line.strip():
                yield number, [unquoted(cell) for cell in line.split("\t")]
        return
    last = 0

    def lines() -> Iterator[str]:
        nonlocal last
        for last, line in text_lines(path, bad):  # noqa: B007  read outside
            yield f"{line}\n"

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)  # strict: an open quote must not swallow the rest
    while True:
        first = last + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            bad(path, first, f"not CSV ({error})", lines=max(1, last - first + 1))
            continue
        if any(cell.strip() for cell in cells):
            yield first, cells


def named_columns(
    path: Path, bad: BadLines, names: Sequence[str], *, optional: Sequence[str] = (), delimiter: str = ","
) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of the columns `names`, then `optional` (empty where there is no such column), of a CSV with a
    header. Errors: DataError that says which columns were expected and which were found."""
    rows = csv_rows(path, bad, delimiter)
    header = [cell.strip() for cell in next(rows, (0, [""]))[1]]
    if any(name not in header for name in names):
        hint = "; is there another delimiter?" if len(header) == 1 else ""
        raise DataError(f"{path}: expected the columns {', '.join(names)}, found {shortened(', '.join(header))}{hint}")
    width, places = len(header), [header.index(name) if name in header else None for name in (*names, *optional)]
    for line, cells in rows:
        if len(cells) == width:
            yield line, ["" if place is None else cells[place] for place in places]
        else:
            bad(path, line, f"expected {width} cells, found {len(cells)}: {shortened(delimiter.join(cells))}")


def json_rows(path: Path, bad: BadLines) -> Iterator[tuple[int, dict]]:
    """(line, object) of every line that is not blank. Python's own literals are read as well: so Amazon's metadata of
    2014 was written."""
    for number, line in text_lines(path, bad):
        if not line.strip():
            continue
        row = _object(line)
        if row is None:
            bad(path, number, f"expected a JSON object a line, found {shortened(line)}")
        else:
            yield number, row


def named_values(path: Path, bad: BadLines, names: Sequence[str]) -> Iterator[tuple[int, list]]:
    """(line, values) of what JSON lines have under these names; a line that lacks one, or has null, is bad."""
    for line, row in json_rows(path, bad):
        values = [row.get(name) for name in names]
        if None in values:
            bad(path, line, f"expected {', '.join(names)}, found {shortened(', '.join(map(str, row)))}")
        else:
            yield line, values


def sequence_rows(path: Path, bad: BadLines) -> Iterator[tuple[int, str, str, None, None]]:
    """Line, user and item, for `log.read_log`, of a file with lines user<TAB>item item item ..., oldest first."""
    for line, cells in csv_rows(path, bad, "\t"):
        items = cells[1].split() if len(cells) == 2 else []
        if not items:
            bad(path, line, f"expected user<TAB>item item item ..., found {shortened(' '.join(cells))}")
        for item in items:
            yield line, cells[0], item, None, None


def _object(line: str) -> dict | None:
    for parse in (json.loads, ast.literal_eval):
        try:
            row = parse(line)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return row if isinstance(row, dict) else None
    return None


def unquoted(cell: str) -> str:
    """A cell without the quotation marks of CSV, if they are around the whole of it."""
    inner = cell[1:-1]
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def shortened(text: str, length: int = 100) -> str:
    """A text for an error message, in quotation marks where it is what was found."""
    return repr(text if len(text) <= length else text[:length] + "...")


# which file is which


def find_file(folder: Path, expected: str, fits: Fits, *names: str) -> Path:
    """The one file of a folder, or of the folders in it, whose first row `fits`.

    names: patterns of its published names, the preferred first. A file of such a name goes before others. Errors:
    DataError where no file fits, which says what was expected and what each file has, or where several do.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    paths = sorted(path for path in (*folder.glob("*"), *folder.glob("*/*")) if path.suffix.lower() in TEXT_SUFFIXES)
    starts = {path: first_row(path) for path in paths if path.is_file() and not path.match("*.tar.gz")}
    fitting = [path for path, start in starts.items() if fits(*start)]
    for name in names:
        if named := [path for path in fitting if path.match(name)]:
            fitting = named
            break
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        several = ", ".join(str(path.relative_to(folder)) for path in fitting)
        raise DataError(f"{folder}: several files could be {expected}: {several}; leave one of them there")
    found = [f"{path.relative_to(folder)} has {shortened(', '.join(cells))}" for path, (_, cells) in starts.items()]
    raise DataError(f"{folder}: expected {expected}; {'; '.join(found[:5]) or listing(folder)}")


def has_columns(*names: str) -> Fits:
    """Whether a file is a CSV with a header that has these columns."""
    return lambda kind, cells: kind == "csv" and set(names) <= set(cells)


def first_row(path: Path) -> tuple[str, list[str]]:
    """A file's kind ("json", "tsv" or "csv") and the cells of its first row, of JSON the keys."""
    nothing_bad = BadLines(skip=True)
    line = next((line for _, line in text_lines(path, nothing_bad) if line.strip()), "")
    if line.lstrip().startswith("{"):
        return "json", list(_object(line) or ())
    if "\t" in line:
        return "tsv", [cell.strip() for cell in line.split("\t")]
    try:
        return "csv", [cell.strip() for cell in next(csv.reader([line]), [])]
    except csv.Error:
        return "csv", [line]


def item_column(path: Path, rows: Iterable[tuple[int, list[str]]], known: Collection[str], sample: int = 1000) -> int:
    """Which of a row's first two cells is the item's: the one that is more often among the `known` items.

    rows: those of the file `path`. Errors: DataError where it is neither.
    """
    found = [0, 0]
    for _, (_, cells) in zip(range(sample), rows):
        for place, cell in enumerate(cells[:2]):
            found[place] += cell.strip() in known
    if found[0] == found[1]:
        raise DataError(
            f"{path}: expected the ids of items in its first or second column; the items' file knows neither"
        )
    return int(found[1] > found[0])


# images


def image_files(raw: Path, given: Path | None, *names: str) -> dict[str, Path]:
    """The image files, at any depth, by their names without suffix; of several of a name the first.

    given: the folder to look in (None: those in `raw` that match one of `names` or are called `images`). Errors:
    DataError where the given folder is missing.
    """
    if given and not given.is_dir():
        raise DataError(f"{given}: no such folder of images")
    folders = [given] if given else sorted(path for name in (*names, "images") for path in raw.glob(name))
    found: dict[str, Path] = {}
    for parent, subfolders, files in (entry for folder in folders for entry in os.walk(folder)):
        subfolders.sort()
        for suffix in IMAGE_SUFFIXES:
            for name in sorted(name for name in files if name.lower().endswith(suffix)):
                found.setdefault(name[: -len(suffix)], Path(parent, name))
    return found


def find_images(raw: Path, given: Path | None, items: Collection[str], *names: str, digits: int = 0) -> dict[str, Path]:
    """The image file of every item that has one, named by its id, as `image_files` finds them. digits: a name is filled
    up with zeros to so many."""
    files = image_files(raw, given, *names)
    return {item: path for stem, path in files.items() if (item := stem.zfill(digits)) in items}
