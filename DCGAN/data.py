"""Pictures and minibatches: files, torchvision's data sets or drawn faces, decoded once and cached.

This file is the same, byte for byte, in every model folder; tests/test_copies.py holds it so.
"""

import glob
import hashlib
import itertools
import json
import math
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from faces import FACES, draw_faces
from machine import process, processes
from pictures import FORMATS, decode, find_pictures, reason, shown
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
    for flag, text in (("--data", data), ("--data-dir", data_dir)):
        try:
            text.encode()
        except UnicodeEncodeError:  # logs and TensorBoard could not hold it
            raise InputError(f"{flag} {shown(text)}: a name that is not UTF-8; rename it") from None
    root = Path(data_dir) if data_dir else HERE / "data"
    items, count, facts = list_pictures(data, root, image_size)
    batch_size *= processes()
    needed = batch_size + hold_out
    asked = f"--batch-size {batch_size}" + f" and --hold-out {hold_out}" * (hold_out > 0)
    if count < needed:
        raise InputError(f"--data {data}: {count} pictures are fewer than {asked}")
    key = hashlib.sha256(json.dumps([FORMAT, image_size, channels, facts]).encode()).hexdigest()
    cache = root / "cache" / f"{Path(data).stem[:50]}-{image_size}-{key[:16]}.bytes"
    source = (items, count, image_size, channels, needed)
    found = open_or_build(cache, hold_out, *source)
    if len(found.images) < batch_size:
        readable = len(found.images) + len(found.held_out)
        raise InputError(f"--data {data}: {readable} readable pictures are fewer than {asked}")
    return found


def open_or_build(cache: Path, hold_out: int, *source: Any) -> Pictures:
    """Open a cache; if it is not whole, build it anew from what `decode_into` takes."""
    try:  # before any lock: perhaps nothing may be written there
        return open_cache(cache, hold_out)
    except Damaged:
        pass
    with one_at_a_time(cache):
        try:
            return open_cache(cache, hold_out)  # another process has built it by now
        except Damaged as damage:
            if cache.with_suffix(".json").exists():
                tqdm.write(f"{damage}; the pictures are decoded again", file=sys.stderr)
        try:
            decode_into(cache, *source)
        except OSError as error:
            raise RunError(
                f"{cache.parent}: the decoded pictures cannot be kept there "
                f"({reason(error)}); --data-dir puts them elsewhere"
            ) from None
        return open_cache(cache, hold_out)


class Damaged(RunError):
    """A cache of decoded pictures is not whole."""


def open_cache(cache: Path, hold_out: int) -> Pictures:
    """Map decoded pictures into memory; the last `hold_out` of them are held out.

    A cache that was not touched since it was written is believed. Else, once, all its bytes
    are compared with the digest, which takes a second or two for each gigabyte.

    Raises:
        Damaged: it is not there, cut off or changed.
    """
    try:
        facts = cache.with_suffix(".json")
        if not facts.is_file() or facts.stat().st_size > 2**25:
            raise ValueError(f"{facts.name} is missing, or would fill the memory")
        found = json.loads(facts.read_bytes())
        shape, digest, skipped = (found[name] for name in ("shape", "digest", "skipped"))
        about = cache.stat()
        if not all(type(side) is int and side > 0 for side in shape) or len(shape) != 4:
            raise ValueError(f"its shape is {shape}")
        if math.prod(shape) != about.st_size:
            raise ValueError(f"{about.st_size:,} bytes are not {' x '.join(map(str, shape))}")
        if found.get("seal") not in (None, seal(shape, digest, skipped)):
            raise ValueError(f"{facts.name} has changed")
        if not all(isinstance(line, str) for line in [digest, *skipped]):
            raise ValueError(f"{facts.name} holds other things than text")
        # mode "c": PyTorch wants writable memory, and nothing written to it reaches the file
        images = np.memmap(cache, np.uint8, mode="c", shape=tuple(shape))
        if found.get("written") != about.st_mtime_ns:
            if digest_of(images) != digest:
                raise ValueError("its bytes have changed")
            with suppress(RunError):  # perhaps nothing may be written there
                write_facts(cache, shape, digest, skipped)
    except Exception as error:
        raise Damaged(f"cache {shown(cache)} is damaged: {reason(error)}") from None
    first = max(0, len(images) - hold_out)
    return Pictures(images[:first], images[first:], digest, skipped, cache)


def write_facts(cache: Path, shape: tuple, digest: str, skipped: list[str]) -> None:
    """Write what `open_cache` asks for; where it is, the cache is whole."""
    found = {"shape": shape, "digest": digest, "skipped": skipped}
    found |= {"seal": seal(shape, digest, skipped), "written": cache.stat().st_mtime_ns}
    with write_aside(cache.with_suffix(".json")) as file:
        file.write(json.dumps(found, ensure_ascii=False).encode())


def seal(*facts: Any) -> str:
    """Return what changes with any of the facts."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def digest_of(images: np.ndarray) -> str:
    """Return what identifies decoded pictures."""
    digest = hashlib.sha256()
    for start in range(0, len(images), 512):
        digest.update(np.ascontiguousarray(images[start : start + 512]).data)
    return digest.hexdigest()


@contextmanager
def one_at_a_time(cache: Path) -> Iterator[None]:
    """Have other processes wait while this one builds a cache.

    The system ends a lock with its process, however that ends. What such a process left half
    written is removed.
    """
    cache.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(cache.with_name(f".{cache.stem}.lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            line = f"waiting for another process, which decodes the same pictures into {cache}"
            tqdm.write(line, file=sys.stderr)
            lock.acquire()
        for rest in cache.parent.glob(f".{glob.escape(cache.stem)}.*.*"):
            rest.unlink(missing_ok=True)
    except (OSError, NotImplementedError):
        pass  # no locks on this disk: at worst both do the work
    try:
        yield
    finally:
        lock.release()


def list_pictures(data: str, root: Path, image_size: int) -> tuple[Iterable, int, Any]:
    """Find what `decode` can read, how much it is, and the facts that identify it."""
    if data == "faces":
        return draw_faces(FACES, image_size), FACES, data
    if data in NAMED:
        return named_pictures(data, root, image_size)
    path = Path(data)
    if not path.exists():
        raise InputError(
            f"--data {data}: no such folder or zip, and not {', '.join(NAMED)} or faces"
        )
    items, facts = find_pictures(path)
    if not items:
        raise InputError(f"--data {data}: there is no picture in it ({', '.join(FORMATS)})")
    random.Random(0).shuffle(items)  # pictures that are held out come from all over the folder
    return items, len(items), facts


def named_pictures(data: str, root: Path, image_size: int) -> tuple[Iterable, int, Any]:
    """Have torchvision read one of its datasets from `root`; it downloads what is not there."""
    import torchvision.datasets  # slow, and only needed here

    name, subfolder = NAMED[data]
    part = {"split": "train"} if data == "celeba" else {"train": True}
    try:
        with one_at_a_time(root / "cache" / f"{data}.download"):
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


def decode_into(
    cache: Path, items: Iterable, count: int, image_size: int, channels: Channels, needed: int
) -> None:
    """Decode in parallel under a progress bar; name what cannot be read; write the cache.

    Raises:
        InputError: fewer than `needed` can be read.
        RunError: the disk has no room for them.
    """

    def decode_or_say(item: Any) -> np.ndarray | str:
        try:
            return decode(item, image_size, channels)
        except Exception as error:  # a broken picture can raise nearly anything
            name = item[1].filename if isinstance(item, tuple) else item
            return f"{shown(name)[-200:]}: {reason(error)}"

    skipped, readable = [], 0
    planes = 1 if channels == 1 else 3
    size, free = count * image_size**2 * planes, shutil.disk_usage(cache.parent).free
    if size > free:
        raise RunError(
            f"{cache.parent}: the decoded pictures take {size / 1e9:,.1f} GB, and "
            f"{free / 1e9:,.1f} are free; --data-dir puts them elsewhere"
        )
    bar = tqdm(total=count, desc="decoding", unit="picture", leave=False, disable=None)
    with tempfile.TemporaryFile(dir=cache.parent) as scratch, bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what is odd in a file
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        items = iter(items)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            while chunk := list(itertools.islice(items, 512)):  # bounds what waits in memory
                for row in pool.map(decode_or_say, chunk):
                    bar.update()
                    if isinstance(row, str):
                        skipped.append(row)
                        tqdm.write(f"skipped {row}", file=sys.stderr)
                    else:
                        scratch.write(row)  # through a map a full disk would be a bus error
                        readable += 1
        if readable < needed:
            raise InputError(
                f"{len(skipped)} of {count} pictures cannot be read; the {readable} left "
                f"are fewer than the {needed} that are needed (first: {skipped[0]})"
            )
        scratch.flush()
        shape = (readable, image_size, image_size, planes)
        images = np.memmap(scratch, np.uint8, "r", shape=shape)
        parts = [images[i : i + 512] for i in range(0, readable, 512)]
        if channels == "data" and all((part == part[..., :1]).all() for part in parts):
            images = images[..., :1]
        with write_aside(cache) as file:
            for start in range(0, readable, 512):
                file.write(np.ascontiguousarray(images[start : start + 512]).data)
        # some 30,000 names are what `open_cache` reads back at most
        write_facts(cache, images.shape, digest_of(images), skipped[:30_000])


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
