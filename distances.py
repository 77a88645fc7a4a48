"""Measures of how far generated pictures are from real ones: what evaluate.py prints.

Each measure first describes every picture of a side by numbers (`patches_of`, `features_of`,
`thumbnails_of`, `Inception`), then compares two sides. Pictures are uint8 (N, H, W, C), square.
"""

import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from runs import InputError

BATCH = 128  # pictures
TAIL = 0.05  # of real pictures: what only so few of them are counts as suspicious
FEWEST_FOR_FID = 2048  # with fewer pictures than features the covariance is singular
INCEPTION_RESIZE = "bilinear to 299x299 as TensorFlow 1 does it, without antialiasing"


def need(module: str, package: str) -> ModuleType:
    """Import a module that not every script here needs.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        line = f"{package} is missing ({error}); install it with: pip install {package}"
        raise InputError(line) from None


def batches(pictures: np.ndarray, what: str, size: int = BATCH) -> Iterator[Tensor]:
    """Yield all pictures under a progress bar, (B, C, H, W) in [-1, 1]."""
    with tqdm(total=len(pictures), desc=what, unit="picture", leave=False, disable=None) as bar:
        for start in range(0, len(pictures), size):
            batch = torch.from_numpy(pictures[start : start + size])
            yield batch.movedim(3, 1).float() / 127.5 - 1
            bar.update(len(batch))


# ---- Sliced Wasserstein distance ----

SMALLEST = 16  # side of the last level of the pyramid, in pixels
PATCH = 7  # side of a patch, in pixels
PATCHES = 16  # of each picture and level
PROJECTIONS = 128


def patches_of(pictures: np.ndarray, seed: int) -> dict[int, np.ndarray]:
    """Cut patches out of every level of the pictures' Laplacian pyramids.

    As in Karras et al. 2018 (arXiv:1710.10196), section 5: a level holds what the next
    smaller one cannot show, the last one the rest, and each channel has mean 0 and
    deviation 1 over all patches of a level. So they show texture and shapes of one size, and
    neither overall contrast nor tint.

    Returns:
        By the side of the level, from that of the pictures down to 16: (N * 16, C * 49).
    """
    rng = torch.Generator().manual_seed(seed)
    found: dict[int, list[Tensor]] = {}
    for level in batches(pictures, "cutting patches"):
        while level.shape[3] > SMALLEST:
            low = F.interpolate(level, scale_factor=0.5, mode="bilinear", antialias=True)
            detail = level - F.interpolate(low, scale_factor=2, mode="bilinear")
            found.setdefault(level.shape[3], []).append(cut(detail, rng))
            level = low
        found.setdefault(level.shape[3], []).append(cut(level, rng))
    normalised = {}
    for side, parts in found.items():
        patches = torch.cat(parts)  # (N * 16, C, 7, 7)
        deviation, mean = torch.std_mean(patches, (0, 2, 3), keepdim=True)
        normalised[side] = ((patches - mean) / (deviation + 1e-8)).flatten(1).numpy()
    return normalised


def cut(level: Tensor, rng: torch.Generator) -> Tensor:
    """Cut 16 patches out of each picture, anywhere: (B, C, H, W) to (B * 16, C, 7, 7)."""
    count, channels, side, _ = level.shape
    windows = level.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # (B, C, H - 6, W - 6, 7, 7), a view
    y, x = torch.randint(side - PATCH + 1, (2, count, PATCHES), generator=rng)
    patches = windows[torch.arange(count)[:, None], :, y, x]  # (B, 16, C, 7, 7)
    return patches.reshape(-1, channels, PATCH, PATCH)


def sliced_wasserstein(
    patches: dict[int, np.ndarray], real: dict[int, np.ndarray], seed: int
) -> dict[str, float]:
    """Compare patches level by level: `swd_64`, `swd_32`, ... and their mean, `swd`.

    Each is the mean over 128 random directions of how far the patches of one side must
    move along it, on average, to lie like those of the other.
    """
    ot = need("ot", "POT")
    chunks = range(0, PROJECTIONS, 16)  # few at a time, to save memory
    found = {}
    what = "sliced Wasserstein"
    with tqdm(total=len(real) * len(chunks), desc=what, leave=False, disable=None) as bar:
        for side in real:
            width = real[side].shape[1]
            directions = ot.sliced.get_random_projections(width, PROJECTIONS, seed)
            directions, total = directions.astype(np.float32), 0.0  # (C * 49, 128)
            for chunk in chunks:
                some = directions[:, chunk : chunk + 16]
                total += ot.sliced_wasserstein_distance(
                    patches[side], real[side], projections=some, p=1
                )
                bar.update()
            found[f"swd_{side}"] = float(total / len(chunks))
    return {"swd": sum(found.values()) / len(found)} | found


# ---- Frechet and kernel distance on fixed features ----

FILTERS = 24


def features_of(pictures: np.ndarray) -> Tensor:
    """Describe pictures by fixed features that need no trained weights.

    The mean colours of a 4x4 grid, and at every scale the mean strength with which 24 random
    5x5 filters answer, each of them blind to flat areas. No object is recognised: the features
    know colours, layout and texture. That random features can tell sets of pictures
    apart is a finding of Naeem et al. 2020 (arXiv:2002.09797).

    Returns:
        (N, D): D is 16 for each channel and 24 for each scale, 144 for 32x32 in colour.
    """
    rng = np.random.RandomState(0)  # numpy promises that its stream never changes
    drawn = rng.standard_normal((FILTERS, pictures.shape[3], 5, 5)).astype(np.float32)
    filters = torch.from_numpy(drawn)
    filters -= filters.mean((2, 3), keepdim=True)
    filters /= filters.flatten(1).norm(dim=1)[:, None, None, None]
    found = []
    for scale in batches(pictures, "random features"):
        parts = [F.adaptive_avg_pool2d(scale, 4).flatten(1)]
        while scale.shape[3] >= 4:
            answers = F.conv2d(F.pad(scale, (2, 2, 2, 2), "reflect"), filters)
            parts.append(answers.abs().mean((2, 3)))
            scale = F.avg_pool2d(scale, 2)
        found.append(torch.cat(parts, 1))
    return torch.cat(found).double()


def random_feature_distances(features: Tensor, real: Tensor, seed: int) -> dict[str, float]:
    """Compare features as FID and KID do: `frechet_random` and `kernel_random`.

    They are measured in the spread of the real pictures, so that each counts alike. One
    in which these hardly differ, such as an always black corner, counts less.
    """
    fidelity = need("torch_fidelity.metric_fid", "torch-fidelity")
    spread, mean = torch.std_mean(real, 0)
    spread = (spread.square() + (0.1 * spread.median()).square()).sqrt() + 1e-8
    features, real = (features - mean) / spread, (real - mean) / spread
    statistics = [fidelity.fid_features_to_statistics(side) for side in (features, real)]
    frechet = fidelity.fid_statistics_to_metric(*statistics, verbose=False)
    return {
        "frechet_random": frechet[fidelity.KEY_METRIC_FID],
        "kernel_random": kernel_distance(features, real, 20, seed),
    }


def kernel_distance(features: Tensor, real: Tensor, subsets: int, seed: int) -> float:
    """Return the squared MMD under KID's cubic kernel, the mean over subsets of up to 1,000."""
    fidelity = need("torch_fidelity.metric_kid", "torch-fidelity")
    found = fidelity.kid_features_to_metric(
        *(features, real),
        kid_subsets=subsets,
        kid_subset_size=min(1000, len(features), len(real)),
        rng_seed=seed,
        verbose=False,
    )
    return found[fidelity.KEY_METRIC_KID_MEAN]


# ---- Nearest neighbours ----


def thumbnails_of(pictures: np.ndarray) -> Tensor:
    """Scale pictures down to 16x16 by averaging: (N, C * 256), in [-1, 1]."""
    small = [F.adaptive_avg_pool2d(b, 16).flatten(1) for b in batches(pictures, "scaling down")]
    return torch.cat(small)


def neighbours(
    thumbnails: Tensor, others: Tensor | None = None, what: str = "neighbours"
) -> tuple[Tensor, float]:
    """Return how far each picture's nearest other one is (N,), and the mean distance of all pairs.

    Args:
        thumbnails: (N, D).
        others: (M, D) to look in; by default the thumbnails themselves, where none is its own.
        what: the bar's label.
    """
    nearest, total, pairs = [], 0.0, 0
    reference = thumbnails if others is None else others
    bar = tqdm(total=len(thumbnails), desc=what, unit="picture", leave=False, disable=None)
    with bar:
        for start in range(0, len(thumbnails), BATCH):
            apart = torch.cdist(thumbnails[start : start + BATCH], reference)
            total, pairs = total + float(apart.double().sum()), pairs + apart.numel()
            if others is None:
                rows = torch.arange(len(apart))
                total -= float(apart[rows, start + rows].double().sum())
                pairs -= len(apart)
                apart[rows, start + rows] = torch.inf
            nearest.append(apart.min(1).values)
            bar.update(len(apart))
    return torch.cat(nearest) + 1e-8, total / pairs  # never 0, to divide by


def variety(thumbnails: Tensor, real: Tensor) -> dict[str, float]:
    """Compare how far the pictures of one side are from each other with how far real ones are.

    Returns:
        `diversity`: mean distance of two pictures, as a share of that of two real ones.
        `repetition`: share of pictures with a near twin; so near as 5 % of real ones have one.
    """
    nearest, mean = neighbours(thumbnails)
    real_nearest, real_mean = neighbours(real)
    twins = nearest <= real_nearest.quantile(TAIL)
    return {"diversity": mean / real_mean, "repetition": float(twins.double().mean())}


def memorisation(generated: Tensor, training: Tensor, held_out: Tensor) -> tuple[float, float]:
    """Say what share of pictures lies suspiciously near to a training picture.

    What counts is the distance to the nearest training picture divided by that to the nearest
    held-out one: blurred or pale pictures are nearer to both, which cancels; copies are nearer
    to the first alone. Suspicious is a ratio that only 5 % of unseen pictures stay below.

    Args:
        generated: (N, D), as are the others: thumbnails.
        training: all that the generator was trained on.
        held_out: what it has never seen. Either half of them tells what is suspicious in the
            other, which is the floor.

    Returns:
        The share of the generated pictures, and that of the unseen ones: about 0.05.
    """
    what = "looking for copies"
    ratio = neighbours(generated, training, what)[0] / neighbours(generated, held_out, what)[0]
    unseen = neighbours(held_out, training, what)[0] / neighbours(held_out)[0]
    halves = unseen[::2], unseen[1::2]
    values, floors = [], []
    for half, other in (halves, halves[::-1]):
        bound = half.quantile(TAIL)
        values.append((ratio <= bound).double().mean())
        floors.append((other <= bound).double().mean())
    return float(sum(values) / 2), float(sum(floors) / 2)


# ---- Inception ----


def find_inception(named: Path | None) -> tuple[Path, str]:
    """Return the file of Inception's weights, and where they can be had.

    Args:
        named: the file that --inception names. Without it, where torch keeps downloads; the
            file that is returned need not exist then.

    Raises:
        InputError: there is no such file.
    """
    url = need("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity").URL_INCEPTION_V3
    if named and not named.is_file():
        raise InputError(f"--inception {named}: no such file; it can be had from {url}")
    return named or Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1], url


class Inception:
    """The Inception network of FID, with weights from a file: nothing is ever downloaded.

    Args:
        weights: as torch-fidelity publishes them.
        device: where to compute.

    Raises:
        InputError: these are no such weights.
    """

    def __init__(self, weights: Path, device: torch.device) -> None:
        module = need("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity")
        try:
            # torch-fidelity would run code in the file; this refuses all but tensors
            torch.load(weights, map_location="cpu", weights_only=True)
            network = module.FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=str(weights),
            )
        except Exception as error:  # whatever a file can hold that is none
            reason = str(error).strip().splitlines()[0]
            line = f"{weights} does not hold the Inception weights of torch-fidelity ({reason})"
            raise InputError(line) from None
        self.network, self.device = network.to(device), device
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        self.name = f"{weights.name} sha256:{digest}"
        published = Path(module.URL_INCEPTION_V3).stem.rsplit("-", 1)[1]
        self.usual = digest.startswith(published)

    def describe(self, pictures: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return features (N, 2048) and logits (N, 1008); it scales to 299x299 by itself."""
        found = []
        with torch.no_grad():
            for batch in batches(pictures, "Inception", 32):
                values = ((batch + 1) * 127.5).round().to(self.device, torch.uint8)
                answers = self.network(values.expand(-1, 3, -1, -1))
                found.append([answer.cpu() for answer in answers])
        features, logits = map(torch.cat, zip(*found, strict=True))
        return features, logits


def inception_distances(
    described: tuple[Tensor, Tensor], real: tuple[Tensor, Tensor], seed: int
) -> dict[str, float]:
    """Compare what Inception sees: FID unless there are too few pictures, KID and so on."""
    fid, isc, prc = (
        need(f"torch_fidelity.metric_{name}", "torch-fidelity") for name in ("fid", "isc", "prc")
    )
    (features, logits), (real_features, _) = described, real
    found = {}
    if min(len(features), len(real_features)) >= FEWEST_FOR_FID:
        statistics = [fid.fid_features_to_statistics(f) for f in (features, real_features)]
        found["fid"] = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
    found["kid"] = kernel_distance(features, real_features, 100, seed)
    score = isc.isc_features_to_metric(logits, rng_seed=seed)
    found["inception_score"] = score[isc.KEY_METRIC_ISC_MEAN]
    near = prc.prc_features_to_metric(features, real_features, verbose=False)
    found["precision"], found["recall"] = (
        near[prc.KEY_METRIC_PRECISION],
        near[prc.KEY_METRIC_RECALL],
    )
    return found
