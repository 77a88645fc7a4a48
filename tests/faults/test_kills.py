"""Runs that are killed at any moment, within writes included, go on as if nothing had happened."""

import dataclasses
import os
import random
import signal
import sys

import pytest
from breaking import compare, run_in_child
from conftest import load

KILLS = {"short": 12, "long": 200}


def kill_at_write(count: int) -> None:
    """Kill this process when so many files have been opened for writing, renamed or removed."""
    left = count

    def watch(event: str, args: tuple) -> None:
        nonlocal left
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes or event in ("os.rename", "os.remove", "os.mkdir"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def prove(files, config, kills: int, seed: int) -> dict:
    """Kill a run so many times, finish it, and compare it with one that nothing happened to.

    Returns:
        How many kills came within a write and at any time, and how many before a first save.
    """
    rng = random.Random(seed)
    folder = files.utils.runs_folder(config.runs_dir) / "killed"
    whole = files.train.train(dataclasses.replace(config, name="whole"))
    counts = {"write": 0, "time": 0, "ended": 0, "anew": 0}
    while counts["write"] + counts["time"] < kills:
        begun = any(folder.glob("checkpoint*.pt"))
        if folder.exists() and not begun:  # it died before there was anything to go on with
            counts["anew"] += 1
            folder.rename(folder.with_name(f"stillborn{counts['anew']}"))
        kind = rng.choice(["write", "time"])
        at_write = rng.randint(1, 60) if kind == "write" else 0
        killed = [(rng.uniform(0, 0.6), signal.SIGKILL)] if kind == "time" else []

        def job(at_write=at_write, begun=begun):
            kill_at_write(at_write)
            name = {"resume": "killed"} if begun else {"name": "killed"}
            files.train.train(dataclasses.replace(config, **name))

        code, said = run_in_child(job, *killed)
        assert code in (0, -signal.SIGKILL), f"after {counts}: {said}"
        if code == 0:  # it was quicker than its death: begin another
            counts["ended"] += 1
            compare(whole, folder)
            folder.rename(folder.with_name(f"ended{counts['ended']}"))
        else:
            counts[kind] += 1
    if any(folder.glob("checkpoint*.pt")):
        files.train.train(dataclasses.replace(config, resume="killed"))
        compare(whole, folder)
    return counts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("length", ["short", pytest.param("long", marks=pytest.mark.long)])
def test_kills(length, tiny):
    files = load("WGAN-GP" if length == "long" else "DCGAN")
    steps = {"short": 40, "long": 400}[length]
    config = tiny(files, max_steps=steps, checkpoint_every=3, frame_every=4, log_every=1)
    files.data.load_pictures("faces", config.data_dir, 16, "data", 8)
    counts = prove(files, config, KILLS[length], seed=0)
    assert min(counts["write"], counts["time"]) > KILLS[length] / 4
    print(f"kills: {counts}")


@pytest.mark.parametrize("length", ["short", pytest.param("long", marks=pytest.mark.long)])
def test_signals_at_any_time_twice_too(length, tiny):
    files = load("DCGAN")
    config = tiny(files, max_steps=60, checkpoint_every=3, frame_every=2, log_every=1)
    whole = files.train.train(dataclasses.replace(config, name="whole"))
    folder = whole.with_name("stopped")
    rng = random.Random(0)
    codes = []
    for _ in range({"short": 6, "long": 60}[length]):
        begun = any(folder.glob("checkpoint*.pt"))
        if folder.exists() and not begun:
            folder.rename(folder.with_name(f"stillborn{len(codes)}"))
        number = rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        signals = [(rng.uniform(0.02, 0.3), number), (rng.uniform(0, 0.02), number)]

        def job(begun=begun):
            name = {"resume": "stopped"} if begun else {"name": "stopped"}
            with files.utils.plain_errors():
                files.train.train(dataclasses.replace(config, **name))

        code, said = run_in_child(job, *signals[: rng.choice([1, 2])])
        assert "Traceback" not in said, said
        codes.append(code)
        if code == 0:
            compare(whole, folder)
            folder.rename(folder.with_name(f"ended{len(codes)}"))
        else:
            assert code in (-number, 128 + number), said
    if any(folder.glob("checkpoint*.pt")):
        files.train.train(dataclasses.replace(config, resume="stopped"))
        compare(whole, folder)
    assert len(set(codes)) > 1
