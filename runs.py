"""Find and read run folders: what the scripts at the top share.

What is missing, damaged or of an unknown kind is an InputError that names it.
"""

import importlib
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch  # slow to import, and not every script needs it

TOP = Path(__file__).resolve().parent
MODELS = ("simpleGAN", "DCGAN", "WGAN", "WGAN-GP")
FORMAT = 1  # of the run folders that these scripts understand
SETTINGS = ("data", "data_dir", "image_size", "channels", "batch_size", "epochs", "lr", "d_width")


class InputError(Exception):
    """Something the user gave cannot be used: one line that names it, exit code 2."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one line and an exit code where a traceback would help nobody."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a name may not fit the terminal's encoding
    try:
        yield
        return
    except InputError as error:
        code, line = 2, str(error)
    except OSError as error:
        code, line = 1, str(error)
    except (MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]  # only its words tell the kind of a RuntimeError
        told = any(f"{word} memory" in reason for word in ("allocate", "enough", "out of"))
        if not told and isinstance(error, RuntimeError):
            raise
        code, line = 1, f"not enough memory ({reason})"
    except KeyboardInterrupt:
        code, line = 130, "interrupted"
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(code)


def heed_signals() -> None:
    """Let the signals that end a program act as Ctrl-C, unless nohup has them ignored."""
    for name in {"SIGTERM", "SIGHUP", "SIGBREAK"} & {*dir(signal)}:
        if signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.default_int_handler)


def read_json(file: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON file that holds one object with these keys."""
    try:
        found = dict(json.loads(file.read_bytes()))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error})") from None
    if missing := [key for key in keys if key not in found]:
        raise InputError(f"{file} is damaged (it lacks {', '.join(missing)})")
    return found


def read_facts(run: Path) -> dict[str, Any]:
    """Read run.json of a format and a model that are known here."""
    facts = read_json(run / "run.json", "format", "model", "started")
    if facts["format"] != FORMAT or facts["model"] not in MODELS:
        about = f"format {facts['format']!r:.50}, model {facts['model']!r:.50}"
        raise InputError(f"{run / 'run.json'}: {about}; this program reads format {FORMAT}")
    return facts


def read_settings(run: Path) -> dict[str, Any]:
    """Read parameters.json, which holds at least what all models have."""
    return read_json(run / "parameters.json", *SETTINGS)


def images_per_step(run: Path) -> int:
    """Return how many real images one generator update of a run shows."""
    settings, processes = read_settings(run), read_facts(run).get("processes", 1)
    updates = settings.get("n_critic", settings.get("k", 1))  # of the discriminator or critic
    return settings["batch_size"] * updates * processes


def has_frames(run: Path) -> bool:
    """Tell whether a run has drawn its first frame yet."""
    return any((run / "frames").glob("[0-9]*.png"))


def frames_of(run: Path) -> list[Path]:
    """Return the frames, one at least, in order of steps, which are their names."""
    frames = sorted((run / "frames").glob("[0-9]*.png"), key=lambda frame: int(frame.stem))
    if not frames:
        raise InputError(f"{run}: there are no frames in it yet")
    return frames


def runs_in(folder: Path) -> list[Path]:
    """Return the run folders of a model folder, oldest first; name damaged ones on stderr."""
    found = []
    for file in (folder / "tensorboard" / "runs").glob("*/run.json"):
        try:
            found.append((read_facts(file.parent)["started"], file.parent))
        except InputError as error:
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
            raise InputError(f"{text}: no run yet; start one with: cd {text} && python train.py")
    named = [folder / text for folder in sorted(TOP.glob("*/tensorboard/runs"))]
    named = [str(run) for run in named if (run / "run.json").is_file()]
    if len(named) != 1:
        reason = f"several runs have this name: {', '.join(named)}"
        raise InputError(f"{text}: {reason if named else 'not a run, nor the name of one'}")
    return Path(named[0])


def find_runs(texts: list[str]) -> list[Path]:
    """Find the run of each text, none twice; without texts, the newest of every model folder."""
    found = [find_run(text) for text in texts]
    if not texts:
        models = sorted(file.parent for file in TOP.glob("*/train.py"))
        found = [run for model in models for run in runs_in(model)[-1:]]
    if not found:
        raise InputError("there is no run yet; start one with: cd DCGAN && python train.py")
    return list({run.resolve(): run for run in found}.values())


def find_weights(text: str) -> tuple[Path, Path | None]:
    """Find a generator's weights by their path, or by what `find_run` takes.

    Returns:
        The weights, and the run they belong to. This is None for a file that was named, and
        for a model without a run, which has its trained generator in assets/weights/.
    """
    if Path(text).is_file():
        return Path(text), None
    try:
        run = find_run(text)
    except InputError:
        included = TOP / "assets" / "weights" / f"{Path(text).name}.safetensors"
        if included.is_file():
            return included, None
        raise
    return run / "generator.safetensors", run


def load_file_of(model: str, name: str) -> ModuleType:
    """Import a file of one of this repository's model folders.

    Never one that lies beside somebody's run: that would run a stranger's code. Afterwards
    the names that four folders share stand for what they stood for before.
    """
    before = {shared: sys.modules.pop(shared, None) for shared in (name, "utils", "data", "model")}
    sys.path.insert(0, str(TOP / model))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOP / model))
        for shared, module in before.items():
            sys.modules.pop(shared, None)
            sys.modules.update({shared: module} if module else {})


def load_generator(file: Path) -> tuple["torch.nn.Module", dict[str, Any]]:
    """Build a trained generator, in eval mode on the CPU.

    Args:
        file: A generator.safetensors by whatever name, or a run folder that holds one.

    Returns:
        The generator, (B, z_dim) -> (B, C, H, W) in [-1, 1]; and what the file says about
        itself: `model`, `step`, `arguments` (z_dim, image_size, channels, width).
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    file = file / "generator.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        with safe_open(file, "pt") as saved:
            about = json.loads((saved.metadata() or {})["about"])
        if about["format"] != FORMAT or about["model"] not in MODELS:
            raise ValueError(f"format {about['format']}, model {about['model']}")
        with torch.device("meta"):  # takes no memory and draws no random numbers
            generator = load_file_of(about["model"], "model").Generator(**about["arguments"])
        # Read, not mapped: Windows could not replace the file while a training goes on.
        generator.load_state_dict(load(file.read_bytes()), assign=True)
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} is damaged, or not a generator from here ({reason})") from None
    return generator.float().eval(), about


def load_images(run: Path, more_faces: int = 2500) -> tuple["np.ndarray", "np.ndarray"]:
    """Return the images that a run was trained on, and others of their kind that it never saw.

    The second are those that --hold-out kept from it. If there are none, and the images are
    drawn faces, they are `more_faces` new ones.

    Returns:
        Two arrays, uint8 (N, H, W, C); the second may be empty.
    """
    facts, settings = read_facts(run), read_settings(run)
    size, channels, batch_size = (settings[n] for n in ("image_size", "channels", "batch_size"))
    place = settings["data_dir"] if Path(settings["data_dir"]).is_dir() else ""
    data, hold_out = load_file_of(facts["model"], "data"), settings.get("hold_out", 0)
    try:
        try:
            found = data.open_cache(run / facts.get("cache", ""), hold_out)
        except data.Damaged:  # it was deleted, or the run comes from elsewhere
            found = data.load_images(settings["data"], place, size, channels, batch_size, hold_out)
    except (data.InputError, data.RunError) as error:
        raise InputError(f"{run}: its images cannot be found again: {error}") from None
    if found.digest != facts["pictures"]["digest"]:
        raise InputError(f"{run}: the images are not those it was trained on")
    if more_faces and settings["data"] == "faces" and not len(found.held_out):
        faces = data.draw_faces(more_faces, size, seed=1)
        channels = found.images.shape[3]
        return found.images, np.stack([data.decode(face, size, channels) for face in faces])
    return found.images, found.held_out


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
    """Find a device by PyTorch's name for it, or the fastest as `auto`."""
    import torch

    if name == "auto":
        available = torch.accelerator.is_available()  # in torch 2.6, no argument of the next
        name = torch.accelerator.current_accelerator() if available else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available ({str(error).splitlines()[0]})") from None
