"""Catalogues are read as they stand, or refused by file, line and value; a bad image never stops a run."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from PIL import Image

from hanorec.data.catalog import missing_images, read_catalog, read_descriptions
from hanorec.errors import DataError


def write(folder: Path, content: str | bytes, name: str = "titles.csv") -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def picture(path: Path, size: tuple[int, int] = (4, 6), mode: str = "RGB") -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size).save(path)
    return path


@pytest.fixture(autouse=True)
def no_unexpected_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- titles


@pytest.mark.parametrize("header", ["item,title\n", "", "Item_ID,Title\n", "\ufeffid,name\n", "\ufeff", "itemid,t\r\n"])
def test_reads_items_in_file_order_with_or_without_header(tmp_path, header):
    read = read_catalog(
        write(tmp_path, header + '9,"Paris, Texas (1984)"\n\n \n 10 ,  Le  Samouraï\r\nx7,"Say ""hi"""\n')
    )
    assert read.items == ("9", "10", "x7")
    assert read.titles == ("Paris, Texas (1984)", "Le Samouraï", 'Say "hi"')
    assert read.images == (None, None, None)
    assert read.index == {"9": 0, "10": 1, "x7": 2}
    assert len(read) == 3


def test_only_the_first_row_can_be_a_header(tmp_path):
    assert read_catalog(write(tmp_path, "item,title\n1,A\nid,B\n")).items == ("1", "id")


@pytest.mark.parametrize(
    "header",
    [
        "movieId,title",
        "item_id:token,movie_title:token_seq",
        "asin,name",
        "ISBN,Book_Title",
        "tconst,primaryTitle",
        "video,titles",
        "product,title_en",
        "key, Name ",
        "item_id:token,category",
    ],
)
def test_a_header_is_known_by_the_name_of_either_column(tmp_path, header):
    assert read_catalog(write(tmp_path, f"{header}\n1,A\n")).items == ("1",)


@pytest.mark.parametrize("line", ["7,Title", "movieId,The Name", "tt7,Name of the Rose", "x,Alien"])
def test_what_could_be_an_item_is_none(tmp_path, line):
    assert len(read_catalog(write(tmp_path, f"{line}\n1,A\n"))) == 2


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("line", ["x7,Title", "x7,Surname", "id,Alien", "item,title"])
def test_an_item_of_any_row_is_no_header(tmp_path, split, line):
    first = line.split(",")[0]
    write(tmp_path, f"u\t1 {first}\n", f"{split}.tsv")
    assert read_catalog(write(tmp_path, f"{line}\n1,A\n")).items == (first, "1")
    write(tmp_path, f"{first}\t1 1\n", f"{split}.tsv")  # a user of that name is no item
    assert read_catalog(tmp_path).items == ("1",)


BLANK = ["\u200b", "\x01\x02", "\0", "\u200b \u2060\ufeff", "\u00ad", "\u3164", "\u2800", "\u0301", "\u202e\u202c"]


@pytest.mark.parametrize("blank", BLANK, ids=ascii)
def test_what_nobody_can_see_is_blank(tmp_path, blank):
    with pytest.raises(DataError, match=r"titles\.csv:2: item '2' has an empty title"):
        read_catalog(write(tmp_path, f"1,A\n2,{blank}\n"))
    with pytest.raises(DataError, match=r"titles\.csv:2: an item id must be one word"):
        read_catalog(write(tmp_path, f"1,A\n{blank},B\n"))
    write(tmp_path, f"1,{blank}\n", "descriptions.csv")
    assert read_descriptions(tmp_path / "descriptions.csv", read_catalog(write(tmp_path, "1,A\n"))) == ("",)


@pytest.mark.parametrize("title", [".", "é", "e\u0301", "👩\u200d🚀", "\u0915\u093f", "\ue000", "A\u200b", "?"])
def test_what_can_be_seen_is_a_title_as_it_stands(tmp_path, title):
    assert read_catalog(write(tmp_path, f"1,{title}\n")).titles == (title,)


def test_a_title_is_one_line(tmp_path):
    assert read_catalog(write(tmp_path, '1,"One\n  line"\n2,B\n')).titles == ("One line", "B")


def test_takes_the_authors_file_name_and_prefers_titles_csv(tmp_path):
    write(tmp_path, "1,A\n", "MicroLens_titles.csv")
    assert read_catalog(str(tmp_path)).titles == ("A",)
    write(tmp_path, "1,B\n", "Netflix_titles.csv")
    with pytest.raises(DataError, match=r"MicroLens_titles\.csv, Netflix_titles\.csv"):
        read_catalog(tmp_path)
    write(tmp_path, "1,C\n")
    assert read_catalog(tmp_path).titles == ("C",)


@pytest.mark.parametrize(
    ("content", "line", "value"),
    [
        ("1,A\n\n2,B,C\n", 3, "quote a title.*'2,B,C'"),
        ("item,title\n1\n", 2, "no title.*'1'"),
        ("1,A\n2,  \n", 2, "'2' has an empty title"),
        ("1,A\n,B\n", 2, "must be one word, found ''"),
        ("1 2,A\n", 1, "must be one word, found '1 2'"),
        ('1,A\n2,"B\nb"\n1,C\n', 4, "'1' appears twice"),
        ('1,A\n2,"B\n3,C\n', 2, "not CSV"),  # without strict reading item 3 would vanish into 2's title
        (b"1,A\n2,caf\xe9\n", 2, "not UTF-8, byte 0xe9"),
        (b"\xef\xbb\xbf1,A\r\n2,B\r\n3,\xff\r\n", 3, "not UTF-8, byte 0xff"),
    ],
)
def test_errors_name_file_line_and_value(tmp_path, content, line, value):
    with pytest.raises(DataError, match=rf"titles\.csv:{line}: .*{value}"):
        read_catalog(write(tmp_path, content))


def test_errors_without_a_line(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        read_catalog(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no titles\.csv.* holds nothing"):
        read_catalog(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "train.tsv").touch()
    with pytest.raises(DataError, match=r"no titles\.csv.* holds images, train\.tsv$"):
        read_catalog(tmp_path)
    with pytest.raises(DataError, match=r"titles\.csv: no items"):
        read_catalog(write(tmp_path, "item,title\n\n"))


def test_shared_titles_stay_apart_and_are_counted_once(tmp_path):
    write(tmp_path, "1,Hamlet\n2,Emma\n3,Hamlet\n4,Emma\n5,Hamlet\n")
    with pytest.warns(UserWarning) as caught:
        read = read_catalog(tmp_path)
    assert read.titles == ("Hamlet", "Emma", "Hamlet", "Emma", "Hamlet")
    assert read.index["5"] == 4
    assert len(caught) == 1
    assert "3 items have the title of an earlier item, e.g. 'Hamlet' is 1 and 3" in str(caught[0].message)


# --- descriptions


@pytest.mark.parametrize("header", ["movieId,description", "asin,Caption", "item_id:token,item_description:token_seq"])
def test_descriptions_have_headers_as_titles_have(tmp_path, header):
    write(tmp_path, f"{header}\n1,snow\n", "descriptions.csv")
    assert read_descriptions(tmp_path / "descriptions.csv", read_catalog(write(tmp_path, "1,A\n"))) == ("snow",)


def test_descriptions_belong_to_items_and_may_be_missing(tmp_path):
    folder = write(tmp_path, "item,title\n1,Alien\n2,Brazil\n3,Fargo\n")
    (tmp_path / "descriptions.csv").write_text('item,description\n3,"snow,\n  a car"\n1,\n')
    assert read_descriptions(tmp_path / "descriptions.csv", read_catalog(folder)) == ("", "", "snow, a car")


@pytest.mark.parametrize(
    "text, message",
    [
        ("1,a,b\n", "descriptions.csv:1: expected item,description, found '1,a,b'"),
        ("item,description\n9,a\n", "descriptions.csv:2: item '9' is not in the catalogue"),
        ("1,a\n1,b\n", "descriptions.csv:2: item '1' appears twice"),
        (
            None,
            "descriptions.csv: no such file, and the item view shows descriptions; data/describe_items.py writes it",
        ),
    ],
)
def test_descriptions_that_cannot_be_used_are_an_error(tmp_path, text, message):
    catalog, path = read_catalog(write(tmp_path, "1,Alien\n")), tmp_path / "descriptions.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        read_descriptions(path, catalog)


# --- images


def test_images_are_found_by_item_id(tmp_path):
    write(tmp_path, "1,A\n2,B\n3,C\n4,D\n5,E\n6,F\n")
    for name in ("1.jpg", "2.JPEG", "3.png", "3.webp", "4.gif", "0.jpg", "6.png", "6.JPG"):
        picture(tmp_path / "images" / name)
    (tmp_path / "images" / "5.jpg").mkdir()
    names = [path and path.name for path in read_catalog(tmp_path).images]
    assert names == ["1.jpg", "2.JPEG", "3.png", None, None, "6.JPG"]
    assert read_catalog(tmp_path).images[0] == tmp_path / "images" / "1.jpg"


def test_which_of_several_images_does_not_depend_on_the_order_of_the_listing(tmp_path):
    items = [str(number) for number in range(20)]
    write(tmp_path, "".join(f"{item},T{item}\n" for item in items))
    for item in items:
        for suffix in (".png", ".jpeg", ".webp"):
            picture(tmp_path / "images" / (item + suffix))
    assert [path.name for path in read_catalog(tmp_path).images] == [item + ".jpeg" for item in items]


def of_images(folder: Path, *names: str) -> str:
    """What is said of a catalogue of the items 1, 2 and 3 with these files."""
    write(folder, "1,A\n2,B\n3,C\n")
    for name in names:
        (folder / "images" / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / "images" / name).touch()
    return missing_images(read_catalog(folder), folder)


@pytest.mark.parametrize(
    "names, message",
    [
        (("covers/1.jpg", "covers/2.jpg"), "3 of 3 items have no image; 1 files in {} belong to no item, for instance covers/"),
        (("1.gif", "2.gif", "3.GIF"), "3 of 3 items have no image; 3 files in {} belong to no item, for instance 1.gif, 2"),
        (("item_2.jpg", "1.jpg", "item_3.jpg"), "2 of 3 items have no image; 2 files in {} belong to no item, for instance"),
        (("1.jpg.png", "02.jpg", "3.jpg"), "2 of 3 items have no image; 2 files in {} belong to no item, for instance 02.j"),
        (("1.jpg", "2.jpg/3.jpg"), "2 of 3 items have no image; 1 files in {} belong to no item, for instance 2.jpg/"),
        (("1.jpg", "1.png", ".DS_Store", "3.webp"), "1 of 3 items have no image: {} has no file for them"),
        ((), "3 of 3 items have no image: there is no folder {}"),
    ],
)  # fmt: skip
def test_items_without_an_image_are_counted_beside_files_without_an_item(tmp_path, names, message):
    assert of_images(tmp_path, *names).startswith(message.format(tmp_path / "images"))


def test_nothing_is_said_where_every_item_has_an_image(tmp_path):
    assert not of_images(tmp_path, "1.jpg", "2.png", "3.jpeg", "4.jpg", "1.webp")
