"""Pictures from trained generators: which they are, and the files that hold them."""

import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from conftest import TOP, load
from PIL import Image
from safetensors.torch import save_file

import generate
import runs


@pytest.fixture(scope="module")
def make_weights(tmp_path_factory):
    """Return a function that writes a generator whose pictures differ, and returns its file."""

    def make(size=16, channels=3, width=4, z_dim=8, folder=None, model="DCGAN"):
        arguments = {"z_dim": z_dim, "image_size": size, "channels": channels, "width": width}
        torch.manual_seed(0)
        generator = runs.load_file_of(model, "model").Generator(**arguments)
        for _ in range(50):
            generator(3 * torch.randn(16, z_dim) + 1)  # running means far from those of a batch
        generator.layers[-2].weight.data *= 20
        file = (folder or tmp_path_factory.mktemp("weights")) / f"{model}.safetensors"
        about = {"format": 1, "model": model, "step": 7, "arguments": arguments}
        state = {name: value.contiguous() for name, value in generator.state_dict().items()}
        save_file(state, file, {"about": json.dumps(about)})
        return file

    return make


@pytest.fixture(scope="module")
def weights(make_weights):
    return make_weights()


@pytest.fixture
def call(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        monkeypatch.setattr("sys.argv", ["generate.py", *map(str, argv)])
        generate.main()

    return call


def pictures_in(file):
    with np.load(file) as found:  # refuses pickles
        return found["images"]


def tiles_of(values, rows, columns, size=16, gap=2, width=16):
    """Cut a grid into its tiles, and check that all around them is white and how it is enlarged."""
    values = values.reshape(*values.shape[:2], -1)  # grey, too, has channels then
    factor = values.shape[0] // (gap + rows * (size + gap))
    small = values[::factor, ::factor].copy()
    assert (small.repeat(factor, 0).repeat(factor, 1) == values).all()
    assert small.shape[:2] == (gap + rows * (size + gap), gap + columns * (width + gap))
    tiles = []
    for i in range(rows * columns):
        y, x = gap + i // columns * (size + gap), gap + i % columns * (width + gap)
        tiles.append(small[y : y + size, x : x + width].copy())
        small[y : y + size, x : x + width] = 255
    assert (small == 255).all()
    return np.stack(tiles)


def read(file):
    return np.asarray(Image.open(file))


# ---- Noise and pictures ----


def test_the_pictures_of_a_run_are_those_of_its_frames(files, tiny, call, tmp_path, capsys):
    run = files.train.train(tiny(files))
    before = set(tmp_path.rglob("*"))
    call(run, "--num", 20)
    assert set(tmp_path.rglob("*")) - before == {run / "samples.png"}
    assert f"wrote {run / 'samples.png'}: 20 pictures" in capsys.readouterr().out
    tiles_of(read(run / "samples.png"), 3, 8)
    generator, _ = runs.load_generator(run)
    fixed_z = torch.randn(64, 8, generator=torch.Generator().manual_seed(2**32))
    pictures = np.concatenate(list(generate.draw(generator, fixed_z, 64)))
    frame = read(run / "frames" / "000004.png")
    for i, picture in enumerate(pictures):
        y, x = 2 + i // 8 * 18, 2 + i % 8 * 18
        assert (frame[y : y + 16, x : x + 16] == picture).all()


def test_the_same_seed_makes_the_same_file(weights, call, tmp_path):
    call(weights, "--npz", "a.npz")
    call(weights, "--npz", "b.npz", "--seed", 0)
    call(weights, "--npz", "c.npz", "--seed", 1)
    a, b, c = ((tmp_path / f"{name}.npz").read_bytes() for name in "abc")
    assert a == b != c
    with ZipFile("a.npz") as archive:  # no time of day in it
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    images = pictures_in("a.npz")
    assert images.shape == (64, 16, 16, 3) and len(np.unique(images, axis=0)) == 64
    assert not (images == pictures_in("c.npz")).all((1, 2, 3)).any()


def test_a_picture_does_not_depend_on_how_many_there_are(weights, call):
    for num in (1, 10, 100):
        call(weights, "--num", num, "--npz", f"{num}.npz")
    images = pictures_in("100.npz")
    assert (pictures_in("10.npz") == images[:10]).all()
    assert (pictures_in("1.npz") == images[:1]).all()


def test_a_picture_does_not_depend_on_the_batch_but_for_rounding(weights):
    generator, _ = runs.load_generator(weights)
    z = list(islice(generate.noise(0, 8), 20))
    wanted = np.concatenate(list(generate.draw(generator, z, 32)))
    for batch in (1, 7, 20):
        batches = list(generate.draw(generator, z, batch))
        assert [len(images) for images in batches][:-1] == [batch] * (len(batches) - 1)
        assert np.abs(np.concatenate(batches).astype(int) - wanted).max() <= 1


def test_every_batch_is_full_so_that_all_are_rounded_alike(weights):
    generator, _ = runs.load_generator(weights)
    sizes = []
    generator.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    batches = list(generate.draw(generator, islice(generate.noise(0, 8), 10), 4))
    assert [len(images) for images in batches] == [4, 4, 2]
    assert sizes == [(4, 8)] * 3


def test_pictures_are_the_generators_in_eval_mode(weights, call):
    call(weights, "--num", 40, "--npz", "x.npz", "--seed", 5)
    generator, _ = runs.load_generator(weights)
    z = torch.stack(list(islice(generate.noise(5, 8), 40)))
    with torch.no_grad():
        own = ((generator.eval()(z) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
        other = ((generator.train()(z) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    images = pictures_in("x.npz")
    assert images.dtype == np.uint8 and np.abs(images - own).max() < 0.51
    assert np.abs(images - other).max() > 20
    assert images.min() < 60 and images.max() > 200


def test_noise_is_normal_and_the_seed_all_that_it_hangs_on():
    torch.manual_seed(1)
    z = torch.stack(list(islice(generate.noise(3, 20), 1000)))
    torch.manual_seed(2)
    again = torch.stack(list(islice(generate.noise(3, 20), 10)))
    assert torch.equal(z[:10], again)
    assert abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.03 and z.shape == (1000, 20)
    assert torch.corrcoef(z.T).fill_diagonal_(0).abs().max() < 0.15


def test_the_best_layout_changes_nothing_but_rounding(weights):
    plain, moved = runs.load_generator(weights)[0], runs.load_generator(weights)[0]
    generate.place(moved, torch.device("cpu"))
    z = torch.randn(8, 8)
    with torch.no_grad():
        torch.testing.assert_close(moved(z), plain(z), atol=1e-5, rtol=0)


def test_batches_are_small_where_pictures_are_large():
    sizes = [generate.batch_size(size) for size in (16, 64, 128, 256, 512, 1024)]
    assert sizes == [32, 32, 8, 2, 1, 1]


# ---- Files ----


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_single_files_and_array_hold_the_same_pictures(
    make_weights, call, tmp_path, capsys, channels
):
    file = make_weights(channels=channels)
    outputs = ["--out", "x.png", "--each", "deep/each", "--npz", "sub/x.npz"]
    call(file, "--num", 70, "--columns", 9, "--seed", 4, *outputs)
    images = pictures_in("sub/x.npz")
    assert images.shape == (70, 16, 16, channels)
    tiles = tiles_of(read("x.png"), 8, 9)
    assert (tiles[:70] == images).all() and (tiles[70:] == 255).all()
    singles = sorted((tmp_path / "deep" / "each").iterdir())
    assert [single.name for single in singles] == [f"{i:06d}.png" for i in range(70)]
    for single, picture in zip(singles, images, strict=True):
        assert (read(single).reshape(picture.shape) == picture).all()
    written = {path.name for path in tmp_path.rglob("*") if path.suffix != ".png"}
    assert written == {"deep", "each", "sub", "x.npz"}
    text = capsys.readouterr().out
    assert "wrote x.png" in text and "wrote deep/each: 70" in text and "wrote sub/x.npz" in text
    with np.load("sub/x.npz") as found:
        assert (found["seed"], found["model"], found["step"]) == (4, "DCGAN", 7)


def test_no_grid_where_only_others_are_asked_for(weights, call, tmp_path):
    before = set(weights.parent.iterdir())
    call(weights, "--num", 3, "--npz", "x.npz")
    call(weights, "--num", 3, "--each", "x")
    assert set(weights.parent.iterdir()) == before
    assert {path.name for path in tmp_path.iterdir()} == {"x.npz", "x"}


def test_weights_without_a_run_have_their_pictures_beside_them(make_weights, call, tmp_path):
    file = make_weights()
    call(file)
    call(file, "--walk", 2, "--frames", 4)
    names = {"DCGAN.safetensors", "DCGAN-samples.png", "DCGAN-walk.gif"}
    assert {path.name for path in file.parent.iterdir()} == names
    assert not list(tmp_path.iterdir())


def test_small_pictures_are_enlarged_and_a_label_has_room():
    for count, side, columns, width in ((64, 32, 8, 1096), (64, 64, 8, 1060), (1, 32, 8, 1080)):
        sheet = generate.Sheet(count, (side, side, 3), columns, generate.GRID_SIDE)
        assert sheet.canvas.size == (width, width)
    assert generate.Sheet(64, (128, 128, 3), 8, generate.GRID_SIDE).canvas.width == 8 * 130 + 2
    assert generate.Sheet(1, (32, 32, 3), 8, 1, label="x" * 300).canvas.width == 1800


def test_a_grid_of_50000_stays_below_1_gb_and_larger_ones_are_refused(monkeypatch):
    sizes = []
    new = Image.new
    monkeypatch.setattr(
        generate.Image, "new", lambda m, size, *c: sizes.append(size) or new("1", (1, 1))
    )
    generate.Sheet(50_000, (64, 64, 3), 223, generate.GRID_SIDE)
    width, height = sizes[-1]
    assert width * height > 50_000 * 64 * 64
    assert width * height * 4 < 1e9  # Pillow has 4 bytes a pixel
    made = len(sizes)
    for count, columns in ((60_000, 245), (2_000, 1)):
        with pytest.raises(runs.InputError, match=f"--num {count}"):
            generate.Sheet(count, (64, 64, 3), columns, generate.GRID_SIDE)
    assert len(sizes) == made


def test_what_is_there_is_kept_until_the_new_file_is_whole(weights, call, tmp_path, monkeypatch):
    for name in ("x.png", "x.npz", "x.gif"):
        (tmp_path / name).write_text("precious")
    draw = generate.draw

    def breaks(*args, **kwargs):
        yield next(draw(*args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "draw", breaks)
    for argv in (["--out", "x.png", "--npz", "x.npz"], ["--walk", 3, "--out", "x.gif"]):
        with pytest.raises(KeyboardInterrupt):
            call(weights, "--num", 40, *argv)
    assert {path.name for path in tmp_path.iterdir()} == {"x.png", "x.npz", "x.gif"}
    assert {path.read_text() for path in tmp_path.iterdir()} == {"precious"}
    monkeypatch.setattr(generate, "draw", draw)
    call(weights, "--out", "x.png", "--npz", "x.npz")
    assert (tiles_of(read("x.png"), 8, 8) == pictures_in("x.npz")).all()


PEAK = """
import sys
import generate
sys.argv = ["generate.py", *sys.argv[1:]]
generate.main()
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux counts so")
def test_memory_does_not_grow_with_the_number_of_pictures(make_weights, tmp_path):
    file, peaks = make_weights(size=64, width=1), []
    for num in (64, 4000):  # 49 MB of pictures
        argv = [sys.executable, "-c", PEAK, file, "--num", str(num), "--npz", tmp_path / "x.npz"]
        done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, check=True)
        peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) * 1024)
    assert pictures_in(tmp_path / "x.npz").shape == (4000, 64, 64, 3)
    assert peaks[1] - peaks[0] < 20e6


# ---- Walks ----


def angles_between(z, other):
    return torch.nn.functional.cosine_similarity(z.double(), other.double()).clamp(-1, 1).acos()


def test_a_walk_between_axes_takes_equal_steps_and_closes():
    points = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
    z = generate.round_trip(points, 9)
    assert z.shape == (9, 3) and z.dtype == torch.float32
    torch.testing.assert_close(z[::3], points, atol=1e-6, rtol=0)
    steps = angles_between(z, z.roll(-1, 0))  # the last one leads back to the first
    torch.testing.assert_close(steps, torch.full_like(steps, torch.pi / 6), atol=1e-6, rtol=0)
    lengths = torch.tensor([1, 4 / 3, 5 / 3, 2, 8 / 3, 10 / 3, 4, 3, 2])
    torch.testing.assert_close(z.norm(dim=1), lengths)


@pytest.mark.parametrize(("k", "frames"), [(2, 50), (5, 333), (7, 8)])
def test_a_walk_follows_great_circles_at_one_speed(k, frames):
    points = torch.stack(list(islice(generate.noise(0, 12), k)))
    z = generate.round_trip(points, frames)
    assert torch.equal(z[0], points[0]) or torch.allclose(z[0], points[0], atol=1e-6)
    ends = points.roll(-1, 0)
    legs = angles_between(points, ends)
    gone = torch.arange(frames) / frames * legs.sum()
    for i, at in enumerate(gone):
        leg = int((legs.cumsum(0) <= at).sum())
        done = at - legs[:leg].sum()
        start, end = points[leg], ends[leg]
        torch.testing.assert_close(
            angles_between(start[None], z[i : i + 1])[0], done, atol=1e-3, rtol=0
        )
        rest = legs[leg] - done  # both add up only on the great circle itself
        torch.testing.assert_close(
            angles_between(z[i : i + 1], end[None])[0], rest, atol=1e-3, rtol=0
        )
        share = done / legs[leg]
        length = (1 - share) * start.norm() + share * end.norm()
        torch.testing.assert_close(z[i].norm().double(), length, atol=1e-4, rtol=0)


def frames_of_walk(call, monkeypatch, *argv):
    """Return the frames before they get a palette, and how long each stays."""
    kept = []
    with monkeypatch.context() as patch:
        patch.setattr(
            generate,
            "write_gif",
            lambda pictures, s, times, *_: kept.extend([list(pictures), times]),
        )
        call(*argv)
    return [np.asarray(frame) for frame in kept[0]], kept[1]


def test_the_frames_of_a_walk_are_pictures_along_the_way(weights, call, monkeypatch):
    argv = (weights, "--walk", 3, "--frames", 10, "--fps", 25, "--seed", 6)
    frames, times = frames_of_walk(call, monkeypatch, *argv, "--num", 1)
    assert len(frames) == 10 and times == [40] * 10
    generator, _ = runs.load_generator(weights)
    z = generate.round_trip(torch.stack(list(islice(generate.noise(6, 8), 3))), 10)
    wanted = np.concatenate(list(generate.draw(generator, z, 32)))
    one = np.concatenate([tiles_of(frame, 1, 1) for frame in frames])
    assert np.abs(one.astype(int) - wanted).max() <= 1
    four, _ = frames_of_walk(call, monkeypatch, *argv, "--num", 4)
    four = np.stack([tiles_of(frame, 2, 2) for frame in four])
    assert np.abs(four[:, 0].astype(int) - wanted).max() <= 1  # the first walk is as it was
    assert np.abs(four[:, 1].astype(int) - wanted).max() > 20


@pytest.mark.parametrize("channels", [1, 3])
def test_a_walk_is_a_gif_that_repeats(make_weights, call, capsys, channels):
    call(make_weights(channels=channels), "--walk", 4, "--frames", 12, "--out", "x.gif")
    with Image.open("x.gif") as gif:
        assert gif.n_frames == 12 and gif.info["loop"] == 0
        times = []
        for i in range(12):
            gif.seek(i)
            times.append(gif.info["duration"])
        assert gif.width == gif.height > 300  # 4 x 4, enlarged
    assert times == [50] * 12
    assert "wrote x.gif: 12 frames" in capsys.readouterr().out


# ---- The nearest training pictures ----


def test_the_nearest_is_found_in_whichever_part_it_lies():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 64, 64, 3), np.uint8)
    training = rng.integers(0, 256, (1000, 64, 64, 3), np.uint8)  # read in three parts
    for i, at in enumerate((0, 340, 341, 999)):
        training[at] = images[i]
        training[at, 5, 5] ^= 1  # three values off by one
    training[500], training[700] = training[340], training[340]  # no nearer: the first wins
    found, difference = generate.nearest(images, training)
    assert found.tolist() == [0, 340, 341, 999]
    np.testing.assert_allclose(difference, (3 / 12288) ** 0.5)
    training[700] = images[1]
    training[700, 0, 0, 0] ^= 1  # nearer by two in 800,000,000, the sum of squares
    assert generate.nearest(images, training)[0].tolist() == [0, 700, 341, 999]


def test_the_nearest_agrees_with_every_difference_taken():
    rng = np.random.default_rng(1)
    images = rng.integers(100, 110, (30, 4, 4, 1), np.uint8)
    training = rng.integers(100, 110, (500, 4, 4, 1), np.uint8)
    squares = ((images[:, None].astype(int) - training[None]) ** 2).sum((2, 3, 4))
    found, difference = generate.nearest(images, training)
    assert (found == squares.argmin(1)).all()
    np.testing.assert_allclose(difference, np.sqrt(squares.min(1) / 16))


@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_stand_beside_each_other(make_weights, tiny, call, tmp_path, capsys, channels):
    files = load("WGAN-GP")
    file = make_weights(channels=channels, model="WGAN-GP")
    call(file, "--num", 30, "--each", "pictures")
    run = files.train.train(tiny(files, data=str(tmp_path / "pictures"), hold_out=10))
    (run / "generator.safetensors").write_bytes(file.read_bytes())  # it knows them by heart
    before = set(tmp_path.rglob("*"))
    call(run, "--nearest", "--num", 35, "--npz", "x.npz")
    assert set(tmp_path.rglob("*")) - before == {run / "nearest.png", tmp_path / "x.npz"}
    training, held_out = runs.load_pictures(run)
    assert len(training) == 20 and len(held_out) == 10
    images = pictures_in("x.npz")
    values = read(run / "nearest.png")
    top = len(values) % (8 + 9 * 24)  # the label
    assert 10 < top < 40 and values[:top].min() < 100
    tiles = tiles_of(values[top:], 9, 4, 16, 8, 33)
    assert (tiles[35:] == 255).all()
    for tile, picture in zip(tiles, images, strict=False):
        squares = ((picture.astype(int) - training) ** 2).sum((1, 2, 3))
        assert (tile[:, :16] == picture).all() and (tile[:, 16] == 255).all()
        assert (tile[:, 17:] == training[squares.argmin()]).all()
    same = (tiles[:30, :, :16] == tiles[:30, :, 17:]).all((1, 2, 3))
    assert same.sum() == 20  # it was trained on these, not on the 10 that were held out
    text = capsys.readouterr().out
    assert "beside its nearest of 20, " in text and "least 0.0, median 0.0" in text
