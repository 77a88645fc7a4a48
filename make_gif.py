"""Turn the frames of training runs into GIFs that show how the pictures came about.

Examples:
    python make_gif.py                                  assets/MODEL.gif from each newest run
    python make_gif.py WGAN-GP --fps 20                 the newest run of one model
    python make_gif.py WGAN-GP/tensorboard/runs/X --out x.gif --every 2
    python make_gif.py --side-by-side                   the newest runs in one picture
"""

import argparse
import io
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from runs import (
    MODELS,
    TOP,
    InputError,
    find_run,
    frames_of,
    images_per_step,
    model_runs,
    plain_errors,
    read_facts,
    step_of,
    write_aside,
)

MOST = 100  # frames, unless --every says otherwise
MOST_PIXELS = 10**8  # of a frame: 64 pictures of 1024x1024 and their borders have 6.8e7
HOLD = 2000  # milliseconds that the last frame stays
SIDE = 512  # pixels: small grids are enlarged by a whole factor up to about this
# What is tried, in this order, until the GIF is small enough: scale and number of colours.
QUALITIES = [(1, 256), (1, 128), (1, 64), (0.75, 64), (0.75, 32), (0.5, 64), (0.5, 32), (0.5, 16)]


def label_strip(width: int, label: str) -> Image.Image:
    """Write a label on a white strip that goes above a picture of this width."""
    font = ImageFont.load_default(max(10, min(18, width // 22)))
    strip = Image.new("RGB", (width, round(font.size * 1.8)), "white")
    ImageDraw.Draw(strip).text((4, strip.height // 2), label, "black", font, anchor="lm")
    return strip


def panel(frame: Path, label: str) -> Image.Image:
    """Read one frame, enlarge it if it is small, and write a label above it.

    Raises:
        InputError: it is damaged, or so large that no training has drawn it.
    """
    try:
        with Image.open(frame, formats=["PNG"]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"it has {picture.width}x{picture.height} pixels")
            factor = max(1, SIDE // max(picture.size))
            size = (picture.width * factor, picture.height * factor)
            picture = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
    except Exception as error:  # what a damaged picture raises can be nearly anything
        raise InputError(f"{frame} cannot be drawn: {error}") from None
    strip = label_strip(picture.width, label)
    canvas = Image.new("RGB", (picture.width, picture.height + strip.height), "white")
    canvas.paste(strip)
    canvas.paste(picture, (0, strip.height))
    return canvas


def draw(scene: list[tuple[Path, str]]) -> Image.Image:
    """Draw what is seen at one moment: the panels of a scene beside each other, equally high."""
    panels = [panel(frame, label) for frame, label in scene]
    height = max(p.height for p in panels)
    panels = [p.resize((p.width * height // p.height, height)) for p in panels]
    canvas = Image.new("RGB", (sum(p.width + 8 for p in panels) - 8, height), "white")
    left = 0
    for p in panels:
        canvas.paste(p, (left, 0))
        left += p.width + 8
    return canvas


def scenes_of(run: Path, every: int) -> list[list[tuple[Path, str]]]:
    """List the scenes of one run, one for a frame, each under its step."""
    model = read_facts(run)["model"]
    return [[(f, f"{model}   step {step_of(f):,}")] for f in chosen(frames_of(run), every)]


def scenes_side_by_side(runs: list[Path], every: int) -> list[list[tuple[Path, str]]]:
    """List scenes in which every run shows what it had drawn after the same number of images."""
    drawn = []
    for run in runs:
        frames = frames_of(run)
        images = [step_of(frame) * images_per_step(run) for frame in frames]
        drawn.append((read_facts(run)["model"], frames, images))
    scenes = []
    for moment in chosen(sorted({count for *_, images in drawn for count in images}), every):
        scene = []
        for model, frames, images in drawn:
            latest = bisect_right(images, moment) - 1  # a run that has ended keeps its last frame
            step = step_of(frames[latest])
            scene.append((frames[latest], f"{model}   {images[latest]:,} images, step {step:,}"))
        scenes.append(scene)
    return scenes


def chosen(items: list, every: int) -> list:
    """Take every so-manieth item, or with 0 at most MOST evenly; the first and last in any case."""
    count = len(items)
    if every:
        return [*items[: count - 1 : every], items[-1]]
    return [items[round(i)] for i in np.linspace(0, count - 1, min(count, MOST))]


def scaled(picture: Image.Image, scale: float) -> Image.Image:
    """Scale a picture down."""
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size) if scale < 1 else picture


def reduced(picture: Image.Image, scale: float, palette: Image.Image) -> Image.Image:
    """Scale a picture down and use a palette; no dithering, which GIF compresses badly."""
    return scaled(picture, scale).quantize(palette=palette, dither=Image.Dither.NONE)


def choose_quality(samples: list[Image.Image], max_bytes: float) -> tuple[float, Image.Image]:
    """Find the best scale and palette that keep the mean of a few pictures small enough."""
    for scale, colours in QUALITIES:
        pictures = [scaled(picture, scale) for picture in samples]
        some = np.concatenate([np.asarray(picture)[::2, ::2] for picture in pictures])
        palette = Image.fromarray(some).quantize(colours)  # slow: a quarter of the pixels will do
        size = 0
        for picture in pictures:
            file = io.BytesIO()
            reduced(picture, 1, palette).save(file, "GIF")
            size += file.tell()
        if size / len(pictures) < max_bytes:
            break
    return scale, palette


def write_gif(
    pictures: Iterable[Image.Image],
    samples: list[Image.Image],
    times: list[int],
    out: Path,
    max_mb: float,
) -> None:
    """Write a GIF that repeats; only pictures with a palette are kept in memory.

    Args:
        pictures: RGB, all of one size; each is taken when it is needed.
        samples: a few of them, to judge by what quality keeps the GIF small.
        times: milliseconds that each picture stays.
        out: the file.
        max_mb: its greatest size, in millions of bytes.
    """
    scale, palette = choose_quality(samples, 0.9e6 * max_mb / len(times))
    bar = tqdm(pictures, out.name, len(times), unit="frame", leave=False, disable=None)
    frames = (reduced(picture, scale, palette) for picture in bar)
    how = {"save_all": True, "append_images": frames, "duration": times, "loop": 0}
    with write_aside(out) as file:
        next(frames).save(file, "GIF", optimize=False, **how)
    print(f"wrote {out}: {len(times)} frames, {out.stat().st_size / 1e6:.1f} MB")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="path or name of a run, or a model")
    parser.add_argument("--out", type=Path, help="the GIF; by default samples.gif in the run")
    parser.add_argument("--fps", type=float, default=10, help="frames a second (default: 10)")
    parser.add_argument(
        "--every", type=int, default=0, help=f"take every K-th frame (default: {MOST} in all)"
    )
    parser.add_argument("--max-mb", type=float, default=5, help="greatest size (default: 5 MB)")
    parser.add_argument("--side-by-side", action="store_true", help="all runs in one picture")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.fps <= 50:
        raise InputError(f"--fps {arguments.fps}: from above 0 to 50, the most that GIFs can show")
    if arguments.every < 0 or not arguments.max_mb > 0:
        raise InputError("--every and --max-mb must be above 0")
    return arguments


def main() -> None:
    """Make the GIFs that the command line asks for."""
    arguments = parse_arguments()
    if arguments.runs:
        runs = {find_run(text): None for text in arguments.runs}  # in order, none twice
        outs = [run / "samples.gif" for run in runs]
    else:
        newest = {model: model_runs(model) for model in MODELS}
        for model in MODELS:
            if not newest[model]:
                print(f"{model}: no run yet; make one with: cd {model} && python train.py")
        runs = [found[-1] for found in newest.values() if found]
        outs = [TOP / "assets" / f"{model}.gif" for model in MODELS if newest[model]]
        if not runs:
            raise InputError("there is no run of any model to draw")
    if arguments.side_by_side:
        scenes = [scenes_side_by_side(list(runs), arguments.every)]
        outs = [arguments.out or TOP / "assets" / "side-by-side.gif"]
    else:
        scenes = [scenes_of(run, arguments.every) for run in runs]
        if arguments.out and len(outs) > 1:
            raise InputError("--out: one file for several runs; name one run, or --side-by-side")
        outs = [arguments.out] if arguments.out else outs
    for moments, out in zip(scenes, outs, strict=True):
        samples = [draw(moments[round(i)]) for i in np.linspace(0, len(moments) - 1, 6)]
        times = [round(1000 / arguments.fps)] * (len(moments) - 1) + [HOLD]
        write_gif(map(draw, moments), samples, times, out, arguments.max_mb)


if __name__ == "__main__":
    with plain_errors():
        main()
