"""What compare.py and race.py know of runs, read from their folders and laid out as tables."""

import csv
import importlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from runs import InputError, frames_of, read_facts, read_settings

if TYPE_CHECKING:
    import pandas as pd

COUNTERS = ("step", "epoch", "images", "seconds")  # the columns of metrics.csv that are no curve
FACTS = (
    "pictures",
    "device",
    "processes",
    "torch",
    "python",
    "git_commit",
)  # of run.json, worth comparing
METRICS = {  # what evaluate.py measures: which way is better, and what it is
    "swd": ("lower", "shapes and texture: sliced Wasserstein distance of patches, all sizes"),
    "frechet_random": ("lower", "colours, layout, texture: Fréchet distance of random features"),
    "kernel_random": ("lower", "the same features, by a kernel distance"),
    "diversity": ("near 1", "mean distance of two pictures, as a share of that of real ones"),
    "repetition": ("near the floor", "share of pictures with a near twin among the generated"),
    "memorisation": ("near the floor", "share of pictures that look copied from the training's"),
    "fid": ("lower", "Fréchet distance of what Inception sees"),
    "kid": ("lower", "kernel distance of what Inception sees"),
    "inception_score": ("higher", "how sure and how varied Inception's guesses of a class are"),
    "precision": ("higher", "share of generated pictures that look like some real one"),
    "recall": ("higher", "share of real pictures that look like some generated one"),
}
COLUMNS = 6  # of metrics, beside each other in a terminal
CONDITIONS = ("num", "seed", "resize", "held_out", "weights")  # an evaluation's; to be the same


@dataclass(frozen=True)
class Known:
    """One run, as far as its folder tells."""

    path: Path
    label: str  # model and name; unlike that of every other run it is compared with
    model: str
    facts: dict[str, Any]  # run.json
    settings: dict[str, Any]  # parameters.json
    rows: "pd.DataFrame"  # metrics.csv
    evaluation: dict[str, Any] | None  # last line of evaluation.jsonl
    frame: Path | None  # the last grid

    def last(self, column: str) -> float:
        """Return the last value in a column of metrics.csv; a counter is 0 before the first row."""
        if column in self.rows and len(self.rows):
            return float(self.rows[column].iloc[-1])
        return 0.0 if column in COUNTERS else math.nan

    def images_per_second(self) -> float:
        """Return the speed over the whole training."""
        return self.last("images") / self.last("seconds") if self.last("seconds") else math.nan

    def metric(self, name: str, part: str = "value") -> float:
        """Return the value or the floor of one metric; NaN where it was not measured."""
        found = ((self.evaluation or {}).get("metrics") or {}).get(name) or {}
        return math.nan if found.get(part) is None else float(found[part])


def extra(name: str) -> ModuleType:
    """Import a library that only some scripts need.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        root = name.split(".")[0]
        raise InputError(f"this needs {root}, which is not here: pip install {root}") from None


def read_runs(paths: Iterable[Path]) -> list[Known]:
    """Read run folders, in their order.

    Raises:
        InputError: a file is damaged.
    """
    found = [read_run(path) for path in dict.fromkeys(map(shortest, paths))]
    labels = [run.label for run in found]
    for i, run in enumerate(found):
        if labels.count(run.label) > 1:  # runs of one name, in different places
            found[i] = replace(run, label=f"{run.model} {run.path}")
    return found


def shortest(path: Path) -> Path:
    """Write a path from the current folder if it lies in it, else in full; each has one form."""
    path, here = path.resolve(), Path.cwd()
    return path.relative_to(here) if path != here and path.is_relative_to(here) else path


def read_run(path: Path) -> Known:
    """Read what is there of one run; only run.json and parameters.json must be."""
    facts = read_facts(path)
    try:
        settings = dict(read_settings(path))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}/parameters.json is damaged ({error})") from None
    model = str(facts.get("model"))
    label = path.name if path.name.startswith(model) else f"{model} {path.name}"
    try:
        frame = frames_of(path)[-1] if any((path / "frames").glob("*.png")) else None
    except ValueError as error:
        raise InputError(f"{path}/frames: a name in it is no step ({error})") from None
    rows, evaluation = read_rows(path), read_evaluation(path)
    return Known(path, label, model, facts, settings, rows, evaluation, frame)


def read_rows(run: Path) -> "pd.DataFrame":
    """Read metrics.csv: COUNTERS and curves; values that are no number are NaN.

    Raises:
        InputError: it is no such table.
    """
    pd = extra("pandas")
    file = run / "metrics.csv"
    text = file.read_text(errors="replace") if file.exists() else ""
    text = text[: text.rfind("\n") + 1]  # the last row may be being written
    if not text:
        return pd.DataFrame(columns=list(COUNTERS), dtype=float)
    names, *lines = csv.reader(text.splitlines())
    missing = [name for name in COUNTERS if name not in names]
    if missing or len(set(names)) < len(names):
        raise InputError(f"{file} is damaged (its columns: {', '.join(names)})")
    lines = [[number(cell) for cell in line] for line in lines if len(line) == len(names)]
    return pd.DataFrame(lines, columns=names, dtype=float).dropna(subset=list(COUNTERS))


def number(text: str) -> float:
    """Read a finite number; NaN for anything else."""
    try:
        return float(text) if math.isfinite(float(text)) else math.nan
    except ValueError:
        return math.nan


def read_evaluation(run: Path) -> dict[str, Any] | None:
    """Read the last line of evaluation.jsonl, if there is one.

    Raises:
        InputError: it is damaged.
    """
    file = run / "evaluation.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    if not lines:
        return None
    try:
        found = json.loads(lines[-1], parse_float=finite, parse_constant=finite)
        for parts in found["metrics"].values():
            float(parts["value"] or 0), float(parts.get("floor") or 0)
        found["step"] = int(found["step"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: its last line is damaged ({error})") from None
    return found


def finite(text: str) -> float | None:
    """Read a number of a JSON file; NaN and infinity, which JSON itself has not, as None."""
    return float(text) if math.isfinite(float(text)) else None


def metric_names(runs: Iterable[Known], levels: bool = True) -> list[str]:
    """List the metrics that any of the runs has, the known ones first.

    Args:
        runs: where to look.
        levels: also what belongs to one size of the pictures, such as swd_16.
    """
    names = dict.fromkeys(n for run in runs for n in (run.evaluation or {}).get("metrics", {}))
    if not levels:
        names = [n for n in names if not n.rpartition("_")[2].isdigit()]
    order = list(METRICS)
    return sorted(names, key=lambda n: order.index(n) if n in order else len(order))


def remarks(runs: Sequence[Known]) -> list[str]:
    """Say what forbids or limits a comparison of these runs' evaluations."""
    done = [run for run in runs if run.evaluation]
    found = []
    for name in CONDITIONS:
        values = {json.dumps(run.evaluation.get(name), sort_keys=True) for run in done}
        if len(values) > 1:
            found.append(f"evaluated under different {name}: {', '.join(sorted(values))}")
    if len({digest(run) for run in done}) > 1:
        found.append("trained on different pictures: their evaluations cannot be compared")
    for run in done:
        step, last = run.evaluation["step"], run.last("step")
        if step != last:
            found.append(f"{run.label}: evaluated at step {step:,}, but is now at {last:,.0f}")
    return found


def digest(run: Known) -> str:
    """Identify the pictures that a run was trained on."""
    pictures = run.facts.get("pictures")
    return str(pictures.get("digest")) if isinstance(pictures, dict) else ""


def settings_table(runs: Sequence[Known]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the settings and facts that differ, one row each, and those that are the same.

    A row has the name, then one value for each run (or one for all). A setting that a
    model has not is "-".
    """
    sources = [run.settings | short_facts(run) for run in runs]
    differ, same = [], []
    for name in dict.fromkeys(name for source in sources for name in source):
        values = [plain(source[name]) if name in source else "-" for source in sources]
        if len(set(values)) > 1:
            differ.append([name, *values])
        else:
            same.append([name, values[0]])
    return differ, same


def short_facts(run: Known) -> dict[str, Any]:
    """Return FACTS in a form that fits a table."""
    found = {name: run.facts[name] for name in FACTS if name in run.facts}
    if isinstance(found.get("pictures"), dict):
        shape = found["pictures"].get("shape")
        count, *sides = shape if isinstance(shape, list) and shape else ["?"]
        found["pictures"] = f"{count} of {'x'.join(map(str, sides))}, digest {digest(run)[:8]}"
    if found.get("git_commit"):
        found["git_commit"] = str(found["git_commit"])[:8]
    return found


def overview(runs: Sequence[Known]) -> list[list[str]]:
    """Lay out what each run is and how far it has come: a heading and one row a run."""
    heading = "model run steps images seconds images/s parameters device loss_d loss_g"
    table = [heading.split()]
    for run in runs:
        parameters = run.facts.get("parameters")
        sizes = parameters.values() if isinstance(parameters, dict) else []
        counters = [f"{run.last(name):,.0f}" for name in ("step", "images", "seconds")]
        size = " + ".join(f"{size:,}" for size in sizes if isinstance(size, int)) or "-"
        device = re.sub(r"\), .*", ")", str(run.facts.get("device", "-")))  # not why it was taken
        speed = short(run.images_per_second(), ",.0f")
        losses = [short(run.last(name)) for name in ("loss_d", "loss_g")]
        table.append([run.model, run.path.name, *counters, speed, size, device, *losses])
    return table


def evaluation_table(runs: Sequence[Known], names: Sequence[str]) -> list[list[str]]:
    """Lay out metrics, each with its floor in brackets; runs that have none are left out."""
    rows = [
        [run.label, *(beside_floor(run.metric(n), run.metric(n, "floor")) for n in names)]
        for run in runs
        if run.evaluation
    ]
    return [["run", *names], *rows]


def beside_floor(value: float, floor: float) -> str:
    """Write a value, and in brackets what real pictures reach."""
    return short(value) + ("" if math.isnan(floor) else f" ({short(floor)})")


def short(value: float, form: str = ".4g") -> str:
    """Write a number, or a dash where there is none."""
    if form == ".4g" and abs(value) >= 1e4:
        form = ",.0f"
    return "-" if math.isnan(value) else format(value, form)


def plain(value: Any) -> str:
    """Write a setting as it stands in a JSON file, but text without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def as_text(table: Sequence[Sequence[str]], cuts: Iterable[int] = ()) -> str:
    """Align a table for the terminal; what could steer a terminal is replaced.

    Args:
        table: a heading and rows, all of one length.
        cuts: the columns from each of these on go below the others, the first beside them again.
    """
    starts = [1, *cuts]
    blocks = []
    for start, end in zip(starts, [*starts[1:], len(table[0])], strict=True):
        rows = [[row[0], *row[start:end]] for row in table if any(row[start:end])]
        cells = [["".join(c if c.isprintable() else "?" for c in cell) for cell in r] for r in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        blocks.append("\n".join("  ".join(map(str.ljust, r, widths)).rstrip() for r in cells))
    return "\n\n".join(blocks)
