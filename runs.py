"""Find and read run folders: what the scripts at the top share. Nothing here imports a train.py."""

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


class InputError(Exception):
    """Something the user gave cannot be used: one line that names it, exit code 2."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one line and an exit code where a traceback would help nobody."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a name may not fit the terminal's encoding
    try:
        yield
        sys.stdout.flush()
        return
    except InputError as error:
        code, line = 2, str(error)
    except BrokenPipeError:  # the reader has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        raise SystemExit(141) from None  # as if by SIGPIPE
    except (OSError, MemoryError) as error:
        code, line = 1, str(error) or "out of memory"
    except KeyboardInterrupt:
        code, line = 130, "interrupted"
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(code)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{file} is damaged (not a JSON object)")
    return found


def read_facts(run: Path) -> dict[str, Any]:
    """Read run.json.

    Raises:
        InputError: It is missing, damaged, or of a format or model that is not known here.
    """
    facts = read_json(run / "run.json")
    if facts.get("format") != FORMAT:
        raise InputError(f"{run}: its format is {facts.get('format')}; this program reads {FORMAT}")
    if facts.get("model") not in MODELS or "started" not in facts:
        raise InputError(f"{run / 'run.json'} is damaged (model {facts.get('model')!r:.50})")
    return facts


def read_settings(run: Path) -> dict[str, Any]:
    """Read parameters.json."""
    return read_json(run / "parameters.json")


def images_per_step(run: Path) -> int:
    """Return how many real images one generator update of a run shows."""
    settings, processes = read_settings(run), read_facts(run).get("processes", 1)
    updates = settings.get("n_critic", settings.get("k", 1))  # of the discriminator or critic
    return settings["batch_size"] * updates * processes


def frames_of(run: Path) -> list[Path]:
    """Return the frames in order of steps; a frame's name is its step.

    Raises:
        InputError: There are none.
    """
    frames = [file for file in (run / "frames").glob("*.png") if file.stem.isdecimal()]
    if not frames:
        raise InputError(f"{run}: there are no frames in it yet")
    return sorted(frames, key=lambda frame: int(frame.stem))


def runs_in(folder: Path) -> list[Path]:
    """Return the run folders of a model folder, whatever it is called, oldest first."""
    found = (folder / "tensorboard" / "runs").glob("*/run.json")
    return sorted((file.parent for file in found), key=lambda run: read_facts(run)["started"])


def find_run(text: str) -> Path:
    """Find a run by its path, by its name, or as the newest of a model or a model folder.

    Raises:
        InputError: There is none, or there are several of that name.
    """
    path = Path(text)
    if (path / "run.json").is_file():
        return path
    folder = path if (path / "train.py").is_file() else TOP / text
    if (folder / "train.py").is_file():
        if runs := runs_in(folder):
            return runs[-1]
        raise InputError(f"{text}: no run yet; start one with: cd {text} && python train.py")
    named = [file.parent for file in TOP.glob("*/tensorboard/runs/*/run.json")]
    named = sorted(run for run in named if run.name == text)
    if len(named) > 1:
        raise InputError(f"{text}: several runs have this name: {', '.join(map(str, named))}")
    if not named:
        reason = "it has no run.json" if path.is_dir() else "no such folder and no run of this name"
        raise InputError(f"{text}: not a run ({reason})")
    return named[0]


def find_weights(text: str) -> tuple[Path, Path | None]:
    """Find a generator's weights by their path, or by what `find_run` takes.

    A model without a run has the trained generator in assets/weights/.

    Returns:
        The weights, and the run they belong to; None for a bare file.
    """
    path, included = Path(text), TOP / "assets" / "weights" / f"{Path(text).name}.safetensors"
    if path.is_file():
        return path, None
    folder = path if (path / "train.py").is_file() else TOP / text
    a_model = (folder / "train.py").is_file() and not (path / "run.json").is_file()
    if a_model and included.is_file() and not runs_in(folder):
        return included, None
    run = find_run(text)
    return run / "generator.safetensors", run


def load_file_of(model: str, name: str) -> ModuleType:
    """Import model.py or data.py of one of this repository's model folders, by its path.

    Never one that lies beside somebody's run: that would run a stranger's code. What it
    imports from its folder does not stay behind under a name that four folders share.
    """
    shared = ("utils", "data", "model")
    kept = {other: sys.modules.pop(other) for other in shared if other in sys.modules}
    spec = importlib.util.spec_from_file_location(name, TOP / model / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(TOP / model))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOP / model))
        for other in shared:
            sys.modules.pop(other, None)
        sys.modules.update(kept)
    return module


def load_generator(file: Path) -> tuple["nn.Module", dict[str, Any]]:
    """Build a trained generator, in eval mode on the CPU.

    Args:
        file: A generator.safetensors by whatever name, or a run folder that holds one.

    Returns:
        The generator, (B, z_dim) -> (B, C, H, W) in [-1, 1]; and what the file says about
        itself: `model`, `step`, `arguments` (z_dim, image_size, channels, width).

    Raises:
        InputError: There is no such file, it is damaged, or it is not a generator from here.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    file = file / "generator.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        with safe_open(file, "pt") as saved:
            about = json.loads((saved.metadata() or {})["about"])
            if about["format"] != FORMAT or about["model"] not in MODELS:
                raise ValueError(f"format {about['format']}, model {about['model']}")
            shapes = {name: saved.get_slice(name).get_shape() for name in saved.keys()}  # noqa: SIM118
            with torch.device("meta"):  # takes no memory until names and shapes have matched
                generator = load_file_of(about["model"], "model").Generator(**about["arguments"])
            if shapes != {name: list(t.shape) for name, t in generator.state_dict().items()}:
                raise ValueError("its weights do not fit the generator that it describes")
            generator.to_empty(device="cpu")
            for name, tensor in generator.state_dict().items():
                tensor.copy_(saved.get_tensor(name))
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} is damaged, or not a generator from here ({reason})") from None
    return generator.eval(), about


def load_images(run: Path) -> tuple["np.ndarray", "np.ndarray"]:
    """Return the images that a run was trained on, and others of their kind that it never saw.

    The second are those that --hold-out kept from it. Without it there are none, except for
    the drawn faces, of which 2,500 more are drawn.

    Returns:
        Two arrays, uint8 (N, H, W, C); the second may be empty.

    Raises:
        InputError: The images cannot be found, or have changed since.
    """
    import numpy as np

    facts, settings = read_facts(run), read_settings(run)
    data = load_file_of(facts["model"], "data")
    names = ("data", "data_dir", "image_size", "channels", "batch_size", "hold_out")
    asked = {name: settings.get(name, 0) for name in names}
    try:
        try:
            found = data.open_cache(run / facts.get("cache", ""), asked["hold_out"])
        except data.Damaged:  # it was deleted, or the run comes from elsewhere
            if not Path(asked["data_dir"]).is_dir():
                asked["data_dir"] = ""
            found = data.load_images(**asked)
    except (data.InputError, data.RunError) as error:
        raise InputError(f"{run}: its images cannot be found again: {error}") from None
    if found.digest != facts["pictures"]["digest"]:
        raise InputError(f"{run}: the images are not those it was trained on")
    held_out = found.held_out
    if not len(held_out) and settings["data"] == "faces":
        size, channels = found.images.shape[2:]
        more = data.draw_faces(2500, size, seed=1)
        held_out = np.stack([data.decode(face, size, channels) for face in more])
    return found.images, held_out


@contextmanager
def write_aside(path: Path) -> Iterator[IO[bytes]]:
    """Write a file under another name until it is whole; its folder need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    try:
        with open(aside, "wb") as file:
            yield file
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def pick_device(name: str) -> "torch.device":
    """Find a device by PyTorch's name for it; `auto` is the fastest available.

    Raises:
        InputError: There is no such device.
    """
    import torch

    if name == "auto":
        # torch 2.6's current_accelerator() takes no argument
        available = torch.accelerator.is_available()
        return torch.accelerator.current_accelerator() if available else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name}: not available ({reason})") from None
    return device
