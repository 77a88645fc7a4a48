"""The page that compare.py and race.py write: figures, grids, tables and data in one HTML file."""

import base64
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from compare_tables import (
    COUNTERS,
    METRICS,
    Known,
    evaluation_table,
    extra,
    metric_names,
    overview,
    remarks,
    settings_table,
)
from runs import TOP, InputError, step_of, write_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = TOP / "compare_page.html"
UNITS = {"images": "real images shown", "seconds": "seconds of training", "step": "steps"}
# Okabe and Ito's colours, which the colour-blind can tell apart; after them the same in dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("none", "7 3", "2 2", "8 2 2 2")
SIZE = (4.8, 2.6)  # inches of 72 units, in which texts of 9 units are drawn
GREY = "#7f7f7f"
BOX = (0.12, 0.175, 0.84, 0.785)  # left, bottom, width and height of the axes in a figure
MOST_ROWS = 2000  # of one run that go into the page

CURVES = {  # what a curve means, and what it does not
    "d_real": "D(x): mean probability that real images are given: 0.5 when the generator has "
    "won, 1 when the discriminator has.",
    "d_fake": "D(G(z)): the same for generated images: 0.5 when the generator has won, 0 when "
    "the discriminator has.",
    "wasserstein": "Mean f(real) - mean f(fake), the critic's estimate of the distance: falls as "
    "images improve.",
    "clipped": "Share of the critic's weights that lie at the bound.",
    "penalty": "Mean (slope - 1)²: 0 if the critic's slope is 1 everywhere.",
    "slope": "Mean slope of the critic between real and generated images; somewhat above 1.",
    "loss_d": "What the generator's opponent minimises; says little about the pictures.",
    "loss_g": "What the generator minimises; says little about the pictures.",
}
NOTES = {
    "WGAN": "The critic's scores have an unknown factor: compare wasserstein and the losses within "
    "a run, not between runs. Only their shapes can be.",
    "WGAN-GP": "The penalty holds the critic's slope near 1: between runs on the same pictures, "
    "wasserstein can be compared.",
}
SHARED = ("d_real", "d_fake")  # probabilities: the only curves that mean the same in two models


@dataclass(frozen=True)
class Panel:
    """A curve of several runs that may share an axis."""

    column: str
    note: str
    runs: list[int]
    against: tuple[str, ...] = tuple(UNITS)  # one figure for each


def styles_of(runs: Sequence[Known], by_model: bool) -> list[dict[str, str]]:
    """Give each run a colour and dashes; `by_model`, a colour stands for all runs of a model."""
    models = list(dict.fromkeys(run.model for run in runs))
    styles = []
    for i, run in enumerate(runs):
        hue = models.index(run.model) if by_model else i
        dash = sum(r.model == run.model for r in runs[:i]) if by_model else i // len(COLOURS)
        dashes = DASHES[dash % len(DASHES)]
        styles.append({"colour": COLOURS[hue % len(COLOURS)], "dashes": dashes})
    return styles


def sections_of(runs: Sequence[Known]) -> Iterator[tuple[str, str, list[Panel]]]:
    """Yield a heading, a note, and panels; runs share one only where a comparison makes sense."""
    trained = [i for i, run in enumerate(runs) if len(run.rows)]
    none = extra("pandas").Series(dtype=float)

    def panels(columns: Sequence[str], among: Sequence[int]) -> list[Panel]:
        found = []
        for column in columns:
            having = [i for i in among if runs[i].rows.get(column, none).notna().any()]
            found += [Panel(column, CURVES.get(column, ""), having)] if having else []
        return found

    if trained:
        note = "Real images shown: the steeper, the faster."
        speed = Panel("images", note, trained, ("seconds",))
        note = "Speed and probabilities mean the same whatever the model."
        yield "All models", note, [speed, *panels(SHARED, trained)]
    for model in dict.fromkeys(runs[i].model for i in trained):
        among = [i for i in trained if runs[i].model == model]
        columns = dict.fromkeys(column for i in among for column in runs[i].rows)
        order = [*CURVES, *columns]
        columns = sorted(set(columns) - {*COUNTERS, *SHARED}, key=order.index)
        yield model, NOTES.get(model, ""), panels(columns, among)


def smooth(run: Known, column: str, images: float) -> Any:
    """Return for each row the mean of the rows around it, `images` wide in all."""
    apart = run.rows["images"].diff().median()
    window = round(images / apart) if images and apart > 0 else 1
    return run.rows[column].rolling(max(window, 1), center=True, min_periods=1).mean()


def new_axes(left: float = BOX[0]) -> "Axes":
    """Return empty axes that begin so far to the right in a figure of their own."""
    figure = extra("matplotlib.figure").Figure(SIZE)
    axes = figure.add_axes((left, BOX[1], BOX[0] + BOX[2] - left, BOX[3]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY)
    axes.grid(color=GREY, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def svg_of(axes: "Axes", name: str) -> str:
    """Return a figure for use in a page, where texts take the page's font and colour.

    What has the gid runN becomes of class runN. The ids that it needs come from `name`,
    which must be its own: many figures lie in one page.
    """
    file, about = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with extra("matplotlib").rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        axes.figure.savefig(file, format="svg", transparent=True, metadata=about)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r"font-[a-z]+: [^;]*; ", "", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg)
    svg = re.sub(r'<g id="(run\d+)"', r'<g class="\1"', svg)
    return re.sub(r'<g id="[^"]*"', "<g", svg)


def draw_curves(
    runs: Sequence[Known], styles: Sequence[dict], panel: Panel, by: str, images: float
) -> dict[str, Any]:
    """Draw one panel against one counter: raw rows faint, and on them the smoothed line.

    Returns:
        `svg`, `by`, and the end of the horizontal axis, `right`; it begins at 0.
    """
    axes, lows, highs = new_axes(), [], []
    for i in panel.runs:
        x, raw = runs[i].rows[by], runs[i].rows[panel.column]
        look = {"color": styles[i]["colour"], "gid": f"run{i}"}
        if panel.column in COUNTERS:
            line = raw
        else:
            line = smooth(runs[i], panel.column, images)
            axes.plot(x, raw, linewidth=0.8, alpha=0.35, **look)
        look["marker"] = "o" if len(x) == 1 else ""  # one row makes no line
        axes.plot(x, line, linewidth=1.7, linestyle=dashes_of(styles[i]), **look)
        # All of the smoothed line is seen; of the raw one, its wildest rows may not be.
        lows += [line.min(), raw.quantile(0.01)]
        highs += [line.max(), raw.quantile(0.99)]
    low, high = (0, 1) if panel.column in SHARED else (min(lows), max(highs))
    margin = 0.04 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    right = float(max(runs[i].rows[by].max() for i in panel.runs)) or 1.0
    axes.set_xlim(0, right)
    axes.set_xlabel(UNITS[by], labelpad=2)
    ticks(axes.xaxis, right)
    ticks(axes.yaxis, high)
    svg = svg_of(axes, f"{panel.column} {by} {panel.runs}")
    return {"by": by, "right": right, "svg": svg}


def ticks(axis: Any, end: float) -> None:
    """Choose a few round numbers for an axis, with k and M for big ones."""
    ticker = extra("matplotlib.ticker")
    axis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    if end > 9999:
        axis.set_major_formatter(ticker.EngFormatter(sep=""))


def dashes_of(style: dict[str, str]) -> Any:
    """Return dashes as matplotlib takes them, in widths of the line."""
    dashes = [float(part) / 2 for part in style["dashes"].split() if part != "none"]
    return (0, dashes) if dashes else "-"


def draw_metric(runs: Sequence[Known], styles: Sequence[dict], name: str, groups: list) -> str:
    """Draw one metric: a dot for each run, a bar for a group's mean, dashes for the floor.

    Args:
        runs: of which some may not have the metric.
        styles: theirs.
        name: of the metric.
        groups: (label, numbers of the runs in it), from top to bottom.

    Returns:
        An SVG figure.
    """
    labels = [shortened(label) for label, _ in groups]
    axes = new_axes(left=0.05 + 0.0155 * max(map(len, labels)))  # room for them
    for row, (_, members) in enumerate(groups):
        values = [runs[i].metric(name) for i in members]
        floors = {runs[i].metric(name, "floor") for i in members}
        for i, value in zip(members, values, strict=True):
            look = {"color": styles[i]["colour"], "gid": f"run{i}"}
            axes.plot(value, row, "o", markersize=7, alpha=0.85, markeredgewidth=0, **look)
        known = [value for value in values if not math.isnan(value)]
        if len(known) > 1:
            look = {"color": styles[members[0]]["colour"], "linewidth": 2}
            axes.plot([sum(known) / len(known)] * 2, [row - 0.3, row + 0.3], **look)
        for floor in floors:
            look = {"color": GREY, "linewidth": 1.3, "linestyle": (0, (3, 2))}
            axes.plot([floor] * 2, [row - 0.5, row + 0.5], **look)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_yticks(range(len(groups)), labels)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0), max(high, 0))
    ticks(axes.xaxis, high)
    axes.tick_params("y", length=0)
    axes.set_xlabel(name, labelpad=2)
    return svg_of(axes, name)


def shortened(label: str, most: int = 24) -> str:
    """Take out the middle of a label that is too long for a figure."""
    half = most // 2
    return label if len(label) <= most else f"{label[: half - 1]}…{label[-half:]}"


def grid_of(run: Known) -> dict[str, Any]:
    """Return the last frame as it is, for a page, and say when it was drawn."""
    if not run.frame:
        return {"label": run.label}
    try:
        with Image.open(run.frame) as picture:
            picture.verify()
            width = picture.width
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{run.frame} is damaged ({error})") from None
    step, rows = step_of(run.frame), run.rows
    at = rows[rows["step"] <= step].tail(1)  # the row written with this frame, or the one before
    counts = {name: 0 if at.empty else float(at[name].iloc[0]) for name in ("images", "seconds")}
    data = base64.b64encode(run.frame.read_bytes()).decode()
    return {"label": run.label, "step": step, "width": width, "png": data} | counts


def data_of(run: Known, style: dict[str, str]) -> dict[str, Any]:
    """Return what the page holds of a run as JSON: rows as in metrics.csv, at most MOST_ROWS."""
    rows = run.rows.iloc[:: -(-len(run.rows) // MOST_ROWS) or 1]
    columns = {
        name: [None if math.isnan(value) else value for value in column]
        for name, column in rows.items()
    }
    facts = {"label": run.label, "model": run.model, "run": run.path.name}
    return facts | style | {"rows": columns, "evaluation": run.evaluation}


def draw_all(
    runs: Sequence[Known], styles: Sequence[dict], images: float, by_model: bool
) -> tuple[list, list]:
    """Draw every figure under a progress bar.

    Returns:
        Sections: heading, note, and pairs of a panel and its figures. And metrics, each
        with `name`, `note`, `better` and `svg`.
    """
    sections = [(*words, [(panel, []) for panel in panels]) for *words, panels in sections_of(runs)]
    todo = [pair for *_, pairs in sections for pair in pairs]
    groups = [(run.label, [i]) for i, run in enumerate(runs) if run.evaluation]
    if by_model:
        models = dict.fromkeys(run.model for run in runs)
        groups = [(m, [i for i, run in enumerate(runs) if run.model == m]) for m in models]
    names, metrics = metric_names(runs, levels=False), []
    style = {"font.size": 9, "text.parse_math": False}  # names of runs are no formulas
    how = {"desc": "drawing", "unit": "figure", "leave": False, "disable": None}
    with extra("matplotlib").rc_context(style), tqdm(total=len(todo) + len(names), **how) as bar:
        for panel, figures in todo:
            figures += [draw_curves(runs, styles, panel, by, images) for by in panel.against]
            bar.update()
        for name in names:
            better, note = METRICS.get(name, ("", ""))
            svg = draw_metric(runs, styles, name, groups)
            metrics.append({"name": name, "better": better, "note": note, "svg": svg})
            bar.update()
    return sections, metrics


def write_page(
    runs: Sequence[Known], out: Path, smoothing: float, race: dict[str, Any] | None = None
) -> None:
    """Write one HTML file that needs nothing else, aside and then renamed.

    Args:
        runs: what to compare.
        out: the file.
        smoothing: width of the smoothed lines, in percent of the longest run's images.
        race: of a race its `title`, what it `says` of itself, its `table` of means, `notes`,
            and `conditions`: the last three in rows.
    """
    jinja2 = extra("jinja2")
    styles = styles_of(runs, by_model=race is not None)
    images = max((run.last("images") for run in runs), default=0) * smoothing / 100
    sections, metrics = draw_all(runs, styles, images, by_model=race is not None)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        race=race,
        runs=[data_of(run, style) for run, style in zip(runs, styles, strict=True)],
        sections=sections,
        metrics=metrics,
        units=UNITS,
        box=BOX,
        images=images,
        overview=overview(runs),
        evaluation=evaluation_table(runs, metric_names(runs)),
        missing=[run for run in runs if not run.evaluation],
        remarks=remarks(runs),
        grids=[grid_of(run) for run in runs],
        settings=settings_table(runs),
        written=datetime.now().strftime("%d %B %Y, %H:%M"),
    )
    with write_aside(out) as file:
        file.write(page.encode())
