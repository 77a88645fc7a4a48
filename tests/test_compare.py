"""compare.py: the table, the figure and the page."""

import base64
import html
import json
import re
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import compare
import runs

OKABE_ITO = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
PICTURES = {"shape": [90, 16, 16, 3], "digest": "a" * 9}
WATCHED = (("d_real", "d_fake"), ("wasserstein",))  # without, with a critic


@pytest.fixture
def top(tmp_path, monkeypatch):
    """Stand in for the top of the repository, with no runs."""
    runs.utils()
    monkeypatch.setattr(runs, "TOP", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(top, model, name="run", rows=50, steps=None, side=5, facts=(), folder="", **settings):
    """Write a run that logged every 10 steps of 8 images, or 40; names sort as the runs began.

    Its frame at step s is flat, of the color (s, 255 - s, 99).
    """
    run = top / (folder or model) / "tensorboard" / "runs" / name
    (run / "frames").mkdir(parents=True)
    (run.parents[2] / "train.py").touch()
    began = f"2026-01-{1 + ord(name[0]) % 30:02}"
    facts = {"format": 1, "model": model, "started": began, "pictures": PICTURES, **dict(facts)}
    settings = dict.fromkeys((*runs.SETTINGS, "device"), 8) | settings
    settings |= {"n_critic": 5} if "WGAN" in model else {}
    (run / "run.json").write_text(json.dumps(facts))
    (run / "parameters.json").write_text(json.dumps(settings))
    step, rng = np.arange(1, rows + 1) * 10, np.random.default_rng(len(model + name))
    table = {"step": step, "epoch": step / 11, "images": step * 8 * settings.get("n_critic", 1)}
    table["seconds"] = step / 4 + 3
    for curve in ("loss_d", "loss_g", *WATCHED["WGAN" in model]):
        table[curve] = rng.normal(size=rows)
    pd.DataFrame(table).to_csv(run / "metrics.csv", index=False)
    for s in (20, 10 * rows) if steps is None else steps:
        frame = Image.new("RGB", (side, side), (s % 256, 255 - s % 256, 99))
        frame.save(run / "frames" / f"{s:06d}.png")
    return run


def evaluate(run, num=2000, **metrics):
    line = {"step": 500, "date": run.name, "num": num}
    line["metrics"] = {name: {"value": v, "floor": f} for name, (v, f) in metrics.items()}
    with open(run / "evaluation.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.fixture
def four(top):
    """One run of each model, two of them evaluated."""
    made = {m: make_run(top, m, rows=n) for m, n in zip(runs.PAPERS, (50, 53, 59, 61), strict=True)}
    evaluate(made["WGAN"], swd=(0.9, 0.1))
    evaluate(made["WGAN"], swd=(0.03214, 0.0123), diversity=(0.8, 1.0))
    evaluate(made["DCGAN"], swd=(0.0654, 0.0123), fid=(31.5, None))
    return made


def test_the_table_shows_how_far_runs_came_and_their_metrics_beside_the_floors(four):
    table = compare.table(compare.read_runs(four.values()))
    assert list(table.columns) == [f"{model} run" for model in four]
    assert list(table.loc[("run", "step")]) == ["500", "530", "590", "610"]
    assert list(table.loc[("run", "images")]) == ["4,000", "4,240", "23,600", "24,400"]
    assert list(table.loc[("run", "images_per_second")]) == ["31.25", "31.29", "156.8", "156.9"]
    metrics = table.loc["metric (floor)"]
    assert list(metrics.loc["swd"]) == ["-", "0.0654 (0.0123)", "0.03214 (0.0123)", "-"]
    assert list(metrics.loc["fid"]) == ["-", "31.5 (-)", "-", "-"]


def test_only_settings_that_differ_are_in_the_table_those_of_evaluations_included(top):
    other = {"device": "cuda:0 (y)", "pictures": PICTURES | {"digest": "b"}}
    made = [make_run(top, "WGAN", facts={"device": "cpu (x)"}, lr=1e-4)]
    made.append(make_run(top, "DCGAN", facts=other, lr=2e-4, k=1))
    evaluate(made[0], num=100, swd=(1, 1))
    evaluate(made[1], num=200, swd=(1, 1))
    differ = compare.table(compare.read_runs(made)).loc["setting"].T.to_dict("list")
    assert differ.pop("images") == [f"[90, 16, 16, 3], digest {d}" for d in ("aaaaaaaa", "b")]
    assert differ.pop("evaluation's num") == ["100", "200"]
    assert differ.pop("device") == ["cpu (x)", "cuda:0 (y)"]  # where they ran
    assert differ == {"lr": ["0.0001", "0.0002"], "n_critic": ["5", "-"], "k": ["-", "1"]}


def test_every_curve_is_drawn_from_its_file_against_each_axis(four, top):
    def key(name, y):
        return name, np.round(y.astype(float), 9).tobytes()

    four["WGAN"] = make_run(top, "WGAN", "long", rows=131)
    figure = compare.figure(compare.read_runs(four.values()))
    lines = {key(line.name, line.y): i for i, line in enumerate(figure.data)}
    buttons = {button.label: button.args[0]["x"] for button in figure.layout.updatemenus[0].buttons}
    for model, run in four.items():
        columns = pd.read_csv(run / "metrics.csv")
        for curve in columns.columns[4:]:
            y, n = columns[curve].to_numpy(), len(columns) // 50  # on both sides, 4 % in all
            around = np.array([y[max(0, i - n) : i + n + 1].mean() for i in range(len(y))])
            raw, mean = pair = [lines.pop(key(f"{model} {run.name}", x)) for x in (y, around)]
            assert np.array_equal(figure.data[raw].x, columns["images"])
            assert all(np.array_equal(buttons[n][i], columns[n]) for n in buttons for i in pair)
            assert figure.data[raw].hovertemplate and figure.data[mean].hoverinfo == "skip"
            assert not figure.data[mean].hovertemplate  # or each tooltip is shown twice
    for axis in figure.select_yaxes():  # each has heights of its own, and up is up
        assert not axis.matches and not axis.autorange and not axis.range
    assert not lines and set(buttons) == {"images", "seconds", "step"}
    assert len([line for line in figure.data if line.showlegend]) == 4
    assert all(line.legendgroup == line.name for line in figure.data)  # a click hides all of a run


def test_a_model_has_its_panels_and_one_color_that_the_color_blind_tell_apart(four, top):
    figure = compare.figure(compare.read_runs([*four.values(), make_run(top, "WGAN", "second")]))
    together = {line.xaxis: set() for line in figure.data}
    for line in figure.data:
        together[line.xaxis].add(line.name.split()[0])
    counts = Counter(", ".join(sorted(models)) for models in together.values())
    assert counts == {"DCGAN": 2, "simpleGAN": 2, "DCGAN, simpleGAN": 2, "WGAN": 3, "WGAN-GP": 3}
    assert "WGAN-GP: wasserstein" in {title.text for title in figure.layout.annotations}
    color = {line.name: line.line.color for line in figure.data}
    assert color["WGAN second"] == color["WGAN run"]
    assert len(set(color.values())) == 4 and set(color.values()) <= OKABE_ITO
    alone = compare.figure(compare.read_runs([four["WGAN-GP"]])).data[0]
    assert alone.line.color == color["WGAN-GP run"]
    assert len({line.line.dash for line in figure.data if line.name[:5] == "WGAN "}) == 2
    make_run(top, "Mine")
    colors = compare.colors(f"gan{i}" for i in range(19))
    assert len(set(colors.values())) == 24
    assert all(re.fullmatch("#[0-9A-F]{6}", color) for color in colors.values())
    for model in ("Mine", "WGAN"):  # as in any other comparison
        assert compare.colors(["A", model])[model] == colors[model]
    assert compare.colors(["B", "A"]) == compare.colors(["A", "B"])  # whose folders are not here


def test_whatever_a_training_logs_is_drawn(top):
    """Columns of any names, that of the gradient's norm also by the name it had before."""
    mine, old, new = (make_run(top, "WGAN-GP", name, rows=5) for name in ("mine", "old", "new"))
    values = (0.7, -1.3, 2.9, 1e9, 0.11)
    for run, names in ((mine, "value panel run model ema"), (old, "slope"), (new, "gradient_norm")):
        rows = pd.read_csv(run / "metrics.csv").drop(columns=["loss_d", "wasserstein"])
        rows[names.split()] = np.outer(values, range(1, 1 + len(names.split())))
        rows.to_csv(run / "metrics.csv", index=False)
    figure = compare.figure(compare.read_runs([mine, old, new]))
    titles = {title.text.removeprefix("WGAN-GP: ") for title in figure.layout.annotations}
    assert titles == {"value", "panel", "run", "model", "ema", "gradient_norm", "loss_g"}
    assert sum(np.allclose(line.y, np.multiply(values, 3)) for line in figure.data) >= 1
    assert compare.colors([])["WGAN-GP"] == "#CC79A7"  # also where it is the only model
    norms = [line.xaxis for line in figure.data if np.array_equal(line.y, values)]
    assert len(norms) >= 3 and len(set(norms)) == 2  # `value`; the other two are in one panel


def test_in_a_narrow_terminal_each_run_has_a_row(top):
    made = [make_run(top, "WGAN", f"2026-11-29_09-40-0{i}_123", lr=i * 0.7) for i in range(3)]
    evaluate(made[1], swd=(0.0713, 0.0211))
    found = compare.table(compare.read_runs(made))
    lines = compare.lay_out(found, 80).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) < compare.lay_out(found, 60).count("\n")
    (row,) = [line for line in lines if "0.0713 (0.0211)" in line]
    assert row.startswith("WGAN 2026-11-29_09-40-01_123")
    assert compare.lay_out(found, 200) == found.to_string()


def test_the_page_fetches_nothing_and_shows_the_last_grids_as_they_are(four, top):
    four["WGAN"] = make_run(top, "WGAN", "<i>run", lr="<i>")
    captions = ("500, 4,000", "530, 4,240", "500, 20,000", "610, 24,400")  # 8 images, or 5 times 8
    compare.write_page(compare.read_runs(four.values()), top / "x.html", "A <title>")
    markup = re.sub(r"<script.*?</script>", "", (top / "x.html").read_text(), flags=re.S)
    targets = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", markup)
    assert len(targets) == 4 and all(target.startswith("data:image/png") for target in targets)
    found = re.findall(r'base64,([^"]*)"><figcaption>(.*?)</figure>', markup)
    for (png, caption), (model, run), shown in zip(found, four.items(), captions, strict=True):
        assert base64.b64decode(png) == (run / f"frames/000{shown[:3]}.png").read_bytes()
        assert caption == f"{model} {html.escape(run.name)}<br>step {shown} images"
    assert "<title>A &lt;title&gt;</title>" in markup and "<i>" not in markup


def test_runs_that_have_only_begun(top):
    none, one, torn = (make_run(top, "WGAN", name, rows=1) for name in ("none", "one", "torn"))
    (none / "metrics.csv").unlink()
    shutil.rmtree(none / "frames")
    with open(torn / "metrics.csv", "a") as file:
        file.write("20,5.45,480,6.")  # as on a full disk
    known = compare.read_runs([none, one, torn])
    assert list(compare.table(known).loc[("run", "step")]) == ["0", "10", "10"]
    lines = {(line.name, line.mode) for line in compare.figure(known).data}
    assert lines == {("WGAN one", "markers"), ("WGAN torn", "markers")}
    compare.write_page(known[:1], top / "x.html", "no curve, no grid, no error")


def test_the_page_is_of_the_runs_that_were_named_each_once(top, monkeypatch, capsys):
    one, twin = make_run(top, "WGAN", "b"), make_run(top, "WGAN", "b", folder="my-gan")
    for argv, title in (([], "2 runs"), (["my-gan", "./my-gan"], "1 run")):
        monkeypatch.setattr("sys.argv", ["compare.py", *argv])
        compare.main()
        assert f"<h1>Comparison of {title}</h1>" in (top / "compare.html").read_text()
    assert re.search(r"^WGAN b +500", capsys.readouterr().out, re.M)
    assert [run.label for run in compare.read_runs([one, twin])] == ["WGAN b", f"WGAN {twin}"]


def test_the_csv_has_the_settings_and_numbers_of_each_run_in_a_row(four, top, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare.py", "DCGAN", "WGAN", "--csv", "x.csv"])
    compare.main()
    first, second = pd.read_csv(top / "x.csv").to_dict("records")
    assert np.isnan(first["n_critic"])
    known = {"model": "DCGAN", "run": "run", "batch_size": 8, "fid": 31.5, "step": 530}
    assert known.items() <= first.items()
    known = {"model": "WGAN", "n_critic": 5, "swd": 0.03214, "swd_floor": 0.0123, "images": 23600}
    assert known.items() <= second.items() and second["seconds"] == 150.5


@pytest.mark.parametrize("file", ["metrics.csv", "evaluation.jsonl"])
def test_damaged_files_are_named(top, file):
    run = make_run(top, "WGAN")
    as_by_a_spreadsheet = (run / "metrics.csv").read_text().replace(",", ";").replace(".", ",")
    for text in ('{"step": 5, "metr\n', as_by_a_spreadsheet, "step,images\n1,2\n"):
        (run / file).write_text(text)
        with pytest.raises(runs.utils().InputError, match=file):
            compare.read_runs([run])
