"""The run folder: what is in it, exact resuming, faults, and who may read it."""

import csv
import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import FOLDERS, critic_step, load
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OWN_COLUMNS = {
    "simpleGAN": ["d_real", "d_fake"],
    "DCGAN": ["d_real", "d_fake"],
    "WGAN": ["wasserstein", "clipped"],
    "WGAN-GP": ["wasserstein", "penalty", "slope"],
}


def rows_of(run):
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_times(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(run)]


def steps_of(run):
    return sorted(int(frame.stem) for frame in (run / "frames").iterdir())


def events_of(run):
    events = EventAccumulator(str(run), {"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def test_a_run_holds_what_the_design_says(files, tiny):
    config = tiny(files, max_steps=5, name="run")
    run = files.train.train(config)
    folder = files.run_folder.HERE.name
    assert run.name == "run"
    names = {path.name.split(".")[0] for path in run.iterdir()}
    assert names == {
        *("parameters", "run", "events", "metrics", "train", "frames", "checkpoint", "generator"),
        "",  # .lock
    }
    # facts
    facts = json.loads((run / "run.json").read_text())
    assert facts["format"] == 1 and facts["model"] == folder
    assert facts["started"] < facts["finished"]
    assert facts["torch"] == torch.__version__ and facts["device"].startswith("cpu")
    assert (
        all(count > 0 for count in facts["parameters"].values()) and len(facts["parameters"]) == 2
    )
    # rows
    rows = rows_of(run)
    common = ["step", "epoch", "images", "seconds", "loss_d", "loss_g"]
    assert list(rows[0]) == common + OWN_COLUMNS[folder]
    assert [int(row["step"]) for row in rows] == [2, 4, 5]
    per_step = 8 * (5 if folder.startswith("WGAN") else 1)
    assert [int(row["images"]) for row in rows] == [2 * per_step, 4 * per_step, 5 * per_step]
    assert float(rows[0]["epoch"]) == pytest.approx(2 / 1250)
    seconds = [float(row["seconds"]) for row in rows]
    assert 0 < seconds[0] <= seconds[1] <= seconds[2]
    # frames
    assert steps_of(run) == [0, 2, 4, 5]
    with Image.open(run / "frames" / "000005.png") as frame:
        assert frame.size == (8 * 18 + 2, 8 * 18 + 2)
    # events
    events = events_of(run)
    tags = events.Tags()
    assert set(tags["scalars"]) == {"loss_d", "loss_g", "images_per_second", *OWN_COLUMNS[folder]}
    assert set(tags["images"]) == {"real", "frames"}
    assert [e.step for e in events.Scalars("loss_g")] == [2, 4, 5]
    assert [e.value for e in events.Scalars("loss_d")] == pytest.approx(
        [float(row["loss_d"]) for row in rows], rel=1e-4
    )
    assert any("hparams" in tag for tag in events.summary_metadata)
    # log
    log = (run / "train.log").read_text()
    for word in ("device", "pictures", "cache", "parameters", str(run), "step 5/5", "finished"):
        assert word in log


def test_parameters_repeat_the_run(files, tiny, tmp_path):
    first = files.train.train(tiny(files, name="first"))
    saved = json.loads((first / "parameters.json").read_text())
    assert not {"name", "resume", "runs_dir"} & set(saved)
    config = files.utils.parse_config(
        files.train.Config,
        ["--config", str(first / "parameters.json"), "--runs-dir", str(tmp_path / "other")],
    )
    second = files.train.train(config)
    assert (first / "generator.safetensors").read_bytes() == (
        second / "generator.safetensors"
    ).read_bytes()
    assert without_times(first) == without_times(second)


def test_another_seed_is_another_run(files, tiny):
    first, second = (files.train.train(tiny(files, seed=seed)) for seed in (0, 1))
    assert without_times(first)[0]["loss_d"] != without_times(second)[0]["loss_d"]


def test_the_generator_can_be_built_from_its_file_and_model_py(files, tiny):
    run = files.train.train(tiny(files))
    path = run / "generator.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about["model"] == files.run_folder.HERE.name and about["step"] == 4
    generator = files.model.Generator(**about["arguments"])
    generator.load_state_dict(load_file(path))
    generator.eval()
    noise = torch.Generator().manual_seed(0 + 2**32)
    with torch.no_grad():
        images = generator(torch.randn(64, 8, generator=noise))
    picture = files.run_folder.grid(((images + 1) * 127.5).round().to(torch.uint8))
    with Image.open(run / "frames" / "000004.png") as frame:
        assert (np.asarray(frame) == picture).all()


def test_frames_and_rows_leave_the_training_alone(files, tiny):
    often = files.train.train(tiny(files, frame_every=1, log_every=1, checkpoint_every=1))
    never = files.train.train(tiny(files, frame_every=99, log_every=99, checkpoint_every=99))
    assert (often / "generator.safetensors").read_bytes() == (
        never / "generator.safetensors"
    ).read_bytes()


# ---- resuming ----


class Killed(BaseException):
    """Stands for a process that ends without a chance to save."""


def killed_at(files, config, call, monkeypatch):
    """Train until the critic's step has been called so many times."""
    step, calls = critic_step(files), 0

    def dying(*args):
        nonlocal calls
        calls += 1
        if calls > call:
            raise Killed
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(files.train, step.__name__, dying)
        with pytest.raises(Killed):
            files.train.train(config)


@pytest.mark.parametrize("died", [3, 4, 7])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(files, tiny, monkeypatch, died):
    config = tiny(files, max_steps=9, checkpoint_every=3, log_every=2, frame_every=1)
    whole = files.train.train(dataclasses.replace(config, name="whole"))
    inner = 5 if files.run_folder.HERE.name.startswith("WGAN") else 1
    killed_at(files, dataclasses.replace(config, name="killed"), died * inner, monkeypatch)
    killed = files.train.train(dataclasses.replace(config, resume="killed"))
    for name in ("generator.safetensors",):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    a, b = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (whole, killed))
    assert a.pop("seconds") and b.pop("seconds") and a.pop("settings") == b.pop("settings")
    assert (killed / "checkpoint.before.pt").exists()
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert without_times(whole) == without_times(killed)
    assert steps_of(whole) == steps_of(killed) == list(range(10))
    for step in range(10):
        name = f"frames/{step:06d}.png"
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    for tag in ("loss_d", "loss_g"):
        ours, theirs = (
            sorted((e.step, e.value) for e in events_of(r).Scalars(tag)) for r in (whole, killed)
        )
        assert ours == theirs
    assert sorted(e.step for e in events_of(killed).Images("frames")) == list(range(10))


def test_a_run_can_be_extended(tiny):
    files = load("WGAN-GP")
    whole = files.train.train(tiny(files, name="whole", max_steps=6))
    files.train.train(tiny(files, name="part", max_steps=4))
    part = files.train.train(tiny(files, resume="part", max_steps=6))
    assert (whole / "generator.safetensors").read_bytes() == (
        part / "generator.safetensors"
    ).read_bytes()
    assert json.loads((part / "parameters.json").read_text())["max_steps"] == 6


def test_a_run_ends_when_its_time_is_over_and_can_get_more(tiny, monkeypatch):
    files = load("WGAN")
    now = iter(range(10**6))  # each look at the clock finds it a second on
    monkeypatch.setattr(files.run_folder.time, "perf_counter", lambda: next(now))
    config = tiny(files, name="run", max_steps=20, max_seconds=3.0, checkpoint_every=99)
    run = files.train.train(config)
    seconds = float(rows_of(run)[-1]["seconds"])
    ended = int(rows_of(run)[-1]["step"])
    assert 3 <= seconds <= 5 and 2 <= ended <= 3 and steps_of(run)[-1] == ended
    assert json.loads((run / "run.json").read_text())["finished"]
    with pytest.raises(files.utils.InputError, match="3 seconds are over"):
        files.train.train(dataclasses.replace(config, name="", resume="run"))
    files.train.train(dataclasses.replace(config, name="", resume="run", max_seconds=6.0))
    assert steps_of(run)[-1] > ended


def test_what_is_newer_than_the_checkpoint_or_cut_short_is_cut_off(tiny):
    files = load("DCGAN")
    run = files.train.train(tiny(files, name="run"))
    with open(run / "metrics.csv", "a") as file:
        file.write("6,0.1,48,1.0,1,1,1,1\n7,0.2")
    shutil.copy(run / "frames" / "000004.png", run / "frames" / "000006.png")
    events = next(run.glob("events*"))
    events.write_bytes(events.read_bytes()[:-7])
    files.run_folder.cut_off(run, 2)
    assert [row["step"] for row in rows_of(run)] == ["2"]
    assert steps_of(run) == [0, 2]
    assert [e.step for e in events_of(run).Scalars("loss_d")] == [2]
    assert [e.step for e in events_of(run).Images("real")] == [0]


@pytest.mark.parametrize("left", ["", "step,epo"])
def test_a_table_that_was_only_begun_is_begun_again(tiny, left):
    files = load("DCGAN")
    run = files.train.train(tiny(files, name="run", max_steps=2))
    (run / "metrics.csv").write_text(left)
    files.train.train(tiny(files, resume="run", max_steps=4))
    assert [row["step"] for row in rows_of(run)] == ["4"]


def test_resume_takes_the_newest_run_with_its_settings(tiny, tmp_path):
    files = load("DCGAN")
    for name in ("b", "a"):
        files.train.train(tiny(files, name=name, max_steps=2, lr=3e-4, d_width=5))
    runs = str(tmp_path / "runs")
    config = files.utils.parse_config(
        files.train.Config, ["--resume", "--runs-dir", runs, "--max-steps", "3"]
    )
    assert (config.lr, config.d_width, config.max_steps) == (3e-4, 5, 3)
    assert files.train.train(config).name == "a"
    config = files.utils.parse_config(
        files.train.Config, ["--max-steps", "3", "--runs-dir", runs, "--resume", "b"]
    )
    assert files.train.train(config).name == "b"


def test_contradictions_are_refused_and_each_is_listed(files, tiny):
    run = files.train.train(tiny(files, name="run"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(files.utils.InputError) as caught:
        files.train.train(tiny(files, resume="run", max_steps=6, lr=0.5, log_every=3))
    text = str(caught.value)
    assert "lr was" in text and "0.5" in text and "log_every was 2 and is now 3" in text
    with pytest.raises(files.utils.InputError, match="4 steps are done"):
        files.train.train(tiny(files, resume="run"))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_other_pictures_are_refused(tiny, tmp_path):
    files = load("DCGAN")
    for i in range(8):
        folder = tmp_path / "p"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (i, 0, 0)).save(folder / f"{i}.png")
    config = tiny(files, data=str(folder), name="run", max_steps=2)
    files.train.train(config)
    Image.new("RGB", (16, 16), (99, 0, 0)).save(folder / "0.png")
    with pytest.raises(files.utils.InputError, match="pictures are not those"):
        files.train.train(dataclasses.replace(config, resume="run", name="", max_steps=4))


def test_names_are_taken_once(tiny):
    files = load("DCGAN")
    files.train.train(tiny(files, name="run", max_steps=1))
    with pytest.raises(files.utils.InputError, match="exists"):
        files.train.train(tiny(files, name="run", max_steps=1))
    for name in ("a/b", "..", "latest", "/somewhere"):
        with pytest.raises(files.utils.InputError, match="--name"):
            files.train.train(tiny(files, name=name, max_steps=1))


def test_runs_without_a_name_never_collide(tiny, monkeypatch):
    utils = load("DCGAN").utils
    made = {utils.new_run(tiny(load("DCGAN")).runs_dir, "") for _ in range(5)}
    assert len(made) == 5


# ---- divergence ----


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_loss_that_is_not_finite_ends_the_run_with_a_good_checkpoint(folder, tiny, monkeypatch):
    files = load(folder)
    step, calls = files.train.generator_step, 0

    def diverging(*args):
        nonlocal calls
        calls += 1
        losses = step(*args)
        return {"loss_g": losses["loss_g"] * math.nan} if calls == 5 else losses

    monkeypatch.setattr(files.train, "generator_step", diverging)
    config = tiny(files, name="run", max_steps=20, checkpoint_every=2, log_every=2)
    with pytest.raises(files.utils.RunError, match="loss_g is nan"):
        files.train.train(config)
    run = files.utils.find_run(config.runs_dir, "run")
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 4
    assert all(t.isfinite().all() for t in load_file(run / "generator.safetensors").values())
    assert "loss_g is nan" in (run / "train.log").read_text().splitlines()[-1]  # doctor.py reads it


def test_weights_that_are_not_finite_reach_no_checkpoint(tiny, monkeypatch):
    files = load("DCGAN")
    step, calls = files.train.generator_step, 0

    def diverging(critic, generator, *args):
        nonlocal calls
        calls += 1
        losses = step(critic, generator, *args)
        if calls == 4:
            next(generator.parameters()).data[0] = math.inf
        return losses

    monkeypatch.setattr(files.train, "generator_step", diverging)
    config = tiny(files, name="run", max_steps=20, checkpoint_every=2, log_every=99)
    with pytest.raises(files.utils.RunError, match=r"generator\.layers"):
        files.train.train(config)
    run = files.utils.find_run(config.runs_dir, "run")
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 2


def test_saving_replaces_files_whole_or_not_at_all(tmp_path):
    utils = load("DCGAN").utils
    (tmp_path / "file").write_text("old")
    with pytest.raises(Killed), utils.write_aside(tmp_path / "file") as file:
        file.write(b"half of the n")
        raise Killed
    assert (tmp_path / "file").read_text() == "old"
    with utils.write_aside(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_is_pickled_that_runs_code(files, tiny):
    run = files.train.train(tiny(files))
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4 and set(state) >= {"generator", "batches", "own"}
