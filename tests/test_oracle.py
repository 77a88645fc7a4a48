"""Six steps of each train.py against the same algorithm written from the paper."""

from dataclasses import asdict

import numpy as np
import oracles
import pytest
import torch
from conftest import FOLDERS, checkpoint_of, load, rows_of, train, write_images

STEPS = 6
TOLERANCE = 0.1
OTHERS = {"z_dim": 6, "g_width": 3, "d_width": 5, "batch_size": 7, "seed": 11, "hold_out": 9}
OTHERS |= {"image_size": 32, "channels": 1, "lr": 3e-3}
ADAM = {"beta1": 0.6, "beta2": 0.95}
CASES = [(folder, {"image_size": 16}) for folder in FOLDERS]
CASES += [
    ("simpleGAN", OTHERS | ADAM | {"k": 2, "minimax": True, "dropout": 0.1}),
    ("simpleGAN", OTHERS | ADAM | {"seed": 2**32 - 1, "dropout": 0.0, "beta1": 0.0}),
    ("DCGAN", OTHERS | ADAM),
    ("DCGAN", OTHERS | ADAM | {"r1": 2.0}),
    ("WGAN", OTHERS | {"n_critic": 2, "clip_value": 0.2, "lr": 1e-3}),
    ("WGAN-GP", OTHERS | ADAM | {"n_critic": 3, "lambda_gp": 2.5}),
]


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """Eighty noisy images of both sizes, which no scaling touches."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    for size, count in ((16, 80), (32, 34)):
        images = [rng.integers(0, 256, (size, size, 3)) // (1 + i % 3) for i in range(count)]
        write_images(folder / str(size), np.array(images, np.uint8))
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
def test_six_steps_are_the_papers(folder, changes, colors, tmp_path):
    defaults = asdict(load(folder).train.Config())  # which test_algorithm.py pins
    settings = defaults | {"image_size": 16, "channels": 3} | changes
    side, channels = settings["image_size"], settings["channels"]
    files = oracles.image_order((colors / str(side)).glob("*.png"))
    images = oracles.stack(files, side, channels)[: len(files) - settings["hold_out"]]

    where = {"data": colors / str(side), "data_dir": tmp_path, "runs_dir": tmp_path / "runs"}
    limits = {"max_steps": STEPS} if changes == {"image_size": 16} else {"epochs": 2}
    every = {"log_every": 4, "device": "cpu", "precision": "fp32"}
    run = train(folder, changes | where | limits | every)

    def oracle(steps):
        torch.manual_seed(settings["seed"])
        batches = oracles.minibatches(images, settings["batch_size"], settings["seed"])
        return oracles.ORACLES[folder](batches, settings, steps)

    *networks, rows = oracle(STEPS)
    *first, _ = oracle(0)
    state = checkpoint_of(run)
    assert state["step"] == STEPS
    other = "critic" if folder.startswith("WGAN") else "discriminator"
    updates = settings.get("n_critic", settings.get("k", 1))
    generators, opponents = zip(networks, first, strict=True)
    for count in check(state["generator"], *generators):
        assert count == STEPS * (updates + 1)
    for count in check(state[other], *opponents):
        assert count == STEPS * (2 * updates + 1)
    for name in ("generator_optimizer", f"{other}_optimizer"):  # six steps would hardly show it
        assert [group["weight_decay"] for group in state[name]["param_groups"]] == [0]

    logged = rows_of(run)
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
