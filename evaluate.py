"""Measure how close the images of a trained generator are to real images.

Examples:
    python evaluate.py WGAN-GP                  the newest run of one model
    python evaluate.py simpleGAN DCGAN --num 1000
    python evaluate.py DCGAN/tensorboard/runs/X --seed 1
    python evaluate.py X --inception weights-inception-2015-12-05-6726825d.pth

Each value stands beside its floor, the score of as many real images that the
generator was not trained on: held out (--hold-out 2500) or newly drawn faces.
Without these, one half of the training images is compared with the other half.
No generator can be expected to do better.

  swd              sliced Wasserstein distance between patches, at each scale
                   and on average: shapes and texture, not contrast or tint
  frechet_random   Frechet distance between features: colours, layout, texture
  kernel_random    kernel distance between the same; can be slightly negative
  diversity        mean distance between two images, relative to real ones
  repetition       share of generated images that have a near twin
  memorisation     share of generated images that look copied from training
The features are the responses of random filters, not of Inception. Compare them
only between runs on the same images and size, never with an FID or KID.

With the file above, from github.com/toshas/torch-fidelity/releases/tag/v0.2.0:
  fid, kid         both distances of Inception's features; fid from 2,048 images
  inception_score  how confident and how varied Inception's classes are
  precision        share of generated images that resemble some real image
  recall           share of real images that resemble some generated image
"""

import argparse
import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import ot  # the package POT
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from tqdm import tqdm

import runs
from generate import batch_size, draw, noise

LEAST = 100  # images per set: with fewer, no metric means anything
SENSIBLE = 1000  # images per set: with fewer, there is a warning
FEWEST_FOR_FID = 2048  # with fewer images than features the covariance is singular
TAIL = 0.05  # what only this share of real images reaches is suspicious
PROJECTIONS = 128
HALF = "half of the training pictures"  # evaluation.jsonl has it in these words
RESIZE = "bilinear to 299x299 as TensorFlow 1 does it, without antialiasing"  # for Inception
BETTER = dict.fromkeys(("inception_score", "precision", "recall"), "higher")
BETTER |= {"diversity": "near 1", "repetition": "near floor", "memorisation": "near floor"}

Levels = dict[int, np.ndarray]  # patches by the side of the images that they are from


def choose(
    run: Path, training: np.ndarray, held_out: np.ndarray, num: int, seed: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Choose training images and as many unseen ones at random: `num`, or what there is.

    Returns:
        The training images, the unseen ones, and what these are: held out, drawn, or HALF.

    Raises:
        InputError: The run has too few images.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(training))
    if len(held_out) >= LEAST:
        kind = "held out" if runs.read_settings(run).get("hold_out") else "drawn"
        source, others = held_out, rng.permutation(len(held_out))
    else:
        kind, source = HALF, training
        order, others = np.array_split(order, 2)
    count = min(num, len(order), len(others))
    if count < LEAST:
        raise runs.InputError(f"{run}: {count} images per set are too few; {LEAST} are needed")
    return training[np.sort(order[:count])], source[others[:count]], kind


def generate(run: Path, count: int, seed: int, device: torch.device) -> tuple[np.ndarray, int]:
    """Return the images that generate.py makes of this seed, uint8 (N, H, W, C), and the step."""
    generator, about = runs.load_generator(run)
    zs = islice(noise(seed, about["arguments"]["z_dim"]), count)
    drawn = draw(generator.to(device), zs, batch_size(about["arguments"]["image_size"]))
    return np.concatenate(list(tqdm(drawn, "images", leave=False, disable=None))), about["step"]


def measure(
    generated: np.ndarray,
    real: np.ndarray,
    unseen: np.ndarray,
    everything: np.ndarray | None,
    seed: int,
    inception: nn.Module | None = None,
) -> dict[str, dict[str, float]]:
    """Compare generated images (`value`) and unseen ones (`floor`) with real training images.

    All are uint8 (N, H, W, C). Copies are searched in `everything`, the whole training set,
    unless it is None.
    """
    metrics: dict[str, dict[str, float]] = {}

    def add(describe: Callable, compare: Callable) -> list:
        reference, *sides = map(describe, (real, generated, unseen))
        value, floor = (compare(side, reference) for side in sides)
        metrics.update({name: {"value": value[name], "floor": floor[name]} for name in value})
        return sides

    add(partial(patches_of, seed=seed), partial(sliced_wasserstein, seed=seed))
    add(features_of, partial(random_feature_distances, seed=seed))
    thumbnails = add(thumbnails_of, variety)
    if everything is not None:
        value, floor = memorisation(*thumbnails, thumbnails_of(everything))
        metrics["memorisation"] = {"value": value, "floor": floor}
    if inception:
        add(partial(inception_features, inception), partial(inception_metrics, seed=seed))
    return metrics


def batches(images: np.ndarray, what: str, size: int = 128) -> Iterator[Tensor]:
    """Yield images under a progress bar, uint8 (B, C, H, W)."""
    for start in tqdm(range(0, len(images), size), what, leave=False, disable=None):
        yield torch.tensor(images[start : start + size]).movedim(3, 1)


def patches_of(images: np.ndarray, seed: int) -> Levels:
    """Cut patches out of each level of the images' Laplacian pyramids.

    As in Karras et al. 2018 (arXiv:1710.10196), section 5: a level holds the detail that the
    next smaller one lacks; its channels have mean 0 and deviation 1 over all its patches.

    Returns:
        For each side, from that of the images down to 16: (N * 16, C * 49).
    """
    rng, levels = torch.Generator().manual_seed(seed), defaultdict(list)
    for batch in batches(images, "patches"):
        level = batch.float() / 127.5 - 1
        while (side := level.shape[3]) > 16:
            smaller = F.interpolate(level, scale_factor=0.5, mode="bilinear", antialias=True)
            detail = level - F.interpolate(smaller, scale_factor=2, mode="bilinear")
            levels[side].append(cut(detail, rng))
            level = smaller
        levels[side].append(cut(level, rng))
    for side, parts in levels.items():
        patches = torch.cat(parts)  # (N * 16, C, 7, 7)
        deviation, mean = torch.std_mean(patches, (0, 2, 3), keepdim=True)
        levels[side] = ((patches - mean) / (deviation + 1e-8)).flatten(1).numpy()
    return levels


def cut(level: Tensor, rng: torch.Generator) -> Tensor:
    """Cut 16 patches out of each image at random places: (B, C, H, W) to (B * 16, C, 7, 7)."""
    windows = level.unfold(2, 7, 1).unfold(3, 7, 1)  # (B, C, H - 6, W - 6, 7, 7), a view
    y, x = torch.randint(windows.shape[2], (2, len(level), 16), generator=rng)
    return windows[torch.arange(len(level))[:, None], :, y, x].flatten(0, 1)


def sliced_wasserstein(patches: Levels, real: Levels, seed: int) -> dict[str, float]:
    """Compare patches level by level along random directions: `swd_64` ... and the mean, `swd`."""
    found = {}
    for side in tqdm(real, "sliced Wasserstein", leave=False, disable=None):
        directions = ot.sliced.get_random_projections(real[side].shape[1], PROJECTIONS, seed)
        distances = [
            ot.sliced_wasserstein_distance(patches[side], real[side], projections=some, p=1)
            for some in np.split(directions.astype(np.float32), 8, axis=1)  # to save memory
        ]
        found[f"swd_{side}"] = float(sum(distances) / len(distances))
    return {"swd": sum(found.values()) / len(found)} | found


def features_of(images: np.ndarray) -> Tensor:
    """Describe images by the responses of fixed random filters, (N, D).

    The mean colours of a 4x4 grid, and at each scale the mean strength of the responses to 24
    filters of 5x5 that are blind to flat areas. Random features can tell sets of images apart
    (Naeem et al. 2020, arXiv:2002.09797). D is 144 for 32x32 pixels in colour.
    """
    rng = np.random.RandomState(0)  # NumPy guarantees that its stream never changes
    filters = torch.from_numpy(rng.standard_normal((24, images.shape[3], 5, 5))).float()
    filters -= filters.mean((2, 3), keepdim=True)
    filters /= filters.flatten(1).norm(dim=1)[:, None, None, None]
    found = []
    for batch in batches(images, "random features"):
        scale = batch.float() / 127.5 - 1
        parts = [F.adaptive_avg_pool2d(scale, 4).flatten(1)]
        while scale.shape[3] >= 4:
            responses = F.conv2d(F.pad(scale, (2, 2, 2, 2), "reflect"), filters)
            parts.append(responses.abs().mean((2, 3)))
            scale = F.avg_pool2d(scale, 2)
        found.append(torch.cat(parts, 1))
    return torch.cat(found).double()


def random_feature_distances(features: Tensor, real: Tensor, seed: int) -> dict[str, float]:
    """Compare features (N, D) as FID and KID do, in units of their deviation in real images.

    A feature that hardly varies in them, such as a corner that is always black, counts less.
    """
    deviation, mean = torch.std_mean(real, 0)
    deviation = (deviation.square() + (0.1 * deviation.median()).square()).sqrt() + 1e-8
    sides = [(side - mean) / deviation for side in (features, real)]
    return {
        "frechet_random": frechet_distance(*sides),
        "kernel_random": kernel_distance(*sides, 20, seed),
    }


def frechet_distance(features: Tensor, real: Tensor) -> float:
    """Return the Frechet distance between Gaussians fitted to features (N, D)."""
    statistics = map(fid_features_to_statistics, (features, real))
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def kernel_distance(features: Tensor, real: Tensor, subsets: int, seed: int) -> float:
    """Return the squared MMD of features (N, D) by KID's cubic kernel, the mean over subsets."""
    size = min(1000, len(features), len(real))
    chosen = {"kid_subsets": subsets, "kid_subset_size": size, "rng_seed": seed, "verbose": False}
    return kid_features_to_metric(features, real, **chosen)["kernel_inception_distance_mean"]


def thumbnails_of(images: np.ndarray) -> Tensor:
    """Average images down to 16x16: (N, C * 256), in [-1, 1]."""
    scaled = (batch.float() / 127.5 - 1 for batch in batches(images, "thumbnails"))
    return torch.cat([F.adaptive_avg_pool2d(batch, 16).flatten(1) for batch in scaled])


def neighbours(thumbnails: Tensor, others: Tensor, rank: int = 1) -> tuple[Tensor, float]:
    """Return each thumbnail's distance to its nearest other (N,), and the mean distance.

    Where `others` are the thumbnails themselves, each is its own nearest; the rank is then 2.
    """
    nearest, total = [], 0.0
    for rows in tqdm(thumbnails.split(128), "neighbours", leave=False, disable=None):
        apart = torch.cdist(rows, others)  # (B, M)
        first = apart.topk(rank, largest=False).values
        nearest.append(first[:, -1])
        total += float(apart.double().sum() - first[:, :-1].double().sum())
    pairs = len(thumbnails) * (len(others) + 1 - rank)
    return torch.cat(nearest) + 1e-8, total / pairs  # never 0, to divide by


def variety(thumbnails: Tensor, real: Tensor) -> dict[str, float]:
    """Return `diversity`, and `repetition`: the share closer to another than 95 % of real ones."""
    nearest, mean = neighbours(thumbnails, thumbnails, 2)
    real_nearest, real_mean = neighbours(real, real, 2)
    twins = nearest <= real_nearest.quantile(TAIL)
    return {"diversity": mean / real_mean, "repetition": float(twins.double().mean())}


def memorisation(generated: Tensor, unseen: Tensor, training: Tensor) -> tuple[float, float]:
    """Return the share of generated and of unseen thumbnails that are too close to the training.

    What counts is the distance to the nearest training image divided by that to the nearest
    unseen image. Blurred or pale images are closer to both, which cancels; copies are closer
    to the first alone. Too close is a ratio that 95 % of the unseen images exceed. Each half of
    them sets a bound, and the floor, about 0.05, is what the other half scores with it.
    """
    ratio = neighbours(generated, training)[0] / neighbours(generated, unseen)[0]
    own = neighbours(unseen, training)[0] / neighbours(unseen, unseen, 2)[0]
    one, other = own[::2].quantile(TAIL), own[1::2].quantile(TAIL)
    value = (ratio <= one).double().mean() + (ratio <= other).double().mean()
    floor = (own[1::2] <= one).double().mean() + (own[::2] <= other).double().mean()
    return float(value / 2), float(floor / 2)


def load_inception(file: Path, device: torch.device) -> nn.Module:
    """Build the Inception network of FID with torch-fidelity's weights.

    Raises:
        InputError: The file is missing, or holds something else.
    """
    try:
        torch.load(file, weights_only=True)  # refuses code, which torch-fidelity would run
        layers, path = ["2048", "logits_unbiased"], str(file)
        network = FeatureExtractorInceptionV3("", layers, feature_extractor_weights_path=path)
    except Exception as error:  # whatever other files can cause
        line = f"--inception {file}: not the weights that --help names ({error})"
        raise runs.InputError(line[:300]) from None
    return network.to(device)


def inception_features(network: nn.Module, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return Inception's features (N, 2048) and logits (N, 1008)."""
    device = next(network.parameters()).device
    colour = (batch.to(device).expand(-1, 3, -1, -1) for batch in batches(images, "Inception", 32))
    features, logits = zip(*map(network, colour), strict=True)
    return torch.cat(features).cpu(), torch.cat(logits).cpu()


def inception_metrics(seen: tuple, real: tuple, seed: int) -> dict[str, float]:
    """Compare features and logits of Inception; there is no `fid` of too few images."""
    (features, logits), (real, _) = seen, real
    found = {"fid": frechet_distance(features, real)} if len(features) >= FEWEST_FOR_FID else {}
    found["kid"] = kernel_distance(features, real, 100, seed)
    found["inception_score"] = isc_features_to_metric(logits, rng_seed=seed)["inception_score_mean"]
    close = prc_features_to_metric(features, real, verbose=False)
    return found | {name: close[name] for name in ("precision", "recall")}


def evaluate(run: Path, num: int, seed: int, device: torch.device, weights: Path | None) -> dict:
    """Measure one run; append a row to its evaluation.jsonl, and return the row."""
    inception = load_inception(weights, device) if weights else None
    everything, held_out = runs.load_images(run)
    real, unseen, kind = choose(run, everything, held_out, num, seed)
    generated, step = generate(run, len(real), seed, device)
    everything = None if kind == HALF else everything
    metrics = measure(generated, real, unseen, everything, seed, inception)
    names = ("torch", "numpy", "POT", "torch-fidelity")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else ""
    row = {
        "step": step,
        "images": step * runs.images_per_step(run),
        "date": datetime.now().isoformat(timespec="seconds"),
        "num": len(generated),
        "seed": seed,
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
        "resize": RESIZE if weights else "none",
        "held_out": kind,
        "weights": f"{weights.name} sha256:{digest}" if weights else None,
        "metrics": metrics,
    }
    file = run / "evaluation.jsonl"
    rows = file.read_bytes() if file.exists() else b""
    with runs.write_aside(file) as new:
        new.write(rows + json.dumps(row).encode() + b"\n")
    # In a folder of its own: of two event files in one folder TensorBoard may stop reading the
    # older one, and a training that is still running would vanish from its curves.
    with SummaryWriter(run / "evaluation") as events:
        for name, found in metrics.items():
            events.add_scalar(f"evaluation/{name}", found["value"], step)
    return row


def report(run: Path, row: dict) -> None:
    """Print what was compared, and the numbers."""
    count, kind = row["num"], row["held_out"]
    source = "other training images" if kind == HALF else f"unseen images ({kind})"
    print(f"\n{run}: step {row['step']:,}, {row['images']:,} real images shown; seed {row['seed']}")
    print(f"value: {count:,} generated images, floor: {count:,} {source};")
    print(f"both are compared with {count:,} training images")
    if kind == HALF:
        print(f"memorisation is left out: train with --hold-out {SENSIBLE} to measure it")
    if row["weights"] and "fid" not in row["metrics"]:
        print(f"fid is left out: it needs {FEWEST_FOR_FID:,} images (see --num and --hold-out)")
    if count < SENSIBLE:
        print(f"warning: {count} images are few; the numbers are reliable from {SENSIBLE:,} on")
    print(f"{'':15}{'value':>12}{'floor':>12}  better")
    for name, found in row["metrics"].items():
        better = BETTER.get(name, "lower")
        print(f"{name:15}{found['value']:12.4g}{found['floor']:12.4g}  {better}")
    print(f"added to {run / 'evaluation.jsonl'}, and to TensorBoard in {run / 'evaluation'}")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="path or name of a run, or a model")
    add("--num", type=int, default=2500, help="images per set at most (default: 2500)")
    add("--seed", type=int, default=0, help="of all random choices (default: 0)")
    add("--inception", type=Path, metavar="FILE", help="weights of Inception, for fid and others")
    add("--device", default="auto", help="auto, cpu, cuda, mps ... (default: auto)")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.seed < 2**32:
        raise runs.InputError(f"--seed {arguments.seed}: from 0 to {2**32 - 1}")
    return arguments


def main() -> None:
    """Evaluate the runs that the command line names."""
    arguments = parse_arguments()
    named = {runs.find_run(text): None for text in arguments.runs}  # in order, none twice
    device = runs.pick_device(arguments.device)
    for run in named:
        report(run, evaluate(run, arguments.num, arguments.seed, device, arguments.inception))


if __name__ == "__main__":
    with runs.plain_errors():
        main()
