"""Show what the distances of evaluate.py say of images whose order is known.

Usage:
    python results/distances.py DATA > results/distances.txt

DATA holds cifar10/horse, cifar10/automobile and celeba-faces, folders of JPEGs, and fashion-mnist
as torchvision lays it out. 1,000 real images are compared with as many others: real ones, twice
(the floor, and how much it varies), the first of these blurred (sigma 1 pixel), with noise (sigma
12 of 255) and reduced to 50 distinct ones, other things, and what the generators in
assets/weights/ draw.
"""

import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import FashionMNIST
from torchvision.transforms.functional import gaussian_blur

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))
import evaluate  # noqa: E402
import generate  # noqa: E402
import runs  # noqa: E402

COUNT = 1000
FORMS = {"frechet_lite0": ".2f", "kernel_lite0": ".4f", "precision_lite0": ".2f"}
FORMS |= {"recall_lite0": ".2f", "swd": ".3f", "diversity": ".2f", "repetition": ".2f"}
DATA = runs.load_file_of("DCGAN", "data")


def read_images(root: Path, name: str, size: int) -> np.ndarray:
    """Return images in random order, uint8 (N, H, W, C)."""
    if name.startswith("fashion-mnist"):
        found = FashionMNIST(root / "fashion-mnist")
        chosen = found.data[found.targets == int(name[-1])].numpy()
        images = np.stack([DATA.decode(image, size, 1) for image in chosen])
    elif name == "faces":
        images = np.stack(list(DATA.draw_faces(3 * COUNT, size)))
    else:
        with tempfile.TemporaryDirectory() as cache:
            found = DATA.load_images(str(root / name), cache, size, 3, 64, 0)
            images = np.array(found.images)
    return np.random.default_rng(0).permutation(images)


def generated(model: str) -> np.ndarray:
    """Return images of a generator in assets/weights/."""
    generator, about = runs.load_generator(TOP / "assets" / "weights" / f"{model}.safetensors")
    zs = islice(generate.noise(0, about["arguments"]["z_dim"]), COUNT)
    return np.concatenate(list(generate.draw(generator, zs, 32)))


def variants(images: np.ndarray) -> dict[str, np.ndarray]:
    """Spoil real images (N, H, W, C) in three ways."""
    blurred = gaussian_blur(torch.from_numpy(images).movedim(3, 1), [7, 7], [1.0, 1.0])
    noise = np.random.default_rng(0).normal(0, 12, images.shape)
    return {
        "blurred": blurred.movedim(1, 3).numpy(),
        "noisy": (images + noise).round().clip(0, 255).astype(np.uint8),
        "50 distinct": images[np.arange(COUNT) % 50],
    }


def print_table(title: str, images: np.ndarray, others: dict[str, np.ndarray]) -> None:
    """Compare the first COUNT images with the next, with those after, and with others."""
    real, one, two = (images[i * COUNT : (i + 1) * COUNT] for i in range(3))
    network = evaluate.load_lite0(torch.device("cpu"))

    def describe(side: np.ndarray) -> tuple:
        features = evaluate.features_of(network, side)
        return features, evaluate.patches_of(side, 0), evaluate.thumbnails_of(side)

    reference = describe(real)
    print(f"\n{title:20}" + "".join(f"{name:>16}" for name in FORMS))
    for name, side in ({"real": one, "real again": two} | variants(one) | others).items():
        features, patches, thumbnails = describe(side[:COUNT])
        found = evaluate.lite0_distances(features, reference[0], 0)
        found |= evaluate.sliced_wasserstein(patches, reference[1], 0)
        found |= evaluate.variety(thumbnails, reference[2])
        cells = (f"{found[name]:16{form}}" for name, form in FORMS.items())
        print(f"{name:20}" + "".join(cells), flush=True)


def main() -> None:
    """Print a table for each set of images."""
    root = Path(sys.argv[1])
    celebrities, cars = (
        read_images(root, *which) for which in (("celeba-faces", 64), ("cifar10/automobile", 32))
    )
    faces = [read_images(root, "faces", size) for size in (32, 64)]
    shirts, dresses = (read_images(root, f"fashion-mnist/{label}", 32) for label in (0, 3))
    print_table("horses 32x32", read_images(root, "cifar10/horse", 32), {"automobiles": cars})
    print_table("T-shirts 32x32", shirts, {"dresses": dresses})
    print_table("celebrities 64x64", celebrities, {"drawn faces": faces[1]})
    print_table("drawn faces 32x32", faces[0], {"simple GAN": generated("simpleGAN")})
    models = ("DCGAN", "WGAN", "WGAN-GP")
    print_table("drawn faces 64x64", faces[1], {name: generated(name) for name in models})


if __name__ == "__main__":
    main()
