"""Measure how near a run's generated pictures are to real ones.

Examples:
    python evaluate.py WGAN-GP                  the newest run of one model
    python evaluate.py simpleGAN DCGAN --num 1000
    python evaluate.py DCGAN/tensorboard/runs/X --seed 1
    python evaluate.py X --inception weights-inception-2015-12-05-6726825d.pth

Each number stands beside its floor: what real pictures get that training has
not seen, as many as are generated. No generator can be expected to do better.
Where none was held out (train with --hold-out 2500), one half of the training
pictures is measured against the other.

Numbers that need no download:
  swd              sliced Wasserstein distance between patches, at every size
                   (swd_32: of 32x32) and their mean: shapes and texture,
                   whatever the overall contrast and tint
  frechet_random   Frechet distance between features: colours, layout, texture
  kernel_random    kernel distance between the same; may fall a little below 0
  diversity        mean distance of two generated pictures, as a share of that
                   of two real ones: little variety or contrast lowers it
  repetition       share of generated pictures with a near twin: nearer than
                   95 % of real pictures are to any other
  memorisation     share of generated pictures so near to a training picture,
                   compared with the nearest unseen one, as only 5 % of real
                   ones are; 1: all are copies
The features are answers of random filters, not of Inception: compare these two
only between runs on the same pictures and size, never with an FID or KID.

Numbers that need Inception's weights:
  fid, kid         Frechet and kernel distance between what Inception sees; no
                   fid with fewer than 2,048 pictures
  inception_score  how sure and how varied its guesses of a class are
  precision        share of generated pictures that look like some real one
  recall           share of real pictures that look like some generated one
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from datetime import datetime
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from generate import batch_size, draw, noise, place
from runs import (
    InputError,
    find_run,
    images_per_step,
    load_generator,
    load_pictures,
    pick_device,
    plain_errors,
    read_settings,
)

if TYPE_CHECKING:
    import torch

    from distances import Inception

LEAST = 100  # pictures a side: with fewer nothing can be said
SENSIBLE = 1000  # pictures a side: with fewer a warning
BETTER = {  # which way, and what it looks at in a few words
    "swd": ("lower", "shapes, texture, all sizes"),
    "frechet_random": ("lower", "colours, layout, texture"),
    "kernel_random": ("lower", "the same, measured otherwise"),
    "diversity": ("near 1", "variety, as a share of real"),
    "repetition": ("near floor", "share with a near twin"),
    "memorisation": ("near floor", "share that looks copied"),
    "fid": ("lower", "what Inception sees"),
    "kid": ("lower", "the same, measured otherwise"),
    "inception_score": ("higher", "sure and varied classes"),
    "precision": ("higher", "share that looks real"),
    "recall": ("higher", "share of real it covers"),
}
HALF = "half of the training pictures"
UNSEEN = {  # what the floor's pictures are, in words
    "held out": "pictures held out of training",
    "drawn": "more faces drawn for this alone",
    HALF: "other training pictures",
}


class Real(NamedTuple):
    """Real pictures to compare with, uint8 (N, H, W, C), as many of either sort."""

    training: np.ndarray
    unseen: np.ndarray  # not trained on; or with HALF they are other training pictures
    kind: str  # of the unseen: a key of UNSEEN
    notes: list[str]  # what there is to say of the choice


def generate(run: Path, count: int, seed: int, device: "torch.device") -> tuple[np.ndarray, int]:
    """Return the pictures that generate.py makes of this seed, uint8 (N, H, W, C), and the step."""
    generator, about = load_generator(run)
    place(generator, device)
    zs = islice(noise(seed, about["arguments"]["z_dim"]), count)
    found = []
    with tqdm(total=count, desc="generating", unit="picture", leave=False, disable=None) as bar:
        for images in draw(generator, zs, batch_size(about["arguments"]["image_size"])):
            found.append(images)
            bar.update(len(images))
    return np.concatenate(found), about["step"]


def choose(run: Path, training: np.ndarray, held_out: np.ndarray, num: int, seed: int) -> Real:
    """Choose real pictures, `num` of either sort if there are so many.

    Raises:
        InputError: the run has too few pictures.
    """
    rng, notes = np.random.default_rng(seed), []
    order = rng.permutation(len(training))
    if len(held_out) >= LEAST:
        kind = "held out" if read_settings(run).get("hold_out", 0) else "drawn"
        unseen = held_out[rng.permutation(len(held_out))]
    else:
        kind = HALF
        why = f"only {len(held_out)} pictures were" if len(held_out) else "no picture was"
        notes.append(f"{why} held out: the floor is one {kind} against the other;")
        notes.append(f"memorisation is skipped; train with --hold-out {LEAST} or more to have both")
        order, rest = np.array_split(order, 2)
        unseen = training[rest]
    count = min(num, len(order), len(unseen))
    if count < LEAST:
        raise InputError(f"{run}: {count} pictures a side are too few; {LEAST} are the least")
    if count < num:
        notes.append(f"{count:,} pictures a side, not {num:,}: there are no more real ones")
    if count < SENSIBLE:
        notes.append(
            f"warning: {count} pictures a side are few; numbers are sound from {SENSIBLE:,} on"
        )
    training = training[np.sort(order[:count])]
    if (training == training[0]).all():
        raise InputError(f"{run}: its pictures are all the same")
    return Real(training, unseen[:count], kind, notes)


def measure(
    generated: np.ndarray,
    real: Real,
    everything: np.ndarray,
    seed: int,
    inception: "Inception | None" = None,
) -> dict[str, dict[str, float]]:
    """Take every measure of the generated and of the unseen pictures against the training's.

    Args:
        generated: uint8 (N, H, W, C).
        real: what to compare with.
        everything: all that was trained on; copies are looked for among them.
        seed: of patches, projections and subsets.
        inception: the network, if its weights are there.

    Returns:
        By the name of each number its `value` and its `floor`.
    """
    import distances

    metrics: dict[str, dict[str, float]] = {}

    def both(describe: Callable, compare: Callable) -> list:
        training, *others = map(describe, (real.training, generated, real.unseen))
        value, floor = (compare(other, training) for other in others)
        metrics.update({name: {"value": value[name], "floor": floor[name]} for name in value})
        return others

    def seeded(compare: Callable) -> Callable:
        return lambda side, training: compare(side, training, seed)

    patches_of = partial(distances.patches_of, seed=seed)
    both(patches_of, seeded(distances.sliced_wasserstein))
    both(distances.features_of, seeded(distances.random_feature_distances))
    fake, unseen = both(distances.thumbnails_of, distances.variety)
    if real.kind != HALF:
        value, floor = distances.memorisation(fake, distances.thumbnails_of(everything), unseen)
        metrics["memorisation"] = {"value": value, "floor": floor}
    if inception:
        both(inception.describe, seeded(distances.inception_distances))
    return metrics


def table(metrics: dict[str, dict[str, float]]) -> str:
    """Lay the numbers out in lines of at most 80 characters."""
    lines = [f"{'':15}{'value':>12}{'floor':>12}  better"]
    for name, found in metrics.items():
        size = name.removeprefix("swd_")
        better, meaning = BETTER.get(name, ("lower", f"at {size}x{size}"))
        label = name if name in BETTER else f"  {name}"
        numbers = "".join(f"{found[key]:12.4g}" for key in ("value", "floor"))
        lines.append(f"{label:15}{numbers}  {better:11}{meaning}")
    return "\n".join(lines)


def append_line(file: Path, row: dict[str, Any]) -> None:
    """Append one JSON line; what a crash may have left half-written keeps a line of its own."""
    with open(file, "ab+") as lines:
        if lines.tell():
            lines.seek(-1, os.SEEK_END)
            lines.write(b"" if lines.read(1) == b"\n" else b"\n")
        lines.write((json.dumps(row) + "\n").encode())


def write_events(folder: Path, metrics: dict[str, dict[str, float]], step: int) -> None:
    """Add the values to TensorBoard.

    They get a folder below the run's: of two event files in one folder TensorBoard may stop
    reading the older, and a training that is still going on would vanish from its curves.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder) as events:
        for name, found in metrics.items():
            events.add_scalar(f"evaluation/{name}", found["value"], step)


def evaluate(
    run: Path, num: int, seed: int, device: "torch.device", inception: "Inception | None"
) -> None:
    """Measure one run, print the numbers, and append them to the run folder."""
    import distances

    per_step = images_per_step(run)
    everything, held_out = load_pictures(run)
    real = choose(run, everything, held_out, num, seed)
    generated, step = generate(run, len(real.training), seed, device)
    if generated.shape != real.training.shape:
        raise InputError(f"{run}: its generator does not make pictures such as it was trained on")
    metrics = measure(generated, real, everything, seed, inception)
    names = ("torch", "numpy", "POT", "torch-fidelity")
    versions = {"python": platform.python_version()} | {name: version(name) for name in names}
    row = {
        "step": step,
        "images": step * per_step,
        "date": datetime.now().isoformat(timespec="seconds"),
        "num": len(generated),
        "seed": seed,
        "versions": versions,
        "resize": distances.INCEPTION_RESIZE if inception else "none",
        "held_out": real.kind,
        "weights": inception.name if inception else None,
        "metrics": metrics,
    }
    if inception and "fid" not in metrics:
        least = f"{distances.FEWEST_FOR_FID:,} pictures a side"
        real.notes.append(f"fid: refused, it needs {least} (see --num, and --hold-out)")
    try:
        report(run, row, real.notes)
    finally:  # also behind `| head`, which closes the pipe
        append_line(run / "evaluation.jsonl", row)
        write_events(run / "evaluation", metrics, step)
    print(f"appended to {run / 'evaluation.jsonl'} and, for TensorBoard, {run / 'evaluation'}")


def report(run: Path, row: dict[str, Any], notes: list[str]) -> None:
    """Print what was compared, and the numbers."""
    count = f"{row['num']:,}"
    print(f"\n{run}: step {row['step']:,}, {row['images']:,} real images shown")
    print(f"value: {count} generated pictures against {count} training pictures")
    print(f"floor: {count} {UNSEEN[row['held_out']]}, against the same")
    print(f"seed {row['seed']}, resize: {row['resize']}")
    print(f"Inception weights: {row['weights'] or 'none'}", *notes, sep="\n")
    print(table(row["metrics"]))
    print("frechet_random and kernel_random are no FID or KID: they look through random")
    print("filters and compare runs on the same pictures and size with each other")


def load_inception(named: Path | None, device: "torch.device") -> "Inception | None":
    """Load Inception if its weights are there; else say in a line what is missing.

    Raises:
        InputError: the named file or a library is missing, or the file holds something else.
    """
    from distances import Inception, find_inception, need

    need("ot", "POT")  # before anything takes time
    weights, url = find_inception(named)
    if not weights.is_file():
        print(
            f"no fid, kid, inception_score, precision and recall: Inception's weights are missing; "
            f"put {url} into {weights.parent}, or name a copy with --inception FILE"
        )
        return None
    inception = Inception(weights, device)
    if not inception.usual:
        print(f"warning: {weights} holds other weights than usual: fid is like no published one")
    return inception


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="path or name of a run, or a model")
    parser.add_argument(
        "--num", type=int, default=2500, help="most pictures a side (default: 2500)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument(
        "--inception", type=Path, metavar="FILE", help="Inception's weights, for fid and the like"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps ... (default: auto)")
    arguments = parser.parse_args(argv)
    if arguments.num < LEAST:
        raise InputError(f"--num {arguments.num}: at least {LEAST}")
    if not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed {arguments.seed}: from 0 to {2**32 - 1}")
    return arguments


def main() -> None:
    """Evaluate the runs that the command line names."""
    arguments = parse_arguments()
    runs = {find_run(text): None for text in arguments.runs}  # in order, none twice
    device = pick_device(arguments.device)
    inception = load_inception(arguments.inception, device)
    for run in runs:
        evaluate(run, arguments.num, arguments.seed, device, inception)


if __name__ == "__main__":
    with plain_errors():
        main()
