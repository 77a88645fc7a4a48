"""The comparison of runs: the table in the terminal, and the page in a browser."""

import base64
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import compare
import runs

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

import compare_page
import compare_tables

CURVES = {
    "simpleGAN": ("d_real", "d_fake"),
    "DCGAN": ("d_real", "d_fake"),
    "WGAN": ("wasserstein", "clipped"),
    "WGAN-GP": ("wasserstein", "penalty", "slope"),
}
# A dot in a figure of a metric: the shape is defined, then used.
DOT = (
    r'<g class="run(\d)">\s*<defs>(?:(?!</defs>)[\s\S])*</defs>\s*<g[^>]*>\s*<use[^>]*fill: (#\w+)'
)
BROWSER = next(filter(None, map(shutil.which, ("google-chrome", "chrome", "chromium"))), None)


@pytest.fixture
def top(tmp_path, monkeypatch):
    """Stand in for the top of the repository, with no runs."""
    for model in runs.MODELS:
        (tmp_path / model).mkdir()
        (tmp_path / model / "train.py").touch()
    monkeypatch.setattr(runs, "TOP", tmp_path)
    monkeypatch.setattr(runs.model_runs, "__defaults__", (tmp_path,))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(top, model, name="run", rows=5, every=10, digest="abc", started="1", **settings):
    """Write a run folder; its numbers are drawn from its own name."""
    run = top / model / "tensorboard" / "runs" / name
    (run / "frames").mkdir(parents=True)
    rng = np.random.default_rng(list(f"{model}{name}".encode()))
    facts = {
        "format": 1,
        "model": model,
        "started": started,
        "device": "cpu (x86, 2 threads), the fastest that torch finds here",
        "parameters": {"generator": 1234, "critic": 567},
        "pictures": {"shape": [90, 16, 16, 3], "digest": digest},
    }
    (run / "run.json").write_text(json.dumps(facts))
    (run / "parameters.json").write_text(json.dumps({"batch_size": 8, "lr": 1e-4} | settings))
    names = ["step", "epoch", "images", "seconds", "loss_d", "loss_g", *CURVES.get(model, ())]
    lines = [",".join(names)]
    for step in range(every, every * (rows + 1), every):
        counts = [step, step / 11, step * 8, round(step * rng.uniform(0.1, 0.11), 3)]
        lines.append(",".join(map(str, [*counts, *rng.uniform(0.1, 0.9, len(names) - 4).round(5)])))
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    for step in (0, every * rows):
        values = rng.integers(0, 256, (34, 34, 3), np.uint8)
        Image.fromarray(values).save(run / "frames" / f"{step:06d}.png")
    return run


def evaluate(run, step=50, num=2000, **metrics):
    line = {"step": step, "num": num, "seed": 0, "resize": "none", "weights": None}
    line["metrics"] = {n: {"value": v, "floor": f} for n, (v, f) in metrics.items()}
    with open(run / "evaluation.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def call(monkeypatch, *argv):
    monkeypatch.setattr("sys.argv", ["compare.py", *map(str, argv)])
    compare.main()


def columns_of(run):
    names, *rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    return {name: [float(row[i]) for row in rows] for i, name in enumerate(names)}


def data_in(page):
    """Read the JSON that the page's own script reads."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    return json.loads(text, parse_constant=lambda _: 1 / 0)  # JavaScript refuses NaN


def plots_in(page):
    """List the figures of curves: what they say of themselves, and their lines by run."""
    found = []
    for attributes, svg in re.findall(
        r'<div class="plot [^"]*"([^>]*)>(<svg.*?</svg>)', page, re.S
    ):
        plot = {k: html.unescape(v) for k, v in re.findall(r'data-(\w+)="([^"]*)"', attributes)}
        shape = r'<g class="run(\d+)">\s*<path d="([^"]*)"[^>]*?stroke: (#\w+)'
        plot["lines"] = [
            (int(i), np.array(re.findall(r"[ML] (\S+) (\S+)", path), float), colour)
            for i, path, colour in re.findall(shape, svg)
        ]
        plot["svg"] = svg
        found.append(plot)
    return found


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """One run of each model, two of them evaluated."""
    top = tmp_path_factory.mktemp("four")
    made = {model: make_run(top, model) for model in runs.MODELS}
    evaluate(made["WGAN"], step=10, swd=(0.9, 0.1))
    evaluate(made["WGAN"], swd=(0.0321, 0.0123), swd_16=(0.04, 0.02), diversity=(0.8, 1.0))
    evaluate(made["DCGAN"], swd=(0.0654, 0.0123), fid=(31.5, None))
    return made


@pytest.fixture(scope="module")
def page(four, tmp_path_factory):
    """Their page."""
    out = tmp_path_factory.mktemp("page") / "x.html"
    with pytest.MonkeyPatch.context() as monkeypatch:
        call(monkeypatch, *four.values(), "--out", out)
    return out.read_text()


def test_the_table_shows_what_the_files_hold(four, monkeypatch, capsys):
    monkeypatch.chdir(four["WGAN"].parents[3])
    monkeypatch.setattr(compare_page, "write_page", lambda _, out, *__: out.write_text(""))
    call(monkeypatch, *four.values())
    text = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in text.splitlines()[1:5]}
    for model, run in four.items():
        last = {name: values[-1] for name, values in columns_of(run).items()}
        speed = last["images"] / last["seconds"]
        assert lines[model][1:6] == ["run", "50", "400", f"{last['seconds']:.0f}", f"{speed:.0f}"]
        assert lines[model][6:] == [
            *("1,234", "+", "567", "cpu", "(x86,", "2", "threads)"),
            *(f"{last[name]:.4g}" for name in ("loss_d", "loss_g")),
        ]
    assert re.search(r"^WGAN run +0\.0321 \(0\.0123\) +0\.8 \(1\) +- +0\.04 \(0\.02\)$", text, re.M)
    assert re.search(r"^DCGAN run +0\.0654 \(0\.0123\) +- +31\.5 +-$", text, re.M)
    assert "simpleGAN run: not evaluated: python evaluate.py simpleGAN/tensorboard" in text
    assert "DCGAN run: not evaluated" not in text and "wrote" in text


def test_the_page_holds_every_row_of_every_file(four, page):
    for found, (model, run) in zip(data_in(page), four.items(), strict=True):
        assert found["model"] == model and found["rows"] == columns_of(run)
    assert data_in(page)[2]["evaluation"]["metrics"]["swd"] == {"value": 0.0321, "floor": 0.0123}


def test_every_curve_is_drawn_where_its_numbers_say(four, page):
    plots = [plot for plot in plots_in(page) if "by" in plot]
    left, _, width, _ = compare_page.BOX
    side = 72 * compare_page.SIZE[0]
    drawn = set()
    for plot in plots:
        assert [i for i, *_ in plot["lines"]]
        for i, path, _ in plot["lines"]:
            columns = columns_of(list(four.values())[i])
            x, y = np.array(columns[plot["by"]]), np.array(columns[plot["column"]])
            share = x / float(plot["right"])
            np.testing.assert_allclose(path[:, 0], side * (left + width * share), atol=1e-3)
            drawn.add((i, plot["column"], plot["by"]))
            if len(plot["lines"]) > 1 and not np.array_equal(path, plot["lines"][0][1]):
                continue  # the smoothed one
            steps = np.diff(path[:, 1]) / np.diff(y)  # raw: one factor, and up is more
            np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
            assert steps[0] < 0
    for i, (model, run) in enumerate(four.items()):
        for column in set(columns_of(run)) - {"step", "epoch", "images", "seconds"}:
            assert {(i, column, by) for by in ("images", "seconds", "step")} <= drawn, model
        assert (i, "images", "seconds") in drawn


def test_losses_of_different_models_never_share_an_axis(four, top):
    known = compare_tables.read_runs([*four.values(), make_run(top, "WGAN", "second")])
    together = {}
    for *_, panels in compare_page.sections_of(known):
        for panel in panels:
            these = frozenset(known[i].model for i in panel.runs)
            together.setdefault(panel.column, set()).add(these)
            assert (panel.runs == [2, 4]) == (these == {"WGAN"})
    assert together.pop("images") == {frozenset(runs.MODELS)}
    assert together.pop("d_real") == together.pop("d_fake") == {frozenset({"simpleGAN", "DCGAN"})}
    assert all(len(these) == 1 for sets in together.values() for these in sets), together
    assert together["wasserstein"] == {frozenset({"WGAN"}), frozenset({"WGAN-GP"})}


def test_a_run_has_one_colour_everywhere(four, page):
    colours = [run["colour"].lower() for run in data_in(page)]
    assert len(set(colours)) == 4
    for plot in plots_in(page):
        assert all(colour == colours[i] for i, _, colour in plot["lines"])
        dots = re.findall(DOT, plot["svg"])
        assert all(colour == colours[int(i)] for i, colour in dots)
        assert "by" in plot or dots
    rows = re.findall(r"<tr><td><svg[\s\S]*?stroke=\"(#\w+)\"[\s\S]*?</svg> ([\w-]+)", page)
    assert [model for _, model in rows] == [*four, "DCGAN", "WGAN"]  # all, then the evaluated
    assert all(colour.lower() == colours[list(four).index(model)] for colour, model in rows)


def test_no_two_of_many_runs_look_alike(top):
    many = compare_tables.read_runs(make_run(top, "WGAN", f"r{i}") for i in range(20))
    looks = [tuple(style.values()) for style in compare_page.styles_of(many, by_model=False)]
    assert len(set(looks)) == 20
    raced = [
        *many[:3],
        *compare_tables.read_runs([make_run(top, "DCGAN", f"r{i}") for i in range(3)]),
    ]
    styles = compare_page.styles_of(raced, by_model=True)
    assert [len({style["colour"] for style in part}) for part in (styles[:3], styles[3:])] == [1, 1]
    assert len({tuple(style.values()) for style in styles}) == 6


def test_the_smoothed_line_is_the_mean_around_each_row(top):
    run = compare_tables.read_run(make_run(top, "WGAN", rows=20))
    raw = run.rows["wasserstein"].to_numpy()
    smooth = compare_page.smooth(run, "wasserstein", 5 * 80).to_numpy()  # 80 images a row
    assert smooth[7] == pytest.approx(raw[5:10].mean())
    assert smooth[0] == pytest.approx(raw[:3].mean()) and smooth[-1] == pytest.approx(
        raw[-3:].mean()
    )
    assert (compare_page.smooth(run, "wasserstein", 0) == raw).all()


def test_only_settings_that_differ_are_in_the_table(top):
    a = make_run(top, "WGAN", clip_value=0.01, z_dim=8)
    b = make_run(top, "DCGAN", lr=2e-4, z_dim=8, digest="other")
    differ, same = compare_tables.settings_table(compare_tables.read_runs([a, b]))
    assert {row[0]: row[1:] for row in differ} == {
        "lr": ["0.0001", "0.0002"],
        "clip_value": ["0.01", "-"],
        "pictures": ["90 of 16x16x3, digest abc", "90 of 16x16x3, digest other"],
    }
    assert dict(same)["z_dim"] == "8" and dict(same)["batch_size"] == "8"


def test_what_forbids_a_comparison_is_said(top):
    made = [make_run(top, "WGAN"), make_run(top, "DCGAN", digest="other"), make_run(top, "WGAN-GP")]
    assert compare_tables.remarks(compare_tables.read_runs(made)) == []
    evaluate(made[0], swd=(1, 0.5))
    evaluate(made[2], swd=(1, 0.5))
    assert compare_tables.remarks(compare_tables.read_runs(made)) == []
    evaluate(made[1], swd=(1, 0.5), step=40, num=100)
    text = "\n".join(compare_tables.remarks(compare_tables.read_runs(made)))
    assert "different num: 100, 2000" in text and "different pictures" in text
    assert "DCGAN run: evaluated at step 40, but is now at 50" in text and "resize" not in text


def test_the_last_grids_are_in_the_page_as_they_are(four, page):
    grids = re.findall(r"<b>(\S+) run</b><br>\s*<span>(.*?)</span>.*?base64,([^\"]*)\"", page, re.S)
    assert [label for label, *_ in grids] == list(four)
    for (_, when, png), run in zip(grids, four.values(), strict=True):
        assert base64.b64decode(png) == (run / "frames" / "000050.png").read_bytes()
        assert when == f"step 50, 400 images, {columns_of(run)['seconds'][-1]:.0f} s"


def test_runs_that_have_only_begun(top, tmp_path, monkeypatch, capsys):
    young, torn = make_run(top, "WGAN"), make_run(top, "DCGAN")
    (young / "metrics.csv").unlink()
    shutil.rmtree(young / "frames")
    with open(torn / "metrics.csv", "a") as file:
        file.write("60,5.45,480,6.")  # being written
    call(monkeypatch, young, torn)
    text, page = capsys.readouterr().out, (tmp_path / "compare.html").read_text()
    assert re.search(r"^WGAN +run +0 +0 +0 +- ", text, re.M)
    assert data_in(page)[1]["rows"]["step"] == [10, 20, 30, 40, 50]
    assert "no frame yet" in page
    call(monkeypatch, young)
    assert "No run has a curve yet" in (tmp_path / "compare.html").read_text()


def test_alone_it_takes_the_newest_run_of_every_model(top, tmp_path, monkeypatch, capsys):
    make_run(top, "WGAN", "old", started="1")
    new, other = make_run(top, "WGAN", "new", started="2"), make_run(top, "DCGAN")
    before = set(tmp_path.rglob("*"))
    call(monkeypatch)
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "compare.html"}
    assert "wrote compare.html: 2 runs" in capsys.readouterr().out
    labels = [run["label"] for run in data_in((tmp_path / "compare.html").read_text())]
    assert labels == ["DCGAN run", "WGAN new"]
    call(monkeypatch, "WGAN", new, "new", other, "WGAN/tensorboard/runs/old")
    labels = [run["label"] for run in data_in((tmp_path / "compare.html").read_text())]
    assert labels == ["WGAN new", "DCGAN run", "WGAN old"]


def test_bad_input(top, tmp_path, monkeypatch):
    with pytest.raises(runs.InputError, match="no run to compare"):
        call(monkeypatch)
    run = make_run(top, "WGAN")
    for argv, named in (
        (["nowhere"], "nowhere"),
        (["--out", run / "metrics.csv"], "metrics.csv"),
        (["--seeds", "2"], "--seeds is for --race"),
        (["--race"], "--seconds or --images"),
        (["--race", "--seconds", "1", "--images", "9"], "--seconds or --images"),
        (["--race", "--seconds", "1", run], "no RUN"),
        (["--race", "--seconds", "1", "--width", "0"], "--width"),
        (["--race", "--seconds", "1", "--name", "../x"], "--name"),
    ):
        with pytest.raises(runs.InputError, match=named):
            call(monkeypatch, *argv)
    for argv in (["--smoothing", "nan"], ["--seconds", "-1"], ["--race", "--models", "VAE"]):
        with pytest.raises(SystemExit, match="2"):
            call(monkeypatch, *argv)
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.csv", "step,images\n1,2\n"),
        ("metrics.csv", '"\n'),
        ("evaluation.jsonl", '{"step": 5, "metrics": {"swd": 3}}\n'),
        ("evaluation.jsonl", '{"step": 5, "metrics": '),
        ("parameters.json", "[1]"),
        ("frames/000060.png", "no picture"),
    ],
)
def test_damaged_files_are_named(top, monkeypatch, file, content):
    run = make_run(top, "WGAN")
    (run / file).write_text(content)
    with pytest.raises(runs.InputError, match=file.split("/")[0]):
        call(monkeypatch, run)


def test_what_a_stranger_wrote_stays_text(top, tmp_path, monkeypatch, capsys):
    evil = '</script><img src=http://x.y/z onerror="document.title=1">'
    run = make_run(top, "WGAN", "run", name_of_it=evil)
    run = run.rename(run.with_name("<b>bold & $\\nonsense$"))
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"device": "\x1b[2J" + evil}))
    rows = (run / "metrics.csv").read_text().replace("clipped", evil)
    (run / "metrics.csv").write_text(rows)
    evaluate(run, swd=(0.5, 0.1), **{evil: (1, 2)})
    with open(run / "evaluation.jsonl", "a") as file:
        file.write('{"step": 50, "metrics": {"swd": {"value": NaN, "floor": 1e999}}}\n')
    for _ in range(2):
        call(monkeypatch, run)
        page = (tmp_path / "compare.html").read_text()
        assert "<img src=http" not in page and "<b>bold" not in page
        assert "&lt;img src=http" in page  # as text
        assert "\x1b" not in capsys.readouterr().out
        lines = (run / "evaluation.jsonl").read_text().splitlines()
        (run / "evaluation.jsonl").write_text(lines[0] + "\n")  # then the one with the metric


def test_nothing_in_the_page_is_fetched(page):
    targets = re.findall(r"""(?:src|href|action|data|poster|srcset)\s*=\s*["']?([^"'\s>]+)""", page)
    assert targets and all(target.startswith(("data:", "#")) for target in targets)
    assert not re.findall(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page
    assert len(page) < 2e6


# ---- In a browser ----

PROBE = """
<script>
const shown = () => [...document.querySelectorAll(".plot")].filter((p) => p.offsetHeight > 50);
const result = { titles: [], width: document.documentElement.scrollWidth };
result.small = shown().filter((p) => p.offsetWidth < 250 || p.offsetHeight < 130).length;
result.pictures = [...document.images].map((image) => image.naturalWidth);
result.overlap = [...document.querySelectorAll(".plot svg text")].filter((text) => {
  const [a, b] = [text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()];
  return a.width && (a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1);
}).map((text) => text.textContent);
for (const by of ["seconds", "step", "images"]) {
  document.querySelector(`[value=${by}]`).click();
  const curves = shown().filter((p) => p.dataset.column);
  result[by] = curves.map((p) => `${p.dataset.column} ${p.dataset.by}`);
}
const plot = shown().find((p) => p.dataset.column === "wasserstein");
const point = () => {
  const frame = plot.getBoundingClientRect();
  const at = frame.left + frame.width * (0.12 + 0.84 * 0.41);
  plot.dispatchEvent(new PointerEvent("pointermove", { clientX: at, bubbles: true }));
  return plot.querySelector(".tip")?.innerText;
};
result.tip = point();
const seen = (line) => line.getBoundingClientRect().width > 0;
const lines = () => [...plot.querySelectorAll(".run2")].filter(seen).length;
result.lines = [lines()];
document.querySelector("[data-run='2']").click();
result.lines.push(lines());
result.hidden = point();
document.body.dataset.result = JSON.stringify(result);
</script>
"""


def browse(page, tmp_path):
    """Open a page in a browser without a window; return its DOM and what its console shows."""
    if not BROWSER:
        pytest.skip("no google-chrome, chrome or chromium on this machine")
    file = tmp_path / "browse.html"
    file.write_text(page)
    options = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --v=0 --dump-dom"
    options += " --window-size=1280,800 --virtual-time-budget=3000"
    done = subprocess.run(
        [BROWSER, *options.split(), f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console


def test_the_page_in_a_browser(four, page, tmp_path):
    dom, console = browse(page.replace("</body>", PROBE + "</body>"), tmp_path)
    assert not console
    result = json.loads(html.unescape(re.search(r'data-result="([^"]*)"', dom)[1]))
    assert result["width"] <= 1280 and result["small"] == 0 and result["overlap"] == []
    assert result["pictures"] == [34] * 4
    for by in ("seconds", "step", "images"):
        speed, *others = result[by]
        assert speed == "images seconds" and len(others) == 2 + 4 * 2 + 2 + 3
        assert {label.split()[1] for label in others} == {by}
    columns = columns_of(four["WGAN"])  # five rows: 0.41 of the way lies at the second
    assert result["tip"].split("\n") == ["164 images", f"WGAN run {columns['wasserstein'][1]:.4g}"]
    assert result["lines"] == [2, 0] and "WGAN" not in result["hidden"]
    for run, found in zip(four.values(), data_in(dom), strict=True):
        assert found["rows"] == columns_of(run)
    assert "0.0321 (0.0123)" in dom


def test_an_error_on_the_page_would_be_noticed(page, tmp_path):
    _, console = browse(page.replace("JSON.parse(", "JSON.prase("), tmp_path)
    assert any("prase" in line for line in console)


def test_a_strangers_page_in_a_browser(top, tmp_path, monkeypatch):
    steal = "document.title='taken'"
    evil = f'</script><script>{steal}</script><img src=x onerror="{steal}">'
    run = make_run(top, "WGAN", lr=evil)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"device": evil}))
    call(monkeypatch, run)
    dom, console = browse((tmp_path / "compare.html").read_text(), tmp_path)
    assert "<title>taken" not in dom and not console
