"""Several processes, over Gloo: signals, clocks, one that dies, resuming."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import programs
import psutil
import pytest
from conftest import (
    TINY,
    TOP,
    assert_equal,
    checkpoint_of,
    flags_of,
    rows_of,
    run_script,
)

DCGAN = TOP / "DCGAN" / "train.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows starts no forks")


class Together:
    """Processes that train together, started as torchrun would, with PyTorch imported."""

    def __init__(self, script, settings, count=2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.said = Path(settings["runs_dir"]).with_name(f"said-{port}")
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.processes = []
        for number in map(str, range(count)):
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
        """Wait for the end of all; return what they said."""
        for process in self.processes:
            process.join(180)
        assert [process.exitcode for process in self.processes] == [code] * len(self.processes), self.said.read_text()
        return self.said.read_text()


@pytest.fixture
def two(tiny):
    return tiny | {"batch_size": 4, "frame_every": 4}


def test_a_signal_to_one_stops_both_and_resuming_equals_not_having_stopped(two, tmp_path):
    training, run = Together(DCGAN, two | {"name": "run", "max_steps": 0}), tmp_path / "runs" / "run"
    training.wait(run / "frames" / "000004.png")
    training.processes[1].terminate()
    said, step = training.finish(143), checkpoint_of(run)["step"]
    resume = f"torchrun --standalone --nproc-per-node=2 {DCGAN} --resume run"
    assert said.count("stopped     after") == 1 and "has ended" not in said
    assert f"after {step:,} steps, which are saved; to resume: {resume}" in said
    alone = run_script(DCGAN, *flags_of(two | {"max_steps": step + 3, "resume": "run"}))
    assert alone.returncode == 2 and "by 2 processes and now there are 1" in alone.stderr
    trainings = [Together(DCGAN, two | {"max_steps": step + 3, "name": "whole"})]
    trainings.append(Together(DCGAN, two | {"max_steps": step + 3, "resume": "run"}))
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
