"""Cartoon faces, which the program draws itself: pictures for whoever has none.

This file is the same, byte for byte, in every model folder; tests/test_copies.py holds it so.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

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
