"""Train a model and a rival side by side, one core each, and compare their images.

    python results/peers.py WGAN --image-size 32 --data FOLDER --seconds 300 --seed 0
    python results/peers.py DCGAN --rival examples/dcgan/main.py --data FOLDER --seed 0

The rival is the textbook loop of benchmarks/throughput.py in its fastest form, which has all
images in memory; or, by its main.py, the dcgan of https://github.com/pytorch/examples, which reads
PNGs of the right size. Networks and settings are those of quick.json on both sides, but for --lr;
both compute in float32. The rival's clock starts after its first step. At each of --seconds both
draw 2,000 images; what evaluate.py says of them goes to results/peers.csv, in place of what was
there of the same pair.
"""

import argparse
import copy
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

TOP = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP), str(TOP / "benchmarks")]
from throughput import textbook_steps  # noqa: E402

import evaluate  # noqa: E402
import generate  # noqa: E402
import runs  # noqa: E402

NUM, HOLD_OUT, Z_DIM = 2000, 500, 100
NUMBERS = ("frechet_lite0", "kernel_lite0", "swd", "diversity", "repetition")


def use_core(core: int) -> None:
    """Keep this process and those it starts on one core."""
    os.sched_setaffinity(0, {core})
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def draw(generator: nn.Module, file: Path, steps: int) -> None:
    """Save images of a generator, uint8 (N, H, W, C), and after how many steps it drew them."""
    zs = islice(generate.noise(0, Z_DIM), NUM)
    images = np.concatenate(list(generate.draw(generator.eval(), zs, 100)))
    np.savez(file, images=images, steps=steps)


def train_ours(args: argparse.Namespace, folder: Path) -> None:
    """Run train.py until each moment, and draw."""
    start = ["--config", "quick.json", "--epochs", "100000", "--image-size", str(args.image_size)]
    start += ["--data", args.data, "--data-dir", str(folder), "--hold-out", str(HOLD_OUT)]
    start += ["--channels", "3", "--lr", str(args.lr), "--seed", str(args.seed), "--name", "ours"]
    start += ["--precision", "fp32"]
    for seconds in args.seconds:
        command = [sys.executable, "train.py", *start, "--max-seconds", str(seconds)]
        subprocess.run([*command, "--runs-dir", str(folder)], cwd=TOP / args.model, check=True)
        generator, about = runs.load_generator(folder / "ours")
        draw(generator, folder / f"ours-{seconds}.npz", about["step"])
        start = ["--resume", "ours"]


class Over(Exception):
    """The last moment has come."""


def train_rival(args: argparse.Namespace, folder: Path, images: np.ndarray) -> None:
    """Run the rival until the last moment; draw with what its generator was at each."""
    use_core(args.seed % 2)
    torch.manual_seed(args.seed)
    kept, steps, began = [], 0, 0.0

    def note(generator: nn.Module) -> None:
        """Count a step, and keep a copy of the generator if it is time."""
        nonlocal steps, began
        steps, began = steps + 1, began or time.perf_counter()
        if time.perf_counter() - began >= args.seconds[len(kept)]:
            kept.append((copy.deepcopy(generator), steps))
            if len(kept) == len(args.seconds):
                raise Over

    try:
        (peer if args.rival else textbook)(args, folder, images, note)
    except Over:
        for seconds, (generator, taken) in zip(args.seconds, kept, strict=True):
            draw(generator, folder / f"rival-{seconds}.npz", taken)


def textbook(
    args: argparse.Namespace, folder: Path, images: np.ndarray, note: Callable[[nn.Module], None]
) -> None:
    """Run the textbook loop."""
    config = replace(runs.load_file_of(args.model, "train").Config(), **quick(args.model))
    config = replace(config, image_size=args.image_size, lr=args.lr)
    pixels = torch.from_numpy(images).movedim(3, 1).contiguous()

    def batches() -> Iterator[Tensor]:
        while True:
            for chosen in torch.randperm(len(pixels)).split(config.batch_size)[:-1]:
                yield pixels[chosen].float() / 127.5 - 1

    for generator in textbook_steps(args.model, config, batches(), "cpu", reuse=True):
        note(generator)


def peer(
    args: argparse.Namespace, folder: Path, images: np.ndarray, note: Callable[[nn.Module], None]
) -> None:
    """Run the main.py of pytorch/examples' dcgan."""
    (folder / "png" / "all").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / "png" / "all" / f"{i:06d}.png")
    names, updates = {"__name__": "__main__"}, count(1)

    def after(optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Note every other update: the generator's comes second."""
        if next(updates) % 2 == 0:
            note(nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), names["netG"]))

    register_optimizer_step_post_hook(after)
    settings = quick("DCGAN")
    sys.argv = ["main.py", "--dataset", "folder", "--dataroot", str(folder / "png")]
    sys.argv += ["--outf", str(folder), "--imageSize", "64", "--workers", "1", "--niter", "100000"]
    sys.argv += ["--manualSeed", str(args.seed), "--lr", str(args.lr)]
    sys.argv += ["--ngf", str(settings["g_width"]), "--ndf", str(settings["d_width"])]
    exec(compile(args.rival.read_text(), str(args.rival), "exec"), names)


def quick(model: str) -> dict:
    """Return the settings of a model's quick.json."""
    return json.loads((TOP / model / "quick.json").read_text())


def main() -> None:
    """Train both, compare both, and put their rows into the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=runs.MODELS[1:])
    parser.add_argument("--rival", type=Path, help="main.py of pytorch/examples' dcgan")
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--lr", type=float, help="of both (default: as in quick.json)")
    parser.add_argument("--seconds", type=int, nargs="+", default=[300, 1800])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.rival and (args.model, args.image_size) != ("DCGAN", 64):
        parser.error("--rival is for the DCGAN at 64x64 alone")
    args.lr = args.lr or quick(args.model)["lr"]
    args.data = str(Path(args.data).resolve())
    load_images = runs.load_file_of(args.model, "data").load_images
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = load_images(args.data, name, args.image_size, 3, 64, HOLD_OUT)
        spawn = multiprocessing.get_context("spawn")
        rival = spawn.Process(target=train_rival, args=(args, folder, np.array(dataset.images)))
        rival.start()
        use_core(1 - args.seed % 2)
        train_ours(args, folder)
        rival.join()
        chosen = np.random.default_rng(0).permutation(len(dataset.images))[:NUM]
        real, rows = dataset.images[chosen], []
        networks = {evaluate.lite0_distances: evaluate.load_lite0(torch.device("cpu"))}
        loops = {"ours": "ours", "rival": "pytorch/examples" if args.rival else "textbook"}
        for seconds in args.seconds:
            for side, loop in loops.items():
                with np.load(folder / f"{side}-{seconds}.npz") as found:
                    images, steps = found["images"], int(found["steps"])
                numbers = evaluate.measure(images, real, dataset.held_out, None, 0, networks)
                row = {"model": args.model, "image_size": args.image_size, "seed": args.seed}
                row |= {"lr": args.lr, "seconds": seconds, "loop": loop, "steps": steps}
                rows.append(row | {name: round(numbers[name]["value"], 4) for name in NUMBERS})
                print(json.dumps(rows[-1]), flush=True)
    table, pair = TOP / "results" / "peers.csv", ["model", "image_size", "lr", "seed", "seconds"]
    found = pd.concat([pd.read_csv(table), pd.DataFrame(rows)])
    found.drop_duplicates([*pair, "loop"], keep="last").to_csv(table, index=False)


if __name__ == "__main__":
    main()
