"""Measure how long a training takes to start, at full size, from the command to its first step.

Example: python benchmarks/start.py --count 200000 --out start.json

It is timed once with JPEGs of 178x218 pixels still to decode, and then three times for each
model with these decoded. The difference is the rate of decoding.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from throughput import PAPERS, TOP, draw_jpegs, save


def first_step(model: str, images: Path, name: str) -> float:
    """Start a training and return the seconds until the first step is done."""
    runs = images.parent / model
    command = [sys.executable, "train.py", "--max-steps", "1", "--log-every", "1", "--name", name]
    command += ["--data", images, "--data-dir", images.parent, "--runs-dir", runs]
    began = time.time()
    subprocess.run(command, cwd=TOP / model, check=True, stdout=subprocess.DEVNULL)
    return (runs / name / "metrics.csv").stat().st_mtime - began  # it has one row


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="of JPEGs (default: 10,000)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    figures = {"images": args.count}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        draw_jpegs(images, args.count)
        figures["first_step_seconds"] = round(first_step("DCGAN", images, "first"), 2)
        for model in PAPERS:
            times = [first_step(model, images, str(i)) for i in range(3)]
            figures[f"{model}_first_step_seconds"] = round(statistics.median(times), 2)
    decoding = figures["first_step_seconds"] - figures["DCGAN_first_step_seconds"]
    figures["decoded_per_second"] = round(args.count / decoding)
    print(json.dumps(figures, indent=1))
    save(figures, args.out)


if __name__ == "__main__":
    main()
