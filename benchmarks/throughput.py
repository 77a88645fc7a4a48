"""Measure training speed: textbook loops, ours, and the limit that the machine sets.

All have the same networks, of the papers' size, and minibatches of the same size:

  fresh   what most repositories do: JPEGs decoded by the workers of a DataLoader, default
          optimizers in float32, the critic's gradients computed in the generator's step, losses
          read at every step; each update of either network has fakes of its own
  reused  the fastest textbook loop: one minibatch of fakes serves both networks, one of real
          images serves all critic steps (fewer than the papers take), and no loss is read
  ours    the folder's train.py
  limit   the convolutions and matrix products within our steps, without all else

Example: python benchmarks/throughput.py --models DCGAN --rounds 3 --out throughput.json

Each loop has a process of its own, since memory settings hold for a whole process. They take
turns over several rounds and never run at the same time.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.profiler import profile
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

HEAVY = {f"aten::{x}" for x in ("convolution", "convolution_backward", "mm", "addmm", "bmm")}
PROFILED = 3  # steps
TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))
from runs import PAPERS, load_file_of  # noqa: E402


def draw_jpegs(folder: Path, count: int) -> None:
    """Fill a folder with JPEGs of 178x218, the size of CelebA's."""
    folder.mkdir(parents=True)
    for i, face in enumerate(load_file_of("DCGAN", "data").draw_faces(count, 178)):
        tall = np.pad(face, ((20, 20), (0, 0), (0, 0)), "edge")
        Image.fromarray(tall).save(folder / f"{i:06d}.jpg", quality=90)


def rounds(orders: Connection) -> Iterator[None]:
    """Let a loop take as many steps as each order asks for, and answer with their seconds."""
    while count := orders.recv():
        began = time.perf_counter()
        for _ in range(count):
            yield
        orders.send(time.perf_counter() - began)


def textbook(model: str, images: Path, orders: Connection, reuse: bool) -> None:
    """Take the steps of a textbook loop as they are ordered."""
    config = load_file_of(model, "train").Config()
    steps = textbook_steps(model, config, textbook_batches(images, config), reuse)
    for _ in rounds(orders):
        next(steps)


def textbook_steps(
    model: str, config: Any, batches: Iterator[torch.Tensor], reuse: bool
) -> Iterator[torch.nn.Module]:
    """Train as most repositories do, with `reuse` as the fastest of them; yield the generator."""
    train, wasserstein = load_file_of(model, "train"), model.startswith("WGAN")
    generator = train.Generator(config.z_dim, config.image_size, 3, config.g_width)
    dropout = (config.dropout,) if hasattr(config, "dropout") else ()
    kind = getattr(train, "Critic", None) or train.Discriminator
    critic = kind(config.image_size, 3, config.d_width, *dropout)
    optimizer, options = torch.optim.RMSprop, {"lr": config.lr}
    if model != "WGAN":
        optimizer, options["betas"] = torch.optim.Adam, (config.beta1, config.beta2)
    optimizers = [optimizer(network.parameters(), **options) for network in (critic, generator)]

    def loss_of(images: torch.Tensor, target: int) -> torch.Tensor:
        scores = critic(images)
        if wasserstein:
            return scores.mean() * (1 - 2 * target)
        return bce(scores, torch.full_like(scores, target))

    def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not reuse:
            loss.item()

    while True:
        for i in range(getattr(config, "n_critic", 1)):
            if i == 0 or not reuse:
                real = next(batches)
                fake = generator(torch.randn(len(real), config.z_dim))
            loss_d = loss_of(real, 1) + loss_of(fake.detach(), 0)
            if model == "WGAN-GP":
                epsilon = torch.rand(len(real), 1, 1, 1)
                x_hat = (epsilon * real + (1 - epsilon) * fake.detach()).requires_grad_()
                (gradient,) = torch.autograd.grad(critic(x_hat).sum(), x_hat, create_graph=True)
                slope = gradient.flatten(1).norm(dim=1)
                loss_d = loss_d + config.lambda_gp * ((slope - 1) ** 2).mean()
            update(optimizers[0], loss_d)
            if model == "WGAN":
                for parameter in critic.parameters():
                    parameter.data.clamp_(-config.clip_value, config.clip_value)
        if not reuse:
            fake = generator(torch.randn(len(real), config.z_dim))
        update(optimizers[1], loss_of(fake, 1))
        yield generator


def textbook_batches(images: Path, config: Any) -> Iterator[torch.Tensor]:
    """Yield endless minibatches of images that are decoded anew in each epoch."""
    side, half = config.image_size, [0.5] * 3
    crop = [transforms.Resize(side), transforms.CenterCrop(side)]
    scale = [transforms.ToTensor(), transforms.Normalize(half, half)]
    found = datasets.ImageFolder(str(images.parent), transforms.Compose(crop + scale))
    workers = {"num_workers": min(8, os.cpu_count()), "drop_last": True}
    loader = DataLoader(found, config.batch_size, shuffle=True, **workers)
    while True:
        yield from (real for real, _ in loader)


def ours(model: str, images: Path, orders: Connection, precision: str) -> None:
    """Run the folder's own `train`; only the pauses of its run folder are left out."""
    import resource

    train, facts = load_file_of(model, "train"), {}

    class Timed(train.Run):
        def steps(self) -> Iterator[int]:
            for _ in rounds(orders):
                yield 1
            facts["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            facts["images_per_step"] = self.images_per_step
            facts["precision"] = self.config.precision
            with profile() as profiled:
                yield from [1] * PROFILED
            heavy = [one for one in profiled.key_averages() if one.key in HEAVY]
            facts["limit"] = sum(one.cpu_time_total for one in heavy) / 1e6 / PROFILED

    train.Run = Timed
    with tempfile.TemporaryDirectory() as folder:
        places = {"data": str(images), "data_dir": folder, "runs_dir": folder}
        train.train(replace(train.Config(), device="cpu", precision=precision, **places))
    orders.send(facts)


def seconds_per_step(orders: Connection, steps: int) -> float:
    """Let a loop take steps."""
    orders.send(steps)
    return orders.recv() / steps


def measure(model: str, images: Path, precision: str, turns: int, seconds: float) -> dict:
    """Compare the loops on one model, in turn; return the figures."""
    context, workers, processes, steps = multiprocessing.get_context("spawn"), {}, [], {}
    loops = {"fresh": partial(textbook, reuse=False), "reused": partial(textbook, reuse=True)}
    loops["ours"] = partial(ours, precision=precision)
    for name, loop in loops.items():
        workers[name], there = context.Pipe()
        processes.append(context.Process(target=loop, args=(model, images, there)))
        processes[-1].start()
    for name, orders in workers.items():  # the first step warms up
        _, took = (seconds_per_step(orders, 1) for _ in range(2))
        steps[name] = max(1, round(seconds / took))
    times = {name: [] for name in loops}
    for _ in range(turns):
        for name, orders in workers.items():
            times[name].append(seconds_per_step(orders, steps[name]))
    workers["ours"].send(0)  # the rivals wait while it takes more steps, for the limit
    facts = workers["ours"].recv()
    for name in ("fresh", "reused"):
        workers[name].send(0)
    figures = {"model": model, "precision": facts["precision"]}
    for process in processes:
        process.join()
    for name, taken in times.items():
        rate = facts["images_per_step"] / statistics.median(taken)
        figures[f"{name}_seconds_per_step"] = [round(t, 4) for t in taken]
        figures[f"{name}_images_per_second"] = round(rate, 1)
    for name in ("fresh", "reused"):
        pairs = [b / a for a, b in zip(times["ours"], times[name], strict=True)]
        figures[f"ratio_{name}"] = round(statistics.median(pairs), 2)
    figures["limit_seconds_per_step"] = round(facts["limit"], 4)
    figures["share_of_limit"] = round(facts["limit"] / statistics.median(times["ours"]), 3)
    figures["peak_memory_gb"] = round(facts["peak"] / 1e9, 2)
    return figures


def save(figures: Any, out: Path | None) -> None:
    """Write figures as JSON, with the command and the machine; start.py uses it, too."""
    info, processor = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if info.exists() and (named := re.search(r"model name\s*: (.*)", info.read_text())):
        processor = named[1]
    facts = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{os.cpu_count()} cores, {processor}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "figures": figures,
    }
    if out:
        out.write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    """Measure what the command line asks for."""
    parser, figures = argparse.ArgumentParser(description=__doc__.splitlines()[0]), []
    parser.add_argument("--models", nargs="+", choices=PAPERS, default=PAPERS)
    parser.add_argument("--rounds", type=int, default=5, help="of each loop, in turn (default: 5)")
    parser.add_argument("--seconds", type=float, default=8, help="of a round (default: 8)")
    parser.add_argument("--precision", default="auto", help="of ours (default: auto)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images" / "all"
        draw_jpegs(images, 1000)
        for model in args.models:
            figures.append(measure(model, images, args.precision, args.rounds, args.seconds))
            print(json.dumps(figures[-1]), flush=True)
    save(figures, args.out)


if __name__ == "__main__":
    main()
