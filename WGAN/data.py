"""Pictures and minibatches: files, torchvision's data sets or drawn faces, decoded once and cached.

This file is the same, byte for byte, in every model folder; tests/test_copies.py holds it so.
"""

import hashlib
import io
import itertools
import json
import os
import random
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from machine import process, processes
from utils import FORMAT, HERE, Channels, InputError, RunError, write_aside

# ---- Pictures ----

NAMED = {  # what torchvision downloads: its class, and where its files lie under --data-dir
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "celeba": ("CelebA", "celeba"),
}


class Pictures(NamedTuple):
    """Decoded pictures, and what is worth saying about them."""

    images: np.ndarray  # uint8 (N, H, W, C), mapped from the cache: what training sees
    held_out: np.ndarray  # the same of those that it does not see
    digest: str  # of the bytes of all: resuming asks for the same pictures
    skipped: list[str]  # files that could not be read, each with the reason
    cache: Path


def load_pictures(
    data: str,
    data_dir: str,
    image_size: int,
    channels: Channels,
    batch_size: int,
    hold_out: int = 0,
) -> Pictures:
    """Decode pictures once, and from then on map the cached array into memory.

    Args:
        data: `faces`, a name in `NAMED`, a folder or a zip file.
        data_dir: for downloads and the cache; empty for `data` beside this file.
        image_size: the short side is scaled to it, then the centre is cut out.
        channels: 1, 3, or "data": 1 if every picture is grey, else 3.
        batch_size: there must be at least so many pictures besides those held out.
        hold_out: so many are kept from training.

    Raises:
        InputError: no such folder or name, no readable picture, too few of them.
        RunError: a download failed.
    """
    root = Path(data_dir) if data_dir else HERE / "data"
    items, count, facts = list_pictures(data, root, image_size)
    needed = batch_size * processes() + hold_out
    if count < needed:
        asked = f"--batch-size {batch_size}" + f" and --hold-out {hold_out}" * (hold_out > 0)
        raise InputError(f"--data {data}: {count} pictures are fewer than {asked}")
    key = hashlib.sha256(json.dumps([FORMAT, image_size, channels, facts]).encode()).hexdigest()
    cache = root / "cache" / f"{Path(data).stem}-{image_size}-{key[:16]}.bytes"
    facts_file = cache.with_suffix(".json")  # written last: where it is, the cache is whole
    if not facts_file.exists():
        decode_into(cache, items, count, image_size, channels, needed)
    return open_cache(cache, hold_out)


def open_cache(cache: Path, hold_out: int) -> Pictures:
    """Map decoded pictures into memory; the last `hold_out` of them are held out."""
    found = json.loads(cache.with_suffix(".json").read_text())
    # mode "c": PyTorch wants writable memory, and nothing written to it reaches the file
    images = np.memmap(cache, np.uint8, mode="c", shape=tuple(found["shape"]))
    first = len(images) - hold_out
    return Pictures(images[:first], images[first:], found["digest"], found["skipped"], cache)


def list_pictures(data: str, root: Path, image_size: int) -> tuple[Iterable, int, Any]:
    """Find what `decode` can read, how much it is, and the facts that identify it."""
    if data == "faces":
        return draw_faces(FACES, image_size), FACES, data
    if data in NAMED:
        return named_pictures(data, root, image_size)
    path, suffixes = Path(data), tuple(Image.registered_extensions())
    if path.is_dir():
        walk = ((top, name) for top, _, names in os.walk(path.resolve()) for name in names)
        items = sorted(os.path.join(*f) for f in walk if f[1].lower().endswith(suffixes))
        facts = [*items]
        for item in items:
            found = os.stat(item) if os.path.exists(item) else None  # a link to nowhere
            facts.append((found.st_size, found.st_mtime_ns) if found else None)
    elif path.is_file():
        if not zipfile.is_zipfile(path):
            raise InputError(f"--data {data}: neither a folder nor a zip file")
        archive = zipfile.ZipFile(path)
        items = [(archive, n) for n in sorted(archive.namelist()) if n.lower().endswith(suffixes)]
        facts = (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
    else:
        raise InputError(
            f"--data {data}: no such folder or zip, and not {', '.join(NAMED)} or faces"
        )
    if not items:
        raise InputError(f"--data {data}: there is no picture in it")
    random.Random(0).shuffle(items)  # pictures that are held out come from all over the folder
    return items, len(items), facts


def named_pictures(data: str, root: Path, image_size: int) -> tuple[Iterable, int, Any]:
    """Have torchvision read one of its datasets from `root`; it downloads what is not there."""
    import torchvision.datasets  # slow, and only needed here

    name, subfolder = NAMED[data]
    part = {"split": "train"} if data == "celeba" else {"train": True}
    try:
        dataset = getattr(torchvision.datasets, name)(root, download=True, **part)
    except Exception as error:  # network, server, quota: each raises its own kind
        raise RunError(
            f"--data {data}: the download failed ({error}); put the files that torchvision's "
            f"{name} lists into {root / subfolder} by hand and start again"
        ) from None
    if data == "celeba":
        return list_pictures(str(root / subfolder / "img_align_celeba"), root, image_size)
    files = sorted(f for f in (root / subfolder).rglob("*") if f.is_file())
    facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return np.asarray(dataset.data), len(dataset.data), (data, facts)


def decode(item: Any, image_size: int, channels: Channels) -> np.ndarray:
    """Read one picture, of any size and mode, as bytes (image_size, image_size, 1 or 3)."""
    if isinstance(item, np.ndarray):
        image = Image.fromarray(item)
    elif isinstance(item, tuple):
        archive, name = item
        image = Image.open(io.BytesIO(archive.read(name)))
    else:
        image = Image.open(item)
    with image:
        image.draft("RGB", (image_size, image_size))  # JPEG: decode only the scale that is needed
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):  # 16 bits and more, which PIL would cut off at 255
            values = np.asarray(image, np.float32)
            top = 65535 if image.mode.startswith("I") else max(values.max(), 1)
            image = Image.fromarray((values * (255 / top)).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image_size, image_size, -1)


def decode_into(
    cache: Path, items: Iterable, count: int, image_size: int, channels: Channels, needed: int
) -> None:
    """Decode in parallel under a progress bar; name what cannot be read; write the cache."""

    def decode_or_say(item: Any) -> np.ndarray | str:
        try:
            return decode(item, image_size, channels)
        except Exception as error:  # a broken picture can raise nearly anything
            return f"{item[1] if isinstance(item, tuple) else item}: {' '.join(str(error).split())}"

    skipped = []
    planes = 1 if channels == 1 else 3
    scratch_dir = next(folder for folder in cache.parents if folder.is_dir())
    bar = tqdm(total=count, desc="decoding", unit="picture", leave=False, disable=None)
    with tempfile.TemporaryFile(dir=scratch_dir) as scratch, bar, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        images = np.memmap(scratch, np.uint8, "w+", shape=(count, image_size, image_size, planes))
        items, readable = iter(items), 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while chunk := list(itertools.islice(items, 512)):  # bounds what waits in memory
                for row in pool.map(decode_or_say, chunk):
                    bar.update()
                    if isinstance(row, str):
                        skipped.append(row)
                        tqdm.write(f"skipped {row}", file=sys.stderr)
                    else:
                        images[readable] = row
                        readable += 1
        images = images[:readable]
        if len(images) < needed:
            raise InputError(
                f"{len(skipped)} of {count} pictures cannot be read; the {len(images)} left "
                f"are fewer than the {needed} that are needed (first: {skipped[0]})"
            )
        parts = [images[i : i + 512] for i in range(0, len(images), 512)]
        if channels == "data" and all((part == part[..., :1]).all() for part in parts):
            parts = [part[..., :1] for part in parts]
        digest = hashlib.sha256()
        cache.parent.mkdir(parents=True, exist_ok=True)
        with write_aside(cache) as file:
            for part in parts:
                digest.update(np.ascontiguousarray(part).data)
                file.write(np.ascontiguousarray(part).data)
    shape = (len(images), *parts[0].shape[1:])
    found = {"shape": shape, "digest": digest.hexdigest(), "skipped": skipped}
    with write_aside(cache.with_suffix(".json")) as file:
        file.write(json.dumps(found).encode())


# ---- Drawn faces ----

FACES = 10_000
BACKDROPS = (0.55, 0.75, 0.90), (0.95, 0.80, 0.55), (0.70, 0.85, 0.65), (0.88, 0.70, 0.78)
SKINS = (0.98, 0.86, 0.76), (0.94, 0.77, 0.62), (0.85, 0.64, 0.47), (0.66, 0.46, 0.32)
HAIRS = (0.12, 0.10, 0.10), (0.50, 0.30, 0.15), (0.86, 0.68, 0.35), (0.72, 0.30, 0.12)
HAIRS += (0.75, 0.75, 0.78), (0.35, 0.40, 0.70)
SHIRTS = (0.80, 0.25, 0.25), (0.20, 0.40, 0.70), (0.25, 0.55, 0.35), (0.95, 0.95, 0.95)
IRISES = (0.30, 0.20, 0.12), (0.25, 0.45, 0.70), (0.30, 0.50, 0.30)
FRAMES = (0.10, 0.10, 0.12), (0.45, 0.12, 0.12)


def draw_faces(count: int, size: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Draw cartoon faces, (size, size, 3) bytes each: the same ones on every machine.

    Every feature varies on its own. A size draws the same faces as any other,
    only finer; edges are smoothed over one pixel.
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

    def one_of(colours: tuple) -> Tensor:
        picked = torch.tensor(colours)[torch.randint(len(colours), (16,), generator=rng)]
        shade = 0.06 * (torch.rand(16, 3, generator=rng) - 0.5)
        return (picked + shade)[:, :, None, None].clamp(0, 1)

    def inside(depth: Tensor) -> Tensor:
        """Turn the depth below an edge into the share of the pixel that is covered."""
        return (0.5 + depth * size / 2).clamp(0, 1)

    def ellipse(cx, cy, rx, ry) -> Tensor:
        u, v = (x - cx) / rx, (y - cy) / ry
        depth = (1 - u * u - v * v) / 2  # in radii; exact at the edge, where alone it matters
        return inside(depth * torch.minimum(0 * u + rx, 0 * u + ry))

    def paint(mask: Tensor, colour: Tensor | float) -> None:
        canvas.add_((colour - canvas) * mask[:, None])

    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    x, y = axis[None, None, :], axis[None, :, None]
    canvas = (one_of(BACKDROPS) * (1 - 0.08 * y)).clamp(0, 1).repeat(1, 1, 1, size)
    skin, hair, iris = one_of(SKINS), one_of(HAIRS), one_of(IRISES)
    shade, has_hair = skin * 0.75, 1 - maybe(0.06)
    cx, cy, rx, ry = (
        between(-0.07, 0.07),
        between(-0.06, 0.06),
        between(0.44, 0.54),
        between(0.54, 0.64),
    )

    # the hair at the back, neck, shoulders, ears, head
    length, volume = between(0, 0.75) * maybe(0.6), rx * between(1.1, 1.28)
    long_hair = inside(volume - (x - cx).abs()) * inside(y - cy + 0.12) * inside(cy + length - y)
    paint(has_hair * ellipse(cx, cy - 0.12, volume, ry * 1.1).maximum(long_hair), hair * 0.8)
    paint(inside(0.17 - (x - cx).abs()) * inside(y - cy - 0.2), shade)
    paint(ellipse(0, 1.15, between(0.62, 0.85), between(0.36, 0.46)), one_of(SHIRTS))
    paint(ellipse(cx, 0.78, 0.2, 0.12) * maybe(0.5), shade)
    for side in (-1, 1):
        paint(ellipse(cx + side * rx, cy + 0.04, 0.09, 0.13), shade)
    paint(ellipse(cx, cy, rx, ry), skin)

    # cheeks, fringe, nose
    blush, rosy = maybe(0.4) * 0.35, skin * torch.tensor([1, 0.62, 0.62])[:, None, None]
    for side in (-1, 1):
        paint(ellipse(cx + side * rx * 0.58, cy + 0.2, 0.11, 0.08) * blush, rosy)
    hairline = cy - ry * between(0.3, 0.62) + between(-0.35, 0.35) * (x - cx)
    paint(has_hair * ellipse(cx, cy - 0.03, rx * 1.06, ry * 1.06) * inside(hairline - y), hair)
    paint(ellipse(cx, cy + 0.15, between(0.035, 0.06), between(0.05, 0.085)), shade)

    # eyes and brows
    apart, eye_y = rx * between(0.38, 0.48), cy + between(-0.07, 0.01)
    radius, opening, gaze = between(0.085, 0.115), between(0.7, 1.05), between(-0.03, 0.03)
    raised, tilt = between(0.17, 0.23), between(-0.25, 0.25)
    for side in (-1, 1):
        eye_x = cx + side * apart
        paint(ellipse(eye_x, eye_y, radius * 1.15, radius * opening), 0.98)
        paint(ellipse(eye_x + gaze, eye_y, radius * 0.62, radius * 0.62), iris)
        paint(ellipse(eye_x + gaze, eye_y, radius * 0.3, radius * 0.3), 0.05)
        brow = 0.03 - (y - eye_y + raised - side * tilt * (x - eye_x)).abs()
        paint(inside(brow) * inside(0.13 - (x - eye_x).abs()), hair * 0.6)

    # mouth: an ellipse bent to a smile or a frown, some with teeth
    mouth_y, half, height = cy + ry * between(0.55, 0.63), between(0.14, 0.22), between(0.04, 0.1)
    bend = between(-0.7, 1.6) * ((x - cx) * (x - cx) - half * half / 2)
    paint(
        ellipse(cx, mouth_y - bend, half, height),
        skin * torch.tensor([0.8, 0.4, 0.42])[:, None, None],
    )
    paint(ellipse(cx, mouth_y - bend - height * 0.1, half * 0.75, height * 0.5) * maybe(0.45), 0.97)

    # glasses
    wears, frame, lens = maybe(0.3), one_of(FRAMES), between(0.16, 0.19)
    for side in (-1, 1):
        eye_x = cx + side * apart
        hole = ellipse(eye_x, eye_y, lens - 0.025, lens - 0.05)
        paint((ellipse(eye_x, eye_y, lens + 0.025, lens) - hole).clamp(0, 1) * wears, frame)
    bridge = inside(0.02 - (y - eye_y).abs()) * inside(apart - lens - (x - cx).abs())
    paint(bridge * wears, frame)
    return canvas.clamp(0, 1)


# ---- Minibatches ----


class Batches:
    """Endless minibatches: each pass shows every picture at most once, in a new order.

    The pictures that do not fill a last minibatch are left out of the pass. The
    order depends on the seed alone, not on the device. Several processes share a pass:
    together they see what one would with a minibatch as large as all of theirs.

    `draw` chooses minibatches and `next` hands them out. They are apart because a CUDA
    graph can hold the second, which touches nothing but the device, and not the first.

    Args:
        images: uint8 (N, H, W, C).
        batch_size: B, the paper's m.
        device: where minibatches go; the pictures lie there too if they leave half of it free.
        seed: of the order.
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
        shares = order.split(self.batch_size)
        whole = len(order) // self.batch_size // processes() * processes()
        self.order = shares[process() : whole : processes()]
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
        else:  # too many for the device: they follow the rows there
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
        """Go on where `state_dict` was taken."""
        self.rng.set_state(state["rng_at_start"])
        self.start_pass()
        self.taken = state["taken"]
