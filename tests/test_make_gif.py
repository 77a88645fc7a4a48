"""GIFs from run folders."""

import json

import numpy as np
import pytest
from conftest import TOP
from PIL import Image

import make_gif
import runs


@pytest.fixture
def top(tmp_path, monkeypatch):
    """Stand in for the top of the repository, with no runs."""
    for model in runs.MODELS:
        (tmp_path / model).mkdir()
        (tmp_path / model / "train.py").touch()
    monkeypatch.setattr(runs, "TOP", tmp_path)
    monkeypatch.setattr(make_gif, "TOP", tmp_path)
    monkeypatch.setattr(runs.model_runs, "__defaults__", (tmp_path,))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(top, model, name="run", frames=4, every=10, side=32, started="2026-01-01", **settings):
    run = top / model / "tensorboard" / "runs" / name
    (run / "frames").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"format": 1, "model": model, "started": started}))
    (run / "parameters.json").write_text(json.dumps({"batch_size": 64} | settings))
    rng = np.random.default_rng(0)
    for i in range(frames):
        values = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(values).save(run / "frames" / f"{i * every:06d}.png")
    return run


def call(monkeypatch, *argv):
    monkeypatch.setattr("sys.argv", ["make_gif.py", *map(str, argv)])
    make_gif.main()


def frames_in(path):
    with Image.open(path) as gif:
        times = []
        for i in range(gif.n_frames):
            gif.seek(i)
            times.append(gif.info["duration"])
        return gif.size, times


def test_alone_it_draws_the_newest_run_of_every_model(top, monkeypatch, capsys):
    make_run(top, "DCGAN", "b_old", frames=3, started="2026-01-01")
    make_run(top, "DCGAN", "a_new", frames=5, started="2026-01-02")
    make_run(top, "WGAN", frames=3)
    call(monkeypatch)
    assert {p.name for p in (top / "assets").iterdir()} == {"DCGAN.gif", "WGAN.gif"}
    (width, height), times = frames_in(top / "assets" / "DCGAN.gif")
    assert times == [100, 100, 100, 100, 2000]  # the last is held
    assert width == 512 and height > width  # enlarged, and the step above
    text = capsys.readouterr().out
    assert "simpleGAN: no run yet" in text and "WGAN-GP: no run yet" in text


def test_without_any_run_it_says_so(top, monkeypatch):
    with pytest.raises(runs.InputError, match="no run of any model"):
        call(monkeypatch)
    assert not (top / "assets").exists()


def test_chosen_runs(top, monkeypatch, tmp_path):
    run = make_run(top, "DCGAN", frames=9)
    out = tmp_path / "x.gif"
    call(monkeypatch, run, "--out", out, "--fps", 20, "--every", 3)
    assert frames_in(out)[1] == [50, 50, 50, 2000]  # frames 0, 3, 6 and the last
    call(monkeypatch, "DCGAN")
    call(monkeypatch, "run")
    assert (run / "samples.gif").exists()
    with pytest.raises(runs.InputError, match="--out"):
        call(monkeypatch, run, make_run(top, "WGAN"), "--out", out)


def test_no_more_than_100_frames_evenly_taken(top):
    run = make_run(top, "DCGAN", frames=250, side=4)
    steps = [runs.step_of(scene[0][0]) for scene in make_gif.scenes_of(run, 0)]
    assert len(steps) == 100 and steps[0] == 0 and steps[-1] == 2490
    assert set(np.diff(steps)) <= {20, 30}


def test_side_by_side_is_aligned_by_images_shown(top, monkeypatch):
    dcgan = make_run(top, "DCGAN", frames=6, every=10)
    wgan = make_run(top, "WGAN", frames=3, every=5, n_critic=5, side=48)
    scenes = make_gif.scenes_side_by_side([dcgan, wgan], 0)
    at = [[runs.step_of(frame) for frame, _ in scene] for scene in scenes]
    # images: DCGAN 0, 640, ... 3200; WGAN 0, 1600, 3200
    assert at == [[0, 0], [10, 0], [20, 0], [20, 5], [30, 5], [40, 5], [50, 10]]
    short = make_run(top, "DCGAN", "short", frames=2, every=10)  # ends long before the other
    last = make_gif.scenes_side_by_side([short, wgan], 0)[-1]
    assert [label for _, label in last] == [
        "DCGAN   640 images, step 10",
        "WGAN   3,200 images, step 10",
    ]
    call(monkeypatch, dcgan, wgan, "--side-by-side")
    (width, height), _ = frames_in(top / "assets" / "side-by-side.gif")
    assert width > 2 * 480 and height < 560


def test_the_step_stands_on_each_frame(top):
    run = make_run(top, "DCGAN")
    frames = [make_gif.panel(frame, "step 1") for frame in runs.frames_of(run)[:2]]
    other = make_gif.panel(runs.frames_of(run)[0], "step 2")
    strip = (0, 0, 512, frames[0].height - 512)
    assert np.array_equal(frames[0].crop(strip), frames[1].crop(strip))
    assert not np.array_equal(frames[0].crop(strip), other.crop(strip))
    assert np.asarray(frames[0].crop(strip)).min() < 100  # dark letters


def test_frames_keep_their_order_beyond_six_digits(top):
    run = make_run(top, "DCGAN", frames=3, every=900_000)
    assert [runs.step_of(f) for f in runs.frames_of(run)] == [0, 900_000, 1_800_000]


@pytest.mark.parametrize("noise", [10, 120])
def test_sixty_frames_of_64_images_stay_under_5_mb(top, monkeypatch, noise):
    """Smooth faces and hard noise alike: quality gives way, not size."""
    run = make_run(top, "DCGAN", frames=0)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:530, :530] / 40
    grain = rng.normal(0, noise, (530, 530, 3))
    for i in range(60):
        smooth = 128 + 80 * np.stack([np.sin(x + i / 9), np.cos(y), np.sin(x + y)], -1)
        values = (smooth + np.roll(grain, 97 * i)).clip(0, 255).astype(np.uint8)
        Image.fromarray(values).save(run / "frames" / f"{i:06d}.png", compress_level=1)
    call(monkeypatch, run)
    assert (run / "samples.gif").stat().st_size < 5e6
    assert len(frames_in(run / "samples.gif")[1]) == 60


def test_bad_input(top, monkeypatch, tmp_path):
    run = make_run(top, "DCGAN", frames=0)
    for argv, named in (
        (["nowhere"], "nowhere"),
        (["WGAN"], "WGAN: no run yet"),
        ([run], "no frames"),
        ([tmp_path], "no run.json"),
        (["--fps", "0"], "--fps"),
        (["--every", "-1"], "--every"),
    ):
        with pytest.raises(runs.InputError, match=named):
            call(monkeypatch, *argv)
    (run / "run.json").write_text("{")
    with pytest.raises(runs.InputError, match="damaged"):
        call(monkeypatch, run)
    (run / "run.json").write_text('{"format": 99}')
    with pytest.raises(runs.InputError, match="format"):
        call(monkeypatch, run)


@pytest.mark.parametrize("kind", ["damaged", "huge", "other", "empty"])
def test_frames_that_no_training_has_drawn_are_refused_by_name(kind, top, monkeypatch):
    run = make_run(top, "DCGAN")
    frame = run / "frames" / "000010.png"
    if kind == "damaged":
        frame.write_bytes(frame.read_bytes()[:200])
    elif kind == "huge":
        Image.new("1", (12_000, 12_000)).save(frame)  # 20 kB, and 0.4 GB as RGB
    elif kind == "other":
        Image.new("RGB", (32, 32)).save(frame, "GIF")
    else:
        frame.write_bytes(b"")
    with pytest.raises(runs.InputError, match=r"000010\.png cannot be drawn"):
        call(monkeypatch, run)
    assert not (run / "samples.gif").exists()


def test_the_models_are_the_folders():
    assert {path.parent.name for path in TOP.glob("*/train.py")} == set(runs.MODELS)
