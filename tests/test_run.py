"""The run folder and the program: what is written, exact resuming, signals, and messages."""

import io
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    FOUR,
    TINY,
    TOP,
    assert_equal,
    each_step,
    facts_of,
    flags_of,
    load,
    load_images,
    rows_of,
    run_script,
    state_of,
    train,
    write_images,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OWN_COLUMNS = {key: ["d_real", "d_fake"] for key in FOUR} | {"WGAN": ["wasserstein", "clipped"]}
OWN_COLUMNS["WGAN-GP"] = ["wasserstein", "penalty", "gradient_norm"]


def events_of(run):
    events = EventAccumulator(str(run), {"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def test_a_run_holds_what_the_design_says(files, tiny):
    run = train(files.folder, tiny | {"max_steps": 5, "name": "run", "hold_out": 7})
    names = {path.name.split(".")[0] for path in run.iterdir()} - {""}  # the lock
    expected = {"parameters", "run", "events", "metrics", "train", "frames"}
    assert names == expected | {"checkpoint", "generator"}

    facts = facts_of(run)
    assert (facts["format"], facts["model"], facts["processes"]) == (1, files.folder, 1)
    assert facts["started"] < facts["finished"] and facts["device"].startswith("cpu (")
    assert facts["torch"] == torch.__version__ and facts["pictures"]["shape"] == [9993, 16, 16, 3]
    state = state_of(run)
    for name, count in facts["parameters"].items():
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        tensors = [t for key, t in state[name].items() if not key.endswith(buffers)]
        assert count == sum(tensor.numel() for tensor in tensors)
    other = "critic" if files.folder.startswith("WGAN") else "discriminator"
    assert set(facts["parameters"]) == {"generator", other}
    parts = {"generator", other, "generator_optimizer", f"{other}_optimizer", "batches"}
    assert set(state) == parts | {"step", "seconds", "settings", "own"}

    rows = rows_of(run)
    first_columns, logged = list(rows[0])[:4], list(rows[0])[4:]
    assert first_columns == ["step", "epoch", "images", "seconds"]
    if files.folder in FOUR:
        assert logged == ["loss_d", "loss_g", *OWN_COLUMNS[files.folder]]
    columns = {name: [float(row[name]) for row in rows] for name in rows[0]}
    assert columns["step"] == [2, 4, 5]
    assert 0 < columns["seconds"][0] < columns["seconds"][1] < columns["seconds"][2]

    with Image.open(run / "frames" / "000005.png") as frame:
        assert frame.size == (8 * 18 + 2, 8 * 18 + 2)
    events = events_of(run)
    assert set(events.Tags()["scalars"]) == {"images_per_second", *logged}
    steps = sorted(int(frame.stem) for frame in (run / "frames").iterdir())
    assert steps == [e.step for e in events.Images("frames")] == [0, 2, 4, 5]
    (real,) = events.Images("real")
    first = np.fromfile(facts["cache"], np.uint8).reshape(-1, 16, 16, 3)[9]
    with Image.open(io.BytesIO(real.encoded_image_string)) as shown:
        assert real.step == 0 and np.array_equal(shown.crop((20, 20, 36, 36)), first)
    for name in logged:
        assert [event.step for event in events.Scalars(name)] == [2, 4, 5]
        values = [event.value for event in events.Scalars(name)]
        assert values == pytest.approx(columns[name], rel=1e-4)
    images, seconds = (np.diff(columns[name], prepend=0) for name in ("images", "seconds"))
    speeds = [event.value for event in events.Scalars("images_per_second")]
    assert speeds == pytest.approx(images / seconds, rel=0.5)  # seconds are rounded

    log = (run / "train.log").read_text()
    for words in ("device", "9,993 of 16x16x3: faces", "7 more", str(run), "finished    5 steps"):
        assert words in log


def test_frames_are_the_generator_in_eval_mode_on_noise_of_its_own(files, tiny):
    own = tiny | {"max_steps": 4, "seed": 3, "g_width": 6}
    few, many = (train(files.folder, own | {"frame_every": n}) for n in (1, 99))
    weights = [(run / "generator.safetensors").read_bytes() for run in (few, many)]
    assert weights[0] == weights[1]  # drawing moves neither noise nor statistics
    assert state_of(few)["own"] and rows_of(few, "seconds") == rows_of(many, "seconds")
    with safe_open(few / "generator.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about.pop("arguments") == {"z_dim": 8, "image_size": 16, "channels": 3, "width": 6}
    assert about == {"format": 1, "model": files.folder, "step": 4, "z_dim": 8}
    generator = files.model.Generator(8, 16, 3, 6).eval()
    generator.load_state_dict(load_file(few / "generator.safetensors"))
    rng = torch.Generator().manual_seed(files.utils.stream_seed(3, 0))
    with torch.no_grad():
        images = (generator(torch.randn(64, 8, generator=rng)) + 1) * 127.5
    frame = torch.tensor(np.array(Image.open(few / "frames" / "000004.png")))
    for i in (0, 9, 63):
        left, top = 2 + i % 8 * 18, 2 + i // 8 * 18
        shown = frame[top : top + 16, left : left + 16].movedim(2, 0)
        assert (shown - images[i].round()).abs().max() <= 1


def test_parameters_repeat_the_run_from_another_folder(files, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", (9, 16, 16, 3))
    own = {"data": "images", "data_dir": "cache", "runs_dir": "one", "name": "first"}
    first = train(files.folder, tiny | own)
    monkeypatch.chdir("/")
    again = {"config": first / "parameters.json", "runs_dir": tmp_path / "two"}
    assert_equal(first, train(files.folder, again))
    assert (tmp_path / "cache").exists()
    resumed = train(files.folder, {"resume": "first", "runs_dir": tmp_path / "one", "max_steps": 5})
    assert resumed == first and state_of(first)["step"] == 5


def test_a_folder_copied_under_another_name_trains_alone(tmp_path):
    folder = tmp_path / "my-gan"
    skip = shutil.ignore_patterns("__pycache__", "tensorboard", "data")
    shutil.copytree(TOP / "WGAN-GP", folder, ignore=skip)
    (tmp_path / "cwd").mkdir()
    write_images(tmp_path / "images", (8, 16, 16, 3))
    settings = TINY | {"max_steps": 3, "data": "../images"}
    done = run_script(folder / "train.py", settings, cwd=tmp_path / "cwd")
    assert done.returncode == 0 and not done.stderr, done.stderr
    (run,) = (folder / "tensorboard" / "runs").iterdir()
    assert facts_of(run)["model"] == "my-gan"
    assert (folder / "data" / "cache").is_dir() and not list((tmp_path / "cwd").iterdir())
    assert (run / "train.log").read_text() == done.stdout  # not a terminal: lines, no bar
    assert "step 3/3" in done.stdout and "\r" not in done.stdout


@pytest.mark.parametrize("killed_at", [3, 4, 7])
def test_a_killed_run_continues_as_if_nothing_had_happened(files, tiny, monkeypatch, killed_at):
    settings = tiny | {"max_steps": 9, "log_every": 2, "frame_every": 1, "checkpoint_every": 3}
    whole = train(files.folder, settings | {"name": "whole"})

    def kill(number, *_):
        if number == killed_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        each_step(files, patch, kill)
        train(files.folder, settings | {"name": "killed"})
    killed = whole.with_name("killed")
    with open(killed / "metrics.csv", "ab") as file:
        file.write(b"8,\xff")  # and a row cut off within a character
    time.sleep(1 - time.time() % 1)  # TensorBoard orders files by the second of their beginning
    resumed = train(files.folder, settings | {"resume": "killed"})
    assert_equal(whole, resumed)
    events = [events_of(run).Scalars("loss_g") for run in (whole, resumed)]
    ours, theirs = ([(event.step, event.value) for event in one] for one in events)
    assert ours == theirs


def test_the_newest_run_is_extended_elsewhere_on_the_same_images(tiny, tmp_path):
    here = write_images(tmp_path / "here", (9, 16, 16, 3))
    settings = tiny | {"data": here}
    whole = train("WGAN-GP", settings | {"name": "whole", "max_steps": 6})
    train("WGAN-GP", settings | {"name": "z"})
    part = train("WGAN-GP", settings | {"name": "part", "max_seconds": 99.0})
    started = facts_of(part)["started"]
    now = {"data": here.rename(tmp_path / "there"), "data_dir": tmp_path / "other"}
    now |= {"max_steps": 6, "max_seconds": 100.0, "device": "auto", "runs_dir": tiny["runs_dir"]}
    assert train("WGAN-GP", now | {"resume": "latest"}) == part
    assert_equal(whole, part)
    assert facts_of(part)["started"] == started < facts_of(part)["finished"]
    assert json.loads((part / "parameters.json").read_text())["max_steps"] == 6


def test_time_is_a_limit_that_can_grow(tiny, monkeypatch):
    files, now = load("WGAN"), itertools.count()  # each look at the clock finds it a second on
    monkeypatch.setattr(files.utils.time, "perf_counter", lambda: next(now))
    settings = tiny | {"max_steps": 20, "max_seconds": 3.0, "checkpoint_every": 99}
    run = train("WGAN", settings | {"name": "run"})
    assert [(r["step"], r["seconds"]) for r in rows_of(run)] == [("2", "2.0"), ("3", "3.0")]
    assert facts_of(run)["finished"] and state_of(run)["step"] == 3
    with pytest.raises(files.utils.InputError, match="3 seconds are over; raise --max-seconds"):
        train("WGAN", settings | {"resume": "run"})
    time.sleep(1 - time.time() % 1)  # as above
    now = itertools.count(0, 2)
    train("WGAN", settings | {"resume": "run", "max_seconds": 6.5})
    assert [row["step"] for row in rows_of(run)] == ["2", "3", "4", "5"]
    speeds = [event.value for event in events_of(run).Scalars("images_per_second")]
    assert speeds == [40, 40, 20, 20]  # of the steps since the last row, or since resuming


def test_a_resumed_run_may_take_smaller_steps_and_says_so(files, tiny):
    """The first update after it grows with lr: Adam and RMSProp scale theirs alone by it."""
    run, moved = train(files.folder, tiny | {"name": "run"}), []
    was = state_of(run)
    for lr in (1e-6, 4e-6):
        other = shutil.copytree(run, run.with_name(f"{lr}"))
        train(files.folder, tiny | {"resume": other.name, "max_steps": 5, "lr": lr})
        for part in list(was)[:2]:  # the two networks
            pairs = zip(was[part].items(), state_of(other)[part].values(), strict=True)
            steps = [(b - a).double().abs().mean() for (k, a), b in pairs if k.endswith("weight")]
            moved.append(float(sum(steps)))
        assert facts_of(other)["lr_until_step"] == {"4": was["settings"]["lr"]}
        train(files.folder, tiny | {"resume": other.name, "max_steps": 6, "lr": 2e-6})
        assert facts_of(other)["lr_until_step"] == {"4": was["settings"]["lr"], "5": lr}
    assert moved[2:] == pytest.approx([4 * step for step in moved[:2]], rel=0.05)


def test_a_setting_newer_than_the_run_had_its_default(tiny):
    run = train("simpleGAN", tiny | {"name": "run"})
    state = state_of(run)
    del state["settings"]["dropout"]
    torch.save(state | {"settings": state["settings"] | {"graphs": True}}, run / "checkpoint.pt")
    with pytest.raises(load("simpleGAN").utils.InputError, match=r"dropout was 0\.3 and is now 0"):
        train("simpleGAN", tiny | {"resume": "run", "max_steps": 6, "dropout": 0.0})
    train("simpleGAN", tiny | {"resume": "run", "max_steps": 6})


def test_other_images_are_refused(tiny, tmp_path):
    folder = write_images(tmp_path / "images", (8, 16, 16, 3))
    train("DCGAN", tiny | {"data": folder, "name": "run", "max_steps": 2})
    Image.new("RGB", (16, 16), (99, 0, 0)).save(folder / "0.png")
    with pytest.raises(load("DCGAN").utils.InputError, match="images are not those"):
        train("DCGAN", tiny | {"data": folder, "resume": "run"})


def test_names_are_taken_once_and_folders_by_one_training(tiny):
    utils, once = load("DCGAN").utils, tiny | {"name": "run", "max_steps": 1}
    run = train("DCGAN", once)
    with pytest.raises(utils.InputError, match="exists; continue it with --resume"):
        train("DCGAN", once)
    for name in ("a/b", "..", "latest", "/somewhere"):
        with pytest.raises(utils.InputError, match="--name"):
            train("DCGAN", once | {"name": name})
    used = pytest.raises(utils.InputError, match="another training is using")
    with utils.FileLock(run / ".lock"), used:
        train("DCGAN", tiny | {"resume": "run"})


@pytest.mark.parametrize("what, log_every", [("loss_g", 2), ("sum", 9), ("0", 9), ("1", 9)])
def test_a_run_that_diverges_keeps_a_good_checkpoint(files, tiny, monkeypatch, what, log_every):
    def diverge(number, generator, opponent, losses):
        losses["sum"] = torch.tensor(1.0)
        if number == 6:
            last = {"0": [*generator.parameters()][-1], "1": [*opponent.parameters()][-1]}
            (losses | last)[what].data.fill_(math.nan if what == "loss_g" else -math.inf)

    each_step(files, monkeypatch, diverge)
    with pytest.raises(files.utils.RunError, match="at step 6: the training has diverged"):
        train(files.folder, tiny | {"name": "run", "max_steps": 8, "log_every": log_every})
    run = Path(tiny["runs_dir"], "run")
    assert state_of(run)["step"] == 4
    assert all(t.isfinite().all() for t in load_file(run / "generator.safetensors").values())
    assert "diverged" in (run / "train.log").read_text().splitlines()[-1]  # doctor.py reads it


def test_bad_input_gets_one_line_and_leaves_nothing_behind(tiny, tmp_path):
    (tmp_path / "broken.json").write_text('{"epoch": 1}')
    before = sorted(tmp_path.rglob("*"))
    for argv, words in (
        (["--config", "broken.json"], "broken.json: --epoch: unknown"),
        (["--data", "nowhere"], f"--data {tmp_path / 'nowhere'}: no such folder"),
        (["--device", "toaster"], "--device toaster: not available ("),
        (["--device", "cuda:99"], "--device cuda:99: not available ("),
    ):
        done = run_script(TOP / "WGAN" / "train.py", tiny, *argv, cwd=tmp_path)
        assert done.returncode == 2 and not done.stdout and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("train.py: error: ") and words in done.stderr
        assert sorted(tmp_path.rglob("*")) == before


def test_main_trains_with_the_flags_and_ends_with_a_line(files, tiny, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", *flags_of(tiny | {"max_steps": 1, "name": "a"})])
    files.train.main()
    with pytest.raises(SystemExit) as ended:
        files.train.main()
    assert ended.value.code == 2
    out, error = capsys.readouterr()
    assert "finished    1 step in" in out and error.startswith("train.py: error: --name a: ")


def test_a_name_that_the_terminal_cannot_show_is_escaped(tiny, tmp_path):
    settings = tiny | {"max_steps": 1, "runs_dir": tmp_path / "\u0436"}
    done = run_script(TOP / "DCGAN" / "train.py", settings, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0 and "\\u0436" in done.stdout, done.stderr


def test_a_training_too_short_to_learn_from_is_named_unless_it_is_resumed(tiny, tmp_path, capsys):
    images = write_images(tmp_path / "images", (16, 16, 16, 3))
    short = "warning     2 steps at lr {} are too few for visible images; try --{}"
    for more, told in (
        ({"name": "run"}, [short.format("5e-05", "epochs 3000")]),
        ({"lr": 0.043, "max_steps": 2, "epochs": 9}, [short.format("0.043", "max-steps 7")]),
        ({"lr": 0.08}, []),
        ({"resume": "run", "epochs": 2}, []),
    ):
        train("DCGAN", tiny | {"data": images, "max_steps": 0, "epochs": 1} | more)
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line.startswith("warning")] == told


def test_a_long_training_on_a_cpu_says_so_unless_it_is_quick_already(tiny, monkeypatch, capsys):
    def one_row(run):
        run.bar = type("Bar", (), {"disable": True, "set_postfix_str": lambda *_, **__: None})()
        yield 1
        run.step, run.seconds, run.last_step = 2, 20.0, 10**5
        run.tell("", 10.0)

    monkeypatch.setattr(load("DCGAN").utils.Run, "steps", one_row)
    for argv, told in (([], True), (["--config", "quick.json"], False)):
        monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        train("DCGAN", tiny | {"name": f"{told}"})
        said = capsys.readouterr().out
        assert ("hours on this CPU" in said and "--config quick.json" in said) == told


@pytest.mark.skipif(os.name != "posix", reason="shell scripts")
@pytest.mark.parametrize("folder", FOUR)
def test_shell_scripts_pass_their_arguments_on(folder, tmp_path):
    python = tmp_path / "python"  # stands in for the real one, and says how it was called
    python.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\nexit 3\n')
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = [TOP / "scripts" / f"train_{folder}.sh", "--name", "a b"]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, cwd=tmp_path)
    where, program, *rest = done.stdout.splitlines()
    assert Path(where, program).resolve() == TOP / folder / "train.py"
    assert done.returncode == 3 and rest[-2:] == ["--name", "a b"], done


def test_the_bar_fits_80_columns_and_knows_max_seconds(tiny, monkeypatch):
    terminal, utils = io.StringIO(), load("simpleGAN").utils
    terminal.isatty = lambda: True

    class Bar(utils.tqdm):
        def __init__(self, **options):
            super().__init__(**options | {"file": terminal, "ncols": 80, "dynamic_ncols": False})

    monkeypatch.setattr(utils, "tqdm", Bar)
    limits = {"max_steps": 0, "max_seconds": 1.5, "log_every": 5, "frame_every": 10**6}
    steps = state_of(train("simpleGAN", tiny | limits))["step"]
    bars = [bar for bar in terminal.getvalue().split("\r") if "loss_g" in bar]
    assert bars and all(len(bar.rstrip("\n")) <= 80 and bar.rstrip().endswith("]") for bar in bars)
    totals = [int(bar.split("/")[1].split()[0]) for bar in bars]
    assert totals[-1] < 3 * steps and "100%" in bars[-1]  # the epochs alone would be 62,500


def test_a_gpu_is_waited_for_within_the_training_time(tiny, monkeypatch):
    """What has been queued on a device is done before a row is written, and it counts."""
    files, clock = load("DCGAN"), [0.0]
    monkeypatch.setattr(files.utils.time, "perf_counter", lambda: clock[0])

    def wait(device):
        clock[0] += 7

    monkeypatch.setattr(torch.accelerator, "synchronize", wait)
    monkeypatch.setattr(files.utils.Run, "draw", lambda run: None)
    monkeypatch.setattr(files.utils.Run, "save", lambda run: None)
    dataset = load_images(files, "faces", tiny["data_dir"])
    limits = {"max_steps": 4, "log_every": 2, "frame_every": 99, "runs_dir": tiny["runs_dir"]}
    config = files.train.Config(batch_size=8, **limits)
    parts = {"generator": files.model.Generator(100, 16, 3, 4)}
    run = files.utils.Run(config, dataset, torch.device("meta"), 1, parts, {})
    for _ in run.steps():
        clock[0] += 1
        run.record({"loss_d": torch.tensor(1.0), "loss_g": torch.tensor(1.0)})
    assert [row["seconds"] for row in rows_of(run.path)] == ["9.0", "18.0"]
