"""Draw the figures of the README, print its tables, and keep the runs that both are made of.

Examples:
    python results/figures.py landscapes      assets/landscapes.png, several minutes
    python results/figures.py curves          assets/curves.png, from results/MODEL/quick-faces/
    python results/figures.py final           assets/final.png, images by the included weights
    python results/figures.py celeba          assets/celeba.png, by those trained on celebrities
    python results/figures.py front           assets/front.png, four of these for each model, large
    python results/figures.py table           the runs in results/, a table for each set of images
    python results/figures.py race            the races in results/race/
    python results/figures.py default         the runs in results/MODEL/default/ at five steps
    python results/figures.py quick           what other settings of quick.json give
    python results/figures.py waiting         the time until the quick runs showed faces
    python results/figures.py precision       images after training in float32 and in bfloat16
    python results/figures.py peers           our images and rivals' after equal seconds
    python results/figures.py record RUN      results/MODEL/NAME/, small files and the last frame
    python results/figures.py record RACE     results/race/DATA/: its numbers and last grids
    python results/figures.py weights RUN     assets/weights/MODEL[-RUN].safetensors, half precision

All of it is about the four models of the papers. For the landscapes three critics are trained by
the folders' own steps on points (B, 2, 1, 1) in place of images. As in figure 1 of the WGAN-GP's
paper (arXiv:1704.00028, section 4) the generator is fixed: it returns real points with Gaussian
noise added, so the figure shows the critic that each paper asks for.
"""

import json
import shutil
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Adam, RMSprop

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))  # for the scripts there

import runs  # noqa: E402
from compare import read_runs  # noqa: E402
from generate import grid  # noqa: E402
from make_gif import label_strip  # noqa: E402

ASSETS, RESULTS, MODELS = TOP / "assets", TOP / "results", runs.PAPERS
RECORDED = ("run.json", "parameters.json", "metrics.csv", "evaluation.jsonl")
FORMS = {"steps": ",.0f", "images": ",.0f", "frechet_lite0": ".1f", "swd": ".3f"}
FORMS |= {"diversity": ".2f", "repetition": ".2f"}
QUALITY = list(FORMS)[2:]
TITLES = {"simpleGAN": "GAN: the logit of D(x)", "WGAN": "WGAN: f(x), weights clipped at ±0.01"}
TITLES |= {"WGAN-GP": "WGAN-GP: f(x), gradient norm held near 1"}
# The step from which on most images in the frames of the quick run are faces, by eye.
FACES_AT = {"simpleGAN": 3000, "DCGAN": 500, "WGAN": 600, "WGAN-GP": 340}
STEPS = 4000  # critic updates; with fewer or smaller ones the critic does not fit the penalty
SIDE = 2.4  # the landscapes reach from -SIDE to SIDE
SHOWN = 40  # images by each generator


# ---- Figures ----


def draw_points(count: int, rng: torch.Generator) -> Tensor:
    """Draw from 8 Gaussians on a circle: float32 (count, 2, 1, 1).

    Radius 2 and standard deviation 0.02, all divided by 1.414, as in the WGAN-GP's own code.
    """
    angles = torch.randint(8, (count,), generator=rng) * torch.pi / 4
    centers = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    return ((centers + 0.02 * torch.randn(count, 2, generator=rng)) / 1.414)[:, :, None, None]


def train_critic(model: str) -> dict:
    """Train one critic to the end, with the steps of its train.py; return what is drawn of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)

    class Blurred(nn.Module):
        """A fixed generator: real points, each moved by its noise z (B, 2)."""

        def forward(self, z: Tensor) -> Tensor:
            return draw_points(len(z), rng) + z[:, :, None, None]

    layers = [nn.Flatten(), nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
    layers += [nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1), nn.Flatten(0)]
    critic, train = nn.Sequential(*layers), runs.load_file_of(model, "train")
    config = train.Config(z_dim=2)
    optimizer = Adam(critic.parameters(), 1e-3, (0.5, 0.9))
    if model == "WGAN":
        optimizer = RMSprop(critic.parameters(), 1e-4)
    step = getattr(train, "critic_step", None) or train.discriminator_step
    for _ in range(STEPS):
        losses = step(critic, Blurred(), optimizer, draw_points(256, rng), config)

    axis = torch.linspace(-SIDE, SIDE, 200)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="xy")).flatten(1).T[:, :, None, None]
    with torch.no_grad():
        heights = critic(places).view(200, 200)
    real, fake = draw_points(2000, rng), Blurred()(torch.randn(2000, 2))
    x_hat = torch.lerp(fake, real, torch.rand(2000, 1, 1, 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x_hat).sum(), x_hat)
    return {
        "heights": heights.numpy(),
        "weights": torch.cat([p.detach().flatten() for p in critic.parameters()]).numpy(),
        "norms": gradient.flatten(1).norm(dim=1).numpy(),
        "last": {name: float(f"{float(value):.4g}") for name, value in losses.items()},
    }


def draw_landscapes() -> None:
    """Draw assets/landscapes.png, and write its numbers to results/landscapes.json."""
    found = {model: train_critic(model) for model in TITLES}
    points = draw_points(400, torch.Generator().manual_seed(1))[:, :, 0, 0].numpy()
    figure = plt.figure(figsize=(12, 7.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    for axes, (model, one) in zip(upper.subplots(1, 3), found.items(), strict=True):
        reach = (-SIDE, SIDE, -SIDE, SIDE)
        picture = axes.imshow(one["heights"], origin="lower", extent=reach, cmap="viridis")
        axes.contour(one["heights"], 12, extent=reach, colors="white", linewidths=0.5, alpha=0.6)
        axes.scatter(*points.T, s=4, color="tab:orange")
        axes.set(title=TITLES[model], xticks=[], yticks=[])
        figure.colorbar(picture, ax=axes, shrink=0.8)
    *weights, right = lower.subplots(1, 3)
    colors, bounds = {"WGAN": "tab:blue", "WGAN-GP": "tab:green"}, (0.0105, 0.15)
    for axes, bound, (model, color) in zip(weights, bounds, colors.items(), strict=True):
        axes.hist(found[model]["weights"], np.linspace(-bound, bound, 64), color=color)
        axes.set(title=f"{model}: where the weights lie", xlabel="weight")
        right.hist(found[model]["norms"], np.geomspace(1e-6, 1e1, 80), color=color, label=model)
    weights[0].set_xlabel("weight; clipped to [-0.01, 0.01]")
    right.axvline(1, color="black", linewidth=1)
    right.set(title="gradient norms between the two", xscale="log")
    right.set_xlabel("norm, between real and generated points")
    right.legend()
    for axes in (*weights, right):
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(ASSETS / "landscapes.png", dpi=80)
    clipped = np.isclose(np.abs(found["WGAN"]["weights"]), 0.01).mean()
    record = {"command": "python results/figures.py landscapes", "torch": torch.__version__}
    record |= {"critic_updates": STEPS, "weights_at_the_bound": round(float(clipped), 3)}
    for model, one in found.items():
        record[f"{model}_median_norm"] = float(f"{np.median(one['norms']):.3g}")
        record[f"{model}_last"] = one["last"]
    (RESULTS / "landscapes.json").write_text(json.dumps(record, indent=2) + "\n")


def draw_curves() -> None:
    """Draw assets/curves.png: each model's curves against images and against seconds."""
    figure, axes = plt.subplots(4, 2, figsize=(10, 10), layout="constrained", sharey="row")
    for row, model in zip(axes, MODELS, strict=True):
        table = pd.read_csv(RESULTS / model / "quick-faces" / "metrics.csv")
        shown = ("loss_d", "loss_g") if model in ("simpleGAN", "DCGAN") else ("wasserstein",)
        for ax, against in zip(row, ("images", "seconds"), strict=True):
            for name, color in zip(shown, ("tab:blue", "tab:orange"), strict=False):
                ax.plot(table[against], table[name], color=color, alpha=0.25, linewidth=1)
                smooth = table[name].rolling(9, min_periods=1, center=True).mean()
                ax.plot(table[against], smooth, color=color, label=name)
            ax.set_xlabel("images shown" if against == "images" else "seconds of training")
            ax.spines[["top", "right"]].set_visible(False)
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
        row[0].set_title(model, loc="left", fontweight="bold")
        row[0].legend(frameon=False)
    figure.savefig(ASSETS / "curves.png", dpi=80)


def draw_final() -> None:
    """Draw assets/final.png: real images, and what the weights in assets/ make of one noise."""
    faces = runs.load_file_of("DCGAN", "data").draw_faces(SHOWN, 64)
    draw_generators("final.png", {"training images": np.stack(list(faces))}, "")


def draw_front() -> None:
    """Draw assets/front.png: the first four celebrity faces of each model, large."""
    panels = {}
    for model in MODELS:
        images, _ = draw_images(f"{model}-celeba", 4)
        large = grid(images, 2, side=1, gap=0).resize((256, 256), Image.Resampling.LANCZOS)
        panels[model] = np.asarray(large)
    save_panels(panels, ASSETS / "front.png")


def draw_images(name: str, count: int) -> tuple[np.ndarray, int]:
    """Draw what included weights make of one noise: uint8 (count, H, W, C); and their step."""
    generator, about = runs.load_generator(ASSETS / "weights" / f"{name}.safetensors")
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        images = generator(torch.randn(count, about["z_dim"], generator=rng))
    return ((images + 1) * 127.5).round().byte().movedim(1, 3).numpy(), about["step"]


def draw_generators(name: str, shown: dict[str, np.ndarray], suffix: str) -> None:
    """Draw images side by side, and those of each model's generator in assets/weights/."""
    for model in MODELS:
        images, step = draw_images(model + suffix, SHOWN)
        size = images.shape[1]
        label = f"{model}, step {step:,}" + f", {size}x{size}" * (size < 64)
        shown[label] = images.repeat(64 // size, 1).repeat(64 // size, 2)  # all enlarged to 64
    sheets = {label: np.asarray(grid(images, 5, side=1)) for label, images in shown.items()}
    save_panels(sheets, ASSETS / name)


def save_panels(sheets: dict[str, np.ndarray], out: Path) -> None:
    """Save images of one size, uint8 (H, W, 3), side by side, with their names on top."""
    panels = []
    for label, sheet in sheets.items():
        panels.append(np.concatenate([label_strip(sheet.shape[1], label), sheet]))
        panels.append(np.full((len(panels[0]), 12, 3), 255, np.uint8))
    Image.fromarray(np.concatenate(panels[:-1], axis=1)).save(out, optimize=True)


# ---- Tables ----


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |".replace("| --- ", "|---").replace("--- |", "---|"))


def cells(names: list[str], *values: pd.Series, between: str = " ± ") -> list[str]:
    """Format each of these numbers, those of several series in one cell."""
    return [between.join(format(x[name], FORMS[name]) for x in values) for name in names]


def print_race() -> None:
    """Print the races on record: means and sample standard deviations over seeds."""
    names = ["steps", "images", *QUALITY]
    for race in sorted((RESULTS / "race").iterdir()):
        table = pd.read_csv(race / "race.csv").rename(columns={"step": "steps"})
        models = table.groupby("model")[names]
        rows = [[m, *cells(names, models.mean().loc[m], models.std().loc[m])] for m in MODELS]
        floors = table.filter(regex="_floor$").mean().rename(lambda n: n.removesuffix("_floor"))
        print(f"On `{race.name}`:\n")
        print_table(["model", *names], [*rows, ["real images", "", "", *cells(QUALITY, floors)]])
        print()


def print_runs() -> None:
    """Print the runs on record, one table for what was compared with equally many equal images."""
    tables: dict[str, list] = {}
    folders = [f for model in MODELS for f in sorted((RESULTS / model).iterdir())]
    for run in read_runs([f for f in folders if f.name != "fashion"]):  # which the race has
        last, size = run.rows.iloc[-1], run.settings["image_size"]
        rates = [*run.facts.get("lr_until_step", {}).values(), run.settings["lr"]]
        row = [f"{run.model}/{run.path.name}", ", then ".join(f"{lr:g}" for lr in rates)]
        row += [f"{last['step']:,.0f}", f"{last['seconds'] / 60:.0f}"]
        found = [(run.evaluation["metrics"].get(name), FORMS[name]) for name in QUALITY]
        row += [f"{x['value']:{form}} ({x['floor']:{form}})" if x else "" for x, form in found]
        title = f"`{run.settings['data']}` at {size}x{size}, {run.evaluation['num']:,} images:"
        tables.setdefault(title, []).append(row)
    for title, rows in sorted(tables.items()):
        print(f"{title}\n")
        print_table(["run", "lr", "steps", "minutes", *QUALITY], rows)
        print()


def print_peers() -> None:
    """Print the pairs of results/peers.csv: ours, then the rival that ran beside it."""
    names, rows = [name for name in ("steps", *QUALITY) if name != "diversity"], []
    table = pd.read_csv(RESULTS / "peers.csv")
    for (seconds, seed), pair in table.groupby(["seconds", "seed"]):
        ours, rival = (found for _, found in pair.iterrows())
        rows.append([f"{seconds // 60} min", str(seed), *cells(names, ours, rival, between=" / ")])
    print_table(["after", "seed", *names], rows)


def print_precision() -> None:
    """Print means and sample standard deviations over the seeds of results/precision.csv."""
    names, rows = ["steps", "frechet_lite0", "swd"], []
    table = pd.read_csv(RESULTS / "precision.csv")
    # Of each seed: float32, bfloat16, and float32 again (left out) when it had taken as many steps.
    for model, found in table.groupby("model", sort=False):
        for i, kind in enumerate(("fp32", "bf16")):
            each = found.iloc[i::3][names]
            rows.append([model, kind, *cells(names, each.mean(), each.std())])
    print_table(["model", "precision", *names], rows)


def print_default() -> None:
    """Print what the runs with the settings of `Config` logged at each fifth of the way."""
    shown, rows = ["d_real", "d_fake", "wasserstein"], []
    for model in MODELS:
        table = pd.read_csv(RESULTS / model / "default" / "metrics.csv")
        fifths = table.iloc[[len(table) * i // 5 - 1 for i in range(1, 6)]]
        step, seconds = fifths.iloc[-1][["step", "seconds"]]
        row = [model, f"{step:,.0f}", f"{seconds / 60:.0f}"]
        rows.append(row + [", ".join(map("{:.2f}".format, fifths.get(x, []))) for x in shown])
    print_table(["model", "steps", "minutes", *shown], rows)


def print_quick() -> None:
    """Print results/quick.csv: quick runs with other settings, all seeds of one in a row."""
    names, rows = ["steps", "frechet_lite0", "repetition"], []
    table = pd.read_csv(RESULTS / "quick.csv").sort_values("seed")
    for model in MODELS:
        for (n_critic, lr), found in table[table.model == model].groupby(["n_critic", "lr"]):
            seeds = [run for _, run in found.iterrows()]
            about = [model, str(n_critic), f"{lr:g}"]
            rows.append([*about, *cells(names, *seeds, between=" / ")])
    print_table(["model", "n_critic", "lr", *names], rows)


def print_waiting() -> None:
    """Print how long the quick runs took until their frames showed faces."""
    rows = []
    for model, step in FACES_AT.items():
        table = pd.read_csv(RESULTS / model / "quick-faces" / "metrics.csv", index_col="step")
        images, seconds = table.loc[step, ["images", "seconds"]]
        rows.append([model, f"{step:,}", f"{images:,.0f}", f"{seconds / 60:.1f}"])
    print_table(["model", "step", "images shown", "minutes"], rows)


# ---- Records ----


def record(run: Path) -> None:
    """Copy the small files and the last grids of a run or a race to results/, without paths."""
    if (run / "race.json").is_file():
        return record_race(run)
    if missing := [name for name in RECORDED if not (run / name).is_file()]:
        raise SystemExit(f"{run} has no {', '.join(missing)}; train and evaluate it first")
    facts, settings = (json.loads((run / name).read_text()) for name in RECORDED[:2])
    facts.pop("cache", None)  # a path
    settings["data"], settings["data_dir"] = Path(settings["data"]).name, ""
    folder = RESULTS / facts["model"] / run.name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "frames").mkdir(parents=True)
    for name, content in zip(RECORDED, (facts, settings), strict=False):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    frames = runs.frames_of(run)
    shutil.copy(frames[-1], folder / "frames")
    for name in RECORDED[2:]:
        shutil.copyfile(run / name, folder / name)
    if run.name == "default":  # a quarter of five frames, evenly spaced
        shown = [frames[(len(frames) - 1) * i // 5] for i in range(1, 6)]
        grids = {f"step {int(file.stem):,}": np.asarray(Image.open(file)) for file in shown}
        quarters = {k: g[: len(g) // 2 + 1, : len(g) // 2 + 1] for k, g in grids.items()}
        save_panels(quarters, folder / "progress.png")


def record_race(race: Path) -> None:
    """Copy the numbers of a race and the last grid of each model's first run."""
    data = runs.read_json(race / "race.json", "conditions")["conditions"]["data"]
    folder = RESULTS / "race" / Path(data).stem
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("race.json", "race.csv"):
        shutil.copyfile(race / name, folder / name)
    frames = {model: runs.frames_of(race / f"{model}-0")[-1] for model in MODELS}
    sheets = {f"{m}, step {int(f.stem):,}": Image.open(f) for m, f in frames.items()}
    save_panels({k: np.asarray(v.convert("RGB")) for k, v in sheets.items()}, folder / "last.png")


def halve_weights(run: Path) -> None:
    """Write a run's generator to assets/weights/ in half precision, which is enough for images.

    It is called MODEL, or MODEL-RUN if it was not trained on the drawn faces.
    """
    with safe_open(run / "generator.safetensors", "pt") as file:
        about = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {k: v.half() if v.dtype == torch.float32 else v for k, v in weights.items()}
    name = json.loads(about["about"])["model"]
    if runs.read_settings(run)["data"] != "faces":
        name += f"-{run.name}"
    save_file(weights, ASSETS / "weights" / f"{name}.safetensors", about)


def main() -> None:
    """Draw, print or keep what the command line asks for."""
    made = {"landscapes": draw_landscapes, "curves": draw_curves, "final": draw_final}
    made |= {"celeba": partial(draw_generators, "celeba.png", {}, "-celeba"), "table": print_runs}
    made |= {"race": print_race, "waiting": print_waiting, "precision": print_precision}
    made |= {"peers": print_peers, "front": draw_front, "default": print_default}
    made |= {"quick": print_quick}
    kept = {"record": record, "weights": halve_weights}
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*made, *kept])
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run, for record and weights")
    arguments = parser.parse_args()
    if arguments.what in made:
        made[arguments.what]()
    elif arguments.run:
        kept[arguments.what](arguments.run)
    else:
        parser.error(f"{arguments.what}: of which run?")


if __name__ == "__main__":
    main()
