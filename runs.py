"""Find and read run folders: what the scripts at the top share.

What is missing, damaged or of an unknown kind is an InputError that names it.
"""

import importlib
import json
import re
import signal
import sys
import threading
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from datetime import datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

TOP = Path(__file__).resolve().parent
PAPERS = ("simpleGAN", "DCGAN", "WGAN", "WGAN-GP")  # in the order in which they appeared
SETTINGS = ("data", "data_dir", "image_size", "channels", "batch_size")  # that every model has
LOADING = threading.Lock()  # play.py loads files from several threads


def models() -> list[str]:
    """Return the names of the model folders: the papers' in their order, then all others."""
    found = sorted(file.parent.name for file in TOP.glob("*/train.py"))
    return sorted(found, key=lambda name: PAPERS.index(name) if name in PAPERS else len(PAPERS))


@cache
def utils() -> ModuleType:
    """Return the utils.py of a model folder: errors, files and devices are as in training.

    It imports PyTorch, which takes two seconds. A script reads its command line before it asks
    for this, so that --help and a wrong flag are answered at once.
    """
    return load_file_of(models()[0], "utils")


def command_line(about: str) -> ArgumentParser:
    """Begin the command line of a script with this docstring; an error is one line."""
    raw = RawDescriptionHelpFormatter
    return ArgumentParser(usage=SUPPRESS, description=about, formatter_class=raw)


def seed(text: str) -> int:
    """Read a seed within the bounds of train.py: the type of a flag."""
    if text.isdecimal() and int(text) < 2**32:
        return int(text)
    raise ArgumentTypeError(f"must be a whole number from 0 to {2**32 - 1}, not {text!r}")


def heed_signals() -> None:
    """Let the signals that end a program act as Ctrl-C, unless nohup has them ignored."""
    for name in {"SIGTERM", "SIGHUP", "SIGBREAK"} & {*dir(signal)}:
        if signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.default_int_handler)


def read_json(file: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON file that holds one object with these keys."""
    found = utils().read_json(file)
    if missing := [key for key in keys if key not in found]:
        raise utils().InputError(f"{file} is damaged (it lacks {', '.join(missing)})")
    return found


def read_facts(run: Path) -> dict[str, Any]:
    """Read run.json; `started` becomes a datetime with a zone, by default the local one."""
    file, known = run / "run.json", utils().FORMAT
    facts = read_json(file, "format", "model", "started")
    if facts["format"] != known or not isinstance(facts["model"], str):
        found = f"format {facts['format']!r:.50}, model {facts['model']!r:.50}"
        raise utils().InputError(f"{file}: {found}; this program reads format {known}")
    try:
        facts["started"] = datetime.fromisoformat(facts["started"]).astimezone()
    except (TypeError, ValueError) as error:
        raise utils().InputError(f"{file} is damaged ({error})") from None
    return facts


def read_settings(run: Path) -> dict[str, Any]:
    """Read parameters.json, which holds at least what all models have."""
    return read_json(run / "parameters.json", *SETTINGS)


def images_per_step(run: Path) -> int:
    """Return how many real images one generator update of a run shows."""
    settings, processes = read_settings(run), read_facts(run).get("processes", 1)
    updates = settings.get("n_critic", settings.get("k", 1))  # of the discriminator or critic
    return settings["batch_size"] * updates * processes


def frames_of(run: Path) -> list[Path]:
    """Return the frames in order of steps, which are their names; a new run has none."""
    found = (run / "frames").glob("*.png")
    frames = {int(file.stem): file for file in found if re.fullmatch("[0-9]{6,}", file.stem)}
    return [frames[step] for step in sorted(frames)]


def runs_in(folder: Path) -> list[Path]:
    """Return the run folders of a model folder, oldest first; name damaged ones on stderr."""
    found = []
    for file in (folder / "tensorboard" / "runs").glob("*/run.json"):
        try:
            found.append((read_facts(file.parent)["started"], file.parent))
        except utils().InputError as error:
            print(f"skipped {error}", file=sys.stderr)
    return [run for _, run in sorted(found)]


def find_run(text: str) -> Path:
    """Find the one run of this path or name, or the newest of a model or a model folder."""
    path = Path(text)
    if (path / "run.json").is_file():
        return path
    for folder in (path, TOP / text):
        if (folder / "train.py").is_file():
            if found := runs_in(folder):
                return found[-1]
            start = f"start one with: cd {text} && python train.py"
            raise utils().InputError(f"{text}: no run yet; {start}")
    named = [folder / text for folder in sorted(TOP.glob("*/tensorboard/runs"))]
    named = [str(run) for run in named if (run / "run.json").is_file()]
    if len(named) != 1:
        reason = f"several runs have this name: {', '.join(named)}"
        raise utils().InputError(f"{text}: {reason if named else 'not a run, nor the name of one'}")
    return Path(named[0])


def find_runs(texts: list[str]) -> list[Path]:
    """Find the run of each text, none twice; without texts, the newest of every model folder."""
    found = [find_run(text) for text in texts]
    if not texts:
        found = [run for model in models() for run in runs_in(TOP / model)[-1:]]
    if not found:
        raise utils().InputError("there is no run yet; start one with: cd DCGAN && python train.py")
    return list({run.resolve(): run for run in found}.values())


def find_weights(text: str) -> tuple[Path, Path | None]:
    """Find a generator's weights by path, by run, or in assets/weights/ for a model without runs.

    Returns:
        The weights, and the run that they were found by, if any.
    """
    if Path(text).is_file():
        return Path(text), None
    try:
        run = find_run(text)
        return run / "generator.safetensors", run
    except utils().InputError:
        included = TOP / "assets" / "weights" / f"{Path(text).name}.safetensors"
        if not included.is_file():
            raise
        return included, None


def model_folder(model: str, run: Path, model_dir: Path | None = None) -> Path:
    """Return the folder that a run's code is taken from.

    That is `model_dir` if the user names one (--model-dir), or else a folder of this repository:
    the one that the run lies in, or the one called `model`. Never one that lies beside a run
    from elsewhere, whose code is a stranger's.
    """
    if model_dir:
        return model_dir.resolve()
    for folder in ((run.resolve() / "../../..").resolve(), TOP / model):
        if folder in [TOP / name for name in models()]:
            return folder
    line = f"{run}: no model {model} here; name the folder that trained it with --model-dir"
    raise utils().InputError(line)


def load_file_of(folder: str | Path, name: str) -> ModuleType:
    """Import a file of a model folder, and for its own imports the other files of that folder.

    Afterwards the names that model folders share stand for what they stood for before.
    """
    folder = TOP / folder  # an absolute path stays what it is
    if not (folder / f"{name}.py").is_file():
        raise utils().InputError(f"{folder}: there is no {name}.py in it")
    shared = {file.stem for file in folder.glob("*.py")}

    def forget() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in shared & sys.modules.keys()}

    with LOADING:
        before = forget()
        sys.path.insert(0, str(folder))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(folder))
            forget()
            sys.modules.update(before)


def load_generator(file: Path, model_dir: Path | None = None) -> tuple[Any, dict[str, Any]]:
    """Build a trained generator, in eval mode on the CPU.

    Args:
        file: A generator.safetensors by whatever name, or a run folder that holds one.
        model_dir: As for `model_folder`.

    Returns:
        The generator, (B, z_dim) -> (B, C, H, W) in [-1, 1]; and what is known about it:
        `model`, `step`, `z_dim`, `image_size`, `channels`, the constructor's `arguments`.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    file = file / "generator.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise utils().InputError(f"{file}: no such file")
    try:
        with safe_open(file, "pt") as saved:
            about = json.loads((saved.metadata() or {})["about"])
        if about["format"] != utils().FORMAT:
            raise ValueError(f"format {about['format']}")
        folder = model_folder(str(about["model"]), file.parent, model_dir)
        about["z_dim"] = about.get("z_dim") or about["arguments"]["z_dim"]
        with torch.random.fork_rng(devices=()), torch.no_grad():  # initial weights are drawn
            generator = load_file_of(folder, "model").Generator(**about["arguments"]).eval()
            generator.load_state_dict(load(file.read_bytes()))
            shape = generator(torch.zeros(1, about["z_dim"])).shape
        _, about["channels"], about["image_size"], _ = shape
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        line = f"{file} is damaged, or was not trained by that model.py ({reason})"
        raise utils().InputError(line) from None
    return generator, about


def load_images(
    run: Path, more_faces: int = 2500, model_dir: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images that a run was trained on, and others of their kind that it never saw.

    The second are those that --hold-out kept from it. If there are none, and the images are
    drawn faces, they are `more_faces` new ones.

    Returns:
        Two arrays, uint8 (N, H, W, C); the second may be empty.
    """
    facts, settings = read_facts(run), read_settings(run)
    size, channels, batch_size = (settings[n] for n in ("image_size", "channels", "batch_size"))
    place = settings["data_dir"] if Path(settings["data_dir"]).is_dir() else ""
    data = load_file_of(model_folder(facts["model"], run, model_dir), "data")
    hold_out = settings.get("hold_out", 0)
    try:
        try:
            found = data.open_cache(run / facts.get("cache", ""), hold_out)
        except data.Damaged:  # it was deleted, or the run comes from elsewhere
            found = data.load_images(settings["data"], place, size, channels, batch_size, hold_out)
    except (data.InputError, data.RunError) as error:
        raise utils().InputError(f"{run}: its images cannot be found again: {error}") from None
    if found.digest != facts["pictures"]["digest"]:
        raise utils().InputError(f"{run}: the images are not those it was trained on")
    if more_faces and settings["data"] == "faces" and not len(found.held_out):
        faces = data.draw_faces(more_faces, size, seed=1)
        channels = found.images.shape[3]
        return found.images, np.stack([data.decode(face, size, channels) for face in faces])
    return found.images, found.held_out
