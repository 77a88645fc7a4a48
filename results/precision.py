"""Train one model twice, in float32 and in bfloat16, and compare after equal seconds and images.

    OMP_NUM_THREADS=1 python results/precision.py WGAN --data faces --seed 0

Both runs have the settings of quick.json and --seconds of training, one after the other. The run
in float32 then continues until it has taken as many steps as the one in bfloat16. 2,000 images of
each of the three generators are compared with real ones, as evaluate.py does; the rows go to
results/precision.csv, in place of what was there of the same run. Its seconds mean something only
where the processor computes in bfloat16.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

import evaluate  # noqa: E402
import generate  # noqa: E402
import runs  # noqa: E402

NUM = 2000
NAMES = ("frechet_lite0", "kernel_lite0", "swd", "diversity", "repetition")


def compare(model: str, data: str, seconds: float, seed: int, folder: Path) -> list[dict]:
    """Train in both precisions with run folders in `folder`; return three rows of the table."""
    load_images, rows = runs.load_file_of(model, "data").load_images, []
    images = load_images(data, str(folder), 32, "data", 64, 0).images
    real = np.array(images[np.random.default_rng(0).permutation(len(images))[:NUM]])
    network = evaluate.load_lite0(torch.device("cpu"))
    features, patches = evaluate.features_of(network, real), evaluate.patches_of(real, 0)
    thumbnails = evaluate.thumbnails_of(real)

    def train(precision: str, *settings: str) -> None:
        """Train until the settings say stop, and compare what the generator draws."""
        command = [sys.executable, "train.py", *settings, "--runs-dir", str(folder)]
        subprocess.run([*command, "--epochs", "100000"], cwd=TOP / model, check=True)
        generator, about = runs.load_generator(folder / precision)
        noise = islice(generate.noise(0, about["arguments"]["z_dim"]), NUM)
        drawn = np.concatenate(list(generate.draw(generator, noise, 100)))
        numbers = evaluate.lite0_distances(evaluate.features_of(network, drawn), features, 0)
        numbers |= evaluate.sliced_wasserstein(evaluate.patches_of(drawn, 0), patches, 0)
        numbers |= evaluate.variety(evaluate.thumbnails_of(drawn), thumbnails)
        trained = pd.read_csv(folder / precision / "metrics.csv")["seconds"].iloc[-1]
        row = {"data": Path(data).name, "model": model, "seed": seed, "precision": precision}
        row |= {"steps": about["step"], "seconds": round(float(trained), 1)}
        rows.append(row | {name: round(float(numbers[name]), 4) for name in NAMES})
        print(json.dumps(rows[-1]), flush=True)

    for precision in ("fp32", "bf16"):
        start = ["--config", "quick.json", "--data", data, "--data-dir", str(folder)]
        start += ["--seed", str(seed), "--precision", precision, "--name", precision]
        train(precision, *start, "--max-seconds", str(seconds))
    train("fp32", "--resume", "fp32", "--max-seconds", "0", "--max-steps", str(rows[1]["steps"]))
    return rows


def main() -> None:
    """Compare, and add the rows to the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=runs.MODELS)
    parser.add_argument("--data", default="faces", help="or a folder of images (default: faces)")
    parser.add_argument("--seconds", type=float, default=100, help="of training (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = args.data if args.data == "faces" else str(Path(args.data).resolve())
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(args.model, data, args.seconds, args.seed, Path(folder))
    table, pair = TOP / "results" / "precision.csv", ["data", "model", "seed"]
    found = pd.read_csv(table)
    others = found[(found[pair] != [rows[0][name] for name in pair]).any(axis=1)]
    pd.concat([others, pd.DataFrame(rows)]).to_csv(table, index=False)


if __name__ == "__main__":
    main()
