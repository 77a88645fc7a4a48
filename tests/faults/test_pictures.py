"""Pictures by strangers: each kind is shown as it is meant, or refused by name; none takes long."""

import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import load
from hostile import (
    RED,
    encoded,
    exhausting_pictures,
    huge_pictures,
    only_the_good_one,
    ordinary_pictures,
    png,
    read,
    zipped,
)
from PIL import EpsImagePlugin, Image, ImageOps

ORDINARY = ordinary_pictures()


@pytest.fixture
def data():
    return load("WGAN").data


@pytest.fixture
def pictures():
    load("WGAN")
    return sys.modules["pictures"]


@pytest.fixture
def folder(tmp_path):
    """Make a folder with one good picture in it."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "good.png").write_bytes(RED)
    return tmp_path / "p"


# ---- handled by value ----


def colour(data, folder, content, **how):
    (folder / "x").write_bytes(content)
    return data.decode(str(folder / "x"), 16, 3, **how)[8, 8].tolist()


@pytest.mark.parametrize(
    ("mode", "value", "kind", "how", "shown"),
    [
        ("L", 77, "PNG", {}, 77),
        ("1", 1, "PNG", {}, 255),
        ("LA", (100, 0), "PNG", {}, 255),  # clear is white
        ("LA", (100, 255), "PNG", {}, 100),
        ("RGBA", (0, 0, 0, 51), "PNG", {}, 204),  # a fifth of black on white
        ("RGB", (10, 20, 30), "PNG", {"transparency": (10, 20, 30)}, 255),
        ("RGB", (10, 20, 30), "PNG", {"transparency": (10, 20, 31)}, (10, 20, 30)),
        ("I;16", 65535, "PNG", {}, 255),
        ("I;16", 32768, "PNG", {}, 127),
        ("I;16", 257 * 60, "TIFF", {}, 60),
        ("I", 257 * 60, "TIFF", {}, 60),
        ("I", 10**9, "TIFF", {}, 255),
        ("I", -5, "TIFF", {}, 0),
        ("CMYK", (255, 0, 0, 0), "TIFF", {}, (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), "JPEG", {"quality": 100}, 0),
        ("YCbCr", (128, 128, 128), "JPEG", {"quality": 100}, 128),
    ],
)
def test_modes_keep_their_colour(data, folder, mode, value, kind, how, shown):
    content = encoded(Image.new(mode, (20, 20), value), kind, **how)
    assert colour(data, folder, content) == list(shown if isinstance(shown, tuple) else [shown] * 3)


@pytest.mark.parametrize("clear", [5, bytes([255] * 5 + [0])])
def test_a_palette_with_a_clear_colour(data, folder, clear):
    image = Image.new("P", (20, 20), 4)
    image.putpalette([0] * 12 + [9, 8, 7] + [50, 60, 70])
    assert colour(data, folder, encoded(image, "PNG", transparency=clear)) == [9, 8, 7]
    image.paste(5, (0, 0, 20, 20))
    assert colour(data, folder, encoded(image, "PNG", transparency=clear)) == [255] * 3
    assert colour(data, folder, encoded(image, "GIF")) == [50, 60, 70]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),  # as they are, if none is above 1
        ([0.0, 50.0, 250.0], [0, 51, 255]),  # else by the largest
        ([np.nan, 0.2, 1.0], [0, 51, 255]),
        ([-np.inf, 0.2, np.inf], [0, 51, 255]),
        ([-3e38, 0.2, np.nan], [0, 51, 0]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
    ],
)
def test_floats_that_are_no_numbers(data, folder, values, shown):
    for value, wanted in zip(values, shown, strict=True):
        image = np.full((16, 16), value, np.float32)
        image[0, :3] = values  # far from the middle, where it is looked at
        assert colour(data, folder, encoded(Image.fromarray(image), "TIFF")) == [wanted] * 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_moving_pictures_the_first_frame_is_taken(data, folder, kind):
    frames = [Image.new("RGB", (20, 20), c) for c in ((0, 0, 255), (0, 255, 0), (255, 0, 0))]
    how = {"lossless": True} if kind == "WEBP" else {}
    moving = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **how)
    assert colour(data, folder, moving) == [0, 0, 255]


@pytest.mark.parametrize("turn", range(1, 9))
def test_turned_pictures_stand_upright(data, folder, turn):
    corners = np.zeros((16, 16, 3), np.uint8)
    corners[:8, :8], corners[:8, 8:], corners[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = turn
    back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # which turn undoes which
    stored = Image.fromarray(corners)
    stored.getexif()[0x0112] = back.get(turn, 1)
    stored = ImageOps.exif_transpose(stored)
    for kind in ("PNG", "TIFF"):
        (folder / "x").write_bytes(encoded(stored, kind, exif=exif))
        assert (data.decode(str(folder / "x"), 16, 3) == corners).all()


def test_every_format_and_mode_is_read_from_folders_and_zips(data, folder, tmp_path):
    for name, content in ORDINARY.items():
        (folder / name).write_bytes(content)
    found = read(data, folder)
    assert not found.skipped and len(found.images) == len(ORDINARY) + 1
    packed = zipped(tmp_path / "p.zip", ORDINARY | {"good.png": RED})
    assert np.array_equal(read(data, packed).images, found.images)


def test_programs_and_rare_formats_are_no_pictures(data, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)  # any call would fail
    eps = encoded(Image.new("RGB", (20, 20)), "EPS")
    (folder / "program.png").write_bytes(eps)
    (folder / "program.eps").write_bytes(eps)
    (folder / "icon.jpg").write_bytes(encoded(Image.new("RGB", (32, 32)), "ICO"))
    fax = encoded(Image.new("1", (20, 20)), "TIFF", compression="group4")
    (folder / "fax.tif").write_bytes(fax)
    refused = ("program.png: no picture", "icon.jpg: no picture", "fax.tif: a fax")
    only_the_good_one(read(data, folder), *refused)


# ---- refused by name ----


@pytest.mark.parametrize("name", huge_pictures())
def test_huge_pictures_are_refused(data, folder, name):
    (folder / name).write_bytes(huge_pictures()[name])
    began = time.monotonic()
    only_the_good_one(read(data, folder), name + ": Image size")
    assert time.monotonic() - began < 5


def test_how_many_pixels_depends_on_what_a_format_takes(pictures, data, folder, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 20_000)
    for kind, most in {"PNG": 200, "GIF": 200, "TIFF": 200, "WEBP": 100, "JPEG": 400}.items():
        (folder / f"at.{kind}".lower()).write_bytes(encoded(Image.new("L", (most, 100)), kind))
        (folder / f"over.{kind}".lower()).write_bytes(encoded(Image.new("L", (most, 101)), kind))
    found = read(data, folder)
    assert len(found.images) == 1 + 5
    assert all("over." in line and "x 101 pixels are too many" in line for line in found.skipped)


def test_pictures_of_many_rows_are_refused(data, folder):
    for width, height in ((1, 2**17), (2**17, 1), (1, 2**17 + 1), (2**17 + 1, 1)):
        rows = zlib.compress(bytes((width + 1) * height))
        (folder / f"{width} x {height}.png").write_bytes(png(width, height, rows))
    found = read(data, folder)
    assert len(found.images) == 3
    assert all("131073" in line and "pixels are too many" in line for line in found.skipped)


REASONS = {
    "comments.jpg": "too many pieces",
    "comments.gif": "too many pieces",
    "chunks.png": "too many pieces",
    "scans.jpg": "too many scans",
    "strips.tif": "its tables are too long",
    "table.tif": "its tables are too long",
    "tile.tif": "its tiles are far larger",
    "exif.png": "too much EXIF",
    "numbers.ppm": "too large for its kind",
    "runs.bmp": "too large for its kind",
}


@pytest.mark.parametrize("name", exhausting_pictures())
def test_small_pictures_that_cost_minutes_or_gigabytes_are_refused(data, folder, name):
    (folder / name).write_bytes(exhausting_pictures()[name])
    began = time.monotonic()
    found = read(data, folder)
    only_the_good_one(found, name)
    assert REASONS[name] in found.skipped[0]
    assert time.monotonic() - began < 10


def test_one_file_takes_so_many_bytes_and_no_more(pictures, data, folder, monkeypatch):
    with open(folder / "large.png", "wb") as file:  # takes no room on the disk
        file.truncate(10**12)
    only_the_good_one(read(data, folder), "large.png: its size is 1,000,000,000,000")
    monkeypatch.setattr(pictures, "MOST_BYTES", len(RED) - 1)
    with pytest.raises(load("WGAN").utils.InputError, match="2 of 2 pictures cannot be read"):
        read(data, folder, image_size=32)


def test_threads_share_room_for_pixels_and_bytes(pictures):
    """Three threads that want half of a room each are never in it together; nor does one hang."""
    room, inside, most = pictures.Room(100), [], []

    def enter(size):
        with room.taken(size):
            inside.append(size)
            most.append(sum(inside))
            time.sleep(0.01)
            inside.remove(size)
            if size == 50:
                raise ValueError  # what it held must come back

    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(enter, size) for size in (50, 49, 100, 1, 50, 50, 2)]
    assert [type(d.exception()).__name__ for d in done].count("ValueError") == 3
    assert max(most) <= 100 and room.left == 100


def test_decoding_takes_room(pictures, data, folder, monkeypatch):
    taken = []
    real = pictures.Room.taken
    monkeypatch.setattr(pictures.Room, "taken", lambda r, n: (taken.append((r, n)), real(r, n))[1])
    jpeg = encoded(Image.new("RGB", (1600, 160)), "JPEG")
    for name, pixels in (("good.png", 400), ("a.webp", 800), ("b.jpg", 128_000)):
        content = {"a": encoded(Image.new("RGB", (20, 20)), "WEBP"), "b": jpeg}.get(name[0], RED)
        (folder / name).write_bytes(content)
        data.decode(str(folder / name), 16, 3)
        assert taken == [(pictures.BYTES, len(content)), (pictures.PIXELS, pixels)]
        taken.clear()
