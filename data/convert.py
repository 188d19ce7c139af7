"""The command line that all converters share: from a folder of raw files to a dataset, and what came of it as a table.

A converter, prepare_<name>.py, knows how its raw files are read. Cleaning, splits and files are the same for all
(`hanorec.data.prepare`).
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from hanorec.data.prepare import Prepared, Raw, Settings, prepare
from hanorec.data.raw import BadLines
from hanorec.errors import DataError, exit_on_user_error, shown
from hanorec.training.bounds import BoundedOption

Read = Callable[[argparse.Namespace, BadLines], Raw]
EPILOG = """\
What comes out is a folder that all scripts take as --data. Its prepared.json has the numbers of users, items and
interactions before and after each step. docs/data.md has a table of datasets.
"""


def convert(
    description: str, read: Read, *, add: Callable[[argparse.ArgumentParser], None] | None = None, **defaults
) -> None:
    """Read the command line, then the raw files with `read`, and write the dataset. Ends with an exit status where that
    fails. description: of the converter; its example first. add: adds a converter's own options to the parser.
    defaults: of `Settings`, where a converter's differ."""
    with exit_on_user_error():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what is half written is removed
        options = parse(description, add, defaults)
        settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
        check_output(options.out, options.overwrite, [path for path in (options.raw, options.images) if path])
        bad = BadLines(options.skip_bad_lines)
        raw = read(options, bad)
        if not (settings.keep_without_image or raw.images or any(text.url for text in raw.texts.values())):
            where = options.images or options.raw
            hint = "--images names their folder, and --keep-without-image keeps items that have none"
            raise DataError(f"{where}: holds no image of any item; {hint}")
        print(report(prepare(raw, options.out, settings, bad_lines=bad.count), bad.first, options.out))


def parse(description: str, add: Callable | None, defaults: dict) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = Settings(**defaults)
    one, number = parser.add_argument, partial(parser.add_argument, action=BoundedOption)
    one("raw", type=Path, metavar="RAW", help="folder with the published files")
    one("out", type=Path, metavar="OUT", help="dataset folder to make")
    if add:
        add(parser)
    one("--images", type=Path, metavar="DIR", help="folder with the images, if they are not where they are published")
    one("--keep-without-image", action="store_true", help="keep items that have no image, with their titles alone")
    text = "store images at most so large, as JPEG (default: as they are)"
    one("--image-size", type=size, metavar="WxH", help=text)
    text = "keep interactions with at least this rating (default: "
    default = "all" if usual.min_rating is None else f"{usual.min_rating:g}"
    number("--min-rating", type=float, least=-1e9, default=usual.min_rating, metavar="X", help=f"{text}{default})")
    text = "with at least so many interactions, again until nothing changes (default:"
    number(
        "--min-user",
        type=int,
        least=1,
        default=usual.min_user,
        metavar="N",
        help=f"keep users {text} {usual.min_user})",
    )
    number(
        "--min-item",
        type=int,
        least=1,
        default=usual.min_item,
        metavar="N",
        help=f"keep items {text} {usual.min_item})",
    )
    one("--keep-repeats", action="store_true", help="keep what a user chose again (default: each item once a user)")
    text = f"cut titles and descriptions that have more words (default: {usual.title_words})"
    number("--title-words", type=int, least=1, default=usual.title_words, metavar="N", help=text)
    text = "hold out each user's last two items, or all that came after a time (default: leave-one-out)"
    one("--split", choices=("leave-one-out", "time"), default=usual.split, help=text)
    text = (
        "with --split time: when validation and when testing begins, as two shares of all interactions, or as two dates"
    )
    text += f" such as 2018-09-20 (default: {' '.join(usual.cut)})"
    one("--cut", nargs=2, default=usual.cut, metavar=("A", "B"), help=text)
    text = "with --split time: which item after a cut is a user's target (default: first)"
    one("--target", choices=("first", "last"), default=usual.target, help=text)
    one("--skip-bad-lines", action="store_true", help="leave out and count lines that cannot be read")
    one("--overwrite", action="store_true", help="replace OUT where it is a dataset already")
    options = parser.parse_args()
    options.cut = tuple(options.cut)
    if options.split == "leave-one-out" and options.min_user < 3:
        parser.error("--min-user must be at least 3: a user needs an item for training, validation and testing each")
    return options


def size(text: str) -> tuple[int, int]:
    width, x, height = text.partition("x")
    if not (x and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 96x144, not {text!r}")
    return int(width), int(height)


def check_output(out: Path, overwrite: bool, sources: Sequence[Path]) -> None:
    """Errors: DataError where a dataset must not be put in the place of what is there."""
    place = out.resolve()
    for source in sources:
        if place == source.resolve() or place in source.resolve().parents:
            raise DataError(f"{out}: the output would replace the input {source}")
    if not os.path.lexists(place) or (place.is_dir() and not os.listdir(place)):
        return
    if not place.is_dir():
        raise DataError(f"{out}: exists and is no folder")
    if not overwrite:
        raise DataError(f"{out}: exists and is not empty; --overwrite replaces it")
    if not (place / "titles.csv").is_file():
        raise DataError(f"{out}: is no dataset (no titles.csv), so --overwrite does not replace it")


def report(prepared: Prepared, first_bad_line: str, out: Path) -> str:
    """The steps as a table, what else was counted, where the dataset is, and the commands that go on."""
    width = max(len(step.step) for step in prepared.steps)
    lines = [f"{'':{width}}  {'users':>10}  {'items':>10}  {'interactions':>12}"]
    for step in prepared.steps:
        lines.append(f"{step.step:{width}}  {step.users:>10,}  {step.items:>10,}  {step.interactions:>12,}")
    lines += [""] + [f"{number:,} {what}" for what, number in prepared.counts.items() if number]
    if first_bad_line:
        lines.append(f"the first bad line: {first_bad_line}")
    rows = ", ".join(f"{number:,} in {split}.tsv" for split, number in prepared.rows.items())
    lines.append(f"rows: {rows}")
    lines += [f"made {out} from {', '.join(prepared.files)}", "", "next:"]
    scripts = ["fetch_images.py"] * bool(prepared.counts["images to be fetched"]) + ["inspect_dataset.py"]
    lines += [f"    python data/{script} {shlex.quote(str(out))}" for script in scripts]
    return "\n".join(map(shown, lines))
