"""Train the models one after another under equal conditions, evaluate each run, and compare.

Equal for all are the images, the held-out images, image size, widths, minibatch and budget, in
seconds of training or in images shown. What the papers set differently, such as the learning
rate, is each model's own, from its quick.json. Equal widths do not mean equal sizes: a width
counts feature maps in three models and hidden units in the simple GAN.

A race lies in race/NAME/: race.json (conditions, machine, failures, means), race.csv (a row for
each run), race.html (the page), race.gif (the models side by side) and the run folders. If it is
interrupted, the same command continues it.

Examples:
    python race.py --seconds 300 --seeds 3 --data faces
    python race.py --images 200000 --models WGAN WGAN-GP --width 64
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from datetime import datetime, timedelta, timezone
from html import escape
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from tqdm import tqdm

import runs as folders
from compare import numbers_of, read_runs, show, write_page
from runs import TOP

EQUAL = ("data", "hold_out", "image_size", "batch_size", "device")  # by the same name in train.py
EVERY = {"log": 150, "frame": 60, "checkpoint": 10}  # about so many in each run
TRIAL = 3  # seconds of training in which a model's speed is measured, or a tenth of the budget


def parse_arguments(argv: list[str] | None = None) -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(None, SUPPRESS, __doc__, formatter_class=RawDescriptionHelpFormatter)
    add, models = parser.add_argument, folders.models()
    add("--seconds", type=float, default=0.0, help="training time of each run; this or --images")
    add("--images", type=int, default=0, help="real images that each run is shown")
    add("--seeds", type=int, default=3, help="runs of each model (default: 3)")
    add("--models", nargs="+", choices=models, default=models, metavar="MODEL", help="default: all")
    add("--data", default="faces", help="as for train.py (default: faces)")
    add("--data-dir", default=TOP / "race" / "data", help="for downloads and decoded images")
    add("--hold-out", type=int, default=1000, help="images kept for evaluation (default: 1000)")
    add("--image-size", type=int, default=32, help="side in pixels (default: 32)")
    add("--width", type=int, default=32, help="--g-width and --d-width of all (default: 32)")
    add("--batch-size", type=int, default=64, help="default: 64")
    add("--device", default="auto", help="as for train.py (default: auto)")
    add("--num", type=int, default=2500, help="maximum images per evaluation (default: 2500)")
    add("--name", default="", help="folder in race/ (default: data and budget)")
    race = parser.parse_args(argv)
    if (race.seconds > 0) == (race.images > 0) or race.seeds < 1:
        parser.error("a race needs --seconds or --images, one of the two, and --seeds from 1")
    if race.data not in folders.utils().DATASETS:
        race.data = str(Path(race.data).resolve())
    race.data_dir = Path(race.data_dir).resolve()
    budget = f"{race.images}images" if race.images else f"{race.seconds:g}s"
    race.folder = TOP / "race" / (race.name or f"{Path(race.data).stem}-{budget}")
    pairs = [(model, seed) for seed in range(race.seeds) for model in dict.fromkeys(race.models)]
    race.trial = min(TRIAL, race.seconds / 10 or TRIAL)
    race.runs = [(model, seed, race.folder / f"{model}-{seed}") for model, seed in pairs]
    return race


def open_race(race: Namespace) -> dict:
    """Begin a race, or read the record of one to continue; try out the models new to it.

    Raises:
        InputError: It began under other conditions, or train.py refuses a setting.
    """
    now = {
        "budget": {"seconds": race.seconds, "images": race.images},
        "conditions": {name: getattr(race, name) for name in (*EQUAL, "width", "num")},
        "machine": {"cpus": os.cpu_count(), "torch": version("torch")},
        "own": {m: folders.read_json(TOP / m / "quick.json") for m in race.models},
    }
    record = {"format": 1, "started": datetime.now(timezone.utc).isoformat(), **now, "pace": {}}
    if (race.folder / "race.json").is_file():
        record = folders.read_json(race.folder / "race.json", *now, "pace")
        record["own"] = now["own"] | record["own"]  # models may join later
    for part in now:
        began = {name: record[part].get(name) for name in now[part]}
        if began != now[part]:
            line = f"{race.folder} began with {part} {began}, not {now[part]}"
            raise folders.utils().InputError(f"{line}; take another --name")
    record["failed"] = {}  # these are tried again
    budget = f"{race.images:,} images" if race.images else f"{race.seconds:g} s of training"
    print(f"{len(race.runs)} runs of {budget}, each with a start and an evaluation")
    for model in race.models:
        if model not in record["pace"]:
            print(f"first a trial of {model}: a start and up to {race.trial:g} s of training")
            record["pace"][model] = try_out(race, model)
    race.folder.mkdir(parents=True, exist_ok=True)
    folders.utils().write_json(race.folder / "race.json", record)
    return record


def try_out(race: Namespace, model: str) -> dict[str, float]:
    """Train a model for at most a tenth of the budget, in a folder that is then deleted.

    Returns:
        About how many `steps` of training the budget is, and how many `seconds` a run will take
        with its start, without its evaluation.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        run, own = Path(place) / "trial", folders.read_json(TOP / model / "quick.json")
        each = race.batch_size * own.get("n_critic", own.get("k", 1))
        most = max(1, race.images // (10 * each)) if race.images else 0  # 0: no limit
        limits = [f"--max-seconds={race.trial}", f"--max-steps={most}"]
        if reason := train(race, (model, 0, run), limits):
            raise folders.utils().InputError(f"{model}: {reason}")
        each, last = folders.images_per_step(run), numbers_of(read_runs([run])[0])
    start, a_step = time.monotonic() - began - last["seconds"], last["seconds"] / last["step"]
    steps = max(1, race.images // each if race.images else round(race.seconds / a_step))
    return {"steps": steps, "seconds": steps * a_step + start}


def state_of(run: Path) -> tuple[bool, bool]:
    """Return whether a run is trained to its end, and whether its last evaluation is of that."""
    if not (run / "run.json").exists():
        return False, False
    known = read_runs([run])[0]
    asked = {"step": numbers_of(known)["step"], "seed": 0}
    return bool(known.facts.get("finished")), asked.items() <= known.evaluation.items()


def train(race: Namespace, which: tuple, limits: list[str]) -> str:
    """Start or resume a run, unless it is finished; see `run_child`."""
    model, seed, run = which
    if state_of(run)[0]:
        return ""
    resumed = any(run.glob("checkpoint*.pt"))
    if not resumed:
        shutil.rmtree(run, ignore_errors=True)  # interrupted before its first checkpoint
    command = [TOP / model / "train.py", f"--config={TOP / model / 'quick.json'}"]
    command += [f"--{network}-width={race.width}" for network in "gd"]
    command += ["--epochs=1000000", f"--seed={seed}"]
    command += [f"--{n.replace('_', '-')}={getattr(race, n)}" for n in (*EQUAL, "data_dir")]
    command += [f"--runs-dir={run.parent}", f"--{'resume' if resumed else 'name'}={run.name}"]
    return run_child(command + limits)


def run_child(command: list) -> str:
    """Run a script to its end; return why it failed, the last line of its complaints, or "".

    If this program is interrupted, the script is asked to stop and waited for: a training saves.
    """
    words, quiet = [sys.executable, *map(str, command)], subprocess.DEVNULL
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        # In a session of its own it hears of a terminal's Ctrl-C from here, once. Windows has
        # no sessions, and its terminal asks all programs to stop.
        options = {"stdout": quiet, "stderr": errors, "start_new_session": True}
        child = subprocess.Popen(words, stdin=quiet, **options)
        try:
            child.wait()
        except BaseException:
            if os.name == "posix":
                child.terminate()
            child.wait()
            raise
        errors.seek(0)
        lines = errors.read().strip().splitlines() or [f"exit code {child.returncode}"]
    if child.returncode > 128:  # somebody asked it to stop, and it has saved
        raise KeyboardInterrupt
    return (lines[-1].partition(": error: ")[2] or lines[-1]) if child.returncode else ""


def hold(race: Namespace, record: dict) -> None:
    """Train and evaluate what is left, one run at a time so that none takes another's time."""
    todo = [which for which in race.runs if not all(state_of(which[2]))]
    left = timedelta(seconds=round(sum(record["pace"][model]["seconds"] for model, *_ in todo)))
    print(f"runs left: {len(todo)} of {len(race.runs)}; about {left}, and the evaluation of each")
    evaluate = [f"--num={race.num}", "--seed=0", f"--device={race.device}"]
    for which in tqdm(todo, "race", unit="run", disable=None):
        steps, name = record["pace"][which[0]]["steps"], which[2].name
        budget = f"--max-steps={steps}" if race.images else f"--max-seconds={race.seconds}"
        every = [f"--{part}-every={max(1, steps // n)}" for part, n in EVERY.items()]
        reason = train(race, which, [budget, *every])
        if reason := reason or run_child([TOP / "evaluate.py", which[2], *evaluate]):
            record["failed"][name] = reason
        tqdm.write(f"{name} failed: {reason}" if reason else f"{name} finished")
    if len(record["failed"]) == len(race.runs):
        raise SystemExit(f"race.py: error: every run failed; {name}: {reason}")


def report(race: Namespace, record: dict) -> None:
    """Write race.csv, the means into race.json, race.html and race.gif, and print the means."""
    runs = read_runs([run for *_, run in race.runs if (run / "run.json").is_file()])
    failed = [record["failed"].get(run.path.name, "") for run in runs]
    whose = {"model": [run.model for run in runs], "seed": [run.settings["seed"] for run in runs]}
    rows = pd.DataFrame(whose | {"failed": failed}).join(pd.DataFrame(map(numbers_of, runs)))
    rows.to_csv(race.folder / "race.csv", index=False)
    whole = rows[rows["failed"] == ""].rename(columns={"step": "steps"})
    floors = whole.filter(regex="_floor$").mean()
    names = whole.columns[3:].difference(floors.index, sort=False)
    shown, record["means"] = {}, {}
    for model, own in whole.groupby("model", sort=False):
        stats = own[names].agg(["mean", "std"]).rename(index={"std": "spread"})
        record["means"][model] = {"runs": len(own)} | json.loads(stats.to_json(double_precision=15))
        stats.loc["spread"] = stats.loc["spread"].map("{:.2g}".format).astype(float)
        texts = stats.map(show).agg(" ± ".join).str.removesuffix(" ± -")
        shown[model] = {"runs": len(own), **texts}
    shown["floor"] = floors.rename(lambda name: name.removesuffix("_floor")).map(show)
    record |= {"finished": datetime.now(timezone.utc).isoformat(), "seeds": race.seeds}
    record["devices"] = sorted({run.facts["device"] for run in runs})
    folders.utils().write_json(race.folder / "race.json", record)
    table = pd.DataFrame(shown).reindex(["runs", *names]).fillna("")
    notes = [f"{name} failed: {reason}" for name, reason in record["failed"].items()]
    notes += ["mean ± sample standard deviation over seeds"] * (race.seeds > 1)
    texts = [*notes, __doc__.split("\n\n")[1], str(record["conditions"])]
    first = table.to_html(border=0) + "".join(f"<p>{escape(text)}</p>" for text in texts)
    write_page(runs, race.folder / "race.html", f"Race {race.folder.name}", first)
    print(table.to_string(line_width=shutil.get_terminal_size().columns), *notes, sep="\n")
    firsts = {run.model: run.path for run in reversed(runs)}.values()
    command = [TOP / "make_gif.py", "--side-by-side", *firsts, "--out", race.folder / "race.gif"]
    reason = run_child(command)
    print(f"wrote {race.folder}" + f", but no race.gif: {reason}" * bool(reason))


def main() -> None:
    """Hold the race that the command line asks for."""
    race = parse_arguments()
    with folders.utils().plain_errors():
        folders.heed_signals()  # as Ctrl-C: trainings save
        try:
            record = open_race(race)
            hold(race, record)
            report(race, record)
        except KeyboardInterrupt:
            kept = [run.name for *_, run in race.runs if any(run.glob("checkpoint*.pt"))]
            saved = f"{', '.join(kept)}; the same command continues" if kept else "nothing yet"
            print(f"stopped; trained and saved: {saved}")
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
