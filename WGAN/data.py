"""Images and minibatches: drawn faces, a folder, a zip or a torchvision dataset, decoded once.

This file is the same, byte for byte, in every model folder; tests/test_copies.py checks it.

Sections: datasets, decoding, minibatches, drawn faces.
"""

import hashlib
import io
import itertools
import json
import os
import random
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from utils import (
    DATASETS,
    FORMAT,
    HERE,
    Channels,
    InputError,
    RunError,
    process,
    processes,
    write_aside,
)

TORCHVISION = {  # its class, and where its files lie under --data-dir
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "celeba": ("CelebA", "celeba"),
}
READ = {".bmp": "BMP", ".gif": "GIF", ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG"}
READ |= {".webp": "WEBP"}
NOT_READ = {".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg", ".tif", ".tiff"}
MOST_PIXELS, MOST_BYTES = 50_000_000, 100_000_000  # of one image: a small file can hold a huge one
THREADS = min(4, os.cpu_count() or 1)  # each may hold an image of the most pixels

# ---- Datasets ----


class Dataset(NamedTuple):
    """Decoded images, and what is worth saying about them."""

    images: np.ndarray  # uint8 (N, H, W, C), mapped from the cache: what training sees
    held_out: np.ndarray  # the same of those that it does not see
    digest: str  # of the bytes of all: resuming asks for the same images
    skipped: list[str]  # files that were not read, each with the reason
    cache: Path


class Damaged(RunError):
    """A cache of decoded images is missing or not whole."""


def load_images(
    data: str, data_dir: str, image_size: int, channels: Channels, batch_size: int, hold_out: int
) -> Dataset:
    """Decode images once, and from then on map the cached array into memory.

    Args:
        data: One of `DATASETS`, a folder or a zip file.
        data_dir: For downloads and the cache; empty for `data` beside this file.
        image_size: The short side is scaled to it, then the center is cut out.
        channels: 1, 3, or "data": 1 if every image is gray, otherwise 3.
        batch_size: There must be at least this many images besides those held out.
        hold_out: How many are kept from training.

    Raises:
        InputError: There is no such folder or name, or too few images can be read.
        RunError: A download failed, or the disk is full.
    """
    root = Path(data_dir) if data_dir else HERE / "data"
    items, count, facts, skipped = list_images(data, root, image_size)
    key = hashlib.sha256(json.dumps([FORMAT, image_size, channels, facts]).encode()).hexdigest()
    cache = root / "cache" / f"{Path(data).stem[:50]}-{image_size}-{key[:16]}.bytes"
    needed = batch_size * processes() + hold_out
    asked = f"--batch-size {batch_size}" + f" and --hold-out {hold_out}" * (hold_out > 0)
    asked += f" in {processes()} processes" * (processes() > 1)
    if count < needed:
        raise InputError(f"--data {data}: {count} images are fewer than {asked} need")
    with FileLock(cache.with_suffix(".lock")):  # other processes wait while one decodes
        try:
            found = open_cache(cache, hold_out)
        except Damaged:
            build_cache(cache, items, count, image_size, channels, skipped)
            found = open_cache(cache, hold_out)
    if len(found.images) < needed - hold_out:
        readable, first = len(found.images) + len(found.held_out), found.skipped[:1]
        raise InputError(
            f"--data {data}: {readable} readable images are fewer than {asked} need; "
            f"not read: {'; '.join(first)}"
        )
    return found


def open_cache(cache: Path, hold_out: int) -> Dataset:
    """Map decoded images into memory; the last `hold_out` of them are held out.

    Raises:
        Damaged: The cache is missing or not whole.
    """
    try:
        facts = json.loads(cache.with_suffix(".json").read_bytes())
        shape = tuple(facts["shape"])
        if np.prod(shape) != cache.stat().st_size:
            raise ValueError("its size is wrong")
        if shape[0] == 0:  # an empty file cannot be mapped
            images = np.empty(shape, np.uint8)
        else:  # mode "c": PyTorch wants writable memory, and nothing written reaches the file
            images = np.memmap(cache, np.uint8, mode="c", shape=shape)
        first = max(0, len(images) - hold_out)
        return Dataset(images[:first], images[first:], facts["digest"], facts["skipped"], cache)
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise Damaged(f"cache {cache}: {error}") from None


def build_cache(
    cache: Path,
    items: Iterable,
    count: int,
    image_size: int,
    channels: Channels,
    skipped: list[str],
) -> None:
    """Decode in parallel under a progress bar, and write the array and what is known about it."""

    def decode_or_say(item: Any) -> np.ndarray | str:
        try:
            return decode(item, image_size, channels)
        except Exception as error:  # a broken image can raise nearly anything
            name = item[1].filename if isinstance(item, tuple) else item
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):  # it names an object of ours
                reason = "damaged, or not an image"
            return f"{name}: {reason}"

    shape, gray = [0, image_size, image_size, 1 if channels == 1 else 3], channels == "data"
    bar = tqdm(total=count, desc="decoding", unit="image", leave=False, disable=None)
    with write_aside(cache) as file, bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about odd metadata
        items = iter(items)
        with ThreadPoolExecutor(THREADS) as pool:
            while chunk := list(itertools.islice(items, 512)):  # bounds what waits in memory
                for row in pool.map(decode_or_say, chunk):
                    bar.update()
                    if isinstance(row, str):
                        skipped.append(row)
                        tqdm.write(f"skipped     {row}", file=sys.stderr)
                    else:
                        file.write(row)
                        shape[0] += 1
                        gray = gray and bool((row == row[..., :1]).all())
        if gray:  # keep one of three equal channels, each row moving up in the file
            for i in range(shape[0]):
                file.seek(i * image_size**2 * 3)
                row = file.read(image_size**2 * 3)[::3]
                file.seek(i * image_size**2)
                file.write(row)
            file.truncate()
            shape[3] = 1
        file.seek(0)
        digest = hashlib.sha256()
        while part := file.read(2**24):
            digest.update(part)
    with write_aside(cache.with_suffix(".json")) as file:
        facts = {"shape": shape, "digest": digest.hexdigest(), "skipped": skipped}
        file.write(json.dumps(facts).encode())


def list_images(data: str, root: Path, image_size: int) -> tuple[Iterable, int, Any, list[str]]:
    """Find the images of a dataset.

    Returns:
        What `decode` takes; how many; what identifies them; and a line about files that are
        images of a kind that is not read.

    Raises:
        InputError: There is no such dataset, or no image in it.
        RunError: A download failed.
    """
    path = Path(data)
    if data == "faces":
        return draw_faces(FACES, image_size), FACES, data, []
    if data in TORCHVISION:
        return download(data, root, image_size)
    if data and path.is_dir():
        names = sorted(str(file) for file in path.resolve().rglob("*") if not file.is_dir())
        items = [name for name in names if kind_of(name) in READ]
        about = [os.lstat(name) for name in items]
        facts = [items, [(each.st_size, each.st_mtime_ns) for each in about]]
    elif zipfile.is_zipfile(path):
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
            raise InputError(f"--data {data}: the zip cannot be read ({error})") from None
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        entries.sort(key=lambda entry: entry.filename)
        names = [entry.filename for entry in entries]
        items = [(archive, entry) for entry in entries if kind_of(entry.filename) in READ]
        facts = [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
    else:
        kinds = f"a folder, a .zip file or one of {', '.join(DATASETS)}"
        raise InputError(f"--data {data!r}: no such dataset; it takes {kinds}")
    others = [name for name in names if kind_of(name) in NOT_READ]
    counts = Counter(kind_of(name) for name in others)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    advice = f"{kinds} not read (such as {others[0]}): convert to JPEG or PNG" if others else ""
    if not items:
        raise InputError(
            f"--data {data}: no image in it ({', '.join(READ)}){'; ' * bool(others)}{advice}"
        )
    random.Random(0).shuffle(items)  # held-out images come from all over the folder
    return items, len(items), facts, [advice] * bool(others)


def kind_of(name: str) -> str:
    """Return the suffix of a file; none for the "._x.jpg" that a Mac keeps beside x.jpg."""
    return "" if Path(name).name.startswith("._") else Path(name).suffix.lower()


def download(data: str, root: Path, image_size: int) -> tuple[Iterable, int, Any, list[str]]:
    """Have torchvision read one of its datasets; it downloads what is not there."""
    import torchvision.datasets  # slow to import

    name, subfolder = TORCHVISION[data]
    part = {"split": "train"} if data == "celeba" else {"train": True}
    try:
        with FileLock(root / f"{data}.lock"):
            dataset = getattr(torchvision.datasets, name)(root, download=True, **part)
    except Exception as error:  # network, server, quota: each raises its own kind
        raise RunError(
            f"--data {data}: the download failed ({error}); put the files that torchvision's "
            f"{name} lists into {root / subfolder} by hand, or name a folder of images"
        ) from None
    if data == "celeba":
        return list_images(str(root / subfolder / "img_align_celeba"), root, image_size)
    return np.asarray(dataset.data), len(dataset.data), data, []


# ---- Decoding ----


def decode(item: Any, image_size: int, channels: Channels) -> np.ndarray:
    """Read one image, of any size and mode, as uint8 (image_size, image_size, 1 or 3).

    Args:
        item: A path, an open zip file and its entry, or pixels (H, W) or (H, W, C).
        image_size: The short side is scaled to it, then the center is cut out.
        channels: 1, 3, or "data", which here means 3.

    Raises:
        Exception: It cannot be read; Pillow raises nearly anything.
    """
    if isinstance(item, np.ndarray):
        return fit(Image.fromarray(item), image_size, channels)
    zipped = isinstance(item, tuple)
    if not zipped and not Path(item).is_file():
        raise ValueError("not a file that can be read")  # opening a pipe would take forever
    size = item[1].file_size if zipped else os.stat(item).st_size
    if size > MOST_BYTES:
        raise ValueError(f"{size / 1e6:,.0f} MB are more than {MOST_BYTES // 10**6} MB")
    # zipfile unpacks no more than the size that it names
    content = item[0].read(item[1]) if zipped else Path(item).read_bytes()
    image = Image.open(io.BytesIO(content), formats=tuple(set(READ.values())))
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MOST_PIXELS // 10**6} million")
    image.draft("RGB", (image_size, image_size))  # a JPEG is decoded at the scale that is needed
    return fit(image, image_size, channels)


def fit(image: Image.Image, image_size: int, channels: Channels) -> np.ndarray:
    """Turn an image upright, bring it to 8 bits a channel, scale it and cut out the center."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image, np.float32) * (255 / 65535)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image_size, image_size, -1)


# ---- Minibatches ----


class Batches:
    """Endless minibatches: each pass shows every image at most once, in a new order.

    The images that do not fill a last minibatch are left out of the pass. The order depends
    on the seed alone, not on the device. Several processes share a pass: together they see
    what one would with a minibatch as large as all of theirs.

    `draw` chooses minibatches and `next` hands them out. They are separate because a CUDA
    graph can hold the second, which touches nothing but the device, and not the first.

    Args:
        images: uint8 (N, H, W, C).
        batch_size: B, the papers' m.
        device: Where minibatches go; the images are kept there if they leave half of it free.
        seed: Of the order.
    """

    def __init__(
        self, images: np.ndarray, batch_size: int, device: torch.device, seed: int
    ) -> None:
        self.images = torch.from_numpy(images)
        if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            self.images = self.images.to(device)
        self.batch_size, self.device = batch_size, device
        self.rng = torch.Generator().manual_seed(seed)
        self.start_pass()

    def start_pass(self) -> None:
        """Draw a new order; remember the state that it was drawn from."""
        self.rng_at_start = self.rng.get_state()
        order = torch.randperm(len(self.images), generator=self.rng)
        whole = len(order) // self.batch_size // processes() * processes()
        self.order = order.split(self.batch_size)[process() : whole : processes()]
        self.taken = 0

    def draw(self, count: int) -> None:
        """Choose the next `count` minibatches; nothing here waits for the device."""
        rows = []
        for _ in range(count):
            if self.taken == len(self.order):
                self.start_pass()
            rows.append(self.order[self.taken])
            self.taken += 1
        if self.images.device.type == self.device.type:
            chosen = self.images[self.move(torch.cat(rows))]
        else:  # too many for the device: those that were chosen follow
            chosen = self.move(self.images[torch.cat(rows)])
        if not hasattr(self, "chosen"):
            self.chosen = torch.empty_like(chosen)
        self.chosen.copy_(chosen, non_blocking=True)  # a graph reads this very memory
        self.handed_out = 0

    def move(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device; from pinned memory, so that a GPU is not waited for."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def __next__(self) -> Tensor:
        """Return the next minibatch that was drawn, (B, C, H, W) in [-1, 1]."""
        start = self.handed_out * self.batch_size
        self.handed_out += 1
        images = self.chosen[start : start + self.batch_size].permute(0, 3, 1, 2)
        return images.float() / 127.5 - 1

    def state_dict(self) -> dict[str, Any]:
        """Say where the next minibatch comes from."""
        return {"rng_at_start": self.rng_at_start, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.rng.set_state(state["rng_at_start"])
        self.start_pass()
        self.taken = state["taken"]


# ---- Drawn faces ----

FACES = 10_000
SKINS = (0.96, 0.82, 0.72), (0.92, 0.72, 0.57), (0.80, 0.57, 0.42), (0.50, 0.33, 0.24)
HAIRS = (0.1, 0.08, 0.08), (0.4, 0.2, 0.1), (0.9, 0.7, 0.4), (0.65, 0.25, 0.1), (0.8, 0.8, 0.8)
IRISES = (0.26, 0.16, 0.10), (0.25, 0.42, 0.62), (0.28, 0.44, 0.26)
PAINTS = (0.70, 0.24, 0.22), (0.20, 0.38, 0.60), (0.30, 0.46, 0.31), (0.81, 0.61, 0.31)
PAINTS += (0.86, 0.83, 0.75), (0.14, 0.13, 0.17)


def draw_faces(count: int, size: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Paint faces, (size, size, 3) bytes each: the same ones on every machine.

    Every feature varies on its own. A size draws the same faces as any other, only finer.
    """
    rng = torch.Generator().manual_seed(seed)
    for start in range(0, count, 16):  # few enough to stay in the processor's cache
        faces = (draw_16_faces(size, rng).movedim(1, 3) * 255).round().to(torch.uint8)
        yield from faces.numpy()[: count - start]


def draw_16_faces(size: int, rng: torch.Generator) -> Tensor:
    """Paint (16, 3, size, size) in [0, 1], back to front; x and y run from -1 to 1.

    Only sums, products and quotients are used: they round alike everywhere.
    """

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(16, 1, 1, generator=rng)

    def maybe(chance: float) -> Tensor:
        return (torch.rand(16, 1, 1, generator=rng) < chance).float()

    def one_of(colors: tuple) -> Tensor:  # or a mixture of two
        first, second = torch.tensor(colors)[torch.randint(len(colors), (2, 16), generator=rng)]
        return (first + (second - first) * torch.rand(16, 1, generator=rng))[:, :, None, None]

    def octaves(*shape: int) -> Tensor:
        """Add noise of 4, 8, 16 ... cells a side, whose strength falls as in photographs."""
        noise = torch.zeros(16, shape[0], *[2 for _ in shape[1:]])
        own = torch.Generator().manual_seed(int(torch.randint(2**40, (), generator=rng)))
        while noise.shape[2] < shape[1]:
            for dim in range(2, noise.ndim):  # twice as fine, by linear interpolation
                near, far = 0.75 * noise, 0.25 * noise
                pair = near + far.roll(1, dim), near + far.roll(-1, dim)
                noise = torch.stack(pair, dim + 1).flatten(dim, dim + 1)
            noise += (4 / noise.shape[2]) ** 0.5 * (torch.rand(noise.shape, generator=own) - 0.5)
        return noise

    def threads(u: Tensor) -> Tensor:  # lines of all widths, along which u is constant
        lines = octaves(1, 2 * size)[:, 0]
        place = ((u + 2) / 4 * lines.shape[1]).long().clamp(0, lines.shape[1] - 1)
        return lines.gather(1, place.flatten(1)).view_as(u)

    def inside(depth: Tensor, soft: float = 0.03) -> Tensor:  # the share of a pixel covered
        return (0.5 + depth / (2 / size + soft)).clamp(0, 1)

    def ellipse(u: Tensor, v: Tensor, rx, ry, soft: float = 0.03) -> Tensor:
        depth = (1 - u / rx * (u / rx) - v / ry * (v / ry)) * (rx * ry / (rx + ry))
        return inside(depth, soft)  # exact at the edge, where alone it matters

    def paint(mask: Tensor, color: Tensor | float, light: Tensor) -> None:
        canvas.add_((color * light[:, None] - canvas).mul_(mask[:, None]))  # in place: faster

    skin, hair, iris, shirt = one_of(SKINS), one_of(HAIRS), one_of(IRISES), one_of(PAINTS)
    sun, shade, has_hair = between(0.5, 1.2) * (2 * maybe(0.5) - 1), skin * 0.75, 1 - maybe(0.06)
    cx, cy, rx, ry = *(between(-0.12, 0.12) for _ in "xy"), between(0.44, 0.56), between(0.54, 0.68)

    # the texture, which also bends all outlines a little; the background; light
    cells = torch.arange(size) * 2 ** (size - 1).bit_length() // size  # one a pixel at 2, 4, 8 ...
    grain = octaves(3, size, size)[:, :, cells][..., cells]
    axis, fine = (torch.arange(size) + 0.5) / size * 2 - 1, grain[:, 2]
    x, y = axis + 0.045 * grain[:, 0], axis[:, None] + 0.045 * grain[:, 1]
    dx, dy, pair = x - cx, y - cy, (x - cx).abs()  # what is placed by `pair` is on both sides
    first, second = one_of(PAINTS), one_of(PAINTS)
    share = (0.5 + 0.6 * grain[:, :1] + 0.6 * (sun * x)[:, None]).clamp(0, 1)
    canvas = (first + (second - first) * share) * (1 + 0.4 * fine[:, None]) + 0.06 * grain
    rise = (dy / (-1.15 * ry)).clamp(0, 1)
    strands = threads(dx / (1.15 - rise * rise) + 0.15 * grain[:, 0])  # they meet at the crown
    u, v = dx / rx, dy / ry
    light = 1 + 0.4 * (sun * u - 0.5 * v) - 0.1 * (u * u + v * v)
    on_skin, on_hair = light + 0.25 * fine, light + 0.7 * strands + 0.3 * fine
    on_cloth = 1 + 0.4 * sun * dx + 0.35 * (threads(x) + threads(y) + fine)  # woven

    # the hair at the back, neck, shoulders, ears, head
    length, volume, lock = between(0, 0.75) * maybe(0.6), rx * between(1.1, 1.28), 0.25 * strands
    long_hair = inside(volume * (1.05 - 0.2 * dy * dy) - pair + 0.6 * lock, 0.06)
    long_hair *= inside(dy + 0.12) * inside(length - dy + lock, 0.1)
    back = ellipse(dx, dy + 0.12, volume + 0.4 * lock, ry * 1.1, 0.08).maximum(long_hair)
    paint(has_hair * back, hair * 0.7, on_hair)
    paint(inside(0.19 - pair) * inside(dy - 0.2), shade * 0.9, on_skin)
    paint(ellipse(x, y - 1.15, between(0.62, 0.85), between(0.36, 0.46), 0.05), shirt, on_cloth)
    paint(ellipse(dx, y - 0.78, 0.2, 0.12) * maybe(0.5), shade, on_skin)
    paint(ellipse(pair - rx, dy - 0.04, 0.09, 0.13), shade, on_skin)
    paint(ellipse(dx * (1 + between(0, 0.35) * dy), dy, rx, ry, 0.04), skin, on_skin)

    # cheeks, fringe, nose
    rosy = skin * torch.tensor([1, 0.6, 0.6])[:, None, None]
    paint(ellipse(pair - rx * 0.58, dy - 0.2, 0.13, 0.1, 0.15) * maybe(0.4) * 0.4, rosy, on_skin)
    fringe = inside(between(-0.35, 0.35) * dx - ry * between(0.3, 0.62) - dy + lock, 0.06)
    paint(has_hair * fringe * ellipse(dx, dy + 0.03, rx * 1.06, ry * 1.06), hair, on_hair)
    paint(ellipse(dx + sun * 0.05, dy - 0.04, 0.035, 0.15, 0.08) * 0.4, shade, on_skin)
    paint(ellipse(dx, dy - 0.15, between(0.04, 0.065), between(0.04, 0.07), 0.05), shade, on_skin)
    paint(ellipse(dx - sun * 0.015, dy - 0.12, 0.02, 0.05, 0.06) * 0.4, skin * 1.25, on_skin)

    # eyes: socket, lashes, white, iris, pupil; brows
    apart, eye_y, gaze = rx * between(0.38, 0.48), between(-0.07, 0.01), between(-0.03, 0.03)
    radius, opening, raised = between(0.085, 0.115), between(0.55, 0.95), between(0.15, 0.21)
    u, v, looking = pair - apart, dy - eye_y, (dx - gaze).abs() - apart
    paint(ellipse(u, v + 0.02, radius * 1.5, radius * 1.4, 0.1) * 0.5, skin * 0.6, on_skin)
    paint(ellipse(u, v + 0.025, radius * 1.25, radius * opening), hair * 0.3, on_skin)
    eye = ellipse(u, v, radius * 1.15, radius * opening)
    paint(eye, 0.9, on_skin)
    paint(eye * ellipse(looking, v, radius * 0.62, radius * 0.62), iris, on_skin)
    paint(eye * ellipse(looking, v, radius * 0.3, radius * 0.3), 0.05, on_skin)
    brow = inside(0.03 - (v + raised - between(-0.25, 0.25) * u).abs())
    paint(brow * inside(0.13 - u.abs(), 0.08), hair * 0.6, on_hair)

    # mouth: an ellipse bent to a smile or a frown, some with teeth
    half, height, bend = between(0.14, 0.22), between(0.04, 0.1), between(-0.7, 1.6)
    below = dy - ry * between(0.55, 0.63) + bend * (dx * dx - half * half / 2)
    paint(ellipse(dx, below, half, height), rosy * 0.75, on_skin)
    paint(ellipse(dx, below + height / 10, half * 0.75, height / 2) * maybe(0.45), 0.9, on_skin)

    # glasses
    wears, frame, lens = maybe(0.3), one_of(PAINTS) * 0.4, between(0.16, 0.19)
    rim = ellipse(u, v, lens + 0.025, lens) - ellipse(u, v, lens - 0.025, lens - 0.05)
    bridge = inside(0.02 - v.abs()) * inside(apart - lens - pair)
    paint(wears * rim.clamp(0, 1).maximum(bridge), frame, on_skin)
    return (canvas * between(0.6, 1.3)[:, None]).clamp(0, 1)
