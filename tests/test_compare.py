"""compare.py: the table, the figure, and the page in a browser."""

import base64
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import TOP
from PIL import Image

import compare
import runs

CURVES = {
    "simpleGAN": ["d_real", "d_fake"],
    "DCGAN": ["d_real", "d_fake"],
    "WGAN": ["wasserstein", "clipped"],
    "WGAN-GP": ["wasserstein", "penalty", "slope"],
}
BROWSER = next(filter(None, map(shutil.which, ("google-chrome", "chrome", "chromium"))), None)


@pytest.fixture
def top(tmp_path, monkeypatch):
    """Stand in for the top of the repository, with no runs."""
    for folder in runs.MODELS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.py").touch()
    monkeypatch.setattr(runs, "TOP", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(top, model, name="run", folder=None, rows=50, started="1", **settings):
    """Write a run folder of a run that logs every 10 steps; its numbers come from its name."""
    run = top / (folder or model) / "tensorboard" / "runs" / name
    (run / "frames").mkdir(parents=True)
    rng = np.random.default_rng(list(f"{model}{name}".encode()))
    facts = {"format": 1, "model": model, "started": started, "device": "cpu"}
    facts |= {"parameters": {"generator": 1234}, "git_commit": "0123456789"}
    facts["pictures"] = {"shape": [90, 16, 16, 3], "digest": "abcdefghij"}
    (run / "run.json").write_text(json.dumps(facts))
    n_critic = {"n_critic": 5} if "WGAN" in model else {}
    (run / "parameters.json").write_text(json.dumps({"batch_size": 8} | n_critic | settings))
    columns = ["step", "epoch", "images", "seconds", "loss_d", "loss_g", *CURVES[model]]
    each = 8 * n_critic.get("n_critic", 1)
    lines = [",".join(columns)]
    for step in range(10, 10 * rows + 1, 10):
        counts = [step, step / 11, step * each, step / 4]
        lines.append(",".join(map(str, [*counts, *rng.normal(size=len(columns) - 4)])))
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    for step in (20, 10 * rows):
        pixels = rng.integers(0, 256, (34, 34, 3), np.uint8)
        Image.fromarray(pixels).save(run / "frames" / f"{step:06d}.png")
    return run


def evaluate(run, num=2000, seed=0, **metrics):
    line = {"step": 500, "images": 4000, "date": run.name, "num": num, "seed": seed}
    line["metrics"] = {name: {"value": v, "floor": f} for name, (v, f) in metrics.items()}
    with open(run / "evaluation.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def columns_of(run):
    names, *rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    return dict(zip(names, np.array(rows, float).T, strict=True))


def call(monkeypatch, *argv):
    monkeypatch.setattr("sys.argv", ["compare.py", *map(str, argv)])
    compare.main()


def drawn_in(figure):
    """List run, title of the panel, and trace for each line of a figure."""
    titles = {}
    for title in figure.layout.annotations:
        for axis in figure.select_xaxes():
            low, high = axis.domain
            y = figure.layout[axis.anchor.replace("y", "yaxis")].domain[1]
            if low < title.x < high and abs(title.y - y) < 0.01:
                titles[axis.plotly_name.replace("axis", "")] = title.text
    return [(line.name, titles[line.xaxis], line) for line in figure.data]


@pytest.fixture
def four(top):
    """One run of each model, two of them evaluated."""
    made = {model: make_run(top, model) for model in runs.MODELS}
    evaluate(made["WGAN"], swd=(0.9, 0.1))
    evaluate(made["WGAN"], swd=(0.03214, 0.0123), diversity=(0.8, 1.0))
    evaluate(made["DCGAN"], num=100, swd=(0.0654, 0.0123), fid=(31.5, None))
    return made


def test_the_table_shows_how_far_runs_came_and_what_they_measured_beside_floors(four):
    table = compare.table(compare.read_runs(list(four.values())))
    assert list(table.columns) == [f"{model} run" for model in four]
    assert list(table.loc[("run", "step")]) == ["500"] * 4
    assert list(table.loc[("run", "images")]) == ["4,000", "4,000", "20,000", "20,000"]
    assert list(table.loc[("run", "images_per_second")]) == ["32", "32", "160", "160"]
    metrics = table.loc["metric (floor)"]
    assert list(metrics.loc["swd"]) == ["-", "0.0654 (0.0123)", "0.03214 (0.0123)", "-"]
    assert list(metrics.loc["diversity"]) == ["-", "-", "0.8 (1)", "-"]
    assert list(metrics.loc["fid"]) == ["-", "31.5 (-)", "-", "-"]


def test_only_what_differs_is_in_the_table_evaluations_included(top):
    both = [make_run(top, "WGAN", lr=1e-4, z_dim=8), make_run(top, "DCGAN", lr=2e-4, z_dim=8)]
    facts = json.loads((both[0] / "run.json").read_text())
    facts["pictures"]["digest"] = "other"
    (both[0] / "run.json").write_text(json.dumps(facts))
    evaluate(both[0], num=100, swd=(1, 1))
    evaluate(both[1], num=200, swd=(1, 1))
    differ = compare.table(compare.read_runs(both)).loc["setting"]
    assert differ.T.to_dict("list") == {
        "n_critic": ["5", "-"],
        "lr": ["0.0001", "0.0002"],
        "images": ["[90, 16, 16, 3], digest other", "[90, 16, 16, 3], digest abcdefgh"],
        "evaluation's num": ["100", "200"],
    }


def test_every_curve_is_drawn_from_its_file_against_each_axis(four):
    figure = compare.figure(compare.read_runs(list(four.values())))
    lines = drawn_in(figure)
    buttons = {button.label: button.args[0]["x"] for button in figure.layout.updatemenus[0].buttons}
    assert set(buttons) == {"images", "seconds", "step"}
    for model, run in four.items():
        columns = columns_of(run)
        for curve in ["loss_d", "loss_g", *CURVES[model]]:
            title = curve if curve in ("d_real", "d_fake") else f"{model}: {curve}"
            found = [i for i, (name, at, _) in enumerate(lines) if (name, at) == (f"{model} run", title)]
            raw, mean = (lines[i][2] for i in found)
            np.testing.assert_allclose(raw.x, columns["images"])
            np.testing.assert_allclose(raw.y, columns[curve])
            around = [columns[curve][max(0, i - 1) : i + 2].mean() for i in range(50)]  # 4 %
            np.testing.assert_allclose(mean.y, around)
            assert raw.opacity < 0.5 and mean.opacity is None and mean.hoverinfo == "skip"
            for axis, xs in buttons.items():
                assert all(np.array_equal(xs[i], columns[axis]) for i in found)
    assert len(lines) == 2 * sum(2 + len(curves) for curves in CURVES.values())
    shown = [name for name, _, line in lines if line.showlegend]
    assert sorted(shown) == sorted(f"{model} run" for model in four)  # a click hides all of a run
    assert all(line.legendgroup == name for name, _, line in lines)


def seen_by(colour, kind):
    """Return a colour, linear RGB, as the colour-blind see it (Machado et al. 2009, severity 1)."""
    matrices = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }
