"""What the scripts at the top share: finding and reading run folders, and errors that name them."""

import importlib
import json
import re
import signal
import sys
import threading
from argparse import ArgumentTypeError
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
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
    """Return a model folder's utils.py, once the command line is read: it takes two seconds."""
    return load_file_of(models()[0], "utils")  # imports PyTorch


def seed(text: str) -> int:
    """Read a seed within the bounds of train.py, and in its words: the type of a flag."""
    if int(text) < 0:
        raise ArgumentTypeError(f"must be greater than or equal to 0, not {text}")
    if int(text) >= 2**32:
        raise ArgumentTypeError(f"must be less than or equal to {2**32 - 1}, not {text}")
    return int(text)


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
    """Read run.json of a format that is known here."""
    facts = read_json(run / "run.json", "format", "model", "started")
    if facts["format"] != utils().FORMAT:
        raise utils().InputError(f"{run / 'run.json'}: unknown format {facts['format']!r:.50}")
    return facts


def read_settings(run: Path) -> dict[str, Any]:
    """Read parameters.json, which holds at least what all models have."""
    return read_json(run / "parameters.json", *SETTINGS)


def images_per_step(run: Path) -> int:
    """Return how many real images one generator update of a run shows."""
    facts, settings = read_facts(run), read_settings(run)
    batches = settings.get("n_critic", settings.get("k", 1)) * facts.get("processes", 1)
    return facts.get("images_per_step", settings["batch_size"] * batches)  # new in run.json


def frames_of(run: Path) -> list[Path]:
    """Return the frames in order of steps, which are their names; a new run has none."""
    frames = [f for f in (run / "frames").glob("*.png") if re.fullmatch("[0-9]{6,}", f.stem)]
    return sorted(frames, key=lambda frame: int(frame.stem))


def runs_in(folder: Path) -> list[Path]:
    """Return the run folders of a model folder, oldest first; name damaged ones on stderr."""
    found = []
    for file in (folder / "tensorboard" / "runs").glob("*/run.json"):
        try:
            read_facts(file.parent)
            found.append((utils().started(file.parent), file.parent))
        except utils().InputError as error:
            print(f"skipped {error}", file=sys.stderr)
    return [run for _, run in sorted(found)]


def find_run(text: str) -> Path:
    """Find the one run of this path or name, or the newest of a model or a model folder."""
    if (Path(text) / "run.json").is_file():
        return Path(text)
    for folder in (Path(text), TOP / text):
        if (folder / "train.py").is_file():
            if found := runs_in(folder):
                return found[-1]
            raise utils().InputError(f"{text}: no run yet; start one: cd {text} && python train.py")
    found = [run for model in models() for run in runs_in(TOP / model) if run.name == text]
    if len(found) == 1:
        return found[0]
    reason = f"several runs have this name: {', '.join(map(str, found))}"
    raise utils().InputError(f"{text}: {reason if found else 'not a run, nor the name of one'}")


def find_runs(texts: list[str]) -> list[Path]:
    """Find the run of each text, none twice; without texts, the newest of every model folder."""
    newest = [] if texts else [run for model in models() for run in runs_in(TOP / model)[-1:]]
    found = [find_run(text) for text in texts] or newest
    if not found:
        raise utils().InputError("there is no run yet; start one with: cd DCGAN && python train.py")
    return list({run.resolve(): run for run in found}.values())


def find_weights(text: str) -> tuple[Path, Path | None]:
    """Find weights, and the run that has them, if any: of a model without runs, those included."""
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
    """Return the folder whose code a run needs: the user's --model-dir, or one of this repository.

    That is the one that the run lies in or the one called `model`, never one of a stranger.
    """
    if model_dir:
        return model_dir.resolve()
    for folder in ((run.resolve() / "../../..").resolve(), TOP / model):
        if folder in [TOP / name for name in models()]:
            return folder
    raise utils().InputError(f"{run}: there is no model {model} here; name its --model-dir")


def load_file_of(folder: str | Path, name: str) -> ModuleType:
    """Import a file of a model folder, for which `utils` and `model` are that folder's alone."""
    folder = TOP / folder  # an absolute path stays what it is
    if not (folder / f"{name}.py").is_file():
        raise utils().InputError(f"{folder}: there is no {name}.py in it")
    shared = {file.stem for file in folder.glob("*.py")}
    with LOADING:
        before = {name: sys.modules.pop(name) for name in shared & sys.modules.keys()}
        sys.path.insert(0, str(folder))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(folder))
            for own in shared & sys.modules.keys():
                del sys.modules[own]
            sys.modules.update(before)


def load_generator(file: Path, model_dir: Path | None = None) -> tuple[Any, dict[str, Any]]:
    """Build the generator of a file of weights or a run folder, in eval mode on the CPU.

    Returns:
        The generator, (B, z_dim) -> (B, C, H, W) in [-1, 1]; and what is known about it:
        `model`, `step`, `z_dim`, `image_size`, `channels`, the constructor's `arguments`.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    file = file / "generator.safetensors" if file.is_dir() else file
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
            image = generator(torch.zeros(1, about["z_dim"]))[0]
        about["channels"], about["image_size"], _ = image.shape
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, OSError) as error:
        line = f"{file}: damaged, or trained by another model.py ({error!s:.200})"
        raise utils().InputError(line) from None
    return generator, about


def load_images(run: Path, more_faces: int = 2500, model_dir: Path | None = None) -> tuple:
    """Return the images that a run was trained on, and others of their kind that it never saw.

    Both are arrays, uint8 (N, H, W, C). The second are those that --hold-out kept from it, or
    `more_faces` new ones if there are none and it was trained on drawn faces.
    """
    facts, settings = read_facts(run), read_settings(run)
    data = load_file_of(model_folder(facts["model"], run, model_dir), "data")
    place = settings["data_dir"] if Path(settings["data_dir"]).is_dir() else ""
    config = SimpleNamespace(**{"hold_out": 0} | settings | {"data_dir": place})
    try:
        found = data.open_cache(run / facts.get("cache", ""), config.hold_out)
        if found is None:  # it was deleted, or the run comes from elsewhere
            found = data.load_images(config)
    except (data.InputError, data.RunError) as error:
        raise utils().InputError(f"{run}: its images cannot be found again: {error}") from None
    if found.digest != facts["pictures"]["digest"]:
        raise utils().InputError(f"{run}: the images are not those it was trained on")
    if len(found.held_out) or not more_faces or settings["data"] != "faces":
        return found.images, found.held_out
    size, channels = found.images.shape[2:]
    faces = data.draw_faces(more_faces, size, seed=1)
    return found.images, np.stack([data.decode(face, size, channels) for face in faces])
