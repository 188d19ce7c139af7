"""Both MovieLens formats, made up by hand, become a dataset that the package reads, or nothing at all."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hanorec.data.catalog import read_catalog
from hanorec.data.interactions import read_sequences

SCRIPT = Path(__file__).parents[2] / "data" / "prepare_movielens.py"
spec = importlib.util.spec_from_file_location("prepare_movielens", SCRIPT)
prepare_movielens = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare_movielens)

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


def raw_folder(folder: Path, form: str, movies=None, ratings=None) -> Path:
    movies, ratings = movies or MOVIES, ratings or RATINGS
    folder.mkdir(exist_ok=True)
    if form == "100k":
        lines = [f"{movie}|{title}|01-Jan-1995||http://example.org|0|1\n" for movie, title in movies.items()]
        (folder / "u.item").write_text("".join(lines), encoding="latin-1")
        (folder / "u.data").write_text("".join("\t".join(map(str, rating)) + "\n" for rating in ratings))
    else:
        lines = [f"{movie}::{title}::Drama|Comedy\n" for movie, title in movies.items()]
        (folder / "movies.dat").write_text("".join(lines), encoding="latin-1")
        (folder / "ratings.dat").write_text("".join("::".join(map(str, rating)) + "\n" for rating in ratings))
    return folder


def poster_folder(folder: Path, names) -> Path:
    """A poster each, `n` pixels wide for the n-th name, so that they can be told apart."""
    folder.mkdir(exist_ok=True)
    for width, name in enumerate(names, 1):
        Image.new("RGB", (width, 10)).save(folder / name)
    return folder


def run(raw: Path, posters: Path, out: Path, *options: str) -> int:
    return prepare_movielens.main([str(raw), str(posters), str(out), *options])


@pytest.fixture
def raw(tmp_path):
    return raw_folder(tmp_path / "raw", "100k")


@pytest.fixture
def posters(tmp_path):
    return poster_folder(tmp_path / "posters", [f"{movie}.png" for movie in MOVIES])


def split(out: Path, name: str) -> str:
    return (out / f"{name}.tsv").read_text()


def widths(out: Path) -> dict[str, int]:
    return {path.name: Image.open(path).size[0] for path in sorted((out / "images").iterdir())}


def error(capsys) -> str:
    """The one line on stderr."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


# --- what comes out


@pytest.mark.parametrize("form", ["100k", "1m"])
def test_both_formats_become_the_layout(tmp_path, posters, form, capsys):
    out = tmp_path / "deep" / "out"
    assert run(raw_folder(tmp_path / "raw", form), posters, out, "--min-items", "4") == 0
    # user 10: 1 at 100, then 2 before 3 as in the file, 4; movie 5 is movie 1, which stays where it was first
    assert split(out, "test") == "2\t2 3 4 6\n10\t1 2 3 4\n"
    assert split(out, "val") == "2\t2 3 4\n10\t1 2 3\n"
    assert split(out, "train") == "2\t2 3\n10\t1 2\n"
    assert (out / "titles.csv").read_text(encoding="utf-8") == (
        "item,title\n1,Toy Story (1995)\n2,The Godfather (1972)\n3,La Cité des enfants perdus (1995)\n"
        "4,Heat (1995)\n6,Face/Off: The Movie? (1997)\n7,Nobody Saw This (1990)\n"
    )
    assert widths(out) == {"1.png": 1, "2.png": 2, "3.png": 3, "4.png": 4, "6.png": 6, "7.png": 7}
    assert (out / "images" / "2.png").read_bytes() == (posters / "2.png").read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
    assert capsys.readouterr().out == (
        "2 users\n    dropped: 1 with fewer than 4 choices\n"
        "6 movies, 6 with a poster\n    dropped: 0 without a readable poster (0 posters are broken)\n"
        "    merged: 1 ids with the title of an earlier id\n"
        "8 ratings\n    dropped: 2 below 4 stars, 0 of dropped movies, "
        f"1 of a movie chosen before, 2 of dropped users\nwritten to {out}\n"
    )


def test_the_package_reads_the_result(tmp_path, raw, posters):
    out = tmp_path / "out"
    run(raw, posters, out, "--min-items", "3")
    catalog = read_catalog(out)
    assert all(catalog.images)
    for name in ("train", "val", "test"):
        assert [sequence.user for sequence in read_sequences(out / f"{name}.tsv", catalog)] == ["2", "10"]


def test_thresholds(tmp_path, raw, posters, capsys):
    assert run(raw, posters, tmp_path / "a", "--min-items", "5", "--min-rating", "3") == 0
    assert split(tmp_path / "a", "test") == "10\t6 1 2 3 4\n"
    assert "6 of dropped users" in capsys.readouterr().out  # 4 of user 2 and 2 of user 7
    assert run(raw, posters, tmp_path / "b", "--min-items", "5") == 2
    assert "no user chose 5 of 6 usable movies" in error(capsys)
    assert run(raw, posters, tmp_path / "c") == 2  # by default, six choices
    assert "no user chose 6 of 6" in error(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "posters", "raw"]


def test_movies_without_a_readable_poster_are_dropped_or_kept(tmp_path, raw, posters, capsys):
    (posters / "2.png").unlink()
    (posters / "4.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"4\.png: not used"):
        assert run(raw, posters, tmp_path / "kept", "--min-items", "4", "--keep-without-poster") == 0
    assert split(tmp_path / "kept", "test") == "2\t2 3 4 6\n10\t1 2 3 4\n"
    assert widths(tmp_path / "kept") == {"1.png": 1, "3.png": 3, "6.png": 6, "7.png": 7}
    assert len(read_catalog(tmp_path / "kept")) == 6
    printed = capsys.readouterr().out
    assert "6 movies, 4 with a poster\n    dropped: 0 without a readable poster (1 posters are" in printed

    raw_folder(raw, "100k", ratings=[*RATINGS, (2, 1, 5, 9)])
    with pytest.warns(UserWarning, match=r"4\.png: not used"):
        run(raw, posters, tmp_path / "out", "--min-items", "3", "--require-poster")
    assert split(tmp_path / "out", "test") == "2\t3 6 1\n"
    printed = capsys.readouterr().out
    assert "4 movies, 4 with a poster\n    dropped: 2 without a readable poster (1 posters are broken)" in printed
    assert "5 of dropped movies, 1 of a movie chosen before, 3 of dropped users" in printed


def test_posters_can_be_made_smaller_but_not_larger(tmp_path, raw):
    posters = tmp_path / "posters"
    posters.mkdir()
    for movie in MOVIES:
        Image.new("RGBA", (200, 100) if movie == 1 else (8, 6)).save(posters / f"{movie}.png")
    run(raw, posters, tmp_path / "out", "--min-items", "4", "--poster-size", "40x50")
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out" / "images").iterdir()}
    assert sizes == {
        "1.jpg": (40, 20),
        "2.jpg": (8, 6),
        "3.jpg": (8, 6),
        "4.jpg": (8, 6),
        "6.jpg": (8, 6),
        "7.jpg": (8, 6),
    }
    assert Image.open(tmp_path / "out" / "images" / "1.jpg").format == "JPEG"


# --- which poster


def test_posters_are_found_by_title_in_either_order(tmp_path, raw):
    names = [
        "toy story (1995).JPG",
        "Godfather, The (1972).png",
        "La Cite des Enfants Perdus (1995).jpeg",  # no accent
        "Heat (1986).png",  # another year
        "FaceOff The Movie (1997).webp",  # no slash, colon and question mark
        "notes (1995).txt.png",
    ]
    run(raw, poster_folder(tmp_path / "posters", names), tmp_path / "out", "--min-items", "3")
    assert widths(tmp_path / "out") == {"1.jpg": 1, "2.png": 2, "3.jpeg": 3, "6.webp": 5}


def test_an_id_comes_first_unless_titles_are_asked_for(tmp_path, raw):
    titles = ("The Godfather (1972)", "Toy Story (1995)", "Heat (1995)", "La Cité des enfants perdus (1995)")
    posters = poster_folder(tmp_path / "posters", ["2.png", *(f"{title}.png" for title in titles)])
    run(raw, posters, tmp_path / "id", "--min-items", "3")
    assert widths(tmp_path / "id") == {"1.png": 3, "2.png": 1, "3.png": 5, "4.png": 4}
    run(raw, posters, tmp_path / "title", "--min-items", "3", "--match", "title")
    assert widths(tmp_path / "title") == {"1.png": 3, "2.png": 2, "3.png": 5, "4.png": 4}


def test_a_poster_of_a_merged_id_serves(tmp_path, raw):
    posters = poster_folder(tmp_path / "posters", ["5.png", "2.png", "3.png", "4.png"])
    run(raw, posters, tmp_path / "out", "--min-items", "3")
    assert widths(tmp_path / "out") == {"1.png": 1, "2.png": 2, "3.png": 3, "4.png": 4}


def test_of_several_files_for_a_movie_the_first_name_wins(tmp_path, raw, posters):
    Image.new("RGB", (77, 10)).save(posters / "2.jpg")
    run(raw, posters, tmp_path / "out", "--min-items", "4")
    assert widths(tmp_path / "out")["2.jpg"] == 77


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
        ("u.data", "1\t2\t5", r"u\.data:14: expected at least 4 cells .*found '1\\t2\\t5'"),
        ("u.data", "1\tx\t5\t9", r"u\.data:14: expected a whole number, found 'x'"),
        ("u.data", "1\t99\t5\t9", r"u\.data:14: movie 99 is not in u\.item"),
        ("u.item", "8", r"u\.item:8: expected at least 2 cells .*found '8'"),
        ("u.item", "x|Title", r"u\.item:8: expected a whole number, found 'x'"),
        ("u.item", "8| |", r"u\.item:8: movie 8 has no title"),
        ("u.item", "4|Heat again", r"u\.item:8: movie 4 appears twice"),
    ],
)
def test_bad_raw_rows_are_named(tmp_path, raw, posters, capsys, name, line, message):
    with (raw / name).open("a") as file:
        file.write(line + "\n")
    assert run(raw, posters, tmp_path / "out") == 2
    assert re.search(message, error(capsys))
    assert not (tmp_path / "out").exists()


def test_missing_inputs_are_named(tmp_path, raw, posters, capsys):
    assert run(tmp_path / "none", posters, tmp_path / "out") == 2
    assert "expected u.data and u.item, or ratings.dat and movies.dat; there is no folder" in error(capsys)
    assert run(raw, tmp_path / "none", tmp_path / "out") == 2
    assert "none: no such folder of posters" in error(capsys)
    (raw / "u.item").unlink()
    assert run(raw, posters, tmp_path / "out") == 2
    assert "holds u.data" in error(capsys)
    raw_folder(raw_folder(raw, "1m"), "100k")
    assert run(raw, posters, tmp_path / "out") == 2  # which of the two?
    assert "holds movies.dat, ratings.dat, u.data, u.item" in error(capsys)


def test_blank_lines_are_skipped(tmp_path, raw, posters):
    for name in ("u.data", "u.item"):
        (raw / name).write_bytes((raw / name).read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert run(raw, posters, tmp_path / "out", "--min-items", "4") == 0
    assert split(tmp_path / "out", "test") == "2\t2 3 4 6\n10\t1 2 3 4\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--min-items", "2"), "--min-items must be at least 3, not 2"),
        (("--poster-size", "96"), "expected WIDTHxHEIGHT in pixels, such as 96x144, not '96'"),
        (("--poster-size", "0x9"), "not '0x9'"),
        (("--require-poster", "--keep-without-poster"), "not allowed with"),
    ],
)
def test_bad_options_exit_with_2(tmp_path, raw, posters, capsys, options, message):
    with pytest.raises(SystemExit) as exit_:
        run(raw, posters, tmp_path / "out", *options)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_help_explains_the_inputs_and_shows_an_example(capsys):
    with pytest.raises(SystemExit) as exit_:
        prepare_movielens.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "`u.data` and `u.item`, or `ratings.dat` and `movies.dat`" in text
    assert "\nexample:\n  python data/prepare_movielens.py ml-100k posters datasets/ml-100k" in text


# --- where it goes


def test_an_output_that_holds_something_is_refused(tmp_path, raw, posters, capsys):
    out = tmp_path / "out"
    out.mkdir()
    assert run(raw, posters, out, "--min-items", "4") == 0  # an empty folder is as good as none
    before = split(out, "test")
    capsys.readouterr()
    assert run(raw, posters, out, "--min-items", "3", "--min-rating", "1") == 2
    assert "out: exists and is not empty; --overwrite replaces it" in error(capsys)
    assert split(out, "test") == before

    (out / "left over").touch()
    assert run(raw, posters, out, "--min-items", "3", "--min-rating", "1", "--overwrite") == 0
    assert split(out, "test") != before
    assert sorted(path.name for path in out.iterdir()) == [
        "images",
        "test.tsv",
        "titles.csv",
        "train.tsv",
        "val.tsv",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "posters", "raw"]


def test_overwrite_replaces_datasets_only(tmp_path, raw, posters, capsys):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").touch()
    assert run(raw, posters, home, "--min-items", "4", "--overwrite") == 2
    assert "home: is no dataset (no titles.csv)" in error(capsys)
    assert run(raw, posters, home / "thesis.tex", "--min-items", "4", "--overwrite") == 2
    assert "thesis.tex: exists and is no folder" in error(capsys)
    for out in (raw, posters, tmp_path):
        (out / "titles.csv").touch()
        assert run(raw, posters, out, "--min-items", "4", "--overwrite") == 2
        assert f"{out}: the output would replace the input" in error(capsys)
    assert (home / "thesis.tex").exists()


def test_a_failure_leaves_the_old_dataset_and_nothing_half_written(tmp_path, raw, posters, capsys, monkeypatch):
    out = tmp_path / "out"
    run(raw, posters, out, "--min-items", "4")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()

    def full(*_):
        raise OSError(28, "No space left on device")

    rename = Path.rename

    def fails_at_the_end(self, target):
        return full() if self.suffix == ".partial" else rename(self, target)

    for patched, name, failure in (
        (prepare_movielens, "write_tables", full),
        (Path, "rename", fails_at_the_end),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(patched, name, failure)
            assert run(raw, posters, out, "--min-items", "3", "--overwrite") == 2
        assert "No space left on device" in error(capsys)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "posters", "raw"]


def test_runs_as_a_script(tmp_path, raw):
    """From any folder; an error is one line without a traceback."""
    command = [sys.executable, str(SCRIPT), str(raw), "nowhere", "out"]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "error: nowhere: no such folder of posters\n",
    )
