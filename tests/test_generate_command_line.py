"""The command line of generate.py: what it takes a generator from, and what it refuses."""
# ruff: noqa: F811 - fixtures of another file

import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import TOP, load
from test_generate import call, make_weights, weights  # noqa: F401

import generate
import runs


@pytest.fixture
def top(tmp_path, monkeypatch):
    """Stand in for the top of the repository; its models have no runs, but are ours."""
    for model in runs.MODELS:
        (tmp_path / model).mkdir()
        for name in ("model.py", "train.py"):
            (tmp_path / model / name).write_text((TOP / model / name).read_text())
    monkeypatch.setattr(runs, "TOP", tmp_path)
    monkeypatch.setattr(runs.model_runs, "__defaults__", (tmp_path,))
    return tmp_path


def test_a_model_without_runs_has_the_weights_in_assets(top, make_weights, call, capsys, tiny):
    with pytest.raises(runs.InputError, match="DCGAN: no run yet"):
        call("DCGAN")
    (top / "assets" / "weights").mkdir(parents=True)
    shipped = make_weights(folder=top / "assets" / "weights")
    for text in ("DCGAN", top / "DCGAN", "DCGAN/"):
        call(text, "--out", "x.png")
        assert f"weights {shipped}: DCGAN, step 7" in capsys.readouterr().out
    with pytest.raises(runs.InputError, match="WGAN: no run yet"):
        call("WGAN")
    with pytest.raises(runs.InputError, match="not a run"):
        call("elsewhere/DCGAN")
    with pytest.raises(runs.InputError, match="needs a run"):
        call("DCGAN", "--nearest")
    files = load("DCGAN")
    runs_dir = str(top / "DCGAN" / "tensorboard" / "runs")
    run = files.train.train(tiny(files, runs_dir=runs_dir, name="first"))
    for text in ("DCGAN", "first", run, top / "DCGAN"):
        call(text, "--out", "x.png")
        assert f"weights {run / 'generator.safetensors'}: DCGAN, step 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ("", "the following arguments are required: RUN"),
        ("nowhere", "nowhere: not a run"),
        ("broken.safetensors", "broken.safetensors is damaged"),
        ("W --nearest", "--nearest needs a run"),
        ("W --num 0", "argument --num: 0 is no whole number from 1"),
        ("W --num x", "argument --num: x is no whole number"),
        ("W --seed -1", "argument --seed"),
        ("W --seed 4294967296", "argument --seed: 4294967296"),
        ("W --columns 0", "argument --columns: 0"),
        ("W --columns 3 --npz x.npz", "--columns: there is no grid"),
        ("W --num 999999999", "--num 999999999: too many for one picture"),
        ("W --num 4000 --columns 1", "--num 4000: too many for one picture"),
        ("W --walk 1", "argument --walk: 1 is no whole number from 2"),
        ("W --walk 9 --frames 8", "--walk 9: more points than the 8 --frames"),
        ("W --walk 3 --frames 99999", "--frames 99999: too many"),
        ("W --walk 3 --npz x.npz", "--walk writes a GIF"),
        ("W --walk 3 --each x", "--walk writes a GIF"),
        ("W --walk 3 --nearest", "--walk writes a GIF"),
        ("W --walk 3 --out x.png", "--out x.png: its name must end in .gif"),
        ("W --walk 3 --fps 0", "--fps 0.0: from above 0 to 50"),
        ("W --walk 3 --fps nan", "--fps nan: from above 0 to 50"),
        ("W --walk 3 --max-mb 0", "--max-mb 0.0: must be above 0"),
        ("ONE --walk 3", "a z of one number"),
        ("W --frames 5", "--frames goes with --walk"),
        ("W --fps 5", "--fps goes with --walk"),
        ("W --max-mb 5", "--max-mb goes with --walk"),
        ("W --out x.jpg", "--out x.jpg: its name must end in .png"),
        ("W --npz x.png", "--npz x.png: its name must end in .npz"),
        ("W --each full", "--each full: there is something in it"),
        ("W --each broken.safetensors", "--each broken.safetensors: not a folder"),
        ("W --device abacus", "--device abacus: not to be had here"),
        ("W --sead 3", "unrecognized arguments: --sead 3"),
    ],
)
def test_bad_input_is_one_line(make_weights, weights, call, tmp_path, capsys, argv, complaint):
    (tmp_path / "broken.safetensors").write_bytes(b"\x08" + bytes(15))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "000000.png").write_text("precious")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    names = {"W": weights, "ONE": make_weights(z_dim=1) if "ONE" in argv else None}
    with pytest.raises(SystemExit) as stopped, runs.plain_errors():
        call(*(names.get(word, word) for word in argv.split()))
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("generate.py: error: ")
    assert complaint in lines[0]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert not [path for path in weights.parent.iterdir() if path != weights]


def test_a_file_that_cannot_be_written_is_one_line(weights, call, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped, runs.plain_errors():
        call(weights, "--out", "file/x.png")
    assert stopped.value.code == 1 and len(capsys.readouterr().err.splitlines()) == 1


def test_the_program_helps_with_examples_and_without_torch():
    code = "import sys, generate\ntry: generate.main()\nfinally: print('torch' in sys.modules)"
    argv = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False"
    examples = re.findall(r"^ +python generate.py (.*?)(?:   .*)?$", done.stdout, re.M)
    assert len(examples) == 7
    for example in examples:
        generate.parse_arguments(shlex.split(example))


def test_devices():
    assert runs.pick_device("cpu").type == "cpu"
    found = torch.accelerator.current_accelerator(check_available=True)
    assert runs.pick_device("auto") == (found or torch.device("cpu"))
    with pytest.raises(runs.InputError, match="--device cuda:99"):
        runs.pick_device("cuda:99")
