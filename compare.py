"""Compare runs of any model: a table here, and one HTML page that needs nothing else.

The page has the curves against images, seconds and steps, the last grids side by side,
the settings that differ, and what evaluate.py measured beside what real pictures reach.

With --race the models are first trained, one run at a time, under the same conditions: the
same pictures, held-out pictures, image size, widths, minibatch and budget. What the papers
set differently, such as the learning rate, is each model's own, from its quick.json. All of
it is in race/NAME/; interrupted, the same command goes on where it stopped.

Examples:
    python compare.py                                   the newest run of every model
    python compare.py WGAN WGAN-GP --out wgans.html     the newest runs of two
    python compare.py slower DCGAN/tensorboard/runs/X   by name, by path
    python compare.py --race --seconds 300 --seeds 3 --data faces
    python compare.py --race --images 200000 --models WGAN WGAN-GP --width 64
"""

import argparse
import math
import shlex
from pathlib import Path

from compare_tables import (
    COLUMNS,
    as_text,
    evaluation_table,
    metric_names,
    number,
    overview,
    read_runs,
    remarks,
)
from runs import MODELS, InputError, find_run, model_runs, plain_errors

# What train.py knows by name; another --data is a path, which the four shall find alike.
NAMED = ("faces", "mnist", "fashion-mnist", "cifar10", "celeba")
SMOOTHING = 4  # percent
RACE = {  # the defaults of what only a race takes
    "seconds": 0.0,
    "images": 0,
    "seeds": 3,
    "models": list(MODELS),
    "data": "faces",
    "data_dir": "",
    "hold_out": 1000,
    "image_size": 32,
    "width": 32,
    "batch_size": 64,
    "device": "auto",
    "num": 2500,
    "name": "",
}


def print_tables(runs: list) -> None:
    """Print what the runs are, how far they have come and what they measure."""
    print(as_text(overview(runs)))
    names = metric_names(runs)
    if names:
        cuts = range(1 + COLUMNS, 1 + len(names), COLUMNS)
        print("\n" + as_text(evaluation_table(runs, names), cuts))
        print("in brackets: the floor, what other real pictures reach")
    for line in remarks(runs):
        print(f"note: {line}")
    for run in runs:
        if not run.evaluation:
            print(f"{run.label}: not evaluated: python evaluate.py {shlex.quote(str(run.path))}")


def chosen_runs(texts: list[str]) -> list[Path]:
    """Find the runs that were named, or else the newest of every model."""
    if texts:
        return [find_run(text) for text in texts]
    newest = [model_runs(model)[-1:] for model in MODELS]
    if not any(newest):
        raise InputError("there is no run to compare; make one: cd WGAN-GP && python train.py")
    return [run for runs in newest for run in runs]


def hold_race(arguments: argparse.Namespace) -> None:
    """Hold the race that the command line asks for, and report.

    Raises:
        InputError: its settings make no race.
    """
    from race import RACES, Race, hold
    from race_report import report

    given = {name: getattr(arguments, name) for name in RACE}
    asked = RACE | {name: value for name, value in given.items() if value is not None}
    budget = f"{asked['images']}-images" if asked["images"] else f"{asked['seconds']:g}s"
    name = asked["name"] or f"{Path(asked['data']).stem}-{budget}"
    if name in ("data", ".", "..") or Path(name).name != name:
        raise InputError(f"--name {name}: not a name that a race can have")
    same = ("data", "hold_out", "image_size", "width", "batch_size", "device", "num")
    conditions = {name: asked[name] for name in same}
    if conditions["data"] not in NAMED:
        conditions["data"] = str(Path(conditions["data"]).resolve())
    race = Race(
        name=name,
        models=tuple(dict.fromkeys(asked["models"])),
        seeds=asked["seeds"],
        seconds=asked["seconds"],
        images=asked["images"],
        data_dir=str(Path(asked["data_dir"] or RACES / "data").resolve()),
        conditions=conditions,
    )
    report(race, hold(race))


def count(text: str) -> int:
    """Read a whole number from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 up")
    return int(text)


def amount(text: str) -> float:
    """Read a number from 0 up."""
    if not 0 <= number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 up")
    return float(text)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="path or name of a run, or a model (its newest run)")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (default: compare.html in the current folder)",
    )
    help = f"width of the thick lines' mean, in %% of the images (default: {SMOOTHING}; 0: none)"
    add("--smoothing", type=amount, metavar="PERCENT", help=help)
    add("--race", action="store_true", help="first train the models, under the same conditions")
    add = parser.add_argument_group("race").add_argument
    add("--seconds", type=amount, metavar="S", help="of training for each run; this or --images")
    add("--images", type=count, metavar="N", help="real images that each run is shown")
    add(
        "--seeds",
        type=count,
        metavar="N",
        help="runs of each model, with the seeds 0, 1, ... (default: 3)",
    )
    add("--models", nargs="+", choices=MODELS, metavar="MODEL", help="default: all four")
    add("--data", metavar="DATA", help=f"{', '.join(NAMED)}, a folder or a zip (default: faces)")
    add("--data-dir", metavar="DIR", help="for downloads and decoded pictures (default: race/data)")
    add(
        "--hold-out", type=count, metavar="N", help="pictures kept to evaluate with (default: 1000)"
    )
    add("--image-size", type=count, metavar="N", help="side in pixels (default: 32)")
    add(
        "--width",
        type=count,
        metavar="N",
        help="--g-width and --d-width of every model (default: 32)",
    )
    add("--batch-size", type=count, metavar="N", help="default: 64")
    add("--device", help="as for train.py (default: auto)")
    add("--num", type=count, metavar="N", help="most pictures a side in evaluating (default: 2500)")
    add("--name", help="folder of the race in race/ (default: data and budget)")
    arguments = parser.parse_args(argv)
    check(arguments)
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that make no sense together.

    Raises:
        InputError: which, and why.
    """
    given = [name for name in RACE if getattr(arguments, name) is not None]
    if given and not arguments.race:
        raise InputError(f"--{given[0].replace('_', '-')} is for --race")
    if arguments.race and bool(arguments.seconds) == bool(arguments.images):
        raise InputError("--race needs a budget: --seconds or --images, one of the two")
    if arguments.race and (arguments.runs or arguments.out or arguments.smoothing is not None):
        raise InputError("--race makes its own runs and page: name no RUN, --out or --smoothing")
    for name in ("seeds", "image_size", "width", "batch_size", "num"):
        if getattr(arguments, name) == 0:
            raise InputError(f"--{name.replace('_', '-')} must be above 0")
    if arguments.out and arguments.out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {arguments.out}: the page is an .html file")


def main() -> None:
    """Compare the runs, or hold the race, that the command line asks for."""
    arguments = parse_arguments()
    if arguments.race:
        hold_race(arguments)
        return
    runs = read_runs(chosen_runs(arguments.runs))
    print_tables(runs)
    from compare_page import write_page  # slow to import

    out = arguments.out or Path("compare.html")
    write_page(runs, out, SMOOTHING if arguments.smoothing is None else arguments.smoothing)
    print(f"wrote {out}: {len(runs)} runs, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    with plain_errors():
        main()
