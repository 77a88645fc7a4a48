"""Six steps of each train.py against the same algorithm written from the paper."""

import csv

import numpy as np
import oracles
import pytest
import torch
from conftest import FOLDERS, train
from PIL import Image

STEPS = 6
TOLERANCE = 0.1
SHARED = {"z_dim": 100, "batch_size": 64, "seed": 0, "hold_out": 0, "image_size": 16, "channels": 3}
WIDTHS = {"g_width": 64, "d_width": 64}
DEFAULTS = {  # design: the user's settings; where a flag is not given, this is what runs
    "simpleGAN": SHARED
    | {"z_dim": 64, "g_width": 128, "d_width": 128, "lr": 5e-5, "beta1": 0.9, "beta2": 0.999}
    | {"k": 1, "minimax": False, "dropout": 0.3},
    "DCGAN": SHARED | {"g_width": 128, "d_width": 64, "lr": 5e-5, "beta1": 0.5, "beta2": 0.999},
    "WGAN": SHARED | WIDTHS | {"lr": 5e-5, "n_critic": 5, "clip_value": 0.01},
    "WGAN-GP": SHARED
    | WIDTHS
    | {"lr": 1e-4, "beta1": 0.0, "beta2": 0.9, "n_critic": 5, "lambda_gp": 10.0},
}
OTHERS = {"z_dim": 6, "g_width": 3, "d_width": 5, "batch_size": 7, "seed": 11, "hold_out": 9}
OTHERS |= {"image_size": 32, "channels": 1, "lr": 3e-3}
ADAM = {"beta1": 0.6, "beta2": 0.95}
CASES = [(folder, {"image_size": 16}) for folder in FOLDERS]
CASES += [
    ("simpleGAN", OTHERS | ADAM | {"k": 2, "minimax": True, "dropout": 0.1}),
    ("simpleGAN", OTHERS | ADAM | {"seed": 2**32 - 1, "dropout": 0.0, "beta1": 0.0}),
    ("DCGAN", OTHERS | ADAM),
    ("WGAN", OTHERS | {"n_critic": 2, "clip_value": 0.2, "lr": 1e-3}),
    ("WGAN-GP", OTHERS | ADAM | {"n_critic": 3, "lambda_gp": 2.5}),
]


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Eighty noisy images of both sizes, which no scaling touches."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    for size, count in ((16, 80), (32, 34)):
        (folder / str(size)).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 256, (size, size, 3)) // (1 + i % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / str(size) / f"{i}.png")
    return folder


def tensors(network, averages):
    """All tensors; without running averages where the norms keep none."""
    return [t.detach() for layer in network for t in (layer if averages else layer[:2])]


def check(saved, network, first):
    """Compare a state dict with the oracle's network, tensor by tensor, up to rounding.

    A gradient that is nearly 0 has a sign by chance, and RMSProp and Adam take a whole step
    along it: one weight in a thousand differs by that, which the norm of the change absorbs.
    """
    names = [name for name in saved if not name.endswith("num_batches_tracked")]
    averages = any(name.endswith("running_var") for name in names)
    networks = tensors(network, averages), tensors(first, averages)
    for name, expected, start in zip(names, *networks, strict=True):
        moved = (expected - start).norm()
        assert moved > 0, name
        assert (saved[name] - expected).norm() < TOLERANCE * moved, name
    return [saved[name] for name in saved if name.endswith("num_batches_tracked")]


@pytest.mark.parametrize("folder, changes", CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_six_steps_are_the_papers(folder, changes, colours, tmp_path):
    settings = DEFAULTS[folder] | changes
    side, channels = settings["image_size"], settings["channels"]
    files = oracles.image_order((colours / str(side)).glob("*.png"))
    images = oracles.stack(files, side, channels)[: len(files) - settings["hold_out"]]

    where = {"data": colours / str(side), "data_dir": tmp_path, "runs_dir": tmp_path / "runs"}
    limits = {"max_steps": STEPS} if changes == {"image_size": 16} else {"epochs": 2}
    every = {"log_every": 4, "device": "cpu", "precision": "fp32"}
    run = train(folder, changes | where | limits | every)

    def oracle(steps):
        torch.manual_seed(settings["seed"])
        batches = oracles.minibatches(images, settings["batch_size"], settings["seed"])
        return oracles.ORACLES[folder](batches, settings, steps)

    *networks, rows = oracle(STEPS)
    *first, _ = oracle(0)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert state["step"] == STEPS
    other = "critic" if folder.startswith("WGAN") else "discriminator"
    updates = settings.get("n_critic", settings.get("k", 1))
    generators, opponents = zip(networks, first, strict=True)
    for count in check(state["generator"], *generators):
        assert count == STEPS * (updates + 1)
    for count in check(state[other], *opponents):
        assert count == STEPS * (2 * updates + 1)

    with open(run / "metrics.csv", newline="") as file:
        logged = list(csv.DictReader(file))
    assert [row["step"] for row in logged] == ["4", "6"]
    for row, steps in zip(logged, (rows[:4], rows[4:]), strict=True):
        assert set(row) == {"step", "epoch", "images", "seconds", *steps[0]}
        assert int(row["images"]) == int(row["step"]) * updates * settings["batch_size"]
        per_epoch = len(images) // settings["batch_size"]
        assert float(row["epoch"]) == pytest.approx(int(row["step"]) / per_epoch, abs=1e-4)
        for name in steps[0]:
            mean = np.mean([step[name].item() for step in steps])
            near = 1e-3 if name == "clipped" else 1e-5  # one weight at the bound is 2e-4
            assert float(row[name]) == pytest.approx(mean, rel=1e-3, abs=near), name
