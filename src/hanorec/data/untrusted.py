"""The files of a dataset, which are a stranger's: they are looked at before they are opened.

In: the path of a text or an image. Out: its text, an error that names file and reason, or an RGB image of 8 bits. Only
regular files are opened, up to a size; images only in the formats listed here, for Pillow would start Ghostscript on
PostScript. A bad image is no error, only an item without an image, and a warning names file and reason.
"""

from __future__ import annotations

import math
import os
import stat
import unicodedata
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import get_ident

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hanorec.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # where an item has several files, the first of these wins
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # read whatever a file's suffix says
MAX_IMAGE_BYTES = 256 * 2**20
MAX_TEXT_BYTES = 4 * 2**30
INVISIBLE = {"Cc", "Cf", "Mn", "Me", "Zl", "Zp", "Zs"}  # control, format, combining marks, white space
FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol that print as a space
MAX_PIXELS = 50_000_000  # 150 MB once decoded to RGB; no poster or cover is that large


def why_not_opened(path: str | Path, most: int) -> str:
    """Why a file is not opened: it is not there, no regular file (a pipe keeps a reader waiting, a device may never
    end), larger than `most` bytes, or not ours to read. Empty where nothing speaks against it."""
    try:
        status = os.stat(path)
    except OSError as error:
        return error.strerror or type(error).__name__
    if not stat.S_ISREG(status.st_mode):
        return "no regular file"
    if status.st_size > most:
        return f"{status.st_size:,} bytes, the limit is {most:,}"
    return "" if os.access(path, os.R_OK) else "no permission to read it"


def read_text(path: Path) -> str:
    r"""A text file, less its byte order mark, with \n line ends. DataError: missing, not to be opened, or not UTF-8."""
    if not os.path.lexists(path):
        raise DataError(f"{path}: no such file; {listing(path.parent)}")
    if reason := why_not_opened(path, MAX_TEXT_BYTES):
        raise DataError(f"{path}: cannot be read ({reason})")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8, byte 0x{error.object[error.start]:02x}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_blank(text: str) -> bool:
    """Whether a text has nothing that can be seen: zero-width spaces, control characters and NUL are blank, too."""
    if text[:1].isascii() and text[:1].isalnum():  # nearly all of millions of lines
        return False
    return all(unicodedata.category(character) in INVISIBLE or character in FILLERS for character in text)


def listing(folder: Path, limit: int = 20) -> str:
    """What a folder holds, for an error message."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    names = sorted(os.listdir(folder))
    listed = ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
    return f"{folder} holds {listed or 'nothing'}"


def load_image(path: str | Path) -> Image.Image | None:
    """An image file, as `load_images` decodes it."""
    return load_images([path])[0]


def load_images(paths: Sequence[str | Path], pixels: int | None = None) -> list[Image.Image | None]:
    """Decode image files to RGB of 8 bits, upright and, where they are transparent, on white; several at a time.

    pixels: larger images are scaled down to that many. None, and a warning that names file and reason, for a file where
    that fails. A warning of Pillow names the file, too.
    """
    said: dict[int, list[str]] = {}  # by thread: what Pillow says of the file that it is decoding

    def record(message: Warning | str, *_, **__) -> None:
        said[get_ident()].append(" ".join(str(message).split()))

    def decode(path: str | Path) -> tuple[Image.Image | None, str, list[str]]:
        own: list[str] = []
        said[get_ident()] = own
        image, reason = _decoded(path)
        return scaled_down(image, pixels) if image and pixels else image, reason, own

    with warnings.catch_warnings(), ThreadPoolExecutor(max(1, min(len(paths), os.cpu_count() or 1))) as pool:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the stricter limit
        warnings.simplefilter("ignore", DeprecationWarning)  # meant for us, and of no file
        warnings.showwarning = record
        decoded = list(pool.map(decode, paths))
    for path, (_, reason, own) in zip(paths, decoded):
        if reason:
            warnings.warn(f"{path}: not used as an image ({reason})", stacklevel=2)
        elif own:
            warnings.warn(f"{path}: used as an image, though {'; '.join(dict.fromkeys(own))}", stacklevel=2)
    return [image for image, _, _ in decoded]


def scaled_down(image: Image.Image, pixels: int) -> Image.Image:
    """The image with at most so many pixels."""
    if image.width * image.height <= pixels:
        return image
    factor = math.sqrt(pixels / (image.width * image.height))
    return image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))


def _decoded(path: str | Path) -> tuple[Image.Image | None, str]:
    """The image, or why there is none."""
    if reason := why_not_opened(path, MAX_IMAGE_BYTES):
        return None, reason
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:  # reads the header only
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, the limit is {MAX_PIXELS:,}")
            white = 4095 if getattr(image, "tag_v2", {}).get(258) == (12,) else 65535  # TIFF: bits per sample
            deep = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG")  # Pillow before 11
            upright = ImageOps.exif_transpose(image)
            return _on_white(_eight_bits(upright, white) if deep else upright), ""
    except UnidentifiedImageError:
        return None, f"cannot identify it as one of {', '.join(IMAGE_FORMATS)}"
    except Exception as error:  # noqa: BLE001  decoders of damaged files raise anything
        return None, f"{type(error).__name__}: {error}"


def _eight_bits(image: Image.Image, white: int) -> Image.Image:
    """A grey image of 16 bits, whose largest value is `white`, in 8; Pillow would cut all values at 255."""
    values = np.asarray(image).astype(np.int64)
    grey = Image.fromarray(((values * 255 + white // 2) // white).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:  # the one value that is
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _on_white(image: Image.Image) -> Image.Image:
    """The image in RGB. Errors: ValueError for whole or real numbers of 32 bits, whose black and white nobody knows."""
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}, values of 32 bits without a known range")
    transparent = image.info.get("transparency")
    if (
        isinstance(transparent, tuple) and max(transparent) > 255
    ):  # 16 bits a channel, of which Pillow keeps the upper 8
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if image.mode.lower() not in ("la", "pa", "rgba") and transparent is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
