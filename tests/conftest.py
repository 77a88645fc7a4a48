"""What the tests share: loading a model folder by path, and tiny settings."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

TOP = Path(__file__).resolve().parent.parent
FOLDERS = ("simpleGAN", "DCGAN", "WGAN", "WGAN-GP")
FILES = ("utils", "data", "model", "train")
LOADED = {}

sys.path.insert(0, str(TOP))  # for runs, make_gif
torch.set_num_threads(1)  # tiny nets: a second thread costs more than it brings


def load(folder: str) -> SimpleNamespace:
    """Import the files of one model folder, and make them the ones that their names stand for."""
    for name in FILES:
        sys.modules.pop(name, None)
    if folder not in LOADED:
        sys.path.insert(0, str(TOP / folder))
        LOADED[folder] = SimpleNamespace(**{name: importlib.import_module(name) for name in FILES})
        sys.path.remove(str(TOP / folder))
    sys.modules.update(vars(LOADED[folder]))
    return LOADED[folder]


def make_critic(files: SimpleNamespace, size: int, channels: int, width: int):
    """Build the generator's opponent."""
    if hasattr(files.model, "Critic"):
        return files.model.Critic(size, channels, width)
    extra = {"dropout": 0.3} if hasattr(files.train.Config(), "dropout") else {}
    return files.model.Discriminator(size, channels, width, **extra)


def critic_step(files: SimpleNamespace):
    """Return the function that moves the generator's opponent."""
    return getattr(files.train, "critic_step", None) or files.train.discriminator_step


@pytest.fixture(params=FOLDERS)
def files(request) -> SimpleNamespace:
    """Run a test once for every model folder."""
    return load(request.param)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    """Share one cache of drawn faces."""
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tiny(data_dir, tmp_path):
    """Return a function that makes tiny settings for a folder's files."""

    def make(files: SimpleNamespace, **changes):
        settings = {
            "image_size": 16,
            "g_width": 4,
            "d_width": 4,
            "z_dim": 8,
            "batch_size": 8,
            "max_steps": 4,
            "log_every": 2,
            "frame_every": 2,
            "checkpoint_every": 2,
            "device": "cpu",
            "data_dir": data_dir,
            "runs_dir": str(tmp_path / "runs"),
        }
        return files.train.Config(**settings | changes)

    return make
