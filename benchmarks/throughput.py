"""Measure training speed: a textbook loop, ours, and the limit that the machine sets.

Same networks, same minibatch, the paper's sizes, in turn over several rounds:

  textbook  what most repositories do: JPEGs decoded by a DataLoader's workers, optimisers as they
            come, the generator's graph kept in the critic's step, gradients of the
            discriminator computed in the generator's, losses read at every step
  ours      the folder's train.py
  limit     every convolution and matrix product of one of our steps, timed alone

Examples:
    python benchmarks/throughput.py
    python benchmarks/throughput.py --models DCGAN --rounds 5 --out results/throughput.json

Each of the two loops has a process of its own, since memory settings hold for a whole process;
they never run at the same time.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

TOP = Path(__file__).resolve().parent.parent
MODELS = ("simpleGAN", "DCGAN", "WGAN", "WGAN-GP")


def import_folder(model: str) -> ModuleType:
    """Import the train.py of a model folder; a process does this for one folder alone."""
    sys.path.insert(0, str(TOP / model))
    return importlib.import_module("train")


def draw_jpegs(folder: Path, count: int) -> None:
    """Fill a folder with JPEGs of 178x218, the size of CelebA's."""
    import numpy as np
    from PIL import Image

    sys.path.insert(0, str(TOP / "DCGAN"))
    from data import draw_faces

    folder.mkdir(parents=True)
    for i, face in enumerate(draw_faces(count, 178)):
        tall = np.pad(face, ((20, 20), (0, 0), (0, 0)), "edge")
        Image.fromarray(tall).save(folder / f"{i:06d}.jpg", quality=90)


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    import torch

    if device != "cpu":
        torch.accelerator.synchronize()


def rounds(orders: Connection, device: str) -> Iterator[None]:
    """Let a loop make as many steps as are asked for, time them, and wait for the next order."""
    while count := orders.recv():
        synchronize(device)
        began = time.perf_counter()
        for _ in range(count):
            yield
        synchronize(device)
        orders.send(time.perf_counter() - began)


# ---- the two loops ----


def textbook(model: str, pictures: str, device: str, orders: Connection) -> None:
    """Train as most repositories do."""
    import torch
    from torch.nn import BCEWithLogitsLoss
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    train = import_folder(model)
    config = train.Config()
    generator = train.Generator(config.z_dim, config.image_size, 3, config.g_width).to(device)
    extra = (config.dropout,) if hasattr(config, "dropout") else ()
    opponent = getattr(train, "Critic", None) or train.Discriminator
    critic = opponent(config.image_size, 3, config.d_width, *extra).to(device)
    if model == "WGAN":
        kind, how = torch.optim.RMSprop, {}
    else:
        kind, how = torch.optim.Adam, {"betas": (config.beta1, config.beta2)}
    generator_optimizer = kind(generator.parameters(), config.lr, **how)
    critic_optimizer = kind(critic.parameters(), config.lr, **how)
    prepare = transforms.Compose(
        [
            transforms.Resize(config.image_size),
            transforms.CenterCrop(config.image_size),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    images = datasets.ImageFolder(str(Path(pictures).parent), prepare)
    loader = DataLoader(
        images, config.batch_size, shuffle=True, num_workers=min(8, os.cpu_count()), drop_last=True
    )
    bce, ones = BCEWithLogitsLoss(), torch.ones(config.batch_size, device=device)
    wasserstein = model.startswith("WGAN")
    n_critic, updates = getattr(config, "n_critic", 1), 0
    step = rounds(orders, device)
    next(step)
    while True:
        for real, _ in loader:
            real = real.to(device)
            fake = generator(torch.randn(len(real), config.z_dim, device=device))
            if wasserstein:
                loss_d = critic(fake.detach()).mean() - critic(real).mean()
            else:
                loss_d = bce(critic(real), ones) + bce(critic(fake.detach()), 0 * ones)
            if model == "WGAN-GP":
                epsilon = torch.rand(len(real), 1, 1, 1, device=device)
                x_hat = (epsilon * real + (1 - epsilon) * fake.detach()).requires_grad_()
                score = critic(x_hat)
                gradient = torch.autograd.grad(
                    score, x_hat, torch.ones_like(score), create_graph=True
                )[0]
                slope = gradient.view(len(real), -1).norm(2, dim=1)
                loss_d = loss_d + config.lambda_gp * ((slope - 1) ** 2).mean()
            critic_optimizer.zero_grad()
            loss_d.backward()
            critic_optimizer.step()
            loss_d.item()
            if model == "WGAN":
                for parameter in critic.parameters():
                    parameter.data.clamp_(-config.clip_value, config.clip_value)
            updates += 1
            if updates % n_critic:
                continue
            scores = critic(generator(torch.randn(len(real), config.z_dim, device=device)))
            loss_g = -scores.mean() if wasserstein else bce(scores, ones)
            generator_optimizer.zero_grad()
            loss_g.backward()
            generator_optimizer.step()
            loss_g.item()
            if next(step, "end") == "end":
                return


def ours(model: str, pictures: str, device: str, orders: Connection) -> None:
    """Run the folder's own `train`; only its run folder's pauses are left out of the steps."""
    train = import_folder(model)
    found = {}

    class Measured(train.Run):
        def steps(self) -> Iterator[int]:
            found["run"] = self
            for _ in rounds(orders, device):
                self.step += 1
                yield self.step
            found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            with recorded() as operations:  # one more step, written down
                yield self.step
            orders.send(time_alone(operations, device))

        def record(self, losses: dict) -> None:
            super().record(losses)
            if self.step % self.config.log_every == 0:
                {name: float(total) for name, total in self.sums.items()}

    train.Run = Measured
    with tempfile.TemporaryDirectory() as folder:
        places = {"data": pictures, "data_dir": folder, "runs_dir": folder}
        # no graph: the step that is written down must run as it is
        train.train(replace(train.Config(), device=device, **places))
        run = found["run"]
        weights = sum(
            tensor.nbytes for part in run.parts.values() for tensor in tensors_in(part.state_dict())
        )
        images = run.parts["batches"].images.nbytes
        orders.send({"peak": found["peak"], "images": images, "state": weights})


def tensors_in(state) -> Iterator:
    """Find all tensors in nested dictionaries and lists."""
    if hasattr(state, "nbytes"):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from tensors_in(value)


# ---- the limit ----


def recorded():
    """Write down every convolution and matrix product under this context, with its shapes."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    heavy = {
        torch.ops.aten.convolution.default,
        torch.ops.aten.convolution_backward.default,
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
    }

    class Recording(TorchDispatchMode):
        def __enter__(self):
            super().__enter__()
            self.operations = Counter()
            return self.operations

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in heavy:
                self.operations[function, tuple(describe(a) for a in args)] += 1
            return function(*args, **(kwargs or {}))

    return Recording()


def describe(argument):
    """Turn an argument into something that can be compared and made again."""
    import torch

    if isinstance(argument, torch.Tensor):
        return ("tensor", tuple(argument.shape), tuple(argument.stride()))
    return tuple(argument) if isinstance(argument, list) else argument


def time_alone(operations: Counter, device: str) -> float:
    """Add up the times of operations, each repeated by itself on tensors of the same shape."""
    import torch

    total = 0.0
    for (function, described), count in operations.items():
        arguments = []
        for argument in described:
            if isinstance(argument, tuple) and argument[:1] == ("tensor",):
                _, shape, stride = argument
                if 0 in stride:  # an expanded tensor
                    arguments.append(torch.randn(shape, device=device))
                else:
                    arguments.append(torch.empty_strided(shape, stride, device=device).normal_())
            else:
                arguments.append(list(argument) if isinstance(argument, tuple) else argument)
        times = []
        with torch.no_grad():
            for _ in range(4):
                synchronize(device)
                began = time.perf_counter()
                function(*arguments)
                synchronize(device)
                times.append(time.perf_counter() - began)
        total += count * statistics.median(times[1:])
    return total


# ---- the comparison ----


def measure(model: str, pictures: str, device: str, rounds_: int, seconds: float) -> dict:
    """Compare the loops on one model, in turn; return the figures."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for loop in (textbook, ours):
        here, there = context.Pipe()
        process = context.Process(target=loop, args=(model, pictures, device, there))
        process.start()
        workers[loop.__name__] = (here, process)
    times, steps = {"textbook": [], "ours": []}, {}
    for name, (orders, _) in workers.items():  # warm up, then choose how many steps make a round
        for count in (1, 5 if device != "cpu" else 1):
            orders.send(count)
            took = orders.recv() / count
        steps[name] = max(1, round(seconds / took))
    for _ in range(rounds_):
        for name, (orders, _) in workers.items():
            orders.send(steps[name])
            times[name].append(orders.recv() / steps[name])
    for orders, _ in workers.values():
        orders.send(0)
    limit = workers["ours"][0].recv()
    memory = workers["ours"][0].recv()
    for _, process in workers.values():
        process.join()
    shown = 64 * {"WGAN": 5, "WGAN-GP": 5}.get(model, 1)
    median = {name: statistics.median(taken) for name, taken in times.items()}
    pairs = [b / a for a, b in zip(times["ours"], times["textbook"], strict=True)]
    above = memory["peak"] - memory["images"] - memory["state"]
    return {
        "model": model,
        "textbook_seconds_per_step": [round(t, 4) for t in times["textbook"]],
        "ours_seconds_per_step": [round(t, 4) for t in times["ours"]],
        "textbook_images_per_second": round(shown / median["textbook"], 1),
        "ours_images_per_second": round(shown / median["ours"], 1),
        "ratio": round(statistics.median(pairs), 2),
        "limit_seconds_per_step": round(limit, 4),
        "share_of_limit": round(limit / median["ours"], 3),
        "peak_memory_gb": round(memory["peak"] / 1e9, 2),
        "memory_above_images_weights_and_optimisers_gb": round(above / 1e9, 2),
    }


def table(figures: list[dict]) -> str:
    """Write the figures as a Markdown table."""
    lines = [
        "| model | textbook images/s | ours images/s | ratio | share of the limit | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for f in figures:
        lines.append(
            f"| {f['model']} | {f['textbook_images_per_second']} | {f['ours_images_per_second']} "
            f"| {f['ratio']} | {f['share_of_limit']:.0%} | {f['peak_memory_gb']} GB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=5, help="of each loop, in turn (default: 5)")
    parser.add_argument("--seconds", type=float, default=8, help="of a round (default: 8)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    import torch

    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures" / "all"
        draw_jpegs(pictures, 1000)
        figures = []
        for model in arguments.models:
            size = arguments.device, arguments.rounds, arguments.seconds
            figures.append(measure(model, str(pictures), *size))
            print(json.dumps(figures[-1]), flush=True)
    facts = {
        "command": "python " + " ".join([str(Path(sys.argv[0])), *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {processor()}",
        "device": arguments.device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "figures": figures,
    }
    print(table(figures))
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


def processor() -> str:
    """Name the processor, where Linux tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
