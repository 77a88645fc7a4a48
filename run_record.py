"""What a run left behind, read for doctor.py without writing anything; and how to compare pictures.

A part that is missing or damaged is left out of the record, with the reason: a run that has
just begun, or whose pictures have gone, still has something to tell.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from generate import batch_size, draw, noise
from runs import (
    MODELS,
    TOP,
    InputError,
    load_file_of,
    load_generator,
    load_pictures,
    read_facts,
    read_settings,
)

SAMPLES = 256  # pictures that the generator is asked for
SIDE = 8  # pictures are compared as 8x8 mean colours: no noise of single pixels, no fine edges


@dataclass(frozen=True)
class Record:
    """What a run left behind, as far as it could be read. Checks look at nothing else."""

    model: str
    settings: dict[str, Any]
    rows: dict[str, np.ndarray] = field(default_factory=dict)  # metrics.csv by column
    log: str = ""  # train.log since the run was last started
    count: int | None = None  # of training pictures
    samples: np.ndarray | None = None  # uint8 (N, H, W, C), as the next two
    trained: np.ndarray | None = None
    held_out: np.ndarray | None = None  # may be empty
    sampled_at: int = 0  # step of the generator that made the samples
    resume: str = "--resume"  # what going on with the run takes
    repeat: str = "parameters.json"  # its settings, as --config finds them
    finite: bool = True  # whether all weights of the generator are numbers
    missing: dict[str, str] = field(default_factory=dict)  # why of what could not be read


# ---- Reading ----


def read_record(run: Path) -> Record:
    """Read all of a run folder that the checks can use.

    Raises:
        InputError: run.json or parameters.json cannot be read, or names no model of ours.
    """
    facts = read_facts(run)
    if facts.get("model") not in MODELS:
        raise InputError(f"{run}/run.json: there is no model {facts.get('model')!r} here")
    try:
        settings = read_settings(run)
    except (OSError, ValueError) as error:
        raise InputError(f"{run}/parameters.json cannot be read ({error})") from None
    parts, missing = {}, {}

    def attempt(read: Callable[[Path], dict[str, Any]], *names: str) -> None:
        try:
            parts.update(read(run))
        except (InputError, OSError, ValueError, KeyError) as error:
            plain = isinstance(error, InputError | OSError)
            missing.update(dict.fromkeys(names, str(error) if plain else f"{run}: {error!r}"))

    attempt(read_rows, "rows")
    attempt(read_samples, "samples")
    attempt(read_pictures, "trained", "held_out")
    log = run / "train.log"
    log = log.read_text(errors="replace") if log.is_file() else ""
    here = run.resolve()
    resume, repeat = f"--resume {here.name}", here / "parameters.json"
    if here.parent == TOP / facts["model"] / "tensorboard" / "runs":
        repeat = repeat.relative_to(TOP / facts["model"])
    else:
        resume += f" --runs-dir {here.parent}"
    return Record(
        model=facts["model"],
        settings=settings,
        log=log.rpartition("\nrun  ")[2],
        count=facts.get("pictures", {}).get("shape", [None])[0],
        resume=resume,
        repeat=str(repeat),
        missing=missing,
        **parts,
    )


def read_rows(run: Path) -> dict[str, Any]:
    """Read metrics.csv; a last line that is still being written is left out."""
    file = run / "metrics.csv"
    if not file.is_file():
        raise InputError("there is no metrics.csv yet")
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    names, *rows = [line.strip().split(",") for line in lines] or [[]]
    try:
        table = np.array(rows, float).reshape(len(rows), len(names))
    except ValueError as error:
        raise InputError(f"metrics.csv is damaged ({error})") from None
    return {"rows": dict(zip(names, table.T, strict=True))}


def read_samples(run: Path) -> dict[str, Any]:
    """Let the saved generator draw, from the same noise every time."""
    generator, about = load_generator(run)
    at = {"sampled_at": about["step"]}
    if not all(weight.isfinite().all() for weight in generator.state_dict().values()):
        return at | {"finite": False}
    zs = islice(noise(0, about["arguments"]["z_dim"]), SAMPLES)
    zs = tqdm(zs, "drawing", SAMPLES, unit="picture", leave=False, disable=None)
    batch = batch_size(about["arguments"]["image_size"])
    return at | {"samples": np.concatenate(list(draw(generator, zs, batch)))}


def read_pictures(run: Path) -> dict[str, Any]:
    """Find the pictures of a run. Where they must be decoded again, no cache of them is left."""
    facts = read_facts(run)
    if (run / facts.get("cache", "")).is_file():
        trained, held_out = load_pictures(run)
        return {"trained": trained, "held_out": held_out}
    settings, data = read_settings(run), load_file_of(facts["model"], "data")
    root = settings["data_dir"] or TOP / facts["model"] / "data"
    facts["cache"] = str(decoded_before(Path(root) / "cache", facts["pictures"]["digest"]))
    if settings["data"] in data.NAMED and not Path(facts["cache"]).is_file():
        raise InputError(f"the decoded pictures of {settings['data']} are no longer in {root}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as aside:
        settings["data_dir"] = aside
        for name, content in (("run.json", facts), ("parameters.json", settings)):
            Path(aside, name).write_text(json.dumps(content))
        try:
            trained, held_out = (np.array(images) for images in load_pictures(Path(aside)))
        except InputError as error:
            raise InputError(str(error).replace(f"{aside}: ", "")) from None
    return {"trained": trained, "held_out": held_out}


def decoded_before(caches: Path, digest: str) -> Path:
    """Find decoded pictures by their digest; a path that is no file if there are none."""
    for file in caches.glob("*.json"):
        if json.loads(file.read_text())["digest"] == digest:
            return file.with_suffix(".bytes")
    return caches / "none"


# ---- Comparing ----


def small(images: np.ndarray) -> np.ndarray:
    """Shrink pictures, uint8 (N, H, W, C), to SIDE x SIDE mean colours: uint8 too."""
    count, side, _, channels = images.shape
    block, shrunk = side // SIDE, np.empty((count, SIDE, SIDE, channels), np.uint8)
    starts = range(0, count, 1024)
    for start in tqdm(starts, "shrinking", unit="part", leave=False, disable=None):
        part = images[start : start + 1024]
        part = part.reshape(-1, SIDE, block, SIDE, block, channels).mean((2, 4), np.float32)
        shrunk[start : start + len(part)] = part.round()
    return shrunk


def some(images: np.ndarray, count: int) -> np.ndarray:
    """Draw so many different pictures at random, or all in random order if there are fewer."""
    return images[np.random.default_rng(0).permutation(len(images))[:count]]


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Say how far small pictures (A, ...) are from others (B, ...): root mean squares, (A, B)."""
    a, b = (pictures.reshape(len(pictures), -1).astype(float) for pictures in (a, b))
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.sqrt(squares / a.shape[1])


def spread(pictures: np.ndarray) -> tuple[float, float]:
    """Say how far two small pictures are apart in the mean, and how far the nearest other is."""
    apart = distances(pictures, pictures)
    mean = apart[np.triu_indices(len(pictures), 1)].mean()
    np.fill_diagonal(apart, np.inf)
    return mean, np.median(apart.min(1))


def farness(samples: np.ndarray, real: np.ndarray) -> float:
    """Say how many times farther small samples are from real pictures than these from each other.

    The distance is sliced: that of the sorted projections on 128 random directions, in the mean.
    """
    count = min(len(samples), len(real) // 2)
    directions = np.random.default_rng(0).normal(size=(real[0].size, 128))

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        sides = [np.sort(part.reshape(count, -1) @ directions, 0) for part in (a, b)]
        return np.abs(sides[0] - sides[1]).mean()

    one, other = real[:count], real[count : 2 * count]
    return apart(samples[:count], one) / max(apart(other, one), 1e-6)
