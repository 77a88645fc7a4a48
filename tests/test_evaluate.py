"""evaluate.py: each metric against its formula, where the floor comes from, what is written."""

import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch_fidelity
from conftest import TOP
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Subset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

import evaluate
import runs

DISTANCES = ("swd", "frechet_random", "kernel_random")
OFFLINE = ["swd", "swd_16", *DISTANCES[1:], "diversity", "repetition", "memorisation"]
RECORD = """
def recorded(self, images, forward=Discriminator.forward):
    with open({file!r}, "a") as lines:
        for image in ((images + 1) * 127.5).round().byte().movedim(1, 3):
            print(bytes(image.flatten().tolist()).hex(), file=lines)
    return forward(self, images)
Discriminator.forward = recorded
"""


def train(folder, where, **settings):
    tiny = {"image_size": 16, "g_width": 4, "d_width": 4, "batch_size": 8, "device": "cpu"}
    paths = {"runs_dir": str(where / "runs"), "data_dir": str(where / "data"), "name": "x"}
    where.mkdir(exist_ok=True)
    (where / "tiny.json").write_text(json.dumps(tiny | paths | settings))
    command = [sys.executable, folder / "train.py", "--config", where / "tiny.json"]
    subprocess.run(command, check=True, capture_output=True)
    return where / "runs" / "x"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train on drawn faces: 3 steps of 5 batches of 8."""
    return train(TOP / "WGAN-GP", tmp_path_factory.mktemp("faces"), max_steps=3, log_every=1)


@pytest.fixture
def call(monkeypatch):
    """Return a function that runs evaluate.py and returns the new row and the images compared."""
    compared, measure = [], evaluate.measure

    def spy(*arguments):
        compared[:] = arguments[:4]
        return measure(*arguments)

    def main(run, *argv):
        monkeypatch.setattr("sys.argv", [*map(str, ("", run, "--device", "cpu", *argv))])
        evaluate.main()
        rows = (runs.find_run(str(run)) / "evaluation.jsonl").read_text().splitlines()
        return json.loads(rows[-1]), compared

    monkeypatch.setattr(evaluate, "measure", spy)
    monkeypatch.setattr(evaluate, "PROJECTIONS", 16)  # fewer are faster
    return main


def names_of(images):
    return {image.tobytes() for image in images}


def test_the_floor_is_of_images_that_training_has_not_shown(tmp_path, call):
    """The discriminator of my-gan/, a copy of DCGAN/, records every image that it gets."""
    folder = tmp_path / "my-gan"
    shutil.copytree(TOP / "DCGAN", folder, ignore=shutil.ignore_patterns("tensorboard"))
    with open(folder / "model.py", "a") as model:
        model.write(RECORD.format(file=str(tmp_path / "shown.txt")))
    images = np.random.default_rng(0).integers(0, 256, (420, 16, 16, 3), np.uint8)
    (data := tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(data / f"{number}.png")
    train(folder, folder / "tensorboard", data=str(data), hold_out=120, max_steps=40)
    row, (_, *sides) = call(folder, "--num", 110)  # the newest run of this folder
    assert (row["held_out"], row["num"], row["step"]) == ("held out", 110, 40)
    shown = {bytes.fromhex(line) for line in (tmp_path / "shown.txt").read_text().split()}
    shown &= names_of(images)  # the others are generated
    real, unseen, everything = map(names_of, sides)
    assert len(unseen) == len(real) == 110 and unseen.isdisjoint(shown) and real < everything
    assert len(everything) == 300 and len(shown) > 280 and shown <= everything


def test_the_floor_of_faces_is_newly_drawn(run, call):
    row, (_, *sides) = call(run, "--num", 300)
    assert row["held_out"] == "drawn" and list(row["metrics"]) == OFFLINE
    real, unseen, everything = map(names_of, sides)
    assert len(unseen) == len(real) == 300 and unseen.isdisjoint(everything) and real < everything


def test_with_too_few_of_these_two_halves_are_compared(run, call, monkeypatch, capsys):
    training = np.random.default_rng(0).integers(0, 256, (401, 16, 16, 3), np.uint8)
    monkeypatch.setattr(runs, "load_images", lambda _: (training, training[:99]))
    row, (_, real, unseen, everything) = call(run)
    assert row["num"] == 200 and row["held_out"] == "half of the training pictures"
    assert list(row["metrics"]) == OFFLINE[:-1] and everything is None
    assert len(names_of(real) | names_of(unseen)) == 400
    assert "floor: 200 other training images" in capsys.readouterr().out


def test_images_are_chosen_from_the_whole_set_by_the_seed(run):
    training, held_out = np.arange(1000), np.arange(1000, 2000)
    chosen = [evaluate.choose(run, training, held_out, 300, seed)[:2] for seed in (0, 0, 1)]
    for first, again, other in zip(*chosen, strict=True):
        assert set(first) == set(again) != set(other) and len(set(first)) == 300
        assert len({number // 100 for number in first}) == 10  # some of each hundred
    with pytest.raises(runs.InputError, match="99 images per set"):
        evaluate.choose(run, training[:99], held_out, 300, 0)


def test_seed_and_num_have_their_effect(run, call):
    row, (generated, *_) = call(run, "--num", 120, "--seed", 7)
    generator, about = runs.load_generator(run)
    rng = torch.Generator().manual_seed(7)
    z = torch.stack([torch.randn(about["arguments"]["z_dim"], generator=rng) for _ in range(120)])
    expected = (generator(z).detach() + 1).movedim(1, 3).numpy() * 127.5
    assert np.abs(generated - expected).max() < 0.51
    assert call(run, "--num", 120, "--seed", 7)[0]["metrics"] == row["metrics"]
    other = call(run, "--num", 120)[0]["metrics"]
    assert all(other[n][s] != row["metrics"][n][s] for n in DISTANCES for s in ("value", "floor"))


def test_what_is_written(run, call, capsys):
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"processes": 2}))
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    record = (TOP / "results" / "DCGAN" / "faces-64" / "evaluation.jsonl").read_text()
    (run / "evaluation.jsonl").write_text(record)  # of a version before
    before = {file: file.read_bytes() for file in run.rglob("*.*")}
    row, _ = call(run, "--num", 150)
    assert all(file.read_bytes().startswith(content) for file, content in before.items())
    (run / "run.json").write_text(json.dumps(facts))
    step, _, images, *_ = (run / "metrics.csv").read_text().split()[-1].split(",")
    assert (row["step"], row["images"]) == (int(step), 2 * int(images)) == (3, 240)
    assert (row["num"], row["seed"], row["resize"], row["weights"]) == (150, 0, "none", None)
    old = json.loads(record.splitlines()[-1])
    assert list(row) == list(old) and row["versions"].keys() == old["versions"].keys()
    scalars = EventAccumulator(str(run / "evaluation")).Reload()
    text = capsys.readouterr().out
    assert "150 generated" in text and "150 unseen images (drawn)" in text and "few" in text
    for name, found in row["metrics"].items():
        (event,) = scalars.Scalars(f"evaluation/{name}")
        assert event.step == 3 and event.value == pytest.approx(found["value"])
        printed = re.search(rf"^{name} +(?P<value>\S+) +(?P<floor>\S+)  \w", text, re.M).groupdict()
        assert {key: float(printed[key]) for key in printed} == pytest.approx(found, rel=1e-3)


def test_errors_are_one_line(call, run, tmp_path):
    command = [sys.executable, TOP / "evaluate.py", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("evaluate.py: error: nowhere: not a run")
    for flag, value in (("--seed", -1), ("--device", "abacus"), ("--inception", "none.pth")):
        with pytest.raises(runs.InputError, match=f"{flag} {value}"):
            call(run, flag, value)


def test_known_sets_of_faces(monkeypatch):
    faces = np.stack(list(runs.load_file_of("DCGAN", "data").draw_faces(1200, 32, seed=7)))
    training, unseen, fresh = faces[:600], faces[600:900], faces[900:]
    means = fresh.reshape(300, 16, 2, 16, 2, 3).mean((2, 4))
    thumbnails = evaluate.thumbnails_of(fresh).reshape(300, 3, 16, 16)
    np.testing.assert_allclose(thumbnails.movedim(1, 3), means / 127.5 - 1, atol=1e-5)
    blurred = means.astype(np.uint8).repeat(2, 1).repeat(2, 2)
    noise = np.random.default_rng(0).integers(0, 256, fresh.shape, np.uint8)
    pale, repeated = (fresh * 0.7 + 40).astype(np.uint8), fresh[np.arange(300) % 30]
    sets = (fresh, blurred, noise, pale, repeated, training[300:])
    monkeypatch.setattr(evaluate, "PROJECTIONS", 32)
    found = [evaluate.measure(images, training[:300], unseen, training, 0) for images in sets]
    for name in DISTANCES:
        scores = [metrics[name]["value"] for metrics in found[:3]]
        assert scores[0] < max(1.3 * found[0][name]["floor"], 0.05)
        assert 1.2 * scores[0] < scores[1] < scores[2] / 2, name
    shares = [[metrics[name]["value"] for name in OFFLINE[-3:]] for metrics in found]
    real = pytest.approx([1, 0.05, 0.05], abs=0.06)  # diversity, repetition, memorisation
    assert shares[0] == real and [found[0][name]["floor"] for name in OFFLINE[-3:]] == real
    assert shares[1][2] < 0.1 and shares[3][2] < 0.1  # though close to training images
    assert shares[3][0] == pytest.approx(0.7, abs=0.05) and shares[4][1] == 1
    assert shares[5] == pytest.approx([1, 0.05, 1], abs=0.06)


def test_sliced_wasserstein_of_a_shift():
    x = np.random.default_rng(0).normal(size=(500, 1)).astype(np.float32)
    half = x + np.float32(0.5) * (x > np.median(x))  # on a line all directions are alike
    found = evaluate.sliced_wasserstein({32: half, 16: x[::-1] + 0.75}, {32: x, 16: x}, seed=3)
    assert found == pytest.approx({"swd": 0.5, "swd_32": 0.25, "swd_16": 0.75}, rel=1e-4)


def test_patches_show_one_scale_without_contrast_and_tint():
    images = np.random.default_rng(0).integers(0, 100, (150, 32, 32, 3), np.uint8)
    levels = evaluate.patches_of(images, seed=0)
    tinted = evaluate.patches_of(2 * images + np.array([9, 20, 55], np.uint8), seed=0)
    for side, patches in zip((32, 16), levels.values(), strict=True):
        assert patches.shape == (150 * 16, 3 * 49)
        planes = patches.reshape(-1, 3, 49)
        moments = [*planes.mean((0, 2)), *planes.std((0, 2))]
        assert moments == pytest.approx([0] * 3 + [1] * 3, abs=1e-4)
        np.testing.assert_allclose(tinted[side], patches, atol=1e-3)
    other = evaluate.patches_of(images, seed=1)
    one, two = (evaluate.sliced_wasserstein(other, levels, seed) for seed in (0, 1))
    assert not np.array_equal(other[16], levels[16]) and one != two
    y, x = np.mgrid[:32, :32]
    ramp = np.repeat((100 + 4 * x + 10 * (-1) ** (x + y))[None, :, :, None], 20, 0)
    fine, coarse = evaluate.patches_of(ramp.astype(np.uint8), seed=0).values()
    assert np.abs(fine).min() > 0.6  # the chequers alone
    assert np.allclose(np.diff(coarse.reshape(-1, 7, 7), axis=1), 0, atol=0.02)  # the ramp alone


def gaussian(means, deviations, count=400):
    """Return points (N, D) with exactly these moments, and uncorrelated."""
    points = np.random.default_rng(0).normal(size=(count, len(means)))
    points = np.linalg.qr(points - points.mean(0))[0] * np.sqrt(count - 1)
    return torch.from_numpy(points * np.array(deviations) + np.array(means))


def test_frechet_distance_of_two_gaussians():
    fake, real = gaussian([1, 0, -2], [1, 2, 0.5]), gaussian([0, 0, 1], [3, 2, 1])
    found = evaluate.frechet_distance(fake, real)
    assert found == pytest.approx(1 + 9 + (3 - 1) ** 2 + (1 - 0.5) ** 2)  # means, deviations
    # In units of the real deviations; a tenth of their median bounds them from below.
    fake, real = gaussian([5, 1, 0.5], [3, 4, 0]), gaussian([3, 1, 0], [2, 4, 0])
    found = evaluate.random_feature_distances(fake, real, seed=0)["frechet_random"]
    assert found == pytest.approx((2**2 + (3 - 2) ** 2) / (2**2 + 0.2**2) + 0.5**2 / 0.2**2)


def test_kernel_distance_by_the_polynomial_kernel():
    a, b = gaussian([1, 0], [1, 2]), gaussian([0, 0.5], [2, 1])
    *within, between = ((x @ y.T / 2 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    expected = sum(k.sum() - k.trace() for k in within) / (400 * 399) - 2 * between.mean()
    assert evaluate.kernel_distance(a, b, 2, seed=0) == pytest.approx(float(expected))
    many = gaussian([0, 0], [1, 2], 1010)  # of more than 1,000 the seed chooses
    assert evaluate.kernel_distance(many, many, 1, 0) != evaluate.kernel_distance(many, many, 1, 1)


def test_the_random_features_stay_as_they_are():
    y, x = np.mgrid[:32, :32]
    image = np.stack([8 * x, 8 * y, (x * y) % 256], 2).astype(np.uint8)[None]
    features = evaluate.features_of(image)[0, [0, 40, 48, 72, 96, 120, 143]]
    pinned = [-0.78039, -0.46471, 0.08783, 0.12681, 0.17478, 0.21489, 0.22815]
    assert features.tolist() == pytest.approx(pinned, abs=1e-4)  # or no row on record compares


def test_diversity_and_repetition_of_points_on_a_line():
    real = torch.arange(200.0)[:, None] ** 2  # to the nearest: 1, 1, 3, 5, 7 ... 397
    fake = torch.tensor([0.0, 2, 300, 318.5, 900, 919])[:, None]  # 2, 2, 18.5, 18.5, 19, 19
    found = evaluate.variety(fake, real)
    expected = torch.pdist(fake).mean() / torch.pdist(real).mean()
    assert found["diversity"] == pytest.approx(float(expected), rel=1e-4)
    assert found["repetition"] == pytest.approx(4 / 6)  # the 5 % quantile is 17 + 0.95 * 2


def test_memorisation_of_points_beside_a_line():
    place, apart = 100.0 * torch.arange(40), 50 + torch.arange(40.0)
    apart[1:6:2] = torch.tensor([40.0, 41, 42])
    unseen = torch.stack([place, 0 * place], 1)  # 100 from each other
    training = torch.stack([place, apart], 1)  # and so far from these
    fake = torch.cat([training[:3], unseen[:6], torch.tensor([[1000.0, 60 / 1.45]])])
    value, floor = evaluate.memorisation(fake, unseen, training)
    # The bounds are 0.519 and 0.4095; 3 and 0 of the other 20 are below. The last fake has 0.45.
    assert (value, floor) == pytest.approx((0.3 + 0.1 / 2, (3 / 20 + 0) / 2))


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Return a file such as torch-fidelity publishes, of random weights, for 75x75 pixels."""
    monkeypatch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)  # 16 times as fast
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: None)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("", ["2048"], feature_extractor_weights_path="")
    rng = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        if tensor.dim() > 1:
            torch.nn.init.kaiming_normal_(tensor, generator=rng)
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


def test_inception_metrics_are_those_of_torch_fidelity(run, call, weights, monkeypatch):
    monkeypatch.setattr(evaluate, "LEAST", 20)
    monkeypatch.setattr(evaluate, "FEWEST_FOR_FID", 20)
    row, sides = call(run, "--num", 20, "--seed", 5, "--inception", weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert row["weights"] == f"inception.pth sha256:{digest}" and row["resize"].startswith("bili")
    sides = [Subset(torch.from_numpy(side).movedim(3, 1), range(20)) for side in sides[:2]]
    settings = {"feature_extractor_weights_path": str(weights), "kid_subset_size": 20}
    settings |= {"feature_extractor": "inception-v3-compat", "rng_seed": 5}
    settings |= {"fid": True, "kid": True, "save_cpu_ram": True, "cuda": False, "cache": False}
    theirs = torch_fidelity.calculate_metrics(input1=sides[0], input2=sides[1], **settings)
    assert [*row["metrics"]] == [*OFFLINE, "fid", "kid", "inception_score", "precision", "recall"]
    found = [row["metrics"][name]["value"] for name in ("fid", "kid")]
    names = ("frechet_inception_distance", "kernel_inception_distance_mean")
    assert found == pytest.approx([theirs[name] for name in names], rel=1e-3)
    network = evaluate.load_inception(weights, torch.device("cpu"))
    grey = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), np.uint8)
    seen = [evaluate.inception_features(network, images)[0] for images in (grey, grey.repeat(3, 3))]
    assert torch.equal(*seen)


def test_inception_metrics_of_clusters():
    fake, real = torch.randn(2, 200, 6, generator=torch.Generator().manual_seed(0))
    real[:100] += 50  # of two kinds one is generated
    logits = 100 * torch.eye(5)[torch.arange(200) % 5]  # five classes, each certain
    found = evaluate.inception_metrics((fake, logits), (real, logits[:2]), seed=0)
    assert list(found) == ["kid", "inception_score", "precision", "recall"]  # too few for fid
    assert found["inception_score"] == pytest.approx(5, rel=0.15)
    assert found["precision"] > 0.8 and found["recall"] < 0.6


def test_a_weights_file_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"fc.weight": Trap()}, tmp_path / "trap.pth")
    for file in (tmp_path / "trap.pth", TOP / "runs.py"):
        with pytest.raises(runs.InputError, match=f"{file.name}: not the weights"):
            evaluate.load_inception(file, torch.device("cpu"))
    assert not (tmp_path / "sprung").exists()
