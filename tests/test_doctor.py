"""The doctor finds what was made sick on purpose, and lets healthy runs be."""

import dataclasses
import json
import shlex

import numpy as np
import pytest
from conftest import FOLDERS, TOP, load
from PIL import Image

import doctor
import run_record
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
    slope = rng.choice([10 ** rng.uniform(0.25, 2), rng.uniform(0, 0.3)])
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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", FOLDERS)
def test_a_single_loss_that_is_no_number_is_seen(faces, model, value):
    for name in ("loss_d", "loss_g"):
        record = healthy(model, 0, faces)
        record.rows[name][-4] = value
        found = doctor.examine(record)[0]["diverged"]
        assert found.evidence[0][0] == name and not np.isfinite(found.evidence[0].value)


def test_a_discriminator_has_won_if_it_is_right_and_sure(faces):
    record = make_won(healthy("simpleGAN", 0, faces), np.random.default_rng(0))
    assert symptoms.discriminator_won(record)
    wrong = changed(record, loss_d=record.rows["loss_d"] + 0.2)
    assert symptoms.discriminator_won(wrong) is None
    flat = changed(record, loss_g=-record.rows["d_fake"])  # log(1 - D(G(z)))
    flat = dataclasses.replace(flat, settings=flat.settings | {"minimax": True})
    finding = symptoms.discriminator_won(flat)
    assert finding.evidence[1].metric == "d_fake" and finding.advice[0].startswith("--no-minimax")


@pytest.mark.parametrize(("blend", "found"), [(0, True), (0.15, True), (0.18, False), (1, False)])
def test_a_generator_repeats_itself_if_most_pictures_have_a_near_twin(faces, blend, found):
    """Each of 128 faces comes twice, the second time with a part of another face in it."""
    record = healthy("DCGAN", 0, faces)
    faces_a, faces_b = np.split(faces[2][:256].astype(float), 2)
    twins = (1 - blend) * faces_a + blend * faces_b
    samples = np.concatenate([faces_a, twins]).round().astype(np.uint8)
    finding = symptoms.collapsed(dataclasses.replace(record, samples=samples))
    assert bool(finding) == found
    if found and blend:
        assert 0.4 < finding.evidence[0].value < 0.5


@pytest.mark.parametrize(("penalty", "off"), [(0.25, None), (0.35, None), (0.4, 0.632), (9, 3)])
def test_the_penalty_holds_while_slopes_are_near_1(faces, penalty, off):
    record = healthy("WGAN-GP", 0, faces)
    finding = symptoms.penalty_off(
        changed(record, penalty=np.full_like(record.rows["step"], penalty))
    )
    assert (finding and finding.evidence[0].value) == (off and pytest.approx(off, rel=1e-3))


def test_an_estimate_of_0_is_right_where_samples_are_as_good_as_real(faces):
    record = healthy("WGAN", 0, faces)
    none = np.random.default_rng(0).normal(0, 1, len(record.rows["step"]))
    good = dataclasses.replace(changed(record, wasserstein=none), samples=faces[2][:256])
    assert symptoms.critic_weak(good) is None
    bad = dataclasses.replace(good, samples=faces[2][:256] // 2)
    share, far = symptoms.critic_weak(bad).evidence
    assert share.metric == "share of rows at or below 0" and 0.2 < share.value < 0.8
    assert far.value > 2


def test_a_fall_is_measured_over_the_last_third_however_many_rows_there_are(faces):
    for n in (30, 300, 3000):
        rows = {"step": np.arange(1.0, n + 1), "wasserstein": 4 - 3 * np.arange(n) / n}
        finding = symptoms.still_falling(dataclasses.replace(healthy("WGAN", 0, faces), rows=rows))
        fall, lower = finding.evidence
        assert fall.value == pytest.approx(1 / 1.5, rel=0.15) and lower.value == 1
        assert fall.when.startswith(f"steps {n * 2 // 3 + 1:,} to")
    assert lower.threshold == "above 0.57"  # of 100 means: all pairs of rows would be too many


def test_few_pictures_are_compared_with_as_far_as_they_go(faces):
    record = healthy("DCGAN", 0, faces)
    twice = np.repeat(faces[2][:10], 26, 0)
    alike = dataclasses.replace(record, samples=twice, trained=faces[0][:20])
    assert symptoms.collapsed(alike) is None  # nearest of 20 are farther off than of 256
    assert symptoms.collapsed(dataclasses.replace(alike, trained=faces[0]))
    with pytest.raises(symptoms.CannotTell, match="5 training pictures"):
        symptoms.collapsed(dataclasses.replace(record, trained=faces[0][:5]))


def faster(monkeypatch, files, *factors):
    """Change the step sizes of the two networks, first the generator's."""
    name = "RMSprop" if hasattr(files.train, "RMSprop") else "Adam"
    optimizer, left = getattr(files.train, name), iter(factors)
    change = lambda parameters, lr, **how: optimizer(parameters, lr * next(left), **how)  # noqa: E731
    monkeypatch.setattr(files.train, name, change)


FROZEN, RUNAWAY = (1e-3, 1), (10, 1e-3)
FEW = {"data": "few", "epochs": 2000, "hold_out": 64}
COPYING = {"lr": 1e-3, "beta1": 0.5, "g_width": 16, "d_width": 16, "max_steps": 600}
FALLING = {"lr": 3e-3, "beta1": 0.5, "g_width": 8, "d_width": 4, "batch_size": 32}
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
    ("estimate still falling", "WGAN-GP", (1, 1), FALLING | {"max_steps": 110, "log_every": 1}),
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
