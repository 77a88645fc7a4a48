"""Turn the frames of training runs into animations: GIF, MP4 or WebP.

Examples:
    python make_gif.py                              samples.gif in the newest run of each model
    python make_gif.py WGAN-GP --fps 20             the newest run of one model
    python make_gif.py DCGAN/tensorboard/runs/X --out training.mp4
    python make_gif.py --side-by-side --tiles 4     the newest runs, large images side by side
"""

import io
import itertools
import math
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

import runs

MAX_FRAMES = 100  # unless --every says otherwise
POSTER, FIRST, LAST = 500, 1000, 2000  # milliseconds: the preview, the first and the last frame
SIDE, GAP = 400, 8  # pixels; small grids are enlarged to about SIDE by a whole factor
# What is tried, in this order, until the file is small enough. Pixels go last: labels stay sharp.
THINNED = ((1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (4, 2), (4, 4))  # every k-th frame, 1/n of sides
PIXELS = 10_000  # that choose the palette of a GIF; more take long and improve little
SETTINGS = {".gif": (255, 128), ".webp": (90, 60), ".mp4": (None,)}  # colors, quality
Scene = list[tuple[Path, str]]  # frames that are shown next to each other, and their labels


def label_strip(width: int, text: str) -> Image.Image:
    """Draw one line of text on white, RGB, to go above an image of this width."""
    font = ImageFont.load_default(max(10, min(18, width // 22)))
    strip = Image.new("RGB", (width, round(font.size * 1.8)), "white")
    ImageDraw.Draw(strip).text((4, strip.height // 2), text, "black", font, anchor="lm")
    return strip


def write_animation(
    path: Path, frames: Sequence[Image.Image], durations: list[int], max_mb: float, poster: int = 0
) -> None:
    """Write an animation at the best quality that fits into `max_mb`, and print what was written.

    Args:
        path: Its suffix is the format: .gif and .webp repeat for ever, .mp4 is H.264.
        frames: Images of one size, taken by their index, some of them several times.
        durations: Milliseconds for which each frame is shown. An MP4 rounds them to
            multiples of the shortest.
        max_mb: Greatest size in millions of bytes. A file that is larger even at the lowest
            quality is written nevertheless, and the message says so.
        poster: Milliseconds for which the last frame is shown before all others.
    """
    kind, max_bytes, count = path.suffix.lower(), 1e6 * max_mb, len(durations)
    rng, pixels = np.random.default_rng(0), []  # some of each frame, for the palette of a GIF
    for i in range(count):
        flat = np.asarray(frames[i].convert("RGB")).reshape(-1, 3)
        pixels.append(rng.choice(flat, math.ceil(PIXELS / count)))
    for (every, divisor), setting in itertools.product(THINNED, SETTINGS[kind]):
        kept = every_kth(range(count), every)
        ends = [*kept[1:], count]  # a frame is shown until the next one that is kept
        times = [sum(durations[i:end]) for i, end in zip(kept, ends, strict=True)]
        if poster and count > 1:
            kept, times = [count - 1, *kept], [poster, *times]
        bar = tqdm(kept, path.name, unit="frame", leave=False, disable=None)
        images = (frames[i].convert("RGB").reduce(divisor) for i in bar)
        data = encode(kind, images, times, setting, np.stack(pixels))
        if len(data) <= max_bytes:
            break
    with runs.utils().replacing(path) as file:
        file.write(data)
    size = f"{len(kept)} frame{'s' * (len(kept) > 1)}, {len(data) / 1e6:.1f} MB"
    note = f"; --max-mb {max_mb:g} is not possible" if len(data) > max_bytes else ""
    print(f"wrote {path}: {size}{note}")


def every_kth(items: Sequence, k: int) -> list:
    """Return the first item, every k-th after it, and the last."""
    return [*items[: len(items) - 1 : k], items[-1]]


def encode(
    kind: str, frames: Iterable[Image.Image], durations: list[int], setting: int, pixels: np.ndarray
) -> bytes:
    """Encode RGB images; of pixels (N, M, 3) comes the one palette that a GIF has."""
    file, options = io.BytesIO(), {"duration": durations, "loop": 0}
    if kind == ".mp4":
        write_mp4(file, frames, durations)
        return file.getvalue()
    if kind == ".gif":
        palette = Image.fromarray(pixels).quantize(setting, kmeans=1)
        options |= {"palette": bytes(palette.getpalette("RGB")), "optimize": True}
        # no dithering: its grain, new in each frame, takes many bytes
        frames = (f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames)
    else:
        options["quality"] = setting
    with iio.imopen(file, "w", extension=kind) as animation:
        for frame in frames:  # of a GIF as indices of colors
            animation.write(np.asarray(frame), is_batch=False, **options)
    return file.getvalue()


def write_mp4(file: io.BytesIO, frames: Iterable[Image.Image], durations: list[int]) -> None:
    """Write H.264 in which each frame is repeated for as long as it is shown."""
    shortest = min(durations)
    with iio.imopen(file, "w", plugin="pyav", extension=".mp4") as video:
        video.init_video_stream("libx264", fps=1000 / shortest, pixel_format="yuv420p")
        for frame, duration in zip(frames, durations, strict=True):
            odd = ((0, frame.height % 2), (0, frame.width % 2), (0, 0))
            pixels = np.pad(np.asarray(frame), odd, "edge")  # yuv420p needs even sides
            for _ in range(round(duration / shortest)):
                video.write_frame(pixels)


class Scenes:
    """The images of scenes; each is drawn when it is taken, and not kept."""

    def __init__(self, scenes: list[Scene], tiles: int) -> None:
        self.scenes, self.tiles = scenes, tiles

    def __getitem__(self, index: int) -> Image.Image:
        """Draw the frames of a scene from left to right, each under its label."""
        grids, panels, scene = [], [], self.scenes[index]
        for frame, _ in scene:
            try:
                grid = Image.open(frame).convert("RGB")
            except (OSError, SyntaxError) as error:  # what Pillow raises for a damaged PNG
                raise runs.utils().InputError(f"{frame} is damaged ({error})") from None
            # Of 8 by 8 images with lines of 2 pixels around each.
            width, height = ((side - 2) * self.tiles // 8 + 2 for side in grid.size)
            grids.append(grid.crop((0, 0, width, height)))
        side = max(SIDE, *(max(grid.size) for grid in grids))
        for grid, (_, label) in zip(grids, scene, strict=True):
            factor = max(1, round(side / max(grid.size)))
            grid = ImageOps.scale(grid, factor, Image.Resampling.NEAREST)
            panels.append(np.concatenate([label_strip(grid.width, label), grid]))
        height = max(len(panel) for panel in panels)
        for i, panel in enumerate(panels):
            margin = ((0, height - len(panel)), (0, GAP), (0, 0))
            panels[i] = np.pad(panel, margin, constant_values=255)  # white
        return Image.fromarray(np.concatenate(panels, axis=1)[:, :-GAP])


def scenes_of(found: list[Path]) -> list[Scene]:
    """List the frames of a run; of several, what each had drawn after the same number of images."""
    drawn, scenes = [], []
    for run in found:
        frames, per_step = runs.frames_of(run), runs.images_per_step(run)
        if not frames:
            raise runs.utils().InputError(f"{run}: there are no frames in it yet")
        images = [int(frame.stem) * per_step for frame in frames]
        drawn.append((runs.read_facts(run)["model"], run.name, frames, images))
    models = [model for model, *_ in drawn]
    drawn.sort(key=lambda one: [*runs.models(), one[0]].index(one[0]))  # stable: new models last
    for moment in sorted({count for *_, images in drawn for count in images}):
        scene = []
        for model, name, frames, images in drawn:
            i = max(0, bisect_right(images, moment) - 1)  # of an ended run its last frame
            shown = f"{images[i]:,} images, " if len(found) > 1 else ""
            label = f"{model} {name}" if models.count(model) > 1 else model
            scene.append((frames[i], f"{label}   {shown}step {int(frames[i].stem):,}"))
        scenes.append(scene)
    return scenes


def parse_arguments(argv: list[str] | None = None) -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(None, SUPPRESS, __doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="path or name of a run, or a model's newest run")
    add("--out", type=Path, metavar="FILE", help=".gif, .mp4 or .webp; default: in the run folder")
    add("--side-by-side", action="store_true", help="all runs in one animation")
    add("--no-poster", dest="poster", action="store_false", help="do not begin with the last frame")
    add("--every", type=int, metavar="K", help=f"every K-th frame (default: {MAX_FRAMES} at most)")
    add("--tiles", type=int, default=8, metavar="N", help="NxN images a frame (default: 8, all)")
    add("--fps", type=float, default=10, help="frames per second, at most 50 (default: 10)")
    add("--max-mb", type=float, default=5, help="greatest size of a file in MB (default: 5)")
    args = parser.parse_args(argv)
    if not 0 < args.fps <= 50:
        parser.error(f"--fps {args.fps:g}: must be above 0, and 50 at most")
    if args.every is not None and args.every < 1:
        parser.error(f"--every {args.every}: must be 1 or more")
    if not 1 <= args.tiles <= 8:
        parser.error(f"--tiles {args.tiles}: must be from 1 to 8")
    if not args.max_mb > 0:
        parser.error(f"--max-mb {args.max_mb:g}: must be above 0")
    if args.out and args.out.suffix.lower() not in SETTINGS:
        parser.error(f"--out {args.out}: its name must end in {', '.join(SETTINGS)}")
    return args


def main() -> None:
    """Write the animations that the command line asks for."""
    args = parse_arguments()
    with runs.utils().plain_errors():
        found = runs.find_runs(args.runs)
        if not args.runs:  # a run that has just been started has no frame yet
            found = [run for run in found if runs.frames_of(run)] or found
        if args.side_by_side:
            todo = [(args.out or found[0] / "side-by-side.gif", scenes_of(found))]
        elif args.out and len(found) > 1:
            raise runs.utils().InputError("--out: several runs in one file need --side-by-side")
        else:
            todo = [(args.out or run / "samples.gif", scenes_of([run])) for run in found]
        for out, scenes in todo:
            kept = every_kth(scenes, args.every or math.ceil(len(scenes) / MAX_FRAMES))
            durations = [round(1000 / args.fps)] * len(kept)
            durations[0], durations[-1] = max(FIRST, durations[0]), max(LAST, durations[-1])
            frames, poster = Scenes(kept, args.tiles), POSTER * args.poster
            write_animation(out, frames, durations, args.max_mb, poster)


if __name__ == "__main__":
    main()
