"""Say in plain words what is wrong with a run: the evidence, what to try, and a source.

It reads the curves, draws samples with the saved generator, and compares them with the training
images. It changes nothing in the run folder, and works while the training is going on.

Examples:
    python doctor.py            the newest run of every model
    python doctor.py WGAN-GP    the newest run of one model; or any run by its name or path

The thresholds lie between what was measured in healthy runs and in runs made sick on purpose.
"""

import math
import os
import shlex
import subprocess
from argparse import ArgumentParser, RawTextHelpFormatter
from inspect import getdoc
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import runs
from compare import read_runs
from generate import batch_size, draw, noise

OTHER_MODEL = "Train the WGAN-GP on the same images: a critic that is right still gives gradients"


class Finding(NamedTuple):
    """A problem of a run. Each line of `advice` begins with a flag of train.py or with a verb."""

    name: str
    summary: str
    evidence: list[str]
    advice: list[str]
    source: str


class Run:
    """What a run folder holds."""

    def __init__(self, path: Path) -> None:
        (known,) = read_runs([path])
        self.path, self.facts, self.settings, self.rows = (
            path,
            known.facts,
            known.settings,
            known.rows,
        )
        self.count, self.lr = self.facts["pictures"]["shape"][0], self.settings["lr"]
        self.step = int(max(self.rows["step"], default=0))
        self.largest_lr = max([self.lr, *self.facts.get("lr_until_step", {}).values()])
        # lr * steps is how far a weight can move. A simple GAN draws a single face until 0.07.
        self.least_steps = math.ceil(round(0.1 / self.largest_lr, 6))

    def last(self, column: str) -> float:
        """Return the median of the last quarter of a column, of three rows at least."""
        self.require(self.step)
        count = len(self.rows["step"])
        if count < 4:
            raise runs.InputError(f"metrics.csv has {count} of the 4 rows needed")
        return self.rows[column].tail(max(3, round(count / 4))).median()

    def require(self, step: int) -> None:
        """Raise InputError if a step is too early to judge."""
        if step < self.least_steps:
            needed = f"{self.least_steps:,} needed at lr {self.largest_lr:g}"
            raise runs.InputError(f"step {step:,} of {needed}")

    def flags(self, **wanted: Any) -> list[str]:
        """Return flags for the settings that this model has and that are not as wanted."""
        old = {name: self.settings.get(name, x) for name, x in wanted.items()}
        new = {name: x for name, x in wanted.items() if x != old[name]}
        return [f"--{name.replace('_', '-')} {x} (was {old[name]})" for name, x in new.items()]


def crossed(name: str, value: float, side: str, limit: float) -> list[str]:
    """Return the evidence if a value is above or below its limit."""
    found = value > limit if side == "above" else value < limit
    return [f"{name} = {value:,.4g} ({side} {limit:,})"] if found else []


def spread(images: np.ndarray) -> tuple[float, float]:
    """Return the mean distance of two images, and the median distance to the most similar other."""
    count, side = images.shape[:2]
    blocks = images.reshape(count, 8, side // 8, 8, side // 8, -1)
    small = blocks.mean((2, 4), "f4").reshape(count, -1)  # 8x8 mean colors: no noise, no edges
    apart = np.linalg.norm(small[:, None] - small, axis=2)
    return apart.sum() / (count * (count - 1)), np.median(np.sort(apart, 1)[:, :2].max(1))


# ---- Checks: each returns evidence, none if there is no problem, and advice ----
# Its docstring is what the report says. InputError says why it cannot be judged.


def diverged(run: Run) -> tuple[list[str], list[str]]:
    """The losses are not finite, or larger than those of any useful network.

    WGAN, arXiv:1701.07875, section 4: large steps and momentum make training unstable.
    """
    log, beta1 = run.path / "train.log", run.settings.get("beta1", 0)
    last = log.read_text("utf-8", "replace").strip().split("\n")[-1] if log.is_file() else ""
    evidence = [last.removeprefix("error").strip()] if "diverged" in last else []
    # healthy: 10; discriminator has won: 300; diverged: 2e3 to 1e18
    evidence = evidence or crossed("loss_g", run.last("loss_g"), "above", 1000)
    return evidence, run.flags(lr=min(run.lr / 4, 2e-4), beta1=min(0.5, beta1))


def too_short(run: Run) -> tuple[list[str], list[str]]:
    """It ended while its weights were close to their initial values.

    The runs in results/ took about three times as many steps as this, for their lr, or more.
    """
    if not run.facts.get("finished"):
        run.require(run.step)
    batch = run.settings["batch_size"] * run.facts.get("processes", 1)
    epochs = math.ceil(3 * run.least_steps / (run.count // batch))
    advice = run.flags(epochs=max(epochs, run.settings["epochs"]), max_steps=0, max_seconds=0)
    return crossed(f"steps at lr {run.largest_lr:g}", run.step, "below", run.least_steps), advice


def discriminator_has_won(run: Run) -> tuple[list[str], list[str]]:
    """It is sure of every image, so the generator gets next to no gradient.

    Arjovsky and Bottou, arXiv:1701.04862, theorem 2.4: gradients vanish as it nears its best.
    """
    if run.settings.get("minimax"):
        raise runs.InputError("with --minimax the losses do not show it")
    sure = crossed("loss_d", run.last("loss_d"), "below", 0.05)  # 1.39 if it guesses; won: 0.01
    fakes = crossed("loss_g", run.last("loss_g"), "above", 7)  # healthy: 6.8; won: 7.4 and more
    dropout = max(0.5, run.settings.get("dropout", 0.5))
    r1, half = run.settings.get("r1") or 1.0, max(1, run.settings["d_width"] // 2)
    advice = run.flags(k=1, r1=r1, d_width=half, dropout=dropout)
    return sure and fakes and sure + fakes, [*advice, OTHER_MODEL]


def generator_has_collapsed(run: Run) -> tuple[list[str], list[str]]:
    """Its images are nearly equal, or it repeats a few of them.

    Salimans et al., arXiv:1606.03498, section 3.2; Arora and Zhang, arXiv:1706.08224.
    """
    generator, about = runs.load_generator(run.path)
    run.require(about["step"])
    zs = islice(noise(0, about["arguments"]["z_dim"]), 256)
    drawn = list(draw(generator, zs, batch_size(about["arguments"]["image_size"])))
    trained, _ = runs.load_images(run.path, more_faces=0)
    real = trained[np.random.default_rng(0).permutation(len(trained))[:256]]
    (mean, near), (real_mean, real_near) = spread(np.concatenate(drawn)), spread(real)
    # healthy: 0.38 and more; a single face: 0.25
    evidence = crossed("variety / that of real images", mean / real_mean, "below", 0.3)
    if not evidence and len(real) == 256:  # the nearest of fewer are farther away
        apart = near / mean * real_mean / real_near  # healthy: 0.6 to 1.5; few faces: below 0.495
        evidence = crossed("distance to the nearest / that of real images", apart, "below", 0.5)
    beta1, n_critic = run.settings.get("beta1", 0), run.settings.get("n_critic", 0)
    r1 = run.settings.get("r1") or 1.0
    advice = run.flags(r1=r1, beta1=min(0.5, beta1), lr=min(run.lr, 2e-4), n_critic=2 * n_critic)
    return evidence, advice if n_critic else [*advice, OTHER_MODEL]


def penalty_does_not_hold(run: Run) -> tuple[list[str], list[str]]:
    """The critic's slopes are far from 1, so its estimate is not a distance.

    WGAN-GP, arXiv:1704.00028, proposition 1 and section 4.
    """
    off = math.sqrt(run.last("penalty"))  # healthy: up to 0.65; lambda 1: 1; lambda 0.1: 9
    advice = run.flags(lambda_gp=max(10.0, run.settings["lambda_gp"]), beta1=0.0, lr=run.lr / 4)
    return crossed("root of penalty", off, "above", 0.7), advice


def clamp_is_saturated(run: Run) -> tuple[list[str], list[str]]:
    """Nearly all weights of the critic lie at the bound, so it can only be a simple function.

    WGAN-GP, arXiv:1704.00028, sections 3.1 and 3.2.
    """
    evidence = crossed("clipped", run.last("clipped"), "above", 0.7)  # healthy: 0.58; sick: 0.86
    bound = max(0.01, run.settings["clip_value"])  # the paper's, as is its ratio to the step
    return evidence, [*run.flags(clip_value=bound, lr=min(run.lr, bound / 200)), OTHER_MODEL]


def few_images(run: Run) -> tuple[list[str], list[str]]:
    """The discriminator soon knows them by heart, and then tells the generator little.

    ADA, arXiv:2006.06676, section 2: a few thousand are enough, with its augmentation.
    """
    advice = run.flags(d_width=max(1, run.settings["d_width"] // 2))
    return crossed("training images", run.count, "below", 2000), ["Add images", *advice]


def examine(path: Path) -> tuple[list[Finding], dict[str, str]]:
    """Return what is wrong with a run, and why it could not be judged, by the name of a check."""
    run, found, unjudged = Run(path), [], {}
    of_model = {"WGAN": clamp_is_saturated, "WGAN-GP": penalty_does_not_hold}
    of_model = of_model.get(run.facts["model"], discriminator_has_won)
    for check in (diverged, too_short, of_model, generator_has_collapsed, few_images):
        name, (summary, source) = check.__name__.replace("_", " "), getdoc(check).split("\n\n")
        try:
            evidence, advice = check(run)
        except runs.InputError as error:
            unjudged[name] = str(error)
        else:
            found += [Finding(name, summary, evidence, advice, source)] if evidence else []
    return found, unjudged


def report(run: Path) -> str:
    """Say what is wrong with a run, and what could not be judged."""
    (found, unjudged), model, here = examine(run), runs.read_facts(run)["model"], run.resolve()
    lines = [f"{model} {here.name}: {run}"]
    for finding in found:
        lines += ["", f"{finding.name.capitalize()}: {finding.summary}"]
        lines += [f"   evidence  {text}" for text in finding.evidence]
        lines += [f"   try       {text}" for text in finding.advice]
        lines += [f"   source    {finding.source}"]
    if found:
        home, file = runs.TOP / model, here / "parameters.json"
        if here.parts[-3:-1] == ("tensorboard", "runs"):  # in a model's folder, maybe a copy
            home = here.parents[2]
        join = shlex.join if os.name == "posix" else subprocess.list2cmdline
        again = join(map(str, ["python", home / "train.py", "--config", file]))
        lines += ["", f"To train again, with flags to try: {again} ...", ""]
    else:
        lines += ["", "No problems found" + " in what could be judged" * bool(unjudged) + "."]
    lines += [f"Not judged: {name}: {reason}." for name, reason in unjudged.items()]
    return "\n".join(lines)


def main() -> None:
    """Report on the runs that the command line names."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="path or name of a run, or a model")
    print("\n\n".join(map(report, runs.find_runs(parser.parse_args().runs))))


if __name__ == "__main__":
    with runs.plain_errors():
        main()
