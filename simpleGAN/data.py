"""Images and minibatches: drawn faces, a folder, a zip or a torchvision dataset, decoded once.

This file is the same, byte for byte, in every model folder; tests/test_copies.py checks it.
"""

import hashlib
import json
import os
import random
import re
import stat
import sys
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor
from tqdm import tqdm

from utils import DATASETS, FORMAT, HERE, RANK, WORLD_SIZE, InputError, RunError, replacing

TORCHVISION = {  # the class, and where its files lie under --data-dir
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "celeba": ("CelebA", "celeba"),
}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}  # other files are looked into
SIGNATURES = rb"(?s)BM.{4}\0{4}|GIF8[79]a|\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF.{4}WEBP"
HIDDEN = r"(?i)\.[^.]|(__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN|thumbs)$"  # folders of tools
MOST_PIXELS, MOST_BYTES = 50_000_000, 100_000_000  # of one image: a small file can hold a huge one


class Dataset(NamedTuple):
    """Decoded images, and what is worth saying about them."""

    images: np.ndarray  # uint8 (N, H, W, C), mapped from the cache: what training sees
    held_out: np.ndarray  # the same of those that it does not see
    digest: str  # of the bytes of all: resuming asks for the same images
    skipped: list[str]  # what was not read, and why
    cache: Path


def load_images(config: Any) -> Dataset:
    """Decode images once, and from then on map the cached array into memory.

    Args:
        config: Has data, data_dir, image_size, channels, batch_size and hold_out, as in
            train.py. Each process needs batch_size images besides the last hold_out, which
            training never sees.

    Raises:
        InputError: There is no such folder or name, or too few images can be read.
        RunError: A download failed, or the cache cannot be written.
    """
    root = Path(config.data_dir) if config.data_dir else HERE / "data"
    place = config.data if config.data in DATASETS else os.path.realpath(config.data)
    for name in (place, str(root)):
        if name.encode(errors="ignore").decode() != name:
            raise InputError(f"{name!r}: the name is not UTF-8; rename it")
    items, facts, left_out = list_images(config.data, root, config.image_size)
    identity = json.dumps([FORMAT, place, config.image_size, config.channels])
    key = hashlib.sha256(identity.encode()).hexdigest()
    cache = root / "cache" / f"{Path(place).stem[:50]}-{config.image_size}-{key[:16]}.bytes"
    try:
        with FileLock(cache.with_suffix(".lock")):  # other processes wait while one decodes
            found = open_cache(cache, config.hold_out, facts["version"])
            if found is None:
                build_cache(cache, items, facts, config.image_size, config.channels)
                found = open_cache(cache, config.hold_out)
    except OSError as error:
        raise RunError(f"{error} (--data-dir names another folder for decoded images)") from None
    found = found._replace(skipped=left_out + found.skipped)
    most = len(found.images) // WORLD_SIZE
    if most < config.batch_size:
        images = f"{len(found.images)} images"
        images += f" besides {config.hold_out} held out" * (config.hold_out > 0)
        asked = f"--batch-size {config.batch_size}"
        asked += f" in {WORLD_SIZE} processes" * (WORLD_SIZE > 1)
        advice = "; ".join([f"try --batch-size {most}"] * (most > 0) + found.skipped[:2])
        raise InputError(f"--data {config.data}: {images} are fewer than {asked}; {advice}")
    return found


def open_cache(cache: Path, hold_out: int, version: str = "") -> Dataset | None:
    """Map decoded images into memory, read-only; the last `hold_out` of them are held out.

    Returns:
        None if the cache is missing, not whole, or not of this version of the images.
    """
    with suppress(FileNotFoundError, LookupError, TypeError, ValueError):
        facts = json.loads(cache.with_suffix(".json").read_bytes())
        shape = tuple(facts["shape"])
        if np.prod(shape) == cache.stat().st_size and version in ("", facts.get("version")):
            whole = np.memmap(cache, mode="r", shape=shape) if shape[0] else np.empty(shape, "u1")
            images = whole[..., : facts.get("channels")]
            first = max(0, len(images) - hold_out)
            return Dataset(images[:first], images[first:], facts["digest"], facts["skipped"], cache)
    return None


def build_cache(cache: Path, items: Iterator, facts: dict, image_size: int, channels: int | str):
    """Decode in parallel under a progress bar, and write the array and what is known about it."""

    def decode_or_say(item: tuple[str, Any]) -> np.ndarray | str:
        try:
            return decode(item[1], image_size, channels)
        except MemoryError:
            raise
        except Exception as error:  # a broken image can raise nearly anything
            return f"{item[0]}: {str(error).partition(' <')[0] or type(error).__name__}"

    shape, skipped = [0, image_size, image_size, 1 if channels == 1 else 3], []
    gray, of_all, of_one = channels == "data", hashlib.sha256(), hashlib.sha256()
    shown = {"disable": None if sys.stderr else True}  # None: shown on a terminal
    bar = tqdm(total=facts["count"], desc="decoding", unit="image", leave=False, **shown)
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))  # each thread may hold a huge image
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses what is more than twice as large
    PngImagePlugin.MAX_TEXT_CHUNK = MOST_BYTES  # nor shall metadata cost an image
    warnings.filterwarnings("ignore", module="PIL")  # about odd metadata
    with replacing(cache) as file, bar, pool:
        while chunk := list(islice(items, 512)):  # bounds what waits in memory
            for row in pool.map(decode_or_say, chunk):
                bar.update()
                if isinstance(row, str):
                    skipped.append(row)
                    continue
                file.write(row)
                shape[0] += 1
                gray = gray and bool((row == row[..., :1]).all())
                of_all.update(row)
                of_one.update(row[..., 0].tobytes() if gray else b"")
        cache.with_suffix(".json").unlink(missing_ok=True)  # it is about what is replaced
    facts |= {"shape": shape, "channels": 1 if gray else 3, "skipped": skipped}
    facts["digest"] = (of_one if gray else of_all).hexdigest()
    with replacing(cache.with_suffix(".json")) as file:
        file.write(json.dumps(facts).encode())


def list_images(data: str, root: Path, image_size: int) -> tuple[Iterator, dict, list[str]]:
    """Find the images of a dataset.

    Returns:
        Pairs of a name and what `decode` takes; their count and version, which changes when
        the images do; and a line about what is left out, if anything is.

    Raises:
        InputError: There is no such dataset, or no image in it.
        RunError: A download failed.
    """
    if data == "faces":
        version = hashlib.sha256(np.stack(list(draw_faces(16, 16))).tobytes()).hexdigest()
        return enumerate(draw_faces(FACES, image_size)), {"count": FACES, "version": version}, []
    if data in TORCHVISION:
        return download(data, root, image_size)
    try:
        files = sorted(list_files(data), key=lambda file: file[0])
    except Exception as error:  # a broken zip can raise nearly anything
        reason = f"cannot be read ({error})" if os.path.exists(data) else "no such folder or file"
        kinds = f"it takes a folder, a whole .zip file or one of {', '.join(DATASETS)}"
        raise InputError(f"--data {data}: {reason}; {kinds}") from None
    items, about, left_out = [], [], {}
    for path, kind, size, changed, opened in files:
        name = path.encode(errors="backslashreplace").decode()  # it may not be UTF-8
        suffix = os.path.splitext(name)[1].lower()
        if not kind and suffix not in SUFFIXES:
            kind = suffix or "without a suffix"
            with suppress(Exception), opened() as file:
                kind = "" if re.match(SIGNATURES, file.read(16)) else kind
        if not kind and size > MOST_BYTES:
            kind = f"above {MOST_BYTES // 10**6} MB"
        if kind:
            left_out.setdefault(kind, []).append(name)
        else:
            items.append((name, opened))
            about.append((name, size, changed))
    kinds = [f"{len(names):,} {kind} ({', '.join(names[:2])})" for kind, names in left_out.items()]
    advice = "convert images to JPEG or PNG, unpack archives"
    lines = [f"not read: {', '.join(kinds[:20])}; {advice}"] * bool(kinds)
    if not items:
        raise InputError("; ".join([f"--data {data}: no image in it", *lines]))
    random.Random(0).shuffle(items)  # held-out images come from all over the folder
    version = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    return iter(items), {"count": len(items), "version": version}, lines


def list_files(data: str) -> Iterator[tuple[str, str, int, Any, Any]]:
    """Yield path, reason to leave it out, size, version and opener of each file in a folder or zip.

    Links are followed, to each folder and file once. A broken zip can raise nearly anything.
    """
    archive = None if os.path.isdir(data) else zipfile.ZipFile(data)
    for entry in archive.infolist() if archive else ():
        hidden = any(re.match(HIDDEN, part) for part in entry.filename.split("/"))
        kind = "hidden" if hidden else "locked by a password" * (entry.flag_bits & 1)
        changed = os.stat(data).st_mtime_ns, entry.CRC
        if not entry.is_dir():
            yield entry.filename, kind, entry.file_size, changed, partial(archive.open, entry)
    paths, seen = [] if archive else [os.path.realpath(data)], set()
    for path in paths:  # which grows
        try:
            about = os.stat(path)  # of what a link leads to
            identity = about.st_dev, about.st_ino
            kind = "" if stat.S_ISREG(about.st_mode) else "neither file nor folder"
            if path != paths[0] and re.match(HIDDEN, os.path.basename(path)):
                kind = "hidden"
            elif identity in seen:
                kind = "reached twice"
            elif stat.S_ISDIR(about.st_mode):
                paths += [os.path.join(path, name) for name in sorted(os.listdir(path))]
                kind = "folder"
            seen.add(identity)
        except OSError as error:
            kind = error.strerror
        if kind != "folder":
            changed = about.st_mtime_ns, about.st_mode
            yield path, kind, about.st_size, changed, partial(open, path, "rb")


def download(data: str, root: Path, image_size: int) -> tuple[Iterator, dict, list[str]]:
    """Have torchvision read one of its datasets; it downloads what is not there."""
    import torchvision.datasets  # slow to import

    name, subfolder = TORCHVISION[data]
    try:
        with FileLock(root / f"{data}.lock"):
            dataset = getattr(torchvision.datasets, name)(root, download=True)
    except Exception as error:  # network, server, quota: each raises its own kind
        advice = f"put the files of torchvision's {name} into {root / subfolder} by hand"
        raise RunError(f"--data {data}: the download failed ({error}); {advice}") from None
    if data == "celeba":
        return list_images(str(root / subfolder / "img_align_celeba"), root, image_size)
    pixels = np.asarray(dataset.data)
    version = hashlib.sha256(pixels.tobytes()).hexdigest()
    return enumerate(pixels), {"count": len(pixels), "version": version}, []


def decode(item: Any, image_size: int, channels: int | str) -> np.ndarray:
    """Read one image as uint8 (image_size, image_size, 3); the last is 1 if `channels` is.

    `item` is pixels, (H, W) or (H, W, C), or a function that opens an image file. The short
    side is scaled to `image_size`, then the center is cut out.

    Raises:
        Exception: It cannot be read; Pillow raises nearly anything.
    """
    if isinstance(item, np.ndarray):
        image = Image.fromarray(item)
    else:
        with item() as file, Image.open(file, formats=FORMATS) as image:
            image.draft("RGB", (image_size, image_size))  # a JPEG at the scale that is needed
            image.load()
    with suppress(Exception):  # it turns the image before it rewrites metadata, which may be odd
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image, np.float32) * (255 / 65535)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][1] > 0:  # an alpha of 0 everywhere was never meant
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image_size, image_size, -1)


class Batches:
    """Endless minibatches: each pass shows every image at most once, in a new order.

    Images that do not fill a last minibatch are left out of the pass. The order depends on
    the seed alone. Several processes share a pass: together they see what one would with a
    minibatch as large as all of theirs. The images, uint8 (N, H, W, C), are kept on a GPU if
    they leave half of its memory free.
    """

    def __init__(self, images: np.ndarray, batch_size: int, device: torch.device, seed: int):
        self.batch_size = batch_size
        self.device = device
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the cache is read-only, and nothing writes to it
            self.images = torch.from_numpy(images)
        if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            self.images = self.images.to(device)
        self.rng = torch.Generator().manual_seed(seed)
        self.start_pass()

    def start_pass(self) -> None:
        """Draw a new order; remember the state that it was drawn from."""
        self.rng_at_start = self.rng.get_state()
        order = torch.randperm(len(self.images), generator=self.rng).to(self.images.device)
        whole = len(order) // self.batch_size // WORLD_SIZE * WORLD_SIZE
        self.order = order.split(self.batch_size)[RANK:whole:WORLD_SIZE]
        self.taken = 0

    def __next__(self) -> Tensor:
        """Return the next minibatch, (B, C, H, W) in [-1, 1]."""
        if self.taken == len(self.order):
            self.start_pass()
        images = self.images[self.order[self.taken]]
        self.taken += 1
        on_gpu = self.device.type == "cuda"
        if on_gpu and not images.is_cuda:
            images = images.pin_memory()  # so that the GPU is not waited for
        images = images.to(self.device, non_blocking=on_gpu).permute(0, 3, 1, 2)
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
    threads = torch.get_num_threads()
    for start in range(0, count, 16):  # few enough to stay in the processor's cache
        try:
            torch.set_num_threads(1)  # on a busy machine several would wait for each other
            faces = (draw_16_faces(size, rng).movedim(1, 3) * 255).round().to(torch.uint8)
        finally:  # an interrupted notebook goes on
            torch.set_num_threads(threads)
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
