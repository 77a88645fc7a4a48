"""What can be wrong with a run: one function for each finding, which doctor.py calls in turn.

Each takes a `Record` and returns a `Finding`, or None where it sees nothing; where the record
lacks what it needs, it raises `CannotTell`. The thresholds were set between what healthy runs
of the four models showed and what runs did that were made sick on purpose (32x32 and 16x16,
drawn faces and photographs). "Healthy" below gives the worst that a healthy run showed.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from generate import nearest
from run_record import SAMPLES, Record, distances, farness, small, some, spread

GANS, WASSERSTEIN = ("simpleGAN", "DCGAN"), ("WGAN", "WGAN-GP")
USUAL_LR = {"simpleGAN": 5e-5, "DCGAN": 5e-5, "WGAN": 5e-5, "WGAN-GP": 1e-4}  # of train.py

TAIL = 0.25  # of the rows: what the run does now
LEAST_ROWS = 4  # fewer say nothing
# lr * steps is about the farthest that a weight has moved; weights begin with a spread of 0.02.
SETTLED = 0.05  # by then the critic's weights and slopes are no longer those of the beginning
GROWN = 0.1  # by then pictures differ: a simpleGAN draws one face over and over until 0.07

BLOWN_UP = 1000  # a cross entropy. Healthy: 10; discriminator has won: 300; diverged: 8e3 to 1e18
# loss_d is 1.39 for a discriminator that guesses, 0 for one that is right and sure. Healthy: 0.09
SURE = 0.1
# -log D(G(z)): it takes fakes for real with a chance of 1 in 1,100. Healthy: 4.8
SURE_OF_FAKES = 7.0
FAKES_WITH_MINIMAX = 0.001  # D(G(z)); loss_g says less then. Healthy: 0.04

# Mean distance of two samples, by that of two real pictures. Healthy: 0.38; one face only: 0.25
LEAST_DIVERSITY = 0.3
# Distance to the nearest other sample by the mean distance, by the same of real pictures: falls
# to 0 as samples gather round a few points. Healthy: 0.6 (simpleGAN) to 1.5; DCGAN/faces-64: 0.495
LEAST_APART = 0.5

# Root of the mean of (slope - 1)^2, which `penalty` is. Healthy: 0.36, at 64x64 with steps of 5e-4
# 0.5; lambda 1: 1; 0.1: 9
SLOPE_OFF = 0.6
# Share of critic weights at the bound. The first clip pins 62% of weights drawn from N(0, 0.02),
# and a slow start keeps them there. Healthy: 0.58; steps thirty times the bound: 0.86 to 1
PINNED = 0.7

# A constant critic scores 0, so a trained one must stay above. Healthy: no such rows
NEGATIVE_ROWS = 0.2
LEAST_SIGNAL = 2.0  # estimate by its jumps from row to row. Healthy: 10; critic too weak: below 1
VANISHED = 1e-8  # RMSProp and Adam add this to the size of gradients: smaller ones move little
# Sliced distance of samples and real pictures, by that of real pictures among themselves: from
# here on they differ, and an estimate of 0 is wrong. Healthy, at the end: 1.3 to 6.6
FAR = 2.0

TREND = 1 / 3  # of the rows
TREND_ROWS = 18  # fewer show no trend
TREND_POINTS = 100  # means of so many rows each that no more are left
DEVIATIONS = 2.0  # beyond chance, of the pairs of times of which the later is lower (Mann, Kendall)
FALL = 0.05  # by which the estimate must fall over these rows, or it is as good as flat

# "Only a few thousand" is where the ADA paper puts good results, and that with its augmentation,
# which is not used here.
FEW = 2000
FEWEST = 8  # to compare anything with

LEAST_HELD_OUT = 50  # fewer do not show what is near
NEAR = 0.05  # as near as this share of the held-out pictures
COPIES = 0.25  # of the samples so near; 0.05 by chance. Healthy: 0.01; memorising: 0.6 to 1


class CannotTell(Exception):
    """What a check needs is not in the record; the message says what."""


class Evidence(NamedTuple):
    """One measured value, and the threshold that it crossed."""

    metric: str
    when: str
    value: float
    threshold: str


@dataclass(frozen=True)
class Finding:
    """What is seen, by what, what to try (each line begins with a flag or a verb), who says so."""

    seen: str
    evidence: list[Evidence]
    advice: list[str]
    source: str


# ---- What the checks share ----


def last_rows(record: Record, share: float = TAIL, least: int = LEAST_ROWS) -> dict[str, Any]:
    """Return the last rows by column, three at least, and under `when` which steps they are."""
    count = len(record.rows.get("step", ()))
    if count < least:
        reason = f"metrics.csv has {count} rows, and this takes {least}"
        raise CannotTell(record.missing.get("rows", reason))
    kept = {name: column[-max(3, round(count * share)) :] for name, column in record.rows.items()}
    kept["when"] = f"steps {kept['step'][0]:,.0f} to {kept['step'][-1]:,.0f}"
    return kept


def needed(record: Record, *names: str) -> list[np.ndarray]:
    """Return these fields of the record.

    Raises:
        CannotTell: one of them is None, or there are too few pictures to compare with.
    """
    for name in names:
        if getattr(record, name) is None:
            raise CannotTell(record.missing.get(name, f"there are no {name.replace('_', ' ')}"))
        if name == "trained" and len(record.trained) < FEWEST:
            raise CannotTell(f"{len(record.trained)} training pictures show no variety")
    return [getattr(record, name) for name in names]


def not_young(record: Record, step: float, moved: float) -> None:
    """Raise CannotTell while weights are about where they began: all runs look sick there."""
    lr = record.settings["lr"]
    if lr * step < moved:
        raise CannotTell(
            f"the run is too young: {step:,.0f} steps of size {lr:g}, and this takes "
            f"{np.ceil(moved / lr):,.0f}"
        )


def lower_lr(record: Record) -> str:
    """Advise a smaller step size: a quarter, or train.py's own if that is far smaller still."""
    lr, usual = record.settings["lr"], USUAL_LR[record.model]
    return f"--lr {usual if lr > 10 * usual else lr / 4:.3g}: this run's was {lr:g}"


# ---- The findings ----


def diverged(record: Record) -> Finding | None:
    """Losses that are no numbers, or of a size that no useful network gives."""
    advice = [lower_lr(record)]
    if record.settings.get("beta1", 0) > 0.5:
        advice.append("--beta1 0.5: more momentum made the DCGAN paper's training oscillate")
    if record.settings.get("precision") == "bf16":
        advice.append("--precision fp32: bf16 rounds to 8 bits")
    source = "DCGAN, arXiv:1511.06434, section 4; WGAN, arXiv:1701.07875, section 4: large steps "
    source += "and momentum make training unstable"
    seen = "The training has diverged: what the networks give has no more to do with the pictures."
    if "diverged" in record.log:
        line = next(line for line in record.log.splitlines() if "diverged" in line)
        return Finding(f"{seen} {line}", [], advice, source)
    if not record.finite:
        found = Evidence("weights", f"step {record.sampled_at:,}", np.nan, "not all are numbers")
        return Finding(seen, [found], advice, source)
    rows = last_rows(record, least=1)
    names = [name for name in rows if name not in ("epoch", "images", "seconds", "when")]
    for name in names:
        wrong = ~np.isfinite(record.rows[name])
        if wrong.any():
            step, value = record.rows["step"][wrong][0], record.rows[name][wrong][0]
            found = Evidence(name, f"step {step:,.0f}", value, "not a number")
            return Finding(seen, [found], advice, source)
    if record.model == "WGAN":
        return None  # the bound on the weights bounds the losses
    rows = {name: rows[name][-3:] for name in names}
    when = f"steps {rows['step'][0]:,.0f} to {rows['step'][-1]:,.0f}"
    if record.model == "WGAN-GP":  # a critic that says the same of all has slope 0, penalty 1
        limits = {"loss_d": (record.settings["lambda_gp"], "what a constant critic has")}
    else:
        limits = {name: (BLOWN_UP, "healthy: below 10") for name in ("loss_d", "loss_g")}
    found = [
        Evidence(name, when, np.median(rows[name]), f"above {limit:g}, {why}")
        for name, (limit, why) in limits.items()
        if np.median(rows[name]) > limit
    ]
    return Finding(seen, found, advice, source) if found else None


def discriminator_won(record: Record) -> Finding | None:
    """A discriminator that is sure of every picture; the generator learns nothing from it."""
    rows, settings = last_rows(record), record.settings
    minimax = settings.get("minimax", False)
    loss = np.median(rows["loss_d"])
    if minimax:
        name, value, limit = "d_fake", np.median(rows["d_fake"]), FAKES_WITH_MINIMAX
        sure, word = value < limit, "below"
    else:
        name, value, limit = "loss_g", np.median(rows["loss_g"]), SURE_OF_FAKES
        sure, word = value > limit, "above"
    if not (loss < SURE and sure):
        return None
    advice = ["--no-minimax: log(1 - D(G(z))) is flat where D is sure"] if minimax else []
    if settings.get("k", 1) > 1:
        advice.append(f"--k 1: this run's was {settings['k']}")
    width = settings["d_width"]
    if width > 1:
        advice.append(f"--d-width {width // 2}: a weaker discriminator; this run's was {width}")
    if "dropout" in settings and settings["dropout"] < 0.5:
        advice.append(
            f"--dropout 0.5: a weaker discriminator; this run's was {settings['dropout']}"
        )
    if settings["lr"] > 2e-4:
        advice.append(f"--lr 2e-4: the DCGAN paper's; this run's was {settings['lr']:g}")
    advice.append("Train the WGAN-GP on the same pictures: its critic may be as good as it can")
    return Finding(
        "The discriminator has won: it is sure of real and of generated pictures alike, and the "
        "generator gets next to no gradient to learn from.",
        [
            Evidence("loss_d", rows["when"], loss, f"below {SURE}"),
            Evidence(name, rows["when"], value, f"{word} {limit:g}"),
        ],
        advice,
        "GAN, arXiv:1406.2661, section 3; Arjovsky and Bottou, arXiv:1701.04862, theorem 2.4: "
        "the generator's gradient vanishes as the discriminator nears its best",
    )


def collapsed(record: Record) -> Finding | None:
    """Samples that are nearly equal, or that gather round a few points."""
    samples, trained = needed(record, "samples", "trained")
    not_young(record, record.sampled_at, GROWN)
    real = small(some(trained, SAMPLES))
    mean, near = spread(small(samples))
    real_mean, real_near = (max(value, 1e-6) for value in spread(real))
    diversity = mean / real_mean
    apart = near / max(mean, 1e-6) / (real_near / real_mean)
    when = f"step {record.sampled_at:,}"
    if diversity < LEAST_DIVERSITY:
        seen = "The generator has collapsed: whatever the noise, its pictures are nearly equal."
        found = Evidence("diversity by real", when, diversity, f"below {LEAST_DIVERSITY}")
    elif apart < LEAST_APART and len(real) == SAMPLES:  # with fewer the nearest are farther off
        seen = "The generator has collapsed in part: it makes a few pictures over and over."
        found = Evidence("nearest twin by real", when, apart, f"below {LEAST_APART}")
    else:
        return None
    settings, advice = record.settings, []
    if record.model in GANS and settings["beta1"] > 0.5:
        advice.append(f"--beta1 0.5: the DCGAN paper's; this run's was {settings['beta1']:g}")
    if settings["lr"] > USUAL_LR[record.model]:
        advice.append(lower_lr(record))
    if record.model in GANS:
        advice.append(f"--batch-size {2 * settings['batch_size']}: more pictures to tell apart")
        advice.append(
            "Train the WGAN-GP on the same pictures: a critic that is sure still gives gradients"
        )
    else:
        advice.append(f"--n-critic {2 * settings['n_critic']}: a critic nearer to its best")
    advice.append("Look at the frames for the step at which it began")
    return Finding(
        seen,
        [found],
        advice,
        "Salimans et al., arXiv:1606.03498, section 3.2, on collapse; Arora and Zhang, "
        "arXiv:1706.08224, on twins among samples",
    )


def penalty_off(record: Record) -> Finding | None:
    """Slopes far from 1: the estimate is then of nothing in particular."""
    rows, settings = last_rows(record), record.settings
    not_young(record, rows["step"][-1], SETTLED)
    off, slope = np.sqrt(np.median(rows["penalty"])), np.median(rows["slope"])
    if not off > SLOPE_OFF:
        return None
    advice = [lower_lr(record)]
    if settings["lambda_gp"] < 10:
        advice.insert(0, f"--lambda-gp 10: the paper's; this run's was {settings['lambda_gp']:g}")
    if settings["beta1"] > 0:
        advice.append(f"--beta1 0: the paper's; this run's was {settings['beta1']:g}")
    if settings["n_critic"] < 5:
        advice.append(f"--n-critic 5: the paper's; this run's was {settings['n_critic']}")
    return Finding(
        "The gradient penalty does not hold: the critic's slopes are far from 1, so its estimate "
        "is not a distance.",
        [
            Evidence("root of penalty", rows["when"], off, f"above {SLOPE_OFF}"),
            Evidence("slope", rows["when"], slope, "should be near 1"),
        ],
        advice,
        "WGAN-GP, arXiv:1704.00028, section 4 and proposition 1: the best critic has slope 1",
    )


def clamp_saturated(record: Record) -> Finding | None:
    """Nearly all critic weights at the bound: little is left for the critic to say."""
    rows, settings = last_rows(record), record.settings
    not_young(record, rows["step"][-1], SETTLED)
    clipped = np.median(rows["clipped"])
    if not clipped > PINNED:
        return None
    lr, bound = settings["lr"], settings["clip_value"]
    advice = ["Train the WGAN-GP on the same pictures: it bounds slopes, not weights"]
    if bound < 0.01:
        advice.insert(0, f"--clip-value 0.01: the paper's; this run's was {bound:g}")
    if lr > bound / 200:
        note = f"the paper's part of the bound, a 200th; this run's was {lr:g}"
        advice.insert(0, f"--lr {bound / 200:.2g}: {note}")
    return Finding(
        "The clamp is saturated: nearly every weight of the critic lies at the bound, so the "
        "critic can be little but a very simple function.",
        [Evidence("clipped", rows["when"], clipped, f"above {PINNED}")],
        advice,
        "WGAN-GP, arXiv:1704.00028, sections 3.1 and 3.2: weights pushed to the bound, capacity "
        "left unused, gradients that vanish or explode",
    )


def critic_weak(record: Record) -> Finding | None:
    """An estimate about 0 while the samples are plainly not the real pictures."""
    rows, settings = last_rows(record, TREND), record.settings
    estimate = rows["wasserstein"]
    level = np.median(estimate)
    jumps = np.median(np.abs(np.diff(estimate))) / 0.954  # 0.954: so that noise has its deviation
    below = np.mean(estimate <= 0)
    if below > NEGATIVE_ROWS:
        sign = ("share of rows at or below 0", rows["when"], below, f"above {NEGATIVE_ROWS}")
    elif level < VANISHED:
        sign = ("wasserstein", rows["when"], level, f"below {VANISHED:g}: gradients too small")
    elif level < LEAST_SIGNAL * jumps:
        sign = ("wasserstein by its jumps", rows["when"], level / jumps, f"below {LEAST_SIGNAL:g}")
    else:
        return None
    samples, trained = needed(record, "samples", "trained")
    far = farness(small(samples), small(some(trained, 2 * len(samples))))
    if far < FAR:
        return None  # there is hardly a distance to estimate
    found = [
        Evidence(*sign),
        Evidence("distance by real", f"step {record.sampled_at:,}", far, f"above {FAR:g}"),
    ]
    calls, width = settings["n_critic"], settings["d_width"]
    advice = [
        f"--n-critic {max(5, 2 * calls)}: this run's was {calls}",
        f"--d-width {max(64, 2 * width)}: this run's was {width}",
    ]
    bound = settings.get("clip_value", 1)
    if bound < 0.01:
        advice.insert(0, f"--clip-value 0.01: the paper's; this run's was {bound:g}")
    return Finding(
        "The critic is too weak: it tells the samples from real pictures no better than chance, "
        "although they differ, so its estimate means nothing.",
        found,
        advice,
        "WGAN, arXiv:1701.07875, section 3: the estimate holds for a critic trained to its best; "
        "a constant one would reach 0",
    )


def still_falling(record: Record) -> Finding | None:
    """An estimate that goes on falling: the pictures are still getting better."""
    rows = last_rows(record, TREND, TREND_ROWS)
    count = min(len(rows["step"]), TREND_POINTS)
    steps, estimate = (
        np.array([part.mean() for part in np.array_split(rows[name], count)])
        for name in ("step", "wasserstein")
    )
    level = np.median(estimate)
    first, second = np.triu_indices(count, 1)
    change = estimate[second] - estimate[first]
    rate = np.median(change / (steps[second] - steps[first]))  # Theil and Sen's slope
    fall, lower = -rate * (steps[-1] - steps[0]) / level, np.mean(change < 0)
    chance = 0.5 + DEVIATIONS * np.sqrt((2 * count + 5) / (18 * count * (count - 1)))
    if not (level > 0 and fall > FALL and lower > chance):
        return None
    settings = record.settings
    longer = "".join(
        f" --{name.replace('_', '-')} {2 * settings[name]:g}"
        for name in ("epochs", "max_steps", "max_seconds")
        if settings.get(name)
    )
    return Finding(
        "Train on: the estimate is still falling, so the pictures are still getting better.",
        [
            Evidence("fall of wasserstein", rows["when"], fall, f"above {FALL}, of its level"),
            Evidence("pairs of times, later lower", rows["when"], lower, f"above {chance:.2f}"),
        ],
        [f"cd {record.model} && python train.py {record.resume}{longer}"],
        "WGAN, arXiv:1701.07875, section 4.2: the estimate falls as samples improve",
    )


def few_pictures(record: Record) -> Finding | None:
    """Too few pictures for a GAN without augmentation."""
    (count,) = needed(record, "count")
    if count >= FEW:
        return None
    width = record.settings["d_width"]
    return Finding(
        "There are few pictures: the discriminator soon knows them by heart, and what it then "
        "tells the generator grows meaningless.",
        [Evidence("training pictures", "", count, f"below {FEW:,}")],
        [
            "Add pictures: a few thousand of one kind",
            f"--d-width {max(1, width // 2)}: learns by heart more slowly; this run's was {width}",
            f"--hold-out {max(LEAST_HELD_OUT, count // 10)}: shows when samples become copies",
        ],
        "ADA, arXiv:2006.06676, abstract and section 2: too few pictures make the discriminator "
        "overfit; a few thousand serve, with augmentation",
    )


def memorising(record: Record) -> Finding | None:
    """Samples nearer to training pictures than unseen real pictures are.

    How near is near differs from place to place, and blurred samples are near everything; so
    for each picture it is the nearest training picture by the nearest held-out one.
    """
    samples, trained, held_out = needed(record, "samples", "trained", "held_out")
    if len(held_out) < LEAST_HELD_OUT:
        raise CannotTell(
            f"{len(held_out)} pictures are held out, and this takes {LEAST_HELD_OUT}: "
            f"train with --hold-out {max(LEAST_HELD_OUT, (len(trained) + len(held_out)) // 10)}"
        )
    made, unseen = small(samples), small(some(held_out, 1000))
    _, to_trained = nearest(np.concatenate([made, unseen]), small(trained))
    among_unseen = distances(unseen, unseen)
    np.fill_diagonal(among_unseen, np.inf)
    to_unseen = np.concatenate([distances(made, unseen).min(1), among_unseen.min(1)])
    ratios = to_trained / to_unseen.clip(1e-6)
    near = np.quantile(ratios[len(made) :], NEAR)
    copies = np.mean(ratios[: len(made)] < near)
    if not copies > COPIES:
        return None
    settings = record.settings
    return Finding(
        "The generator is memorising: its samples lie as near to training pictures as hardly any "
        "unseen real picture does.",
        [Evidence("share of copies", f"step {record.sampled_at:,}", copies, f"above {COPIES}")],
        [
            "Add pictures",
            f"--max-steps {max(1, record.sampled_at // 2)}: stop earlier",
            f"--g-width {max(1, settings['g_width'] // 2)}: less room for pictures; this run's was "
            f"{settings['g_width']}",
        ],
        "Meehan, Chaudhuri and Dasgupta, arXiv:2004.05675: data-copying, tested against held-out "
        "pictures",
    )
