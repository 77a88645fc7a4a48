"""Say in plain words what is wrong with a run: the evidence, what to try, and a source.

It reads the curves, draws samples with the saved generator, and compares them with the training
images. It changes nothing in the run folder, and works while the training is going on. A run whose
losses or columns it does not know is judged by the rest.

Examples:
    python doctor.py            the newest run of every model
    python doctor.py WGAN-GP    the newest run of one model; or any run by its name or path

The thresholds lie between what was measured in healthy and in deliberately broken runs.
"""

import math
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from inspect import getdoc
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import runs
from compare import read_runs
from generate import batch_size, draw, noise

TEXTURE = "Train on images with more texture, such as photographs, and for more steps"
OTHER_MODEL = "Train the WGAN-GP on the same images: a critic that is right still gives gradients"
FEW_IMAGES = 300  # below this number, images of one kind are soon known by heart


class Finding(NamedTuple):
    """A problem of a run. Each line of `advice` begins with a flag of train.py or with a verb."""

    name: str
    summary: str
    evidence: list[str]
    advice: list[str]
    source: str


class Unjudged(Exception):
    """Why a check says nothing about a run."""


class Run:
    """A run folder, and how much of it can be judged."""

    def __init__(self, path: Path) -> None:
        (known,) = read_runs([path])
        self.path, self.model, self.rows = path, known.model, known.rows
        self.facts, self.settings = known.facts, known.settings
        self.lr, self.beta1 = self.settings.get("lr", math.inf), self.settings.get("beta1", 0)
        self.step = int(max(self.rows["step"], default=0))
        self.largest_lr = max([self.lr, *self.facts.get("lr_until_step", {}).values()])
        # lr * steps is how far a weight can move. A simple GAN draws a single face until 0.12.
        self.least_steps = math.ceil(round(0.15 / self.largest_lr, 6))

    def end_of(self, *columns: str) -> pd.DataFrame:
        """Return the last quarter of some columns, three rows at least."""
        self.require(self.step)
        if missing := [name for name in columns if name not in self.rows]:
            raise Unjudged(f"metrics.csv has no {', '.join(missing)}")
        if (count := len(self.rows)) < 4:
            raise Unjudged(f"metrics.csv has {count} of the 4 rows needed")
        return self.rows[[*columns]].tail(max(3, round(count / 4)))

    def last(self, column: str) -> float:
        """Return the median of the end of a column."""
        return self.end_of(column)[column].median()

    def require(self, step: int) -> None:
        """Raise Unjudged if a step is too early to judge."""
        if step < (least := self.least_steps):
            raise Unjudged(f"step {step:,} of {least:,} needed at lr {self.largest_lr:g}")

    def require_cross_entropy(self) -> None:
        """Raise Unjudged if the losses are others, hinge or least squares for example.

        By Jensen's inequality -log D(x) is on average at least -log of the average of D(x).
        """
        end = self.end_of("loss_d", "d_real", "d_fake")  # the last two are averages
        least = -np.log((end["d_real"] * (1 - end["d_fake"])).clip(1e-6))
        if end["loss_d"].mean() < 0.98 * least.mean():
            raise Unjudged("loss_d is not the cross-entropy of d_real and d_fake")

    def flags(self, **wanted: Any) -> list[str]:
        """Return flags for the settings that this model has and that are not as wanted."""
        new = {name: x for name, x in wanted.items() if self.settings.get(name, x) != x}
        return [f"--{n.replace('_', '-')} {x} (was {self.settings[n]})" for n, x in new.items()]


def crossed(name: str, value: float, side: str, limit: float) -> list[str]:
    """Return the evidence if a value is above or below its limit."""
    found = value > limit if side == "above" else value < limit
    return [f"{name} = {value:,.4g} ({side} {limit:,})"] if found else []


def spread(images: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return the mean image, small; the mean distance of two; the median one to the nearest."""
    count, side = images.shape[:2]
    blocks = images.reshape(count, 8, side // 8, 8, side // 8, -1)
    small = blocks.mean((2, 4), "f4").reshape(count, -1)  # 8x8 mean colors: no noise, no edges
    apart = np.linalg.norm(small[:, None] - small, axis=2)
    near = np.median(np.sort(apart, 1)[:, :2].max(1))
    return small.mean(0), apart.sum() / (count * (count - 1)), near


# ---- Checks: each returns evidence, none if there is no problem, and advice ----
# Its docstring is what the report says. Unjudged says why it cannot be judged.


def diverged(run: Run) -> tuple[list[str], list[str]]:
    """The losses are not finite, or larger than those of any useful network.

    WGAN, arXiv:1701.07875, section 4: large steps and momentum make training unstable.
    """
    log = run.path / "train.log"
    advice = run.flags(lr=min(run.lr / 4, 2e-4), beta1=min(0.5, run.beta1))
    last = log.read_text("utf-8", "replace").strip().split("\n")[-1] if log.is_file() else ""
    if "diverged" in last:
        return [last.removeprefix("error").strip()], advice
    if "wasserstein" not in run.rows:
        run.require_cross_entropy()
    # healthy: 10; discriminator has won: 300; diverged: 2e3 to 1e18
    return crossed("loss_g", run.last("loss_g"), "above", 1000), advice


def too_short(run: Run) -> tuple[list[str], list[str]]:
    """It ended while its weights were close to their initial values.

    The quick-faces runs in results/ took at least twice as many steps as this, for their lr.
    """
    if run.model not in runs.PAPERS:
        raise Unjudged(f"how many steps {run.model} needs is not known")
    if not run.facts.get("finished"):
        run.require(run.step)
    batch = run.settings["batch_size"] * run.facts.get("processes", 1)
    steps = max(1, run.facts["pictures"]["shape"][0] // batch)  # in an epoch
    epochs = max(math.ceil(2 * run.least_steps / steps), run.settings.get("epochs", 0))
    advice = run.flags(epochs=epochs, max_steps=0, max_seconds=0)
    return crossed(f"steps at lr {run.largest_lr:g}", run.step, "below", run.least_steps), advice


def discriminator_has_won(run: Run) -> tuple[list[str], list[str]]:
    """It is sure of every image, so the generator gets next to no gradient.

    Arjovsky and Bottou, arXiv:1701.04862, theorem 2.4: gradients vanish as it nears its best.
    """
    if run.settings.get("minimax"):
        raise Unjudged("with --minimax the losses do not show it")
    run.require_cross_entropy()
    sure = crossed("loss_d", run.last("loss_d"), "below", 0.05)  # 1.39 if it guesses; won: 0.01
    fakes = crossed("loss_g", run.last("loss_g"), "above", 7)  # healthy: 6.8; won: 7.4 and more
    width, dropout = run.settings.get("d_width", 1), run.settings.get("dropout", 0.5)
    advice = run.flags(k=1, lr=run.lr / 2, d_width=max(1, width // 2), dropout=max(0.5, dropout))
    return sure and fakes and sure + fakes, [*advice, TEXTURE, OTHER_MODEL]


def generator_has_failed(run: Run) -> tuple[list[str], list[str]]:
    """Its images are nearly equal, repeat each other, or are far from the training images.

    Salimans et al., arXiv:1606.03498, section 3.2; Arora and Zhang, arXiv:1706.08224.
    """
    try:
        generator, about = runs.load_generator(run.path)
        trained, _ = runs.load_images(run.path, more_faces=0)
    except runs.utils().InputError as error:
        raise Unjudged(str(error)) from None
    run.require(about["step"])
    zs = islice(noise(0, about["z_dim"]), 256)
    drawn = np.concatenate(list(draw(generator, zs, batch_size(about["image_size"]))))
    real = trained[np.random.default_rng(0).permutation(len(trained))[:256]]
    (middle, mean, near), (real_middle, real_mean, real_near) = spread(drawn), spread(real)
    # healthy: 0.38 and more; a single face: 0.25
    evidence = crossed("variety / that of real images", mean / real_mean, "below", 0.3)
    if not evidence and len(real) == 256:  # the nearest of fewer are farther away
        apart = near / mean * real_mean / real_near  # healthy: 0.6 to 1.5; few faces: below 0.495
        evidence = crossed("distance to the nearest / that of real images", apart, "below", 0.5)
    off = np.linalg.norm(middle - real_middle) / real_mean  # healthy: up to 0.33; stripes: 1.5
    evidence += crossed("distance of mean images / that of two real images", off, "above", 0.7)
    n_critic = run.settings.get("n_critic", 0)
    advice = run.flags(beta1=min(0.5, run.beta1), lr=min(run.lr, 2e-4), n_critic=2 * n_critic)
    return evidence, advice if n_critic else [*advice, OTHER_MODEL]


def penalty_does_not_hold(run: Run) -> tuple[list[str], list[str]]:
    """The norms of the critic's gradients are far from 1, so its estimate is not a distance.

    WGAN-GP, arXiv:1704.00028, proposition 1 and section 4.
    """
    off = math.sqrt(run.last("penalty"))  # healthy: up to 0.65; lambda 1: 1; lambda 0.1: 9
    evidence = crossed("root of penalty", off, "above", 0.7)
    advice = run.flags(lambda_gp=max(10.0, run.settings["lambda_gp"]), beta1=0.0, lr=run.lr / 4)
    return evidence, advice


def clamp_is_saturated(run: Run) -> tuple[list[str], list[str]]:
    """Nearly all weights of the critic lie at the bound, so it can only be a simple function.

    WGAN-GP, arXiv:1704.00028, sections 3.1 and 3.2.
    """
    evidence = crossed("clipped", run.last("clipped"), "above", 0.7)  # healthy: 0.58; sick: 0.86
    bound = max(0.01, run.settings["clip_value"])  # the paper's, as is its ratio to the step
    return evidence, [*run.flags(clip_value=bound, lr=min(run.lr, bound / 200)), OTHER_MODEL]


def critic_is_blind(run: Run) -> tuple[list[str], list[str]]:
    """Its estimate of the distance is noise around 0, so the generator learns nothing.

    WGAN, arXiv:1701.07875, section 3: a small bound on the weights lets gradients vanish.
    """
    negative = (run.end_of("wasserstein")["wasserstein"] <= 0).mean()
    evidence = crossed("share of negative wasserstein", negative, "above", 0.2)  # healthy: 0
    return evidence, [*run.flags(clip_value=max(0.01, run.settings["clip_value"])), OTHER_MODEL]


def examine(path: Path) -> tuple[list[Finding], dict[str, str]]:
    """Return what is wrong with a run, and why it could not be judged, by the name of a check."""
    run, found, unjudged = Run(path), [], {}
    checks = [diverged, too_short, generator_has_failed]
    if "clip_value" in run.settings:
        checks += [clamp_is_saturated, critic_is_blind]
    elif "lambda_gp" in run.settings:
        checks += [penalty_does_not_hold]
    else:
        checks += [discriminator_has_won]
    for check in checks:
        name, (summary, source) = check.__name__.replace("_", " "), getdoc(check).split("\n\n")
        try:
            evidence, advice = check(run)
            found += [Finding(name, summary, evidence, advice, source)] * bool(evidence)
        except Unjudged as error:
            unjudged[name] = str(error)
    return found, unjudged


def report(run: Path) -> str:
    """Say what is wrong with a run, and what could not be judged."""
    (found, unjudged), facts, here = examine(run), runs.read_facts(run), run.resolve()
    file = here / "parameters.json"
    lines = [f"{facts['model']} {here.name}: {run}"]
    for finding in found:
        lines += ["", f"{finding.name.capitalize()}: {finding.summary}"]
        lines += [f"   evidence  {text}" for text in finding.evidence]
        lines += [f"   try       {text}" for text in finding.advice]
        lines += [f"   source    {finding.source}"]
    train = (here / "../../../train.py").resolve()  # of a model folder, maybe a copy
    train = train if train.exists() else runs.TOP / facts["model"] / "train.py"
    again = f'To train again, with flags to try: python "{train}" --config "{file}" ...'
    nothing = "No problems found" + " in what could be judged" * bool(unjudged) + "."
    lines += ["", f"{again}\n" if found else nothing]
    if (count := facts["pictures"]["shape"][0]) < FEW_IMAGES:
        lines += [f"Remark: {count} training images are few; expect little variety."]
    lines += [f"Not judged: {name}: {reason}." for name, reason in unjudged.items()]
    return "\n".join(lines)


def main() -> None:
    """Report on the runs that the command line names."""
    parser = ArgumentParser(None, SUPPRESS, __doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="path or name of a run, or a model")
    arguments = parser.parse_args()
    with runs.utils().plain_errors():
        print("\n\n".join(map(report, runs.find_runs(arguments.runs))))


if __name__ == "__main__":
    main()
