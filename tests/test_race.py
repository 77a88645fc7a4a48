"""race.py: equal conditions, honest numbers, and a race that can be interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from statistics import fmean, stdev
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import TOP

import evaluate
import make_gif
import race
import runs

# Stands in for train.py: writes a run of 0.1 seconds, and remembers what it was asked.
# say.json lets a run fail: [exit code, message], or wait for a signal: ["wait"].
TRAIN = """
import json, os, signal, sys, time
from pathlib import Path
top, model = Path(__file__).parent.parent, Path(__file__).parent.name
asked = dict(word[2:].split("=", 1) for word in sys.argv[1:])
name = asked.get("name") or asked["resume"]
with open(top / "asked.jsonl", "a") as file:
    print(json.dumps([name, asked]), file=file)
run = Path(asked["runs-dir"]) / name
run.mkdir(parents=True, exist_ok="resume" in asked)
code, *said = json.loads((top / "say.json").read_text()).get(name, [0])
critics, steps = 5 if "WGAN" in model else 1, int(asked.get("max-steps", 0)) or 20
facts = {"format": 1, "model": model, "started": "2026-11-29T09:40:00+00:00"}
facts |= {"pictures": {"shape": [9], "digest": "d"}, "device": f"cpu of {model}"}
facts["finished"] = None if code else "now"
(run / "run.json").write_text(json.dumps(facts))
settings = dict.fromkeys(("data", "data_dir", "image_size", "channels", "epochs", "lr"), 1)
settings |= {"batch_size": 8, "seed": int(asked["seed"]), "n_critic": critics}
(run / "parameters.json").write_text(json.dumps(settings))
row = f"{steps},1,{steps * 8 * critics},{steps * 0.007}"
(run / "metrics.csv").write_text("step,epoch,images,seconds\\n" + row + "\\n")
if code == "wait":
    got = []
    signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    (run / "ready").touch()
    while not got:
        time.sleep(0.01)
    time.sleep(0.5)  # it saves; what comes now would be lost
    (run / "checkpoint.pt").write_text(f"{len(got)} {os.getpgrp()}")
    sys.exit(143)
print(*said, file=sys.stderr)
sys.exit(code)
"""
EVALUATE = """
import json, random, sys
from pathlib import Path
run = Path(sys.argv[1])
step = int((run / "metrics.csv").read_text().splitlines()[-1].split(",")[0])
swd = {text: random.Random(run.name + text).random() for text in ("value", "floor")}
line = {"step": step, "seed": 0, "asked": sys.argv[2:], "metrics": {"swd": swd}}
with open(run / "evaluation.jsonl", "a") as file:
    print(json.dumps(line), file=file)
"""
GIF = "import json, sys; open(sys.argv[-1], 'w').write(json.dumps(sys.argv[1:]))"
FLAGS = ["--name=x", "--hold-out=5", "--image-size=16", "--width=4", "--batch-size=8", "--num=20"]
FLAGS += ["--device=cpu", "--models", "DCGAN", "WGAN"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with stand-ins, and a function that holds a race in it."""
    for model in (*runs.PAPERS, "MyGAN"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "train.py").write_text(TRAIN)
        own = '{"n_critic": 5}' if "WGAN" in model else '{"k": 3}' if model == "MyGAN" else "{}"
        (tmp_path / model / "quick.json").write_text(own)
    for name, text in {"evaluate.py": EVALUATE, "make_gif.py": GIF, "say.json": "{}"}.items():
        (tmp_path / name).write_text(text)
    runs.utils()  # that of this repository
    for module in (runs, race):
        monkeypatch.setattr(module, "TOP", tmp_path)
    monkeypatch.setattr(runs, "heed_signals", lambda: None)  # pytest has its own

    def hold(*argv, **say):
        """Hold a race of two seeds; return what trainings were asked, by name and in order."""
        (tmp_path / "say.json").write_text(json.dumps(say))
        (tmp_path / "asked.jsonl").write_text("")
        monkeypatch.setattr(sys, "argv", ["race.py", *FLAGS, "--seeds=2", *argv])
        race.main()
        return dict(map(json.loads, (tmp_path / "asked.jsonl").read_text().splitlines()))

    def read():
        """Return what race.json and race.csv hold."""
        rows = pd.read_csv(folder / "race.csv", keep_default_na=False)
        return json.loads((folder / "race.json").read_text()), rows

    folder = tmp_path / "race" / "x"
    return SimpleNamespace(hold=hold, top=tmp_path, folder=folder, read=read)


def test_all_runs_have_equal_conditions_and_a_partial_race_is_fair(project):
    found = project.hold("--images=800")
    assert found.pop("trial") and list(found) == ["DCGAN-0", "WGAN-0", "DCGAN-1", "WGAN-1"]
    for name, asked in found.items():
        steps = {"DCGAN": 100, "WGAN": 20}[name[:-2]]  # 800 images, 8 or 5 x 8 a step
        own = {"max-steps": f"{steps}", "seed": name[-1], "name": name}
        own["config"] = str(project.top / name[:-2] / "quick.json")
        own |= {f"{part}-every": str(max(1, steps // n)) for part, n in race.EVERY.items()}
        assert asked | own == asked and int(asked.pop("epochs")) >= 10**6
        assert {flag: value for flag, value in asked.items() if flag not in own} == {
            **{"data": "faces", "hold-out": "5", "image-size": "16", "batch-size": "8"},
            **{"g-width": "4", "d-width": "4", "device": "cpu"},
            **{"data-dir": str(project.top / "race" / "data"), "runs-dir": str(project.folder)},
        }
    assert {run.name for run in project.folder.glob("[!r]*")} == set(found)  # no trial is left


def test_a_budget_of_seconds_and_how_long_it_takes(project, capsys):
    found, said = project.hold("--seconds=101.5", "--data=own"), capsys.readouterr().out
    for name, asked in found.items():
        assert asked["max-seconds"] == ("3" if name == "trial" else "101.5")
        assert asked.get("max-steps", "0") == "0" and asked["data"] == os.path.abspath("own")
    # The trial makes 20 steps in 0.14 seconds: 14,500 in 101.5, of which 60 are drawn.
    assert found["DCGAN-0"]["frame-every"] == "241"
    first, *_ = said.splitlines()  # before anything is tried out
    assert first == "4 runs of 101.5 s of training, each with a start and an evaluation"
    hours, minutes, seconds = map(int, re.search(r"of 4; about (\d):(\d+):(\d+)", said).groups())
    assert 406 <= hours * 3600 + minutes * 60 + seconds <= 440  # and four starts


def test_a_trial_takes_a_tenth_of_the_budget_at_most(project):
    asked = {}
    for model in ("DCGAN", "WGAN", "MyGAN"):
        for argv in (["--seconds=17"], ["--images=3217"], ["--images=9", "--batch-size=2"]):
            flags = [*argv, f"--name={model}{len(asked)}", "--seeds=1", "--models", model]
            asked[model, argv[0]] = project.hold(*flags)["trial"]
    limits = {key: (flags["max-seconds"], flags["max-steps"]) for key, flags in asked.items()}
    for model, images in (("DCGAN", 8), ("WGAN", 5 * 8), ("MyGAN", 3 * 8)):  # shown by a step
        assert limits[model, "--seconds=17"] == ("1.7", "0")
        assert limits[model, "--images=3217"] == ("3", str(3217 // 10 // images))
        assert limits[model, "--images=9"] == ("3", "1")  # no less than a step


def test_what_is_unfinished_is_continued_and_what_is_finished_left_alone(project, capsys):
    with pytest.raises(SystemExit, match="130"):
        project.hold("--images=800", **{"WGAN-0": [143]})  # somebody stops it
    assert "trained and saved: nothing yet" in capsys.readouterr().out
    (project.folder / "WGAN-0" / "checkpoint.pt").touch()
    (project.folder / "DCGAN-1" / "stale").mkdir(parents=True)  # without a checkpoint
    found = project.hold("--images=800")
    resumed = [(name, asked.get("resume")) for name, asked in found.items()]
    assert resumed == [("WGAN-0", "WGAN-0"), ("DCGAN-1", None), ("WGAN-1", None)]
    assert not (project.folder / "DCGAN-1" / "stale").exists()
    more = project.hold("--images=800", "--models", "WGAN", "WGAN-GP", "--seeds=1")
    assert list(more) == ["trial", "WGAN-GP-0"]


def test_other_conditions_are_refused(project, monkeypatch, capsys):
    same = ["--images=800", "--seeds=1"]
    project.hold(*same)

    def refused(*argv):
        with pytest.raises(SystemExit, match="2"):
            project.hold(*argv)
        return capsys.readouterr().err

    assert "800" in refused("--images=400") and "'width': 4" in refused(*same, "--width=8")
    with monkeypatch.context() as changed:
        changed.setattr(race.os, "cpu_count", lambda: 999)
        assert "machine" in refused(*same)
    (project.top / "WGAN" / "quick.json").write_text('{"lr": 9}')
    assert "own" in refused(*same)
    assert not (project.top / "asked.jsonl").read_text()


def test_a_failed_run_is_shown_and_stops_nothing(project, capsys):
    project.hold("--images=800", **{"WGAN-0": [1, "train.py: error: loss_d is <nan>"]})
    record, rows = project.read()
    assert record["failed"] == {"WGAN-0": "loss_d is <nan>"}
    assert record["devices"] == ["cpu of DCGAN", "cpu of WGAN"]
    assert record["means"]["WGAN"]["runs"] == 1 and record["means"]["DCGAN"]["runs"] == 2
    assert record["means"]["WGAN"]["swd"]["spread"] is None
    assert list(rows["failed"]) == ["", "loss_d is <nan>", "", ""]
    assert "WGAN-0 failed: loss_d is <nan>" in capsys.readouterr().out
    assert "WGAN-0 failed: loss_d is &lt;nan&gt;" in (project.folder / "race.html").read_text()
    assert list(project.hold("--images=800")) == ["WGAN-0"]
    assert project.read()[0]["failed"] == {}
    every = {f"{model}-0": [1, "x: error: no space"] for model in ("DCGAN", "WGAN")}
    with pytest.raises(SystemExit, match="every run failed; WGAN-0: no space"):
        project.hold("--images=800", "--seeds=1", "--name=y", **every)
    assert not (project.folder.with_name("y") / "race.html").exists()


def test_what_train_py_refuses_ends_the_race_before_it_begins(project, capsys):
    refused = [2, "train.py: error: --data nowhere: no such folder"]
    for argv, say, named in (
        (["--images=800"], {"trial": refused}, "DCGAN: --data nowhere"),
        ([], {}, "--seconds or --images"),
        (["--seconds=1", "--images=9"], {}, "--seconds or --images"),
        (["--seconds=-1"], {}, "--seconds or --images"),
        (["--images=9", "--seeds=0"], {}, "--seeds from 1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            project.hold(*argv, **say)
        assert named in capsys.readouterr().err
    assert not project.folder.exists()


def test_means_spread_and_floor_are_those_of_the_runs(project, capsys):
    project.hold("--images=803", "--seeds=3", "--models", "MyGAN", "WGAN")
    said, page = capsys.readouterr().out, (project.folder / "race.html").read_text()
    (record, rows), floors = project.read(), []
    for model in ("MyGAN", "WGAN"):  # any folder with a train.py is a model
        files = [project.folder / f"{model}-{seed}" / "evaluation.jsonl" for seed in range(3)]
        metrics = [json.loads(file.read_text())["metrics"]["swd"] for file in files]
        found = [metric["value"] for metric in metrics]
        floors += [metric["floor"] for metric in metrics]
        its = rows[rows["model"] == model]
        assert list(its["swd"]) == pytest.approx(found) and list(its["seed"]) == [0, 1, 2]
        means = {"mean": fmean(found), "spread": stdev(found)}
        assert record["means"][model]["swd"] == pytest.approx(means)
        text = f"{fmean(found):.4g} ± {stdev(found):.2g}"
        assert text in said and text in page
    assert re.search(rf"^swd .* {fmean(floors):.4g}$", said, re.M)
    assert "hidden units in the simple GAN" in page
    project.hold("--images=800", "--name=one", "--seeds=1")
    assert "±" not in capsys.readouterr().out


def test_evaluate_py_and_make_gif_py_understand_what_they_are_asked(project):
    project.hold("--images=800")
    run = project.folder / "DCGAN-0"
    asked = json.loads((run / "evaluation.jsonl").read_text())["asked"]
    asked = [word.replace("--num=20", "--num=200") for word in asked]  # 20 are too few
    asked = evaluate.parse_arguments([str(run), *asked])
    assert (asked.num, asked.seed, asked.device) == (200, 0, "cpu")
    asked = make_gif.parse_arguments(json.loads((project.folder / "race.gif").read_text()))
    assert asked.side_by_side and asked.out == project.folder / "race.gif"
    assert {text.split("/")[-1] for text in map(str, asked.runs)} == {"DCGAN-0", "WGAN-0"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_is_asked_once_to_stop_and_waited_for(project, number):
    """The race has a process group of its own, as from a terminal, whose Ctrl-C goes to all."""
    (project.top / "say.json").write_text('{"DCGAN-0": ["wait"]}')
    script = "import race, runs\nruns.utils()\n"
    script += f"race.TOP = runs.TOP = runs.Path({str(project.top)!r})\nrace.main()"
    command = [sys.executable, "-c", script, *FLAGS, "--seeds=1", "--images=800"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, start_new_session=True, cwd=TOP, **pipes)
    while not (project.folder / "DCGAN-0" / "ready").exists() and child.poll() is None:
        time.sleep(0.01)
    os.killpg(child.pid, number)
    out, error = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in error, error
    assert "stopped; trained and saved: DCGAN-0; the same command continues" in out
    saved = (project.folder / "DCGAN-0" / "checkpoint.pt").read_text()
    signals, group = map(int, saved.split())
    assert signals == 1 and group != child.pid
