"""Compare training runs: a table in the terminal, and a page, compare.html, that works offline.

Both show how far each run came, what evaluate.py measured beside its floors, and the settings
that differ. The page also has curves against images, seconds or steps, and the last grids.

Examples:
    python compare.py                                   the newest run in every model folder
    python compare.py WGAN WGAN-GP --out wgans.html     the newest runs of two models
    python compare.py slower DCGAN/tensorboard/runs/X   runs by name and by path
"""

import base64
import html
import io
import json
import shutil
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

import runs as folders

AXES = ["images", "seconds", "step"]
SHARED = ["d_real", "d_fake"]  # the only curves that mean the same in different models
# Okabe and Ito's colors, which the color-blind can tell apart; runs of a model differ in dashes.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
COLORS += tuple(px.colors.qualitative.Dark24)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
LOOK = {"hovermode": "x unified", "margin": {"t": 90, "r": 10, "l": 50, "b": 30}}
LOOK["legend"] = {"orientation": "h", "title": "", "y": 1, "yref": "container", "yanchor": "top"}
MENU = {"type": "buttons", "direction": "right", "pad": {"b": 30}, "bgcolor": "#c9ced6"}
MENU |= {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body {{ max-width: 1280px; margin: auto; padding: 1rem; font: 15px/1.5 system-ui, sans-serif }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; white-space: nowrap }}
th, td {{ padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top }}
tr {{ border-bottom: 1px solid #8884 }}
.grids {{ display: flex; flex-wrap: wrap; gap: 1rem }}
figure {{ margin: 0; flex: 1 1 260px; max-width: 530px }}
img {{ width: 100%; image-rendering: pixelated }}
</style><h1>{title}</h1>{body}
"""


@dataclass(frozen=True)
class Run:
    """What a run folder tells."""

    path: Path
    label: str  # unlike those of the runs it is compared with
    model: str
    facts: dict  # run.json
    settings: dict  # parameters.json
    rows: pd.DataFrame  # metrics.csv
    evaluation: dict  # the last line of evaluation.jsonl; empty where there is none


def colors(names: Iterable[str]) -> dict[str, str]:
    """Give models colors #RRGGBB: the papers' and those of this repository always have the same."""
    every = dict.fromkeys([*folders.PAPERS, *folders.models(), *sorted(names)])
    return dict(zip(every, cycle(COLORS), strict=False))


def read_runs(paths: list[Path]) -> list[Run]:
    """Read run folders in their order, each once; an InputError names a file it cannot read."""
    found: list[Run] = []
    for path in {path.resolve(): path for path in paths}.values():
        facts, settings = folders.read_facts(path), folders.read_settings(path)
        model, name = facts["model"], path.resolve().name
        label = name if name.startswith(model) else f"{model} {name}"
        label = f"{model} {path}" if label in [run.label for run in found] else label
        file = path / "metrics.csv"
        try:
            text = file.read_text("utf-8-sig") if file.exists() else ""
            text = text[: text.rfind("\n") + 1] or "step,epoch,images,seconds"  # without half a row
            rows = pd.read_csv(io.StringIO(text), dtype=float).dropna(subset=AXES)
            if "gradient_norm" not in rows:
                rows = rows.rename(columns={"slope": "gradient_norm"})  # its former name
            file = path / "evaluation.jsonl"
            lines = file.read_text().splitlines() if file.exists() else ["{}"]
            evaluation = json.loads(lines[-1])
        except (ValueError, LookupError) as error:
            raise folders.utils().InputError(f"{file} cannot be understood ({error})") from None
        found.append(Run(path, label, model, facts, settings, rows, evaluation))
    return found


def numbers_of(run: Run) -> dict[str, float]:
    """Return the last counters, the speed, and each metric as NAME and NAME_floor."""
    last = run.rows.iloc[-1] if len(run.rows) else dict.fromkeys(AXES, 0.0)
    found = {name: last[name] for name in ("step", "images", "seconds")}
    found["images_per_second"] = last["images"] / (last["seconds"] or float("nan"))
    for name, part in run.evaluation.get("metrics", {}).items():
        found |= {name: part["value"], f"{name}_floor": part.get("floor")}
    return found


def show(value: float | None) -> str:
    """Write a number in four digits, or a dash where there is none."""
    if pd.isna(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def table(runs: list[Run]) -> pd.DataFrame:
    """Return a column of texts for each run: how far it came, its metrics, and what differs."""
    numbers = pd.DataFrame({run.label: numbers_of(run) for run in runs}).map(show)
    floors = numbers[numbers.index.str.endswith("_floor")]
    floors.index = floors.index.str.removesuffix("_floor")
    metrics = (numbers.loc[floors.index] + " (" + floors + ")").replace("- (-)", "-")
    settings = pd.DataFrame({run.label: described(run) for run in runs}).fillna("-")
    differ = settings[settings.nunique(axis=1) > 1]
    return pd.concat({"run": numbers[:4], "metric (floor)": metrics, "setting": differ})


def settings_and_numbers(runs: list[Run]) -> pd.DataFrame:
    """Return a row for each run, for calculations."""
    found = [{"run": r.path.resolve().name, "model": r.model} | r.settings for r in runs]
    return pd.DataFrame([row | numbers_of(run) for row, run in zip(found, runs, strict=True)])


def described(run: Run) -> dict[str, str]:
    """Return what the numbers of a run may depend on."""
    facts = {name: run.facts.get(name, "-") for name in ("device", "processes", "torch")}
    facts |= {f"{n} parameters": f"{s:,}" for n, s in run.facts.get("parameters", {}).items()}
    facts["git_commit"] = str(run.facts.get("git_commit"))[:8]
    facts["images"] = "{shape}, digest {digest:.8}".format(**run.facts["pictures"])
    for name in sorted(run.evaluation.keys() - {"metrics", "versions", "date", "images"}):
        facts[f"evaluation's {name}"] = run.evaluation[name]
    return {name: str(value) for name, value in {**run.settings, **facts}.items()}


def figure(runs: list[Run]) -> go.Figure:
    """Draw the curves: the rows of metrics.csv faint, their moving average thick.

    Losses of different models measure different things, so each model has panels of its own.
    """
    dashes, looks, parts = {run.model: cycle(DASHES) for run in runs}, {}, []
    for run in runs:
        looks[run.label] = {"color": colors(dashes)[run.model], "dash": next(dashes[run.model])}
        for name in run.rows.columns.difference([*AXES, "epoch"], sort=False):
            panel = name if name in SHARED else f"{run.model}: {name}"
            parts.append(run.rows[AXES].assign(panel=panel, run=run.label, value=run.rows[name]))
    lines = pd.concat(parts or [pd.DataFrame(columns=[*AXES, "panel", "run", "value"])]).dropna()
    rows = max(1, (lines["panel"].nunique() + 1) // 2)
    curves = {"data_frame": lines, "x": AXES[0], "y": "value", "color": "run", "custom_data": AXES}
    rest = {"facet_col_spacing": 0.1, "facet_row_spacing": 0.25 / rows, "template": "none"}
    drawn = px.line(**curves, facet_col="panel", facet_col_wrap=2, **rest, render_mode="svg")
    for raw in drawn.data:
        mean = pd.Series(raw.y).rolling(len(raw.y) // 25 | 1, center=True, min_periods=1).mean()
        mode = "lines" if len(mean) > 1 else "markers"
        raw.update(line=looks[raw.name], mode=mode, hovertemplate=None)
        drawn.add_trace(go.Scatter(raw, y=mean, hoverinfo="skip"))
        raw.update(opacity=0.35, showlegend=False, hovertemplate="%{y:.4g}")
    drawn.for_each_annotation(lambda title: title.update(text=title.text.removeprefix("panel=")))
    axes = {"title": "", "showticklabels": True, "gridcolor": "rgba(136, 136, 136, 0.27)"}
    drawn.update_xaxes(axes, rangemode="tozero").update_yaxes(axes, matches=None)
    buttons = []
    for i, name in enumerate(AXES):
        change = {"x": [line.customdata[:, i] for line in drawn.data]}, {"xaxis.autorange": True}
        buttons.append({"label": name, "method": "update", "args": change})
    menus = [{**MENU, "buttons": buttons}]  # choose the x axis
    return drawn.update_layout(LOOK, updatemenus=menus, height=120 + 270 * rows)


def write_page(runs: list[Run], out: Path, title: str, first: str = "") -> None:
    """Write one HTML file that needs nothing else; `first` is HTML that goes before the rest."""
    body = f'{first}{table(runs).to_html(border=0)}<h2>Last grids</h2><div class="grids">'
    for run in runs:
        for frame in folders.frames_of(run.path)[-1:]:
            data, step = base64.b64encode(frame.read_bytes()).decode(), int(frame.stem)
            body += f'<figure><img alt="" src="data:image/png;base64,{data}"><figcaption>'
            images = step * folders.images_per_step(run.path)
            body += f"{html.escape(run.label)}<br>step {step:,}, {images:,} images</figure>"
    config = {"displayModeBar": False, "responsive": True}
    body += f"</div><h2>Curves</h2>{figure(runs).to_html(config, full_html=False)}"
    with folders.utils().replacing(out) as file:
        file.write(PAGE.format(title=html.escape(title), body=body).encode())


def lay_out(found: pd.DataFrame, width: int) -> str:
    """Write a table with a column for each run, or with a row where columns are too wide."""
    text = found.to_string(line_width=width)
    if text.count("\n") > len(found):
        groups = found.groupby(level=0, sort=False)
        groups = [group.droplevel(0).T.rename_axis(columns=name) for name, group in groups]
        text = "\n\n".join(group.to_string(line_width=width) for group in groups)
    return text


def parse_arguments(argv: list[str] | None = None) -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(None, SUPPRESS, __doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="path or name of a run, or a model")
    parser.add_argument("--out", type=Path, default="compare.html", help="default: compare.html")
    parser.add_argument("--csv", type=Path, help="also write a row for each run here")
    return parser.parse_args(argv)


def main() -> None:
    """Compare the runs that the command line names."""
    args = parse_arguments()
    with folders.utils().plain_errors():
        runs = read_runs(folders.find_runs(args.runs))
        write_page(runs, args.out, f"Comparison of {len(runs)} run{'s' * (len(runs) != 1)}")
        if args.csv:
            settings_and_numbers(runs).to_csv(args.csv, index=False)
        print(lay_out(table(runs), shutil.get_terminal_size().columns))
        print("wrote", *filter(None, [args.out, args.csv]))


if __name__ == "__main__":
    main()
