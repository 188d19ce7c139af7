"""The files of a dataset are looked at before they are opened; a picture is RGB however it is stored, or named and left out."""

from __future__ import annotations

import os
import struct
import subprocess
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hanorec.data import untrusted
from hanorec.data.catalog import read_catalog
from hanorec.data.untrusted import load_image, load_images, read_text, scaled_down
from hanorec.errors import DataError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def picture(path: Path, size: tuple[int, int] = (4, 6), mode: str = "RGB") -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size).save(path)
    return path


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that announces this size and then holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


@pytest.fixture(autouse=True)
def no_unexpected_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def refused(path: Path) -> str:
    """The one warning of a file that is not used as an image, less the path that it names."""
    with pytest.warns(UserWarning) as caught:
        assert load_image(path) is None
    (message,) = (str(each.message) for each in caught)
    assert message.startswith(f"{path}: not used as an image (")
    return message.removeprefix(f"{path}: not used as an image ")


def saved(array: np.ndarray, path: Path, **more) -> Path:
    Image.fromarray(array).save(path, **more)
    return path


def special_files(folder: Path) -> dict[str, str]:
    """Files of a stranger that no reader may open, by name, and why."""
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    regular = dict.fromkeys(("device", "folder", "pipe"), "no regular file")
    return {"loop": "symbolic link", "dangling": "No such file", **regular}


# --- which files are opened


def test_only_regular_files_are_opened(tmp_path):
    for name, reason in special_files(tmp_path).items():
        assert reason in refused(tmp_path / name)
        with pytest.raises(DataError, match=f"{name}: cannot be read .*{reason}"):
            read_text(tmp_path / name)
    (tmp_path / "link.png").symlink_to(picture(tmp_path / "a.png"))
    assert load_image(tmp_path / "link.png") is not None


def test_special_files_of_a_dataset_are_refused_or_left_out(tmp_path):
    for name in ("one", "images"):
        (tmp_path / name).mkdir()
    special_files(tmp_path / "one")
    for name in ("loop", "device", "pipe"):
        (tmp_path / "titles.csv").symlink_to(tmp_path / "one" / name)
        with pytest.raises(DataError, match=r"titles\.csv: cannot be read"):
            read_catalog(tmp_path)
        (tmp_path / "titles.csv").unlink()
        (tmp_path / "images" / f"{name}.jpg").symlink_to(tmp_path / "one" / name)
    (tmp_path / "titles.csv").write_text("loop,A\ndevice,B\npipe,C\n")
    for path in read_catalog(tmp_path).images:
        assert refused(path)


def test_a_file_above_the_limit_is_not_read(tmp_path):
    for name, size in (("a.png", 10 * 2**30), ("b.png", untrusted.MAX_IMAGE_BYTES + 1), ("titles.csv", 60 * 2**30)):
        with open(picture(tmp_path / "images" / "1.png").rename(tmp_path / name), "r+b") as file:
            file.truncate(size)  # sparse: it takes no space
    assert "10,737,418,240 bytes, the limit is 268,435,456" in refused(tmp_path / "a.png")
    assert "268,435,457 bytes" in refused(tmp_path / "b.png")
    with pytest.raises(DataError, match="titles.csv: cannot be read .*64,424,509,440 bytes, the limit is"):
        read_catalog(tmp_path)


def test_a_file_of_the_limit_is_read(tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png")
    monkeypatch.setattr(untrusted, "MAX_IMAGE_BYTES", path.stat().st_size)
    assert load_image(path) is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_is_not_ours_to_read_is_left_out(tmp_path):
    picture(tmp_path / "a.png").chmod(0)
    assert "no permission" in refused(tmp_path / "a.png")


def test_a_long_listing_is_cut(tmp_path):
    for name in "abcd":
        (tmp_path / name).touch()
    assert untrusted.listing(tmp_path, limit=2) == f"{tmp_path} holds a, b and 2 more"
    assert untrusted.listing(tmp_path, limit=4) == f"{tmp_path} holds a, b, c, d"
    assert untrusted.listing(tmp_path / "e") == f"there is no folder {tmp_path / 'e'}"


# --- which images


@pytest.mark.parametrize("suffix", ["eps", "pdf", "ico", "ppm", "jp2", "tga"])
def test_other_formats_are_refused_whatever_their_names_say(tmp_path, suffix, monkeypatch):
    """Pillow hands PostScript to Ghostscript: a dataset must not start a program."""

    def started(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "check_call", started)
    monkeypatch.setattr(subprocess, "Popen", started)
    picture(tmp_path / f"a.{suffix}", (32, 32)).rename(tmp_path / "7.jpg")
    assert "cannot identify it as one of BMP, GIF, JPEG, PNG, TIFF, WEBP" in refused(tmp_path / "7.jpg")


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "tif", "webp", "mpo"])
def test_raster_formats_are_read_whatever_their_names_say(tmp_path, suffix):
    picture(tmp_path / f"a.{suffix}").rename(tmp_path / "7.jpg")
    assert load_image(tmp_path / "7.jpg").size == (4, 6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_is_the_same_picture_in_8(tmp_path, suffix):
    image = load_image(saved(RAMP.astype(np.uint16) * 257, tmp_path / f"a.{suffix}"))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.stack([RAMP] * 3, axis=2))


def test_grey_of_12_bits_in_16_is_scaled_by_its_own_white(tmp_path, monkeypatch):
    image = Image.fromarray(np.array([[0, 2048, 4095]], np.uint16))
    assert np.asarray(untrusted._eight_bits(image, 4095)).tolist() == [[0, 128, 255]]
    assert np.asarray(untrusted._eight_bits(image, 65535)).tolist() == [[0, 8, 16]]


def test_big_endian_grey_of_16_bits(tmp_path):
    Image.frombytes("I;16B", (3, 1), b"\x00\x00\x80\x80\xff\xff").save(tmp_path / "a.tif")
    assert np.asarray(load_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("kind, mode", [(np.int32, "I"), (np.float32, "F")])
def test_values_without_a_known_range_are_named_and_left_out(tmp_path, kind, mode):
    assert f"mode {mode}, values of 32 bits" in refused(saved(RAMP.astype(kind), tmp_path / "a.tif"))


def transparent_files(folder: Path) -> list[Path]:
    """A ramp whose black is transparent, in every way in which a file can say so."""
    alpha, deep = np.where(RAMP == 0, 0, 255).astype(np.uint8), RAMP.astype(np.uint16) * 257
    rgba = np.dstack([RAMP, RAMP, RAMP, alpha])
    grey = Image.fromarray(RAMP)
    for name, image in (("la", Image.fromarray(np.dstack([RAMP, alpha]), "LA")), ("rgba", Image.fromarray(rgba))):
        image.save(folder / f"{name}.png")
        image.convert("RGBA").save(folder / f"{name}.webp", lossless=True, exact=True)
        image.convert("RGBA").save(folder / f"{name}.tif")
    for mode, key in (("L", 0), ("RGB", (0, 0, 0)), ("P", 0), ("P", bytes([0] + [255] * 255))):
        grey.convert(mode).save(folder / f"{mode}-{type(key).__name__}.png", transparency=key)
    grey.convert("P").save(folder / "a.gif", transparency=0)
    Image.fromarray(deep).save(folder / "deep.png", transparency=0)
    return sorted(folder.iterdir())


def test_what_is_transparent_is_white_however_a_file_says_so(tmp_path):
    """Else a black logo on a transparent ground is one black rectangle."""
    expected = np.stack([np.where(RAMP == 0, 255, RAMP)] * 3, axis=2)
    paths = transparent_files(tmp_path)
    assert len(paths) == 12
    for path in paths:
        assert np.array_equal(np.asarray(load_image(path)), expected), path.name


def test_half_transparent_is_half_white(tmp_path):
    path = saved(np.array([[[0, 0, 0, 128], [200, 100, 0, 255]]], np.uint8), tmp_path / "a.png")
    assert np.asarray(load_image(path)).tolist() == [[[127, 127, 127], [200, 100, 0]]]


def test_a_colour_of_16_bits_is_the_transparent_one_in_8(tmp_path):
    """A PNG of 16 bits a channel: Pillow keeps the upper 8 of the pixels, but not of the transparent colour."""
    path = tmp_path / "a.png"
    pixels = b"\x00" + b"\xff\xff" * 3 + b"\x12\x34" * 3

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)) + chunk(b"tRNS", b"\x12\x34" * 3)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b""))
    assert np.asarray(load_image(path)).tolist() == [[[255] * 3, [255] * 3]]


def test_what_pillow_warns_of_names_the_file(tmp_path):
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00\x12\x01\x03\x00"  # five entries, not one of which is whole
    Image.new("RGB", (4, 6)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.warns(UserWarning) as caught:
        assert load_image(tmp_path / "a.jpg").size == (4, 6)
    assert len(caught) == 1 and str(caught[0].message).startswith(f"{tmp_path / 'a.jpg'}: used as an image, though ")


def test_of_many_files_that_are_decoded_at_a_time_each_is_named_for_its_own_fault(tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(30)]
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00\x12\x01\x03\x00"
    for number, path in enumerate(paths):
        Image.new("RGB", (40 + number, 60)).save(path, exif=exif if number % 3 == 0 else b"")
        if number % 3 == 1:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning) as caught:
        images = load_images(paths, pixels=600)
    assert [image and image.size for image in images] == [
        None if number % 3 == 1 else scaled_down(Image.new("RGB", (40 + number, 60)), 600).size for number in range(30)
    ]
    said = [str(warning.message).split(": ", 1) for warning in caught]
    assert [name for name, _ in said] == [str(path) for number, path in enumerate(paths) if number % 3 < 2]
    assert [text.startswith("used") for _, text in said] == [True, False] * 10  # "not used as an image"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = load_image(picture(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), (4, 6), mode))
    assert (image.mode, image.size) == ("RGB", (4, 6))


def test_images_are_turned_upright(tmp_path):
    image = Image.new("RGB", (4, 6))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (6, 4)


def test_a_broken_image_is_a_warning_and_none(tmp_path):
    whole = picture(tmp_path / "whole.png", (64, 64)).read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) - 40])
    (tmp_path / "text.jpg").write_text("<html>not found</html>")
    (tmp_path / "empty.jpg").touch()
    png_header(tmp_path / "wide.png", 10_000, 5_001)  # above our limit alone
    png_header(tmp_path / "wider.png", 10_000, 10_000)  # where Pillow warns
    png_header(tmp_path / "bomb.png", 30_000, 30_000)  # where Pillow raises
    reasons = {
        "truncated.png": "truncated",
        "text.jpg": "cannot identify",
        "empty.jpg": "cannot identify",
        "missing.jpg": "No such file",
        "wide.png": "10000 x 5001 pixels, the limit is 50,000,000",
        "wider.png": "10000 x 10000 pixels",
        "bomb.png": "DecompressionBomb",
    }
    for name, reason in reasons.items():
        with pytest.warns(UserWarning) as caught:
            assert load_image(tmp_path / name) is None
        assert len(caught) == 1
        assert str(tmp_path / name) in str(caught[0].message)
        assert reason in str(caught[0].message)


def test_the_pixel_limit_is_inclusive(tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png", (4, 6))
    monkeypatch.setattr(untrusted, "MAX_PIXELS", 24)
    assert load_image(path) is not None
    monkeypatch.setattr(untrusted, "MAX_PIXELS", 23)
    with pytest.warns(UserWarning, match="4 x 6 pixels, the limit is 23"):
        assert load_image(path) is None
