"""Six steps of each train.py against the same algorithm written from the paper."""

import os
from dataclasses import asdict

import numpy as np
import oracles
import pytest
from conftest import FOUR, TOP, load, noise_images, rows_of, state_of, train, write_images
from test_processes import Together

STEPS = 6
TOLERANCE = 0.1
ALONE = {"z_dim": 6, "g_width": 3, "d_width": 5, "batch_size": 7, "hold_out": 9, "image_size": 32}
TOGETHER = {"z_dim": 7, "g_width": 5, "d_width": 3, "batch_size": 4, "hold_out": 9, "seed": 23}
# At larger learning rates a difference in rounding can grow until it looks like another algorithm.
OWN = {
    "simpleGAN": {"lr": 1e-3, "beta1": 0.6, "beta2": 0.95, "k": 2, "dropout": 0.17},
    "DCGAN": {"lr": 1e-3, "beta1": 0.6, "beta2": 0.95},
    "WGAN": {"lr": 7e-4, "n_critic": 3, "clip_value": 0.031},
    "WGAN-GP": {"lr": 1e-3, "beta1": 0.6, "beta2": 0.95, "n_critic": 2, "lambda_gp": 2.7},
}
CASES = [(folder, {}, 1) for folder in FOUR]
CASES += [(folder, ALONE | OWN[folder] | {"seed": 11}, 1) for folder in FOUR]
CASES += [(folder, TOGETHER | OWN[folder], 2) for folder in FOUR]
CASES += [
    ("simpleGAN", ALONE | OWN["simpleGAN"] | {"minimax": True, "dropout": 0.0, "channels": 1}, 1),
    ("DCGAN", ALONE | OWN["DCGAN"] | {"seed": 2**32 - 1, "beta1": 0.0, "channels": 1}, 1),
]


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """Colored noise of both sizes, which no scaling touches, bright and dark."""
    folder, shade = tmp_path_factory.mktemp("images"), np.arange(80).reshape(-1, 1, 1, 1) % 3 + 1
    for size, count in ((16, 80), (32, 34)):
        images = noise_images(count, size, size, 3) // shade[:count]
        write_images(folder / str(size), images.astype(np.uint8))
    return folder


def tensors(network, averages):
    """All tensors; without running averages where the norms keep none."""
    return [t.detach() for layer in network for t in (layer if averages else layer[:2])]


def check(saved, network, first, updates):
    """Compare a state dict with the oracle's network, tensor by tensor, up to rounding.

    A gradient that is nearly 0 has a sign by chance, and RMSProp and Adam take a whole step
    along it: one weight in a thousand differs by that, which the norm of the change absorbs.
    """
    counts = {name: saved[name] for name in saved if name.endswith("num_batches_tracked")}
    names = [name for name in saved if name not in counts]
    averages = any(name.endswith("running_var") for name in names)
    networks = tensors(network, averages), tensors(first, averages)
    for name, expected, start in zip(names, *networks, strict=True):
        moved = (expected - start).norm()
        assert moved > 0, name
        assert (saved[name] - expected).norm() < TOLERANCE * moved, name
    assert all(count == STEPS * updates for count in counts.values())


@pytest.mark.parametrize("folder, changes, processes", CASES)
def test_six_steps_are_the_papers(folder, changes, processes, colors, tmp_path):
    if processes > 1 and not hasattr(os, "fork"):
        pytest.skip("Windows starts no forks")
    changes = {"image_size": 16} | changes
    settings = asdict(load(folder).train.Config()) | {"channels": 3} | changes
    place, side = colors / str(settings["image_size"]), settings["image_size"]
    images = oracles.read(place, side, settings["channels"])
    images = images[: len(images) - settings["hold_out"]]

    where = {"data": place, "data_dir": tmp_path, "runs_dir": tmp_path / "runs", "name": "run"}
    batches = len(images) // settings["batch_size"] // processes
    limits = {"max_steps": STEPS} if STEPS % batches else {"epochs": STEPS // batches}
    every = {"log_every": 4, "device": "cpu", "precision": "fp32"}
    flags = changes | where | limits | every
    if processes > 1:
        said = Together(TOP / folder / "train.py", flags, processes).finish()
        assert said.count("finished") == 1
    else:
        train(folder, flags)

    *networks, rows = oracles.train(folder, settings, images, STEPS, processes)
    *first, _ = oracles.train(folder, settings, images, 0)
    state = state_of(tmp_path / "runs" / "run")
    assert state["step"] == STEPS
    other = "critic" if folder.startswith("WGAN") else "discriminator"
    updates = settings.get("n_critic", settings.get("k", 1))
    pairs = zip(networks, first, strict=True)
    check(state["generator"], *next(pairs), updates + 1)
    check(state[other], *next(pairs), 2 * updates + 1)
    for name in ("generator_optimizer", f"{other}_optimizer"):  # six steps would hardly show it
        assert [group["weight_decay"] for group in state[name]["param_groups"]] == [0]

    logged = rows_of(tmp_path / "runs" / "run")
    assert [row["step"] for row in logged] == ["4", "6"]
    for row, steps in zip(logged, (rows[:4], rows[4:]), strict=True):
        assert set(row) == {"step", "epoch", "images", "seconds", *steps[0]}
        shown = int(row["step"]) * updates * settings["batch_size"] * processes
        assert int(row["images"]) == shown
        assert float(row["epoch"]) == pytest.approx(int(row["step"]) / batches, abs=1e-4)
        for name in steps[0]:
            mean = np.mean([step[name] for step in steps])
            near = 1e-3 if name == "clipped" else 1e-4  # one weight at the bound is 2e-4
            assert float(row[name]) == pytest.approx(mean, rel=1e-3, abs=near), name
