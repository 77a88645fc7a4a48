"""Show what evaluate.py says of images whose order is known: results/distances.txt.

    python results/distances.py DATA > results/distances.txt

DATA holds cifar10/horse, cifar10/automobile and celeba-faces, folders of JPEGs, and fashion-mnist
as torchvision lays it out. 1,000 real images are compared with as many others: real ones, twice;
the first of these blurred (sigma 1 pixel), with noise (sigma 12 of 255), or only 50 of them,
repeated; other things; and what the generators in assets/weights/ draw.
"""

import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import FashionMNIST
from torchvision.transforms.functional import gaussian_blur

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import evaluate
import generate
import runs

COUNT, DATA = 1000, runs.load_file_of("DCGAN", "data")
FORMS = {"frechet_lite0": ".2f", "kernel_lite0": ".3f", "precision_lite0": ".2f"}
FORMS |= {"recall_lite0": ".2f", "swd": ".3f", "diversity": ".2f", "repetition": ".2f"}


def read_images(name: str, size: int) -> np.ndarray:
    """Return images in random order, uint8 (N, H, W, C); of Fashion-MNIST those of one label."""
    root = Path(sys.argv[1])
    if name == "faces":
        images = np.stack(list(DATA.draw_faces(3 * COUNT, size)))
    elif name.isdigit():
        found = FashionMNIST(root / "fashion-mnist")
        chosen = found.data[found.targets == int(name)].numpy()
        images = np.stack([DATA.decode(image, size, 1) for image in chosen])
    else:
        with tempfile.TemporaryDirectory() as cache:
            images = np.array(DATA.load_images(str(root / name), cache, size, 3, 64, 0).images)
    return np.random.default_rng(0).permutation(images)


def draw(model: str) -> np.ndarray:
    """Return images of a generator in assets/weights/."""
    generator, about = runs.load_generator(runs.TOP / f"assets/weights/{model}.safetensors")
    zs = islice(generate.noise(0, about["arguments"]["z_dim"]), COUNT)
    return np.concatenate(list(generate.draw(generator, zs, 32)))


def compare(title: str, images: np.ndarray, others: dict[str, np.ndarray]) -> None:
    """Print how far from the first COUNT images the next are, those after, and others."""
    real, one, two = (images[i * COUNT : (i + 1) * COUNT] for i in range(3))
    blurred = gaussian_blur(torch.from_numpy(one).movedim(3, 1), [7, 7], [1.0, 1.0])
    noisy = one + np.random.default_rng(0).normal(0, 12, one.shape)
    sides = {"": real, "real": one, "real again": two, "blurred": blurred.movedim(1, 3).numpy()}
    sides["noisy"] = noisy.round().clip(0, 255).astype(np.uint8)
    sides |= {"50 distinct": one[np.arange(COUNT) % 50]} | others
    network, seen = evaluate.load_lite0(torch.device("cpu")), []
    print(f"\n{title:18}" + "".join(f"{name:>16}" for name in FORMS))
    for name, side in sides.items():
        features, patches = evaluate.features_of(network, side), evaluate.patches_of(side, 0)
        seen.append((features, patches, evaluate.thumbnails_of(side)))
        features, patches, thumbnails = zip(seen[-1], seen[0], strict=True)
        found = evaluate.lite0_distances(*features, 0) | evaluate.variety(*thumbnails)
        found |= evaluate.sliced_wasserstein(*patches, 0)
        if name:
            print(f"{name:18}" + "".join(f"{found[n]:16{f}}" for n, f in FORMS.items()), flush=True)


if __name__ == "__main__":
    large = read_images("faces", 64)
    others = {"automobiles": read_images("cifar10/automobile", 32)[:COUNT]}
    compare("horses 32x32", read_images("cifar10/horse", 32), others)
    compare("T-shirts 32x32", read_images("0", 32), {"dresses": read_images("3", 32)[:COUNT]})
    others = {name: draw(f"{name}-celeba") for name in runs.MODELS[1:]}
    others = {"drawn faces": large[:COUNT]} | others
    compare("celebrities 64x64", read_images("celeba-faces", 64), others)
    compare("drawn faces 32x32", read_images("faces", 32), {"simpleGAN": draw("simpleGAN")})
    compare("drawn faces 64x64", large, {name: draw(name) for name in runs.MODELS[1:]})
