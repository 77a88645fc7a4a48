"""Run the experiments of docs/experiments.md, and draw the picture of each.

    python results/experiments.py              all: about 40 minutes
    python results/experiments.py minimax      those whose picture has this name

Commands, changed lines, curves and names are read from the page itself. Each command runs in a
copy of its model folder; the picture in assets/experiments/ shows the last frame of the baseline
and of each run of the experiment, and one curve.
"""

import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from PIL import Image

from figures import ASSETS, TOP, save_panels

PAGE = TOP / "docs" / "experiments.md"
COMMAND = re.compile(r"^cd (\S+) && python (train\.py .*--name (\S+))$", re.MULTILINE)
CHANGE = re.compile(r"In `(\S+)`.*?```diff\n-(.*?)\n\+(.*?)\n```", re.DOTALL)
CURVE = re.compile(r"!\[.*`(\w+)`.*\]\(\.\./assets/experiments/(\S+)\.png\)", re.DOTALL)


def train(command: tuple[str, str, str], change: tuple[str, str, str] | None, folder: Path) -> Path:
    """Run a command in a copy of its model folder, with one line changed; return the run."""
    model, arguments, name = command
    copy = folder / name / model
    left_out = shutil.ignore_patterns("tensorboard", "__pycache__", "data")
    shutil.copytree(TOP / model, copy, ignore=left_out)
    if change:
        file, old, new = folder / name / change[0], change[1], change[2]
        text = file.read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{change[0]} has this line {text.count(old)} times: {old.strip()}")
        file.write_text(text.replace(old, new))
    where = ["--data-dir", str(folder / "data"), "--frame-every", "100000", "--log-every", "10"]
    subprocess.run([sys.executable, *shlex.split(arguments), *where], cwd=copy, check=True)
    return copy / "tensorboard" / "runs" / name


def faces_of(run: Path) -> np.ndarray:
    """Return 16 images of a run's last frame, twice as large: uint8 (H, W, 3)."""
    frame = np.asarray(Image.open(max((run / "frames").glob("*.png"))).convert("RGB"))
    side = len(frame) // 2 + 1
    return frame[:side, :side].repeat(2, 0).repeat(2, 1)


def curve_of(runs: dict[str, Path], name: str, side: int) -> np.ndarray:
    """Draw one curve of several runs against steps: uint8 (side, side, 3)."""
    figure, axes = plt.subplots(figsize=(side / 100, side / 100), dpi=100, layout="constrained")
    for label, run in runs.items():
        table = pd.read_csv(run / "metrics.csv", index_col="step")
        axes.plot(table[name].rolling(5, min_periods=1, center=True).mean(), label=label)
    scale = "log" if axes.get_ylim()[1] > 100 else "linear"
    axes.set(xlabel="step", title=name, yscale=scale)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def main() -> None:
    """Run what the command line asks for; each model's baseline once."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of pictures; by default all")
    names = parser.parse_args().names
    introduction, *sections = PAGE.read_text("utf-8").split("\n## ")
    baselines = {command[0]: command for command in COMMAND.findall(introduction)}
    trained: dict[str, Path] = {}
    (ASSETS / "experiments").mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        for section in sections:
            commands = COMMAND.findall(section)
            change = CHANGE.search(section)
            shown = CURVE.search(section)
            if not shown or (names and shown[2] not in names):
                continue
            model = commands[0][0]
            if model not in trained:
                trained[model] = train(baselines[model], None, Path(folder) / "baseline")
            runs = {model: trained[model]}
            for command in commands:
                runs[command[2]] = train(command, change and change.groups(), Path(folder))
            sheets = {label: faces_of(run) for label, run in runs.items()}
            sheets[""] = curve_of(runs, shown[1], len(sheets[model]))
            save_panels(sheets, ASSETS / "experiments" / f"{shown[2]}.png")


if __name__ == "__main__":
    main()
