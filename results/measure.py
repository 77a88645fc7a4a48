"""Measure what takes long, and keep it in results/.

    python results/measure.py quick --model WGAN --lr 1e-4 --seconds 300 --seed 0
    python results/measure.py precision --model WGAN --data FOLDER --seconds 100 --seed 0
    python results/measure.py peers --main examples/dcgan/main.py --data FOLDER --seconds 1800

quick trains with quick.json, but for --lr or --n-critic. Its row goes to results/quick.csv.

precision trains with quick.json in float32 and in bfloat16 for --seconds, then goes on in float32
to as many steps as bfloat16 took. Its rows go to results/precision.csv.

peers trains our DCGAN and the dcgan of https://github.com/pytorch/examples (its main.py) side by
side at 64x64 in float32, one core each, with the networks and settings of quick.json but for --lr.
Both are timed by the same clock, which runs from the end of their first step and counts whatever
they do, such as logging and saving. After --seconds both draw 2,000 images, which are compared
with real ones. The rows go to results/peers.csv. Rows with the same settings are replaced.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))
import evaluate  # noqa: E402
import generate  # noqa: E402
import runs  # noqa: E402

NUM, HOLD_OUT = 2000, 500
NAMES = ["frechet_lite0", "kernel_lite0", "swd", "diversity", "repetition"]


def draw(generator: nn.Module, z_dim: int) -> np.ndarray:
    """Draw images, uint8 (N, H, W, C)."""
    zs = islice(generate.noise(0, z_dim), NUM)
    return np.concatenate(list(generate.draw(generator.eval(), zs, 32)))


def numbers_of(images: np.ndarray, training: np.ndarray) -> dict[str, float]:
    """Compare generated images with as many training images."""
    real = np.array(training[np.random.default_rng(0).permutation(len(training))[:NUM]])
    network = evaluate.load_lite0(torch.device("cpu"))
    found = evaluate.measure({"value": images}, real, 0, network)
    return {name: round(float(found[name]["value"]), 4) for name in NAMES}


def train(args: argparse.Namespace, folder: str, name: str, *flags: str) -> dict:
    """Train with quick.json and flags, or resume; return a row."""
    settings = {"data": args.data, "data_dir": folder, "image_size": 32}
    config = runs.load_file_of(args.model, "train").Config(**settings)
    training = runs.load_file_of(args.model, "data").load_images(config).images
    start = ["--config=quick.json", f"--data={args.data}", f"--data-dir={folder}"]
    start += [f"--seed={args.seed}", f"--name={name}"]
    start = [f"--resume={name}"] if Path(folder, name).exists() else start
    always = ["--epochs=100000", f"--runs-dir={folder}"]
    subprocess.run(
        [sys.executable, "train.py", *start, *flags, *always], cwd=TOP / args.model, check=True
    )
    generator, about = runs.load_generator(Path(folder, name))
    row = {"data": Path(args.data).name, "model": args.model, "seed": args.seed}
    found = {"n_critic": 1} | runs.read_settings(Path(folder, name))
    row |= {key: found[key] for key in ("lr", "n_critic", "precision")}
    seconds = pd.read_csv(Path(folder, name, "metrics.csv"))["seconds"].iloc[-1]
    row |= {"steps": about["step"], "seconds": round(seconds, 1)}
    return row | numbers_of(draw(generator, about["z_dim"]), training)


def measure_quick(args: argparse.Namespace, folder: str) -> list[dict]:
    """Train with quick.json, but for what the command line asks; return a row."""
    changed = {"lr": args.lr, "n-critic": args.n_critic}
    flags = [f"--{name}={value}" for name, value in changed.items() if value]
    return [train(args, folder, "quick", f"--max-seconds={args.seconds}", *flags)]


def measure_precision(args: argparse.Namespace, folder: str) -> list[dict]:
    """Train in both precisions; return three rows."""
    rows = [
        train(args, folder, kind, f"--precision={kind}", f"--max-seconds={args.seconds}")
        for kind in ("fp32", "bf16")
    ]
    more = ["--max-seconds=0", f"--max-steps={rows[1]['steps']}"]
    rows.append(train(args, folder, "fp32", *more))
    return rows


def train_side(train: Callable, core: int, args: argparse.Namespace, folder: str) -> None:
    """Run one of two loops on a core of its own until the time is over, and draw."""
    os.sched_setaffinity(0, {core})
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    times: list[float] = []

    def note(generator: nn.Module) -> None:
        """Take the time of a step; after the last, draw and end this process."""
        times.append(time.perf_counter())
        if times[-1] - times[0] >= args.seconds:
            images = draw(generator, runs.load_file_of("DCGAN", "train").Config().z_dim)
            np.savez(Path(folder, f"{train.__name__}.npz"), images=images, steps=len(times))
            raise SystemExit

    train(args, folder, note)


def ours(args: argparse.Namespace, folder: str, note: Callable[[nn.Module], None]) -> None:
    """Run the train() of our folder."""
    train = runs.load_file_of("DCGAN", "train")

    class Noted(train.Run):
        def steps(self) -> Iterator[int]:
            for step in super().steps():
                yield step
                note(self.parts["generator"])

    train.Run = Noted
    quick = runs.read_json(TOP / "DCGAN" / "quick.json")
    settings = quick | {"image_size": 64, "lr": args.lr, "seed": args.seed}
    settings |= {"data": args.data, "data_dir": folder, "runs_dir": folder, "hold_out": HOLD_OUT}
    settings |= {"epochs": 100_000, "precision": "fp32", "device": "cpu"}
    train.train(train.Config(**settings))


def peer(args: argparse.Namespace, folder: str, note: Callable[[nn.Module], None]) -> None:
    """Run the main.py of pytorch/examples' dcgan on PNGs, with one worker."""
    names, updates = {"__name__": "__main__"}, count(1)
    quick = runs.read_json(TOP / "DCGAN" / "quick.json")

    def after(*_: object) -> None:
        """Note every other update: the generator's comes second."""
        if next(updates) % 2 == 0:
            note(nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), names["netG"]))

    register_optimizer_step_post_hook(after)
    sys.argv = ["main.py", "--dataset", "folder", "--dataroot", f"{folder}/png", "--outf", folder]
    sys.argv += ["--imageSize", "64", "--workers", "1", "--niter", "100000", "--lr", str(args.lr)]
    sys.argv += ["--manualSeed", str(args.seed)]
    sys.argv += ["--ngf", str(quick["g_width"]), "--ndf", str(quick["d_width"])]
    exec(compile(args.main.read_text(), str(args.main), "exec"), names)


def measure_peers(args: argparse.Namespace, folder: str) -> list[dict]:
    """Train both sides at once; return two rows."""
    args.lr = args.lr or 2e-4
    settings = {"data": args.data, "data_dir": folder, "hold_out": HOLD_OUT}
    config = runs.load_file_of("DCGAN", "train").Config(**settings)
    training, rows = runs.load_file_of("DCGAN", "data").load_images(config).images, []
    Path(folder, "png", "all").mkdir(parents=True)
    for i, image in enumerate(training):
        Image.fromarray(image).save(Path(folder, "png", "all", f"{i:06d}.png"))
    spawn, loops = multiprocessing.get_context("spawn"), {ours: "ours", peer: "pytorch/examples"}
    sides = [(loop, (args.seed + i) % 2, args, folder) for i, loop in enumerate(loops)]
    processes = [spawn.Process(target=train_side, args=side) for side in sides]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    for loop, name in loops.items():
        found = np.load(Path(folder, f"{loop.__name__}.npz"))
        row = {"lr": args.lr, "seconds": args.seconds, "seed": args.seed, "loop": name}
        rows.append(row | {"steps": int(found["steps"])} | numbers_of(found["images"], training))
    return rows


def main() -> None:
    """Measure, and put the rows into the table in place of those with the same key."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=["quick", "precision", "peers"])
    parser.add_argument("--model", choices=runs.PAPERS, default="DCGAN", help="not for peers")
    parser.add_argument("--main", type=Path, help="main.py of pytorch/examples' dcgan, for peers")
    parser.add_argument("--data", default="faces", help="or a folder of images (default: faces)")
    parser.add_argument("--lr", type=float, help="of quick, or of peers (default: 2e-4)")
    parser.add_argument("--n-critic", type=int, help="of quick")
    parser.add_argument("--seconds", type=int, default=100, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.data = args.data if args.data == "faces" else str(Path(args.data).resolve())
    measure, key = {
        "quick": (measure_quick, ["data", "model", "lr", "n_critic", "seed"]),
        "precision": (measure_precision, ["data", "model", "seed"]),
        "peers": (measure_peers, ["lr", "seconds", "seed"]),
    }[args.what]
    file = TOP / "results" / f"{args.what}.csv"
    old = pd.read_csv(file)
    with tempfile.TemporaryDirectory() as folder:
        new = pd.DataFrame(measure(args, folder))[old.columns]
    print(new.to_string())
    old = old[~old.set_index(key).index.isin(new.set_index(key).index)]
    pd.concat([old, new]).to_csv(file, index=False)


if __name__ == "__main__":
    main()
