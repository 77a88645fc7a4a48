"""Images against Pillow's plain pipeline, which images are taken, minibatches, the drawn faces."""

import hashlib
import io
import os
import random
import shutil
import struct
import tempfile
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.datasets
from conftest import TOP, load
from PIL import Image

SHARED = TOP.parent / "shared" / "data" / "fashion-mnist"  # where a developer has it
NAMES = ["b.png", "a/z.png", "B.PNG", "a.png", "10.png", "9.png", "a/deep/er/1.png", "x y.png"]
files = load("WGAN")


def read(source, place, size=16, channels="data", batch_size=1, hold_out=0):
    asked = (size, channels, batch_size, hold_out)
    return files.data.load_images(str(source), str(place / "data"), *asked)


def refusal(*args) -> str:
    with pytest.raises((files.utils.InputError, files.utils.RunError)) as caught:
        read(*args)
    return f"{type(caught.value).__name__} {caught.value}"


def show(place, image, size=16, channels=3, name="x.png", **options) -> np.ndarray:
    """Save an image in a folder of its own, and load it."""
    file = Path(tempfile.mkdtemp(dir=place), name)
    image.save(file, **options)
    return read(file.parent, place, size, channels).images[0]


def noise(mode="RGB", size=(16, 16), seed=0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def plain(image, size=16, mode="RGB") -> np.ndarray:
    """Scale the largest centered square bicubically, with Pillow alone."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    scaled = image.convert(mode).resize((size, size), Image.Resampling.BICUBIC, box)
    return np.asarray(scaled).reshape(size, size, -1)


def numbered(folder: Path, names: list[str]) -> Path:
    """Write an image for each name; its red value is the place of the name."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i, 0, 99)).save(folder / name)
    return folder


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
@pytest.mark.parametrize("size", [(20, 16), (16, 21), (16, 16), (50, 33), (7, 90), (5, 3)])
def test_images_are_cut_scaled_and_made_gray_like_pillows(tmp_path, mode, size):
    image = noise(mode, size)
    assert (show(tmp_path, image) == plain(image)).all()
    assert (show(tmp_path, image, channels=1) == plain(image, mode="L")).all()


def test_a_large_jpeg_is_scaled_like_any_image(tmp_path):
    image = noise(size=(45, 60)).resize((896, 1200), Image.Resampling.BOX)
    found = show(tmp_path, image, 32, name="x.jpg", quality=95).astype(float)
    assert np.abs(found - plain(image, 32)).mean() < 2


@pytest.mark.parametrize("turn", range(1, 9))
def test_images_stand_upright(tmp_path, turn):
    image, exif = np.asarray(noise()), Image.Exif()
    exif[0x0112] = turn
    upright = image.swapaxes(0, 1) if turn > 4 else image
    upright = upright[:, ::-1] if turn in (2, 3, 6, 7) else upright  # the first pixel: right
    upright = upright[::-1] if turn in (3, 4, 7, 8) else upright  # below
    assert (show(tmp_path, Image.fromarray(image), exif=exif) == upright).all()


@pytest.mark.parametrize(
    "mode, value, options, shown",
    [
        ("LA", (100, 0), {}, 255),  # transparent: white
        ("LA", (100, 255), {}, 100),
        ("RGBA", (200, 100, 0, 204), {}, (211, 131, 51)),
        ("RGB", (10, 20, 30), {"transparency": (10, 20, 30)}, 255),
        ("P", 1, {"transparency": 1}, 255),
        ("I;16", 65535, {}, 255),
        ("I;16", 257 * 60, {}, 60),
        ("CMYK", (255, 0, 0, 0), {"name": "x.jpg", "quality": 100}, (0, 255, 255)),
        ("L", 128, {"name": "x.JPEG"}, 128),
        ("RGB", (200, 100, 50), {"name": "x.webp", "lossless": True}, (200, 100, 50)),
        ("RGB", (200, 100, 50), {"name": "x.bmp"}, (200, 100, 50)),
        ("P", 1, {"name": "x.GIF", "save_all": True, "append_images": [noise()]}, (50, 60, 70)),
    ],
)
def test_every_mode_and_format_shows_its_color(tmp_path, mode, value, options, shown):
    image = Image.new(mode, (16, 16), value)
    if mode == "P":
        image.putpalette([9, 8, 7, 50, 60, 70])
    assert (show(tmp_path, image, **options) == np.uint8(shown)).all()


def test_transparent_pixels_are_white_before_they_are_scaled(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[::2] = 255  # between rows of white, transparent black
    assert (show(tmp_path, Image.fromarray(pixels)) == 255).all()


def test_channels_are_as_asked_or_those_that_the_images_need(tmp_path):
    gray = [noise("L", seed=i) for i in range(20)]
    (tmp_path / "p").mkdir()
    for i, image in enumerate(gray):
        image.convert(["L", "RGB", "RGBA"][i % 3]).save(tmp_path / "p" / f"{i}.png")
    found, three = (read(tmp_path / "p", tmp_path, 16, c).images for c in ("data", 3))
    assert found.shape == (20, 16, 16, 1) and (three == found.repeat(3, 3)).all()
    assert {image.tobytes() for image in found} == {image.tobytes() for image in gray}
    image = gray[0].convert("RGB")
    image.putpixel((5, 5), (99, 99, 100))  # the only one that is not gray
    image.save(tmp_path / "p" / "color.png")
    mixed, ones = (read(tmp_path / "p", tmp_path, 16, c).images for c in ("data", 1))
    assert mixed.shape == (21, 16, 16, 3) and ones.shape == (21, 16, 16, 1)


def test_images_are_sorted_shuffled_and_the_last_held_out_from_a_zip_too(tmp_path):
    names = NAMES + [f"more/{i}.png" for i in range(30)]
    numbered(tmp_path / "p", names)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / "p" / name, name)
        archive.writestr("notes.txt", "no image")
    expected = sorted(range(38), key=lambda i: names[i])
    random.Random(0).shuffle(expected)
    whole = read(tmp_path / "p", tmp_path)
    assert whole.images[:, 0, 0, 0].tolist() == expected
    for source in ("p", "p.zip"):
        found = read(tmp_path / source, tmp_path, hold_out=5)
        assert (found.images == whole.images[:-5]).all() and found.digest == whole.digest
        assert (found.held_out == whole.images[-5:]).all() and found.skipped == []
    assert whole.digest == hashlib.sha256(whole.images.tobytes()).hexdigest()


def test_the_files_that_a_mac_keeps_beside_images_are_no_images(tmp_path):
    numbered(tmp_path / "p", NAMES)
    for name in ("._b.png", "a/._z.png", "__MACOSX/a/deep/er/._1.png"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(b"\x00\x05\x16\x07")
    shutil.make_archive(str(tmp_path / "p"), "zip", tmp_path / "p")
    for source in ("p", "p.zip"):
        found = read(tmp_path / source, tmp_path)
        assert len(found.images) == len(NAMES) and found.skipped == []


def test_kinds_that_are_not_read_are_counted_with_advice(tmp_path):
    kinds = ("avif", "heic", "heif", "jp2", "jxl", "psd", "svg", "tif", "tiff")
    for kind in kinds:
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"1.{kind}").write_bytes(b"x")
        assert f"1 .{kind} not read" in refusal(tmp_path / kind, tmp_path)
        shutil.rmtree(tmp_path / kind)
    for name in ("1.HEIC", "2.heic", "3.avif", "4.tif", "5.txt"):
        (tmp_path / name).write_bytes(b"x")
    said = refusal(tmp_path, tmp_path)
    for line in (said, *read(numbered(tmp_path, ["a.png"]), tmp_path).skipped):
        assert "1 .avif, 2 .heic, 1 .tif not read" in line and "convert to JPEG or PNG" in line
        assert str(tmp_path) in line and "txt" not in line


def test_the_cache_is_beside_the_code_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(files.data, "HERE", tmp_path)
    found = files.data.load_images(str(numbered(tmp_path / "p", NAMES)), "", 16, 3, 1, 0)
    assert found.cache.parent == tmp_path / "data" / "cache"


def test_too_few_images_are_refused_with_the_numbers(tmp_path, monkeypatch):
    asked = (numbered(tmp_path / "p", NAMES), tmp_path, 16, 3)
    assert len(read(*asked, 5, 3).images) == 5
    said = refusal(*asked, 6, 3)
    assert f"{asked[0]}: 8 images" in said and "--batch-size 6 and --hold-out 3 need" in said
    assert "--batch-size 9 need" in refusal(*asked, 9)
    assert "--batch-size 8 and --hold-out 1 need" in refusal(*asked, 8, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--batch-size 5 in 2 processes" in refusal(*asked, 5)
    monkeypatch.delenv("WORLD_SIZE")
    (asked[0] / NAMES[0]).write_bytes(b"no image")
    assert len(read(*asked, 5, 2).images) == 5
    said = refusal(*asked, 5, 3)
    assert "7 readable images" in said and "--hold-out 3" in said and NAMES[0] in said
    assert "7 readable images" in refusal(*asked, 1, 7)  # all that can be read are held out
    for name in NAMES:
        (asked[0] / name).write_bytes(b"no image")
    said = refusal(*asked)
    assert "0 readable images" in said and said.count("damaged, or not an image") == 1


def test_what_is_no_dataset_is_refused_with_those_that_are(tmp_path):
    (tmp_path / "list.txt").write_text("a.png")
    for data in (tmp_path / "nothing", tmp_path / "list.txt", ""):
        said = refusal(data, tmp_path)
        assert "no such dataset" in said and str(data) in said
        assert "a folder, a .zip file or one of faces, mnist, " in said
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty", tmp_path).endswith(
        "no image in it (.bmp, .gif, .jpeg, .jpg, .png, .webp)"
    )


def test_images_up_to_50_megapixels_and_100_megabytes_are_read(tmp_path, monkeypatch):
    assert (files.data.MOST_PIXELS, files.data.MOST_BYTES) == (50_000_000, 100_000_000)
    image = noise(size=(20, 16))
    image.save(tmp_path / "x.png")
    size = (tmp_path / "x.png").stat().st_size
    for name, most in (("MOST_PIXELS", 20 * 16), ("MOST_BYTES", size)):
        with monkeypatch.context() as patch:
            patch.setattr(files.data, name, most)
            assert (read(tmp_path, tmp_path / name).images == plain(image)).all()
            patch.setattr(files.data, name, most - 1)
            assert "0 readable images" in refusal(tmp_path, tmp_path / f"{name} less 1")


def test_what_a_file_holds_decides_not_its_name(tmp_path):
    noise().save(tmp_path / "a.jpg", format="PNG")
    noise().save(tmp_path / "tiff.png", format="TIFF")
    found = read(tmp_path, tmp_path)
    assert (found.images == plain(noise())).all()
    assert len(found.skipped) == 1 and "tiff.png: damaged, or not an image" in found.skipped[0]


def test_warnings_of_pillow_are_not_shown_and_those_of_others_are(tmp_path, monkeypatch):
    def warn(*args):
        warnings.warn("odd metadata", stacklevel=1)
        return decode(*args)

    decode = files.data.decode
    monkeypatch.setattr(files.data, "decode", warn)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(numbered(tmp_path / "p", NAMES), tmp_path)
        assert not caught
        warnings.warn("mine", stacklevel=1)
        assert len(caught) == 1


def test_images_are_decoded_once_and_again_when_anything_differs(tmp_path, monkeypatch):
    folder, names, decode = numbered(tmp_path / "p", NAMES), [], files.data.decode
    monkeypatch.setattr(files.data, "decode", lambda *a: names.append(a[0]) or decode(*a))
    first = read(folder, tmp_path)
    kept, first.images[:] = first.images.copy(), 0  # which does not reach the file
    cache, facts = first.cache, first.cache.with_suffix(".json")
    for change, expected in (
        (lambda: read(folder, tmp_path, batch_size=3, hold_out=2), 0),
        (lambda: os.truncate(cache, 1000), 8),
        (lambda: cache.write_bytes(cache.read_bytes() + b"x"), 8),
        (lambda: os.truncate(facts, 20), 8),
        (facts.unlink, 8),
        (lambda: os.utime(folder / NAMES[3], (1, 1)), 8),
        (lambda: numbered(folder, ["new.png"]), 9),
    ):
        names.clear()
        change()
        found = read(folder, tmp_path)
        assert len(names) == expected and (expected == 9 or (found.images == kept).all())
    digests = set()
    for color in (5, 6):  # of the same number of bytes
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
            for name in NAMES:
                file = io.BytesIO()
                Image.new("RGB", (16, 16), (color, 0, 0)).save(file, "BMP")
                archive.writestr(name, file.getvalue())
        digests.add(read(tmp_path / "p.zip", tmp_path).digest)
    assert len(digests) == 2
    kinds = [(16, 1), (16, 3), (16, "data"), (32, 3)]
    assert len({read(folder, tmp_path, *kind).cache for kind in kinds}) == 4
    shutil.copytree(folder, tmp_path / "copy")
    assert read(tmp_path / "copy", tmp_path).digest == found.digest
    Image.new("RGB", (16, 16), (0, 0, 98)).save(tmp_path / "copy" / "new.png")
    assert read(tmp_path / "copy", tmp_path).digest != found.digest


@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_files_that_are_there_are_not_downloaded(tmp_path, name, folder):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8).tobytes()
    content = {"images-idx3": struct.pack(">4I", 2051, 6, 28, 28) + images}
    content["labels-idx1"] = struct.pack(">2I", 2049, 6) + bytes(6)
    raw = tmp_path / "data" / folder / "raw"
    raw.mkdir(parents=True)
    for part in content:
        real = SHARED / folder / "raw" / f"t10k-{part}-ubyte"  # 60,000 would take seconds
        content[part] = real.read_bytes() if real.exists() else content[part]
        (raw / f"train-{part}-ubyte").write_bytes(content[part])
        (raw / f"t10k-{part}-ubyte").touch()
    found = read(name, tmp_path, 32, hold_out=2)
    images = np.frombuffer(content["images-idx3"], np.uint8, offset=16).reshape(-1, 28, 28)
    assert len(found.images) + 2 == len(images)
    assert (found.images[3] == plain(Image.fromarray(images[3]), 32, "L")).all()
    assert (found.held_out[1] == plain(Image.fromarray(images[-1]), 32, "L")).all()


def test_cifar10_and_celeba_take_the_images_for_training(tmp_path, monkeypatch):
    def cifar10(root, train, download):
        return SimpleNamespace(data=pixels if train and download else None)

    def celeba(root, split, download):
        numbered(root / "celeba" / "img_align_celeba", NAMES if split == "train" else [])

    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cifar10)
    monkeypatch.setattr(torchvision.datasets, "CelebA", celeba)
    assert (read("cifar10", tmp_path, 32).images == pixels).all()
    assert len(read("celeba", tmp_path).images) == len(NAMES)


def test_a_failed_download_says_where_to_put_the_files(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    where = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw", "celeba": "celeba"}
    for kind in ("MNIST", "FashionMNIST", "CelebA", "CIFAR10"):
        monkeypatch.setattr(torchvision.datasets, kind, fail)
    for name, folder in (where | {"cifar10": "cifar-10-batches-py"}).items():
        said = refusal(name, tmp_path)
        assert "RunError" in said and "(no network)" in said
        assert f"{tmp_path / 'data' / folder} by hand" in said
    assert "gdown" in (TOP / "requirements.txt").read_text()  # CelebA's download imports it


def batches(count, size, seed):
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    return files.data.Batches(images, size, torch.device("cpu"), seed)


def take(source, count, at_once=1) -> list[list[int]]:
    """Return the numbers of the images in the next minibatches."""
    found = []
    for _ in range(count // at_once):
        source.draw(at_once)
        found += [((next(source).flatten() + 1) * 127.5).round().tolist() for _ in range(at_once)]
    return found


def test_values_run_from_minus_1_to_1_and_channels_come_first():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 8, 2)
    source = files.data.Batches(images, 1, torch.device("cpu"), 0)
    source.draw(1)
    found = next(source)
    assert found.dtype == torch.float32 and found.min() == -1 and found.max() == 1
    expected = images.transpose(0, 3, 1, 2) * (2 / 255) - 1
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("seed", [7, 8])
def test_a_pass_shows_each_image_once_in_an_order_of_the_seed(seed):
    rng = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(11, generator=rng).tolist() for _ in range(4)]
    expected = [order[i : i + 3] for order in passes for i in (0, 3, 6)]  # 2 are left over
    assert take(batches(11, 3, seed), 12) == take(batches(11, 3, seed), 12, 2) == expected


def test_processes_share_a_pass_as_one_with_a_larger_minibatch(monkeypatch):
    expected, found = take(batches(23, 4, 0), 12), []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        found.append(take(batches(23, 2, 0), 12))
    assert [one + other for one, other in zip(*found, strict=True)] == expected


def test_a_pass_goes_on_where_its_state_was_taken():
    source, other = batches(11, 3, 0), batches(11, 3, 99)
    take(source, 5)
    other.load_state_dict(source.state_dict())
    assert take(other, 8) == take(source, 8)


def test_faces_are_the_same_everywhere_and_all_different():
    digests = {
        (16, 0): "b855a942a5e55bd0",
        (64, 0): "301242e94ea11781",
        (16, 1): "9bea7fe6f7ae61d5",
    }
    for (size, seed), digest in digests.items():
        faces = np.stack(list(files.data.draw_faces(40, size, seed)))
        assert faces.shape == (40, size, size, 3) and len({face.tobytes() for face in faces}) == 40
        assert hashlib.sha256(faces.tobytes()).hexdigest()[:16] == digest


def test_10_000_faces_are_the_default_and_finer_at_larger_sizes(data_dir):
    found = files.data.load_images("faces", data_dir, 16, "data", 1, 0).images
    assert found.shape == (10_000, 16, 16, 3)
    assert (found[:700] == np.stack(list(files.data.draw_faces(700, 16, 0)))).all()
    large = np.stack(list(files.data.draw_faces(16, 32)))
    halved = large.reshape(16, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(halved - found[:16]).mean() < 8 < 40 < np.abs(halved - found[16:32]).mean()
