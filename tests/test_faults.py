"""What goes wrong around a training: kills, signals, full disks, damaged and hostile files."""

import hashlib
import io
import itertools
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import traceback
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_equal, each_step, load, load_images, noise_images, parse, write_images
from PIL import Image
from tqdm import tqdm

import runs

resource = pytest.importorskip("resource")  # Windows has neither limits nor forks
TINY = "--image-size 16 --g-width 4 --d-width 4 --z-dim 8 --batch-size 8 --device cpu "
TINY += "--log-every 1 --frame-every 2 --checkpoint-every 3 --epochs 1000"
IMAGES = noise_images(24, 20, 20, 3)


def encoded(image: np.ndarray, kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


@pytest.fixture
def flags(tmp_path):
    """Write 24 images, and return the flags of a tiny training on them."""
    write_images(tmp_path / "p", IMAGES)
    places = {"--data": "p", "--data-dir": "data", "--runs-dir": "runs"}
    return TINY.split() + [f"{flag}={tmp_path / name}" for flag, name in places.items()]


def train(flags: list[str], more: str, folder="DCGAN") -> Path:
    """Do in this process what `python train.py` does."""
    files = load(folder)
    with files.utils.plain_errors():
        return files.train.train(parse(files, *flags, *more.split()))


def go_on(flags: list[str], steps: int) -> Path:
    """Train the run `cut` up to a step: from its checkpoint if it has one, else anew."""
    run = Path(flags[-1].partition("=")[2]) / "cut"
    begun = (run / "checkpoint.pt").exists()
    if not begun:
        shutil.rmtree(run, ignore_errors=True)
    return train(flags, f"--max-steps {steps} {'--resume' if begun else '--name'} cut")


def failure(capsys, *training) -> tuple[int, str]:
    """Return the exit code of a training that must fail, and the one line that it prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train(*training)
    (line,) = capsys.readouterr().err.splitlines()
    return ended.value.code, line


def images_of(tmp_path: Path, data="p"):
    return load_images(load("DCGAN"), tmp_path / data, tmp_path / "data", batch_size=8)


def forked(job, after: float | None = None) -> tuple[int, str]:
    """Do a job in a fork, killed after so many seconds; return its exit code and its errors."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(writer, 2)
            sys.stdout, sys.stderr = open(os.devnull, "w"), open(2, "w", buffering=1)  # noqa: SIM115
            threading.excepthook = threading.__excepthook__  # which pytest replaces
            tqdm.set_lock(threading.RLock())  # forks share the other: a kill locks it for ever
            job()
            code = 0
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(writer)
    with open(reader, errors="replace") as file:
        return code, file.read()


def kill_at_write(count: int) -> None:
    """End this process when so many files have been opened for writing, renamed or removed."""
    writes = itertools.count(1)

    def watch(event: str, args: tuple) -> None:
        opened = event == "open" and isinstance(args[2], int) and args[2] & os.O_ACCMODE
        changed = event in ("os.rename", "os.remove", "os.mkdir")
        if (opened or changed) and next(writes) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def test_a_run_killed_at_any_moment_ends_like_one_that_was_not(flags):
    rng, codes = random.Random(0), []
    whole = train(flags, "--max-steps 40 --name whole")
    for at_write in (rng.randint(1, 60) if trial % 2 else 0 for trial in range(14)):

        def job(at_write=at_write):
            kill_at_write(at_write)
            go_on(flags, 40)

        code, said = forked(job, None if at_write else rng.random() / 4)
        assert code in (0, -signal.SIGKILL), said
        codes.append((code, at_write > 0))
        if code == 0:
            assert_equal(whole, whole.with_name("cut"))
            shutil.rmtree(whole.with_name("cut"))
    assert codes.count((-9, True)) > 2 and codes.count((-9, False)) > 2
    assert_equal(whole, run := go_on(flags, 40))
    assert {path.name for path in run.rglob(".*")} == {".lock"}  # nothing half written is left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_step_and_two_end_at_once(flags, number, tmp_path, capsys, monkeypatch):
    def interrupt(step, *_):
        for _ in range({5: 1, 8: 2}.get(step, 0)):
            os.kill(os.getpid(), number)

    each_step(load("DCGAN"), monkeypatch, interrupt)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        train([*flags[:-1], "--runs-dir=runs"], "--max-steps 12 --name cut")
    last = capsys.readouterr().out.splitlines()[-1]
    assert ended.value.code == 128 + number and last.startswith("stopped     after 5 steps")
    command = f"{runs.TOP / 'DCGAN' / 'train.py'} --resume cut --runs-dir {tmp_path / 'runs'}"
    assert last.endswith(f"; to resume: python {command}")
    code, line = failure(capsys, flags, "--max-steps 12 --resume cut")
    assert code == 130 and "interrupted" in line
    monkeypatch.undo()
    assert_equal(train(flags, "--max-steps 12 --name whole"), go_on(flags, 12))


def test_nohup_keeps_a_training_from_hangups(flags, monkeypatch):
    files = load("DCGAN")
    each_step(files, monkeypatch, lambda *_: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert "finished    3 steps" in (train(flags, "--max-steps 3") / "train.log").read_text()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_too_little_memory_is_one_line(flags):
    files = load("DCGAN")
    for place, name, take in (
        (files.data, "decode", lambda *_: bytearray(2**60)),
        (files.train, "generator_step", lambda *_: torch.empty(2**50)),
    ):

        def job(change=(place, name, take)):
            setattr(*change)
            train(flags, "--max-steps 3")

        code, said = forked(job)  # after it malloc may not do what it has been told
        assert code == 1 and said.count("\n") == 1 and "not enough memory" in said, said
        assert "try a smaller --batch-size" in said


def test_a_full_disk_is_one_line_and_costs_nothing_that_was_saved(flags):
    whole, named = train(flags, "--max-steps 9 --name whole"), set()
    cut = whole.with_name("cut")
    limits = 100, 440, 1000, 8000, 11_000, 35_000, 65_000  # what fits grows from case to case
    for begun, limit in [*itertools.product((0, 6), limits)][:-1]:

        def job(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            go_on(flags, 9)

        if begun:
            go_on(flags, begun)
        code, said = forked(job)
        assert code == 1 and said.count("\n") == 1 and "File too large" in said, said
        named.add(re.search(f"{cut}\\S*", said)[0])
        saved = [torch.load(f, weights_only=True)["step"] for f in cut.glob("checkpoint.pt")]
        assert max(saved, default=0) >= begun
        assert_equal(whole, go_on(flags, 9))
        shutil.rmtree(cut)
    assert len(named) >= 4, named


def test_a_disk_that_fills_up_while_images_are_decoded_is_one_line(flags, tmp_path):
    def job():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        train(flags, "")

    code, said = forked(job)
    assert code == 1 and said.count("\n") == 1 and "File too large" in said
    assert str(tmp_path / "data" / "cache") in said and not (tmp_path / "runs").exists()
    assert [file.suffix for file in (tmp_path / "data" / "cache").iterdir()] == [".lock"]
    assert len(images_of(tmp_path).images) == 24


def test_a_table_that_another_program_has_changed_is_named_and_left_as_it_is(flags, capsys):
    table = train(flags, "--max-steps 6 --name cut") / "metrics.csv"
    good = table.read_bytes()
    for changed in (good.replace(b",", b";"), good + b"note,1\n", b"a,b\n1,2"):
        table.write_bytes(changed)
        code, line = failure(capsys, flags, "--max-steps 9 --resume cut")
        assert code == 2 and f"{table}: another program has changed it" in line
        assert table.read_bytes() == changed


class Bomb(str):
    """Makes a folder of this name when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (str(self),)


def test_checkpoints_that_are_none_are_one_line_and_run_no_code(flags, tmp_path, capsys):
    run, bomb = train(flags, "--max-steps 6 --name cut"), Bomb(tmp_path / "executed")
    state, file = torch.load(run / "checkpoint.pt"), run / "checkpoint.pt"
    for content, words in (
        (state | {"bomb": bomb}, "cannot be read ("),
        ({"weight": torch.zeros(3)}, "cannot be read ("),
        (state | {"generator": {}}, "of DCGAN does not fit the networks ("),
    ):
        torch.save(content, file)
        code, line = failure(capsys, flags, "--max-steps 9 --resume cut")
        assert code == 1 and f"{file} {words}" in line
    assert not (tmp_path / "executed").exists()


def test_a_run_of_another_model_and_a_damaged_one_are_named(flags, capsys):
    run = train(flags, "--max-steps 3 --name cut")
    code, line = failure(capsys, flags, "--max-steps 6 --resume cut", "WGAN-GP")
    assert code == 1 and "of DCGAN does not fit the networks" in line
    (run / "run.json").write_bytes(b"")
    code, line = failure(capsys, flags, "--max-steps 6 --resume cut")
    assert code == 2 and f"{run / 'run.json'} is not a JSON file" in line


def hostile_images() -> dict[str, bytes]:
    jpeg, gif = encoded(IMAGES[0], "JPEG"), encoded(IMAGES[0], "GIF")
    size = jpeg.index(b"\xff\xc0") + 5
    return {
        "bomb.png": encoded(np.zeros((8000, 8000), bool)),  # 62 kB
        "huge.jpg": jpeg[:size] + b"\xff" * 4 + jpeg[size + 4 :],
        "huge.gif": gif[:6] + b"\xff" * 4 + gif[10:],
        "text.jpg": b"Dear Sir or Madam,",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "empty.png": b"",
    }


def test_hostile_images_are_skipped_by_name_and_training_goes_on(flags, tmp_path, capsys):
    for name, content in hostile_images().items():
        (tmp_path / "p" / name).write_bytes(content)
    (tmp_path / "p" / "folder.png").mkdir()
    train(flags, "--max-steps 1")
    out, skipped = capsys.readouterr().out, images_of(tmp_path).skipped
    assert {Path(line.partition(":")[0]).name for line in skipped} == {*hostile_images()}
    assert f"skipped     {'; '.join(skipped[:5])}; and 1 more" in out
    assert "<" not in "".join(skipped)  # as in <_io.BufferedReader ...>
    assert "images      24 of" in out and "finished" in out


def test_a_zip_is_read_but_for_what_is_locked_or_damaged(flags, tmp_path, capsys):
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("locked.png", encoded(IMAGES[0]))
        archive.writestr("folder.png/", b"")
        for name, content in hostile_images().items():
            archive.writestr(name, content)
        for i in range(8):
            archive.writestr(f"../{i}.png", encoded(IMAGES[i]))
    raw = bytearray(file.read_bytes())
    table = raw.index(b"PK\1\2")
    raw[6], raw[table + 8] = raw[6] | 1, raw[table + 8] | 1  # the first is encrypted
    file.write_bytes(raw)
    train([*flags, f"--data={file}"], "--max-steps 1")
    out, skipped = capsys.readouterr().out, images_of(tmp_path, "x.zip").skipped
    assert "1 locked by a password (locked.png)" in out and "images      8 of" in out
    assert {line.partition(":")[0] for line in skipped[1:]} == {*hostile_images()}
    raw[table + 6] = 255
    file.write_bytes(raw)
    code, line = failure(capsys, [*flags, f"--data={file}"], "--max-steps 1")
    assert code == 2 and f"{file}: cannot be read (" in line


def test_a_killed_decoding_leaves_no_broken_cache(flags, tmp_path):
    data, cache = load("DCGAN").data, images_of(tmp_path).cache

    def job():
        if moment:
            kill_at_write(moment)
        else:  # in the midst of it
            data.decode = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        images_of(tmp_path)

    for moment in range(20):
        Image.fromarray(IMAGES[moment]).save(tmp_path / "p" / "23.png")
        code, said = forked(job)
        if code == 0:
            break
        assert code == -signal.SIGKILL, said
        if found := data.open_cache(cache, 0):  # it is what it says, after other images too
            assert found.digest == hashlib.sha256(found.images.tobytes()).hexdigest()
        assert len(images_of(tmp_path).images) == 24
        left = {path.suffix for path in cache.parent.iterdir()}
        assert left == {".bytes", ".json", ".lock"}
    assert 5 < moment < 19


def test_ctrl_c_while_images_are_decoded_is_one_line(flags, tmp_path, capsys, monkeypatch):
    data = load("DCGAN").data
    monkeypatch.setattr(data, "decode", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    code, line = failure(capsys, flags, "")
    assert code == 130 and "interrupted" in line
    assert [file.suffix for file in (tmp_path / "data" / "cache").iterdir()] == [".lock"]


def test_processes_that_want_the_same_images_decode_them_once(flags, tmp_path, monkeypatch):
    data, log = load("DCGAN").data, tmp_path / "decoded"
    decode = data.decode

    def slowly(*args):
        with open(log, "ab") as file:
            file.write(b"x")
        time.sleep(0.05)
        return decode(*args)

    monkeypatch.setattr(data, "decode", slowly)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(forked, lambda: images_of(tmp_path))
        while not log.exists():
            time.sleep(0.01)
        assert len(images_of(tmp_path).images) == 24
        assert other.result()[0] == 0
    assert log.read_bytes() == b"x" * 24
