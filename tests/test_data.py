"""Images against Pillow's plain pipeline, which images are taken, minibatches, the drawn faces."""

import hashlib
import json
import os
import random
import shutil
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.datasets
from conftest import FOLDERS, TOP, load, load_images, noise_images, train, write_images
from PIL import Image, PngImagePlugin
from safetensors import safe_open

import generate

NAMES = ["b.png", "a/z.png", "B.PNG", "a.png", "10.png", "9.png", "a/deep/er/1.png", "x y.png"]
files = load("WGAN")


def read(source, place, size=16, channels="data", batch_size=1, hold_out=0):
    asked = (size, channels, batch_size, hold_out)
    return load_images(files, source, place / "data", *asked)


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


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


def plain(image, size=16, mode="RGB") -> np.ndarray:
    """Scale the largest centered square bicubically, with Pillow alone."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    scaled = image.convert(mode).resize((size, size), Image.Resampling.BICUBIC, box)
    return np.asarray(scaled).reshape(size, size, -1)


def numbered(folder: Path, names: list[str]) -> Path:
    """Write an image for each name, whose place is its red value."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i, 0, 99)).save(folder / name)
    return folder


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
@pytest.mark.parametrize("size", [(97, 61), (16, 21), (16, 16), (7, 90), (5, 3)])
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


WEBP = {"name": "x.webp", "lossless": True, "exact": True}
MODES = [
    ("LA", (100, 255), {}, 100),
    ("RGBA", (200, 100, 7, 0), WEBP, (200, 100, 7)),  # an alpha of 0 everywhere is ignored
    ("RGBA", (200, 100, 0, 204), {}, (211, 131, 51)),
    ("RGB", (10, 20, 30), {"transparency": (10, 20, 30)}, (10, 20, 30)),
    ("P", 1, {"transparency": 1}, (50, 60, 70)),
    ("I;16", 65535, {}, 255),
    ("I;16", 257 * 60, {}, 60),
    ("CMYK", (255, 0, 0, 0), {"name": "x.jpg", "quality": 100}, (0, 255, 255)),
    ("L", 128, {"name": "x.JPEG"}, 128),
    ("RGB", (200, 100, 50), {"name": "x.bmp"}, (200, 100, 50)),
    ("P", 1, {"name": "x.GIF", "save_all": True, "append_images": [noise()]}, (50, 60, 70)),
]


@pytest.mark.parametrize("mode, value, options, shown", MODES)
def test_every_mode_and_format_shows_its_color(tmp_path, mode, value, options, shown):
    image = Image.new(mode, (16, 16), value)
    if mode == "P":
        image.putpalette([9, 8, 7, 50, 60, 70])
    assert (show(tmp_path, image, **options) == np.uint8(shown)).all()


def test_transparent_pixels_are_white_before_they_are_scaled(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[::2] = 255  # between rows of white, transparent black
    assert (show(tmp_path, Image.fromarray(pixels)) == 255).all()
    for name in ("x.png", "x.gif"):  # a color that stands for transparent
        image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) // 8 * 8)
        found = show(tmp_path, image, name=name, transparency=40)
        assert (found[..., 1] == np.where(np.asarray(image) == 40, 255, image)).all()


@pytest.mark.parametrize("tag, kind", [(0x0100, 2), (0x011A, 2), (0x010F, 99), (0x8769, 2)])
def test_odd_metadata_costs_no_pixels_and_warns_nobody(tmp_path, tag, kind, recwarn):
    """The image stands upright though another tag is of a type that cannot be written back."""
    entries = [(0x0112, 3, 1, b"\6\0\0\0"), (tag, kind, 4, b"abc\0")]
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    exif += b"".join(struct.pack("<HHI4s", *entry) for entry in entries) + bytes(4)
    image = noise(size=(61, 43))
    upright = plain(image.transpose(Image.Transpose.ROTATE_270), 32)
    assert (show(tmp_path, image, 32, exif=exif) == upright).all()
    assert (show(tmp_path, image, 32, exif=exif[:-30]) == plain(image, 32)).all()
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2**21, zip=True)
    assert (show(tmp_path, image, 32, pnginfo=text) == plain(image, 32)).all()
    assert not recwarn.list


def test_channels_are_as_asked_or_those_that_the_images_need(tmp_path):
    gray = [noise("L", seed=i) for i in range(20)]
    (tmp_path / "p").mkdir()
    for i, image in enumerate(gray):
        image.convert(["L", "RGB", "RGBA"][i % 3]).save(tmp_path / "p" / f"{i}.png")
    dataset = read(tmp_path / "p", tmp_path)
    found, three = dataset.images, read(tmp_path / "p", tmp_path, 16, 3).images
    assert dataset.digest == hashlib.sha256(found.tobytes()).hexdigest()
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
    (tmp_path / "p" / "notes.txt").touch()
    zipped(tmp_path / "p")
    expected = sorted(range(38), key=lambda i: names[i])
    random.Random(0).shuffle(expected)
    whole = read(tmp_path / "p", tmp_path)
    assert whole.images[:, 0, 0, 0].tolist() == expected
    for source in ("p", "p.zip"):
        found = read(tmp_path / source, tmp_path, hold_out=5)
        assert (found.images == whole.images[:-5]).all() and found.digest == whole.digest
        assert (found.held_out == whole.images[-5:]).all()
    assert whole.digest == hashlib.sha256(whole.images.tobytes()).hexdigest()


def test_what_is_an_image_is_decided_by_its_content_where_the_suffix_does_not_say(tmp_path):
    kinds = {"a.jfif": "JPEG", "b": "PNG", "c.jpg_large": "JPEG", "d.12": "WEBP", "e": "BMP"}
    folder = numbered(tmp_path / "p", ["z.png"])
    for name, kind in (kinds | {"f.tmp": "GIF", "g.jpg": "PNG"}).items():
        noise(size=(23, 19)).save(folder / name, kind)
    for name in ("BMW", "h.txt", "i.txt", "k.csv", "l.mp4"):
        (folder / name).write_bytes(b"BM, the first of them" + bytes(9))
    noise().save(folder / "m.tiff")
    for source in (folder, zipped(folder)):
        found = read(source, tmp_path)
        assert len(found.images) == 8
        (line,) = found.skipped
        assert "1 without a suffix" in line and "2 .txt" in line and "1 .csv" in line
        assert "1 .mp4" in line and "1 .tiff" in line and "convert" in line and "m.tiff" in line
    (folder / "a.png").write_bytes((folder / "m.tiff").read_bytes())
    assert "a.png: cannot identify image" in "".join(read(folder, tmp_path).skipped)


def test_hidden_folders_and_those_of_tools_are_not_entered_but_named(tmp_path):
    folder = numbered(tmp_path / ".p", NAMES)
    for name in (".git/1.png", "a/.ipynb_checkpoints/1.png", "__MACOSX/1.png", "a/@eaDir/1.png"):
        numbered(folder, [name])
    numbered(folder, ["._b.png", "Thumbs/1.png", "thumbs_up/1.png"])
    (folder / "__MACOSX" / "._2.png").write_bytes(b"\x00\x05\x16\x07")
    for source, count in ((folder, 6), (zipped(folder), 7)):
        found = read(source, tmp_path, hold_out=4)
        assert len(found.images) + 4 == len(NAMES) + 1
        assert f"{count} hidden" in found.skipped[0]


def test_links_are_followed_once_and_their_targets_watched(tmp_path):
    numbered(tmp_path / "old" / "cat", [f"{i}.png" for i in range(7)])
    numbered(tmp_path / "old" / "dog", [f"{i}.png" for i in range(7, 12)])
    folder = numbered(tmp_path / "p", ["own.png"])
    links = {"cat": "../old/cat", "dog": tmp_path / "old" / "dog", "twice.png": "own.png"}
    links |= {"dog/up": "../..", "cat/round": "../cat"}  # to folders that hold the others
    for name, target in (links | {"itself": "itself", "nowhere.png": "gone"}).items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")  # reading it would take for ever
    found = read(folder, tmp_path, hold_out=3)
    values = [*found.images[:, 0, 0, 0].tolist(), *found.held_out[:, 0, 0, 0].tolist()]
    assert sorted(values) == sorted([0, *range(7), *range(5)])
    (line,) = found.skipped
    for text in ("reached twice", "1 No such file", "nowhere.png", "1 neither file nor", "itself"):
        assert text in line
    for i in range(7):
        Image.new("RGB", (16, 16), (100 + i, 0, 0)).save(tmp_path / "old" / "cat" / f"{i}.png")
    assert read(folder, tmp_path).images.max() == 106


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    folder, listdir = numbered(tmp_path / "p", ["a.png", "lost/1.png", "z.png"]), os.listdir

    def refuse(path):  # chmod would not keep root out
        if path == str(folder / "lost"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    found = read(folder, tmp_path)
    assert len(found.images) == 2
    assert f"1 Permission denied ({folder / 'lost'})" in found.skipped[0]


def test_names_that_are_not_utf_8_are_those_of_images_but_not_of_data(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    folder = numbered(tmp_path / odd, [f"{odd}.png", f"{odd}/1.png"])
    (folder / f"{odd}.txt").touch()
    (folder / f"{odd}.jpg").touch()
    assert "caf\\udce9': the name is not UTF-8" in refusal(folder, tmp_path)
    assert "is not UTF-8" in refusal("faces", folder)
    found = read(folder.rename(tmp_path / "p"), tmp_path)
    assert len(found.images) == 2 and "\n".join(found.skipped).encode().count(b"caf") == 2


def test_too_few_images_are_refused_with_the_numbers(tmp_path, monkeypatch):
    asked = (numbered(tmp_path / "p", NAMES), tmp_path, 16, 3)
    assert len(read(*asked, 5, 3).images) == 5
    fewer = "images are fewer than --batch-size"
    assert refusal(*asked, 9).endswith(f"{asked[0]}: 8 {fewer} 9; try --batch-size 8")
    said = refusal(*asked, 6, 3)
    assert "5 images besides 3 held out are fewer than --batch-size 6; try --batch-size 5" in said
    assert refusal(*asked, 1, 9).endswith(f"0 images besides 9 held out are {fewer[11:]} 1; ")
    monkeypatch.setattr(files.data, "WORLD_SIZE", 3)
    assert f"8 {fewer} 5 in 3 processes; try --batch-size 2" in refusal(*asked, 5)
    monkeypatch.setattr(files.data, "WORLD_SIZE", 1)
    (asked[0] / NAMES[0]).write_bytes(b"no image")
    said = refusal(*asked, 8)
    assert f"7 {fewer} 8; try --batch-size 7; {asked[0] / NAMES[0]}: cannot identify" in said


def test_what_cannot_be_used_is_refused_in_one_line_that_helps(tmp_path):
    folder, inner = numbered(tmp_path / "p", NAMES), tmp_path / "in"
    for name in ("in", "empty"):
        (tmp_path / name).mkdir()
    tar = Path(shutil.make_archive(str(folder), "gztar", folder))
    packed, half = zipped(folder).read_bytes(), tmp_path / "half.zip"
    (inner / "p.zip").write_bytes(packed)
    half.write_bytes(packed[: len(packed) // 2])
    no_zip = "cannot be read (File is not a zip file); it takes a folder, a whole .zip file or one"
    for data, text in {
        tmp_path / "gone": "no such folder or file; it takes a folder, a whole .zip file or",
        "cifar": "or one of faces, mnist, fashion-mnist, cifar10, celeba",
        "": "no such folder or file",
        **{half: no_zip, tar: no_zip, tmp_path / "empty": "no image in it"},
        inner: "no image in it; not read: 1 .zip (",
    }.items():
        said = refusal(data, tmp_path)
        assert said.startswith(f"InputError --data {data}: ") and text in said and "\n" not in said
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").write_bytes(b"not a folder")
    said = refusal(folder, tmp_path)
    assert said.startswith("RunError") and "--data-dir names another folder for" in said


def test_images_up_to_50_megapixels_and_100_megabytes_are_read(tmp_path, monkeypatch):
    assert (files.data.MOST_PIXELS, files.data.MOST_BYTES) == (50_000_000, 100_000_000)
    image = noise(size=(20, 16))
    image.save(tmp_path / "x.png")
    size = (tmp_path / "x.png").stat().st_size
    for name, most in (("MOST_PIXELS", 20 * 16), ("MOST_BYTES", size)):
        with monkeypatch.context() as patch:
            patch.setattr(files.data, name, most)
            assert (read(tmp_path, tmp_path / name).images == plain(image)).all()
            patch.setattr(files.data, name, most - 2)
            said = refusal(tmp_path, tmp_path / f"{name} less 2")
            assert ("pixels" if name == "MOST_PIXELS" else "1 above 0 MB") in said, said


def test_images_are_decoded_once_and_again_when_anything_differs(tmp_path, monkeypatch):
    folder, names, decode = numbered(tmp_path / "p", NAMES), [], files.data.decode
    monkeypatch.setattr(files.data, "decode", lambda *a: names.append(a[0]) or decode(*a))
    first = read(folder, tmp_path)
    assert isinstance(first.images, np.memmap) and not first.images.flags.writeable
    kept = first.images.copy()
    cache, facts = first.cache, first.cache.with_suffix(".json")
    for change, expected in (
        (lambda: read(folder, tmp_path, batch_size=3, hold_out=2), 0),
        (lambda: os.truncate(cache, 1000), 8),
        (lambda: cache.write_bytes(cache.read_bytes() + b"x"), 8),
        (lambda: os.truncate(facts, 20), 8),
        (facts.unlink, 8),
        (lambda: os.utime(folder / NAMES[3], (1e9, 1e9)), 8),
        (lambda: numbered(folder, ["new.png"]), 9),
    ):
        names.clear()
        change()
        found = read(folder, tmp_path)
        assert len(names) == expected and (expected == 9 or (found.images == kept).all())
        assert len(list(cache.parent.iterdir())) == 3  # array, facts and lock: none is left behind
    kinds = [(16, 1), (16, 3), (16, "data"), (32, 3)]
    assert len({read(folder, tmp_path, *kind).cache for kind in kinds}) == 4
    copy, digests = shutil.copytree(folder, tmp_path / "copy"), [found.digest]
    for color in (99, 98, 97):  # of the same number of bytes; the first as it is
        Image.new("RGB", (16, 16), (0, 0, color)).save(copy / "new.png", compress_level=0)
        digests += [read(source, tmp_path).digest for source in (copy, zipped(copy))]
    assert digests[0] == digests[1] == digests[2] and len(set(digests)) == 3


@pytest.mark.parametrize("folder", FOLDERS)
def test_gray_data_is_gray_in_weights_and_samples(folder, tiny, tmp_path, monkeypatch):
    images = write_images(tmp_path / "p", noise_images(19, 61, 43, 1).repeat(3, 3))
    run = train(folder, tiny | {"data": images, "channels": "data", "name": "run"})
    with safe_open(run / "generator.safetensors", "pt") as file:
        assert json.loads(file.metadata()["about"])["arguments"]["channels"] == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["generate.py", str(run), "--num=3", "--each=out"])
    generate.main()
    assert {Image.open(file).mode for file in (tmp_path / "out").iterdir()} == {"L"}


@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_files_that_are_there_are_not_downloaded(tmp_path, name, folder):
    images = noise_images(6, 28, 28)
    content = {"images-idx3": struct.pack(">4I", 2051, 6, 28, 28) + images.tobytes()}
    content["labels-idx1"] = struct.pack(">2I", 2049, 6) + bytes(6)
    raw = tmp_path / "data" / folder / "raw"
    raw.mkdir(parents=True)
    for part in content:
        (raw / f"train-{part}-ubyte").write_bytes(content[part])
        (raw / f"t10k-{part}-ubyte").touch()
    found = read(name, tmp_path, 32, hold_out=2)
    expected = np.stack([plain(Image.fromarray(image), 32, "L") for image in images])
    assert (found.images == expected[:4]).all() and (found.held_out == expected[4:]).all()


def test_cifar10_and_celeba_take_the_images_for_training(tmp_path, monkeypatch):
    def cifar10(root, train=True, download=False):
        return SimpleNamespace(data=pixels if train and download else None)

    def celeba(root, split="train", download=False):
        numbered(root / "celeba" / "img_align_celeba", NAMES if split == "train" else [])

    pixels = noise_images(3, 32, 32, 3)
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


def take(source, count) -> list[list[int]]:
    """Return the numbers of the images in the next minibatches."""
    return [((next(source).flatten() + 1) * 127.5).round().tolist() for _ in range(count)]


def test_values_run_from_minus_1_to_1_and_channels_come_first():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 8, 2)
    source = files.data.Batches(images, 1, torch.device("cpu"), 0)
    found = next(source)
    assert found.dtype == torch.float32 and found.min() == -1 and found.max() == 1
    expected = images.transpose(0, 3, 1, 2) * (2 / 255) - 1
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("seed", [7, 8])
def test_a_pass_shows_each_image_once_in_an_order_of_the_seed(seed):
    rng = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(11, generator=rng).tolist() for _ in range(4)]
    expected = [order[i : i + 3] for order in passes for i in (0, 3, 6)]  # 2 are left over
    assert take(batches(11, 3, seed), 12) == expected


def test_processes_share_a_pass_as_one_with_a_larger_minibatch(monkeypatch):
    expected, found = take(batches(23, 4, 0), 12), []
    monkeypatch.setattr(files.data, "WORLD_SIZE", 2)
    for rank in (0, 1):
        monkeypatch.setattr(files.data, "RANK", rank)
        found.append(take(batches(23, 2, 0), 12))
    assert [one + other for one, other in zip(*found, strict=True)] == expected


def test_a_pass_goes_on_where_its_state_was_taken():
    source, other = batches(11, 3, 0), batches(11, 3, 99)
    take(source, 5)
    other.load_state_dict(source.state_dict())
    assert take(other, 8) == take(source, 8)


def test_faces_are_the_same_everywhere_and_all_different():
    digests = {(16, 0): "b855a942a5e5", (64, 0): "301242e94ea1", (16, 1): "9bea7fe6f7ae"}
    for (size, seed), digest in digests.items():
        faces = np.stack(list(files.data.draw_faces(40, size, seed)))
        assert faces.shape == (40, size, size, 3) and len({face.tobytes() for face in faces}) == 40
        assert hashlib.sha256(faces.tobytes()).hexdigest()[:12] == digest


def test_faces_that_are_drawn_otherwise_are_decoded_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(files.data, "FACES", 20)
    first, draw = read("faces", tmp_path).images, files.data.draw_faces
    monkeypatch.setattr(files.data, "draw_faces", lambda *args: (255 - x for x in draw(*args)))
    assert (read("faces", tmp_path).images == 255 - first).all()


def test_10_000_faces_are_the_default_and_finer_at_larger_sizes(data_dir):
    found = load_images(files, "faces", data_dir).images
    assert found.shape == (10_000, 16, 16, 3)
    assert (found[:700] == np.stack(list(files.data.draw_faces(700, 16, 0)))).all()
    large = np.stack(list(files.data.draw_faces(16, 32)))
    halved = large.reshape(16, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(halved - found[:16]).mean() < 8 < 40 < np.abs(halved - found[16:32]).mean()
