"""The doctor finds what was made sick on purpose, and lets healthy runs be."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FOLDERS, TOP, load
from PIL import Image
from safetensors.torch import load_file, save_file

import doctor
import run_record
import runs
import symptoms
from run_record import Record

TEN = range(10)
SETTINGS = {
    folder: json.loads((TOP / "results" / folder / "quick-faces" / "parameters.json").read_text())
    for folder in FOLDERS
}


@pytest.fixture(scope="module")
def faces():
    """Draw faces: 1,000 to train on, 300 held out, and 300 for samples."""
    drawn = np.stack(list(load("DCGAN").data.draw_faces(1600, 16)))
    return drawn[:1000], drawn[1000:1300], drawn[1300:]


def rough(images, rng, washed_out=0.0, noise=0.0):
    """Give pictures the faults that those of a healthy generator have."""
    grey = images.mean()
    values = images + washed_out * (grey - images) + rng.normal(0, 1 + noise, images.shape)
    return values.clip(0, 255).astype(np.uint8)


def healthy_rows(model, rng, n):
    """Plant curves like those of the runs in results/, in their last two thirds flat."""
    t = np.arange(1, n + 1)
    noise = rng.normal(0, 1, (4, n))
    start = np.exp(-t / (n / 15))
    rows = {"step": 20.0 * t}
    if model in symptoms.GANS:
        d_fake = rng.uniform(0.04, 0.3) * np.exp(0.3 * noise[0])
        rows |= {"d_fake": d_fake, "d_real": 1 - d_fake * np.exp(0.1 * noise[1])}
        rows |= {"loss_d": 2 * d_fake, "loss_g": -np.log(d_fake) + 1 + 0.5 * noise[2]}
    else:
        level = rng.uniform(1, 6) if model == "WGAN-GP" else 10 ** rng.uniform(-5, -1)
        estimate = level * (1 + 2 * start) * (1 + rng.uniform(0.02, 0.06) * noise[0])
        rows |= {"wasserstein": estimate, "loss_d": -estimate, "loss_g": noise[1]}
    if model == "WGAN":
        rows["clipped"] = rng.uniform(0.09, 0.6) + 0.01 * noise[1]
    elif model == "WGAN-GP":
        slope = 1 + (rng.uniform(0, 0.25) + 0.3 * start) + 0.02 * noise[1]
        rows |= {"slope": slope, "penalty": (slope - 1) ** 2 + 0.04 * np.exp(0.1 * noise[2])}
        rows["loss_d"] = rows["loss_d"] + 10 * rows["penalty"]
    return rows


def healthy(model, seed, faces):
    """Plant the record of a healthy run."""
    trained, held_out, others = faces
    rng = np.random.default_rng(seed)
    return Record(
        model=model,
        settings=SETTINGS[model],
        rows=healthy_rows(model, rng, int(rng.integers(20, 150))),
        count=int(rng.integers(2000, 60_000)),
        samples=rough(rng.permutation(others)[:256], rng, rng.uniform(0, 0.5), rng.uniform(0, 20)),
        trained=trained,
        held_out=held_out,
        sampled_at=2000,
    )


def changed(record, **columns):
    """Plant other curves in a record."""
    return dataclasses.replace(record, rows=record.rows | columns)


# Each takes a healthy record, and a random generator, and returns a sick record.


def make_diverged(record, rng):
    rows = {name: column.copy() for name, column in record.rows.items()}
    name = rng.choice(["loss_d", "loss_g"])
    kind = rng.integers(3 if record.model != "WGAN" else 2)
    if kind == 0:
        rows[name][-int(rng.integers(1, 5)) :] = rng.choice([np.nan, np.inf, -np.inf])
    elif kind == 1:
        log = f"{name} is nan at step 100: the training has diverged. The last checkpoint"
        return dataclasses.replace(record, log=log)
    else:
        rows["loss_d"][-5:] = 10 ** rng.uniform(2.5, 12) * rng.uniform(1, 3, 5)
    return changed(record, **rows)


def make_won(record, rng):
    n = len(record.rows["step"])
    begun = np.linspace(0, 1, n) > rng.uniform(0, 0.5)
    sure = rng.uniform(8, 12) + rng.normal(0, 0.7, n)
    d_fake, d_real = np.exp(-sure), 1 - np.exp(-sure)
    rows = {"d_fake": d_fake, "d_real": d_real, "loss_d": 2 * d_fake, "loss_g": sure}
    return changed(record, **{k: np.where(begun, v, record.rows[k]) for k, v in rows.items()})


def make_collapsed(record, rng):
    points = int(rng.choice([1, 1, 2, 5, 10, 20]))
    modes = record.samples[:points]
    samples = rough(modes[rng.integers(points, size=256)], rng, noise=rng.uniform(0, 4))
    return dataclasses.replace(record, samples=samples)


def make_penalty_off(record, rng):
    slope = rng.choice([10 ** rng.uniform(0.25, 2), rng.uniform(0, 0.4)])
    slope = slope * np.exp(rng.normal(0, 0.1, len(record.rows["step"])))
    return changed(record, slope=slope, penalty=(slope - 1) ** 2)


def make_clamp_saturated(record, rng):
    n = len(record.rows["step"])
    return changed(record, clipped=(rng.uniform(0.8, 1) + rng.normal(0, 0.02, n)).clip(0, 1))


def make_critic_weak(record, rng):
    n, scale = len(record.rows["step"]), 10 ** rng.uniform(-6, 0)
    estimate = scale * rng.normal(rng.choice([-3, -0.3, 0, 0.5]), 1, n)
    if rng.random() < 0.3:
        estimate = rng.uniform(1e-12, 1e-9) * (1 + 0.05 * rng.normal(0, 1, n))
    samples = rough(rng.permutation(record.samples), rng, 0.7, rng.uniform(30, 60))
    return dataclasses.replace(changed(record, wasserstein=estimate), samples=samples)


def make_still_falling(record, rng):
    n = len(record.rows["step"])
    total = rng.uniform(0.4, 2)  # over the whole run, a third of it over the last third
    curve = rng.uniform(0.5, 5) * np.exp(-total * np.arange(n) / n)
    return changed(record, wasserstein=curve * (1 + rng.uniform(0, 0.02) * rng.normal(0, 1, n)))


def make_few_pictures(record, rng):
    return dataclasses.replace(record, count=int(10 ** rng.uniform(1.5, 3.2)))


def make_memorising(record, rng):
    copies = rough(rng.permutation(record.trained)[:256], rng, 0.1 * rng.random(), 8 * rng.random())
    honest = rng.random(256) > rng.uniform(0.5, 1)  # some copy only in part
    copies[honest] = record.samples[honest]
    return dataclasses.replace(record, samples=copies)


SICK = {
    "diverged": make_diverged,
    "discriminator has won": make_won,
    "collapsed": make_collapsed,
    "penalty does not hold": make_penalty_off,
    "clamp saturated": make_clamp_saturated,
    "critic too weak": make_critic_weak,
    "memorising": make_memorising,
    "too few pictures": make_few_pictures,
    "estimate still falling": make_still_falling,
}
CASES = [(check.name, model) for check in doctor.CHECKS for model in check.models]


def test_each_finding_can_be_made_on_purpose():
    assert list(SICK) == [check.name for check in doctor.CHECKS]


@pytest.mark.parametrize(("name", "model"), CASES)
def test_nine_in_ten_of_the_planted_sick_runs_are_seen(faces, name, model):
    seen = 0
    for seed in TEN:
        record = SICK[name](healthy(model, seed, faces), np.random.default_rng(seed + 100))
        found, _, unknown = doctor.examine(record)
        seen += name in found
        assert name not in unknown, unknown
    assert seen >= 9


@pytest.mark.parametrize("model", FOLDERS)
def test_nine_in_ten_of_the_planted_healthy_runs_are_let_be(faces, model):
    results = [doctor.examine(healthy(model, seed, faces)) for seed in TEN]
    assert sum(not found for found, *_ in results) >= 9, [found for found, *_ in results]
    checks = [check.name for check in doctor.CHECKS if model in check.models]
    assert all(sorted(nothing + list(found)) == sorted(checks) for found, nothing, _ in results)
    assert not any(unknown for *_, unknown in results)


@pytest.mark.parametrize("model", FOLDERS)
def test_the_curves_on_record_are_healthy_however_far_they_have_got(model):
    file = TOP / "results" / model / "quick-faces"
    rows = run_record.read_rows(file)["rows"]
    for part in np.linspace(0.3, 1, 10):
        kept = {name: column[: round(part * len(column))] for name, column in rows.items()}
        found, nothing, _ = doctor.examine(Record(model, SETTINGS[model], kept, count=10_000))
        assert set(found) <= {"estimate still falling"} and len(nothing) >= 2


def faster(monkeypatch, files, *factors):
    """Change the step sizes of the two networks, first the generator's."""
    name = "RMSprop" if hasattr(files.train, "RMSprop") else "Adam"
    optimizer, left = getattr(files.train, name), iter(factors)
    change = lambda parameters, lr, **how: optimizer(parameters, lr * next(left), **how)  # noqa: E731
    monkeypatch.setattr(files.train, name, change)


FROZEN, RUNAWAY = (1e-3, 1), (10, 1e-3)
FEW = {"data": "few", "epochs": 2000, "hold_out": 64}
COPYING = {"lr": 1e-3, "beta1": 0.5, "g_width": 16, "d_width": 16, "max_steps": 600}
FALLING = {"lr": 3e-3, "beta1": 0.5, "g_width": 8, "d_width": 8, "batch_size": 16}
WELL = {"lr": 3e-4, "beta1": 0.5, "g_width": 8, "d_width": 8, "z_dim": 32, "batch_size": 32}
TRAINED = [  # finding, model, step sizes of generator and opponent, settings
    ("diverged", "DCGAN", (1, 1), {"lr": 10.0, "max_steps": 40}),
    ("diverged", "simpleGAN", (1, 1), {"lr": 10.0, "max_steps": 40}),
    ("diverged", "WGAN-GP", (1, 1), {"lr": 10.0, "max_steps": 25}),
    ("discriminator has won", "DCGAN", FROZEN, {"lr": 3e-3, "max_steps": 250}),
    ("discriminator has won", "simpleGAN", FROZEN, {"lr": 3e-3, "dropout": 0.0}),
    ("collapsed", "simpleGAN", (1, 1), {"lr": 0.1, "max_steps": 60}),
    ("collapsed", "DCGAN", (100, 1), {"lr": 0.1, "max_steps": 40}),
    ("penalty does not hold", "WGAN-GP", (1, 1), {"lr": 1e-3, "lambda_gp": 1e-3}),
    ("penalty does not hold", "WGAN-GP", (1, 1), {"lr": 1e-3, "lambda_gp": 0.1}),
    ("clamp saturated", "WGAN", (1, 1), {"lr": 1.0, "max_steps": 30}),
    ("clamp saturated", "WGAN", (1, 1), {"lr": 0.3, "max_steps": 30}),
    ("critic too weak", "WGAN", RUNAWAY, {"lr": 5e-4, "n_critic": 1, "max_steps": 120}),
    ("critic too weak", "WGAN-GP", RUNAWAY, {"lr": 5e-4, "n_critic": 1, "max_steps": 120}),
    ("critic too weak", "WGAN", (1, 1), {"lr": 1e-3, "n_critic": 1, "d_width": 1}),
    ("memorising", "simpleGAN", (1, 1), FEW | COPYING),
    ("too few pictures", "DCGAN", (1, 1), FEW | {"max_steps": 20}),
    ("estimate still falling", "WGAN-GP", (1, 1), FALLING | {"max_steps": 90, "log_every": 1}),
    (None, "simpleGAN", (1, 1), WELL | {"max_steps": 400}),
    (None, "DCGAN", (1, 1), {"lr": 1e-3, "max_steps": 250}),
    (None, "WGAN", (1, 1), {"lr": 1e-3, "max_steps": 100}),
    (None, "WGAN-GP", (1, 1), {"lr": 1e-3, "max_steps": 80}),
]


@pytest.fixture
def right(monkeypatch, tiny, tmp_path):
    """Return a function that trains, and says whether the finding is made, or none at all."""

    def judge(name, model, factors, settings, seed):
        files, few = load(model), tmp_path / "few"
        few.mkdir(exist_ok=True)
        for i, face in enumerate(files.data.draw_faces(72, 16, seed=5)):
            Image.fromarray(face).save(few / f"{i}.png")
        usual = {"max_steps": 100, "log_every": 5, "frame_every": 1000, "checkpoint_every": 1000}
        usual |= {"hold_out": 300} | settings
        usual |= {"data": str(few)} if settings.get("data") else {}
        with monkeypatch.context() as patch:
            faster(patch, files, *factors)
            run = files.train.train(tiny(files, seed=seed, **usual))
        found, *_ = doctor.examine(run_record.read_record(run))
        return name in found if name else set(found) <= {"estimate still falling"}

    return judge


@pytest.mark.parametrize(("name", "model", "factors", "settings"), TRAINED)
def test_trainings_made_sick_on_purpose(right, name, model, factors, settings):
    assert right(name, model, factors, settings, seed=2)


@pytest.mark.long
@pytest.mark.parametrize(("name", "model", "factors", "settings"), TRAINED)
def test_nine_in_ten_trainings_made_sick_on_purpose(right, name, model, factors, settings):
    assert sum(right(name, model, factors, settings, seed) for seed in TEN) >= 9


# ---- The program ----


def call(monkeypatch, capsys, *argv):
    monkeypatch.setattr("sys.argv", ["doctor.py", *map(str, argv)])
    doctor.main()
    return capsys.readouterr().out


@pytest.fixture
def run(tiny):
    """Train for a moment on drawn faces; the widths of the text do not hang on names."""
    files = load("DCGAN")
    return files.train.train(tiny(files, hold_out=300, name="short"))


def files_in(*folders):
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("*"))]
    return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in paths}


def test_a_report_on_a_run(run, monkeypatch, capsys):
    text = call(monkeypatch, capsys, run)
    first, second, *_ = text.splitlines()
    assert first == "DCGAN short: step 4, 9,700 pictures of 16x16x3, finished"
    assert second == str(run)
    assert "Nothing wrong to be seen." in text
    assert "not seen: diverged, memorising, too few pictures." in text
    assert "discriminator has won: metrics.csv has 2 rows, and this takes 4." in text
    assert max(map(len, text.splitlines()[2:])) <= 92
    text = " ".join(text.split())
    assert "collapsed: the run is too young: 4 steps of size 5e-05, and this takes 2,000." in text


def test_a_finding_comes_with_its_evidence_advice_and_source(run, monkeypatch, capsys):
    header = (run / "metrics.csv").read_text().splitlines()[0]
    rows = [f"{5 * i},1,1,1,0.001,{9 + i / 10},0.999,0.0001" for i in range(1, 13)]
    (run / "metrics.csv").write_text("\n".join([header, *rows]) + "\n50000,1")  # being written
    text = call(monkeypatch, capsys, run)
    assert text.startswith("DCGAN short: step 60,")
    assert "1. The discriminator has won: it is sure of real" in text
    assert "evidence  loss_d = 0.001 at steps 50 to 60 (below 0.1)" in text
    assert "loss_g = 10.1 at steps 50 to 60 (above 7)" in text
    assert "try       --d-width 2: a weaker discriminator; this run's was 4" in text
    assert "source    GAN, arXiv:1406.2661, section 3" in text
    again = f"cd DCGAN && python train.py --config {run / 'parameters.json'} ..."
    assert again in text.replace("\n", "")
    assert "Nothing wrong" not in text


def test_runs_are_found_by_path_name_and_model(monkeypatch, capsys, tmp_path, tiny):
    for model in FOLDERS:
        (tmp_path / model).mkdir()
        (tmp_path / model / "train.py").touch()
    monkeypatch.setattr(runs, "TOP", tmp_path)
    monkeypatch.setattr(runs.model_runs, "__defaults__", (tmp_path,))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(runs.InputError, match="no run of any model yet"):
        call(monkeypatch, capsys)
    for model, name in (("DCGAN", "old"), ("DCGAN", "new"), ("WGAN", "other")):
        run = tmp_path / model / "tensorboard" / "runs" / name
        run.mkdir(parents=True)
        facts = {"format": 1, "model": model, "started": "2026" if name == "old" else "2027"}
        (run / "run.json").write_text(json.dumps(facts))
        (run / "parameters.json").write_text(json.dumps(SETTINGS[model]))
    assert call(monkeypatch, capsys, "old").startswith("DCGAN old: step 0")
    assert call(monkeypatch, capsys, "DCGAN").startswith("DCGAN new")
    assert call(monkeypatch, capsys, tmp_path / "DCGAN").startswith("DCGAN new")
    both = call(monkeypatch, capsys)
    assert "DCGAN new" in both and "WGAN other" in both and "Nothing can be told yet" in both
    for wrong in ("nowhere", "WGAN-GP", tmp_path):
        with pytest.raises(runs.InputError):
            call(monkeypatch, capsys, wrong)


def test_missing_parts_stop_no_other_check(run, monkeypatch, capsys, data_dir, tmp_path):
    def lost(change):
        kept = tmp_path / "kept"
        shutil.copytree(run, kept)
        facts = json.loads((kept / "run.json").read_text())
        facts["cache"] = str((run / facts["cache"]).resolve())
        (kept / "run.json").write_text(json.dumps(facts))
        change(kept, facts)
        found, nothing, unknown = doctor.examine(run_record.read_record(kept))
        shutil.rmtree(kept)
        assert not found
        return nothing, unknown

    nothing, unknown = lost(lambda kept, _: (kept / "metrics.csv").unlink())
    assert nothing == ["memorising", "too few pictures"]
    assert unknown["diverged"] == "there is no metrics.csv yet"
    nothing, unknown = lost(lambda kept, _: (kept / "metrics.csv").write_text("step,x\n1,2,3\n"))
    assert "damaged" in unknown["diverged"]
    nothing, unknown = lost(lambda kept, _: (kept / "metrics.csv").write_text("step\n1\n2\n3\n4\n"))
    assert unknown["discriminator has won"] == "the run says nothing of 'loss_d'"
    nothing, unknown = lost(lambda kept, _: (kept / "generator.safetensors").write_bytes(b"no"))
    assert nothing == ["diverged", "too few pictures"]
    assert "generator.safetensors is damaged" in unknown["memorising"]
    (run / "parameters.json").unlink()
    with pytest.raises(runs.InputError, match=r"parameters\.json: no such file"):
        call(monkeypatch, capsys, run)


def test_weights_that_are_no_numbers_are_a_divergence(run):
    weights, about = load_file(run / "generator.safetensors"), runs.load_generator(run)[1]
    next(w for w in weights.values() if w.is_floating_point()).view(-1)[0] = torch.nan
    save_file(weights, run / "generator.safetensors", {"about": json.dumps(about)})
    found, _, unknown = doctor.examine(run_record.read_record(run))
    assert list(found) == ["diverged"] and "there are no samples" in unknown["memorising"]


@pytest.mark.parametrize("lost", ["nothing", "cache", "cache and place"])
def test_nothing_is_written(run, lost, data_dir, tmp_path, monkeypatch, capsys):
    facts = json.loads((run / "run.json").read_text())
    cache = (run / facts["cache"]).resolve()
    if lost == "cache":  # the pictures must be drawn again
        copy = tmp_path / "data"
        settings = json.loads((run / "parameters.json").read_text()) | {"data_dir": str(copy)}
        (run / "parameters.json").write_text(json.dumps(settings))
        (run / "run.json").write_text(json.dumps(facts | {"cache": "gone"}))
    elif lost == "cache and place":  # those decoded before are known by their digest
        (run / "run.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "cache"}))
        monkeypatch.setattr(load("DCGAN").data, "draw_faces", None)
    before = files_in(run, data_dir, tmp_path)
    scratch = tmp_path / "scratch"
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(run_record.tempfile, "tempdir", None)
    scratch.mkdir()
    text = call(monkeypatch, capsys, run)
    scratch.rmdir()  # it is empty
    assert files_in(run, data_dir, tmp_path) == before
    assert "not seen: diverged, memorising" in text and cache.is_file()


def test_pictures_that_would_be_downloaded_are_not(run):
    settings = json.loads((run / "parameters.json").read_text()) | {"data": "mnist"}
    facts = json.loads((run / "run.json").read_text()) | {"cache": "gone"}
    facts["pictures"]["digest"] = "of others"
    (run / "parameters.json").write_text(json.dumps(settings))
    (run / "run.json").write_text(json.dumps(facts))
    record = run_record.read_record(run)
    assert record.trained is None and "mnist are no longer in" in record.missing["trained"]


def test_long_work_shows_a_bar(run, monkeypatch):
    seen = set()

    def tqdm(items, name, *rest, **how):
        assert how["disable"] is None  # only where there is a terminal
        seen.add(name)
        return items

    for module in (run_record, sys.modules["generate"]):
        monkeypatch.setattr(module, "tqdm", tqdm)
    doctor.examine(run_record.read_record(run))
    assert seen == {"drawing", "shrinking", "nearest"}


def test_the_command_line(run, tmp_path):
    def python(*argv):
        argv = [sys.executable, TOP / "doctor.py", *argv]
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)

    done = python(run)
    assert done.returncode == 0 and done.stdout.startswith("DCGAN short") and not done.stderr
    done = python("nowhere")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "nowhere: not a run" in done.stderr


def test_help_has_examples_that_work(capsys):
    with pytest.raises(SystemExit):
        doctor.parse_arguments(["--help"])
    examples = [line for line in capsys.readouterr().out.splitlines() if "python doctor.py" in line]
    assert len(examples) == 4
    for example in examples:
        words = example.split("  ")[2].split()
        assert doctor.parse_arguments(words[2:])


# ---- What the findings say ----


@pytest.mark.parametrize(("name", "model"), CASES)
def test_findings_have_evidence_a_source_and_flags_that_exist(faces, name, model):
    files = load(model)
    for seed in range(3):
        changes = {"lr": [1e-5, 1e-3, 1.0][seed], "max_steps": 100 * seed, "n_critic": 1 + seed}
        changes |= {"lambda_gp": 0.1, "clip_value": 1e-3} if seed else {}
        changes |= {"minimax": False, "k": 3, "precision": "bf16", "beta1": 0.9}
        known = {field.name for field in dataclasses.fields(files.train.Config)}
        settings = SETTINGS[model] | {k: v for k, v in changes.items() if k in known}
        well = dataclasses.replace(
            healthy(model, seed, faces), settings=settings, sampled_at=10**6, resume="--resume X"
        )
        well = changed(well, step=1000 * well.rows["step"])
        found, *_ = doctor.examine(SICK[name](well, np.random.default_rng(seed)))
        finding = found[name]
        assert "arXiv:" in finding.source and finding.advice
        assert finding.evidence or "diverged" in finding.seen
        for advice in finding.advice:
            start, *words = shlex.split(advice.partition(": ")[0])
            if start == "cd":
                assert words[:5] == [model, "&&", "python", "train.py", "--resume"]
                words = words[6:]
            elif start.startswith("--"):
                words = [start, *words]
            else:
                continue
            files.utils.parse_config(files.train.Config, words)


def test_usual_step_sizes_are_those_of_train_py(files):
    assert symptoms.USUAL_LR[files.utils.HERE.name] == files.train.Config().lr
