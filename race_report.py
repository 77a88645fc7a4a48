"""What comes out of a race: race.csv, means in race.json, race.html, race.gif, and a table."""

import math
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from compare_page import write_page
from compare_tables import (
    COLUMNS,
    Known,
    as_text,
    extra,
    metric_names,
    read_runs,
    short,
)
from race import FRAMES, Race, run_program, save
from runs import TOP, write_aside

MAKE_GIF = (sys.executable, str(TOP / "make_gif.py"), "--max-mb", "10", "--side-by-side")
SMOOTHING = 4  # percent
SPEEDS = {"steps": "step", "images": "images", "seconds": "seconds"}  # in the table, in metrics.csv


def report(race: Race, record: dict[str, Any]) -> None:
    """Write the files, each aside and then renamed, and print the table."""
    runs = read_runs(run for *_, run in race.runs() if (run / "run.json").is_file())
    whole = [run for run in runs if run.path.name not in record["failed"]]
    names = metric_names(whole, levels=False)
    table = summary(race, whole, names)
    record["means"] = {model: means_of(model, whole, names) for model in race.models}
    record |= {"finished": datetime.now().isoformat(), "seeds": race.seeds}
    notes = [f"{name} failed: {reason}" for name, reason in sorted(record["failed"].items())]
    devices = sorted({str(run.facts["device"]) for run in runs})
    if len(devices) > 1:
        notes.append(f"times cannot be compared, the devices differed: {'; '.join(devices)}")
    save(race, record)
    with write_aside(race.folder / "race.csv") as file:
        file.write(rows_of(runs, record).to_csv(index=False).encode())
    write_page(
        runs,
        race.folder / "race.html",
        SMOOTHING,
        {
            "title": f"Race: {Path(race.conditions['data']).name}, {race.budget()} each",
            "says": sentence(race),
            "table": table,
            "notes": notes,
            "conditions": conditions(record),
        },
    )
    draw_gif(race, whole)
    print("\n" + as_text(table, range(len(SPEEDS) + 3, len(table[0]), COLUMNS)))
    print("mean ± sample standard deviation over seeds")
    for line in notes:
        print(line)
    for name in ("race.json", "race.csv", "race.html", "race.gif"):
        if (race.folder / name).exists():
            print(f"wrote {race.folder / name}")


def sentence(race: Race) -> str:
    """Say under what conditions the race was held."""
    same = race.conditions
    size, data = same["image_size"], Path(same["data"]).name
    return (
        f"{', '.join(race.models)}: {race.budget()} of training each, {race.seeds} "
        f"seed{'s' * (race.seeds != 1)}, one run at a time on one machine. All see the same "
        f"pictures ({data}, {same['hold_out']:,} held out) at {size}x{size}, in minibatches of "
        f"{same['batch_size']}, with nets of width {same['width']}. What the papers set "
        f"differently, such as the learning rate, is each model's own, from its quick.json."
    )


def conditions(record: dict[str, Any]) -> list[list[str]]:
    """Lay out budget, conditions and machine as rows under a heading."""
    parts = record["budget"] | record["conditions"] | record["machine"]
    return [["condition", "value"], *([name, str(value)] for name, value in parts.items())]


def rows_of(runs: Sequence[Known], record: dict[str, Any]) -> Any:
    """Return a table of the runs: what they are, how far they came, what they measure."""
    rows = []
    for run in runs:
        row = {"model": run.model, "seed": run.settings["seed"]}
        row["failed"] = record["failed"].get(run.path.name, "")
        row |= {name: run.last(name) for name in ("step", "images", "seconds")}
        row |= {"images_per_second": run.images_per_second()}
        row |= {name: run.last(name) for name in ("loss_d", "loss_g")}
        for name in metric_names(runs):
            row |= {name: run.metric(name), f"{name}_floor": run.metric(name, "floor")}
        rows.append(row)
    return extra("pandas").DataFrame(rows)


def summary(race: Race, runs: Sequence[Known], names: Sequence[str]) -> list[list[str]]:
    """Lay out the means over seeds, one row a model, and under them the floors."""
    table = [["model", "runs", *SPEEDS, "images/s", *names]]
    for model in race.models:
        own = [run for run in runs if run.model == model]
        count = str(len(own)) if len(own) == race.seeds else f"{len(own)} of {race.seeds}"
        speeds = [spread([run.last(c) for run in own], ",.0f") for c in SPEEDS.values()]
        speeds.append(spread([run.images_per_second() for run in own], ",.0f"))
        metrics = [spread([run.metric(name) for run in own]) for name in names]
        table.append([model, count, *speeds, *metrics])
    if names:
        floors = [spread([run.metric(name, "floor") for run in runs]) for name in names]
        table.append(["real pictures", *[""] * (len(SPEEDS) + 2), *floors])
    return table


def spread(values: Sequence[float], form: str = ".4g") -> str:
    """Write mean and sample standard deviation of the values that there are."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    mean, deviation = fmean(known), stdev(known) if len(known) > 1 else 0
    if not deviation:
        return short(mean, form)
    digits = 1 - math.floor(math.log10(deviation))  # two of the deviation's, and the mean's to them
    digits = max(0, digits) if form == ".4g" else 0
    text = f"{deviation:,.{digits}f}"
    return f"{mean:,.{digits}f}" + f" ± {text}" * (text != "0")


def means_of(model: str, runs: Sequence[Known], names: Sequence[str]) -> dict[str, Any]:
    """Return a model's means for race.json; the spread of a single run is null."""
    own = [run for run in runs if run.model == model]
    columns = {name: [run.last(column) for run in own] for name, column in SPEEDS.items()}
    columns |= {name: [run.metric(name) for run in own] for name in names}
    found: dict[str, Any] = {"runs": len(own)}
    for name, values in columns.items():
        known = [value for value in values if not math.isnan(value)]
        found[name] = {
            "mean": fmean(known) if known else None,
            "spread": stdev(known) if len(known) > 1 else None,
        }
    return found


def draw_gif(race: Race, runs: Sequence[Known]) -> None:
    """Have make_gif.py draw every model side by side, of the first seed that the most have."""
    seeds = [[run.path for run in runs if run.settings["seed"] == s] for s in range(race.seeds)]
    most = max(seeds, key=len)
    if most:
        # about 30 scenes: more would have to be small and poor in colours
        scenes = ["--every", max(1, len(most) * FRAMES // 30), "--fps", 5]
        command = [*MAKE_GIF, *(path.resolve() for path in most), *scenes, "--out"]
        code, reason = run_program([*command, (race.folder / "race.gif").resolve()], TOP)
        if code:
            print(f"no race.gif: {reason}")
