"""Train a GAN on points in the plane, and draw what its two networks do: a tab of play.py.

The points (B, 2, 1, 1) take the place of images, so the updates are the folders' own
`critic_step` or `discriminator_step`, `generator_step` and `gradient_penalty`. Only the networks,
two small multilayer perceptrons, and the pictures are from here: SVG, which is small, sharp on any
screen, and takes its colors from play.css.
"""

import base64
import io
import math
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import ot
import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Normal
from torch.optim import SGD, Adam, Optimizer, RMSprop

import runs

SHAPES = ("8 Gaussians", "25 Gaussians", "ring", "two moons", "spiral")
LAYERS = ("real points", "generated points", "landscape", "arrows", "manifold")
BATCH, Z_DIM, SHOWN = 128, 2, 256  # of one update; numbers in z; points of each kind in a picture
SIDE, CELLS, BANDS = 1.6, 48, 12  # the picture reaches from -SIDE to SIDE
VANISHED = 0.01  # gradients below this length are drawn in proportion, and so hardly seen
LOOKS = {  # of curves: the chart that they share, their label, their color; others are alone
    "loss_d": ("Losses", "loss_d", "second"),
    "loss_g": ("Losses", "loss_g, the generator's", "fake"),
    "d_real": ("Probabilities", "D(x), real", "real"),
    "d_fake": ("Probabilities", "D(G(z)), generated", "fake"),
    "true": ("Wasserstein distance", "generated to real", "fake"),
    "floor": ("Wasserstein distance", "real to other real points", "real"),
    "estimate": ("Wasserstein distance", "the critic's estimate", "second"),
    "slope": ("Gradient norm, logarithmic, line at 1", "of D or f", "second"),
    "told": ("Gradient norm, logarithmic, line at 1", "of the generator's loss", "fake"),
}
ROWS = 400  # of the history; half of them, evenly over the steps, are kept beyond that
InputError = runs.utils().InputError
LOCK = threading.Lock()  # PyTorch has one random stream for all pages


@dataclass
class Plane:
    """A training in the plane, and what the pictures show of it."""

    shape: str | Tensor  # one of SHAPES, or points (N, 2) to draw from
    train: ModuleType  # of the model's folder
    config: SimpleNamespace  # the settings of its Config, and `d_lr`
    generator: nn.Module
    critic: nn.Module  # or the discriminator
    optimizers: tuple[Optimizer, Optimizer]  # of the generator, of the critic
    fixed_z: Tensor
    real: Tensor
    floor: float  # mean Wasserstein distance of two sets of SHOWN real points
    height: str  # of the landscape: D(x), a probability, or f(x), a critic's score
    rng: Tensor  # the state of this training's random stream
    step: int = 0
    speed: int = 5  # generator updates for each picture
    layers: tuple[str, ...] = LAYERS[:4]  # of the picture
    losses: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


@cache
def train_of(model: str) -> ModuleType:
    """Import a folder's train.py."""
    return runs.load_file_of(model, "train")


def draw_real(shape: str | Tensor, count: int) -> Tensor:
    """Draw real points: (count, 2, 1, 1), nearly all in [-1.3, 1.3]."""
    if isinstance(shape, Tensor):
        points = shape[torch.randint(len(shape), (count,))]
        return (points + 0.02 * torch.randn(count, 2))[:, :, None, None]
    share = torch.rand(count)
    angle = 2 * math.pi * share
    if shape == "8 Gaussians":
        angle = (8 * share).floor() * (math.pi / 4)
    if shape == "spiral":
        angle = 3 * math.pi * share.sqrt()  # the root spreads the points evenly along the curve
    points = torch.stack([angle.cos(), angle.sin()], 1)
    if shape == "25 Gaussians":
        cell = (25 * share).floor()
        points = torch.stack([cell % 5 - 2, (cell / 5).floor() - 2], 1) * 0.55
    elif shape == "spiral":
        points *= angle[:, None] / 8
    elif shape == "two moons":
        lower = (share > 0.5).float()[:, None]
        points = 0.75 * points + (2 * lower - 1) * torch.tensor([0.375, 0.18])
    spread = 0.03 if "Gaussians" in shape else 0.05
    return (points + spread * torch.randn(count, 2))[:, :, None, None]


def make_networks(width: int, depth: int) -> tuple[nn.Module, nn.Module]:
    """Build a generator, z (B, 2) -> (B, 2, 1, 1), and a critic, (B, 2, 1, 1) -> scores (B,)."""
    generator, critic = [nn.Linear(Z_DIM, width)], [nn.Flatten(), nn.Linear(2, width)]
    for _ in range(depth - 1):
        generator += [nn.ReLU(), nn.Linear(width, width)]
        critic += [nn.LeakyReLU(0.2), nn.Linear(width, width)]
    generator += [nn.ReLU(), nn.Linear(width, 2), nn.Unflatten(1, (2, 1, 1))]
    critic += [nn.LeakyReLU(0.2), nn.Linear(width, 1), nn.Flatten(0)]
    return nn.Sequential(*generator), nn.Sequential(*critic)


def make_plane(
    shape: str | Tensor, model: str, width: int = 64, depth: int = 3, seed: int = 0, **settings: Any
) -> Plane:
    """Start a training with networks of `depth` hidden layers; for `settings` see `tune`."""
    train = train_of(model)
    fields = asdict(train.Config(z_dim=Z_DIM, seed=seed))
    config = SimpleNamespace(**{"n_critic": fields.get("k", 1), "d_lr": None} | fields)
    with LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks, real = make_networks(width, depth), draw_real(shape, SHOWN)
        fixed_z, rng = torch.randn(SHOWN, Z_DIM), torch.get_rng_state()
        floor = np.mean([distance(real, draw_real(shape, SHOWN)) for _ in range(4)])
    make, rest = RMSprop, {}
    if not hasattr(config, "clip_value"):
        beta1 = settings.get("beta1", getattr(config, "beta1", 0.9))
        make, rest = Adam, {"betas": (beta1, getattr(config, "beta2", 0.999)), "fused": True}
    optimizers = tuple(make(network.parameters(), **rest) for network in networks)
    height = "D(x)" if hasattr(train, "discriminator_step") else "f(x)"
    plane = Plane(shape, train, config, *networks, optimizers, fixed_z, real, floor, height, rng)
    tune(plane, **settings)
    return plane


def tune(plane: Plane, **settings: Any) -> None:
    """Set what its Config has, `n_critic` (the simple GAN's `k`) and `d_lr` (the critic's lr)."""
    vars(plane.config).update({k: v for k, v in settings.items() if hasattr(plane.config, k)})
    rates = plane.config.lr, plane.config.d_lr or plane.config.lr
    for optimizer, lr in zip(plane.optimizers, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr


def update(plane: Plane, network: str) -> None:
    """Update the "generator" or the "critic" (or discriminator) once, with the folder's step."""
    train, (of_generator, of_critic) = plane.train, plane.optimizers
    critic_step = getattr(train, "critic_step", None) or train.discriminator_step
    networks = plane.critic, plane.generator
    with LOCK, torch.random.fork_rng(devices=[]):
        torch.set_rng_state(plane.rng)
        if network == "generator":
            z = torch.randn(BATCH, Z_DIM)
            losses = train.generator_step(*networks, of_generator, z, plane.config)
        else:
            real = draw_real(plane.shape, BATCH)
            losses = critic_step(*networks, of_critic, real, plane.config)
        plane.rng = torch.get_rng_state()
    plane.step += network == "generator"
    plane.losses |= {name: float(value) for name, value in losses.items()}


def advance(plane: Plane, steps: int) -> None:
    """Take generator updates, each after its critic's, as the loop of train.py does."""
    for _ in range(steps):
        for _ in range(plane.config.n_critic):
            update(plane, "critic")
        update(plane, "generator")
    record(plane)


def train_on(plane: Plane, how: str) -> Iterator[str]:
    """Take `speed` steps ("play"), a "step", its parts ("slow") or one update; say what it does."""
    if how in ("play", "step"):
        advance(plane, plane.speed if how == "play" else 1)
        yield ""
        return
    words = {
        "critic": f"Critic or discriminator: it has looked at {BATCH} real and {BATCH} generated "
        f"points, to raise {plane.height} at the real ones and lower it at the others.",
        "generator": f"Generator: it has drawn {BATCH} points and moved them along the arrows, to "
        f"where {plane.height} is higher. It never sees a real point.",
    }
    turns = ["critic"] * plane.config.n_critic + ["generator"] if how == "slow" else [how]
    for number, network in enumerate(turns, 1):
        update(plane, network)
        record(plane)
        yield f"Update {number} of {len(turns)}. {words[network]}"


def record(plane: Plane) -> None:
    """Add what is measured now to the history; raise InputError if the training has diverged."""
    own = {"wasserstein", "penalty", "gradient_norm"}  # of one minibatch: measured better here
    row = {name: value for name, value in plane.losses.items() if name not in own}
    row = {"step": plane.step} | row | measure(plane)
    if not all(map(math.isfinite, row.values())):
        raise InputError(f"The training diverged at step {plane.step:,}. Press Reset.")
    plane.history = [past for past in plane.history if past["step"] < plane.step] + [row]
    if len(plane.history) > ROWS:
        plane.history = thin(plane.history)


def thin(rows: list[dict]) -> list[dict]:
    """Keep at most ROWS / 2 rows, evenly over the steps, with the first and the last."""
    steps = np.array([row["step"] for row in rows])
    marks = np.linspace(steps[0], steps[-1], ROWS // 2)
    return [rows[i] for i in np.unique(np.abs(steps - marks[:, None]).argmin(1))]


def look(plane: Plane) -> tuple[Tensor, Tensor]:
    """Return the points of fixed_z, and minus the gradient of each one's loss: both (SHOWN, 2)."""
    with torch.no_grad():
        points = plane.generator(plane.fixed_z)
    points.requires_grad_()
    idle = SGD([torch.zeros(1)])  # nothing is updated
    plane.train.generator_step(plane.critic, lambda _: points, idle, plane.fixed_z, plane.config)
    return points.detach().flatten(1), -SHOWN * points.grad.flatten(1)


def distance(some: Tensor, others: Tensor) -> float:
    """Return the Wasserstein distance of two sets of points (N, 2, 1, 1); infinite if one is."""
    costs = torch.cdist(some.flatten(1), others.flatten(1)).double().numpy()
    return float(ot.emd2([], [], costs)) if np.isfinite(costs).all() else math.inf


def measure(plane: Plane) -> dict[str, float]:
    """Measure a training on SHOWN real and as many generated points; nothing in it changes.

    `true` is the Wasserstein distance of these points, `estimate` a critic's, `slope` the mean
    length of the critic's gradient between them, `told` that of the generator's loss at its own.
    """
    fake, told = look(plane)
    real, fakes = plane.real, fake[:, :, None, None]
    with LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, slope = train_of("WGAN-GP").gradient_penalty(plane.critic, real, fakes)
    found = {"true": distance(real, fakes), "floor": plane.floor}
    found |= {"slope": slope, "told": told.norm(dim=1).mean()}
    if plane.height == "f(x)":  # a clamp leaves the scale of f open: a curve of its own
        name = "estimate" + " on the scale of f" * hasattr(plane.config, "clip_value")
        with torch.no_grad():
            found[name] = plane.critic(real).mean() - plane.critic(fakes).mean()
    return {name: float(value) for name, value in found.items()}


def address_of(image: Image.Image | np.ndarray) -> str:
    """Write an image, or uint8 (H, W) or (H, W, 1 or 3), as an address that holds a PNG."""
    image = Image.fromarray(image.squeeze()) if isinstance(image, np.ndarray) else image
    image.save(file := io.BytesIO(), "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def landscape(plane: Plane) -> str:
    """Draw D(x) or, for a critic, f(x) in bands, darker where it is higher: a PNG as a URL."""
    axis = torch.linspace(-SIDE, SIDE, CELLS)
    grid = torch.cartesian_prod(-axis, axis).flip(1)  # rows from the top, in them from the left
    with torch.no_grad():
        heights = plane.critic(grid[:, :, None, None]).view(1, 1, CELLS, CELLS)
    if plane.height == "D(x)":
        heights = heights.sigmoid()
    else:
        heights = (heights - heights.min()) / (heights.max() - heights.min()).clamp(min=1e-12)
    fine = nn.functional.interpolate(heights, scale_factor=6, mode="bicubic")[0, 0]
    bands = (fine * BANDS).floor().clamp(0, BANDS - 1) / BANDS
    return address_of((252 - 60 * bands).to(torch.uint8).numpy())


def manifold(plane: Plane) -> Tensor:
    """Return where the generator puts a grid of z, lines (18, 41, 2), a tenth of z in a gap."""
    marks, along = Normal(0, 1).icdf(torch.linspace(0.1, 0.9, 9)), torch.linspace(-2.5, 2.5, 41)
    z = torch.cartesian_prod(marks, along)
    with torch.no_grad():
        points = plane.generator(torch.cat([z, z.flip(1)]))
    return points.view(2 * len(marks), len(along), 2)


def path(lines: Tensor | np.ndarray, kind: str, width: float) -> str:
    """Write lines (N, K, 2) as one SVG path; lines of a single corner, K = 1, are dots."""
    words = ("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line) + "h0" for line in lines.tolist())
    return f'<path class="{kind}" stroke-width="{width}" d="{"".join(words)}"/>'


def picture(plane: Plane) -> str:
    """Draw the layers that are switched on, and name them: HTML."""
    (fake, told), real, height = look(plane), plane.real.flatten(1), plane.height
    longest = told.norm(dim=1).max()
    tail, way = fake[::2], told[::2] * (0.3 / longest.clamp(min=VANISHED))
    tip, neck, side = tail + way, tail + 0.7 * way, way.flip(1) * torch.tensor([0.15, -0.15])
    arrows = torch.stack([tail, tip, neck + side, tip, neck - side], 1)
    size = f"{'vanished' if longest < VANISHED else 'longest'}: {longest:.2g}"
    layers = {  # from below to above: lines, kind, width, and words of the legend
        "manifold": (manifold(plane), "second", 1, "— a grid of z, as the generator bends it"),
        "arrows": (arrows, "fake", 1, f"→ where they are told to go ({size})"),
        "generated points": (fake[:, None], "fake", 5, "● generated points"),
        "real points": (real[:, None], "real", 4, "● real points"),
    }
    shown, svg, legend = [name for name in layers if name in plane.layers], "", ""
    if "landscape" in plane.layers:
        svg = f'<image href="{landscape(plane)}" width="400" height="400"/>'
        legend = f"<span>■ high, □ low {height}</span>"
    for lines, kind, width, words in map(layers.get, shown):
        svg += path(200 + 200 / SIDE * lines * torch.tensor([1, -1]), kind, width)
        legend += f'<span class="{kind}">{words}</span>'
    about = ", ".join(shown) + f" on the landscape of {height}" * ("landscape" in plane.layers)
    return f"""<div class="plane"><svg class="field" viewBox="0 0 400 400" role="img"
aria-label="{about}">{svg}</svg>
<p>{legend}<span>step {plane.step:,}</span></p></div>"""


def chart(title: str, rows: list[dict], names: dict[str, tuple]) -> str:
    """Draw columns, by name, label and color, against `step`: HTML; spikes leave the picture."""
    kept = [[row[name] for name in ("step", *names)] for row in rows if names.keys() <= row.keys()]
    (x, *columns), log = np.array(kept, float).T, "logarithmic" in title
    heights = np.log10(np.maximum(columns, 1e-6)) if log else np.array(columns)
    few, many = np.quantile(heights, (0.02, 0.98))
    low = min(max(heights.min(), 2 * few - many), 0)
    high = max(min(heights.max(), 2 * many - few), 0)
    scale = (300 / max(np.ptp(x), 1), -84 / max(high - low, 1e-9))
    zero = np.array([[[0, 87 - low * scale[1]], [300, 87 - low * scale[1]]]])
    svg, label = path(zero, "rule", 1), ""
    for (name, kind), column, line in zip(names.values(), columns, heights, strict=True):
        corners = np.stack([x - x[0], line - low], 1) * scale + (0, 87)
        svg += path(corners[None], kind, 1.6)
        label += f'<span class="{kind}">{name} <b>{column[-1]:.3g}</b></span>'
    top, bottom = (f"{10**end if log else end:.2g}" for end in (high, low))
    return f"""<figure><figcaption><b>{title}</b>{label}</figcaption><div class="plot">
<span>{top}</span><svg viewBox="0 0 300 90" preserveAspectRatio="none" aria-hidden="true">{svg}
</svg><span>{bottom}</span></div></figure>"""


def charts(rows: list[dict]) -> str:
    """Draw the curves of a training, in the plane or of images, from its rows: HTML."""
    if not rows:
        return "<p>The curves begin with the first updates.</p>"
    rows, titles = thin(rows) if len(rows) > ROWS else rows, {}
    for name in [name for name in rows[-1] if name not in ("step", "epoch", "images", "seconds")]:
        title, *look = LOOKS.get(name, (name.capitalize(), "", "second"))
        titles.setdefault(title, {})[name] = look
    body = "".join(chart(title, rows, names) for title, names in titles.items())
    return f'<div class="plane">{body}</div>'
