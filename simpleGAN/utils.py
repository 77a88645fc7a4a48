"""What a model folder needs besides its paper and its images: settings, device, run folder.

This file is the same, byte for byte, in every model folder; tests/test_copies.py checks it.
It knows no model: what says something about a paper is in train.py.

Sections: errors, settings, device, processes, files, run.
"""

import csv
import ctypes
import importlib
import itertools
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, fields, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeVar, get_args, get_origin
from zipfile import BadZipFile, ZipFile

import docstring_parser
import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from PIL import Image
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
FORMAT = 1  # of the run folder and the image cache; raised when a meaning in them changes

# ---- Errors ----


class InputError(Exception):
    """Something the user gave cannot be used: one line that names it, exit code 2."""


class RunError(Exception):
    """Something went wrong while running: one line, exit code 1."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one line and an exit code where a traceback would help nobody."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.excepthook = lambda _: None  # TensorBoard's thread; its errors come up here as well
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a name may not fit the encoding
    try:
        yield
        return
    except InputError as error:
        code, line = 2, str(error)
    except (RunError, OSError) as error:
        code, line = 1, str(error)
    except (MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]  # only its words tell the kind of a RuntimeError
        told = any(f"{word} memory" in reason for word in ("allocate", "enough", "out of"))
        if not told and isinstance(error, RuntimeError):
            raise
        smaller = "--batch-size, --image-size or --g-width and --d-width"
        code, line = 1, f"not enough memory ({reason}); try a smaller {smaller}"
    except KeyboardInterrupt:
        code, line = 130, "interrupted; what was saved before is kept"
    if code != 2 or process() == 0:  # all processes have the same settings
        name = Path(sys.argv[0]).name + (f", process {process()}" if processes() > 1 else "")
        print(f"{name}: error: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(code)


# ---- Settings ----

# A number's type; what is allowed, in words and as a test.
Positive = Annotated[float, "a positive number", lambda x: 0 < x < math.inf]
Amount = Annotated[float, "a number from 0 up", lambda x: 0 <= x < math.inf]
Share = Annotated[float, "a number from 0 to below 1", lambda x: 0 <= x < 1]
Count = Annotated[int, "a positive whole number", lambda x: x > 0]
Limit = Annotated[int, "a whole number from 0 up", lambda x: x >= 0]
Width = Annotated[int, "a whole number from 1 to 16384", lambda x: 0 < x <= 2**14]
Seed = Annotated[int, "a whole number from 0 to 4294967295", lambda x: 0 <= x < 2**32]
ImageSize = Literal[16, 32, 64, 128, 256, 512, 1024]
Channels = Literal["data", 1, 3]
Precision = Literal["auto", "fp32", "tf32", "bf16"]
Config = TypeVar("Config")

DATASETS = ("faces", "mnist", "fashion-mnist", "cifar10", "celeba")  # other --data are paths
WHERE = ("name", "resume", "runs_dir")  # settings that say where a run lies, not what it is
MAY_DIFFER = ("data", "data_dir", "device", "graphs", "epochs", "max_steps", "max_seconds", "lr")


def parse_config(settings: type[Config], argv: list[str] | None = None) -> Config:
    """Read settings from the command line and from the JSON files that --config names.

    A flag wins over a file wherever it stands, a file over the run that --resume names,
    and that over the defaults. Paths become absolute.

    Args:
        settings: A dataclass; the string under each field is the help of its flag.
        argv: The command line without the program's name; by default the real one.

    Raises:
        InputError: A name or a value is not allowed.
    """
    docs = docstring_parser.parse_from_object(settings)
    helps = {parameter.args[1]: parameter.description for parameter in docs.params}
    parser = ArgumentParser(
        description=docs.short_description, allow_abbrev=False, argument_default=SUPPRESS
    )
    parser.add_argument("--config", action="append", metavar="FILE", help="JSON file of settings")
    for field in fields(settings):
        options = {"type": partial(convert, field.type), "metavar": field.name.upper()}
        if field.type is bool:
            options = {"action": BooleanOptionalAction}
        elif field.name == "resume":
            options |= {"nargs": "?", "const": "latest"}
        text = f"{helps[field.name]} (default: {field.default!r})"
        parser.add_argument("--" + field.name.replace("_", "-"), help=text, **options)

    def parse(flags: list[str] | None, source: str = "") -> dict[str, Any]:
        def refuse(message: str) -> None:
            raise InputError(source + message.removeprefix("argument "))

        parser.error = refuse
        found, unknown = parser.parse_known_args(flags)
        if unknown:
            name = unknown[0].split("=")[0]
            near = get_close_matches(name, parser._option_string_actions, 1)
            refuse(f"{name}: unknown" + (f"; did you mean {near[0]}?" if near else "; see --help"))
        return vars(found)

    def parse_file(file: Path, about: str = "") -> dict[str, Any]:
        flags = []
        for name, value in read_json(file).items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                flags.append(f"--{flag}={value}")
        if any(flag.startswith("--config=") for flag in flags):
            raise InputError(f"{file}: --config: a file cannot name another")
        return parse(flags, f"{file}{about}: ")

    flags, values = parse(argv), {}
    for name in flags.pop("config", []):
        beside = HERE / name  # as quick.json is
        values |= parse_file(Path(name) if Path(name).exists() else beside)
    values |= flags
    if values.get("resume"):
        run = find_run(values.get("runs_dir", ""), values["resume"])
        about = f" of a run of {read_json(run / 'run.json').get('model')}"
        values = parse_file(run / "parameters.json", about) | values
    for name in ("data", "data_dir", "runs_dir"):
        if values.get(name) and values[name] not in DATASETS:
            values[name] = str(Path(values[name]).absolute())
    return settings(**values)


def convert(kind: Any, text: str) -> Any:
    """Turn the text of a flag into the type of its setting.

    Raises:
        ArgumentTypeError: It is not allowed.
    """
    if kind is str:
        return text
    if get_origin(kind) is Literal:
        options = {str(option): option for option in get_args(kind)}
        words = "one of " + ", ".join(options)
        if text in options:
            return options[text]
    else:
        number, words, allowed = get_args(kind)
        with suppress(ValueError):
            if allowed(number(text)):
                return number(text)
    raise ArgumentTypeError(f"must be {words}, not {text!r}")


def settings_of(config: Any) -> dict[str, Any]:
    """Return what parameters.json holds."""
    return {name: value for name, value in asdict(config).items() if name not in WHERE}


# ---- Device ----


def pick_device(name: str) -> torch.device:
    """Find a device by PyTorch's name for it, or the fastest as `auto`.

    Raises:
        InputError: There is no such device.
    """
    if name == "auto":
        available = torch.accelerator.is_available()
        return torch.accelerator.current_accelerator() if available else torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name}: not available ({reason})") from None


def set_up(config: Config) -> tuple[torch.device, Config]:
    """Find a device, set its precision, join other processes, and seed weights and noise.

    Returns:
        The device, and the settings with the precision that `auto` stands for on it.

    Raises:
        InputError: There is no such device.
    """
    device = torch.device("cpu")
    if config.device != "auto":
        try:
            device = torch.device(config.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"--device {config.device}: not available ({reason})") from None
    elif torch.accelerator.is_available():
        found = torch.accelerator.current_accelerator()
        if found.type != "mps" or processes() == 1:  # Gloo has no operations for Apple's GPUs
            device = found
    if processes() > 1:
        if device.type == "cuda":
            number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if number >= count:
                line = f"--device {config.device}: {processes()} processes, but {count} GPUs"
                raise InputError(line)
            device = torch.device("cuda", number)
            torch.cuda.set_device(device)
        # Optimizers import this module. Imported after the group is made, its default arguments
        # would keep the group's threads alive, which can abort the program as Python shuts down.
        importlib.import_module("torch.distributed.nn")
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=5))  # while the first saves
    torch.manual_seed(stream_seed(config.seed, process()) if process() else config.seed)
    precision = config.precision
    if precision == "auto":
        able = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of PyTorch lack it
        native_bf16 = able.get("avx512_bf16") or able.get("amx_bf16")
        on_cpu = "bf16" if native_bf16 else "fp32"
        precision = {"cuda": "tf32", "cpu": on_cpu}.get(device.type, "fp32")
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = True  # shapes never change, so the search pays
    if device.type == "cpu":
        torch.set_flush_denormal(True)
        if platform.libc_ver()[0] == "glibc":
            # Keep freed memory (M_TRIM_THRESHOLD, M_MMAP_MAX, M_TOP_PAD): large gradients come
            # and go at every step, and getting them again costs a page fault for every 4 kB.
            for option, value in ((-1, 2**31 - 1), (-4, 0), (-2, 2**28)):
                ctypes.CDLL(None).mallopt(option, value)
    return device, replace(config, precision=precision)


def stream_seed(seed: int, number: int) -> int:
    """Derive the seed of an independent stream: 32 bits, all that a CPU generator takes."""
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])


def place(device: torch.device, *networks: nn.Module) -> None:
    """Move networks to a device, in the memory layout that is fastest there.

    All of several processes get the weights of the first.
    """
    # What tensor cores take, and a little faster on CPUs too; far slower on Apple's GPUs.
    layout = torch.preserve_format if device.type == "mps" else torch.channels_last
    for network in networks:
        network.to(device)
        for tensor in network.state_dict().values() if processes() > 1 else ():
            dist.broadcast(tensor, 0)
        network.to(memory_format=layout)


def graphed(
    step: Callable[[], dict[str, Tensor]], device: torch.device, enabled: bool
) -> Callable[[], dict[str, Tensor]]:
    """Record a training step as one CUDA graph and replay it: one launch instead of thousands.

    Without CUDA, or if not `enabled`, the step is returned as it is. Both do the same as long
    as the step touches the device alone and every tensor it reads stays in its place.
    """
    if device.type != "cuda" or not enabled:
        return step
    side, graph, calls = torch.cuda.Stream(device), torch.cuda.CUDAGraph(), itertools.count()
    losses: dict[str, Tensor] = {}

    def replayed() -> dict[str, Tensor]:
        call = next(calls)
        if call < 3:  # as it is: cuDNN searches for kernels, optimizers create their state
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                losses.update(step())
            torch.cuda.current_stream(device).wait_stream(side)
            return losses
        if call == 3:  # recording runs nothing; NCCL watches its work from another thread
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                losses.update(step())
        graph.replay()
        return losses

    return replayed


# ---- Processes ----
# `torchrun --standalone --nproc-per-node=N train.py` starts N of them. Each trains on minibatches
# of its own; all take the same steps, since they average their gradients.


def process() -> int:
    """Return the number of this process; only the first, 0, writes."""
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def together() -> Iterator[None]:
    """Say it in one line if another process is gone."""
    try:
        yield
    except RuntimeError as error:  # Gloo's and NCCL's own
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"another of {processes()} processes has ended ({reason})") from None


def gather(value: Any) -> list[Any]:
    """Return what every process gave, in their order."""
    found = [value] * processes()
    if processes() > 1:
        with together():
            dist.all_gather_object(found, value)
    return found


def average_gradients(*optimizers: Optimizer) -> None:
    """Let each optimizer step along the mean of the gradients of all processes.

    One flat all-reduce before each step. DistributedDataParallel supports neither a gradient
    penalty nor two passes through batch norm before one backward.
    """

    def average(optimizer: Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with together():
            dist.all_reduce(flat)
        parts = (flat / processes()).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    for optimizer in optimizers if processes() > 1 else ():
        optimizer.register_step_pre_hook(average)


# ---- Files ----


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file or folder that cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{path} cannot be written ({reason}); earlier files are kept") from None


@contextmanager
def write_aside(path: Path, keep: Path | None = None) -> Iterator[IO[bytes]]:
    """Write a file under another name and rename it once it is whole and on the disk.

    What had its name before is renamed to `keep`, if that is given.

    Raises:
        RunError: It cannot be written; what had its name before is still there.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(aside, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep and path.exists():
                os.replace(path, keep)
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        InputError: There is no such file, or it holds something else.
    """
    try:
        found = json.loads(path.read_text("utf-8-sig"))  # some editors begin with a mark
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object but a {type(found).__name__}")
    return found


def write_json(path: Path, content: Any) -> None:
    """Write one JSON value, indented."""
    with write_aside(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def runs_folder(runs_dir: str) -> Path:
    """Return where runs lie: `runs_dir`, or tensorboard/runs beside this file."""
    return Path(runs_dir) if runs_dir else HERE / "tensorboard" / "runs"


def new_run(runs_dir: str, name: str) -> Path:
    """Create the folder of a run, named by date and time unless it is given a name.

    Raises:
        InputError: The name is taken or cannot be one.
    """
    if name in ("latest", "..") or Path(name).name != name or not name.isprintable():
        raise InputError(f"--name {name!r}: not a name that a run folder can have")
    run = runs_folder(runs_dir) / (name or f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"[:-3])
    try:
        (run / "frames").mkdir(parents=True)
    except FileExistsError:
        raise InputError(f"--name {name}: {run} exists; continue it with --resume") from None
    return run


def find_run(runs_dir: str, name: str) -> Path:
    """Find the folder of a run by its name; `latest` is the one that was started last.

    Raises:
        InputError: There is none that can be resumed.
    """
    folder = runs_folder(runs_dir)
    found = {file.parent for file in folder.glob("*/checkpoint*.pt")}
    if name == "latest" and found:
        return max(found, key=lambda run: read_json(run / "run.json").get("started") or "")
    if folder / name not in found:
        names = ", ".join(sorted(run.name for run in found)) or "none"
        raise InputError(f"--resume {name}: no run of this name in {folder} (there: {names})")
    return folder / name


def read_checkpoint(run: Path) -> tuple[dict[str, Any], list[str]]:
    """Read checkpoint.pt, or the one before if that is damaged; neither can run code.

    Returns:
        What was saved; and what is wrong with a checkpoint that was passed over.

    Raises:
        RunError: Both are damaged.
    """
    damaged = []
    for path in (run / "checkpoint.pt", run / "checkpoint.before.pt"):
        try:
            with ZipFile(path) as archive:  # which is what torch.save writes
                if part := archive.testzip():  # a CRC-32 for each tensor
                    raise BadZipFile(f"{part} in it is damaged")
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not {"step", "seconds", "settings", "own"} <= set(state):
                raise ValueError("it is not a checkpoint of this program")
            return state, damaged
        except Exception as error:  # a damaged file can raise nearly anything
            damaged.append(f"{path.name}: {' '.join(str(error).split())}")
    raise RunError(f"no checkpoint in {run} can be read: {'; '.join(damaged)}")


def cut_off(run: Path, step: int) -> None:
    """Remove rows and frames from after `step`, and a row that ends half-way."""
    if (run / "metrics.csv").exists():
        lines = (run / "metrics.csv").read_text(errors="replace").splitlines(keepends=True)
        header, *rows = [line for line in lines if line.endswith("\n")] or [""]
        rows = [row for row in rows if (n := row.split(",")[0]).isdecimal() and int(n) <= step]
        with write_aside(run / "metrics.csv") as file:
            file.write("".join([header, *rows]).encode())
    for frame in (run / "frames").glob("*.png"):
        if frame.stem.isdecimal() and int(frame.stem) > step:
            frame.unlink()


def git_commit() -> str | None:
    """Return the commit that this file belongs to, where git knows one."""
    ask = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


# ---- Run ----


class Run:
    """A training run and its folder, the contract between training and every other script.

    `steps` is the loop: it counts generator updates, and between two of them logs, draws and
    saves. `record` takes the losses of one update.

    Args:
        config: The settings of train.py.
        model: What is trained, whatever the folder is called.
        dataset: What it is trained on: `images`, `held_out`, `digest`, `skipped`, `cache`.
        device: Where the networks are.
        batches_per_step: Minibatches of real images that one step shows.
        parts: All that resuming needs, by name; each has a `state_dict`. One is `generator`.

    Raises:
        InputError: The name is taken; there is nothing to resume, or the settings contradict.
    """

    def __init__(
        self,
        config: Any,
        model: str,
        dataset: Any,
        device: torch.device,
        batches_per_step: int,
        parts: dict[str, Any],
    ) -> None:
        self.config, self.dataset, self.device, self.parts = config, dataset, device, parts
        self.is_main = process() == 0
        batch = config.batch_size * processes()
        self.images_per_step = batches_per_step * batch
        self.steps_per_epoch = len(dataset.images) // batch
        self.last_step = min(config.epochs * self.steps_per_epoch, config.max_steps or math.inf)
        self.step, self.seconds, self.sums, self.summed = 0, 0.0, {}, 0
        self.done, self.line_before, self.hinted = False, 0.0, device.type != "cpu"
        # Noise of its own: drawing frames leaves the training's random stream alone.
        rng = torch.Generator().manual_seed(stream_seed(config.seed, 0))
        self.fixed_z = torch.randn(64, config.z_dim, generator=rng).to(device)
        networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        threads = torch.get_num_threads()
        kind = (
            f"{platform.processor() or platform.machine()}, {threads} thread{'s' * (threads > 1)}"
        )
        if device.type == "cuda":
            kind = torch.cuda.get_device_name(device)
        self.facts = {
            "format": FORMAT,
            "model": model,
            "started": datetime.now().isoformat(),
            "finished": None,
            "device": f"{device} ({kind})",
            "precision": config.precision,
            "processes": processes(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "git_commit": git_commit(),
            "parameters": {k: sum(p.numel() for p in n.parameters()) for k, n in networks.items()},
            "pictures": {"shape": list(dataset.images.shape), "digest": dataset.digest},
            "cache": str(dataset.cache.absolute()),
        }
        if config.resume:
            self.path = find_run(config.runs_dir, config.resume)
            self.restore()
        else:
            self.path = gather(new_run(config.runs_dir, config.name) if self.is_main else None)[0]
        self.row_before = (self.step, self.seconds)
        self.open = ExitStack()  # what is closed at the end
        if self.is_main:
            with writing(self.path):
                self.start()

    def start(self) -> None:
        """Lock the folder, write what the run is, open TensorBoard, and say all of it."""
        # Slow to import, so only once nothing can be wrong with the settings.
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        try:
            self.open.enter_context(FileLock(self.path / ".lock", timeout=0))
        except Timeout:
            raise InputError(f"another training is using {self.path}") from None
        if self.config.resume:
            cut_off(self.path, self.step)
        write_json(self.path / "parameters.json", settings_of(self.config))
        write_json(self.path / "run.json", self.facts)
        purge = self.step + 1 if self.config.resume else None  # TensorBoard hides what came after
        self.events = self.open.enter_context(SummaryWriter(self.path, purge_step=purge))
        if self.step == 0:
            for summary in hparams(settings_of(self.config), {"loss_d": 0, "loss_g": 0}):
                self.events.file_writer.add_summary(summary)
            real = grid(torch.from_numpy(self.dataset.images[:64]).movedim(3, 1))
            self.events.add_image("real", real, 0, dataformats="HWC")
        count, size, _, channels = self.dataset.images.shape
        held_out, skipped = len(self.dataset.held_out), self.dataset.skipped
        self.say(f"device      {self.facts['device']}, {self.config.precision}")
        self.say(f"images      {count:,} of {size}x{size}x{channels}: {self.config.data}")
        if held_out:
            self.say(f"held out    {held_out:,} more, which training never sees")
        if skipped:
            self.say(f"skipped     {'; '.join(skipped[:5])}{'; ...' * (len(skipped) > 5)}")
        self.say(f"run         {self.path}" + f", from step {self.step}" * (self.step > 0))
        limited = self.config.resume or self.config.max_steps or self.config.max_seconds
        if self.last_step < 0.1 / self.config.lr and not limited:  # images would still be gray
            few = f"{self.last_step:,} step{'s' * (self.last_step != 1)}"
            enough = math.ceil(0.3 / self.config.lr / self.steps_per_epoch)
            self.say(f"warning     {few} of this lr show nothing yet; try --epochs {enough}")

    def steps(self) -> Iterator[int]:
        """Yield the number of each step that is still to do; look after the run in between.

        Raises:
            RunError: A loss or a weight is not finite, or a file cannot be written.
            SystemExit: A signal asked to stop; the run is saved.
        """
        every, stop = self.config, 0
        hidden = None if self.is_main else True  # None: shown if there is a terminal
        form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining} left{postfix}]"
        self.bar = tqdm(initial=self.step, disable=hidden, bar_format=form, dynamic_ncols=True)
        self.bar.total = self.last_step
        signals: list[int] = []

        def receive(number: int, _: Any) -> None:
            signals.append(number)  # the step is finished first
            signal.signal(number, signal.default_int_handler)  # a second request ends at once

        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # Windows lacks the third
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets SIGHUP
                signal.signal(number, receive)  # stays, so that a failing run can say why
        with writing(self.path), self.open, self.bar:
            if self.step == 0:
                self.draw()
                self.save()
            while not self.done and not stop:
                began = time.perf_counter()
                yield self.step + 1
                self.step += 1
                log, draw, save = (
                    self.step % n == 0
                    for n in (every.log_every, every.frame_every, every.checkpoint_every)
                )
                if self.device.type != "cpu" and (log or draw or save):
                    torch.accelerator.synchronize(self.device)  # a GPU finishes its steps here
                self.seconds += time.perf_counter() - began
                over = self.step == self.last_step or 0 < every.max_seconds <= self.seconds
                # All processes end at the same step.
                ends, stops = zip(*gather((over, max(signals, default=0))), strict=True)
                self.done, stop = any(ends), max(stops)
                self.bar.total = max(self.bar.total, self.step)  # which was an estimate
                self.bar.update()
                if log or self.done:
                    self.log()
                if draw or self.done:
                    self.draw()
                if save or self.done or stop:
                    self.save()
            self.end(stop)

    def end(self, stop: int) -> None:
        """Say how the training ended, and how to resume one that was stopped.

        Raises:
            SystemExit: It was stopped.
        """
        steps = f"{self.step:,} step{'s' * (self.step != 1)}"
        if self.done:
            self.facts["finished"] = datetime.now().isoformat()
            if self.is_main:
                write_json(self.path / "run.json", self.facts)
            took = tqdm.format_interval(self.seconds)
            self.say(f"finished    {steps} in {took} of training: {self.path}")
        else:
            start = ["python"]
            if processes() > 1:
                start = ["torchrun", "--standalone", f"--nproc-per-node={processes()}"]
            where = ["--resume", self.path.name, "--runs-dir", self.path.parent]
            join = shlex.join if os.name == "posix" else subprocess.list2cmdline
            resume = join(map(str, [*start, HERE / "train.py", *where]))
            self.say(f"stopped     after {steps}, which are saved; to resume: {resume}")
        if processes() > 1:
            gather(None)  # one that leaves early can abort
            dist.destroy_process_group()
        if not self.done:
            raise SystemExit(128 + stop)

    def record(self, losses: dict[str, Tensor]) -> None:
        """Add the scalars of one step to the sums behind the next row, without waiting for them."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.summed += 1

    def log(self) -> None:
        """Write the means since the last row to metrics.csv, TensorBoard and the bar."""
        of_all = gather({name: float(total / self.summed) for name, total in self.sums.items()})
        means = {name: sum(one[name] for one in of_all) / len(of_all) for name in of_all[0]}
        self.check_finite(means)
        steps, seconds = self.step - self.row_before[0], self.seconds - self.row_before[1]
        self.row_before, self.sums, self.summed = (self.step, self.seconds), {}, 0
        if not self.is_main:
            return
        speed = steps * self.images_per_step / max(seconds, 1e-9)
        losses = {name: means.pop(name) for name in ("loss_d", "loss_g")} | means
        row = {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 4),
            "images": self.step * self.images_per_step,
            "seconds": round(self.seconds, 3),
            **{name: f"{value:.6g}" for name, value in losses.items()},
        }
        with open(self.path / "metrics.csv", "a", newline="") as file:
            table = csv.DictWriter(file, row, lineterminator="\n")
            if file.tell() == 0:
                table.writeheader()
            table.writerow(row)
        for name, value in (losses | {"images_per_second": speed}).items():
            self.events.add_scalar(name, value, self.step)
        left = seconds / steps * (self.last_step - self.step)
        if limit := self.config.max_seconds:
            left = max(0.0, min(left, limit - self.seconds))
        self.bar.total = self.step + math.ceil(left / max(seconds / steps, 1e-9))
        text = f"loss_d {losses['loss_d']:.2f}, loss_g {losses['loss_g']:.2f}, {speed:.0f} images/s"
        self.bar.set_postfix_str(text, refresh=False)
        if self.done or time.monotonic() > self.line_before + 10:
            self.line_before = time.monotonic()
            line = f"step {self.step}/{self.bar.total}, {text}, {tqdm.format_interval(left)} left"
            self.say(line, terminal=self.bar.disable)
        if not self.hinted and self.seconds > 10:
            self.hinted = True
            if left > 3600 and not any("quick.json" in word for word in sys.argv):
                quick = "for minutes instead of hours: --config quick.json"
                self.say(f"time left   about {left / 3600:.0f} hours on this CPU; {quick}")

    def draw(self) -> None:
        """Save an 8x8 grid of what the generator makes of `fixed_z`, in eval mode."""
        if not self.is_main:
            return
        generator = self.parts["generator"].eval()
        with torch.no_grad():
            images = generator(self.fixed_z)
        generator.train()
        frame = grid(((images + 1) * 127.5).round().to("cpu", torch.uint8))
        with write_aside(self.path / "frames" / f"{self.step:06d}.png") as file:
            Image.fromarray(frame).save(file, "PNG")
        self.events.add_image("frames", frame, self.step, dataformats="HWC")

    def save(self) -> None:
        """Write generator.safetensors and checkpoint.pt, unless a number in them is not finite."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        self.check_finite(self.sums)
        for name in self.facts["parameters"]:
            self.check_finite({f"{name}.{key}": t.sum() for key, t in state[name].items()})
        own = {"rng": torch.get_rng_state(), "summed": self.summed}
        own["sums"] = {name: total.cpu() for name, total in self.sums.items()}
        if self.device.type == "cuda":
            own["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        state |= {"step": self.step, "seconds": self.seconds, "own": gather(own)}
        state["settings"] = settings_of(self.config)
        if not self.is_main:
            return
        self.events.flush()
        arguments = {
            "z_dim": self.config.z_dim,
            "image_size": self.config.image_size,
            "channels": self.dataset.images.shape[3],
            "width": self.config.g_width,
        }
        about = {"format": FORMAT, "model": self.facts["model"], "step": self.step}
        # One key: the order of several would change from run to run.
        metadata = {"about": json.dumps(about | {"arguments": arguments})}
        weights = {key: value.cpu().contiguous() for key, value in state["generator"].items()}
        with write_aside(self.path / "generator.safetensors") as file:
            file.write(safetensors_bytes(weights, metadata))
        path, before = self.path / "checkpoint.pt", self.path / "checkpoint.before.pt"
        with write_aside(path, keep=before) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # of ending the file, which hides why that was necessary
                raise error.__context__ or error from None

    def restore(self) -> None:
        """Return to the checkpoint.

        Raises:
            InputError: The settings are not those of the run, or nothing is left to do.
            RunError: No checkpoint can be read, or it does not fit the networks.
        """
        before, (state, damaged) = read_json(self.path / "run.json"), read_checkpoint(self.path)
        for line in damaged:
            self.say(f"checkpoint  {line}; resuming from the one before")
        # As in the checkpoint, since parameters.json may have been edited. A setting that is newer
        # than the run had its default.
        saved, done = settings_of(type(self.config)()) | state["settings"], state["step"]
        wrong = [
            f"{name} was {saved[name]} and is now {value}"
            for name, value in settings_of(self.config).items()
            if name not in MAY_DIFFER and saved[name] != value
        ]
        if (was := before.get("model")) != self.facts["model"]:
            wrong.append(f"it is a run of {was}")
        if before.get("pictures") != self.facts["pictures"]:
            wrong.append("the images are not those it was trained on")
        if (was := before.get("processes", 1)) != processes():
            wrong.append(f"it was trained by {was} processes and now there are {processes()}")
        if done >= self.last_step:
            wrong.append(f"its {done} steps are done; raise --epochs or --max-steps")
        if 0 < self.config.max_seconds <= state["seconds"]:
            wrong.append(f"its {self.config.max_seconds:g} seconds are over; raise --max-seconds")
        if wrong:
            raise InputError(f"--resume {self.path.name}: {'; '.join(wrong)}")
        self.facts["started"] = before.get("started")
        self.facts["lr_until_step"] = before.get("lr_until_step", {})
        if saved["lr"] != self.config.lr:
            self.facts["lr_until_step"][str(done)] = saved["lr"]
            self.say(f"lr          {saved['lr']:g} until step {done:,}, then {self.config.lr:g}")
        try:
            for name, part in self.parts.items():
                for group in state[name].get("param_groups", []):
                    group["capturable"] = self.device.type == "cuda"  # of the device, not the run
                    group["lr"] = self.config.lr
                part.load_state_dict(state[name])
            own = state["own"][process()]
            self.step, self.seconds, self.summed = done, state["seconds"], own["summed"]
            self.sums = {name: total.to(self.device) for name, total in own["sums"].items()}
            torch.set_rng_state(own["rng"])
            if self.device.type == "cuda" and "cuda_rng" in own:
                torch.cuda.set_rng_state(own["cuda_rng"], self.device)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(f"the checkpoint in {self.path} does not fit ({error})") from None

    def check_finite(self, values: dict[str, Any]) -> None:
        """Stop a run that has diverged while its last checkpoint is still good."""
        for name, value in values.items():
            if not math.isfinite(value):
                line = (
                    f"{name} is {float(value)} at step {self.step}: the training has diverged. "
                    f"The last checkpoint in {self.path} is kept. Start a new run with --lr below "
                    f"{self.config.lr:g}"
                )
                self.say(f"error       {line}", terminal=False)
                raise RunError(line)

    def say(self, line: str, terminal: bool = True) -> None:
        """Print a line above the bar, and keep it in train.log."""
        if self.is_main:
            if terminal:
                tqdm.write(line)
            with open(self.path / "train.log", "a", encoding="utf-8", errors="replace") as file:
                file.write(line + "\n")


def grid(images: Tensor) -> np.ndarray:
    """Lay images, uint8 (B, C, H, W), out eight to a row: uint8 (height, width, 3)."""
    from torchvision.utils import make_grid  # slow to import

    return make_grid(images, nrow=8).movedim(0, 2).numpy()
