"""What a model folder needs besides its paper and its pictures: errors, settings, files.

This file is the same, byte for byte, in every model folder; tests/test_copies.py holds it so.
It knows no model: what says something about a paper stands in train.py.

Sections, in order of first use: errors, settings, files, surroundings.
"""

import argparse
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal, TypeVar
from zipfile import BadZipFile, ZipFile

import docstring_parser
import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import restricted_number_type
from safetensors import SafetensorError

HERE = Path(__file__).resolve().parent
BEFORE = "checkpoint.before.pt"  # what checkpoint.pt was, in case that is damaged
FORMAT = 1  # of the run folder and the picture cache; raised when a meaning in them changes

# ---- Errors ----


class InputError(Exception):
    """Something the user gave cannot be used: one line that names it, exit code 2."""


class RunError(Exception):
    """Something went wrong while running: one line, exit code 1."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one line and an exit code where a traceback would help nobody."""
    show = threading.excepthook
    # TensorBoard writes in a thread, whose errors come up here as well
    threading.excepthook = lambda e: None if issubclass(e.exc_type, OSError) else show(e)
    try:
        yield
        return
    except InputError as error:
        code, line = 2, str(error)
    except (RunError, OSError, torch.OutOfMemoryError) as error:
        code, line = 1, str(error)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch has no class of its own for it
            raise
        code, line = 1, f"out of memory: {error}"
    except KeyboardInterrupt:
        code, line = 128 + signal.SIGINT, "interrupted; what was saved before is kept"
    process = os.environ.get("RANK", "0")  # of several that torchrun starts
    if code != 2 or process == "0":  # their settings are the same
        name = Path(sys.argv[0]).name + f", process {process}" * ("RANK" in os.environ)
        print(f"{name}: error: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(code)


# ---- Settings ----

Positive = restricted_number_type("Positive", float, [(">", 0), ("<", math.inf)])
Size = restricted_number_type("Size", int, [(">", 0), ("<=", 2**14)])  # of a network
Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)])
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])
ImageSize = Literal[16, 32, 64, 128, 256, 512, 1024]
Channels = Literal["data", 1, 3]
Precision = Literal["tf32", "fp32", "bf16"]

WHERE = ("name", "resume", "runs_dir")  # settings that say where a run lies, not what it is
# On resuming these may differ from the run's, as long as steps are left to do.
MAY_DIFFER = ("data", "data_dir", "device", "graphs", "epochs", "max_steps", "max_seconds")

Config = TypeVar("Config")


def parse_config(settings: type[Config], argv: list[str] | None = None) -> Config:
    """Read settings from the command line and from the JSON files that --config names.

    Flags win over files wherever they stand, files over the run that --resume
    names, and that over the defaults.

    Args:
        settings: a dataclass; the string under each field is the help of its flag.
        argv: the command line without the program's name; by default the real one.

    Raises:
        InputError: a name, a type or a value is not allowed.
    """
    docs = docstring_parser.parse_from_object(settings)
    helps = {parameter.args[1]: parameter.description for parameter in docs.params}
    parser = ArgumentParser(
        description=docs.short_description,
        allow_abbrev=False,
        exit_on_error=False,
        parser_mode="json",
    )
    parser.add_argument("--config", action="config", help="JSON file of settings; flags win.")
    for field in fields(settings):
        how = (
            {"action": argparse.BooleanOptionalAction}
            if field.type is bool
            else {"type": field.type}
        )
        if field.name == "resume":
            how |= {"nargs": "?", "const": "latest"}
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, default=field.default, help=helps[field.name], **how)

    def parse(argv: list[str]) -> Config:
        found, values = parser.parse_args(argv), {}
        for field in fields(settings):
            value = found[field.name]
            if value is None or (field.type is bool and not isinstance(value, bool)):
                raise InputError(f"{field.name}: {value!r} is no value for it")
            # restricted types are classes of their own, which no checkpoint may hold
            plain = next(kind for kind in (bool, int, float, str) if isinstance(value, kind))
            values[field.name] = plain(value)
        return settings(**values)

    # By itself the parser lets the last one win, so files go before flags.
    split = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    split.add_argument("--config", action="append", default=[])
    try:
        named, flags = split.parse_known_args(argv)
        files = [f"--config={find_file(file)}" for file in named.config]
        config = parse([*files, *flags])
        if config.resume:
            saved = find_run(config.runs_dir, config.resume) / "parameters.json"
            config = parse([f"--config={find_file(str(saved))}", *files, *flags])
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    except OverflowError as error:
        raise InputError(f"a number in the settings is too large: {error}") from None
    return config


def find_file(name: str) -> Path:
    """Find a JSON file from the current folder, or else beside this file, as quick.json is.

    Raises:
        InputError: it is in neither, or holds no JSON object.
    """
    for path in (Path(name), HERE / name):
        if path.is_file():
            if "config" in read_json(path):
                raise InputError(f"--config {name}: it cannot name another file")
            return path
    raise InputError(f"--config {name}: no such file")


def settings_of(config: Any) -> dict[str, Any]:
    """Return what parameters.json holds."""
    return {name: value for name, value in asdict(config).items() if name not in WHERE}


# ---- Files ----


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file or folder that could not be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{path} cannot be written ({reason}); what was saved before is kept"
        ) from None


@contextmanager
def write_aside(path: Path, keep: Path | None = None) -> Iterator[IO[bytes]]:
    """Write a file under another name; rename it once it is whole and on the disk.

    What had its name before is renamed to `keep`, if that is given.

    Raises:
        RunError: it cannot be written; what had its name before is still there.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            with open(aside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep and path.exists():
                os.replace(path, keep)
            os.replace(aside, path)
            with suppress(OSError):  # some file systems cannot
                sync(path.parent)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """See to it that a file, or the names in a folder, are on the disk and outlive a power cut."""
    if os.name == "posix":
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        InputError: it holds something else, or there is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if path.stat().st_size > 2**20:
            raise ValueError("it is larger than a megabyte")
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"it is a {type(found).__name__}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} holds no JSON object ({error})") from None
    return found


def read_facts(run: Path) -> dict[str, Any]:
    """Read run.json.

    Raises:
        InputError: it is damaged.
    """
    facts = read_json(run / "run.json")
    for name, kind in (("format", int), ("started", str), ("pictures", dict)):
        if type(facts.get(name)) is not kind:
            raise InputError(f"{run / 'run.json'} is damaged ({name} is {facts.get(name)!r:.50})")
    return facts


def write_json(path: Path, content: Any) -> None:
    """Write one JSON value, indented."""
    with write_aside(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def runs_folder(runs_dir: str) -> Path:
    """Return where runs lie: `runs_dir`, or tensorboard/runs beside this file."""
    return Path(runs_dir) if runs_dir else HERE / "tensorboard" / "runs"


def new_run(runs_dir: str, name: str) -> Path:
    """Make the folder of a run, named by date and time unless it is given a name.

    Raises:
        InputError: the name is taken, or is none.
    """
    if name in ("latest", "..") or Path(name).name != name or not name.isprintable():
        raise InputError(f"--name {name!r}: not a name that a run folder can have")
    stem = name or f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for suffix in itertools.chain([""], (f"_{n}" for n in itertools.count(2))):
        run = runs_folder(runs_dir) / (stem + suffix)
        try:
            run.mkdir(parents=True)
            (run / "frames").mkdir()
        except FileExistsError:
            if name:
                raise InputError(f"--name {name}: {run} exists; --resume goes on with it") from None
        else:
            return run


def find_run(runs_dir: str, name: str) -> Path:
    """Find the folder of a run by its name; `latest` is the one that was started last.

    Raises:
        InputError: there is none.
    """
    folder = runs_folder(runs_dir)
    if name == "latest":
        runs = {file.parent for file in folder.glob("*/checkpoint*.pt")}
        runs = {run for run in runs if (run / "run.json").is_file()}
        started = {run: read_facts(run)["started"] for run in runs}
        if not started:
            raise InputError(f"--resume: there is no run to go on with in {folder}")
        name = max(started, key=started.get).name
    for file in ("run.json", "parameters.json", "checkpoint*.pt"):
        if not any((folder / name).glob(file)):
            raise InputError(f"--resume {name}: {folder / name} is no run, it has no {file}")
    return folder / name


def read_checkpoint(run: Path) -> tuple[dict[str, Any], list[str]]:
    """Read checkpoint.pt, or the one before if that is damaged; nothing in them is run as code.

    Returns:
        What was saved; and what is wrong with a checkpoint that was passed over.

    Raises:
        RunError: both are damaged.
    """
    damaged = []
    for path in (run / "checkpoint.pt", run / BEFORE):
        try:
            with ZipFile(path) as archive:  # which is what torch.save writes
                part = archive.testzip()  # a CRC-32 for each tensor
            if part:
                raise BadZipFile(f"{part} in it is damaged")
            state = torch.load(path, map_location="cpu", weights_only=True)
            kinds = {"step": int, "seconds": float, "settings": dict, "own": list}
            if any(type(state[name]) is not kind for name, kind in kinds.items()):
                raise ValueError("it is no checkpoint of this program")
            return state, damaged
        except Exception as error:  # what a damaged file raises can be nearly anything
            damaged.append(f"{path.name}: {' '.join(str(error).split())}")
    raise RunError(f"no checkpoint in {run} can be read: {'; '.join(damaged)}")


# ---- Surroundings ----


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the first request to stop, so that a step can finish; a second one ends at once."""
    received: list[int] = []

    def receive(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:  # an exception here could leave a lock of another thread held
            os.write(2, b"\nended at once; what was saved before is kept\n")
            os._exit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def git_commit() -> str | None:
    """Return the commit that this file belongs to, where git knows one."""
    ask = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
