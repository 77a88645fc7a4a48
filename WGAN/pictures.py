"""Pictures in folders and zip files, as strangers make them: find, read, decode within bounds.

This file is the same, byte for byte, in every model folder; tests/test_copies.py holds it so.

A small file can hold a picture that fills the memory, or keep a decoder busy for days. What
goes beyond the bounds below is refused; within them decoding takes at most about 1.3 GB, however
many pictures there are, and seconds for one. Nothing from a zip is written to the disk.
"""

import ctypes
import io
import os
import stat
import struct
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils import Channels, InputError

# Other formats are rare, and some of them dangerous: EPS is a program, which Ghostscript runs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 50_000_000  # of one picture, and of all that are being decoded
MOST_BYTES = 300_000_000  # of one file, and of all that are being read
SLOW = {"bmp_rle", "ppm", "ppm_plain"}  # decoders that Pillow has in Python
FAXES = {"tiff_ccitt", "group3", "group4"}  # of damaged ones libtiff prints a line for every row


class Room:
    """So much memory, which the pictures share that are decoded side by side."""

    def __init__(self, size: int) -> None:
        self.left, self.changed = size, threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait until so much is left, and hold it."""
        with self.changed:
            self.changed.wait_for(lambda: self.left >= size)
            self.left -= size
        try:
            yield
        finally:
            with self.changed:
                self.left += size
                self.changed.notify_all()


BYTES, PIXELS = Room(MOST_BYTES), Room(MOST_PIXELS)


class Metered(io.BytesIO):
    """A file that can be read in so many pieces and no more.

    Else a few megabytes of empty comments, say, keep a decoder busy for minutes. Of GIFs older
    versions of Pillow put such pieces together in quadratic time.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reads = 2**14 if content.startswith(b"GIF") else 2**18

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as every file does."""
        self.reads -= 1
        if self.reads < 0:
            raise ValueError("it falls into too many pieces")
        return super().read(size)


class Zipped(io.BufferedReader):
    """A zip file whose table of contents is bounded: zipfile makes an object of every entry."""

    most = 2**26  # bytes of the table, which is read in one piece

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as every file does."""
        if size is not None and size > self.most:
            raise zipfile.BadZipFile("too many files; in a folder they can be read")
        return super().read(size)


# ---- Find ----


def find_pictures(path: Path) -> tuple[list, Any]:
    """List what `decode` can try to read, and the facts that identify it.

    Args:
        path: a folder, nested as it may be, or a zip file.

    Raises:
        InputError: it is neither, or a zip that cannot be read.
    """
    suffixes = tuple(s for s, name in Image.registered_extensions().items() if name in FORMATS)
    if path.is_dir():
        try:
            items = sorted(files_below(path.resolve(), suffixes))
        except RecursionError:  # Python below 3.12 walks by recursion
            raise InputError(f"--data {shown(path)}: its folders are nested too deep") from None
        return items, [*items, *map(identify, items)]
    archive = open_zip(path)
    entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
    items = [(archive, entry) for entry in entries if entry.filename.lower().endswith(suffixes)]
    return items, (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)


def files_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Name the files in a folder and the folders in it; also the folders that cannot be read.

    Links are followed, but into no folder twice, and into none that this one lies in: a
    stranger's link may lead in a circle, or to the root of the disk.
    """

    def inode(path: str | Path) -> tuple[int, int]:
        found = os.stat(path)
        return found.st_dev, found.st_ino

    seen, unreadable = {inode(parent) for parent in folder.parents}, []
    walk = os.walk(
        folder, onerror=lambda error: unreadable.append(error.filename), followlinks=True
    )
    for top, folders, names in walk:
        if inode(top) in seen:
            folders.clear()
            continue
        seen.add(inode(top))
        folders.sort()  # of several links to a folder the first is taken
        yield from (os.path.join(top, name) for name in names if name.lower().endswith(suffixes))
    yield from unreadable


def identify(file: str) -> tuple[int, int] | None:
    """Return what changes when a file does; nothing for a link to nowhere."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def open_zip(path: Path) -> zipfile.ZipFile:
    """Read a zip's table of contents.

    Raises:
        InputError: there is no such file, it is no zip, or a damaged one.
    """
    try:
        if path.is_file() and zipfile.is_zipfile(path):
            file = Zipped(io.FileIO(path))
            archive = zipfile.ZipFile(file)
            file.most = MOST_BYTES
            return archive
    except Exception as error:  # a broken table can raise nearly anything
        raise InputError(f"--data {shown(path)}: its zip cannot be read: {reason(error)}") from None
    raise InputError(f"--data {shown(path)}: neither a folder nor a zip file")


def shown(text: Any) -> str:
    """Make a name fit for a line: whatever does not print is escaped, as repr does."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def reason(error: Exception) -> str:
    """Say in one line why something cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return f"no picture ({', '.join(FORMATS)})"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown(" ".join(text.split()))[:120] or type(error).__name__


# ---- Read ----


@contextmanager
def contents(item: Any) -> Iterator[bytes]:
    """Read a file, or what an entry of a zip unpacks to, once there is room in memory.

    Args:
        item: a path, or a zip file that is open and its entry.

    Raises:
        ValueError: it is no ordinary file, or too large.
    """
    if isinstance(item, tuple):
        archive, entry = item
        size = entry.file_size  # zipfile never reads more than this, however much follows
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("its way of compression is not read here")  # the others are unbounded
        if entry.flag_bits & 1:
            raise ValueError("it is encrypted")
    else:
        found = os.stat(item)
        size = found.st_size
        if not stat.S_ISREG(found.st_mode):  # to open a pipe would take for ever
            raise ValueError("not a file, or a folder that cannot be opened")
    if not 0 < size <= MOST_BYTES:
        raise ValueError(f"its size is {size:,}, not 1 to {MOST_BYTES:,} bytes")
    with BYTES.taken(size):
        with archive.open(entry) if isinstance(item, tuple) else open(item, "rb") as file:
            content = file.read(size)
        yield content


def open_picture(content: bytes, image_size: int) -> tuple[Image.Image, int]:
    """Open a picture, not decoded yet, unless it is of those that are made to harm.

    Returns:
        The picture, and its share of `MOST_PIXELS`.

    Raises:
        ValueError: it is.
        Exception: it is damaged; Pillow raises nearly anything.
    """
    if content[:2] in (b"II", b"MM"):
        check_tiff(content)
    image = Image.open(Metered(content), formats=FORMATS)
    width, height = image.size
    share = pixels = width * height
    if image.draft("RGB", (image_size, image_size)):  # JPEG: only the scale that is needed
        # in several scans it takes about half the memory that all its pixels would
        share = max(image.width * image.height, pixels // 2)
    elif image.format == "WEBP":
        share = 2 * pixels  # of which Pillow keeps copies
    if share > MOST_PIXELS or max(width, height) > 2**17:  # rows take memory by themselves
        raise ValueError(f"{width} x {height} pixels are too many")
    if SLOW & {tile[0] for tile in image.tile} and (pixels > 2**20 or len(content) > 2**24):
        raise ValueError("too large for its kind, which takes long to decode")
    tags = getattr(image, "tag_v2", {})
    if tags.get(322, 0) * tags.get(323, 0) > 2 * pixels + 2**20:
        raise ValueError("its tiles are far larger than the picture")
    if image.info.get("compression") in FAXES:
        raise ValueError("a fax")
    if image.info.get("progressive") and content.count(b"\xff\xda") > 100:  # ten are usual
        raise ValueError("a JPEG of too many scans")
    if len(image.info.get("exif", b"")) > 2**16:  # what a segment of a JPEG can hold
        raise ValueError("too much EXIF")
    return image, share


def check_tiff(content: bytes) -> None:
    """Look at a TIFF's table before Pillow does, which makes objects of all that it lists.

    Raises:
        ValueError: that would be far more than the file holds, or the file is a BigTIFF.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4])
    if not order:
        raise ValueError("not a TIFF of the usual kind")
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start)
    table = content[start + 2 : start + 2 + 12 * count]
    numbers = letters = 0
    for _, kind, length in struct.iter_unpack(order + "HHI4x", table):
        if kind in (1, 2, 7):  # bytes, which stay as they are
            letters += length
        else:
            numbers += length
    if numbers > 2**16 or letters > len(content):
        raise ValueError("its tables are too long")


def decode(item: Any, image_size: int, channels: Channels) -> np.ndarray:
    """Read one picture, of any size and mode, as bytes (image_size, image_size, 1 or 3).

    Args:
        item: a path, an open zip file and its entry, or pixels (H, W) or (H, W, C).
        image_size: the short side is scaled to it, then the centre is cut out.
        channels: 1, 3, or "data", which here means 3.

    Raises:
        Exception: it cannot be read.
    """
    if isinstance(item, np.ndarray):
        return fit(Image.fromarray(item), image_size, channels)
    with contents(item) as content:
        image, share = open_picture(content, image_size)
        with PIXELS.taken(share):
            try:
                return fit(image, image_size, channels)
            finally:
                if share > 2**22:
                    image.close()
                    give_back()


def give_back() -> None:
    """Return memory that was freed to the system; glibc keeps it, separately for each thread."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def fit(image: Image.Image, image_size: int, channels: Channels) -> np.ndarray:
    """Turn a picture upright, bring it to 8 bits a channel, scale it and cut out the centre."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):  # 16 bits and more, which PIL would cut off at 255
        values = np.array(image, np.float32)
        finite = np.isfinite(values)
        top = 65535 if image.mode.startswith("I") else values.max(initial=1, where=finite)
        values.clip(0, top, out=values)
        values *= 255 / top
        np.nan_to_num(values, copy=False)  # what is no number becomes black
        image = Image.fromarray(values.astype(np.uint8))
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    wanted = "L" if channels == 1 else "RGB"
    image = image if image.mode == wanted else image.convert(wanted)
    image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image_size, image_size, -1)
