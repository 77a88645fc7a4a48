"""Several processes, over Gloo: signals, clocks, one that dies; and the clock of one."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import programs
import psutil
import pytest
import torch
from conftest import assert_equal, flags_of, rows_of, run_script, state_of, train, write_images
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

DCGAN = programs.TOP / "DCGAN" / "train.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO = ["--standalone", "--nproc-per-node=2"]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows starts no forks")


class Together:
    """Processes that train together, started as torchrun would, with PyTorch imported."""

    def __init__(self, script, settings, count=2, nodes=1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.said = Path(settings["runs_dir"]).with_name(f"said-{port}")
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.processes = []
        shared["LOCAL_WORLD_SIZE"] = str(count // nodes)
        for number in range(count):
            ranks = {"RANK": str(number), "LOCAL_RANK": str(number % (count // nodes))}
            given = flags_of(settings), None, os.environ | shared | ranks, [self.said, self.said]
            self.processes.append(programs.start(script, *given))

    def wait(self, file):
        if not appears(file, lambda: all(process.is_alive() for process in self.processes)):
            self.finish(f"{file} is missing", 0)

    def finish(self, code=0, seconds=120):
        """Wait for the end of all; return what they said."""
        for process in self.processes:
            process.join(seconds)
            process.kill()
        said = self.said.read_text()
        assert {process.exitcode for process in self.processes} == {code}, said
        return said


def appears(file, running):
    """Wait until a file is there, as long as a training is running, but three minutes at most."""
    end = time.monotonic() + 180
    while not file.exists() and running() and time.monotonic() < end:
        time.sleep(0.02)
    return file.exists()


@pytest.fixture
def two(tiny, tmp_path):
    data = write_images(tmp_path / "images", (47, 16, 16, 3))
    return tiny | {"data": data, "batch_size": 4, "frame_every": 4, "epochs": 10**4}


def test_a_signal_to_one_stops_both_and_resuming_equals_not_having_stopped(two, tmp_path):
    run, endless = tmp_path / "runs" / "run", two | {"name": "run", "max_steps": 0}
    training = Together(DCGAN, endless)
    training.wait(run / "frames" / "000004.png")
    training.processes[1].terminate()
    said, step = training.finish(143), state_of(run)["step"]
    resume = f"torchrun --standalone --nproc-per-node=2 {DCGAN} --resume run"
    assert said.count("stopped     after") == 1 and "has ended" not in said
    assert f"after {step:,} steps, which are saved; to resume: {resume}" in said
    alone = run_script(DCGAN, two | {"max_steps": step + 3, "resume": "run"})
    assert alone.returncode == 2 and "processes was 2 and is now 1" in alone.stderr
    trainings = [Together(DCGAN, two | {"max_steps": step + 3, "name": "whole"})]
    trainings.append(Together(DCGAN, two | {"max_steps": step + 3, "resume": "run"}))
    assert [training.finish().count("finished") for training in trainings] == [1, 1]
    assert_equal(run.with_name("whole"), run)


def test_two_nodes_print_the_commands_that_resume_them(two, tmp_path):
    run, endless = tmp_path / "runs" / "run", two | {"name": "run", "max_steps": 0}
    training = Together(DCGAN, endless, nodes=2)
    training.wait(run / "frames" / "000004.png")
    training.processes[1].terminate()
    commands = sorted(re.findall("to resume: torchrun (.*)", training.finish(143)))
    last, nodes = state_of(run)["step"] + 3, []
    for rank, command in enumerate(commands):  # on two machines they would have two addresses
        here = f"--nnodes=2 --nproc-per-node=1 --node-rank={rank} --master-addr=127.0.0.1"
        assert here in command
        command = [*TORCHRUN, *shlex.split(command), f"--max-steps={last}"]
        nodes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    said = [node.communicate(timeout=180)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0] and state_of(run)["step"] == last
    assert ["finished" in text for text in said] == [True, False]


def test_processes_whose_clocks_differ_end_at_the_same_step_without_threads_left(two, tmp_path):
    script = tmp_path / "clocks.py"
    script.write_text(
        "import itertools, os, pathlib, runpy, sys, time\n"
        f"sys.path.insert(0, {str(DCGAN.parent)!r})\n"
        "clock = itertools.count(1, {'0': 0.3, '1': 0.7}[os.environ['RANK']])\n"
        "time.perf_counter = lambda: next(clock)\n"
        f"runpy.run_path({str(DCGAN)!r}, run_name='__main__')\n"
        "print(*(file.read_text() for file in pathlib.Path('/proc/self/task').glob('*/comm')))"
    )
    limits = {"max_steps": 0, "max_seconds": 5.3, "name": "run"}
    said = Together(script, two | limits).finish()
    assert said.count("finished") == 1 and "gloo" not in said
    run = tmp_path / "runs" / "run"
    assert state_of(run)["step"] == int(rows_of(run)[-1]["step"]) > 3
    assert float(rows_of(run)[-1]["seconds"]) < 3.1  # the faster clock has decided


def test_a_process_that_dies_ends_all_with_the_reason(two, tmp_path):
    command = [*TORCHRUN, *TWO, DCGAN, *flags_of(two | {"name": "run", "max_steps": 0})]
    pipes, run = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}, tmp_path / "runs" / "run"
    training = subprocess.Popen(command, text=True, **pipes)
    begun = appears(run / "frames" / "000004.png", lambda: training.poll() is None)
    others = psutil.Process(training.pid).children()
    others[1].kill()
    said, _ = training.communicate(timeout=120)
    assert begun, said
    assert training.returncode != 0
    assert "another of 2 processes has ended" in said and 'train.py", line' not in said
    assert not any(process.is_running() for process in others)
    assert state_of(run)["step"] >= 2


def test_seconds_are_those_of_training_alone(files, tiny, monkeypatch):
    """Not of drawing, logging and saving, nor of what goes on between two programs."""
    clock, updates = [0.0], getattr(files.train.Config(), "n_critic", 1)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    opponent = "critic_step" if hasattr(files.train, "critic_step") else "discriminator_step"

    for seconds, place, name in (
        *((1.0, files.train, "generator_step"), (0.25, files.train, opponent)),
        *((0.125, files.data.Batches, "__next__"), (1e3, torch, "save"), (1e4, os, "replace")),
        *((1e5, Image.Image, "save"), (1e6, SummaryWriter, "add_scalar"), (1e7, os, "fsync")),
    ):
        function = getattr(place, name)

        def slow(*args, seconds=seconds, function=function, **kwargs):
            clock[0] += seconds
            return function(*args, **kwargs)

        monkeypatch.setattr(place, name, slow)
    often = tiny | {"max_steps": 5, "log_every": 1, "frame_every": 1, "checkpoint_every": 3}
    run = train(files.folder, often | {"name": "run"})
    train(files.folder, often | {"resume": "run", "max_steps": 7})
    step = 1 + 0.375 * updates
    assert [float(row["seconds"]) for row in rows_of(run)] == [step * i for i in range(1, 8)]
    assert state_of(run)["seconds"] == 7 * step and clock[0] > 1e7
