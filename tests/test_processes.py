"""Several processes under torchrun, over Gloo: against the oracle, one that dies, resuming."""

import json
import subprocess
import sys
import time

import numpy as np
import oracles
import psutil
import pytest
import torch
from conftest import (
    ENVIRONMENT,
    TINY,
    TOP,
    assert_equal,
    checkpoint_of,
    flags_of,
    load,
    noise_images,
    rows_of,
    write_images,
)

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def start(folder, settings, launch=TWO):
    """Start a training by two processes, or by another command."""
    return subprocess.Popen(
        [*launch, "train.py", *flags_of(settings)],
        cwd=TOP / folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(training):
    said, _ = training.communicate(timeout=180)
    assert training.returncode == 0, said
    return said


@pytest.fixture
def two(tiny):
    return tiny | {"batch_size": 4, "frame_every": 4}


def test_two_processes_are_the_oracle_with_twice_the_batch(tiny, tmp_path):
    """Each draws noise from a stream of its own; all start from the weights of the first."""
    write_images(tmp_path / "images", noise_images(27, 16, 16, 3))
    own = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "k": 2, "dropout": 0.0, "seed": 5}
    where = {"data": tmp_path / "images", "name": "run", "max_steps": 6}
    said = finish(start("simpleGAN", tiny | own | where | {"batch_size": 4}))
    assert said.count("finished") == 1

    seeds = [5, int(np.random.SeedSequence(5, spawn_key=(1,)).generate_state(1)[0])]
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise(count, z_dim):
        return torch.cat([torch.randn(count // 2, z_dim, generator=rng) for rng in rngs])

    files = oracles.image_order((tmp_path / "images").glob("*.png"))
    singles = oracles.minibatches(
        oracles.stack(files, 16, 3), 4, 5
    )  # six a pass, three images over
    pairs = (torch.cat([batch, next(singles)]) for batch in singles)
    settings = TINY | own | {"minimax": False, "channels": 3}
    *networks, rows = oracles.simple_gan(pairs, settings, 6, noise, rngs)
    run = tmp_path / "runs" / "run"
    state = checkpoint_of(run)
    for name, network in zip(("generator", "discriminator"), networks, strict=True):
        tensors = [tensor for layer in network for tensor in layer]
        for (key, saved), expected in zip(state[name].items(), tensors, strict=True):
            torch.testing.assert_close(saved, expected.detach(), rtol=1e-2, atol=2e-4, msg=key)
    pairs = zip(rows[::2], rows[1::2], strict=True)
    for row, (one, other) in zip(rows_of(run), pairs, strict=True):
        assert int(row["images"]) == int(row["step"]) * 2 * 8
        assert float(row["epoch"]) == pytest.approx(int(row["step"]) / 3, abs=1e-4)
        for name in one:
            mean = (one[name].item() + other[name].item()) / 2
            assert float(row[name]) == pytest.approx(mean, rel=1e-3, abs=1e-4), name


def test_a_resumed_run_of_two_equals_an_uninterrupted_one(two):
    whole = start("DCGAN", two | {"max_steps": 8, "name": "whole"})
    finish(start("DCGAN", two | {"max_steps": 4, "name": "part"}))
    finish(whole)
    finish(start("DCGAN", two | {"max_steps": 8, "resume": "part"}))
    runs = [load("DCGAN").utils.runs_folder(two["runs_dir"]) / name for name in ("whole", "part")]
    assert_equal(*runs)
    assert json.loads((runs[1] / "run.json").read_text())["processes"] == 2
    alone = start("DCGAN", two | {"max_steps": 10, "resume": "part"}, [sys.executable])
    said, _ = alone.communicate(timeout=180)
    assert alone.returncode == 2 and "by 2 processes and now there are 1" in said


def wait_for(path, training):
    end = time.monotonic() + 90
    while not path.exists():
        assert time.monotonic() < end and training.poll() is None, training.communicate()[0]
        time.sleep(0.05)


def test_a_process_that_dies_ends_all_with_the_reason(two, tmp_path):
    training = start("DCGAN", two | {"name": "run"} | {"max_steps": 0})
    wait_for(tmp_path / "runs" / "run" / "frames" / "000004.png", training)
    others = psutil.Process(training.pid).children()
    others[1].kill()
    said, _ = training.communicate(timeout=90)
    assert training.returncode != 0
    assert "another of 2 processes has ended" in said and 'train.py", line' not in said
    assert not any(process.is_running() for process in others)
    assert checkpoint_of(tmp_path / "runs" / "run")["step"] >= 2


def test_a_signal_to_one_stops_all_at_one_step_and_prints_how_to_resume(two, tmp_path):
    training = start("DCGAN", two | {"name": "run"} | {"max_steps": 0})
    run = tmp_path / "runs" / "run"
    wait_for(run / "frames" / "000004.png", training)
    psutil.Process(training.pid).children()[1].terminate()
    said, _ = training.communicate(timeout=90)
    step = checkpoint_of(run)["step"]
    resume = "torchrun --standalone --nproc-per-node=2 " + str(TOP / "DCGAN" / "train.py")
    assert said.count("stopped     after") == 1 and "has ended" not in said
    assert f"after {step:,} steps, which are saved; to resume: {resume} --resume run" in said
