"""Animations from run folders: the command line, and write_animation."""

import io
from contextlib import redirect_stderr, redirect_stdout

import av
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ImageSequence import Iterator
from test_compare import make_run, top  # noqa: F401
from torchvision.utils import make_grid

import make_gif
from make_gif import label_strip, write_animation

pytestmark = pytest.mark.usefixtures("top")
FLAT = [Image.new("RGB", (101, 76), color) for color in ("firebrick", "seagreen", "royalblue")]


@pytest.fixture
def call(monkeypatch):
    def call(*argv):
        """Run the command as a notebook does; return its exit code and all that it printed."""
        monkeypatch.setattr("sys.argv", ["make_gif.py", *map(str, argv)])
        said, code = io.StringIO(), 0  # has no `reconfigure`, as a notebook's stream
        with redirect_stdout(said), redirect_stderr(said):
            try:
                make_gif.main()
            except SystemExit as ended:
                code = ended.code
        return code, said.getvalue()

    return call


def frames_of(file):
    """Return the frames of a GIF or WebP as arrays, and their durations."""
    with Image.open(file) as animation:
        assert animation.info["loop"] == 0  # for ever
        shown = [(np.asarray(f.convert("RGB")), f.info["duration"]) for f in Iterator(animation)]
    return map(list, zip(*shown, strict=True))


def test_bare_it_draws_each_models_newest_run_into_the_run(tmp_path, call):
    make_run(tmp_path, "DCGAN", "a", steps=range(3))
    newest = make_run(tmp_path, "DCGAN", "b", steps=range(5))
    make_run(tmp_path, "WGAN", "just-started", steps=[])  # which has no frame yet
    before = set(tmp_path.rglob("*"))
    assert call()[0] == 0
    assert set(tmp_path.rglob("*")) - before == {newest / "samples.gif"}
    assert list(frames_of(newest / "samples.gif"))[1] == [500, 1000, 100, 100, 100, 2000]
    assert call("--side-by-side")[0] == 0 and (newest / "side-by-side.gif").exists()


def test_a_frame_is_enlarged_by_a_whole_factor_under_its_step(tmp_path, call):
    run = make_run(tmp_path, "WGAN-GP", steps=[0, 1500])
    grid = np.random.default_rng(0).integers(0, 256, (12, 15, 3), np.uint8)
    for frame in (run / "frames").iterdir():
        Image.fromarray(grid).save(frame)
    assert call(run, "--no-poster")[0] == 0
    frames, durations = frames_of(run / "samples.gif")
    assert durations == [1000, 2000]
    for frame, label in zip(frames, ("WGAN-GP   step 0", "WGAN-GP   step 1,500"), strict=True):
        strip = np.asarray(label_strip(405, label))  # 27 times 15: as near to 400 as it comes
        np.testing.assert_allclose(frame[: len(strip)], strip, atol=40)
        np.testing.assert_allclose(frame[len(strip) :], grid.repeat(27, 0).repeat(27, 1), atol=4)
    assert not np.array_equal(*frames)


def test_fewer_images_of_a_frame_are_shown_larger(tmp_path, call):
    run = make_run(tmp_path, "WGAN-GP", steps=[0, 1])
    images = (4 * torch.arange(64, dtype=torch.uint8)).view(64, 1, 1, 1).expand(-1, 3, 16, 16)
    for frame in (run / "frames").iterdir():
        Image.fromarray(make_grid(images).movedim(0, 2).numpy()).save(frame)  # eight in a row
    assert call(run, "--tiles", 3)[0] == 0
    (frame, *_), _ = frames_of(run / "samples.gif")
    frame = frame[-7 * 56 :]  # 3 * (16 + 2) + 2, 7 times
    centers = frame[7 * 10 :: 7 * 18, 7 * 10 :: 7 * 18, 0]
    np.testing.assert_allclose(centers, 4 * np.add.outer(8 * np.arange(3), range(3)), atol=4)
    assert frame.shape[1] == 7 * 56 and frame[-8, -8, 0] < 4 > frame[7, 7, 0]  # lines around


def test_every_kth_frame_and_the_last_are_drawn(tmp_path, call):
    make_run(tmp_path, "DCGAN", "named", steps=range(0, 90, 10))
    assert call("named", "--every", 3, "--fps", 25, "--out", "new/x.gif")[0] == 0
    frames, durations = frames_of(tmp_path / "new" / "x.gif")
    assert [round(frame[-1, -1, 0] / 10) for frame in frames] == [8, 0, 3, 6, 8]
    assert durations == [500, 1000, 40, 40, 2000]
    assert "--max-mb 0.001 is not possible" in call("named", "--max-mb", 0.001)[1]
    many = make_run(tmp_path, "DCGAN", "many", steps=range(249))
    assert call(many, "--no-poster")[0] == 0
    frames, _ = frames_of(many / "samples.gif")
    shown = [frame[-1, -1, 0] for frame in frames]
    np.testing.assert_allclose(shown, [*range(0, 248, 3), 248], atol=4)  # at most 100


def test_side_by_side_shows_the_runs_after_the_same_number_of_images(tmp_path, call):
    dcgan = make_run(tmp_path, "DCGAN", steps=[0, 10, 20, 30], batch_size=64)  # 0, 640 ... images
    wgan = make_run(tmp_path, "WGAN", steps=[0, 5, 10], side=500, batch_size=64)  # 0, 1600, 3200
    assert call(wgan, dcgan, "--side-by-side", "--out", "x.gif")[0] == 0
    frames, _ = frames_of(tmp_path / "x.gif")
    at = [(frame[-1, 0, 0], frame[-1, -1, 0]) for frame in frames]
    assert at == [(30, 10), (0, 0), (10, 0), (20, 0), (20, 5), (30, 5), (30, 10)]
    assert frames[0].shape[1] == 500 + 8 + 500  # the small grid is enlarged to the other's size
    strip = np.asarray(label_strip(500, "DCGAN   1,920 images, step 30"))
    np.testing.assert_allclose(frames[-1][: len(strip), :500], strip, atol=40)


def test_side_by_side_come_the_papers_in_order_then_others_unknown_ones_last(tmp_path, call):
    slow, fast = (make_run(tmp_path, "WGAN", name, steps=[6, 13]) for name in ("slow", "fast"))
    names = ("0-GAN", "A-GAN", "WGAN-GP", "DCGAN", "simpleGAN")
    others = [make_run(tmp_path, name, steps=[0]) for name in names]
    (tmp_path / "0-GAN" / "train.py").unlink()
    assert call(slow, *others, fast, "--side-by-side", "--no-poster", "--out", "y.gif")[0] == 0
    frames, _ = frames_of(tmp_path / "y.gif")
    names = ("simpleGAN", "DCGAN", "WGAN slow", "WGAN fast", "WGAN-GP", "A-GAN", "0-GAN")
    for i, name in enumerate(names):
        at = "240 images, step 6" if "WGAN " in name else "0 images, step 0"  # the first frame
        strip = np.asarray(label_strip(400, f"{name}   {at}"))
        np.testing.assert_allclose(frames[0][: len(strip), 408 * i :][:, :400], strip, atol=40)


def test_a_gif_stays_below_its_size_and_keeps_its_pixels_for_longest(tmp_path, capsys):
    durations, file = [300, *[40] * 19, 900], tmp_path / "x.gif"
    noise = np.random.default_rng(0).integers(0, 6, (21, 120, 100, 3), np.uint8) * 51  # 216 colors
    frames = [Image.fromarray(frame) for frame in noise]
    write_animation(file, frames, durations, 5)
    largest = file.stat().st_size
    for share, k, colors in ((1, 1, 216), (0.99, 1, 128), (0.6, 2, 216), (0.3, 4, 216)):
        write_animation(file, frames, durations, share * largest / 1e6)
        found, times = frames_of(file)
        kept = noise[[*range(0, 20, k), 20]]
        assert file.stat().st_size <= share * largest
        np.testing.assert_allclose(found, kept, atol=2 if colors == 216 else 90)
        assert len(np.unique(np.stack(found).reshape(-1, 3), axis=0)) == colors  # one palette
        assert times == [300 + 40 * (k - 1), *[40 * k] * (len(kept) - 2), 900]
    write_animation(file, frames, durations, 0.05 * largest / 1e6)
    assert Image.open(file).size == (50, 60)
    assert "not possible" not in capsys.readouterr().out


def test_an_mp4_is_h264_of_any_size_and_holds_its_frames(tmp_path):
    write_animation(tmp_path / "x.MP4", FLAT, [600, 200, 1000], max_mb=1)
    with av.open(tmp_path / "x.MP4") as video:
        stream = video.streams.video[0]
        assert stream.codec.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height, stream.average_rate) == (102, 76, 5)
        shown = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    for frame, i in zip(shown, [0, 0, 0, 1, 2, 2, 2, 2, 2], strict=True):
        assert np.abs(frame.reshape(-1, 3) - FLAT[i].getpixel((0, 0))).max() < 12


def test_a_webp_keeps_colors_and_durations(tmp_path):
    write_animation(tmp_path / "x.webp", FLAT, [500, 100, 900], max_mb=1)
    found, times = frames_of(tmp_path / "x.webp")
    assert times == [500, 100, 900]
    np.testing.assert_allclose(found, np.stack(FLAT), atol=12)


def test_bad_input_is_named_in_one_line(tmp_path, call):
    assert "there is no run yet" in call()[1]
    run, empty = make_run(tmp_path, "DCGAN"), make_run(tmp_path, "WGAN", "empty", steps=[])
    for argv, named in (
        (["empty"], f"{empty}: there are no frames"),
        ([run, "--out", "x.avi"], "--out x.avi: its name must end in .gif, .webp, .mp4"),
        ([run, "--max-mb=nan"], "--max-mb"),
        ([run, "--tiles", 9], "--tiles 9: must be from 1 to 8"),
        ([run, empty, "--out", "x.gif"], "--out: several runs in one file need"),
    ):
        code, said = call(*argv)
        assert code == 2 and named in said.splitlines()[-1], argv
    frame = run / "frames" / "000020.png"
    frame.write_bytes(frame.read_bytes()[:-30])
    code, said = call(run)
    assert code == 2 and "000020.png is damaged" in said
    assert not (run / "samples.gif").exists()
