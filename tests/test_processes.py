"""Several processes under torchrun, over Gloo: equal to one, one that dies, and resuming."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import TOP, load
from safetensors.torch import load_file

TINY = {
    **{"image_size": 16, "g_width": 4, "d_width": 4, "z_dim": 8, "log_every": 2, "device": "cpu"},
    **{"frame_every": 4, "checkpoint_every": 2},
}

# Each process draws its share of what one process would draw, and so both can be compared.
SHARED_NOISE = """
import os, sys
import torch

rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
seeds = iter(range(10**6))

def shared(draw):
    def drawn(size, *rest, **how):
        if "generator" in how:  # faces, frames
            return draw(size, *rest, **how)
        rng = torch.Generator().manual_seed(next(seeds))
        return draw(size * count, *rest, generator=rng).chunk(count)[rank]
    return drawn

torch.randn, torch.rand = shared(torch.randn), shared(torch.rand)
sys.argv = ["train.py", *sys.argv[1:]]
sys.path.insert(0, os.getcwd())
import model, train, utils

class Norm(torch.nn.GroupNorm):  # for the one layer that looks at a whole minibatch
    def __init__(self, maps):
        super().__init__(1, maps)

model.nn.BatchNorm2d = Norm
with utils.plain_errors():
    train.train(utils.parse_config(train.Config))
"""


def flags(settings: dict) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def start(folder: str, count: int, script: str, settings: dict) -> subprocess.Popen:
    """Start a training by one process, or by several under torchrun."""
    launch = [sys.executable]
    if count > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.Popen(
        [*launch, script, *flags(TINY | settings)],
        cwd=TOP / folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(training: subprocess.Popen) -> str:
    said, _ = training.communicate(timeout=120)
    assert training.returncode == 0, said
    return said


@pytest.fixture
def where(tmp_path, data_dir) -> dict:
    load("DCGAN")
    return {"data_dir": data_dir, "runs_dir": tmp_path / "runs"}


@pytest.mark.parametrize("folder", ["simpleGAN", "WGAN-GP"])
def test_two_processes_equal_one_with_twice_the_batch(folder, where, tmp_path):
    script = tmp_path / "shared_noise.py"
    script.write_text(SHARED_NOISE)
    changes = where | {"max_steps": 6, "lr": 1e-3}
    changes |= {"dropout": 0.0} if folder == "simpleGAN" else {}
    two = start(folder, 2, str(script), changes | {"batch_size": 4, "name": "two"})
    one = start(folder, 1, str(script), changes | {"batch_size": 8, "name": "one"})
    said = finish(two)
    finish(one)
    assert said.count("finished") == 1 and "2 processes" in said
    runs = [where["runs_dir"] / name for name in ("one", "two")]
    states = [torch.load(run / "checkpoint.pt", weights_only=True) for run in runs]
    opponent = "critic" if "critic" in states[0] else "discriminator"
    for part in ("generator", opponent):
        torch.testing.assert_close(states[0][part], states[1][part], atol=2e-5, rtol=1e-3)
    begun = [torch.load(run / "checkpoint.before.pt", weights_only=True) for run in runs]
    moved = states[0][opponent], begun[0][opponent]
    assert any(
        (a - b).abs().max() > 1e-4 for a, b in zip(*(m.values() for m in moved), strict=True)
    )
    rows = [(run / "metrics.csv").read_text().splitlines() for run in runs]
    for one_row, two_row in zip(*rows, strict=True):
        a, b = one_row.split(","), two_row.split(",")
        assert a[:3] == b[:3]  # step, epoch, images
    assert float(rows[0][-1].split(",")[4]) == pytest.approx(
        float(rows[1][-1].split(",")[4]), rel=1e-3, abs=1e-4
    )


def test_a_resumed_run_of_two_equals_an_uninterrupted_one(where):
    changes = where | {"batch_size": 4}
    whole = start("DCGAN", 2, "train.py", changes | {"max_steps": 8, "name": "whole"})
    finish(start("DCGAN", 2, "train.py", changes | {"max_steps": 4, "name": "part"}))
    finish(whole)
    finish(start("DCGAN", 2, "train.py", changes | {"max_steps": 8, "resume": "part"}))
    runs = [where["runs_dir"] / name for name in ("whole", "part")]
    whole, part = (load_file(run / "generator.safetensors") for run in runs)
    for name in whole:  # batch norm's statistics are the first's, and it began anew with its own
        assert torch.equal(whole[name], part[name]), name
    facts = json.loads((runs[1] / "run.json").read_text())
    assert facts["processes"] == 2
    states = [torch.load(run / "checkpoint.pt", weights_only=True)["own"] for run in runs]
    assert len(states[0]) == 2
    assert not torch.equal(states[0][0]["rng"], states[0][1]["rng"])  # each has noise of its own
    for one, other in zip(*states, strict=True):
        assert torch.equal(one["rng"], other["rng"])
    # and alone it is refused
    alone = start("DCGAN", 1, "train.py", changes | {"max_steps": 10, "resume": "part"})
    said, _ = alone.communicate(timeout=60)
    assert alone.returncode == 2 and "2 processes and now there are 1" in said


def workers(training: subprocess.Popen) -> list[psutil.Process]:
    """Return the training processes under torchrun."""
    return psutil.Process(training.pid).children()


def wait_for(path: Path, training: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end and training.poll() is None, training.communicate()[0]
        time.sleep(0.05)


def test_a_process_that_dies_ends_all_with_the_reason(where):
    training = start("DCGAN", 2, "train.py", where | {"batch_size": 4, "name": "run"})
    wait_for(where["runs_dir"] / "run" / "frames" / "000004.png", training)
    others = workers(training)
    began = time.monotonic()
    others[1].kill()
    said, _ = training.communicate(timeout=60)
    assert time.monotonic() - began < 60 and training.returncode != 0
    assert "another of the 2 processes has ended" in said and "SIGKILL" in said
    assert not any(process.is_running() for process in others)
    state = torch.load(where["runs_dir"] / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] >= 2


def test_a_signal_to_one_stops_all_at_one_step_and_saves(where):
    training = start("DCGAN", 2, "train.py", where | {"batch_size": 4, "name": "run"})
    wait_for(where["runs_dir"] / "run" / "frames" / "000004.png", training)
    workers(training)[1].terminate()
    said, _ = training.communicate(timeout=60)
    assert said.count("stopped     at step") == 1 and "has ended" not in said
    state = torch.load(where["runs_dir"] / "run" / "checkpoint.pt", weights_only=True)
    assert f"at step {state['step']:,}, which is saved" in said
