"""Draw the figures of the README, lay out its tables, and keep the runs that both are made of.

Examples:
    python results/figures.py landscapes      assets/landscapes.png, several minutes
    python results/figures.py curves          assets/curves.png, from results/MODEL/quick-faces/
    python results/figures.py table           what the runs in results/ came to, in Markdown
    python results/figures.py race            the same of the race in results/race/
    python results/figures.py waiting         after how long the quick runs showed faces
    python results/figures.py record RUN      results/MODEL/NAME/, the small files of a run
    python results/figures.py weights RUN     assets/weights/MODEL.safetensors, in half precision
    python results/figures.py final           assets/final.png, pictures by those weights

For the landscapes three critics are trained by the folders' own steps, on points (B, 2, 1, 1) in
place of images. As in figure 1 of the WGAN-GP's paper (arXiv:1704.00028, section 4) the generator
stands still and gives real points with Gaussian noise on them: what is seen is the critic that
each paper asks for.
"""

import argparse
import csv
import importlib
import json
import multiprocessing
import shutil
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
ASSETS = TOP / "assets"
MODELS = ("simpleGAN", "DCGAN", "WGAN", "WGAN-GP")
RECORDED = ("run.json", "parameters.json", "metrics.csv", "evaluation.jsonl")
TITLES = {"simpleGAN": "GAN: the logit of D(x)", "WGAN": "WGAN: f(x), weights clipped at ±0.01"}
TITLES |= {"WGAN-GP": "WGAN-GP: f(x), slopes held near 1"}
# The step from which on most pictures in the frames of the quick run are faces, by eye.
FACES_AT = {"simpleGAN": 1200, "DCGAN": 600, "WGAN": 200, "WGAN-GP": 260}
STEPS = 4000  # critic updates; with fewer, or smaller ones, the penalty is met by a bad critic
SIDE = 2.4  # the landscapes reach from -SIDE to SIDE


def draw_points(count: int, rng) -> "torch.Tensor":  # noqa: F821
    """Draw from 8 Gaussians on a circle: float32 (count, 2, 1, 1).

    Radius 2 and standard deviation 0.02, all divided by 1.414, as in the WGAN-GP's own code.
    """
    import torch

    angles = torch.randint(8, (count,), generator=rng) * torch.pi / 4
    centres = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    return ((centres + 0.02 * torch.randn(count, 2, generator=rng)) / 1.414)[:, :, None, None]


def train_critic(model: str) -> dict:
    """Train one critic to the end, with the steps of its train.py; return what is drawn of it."""
    sys.path.insert(0, str(TOP / model))
    train = importlib.import_module("train")
    import torch
    from torch import nn
    from torch.optim import Adam, RMSprop

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)

    class Blurred(nn.Module):
        """A generator that stands still: real points, each moved by its noise z (B, 2)."""

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return draw_points(len(z), rng) + z[:, :, None, None]

    layers = [nn.Flatten(), nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
    critic = nn.Sequential(
        *layers, nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1), nn.Flatten(0)
    )
    config = train.Config(z_dim=2)
    if model == "WGAN":
        optimizer = RMSprop(critic.parameters(), 1e-4)
    else:
        optimizer = Adam(critic.parameters(), 1e-3, (0.5, 0.9))
    step = getattr(train, "critic_step", None) or train.discriminator_step
    for _ in range(STEPS):
        losses = step(critic, Blurred(), optimizer, draw_points(256, rng), config)

    axis = torch.linspace(-SIDE, SIDE, 200)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy")).flatten(1).T[:, :, None, None]
    with torch.no_grad():
        heights = critic(grid).view(200, 200)
    real = draw_points(2000, rng)
    fake = Blurred()(torch.randn(2000, 2))
    share = torch.rand(2000, 1, 1, 1)
    between = (share * real + (1 - share) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between)
    return {
        "heights": heights.numpy(),
        "weights": torch.cat([p.detach().flatten() for p in critic.parameters()]).numpy(),
        "slopes": gradient.flatten(1).norm(dim=1).numpy(),
        "last": {name: float(value) for name, value in losses.items()},
    }


def draw_landscapes() -> None:
    """Draw assets/landscapes.png, and write its figures to results/landscapes.json."""
    import matplotlib
    import numpy as np
    import torch

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = {model: pool.apply(train_critic, (model,)) for model in TITLES}
    points = draw_points(400, torch.Generator().manual_seed(1))[:, :, 0, 0].numpy()
    figure = plt.figure(figsize=(12, 7.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    for axes, (model, one) in zip(upper.subplots(1, 3), found.items(), strict=True):
        reach = (-SIDE, SIDE, -SIDE, SIDE)
        picture = axes.imshow(one["heights"], origin="lower", extent=reach, cmap="viridis")
        axes.contour(one["heights"], 12, extent=reach, colors="white", linewidths=0.5, alpha=0.6)
        axes.scatter(*points.T, s=4, color="tab:orange")
        axes.set_title(TITLES[model])
        axes.set_xticks([])
        axes.set_yticks([])
        figure.colorbar(picture, ax=axes, shrink=0.8)
    left, middle, right = lower.subplots(1, 3)
    left.hist(found["WGAN"]["weights"], np.linspace(-0.0105, 0.0105, 64), color="tab:blue")
    left.set_title("WGAN: where the weights lie")
    left.set_xlabel("weight; clipped to [-0.01, 0.01]")
    middle.hist(found["WGAN-GP"]["weights"], np.linspace(-0.15, 0.15, 64), color="tab:green")
    middle.set_title("WGAN-GP: where the weights lie")
    middle.set_xlabel("weight")
    bins = np.geomspace(1e-6, 1e1, 80)
    for model, colour in (("WGAN", "tab:blue"), ("WGAN-GP", "tab:green")):
        right.hist(found[model]["slopes"], bins, color=colour, label=model)
    right.axvline(1, color="black", linewidth=1)
    right.set_xscale("log")
    right.set_title("slopes between real and generated points")
    right.set_xlabel("length of the critic's gradient")
    right.legend()
    for axes in (left, middle, right):
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    ASSETS.mkdir(exist_ok=True)
    figure.savefig(ASSETS / "landscapes.png", dpi=80)
    clipped = np.isclose(np.abs(found["WGAN"]["weights"]), 0.01).mean()
    record = {"command": "python results/figures.py landscapes", "torch": torch.__version__}
    record |= {"critic_updates": STEPS, "weights_at_the_bound": round(float(clipped), 3)}
    for model, one in found.items():
        record[f"{model}_median_slope"] = float(f"{np.median(one['slopes']):.3g}")
        record[f"{model}_last"] = {name: float(f"{v:.4g}") for name, v in one["last"].items()}
    (TOP / "results" / "landscapes.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def draw_curves(run: str = "quick-faces") -> None:
    """Draw assets/curves.png: each model's curves against images and against seconds."""
    import matplotlib
    import pandas as pd

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter

    figure, axes = plt.subplots(4, 2, figsize=(10, 10), layout="constrained", sharey="row")
    for row, model in zip(axes, MODELS, strict=True):
        table = pd.read_csv(TOP / "results" / model / run / "metrics.csv")
        shown = ("loss_d", "loss_g") if model in ("simpleGAN", "DCGAN") else ("wasserstein",)
        for ax, against in zip(row, ("images", "seconds"), strict=True):
            for name, colour in zip(shown, ("tab:blue", "tab:orange"), strict=False):
                ax.plot(table[against], table[name], color=colour, alpha=0.25, linewidth=1)
                smooth = table[name].rolling(9, min_periods=1, center=True).mean()
                ax.plot(table[against], smooth, color=colour, label=name)
            ax.set_xlabel(f"{against} shown" if against == "images" else "seconds of training")
            ax.spines[["top", "right"]].set_visible(False)
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
        row[0].set_title(model, loc="left", fontweight="bold")
        row[0].legend(frameon=False)
    ASSETS.mkdir(exist_ok=True)
    figure.savefig(ASSETS / "curves.png", dpi=80)
    print(f"wrote {ASSETS / 'curves.png'}")


def table_of_race() -> str:
    """Lay out the race on record as Markdown: means and sample standard deviations over seeds."""
    race = TOP / "results" / "race"
    record = json.loads((race / "race.json").read_text())
    with open(race / "race.csv", newline="") as file:
        runs = list(csv.DictReader(file))
    forms = {"steps": ",.0f", "images": ",.0f", "swd": ".4f", "diversity": ".3f"}
    forms |= {"repetition": ".3f", "memorisation": ".3f"}
    rows = ["| model | " + " | ".join(forms) + " |", "|---" * (1 + len(forms)) + "|"]
    for model in MODELS:
        means = record["means"][model]
        cells = [
            f"{means[name]['mean']:{form}} ± {means[name]['spread']:{form}}"
            for name, form in forms.items()
        ]
        rows.append(f"| {model} | {' | '.join(cells)} |")
    floors = []
    for name, form in forms.items():
        values = [float(run[f"{name}_floor"]) for run in runs if f"{name}_floor" in run]
        floors.append(format(sum(values) / len(values), form) if values else "")
    rows.append(f"| real images | {' | '.join(floors)} |")
    return "\n".join(rows) + "\n"


def table_of_runs() -> str:
    """Lay out the runs on record as Markdown: their length, and the last evaluation of each."""
    shown = {"swd": ".3f", "diversity": ".2f", "repetition": ".2f"}
    rows = ["| run | images | steps | images shown | minutes | " + " | ".join(shown) + " |"]
    rows.append("|---" * (5 + len(shown)) + "|")
    for folder in (f for model in MODELS for f in sorted((TOP / "results" / model).iterdir())):
        facts, settings = (
            json.loads((folder / name).read_text()) for name in ("run.json", "parameters.json")
        )
        with open(folder / "metrics.csv", newline="") as file:
            last = list(csv.DictReader(file))[-1]
        size = f"{settings['image_size']}x{settings['image_size']}"
        cells = [f"{facts['model']}/{folder.name}", f"{Path(settings['data']).name} {size}"]
        cells += [f"{int(last['step']):,}", f"{int(last['images']):,}"]
        cells.append(f"{float(last['seconds']) / 60:.0f}")
        lines = (folder / "evaluation.jsonl").read_text().splitlines()
        metrics = json.loads(lines[-1])["metrics"]
        for name, form in shown.items():
            value, floor = (format(metrics[name][key], form) for key in ("value", "floor"))
            cells.append(f"{value} ({floor})")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def table_of_waiting() -> str:
    """Lay out as Markdown how long the quick runs took until their frames showed faces."""
    rows = ["| model | step | images shown | minutes |", "|---|---|---|---|"]
    for model, step in FACES_AT.items():
        with open(TOP / "results" / model / "quick-faces" / "metrics.csv", newline="") as file:
            row = next(row for row in csv.DictReader(file) if int(row["step"]) == step)
        minutes = float(row["seconds"]) / 60
        rows.append(f"| {model} | {step:,} | {int(row['images']):,} | {minutes:.1f} |")
    return "\n".join(rows) + "\n"


def record_run(run: Path) -> None:
    """Copy the small files of a run to results/, without what only its machine knows."""
    missing = [name for name in RECORDED if not (run / name).is_file()]
    if missing:
        raise SystemExit(f"{run} has no {', '.join(missing)}; train and evaluate it first")
    facts = json.loads((run / "run.json").read_text())
    facts.pop("cache", None)  # a path
    folder = TOP / "results" / facts["model"] / run.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
    settings = json.loads((run / "parameters.json").read_text())
    settings["data"], settings["data_dir"] = Path(settings["data"]).name, ""
    (folder / "parameters.json").write_text(json.dumps(settings, indent=2) + "\n")
    for name in RECORDED[2:]:
        shutil.copyfile(run / name, folder / name)
    print(f"wrote {folder}")


def halve_weights(run: Path) -> None:
    """Write a run's generator to assets/weights/ in half precision: good enough for pictures."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(run / "generator.safetensors", "pt") as file:
        about = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {k: v.half() if v.dtype == torch.float32 else v for k, v in weights.items()}
    out = ASSETS / "weights" / f"{json.loads(about['about'])['model']}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, out, about)
    print(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB")


def draw_final() -> None:
    """Draw assets/final.png: real pictures, and what the weights in assets/ make of one noise."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision.utils import make_grid

    sys.path.insert(0, str(TOP))
    from make_gif import label_strip
    from runs import load_file_of, load_generator

    side, count = 64, 40  # smaller pictures are enlarged
    shown = {"real (drawn)": np.stack(list(load_file_of("DCGAN", "data").draw_faces(count, side)))}
    for model in MODELS:
        generator, about = load_generator(ASSETS / "weights" / f"{model}.safetensors")
        noise = about["arguments"]["z_dim"]
        z = torch.randn(count, noise, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            images = ((generator(z) + 1) * 127.5).round().to(torch.uint8)
        images = images.movedim(1, 3).numpy()
        label, times = f"{model}, step {about['step']:,}", side // images.shape[1]
        if times > 1:
            label += f", {side // times}x{side // times}"
        shown[label] = images.repeat(times, 1).repeat(times, 2)
    panels = []
    for label, images in shown.items():
        grid = make_grid(torch.from_numpy(images).movedim(3, 1), nrow=5, pad_value=255)
        strip = label_strip(grid.shape[2], label)
        panels.append(np.concatenate([np.asarray(strip), grid.movedim(0, 2).numpy()]))
        panels.append(np.full((len(panels[0]), 12, 3), 255, np.uint8))
    Image.fromarray(np.concatenate(panels[:-1], axis=1)).save(ASSETS / "final.png", optimize=True)
    print(f"wrote {ASSETS / 'final.png'}")


DRAWN = {
    "landscapes": draw_landscapes,
    "curves": draw_curves,
    "table": lambda: print(table_of_runs(), end=""),
    "race": lambda: print(table_of_race(), end=""),
    "waiting": lambda: print(table_of_waiting(), end=""),
    "record": record_run,
    "weights": halve_weights,
    "final": draw_final,
}


def main() -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=DRAWN)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run, for record and weights")
    arguments = parser.parse_args()
    if arguments.what in ("record", "weights") and not arguments.run:
        parser.error(f"{arguments.what}: of which run?")
    DRAWN[arguments.what](*[arguments.run] * (arguments.what in ("record", "weights")))


if __name__ == "__main__":
    main()
