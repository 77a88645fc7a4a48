"""Folders and zips by strangers: each file is handled or refused by name; none hangs or harms."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from conftest import TOP, load
from hostile import RED, crowded_zip, lying_zip, only_the_good_one, read, zipped

LINKS = pytest.mark.skipif(os.name == "nt", reason="links need rights there")


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


# ---- folders ----


def test_what_has_a_pictures_name_and_is_no_file_is_named(data, folder):
    (folder / "folder.png").mkdir()
    (folder / "folder.png" / "inside.png").write_bytes(RED)
    (folder / "empty.png").touch()
    if os.name != "nt":
        os.mkfifo(folder / "pipe.png")  # to open it would take for ever
        server = socket.socket(socket.AF_UNIX)
        os.chdir(folder)  # its name may have 100 letters
        server.bind("socket.png")
        (folder / "zero.png").symlink_to("/dev/zero")
        (folder / "nowhere.png").symlink_to("nowhere")
        (folder / "itself.png").symlink_to("itself.png")
    found = read(data, folder)
    assert len(found.images) == 2  # the good one, and the one in the folder with the odd name
    named = ["empty.png: its size is 0"]
    if os.name != "nt":
        named += ["pipe.png: not a file", "socket.png: not a file", "zero.png: not a file"]
        named += ["nowhere.png: No such file", "itself.png: Too many levels"]
    assert all(any(name in line for line in found.skipped) for name in named), found.skipped


@LINKS
def test_links_are_followed_but_not_in_circles_nor_out_of_the_folder(data, folder, tmp_path):
    (tmp_path / "elsewhere" / "sub").mkdir(parents=True)
    for place in ("elsewhere", "elsewhere/sub", "p/a", "p/b"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "x.png").write_bytes(RED)
    (tmp_path / "beside.png").write_bytes(RED)  # must not be found by way of a link upwards
    for link, target in (
        *(("other", tmp_path / "elsewhere"), ("again", tmp_path / "elsewhere")),
        *(("up", ".."), ("root", "/"), ("here", "."), ("a/circle", "../b"), ("b/circle", "../a")),
    ):
        (folder / link).symlink_to(target, target_is_directory=True)
    (folder / "file.png").symlink_to(tmp_path / "beside.png")
    items, _ = sys.modules["pictures"].find_pictures(folder)
    inside = [str(Path(item).relative_to(folder)) for item in items]
    assert inside == [
        *("a/circle/x.png", "a/x.png", "again/sub/x.png", "again/x.png", "file.png", "good.png")
    ]
    assert len(read(data, folder / "up" / "p").images) == 6  # a link in --data itself


@LINKS
def test_folders_that_cannot_be_read_are_named(data, folder, monkeypatch):
    (folder / "locked").mkdir()
    listing = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    only_the_good_one(read(data, folder), "locked: not a file, or a folder that cannot be opened")


@LINKS
def test_folders_may_be_nested_deep_or_are_refused(data, folder):
    deep = os.open(folder, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    try:
        assert len(read(data, folder).images) == 1
    except load("WGAN").utils.InputError as error:
        assert "nested too deep" in str(error)
    finally:
        subprocess.run(["rm", "-rf", folder])  # Python might not be able to


@LINKS
def test_a_picture_that_vanishes_or_cannot_be_read_is_named(data, folder, monkeypatch):
    for name in ("gone.png", "locked.png"):
        (folder / name).write_bytes(RED)
    real = data.decode_into

    def remove_first(*args):
        (folder / "gone.png").unlink()
        return real(*args)

    monkeypatch.setattr(data, "decode_into", remove_first)
    opened = open

    def locked(path, *args, **kwargs):
        if str(path).endswith("locked.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", locked)
    only_the_good_one(read(data, folder), "gone.png: No such file", "locked.png: Permission denied")


NAMES = [b"latin-\xe9\xff.png", b"two\nlines.png", b"\x1b[31mred\x07.png", b"\xe2\x80\xaeback.png"]
NAMES += [b"x" * 251 + b".png", b"-rf.png", b"%s{0}.png", b" .png", "üñ名.png".encode()]


@LINKS
def test_training_takes_any_names(folder, tmp_path):
    for name in NAMES:
        for content, prefix in ((RED, b"/"), (b"no picture", b"/broken ")):
            path = os.fsencode(folder) + prefix + name
            Path(os.fsdecode(path[: path.rindex(b"/") + 256])).write_bytes(content)
    argv = ["--image-size", "16", "--g-width", "4", "--d-width", "4", "--z-dim", "8"]
    argv += ["--batch-size", "1", "--max-steps", "1", "--device", "cpu", "--data", str(folder)]
    argv += ["--data-dir", str(tmp_path / "data"), "--runs-dir", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, str(TOP / "DCGAN" / "train.py"), *argv], capture_output=True, timeout=120
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0 and "Traceback" not in err, err
    assert f"{len(NAMES) + 1} of 16x16x3" in out
    lines = [*out.splitlines(), *err.splitlines()]
    assert all(line.isprintable() for line in lines)
    for shown in (r"latin-\udce9\udcff.png", r"two\nlines.png", r"\x1b[31mred\x07", r"\u202eb"):
        assert shown in err
    assert err.count("skipped") == len(NAMES) - 1 and "üñ名.png" in err  # the longest lost .png


@LINKS
def test_a_data_folder_whose_name_is_not_utf8_is_refused(data, folder, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    shutil.copytree(folder, odd)
    for flag, source, place in (("--data ", odd, tmp_path), ("--data-dir ", folder, odd)):
        with pytest.raises(load("WGAN").utils.InputError, match=rf"{flag}.*\\udcff.*: a name that"):
            data.load_pictures(str(source), str(place / "cache"), 16, 3, 1)


# ---- zips ----


def test_names_that_climb_out_of_a_zip_write_nothing(data, tmp_path):
    names = ["../up.png", "/top.png", "a/../../b.png", r"..\back.png", "C:/disk.png", "ok.png"]
    (tmp_path / "in").mkdir()
    packed = zipped(tmp_path / "in" / "p.zip", dict.fromkeys(names, RED))
    before = set(tmp_path.rglob("*"))
    found = read(data, packed)
    assert len(found.images) == len(names)
    new = {path.relative_to(tmp_path / "in") for path in set(tmp_path.rglob("*")) - before}
    assert all(path.parts[0] == "cache" for path in new)
    assert {path.suffix for path in new if (tmp_path / "in" / path).is_file()} <= {
        *(".bytes", ".json", ".lock")
    }


def limited(data, packed, *named):
    """Read a zip with one good picture; see that little memory is taken."""
    tracemalloc.start()
    try:
        only_the_good_one(read(data, packed), *named)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_bombs_in_a_zip_are_refused(data, tmp_path):
    zeros = bytes(400_000_000)
    limited(
        data, zipped(tmp_path / "a.zip", {"0.png": zeros, "1.png": RED}), "0.png: its size is 400,"
    )
    packed = zipped(tmp_path / "b.zip", {"0.png": zeros[: 10**8]}, zipfile.ZIP_BZIP2)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("1.png", RED)
    limited(data, packed, "0.png: its way of compression")


def test_a_zip_entry_that_lies_about_its_size_unpacks_no_further(data, tmp_path):
    for size in (0, 1000, 2**31):
        packed = lying_zip(tmp_path / f"{size}.zip", "0.png", bytes(100_000_000), size)
        with zipfile.ZipFile(packed, "a") as archive:
            archive.writestr("1.png", RED)
        limited(data, packed, "0.png: ")


def test_broken_and_locked_entries_are_named(data, tmp_path):
    packed = zipped(tmp_path / "p.zip", {"bad.png": RED, "good.png": RED}, zipfile.ZIP_STORED)
    raw = bytearray(packed.read_bytes())
    raw[raw.index(RED) + 50] ^= 1
    packed.write_bytes(raw)
    only_the_good_one(read(data, packed), "bad.png: Bad CRC-32")
    raw = bytearray(zipped(packed, {"bad.png": RED, "good.png": RED}).read_bytes())
    raw[6] |= 1  # encrypted
    raw[raw.index(b"PK\1\2") + 8] |= 1
    packed.write_bytes(raw)
    only_the_good_one(read(data, packed), "bad.png: it is encrypted")


def test_zips_whose_table_is_broken_are_refused_by_name(data, tmp_path):
    raw = zipped(tmp_path / "p.zip", {"good.png": RED}).read_bytes()
    table, end = raw.index(b"PK\1\2"), raw.index(b"PK\5\6")
    for changes in (
        {table: 0},  # the table does not begin
        {table + 6: 255},  # packed for a later version
        {table + 9: 8, table + 46: 255},  # a name in UTF-8, and is not
        {end + 13: 255},  # a table that is longer than the file
        {end: 0},  # no end
    ):
        broken = bytearray(raw)
        for place, value in changes.items():
            broken[place] = value
        (tmp_path / "p.zip").write_bytes(broken)
        with pytest.raises(load("WGAN").utils.InputError, match=r"p\.zip: (its|neither)"):
            read(data, tmp_path / "p.zip")


def test_odd_entries_of_a_zip(data, tmp_path):
    inner = zipped(tmp_path / "inner.zip", {"x.png": RED}).read_bytes()
    packed = zipped(tmp_path / "p.zip", {"inner.zip": inner, "inner.png": inner, "d.png/": b""})
    with zipfile.ZipFile(packed, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/dev/zero")
        archive.writestr("twice.png", RED)
        archive.writestr("twice.png", RED)
        archive.writestr("two\nlines.png", b"no picture")
        archive.writestr("x" * 60_000 + "y.png", b"no picture")
    found = read(data, packed)
    assert len(found.images) == 2 and len(found.skipped) == 4
    assert max(map(len, found.skipped)) < 400 and "y.png: no" in "".join(found.skipped)
    lines = "\n".join(found.skipped)
    assert all(name in lines for name in ("inner.png: ", "link.png: ", r"two\nlines.png: "))


def test_one_picture_under_a_hundred_thousand_names(data, tmp_path, pictures, monkeypatch):
    packed = crowded_zip(tmp_path / "p.zip", RED, 100_000)
    began = time.monotonic()
    assert len(pictures.find_pictures(packed)[0]) == 100_000
    assert time.monotonic() - began < 10
    monkeypatch.setattr(pictures.Zipped, "most", 1_000_000)
    with pytest.raises(load("WGAN").utils.InputError, match=r"p.zip: .* too many files"):
        pictures.find_pictures(packed)
