"""Read run folders: what the scripts at the top share. Nothing here imports a train.py."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent
MODELS = ("simpleGAN", "DCGAN", "WGAN", "WGAN-GP")
FORMAT = 1  # of the run folders that these scripts understand


class InputError(Exception):
    """Something the user gave cannot be used: one line that names it, exit code 2."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one line and an exit code where a traceback would help nobody."""
    try:
        yield
        return
    except InputError as error:
        code, line = 2, str(error)
    except OSError as error:
        code, line = 1, str(error)
    except KeyboardInterrupt:
        code, line = 130, "interrupted"
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(code)


def model_runs(model: str, top: Path = TOP) -> list[Path]:
    """Return the run folders of a model folder, the one that was started last at the end."""
    found = (top / model / "tensorboard" / "runs").glob("*/run.json")
    return sorted((file.parent for file in found), key=lambda run: read_facts(run)["started"])


def find_run(text: str) -> Path:
    """Find a run by its path, by its name, or as the newest of a model folder.

    Raises:
        InputError: there is none, or there are several of that name.
    """
    path = Path(text)
    if (path / "run.json").is_file():
        read_facts(path)
        return path
    if path.resolve().name in MODELS and (path / "train.py").is_file():
        text, top = path.resolve().name, path.resolve().parent
    else:
        top = TOP
    if text in MODELS:
        runs = model_runs(text, top)
        if not runs:
            raise InputError(f"{text}: no run yet; make one with: cd {text} && python train.py")
        return runs[-1]
    named = [run for model in MODELS for run in model_runs(model) if run.name == text]
    if len(named) > 1:
        raise InputError(f"{text}: several runs have this name: {', '.join(map(str, named))}")
    if not named:
        reason = (
            "it has no run.json" if path.is_dir() else "no such folder, and no run of this name"
        )
        raise InputError(f"{text}: not a run ({reason})")
    return named[0]


def read_facts(run: Path) -> dict[str, Any]:
    """Read run.json.

    Raises:
        InputError: it is damaged, or of a format that these scripts do not understand.
    """
    try:
        facts = json.loads((run / "run.json").read_text())
        known = facts["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run}/run.json is damaged ({error})") from None
    if not known:
        raise InputError(f"{run}: its format is {facts['format']}; this program reads {FORMAT}")
    return facts


def read_settings(run: Path) -> dict[str, Any]:
    """Read parameters.json."""
    return json.loads((run / "parameters.json").read_text())


def frames_of(run: Path) -> list[Path]:
    """Return the frames in order of steps.

    Raises:
        InputError: there are none.
    """
    frames = sorted((run / "frames").glob("*.png"), key=step_of)
    if not frames:
        raise InputError(f"{run}: there are no frames in it yet")
    return frames


def step_of(frame: Path) -> int:
    """Return the number of generator updates before a frame: it is the frame's name."""
    return int(frame.stem)


def images_per_step(run: Path) -> int:
    """Return how many real images one generator update of a run shows."""
    settings = read_settings(run)
    return settings["batch_size"] * settings.get("n_critic", settings.get("k", 1))
