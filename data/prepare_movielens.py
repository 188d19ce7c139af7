#!/usr/bin/env python3
"""Turn MovieLens (https://grouplens.org/datasets/movielens) and a folder of movie posters into a dataset.

    python data/prepare_movielens.py ml-100k datasets/ml-100k --images posters --match title --image-size 96x144

RAW holds, as published,
    u.data and u.item            MovieLens-100K
or  ratings.dat and movies.dat   MovieLens-1M and -10M
or  ratings.csv and movies.csv   the later ones
What a user rated highly is what the user chose. Posters are named by movie id (12.jpg) or by title and year (The
Godfather (1972).jpg; case, accents and punctuation do not matter). The releases number their movies differently: for
posters that carry another one's ids, or ids of another site, use --match title. Titles are put into reading order. Two
movie ids with one title become the first of them.
"""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from convert import convert

from hanorec.data.log import read_log
from hanorec.data.prepare import ItemText, Raw, item_texts
from hanorec.data.raw import BadLines, csv_rows, image_files, shortened, text_lines
from hanorec.data.untrusted import listing
from hanorec.errors import DataError

ARTICLES = "The|A|An|Le|La|Les|L'|Il|Der|Die|Das|El|Los|Las|Un|Une"
MOVED_ARTICLE = re.compile(rf"(?P<name>[^(]+), (?P<article>{ARTICLES})(?P<rest>( \(.*)?)")
FORMATS = (  # ratings file, movies file and what separates their cells; the cells we need come first in both
    ("u.data", "\t", "u.item", "|"),
    ("ratings.dat", "::", "movies.dat", "::"),
    ("ratings.csv", ",", "movies.csv", ","),
)


def main() -> None:
    convert(__doc__, read, add=add_options, min_rating=4.0, min_user=6)


def add_options(parser: argparse.ArgumentParser) -> None:
    text = "find a poster by movie id and else by title, or by title alone (default: id)"
    parser.add_argument("--match", choices=("id", "title"), default="id", help=text)


def read(options: argparse.Namespace, bad: BadLines) -> Raw:
    found = [form for form in FORMATS if (options.raw / form[0]).is_file() and (options.raw / form[2]).is_file()]
    if len(found) != 1:
        expected = ", or ".join(f"{ratings} and {movies}" for ratings, _, movies, _ in FORMATS)
        raise DataError(f"{options.raw}: expected {expected}; {listing(options.raw)}")
    ratings, movies = options.raw / found[0][0], options.raw / found[0][2]
    titles: dict[str, str] = {}
    encoding = "utf-8" if is_utf8(movies) else "latin-1"  # of the older releases
    for _, (movie, title, *_) in rows(movies, found[0][3], 2, bad, encoding):
        titles.setdefault(movie, reading_order(" ".join(title.split())))
    first: dict[str, str] = {}  # of the ids of one title and year: such movies are one, listed twice
    first_id = {movie: first.setdefault(title, movie) for movie, title in titles.items()}
    rated = rows(ratings, found[0][1], 4, bad)
    log = read_log(
        ratings,
        ((line, user, first_id.get(movie, movie), time, stars) for line, (user, movie, stars, time, *_) in rated),
        bad,
    )
    texts = item_texts((movie, ItemText(title)) for movie, title in titles.items())
    return Raw(log, texts, posters(options, titles, first_id), (ratings, movies))


def rows(
    path: Path, separator: str, fewest: int, bad: BadLines, encoding: str = "utf-8"
) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row that is not blank, of a CSV without its header."""
    if separator == ",":
        lines = csv_rows(path, bad)
        next(lines, None)
    else:
        encoding = "utf-8" if is_utf8(path) else "latin-1"
        lines = (
            (line, text.strip().split(separator)) for line, text in text_lines(path, bad, encoding) if text.strip()
        )
    for line, cells in lines:
        if len(cells) >= fewest:
            yield line, cells
        else:
            found = shortened(separator.join(cells))
            bad(path, line, f"expected at least {fewest} cells separated by {separator!r}, found {found}")


def is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def reading_order(title: str) -> str:
    """'Godfather, The (1972)' -> 'The Godfather (1972)'; what stands in parentheses is left alone."""
    match = MOVED_ARTICLE.fullmatch(title)
    if not match:
        return title
    space = "" if match["article"].endswith("'") else " "
    return match["article"] + space + match["name"] + match["rest"]


def posters(options: argparse.Namespace, titles: dict[str, str], first_id: dict[str, str]) -> dict[str, Path]:
    """The poster file of every movie that has one, under the movie's first id."""
    files = dict(image_files(options.raw, options.images, "posters"))
    by_title = {key(reading_order(stem)): path for stem, path in reversed(files.items())}
    found: dict[str, Path] = {}
    for movie, title in titles.items():
        path = files.get(movie) if options.match == "id" else None
        if path := path or by_title.get(key(title)):
            found.setdefault(first_id[movie], path)
    return found


def key(title: str) -> str:
    """Letters and digits alone, without case and accents: file names lack the colon and the question mark."""
    return "".join(c for c in unicodedata.normalize("NFKD", title).casefold() if c.isalnum())


if __name__ == "__main__":
    main()
