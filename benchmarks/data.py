"""Measure pictures: packing JPEGs of 178x218, opening the cache, drawing minibatches.

Examples:
    python benchmarks/data.py
    python benchmarks/data.py --counts 1000 10000 --out results/data.json

The JPEGs are drawn by the program; from a number of them on they are links to the same few
thousand files, which costs the reader the same.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch
from throughput import TOP, draw_jpegs, processor

DISTINCT = 2000  # JPEGs that are drawn; more are hard links to them


def measure(count: int, folder: Path, drawn: Path) -> dict:
    """Pack so many JPEGs, open their cache, draw minibatches; return the figures."""
    from data import Batches, load_pictures

    pictures = folder / f"pictures-{count}"
    pictures.mkdir()
    files = sorted(drawn.iterdir())
    for i in range(count):
        (pictures / f"{i:06d}.jpg").hardlink_to(files[i % len(files)])
    times = []
    for _ in range(2):  # the second finds the cache
        began = time.perf_counter()
        found = load_pictures(str(pictures), str(folder), 64, "data", 64)
        times.append(time.perf_counter() - began)
    batches = Batches(found.images, 64, torch.device("cpu"), 0)
    drawn_batches = 500
    for _ in range(50):
        batches.draw(1)
        next(batches)
    began = time.perf_counter()
    for _ in range(drawn_batches):
        batches.draw(1)
        next(batches)
    rate = drawn_batches / (time.perf_counter() - began)
    for path in pictures.iterdir():
        path.unlink()
    return {
        "pictures": count,
        "packing_seconds": round(times[0], 2),
        "packed_per_second": round(count / times[0]),
        "opening_seconds": round(times[1], 3),
        "batches_of_64_per_second": round(rate),
    }


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 50_000, 200_000])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    sys.path.insert(0, str(TOP / "DCGAN"))
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn"
        draw_jpegs(drawn, min(DISTINCT, max(arguments.counts)))
        for count in arguments.counts:
            figures.append(measure(count, Path(folder), drawn))
            print(json.dumps(figures[-1]), flush=True)
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
