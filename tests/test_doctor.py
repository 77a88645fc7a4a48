"""The doctor finds what is wrong with a run, and lets healthy runs be."""

import json
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TOP
from safetensors.torch import save_file

import doctor
import runs

RECORDS = sorted(file.parent for file in (TOP / "results").glob("*/*/run.json"))
HEALTHY = {
    "simpleGAN": {"loss_d": 0.9, "loss_g": 1.9, "d_real": 0.71, "d_fake": 0.31},
    "DCGAN": {"loss_d": 0.2, "loss_g": 4.6, "d_real": 0.93, "d_fake": 0.08},
    "WGAN": {"loss_d": -0.1, "loss_g": 0.2, "wasserstein": 0.1, "clipped": 0.5},
    "WGAN-GP": {"loss_d": -3.0, "loss_g": 9.0, "wasserstein": 4.0, "penalty": 0.1},
}
WON, FAILED = "discriminator has won", "generator has failed"
PENALTY, CLAMP = "penalty does not hold", "clamp is saturated"
BLIND = "critic is blind"
WGAN_GP = doctor.OTHER_MODEL
SURE = ["loss_d = 0.049 (below 0.05)", "loss_g = 7.1 (above 7)"]
WINS = {"loss_d": 0.049, "loss_g": 7.1, "d_real": 0.98, "d_fake": 0.02}
RUNNING = {"finished": None}


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a finished, healthy, small run, without columns of None."""

    def write(model="DCGAN", n=40, step=6000, facts=(), settings=(), run=None, **columns):
        settings = ({"lr": 2e-4} if model == "DCGAN" else {}) | dict(settings)
        run = run or tmp_path / "run"
        run.mkdir(parents=True, exist_ok=True)
        for name, changes in (("run.json", facts), ("parameters.json", settings)):
            record = json.loads((TOP / "results" / model / "quick-faces" / name).read_text())
            (run / name).write_text(json.dumps(record | dict(changes)))
        table = {"step": np.linspace(step / n, step, n).round(), "images": 0, "seconds": 0}
        table |= {k: v for k, v in (HEALTHY[model] | columns).items() if v is not None}
        pd.DataFrame(table).to_csv(run / "metrics.csv", index=False)
        return run

    return write


def found(run):
    """Examine a run: its problems by name, and by name why others could not be judged."""
    problems, unjudged = doctor.examine(run)
    return {finding.name: finding for finding in problems}, unjudged


@pytest.mark.parametrize("record", RECORDS)
def test_runs_on_record_are_healthy_however_far_they_have_got(record, tmp_path):
    problems, unjudged = found(record)
    judged = [name for name, why in unjudged.items() if "needed at lr" not in why]  # too young
    assert [list(problems), judged] == [[], [FAILED]]
    assert unjudged[FAILED].startswith(f"{record / 'generator.safetensors'}: ")
    run = shutil.copytree(record, tmp_path / "run")
    (run / "run.json").write_text(json.dumps(runs.read_facts(run) | RUNNING))
    lines = (record / "metrics.csv").read_text().splitlines(keepends=True)
    for count in range(0, len(lines), 3):
        (run / "metrics.csv").write_text("".join(lines[:count]))
        assert not found(run)[0]


@pytest.mark.parametrize(("model", "settings", "columns", "name", "evidence", "advice"), [
    ("DCGAN", {"lr": 4e-4, "beta1": 0.9}, {"loss_g": 1001}, "diverged",
        ["loss_g = 1,001 (above 1,000)"], ["--lr 0.0001 (was 0.0004)", "--beta1 0.5 (was 0.9)"]),
    ("WGAN", {"lr": 1e-2}, {"loss_g": 2e9}, "diverged",
        ["loss_g = 2e+09 (above 1,000)"], ["--lr 0.0002 (was 0.01)"]),
    ("simpleGAN", {"k": 3, "lr": 7e-4, "dropout": 0.3}, WINS, WON, SURE,
        ["--k 1 (was 3)", "--lr 0.00035 (was 0.0007)", "--d-width 16 (was 32)",
         "--dropout 0.5 (was 0.3)", doctor.TEXTURE, WGAN_GP]),
    ("simpleGAN", {"d_width": 1, "lr": 7e-4, "dropout": 0.6}, WINS, WON, SURE,
        ["--lr 0.00035 (was 0.0007)", doctor.TEXTURE, WGAN_GP]),
    ("WGAN-GP", {"lr": 1e-3, "lambda_gp": 1.0, "beta1": 0.5}, {"penalty": 4}, PENALTY,
        ["root of penalty = 2 (above 0.7)"],
        ["--lambda-gp 10.0 (was 1.0)", "--beta1 0.0 (was 0.5)", "--lr 0.00025 (was 0.001)"]),
    ("WGAN-GP", {"lr": 1e-3, "lambda_gp": 50.0}, {"penalty": 0.5}, PENALTY,
        ["root of penalty = 0.7071 (above 0.7)"], ["--lr 0.00025 (was 0.001)"]),
    ("WGAN", {"lr": 0.1, "clip_value": 1e-3}, {"clipped": 0.71}, CLAMP,
        ["clipped = 0.71 (above 0.7)"],
        ["--clip-value 0.01 (was 0.001)", "--lr 5e-05 (was 0.1)", WGAN_GP]),
    ("WGAN", {"lr": 9e-5, "clip_value": 0.02}, {"clipped": 1}, CLAMP,
        ["clipped = 1 (above 0.7)"], [WGAN_GP]),
    ("WGAN", {"clip_value": 1e-3}, {"wasserstein": [1.0] * 31 + [-1e-9, 0, -2] + [1.0] * 6}, BLIND,
        ["share of negative wasserstein = 0.3 (above 0.2)"],
        ["--clip-value 0.01 (was 0.001)", WGAN_GP]),
])  # fmt: skip
def test_problems_of_curves(write, model, settings, columns, name, evidence, advice):
    (finding,) = found(write(model, settings=settings, **columns))[0].values()
    assert (finding.name, finding.evidence, finding.advice) == (name, evidence, advice)


@pytest.mark.parametrize(("model", "columns"), [
    ("DCGAN", {"loss_g": 999}), ("DCGAN", WINS | {"loss_g": 6.9}),
    ("WGAN", {"loss_d": 0.049, "loss_g": 7.1}), ("WGAN-GP", {"penalty": 0.48}),
    ("simpleGAN", WINS | {"loss_d": 0.051}), ("WGAN", {"clipped": 0.7}),
    ("WGAN", {"wasserstein": [-1.0] * 30 + [1e-9] * 8 + [-1.0] * 2}),
])  # fmt: skip
def test_curves_just_short_of_a_problem(write, model, columns):
    assert not found(write(model, **columns))[0]


LEAST = -np.log(0.73 * (1 - 0.31))  # of the cross-entropy with these averages


@pytest.mark.parametrize("model", ["DCGAN", "simpleGAN"])
@pytest.mark.parametrize(("loss_d", "d_real", "d_fake", "judged"), [
    (0.0, 0.95, 0.05, False),  # hinge: the logits of a discriminator that has learned are ±3,
    (0.01, 0.73, 0.5, False),  # least squares: 1 and 0
    (0.97 * LEAST, 0.73, 0.31, False), (0.99 * LEAST, 0.73, 0.31, True),
])  # fmt: skip
def test_other_losses_are_not_judged_as_cross_entropy(write, model, loss_d, d_real, d_fake, judged):
    columns = {"loss_d": loss_d, "d_real": d_real, "d_fake": d_fake, "loss_g": 1003.0}
    problems, unjudged = found(write(model, **columns))
    assert list(problems) == ["diverged"] * judged
    for name in ("diverged", WON):
        assert ("not the cross-entropy" in unjudged.get(name, "")) != judged


def test_renamed_columns_and_unknown_models_are_judged_by_the_rest(write):
    renamed = {"loss_d": None, "critic_loss": 3.0, "clipped": None, "loss_g": None}
    problems, unjudged = found(write("WGAN", **renamed))
    assert not problems and unjudged["diverged"] == "metrics.csv has no loss_g"
    assert unjudged[CLAMP] == "metrics.csv has no clipped"
    run = write(facts={"model": "LSGAN"}, d_real=None, d_fake=None, step=77, n=7)
    few = {name: runs.read_settings(run)[name] for name in runs.SETTINGS}  # no lr, for example
    (run / "parameters.json").write_text(json.dumps(few))
    problems, unjudged = found(run)
    assert not problems and unjudged["too short"] == "how many steps LSGAN needs is not known"
    assert unjudged[WON] == unjudged["diverged"] == "metrics.csv has no d_real, d_fake"
    said = doctor.report(run)
    assert said.startswith("LSGAN run: ") and "No problems found in what could be judged." in said
    # A copy under another name is known by what it logs.
    assert CLAMP in found(write("WGAN", facts={"model": "MyGAN"}, clipped=0.9))[0]


@pytest.mark.parametrize(("rows", "last", "sick"), [(44, 11, 6), (44, 11, 5), (5, 3, 2), (5, 3, 1)])
def test_a_curve_is_judged_by_the_median_of_its_last_quarter(write, rows, last, sick):
    """The rows before are all sick where these are not, and the other way round."""
    before = [0.6 if sick > last / 2 else 1.0] * (rows - last)
    run = write("WGAN", rows, clipped=before + [1.0] * sick + [0.6] * (last - sick))
    assert (CLAMP in found(run)[0]) == (sick > last / 2)


def test_what_cannot_be_judged_and_why(write):
    changes = {"facts": RUNNING, "settings": {"lr": 3e-4}, "clipped": 1}
    problems, unjudged = found(write("WGAN", 9, step=499, **changes))
    young = [name for name, why in unjudged.items() if why == "step 499 of 500 needed at lr 0.0003"]
    assert [*problems, *young] == ["diverged", "too short", CLAMP, BLIND]
    slower = changes | {"facts": {"lr_until_step": {"99": 3e-4}}, "settings": {"lr": 1e-6}}
    short, enough = (found(write("WGAN", 9, step=n, **slower))[0] for n in (499, 500))
    assert short["too short"].evidence == ["steps at lr 0.0003 = 499 (below 500)"]
    assert "too short" not in enough
    run = write("WGAN", 4, step=500, **changes)
    assert CLAMP in found(run)[0]
    (run / "metrics.csv").unlink()
    assert found(run)[1][CLAMP].startswith("step 0 of 500")
    assert found(write("WGAN", 3))[1][CLAMP] == "metrics.csv has 3 of the 4 rows needed"
    assert "--minimax" in found(write(settings={"minimax": True}, **WINS))[1][WON]


def test_a_divergence_counts_until_the_run_goes_on(write):
    run, line = write(n=1, step=7, facts=RUNNING), "loss_d is nan: the training has diverged. The"
    (run / "train.log").write_text(f"device      cpu\nerror       {line}\n", "utf-8")
    assert found(run)[0]["diverged"].evidence == [line]
    (run / "train.log").write_text(f"error       {line}\nrun         here, from step 2\n", "utf-8")
    assert not found(run)[0]


def test_a_short_run_on_few_images_is_told_how_many_epochs_it_takes(write):
    """With lr 2e-4: 0.15 / 2e-4 = 750 steps to be judged; 0.3 / 2e-4 = 1,500 to show something."""

    def facts(count, processes=1):
        return {"pictures": {"shape": [count, 32, 32, 3]}, "processes": processes}

    small = {"facts": facts(32), "settings": {"batch_size": 32, "epochs": 35}}
    (problem,) = found(write(n=1, step=35, **small))[0].values()
    assert problem.evidence == ["steps at lr 0.0002 = 35 (below 750)"]
    assert problem.advice == ["--epochs 1500 (was 35)"]
    for step in (749, 750):
        assert ("too short" in found(write(step=step, **small))[0]) == (step < 750)
    limits = {"batch_size": 16, "max_steps": 99, "max_seconds": 9.5}
    no_limits = ["--max-steps 0 (was 99)", "--max-seconds 0 (was 9.5)"]
    for epochs, longer in ((9, ["--epochs 300 (was 9)"]), (400, [])):  # of 170 // (2 * 16) steps
        run = write(step=99, facts=facts(170, 2), settings=limits | {"epochs": epochs})
        assert found(run)[0]["too short"].advice == longer + no_limits
    for count in (299, 300):  # a remark, and no problem
        said = doctor.report(write(facts=facts(count)))
        assert "No problems found" in said
        assert (f"Remark: {count} training images are few" in said) == (count < 300)


@pytest.mark.parametrize(("contrast", "blend", "shift", "evidence"), [
    (0.29, 1, 0, "variety"), (0.31, 1, 0, None), (1, 0, 0, "nearest"), (1, 0.35, 0, "nearest"),
    (1, 0.4, 0, None), (1, 1, 28, None), (1, 1, 29, "mean images"),
])  # fmt: skip
def test_samples_that_are_alike_come_twice_or_are_far_away(
    write, monkeypatch, contrast, blend, shift, evidence
):
    """Distances shrink with the contrast; half of the samples are the others, partly blended."""
    real = np.random.default_rng(0).integers(0, 101, (256, 8, 8, 3)).astype(float)
    first, other = np.split(50 + contrast * (real - 50) + shift, 2)
    samples = np.concatenate([first, (1 - blend) * first + blend * other]).round()
    flat = [x.reshape(256, 192) for x in (samples, real)]
    apart = [np.linalg.norm(x[:, None] - x, axis=2) for x in flat]
    mean, real_mean = (x.sum() / 256 / 255 for x in apart)
    near, real_near = (np.median(np.sort(x)[:, 1]) for x in apart)
    expected = {"variety": mean / real_mean, "nearest": near / mean / (real_near / real_mean)}
    middles = [x.mean(0) for x in flat]
    expected["mean images"] = np.linalg.norm(np.subtract(*middles)) / real_mean
    # with blocks of one color in place of pixels, nothing is rounded
    real, samples = (x.astype(np.uint8).repeat(2, 1).repeat(2, 2) for x in (real, samples))

    def judged(step=6000, trained=256, **changes):
        about = {"step": step, "z_dim": 8, "image_size": 16}
        monkeypatch.setattr(runs, "load_generator", lambda run: (None, about))
        monkeypatch.setattr(runs, "load_images", lambda run, more_faces: (real[:trained], []))
        parts = np.array_split(samples, 7)
        monkeypatch.setattr(doctor, "draw", lambda _, zs, batch: parts * (len(list(zs)) == 256))
        return found(write(**changes))

    problems, _ = judged(settings={"lr": 3e-4, "beta1": 0.9})
    assert list(problems) == [FAILED] * bool(evidence)
    if evidence:
        (text,) = problems[FAILED].evidence
        assert evidence in text and f"= {expected[evidence]:.4g} (" in text
        advice = ["--beta1 0.5 (was 0.9)", "--lr 0.0002 (was 0.0003)"]
        assert problems[FAILED].advice == [*advice, WGAN_GP]
        (finding,) = judged(model="WGAN")[0].values()
        assert finding.advice == ["--n-critic 4 (was 2)"]
    assert judged(step=749)[1][FAILED] == "step 749 of 750 needed at lr 0.0002"
    assert bool(judged(trained=8)[0]) == (evidence not in ("nearest", None))  # too few for twins


def test_the_saved_generator_draws(write, monkeypatch):
    arguments = {"z_dim": 8, "image_size": 16, "channels": 3, "width": 4}
    generator = runs.load_file_of("simpleGAN", "model").Generator(**arguments)
    real = (generator(torch.randn(300, 8)) * 127.5 + 127.5).byte().movedim(1, 3).numpy()
    monkeypatch.setattr(runs, "load_images", lambda run, more_faces: {0: (real, [])}[more_faces])
    about = {"format": 1, "model": "simpleGAN", "step": 9000, "arguments": arguments}
    run = write("simpleGAN")
    for shade, problems in ((1, []), (0, [FAILED])):
        weights = {name: tensor * shade for name, tensor in generator.state_dict().items()}
        save_file(weights, run / "generator.safetensors", {"about": json.dumps(about)})
        assert [list(part) for part in found(run)] == [problems, []]


def test_the_report_and_the_command_to_train_again(write, tmp_path, monkeypatch, capsys):
    home, other = tmp_path / "my gan", tmp_path / "runs" / "b"
    own = write("WGAN", run=home / "tensorboard" / "runs" / "a", clipped=0.9)
    (home / "train.py").touch()
    (tmp_path / "train.py").touch()  # somebody else's
    write("WGAN", run=other, clipped=0.9)
    monkeypatch.setattr("sys.argv", ["doctor.py", *map(str, (own, other, write("WGAN")))])
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    doctor.main()
    said = capsys.readouterr().out.rstrip().split("\n\nWGAN ")
    for text, run, folder in zip(said, (own, other), (home, TOP / "WGAN"), strict=False):
        lines = f"WGAN {text.removeprefix('WGAN ')}".splitlines()
        assert lines[0] == f"WGAN {run.name}: {run}" and lines[2].startswith("Clamp is saturated: ")
        assert lines[3] == "   evidence  clipped = 0.9 (above 0.7)"
        assert lines[4] == "   try       --lr 5e-05 (was 0.0002)"
        assert lines[6].startswith("   source    WGAN-GP, arXiv:1704.00028")
        command = f"python {folder / 'train.py'} --config {run / 'parameters.json'} ..."
        assert " ".join(shlex.split(lines[8].partition(": ")[2])) == command
        assert lines[-1].startswith("Not judged: generator has failed: ")
    assert said[2].splitlines()[-2] == "No problems found in what could be judged."
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
