"""The cache of decoded pictures: damaged, fought over, cut short, on a full or read-only disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
from conftest import TOP, load
from hostile import RED, encoded, read
from PIL import Image

COUNT = 12


@pytest.fixture
def data():
    return load("WGAN").data


@pytest.fixture
def folder(tmp_path):
    """Make a folder of different pictures."""
    (tmp_path / "p").mkdir()
    for i in range(COUNT):
        image = Image.new("RGB", (20, 20), (i, 2 * i, 99))
        (tmp_path / "p" / f"{i:02d}.png").write_bytes(encoded(image, "PNG"))
    return tmp_path / "p"


@pytest.fixture
def built(data, folder):
    """Build a cache; return its two files and its pictures."""
    found = read(data, folder)
    return found.cache, found.cache.with_suffix(".json"), np.array(found.images)


def change(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def flip(file, at):
    raw = bytearray(file.read_bytes())
    raw[at] ^= 4
    file.write_bytes(raw)


DAMAGE = {
    "cut": lambda cache, facts: os.truncate(cache, 1000),
    "emptied": lambda cache, facts: os.truncate(cache, 0),
    "longer": lambda cache, facts: cache.write_bytes(cache.read_bytes() + b"more"),
    "changed": lambda cache, facts: flip(cache, 777),
    "gone": lambda cache, facts: cache.unlink(),
    "a folder": lambda cache, facts: (cache.unlink(), cache.mkdir()),
    "facts cut": lambda cache, facts: os.truncate(facts, 30),
    "facts emptied": lambda cache, facts: os.truncate(facts, 0),
    "facts of another type": lambda cache, facts: facts.write_text("[1, 2]"),
    "facts not UTF-8": lambda cache, facts: facts.write_bytes(b'{"shape": "\xff"}'),
    "facts nested": lambda cache, facts: facts.write_text("[" * 100_000),
    "facts too large": lambda cache, facts: os.truncate(facts, 2**26),
    "shape negative": lambda cache, facts: change(facts, shape=[-COUNT, -16, 16, 3]),
    "shape huge": lambda cache, facts: change(facts, shape=[2**62, 2**62, 2**62, 3]),
    "shape of floats": lambda cache, facts: change(facts, shape=[12.0, 16, 16, 3]),
    "shape of truths": lambda cache, facts: change(facts, shape=[12, 16, 48, True]),
    "shape of text": lambda cache, facts: change(facts, shape="abcd"),
    "shape of another size": lambda cache, facts: change(facts, shape=[4 * COUNT, 8, 8, 3]),
    "shape of others": lambda cache, facts: change(facts, shape=[12 * 16 * 16, 3]),
    "digest changed": lambda cache, facts: change(facts, digest="0" * 64),
    "digest of another type": lambda cache, facts: change(facts, digest=None),
    "names of another type": lambda cache, facts: change(facts, skipped=[["a"]]),
    "names missing": lambda cache, facts: change(facts, skipped=None),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_again_and_a_line_says_so(data, folder, built, damage, capfd):
    cache, facts, images = built
    capfd.readouterr()
    DAMAGE[damage](cache, facts)
    if cache.is_dir():  # nothing may be removed that is not ours
        with pytest.raises(load("WGAN").utils.RunError, match=r"cannot be (kept there|written)"):
            read(data, folder)
        return
    assert np.array_equal(read(data, folder).images, images)
    said = capfd.readouterr().err
    assert said.startswith(f"cache {cache} is damaged: ") and "decoded again" in said
    assert len(said.splitlines()) == 1
    read(data, folder)  # and is whole from then on
    assert not capfd.readouterr().err


def test_without_facts_a_cache_was_never_whole(data, folder, built, capfd):
    cache, facts, images = built
    flip(cache, 5)
    facts.unlink()
    capfd.readouterr()
    assert np.array_equal(read(data, folder).images, images)
    assert not capfd.readouterr().err  # as after a kill, which the user knows of


def test_a_cache_is_compared_with_its_digest_once_it_was_touched(data, folder, built, monkeypatch):
    cache, facts, images = built
    compared = []
    real = data.digest_of
    monkeypatch.setattr(data, "digest_of", lambda images: compared.append(1) or real(images))
    monkeypatch.setattr(data, "decode", None)  # any call would fail
    read(data, folder)
    assert not compared
    for touch in (
        lambda: os.utime(cache),  # as after copying a folder
        lambda: change(facts, written="?"),
        lambda: change(facts, written=None, seal=None),  # as they were once
    ):
        touch()
        assert np.array_equal(read(data, folder).images, images)
        assert compared.pop() and not compared
        read(data, folder)  # what was compared is believed again
        assert not compared


def test_strange_facts_of_a_cache_take_no_memory(data, built):
    cache, facts, _ = built
    for content in ("[{}" + ",{}" * 2**24 + "]", "[" * (2**25 + 1)):
        facts.write_text(content)
        with pytest.raises(data.Damaged, match="would fill the memory"):
            data.open_cache(cache, 0)
    facts.unlink()
    if os.name != "nt":
        os.mkfifo(facts)  # to read it would take for ever
        with pytest.raises(data.Damaged, match="missing"):
            data.open_cache(cache, 0)


def test_fewer_readable_pictures_than_held_out_are_refused(data, folder, built):
    for i in range(5):
        (folder / f"broken {i}.png").write_bytes(b"no picture")
    read(data, folder, hold_out=COUNT - 1)
    for count in (COUNT, COUNT + 3):
        with pytest.raises(load("WGAN").utils.InputError, match=rf"12 readable .*-out {count}"):
            read(data, folder, hold_out=count)


def test_where_nothing_can_be_locked_the_cache_is_built_all_the_same(data, folder, monkeypatch):
    for error in (OSError(37, "No locks available"), NotImplementedError()):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(filelock.FileLock, "acquire", fail)
        assert len(read(data, folder).images) == COUNT
        shutil.rmtree(folder.parent / "cache")


# ---- several processes ----

BUILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
import data
build, decode = data.decode_into, data.decode
def say(*args):
    print("building", flush=True)
    build(*args)
def slowly(*args):
    time.sleep(float(sys.argv[4]))
    return decode(*args)
data.decode_into, data.decode = say, slowly
found = data.load_pictures(sys.argv[2], sys.argv[3], 16, "data", 1)
print(found.digest, found.cache.stat().st_ino)
"""


def start(folder, seconds):
    """Start a process that builds or finds the cache, and takes so long for each picture."""
    argv = [sys.executable, "-c", BUILD, TOP / "WGAN", folder, folder.parent / "cache", seconds]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(list(map(str, argv)), text=True, **pipes)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_processes_that_start_at_once_build_one_cache(folder):
    processes = [start(folder, 0.3) for _ in range(3)]
    outs, errs = zip(*(process.communicate(timeout=60) for process in processes), strict=True)
    assert not any(process.returncode for process in processes), errs
    assert "".join(outs).count("building") == 1
    assert len({out.splitlines()[-1] for out in outs}) == 1  # the same file
    waited = [err for err in errs if "waiting for another process" in err]
    assert len(waited) == 2 and all(str(folder.parent / "cache") in err for err in waited)
    assert "".join(errs).count("\n") == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot kill like that")
def test_a_killed_builder_leaves_neither_lock_nor_leftovers(data, folder):
    process = start(folder, 1000)
    assert process.stdout.readline() == "building\n"
    waiting = start(folder, 0)
    wait_for(lambda: "waiting" in waiting.stderr.readline())
    cache = folder.parent / "cache" / "cache"
    (lock,) = cache.glob(".*.lock")
    stem = lock.name.removesuffix(".lock")
    left = [cache / f"{stem}.bytes.{process.pid}", cache / f"{stem}.json.{process.pid}"]
    others = [cache / ".p-16-0123456789abcdef.bytes.77", cache / "mine.txt"]
    for file in (*left, *others):
        file.write_text("half")  # as if the kill came while these were written
    process.kill()
    out, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0 and out.startswith("building")
    process.communicate()
    assert not any(file.exists() for file in left) and all(file.exists() for file in others)
    assert len(list(cache.iterdir())) == 3 + len(others)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot kill like that")
def test_a_kill_at_any_time_leaves_a_cache_that_is_whole_or_none(data, folder, tmp_path):
    whole = np.array(read(data, folder).images)
    shutil.rmtree(tmp_path / "cache")
    for seconds in (0, 0.1, 0.3):
        process = start(folder, 0.02)
        assert process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert np.array_equal(read(data, folder).images, whole)
        shutil.rmtree(tmp_path / "cache")


# ---- the disk ----


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
def test_a_whole_cache_serves_from_a_folder_that_cannot_be_written(data, folder):
    code = "import os, sys; sys.path.insert(0, sys.argv[1]); import data\n"
    code += "data.Image.init(); os.geteuid() or os.setuid(65534)\n" + BUILD  # not as root
    with tempfile.TemporaryDirectory() as place:  # where others can come, too
        os.chmod(place, 0o755)
        place = Path(place)
        shutil.copytree(folder, place / "p")
        cache = read(data, place / "p").cache
        argv = [sys.executable, "-c", code, TOP / "WGAN", place / "p", place / "cache", 0]
        how = {"text": True, "capture_output": True, "timeout": 60}
        os.utime(cache)  # it will be compared, but that cannot be written down
        cache.parent.chmod(0o555)
        done = subprocess.run(list(map(str, argv)), **how)
        assert done.returncode == 0 and "building" not in done.stdout and not done.stderr
        cache.with_suffix(".json").unlink()
        done = subprocess.run(list(map(str, argv)), **how)
        assert f"{cache.parent}: the decoded pictures cannot be kept there (Perm" in done.stderr
        cache.parent.chmod(0o755)


def test_too_little_room_is_said_before_anything_is_decoded(data, folder, monkeypatch):
    few = shutil._ntuple_diskusage(10**9, 10**9, COUNT * 16 * 16 * 3 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: few)
    monkeypatch.setattr(data, "decode", None)
    with pytest.raises(load("WGAN").utils.RunError, match=r"cache/cache: .* take 0.0 GB, and .*"):
        read(data, folder)


@pytest.mark.skipif(os.name == "nt", reason="no limits there")
@pytest.mark.parametrize("most", [1000, 30_000])
def test_a_disk_that_fills_up_ends_in_one_line(folder, tmp_path, most):
    (folder / "twelfth.png").write_bytes(RED)
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
    code += "import utils, train\nwith utils.plain_errors(): train.train(utils.parse_config("
    code += "train.Config))"
    argv = ["--image-size", "32", "--batch-size", "1", "--device", "cpu", "--data", str(folder)]
    argv += ["--data-dir", str(tmp_path / "data"), "--runs-dir", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=TOP / "WGAN", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "data" / "cache") in line and "File too large" in line
    assert not (tmp_path / "runs").exists()
    left = [file.suffix for file in (tmp_path / "data" / "cache").iterdir()]
    assert left == [".lock"]
