"""What a model folder needs besides its paper and its pictures: settings, device, files.

This file is the same, byte for byte, in every model folder; tests/test_copies.py holds it so.
It knows no model: what says something about a paper stands in train.py.

Sections, in order of first use: errors, settings, device, files, surroundings.
"""

import argparse
import ctypes
import itertools
import json
import math
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

import docstring_parser
import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import restricted_number_type
from torch import Tensor, nn

if TYPE_CHECKING:
    pass

HERE = Path(__file__).resolve().parent
FORMAT = 1  # of the run folder and the picture cache; raised when a meaning in them changes

# ---- Errors ----


class InputError(Exception):
    """Something the user gave cannot be used: one line that names it, exit code 2."""


class RunError(Exception):
    """Something went wrong while running: one line, exit code 1."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one line and an exit code where a traceback would help nobody."""
    try:
        yield
        return
    except InputError as error:
        code, line = 2, str(error)
    except (RunError, OSError, torch.OutOfMemoryError) as error:
        code, line = 1, str(error)
    except KeyboardInterrupt:
        code, line = 128 + signal.SIGINT, "interrupted; what was saved before is kept"
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(code)


# ---- Settings ----

Positive = restricted_number_type("Positive", float, [(">", 0), ("<", math.inf)])
Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)])
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])
ImageSize = Literal[16, 32, 64, 128, 256, 512, 1024]
Channels = Literal["data", 1, 3]
Precision = Literal["tf32", "fp32", "bf16"]

WHERE = ("name", "resume", "runs_dir")  # settings that say where a run lies, not what it is
# On resuming these may differ from the run's, as long as steps are left to do.
MAY_DIFFER = ("data", "data_dir", "device", "graphs", "epochs", "max_steps")

Config = TypeVar("Config")
Step = Callable[[], dict[str, Tensor]]


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
        found = parser.parse_args(argv)
        for field in fields(settings):
            value = found[field.name]
            if value is None or (field.type is bool and not isinstance(value, bool)):
                raise InputError(f"{field.name}: {value!r} is no value for it")
        return settings(**{field.name: found[field.name] for field in fields(settings)})

    # By itself the parser lets the last one win, so files go before flags.
    split = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    split.add_argument("--config", action="append", default=[])
    try:
        named, flags = split.parse_known_args(argv)
        files = [f"--config={find_file(file)}" for file in named.config]
        config = parse([*files, *flags])
        if config.resume:
            saved = find_run(config.runs_dir, config.resume) / "parameters.json"
            config = parse([f"--config={saved}", *files, *flags])
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    return config


def find_file(name: str) -> Path:
    """Find a JSON file from the current folder, or else beside this file, as quick.json is.

    Raises:
        InputError: it is in neither, or holds no JSON object.
    """
    for path in (Path(name), HERE / name):
        if path.is_file():
            try:
                found = read_json(path) if path.stat().st_size < 2**20 else None
                if not isinstance(found, dict) or "config" in found:
                    raise ValueError("it is no JSON object of settings")
            except (ValueError, RecursionError) as error:
                raise InputError(f"--config {name}: {error}") from None
            return path
    raise InputError(f"--config {name}: no such file")


def settings_of(config: Any) -> dict[str, Any]:
    """Return what parameters.json holds."""
    return {name: value for name, value in asdict(config).items() if name not in WHERE}


# ---- Device ----


def pick_device(name: str, seed: int, precision: Precision) -> torch.device:
    """Find a device, set it up, and seed the random numbers that are drawn on it.

    Args:
        name: `auto`, or what torch calls it: `cpu`, `cuda`, `cuda:1`, `mps`.
        seed: of weights, noise and interpolation; all of torch's generators take it.
        precision: with `fp32` products are exact to 24 bits; else a GPU rounds factors to 11.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        device = found or torch.device("cpu")
    else:
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"--device {name}: not to be had here ({reason})") from None
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = True  # shapes never change, so the search pays
    if device.type == "cpu":
        torch.set_flush_denormal(True)
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: big gradients come and go at every step.

    By itself it gives blocks of over 32 MB back to the system at once, and getting
    them again costs a page fault for every 4 kB.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(option, 2**31 - 1)
        mallopt(-2, 2**28)  # M_TOP_PAD


def place(device: torch.device, precision: Precision, *networks: nn.Module) -> None:
    """Move networks to a device, in the memory layout and the precision that they run in.

    With `bf16` layers compute in bfloat16 where autocast holds that safe. What a network
    returns is float32, and so is all of it for an input that asks for its own gradient,
    as the x_hat of a gradient penalty does.
    """

    def lowered(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def lower(x: Tensor) -> Tensor:
            exact = x.is_leaf and x.requires_grad
            with torch.autocast(x.device.type, torch.bfloat16, enabled=not exact):
                return forward(x).float()

        return lower

    # what tensor cores take, and a little faster on CPUs too; on Apple's GPUs far slower
    layout = torch.preserve_format if device.type == "mps" else torch.channels_last
    for network in networks:
        network.to(device, memory_format=layout)
        if precision == "bf16":
            network.forward = lowered(network.forward)


def graphed(step: Step, device: torch.device, enabled: bool) -> Step:
    """Record a training step as one CUDA graph and replay it: one launch instead of thousands.

    Where there is no CUDA, or `enabled` is false, the step is returned as it is. Recorded or
    not it does the same, as long as it touches the device alone and every tensor that
    it reads from outside stays in its place.
    """
    if device.type != "cuda" or not enabled:
        return step
    stream, graph, calls = torch.cuda.Stream(device), torch.cuda.CUDAGraph(), itertools.count()
    losses: dict[str, Tensor] = {}

    def replayed() -> dict[str, Tensor]:
        call = next(calls)
        if call < 3:  # as it is: cuDNN looks for kernels, optimisers make their state
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                losses.update(step())
            torch.cuda.current_stream(device).wait_stream(stream)
            return losses
        if call == 3:  # recording runs nothing
            with torch.cuda.graph(graph, stream=stream):
                losses.update(step())
        graph.replay()
        return losses

    return replayed


def describe(device: torch.device, asked: str) -> str:
    """Name a device as its maker does, and say why it was taken."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    why = "the fastest that torch finds here" if asked == "auto" else f"--device {asked}"
    return f"{device} ({kind}), {why}"


# ---- Files ----


@contextmanager
def write_aside(path: Path) -> Iterator[IO[bytes]]:
    """Write a file under another name; rename it once it is whole and on the disk."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read one JSON value."""
    return json.loads(path.read_text())


def write_json(path: Path, content: Any) -> None:
    """Write one JSON value, indented."""
    with write_aside(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def runs_folder(runs_dir: str) -> Path:
    """Return where runs lie: `runs_dir`, or tensorboard/runs beside this file."""
    return Path(runs_dir) if runs_dir else HERE / "tensorboard" / "runs"


def find_run(runs_dir: str, name: str) -> Path:
    """Find the folder of a run by its name; `latest` is the one that was started last.

    Raises:
        InputError: there is none.
    """
    folder = runs_folder(runs_dir)
    if name == "latest":
        runs = [file.parent for file in folder.glob("*/checkpoint.pt")]
        started = {run: read_json(run / "run.json")["started"] for run in runs}
        if not started:
            raise InputError(f"--resume: there is no run to go on with in {folder}")
        name = max(started, key=started.get).name
    for file in ("run.json", "parameters.json", "checkpoint.pt"):
        if not (folder / name / file).is_file():
            raise InputError(f"--resume {name}: {folder / name} is no run, it has no {file}")
    return folder / name


# ---- Surroundings ----


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the first request to stop, so that a step can finish; a second one interrupts."""
    received: list[int] = []

    def receive(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

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
