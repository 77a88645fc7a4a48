"""generate.py: which images it generates, and the files that hold them."""

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from PIL import Image
from safetensors.torch import load_file, save_file

import generate
import runs


def weights_file(folder, channels=3):
    """Write a DCGAN's generator, of z_dim 8, whose images differ from each other."""
    arguments = {"z_dim": 8, "image_size": 16, "channels": channels, "width": 4}
    torch.manual_seed(0)
    generator = runs.load_file_of("DCGAN", "model").Generator(**arguments)
    for _ in range(50):
        generator(3 * torch.randn(16, 8) + 1)  # running means far from those of a batch
    generator.layers[-2].weight.data *= 20
    about = {"format": 1, "model": "DCGAN", "step": 7, "arguments": arguments}
    state = {name: value.contiguous() for name, value in generator.state_dict().items()}
    save_file(state, folder / "DCGAN.safetensors", {"about": json.dumps(about)})
    return folder / "DCGAN.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return weights_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def call(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        monkeypatch.setattr("sys.argv", ["generate.py", *map(str, argv)])
        generate.main()

    return call


def picture(file):
    return np.asarray(Image.open(file).convert("RGB"))


def sheet(tiles, columns, factor, gap=2):
    """Lay out tiles (N, H, W, C) in rows on white, and enlarge all."""
    (count, high, wide, _), rows = tiles.shape, -(-len(tiles) // columns)
    pixels = np.full((gap + rows * (high + gap), gap + columns * (wide + gap), 3), 255)
    for i in range(count):
        y, x = gap + i // columns * (high + gap), gap + i % columns * (wide + gap)
        pixels[y : y + high, x : x + wide] = tiles[i]
    return pixels.repeat(factor, 0).repeat(factor, 1)


def test_images_are_those_of_the_generator_in_eval_mode_for_the_seed(weights, call):
    model = runs.load_file_of("DCGAN", "model").Generator(8, 16, 3, 4)
    model.load_state_dict(load_file(weights))
    for seed, num in ((0, 41), (2**32 - 1, 67)):
        call(weights, "--num", num, "--npz", "x.npz", *["--seed", seed] * (seed > 0))
        stream = torch.Generator().manual_seed(seed)
        z = torch.stack([torch.randn(8, generator=stream) for _ in range(num)])
        expected = ((model.eval()(z).detach() + 1) / 2 * 255).movedim(1, 3).numpy()
        images = np.load("x.npz")["images"]
        assert images.dtype == np.uint8 and np.abs(images - expected).max() < 0.51
    assert images.min() < 60 and images.max() > 200 and len(np.unique(images, axis=0)) == 67


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_single_files_and_array_hold_the_same_images(call, tmp_path, capsys, channels):
    file = weights_file(tmp_path, channels=channels)
    outputs = ("--out", "new/x.png", "--each", "deep/each", "--npz", "sub/x.npz")
    call(file, "--num", 70, "--columns", 9, *outputs)
    assert "wrote new/x.png, deep/each, sub/x.npz\n" in capsys.readouterr().out
    images = np.load("sub/x.npz")["images"]
    assert images.shape == (70, 16, 16, channels)
    assert (picture("new/x.png") == sheet(images, 9, factor=1100 // 164)).all()
    for i in range(70):
        assert (picture(f"deep/each/{i:06d}.png") == images[i]).all()
    others = {path.name for path in tmp_path.rglob("*") if len(path.stem) != 6}
    assert others == {file.name, "new", "x.png", "deep", "each", "sub", "x.npz"}


def test_default_files_lie_in_the_run_or_beside_the_weights(weights, call, tmp_path):
    Path("run").mkdir()
    Path("run/run.json").write_text('{"format": 1, "model": "DCGAN", "started": "2026-01-01"}')
    for copy in ("run/generator.safetensors", "run/x.safetensors"):
        shutil.copy(weights, copy)
    call("run", "--npz", "x.npz")
    call("run", "--each", "each")
    assert not list(Path("run").glob("*.png"))  # no grid was asked for
    for source in ("run", "run/x.safetensors"):
        call(source)
        call(source, "--walk", 2, "--frames", 4)
    for name in ("run/samples.png", "run/x-samples.png"):
        assert (picture(name) == sheet(np.load("x.npz")["images"], 8, 1100 // 146)).all()
    for name in ("run/walk.gif", "run/x-walk.gif"):
        assert Image.open(name).n_frames == 4


def test_a_walk_takes_equal_steps_on_great_circles_and_closes():
    """Each point is turned towards the next in the plane of the two, at constant speed."""
    points = torch.randn(4, 5, generator=torch.Generator().manual_seed(7)).double()
    legs, expected = [], []
    for start, end in zip(points, points.roll(-1, 0), strict=True):
        ahead = end - start * (end @ start) / (start @ start)  # at right angles to the start
        turn = torch.atan2(end @ ahead / ahead.norm(), end @ start / start.norm())
        legs.append((start / start.norm(), ahead / ahead.norm(), turn, start.norm(), end.norm()))
    for angle in sum(leg[2] for leg in legs) * torch.arange(23) / 23:
        for start, ahead, turn, length, to in legs:
            if 0 <= angle < turn:
                length = torch.lerp(length, to, angle / turn)
                expected.append(length * (angle.cos() * start + angle.sin() * ahead))
            angle = angle - turn
    z = generate.round_trip(points.float(), 23)
    torch.testing.assert_close(z, torch.stack(expected).float(), atol=1e-5, rtol=0)
    one = generate.round_trip(torch.tensor([[1.3], [2.1], [-0.7]]), 31)  # there is no circle
    assert one.isfinite().all() and one.abs().max() <= 2.11


def test_the_frames_of_a_walk_are_images_along_the_way(weights, call, monkeypatch):
    written = []
    monkeypatch.setattr(generate, "write_animation", lambda *args: written.append(args))
    argv = ("--walk", 3, "--frames", 10, "--fps", 25, "--seed", 6, "--max-mb", 3)
    for num, out in ((1, "x.mp4"), (4, "x.webp")):
        call(weights, *argv, "--num", num, "--out", out)
    (path, one, durations, max_mb), (_, four, *_) = written
    assert (path, durations, max_mb) == (Path("x.mp4"), [40] * 10, 3)
    z = torch.stack(list(islice(generate.noise(6, 8), 12))).view(4, 3, 8)
    paths = torch.stack([generate.round_trip(points, 10) for points in z], 1)
    generator, _ = runs.load_generator(weights)
    for a, b, z in zip(one, four, paths, strict=True):
        images = next(generate.draw(generator, z, 4)).astype(int)
        assert np.abs(np.asarray(a) - sheet(images[:1], 1, 512 // 20)).max() <= 1
        assert np.abs(np.asarray(b) - sheet(images, 2, 512 // 38)).max() <= 1


def test_the_nearest_is_found_in_whichever_part_it_lies():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 64, 64, 3), np.uint8)
    training = rng.integers(0, 256, (1000, 64, 64, 3), np.uint8)  # read in three parts
    for i, at in enumerate((0, 340, 341, 999)):
        training[at] = images[i]
        training[at, 5, 5] ^= 1  # three values off by one
    training[500], training[700] = training[340], training[340]  # no nearer: the first wins
    found, distances = generate.nearest(images, training)
    assert found.tolist() == [0, 340, 341, 999]
    np.testing.assert_allclose(distances, (3 / 12288) ** 0.5)
    training[700] = images[1]
    training[700, 0, 0, 0] ^= 1  # nearer by 2, in a sum of squares of 800,000,000
    assert generate.nearest(images, training)[0].tolist() == [0, 700, 341, 999]


def test_the_nearest_are_those_that_a_copied_folder_has_trained_on(weights, call, capsys):
    shutil.copytree(runs.TOP / "DCGAN", "my-gan", ignore=shutil.ignore_patterns("data", "tens*"))
    call(weights, "--num", 30, "--each", "images")
    flags = "--data images --hold-out 10 --image-size 16 --batch-size 8 --max-steps 2"
    assert run_script(Path("my-gan/train.py"), *flags.split()).returncode == 0
    (run,) = Path("my-gan/tensorboard/runs").iterdir()
    shutil.copy(weights, run / "generator.safetensors")  # it has learned the 30 images by heart
    call("my-gan", "--nearest", "--num", 45, "--npz", "x.npz", "--model-dir", "my-gan")
    images = np.load("x.npz")["images"]
    training, _ = runs.load_images(run, model_dir=Path("my-gan"))
    found, distances = generate.nearest(images, training)
    nearest, middle = training[found], np.sort(distances)[22]
    assert f"least 0.0, median {middle:.1f}" in capsys.readouterr().out and middle > 1
    assert (images == nearest).all((1, 2, 3)).sum() == 20  # the other 10 were held out
    pairs = np.concatenate([images, nearest], 2)
    assert (picture(run / "nearest.png") == sheet(pairs, 5, 1100 // 224, gap=8)).all()


@pytest.mark.parametrize(("argv", "complaint"), [
    ("W --nearest", "--nearest: "),
    ("W --num 0", "--num 0: must be at least 1"),
    ("W --walk 1", "--walk 1: must be at least 2"),
    ("W --seed -1", "--seed: must be greater than or equal to 0, not -1"),
    ("W --seed 4294967296", "--seed: must be less than or equal to 4294967295"),
    ("W --model-dir full", "full: there is no model.py in it"),
    ("W --walk 3 --fps 51", "--fps 51.0: must be from 1 to 50"),
    ("W --walk 3 --npz x.npz", "--walk cannot be combined with"),
    ("W --walk 3 --out x.png", "--out x.png: its name must end in .gif or .mp4 or .webp"),
    ("W --out x.jpg", "--out x.jpg: its name must end in .png"),
    ("W --each full", "--each full: it exists already"),
    ("W --device abacus", "--device abacus: not available"),
])  # fmt: skip
def test_bad_input_is_one_line(weights, call, tmp_path, capsys, argv, complaint):
    Path("full").mkdir()
    with pytest.raises(SystemExit) as stopped:
        call(*(weights if word == "W" else word for word in argv.split()))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert error.startswith("generate.py: error: ") and complaint in error
    assert list(tmp_path.rglob("*")) == [tmp_path / "full"]
