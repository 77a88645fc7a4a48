"""evaluate.py: what it writes, what it compares, and what it says when something is missing."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TOP, load
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import distances
import evaluate
import generate
import runs

pytest.importorskip("ot")
pytest.importorskip("torch_fidelity")

DISTANCES = {"swd", "frechet_random", "kernel_random"}
OFFLINE = DISTANCES | {"diversity", "repetition", "memorisation"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """A run on drawn faces, hardly trained."""
    files = load("WGAN-GP")
    sizes = {"image_size": 16, "g_width": 4, "d_width": 4, "z_dim": 8, "batch_size": 8}
    where = {"data_dir": data_dir, "runs_dir": str(tmp_path_factory.mktemp("runs"))}
    config = files.train.Config(**sizes, **where, max_steps=3, device="cpu", name="x")
    return files.train.train(config)


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of that run, and no Inception weights anywhere; bars and their threads are off."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(distances, "PROJECTIONS", 16)
    copy = shutil.copytree(trained, tmp_path / "run")
    facts = json.loads((copy / "run.json").read_text())
    facts["cache"] = str((trained / facts["cache"]).resolve())
    (copy / "run.json").write_text(json.dumps(facts))
    return copy


def call(monkeypatch, *argv):
    monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, argv)])
    evaluate.main()


def rows_of(run):
    return [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def test_what_it_writes(run, monkeypatch, capsys):
    before = files_in(run)
    call(monkeypatch, run, "--num", 300)
    after = files_in(run)
    assert before.items() <= after.items()
    (events,) = (name for name in set(after) - set(before) if name.startswith("evaluation/"))
    assert set(after) - set(before) == {"evaluation.jsonl", events}
    (row,) = rows_of(run)
    assert row["step"] == 3 and row["images"] == 3 * 5 * 8
    assert row["num"] == 300 and row["seed"] == 0 and row["resize"] == "none"
    assert row["held_out"] == "drawn" and row["weights"] is None
    assert row["versions"]["torch"] and row["versions"]["torch-fidelity"] and row["versions"]["POT"]
    assert set(row["metrics"]) == OFFLINE | {"swd_16"}
    assert all(set(found) == {"value", "floor"} for found in row["metrics"].values())
    scalars = EventAccumulator(str(run / "evaluation")).Reload()
    assert set(scalars.Tags()["scalars"]) == {f"evaluation/{name}" for name in row["metrics"]}
    (event,) = scalars.Scalars("evaluation/frechet_random")
    assert event.step == 3
    assert event.value == pytest.approx(row["metrics"]["frechet_random"]["value"])
    text = capsys.readouterr().out
    for word in (str(run / "evaluation.jsonl"), "300 generated", "seed 0", "resize: none", "few"):
        assert word in text
    assert "weights are missing" in text and "--inception" in text and "checkpoints" in text
    lines = re.findall(r"^ *(\w+) +([-.e\d]+) +([-.e\d]+)  .*", text, re.M)
    assert [name for name, *_ in lines] == list(row["metrics"])
    for name, value, floor in lines:
        found = row["metrics"][name]
        assert (float(value), float(floor)) == pytest.approx(tuple(found.values()), rel=1e-3)
    head = text.index("better")
    assert max(map(len, text[head : text.index("appended")].splitlines())) <= 80


def test_what_was_measured_is_kept_though_nobody_reads_it(run, monkeypatch):
    def left(*_):
        raise BrokenPipeError

    monkeypatch.setattr(evaluate, "table", left)
    with pytest.raises(BrokenPipeError):
        call(monkeypatch, run, "--num", 300)
    assert len(rows_of(run)) == 1 and list((run / "evaluation").iterdir())


def test_the_widest_numbers_fit_the_table():
    widest = {name: {"value": -0.00012345678, "floor": 123456789.0} for name in evaluate.BETTER}
    widest["swd_1024"] = {"value": 1e-30, "floor": -1.23456e-30}
    head, *lines = evaluate.table(widest).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) == len(widest)
    for line, name in zip(lines, widest, strict=True):
        label, value, floor, *_ = line.split()
        assert label == name and float(value) == pytest.approx(widest[name]["value"], rel=1e-3)
        assert float(floor) == pytest.approx(widest[name]["floor"], rel=1e-3)
        assert line.index(floor) + len(floor) == head.index("floor") + len("floor")


def test_the_same_seed_gives_the_same_numbers(run, monkeypatch):
    seeds, original = [], evaluate.generate

    def spy(run, count, seed, device):
        seeds.append(seed)
        return original(run, count, seed, device)

    monkeypatch.setattr(evaluate, "generate", spy)
    for seed in (0, 0, 1):
        call(monkeypatch, run, "--num", 120, "--seed", seed)
    assert seeds == [0, 0, 1]
    first, again, other = (row["metrics"] for row in rows_of(run))
    assert first == again
    assert all(first[name] != other[name] for name in DISTANCES)


def test_the_pictures_are_those_that_generate_py_makes(run, monkeypatch, tmp_path):
    argv = [run, "--num", 70, "--seed", 3, "--npz", tmp_path / "x.npz", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["generate.py", *map(str, argv)])
    generate.main()
    found, step = evaluate.generate(run, 70, 3, torch.device("cpu"))
    assert np.array_equal(found, np.load(tmp_path / "x.npz")["images"]) and step == 3


def test_a_line_that_a_crash_cut_off_spoils_no_other(run, monkeypatch):
    (run / "evaluation.jsonl").write_text('{"step": 1}\n{"st')
    call(monkeypatch, run, "--num", 100)
    lines = (run / "evaluation.jsonl").read_text().splitlines()
    assert lines[:2] == ['{"step": 1}', '{"st'] and json.loads(lines[2])["step"] == 3


def test_what_was_held_out_is_the_floor(tiny, tmp_path, monkeypatch, capsys):
    """And where nothing was, one half of the training pictures against the other."""
    monkeypatch.setattr(distances, "PROJECTIONS", 16)
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(420):
        values = rng.integers(0, 256, (4, 4), np.uint8)
        picture = Image.fromarray(values).resize((16, 16), Image.Resampling.BILINEAR)
        picture.save(tmp_path / "pictures" / f"{i}.png")
    files = load("simpleGAN")
    make = {"data": str(tmp_path / "pictures"), "max_steps": 1}
    found = {}
    for hold_out in (0, 20, 130):
        run = files.train.train(tiny(files, **make, hold_out=hold_out))
        call(monkeypatch, run)
        (found[hold_out],) = rows_of(run)
        text = capsys.readouterr().out
        assert ("memorisation is skipped; train with --hold-out" in text) == (hold_out < 100)
        assert ("only 20 pictures were held out" in text) == (hold_out == 20)
        assert ("no picture was held out" in text) == (hold_out == 0)
        assert f"{found[hold_out]['num']} pictures a side, not 2,500" in text
    assert [row["num"] for row in found.values()] == [210, 200, 130]
    kinds = ["half of the training pictures"] * 2 + ["held out"]
    assert [row["held_out"] for row in found.values()] == kinds
    assert set(found[130]["metrics"]) - set(found[0]["metrics"]) == {"memorisation"}
    for row in found.values():  # real against real
        assert row["metrics"]["swd"]["floor"] < 0.5 * row["metrics"]["swd"]["value"]
        assert row["metrics"]["diversity"]["floor"] == pytest.approx(1, abs=0.1)


def test_the_two_halves_share_no_picture(run):
    training = np.arange(301).reshape(-1, 1, 1, 1)
    real = evaluate.choose(run, training, training[:0], 1000, seed=0)
    assert len(real.training) == len(real.unseen) == 150
    assert not set(real.training.ravel()) & set(real.unseen.ravel())


def test_pictures_are_chosen_from_all_over_by_the_seed(run):
    pictures = np.arange(1000).reshape(-1, 1, 1, 1)
    first, again, other = (
        evaluate.choose(run, pictures, pictures + 1000, 300, seed) for seed in (0, 0, 1)
    )
    for side in ("training", "unseen"):
        one, two, three = (set(getattr(real, side).ravel()) for real in (first, again, other))
        assert one == two != three and len(one) == 300
        assert len({number // 100 for number in one}) == 10  # of every hundred some


def test_going_on_with_a_training_keeps_what_was_measured(tiny, monkeypatch):
    monkeypatch.setattr(distances, "PROJECTIONS", 16)
    files = load("DCGAN")
    run = files.train.train(tiny(files, name="x"))
    call(monkeypatch, run, "--num", 100)
    files.train.train(tiny(files, resume="x", max_steps=8))
    call(monkeypatch, run, "--num", 100)
    assert [row["step"] for row in rows_of(run)] == [4, 8]
    scalars = EventAccumulator(str(run / "evaluation")).Reload()
    assert [event.step for event in scalars.Scalars("evaluation/swd")] == [4, 8]
    curve = EventAccumulator(str(run)).Reload().Scalars("loss_g")
    assert [event.step for event in curve] == [2, 4, 6, 8]


def test_bad_input(run, monkeypatch, tmp_path):
    for argv, named in (
        (["nowhere"], "nowhere"),
        ([run, "--num", 99], "--num 99"),
        ([run, "--seed", -1], "--seed -1"),
        ([run, "--device", "abacus"], "--device abacus"),
        ([run, "--inception", tmp_path / "none.pth"], "none.pth: no such file"),
    ):
        with pytest.raises(runs.InputError, match=named):
            call(monkeypatch, *argv)
    assert not (run / "evaluation.jsonl").exists()
    few = np.arange(150).reshape(-1, 1, 1, 1)
    with pytest.raises(runs.InputError, match="too few"):
        evaluate.choose(run, few, few[:0], 1000, 0)
    with pytest.raises(runs.InputError, match="all the same"):
        evaluate.choose(run, 0 * few, few, 1000, 0)


def test_a_generator_of_other_pictures_is_refused(run, monkeypatch):
    files = load("DCGAN")
    other = files.model.Generator(8, 32, 3, 4).state_dict()
    about = {"format": 1, "model": "DCGAN", "step": 3}
    about["arguments"] = {"z_dim": 8, "image_size": 32, "channels": 3, "width": 4}
    save_file(other, run / "generator.safetensors", {"about": json.dumps(about)})
    with pytest.raises(runs.InputError, match="does not make pictures such as"):
        call(monkeypatch, run, "--num", 100)
    assert not (run / "evaluation.jsonl").exists()


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(runs.InputError, match="pip install POT"):
        evaluate.load_inception(None, torch.device("cpu"))


def test_the_help_fits_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        evaluate.parse_arguments(["--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for name in evaluate.BETTER:
        assert name in text


# ---- Inception ----


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file such as torch-fidelity publishes, but with random weights."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    rng = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight, generator=rng)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def small_inception(monkeypatch):
    """Let Inception look at 75x75 pixels, the least it can: 16 times as fast."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(module.FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)


class Bytes(torch.utils.data.Dataset):
    """Pictures as torch-fidelity takes them: uint8 (3, H, W)."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        return torch.from_numpy(self.pictures[i]).movedim(2, 0)


@pytest.mark.parametrize("fewest", [30, 2048])
def test_fid_and_its_kin(run, weights, small_inception, monkeypatch, capsys, fewest):
    """They are what torch-fidelity gets from the same pictures by itself."""
    from torch_fidelity import calculate_metrics

    monkeypatch.setattr(distances, "FEWEST_FOR_FID", fewest)
    monkeypatch.setattr(evaluate, "LEAST", 30)
    call(monkeypatch, run, "--num", 30, "--inception", weights, "--device", "cpu")
    text = capsys.readouterr().out
    assert ("fid: refused, it needs 2,048 pictures" in text) == (fewest == 2048)
    assert "other weights than usual" in text and "bilinear" in text
    (row,) = rows_of(run)
    names = {"kid", "inception_score", "precision", "recall"} | ({"fid"} if fewest == 30 else set())
    assert set(row["metrics"]) == OFFLINE | {"swd_16"} | names
    assert row["resize"].startswith("bilinear to 299x299")
    name, digest = row["weights"].split(" sha256:")
    assert name == "inception.pth" and len(digest) == 64 and digest in text

    pictures, held_out = runs.load_pictures(run)
    real = evaluate.choose(run, pictures, held_out, 30, 0)
    generated, _ = evaluate.generate(run, 30, 0, torch.device("cpu"))
    expected = calculate_metrics(
        input1=Bytes(generated),
        input2=Bytes(real.training),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        fid="fid" in names,
        **{name: True for name in ("isc", "kid", "prc", "save_cpu_ram")},
        kid_subset_size=30,
        rng_seed=0,
        **{name: False for name in ("cuda", "cache", "verbose")},
    )
    theirs = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    theirs |= {"inception_score": "inception_score_mean"}
    for name in names:
        found = row["metrics"][name]
        assert found["value"] == pytest.approx(expected[theirs.get(name, name)], rel=1e-3)
        worse = found["value"] < found["floor"]
        assert worse == (name in ("inception_score", "precision", "recall")), name


def test_grey_pictures_reach_inception(weights, small_inception):
    inception = distances.Inception(weights, torch.device("cpu"))
    grey = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), np.uint8)
    features, logits = inception.describe(grey)
    assert features.shape == (4, 2048) and logits.shape == (4, 1008)
    assert torch.equal(features, inception.describe(np.repeat(grey, 3, 3))[0])


def test_weights_are_found_where_torch_keeps_them(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path, url = distances.find_inception(None)
    assert path.parent == tmp_path / "hub" / "checkpoints" and url.endswith(path.name)
    assert evaluate.load_inception(None, torch.device("cpu")) is None
    path.parent.mkdir(parents=True)
    shutil.copy(weights, path)
    inception = evaluate.load_inception(None, torch.device("cpu"))
    assert inception.name.startswith(path.name)


def test_a_weights_file_runs_no_code(tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"fc.weight": Trap()}, tmp_path / "trap.pth")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("trap", "other", "text"):
        with pytest.raises(runs.InputError, match=f"{name}.pth does not hold the Inception"):
            distances.Inception(tmp_path / f"{name}.pth", torch.device("cpu"))
    assert not (tmp_path / "sprung").exists()


def test_the_script_ends_without_a_traceback(tmp_path):
    command = [sys.executable, TOP / "evaluate.py", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "evaluate.py: error: nowhere: not a run (no such folder, and no run of this name)\n"
    )
