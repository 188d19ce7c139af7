"""The MovieLens formats, made up by hand, become a dataset: what was rated highly, with posters by id or by title."""

from __future__ import annotations

from pathlib import Path

import prepare_movielens
import pytest
from raw_files import covers, images, read, steps, titles, write

MOVIES = {
    1: "Toy Story (1995)",
    2: "Godfather, The (1972)",
    3: "Cité des enfants perdus, La (1995)",
    4: "Heat (1995)",
    5: "Toy Story (1995)",  # listed twice
    6: "Face/Off: The Movie? (1997)",
    7: "Nobody Saw This (1990)",
}

# user, movie, stars, time; the order of the file is not the order of time
RATINGS = [
    (10, 4, 5, 400),
    (10, 2, 4, 200),
    (10, 1, 5, 100),
    (10, 6, 3, 50),  # below 4 stars
    (10, 3, 4, 200),  # the same time as movie 2, later in the file
    (10, 5, 5, 500),  # movie 1 again
    (2, 6, 4, 4),
    (2, 4, 4, 3),
    (2, 3, 5, 2),
    (2, 2, 4, 1),
    (7, 1, 5, 1),  # two choices only
    (7, 2, 5, 2),
    (7, 3, 1, 3),
]


POSTERS = [f"{movie}.png" for movie in MOVIES]
FEW = ("--min-user", "3")


def raw_folder(folder: Path, form: str = "100k") -> Path:
    ratings, movies = RATINGS, MOVIES
    if form == "csv":
        lines = [f'{movie},"{title}",Drama|Comedy' for movie, title in movies.items()]
        files = {"ratings.csv": ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in ratings)],
                 "movies.csv": ["movieId,title,genres", *lines]}  # fmt: skip
        return write(folder, {name: "\r\n".join(lines) for name, lines in files.items()})
    if form == "100k":
        lines = [f"{movie}|{title}|01-Jan-1995||http://example.org|0|1" for movie, title in movies.items()]
        files = {"u.item": lines, "u.data": ["\t".join(map(str, row)) for row in ratings]}
    else:
        lines = [f"{movie}::{title}::Drama|Comedy" for movie, title in movies.items()]
        files = {"movies.dat": lines, "ratings.dat": ["::".join(map(str, row)) for row in ratings]}
    return write(folder, {name: "\n".join([*lines, ""]).encode("latin-1") for name, lines in files.items()})


@pytest.fixture
def raw(tmp_path):
    return raw_folder(tmp_path / "raw")


@pytest.fixture
def posters(tmp_path):
    return covers(tmp_path / "posters", *POSTERS)


@pytest.mark.parametrize("form", ["100k", "1m", "csv"])
def test_every_format_becomes_the_layout(tmp_path, posters, form, script):
    out = tmp_path / "deep" / "out"
    raw = raw_folder(tmp_path / "raw", form)
    assert script("prepare_movielens", raw, out, "--images", posters, "--min-user", "4")[2] == ""
    # user 10: 1 at 100, then 2 before 3 as in the file, 4; movie 5 is movie 1, which stays where it was first
    assert list(read(out).items()) == [("2", "2 3 4 6"), ("10", "1 2 3 4")]
    assert read(out, "val") == {"2": "2 3 4", "10": "1 2 3"}
    assert read(out, "train") == {"2": "2 3", "10": "1 2"}
    assert titles(out) == {
        "1": "Toy Story (1995)", "2": "The Godfather (1972)", "3": "La Cité des enfants perdus (1995)",
        "4": "Heat (1995)", "6": "Face/Off: The Movie? (1997)",
    }  # fmt: skip
    assert images(out) == {"1.png": 1, "2.png": 2, "3.png": 3, "4.png": 4, "6.png": 6}
    assert (out / "images" / "2.png").read_bytes() == (posters / "2.png").read_bytes()
    # 11 ratings of at least 4 stars, one of them of a movie chosen before; user 7 has two
    assert steps(out) == [(3, 5, 13), (3, 5, 11), (3, 5, 11), (3, 5, 10), (3, 5, 10), (3, 5, 10), (2, 5, 8)]


def test_by_default_a_choice_has_four_stars_and_a_user_six_choices(tmp_path, raw, posters, script):
    status, _, error = script("prepare_movielens", raw, tmp_path / "out", "--images", posters)
    assert status == 2 and "the step 'users with 6 or more, items with 1 or more' took the last 10" in error
    options = ("--images", posters, "--min-user", "5", "--min-rating", "3")
    assert script("prepare_movielens", raw, tmp_path / "out", *options)[0] == 0
    assert read(tmp_path / "out") == {"10": "6 1 2 3 4"}


# --- which poster


def test_posters_are_found_by_title_in_either_order(tmp_path, raw, script):
    names = [
        "toy story (1995).JPG",
        "Godfather, The (1972).png",
        "La Cite des Enfants Perdus (1995).jpeg",  # no accent
        "Heat (1986).png",  # another year
        "FaceOff The Movie (1997).webp",  # no slash, colon and question mark
        "notes (1995).txt.png",
    ]
    covers(raw / "posters", *names)  # where they are looked for
    assert script("prepare_movielens", raw, tmp_path / "out", *FEW)[0] == 0
    assert images(tmp_path / "out") == {"1.jpg": 1, "2.png": 2, "3.jpeg": 3, "6.webp": 5}


def test_an_id_comes_first_unless_titles_are_asked_for(tmp_path, raw, script):
    names = ("The Godfather (1972)", "Toy Story (1995)", "Heat (1995)", "La Cité des enfants perdus (1995)")
    posters = covers(tmp_path / "posters", "2.png", *(f"{title}.png" for title in names))
    script("prepare_movielens", raw, tmp_path / "id", "--images", posters, *FEW)
    assert images(tmp_path / "id") == {"1.png": 3, "2.png": 1, "3.png": 5, "4.png": 4}
    script("prepare_movielens", raw, tmp_path / "title", "--images", posters, "--match", "title", *FEW)
    assert images(tmp_path / "title") == {"1.png": 3, "2.png": 2, "3.png": 5, "4.png": 4}


def test_a_poster_of_a_merged_id_serves_and_of_several_files_the_first_name(tmp_path, raw, script):
    posters = covers(tmp_path / "posters", "5.png", "2.png", "2.jpg", "3.png", "4.png")
    assert script("prepare_movielens", raw, tmp_path / "out", "--images", posters, *FEW)[0] == 0
    assert images(tmp_path / "out") == {"1.png": 1, "2.jpg": 3, "3.png": 4, "4.png": 5}


@pytest.mark.parametrize(
    ("catalogued", "read"),
    [
        ("Godfather, The (1972)", "The Godfather (1972)"),
        ("Walk in the Clouds, A (1995)", "A Walk in the Clouds (1995)"),
        ("American in Paris, An (1951)", "An American in Paris (1951)"),
        ("Enfer, L' (1994)", "L'Enfer (1994)"),
        ("Promesse, La", "La Promesse"),
        ("Postino, Il (1994)", "Il Postino (1994)"),
        ("Boot, Das (1981)", "Das Boot (1981)"),
        (
            "City of Lost Children, The (Cité des enfants perdus, La) (1995)",
            "The City of Lost Children (Cité des enfants perdus, La) (1995)",
        ),
        ("Good, The Bad and The Ugly, The (1966)", "The Good, The Bad and The Ugly (1966)"),
        ("Seven (a.k.a. Se7en) (1995)", "Seven (a.k.a. Se7en) (1995)"),
        ("Nikita (Femme Nikita, La) (1990)", "Nikita (Femme Nikita, La) (1990)"),
        ("Paris, Texas (1984)", "Paris, Texas (1984)"),
        ("Bad, Theodore (1999)", "Bad, Theodore (1999)"),
        ("The Cure (1995)", "The Cure (1995)"),
    ],
)
def test_titles_are_put_into_reading_order(catalogued, read):
    assert prepare_movielens.reading_order(catalogued) == read


# --- what is refused


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("u.item", "../x|Heat (1999)", "the item id '../x' cannot be a file's name"),
        ("u.data", "1\t2\t5", r"u.data:14: expected at least 4 cells separated by '\t', found '1\t2\t5'"),
        ("u.data", "1\t2\tx\t9", "u.data:14: expected a rating, found 'x'"),
        ("u.item", "8", "u.item:8: expected at least 2 cells separated by '|', found '8'"),
        ("ratings.dat", "", "expected u.data and u.item, or ratings.dat and movies.dat, or ratings.csv and movies.csv; "),
    ],
)  # fmt: skip
def test_bad_raw_files_are_named(tmp_path, raw, posters, script, name, line, message):
    with (raw / name).open("a") as file:
        file.write(line + "\n")
    if "../x" in line:
        covers(posters, "Heat (1999).png")
        (raw / "u.data").write_text("".join(f"1\t{movie}\t5\t1\n" for movie in (1, 2, 3, 4, 6, "../x")))
    if name == "ratings.dat":
        (raw / "u.item").unlink()
    status, printed, error = script("prepare_movielens", raw, tmp_path / "out", "--images", posters)
    assert (status, printed, error.count("\n")) == (2, "", 1) and message in error
    assert not (tmp_path / "out").exists()
