"""What a model folder needs besides its paper and its images: settings, device, run folder.

This file is the same, byte for byte, in every model folder; tests/test_copies.py checks it.
It knows no model: what says something about a paper is in train.py.

Sections: errors and output, settings, device and processes, files, run.
"""

import csv
import ctypes
import io
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
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn  # later, its default arguments would hold the group and its threads
from filelock import FileLock, Timeout
from PIL import Image
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
FORMAT = 1  # of the run folder and the image cache; raised when a meaning in them changes
RANK = int(os.environ.get("RANK", 0))  # torchrun sets these three
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", RANK))  # among the processes of its machine
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))

# ---- Errors and output ----


class InputError(Exception):
    """Something the user gave cannot be used: one line that names it, exit code 2."""


class RunError(Exception):
    """Something went wrong while running: one line, exit code 1."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one line and an exit code where a traceback would help nobody."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not a notebook's
            stream.reconfigure(errors="backslashreplace")  # a name may not fit the encoding
    try:
        yield
        return
    except (InputError, RunError, OSError) as error:
        code, line = 2 if isinstance(error, InputError) else 1, str(error)
    except (MemoryError, RuntimeError) as error:
        code, line = 1, str(error).partition("\n")[0]
        if isinstance(error, MemoryError) or "allocate" in line:
            line = f"not enough memory ({line}); try a smaller --batch-size or --image-size"
        elif WORLD_SIZE > 1 and ("gloo" in line or "NCCL" in line):
            line = f"another of {WORLD_SIZE} processes has ended ({line})"
        else:
            raise
    except KeyboardInterrupt:
        code, line = 130, "interrupted; what was saved before is kept"
    if code != 2 or LOCAL_RANK == 0:  # all processes of a machine have the same settings
        name = Path(sys.argv[0]).name + (f", process {RANK}" if WORLD_SIZE > 1 else "")
        show(f"{name}: error: {' '.join(line.split())}", sys.stderr)
    raise SystemExit(code)


def show(line: str, stream: IO[str] | None) -> None:
    """Print a line above the progress bar; a closed or full output does not end the program."""
    failures = AttributeError, OSError, ValueError  # no stream, a broken pipe, a closed file
    try:
        tqdm.write(line, file=stream)
        stream.flush()
    except failures:
        with suppress(failures):  # what is buffered would fail once more as Python exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def release_modules(*names: str) -> None:
    """Forget modules of this folder, so that a second model in the process imports its own."""
    for name in names:
        if Path(getattr(sys.modules.get(name), "__file__", None) or "").parent == HERE:
            del sys.modules[name]


# ---- Settings ----

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
Width = Annotated[int, Field(ge=1, le=2**14)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
ImageSize = Literal[16, 32, 64, 128, 256, 512, 1024]
Channels = Literal["data", 1, 3]
Precision = Literal["auto", "fp32", "tf32", "bf16"]
Config = TypeVar("Config")

DATASETS = ("faces", "mnist", "fashion-mnist", "cifar10", "celeba")  # other --data are paths
PATHS = ("data", "data_dir", "runs_dir")
WHERE = ("name", "resume", "runs_dir")  # settings that say where a run lies, not what it is
MAY_DIFFER = ("data", "data_dir", "device", "epochs", "max_steps", "max_seconds", "lr")
REMOVED = ("graphs", True), ("graphs", False), ("r1", 0.0)  # in earlier runs, without an effect


def parse_config(settings: type[Config], argv: list[str] | None = None) -> Config:
    """Read settings from the command line and from the JSON files that --config names.

    A flag wins over a file, a file over the run that --resume names, and that over the
    defaults. Paths become absolute; in a file they start at that file.

    Args:
        settings: A pydantic dataclass; the string under each field is the help of its flag.
        argv: The command line without the program's name; by default the real one.

    Raises:
        InputError: A name or a value is not allowed.
    """
    values, sources = {}, {}

    def add(found: dict[str, Any], source: str, folder: Path) -> None:
        for name, value in found.items():
            if name in values or (name, value) in REMOVED:
                continue
            sources[name] = f"{source}--{name.replace('_', '-')}"
            if name not in settings.__pydantic_fields__:
                raise InputError(f"{sources[name]}: unknown; {suggestion(settings, name)}")
            if name in PATHS and isinstance(value, str) and value not in ("", *DATASETS):
                value = str((folder / Path(value).expanduser()).resolve())
            values[name] = value

    flags = parse_flags(settings, argv)
    files = flags.pop("config", [])
    add(flags, "", Path.cwd())
    for text in reversed(files):  # the last file wins
        file = Path(text) if Path(text).exists() else HERE / text  # as quick.json is
        add(read_json(file), f"{file}: ", file.parent)
    if values.get("resume"):
        if values.get("name"):
            raise InputError("--name: a resumed run keeps its name; leave out --name or --resume")
        run = find_run(values.get("runs_dir", ""), values["resume"])
        about = f", of a run of {read_json(run / 'run.json').get('model')}: "
        add(read_json(run / "parameters.json"), f"{run / 'parameters.json'}{about}", run)
    try:
        return settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        must = first["msg"].replace("Input should be", "must be")
        raise InputError(f"{sources[first['loc'][0]]}: {must}, not {first['input']!r}") from None


def parse_flags(settings: type[Config], argv: list[str] | None) -> dict[str, Any]:
    """Return the settings that the command line gives, and the files of `config`."""
    about = {"description": settings.__doc__, "argument_default": SUPPRESS}
    parser = ArgumentParser(allow_abbrev=False, **about)
    parser.add_argument("--config", action="append", metavar="FILE", help="JSON file of settings")
    for name, field in settings.__pydantic_fields__.items():
        options = {"type": partial(value_of, field.annotation), "metavar": name.upper()}
        if field.annotation is bool:
            options = {"action": BooleanOptionalAction}
        elif name == "resume":
            options |= {"nargs": "?", "const": "latest"}
        text = f"{field.description or ''} (default: {field.default!r})".replace("%", "%%")
        parser.add_argument("--" + name.replace("_", "-"), help=text, **options)

    def refuse(message: str) -> None:
        raise InputError(message.removeprefix("argument "))

    parser.error = refuse
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].partition("=")[0]
        refuse(f"{name}: unknown; {suggestion(settings, name)}")
    return vars(found)


def suggestion(settings: type[Config], name: str) -> str:
    """Name the setting that was probably meant: by its spelling or the first words of its help."""
    fields = settings.__pydantic_fields__
    words = name.strip("-").replace("-", " ").replace("_", " ")
    near = [k for k, field in fields.items() if (field.description or "").lower().startswith(words)]
    near = get_close_matches(words.replace(" ", "_"), fields, 1) or near
    return f"did you mean --{near[0].replace('_', '-')}?" if near else "see --help"


def value_of(kind: Any, text: str) -> Any:
    """Turn the text of a flag into what its setting takes: text, an integer or a number."""
    for convert in (str, int, float):
        with suppress(ValueError):  # pydantic's errors are of this kind
            return TypeAdapter(kind, config=STRICT).validate_python(convert(text))
    return text  # to be refused by the settings


# ---- Device and processes ----
# `torchrun --standalone --nproc-per-node=N train.py` starts N processes. Each trains on minibatches
# of its own; all take the same steps, since they average their gradients. Only the first writes.


def set_up(config: Config) -> tuple[torch.device, Config]:
    """Find a device, set its precision, and seed weights and noise.

    Returns:
        The device, and the settings with the precision that `auto` stands for on it.
    """
    release_modules("train")
    device = pick_device(config.device)
    if device.type == "cuda" and WORLD_SIZE > 1:
        device = pick_device(f"cuda:{LOCAL_RANK}")
        torch.cuda.set_device(device)
    torch.manual_seed(stream_seed(config.seed, RANK) if RANK else config.seed)
    precision = config.precision
    if precision == "auto":
        able = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of PyTorch lack it
        # AVX512-BF16 makes AMD's processors faster, and Intel's without AMX slower than fp32.
        native = able.get("avx512_bf16") and "Intel" not in str(able.get("cpu_name"))
        on_cpu = "bf16" if native or able.get("amx_bf16") else "fp32"
        precision = {"cuda": "tf32", "cpu": on_cpu}.get(device.type, "fp32")
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = True  # shapes never change, so the search pays
    torch.set_flush_denormal(device.type == "cpu")
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        # Keep freed memory (M_TRIM_THRESHOLD, M_MMAP_MAX): large gradients come and go at every
        # step, and new memory costs a page fault for every 4 kB.
        for option, value in ((-1, 2**31 - 1), (-4, 0)):
            ctypes.CDLL(None).mallopt(option, value)
    return device, replace(config, precision=precision)


def pick_device(name: str) -> torch.device:
    """Find a device by PyTorch's name for it, or the fastest as `auto`; InputError if none."""
    if name == "auto":
        available = torch.accelerator.is_available()
        found = torch.accelerator.current_accelerator() if available else torch.device("cpu")
        # Gloo has no operations for Apple's GPUs.
        return torch.device("cpu") if found.type == "mps" and WORLD_SIZE > 1 else found
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name}: not available ({reason})") from None


def stream_seed(seed: int, number: int) -> int:
    """Derive the seed of an independent stream: 32 bits, all that a CPU generator takes."""
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])


def place(device: torch.device, *networks: nn.Module) -> None:
    """Move networks to a device, in the memory layout that is fastest there.

    Several processes start from the weights of the first, and each gradient becomes the mean
    over all. DistributedDataParallel supports neither a gradient penalty nor two passes
    through batch norm before one backward.
    """
    if WORLD_SIZE > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))  # others may still decode
    # What tensor cores take, and a little faster on CPUs too; far slower on Apple's GPUs.
    layout = torch.preserve_format if device.type == "mps" else torch.channels_last
    for network in networks:
        network.to(device)
        if WORLD_SIZE > 1:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, 0)
            for parameter in network.parameters():
                parameter.register_post_accumulate_grad_hook(average_gradient)
        network.to(memory_format=layout)


def average_gradient(parameter: nn.Parameter) -> None:
    """Replace the gradient of a parameter by its mean over all processes."""
    dist.all_reduce(parameter.grad.div_(WORLD_SIZE))


def gather(value: Any) -> list[Any]:
    """Return what every process gave, in their order."""
    found = [value] * WORLD_SIZE
    if WORLD_SIZE > 1:
        dist.all_gather_object(found, value)
    return found


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note signals that end a program, so that a step can be finished; a second acts at once."""
    received, before = [], {}

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, signal.default_int_handler)

    in_main_thread = threading.current_thread() is threading.main_thread()
    for name in {"SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"} & {*dir(signal)}:
        number = getattr(signal, name)
        if in_main_thread and signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets SIGHUP
            before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file under another name, and rename it once it is whole and on the disk.

    If it cannot be written (RunError), what had its name before is still there.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(aside, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; InputError if it does not."""
    try:
        return dict(json.loads(path.read_text("utf-8-sig")))  # some editors begin with a mark
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file of one object ({error})") from None


def write_json(path: Path, content: Any) -> None:
    """Write one JSON value, indented."""
    with replacing(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def read_rows(table: Path, last_step: int) -> list[dict[str, str]]:
    """Read metrics.csv up to a step; InputError if another program has changed it."""
    rows = []
    if table.exists():
        with open(table, newline="", errors="replace") as file:
            rows = list(csv.DictReader(file))
    if any(None in row or not str(row.get("step")).isdigit() for row in rows):
        raise InputError(f"{table}: another program has changed it; restore it or move it away")
    return [row for row in rows if int(row["step"]) <= last_step]


def write_rows(table: Path, rows: list[dict[str, Any]]) -> None:
    """Write metrics.csv, with a column for every name in any row."""
    columns = dict.fromkeys(name for row in rows for name in row)  # in the order of appearance
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(table) as file:
        file.write(text.getvalue().encode())


def new_run(runs_dir: str, name: str) -> Path:
    """Create the folder of a run, named by date and time unless it has a name; or InputError."""
    if name in ("latest", "..") or Path(name).name != name or not name.isprintable():
        raise InputError(f"--name {name!r}: not a name that a run folder can have")
    folder = Path(runs_dir or HERE / "tensorboard" / "runs")
    run = folder / (name or f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"[:-3])
    try:
        (run / "frames").mkdir(parents=True)
    except FileExistsError:
        raise InputError(f"--name {name}: {run} exists; continue it with --resume") from None
    except OSError as error:
        raise InputError(f"--runs-dir {folder}: {error.strerror}; choose another folder") from None
    return run


def find_run(runs_dir: str, name: str) -> Path:
    """Find a run to resume by its name, `latest` for the one started last; or InputError."""
    folder = Path(runs_dir or HERE / "tensorboard" / "runs")
    found = {file.parent for file in folder.glob("*/checkpoint.pt")}
    if name == "latest" and found:
        return max(found, key=started)
    if folder / name not in found:
        names = ", ".join(sorted(run.name for run in found)) or "none"
        raise InputError(f"--resume {name}: no run of this name in {folder} (there: {names})")
    return folder / name


def started(run: Path) -> datetime:
    """Return when a run was started; the times of earlier runs have no zone and are local."""
    try:
        return datetime.fromisoformat(read_json(run / "run.json")["started"]).astimezone()
    except (LookupError, TypeError, ValueError):
        raise InputError(f"{run / 'run.json'} does not say when the run was started") from None


def git_commit() -> str | None:
    """Return the commit that this file belongs to, where git knows one."""
    ask = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    with suppress(OSError):  # git is not installed
        return subprocess.run(ask, capture_output=True, text=True).stdout.strip() or None


def resume_command(run: Path) -> str:
    """Return the command that resumes a run; of several machines, on this one."""
    start, here = ["python"], int(os.environ.get("LOCAL_WORLD_SIZE", WORLD_SIZE))
    if WORLD_SIZE > 1:
        start = ["torchrun", "--standalone", f"--nproc-per-node={here}"]
    if here < WORLD_SIZE:
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        start[1] = f"--nnodes={WORLD_SIZE // here}"
        start.append(f"--node-rank={RANK // here}")
        start += [f"--master-addr={address}", f"--master-port={port}"]
    join = shlex.join if os.name == "posix" else subprocess.list2cmdline
    where = [HERE / "train.py", "--resume", run.name, "--runs-dir", run.parent]
    return join(map(str, [*start, *where]))


# ---- Run ----


class Run:
    """A training run and its folder, the contract between training and every other script.

    `steps` is the loop: it counts generator updates, and between two of them logs, draws and
    saves. `record` takes the losses of one update.

    Args:
        config: The settings of train.py.
        dataset: What is trained on: `images`, `held_out`, `digest`, `skipped`, `cache`.
        device: Where the networks are.
        batches_per_step: Minibatches of real images that one step shows.
        parts: All that resuming restores, by name; each has a `state_dict`. One is `generator`.
        arguments: What `Generator` was built with, for those who load its weights.
    """

    def __init__(self, config, dataset, device, batches_per_step, parts, arguments) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self.settings = {name: value for name, value in asdict(config).items() if name not in WHERE}
        self.parts, self.arguments = parts, arguments
        self.is_main = RANK == 0
        batch = config.batch_size * WORLD_SIZE
        self.images_per_step = batches_per_step * batch
        self.steps_per_epoch = len(dataset.images) // batch
        self.last_step = min(config.epochs * self.steps_per_epoch, config.max_steps or math.inf)
        self.step, self.seconds, self.done = 0, 0.0, False
        self.rows, self.sums, self.summed = [], {}, 0  # of metrics.csv; since its last row
        self.told_at, self.hinted = 0.0, device.type != "cpu"
        # Noise of its own: drawing frames leaves the training's random stream alone.
        rng = torch.Generator().manual_seed(stream_seed(config.seed, 0))
        self.fixed_z = torch.randn(64, config.z_dim, generator=rng).to(device)
        networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        threads = torch.get_num_threads()
        kind = f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}"
        if device.type == "cuda":
            kind = torch.cuda.get_device_name(device)
        self.facts = {
            "format": FORMAT,
            "model": HERE.name,
            "started": datetime.now(timezone.utc).isoformat(),
            "finished": None,
            "device": f"{device} ({kind})",
            "precision": config.precision,
            "processes": WORLD_SIZE,
            "images_per_step": self.images_per_step,
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
        self.row_before = self.step, self.seconds

    def steps(self) -> Iterator[int]:
        """Yield the number of each step that is still to do; look after the run in between.

        A loss that is not finite or a full disk is a RunError; a signal to stop, SystemExit.
        """
        every, stop = self.config, 0
        hidden = None if self.is_main and sys.stderr else True  # None: shown on a terminal
        form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining} left{postfix}]"
        bar = {"initial": self.step, "total": self.last_step, "bar_format": form}
        self.bar = tqdm(**bar, disable=hidden, dynamic_ncols=True)
        with noted_signals() as stops, writing(self.path), ExitStack() as self.open, self.bar:
            if self.is_main:
                self.start()
            if self.step == 0:
                self.draw()
                self.save()
            while not self.done and not stop:
                began = time.perf_counter()
                yield self.step + 1
                self.step += 1
                log = self.step % every.log_every == 0
                draw = self.step % every.frame_every == 0
                save = self.step % every.checkpoint_every == 0
                if self.device.type != "cpu" and (log or draw or save):
                    torch.accelerator.synchronize(self.device)  # a GPU finishes its steps here
                self.seconds += time.perf_counter() - began
                over = self.step == self.last_step or 0 < every.max_seconds <= self.seconds
                # All processes end at the same step.
                ends, signals = zip(*gather((over, max(stops, default=0))), strict=True)
                self.done, stop = any(ends), max(signals)
                self.bar.total = max(self.bar.total, self.step)  # which was an estimate
                self.bar.update()
                if log or self.done:
                    self.log()
                if draw or self.done:
                    self.draw()
                if save or self.done or stop:
                    self.save()
            self.end(stop)

    def start(self) -> None:
        """Lock the folder, write what the run is, open TensorBoard, and say all of it."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        try:
            self.open.enter_context(FileLock(self.path / ".lock", timeout=0))
        except Timeout:
            raise InputError(f"another training is using {self.path}") from None
        write_json(self.path / "parameters.json", self.settings)
        write_json(self.path / "run.json", self.facts)
        purge = self.step + 1 if self.config.resume else None  # TensorBoard hides what came after
        # The errors of TensorBoard's thread come up in this one as well.
        self.open.callback(setattr, threading, "excepthook", threading.excepthook)
        threading.excepthook = lambda _: None
        self.events = self.open.enter_context(SummaryWriter(self.path, purge_step=purge))
        if self.step == 0:
            real = grid(torch.tensor(self.dataset.images[:64]).movedim(3, 1))
            self.events.add_image("real", real, 0, dataformats="HWC")
        count, size, _, channels = self.dataset.images.shape
        self.say(f"device      {self.facts['device']}, {self.config.precision}")
        self.say(f"images      {count:,} of {size}x{size}x{channels}: {self.config.data}")
        if held_out := len(self.dataset.held_out):
            self.say(f"held out    {held_out:,} more, which training never sees")
        if skipped := self.dataset.skipped:
            more = f"; and {len(skipped) - 5:,} more" * (len(skipped) > 5)
            self.say(f"skipped     {'; '.join(skipped[:5])}{more}")
        self.say(f"run         {self.path}" + f", from step {self.step}" * (self.step > 0))
        enough = math.ceil(0.3 / self.config.lr)
        if self.last_step < enough / 2 and not self.config.resume:  # images would still be gray
            flag = f"--epochs {math.ceil(enough / self.steps_per_epoch)}"
            if self.last_step == self.config.max_steps:
                flag = f"--max-steps {enough}"
            few = f"{self.last_step:,} steps at lr {self.config.lr:g} are too few"
            self.say(f"warning     {few} for visible images; try {flag}")

    def end(self, stop: int) -> None:
        """Say how the training ended; leave with an exit code if it was stopped."""
        steps = f"{self.step:,} step{'s' * (self.step != 1)}"
        resume = resume_command(self.path)
        line = f"stopped     after {steps}, which are saved; to resume: {resume}"
        if self.done:
            took = tqdm.format_interval(self.seconds)
            line = f"finished    {steps} in {took} of training: {self.path}"
        if self.done and self.is_main:
            self.facts["finished"] = datetime.now(timezone.utc).isoformat()
            write_json(self.path / "run.json", self.facts)
        self.say(line)
        if not self.is_main and not self.done and LOCAL_RANK == 0:
            show(line, sys.stdout)  # another machine's command differs
        if WORLD_SIZE > 1:
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
        means = dict(sorted(means.items(), key=lambda mean: not mean[0].startswith("loss")))
        row = {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 4),
            "images": self.step * self.images_per_step,
            "seconds": round(self.seconds, 3),
        }
        self.rows.append(row | {name: f"{value:.6g}" for name, value in means.items()})
        write_rows(self.path / "metrics.csv", self.rows)
        speed = steps * self.images_per_step / max(seconds, 1e-9)
        for name, value in (means | {"images_per_second": speed}).items():
            self.events.add_scalar(name, value, self.step)
        losses = [f"{name} {value:.2f}" for name, value in means.items()][:2]
        self.tell(", ".join([*losses, f"{speed:.0f} images/s"]), seconds / steps)

    def tell(self, text: str, pace: float) -> None:
        """Show losses and the time left, in the bar or as a line; `pace` is in seconds a step."""
        left = pace * (self.last_step - self.step)
        if self.config.max_seconds:
            left = max(0.0, min(left, self.config.max_seconds - self.seconds))
        self.bar.total = self.step + math.ceil(left / max(pace, 1e-9))
        self.bar.set_postfix_str(text)
        if self.done or time.monotonic() > self.told_at + 10:
            self.told_at = time.monotonic()
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
        with replacing(self.path / "frames" / f"{self.step:06d}.png") as file:
            Image.fromarray(frame).save(file, "PNG")
        self.events.add_image("frames", frame, self.step, dataformats="HWC")

    def save(self) -> None:
        """Write generator.safetensors and checkpoint.pt, unless a number in them is not finite."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        self.check_finite(self.sums)
        for name in self.facts["parameters"]:
            self.check_finite({f"{name}.{key}": t.sum() for key, t in state[name].items()})
        mine = {"rng": torch.get_rng_state(), "summed": self.summed}
        mine["sums"] = {name: total.cpu() for name, total in self.sums.items()}
        if self.device.type == "cuda":
            mine["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        state |= {"step": self.step, "seconds": self.seconds, "settings": self.settings}
        state["own"] = gather(mine)
        if not self.is_main:
            return
        about = {"format": FORMAT, "model": HERE.name, "step": self.step}
        about |= {"z_dim": self.config.z_dim, "arguments": self.arguments}
        weights = {key: value.cpu().contiguous() for key, value in state["generator"].items()}
        with replacing(self.path / "generator.safetensors") as file:
            file.write(safetensors_bytes(weights, {"about": json.dumps(about)}))
        with replacing(self.path / "checkpoint.pt") as file:
            torch.save(state, whole := io.BytesIO())  # to a full disk it would not say why it fails
            file.write(whole.getbuffer())

    def restore(self) -> None:
        """Return to the checkpoint, unless the settings contradict it or nothing is left to do."""
        path, before = self.path / "checkpoint.pt", read_json(self.path / "run.json")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)  # runs no code
            done, self.seconds, saved = state["step"], state["seconds"], state["settings"]
        except Exception as error:  # a damaged file can raise nearly anything
            raise RunError(f"{path} cannot be read ({error})"[:300]) from None
        # As in the checkpoint, since parameters.json may have been edited. A setting that is newer
        # than the run had its default.
        was = asdict(type(self.config)()) | saved | {"processes": before.get("processes", 1)}
        now = self.settings | {"processes": WORLD_SIZE}
        changed = [name for name in now if name not in MAY_DIFFER and was[name] != now[name]]
        wrong = [f"{name} was {was[name]} and is now {now[name]}" for name in changed]
        if before.get("pictures") != self.facts["pictures"]:
            wrong.append("the images are not those it was trained on")
        if done >= self.last_step:
            wrong.append(f"its {done} steps are done; raise --epochs or --max-steps")
        if 0 < self.config.max_seconds <= self.seconds:
            wrong.append(f"its {self.config.max_seconds:g} seconds are over; raise --max-seconds")
        if wrong:
            raise InputError(f"--resume {self.path.name}: {'; '.join(wrong)}")
        self.rows = read_rows(self.path / "metrics.csv", done)
        rates = before.get("lr_until_step", {})
        if saved["lr"] != self.config.lr:
            rates[str(done)] = saved["lr"]
        self.facts |= {"started": before.get("started"), "lr_until_step": rates}
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
                fit(part, self.config.lr / saved["lr"])
            mine = state["own"][RANK]
            torch.set_rng_state(mine["rng"])
            if self.device.type == "cuda" and "cuda_rng" in mine:
                torch.cuda.set_rng_state(mine["cuda_rng"], self.device)
            self.step, self.summed = done, mine["summed"]
            self.sums = {name: total.to(self.device) for name, total in mine["sums"].items()}
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            model = before.get("model")
            raise RunError(f"{path} of {model} does not fit the networks ({error})"[:300]) from None

    def check_finite(self, values: dict[str, Any]) -> None:
        """Stop a run that has diverged while its last checkpoint is still good."""
        for name, value in values.items():
            if not math.isfinite(value):
                advice = f"is kept. Start a new run with --lr below {self.config.lr:g}"
                line = f"{name} is {float(value)} at step {self.step}: the training has diverged. "
                line += f"The last checkpoint in {self.path} {advice}"
                self.say(f"error       {line}", terminal=False)
                raise RunError(line)

    def say(self, line: str, terminal: bool = True) -> None:
        """Keep a line in train.log, and print it above the bar."""
        if self.is_main:
            with open(self.path / "train.log", "a", encoding="utf-8", errors="replace") as file:
                file.write(line + "\n")
            if terminal:
                show(line, sys.stdout)


def fit(part: Any, factor: float) -> None:
    """Fit a restored optimizer to this device, and it or a schedule to another learning rate."""
    for group in getattr(part, "param_groups", ()):
        group |= {name: group[name] * factor for name in {"lr", "initial_lr"} & group.keys()}
    if hasattr(part, "base_lrs"):
        part.base_lrs = [lr * factor for lr in part.base_lrs]
    for parameter, values in part.state.items() if isinstance(part, Optimizer) else ():
        for name, value in values.items():
            if getattr(value, "shape", None) == parameter.shape:  # laid out for another device?
                values[name] = torch.empty_like(parameter).copy_(value)


def grid(images: Tensor) -> np.ndarray:
    """Lay images, uint8 (B, C, H, W), out eight to a row: uint8 (height, width, 3)."""
    from torchvision.utils import make_grid  # slow to import

    return make_grid(images, nrow=8).movedim(0, 2).numpy()
