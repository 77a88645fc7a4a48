"""The race behind compare.py --race: models trained one after another under the same conditions.

A race is a folder, race/NAME/:

    race.json              conditions, machine, what failed; at the end the means
    MODEL-SEED/            a run folder for each
    race.csv               a row for each run
    race.html, race.gif    the page, and one seed of every model side by side
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from compare_tables import read_evaluation, read_rows
from runs import FORMAT, TOP, InputError, images_per_step, read_facts, write_aside

RACES = TOP / "race"
EVALUATE = (sys.executable, str(TOP / "evaluate.py"))
TRIAL = 3  # seconds that each model is tried for
ROWS, FRAMES, CHECKPOINTS = 150, 60, 10  # of each run, about
REQUESTS: list[int] = []  # to stop; code written in C can lose the exception that each raises
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, 129}  # exit codes of a run that was saved


@dataclass(frozen=True)
class Race:
    """What is raced, and where."""

    name: str
    models: tuple[str, ...]
    seeds: int
    seconds: float  # of training for each run, or
    images: int  # real images for each run; one of the two is 0
    data_dir: str
    conditions: dict[str, Any]  # data, hold_out, image_size, width, batch_size, device, num

    @property
    def folder(self) -> Path:
        """Where all of it lies."""
        return RACES / self.name

    def budget(self) -> str:
        """Say how much training each run gets."""
        return f"{self.images:,} images" if self.images else f"{self.seconds:g} seconds"

    def runs(self) -> list[tuple[str, int, Path]]:
        """List model, seed and folder of the runs: all models with one seed, then with the next."""
        pairs = ((model, seed) for seed in range(self.seeds) for model in self.models)
        return [(model, seed, self.folder / f"{model}-{seed}") for model, seed in pairs]


def hold(race: Race) -> dict[str, Any]:
    """Train and evaluate all runs, or what is left to do, and return what race.json holds.

    Raises:
        InputError: a setting cannot be used, the folder holds a race under other conditions, or
            another race is going on.
        SystemExit: interrupted; what was trained is kept.
    """
    RACES.mkdir(parents=True, exist_ok=True)
    try:
        # two at a time would take each other's time
        with signals_interrupt(), FileLock(RACES / ".lock", timeout=0):
            record = open_race(race)
            train_all(race, record)
            evaluate_all(race, record)
            return record
    except Timeout:
        raise InputError(f"another race is going on in {RACES}") from None
    except KeyboardInterrupt:
        print("stopped; what was trained is kept, and the same command goes on from there")
        raise SystemExit(128 + signal.SIGINT) from None


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Let requests to stop do what Ctrl-C does, and keep them."""

    def interrupt(number: int, _: Any) -> None:
        REQUESTS.append(number)
        raise KeyboardInterrupt

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {n: signal.signal(getattr(signal, n), interrupt) for n in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
        REQUESTS.clear()


def open_race(race: Race) -> dict[str, Any]:
    """Begin a race, or read the record of one that has begun; try out models that are new to it.

    Raises:
        InputError: it has begun under other conditions or on another machine, or train.py
            refuses a setting.
    """
    now = {
        "budget": {"seconds": race.seconds, "images": race.images},
        "conditions": race.conditions,
        "machine": machine(),
        "own": {f"{m}/quick.json": read_quick(m) for m in race.models},
    }
    record = {"format": FORMAT, "started": datetime.now().isoformat(), "finished": None}
    record |= now | {"pace": {}, "failed": {}, "evaluated": {}}
    if (race.folder / "race.json").is_file():
        record = read_record(race.folder, now)
        record["own"] |= now["own"]
    new = [model for model in race.models if model not in record["pace"]]
    if new:
        print(f"trying out  {', '.join(new)}")
    for model in tqdm(new, "trying", leave=False, disable=None):
        record["pace"][model], record["machine"]["device"] = try_out(race, model)
    save(race, record)
    return record


def read_record(folder: Path, now: dict[str, dict]) -> dict[str, Any]:
    """Read race.json of a race that goes on under the conditions of `now`.

    Raises:
        InputError: they are others than its own, or the file is damaged.
    """
    file = folder / "race.json"
    try:
        record = json.loads(file.read_text())
        wrong = [
            f"{name} was {record[part][name]} and is now {value}"
            for part, values in now.items()
            for name, value in values.items()
            if record[part].get(name, value) != value
        ]
        if record["format"] != FORMAT:
            raise InputError(f"{file}: its format is {record['format']}, not {FORMAT}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error})") from None
    if wrong:
        changes = "; ".join(wrong)
        raise InputError(f"{folder} was begun otherwise: {changes}. Take another --name")
    return record


def read_quick(model: str) -> dict[str, Any]:
    """Read the settings that are a model's own, except for what a race sets."""
    return json.loads((TOP / model / "quick.json").read_text())


def save(race: Race, record: dict[str, Any]) -> None:
    """Write race.json."""
    with write_aside(race.folder / "race.json") as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())


def machine() -> dict[str, Any]:
    """Describe what the times of a race hang on, as far as it is known without torch."""
    return {
        "cpus": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "torch's choice"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def try_out(race: Race, model: str) -> tuple[dict[str, int], str]:
    """Train a model for a moment, in a folder that is then deleted: is it accepted, and how fast?

    Returns:
        `images_per_step` and about how many `steps` its budget is; and the device.

    Raises:
        InputError: train.py refuses a setting, or fails.
    """
    limit = ["--max-steps", 1] if race.images else ["--max-seconds", min(TRIAL, race.seconds)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = settings(race, model, 0) + limit
        code, reason = run_child(model, [*arguments, "--runs-dir", folder, "--name", "trial"])
        if code in STOPPED:
            raise KeyboardInterrupt
        if code:
            raise InputError(f"{model}: {reason}")
        run = Path(folder) / "trial"
        each, last = images_per_step(run), read_rows(run).iloc[-1]
        device = read_facts(run)["device"]
    if 0 < race.images < each:
        raise InputError(f"--images {race.images}: one step of {model} shows {each}")
    steps = race.images // each if race.images else last["step"] / last["seconds"] * race.seconds
    return {"images_per_step": each, "steps": max(1, round(steps))}, device


def settings(race: Race, model: str, seed: int) -> list[Any]:
    """Return the settings that all runs share; the others are the model's own, of quick.json."""
    same, width = race.conditions, race.conditions["width"]
    return [
        *("--config", "quick.json", "--data", same["data"], "--data-dir", race.data_dir),
        *("--hold-out", same["hold_out"], "--image-size", same["image_size"]),
        *("--g-width", width, "--d-width", width, "--batch-size", same["batch_size"]),
        *("--device", same["device"], "--seed", seed, "--epochs", 10**6),
    ]


def train_all(race: Race, record: dict[str, Any]) -> None:
    """Train every run that is not finished, one at a time so that none takes another's time.

    Raises:
        InputError: train.py refuses a setting.
        KeyboardInterrupt: asked to stop; the run is saved.
    """
    unit, each = ("images", race.images) if race.images else ("seconds", race.seconds)
    form = "{desc} {percentage:3.0f}%|{bar}| {n:,.0f}/{total:,.0f} {unit} [{elapsed}<{remaining}]"
    runs = race.runs()
    bar = tqdm(total=len(runs) * each, unit=unit, bar_format=form, disable=None)

    def show(before: int, run: Path) -> None:
        bar.n = before * each + min(each, progress(run, unit))
        bar.refresh()

    with bar:
        for i, (model, seed, run) in enumerate(runs):
            if is_finished(run) or (run.name in record["failed"] and run.exists()):
                continue
            bar.set_description_str(f"{model}, seed {seed} ({i + 1}/{len(runs)})")
            record["failed"].pop(run.name, None)
            code, reason = train(race, record, model, seed, run, partial(show, i, run))
            if code in STOPPED:
                raise KeyboardInterrupt
            if code == 2:
                raise InputError(f"{run}: {reason}")
            if code:
                record["failed"][run.name] = reason
                save(race, record)
            bar.write(line_of(run, record))


def line_of(run: Path, record: dict[str, Any]) -> str:
    """Say how a run has ended."""
    if run.name in record["failed"]:
        return f"failed      {run.name}: {record['failed'][run.name]}"
    counts = {name: progress(run, name) for name in ("step", "images", "seconds")}
    return "finished    {}: {step:,.0f} steps, {images:,.0f} images, {seconds:,.0f} s".format(
        run.name, **counts
    )


def is_finished(run: Path) -> bool:
    """Say whether the training of a run has come to its end."""
    return (run / "run.json").is_file() and bool(read_facts(run).get("finished"))


def progress(run: Path, column: str) -> float:
    """Return the last value of a counter in metrics.csv; 0 before the first."""
    values = read_rows(run)[column]
    return float(values.iloc[-1]) if len(values) else 0.0


def train(
    race: Race, record: dict[str, Any], model: str, seed: int, run: Path, watch: Callable
) -> tuple[int, str]:
    """Start a run, or resume it where it has a checkpoint; return what `run_child` does."""
    where = ["--runs-dir", race.folder.resolve()]
    if any(run.glob("checkpoint*.pt")):
        return run_child(model, ["--resume", run.name, *where], watch)
    if run.exists():
        shutil.rmtree(run)  # interrupted before its first checkpoint: nothing is lost
    pace = record["pace"][model]
    limit = ["--max-steps", pace["steps"]] if race.images else ["--max-seconds", race.seconds]
    parts = {"log": ROWS, "frame": FRAMES, "checkpoint": CHECKPOINTS}
    for name, count in parts.items():
        limit += [f"--{name}-every", max(1, pace["steps"] // count)]
    arguments = [*settings(race, model, seed), *limit, *where, "--name", run.name]
    return run_child(model, arguments, watch)


def run_child(
    model: str, arguments: Sequence[Any], watch: Callable[[], None] = lambda: None
) -> tuple[int, str]:
    """Run train.py of a model."""
    return run_program([sys.executable, "train.py", *arguments], TOP / model, watch)


def run_program(
    command: Sequence[Any], cwd: Path, watch: Callable[[], None] = lambda: None
) -> tuple[int, str]:
    """Run a program to its end; a request to stop is passed on to it, and it may finish its step.

    Args:
        command: program and arguments.
        cwd: the folder to run it in.
        watch: called about twice a second.

    Returns:
        Its exit code, and the last line of its complaints.

    Raises:
        KeyboardInterrupt: asked to stop; the program has ended.
    """
    asked = told = 0  # how often to stop
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # so that Ctrl-C reaches it once, from here
        )
        try:
            while child.poll() is None:
                try:
                    watch()
                    child.wait(0.5)
                except subprocess.TimeoutExpired:
                    pass
                except KeyboardInterrupt:
                    asked += 1
                asked = max(asked, len(REQUESTS))
                if told < asked:
                    told += 1
                    child.send_signal(signal.SIGINT)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
        errors.seek(0)
        lines = [line.strip() for line in errors if line.strip()]
    if asked or REQUESTS:
        raise KeyboardInterrupt
    if child.returncode < 0:
        lines.append(f"killed by signal {-child.returncode}")
    last = lines[-1] if lines else ""
    return child.returncode, last.partition(": error: ")[2] or last


def evaluate_all(race: Race, record: dict[str, Any]) -> None:
    """Have evaluate.py measure every finished run whose last evaluation is not the race's own."""
    same, dates = race.conditions, record["evaluated"]

    def date(run: Path) -> str | None:
        return (read_evaluation(run) or {}).get("date")

    finished = [run for *_, run in race.runs() if is_finished(run)]
    todo = [run for run in finished if run.name not in dates or dates[run.name] != date(run)]
    for run in tqdm(todo, "evaluating", unit="run", disable=None):
        how = ["--num", same["num"], "--seed", 0, "--device", same["device"]]
        code, reason = run_program([*EVALUATE, run.resolve(), *how], TOP)
        if code:
            tqdm.write(f"not evaluated: {run.name}: {reason}")
        else:
            dates[run.name] = date(run)
            save(race, record)
