"""Read run folders: what the scripts at the top share. Nothing here imports a train.py."""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

TOP = Path(__file__).resolve().parent
MODELS = ("simpleGAN", "DCGAN", "WGAN", "WGAN-GP")
FORMAT = 1  # of the run folders that these scripts understand
IMAGE_SIZES = (16, 32, 64, 128, 256, 512, 1024)


class InputError(Exception):
    """Something the user gave cannot be used: one line that names it, exit code 2."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one line and an exit code where a traceback would help nobody."""
    try:
        yield
        sys.stdout.flush()
        return
    except InputError as error:
        code, line = 2, str(error)
    except BrokenPipeError:  # whoever read along has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        raise SystemExit(141) from None  # as if by SIGPIPE
    except (OSError, MemoryError) as error:
        code, line = 1, str(error) or "out of memory"
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not be there
            raise
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


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that anybody may have written, and whose top is an object.

    Raises:
        InputError: it is not there, too large to be one of ours, or damaged.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        if file.stat().st_size > 2**20:
            raise ValueError("it is larger than a megabyte")
        found = json.loads(file.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error})") from None
    return found


def check_types(file: Path, found: dict[str, Any], kinds: dict[str, type]) -> None:
    """Raise InputError if a value that is there has another type than it must have."""
    for name, kind in kinds.items():
        value = found.get(name)
        if name in found and (type(value) is not kind or (kind is int and value < 0)):
            raise InputError(f"{file} is damaged ({name}: {repr(value)[:50]})")


def read_facts(run: Path) -> dict[str, Any]:
    """Read run.json.

    Raises:
        InputError: it is damaged, or of a format or a model that these scripts do not know.
    """
    file = run / "run.json"
    facts = read_object(file)
    if facts.get("format", FORMAT) != FORMAT:
        raise InputError(f"{run}: its format is {facts['format']}; this program reads {FORMAT}")
    for name in ("format", "model", "started"):
        if name not in facts:
            raise InputError(f"{file} is damaged (no {name})")
    check_types(file, facts, {"model": str, "started": str, "cache": str, "pictures": dict})
    if facts["model"] not in MODELS:
        raise InputError(f"{run}: there is no model {facts['model']!r} here")
    return facts


def read_settings(run: Path) -> dict[str, Any]:
    """Read parameters.json.

    Raises:
        InputError: it is damaged.
    """
    file = run / "parameters.json"
    settings = read_object(file)
    numbers = ("batch_size", "image_size", "z_dim", "n_critic", "k", "hold_out")
    check_types(file, settings, {"data": str, "data_dir": str} | dict.fromkeys(numbers, int))
    return settings


def frames_of(run: Path) -> list[Path]:
    """Return the frames in order of steps.

    Raises:
        InputError: there are none.
    """
    found = (file for file in (run / "frames").glob("*.png") if file.stem.isdecimal())
    frames = sorted(found, key=step_of)
    if not frames:
        raise InputError(f"{run}: there are no frames in it yet")
    return frames


def step_of(frame: Path) -> int:
    """Return the number of generator updates before a frame: it is the frame's name."""
    return int(frame.stem)


def images_per_step(run: Path) -> int:
    """Return how many real images one generator update of a run shows."""
    settings = read_settings(run)
    if "batch_size" not in settings:
        raise InputError(f"{run}/parameters.json is damaged (no batch_size)")
    return settings["batch_size"] * settings.get("n_critic", settings.get("k", 1))


def load_file_of(model: str, name: str) -> ModuleType:
    """Import model.py or data.py of one of this repository's model folders, by its path.

    Never one that lies beside somebody's run: that would be running a stranger's code.
    """
    if model not in MODELS:
        raise InputError(f"there is no model {model!r} here")
    folder = TOP / model
    spec = importlib.util.spec_from_file_location(f"{name} of {model}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))  # data.py imports the utils.py beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


def load_generator(path: Path) -> tuple["nn.Module", dict[str, Any]]:
    """Build a trained generator, in eval mode on the CPU.

    Args:
        path: a run folder, or a generator.safetensors by whatever name.

    Returns:
        The generator, (B, z_dim) -> (B, C, H, W) in [-1, 1]; and what its file says of
        itself: `format`, `model`, `step`, and `arguments` (z_dim, image_size, channels, width).

    Raises:
        InputError: there is no such file, it is damaged, or it is not one of ours.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    file = path / "generator.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        with safe_open(file, "pt") as weights:
            about = json.loads((weights.metadata() or {})["about"])
            if about["format"] != FORMAT:
                raise InputError(f"{file}: its format is {about['format']}, not {FORMAT}")
            if about["model"] not in MODELS:
                raise InputError(f"{file}: there is no model {about['model']!r} here")
            check_arguments(about["arguments"])
            make = load_file_of(about["model"], "model").Generator
            with torch.device("meta"):  # takes no memory until names and shapes have matched
                generator = make(**about["arguments"])
            wanted = {name: list(t.shape) for name, t in generator.state_dict().items()}
            found = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
            if wanted != found:
                raise InputError(f"{file}: its weights do not belong to the generator it describes")
            generator.to_empty(device="cpu")
            for name, tensor in generator.state_dict().items():
                tensor.copy_(weights.get_tensor(name))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} is damaged, or no generator of ours ({reason})") from None
    return generator.eval(), about


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise ValueError unless a generator of such sizes could be one of ours."""
    if not isinstance(arguments, dict):
        raise ValueError("its arguments are no JSON object")
    for name, value in arguments.items():
        possible = {"image_size": IMAGE_SIZES, "channels": (1, 3)}.get(name, range(1, 2**14))
        if type(value) is not int or value not in possible:
            raise ValueError(f"{name}: {repr(value)[:50]}")


def load_pictures(run: Path) -> tuple["np.ndarray", "np.ndarray"]:
    """Return what a run was trained on, and pictures of the same kind that it has never seen.

    The second are those that --hold-out kept from it. Without it there are none, but for the
    drawn faces, of which 2,500 more are drawn.

    Returns:
        Two arrays, uint8 (N, H, W, C); the second may be empty.

    Raises:
        InputError: the pictures cannot be found, or have changed since.
    """
    import numpy as np

    facts, settings = read_facts(run), read_settings(run)
    names = ("data", "data_dir", "image_size", "channels", "batch_size")
    shape = facts.get("pictures", {}).get("shape")
    if (
        not settings.keys() >= set(names)
        or settings["image_size"] not in IMAGE_SIZES
        or settings["channels"] not in ("data", 1, 3)
        or not isinstance(shape, list)
        or shape[1:2] != [settings["image_size"]]
    ):
        raise InputError(f"{run}: run.json and parameters.json do not tell of its pictures")
    data = load_file_of(facts["model"], "data")
    hold_out = settings.get("hold_out", 0)
    try:
        try:
            found = data.open_cache(run / facts.get("cache", ""), hold_out)
        except data.Damaged:  # it was deleted, or the run comes from elsewhere
            root = settings["data_dir"]  # only one that is there: a stranger may have named it
            root = root if root and Path(root).is_dir() else str(TOP / facts["model"] / "data")
            text, _, *how = (settings[name] for name in names)
            beside = TOP / facts["model"] / text  # the training was started there, most likely
            text = str(beside) if beside.exists() and not Path(text).exists() else text
            found = data.load_pictures(text, root, *how, hold_out)
    except (data.InputError, data.RunError) as error:
        raise InputError(f"{run}: its pictures cannot be found again: {error}") from None
    if found.digest != facts["pictures"].get("digest") or list(found.images.shape) != shape:
        raise InputError(f"{run}: the pictures are not those it was trained on")
    held_out = found.held_out
    if not len(held_out) and settings["data"] == "faces":
        size = settings["image_size"]
        held_out = np.stack(list(data.draw_faces(2500, size, seed=1)))
        if settings["channels"] == 1:
            held_out = np.stack([data.decode(face, size, 1) for face in held_out])
    return found.images, held_out


@contextmanager
def write_aside(path: Path) -> Iterator[IO[bytes]]:
    """Write a file, in a folder that need not exist, under another name until it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    try:
        with open(aside, "wb") as file:
            yield file
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def find_weights(text: str) -> tuple[Path, Path | None]:
    """Find a generator's weights by their path, or by what `find_run` takes.

    A model that has no run yet has those in assets/weights/, if they are there.

    Returns:
        The weights, and the run that they are of; None for a bare file.

    Raises:
        InputError: there is no such file and no such run.
    """
    path = Path(text)
    if path.is_file():
        return path, None
    in_folder = path.resolve().name in MODELS and (path / "train.py").is_file()
    if in_folder or text in MODELS:
        model, top = path.resolve().name, path.resolve().parent if in_folder else TOP
        shipped = TOP / "assets" / "weights" / f"{model}.safetensors"
        if shipped.is_file() and not model_runs(model, top):
            return shipped, None
    run = find_run(text)
    return run / "generator.safetensors", run


def pick_device(name: str) -> "torch.device":
    """Find a device by torch's name for it: cpu, cuda, cuda:1, mps ...; auto is the fastest.

    Raises:
        InputError: there is no such device here.
    """
    import torch

    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name}: not to be had here ({reason})") from None
    return device
