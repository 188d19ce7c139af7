#!/usr/bin/env python3
"""Turn MovieLens-100K or -1M, and a folder of movie posters, into the dataset layout (docs/data.md).

In flow the raw folder as GroupLens ships it (`u.data` and `u.item`, or `ratings.dat` and `movies.dat`) and
images named by movie id or by title; out flows a folder with train.tsv, val.tsv, test.tsv, titles.csv and
images/. What a user rated highly is what the user chose, in the order of the ratings' times. The last choice
is for testing, the one before it for validation.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # so that it runs before an installation

from hanorec.data.untrusted import IMAGE_SUFFIXES, listing, load_image
from hanorec.errors import DataError

EPILOG = """\
example:
  python data/prepare_movielens.py ml-100k posters datasets/ml-100k --match title --poster-size 96x144

Posters are named by movie id (12.jpg) or by title and year (The Godfather (1972).jpg; case, accents and
punctuation do not matter). MovieLens-100K and MovieLens-1M number their movies differently: for posters that
carry the other one's ids, or ids of another site, use --match title. Two movie ids with one title become the
first of them.
"""

ARTICLES = "The|A|An|Le|La|Les|L'|Il|Der|Die|Das|El|Los|Las|Un|Une"
MOVED_ARTICLE = re.compile(rf"(?P<name>[^(]+), (?P<article>{ARTICLES})(?P<rest>( \(.*)?)")
FORMATS = (  # ratings file, movies file and their separators; the cells we need come first in both
    ("u.data", "\t", "u.item", "|"),
    ("ratings.dat", "::", "movies.dat", "::"),
)


class Rating(NamedTuple):
    user: int
    movie: int
    stars: int
    time: int


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        prepare(options)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("raw", type=Path, metavar="RAW_FOLDER", help="the unpacked MovieLens-100K or -1M")
    add("posters", type=Path, metavar="POSTERS_FOLDER", help=f"images: {', '.join(IMAGE_SUFFIXES)}")
    add("out", type=Path, metavar="OUT_FOLDER", help="the dataset to make")
    text = "a choice is a rating of at least this (default: 4)"
    add("--min-rating", type=float, default=4, metavar="STARS", help=text)
    text = "drop users with fewer choices; 3 or more (default: 6)"
    add("--min-items", type=int, default=6, metavar="N", help=text)
    text = "find a poster by movie id and else by title, or by title alone (default: id)"
    add("--match", choices=("id", "title"), default="id", help=text)
    text = "shrink posters to at most WxH pixels, as JPEG (default: copy)"
    add("--poster-size", type=size, metavar="WxH", help=text)
    either = parser.add_mutually_exclusive_group()
    text = "drop movies without a readable poster (default)"
    either.add_argument("--require-poster", action="store_true", default=True, help=text)
    text = "keep them, as movies of a title alone"
    either.add_argument("--keep-without-poster", dest="require_poster", action="store_false", help=text)
    add("--overwrite", action="store_true", help="replace OUT_FOLDER where it is a dataset already")
    options = parser.parse_args(arguments)
    if options.min_items < 3:  # a training row is two items shorter than what the user chose
        parser.error(f"--min-items must be at least 3, not {options.min_items}")
    return options


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 96x144, not {text!r}")
    return int(match[1]), int(match[2])


def prepare(options: argparse.Namespace) -> None:
    out = options.out.resolve()
    check_output(out, options.overwrite, sources=(options.raw.resolve(), options.posters.resolve()))
    ratings, titles = read_raw(options.raw)
    first_id = merge(titles)
    liked = [rating for rating in ratings if rating.stars >= options.min_rating]
    liked.sort(key=lambda rating: rating.time)  # stable: where times are equal, the file's order holds
    posters = find_posters(options.posters, titles, first_id, by_id=options.match == "id")

    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")  # beside it, so that a rename finishes it
    images = partial / "images"
    try:
        images.mkdir(parents=True)
        broken = write_posters(posters, images, options.poster_size)
        usable = set(posters) - broken if options.require_poster else set(first_id.values())
        movies = {movie: title for movie, title in titles.items() if movie in usable}
        chosen, repeated = choices(liked, first_id, usable)
        kept = {user: items for user, items in sorted(chosen.items()) if len(items) >= options.min_items}
        if not kept:
            raise DataError(f"{options.raw}: no user chose {options.min_items} of {len(movies)} usable movies")
        write_tables(partial, kept, movies)
        put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

    users, distinct = len({rating.user for rating in ratings}), len(set(first_id.values()))
    left = sum(map(len, kept.values()))
    low = len(ratings) - len(liked)
    unusable = sum(first_id[rating.movie] not in usable for rating in liked)
    print(f"""\
{len(kept):,} users
    dropped: {users - len(kept):,} with fewer than {options.min_items} choices
{len(movies):,} movies, {len(posters) - len(broken):,} with a poster
    dropped: {distinct - len(movies):,} without a readable poster ({len(broken):,} posters are broken)
    merged: {len(titles) - distinct:,} ids with the title of an earlier id
{left:,} ratings
    dropped: {low:,} below {options.min_rating:g} stars, {unusable:,} of dropped movies, \
{repeated:,} of a movie chosen before, {len(liked) - unusable - repeated - left:,} of dropped users
written to {options.out}""")


def check_output(out: Path, overwrite: bool, sources: tuple[Path, ...]) -> None:
    for source in sources:
        if out == source or out in source.parents:
            raise DataError(f"{out}: the output would replace the input {source}")
    if not out.exists() or (out.is_dir() and not os.listdir(out)):
        return
    if not out.is_dir():
        raise DataError(f"{out}: exists and is no folder")
    if not overwrite:
        raise DataError(f"{out}: exists and is not empty; --overwrite replaces it")
    if not (out / "titles.csv").is_file():
        raise DataError(f"{out}: is no dataset (no titles.csv), so --overwrite does not replace it")


def read_raw(folder: Path) -> tuple[list[Rating], dict[int, str]]:
    """All ratings in file order, and the title of every movie id in reading order."""
    formats = [names for names in FORMATS if (folder / names[0]).is_file() and (folder / names[2]).is_file()]
    if len(formats) != 1:
        expected = "u.data and u.item, or ratings.dat and movies.dat"
        raise DataError(f"{folder}: expected {expected}; {listing(folder)}")
    ratings_name, ratings_separator, movies_name, movies_separator = formats[0]
    titles: dict[int, str] = {}
    for place, cells in rows(folder / movies_name, movies_separator, 2):
        movie, title = number(cells[0], place), reading_order(" ".join(cells[1].split()))
        if movie in titles:
            raise DataError(f"{place}: movie {movie} appears twice")
        if not title:
            raise DataError(f"{place}: movie {movie} has no title")
        titles[movie] = title
    ratings = []
    for place, cells in rows(folder / ratings_name, ratings_separator, 4):
        rating = Rating(*(number(cell, place) for cell in cells[:4]))
        if rating.movie not in titles:
            raise DataError(f"{place}: movie {rating.movie} is not in {movies_name}")
        ratings.append(rating)
    return ratings, titles


def rows(path: Path, separator: str, fewest: int) -> Iterator[tuple[str, list[str]]]:
    """(file:line, cells) of every row that is not blank. Both releases are latin-1."""
    with path.open(encoding="latin-1") as lines:
        for count, line in enumerate(lines, 1):
            cells = line.strip().split(separator)
            if len(cells) >= fewest:
                yield f"{path}:{count}", cells
            elif cells != [""]:
                expected = f"expected at least {fewest} cells separated by {separator!r}"
                raise DataError(f"{path}:{count}: {expected}, found {line.strip()!r}")


def number(cell: str, place: str) -> int:
    try:
        return int(cell)
    except ValueError:
        raise DataError(f"{place}: expected a whole number, found {cell!r}") from None


def reading_order(title: str) -> str:
    """'Godfather, The (1972)' -> 'The Godfather (1972)'; what stands in parentheses is left alone."""
    match = MOVED_ARTICLE.fullmatch(title)
    if not match:
        return title
    space = "" if match["article"].endswith("'") else " "
    return match["article"] + space + match["name"] + match["rest"]


def merge(titles: dict[int, str]) -> dict[int, int]:
    """The first id of every id: movies that share title and year are one movie, listed twice."""
    first: dict[str, int] = {}
    return {movie: first.setdefault(title, movie) for movie, title in titles.items()}


def find_posters(folder: Path, titles: dict[int, str], first_id: dict[int, int], by_id: bool) -> dict[int, Path]:
    """The poster file of every movie that has one, under the movie's first id."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of posters")
    files = sorted((path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES), reverse=True)
    by_stem = {path.stem: path for path in files} if by_id else {}
    by_title = {key(reading_order(path.stem)): path for path in files}
    posters: dict[int, Path] = {}
    for movie, title in titles.items():
        path = by_stem.get(str(movie)) or by_title.get(key(title))
        if path:
            posters.setdefault(first_id[movie], path)
    return posters


def key(title: str) -> str:
    """Letters and digits alone, without case and accents: file names lack the colon and the question mark."""
    return "".join(c for c in unicodedata.normalize("NFKD", title).casefold() if c.isalnum())


def write_posters(posters: dict[int, Path], folder: Path, largest: tuple[int, int] | None) -> set[int]:
    """Write <movie>.<suffix> files, shrunk to `largest` (width, height in pixels); returns the movies whose poster
    cannot be read."""
    broken = set()
    for movie, path in tqdm(posters.items(), desc="posters", disable=None):
        image = load_image(path)
        if image is None:
            broken.add(movie)
        elif largest:
            image.thumbnail(largest, Image.Resampling.LANCZOS)
            image.save(folder / f"{movie}.jpg", quality=90)
        else:
            shutil.copyfile(path, folder / f"{movie}{path.suffix.lower()}")
    return broken


def choices(liked: list[Rating], first_id: dict[int, int], usable: set[int]) -> tuple[dict[int, list[int]], int]:
    """Every user's movies, each once, in the order of `liked`; and how many ratings repeat one."""
    chosen: dict[int, dict[int, None]] = {}
    repeated = 0
    for rating in liked:
        movie = first_id[rating.movie]
        if movie in usable:
            movies = chosen.setdefault(rating.user, {})
            repeated += movie in movies
            movies.setdefault(movie)
    return {user: list(movies) for user, movies in chosen.items()}, repeated


def write_tables(folder: Path, sequences: dict[int, list[int]], titles: dict[int, str]) -> None:
    for split, held_out in (("train", 2), ("val", 1), ("test", 0)):
        with (folder / f"{split}.tsv").open("w", encoding="utf-8", newline="\n") as file:
            for user, items in sequences.items():
                file.write(f"{user}\t{' '.join(map(str, items[: len(items) - held_out]))}\n")
    with (folder / "titles.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("item", "title"), *titles.items()])


def put_in_place(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`. What `out` held is deleted only after that, and comes back if it fails."""
    old = partial.with_suffix(".old")
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
