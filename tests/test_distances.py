"""The measures behind evaluate.py: they tell sick pictures from healthy ones."""

import numpy as np
import pytest
import torch
from conftest import load
from PIL import Image
from torch.nn import functional as F

import distances
import evaluate
import runs

ot = pytest.importorskip("ot")
pytest.importorskip("torch_fidelity")

PINNED = [-0.78039, -0.46471, 0.08783, 0.12681, 0.17478, 0.21489, 0.22815]
COUNT = 500  # pictures a side
OFFLINE = {"frechet_random", "kernel_random", "diversity", "repetition", "memorisation", "swd"}


# ---- Sick pictures ----


@pytest.fixture(scope="module")
def faces():
    """Faces by what they are for, 32x32; none is drawn twice."""
    draw_faces = load("DCGAN").data.draw_faces
    drawn = np.stack(list(draw_faces(3000, 32, seed=7)))
    return {"trained": drawn[:1200], "unseen": drawn[1200:1700], "more": drawn[1700:]}


@pytest.fixture
def measure(faces, monkeypatch):
    """Return a function that measures generated pictures against the faces."""
    monkeypatch.setattr(distances, "PROJECTIONS", 32)  # in place of 128: quicker
    real = evaluate.Real(faces["trained"][:COUNT], faces["unseen"], "held out", [])
    return lambda generated: evaluate.measure(generated, real, faces["trained"], seed=0)


def noisy(pictures, deviation):
    noise = np.random.default_rng(0).normal(0, deviation, pictures.shape)
    return (pictures + noise).round().clip(0, 255).astype(np.uint8)


def blurred(pictures):
    images = torch.from_numpy(pictures).movedim(3, 1).float()
    small = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
    return (
        F.interpolate(small, scale_factor=2, mode="bilinear").round().byte().movedim(1, 3).numpy()
    )


def off(metrics):
    """Name the numbers that are not what real pictures could have got."""
    value = {name: found["value"] for name, found in metrics.items()}
    floor = {name: found["floor"] for name, found in metrics.items()}
    signs = {
        "swd": value["swd"] > 1.5 * floor["swd"],
        "frechet_random": value["frechet_random"] > 2 * floor["frechet_random"],
        "kernel_random": value["kernel_random"] > 0.06,
        "diversity": value["diversity"] < 0.95 * floor["diversity"],
        "repetition": value["repetition"] > floor["repetition"] + 0.1,
        "memorisation": value["memorisation"] > floor["memorisation"] + 0.06,
    }
    return {name for name, sick in signs.items() if sick}


DISTANCES = {"swd", "frechet_random", "kernel_random"}
SICK = {  # what is made of fresh and of trained faces, and the numbers that must notice it
    "three faces again and again": (
        lambda fresh, trained: fresh[np.arange(COUNT) % 3],
        {*DISTANCES, "diversity", "repetition"},
    ),
    "fifty faces again and again": (
        lambda fresh, trained: fresh[np.arange(COUNT) % 50],
        {"frechet_random", "repetition"},
    ),
    "dark faces alone": (
        lambda fresh, trained: fresh[np.argsort(fresh.mean((1, 2, 3)))[:COUNT]],
        DISTANCES,
    ),
    "blurred": (lambda fresh, trained: blurred(fresh[:COUNT]), DISTANCES),
    "noisy": (lambda fresh, trained: noisy(fresh[:COUNT], 15), DISTANCES),
    "pale": (
        lambda fresh, trained: (fresh[:COUNT] * 0.7 + 40).astype(np.uint8),
        {"frechet_random", "kernel_random", "diversity", "repetition"},
    ),
    "tinted": (
        lambda fresh, trained: (fresh[:COUNT] + np.array([25, 0, 0])).clip(0, 255).astype(np.uint8),
        {"frechet_random", "kernel_random"},
    ),
    "another's chin": (
        lambda fresh, trained: np.concatenate([fresh[:COUNT, :16], fresh[-COUNT:, 16:]], 1),
        {"frechet_random", "kernel_random"},
    ),
    "all copied": (lambda fresh, trained: trained[-COUNT:], {"memorisation"}),
    "copied with noise": (lambda fresh, trained: noisy(trained[-COUNT:], 5), {"memorisation"}),
    "every seventh copied": (
        lambda fresh, trained: np.where(
            (np.arange(COUNT) % 7 == 0)[:, None, None, None], trained[-COUNT:], fresh[:COUNT]
        ),
        {"memorisation"},
    ),
}


def test_fresh_faces_are_healthy(measure, faces):
    for start in (0, COUNT):
        metrics = measure(faces["more"][start : start + COUNT])
        assert off(metrics) == set()
        assert metrics["diversity"]["value"] == pytest.approx(1, abs=0.04)
        assert metrics["kernel_random"]["value"] == pytest.approx(0, abs=0.04)


@pytest.mark.parametrize("illness", SICK)
def test_an_illness_is_noticed(measure, faces, illness):
    make, by = SICK[illness]
    metrics = measure(make(faces["more"], faces["trained"]))
    assert off(metrics) >= by, metrics
    if "copied" in illness:  # which look as good as real ones
        assert off(metrics) == by or "noise" in illness


def test_every_number_has_an_illness_to_notice():
    assert set().union(*(by for _, by in SICK.values())) == OFFLINE


def test_the_longer_a_training_the_better_its_numbers(tiny, monkeypatch):
    """A real training, if a tiny one: every step better than the last, and none at the floor."""
    monkeypatch.setattr(distances, "PROJECTIONS", 32)
    files = load("DCGAN")
    sizes = {"g_width": 8, "d_width": 8, "z_dim": 16, "batch_size": 32, "lr": 1e-3}
    rare = {"log_every": 400, "frame_every": 400, "checkpoint_every": 400}
    found = []
    for steps in (1, 60, 300):
        which = {"resume" if found else "name": "x"}
        run = files.train.train(tiny(files, max_steps=steps, **which, **sizes, **rare))
        training, held_out = runs.load_pictures(run)
        real = evaluate.choose(run, training, held_out, 400, 0)
        generated, step = evaluate.generate(run, 400, 0, torch.device("cpu"))
        assert step == steps
        found.append(evaluate.measure(generated, real, training, 0))
    for name in DISTANCES:
        early, later, late = (metrics[name]["value"] for metrics in found)
        assert early > 1.1 * later > 1.3 * late > 2 * found[0][name]["floor"], name
    early, later, late = (metrics["diversity"]["value"] for metrics in found)
    assert early < 0.1 < later < 0.5 < late < 0.95
    assert all(metrics["memorisation"]["value"] < 0.1 for metrics in found)


# ---- Each number by its definition ----


@pytest.fixture(scope="module")
def three(faces):
    """Three sides of 150 pictures at 16x16: fresh, fresh and pale, and the real ones."""
    small = [
        np.stack(
            [np.asarray(Image.fromarray(face).resize((16, 16))) for face in faces["more"][i:j]]
        )
        for i, j in ((0, 150), (150, 300), (300, 450))
    ]
    return small[0], (small[1] * 0.8 + 20).astype(np.uint8), small[2]


def test_sliced_wasserstein_by_its_definition(faces):
    fake, real = (distances.patches_of(faces[side][:40], seed=3) for side in ("more", "trained"))
    assert list(real) == [32, 16] and real[32].shape == (40 * 16, 3 * 7 * 7)
    found = distances.sliced_wasserstein(fake, real, seed=5)
    for side in real:
        directions = ot.sliced.get_random_projections(147, 128, 5)
        np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1)
        apart = np.sort(fake[side] @ directions, 0) - np.sort(real[side] @ directions, 0)
        assert found[f"swd_{side}"] == pytest.approx(np.abs(apart).mean(), rel=1e-3)
    assert found["swd"] == pytest.approx((found["swd_32"] + found["swd_16"]) / 2)
    assert distances.sliced_wasserstein(real, real, seed=5)["swd"] == pytest.approx(0, abs=1e-6)


def test_patches_are_normalised_and_show_one_size_each(faces):
    patches = distances.patches_of(faces["more"][:100], seed=0)
    for level in patches.values():
        channels = level.reshape(-1, 3, 49)
        np.testing.assert_allclose(channels.mean((0, 2)), 0, atol=1e-3)
        np.testing.assert_allclose(channels.std((0, 2)), 1, atol=1e-3)
    pale = distances.patches_of((faces["more"][:100] // 2 + 30), seed=0)
    for side in patches:  # neither contrast nor brightness shows
        assert np.corrcoef(pale[side].ravel(), patches[side].ravel())[0, 1] > 0.99
        np.testing.assert_allclose(pale[side].std(), 1, atol=1e-3)
    # what differs from pixel to pixel shows at the first level alone
    chequered = np.full((20, 64, 64, 3), 100, np.uint8)
    chequered[:, ::2, ::2] = chequered[:, 1::2, 1::2] = 140
    levels = distances.patches_of(chequered, seed=0)
    assert list(levels) == [64, 32, 16]
    assert np.abs(levels[64]).mean() > 0.9 and np.abs(levels[32]).mean() < 0.1


def test_the_features_are_fixed():
    """Their values in a picture that never changes: whoever changes these breaks all records."""
    y, x = np.mgrid[:32, :32]
    picture = np.stack([8 * x, 8 * y, (x * y) % 256], 2).astype(np.uint8)[None]
    features = distances.features_of(picture)
    assert features.shape == (1, 3 * 16 + 4 * 24)
    found = features[0, [0, 40, 48, 72, 96, 120, 143]].tolist()
    assert found == pytest.approx(PINNED, abs=1e-4)
    assert distances.features_of(picture[..., :1]).shape == (1, 16 + 4 * 24)
    flat = distances.features_of(np.full((1, 64, 64, 3), 77, np.uint8))[0]
    assert len(flat) == 48 + 5 * 24 and flat[48:].abs().max() < 1e-5  # blind to flat areas


def test_frechet_and_kernel_distance_by_their_definitions(three):
    linalg = pytest.importorskip("scipy.linalg")
    fresh, pale, real = (distances.features_of(side) for side in three)
    found = distances.random_feature_distances(pale, real, seed=0)
    spread, mean = real.std(0), real.mean(0)
    spread = (spread**2 + (0.1 * spread.median()) ** 2).sqrt()
    a, b = (((side - mean) / spread).numpy() for side in (pale, real))
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    frechet = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert found["frechet_random"] == pytest.approx(frechet, rel=1e-3)

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    inner = sum(kernel(x, x).sum() - np.trace(kernel(x, x)) for x in (a, b))
    squared = inner / (150 * 149) - 2 * kernel(a, b).mean()
    assert found["kernel_random"] == pytest.approx(squared, rel=1e-6)
    better = distances.random_feature_distances(fresh, real, seed=0)
    assert all(better[name] < found[name] for name in found)


def test_what_hardly_differs_in_real_pictures_does_not_count_for_all():
    """A corner that is always black, and by one shade of grey is not."""
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (300, 16, 16, 1), np.uint8)
    real[:, :4, :4] = 0
    fake = rng.integers(0, 256, (300, 16, 16, 1), np.uint8)
    fake[:, :4, :4] = 1
    features = [distances.features_of(side) for side in (fake, real)]
    assert distances.random_feature_distances(*features, seed=0)["frechet_random"] < 100


def test_variety_by_its_definition(three):
    fresh, _, real = map(distances.thumbnails_of, three)
    found = distances.variety(fresh, real)
    expected = torch.pdist(fresh).mean() / torch.pdist(real).mean()
    assert found["diversity"] == pytest.approx(float(expected), rel=1e-4)

    def nearest(x):
        apart = torch.cdist(x, x) + torch.eye(len(x)) * 1e9
        return apart.min(1).values

    share = (nearest(fresh) <= nearest(real).quantile(0.05)).double().mean()
    assert found["repetition"] == pytest.approx(float(share), abs=0.01)
    twins = torch.cat([fresh[:130], fresh[:20]])  # 40 of 150 have one
    assert distances.variety(twins, real)["repetition"] == pytest.approx(40 / 150, abs=0.06)
    assert distances.variety(fresh[:1].repeat(150, 1), real)["repetition"] == 1


def test_the_mean_distance_is_that_of_all_pairs(three):
    fresh, _, real = map(distances.thumbnails_of, three)
    assert distances.neighbours(fresh)[1] == pytest.approx(float(torch.pdist(fresh).mean()), 1e-4)
    nearest, mean = distances.neighbours(fresh, real[:140], "")
    apart = torch.cdist(fresh, real[:140])
    assert mean == pytest.approx(float(apart.mean()), 1e-4)
    torch.testing.assert_close(nearest, apart.min(1).values, rtol=1e-3, atol=1e-3)


def test_memorisation_by_its_definition():
    rng = torch.Generator().manual_seed(0)
    fake, seen, unseen = (torch.randn(n, 12, generator=rng) for n in (300, 700, 200))
    apart = torch.cdist(unseen, unseen).fill_diagonal_(torch.inf)
    own = torch.cdist(unseen, seen).min(1).values / apart.min(1).values
    ratio = torch.cdist(fake, seen).min(1).values / torch.cdist(fake, unseen).min(1).values
    bounds = own[::2].quantile(0.05), own[1::2].quantile(0.05)
    value = sum(float((ratio <= bound).double().mean()) for bound in bounds) / 2
    shares = (own[1::2] <= bounds[0]).double().mean(), (own[::2] <= bounds[1]).double().mean()
    found = distances.memorisation(fake, seen, unseen)
    assert found == pytest.approx((value, float(sum(shares) / 2)), abs=0.004)
    assert shares[0] != shares[1]


def test_thumbnails_are_means_of_pixels(faces):
    small = distances.thumbnails_of(faces["more"][:3]).reshape(3, 3, 16, 16)
    blocks = faces["more"][:3].reshape(3, 16, 2, 16, 2, 3).mean((2, 4))
    np.testing.assert_allclose(small.numpy(), np.moveaxis(blocks, 3, 1) / 127.5 - 1, atol=1e-5)


def test_pale_or_blurred_pictures_do_not_look_copied():
    """They are near to everything, to what was trained on as to what was not."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(0, 1, (20, 48))
    points = (kinds[rng.integers(0, 20, 3000)] + rng.normal(0, 1, (3000, 48))).astype(np.float32)
    training, unseen, fresh = map(
        torch.from_numpy, (points[:2000], points[2000:2500], points[2500:])
    )
    for share in (1, 0.7, 0.4):
        value, floor = distances.memorisation(fresh * share, training, unseen)
        assert value < 0.09 and floor == pytest.approx(0.05, abs=0.02)
    half = torch.cat([training[:250], fresh[:250]])
    assert distances.memorisation(half, training, unseen)[0] == pytest.approx(0.525, abs=0.02)


def test_precision_and_recall_are_not_mixed_up():
    """Of two kinds of pictures only one is generated, and all of them look real."""
    rng = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 200, 6, generator=rng)
    real[:100] += 50
    logits = torch.full((200, 10), -50.0)
    logits[torch.arange(200), torch.arange(200) % 5] = 50  # five classes, each guess is sure
    found = distances.inception_distances((fake, logits), (real, logits), seed=0)
    assert found["precision"] > 0.8 and found["recall"] < 0.6
    assert found["inception_score"] == pytest.approx(5, rel=0.15) and "fid" not in found
