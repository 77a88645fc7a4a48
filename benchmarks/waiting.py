"""Measure what one waits for besides training: the first step of a run, and a GIF.

Examples:
    python benchmarks/waiting.py
    python benchmarks/waiting.py --rounds 5 --out results/speed/waiting.json

Start-up is the time from the command to the end of the first training step, at full size and with
the pictures' cache already there. The GIF has 100 frames of 530x530 pixels, a grid of
8x8 drawn faces of 64x64 that come about out of noise; it runs on one core.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from throughput import MODELS, TOP, processor


def first_step(model: str, folder: Path, name: str) -> float:
    """Start a training and return the seconds until its first row is written."""
    command = [sys.executable, "train.py", "--max-steps", "1", "--log-every", "1", "--name", name]
    command += ["--data-dir", str(folder / "data"), "--runs-dir", str(folder / model)]
    began = time.perf_counter()
    training = subprocess.Popen(command, cwd=TOP / model, stdout=subprocess.DEVNULL)
    while not (folder / model / name / "metrics.csv").exists():
        if training.poll() is not None:
            raise SystemExit(f"{model} ended with {training.returncode} before its first step")
        time.sleep(0.01)
    took = time.perf_counter() - began
    training.wait()
    return took


def draw_frames(run: Path, count: int) -> None:
    """Draw a run's frames: faces that come about out of noise, with a little motion."""
    sys.path.insert(0, str(TOP / "DCGAN"))
    from data import draw_faces
    from run_folder import grid

    faces = torch.from_numpy(np.stack(list(draw_faces(64, 64)))).movedim(3, 1).float()
    rng = torch.Generator().manual_seed(0)
    (run / "frames").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"format": 1, "model": "DCGAN", "started": ""}))
    (run / "parameters.json").write_text(json.dumps({"batch_size": 64}))
    for i in range(count):
        share = min(1, i / (count - 1) + 0.05)
        noise = torch.rand(faces.shape, generator=rng) * 255
        mixed = (share * faces + (1 - share) * noise).round().to(torch.uint8)
        Image.fromarray(grid(mixed)).save(run / "frames" / f"{i * 100:06d}.png")


def gif(run: Path) -> float:
    """Return the seconds that make_gif.py takes on one core, start-up included."""
    one_core = ["taskset", "-c", "0"] if sys.platform == "linux" else []
    command = [*one_core, sys.executable, "make_gif.py", str(run), "--out", str(run / "x.gif")]
    began = time.perf_counter()
    subprocess.run(command, cwd=TOP, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first_step("DCGAN", folder, "fills-the-cache")
        for model in MODELS:
            times = [first_step(model, folder, str(i)) for i in range(arguments.rounds)]
            figures[f"{model}_first_step_seconds"] = round(statistics.median(times), 2)
        draw_frames(folder / "run", 100)
        times = [gif(folder / "run") for _ in range(arguments.rounds)]
        figures["gif_of_100_frames_530x530_seconds"] = round(statistics.median(times), 2)
        figures["gif_megabytes"] = round((folder / "run" / "x.gif").stat().st_size / 1e6, 2)
    print(json.dumps(figures, indent=1))
    facts = {
        "command": "python " + " ".join([str(Path(sys.argv[0])), *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {processor()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "figures": figures,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
