"""The programs as a user starts them: alone, from anywhere, with bad input, stopped by signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import FOLDERS, TOP

TINY = [
    *("--image-size", "16", "--g-width", "4", "--d-width", "4", "--z-dim", "8"),
    *("--batch-size", "8", "--log-every", "2", "--frame-every", "2", "--checkpoint-every", "2"),
    *("--device", "cpu"),
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def python(*argv, cwd=None, **kwargs):
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, **kwargs,
    )  # fmt: skip


@pytest.fixture(params=FOLDERS)
def alone(request, tmp_path):
    """Copy one folder, and nothing else, to an empty place."""
    folder = tmp_path / "elsewhere" / request.param
    skip = shutil.ignore_patterns("__pycache__", "tensorboard", "data")
    shutil.copytree(TOP / request.param, folder, ignore=skip)
    return folder


def test_a_folder_trains_alone_from_anywhere(alone, tmp_path):
    (tmp_path / "cwd").mkdir()
    done = python(alone / "train.py", *TINY, "--max-steps", 3, cwd=tmp_path / "cwd")
    assert done.returncode == 0, done.stderr
    (run,) = (alone / "tensorboard" / "runs").iterdir()
    assert (run / "generator.safetensors").exists() and (run / "frames" / "000003.png").exists()
    assert not list((tmp_path / "cwd").iterdir())
    assert {p.name for p in alone.iterdir()} >= {"data", "tensorboard"}
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == [
        "device",
        "pictures",
        "cache",
        "parameters",
        "run",
    ]
    assert not done.stderr and "\r" not in done.stdout  # not a terminal: lines, no bar
    assert any(line.startswith("step 3/3, epoch 1/") for line in lines)
    assert (run / "train.log").read_text() == done.stdout


BAD_INPUT = [
    (["--nonsense", "1"], "--nonsense"),
    (["--config", "CWD/broken.json"], "epoch"),
    (["--image-size", "48"], "image_size"),
    (["--lr", "nan"], "lr"),
    (["--data", "CWD/nowhere"], "nowhere"),
    (["--data", "CWD/empty"], "empty"),
    (["--data", "CWD/not_a_zip.zip"], "not_a_zip.zip"),
    (["--batch-size", "10001"], "10001"),
    (["--device", "cuda:77"], "cuda:77"),
    (["--device", "toaster"], "toaster"),
    (["--resume", "nothing"], "nothing"),
    (["--name", "taken"], "taken"),
    (["--name", "a/b"], "a/b"),
]


@pytest.mark.parametrize(("argv", "named"), BAD_INPUT)
def test_bad_input_gets_one_line_and_leaves_nothing_behind(argv, named, tmp_path, data_dir):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text('{"epoch": 1}')
    (tmp_path / "not_a_zip.zip").write_text("no")
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    argv = [argument.replace("CWD", str(tmp_path)) for argument in argv]
    places = ["--runs-dir", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "data")]
    if argv[0] in ("--name", "--device", "--batch-size"):
        places[-1] = data_dir  # the faces are drawn already
    done = python(TOP / "WGAN" / "train.py", *TINY, *places, *argv, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and not done.stdout
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("train.py: error: ") and named in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def start_training(tmp_path, data_dir, *argv, model="DCGAN"):
    command = [
        sys.executable, TOP / model / "train.py", *TINY, "--runs-dir", tmp_path / "runs",
        "--data-dir", data_dir, "--name", "run", *argv,
    ]  # fmt: skip
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(number, tmp_path, data_dir):
    process = start_training(tmp_path, data_dir, "--checkpoint-every", "100000")
    frames = tmp_path / "runs" / "run" / "frames"
    wait_for(lambda: len(list(frames.glob("*.png"))) > 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and not err
    assert "--resume run" in out.splitlines()[-1]
    import torch

    step = torch.load(tmp_path / "runs" / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert step > 0 and f"at step {step:,}" in out.splitlines()[-1]
    again = python(
        TOP / "DCGAN" / "train.py", "--runs-dir", tmp_path / "runs", "--resume",
        "--max-steps", step + 3, "--data-dir", data_dir,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert f"from step {step}" in again.stdout


def test_a_run_that_was_interrupted_ends_like_one_that_was_not(tmp_path, data_dir):
    process = start_training(tmp_path, data_dir, "--max-steps", "150")
    frames = tmp_path / "runs" / "run" / "frames"
    wait_for(lambda: len(list(frames.glob("*.png"))) > 3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    places = ["--runs-dir", tmp_path / "runs", "--data-dir", data_dir]
    assert python(TOP / "DCGAN" / "train.py", "--resume", *places).returncode == 0
    whole = python(
        TOP / "DCGAN" / "train.py", *TINY, *places, "--max-steps", 150, "--name", "whole"
    )
    assert whole.returncode == 0
    files = [tmp_path / "runs" / name / "generator.safetensors" for name in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    rows = [
        [line.split(",")[:3] + line.split(",")[4:] for line in (f.parent / "metrics.csv").open()]
        for f in files
    ]
    assert rows[0] == rows[1]


def test_trouble_at_run_time_has_exit_code_1(tmp_path, data_dir):
    (tmp_path / "file").write_text("in the way")
    done = python(
        TOP / "DCGAN" / "train.py", *TINY, "--data-dir", data_dir, "--runs-dir", tmp_path / "file"
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "file") in done.stderr


def test_on_a_cpu_the_full_settings_say_how_long_and_what_is_quicker(tmp_path, data_dir):
    process = start_training(
        tmp_path, data_dir, "--image-size", "64", "--g-width", "64", "--batch-size", "32",
        "--log-every", "1000", "--frame-every", "1000", "--epochs", "5000",
    )  # fmt: skip
    try:
        log = tmp_path / "runs" / "run" / "train.log"
        wait_for(lambda: log.exists() and "time left" in log.read_text(), 60)
        assert "--config quick.json" in log.read_text()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("folder", FOLDERS)
def test_shell_scripts_pass_their_arguments_on(folder, tmp_path):
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "python"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    wrapper.chmod(0o755)
    environment = ENVIRONMENT | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    script = TOP / "scripts" / f"train_{folder}.sh"
    done = subprocess.run(
        [script, "--max-steps", "-3"], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 2 and "max_steps" in done.stderr


def test_tensorboard_shows_the_run(tmp_path, data_dir):
    import socket
    import urllib.request

    done = python(
        TOP / "WGAN-GP" / "train.py", *TINY, "--max-steps", 4, "--data-dir", data_dir,
        "--runs-dir", tmp_path / "tensorboard" / "runs", "--name", "shown",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    board = Path(sys.executable).parent / "tensorboard"
    server = subprocess.Popen(
        [board, "--logdir=tensorboard/runs", "--host=127.0.0.1", f"--port={port}"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def ask(path):
        try:
            url = f"http://127.0.0.1:{port}/data/{path}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.loads(answer.read())
        except OSError:
            return {}

    try:
        wait_for(
            lambda: "shown" in ask("plugin/scalars/tags") and "shown" in ask("plugin/images/tags")
        )
        scalars = ask("plugin/scalars/scalars?run=shown&tag=wasserstein")
        assert [step for _, step, _ in scalars] == [2, 4]
        frames = ask("plugin/images/images?run=shown&tag=frames&sample=0")
        assert [frame["step"] for frame in frames] == [0, 2, 4]
        assert set(ask("plugin/images/tags")["shown"]) == {"frames", "real"}
    finally:
        server.terminate()
        server.wait(timeout=20)
