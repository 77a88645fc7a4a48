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
    """Return a model folder's utils.py: errors, files and devices are as in training.

    It imports PyTorch, which takes two seconds. A script reads its command line before it calls
    this, so that --help and a wrong flag are answered at once.
    """
    return load_file_of(models()[0], "utils")


def command_line(about: str) -> ArgumentParser:
    """Begin the command line of a script with this docstring; its errors are one line."""
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
    facts, known = read_json(run / "run.json", "format", "model", "started"), utils().FORMAT
    try:
        if facts["format"] != known:
            raise ValueError(f"format {facts['format']!r:.50}, not {known}")
        facts["started"] = datetime.fromisoformat(facts["started"]).astimezone()
        facts["model"] = str(facts["model"])
    except (TypeError, ValueError) as error:
        raise utils().InputError(f"{run / 'run.json'} cannot be understood ({error})") from None
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
    if (Path(text) / "run.json").is_file():
        return Path(text)
    for folder in (Path(text), TOP / text):
        if (folder / "train.py").is_file():
            if found := runs_in(folder):
                return found[-1]
            reason = f"no run yet; start one with: cd {text} && python train.py"
            raise utils().InputError(f"{text}: {reason}")
    found = [run for model in models() for run in runs_in(TOP / model) if run.name == text]
    if len(found) == 1:
        return found[0]
    reason = f"several runs have this name: {', '.join(map(str, found))}"
    raise utils().InputError(f"{text}: {reason if found else 'not a run, nor the name of one'}")


def find_runs(texts: list[str]) -> list[Path]:
    """Find the run of each text, none twice; without texts, the newest of every model folder."""
    found = [find_run(text) for text in texts]
    if not texts:
        found = [run for model in models() for run in runs_in(TOP / model)[-1:]]
    if not found:
        raise utils().InputError("there is no run yet; start one with: cd DCGAN && python train.py")
    return list({run.resolve(): run for run in found}.values())


def find_weights(text: str) -> tuple[Path, Path | None]:
    """Find weights, and the run that has them, if any: of a model without runs, those included."""
    if Path(text).is_file():
        return Path(text), None
    included = TOP / "assets" / "weights" / f"{Path(text).name}.safetensors"
    try:
        run = find_run(text)
    except utils().InputError:
        if included.is_file():
            return included, None
        raise
    return run / "generator.safetensors", run


def model_folder(model: str, run: Path, model_dir: Path | None = None) -> Path:
    """Return the folder whose code fits a run: `model_dir` if the user names one (--model-dir).

    Otherwise it is a folder of this repository: the one that the run lies in, or the one called
    `model`. It is never one beside a run from elsewhere, whose code is a stranger's.
    """
    if model_dir:
        return model_dir.resolve()
    for folder in ((run.resolve() / "../../..").resolve(), TOP / model):
        if folder in [TOP / name for name in models()]:
            return folder
    reason = f"no model {model} here; name the folder that trained it with --model-dir"
    raise utils().InputError(f"{run}: {reason}")


def load_file_of(folder: str | Path, name: str) -> ModuleType:
    """Import a file of a model folder, which imports the other files of this folder alone.

    Afterwards the names that model folders share stand for what they stood for before.
    """
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
        reason = f"damaged, or not trained by the model.py of its folder ({error})"
        raise utils().InputError(f"{file}: {reason:.300}") from None
    return generator, about


def load_images(run: Path, more_faces: int = 2500, model_dir: Path | None = None) -> tuple:
    """Return the images that a run was trained on, and others of their kind that it never saw.

    The second are those that --hold-out kept from it. If there are none, and the images are
    drawn faces, they are `more_faces` new ones.

    Returns:
        Two arrays, uint8 (N, H, W, C); the second may be empty.
    """
    facts, settings = read_facts(run), read_settings(run)
    data = load_file_of(model_folder(facts["model"], run, model_dir), "data")
    size, channels, batch_size = (settings[n] for n in ("image_size", "channels", "batch_size"))
    place = settings["data_dir"] if Path(settings["data_dir"]).is_dir() else ""
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
