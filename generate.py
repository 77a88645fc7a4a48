"""Generate pictures with a trained generator.

Examples:
    python generate.py WGAN-GP                        64 pictures of the newest run: samples.png
    python generate.py WGAN-GP/tensorboard/runs/X --num 100 --seed 3 --out x.png
    python generate.py X --num 50000 --npz x.npz      an array `images`, uint8 (N, H, W, C)
    python generate.py X --num 1000 --each x          x/000000.png to x/000999.png
    python generate.py X --walk 6 --frames 120        a round trip through 6 points: walk.gif
    python generate.py X --nearest                    beside training pictures: nearest.png
    python generate.py x.safetensors                  weights without a run: x-samples.png

The same seed makes the same pictures: on any machine, up to rounding, and however many
there are of them. samples.png, nearest.png and walk.gif lie in the run folder, and each
replaces the one before; in these, small pictures are enlarged.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import numpy as np
from PIL import Image
from tqdm import tqdm

from make_gif import SIDE, label_strip, write_gif
from runs import (
    InputError,
    find_weights,
    load_generator,
    load_pictures,
    pick_device,
    plain_errors,
    write_aside,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Sink = Callable[[np.ndarray], Any]  # takes the next pictures, uint8 (B, H, W, C)

GRID_SIDE = 1100  # pixels: grids are enlarged by a whole factor up to about this
MOST_PIXELS = 250_000_000  # of a grid, or of all frames of a GIF: what fits into 1 GB
LONGEST = 65_535  # pixels: a side of a GIF, and of what most programs open
LABEL = "pairs: generated | nearest training picture"

# ---- Noise and pictures ----


def noise(seed: int, z_dim: int) -> Iterator["Tensor"]:
    """Yield z (z_dim,) from N(0, I) without end: the i-th depends on the seed and i alone."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(z_dim, generator=rng)  # a call for each: longer ones draw in other orders


def round_trip(points: "Tensor", frames: int) -> "Tensor":
    """Lead from point to point and back to the first, along great circles and in equal steps.

    Lengths change evenly from each point to the next. On straight lines z would be shorter
    than any that the generator has seen (White 2016, arXiv:1609.04468).

    Args:
        points: (K, z_dim); z_dim must be above 1.
        frames: how many z; one more would be the first again.

    Returns:
        z (frames, z_dim); the first is the first point.
    """
    import torch

    points = points.double()
    lengths = points.norm(dim=1, keepdim=True)  # (K, 1)
    starts = points / lengths
    ends = starts.roll(-1, 0)
    angles = (starts * ends).sum(1, keepdim=True).clamp(-1, 1).acos()  # (K, 1)
    marks = angles.cumsum(0)
    gone = torch.arange(frames).double() / frames * marks[-1]  # (frames,)
    leg = torch.searchsorted(marks.flatten(), gone, right=True)
    angle = angles[leg]  # (frames, 1)
    share = 1 - (marks[leg] - gone[:, None]) / angle  # of the leg that is behind us
    to_start, to_end = ((1 - share) * angle).sin(), (share * angle).sin()
    direction = (to_start * starts[leg] + to_end * ends[leg]) / angle.sin()
    length = (1 - share) * lengths[leg] + share * lengths.roll(-1, 0)[leg]
    return (length * direction).float()


def place(generator: "nn.Module", device: "torch.device") -> None:
    """Move a generator to a device, in the layout that is fastest there."""
    import torch

    torch.backends.cudnn.allow_tf32 = False  # pictures are meant to be the same everywhere
    layout = torch.preserve_format if device.type == "mps" else torch.channels_last
    generator.to(device, memory_format=layout)


def draw(generator: "nn.Module", zs: Iterable["Tensor"], batch: int) -> Iterator[np.ndarray]:
    """Turn noise into pictures, a batch at a time.

    The last batch is filled up, so that a picture is rounded alike however many follow it.

    Args:
        generator: in eval mode, or pictures would depend on those beside them.
        zs: each (z_dim,).
        batch: how many pictures at once.

    Yields:
        uint8 (batch, H, W, C); the last may be shorter.
    """
    import torch

    zs, device = iter(zs), next(generator.parameters()).device
    while rows := list(islice(zs, batch)):
        z = torch.stack(rows + rows[-1:] * (batch - len(rows)))
        with torch.inference_mode():
            images = (generator(z.to(device)) + 1) * 127.5
        images = images.round().to("cpu", torch.uint8)
        yield images[: len(rows)].movedim(1, 3).contiguous().numpy()


def batch_size(image_size: int) -> int:
    """Say how many pictures at once keep a processor busy in little memory."""
    return min(32, max(1, 2**17 // image_size**2))


def nearest(images: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the training picture at the least L2 distance from each image; of equals the first.

    Args:
        images: uint8 (B, H, W, C).
        training: uint8 (N, H, W, C), mapped from a file; it is read in parts.

    Returns:
        Indices into `training` (B,); and the distances, as root mean square grey levels (B,).
    """
    # In float64 all these are whole numbers below 2^53: nothing is rounded.
    flat = images.reshape(len(images), -1).astype(np.float64)
    norms = (flat**2).sum(1)
    least, found = np.full(len(images), np.inf), np.zeros(len(images), int)
    part = max(1, 2**22 // flat.shape[1])  # training pictures, 32 MB of them
    starts = range(0, len(training), part)
    for start in tqdm(starts, "nearest", unit="part", leave=False, disable=None):
        other = training[start : start + part].reshape(-1, flat.shape[1]).astype(np.float64)
        squares = norms + (other**2).sum(1)[:, None] - 2 * other @ flat.T  # (part, B)
        best = squares.argmin(0)
        squares = squares[best, np.arange(len(images))]
        closer = squares < least
        found[closer], least[closer] = start + best[closer], squares[closer]
    return found, np.sqrt(least / flat.shape[1])


# ---- What is written ----


class Sheet:
    """Tiles in rows on white, from left to right; if it is small, all is enlarged.

    Args:
        count: how many tiles it will have.
        shape: of a tile, (H, W, C).
        columns: tiles in a row.
        side: it is enlarged by a whole factor up to about so many pixels.
        gap: pixels around tiles, before they are enlarged.
        label: a line above.

    Raises:
        InputError: it would be too large.
    """

    def __init__(
        self, count: int, shape: tuple, columns: int, side: int, gap: int = 2, label: str = ""
    ) -> None:
        height, width, channels = shape
        self.columns, self.filled = min(columns, count), 0
        rows = math.ceil(count / self.columns)
        wide, high = gap + self.columns * (width + gap), gap + rows * (height + gap)
        self.factor = max(1, side // max(wide, high))
        self.gap, self.pitch = gap * self.factor, (np.array([width, height]) + gap) * self.factor
        wide, high = wide * self.factor, high * self.factor
        if max(wide, high) > LONGEST or wide * high > MOST_PIXELS:
            raise InputError(f"--num {count}: too many for one picture, of {wide}x{high} pixels")
        wide = max(wide, 6 * len(label))  # room for all of it
        strip = label_strip(wide, label) if label else Image.new("L", (wide, 0))
        self.top = strip.height
        self.canvas = Image.new("L" if channels == 1 else "RGB", (wide, self.top + high), "white")
        self.canvas.paste(strip)

    def add(self, images: Iterable[np.ndarray]) -> None:
        """Put the next tiles, uint8 (H, W, C) each, in their places."""
        for image in images:
            row, column = divmod(self.filled, self.columns)
            left, top = np.array([column, row]) * self.pitch + self.gap
            tile = image.repeat(self.factor, 0).repeat(self.factor, 1)
            self.canvas.paste(as_image(tile), (int(left), self.top + int(top)))
            self.filled += 1


def as_image(picture: np.ndarray) -> Image.Image:
    """Hand a picture, uint8 (H, W, 1 or 3), to Pillow."""
    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)


@contextmanager
def grid_file(path: Path, count: int, shape: tuple, columns: int) -> Iterator[Sink]:
    """Write pictures as one grid."""
    sheet = Sheet(count, shape, columns, GRID_SIDE)
    yield sheet.add
    save(sheet, path, f"{count:,} pictures")


@contextmanager
def nearest_file(
    path: Path, count: int, shape: tuple, columns: int, training: np.ndarray
) -> Iterator[Sink]:
    """Write pictures as one grid, each beside the training picture that is nearest to it."""
    height, width, channels = shape
    sheet = Sheet(count, (height, 2 * width + 1, channels), columns, GRID_SIDE, 8, LABEL)
    differences = []

    def add(images: np.ndarray) -> None:
        found, difference = nearest(images, training)
        between = np.full((len(images), height, 1, channels), 255, np.uint8)
        sheet.add(np.concatenate([images, between, training[found]], 2))
        differences.extend(difference)

    yield add
    save(sheet, path, f"{count:,} pictures, each beside its nearest of {len(training):,}")
    least, middle = min(differences), float(np.median(differences))
    print(f"difference from the nearest, RMS of 255: least {least:.1f}, median {middle:.1f}")


def save(sheet: Sheet, path: Path, what: str) -> None:
    """Write a sheet and say so."""
    with write_aside(path) as file:
        sheet.canvas.save(file, "PNG")
    print(f"wrote {path}: {what}, {sheet.canvas.width}x{sheet.canvas.height} pixels")


@contextmanager
def each_file(folder: Path, count: int) -> Iterator[Sink]:
    """Write pictures as single files: 000000.png, 000001.png ..."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (folder / f"{number:06d}.png" for number in range(count))

    def add(images: np.ndarray) -> None:
        for picture in images:
            as_image(picture).save(next(names))

    yield add
    print(f"wrote {folder}: {count:,} pictures, 000000.png to {count - 1:06d}.png")


@contextmanager
def npz_file(path: Path, shape: tuple, facts: dict[str, Any]) -> Iterator[Sink]:
    """Write pictures as one array, `images`, without holding it; and facts beside it."""
    with write_aside(path) as file, ZipFile(file, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            yield lambda images: member.write(images.data)
        for name, value in facts.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.array(value))
    print(f"wrote {path}: images {shape}, {path.stat().st_size / 1e6:,.1f} MB")


def write_pictures(
    arguments: argparse.Namespace,
    out: Path | None,
    shape: tuple,
    pictures: Iterator[np.ndarray],
    facts: dict[str, Any],
    training: np.ndarray | None,
) -> None:
    """Draw pictures of one shape, (H, W, C), once, into all that the command line asks for.

    Without `out` there is no grid. `facts` go into the file of an array, and `training` is
    what --nearest compares with.
    """
    count, outputs = arguments.num, []
    if arguments.nearest:
        columns = arguments.columns or max(4, math.isqrt(count // 2))
        outputs.append(nearest_file(out, count, shape, columns, training))
    elif out:
        columns = arguments.columns or max(8, math.isqrt(count))
        outputs.append(grid_file(out, count, shape, columns))
    if arguments.each:
        outputs.append(each_file(arguments.each, count))
    if arguments.npz:
        outputs.append(npz_file(arguments.npz, (count, *shape), facts))
    bar = tqdm(total=count, desc="generating", unit="picture", leave=False, disable=None)
    with ExitStack() as opened:
        sinks = [opened.enter_context(output) for output in outputs]
        opened.enter_context(bar)  # is closed first, before anything is said
        for images in pictures:
            for sink in sinks:
                sink(images)
            bar.update(len(images))


def write_walks(
    arguments: argparse.Namespace,
    out: Path,
    shape: tuple,
    zs: Iterator["Tensor"],
    pictures_of: Callable[[Iterable["Tensor"]], Iterator[np.ndarray]],
) -> None:
    """Write a GIF in which every picture of a grid goes on a round trip of its own.

    Each takes the next of `zs` for its points. `pictures_of` is `draw` with its generator, and
    makes pictures of one shape, (H, W, C).
    """
    import torch

    count, frames = arguments.num, arguments.frames
    columns = arguments.columns or math.ceil(math.sqrt(count))
    width, height = Sheet(count, shape, columns, SIDE).canvas.size
    if frames * width * height > MOST_PIXELS:
        raise InputError(f"--frames {frames}: too many of {width}x{height} pixels for one GIF")
    points = (torch.stack(list(islice(zs, arguments.walk))) for _ in range(count))
    paths = torch.stack([round_trip(p, frames) for p in points], 1)  # (frames, count, z_dim)

    def scenes(z: "Tensor") -> Iterator[Image.Image]:
        pictures = chain.from_iterable(pictures_of(z.flatten(0, 1)))
        for _ in z:
            sheet = Sheet(count, shape, columns, SIDE)
            sheet.add(islice(pictures, count))
            yield sheet.canvas.convert("RGB")

    samples = list(scenes(paths[:: math.ceil(frames / 6)]))
    times = [round(1000 / arguments.fps)] * frames
    write_gif(scenes(paths), samples, times, out, arguments.max_mb)


# ---- Command line ----


def whole(low: int, high: int = 10**9) -> Callable[[str], int]:
    """Make a type for the command line: whole numbers from low to high."""

    def number(text: str) -> int:
        if text.isdecimal() and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text} is no whole number from {low} to {high}")

    return number


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        InputError: it cannot be understood, or asks for things that do not go together.
    """

    def complain(message: str) -> None:
        raise InputError(message)

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = complain
    add = parser.add_argument
    add("run", metavar="RUN", help="path or name of a run, a model, or a file of weights")
    add("--num", type=whole(1), help="pictures (default: 64; --nearest 32; --walk 16)")
    add("--seed", type=whole(0, 2**32 - 1), default=0, help="of the noise (default: 0)")
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps ...; auto: the fastest")
    add("--out", type=Path, metavar="FILE", help="the PNG or GIF (default: see above)")
    add("--columns", type=whole(1), help="default: 8 or more; --nearest 4 or more")
    add("--each", type=Path, metavar="DIR", help="single files, into a new or empty folder")
    add("--npz", type=Path, metavar="FILE", help="one array for numpy.load")
    add("--nearest", action="store_true", help="beside each its nearest training picture (L2)")
    add("--walk", type=whole(2), metavar="K", help="a GIF of round trips through K points each")
    add("--frames", type=whole(2), help="of a walk (default: 120)")
    add("--fps", type=float, help="frames a second of a walk (default: 20)")
    add("--max-mb", type=float, help="greatest size of a walk (default: 10 MB)")
    arguments = parser.parse_args(argv)
    check(arguments)
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together, and fill in the defaults that depend on it."""
    each, npz, walk = arguments.each, arguments.npz, arguments.walk
    if walk and (each or npz or arguments.nearest):
        raise InputError("--walk writes a GIF; it goes with none of --each, --npz, --nearest")
    for name, default in {"frames": 120, "fps": 20, "max_mb": 10}.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
        elif not walk:
            raise InputError(f"--{name.replace('_', '-')} goes with --walk")
    if walk and walk > arguments.frames:
        raise InputError(f"--walk {walk}: more points than the {arguments.frames} --frames")
    if not 0 < arguments.fps <= 50:
        raise InputError(f"--fps {arguments.fps}: from above 0 to 50, the most that GIFs can show")
    if not arguments.max_mb > 0:
        raise InputError(f"--max-mb {arguments.max_mb}: must be above 0")
    for name, suffix in (("out", ".gif" if walk else ".png"), ("npz", ".npz")):
        file = getattr(arguments, name)
        if file and file.suffix.lower() != suffix:
            raise InputError(f"--{name} {file}: its name must end in {suffix}")
    if each and each.exists() and not each.is_dir():
        raise InputError(f"--each {each}: not a folder")
    if each and each.exists() and any(each.iterdir()):
        raise InputError(f"--each {each}: there is something in it; name a new or empty folder")
    arguments.drawn = bool(arguments.out or walk or arguments.nearest or not (each or npz))
    if arguments.columns and not arguments.drawn:
        raise InputError("--columns: there is no grid; name one with --out")
    arguments.num = arguments.num or (16 if walk else 32 if arguments.nearest else 64)


def main() -> None:
    """Write what the command line asks for."""
    arguments = parse_arguments()
    weights, run = find_weights(arguments.run)
    if arguments.nearest and not run:
        raise InputError(f"{weights}: --nearest needs a run, these are only weights")
    device = pick_device(arguments.device)
    generator, about = load_generator(weights)
    z_dim, side, channels = (about["arguments"][n] for n in ("z_dim", "image_size", "channels"))
    if arguments.walk and z_dim == 1:
        raise InputError(f"--walk: {weights} has a z of one number, which leaves no way around")
    print(f"weights {weights}: {about['model']}, step {about.get('step')}")
    training = load_pictures(run)[0] if arguments.nearest else None
    place(generator, device)
    name = "walk.gif" if arguments.walk else f"{'nearest' if arguments.nearest else 'samples'}.png"
    default = run / name if run else weights.with_name(f"{weights.stem}-{name}")
    out = arguments.out or (default if arguments.drawn else None)
    shape, zs = (side, side, channels), noise(arguments.seed, z_dim)
    pictures_of = partial(draw, generator, batch=batch_size(side))
    if arguments.walk:
        write_walks(arguments, out, shape, zs, pictures_of)
    else:
        facts = {"seed": arguments.seed, "model": about["model"], "step": about.get("step")}
        pictures = pictures_of(islice(zs, arguments.num))
        write_pictures(arguments, out, shape, pictures, facts, training)


if __name__ == "__main__":
    with plain_errors():
        main()
