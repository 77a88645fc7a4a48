"""Look at a run and say in plain words what is wrong with it, how that shows, and what to try.

It reads the curves, lets the saved generator draw, and compares what it draws with the run's
pictures. It prints, and writes nothing. It works on a CPU and while the training is going on.

Examples:
    python doctor.py                                    the newest run of every model
    python doctor.py WGAN-GP                            the newest run of one model
    python doctor.py slower                             a run by its name
    python doctor.py DCGAN/tensorboard/runs/quick-faces
"""

import argparse
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import symptoms
from run_record import Record, read_record
from runs import MODELS, InputError, find_run, model_runs, plain_errors, read_facts
from symptoms import GANS, WASSERSTEIN, CannotTell, Evidence, Finding

WIDTH = 92  # of the text


class Check(NamedTuple):
    """A finding's short name, its function, and the models that can have it."""

    name: str
    find: Callable[[Record], Finding | None]
    models: tuple[str, ...]


CHECKS = [  # the gravest first
    Check("diverged", symptoms.diverged, GANS + WASSERSTEIN),
    Check("discriminator has won", symptoms.discriminator_won, GANS),
    Check("collapsed", symptoms.collapsed, GANS + WASSERSTEIN),
    Check("penalty does not hold", symptoms.penalty_off, ("WGAN-GP",)),
    Check("clamp saturated", symptoms.clamp_saturated, ("WGAN",)),
    Check("critic too weak", symptoms.critic_weak, WASSERSTEIN),
    Check("memorising", symptoms.memorising, GANS + WASSERSTEIN),
    Check("too few pictures", symptoms.few_pictures, GANS + WASSERSTEIN),
    Check("estimate still falling", symptoms.still_falling, WASSERSTEIN),
]


def examine(record: Record) -> tuple[dict[str, Finding], list[str], dict[str, str]]:
    """Make all checks that a model can fail.

    Returns:
        What was found, by the name of the check; the names of those that found nothing; and
        why of those that could not be made.
    """
    found, nothing, unknown = {}, [], {}
    for check in CHECKS:
        if record.model not in check.models:
            continue
        try:
            with np.errstate(invalid="ignore"):  # rows that are no numbers are found as such
                finding = check.find(record)
        except CannotTell as error:
            unknown[check.name] = str(error)
            continue
        except KeyError as error:
            unknown[check.name] = f"the run says nothing of {error}"
            continue
        if finding:
            found[check.name] = finding
        else:
            nothing.append(check.name)
    return found, nothing, unknown


def wrapped(text: str, label: str = "") -> str:
    """Lay a text out, beside a label if there is one."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=f"   {label:10}" if label else "",
        subsequent_indent=" " * (13 if label else 3),
        break_long_words=False,
        break_on_hyphens=False,
    )


def described(finding: Finding, number: int) -> str:
    """Lay out one finding."""
    lines = [wrapped(f"{number}. {finding.seen}")]
    for label, texts in (
        ("evidence", map(said, finding.evidence)),
        ("try", finding.advice),
        ("source", [finding.source]),
    ):
        for text in texts:
            lines.append(wrapped(text, label))
            label = " "  # once
    return "\n".join(lines)


def said(evidence: Evidence) -> str:
    """Put one piece of evidence into words."""
    value = f"{evidence.value:,}" if isinstance(evidence.value, int) else f"{evidence.value:.3g}"
    when = f" at {evidence.when}" if evidence.when else ""
    return f"{evidence.metric} = {value}{when} ({evidence.threshold})"


def introduced(run: Path, record: Record) -> str:
    """Say in two lines which run this is and how far it is."""
    facts = read_facts(run)
    step = record.rows["step"][-1] if len(record.rows.get("step", ())) else record.sampled_at
    parts = [f"{record.model} {run.resolve().name}: step {step:,.0f}"]
    if record.count is not None:
        count, side, _, channels = facts["pictures"]["shape"]
        parts.append(f"{count:,} pictures of {side}x{side}x{channels}")
    parts.append("finished" if facts.get("finished") else "not finished, or still running")
    return f"{', '.join(parts)}\n{run}"


def report(run: Path) -> str:
    """Examine one run, and write down what was seen."""
    record = read_record(run)
    found, nothing, unknown = examine(record)
    parts = [introduced(run, record)]
    parts += [described(finding, number) for number, finding in enumerate(found.values(), 1)]
    if any(advice.startswith("--") for finding in found.values() for advice in finding.advice):
        again = f"cd {record.model} && python train.py --config {record.repeat} ..."
        parts.append(f"To train again with such flags:\n   {again}")
    if not found:
        parts.append("Nothing wrong to be seen." if nothing else "Nothing can be told yet.")
    ends = [wrapped(f"Looked for and not seen: {', '.join(nothing)}.")] if nothing else []
    ends += [wrapped(f"Not looked for: {name}: {reason}.") for name, reason in unknown.items()]
    return "\n\n".join([*parts, "\n".join(ends)]).rstrip()


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="path or name of a run, or a model")
    return parser.parse_args(argv)


def main() -> None:
    """Report on the runs that the command line names."""
    texts = parse_arguments().runs or [model for model in MODELS if model_runs(model)]
    if not texts:
        raise InputError("there is no run of any model yet")
    for number, text in enumerate(texts):
        print("\n\n" * (number > 0) + report(find_run(text)))


if __name__ == "__main__":
    with plain_errors():
        main()
