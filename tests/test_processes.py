"""Two processes, over Gloo: against the oracle, one that dies, resuming."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import oracles
import programs
import psutil
import pytest
import torch
from conftest import (
    TINY,
    TOP,
    assert_equal,
    checkpoint_of,
    flags_of,
    noise_images,
    rows_of,
    run_script,
    write_images,
)

DCGAN = TOP / "DCGAN" / "train.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows starts no forks")


class Two:
    """Two processes that train together, started as torchrun would, with PyTorch imported."""

    def __init__(self, script, settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.said = Path(settings["runs_dir"]).with_name(f"said-{port}")
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.processes = []
        for number in "01":
            environment = os.environ | shared | {"RANK": number, "LOCAL_RANK": number}
            given = flags_of(settings), None, environment, [self.said, self.said]
            self.processes.append(programs.start(script, *given))

    def wait(self, path):
        """Wait until a file is there."""
        end = time.monotonic() + 90
        while not path.exists():
            alive = all(process.is_alive() for process in self.processes)
            assert time.monotonic() < end and alive, self.said.read_text()
            time.sleep(0.02)

    def finish(self, code=0):
        """Wait for the end of both; return what they said."""
        for process in self.processes:
            process.join(180)
        assert [process.exitcode for process in self.processes] == [code] * 2, self.said.read_text()
        return self.said.read_text()


@pytest.fixture
def two(tiny):
    return tiny | {"batch_size": 4, "frame_every": 4}


def test_two_processes_are_the_oracle_with_twice_the_batch(tiny, tmp_path):
    """Each draws noise from a stream of its own; all start from the weights of the first."""
    write_images(tmp_path / "images", noise_images(27, 16, 16, 3))
    own = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "k": 2, "dropout": 0.0, "seed": 5}
    where = {"data": tmp_path / "images", "name": "run", "max_steps": 6}
    settings = tiny | own | where | {"batch_size": 4}
    said = Two(TOP / "simpleGAN" / "train.py", settings).finish()
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


def test_a_signal_to_one_stops_both_and_resuming_equals_not_having_stopped(two, tmp_path):
    training, run = Two(DCGAN, two | {"name": "run", "max_steps": 0}), tmp_path / "runs" / "run"
    training.wait(run / "frames" / "000004.png")
    training.processes[1].terminate()
    said, step = training.finish(143), checkpoint_of(run)["step"]
    resume = f"torchrun --standalone --nproc-per-node=2 {DCGAN} --resume run"
    assert said.count("stopped     after") == 1 and "has ended" not in said
    assert f"after {step:,} steps, which are saved; to resume: {resume}" in said
    alone = run_script(DCGAN, *flags_of(two | {"max_steps": step + 3, "resume": "run"}))
    assert alone.returncode == 2 and "by 2 processes and now there are 1" in alone.stderr
    trainings = [Two(DCGAN, two | {"max_steps": step + 3, "name": "whole"})]
    trainings.append(Two(DCGAN, two | {"max_steps": step + 3, "resume": "run"}))
    assert [training.finish().count("finished") for training in trainings] == [1, 1]
    assert_equal(run.with_name("whole"), run)
    assert json.loads((run / "run.json").read_text())["processes"] == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_no_thread_of_the_group_outlives_the_training(two, tmp_path):
    script = tmp_path / "watched.py"
    script.write_text(
        f"import sys, pathlib; sys.path.insert(0, {str(DCGAN.parent)!r})\n"
        "import train; train.main()\n"
        "print(*(file.read_text() for file in pathlib.Path('/proc/self/task').glob('*/comm')))"
    )
    command = [*TORCHRUN, script, *flags_of(two)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "finished" in said and "python" in said and "gloo" not in said


def test_a_process_that_dies_ends_all_with_the_reason(two, tmp_path):
    command = [*TORCHRUN, DCGAN, *flags_of(two | {"name": "run", "max_steps": 0})]
    pipes, run = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}, tmp_path / "runs" / "run"
    training, end = subprocess.Popen(command, text=True, **pipes), time.monotonic() + 90
    while not (run / "frames" / "000004.png").exists():
        assert time.monotonic() < end and training.poll() is None, training.communicate()[0]
        time.sleep(0.05)
    others = psutil.Process(training.pid).children()
    others[1].kill()
    said, _ = training.communicate(timeout=90)
    assert training.returncode != 0
    assert "another of 2 processes has ended" in said and 'train.py", line' not in said
    assert not any(process.is_running() for process in others)
    assert checkpoint_of(run)["step"] >= 2
