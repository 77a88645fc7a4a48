"""Train a GAN on points in the plane, and draw what its two networks do: a tab of play.py.

The points (B, 2, 1, 1) take the place of images, so the updates are the folders' own
`critic_step` or `discriminator_step`, `generator_step` and `gradient_penalty`. Only the networks,
two small multilayer perceptrons, and the pictures are from here.
"""

import base64
import io
import math
import threading
import time
from dataclasses import dataclass, field, replace
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import ot
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RMSprop

import runs

SHAPES = ("8 Gaussians", "25 Gaussians", "ring", "two moons", "spiral")
BATCH, Z_DIM, SHOWN = 128, 2, 256  # of one update; numbers in z; points of each kind in a picture
SIDE, CELLS, BANDS = 1.6, 48, 12  # the picture reaches from -SIDE to SIDE
SIDES = (0.15, -0.15), (-0.15, 0.15)  # of an arrowhead
COLORS = {"loss_g": "fake", "told": "fake", "d_fake": "fake", "d_real": "real", "true": "exact"}
ROWS = 400  # of the history; every second row is dropped beyond that
LOCK = threading.Lock()  # PyTorch has one random stream for all pages


@dataclass
class Plane:
    """A training in the plane, and what the pictures show of it."""

    shape: str
    train: ModuleType  # of the model's folder
    config: Any
    generator: nn.Module
    critic: nn.Module  # or the discriminator
    optimizers: tuple[Optimizer, Optimizer]  # of the generator, of the critic
    fixed_z: Tensor
    real: Tensor
    rng: Tensor  # the state of this training's random stream
    step: int = 0
    speed: int = 5  # generator updates for each picture
    history: list[dict[str, float]] = field(default_factory=list)


@cache
def train_of(model: str) -> ModuleType:
    """Import a folder's train.py."""
    return runs.load_file_of(model, "train")


def draw_real(shape: str, count: int) -> Tensor:
    """Draw real points: (count, 2, 1, 1), nearly all in [-1.3, 1.3]."""
    share = torch.rand(count)
    angle = 2 * math.pi * share
    if shape == "8 Gaussians":
        angle = (8 * share).floor() * (math.pi / 4)
    if shape == "25 Gaussians":
        cell = (25 * share).floor()
        points = torch.stack([cell % 5 - 2, (cell / 5).floor() - 2], 1) * 0.55
    elif shape == "spiral":
        angle = 3 * math.pi * share.sqrt()  # the root spreads the points evenly along the curve
        points = torch.stack([angle.cos(), angle.sin()], 1) * angle[:, None] / 8
    else:
        points = torch.stack([angle.cos(), angle.sin()], 1)
    if shape == "two moons":
        lower = (share > 0.5).float()[:, None]
        points = 0.75 * points + (2 * lower - 1) * torch.tensor([0.375, 0.18])
    spread = 0.03 if "Gaussians" in shape else 0.05
    return (points + spread * torch.randn(count, 2))[:, :, None, None]


def make_networks(width: int) -> tuple[nn.Module, nn.Module]:
    """Build a generator, z (B, 2) -> (B, 2, 1, 1), and a critic, (B, 2, 1, 1) -> scores (B,)."""
    generator, critic = [nn.Linear(Z_DIM, width)], [nn.Flatten(), nn.Linear(2, width)]
    for _ in range(2):
        generator += [nn.ReLU(), nn.Linear(width, width)]
        critic += [nn.LeakyReLU(0.2), nn.Linear(width, width)]
    generator += [nn.ReLU(), nn.Linear(width, 2), nn.Unflatten(1, (2, 1, 1))]
    critic += [nn.LeakyReLU(0.2), nn.Linear(width, 1), nn.Flatten(0)]
    return nn.Sequential(*generator), nn.Sequential(*critic)


def replaced(config: Any, settings: dict[str, Any]) -> Any:
    """Put settings into the fields that a Config has; the simple GAN's `n_critic` is `k`."""
    named = {"k" if name == "n_critic" else name: value for name, value in settings.items()}
    return replace(config, **{k: v for k, v in (settings | named).items() if hasattr(config, k)})


def make_plane(shape: str, model: str, width: int = 64, seed: int = 0, **settings: Any) -> Plane:
    """Start a training; `settings` that the model's Config does not have are ignored.

    Raises:
        InputError: There is no such shape.
    """
    if shape not in SHAPES:
        raise runs.InputError(f"{shape!r}: no such points; choose one of {', '.join(SHAPES)}")
    train = train_of(model)
    config = replaced(train.Config(z_dim=Z_DIM, seed=seed), settings)
    with LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks, real = make_networks(width), draw_real(shape, SHOWN)
        fixed_z, rng = torch.randn(SHOWN, Z_DIM), torch.get_rng_state()
    if hasattr(config, "clip_value"):
        optimizers = tuple(RMSprop(network.parameters(), config.lr) for network in networks)
    else:
        adam = {"betas": (config.beta1, config.beta2), "fused": True}
        optimizers = tuple(Adam(network.parameters(), config.lr, **adam) for network in networks)
    return Plane(shape, train, config, *networks, optimizers, fixed_z, real, rng)


def tune(plane: Plane, speed: int, **settings: Any) -> None:
    """Change settings of a training while it runs."""
    plane.speed, plane.config = speed, replaced(plane.config, settings)
    for optimizer in plane.optimizers:
        optimizer.param_groups[0]["lr"] = plane.config.lr


def advance(plane: Plane, steps: int, seconds: float = math.inf) -> None:
    """Take up to so many generator updates, each after its critic's, as train.py's loop does.

    Raises:
        InputError: The training has diverged.
    """
    train, config, end = plane.train, plane.config, time.perf_counter() + seconds
    critic_step = getattr(train, "critic_step", None) or train.discriminator_step
    networks, (of_generator, of_critic) = (plane.critic, plane.generator), plane.optimizers
    with LOCK, torch.random.fork_rng(devices=[]):
        torch.set_rng_state(plane.rng)
        for _ in range(steps):
            for _ in range(getattr(config, "n_critic", getattr(config, "k", 1))):
                losses = critic_step(*networks, of_critic, draw_real(plane.shape, BATCH), config)
            z = torch.randn(BATCH, Z_DIM)
            losses |= train.generator_step(*networks, of_generator, z, config)
            plane.step += 1
            if time.perf_counter() > end:
                break
        plane.rng = torch.get_rng_state()
    row = {name: float(value) for name, value in losses.items()} | measure(plane)
    if not all(map(math.isfinite, row.values())):
        raise runs.InputError(f"The training diverged at step {plane.step:,}. Press Reset.")
    plane.history.append({"step": plane.step, **row})
    if len(plane.history) > ROWS:
        del plane.history[1::2]


def look(plane: Plane) -> tuple[Tensor, Tensor]:
    """Return the points of fixed_z (SHOWN, 2), and where the generator is told to move each.

    That is minus the gradient of a point's share of the loss, (SHOWN, 2). Nothing is updated.
    """
    with torch.no_grad():
        points = plane.generator(plane.fixed_z)
    points.requires_grad_()
    idle = SGD([torch.zeros(1)])
    plane.train.generator_step(plane.critic, lambda _: points, idle, plane.fixed_z, plane.config)
    return points.detach().flatten(1), -SHOWN * points.grad.flatten(1)


def measure(plane: Plane) -> dict[str, float]:
    """Measure a training on SHOWN real and as many generated points; nothing in it changes.

    Returns:
        `true`, the Wasserstein distance of these points; `estimate`, the critic's; `slope`, the
        mean length of its gradient between them; `told`, that of the generator's at its points.
    """
    fake, told = look(plane)
    real, fakes = plane.real, fake[:, :, None, None]
    with LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, slope = train_of("WGAN-GP").gradient_penalty(plane.critic, real, fakes)
    with torch.no_grad():
        estimate = plane.critic(real).mean() - plane.critic(fakes).mean()
    costs = torch.cdist(real.flatten(1), fake).double().numpy()
    true = ot.emd2([], [], costs) if np.isfinite(costs).all() else math.inf
    found = {"true": true, "estimate": estimate, "slope": slope, "told": told.norm(dim=1).mean()}
    return {name: float(value) for name, value in found.items()}


# ---- Pictures: SVG is small, sharp on any screen, and takes its colors from play.css ----


def has_discriminator(plane: Plane) -> bool:
    """Tell a discriminator, whose logits mean a probability, from a critic."""
    return hasattr(plane.train, "discriminator_step")


def landscape(plane: Plane) -> str:
    """Draw D(x) or, for a critic, f(x) in bands, darker where it is higher: a PNG as a URL."""
    axis = torch.linspace(-SIDE, SIDE, CELLS)
    grid = torch.stack(torch.meshgrid(axis, -axis, indexing="xy"), 2).view(-1, 2, 1, 1)
    with torch.no_grad():
        heights = plane.critic(grid).view(1, 1, CELLS, CELLS)
    if has_discriminator(plane):
        heights = heights.sigmoid()
    else:
        heights = (heights - heights.min()) / (heights.max() - heights.min()).clamp(min=1e-12)
    fine = nn.functional.interpolate(heights, scale_factor=6, mode="bicubic")[0, 0]
    bands = (fine * BANDS).floor().clamp(0, BANDS - 1) / BANDS
    file = io.BytesIO()
    Image.fromarray((252 - 110 * bands).to(torch.uint8).numpy()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def path(lines: np.ndarray, kind: str, width: float) -> str:
    """Write lines (N, K, 2) as one SVG path; lines of a single corner, K = 1, are dots."""
    words = ("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line) + "h0" for line in lines)
    return f'<path class="{kind}" stroke-width="{width}" d="{"".join(words)}"/>'


def picture(plane: Plane) -> str:
    """Draw the landscape, the points, and an arrow at every second generated one: HTML."""
    (fake, told), real = look(plane), plane.real.flatten(1)
    longest, height = told.norm(dim=1).max(), "D(x)" if has_discriminator(plane) else "f(x)"
    tail, way = fake[::2], told[::2] * (0.3 / longest.clamp(min=1e-30))
    left, right = (tail + 0.7 * way + way.flip(1) * torch.tensor(s) for s in SIDES)
    arrows = torch.stack([tail, tail + way, left, tail + way, right], 1)
    drawn = [(arrows, "fake", 1), (fake[:, None], "fake", 5), (real[:, None], "real", 4)]
    to_svg = 200 / SIDE * torch.tensor([1, -1])
    svg = "".join(path((200 + lines * to_svg).numpy(), *rest) for lines, *rest in drawn)
    return f"""<div class="plane"><svg class="field" viewBox="0 0 400 400" role="img">
<title>Real and generated points on the landscape of {height}</title>
<image href="{landscape(plane)}" width="400" height="400"/>{svg}</svg>
<p><span class="real">● real points</span><span class="fake">● generated points</span>
<span class="fake">→ where they are told to go (longest: {longest:.2g})</span>
<span>■ high, □ low {height}</span><span>step {plane.step:,}</span></p></div>"""


def chart(title: str, rows: list[dict], names: dict[str, str], log: bool = False) -> str:
    """Draw one or two columns of `rows`, by name and label, against `step`: HTML."""
    x, *columns = np.array([[row[name] for name in ("step", *names)] for row in rows], float).T
    heights = np.log10(np.maximum(columns, 1e-6)) if log else np.array(columns)
    low, high = min(heights.min(), 0), max(heights.max(), 0)
    scale = (300 / max(np.ptp(x), 1), -84 / max(high - low, 1e-9))
    zero = np.array([[[0, 87 - low * scale[1]], [300, 87 - low * scale[1]]]])
    svg, label = path(zero, "rule", 1), ""
    for name, column, line in zip(names, columns, heights, strict=True):
        kind, corners = COLORS.get(name, "second"), np.stack([x - x[0], line - low], 1)
        svg += path((corners * scale + (0, 87))[None], kind, 1.6)
        label += f'<span class="{kind}">{names[name]} <b>{column[-1]:.3g}</b></span>'
    top, bottom = (f"{10**end if log else end:.2g}" for end in (high, low))
    return f"""<figure><figcaption><b>{title}</b>{label}</figcaption><div class="plot">
<span>{top}</span><svg viewBox="0 0 300 90" preserveAspectRatio="none">{svg}</svg>
<span>{bottom}</span></div></figure>"""


def charts(plane: Plane) -> str:
    """Draw the curves of a training: HTML."""
    if not plane.history:
        return "<p>Press Play to start the training, or Step for a single update.</p>"
    second, distance, own = "critic", {"true": "exact", "estimate": "the critic's estimate"}, []
    if has_discriminator(plane):
        second, distance = "discriminator", {"true": "exact"}
        own = [("Probabilities", {"d_real": "D(x), real", "d_fake": "D(G(z)), generated"})]
    if hasattr(plane.config, "clip_value"):
        own = [("Weights at the clamp", {"clipped": "share"})]
    drawn = [("Losses", {"loss_d": second, "loss_g": "generator"})]
    drawn += [("Wasserstein distance", distance), *own]
    slopes = {"slope": f"of the {second}", "told": "of the generator's loss"}
    drawn += [("Mean slope, logarithmic, line at 1", slopes, True)]
    body = "".join(chart(title, plane.history, *rest) for title, *rest in drawn)
    return f'<div class="plane">{body}</div>'
