"""What the tests share: loading a model folder by path, and tiny trainings."""

import csv
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import programs
import pytest
import torch
from PIL import Image

TOP = Path(__file__).resolve().parent.parent
FOUR = ("simpleGAN", "DCGAN", "WGAN", "WGAN-GP")  # what a paper says is asked of these alone
FOLDERS = sorted(
    {file.parent.name for file in TOP.glob("[!.]*/train.py")},
    key=lambda folder: (FOUR.index(folder) if folder in FOUR else len(FOUR), folder),
)
FILES = ("utils", "data", "model", "train")
TINY = {
    **{"image_size": 16, "g_width": 4, "d_width": 4, "z_dim": 8, "batch_size": 8},
    **{"log_every": 2, "frame_every": 2, "checkpoint_every": 2},
    **{"device": "cpu", "precision": "fp32"},
}
LOADED = {}

sys.path.insert(0, str(TOP))  # for the scripts at the top
# Tiny networks: a second thread costs more than it brings, in programs that tests start too.
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
torch.set_num_threads(1)
# nohup and background jobs ignore these, and programs that tests start would inherit that.
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", lambda *_: None)):
    if getattr(signal, name, None) and signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        signal.signal(getattr(signal, name), handler)


def load(folder: str) -> SimpleNamespace:
    """Import the files of one model folder, and make them the ones that their names stand for."""
    for name in FILES:
        sys.modules.pop(name, None)
    if folder not in LOADED:
        sys.path.insert(0, str(TOP / folder))
        LOADED[folder] = SimpleNamespace(**{name: importlib.import_module(name) for name in FILES})
        LOADED[folder].folder = folder
        sys.path.remove(str(TOP / folder))
    sys.modules.update({name: getattr(LOADED[folder], name) for name in FILES})
    return LOADED[folder]


def parse(files, *argv):
    return files.utils.parse_config(files.train.Config, list(map(str, argv)))


def flags_of(settings: dict) -> list[str]:
    flags = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        switch = "--" if value is True else "--no-"
        flags.append(f"{switch}{flag}" if isinstance(value, bool) else f"--{flag}={value}")
    return flags


def train(folder: str, settings: dict) -> Path:
    """Train as the command line would, in this process; return the run folder."""
    files = load(folder)
    return files.train.train(parse(files, *flags_of(settings)))


def each_step(files, monkeypatch, act) -> None:
    """Call act(number, generator, its opponent, losses) after each update of the generator."""
    step, numbers = files.train.generator_step, itertools.count(1)

    def watched(opponent, generator, *rest):
        losses = step(opponent, generator, *rest)
        act(next(numbers), generator, opponent, losses)
        return losses

    monkeypatch.setattr(files.train, "generator_step", watched)


def run_script(script: Path, *arguments, cwd=None, **environment) -> subprocess.CompletedProcess:
    """Run a program as a user would; arguments that are dictionaries are settings."""
    flags = (flags_of(a) if isinstance(a, dict) else [str(a)] for a in arguments)
    arguments, environment = [*itertools.chain(*flags)], os.environ | environment
    if not hasattr(os, "fork"):
        pipes = {"cwd": cwd, "env": environment, "capture_output": True, "text": True}
        return subprocess.run([sys.executable, str(script), *arguments], timeout=180, **pipes)
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("out", "err")]
        process = programs.start(script, arguments, cwd, environment, said)
        process.join(180)
        process.kill()
        texts = [file.read_text() for file in said]
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def load_images(files, data, data_dir, size=16, channels="data", batch_size=1, hold_out=0):
    """Decode images as a training with these settings would."""
    names = ("data", "data_dir", "image_size", "channels", "batch_size", "hold_out")
    values = (str(data), str(data_dir), size, channels, batch_size, hold_out)
    return files.data.load_images(SimpleNamespace(**dict(zip(names, values, strict=True))))


def rows_of(run: Path, *but: str) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in but} for row in csv.DictReader(file)]


def facts_of(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def state_of(run: Path) -> dict:
    return torch.load(run / "checkpoint.pt", weights_only=True)


def assert_equal(one: Path, other: Path) -> None:
    """Assert that two runs hold the same but for times and settings."""
    assert rows_of(one, "seconds") == rows_of(other, "seconds")
    states, files = [], []
    for run in (one, other):
        kept = [run / "generator.safetensors", *sorted((run / "frames").iterdir())]
        files.append([(file.name, file.read_bytes()) for file in kept])
        states.append(state_of(run))
        del states[-1]["seconds"], states[-1]["settings"]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert files[0] == files[1]


def write_images(folder: Path, images) -> Path:
    """Write images, uint8 (N, H, W, C), or noise of this shape, as 0.png, 1.png and so on."""
    folder.mkdir(parents=True)
    for i, image in enumerate(noise_images(*images) if isinstance(images, tuple) else images):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def noise_images(*shape: int) -> np.ndarray:
    """Draw images of noise, uint8 (N, H, W, C), no two alike."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture(params=FOLDERS)
def files(request) -> SimpleNamespace:
    """Run a test once for every model folder."""
    return load(request.param)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tiny(data_dir, tmp_path) -> dict:
    return TINY | {"max_steps": 4, "data_dir": data_dir, "runs_dir": str(tmp_path / "runs")}
