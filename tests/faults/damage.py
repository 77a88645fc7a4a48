"""Damage files at random and read them: a program of its own, so that its memory can be told.

    python tests/faults/damage.py KIND COUNT SEED RUN FOLDER

KIND is generators, json, pictures, zips, hostile (not damaged, but made to harm) or several of
them, with commas; RUN a run of DCGAN on a folder, which is not changed; FOLDER is empty. For each
kind a line of JSON says how many files were read and refused, the longest time that one took and
the most memory that the program had.
What a user would see as a traceback ends the program, and so does a file that takes 10 seconds,
that runs code, or has something written outside the folder of the experiment.
"""

import faulthandler
import itertools
import json
import os
import random
import resource
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile
import torch

TOP = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TOP))
import runs  # noqa: E402

SECONDS = 10  # that one file may take
TYPES = (None, True, -1, 0, 2**31, 10**400, 0.5, float("nan"), float("-inf"), "", "..", "\0", "é")
VALUES = [*TYPES, "a" * 10_000, [], [[]], {}, {"a": {}}, [2**62] * 4, "/dev/zero", "\udcff"]


# ---- damage ----


def spoil(rng: random.Random, raw: bytes) -> bytes:
    """Flip bits, cut, swap, repeat, blank or insert: once to three times, often near the start."""
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 3))):
        size = len(raw)
        first = rng.randrange(min(size, 300) if rng.random() < 0.5 else size) if size else 0
        length = rng.choice((1, 2, 4, 16, 100))
        second = rng.randrange(size) if size else 0
        kind = rng.choice(("flip", "flip", "cut", "swap", "repeat", "blank", "insert", "tear"))
        if kind == "flip" and size:
            for _ in range(rng.choice((1, 3, 10))):
                raw[min(size - 1, first + rng.randrange(50))] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del raw[first:]
        elif kind == "swap":
            one, two = raw[first : first + length], raw[second : second + length]
            raw[first : first + length], raw[second : second + length] = two, one
        elif kind == "repeat":
            raw[first:first] = raw[first : first + length] * rng.choice((1, 2, 1000))
        elif kind == "blank":
            raw[first : first + length] = rng.choice((b"\0", b"\xff")) * length
        elif kind == "insert":
            raw[first:first] = rng.randbytes(length)
        else:
            del raw[first : first + length]
    return bytes(raw)


def spoil_json(rng: random.Random, raw: bytes) -> bytes:
    """Damage the text, or put a value of another kind in the place of one."""
    if rng.random() < 0.4:
        return spoil(rng, raw)
    found = place = json.loads(raw)
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    if rng.random() < 0.1:
        del place[key]
    else:
        place[key] = rng.choice(VALUES)
    return json.dumps(found).encode()


# ---- what reads the files ----


def generators(rng: random.Random, run: Path, folder: Path) -> Iterator[Callable]:
    """Damage generator.safetensors; what loads must also make pictures."""
    raw, file = (run / "generator.safetensors").read_bytes(), folder / "x.safetensors"
    while True:
        file.write_bytes(spoil(rng, raw))

        def use() -> None:
            generator, about = runs.load_generator(file)
            generator(torch.randn(2, about["arguments"]["z_dim"]))

        yield use


def json_files(rng: random.Random, run: Path, folder: Path) -> Iterator[Callable]:
    """Damage run.json, parameters.json, or the facts beside the cache."""
    cache = run / json.loads((run / "run.json").read_text())["cache"]
    copy = folder / "cache" / cache.name
    copy.parent.mkdir()
    shutil.copy2(cache, copy)
    originals = {
        run / "run.json": folder / "run.json",
        run / "parameters.json": folder / "parameters.json",
        cache.with_suffix(".json"): copy.with_suffix(".json"),
    }
    while True:
        for source, target in originals.items():
            shutil.copy2(source, target)
        facts = json.loads((folder / "run.json").read_text()) | {"cache": f"cache/{cache.name}"}
        (folder / "run.json").write_text(json.dumps(facts))
        target = rng.choice(list(originals.values()))
        target.write_bytes(spoil_json(rng, target.read_bytes()))

        def use() -> None:
            runs.find_run(str(folder))
            runs.images_per_step(folder)
            runs.load_pictures(folder)

        yield use


def pictures(rng: random.Random, run: Path, folder: Path) -> Iterator[Callable]:
    """Damage pictures of all formats and modes; each lies in a folder with a good one."""
    data = runs.load_file_of("DCGAN", "data")
    ordinary = hostile.ordinary_pictures()
    while True:
        name, raw = rng.choice(list(ordinary.items()))
        raw = spoil(rng, raw)
        yield lambda name=name, raw=raw: alone(data, folder, name, raw)


def harmful(rng: random.Random, run: Path, folder: Path) -> Iterator[Callable]:
    """Take the pictures that are made to harm, as they are."""
    data = runs.load_file_of("DCGAN", "data")
    while True:
        for name, raw in (hostile.huge_pictures() | hostile.exhausting_pictures()).items():
            yield lambda name=name, raw=raw: alone(data, folder, name, raw)


def alone(data, folder: Path, name: str, raw: bytes) -> None:
    """Read a folder of two pictures, a good one and another; count it as refused if it is."""
    shutil.rmtree(folder / "p", ignore_errors=True)
    (folder / "p").mkdir()
    (folder / "p" / "good.png").write_bytes(hostile.RED)
    (folder / "p" / name).write_bytes(raw)
    found = data.load_pictures(str(folder / "p"), str(folder / "d"), 16, "data", 1)
    shutil.rmtree(folder / "d")
    if found.skipped:
        raise runs.InputError(found.skipped[0])


def zips(rng: random.Random, run: Path, folder: Path) -> Iterator[Callable]:
    """Damage a zip of several pictures."""
    data = runs.load_file_of("DCGAN", "data")
    some = dict(list(hostile.ordinary_pictures().items())[::5])
    raws = [
        hostile.zipped(folder / "x.zip", some, method).read_bytes()
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    ]
    while True:
        (folder / "x.zip").write_bytes(spoil(rng, rng.choice(raws)))

        def use() -> None:
            try:
                data.load_pictures(str(folder / "x.zip"), str(folder / "d"), 16, "data", 1)
            except (data.InputError, data.RunError) as error:
                raise runs.InputError(str(error)) from None
            finally:
                shutil.rmtree(folder / "d", ignore_errors=True)

        yield use


KINDS = {
    "generators": generators,
    "json": json_files,
    "pictures": pictures,
    "zips": zips,
    "hostile": harmful,
}


# ---- the experiment ----


def watch(work: Path) -> None:
    """End the program if code from `work` runs, or something is written outside its parent."""
    never = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
    never += ("os.fork", "socket.connect")

    def inside(path: str | bytes | int, folder: Path) -> bool:
        return isinstance(path, int) or Path(os.fsdecode(path)).resolve().is_relative_to(folder)

    def hook(event: str, args: tuple) -> None:
        bad = event in never
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event == "exec":
            bad = "<" not in args[0].co_filename and inside(args[0].co_filename, work)
        elif writes or event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir"):
            bad = args[0] != os.devnull and not inside(args[0], work.parent)
        if bad:
            print(event, args, file=sys.__stderr__, flush=True)
            os._exit(3)

    sys.addaudithook(hook)


def experiment(trials: Iterator[Callable], count: int) -> dict[str, float]:
    """Read so many files; return what came of it."""
    outcomes, longest = {"read": 0, "refused": 0}, 0.0
    for use in itertools.islice(trials, count):
        began = time.monotonic()
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
        try:
            use()
            outcomes["read"] += 1
        except (runs.InputError, OSError):  # what ends in one line
            outcomes["refused"] += 1
        faulthandler.cancel_dump_traceback_later()
        longest = max(longest, time.monotonic() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return outcomes | {"longest_seconds": round(longest, 2), "peak_gb": round(peak / 1e9, 2)}


def main() -> None:
    """Do what the command line asks for."""
    kinds, count, seed, run, top = sys.argv[1:]
    runs.TOP, run = Path(top).resolve(), Path(run).resolve()
    work = runs.TOP / "work"
    work.mkdir()
    os.chdir(work)
    sys.dont_write_bytecode = True
    skip = shutil.ignore_patterns("data", "tensorboard", "__pycache__")
    shutil.copytree(TOP / "DCGAN", runs.TOP / "DCGAN", ignore=skip)
    generator, about = runs.load_generator(run)  # torch makes folders of its own at first
    generator(torch.randn(2, about["arguments"]["z_dim"]))
    watch(work)
    for kind in kinds.split(","):
        (work / kind).mkdir()
        trials = KINDS[kind](random.Random(kind + seed), run, work / kind)
        with open(os.devnull, "w") as sys.stderr:  # the names of what is skipped
            found = experiment(trials, int(count))
        sys.stderr = sys.__stderr__
        print(json.dumps({"kind": kind} | found), flush=True)


if __name__ == "__main__":
    main()
