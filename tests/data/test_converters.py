"""Every converter turns files of exactly the published format, made up by hand, into a dataset, or into nothing and one
line of error."""

from __future__ import annotations

import gzip
import json
from datetime import date, datetime
from pathlib import Path

import pytest
from raw_files import covers, images, read, steps, titles, write

from hanorec.data.cleaning import cut, without_html

# --- MicroLens

PAIRS_TSV = "2\t30 10 20\r\n1\t10 20 30 40\r\n"
PAIRS_CSV = "user,item,timestamp\n1,40,1583378629553\n1,10,1583378629551\n2,30,1\n2,20,3\n1,20,1583378629552\n2,10,2\n"
TITLES = 'item,title\r\n10,Plain\r\n20,"With, a comma"\r\n30,Fish &lt;3\r\n40,Plain\r\n50,Unseen\r\n'
TITLES_EN = '10,Plain\n20,With, a comma, and more\n30,"Quoted, ""here"""\n40,\n60,"Half open\n'


def test_microlens_as_published(tmp_path, script):
    raw = write(tmp_path / "raw", {"MicroLens-50k_pairs.tsv": PAIRS_TSV, "MicroLens-50k_titles.csv": TITLES})
    covers(raw / "MicroLens-50k_covers", "10.jpg", "20.jpg", "30.jpg", "40.jpg")
    status, printed, errors = script("prepare_microlens", raw, tmp_path / "out")
    assert (status, errors) == (0, "")
    assert read(tmp_path / "out") == {"1": "10 20 30 40", "2": "30 10 20"}
    assert read(tmp_path / "out", "val") == {"1": "10 20 30", "2": "30 10"}
    assert read(tmp_path / "out", "train") == {"1": "10 20", "2": "30"}
    assert titles(tmp_path / "out") == {"10": "Plain", "20": "With, a comma", "30": "Fish <3", "40": "Plain"}
    assert images(tmp_path / "out") == {"10.jpg": 1, "20.jpg": 2, "30.jpg": 3, "40.jpg": 4}
    assert set(steps(tmp_path / "out")) == {(2, 4, 7)}  # the defaults take nothing away
    assert "1 titles that an earlier item has" in printed and "rows: 2 in train.tsv" in printed
    assert "fetch_images" not in printed and printed.endswith(f"\n    python data/inspect_dataset.py {tmp_path}/out\n")


def test_microlens_with_times_and_titles_whose_commas_are_not_quoted(tmp_path, script):
    raw = write(tmp_path / "raw", {"MicroLens-100k_pairs.csv": PAIRS_CSV, "MicroLens-100k_title_en.csv": TITLES_EN})
    covers(tmp_path / "else" / "deep", "10.PNG", "20.webp", "30.jpg", "40.jpg")
    status, _, errors = script("prepare_microlens", raw, tmp_path / "out", "--images", tmp_path / "else")
    assert (status, errors) == (0, "")
    assert read(tmp_path / "out") == {"2": "30 10 20"}  # item 40 has no title, and user 1 then two items
    assert titles(tmp_path / "out") == {"10": "Plain", "20": "With, a comma, and more", "30": 'Quoted, "here"'}
    assert images(tmp_path / "out") == {"10.png": 1, "20.webp": 2, "30.jpg": 3}
    assert steps(tmp_path / "out")[-3:] == [(2, 3, 5), (2, 3, 5), (1, 3, 3)]


@pytest.mark.parametrize("header", ["", "userID,videoID,ts\n"])
def test_microlens_is_known_by_its_columns_where_copies_are_named_differently(tmp_path, script, header):
    pairs = header + PAIRS_CSV.partition("\n")[2]
    raw = write(tmp_path / "raw", {"a.csv": pairs, "b.csv": TITLES, "comments.csv": "1,10,nice\n", "readme.txt": "?"})
    assert script("prepare_microlens", raw, tmp_path / "out", "--keep-without-image")[0] == 0
    assert read(tmp_path / "out") == {"1": "10 20 40", "2": "30 10 20"}


# --- cleaning


def test_each_step_is_counted(tmp_path, script):
    rows = [
        "1,10,1",
        "1,10,1",
        "1,20,2",
        "1,10,3",
        "1,30,4",
        "2,10,1",
        "2,20,2",
        "2,40,3",
        "3,10,1",
        "3,20,2",
        "3,30,3",
    ]
    raw = write(tmp_path / "raw", {"x_pairs.csv": "\n".join(rows), "x_titles.csv": "10,A\n20,B\n30,C\n40, \n"})
    covers(raw / "x_covers", "10.jpg", "20.jpg", "30.jpg")
    status, printed, _ = script("prepare_microlens", raw, tmp_path / "out", "--min-item", "2")
    assert status == 0
    assert steps(tmp_path / "out") == [
        (3, 4, 11),
        (3, 4, 10),  # user 1 took 10 twice at time 1
        (3, 4, 9),  # and once more at time 3
        (3, 3, 8),  # 40 has no title
        (3, 3, 8),
        (2, 3, 6),  # user 2 has two items left
    ]
    assert read(tmp_path / "out") == {"1": "10 20 30", "3": "10 20 30"}
    assert "in the raw files" in printed and "each item once a user" in printed


def test_the_core_is_repeated_until_nothing_changes(tmp_path, script):
    """Items 50, 40 and 30 fall one after another, as each takes a user with it; users 1, 2 and 6 stay."""
    chosen = {1: "10 20 60", 2: "10 20 60", 3: "10 20 30", 4: "10 30 40", 5: "20 40 50", 6: "10 20 60"}
    pairs = "".join(f"{user}\t{items}\n" for user, items in chosen.items())
    raw = write(tmp_path / "raw", {"x_pairs.tsv": pairs, "x_titles.csv": "".join(f"{i}0,T{i}\n" for i in range(1, 7))})
    assert script("prepare_microlens", raw, tmp_path / "out", "--keep-without-image", "--min-item", "2")[0] == 0
    assert list(read(tmp_path / "out")) == ["1", "2", "6"]
    assert steps(tmp_path / "out")[-1] == (3, 3, 9)


def test_repeats_can_be_kept(tmp_path, script):
    files = {"x_pairs.tsv": "1\t10 20 10 10\n", "x_titles.csv": "10,A\n20,B\n"}
    raw = write(tmp_path / "raw", files)
    assert script("prepare_microlens", raw, tmp_path / "out", "--keep-without-image", "--keep-repeats")[0] == 0
    assert read(tmp_path / "out") == {"1": "10 20 10 10"}
    status, _, error = script("prepare_microlens", raw, tmp_path / "other", "--keep-without-image")
    assert (status, "the step 'users with 3 or more, items with 1 or more' took the last 2" in error) == (2, True)


@pytest.mark.parametrize(
    ("written", "title"),
    [
        ("Tom &amp; Jerry&#39;s", "Tom & Jerry's"),
        ("R&D at AT&T; &copy 1999", "R&D at AT&T; &copy 1999"),
        ("&amp;lt;b&amp;gt;Bold&lt;/b&gt; move", "Bold move"),
        ("I <3 you, x<y and y>z", "I <3 you, x<y and y>z"),
        ("One<br/>two <a href='x'>three</a>", "One two three"),
        ("<script>var x = 1;</script> Shirt", "Shirt"),
        ("tab\tand\x07bell\u00a0and  space", "tab and bell and space"),
        (" ".join(map(str, range(70))), " ".join(map(str, range(64))) + "…"),
        ("a" * 5000, "a" * 32 * 64 + "…"),
        ("好" * 65, "好" * 64 + "…"),
        ("b " * 64, " ".join("b" * 64)),
    ],
)  # fmt: skip
def test_a_title_is_a_line_without_html_and_not_endless(written, title):
    assert cut(without_html(written), 64) == title


def test_items_without_an_image_are_dropped_or_kept_also_where_the_image_is_broken(tmp_path, script):
    files = {"x_pairs.tsv": "1\t10 20 30 40\n2\t10 20 30 50\n", "x_titles.csv": "10,A\n20,B\n30,C\n40,D\n50,E\n"}
    raw = write(tmp_path / "raw", files)
    covers(raw / "x_covers", "10.jpg", "20.jpg", "30.jpg", "40.jpg")
    (raw / "x_covers" / "30.jpg").write_bytes(b"no picture")
    status, printed, errors = script("prepare_microlens", raw, tmp_path / "out")
    assert status == 0 and "30.jpg: not used" in errors and "1 images that cannot be read" in printed
    assert read(tmp_path / "out") == {"1": "10 20 40"}
    assert steps(tmp_path / "out")[-3:] == [(2, 4, 7), (2, 3, 5), (1, 3, 3)]
    assert script("prepare_microlens", raw, tmp_path / "kept", "--keep-without-image", "--image-size", "3x3")[0] == 0
    assert read(tmp_path / "kept") == {"1": "10 20 30 40", "2": "10 20 30 50"}
    assert images(tmp_path / "kept") == {"10.jpg": 1, "20.jpg": 1, "40.jpg": 1}  # 1, 2 and 4 pixels of 9 to 3


# --- splits


def timed(folder: Path) -> Path:
    """Users 1 to 3 choose an item each on the first ten days of 2020, 4 on the first five, 5 on the last one."""
    rows = [(user, f"{user}{day}", day) for user in (1, 2, 3) for day in range(10)]
    rows += [(4, f"4{day}", day) for day in range(5)] + [(5, "59", 9)]
    pairs = "".join(f"{user},{item},{1577836800 + day * 86400}000\n" for user, item, day in rows)
    return write(folder, {"x_pairs.csv": pairs, "x_titles.csv": "".join(f"{item},T{item}\n" for _, item, _ in rows)})


@pytest.mark.parametrize(
    ("target", "val", "test"),
    [("first", "10 11 12 13 14 15 16", "10 11 12 13 14 15 16 17 18"), ("last", "10 11 12 13 14 15 16 17", None)],
)
def test_after_a_cut_in_time_nothing_is_trained_on(tmp_path, script, target, val, test):
    """Cuts are days 6 and 8: targets are items of day 6 or 7, and of day 8 or 9."""
    options = ("--keep-without-image", "--split", "time", "--min-user", "1", "--target", target)
    raw, out = timed(tmp_path / "raw"), tmp_path / "out"
    assert script("prepare_microlens", raw, out, *options, "--cut", "2020-01-07", "2020-01-09")[0] == 0
    train = read(out, "train")
    assert train == {**{str(u): " ".join(f"{u}{day}" for day in range(6)) for u in (1, 2, 3)}, "4": "40 41 42 43 44"}
    assert max(int(item[1:]) for row in train.values() for item in row.split()) < 6
    assert read(out, "val")["1"] == val and list(read(out, "val")) == ["1", "2", "3"]
    assert read(out)["1"] == (test or " ".join(f"1{day}" for day in range(10)))
    assert list(read(out)) == ["1", "2", "3"]  # user 5 has nothing before the only item


def test_shares_cut_where_so_many_interactions_came_before(tmp_path, script):
    """36 interactions: 0.5 of them is the 19th, of day 4, and 0.75 the 28th, of day 7."""
    raw, out = timed(tmp_path / "raw"), tmp_path / "out"
    options = ("--keep-without-image", "--split", "time", "--cut", "0.5", "0.75")
    assert script("prepare_microlens", raw, out, *options)[0] == 0
    assert read(out, "train")["1"] == "10 11 12 13"
    assert read(out, "val")["1"] == "10 11 12 13 14"
    assert read(out, "test")["1"] == "10 11 12 13 14 15 16 17"


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (("0.9", "0.8"), "first cut must come before"),
        (("0", "0.5"), "shares must be between 0 and 1"),
        (("0.5", "2020-01-01"), "two shares or two dates"),
        (("2020-01-03", "someday"), "found 'someday'"),
        (("2021-01-01", "2022-01-01"), "no row for val.tsv"),
        (("1960-01-01", "1961-01-01"), "no row for train.tsv"),
    ],
)
def test_cuts_that_are_none_are_named(tmp_path, script, cut, message):
    options = ("--keep-without-image", "--split", "time", "--cut", *cut)
    status, _, error = script("prepare_microlens", timed(tmp_path / "raw"), tmp_path / "out", *options)
    assert (status, error.count("\n")) == (2, 1) and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_split_by_time_needs_times(tmp_path, script):
    raw = write(tmp_path / "raw", {"x_pairs.tsv": PAIRS_TSV, "x_titles.csv": TITLES})
    status, _, error = script("prepare_microlens", raw, tmp_path / "out", "--keep-without-image", "--split", "time")
    assert (status, error) == (2, "error: a split by time needs times, and the raw files have none\n")


# --- what is refused

RAW = {"x_pairs.csv": PAIRS_CSV, "x_titles.csv": TITLES}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x_pairs.csv": PAIRS_CSV + "1,7\n"}, r"x_pairs.csv:8: expected user,item,timestamp, found '1,7'"),
        ({"x_pairs.csv": PAIRS_CSV + "1,a b,7\n"}, r"x_pairs.csv:8: an item id must be one word, found 'a b'"),
        ({"x_pairs.csv": PAIRS_CSV + ",10,7\n"}, r"x_pairs.csv:8: a user id must be on one line, without tabs, found ''"),
        ({"x_pairs.csv": PAIRS_CSV + "1,10,noon\n"}, r"x_pairs.csv:8: expected a time or a date, found 'noon'"),
        ({"x_pairs.csv": PAIRS_CSV + "1,10,nan\n"}, r"x_pairs.csv:8: expected a time or a date, found 'nan'"),
        ({"x_pairs.csv": PAIRS_CSV + '1,"10,7\n'}, r"x_pairs.csv:8: not CSV (unexpected end of data)"),
        ({"x_pairs.csv": PAIRS_CSV.encode() + b"\xff,10,7\n"}, r"x_pairs.csv:8: not UTF-8, byte 0xff"),
        ({"x_pairs.csv": PAIRS_CSV.replace(",", ";")}, r"expected user,item,timestamp or user<TAB>item item item ...; "
         r"x_pairs.csv has 'user;item;timestamp'"),
        ({"x_pairs.csv": "item_id,user_id\n1,2\n"}, r"expected user,item,timestamp or user<TAB>item item item ...; "
         r"x_pairs.csv has 'item_id, user_id'; x_titles.csv has 'item, title'"),
        ({"x_pairs.csv": gzip.compress(PAIRS_CSV.encode())[:-9]}, r"x_pairs.csv: the gzip file is cut short"),
        ({"y_pairs.csv": PAIRS_CSV}, r"several files could be user,item,timestamp or user<TAB>item item item ...: "
         r"x_pairs.csv, y_pairs.csv; leave one of them there"),
        ({"x_pairs.csv": "user,item,timestamp\n"}, r"x_pairs.csv: no interactions"),
        ({"x_titles.csv": "10,A, B\n\nten\n"}, r"x_titles.csv:3: expected item,title, found 'ten'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value[:30],
)  # fmt: skip
def test_bad_raw_files_are_named_in_one_line(tmp_path, script, files, message):
    raw = write(tmp_path / "raw", RAW | files)
    status, printed, error = script("prepare_microlens", raw, tmp_path / "out", "--keep-without-image")
    assert (status, printed, error.count("\n")) == (2, "", 1)
    assert error.startswith(f"error: {raw}") and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_bad_lines_can_be_left_out_and_are_counted(tmp_path, script):
    bad = PAIRS_CSV.encode() + b"1,7\n1,10,noon\n\xff,10,7\n\n"
    raw = write(tmp_path / "raw", RAW | {"x_pairs.csv": gzip.compress(bad), "x_titles.csv": TITLES + "7\n"})
    status, printed, _ = script("prepare_microlens", raw, tmp_path / "out", "--keep-without-image", "--skip-bad-lines")
    assert status == 0 and "4 bad lines left out\n" in printed
    assert "the first bad line: " in printed and "x_pairs.csv:8: expected user,item,timestamp, found '1,7'" in printed
    assert steps(tmp_path / "out")[0] == (2, 4, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--min-user", "2"), "--min-user must be at least 3"),
        (("--min-item", "0"), "--min-item 0: must be a number of at least 1"),
        (("--image-size", "96"), "expected WIDTHxHEIGHT in pixels, such as 96x144, not '96'"),
        (
            ("--keep-without-image", "--min-rating", "4"),
            "a rating of 4 is asked for, and the raw files have no ratings",
        ),
        (("--images", "nowhere"), "nowhere: no such folder of images"),
        ((), "raw: holds no image of any item; --images names their folder, and --keep-without-image keeps"),
    ],
)
def test_options_that_cannot_be_met_are_named(tmp_path, script, options, message):
    raw = write(tmp_path / "raw", RAW)
    status, _, error = script("prepare_microlens", raw, tmp_path / "out", *options)
    assert status == 2 and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


# --- where it goes


def test_an_output_that_holds_something_is_replaced_only_if_asked_and_only_if_it_is_a_dataset(tmp_path, script):
    raw, out = write(tmp_path / "raw", RAW), tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    call = lambda out, *options: script("prepare_microlens", raw, out, "--keep-without-image", *options)  # noqa: E731
    assert call(out)[0] == 0
    before = (out / "prepared.json").read_bytes()
    status, _, error = call(out, "--title-words", "1")
    assert status == 2 and "out: exists and is not empty; --overwrite replaces it" in error
    assert (out / "prepared.json").read_bytes() == before
    assert call(out, "--title-words", "1", "--overwrite")[0] == 0
    assert titles(out)["20"] == "With,…"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]
    (tmp_path / "home" / "thesis").mkdir(parents=True)
    for place, message in (("home", "is no dataset"), ("raw", "would replace the input"), (".", "would replace")):
        status, _, error = call(tmp_path / place, "--overwrite")
        assert status == 2 and message in error


@pytest.mark.parametrize("fails", ["prepare._write_texts", "prepare.files.to_disk", "rename"])
def test_a_failure_leaves_the_old_dataset_and_nothing_half_written(tmp_path, script, monkeypatch, fails):
    raw, out = write(tmp_path / "raw", RAW), tmp_path / "out"
    assert script("prepare_microlens", raw, out, "--keep-without-image")[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    rename = Path.rename

    def full(path, *_, **__):
        if fails == "rename" and not path.name.startswith(".out."):
            return rename(path, *_)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        Path if fails == "rename" else f"hanorec.data.{fails}", *(("rename",) if fails == "rename" else ()), full
    )
    status, _, error = script(
        "prepare_microlens", raw, out, "--keep-without-image", "--overwrite", "--title-words", "1"
    )
    assert status == 3 and "No space left on device" in error
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


# --- PixelRec

PIXEL = "item_id,user_id,timestamp\nv3,u1,1635750000\nv1,u1,1635748452\nv2,u1,1635749000\nv1,u2,1\n"
PIXEL_ITEMS = (
    "item_id,view_number,comment_number,thumbup_number,title,tag,description\n"
    'v1,5,1,0,"One, two",music,"About\nit"\nv2,5,1,0,Two,music,\nv3,5,1,0,Three,music,&lt;3\nv4,,,,Four,,\n'
)


def test_pixelrec_as_published(tmp_path, script):
    raw = write(tmp_path / "raw", {"interaction/Pixel200K.csv": PIXEL, "item_info/Pixel200K.csv": PIXEL_ITEMS})
    covers(raw / "cover", "v1.jpg", "v2.jpg", "v3.jpg")
    assert script("prepare_pixelrec", raw, tmp_path / "out")[0] == 0
    assert read(tmp_path / "out") == {"u1": "v1 v2 v3"}
    assert titles(tmp_path / "out") == {"v1": "One, two", "v2": "Two", "v3": "Three"}
    assert (tmp_path / "out" / "descriptions.csv").read_text() == "item,description\nv1,About it\nv3,<3\n"
    assert steps(tmp_path / "out")[0] == (2, 3, 4)


# --- NineRec

NINE = {"QB_item.csv": 'v1,一,One\nv2,二,"Two, too"\nv3,三,\nv4,四,Four\n', "QB_url.csv": "v1,http://example.org/1\n"}
SEQUENCES = "u1\tv3 v1 v2\nu2\tv1 v4 v2\n"


@pytest.mark.parametrize("pairs", ["u1,v3,3\nu1,v1,4\nu2,v1,7\nu2,v4,8\nu1,v2,5\nu2,v2,9\n",
                                   "item_id,user_id,timestamp\nv2,u1,2020-01-02 10:00:00\nv3,u1,2020-01-01\nv2,u2,2020-01-03\n"
                                   "v1,u1,2020-01-02 09:59:59\nv4,u2,2020-01-02\nv1,u2,2020-01-01\n",
                                   "u1,v2\nu1,v1\n"], ids=["user first", "item first, dates", "no times"])  # fmt: skip
def test_ninerec_as_published_with_user_and_item_in_either_order(tmp_path, script, pairs):
    raw = write(tmp_path / "raw", NINE | {"QB_behaviour.tsv": SEQUENCES, "QB_pair.csv": pairs})
    covers(raw / "QB_cover", "v1.jpg", "v2.jpg", "v3.jpg", "v4.jpg")
    status, printed, error = script("prepare_ninerec", raw, tmp_path / "out")
    assert (status, error) == (0, "")
    assert read(tmp_path / "out") == {"u1": "v3 v1 v2", "u2": "v1 v4 v2"}
    assert titles(tmp_path / "out") == {"v1": "One", "v2": "Two, too", "v3": "三", "v4": "Four"}
    assert f"from QB_{'behaviour.tsv' if len(pairs) < 20 else 'pair.csv'}, QB_item.csv" in printed


def test_pairs_of_another_dataset_than_the_items_are_told(tmp_path, script):
    raw = write(tmp_path / "raw", NINE | {"QB_pair.csv": "u1,x1,3\nu1,x2,4\n"})
    status, _, error = script("prepare_ninerec", raw, tmp_path / "out", "--keep-without-image")
    assert status == 2 and "QB_pair.csv: expected the ids of items in its first or second column" in error


# --- H&M


@pytest.mark.parametrize("zero", ["0", ""], ids=["published", "without leading zeros"])
def test_hm_as_published_and_ids_without_their_leading_zero(tmp_path, script, zero):
    """The purchases of one day stay in the file's order, and a second piece of an article is no second choice."""
    rows = [("2018-09-21", 3), ("2018-09-20", 2), ("2018-09-20", 1), ("2018-09-20", 2), ("2018-09-20", 4)]
    bought = "".join(f"{day},c1,{zero}49848000{item},0.05,2\n" for day, item in rows)
    about = "".join(f'{zero}49848000{item},Top {item},"Soft, &amp; warm"\n' for item in (1, 2, 3, 4))
    raw = write(tmp_path / "raw", {"transactions_train.csv": f"t_dat,customer_id,article_id,price,sales_channel_id\n{bought}",
                                   "articles.csv": f"article_id,prod_name,detail_desc\n{about}",
                                   "customers.csv": "customer_id,age\nc1,30\n"})  # fmt: skip
    covers(raw / "images", *(f"049/049848000{item}.jpg" for item in (1, 2, 3)))
    assert script("prepare_hm", raw, tmp_path / "out")[0] == 0
    assert read(tmp_path / "out") == {"c1": "0498480002 0498480001 0498480003"}
    assert images(tmp_path / "out") == {"0498480001.jpg": 1, "0498480002.jpg": 2, "0498480003.jpg": 3}
    assert '0498480001,"Soft, & warm"\n' in (tmp_path / "out" / "descriptions.csv").read_text()
    assert steps(tmp_path / "out")[:2] == [(1, 4, 5), (1, 4, 4)]


# --- Amazon Reviews


def lines(*rows: dict, form=json.dumps) -> str:
    return "".join(f"{form(row)}\n" for row in rows)


def reviews_2023(*chosen: tuple) -> list[dict]:
    names = ("user_id", "parent_asin", "rating", "timestamp")
    return [dict(zip(names, row)) | {"asin": f"{row[1]}x", "text": "Fine\u2028"} for row in chosen]


CHOSEN = [("AB", "B3", 5.0, 1588687728923), ("AB", "B1", 0.0, 1588687728921), ("AB", "B2", 4.0, 1588687728922),
          ("AB", "B2", 4.0, 1588687728922), ("AB", "B4", 3.0, -15), ("AB", "B9", 5.0, 1588687728924)]  # fmt: skip
SIZES = {"thumb": "https://m.x/t.jpg", "large": "https://m.x/l.jpg", "hi_res": "https://m.x/h.jpg"}
META_2023 = [
    {"parent_asin": "B1", "title": "Soap &amp; <b>Water</b>", "images": [SIZES | {"variant": "PT01", "large": "https://m.x/2.jpg"},
                                                                       SIZES | {"variant": "MAIN", "hi_res": None}]},
    {"parent_asin": "B2", "title": "Two", "images": {name: [url] for name, url in SIZES.items()} | {"variant": ["MAIN"]}},
    {"parent_asin": "B3", "title": "Three", "images": []},
    {"parent_asin": "B4", "title": "Four", "images": [SIZES | {"variant": "MAIN"}]},
    {"parent_asin": "B7", "title": "Unsold", "images": []},
]  # fmt: skip


def urls(out: Path) -> dict[str, str]:
    header, *rows = (out / "image_urls.csv").read_text().splitlines()
    assert header == "item,url"
    return dict(row.split(",") for row in rows)


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "csv"])
def test_amazon_2023_as_published(tmp_path, script, form):
    """B9 is in no metadata, B3 has no image; the negative time comes first and is counted."""
    text = lines(*reviews_2023(*CHOSEN))
    if form == "csv":
        text = "user_id,parent_asin,rating,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in CHOSEN)
    content = gzip.compress(text.encode()) if form.endswith("gz") else text
    raw = write(tmp_path / "raw", {f"All_Beauty.{form}": content, "meta_All_Beauty.jsonl": lines(*META_2023)})
    status, printed, error = script("prepare_amazon", raw, tmp_path / "out")
    assert (status, error) == (0, "")
    assert read(tmp_path / "out") == {"AB": "B4 B1 B2"}
    assert titles(tmp_path / "out") == {"B1": "Soap & Water", "B2": "Two", "B4": "Four"}
    assert urls(tmp_path / "out") == {"B1": "https://m.x/l.jpg", "B2": "https://m.x/h.jpg", "B4": "https://m.x/h.jpg"}
    assert steps(tmp_path / "out") == [(1, 5, 6), (1, 5, 5), (1, 5, 5), (1, 4, 4), (1, 3, 3), (1, 3, 3)]
    assert "1 times before 1970" in printed and "3 images to be fetched" in printed
    assert printed.endswith(
        f"next:\n    python data/fetch_images.py {tmp_path}/out\n    python data/inspect_dataset.py {tmp_path}/out\n"
    )
    assert script("prepare_amazon", raw, tmp_path / "kept", "--keep-without-image", "--min-rating", "3")[0] == 0
    assert read(tmp_path / "kept") == {"AB": "B4 B2 B3"}


OLD = [("A1", "007", 5, 30), ("A1", "008", 4, 10), ("A1", "009", 1, 20), ("A2", "008", 5, 1), ("A1", "010", 5, 40)]
META_OLD = [
    {"asin": "007", "title": 'Bond\'s "best"', "imUrl": "http://e.x/7.jpg"},
    {"asin": "008", "title": "Eight", "imageURL": ["http://e.x/small.jpg"], "imageURLHighRes": ["http://e.x/8.jpg"]},
    {"asin": "009", "title": "Nine", "image": ["http://e.x/9.jpg", "http://e.x/other.jpg"]},
    {"asin": "010", "title": "var aPageStart = (new Date()).getTime();", "imUrl": "http://e.x/10.jpg"},
    {"asin": "011"},
]


@pytest.mark.parametrize("written", [json.dumps, repr], ids=["JSON", "Python literals"])
@pytest.mark.parametrize("form", ["reviews", "user first", "item first"])
def test_amazon_2018_and_2014_as_published(tmp_path, script, form, written):
    if form == "reviews":
        names = ("reviewerID", "asin", "overall", "unixReviewTime")
        content = lines(*(dict(zip(names, row)) | {"reviewText": "Ok", "image": ["x"]} for row in OLD))
    else:
        order = (0, 1, 2, 3) if form == "user first" else (1, 0, 2, 3)
        content = "".join(",".join(str(row[place]) for place in order) + ".0\n" for row in OLD)
    raw = write(
        tmp_path / "raw",
        {"Books.data": content, "meta_Books.json.gz": gzip.compress(lines(*META_OLD, form=written).encode())},
    )
    assert script("prepare_amazon", raw, tmp_path / "out")[0] == 0
    assert read(tmp_path / "out") == {"A1": "008 009 007"}
    assert titles(tmp_path / "out")["007"] == 'Bond\'s "best"'
    assert urls(tmp_path / "out") == {item: f"http://e.x/{int(item)}.jpg" for item in ("007", "008", "009")}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jsonl": lines(*reviews_2023(*CHOSEN)) + "{'user_id': __import__('os')}\n"}, "a.jsonl:7: expected a JSON object a line, found"),
        ({"a.jsonl": lines(*reviews_2023(*CHOSEN)) + '{"user_id": "A", "rating": 1}\n'},
         "a.jsonl:7: expected user_id, parent_asin, timestamp, rating, found 'user_id, rating'"),
        ({"a.jsonl": lines(*reviews_2023(*CHOSEN, (["x"], "B1", 1, 1)))}, "a.jsonl:7: expected ids, found"),
        ({"a.jsonl": lines(*reviews_2023(*CHOSEN, ("\ud800", "B1", 1, 1)))}, r"a.jsonl:7: half a character in '\ud800'"),
        ({"a.jsonl": lines(*reviews_2023(*CHOSEN)) + "[" * 99_999 + "\n"}, "a.jsonl:7: expected a JSON object"),
        ({"a.jsonl": gzip.compress(lines(*reviews_2023(*CHOSEN)).encode())[:-12]}, "a.jsonl: the gzip file is cut short"),
        ({"b.csv": PIXEL}, "expected reviews (user_id,parent_asin,timestamp,rating or reviewerID,asin,unixReviewTime,overall), "
         "or a CSV of ratings; b.csv has 'item_id, user_id, timestamp'; meta.jsonl has 'parent_asin, title, images'"),
        ({"b.csv": "A1,007,5.0,30.0\n"}, "expected metadata (asin,title,...)"),
    ],
    ids=["literals are not run", "keys", "a list", "half a character", "deep", "cut", "another dataset", "another release"],
)  # fmt: skip
def test_bad_reviews_are_named_in_one_line(tmp_path, script, files, message):
    raw = write(tmp_path / "raw", {"meta.jsonl": lines(*META_2023)} | files)
    status, printed, error = script("prepare_amazon", raw, tmp_path / "out")
    assert (status, printed, error.count("\n")) == (2, "", 1) and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


# --- any table

SHOP = {
    "orders.csv": "when;who;what;points\n2020-01-03 08:00:00;ann;p3;5\n2020-01-01 00:00:00;ann;p1;4\n2020-01-02;ann;p2;3\n",
    "products.jsonl": lines(
        {"sku": "p1", "label": "One", "pictures": ["https://e.x/1.jpg", "https://e.x/b.jpg"]},
        {"sku": "p2", "label": "Two"},
        {"sku": "p3", "label": "Three", "pictures": None, "about": "Third"},
    ),
}


def test_a_table_whose_columns_are_named(tmp_path, script):
    raw = covers(write(tmp_path / "raw", SHOP) / "images", "a/p2.jpeg", "b/c/p3.WEBP").parent
    names = (
        "--user",
        "who",
        "--item",
        "what",
        "--time",
        "when",
        "--rating",
        "points",
        "--item-id",
        "sku",
        "--title",
        "label",
    )
    names += ("--image-url", "pictures", "--description", "about", "--delimiter", ";")
    files = ("--interactions", "orders.csv", "--items", "products.jsonl")
    assert script("prepare_table", raw, tmp_path / "out", *files, *names)[2] == ""
    assert read(tmp_path / "out") == {"ann": "p1 p2 p3"}
    assert images(tmp_path / "out") == {"p2.jpeg": 1, "p3.webp": 2} and urls(tmp_path / "out") == {
        "p1": "https://e.x/1.jpg"
    }
    assert (tmp_path / "out" / "descriptions.csv").read_text() == "item,description\np3,Third\n"


ATOMIC = {"m.inter": 'user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\t2\t4\t9.5\nu\t1\t5\t8\nu\t3\t1\t10\n',
          "m.item": 'item_id:token\tmovie_title:token_seq\trelease:float\n1\tSay "hi", you\t1\n2\t"Two"\t1\n3\tThree\t2\n'}  # fmt: skip
BY_POSITION = ("--user", "2", "--item", "1", "--time", "3", "--item-id", "2", "--title", "1")


@pytest.mark.parametrize(
    ("files", "options"),
    [
        (ATOMIC, ()),
        ({"interactions.csv": "item,user,when\n2,u,9\n1,u,8\n3,u,10\n", "items.csv": 't,i\n"Say ""hi"", you",1\nTwo,2\nThree,3\n'},
         BY_POSITION),
        ({"interactions.csv": "2,u,2020-01-02\n1,u,2020-01-01\n3,u,2020-01-03\n", "items.tsv": 'Say "hi", you\t1\nTwo\t2\nThree\t3\n'},
         BY_POSITION),
        ({"interactions.jsonl.gz": gzip.compress(lines({"User": "u", "Item": 2, "time": 9}, {"User": "u", "Item": 1, "time": 8},
                                                 {"User": "u", "Item": 3, "time": 10}).encode()),
          "items.csv": 'id,name\n1,"Say ""hi"", you"\n2,Two\n3,Three\n'}, ()),
    ],
    ids=["RecBole", "positions and header", "positions", "JSON"],
)  # fmt: skip
def test_tables_in_other_forms(tmp_path, script, files, options):
    raw = write(tmp_path / "raw", files)
    assert script("prepare_table", raw, tmp_path / "out", "--keep-without-image", *options)[2] == ""
    assert read(tmp_path / "out") == {"u": "1 2 3"}
    assert titles(tmp_path / "out") == {"1": 'Say "hi", you', "2": "Two", "3": "Three"}


def test_ids_are_any_words_also_those_of_a_header_or_a_path(tmp_path, script):
    files = {
        "interactions.csv": "user,item\n=1 +1,item\n=1 +1,../x\n=1 +1,id\n",
        "items.csv": "id,name\nitem,A\n../x,B\nid,C\n",
    }
    assert script("prepare_table", write(tmp_path / "raw", files), tmp_path / "out", "--keep-without-image")[0] == 0
    assert read(tmp_path / "out") == {"=1 +1": "item ../x id"}
    assert titles(tmp_path / "out") == {"../x": "B", "id": "C", "item": "A"}


@pytest.mark.parametrize("day", [date, datetime, lambda *day: int(datetime(*day).timestamp())])
def test_parquet_is_read_where_pyarrow_is_installed(tmp_path, script, day):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    raw = write(tmp_path / "raw", {"items.csv": "id,name\n1,A\n2,B\n3,C\n"})
    times = [day(2020, 1, number) for number in (2, 1, 3)]
    write_table(pyarrow.table({"user": ["u"] * 3, "item": [2, 1, 3], "time": times}), raw / "interactions.parquet")
    assert script("prepare_table", raw, tmp_path / "out", "--keep-without-image")[2] == ""
    assert read(tmp_path / "out") == {"u": "1 2 3"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "raw: which file has the interactions? --interactions names it; "),
        (("--interactions", "none.csv"), "none.csv: cannot be read (No such file or directory)"),
        (("--interactions", "orders.csv"), "expected a column user_id or user or userid or uid"),
        (("--interactions", "orders.csv"), "found 'when;who;what;points'; is there another --delimiter?"),
        (("--interactions", "orders.csv", "--delimiter", ";", "--user", "whom"), "expected a column whom, found 'when, who, what, points'; --user"),
        (("--interactions", "orders.csv", "--delimiter", ";", "--user", "5"), "expected a column 5, found"),
        (("--delimiter", ";;"), "expected one character, not ';;'"),
        (("--interactions", "x.parquet"), "x.parquet: "),
        (("--interactions", "wide.csv"), "wide.csv:1: not UTF-8, byte 0xff"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_read_are_named(tmp_path, script, options, message):
    raw = write(tmp_path / "raw", SHOP | {"x.parquet": "no parquet", "wide.csv": "a,b".encode("utf-16")})
    status, printed, error = script("prepare_table", raw, tmp_path / "out", "--items", "products.jsonl", *options)
    assert (status, printed) == (2, "") and message in error


@pytest.mark.parametrize("name", ["amazon", "hm", "microlens", "movielens", "ninerec", "pixelrec", "table"])
def test_help_says_what_is_read_and_shows_a_command(script, name):
    status, printed, _ = script(f"prepare_{name}", "--help")
    assert status == 0
    assert f"\n    python data/prepare_{name}.py " in printed and "\nRAW holds" in printed and "--split" in printed
