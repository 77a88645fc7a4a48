"""Generate images with a trained generator.

Examples:
    python generate.py WGAN-GP                        64 images of the newest run: samples.png
    python generate.py WGAN-GP/tensorboard/runs/X --num 100 --seed 3 --out x.png
    python generate.py X --num 50000 --npz x.npz      one array `images`, uint8 (N, H, W, C)
    python generate.py X --num 1000 --each x          x/000000.png to x/000999.png
    python generate.py X --nearest                    beside training images: nearest.png
    python generate.py X --walk 6 --frames 120        through 6 points of latent space: walk.gif
    python generate.py x.safetensors                  weights without a run: x-samples.png

Image i depends on the seed and on i alone, up to rounding. samples.png, nearest.png and
walk.gif are written to the run folder, and each replaces the one before.
"""

from __future__ import annotations

import math
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

import runs
from make_gif import write_animation

if TYPE_CHECKING:  # PyTorch takes two seconds to import; functions that need it do so
    from torch import Tensor, nn


def noise(seed: int, z_dim: int) -> Iterator[Tensor]:
    """Yield z (z_dim,) from N(0, I) without end; the i-th depends on `seed` and i alone."""
    import torch

    stream = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(z_dim, generator=stream)  # randn(N, z_dim) gives other numbers


def round_trip(points: Tensor, frames: int) -> Tensor:
    """Walk through points (K, z_dim) and back to the first, on great circles in equal steps.

    Lengths change linearly from point to point. On straight lines, z would be shorter than
    any that the generator was trained on (White 2016, arXiv:1609.04468).

    Returns:
        z (frames, z_dim), from the first point to one step before it.
    """
    points = points.double()
    lengths = points.norm(dim=1, keepdim=True)  # (K, 1)
    starts = points / lengths
    ends = starts.roll(-1, 0)
    angles = (starts * ends).sum(1, keepdim=True).clamp(1e-9 - 1, 1 - 1e-9).acos()  # (K, 1), > 0
    marks = angles.cumsum(0)  # the angle covered at the end of each leg
    covered = points.new_tensor(range(frames))[:, None] / frames * marks[-1]  # (frames, 1)
    leg = (covered >= marks.T).sum(1)  # (frames,)
    angle = angles[leg]
    share = 1 - (marks[leg] - covered) / angle  # of the leg
    direction = ((1 - share) * angle).sin() * starts[leg] + (share * angle).sin() * ends[leg]
    length = lengths[leg].lerp(lengths.roll(-1, 0)[leg], share)
    return (length * direction / angle.sin()).float()


def draw(generator: nn.Module, zs: Iterable[Tensor], batch: int) -> Iterator[np.ndarray]:
    """Turn noise, each z (z_dim,), into images; the generator must be in eval mode.

    Yields:
        uint8 (batch, H, W, C); the last may be shorter.
    """
    import torch

    zs, device = iter(zs), next(generator.parameters()).device
    while rows := list(islice(zs, batch)):
        # The last batch is filled up: in a smaller one, images may be rounded differently.
        z = torch.stack(rows + rows[-1:] * (batch - len(rows))).to(device)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            images = ((generator(z) + 1) * 127.5).round().to("cpu", torch.uint8)
        yield images[: len(rows)].movedim(1, 3).contiguous().numpy()


def batch_size(image_size: int) -> int:
    """Return how many images at once keep a processor busy in little memory."""
    return min(32, max(1, 2**17 // image_size**2))


def nearest(images: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the training image at the least L2 distance from each image, the first of equals.

    Args:
        images: uint8 (B, H, W, C).
        training: uint8 (N, H, W, C); read in parts, because it may be mapped from a file.

    Returns:
        Indices into `training` (B,), and root mean square distances in gray levels (B,).
    """
    flat = images.reshape(len(images), -1).astype(np.float64)  # keeps sums of squares exact
    least, found = np.full(len(images), np.inf), np.zeros(len(images), int)
    part = max(1, 2**22 // flat.shape[1])  # training images in 32 MB
    for start in tqdm(range(0, len(training), part), "nearest", leave=False, disable=None):
        other = training[start : start + part].reshape(-1, flat.shape[1]).astype(np.float64)
        squares = (flat**2).sum(1) + (other**2).sum(1)[:, None] - 2 * other @ flat.T  # (part, B)
        found = np.where(squares.min(0) < least, start + squares.argmin(0), found)
        least = np.minimum(squares.min(0), least)
    return found, np.sqrt(least / flat.shape[1])


def grid(images: np.ndarray, columns: int, side: int = 1100, gap: int = 2) -> Image.Image:
    """Lay out uint8 (N, H, W, 1 or 3) in rows on white, and enlarge it up to `side` pixels."""
    rows, columns = math.ceil(len(images) / columns), min(columns, len(images))
    high, wide = images.shape[1] + gap, images.shape[2] + gap
    sheet = Image.new("RGB", (columns * wide + gap, rows * high + gap), "white")
    for i, image in enumerate(images):
        corner = (i % columns * wide + gap, i // columns * high + gap)
        sheet.paste(Image.fromarray(image.squeeze()), corner)
    return ImageOps.scale(sheet, max(1, side // max(sheet.size)), Image.Resampling.NEAREST)


def write_walk(args: Namespace, generator: nn.Module, zs: Iterator[Tensor]) -> None:
    """Write an animation in which each image of a grid makes a round trip of its own."""
    import torch

    points = [torch.stack(list(islice(zs, args.walk))) for _ in range(args.num)]
    paths = torch.stack([round_trip(p, args.frames) for p in points], 1)  # (frames, num, z_dim)
    frames = []
    for z in tqdm(paths, "generating", leave=False, disable=None):
        images = np.concatenate(list(draw(generator, z, min(16, args.num))))
        frames.append(grid(images, args.columns, side=512))
    write_animation(args.out, frames, [round(1000 / args.fps)] * args.frames, args.max_mb)


def write_images(args: Namespace, images: Iterable, shape: tuple) -> np.ndarray:
    """Write images, of this shape in all, to --each and --npz, and return them."""
    if args.each:
        args.each.mkdir(parents=True)
    kept = np.empty(shape, np.uint8)
    for i, image in enumerate(images):
        kept[i] = image
        if args.each:
            Image.fromarray(image.squeeze()).save(args.each / f"{i:06d}.png")
    if args.npz:
        with runs.utils().replacing(args.npz) as file:
            np.savez(file, images=kept)
    return kept


def parse_arguments(argv: list[str] | None = None) -> Namespace:
    """Read the command line, and fill in the defaults that depend on other arguments."""
    parser = ArgumentParser(None, SUPPRESS, __doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", metavar="RUN", help="path or name of a run, a model, or a file of weights")
    add("--num", type=int, help="images (default: 64; --nearest 32; --walk 16)")
    add("--model-dir", type=Path, metavar="DIR", help="model folder of a run from elsewhere")
    add("--seed", type=runs.seed, default=0, help="seed of the noise (default: 0)")
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps; auto: the fastest")
    add("--out", type=Path, metavar="FILE", help="the PNG; for a walk the GIF, MP4 or WebP")
    add("--columns", type=int, help="images in a row (default: as many as rows)")
    add("--each", type=Path, metavar="DIR", help="write each image to a new folder")
    add("--npz", type=Path, metavar="FILE", help="write one array for numpy.load")
    add("--nearest", action="store_true", help="the nearest training image (L2) beside each")
    add("--walk", type=int, metavar="K", help="walk through K points in latent space")
    add("--frames", type=int, default=120, help="frames of a walk (default: 120)")
    add("--fps", type=float, default=20, help="frames per second, up to 50 (default: 20)")
    add("--max-mb", type=float, default=10, help="largest file of a walk (default: 10)")
    args = parser.parse_args(argv)
    if args.num is None:
        args.num = 16 if args.walk else 32 if args.nearest else 64
    least = {"num": 1, "columns": 1, "walk": 2, "frames": 2, "max_mb": 0.1}
    for name, low in least.items():
        if (value := getattr(args, name)) is not None and not value >= low:
            parser.error(f"--{name.replace('_', '-')} {value}: must be at least {low}")
    if not 1 <= args.fps <= 50:
        parser.error(f"--fps {args.fps}: must be from 1 to 50, the most that GIFs can show")
    if args.walk and (args.each or args.npz or args.nearest):
        parser.error("--walk cannot be combined with --each, --npz or --nearest")
    endings = (".gif", ".mp4", ".webp") if args.walk else (".png",)
    if args.out and args.out.suffix.lower() not in endings:
        parser.error(f"--out {args.out}: its name must end in {' or '.join(endings)}")
    if args.each and args.each.exists():
        parser.error(f"--each {args.each}: it exists already; name a new folder")
    args.columns = args.columns or math.ceil(math.sqrt(args.num / (1 + args.nearest)))
    return args


def main() -> None:
    """Write what the command line asks for."""
    args = parse_arguments()
    with runs.utils().plain_errors():
        weights, run = runs.find_weights(args.run)
        if args.nearest and not run:
            raise runs.utils().InputError(f"--nearest: {weights} is of no run and has no images")
        generator, about = runs.load_generator(weights, args.model_dir)
        generator.to(runs.utils().pick_device(args.device))
        print(f"weights {weights}: {about['model']}, step {about.get('step')}")
        name = "walk.gif" if args.walk else "nearest.png" if args.nearest else "samples.png"
        if not args.out and (args.walk or args.nearest or not (args.each or args.npz)):
            args.out = run / name if run else weights.with_name(f"{weights.stem}-{name}")
        zs, size = noise(args.seed, about["z_dim"]), about["image_size"]
        if args.walk:
            return write_walk(args, generator, zs)
        zs = tqdm(islice(zs, args.num), "generating", args.num, leave=False, disable=None)
        images = chain.from_iterable(draw(generator, zs, batch_size(size)))
        images = write_images(args, images, (args.num, size, size, about["channels"]))
        if args.out:
            if args.nearest:
                training, _ = runs.load_images(run, 0, args.model_dir)
                found, distances = nearest(images, training)
                images = np.concatenate([images, training[found]], 2)  # side by side
                least, median = np.quantile(distances, (0, 0.5))
                print(f"RMS distance to the nearest: least {least:.1f}, median {median:.1f} of 255")
            with runs.utils().replacing(args.out) as file:
                grid(images, args.columns, gap=8 if args.nearest else 2).save(file, "PNG")
        print("wrote", ", ".join(str(path) for path in (args.out, args.each, args.npz) if path))


if __name__ == "__main__":
    main()
