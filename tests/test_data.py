"""Pictures: drawn, from folders, zips and torchvision; the cache; what cannot be read."""

import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import TOP, load
from PIL import Image

SHARED = TOP.parent / "shared" / "data"  # real pictures, where a developer has them


@pytest.fixture
def data():
    return load("WGAN").data


@pytest.fixture
def refused():
    return pytest.raises(load("WGAN").utils.InputError)


def picture(path: Path, size=(20, 30), mode="RGB", seed=0, **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    Image.fromarray(values.squeeze(), mode if bands == 1 else None).convert(mode).save(path, **save)


def read(data, source, root, size=16, channels="data", batch_size=1):
    return data.load_pictures(str(source), str(root), size, channels, batch_size)


def files_in(folder: Path):
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix != ".lock")


# ---- drawn faces ----


def test_faces_are_the_same_everywhere_and_all_different(data):
    faces = np.stack(list(data.draw_faces(64, 32)))
    assert faces.shape == (64, 32, 32, 3) and faces.dtype == np.uint8
    assert len(np.unique(faces.reshape(64, -1), axis=0)) == 64
    again = np.stack(list(data.draw_faces(20, 32)))
    assert (again == faces[:20]).all()
    # a fingerprint that any machine must find: bytes may differ by one in the last place
    assert faces.astype(int).sum() == pytest.approx(33_764_635, rel=1e-4)


def test_a_face_is_the_same_at_every_size(data):
    small = np.stack(list(data.draw_faces(16, 32))).astype(float)
    large = np.stack(list(data.draw_faces(16, 64))).astype(float)
    halved = large.reshape(16, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(halved - small).mean() < 6


def test_faces_fill_the_default_data_set(data, data_dir):
    pictures = read(data, "faces", data_dir)
    assert pictures.images.shape == (10_000, 16, 16, 3)
    drawn = np.stack(list(data.draw_faces(700, 16)))
    assert (pictures.images[:700] == drawn).all()  # in order, across chunks


# ---- folders and zips ----


def test_a_folder_of_any_shape_sizes_and_modes(data, tmp_path):
    pictures = tmp_path / "pictures"
    picture(pictures / "a.png", (40, 20))
    picture(pictures / "deep" / "er" / "b.JPG", (17, 50))
    picture(pictures / "grey.png", mode="L")
    picture(pictures / "palette.gif", mode="P")
    picture(pictures / "clear.png", mode="RGBA")
    picture(pictures / "print.jpg", mode="CMYK")
    picture(pictures / "tiny.webp", (3, 3))
    (pictures / "notes.txt").write_text("no picture")
    found = read(data, pictures, tmp_path / "cache")
    assert found.images.shape == (7, 16, 16, 3) and not found.skipped


def test_pictures_are_scaled_and_cropped_never_squashed(data, tmp_path):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, :32, 0], wide[:, 32:64, 1], wide[:, 64:, 2] = 255, 255, 255
    (tmp_path / "p").mkdir()
    Image.fromarray(wide).save(tmp_path / "p" / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "p" / "high.png")
    for image in read(data, tmp_path / "p", tmp_path / "cache").images:
        assert image.reshape(-1, 3).mean(0) == pytest.approx([0, 255, 0], abs=12)  # the middle


def test_modes_that_need_care_keep_their_brightness(data, tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    Image.fromarray(np.full((20, 20), 32768, np.uint16)).save(folder / "sixteen_bits.png")
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(folder / "invisible.png")  # on white
    turned = Image.new("RGB", (20, 20))
    turned.paste((255, 255, 255), (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # to be shown upside down
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    names = [Path(item).name for item in data.list_pictures(str(folder), tmp_path, 16)[0]]
    images = dict(zip(names, read(data, folder, tmp_path / "cache").images, strict=True))
    assert images["invisible.png"].mean() == 255
    assert images["sixteen_bits.png"].mean() == pytest.approx(127.5, abs=1)
    assert images["turned.jpg"][:6].mean() < 10 and images["turned.jpg"][-6:].mean() > 245


def test_grey_pictures_train_with_one_channel(data, tmp_path):
    picture(tmp_path / "grey" / "a.png", mode="L")
    grey_as_rgb = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
    Image.fromarray(grey_as_rgb).save(tmp_path / "grey" / "b.png")
    assert read(data, tmp_path / "grey", tmp_path).images.shape == (2, 16, 16, 1)
    assert read(data, tmp_path / "grey", tmp_path, channels=3).images.shape == (2, 16, 16, 3)
    picture(tmp_path / "grey" / "c.png")
    assert read(data, tmp_path / "grey", tmp_path).images.shape == (3, 16, 16, 3)
    assert read(data, tmp_path / "grey", tmp_path, channels=1).images.shape == (3, 16, 16, 1)


def test_a_zip_gives_what_its_folder_gives(data, tmp_path):
    for i in range(5):
        picture(tmp_path / "p" / f"{i}.png", seed=i)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for file in sorted((tmp_path / "p").iterdir()):
            archive.write(file, f"inside/{file.name}")
        archive.writestr("readme.txt", "no picture")
    folder = read(data, tmp_path / "p", tmp_path / "cache")
    packed = read(data, tmp_path / "p.zip", tmp_path / "cache")
    assert folder.digest == packed.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "p", "p.zip"]


def test_broken_pictures_are_named_and_the_rest_is_used(data, tmp_path, capfd):
    for i in range(4):
        picture(tmp_path / "p" / f"{i}.png", seed=i)
    (tmp_path / "p" / "1_broken.jpg").write_bytes(b"not a picture")
    (tmp_path / "p" / "2_empty.png").touch()
    whole = (tmp_path / "p" / "3.png").read_bytes()
    (tmp_path / "p" / "3_cut.png").write_bytes(whole[: len(whole) // 2])
    found = read(data, tmp_path / "p", tmp_path / "cache")
    assert len(found.images) == 4
    good = [data.decode(tmp_path / "p" / f"{i}.png", 16, 3) for i in range(4)]
    assert {image.tobytes() for image in found.images} == {image.tobytes() for image in good}
    named = " ".join(found.skipped)
    shown = capfd.readouterr().err
    for name in ("1_broken.jpg", "2_empty.png", "3_cut.png"):
        assert name in named and name in shown


def test_a_picture_that_would_fill_the_memory_is_skipped(data, tmp_path):
    picture(tmp_path / "p" / "good.png")
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)

    chunk = b"IHDR" + header
    bomb = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )
    (tmp_path / "p" / "bomb.png").write_bytes(bomb)
    found = read(data, tmp_path / "p", tmp_path / "cache")
    assert len(found.images) == 1 and "bomb.png" in found.skipped[0]


@pytest.mark.parametrize(
    "what", ["missing", "empty", "no_pictures", "all_broken", "file", "too_few"]
)
def test_bad_sources_are_named_and_leave_nothing_behind(data, tmp_path, refused, what):
    source = tmp_path / what
    if what == "empty":
        source.mkdir()
    elif what == "no_pictures":
        source.mkdir()
        (source / "notes.txt").write_text("no picture")
    elif what == "all_broken":
        source.mkdir()
        (source / "broken.png").write_text("no picture")
    elif what == "file":
        source.write_text("neither folder nor zip")
    elif what == "too_few":
        picture(source / "one.png")
    before = files_in(tmp_path)
    with refused as caught:
        read(data, source, tmp_path / "cache", batch_size=2)
    assert what in str(caught.value)
    assert files_in(tmp_path) == before


def test_too_few_readable_pictures_leave_nothing_behind(data, tmp_path, refused):
    picture(tmp_path / "p" / "good.png")
    (tmp_path / "p" / "broken.png").write_text("no picture")
    before = files_in(tmp_path)
    with refused as caught:
        read(data, tmp_path / "p", tmp_path / "cache", batch_size=2)
    assert "broken.png" in str(caught.value)
    assert files_in(tmp_path) == before


# ---- the cache ----


def test_pictures_are_decoded_once(data, tmp_path, monkeypatch):
    picture(tmp_path / "p" / "a.png")
    first = read(data, tmp_path / "p", tmp_path / "cache")
    monkeypatch.setattr(data, "decode", None)  # any call would fail
    second = read(data, tmp_path / "p", tmp_path / "cache")
    assert (first.images == second.images).all() and first.digest == second.digest


def test_what_changes_pictures_changes_the_cache(data, tmp_path):
    picture(tmp_path / "p" / "a.png")
    first = read(data, tmp_path / "p", tmp_path / "cache")
    assert read(data, tmp_path / "p", tmp_path / "cache", size=32).cache != first.cache
    assert read(data, tmp_path / "p", tmp_path / "cache", channels=1).cache != first.cache
    picture(tmp_path / "p" / "a.png", seed=1)
    changed = read(data, tmp_path / "p", tmp_path / "cache")
    assert changed.cache != first.cache and changed.digest != first.digest
    picture(tmp_path / "p" / "b.png")
    assert len(read(data, tmp_path / "p", tmp_path / "cache").images) == 2


def test_nothing_written_to_the_images_reaches_the_cache(data, tmp_path):
    picture(tmp_path / "p" / "a.png")
    first = read(data, tmp_path / "p", tmp_path / "cache")
    kept = first.images.copy()
    first.images[:] = 0
    assert (read(data, tmp_path / "p", tmp_path / "cache").images == kept).all()


# ---- torchvision's data sets ----


def write_idx(path: Path, values: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(
        f">{values.ndim}I", *values.shape
    )
    path.write_bytes(header + values.tobytes())


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_files_that_are_there_are_used_without_a_download(data, tmp_path, name, folder):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        write_idx(tmp_path / folder / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(
            tmp_path / folder / "raw" / f"{part}-labels-idx1-ubyte", np.arange(6, dtype=np.uint8)
        )
    found = read(data, name, tmp_path, size=32)
    assert found.images.shape == (6, 32, 32, 1)


def test_a_failed_download_says_what_to_do(data, tmp_path, monkeypatch):
    import torchvision.datasets

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(load("WGAN").utils.RunError) as caught:
        read(data, "cifar10", tmp_path)
    assert "no network" in str(caught.value) and "cifar-10-batches-py" in str(caught.value)


@pytest.mark.skipif(not SHARED.exists(), reason="no real pictures here")
def test_real_pictures(data, tmp_path):
    horses = read(data, SHARED / "cifar10" / "horse", tmp_path, size=32, batch_size=64)
    assert horses.images.shape == (5000, 32, 32, 3) and not horses.skipped
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (SHARED / "fashion-mnist" / "FashionMNIST" / "raw").iterdir():
        (raw / file.name).write_bytes(file.read_bytes())
    assert read(data, "fashion-mnist", tmp_path, size=32).images.shape == (810, 32, 32, 1)


def test_facts_of_the_cache_are_json(data, tmp_path):
    picture(tmp_path / "p" / "a.png")
    found = read(data, tmp_path / "p", tmp_path / "cache")
    facts = json.loads(found.cache.with_suffix(".json").read_text())
    assert facts["shape"] == [1, 16, 16, 3] and facts["digest"] == found.digest
    assert found.cache.stat().st_size == 16 * 16 * 3
