"""The race: the same conditions for all, in order, and on from where it was interrupted."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from statistics import fmean, stdev

import pytest
import torch
from conftest import FOLDERS, TOP, load
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file

import compare
import runs

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

import race
import race_report

# Stands in for evaluate.py: a number drawn from the run's name, beside a floor.
EVALUATE = """
import json, random, sys, time
from pathlib import Path
run, num, seed = Path(sys.argv[1]), int(sys.argv[3]), int(sys.argv[5])
assert sys.argv[2::2] == ["--num", "--seed", "--device"] and sys.argv[7] == "cpu"
step = int((run / "metrics.csv").read_text().splitlines()[-1].split(",")[0])
swd = {"value": random.Random(run.name).random(), "floor": 0.0123}
line = {"step": step, "num": min(num, 5), "seed": seed, "date": str(time.time())}
line["metrics"] = {"swd": swd}
with open(run / "evaluation.jsonl", "a") as file:
    file.write(json.dumps(line) + "\\n")
"""
CONDITIONS = {"data": "faces", "hold_out": 5, "image_size": 16, "width": 4, "batch_size": 8}
CONDITIONS |= {"device": "cpu", "num": 20}


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(40):
        Image.new("RGB", (16, 16), (6 * i, 99, 200 - i)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A race in a folder of its own, with a stand-in for evaluate.py."""
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    monkeypatch.setattr(race, "RACES", tmp_path / "race")
    monkeypatch.setattr(race, "EVALUATE", (sys.executable, str(tmp_path / "evaluate.py")))
    return race.Race("x", ("DCGAN", "WGAN"), 2, 0, 800, str(tmp_path / "data"), CONDITIONS)


class Trainer:
    """Stands in for train.py: writes a run folder at once, and remembers what it was asked."""

    def __init__(self):
        self.asked, self.answers = [], {}

    def __call__(self, model, arguments, watch=None):
        words = list(map(str, arguments))
        asked = {k: v for k, v in zip(words, [*words[1:], ""], strict=True) if k.startswith("--")}
        name = asked.get("--name") or asked["--resume"]
        self.asked.append((model, name, asked))
        run = runs.Path(asked["--runs-dir"]) / name
        (run / "frames").mkdir(parents=True, exist_ok=True)
        code, reason = self.answers.get(name, (0, ""))
        each = 40 if "WGAN" in model else 8
        steps = int(asked.get("--max-steps", 20))
        facts = {"format": 1, "model": model, "finished": None if code else "now", "started": ""}
        facts["device"] = "cpu (x, 2 threads), asked"
        settings = {"batch_size": 8, "seed": int(asked.get("--seed", 0))}
        settings |= {"n_critic": 5} if "WGAN" in model else {}
        (run / "run.json").write_text(json.dumps(facts))
        (run / "parameters.json").write_text(json.dumps(settings))
        seconds = steps / (4 + settings["seed"])
        lines = ["step,epoch,images,seconds,loss_d,loss_g"]
        lines += [f"{s},1,{s * each},{seconds * s / steps},0.5,0.5" for s in (1, steps)]
        (run / "metrics.csv").write_text("\n".join(lines) + "\n")
        for step in (0, steps):
            Image.new("RGB", (32, 32), "teal").save(run / "frames" / f"{step:06d}.png")
        return code, reason

    def names(self):
        return [name for _, name, _ in self.asked if name != "trial"]


@pytest.fixture
def trainer(monkeypatch):
    trainer = Trainer()
    monkeypatch.setattr(race, "run_child", trainer)
    return trainer


def test_a_partial_race_is_fair_and_all_runs_have_the_same_conditions(plan, trainer):
    race.hold(plan)
    assert trainer.names() == ["DCGAN-0", "WGAN-0", "DCGAN-1", "WGAN-1"]
    assert [name for _, name, _ in trainer.asked[:2]] == ["trial", "trial"]
    shared = []
    for model, name, asked in trainer.asked[2:]:
        steps = {"DCGAN": "100", "WGAN": "20"}[model]  # 800 images, 8 or 40 a step
        assert (asked.pop("--max-steps"), asked.pop("--seed")) == (steps, name[-1])
        assert asked.pop("--name") == name and asked.pop("--config") == "quick.json"
        for part in ("log", "frame", "checkpoint"):
            assert 0 < int(asked.pop(f"--{part}-every")) <= int(steps) // 10
        shared.append(asked)
    assert all(asked == shared[0] for asked in shared)
    assert {k: shared[0][k] for k in ("--data", "--hold-out", "--g-width", "--d-width")} == {
        "--data": "faces",
        "--hold-out": "5",
        "--g-width": "4",
        "--d-width": "4",
    }


def test_train_py_takes_what_a_race_asks_and_the_nets_are_alike(plan):
    made = []
    for folder in FOLDERS:
        files = load(folder)
        words = [str(word) for word in race.settings(plan, folder, 1)]
        made.append(files.utils.parse_config(files.train.Config, words))
        assert set(files.data.NAMED) | {"faces"} == set(compare.NAMED)
    for name in ("data", "hold_out", "image_size", "g_width", "d_width", "batch_size", "seed"):
        assert len({getattr(config, name) for config in made}) == 1, name
    assert made[0].image_size == 16 and made[0].g_width == 4 and made[0].seed == 1
    assert len({config.lr for config in made}) > 1  # each model's own


def test_a_budget_of_seconds_is_given_to_every_run(plan, trainer):
    seconds = replace(plan, images=0, seconds=240.0)
    race.hold(seconds)
    for _, name, asked in trainer.asked:
        assert asked["--max-seconds"] == ("3" if name == "trial" else "240.0")
        assert "--max-steps" not in asked
    # the stand-in makes 4 steps a second with seed 0: 960 in all, of which 60 are drawn
    assert trainer.asked[2][2]["--frame-every"] == "16"


def test_what_is_finished_is_left_alone_and_seeds_may_be_added(plan, trainer, capsys):
    race.hold(plan)
    before = [run.stat().st_mtime_ns for run in plan.folder.glob("*/run.json")]
    trainer.asked.clear()
    race_report.report(plan, race.hold(plan))
    assert trainer.asked == []
    assert [run.stat().st_mtime_ns for run in plan.folder.glob("*/run.json")] == before
    for *_, run in plan.runs():
        assert len((run / "evaluation.jsonl").read_text().splitlines()) == 1
    with open(run / "evaluation.jsonl", "a") as file:  # by hand, and otherwise
        file.write('{"step": 20, "num": 9, "seed": 7, "date": "x", "metrics": {}}\n')
    race.hold(plan)
    lines = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 7, 0] and trainer.asked == []
    race.hold(replace(plan, seeds=3, models=("DCGAN", "WGAN", "WGAN-GP")))
    assert trainer.names() == ["WGAN-GP-0", "WGAN-GP-1", "DCGAN-2", "WGAN-2", "WGAN-GP-2"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": 1600}, "images was 800 and is now 1600"),
        ({"conditions": CONDITIONS | {"width": 8}}, "width was 4 and is now 8"),
        ({"conditions": CONDITIONS | {"num": 21}}, "num was 20 and is now 21"),
    ],
)
def test_other_conditions_are_refused(plan, trainer, change, named):
    race.hold(plan)
    trainer.asked.clear()
    with pytest.raises(runs.InputError, match=named):
        race.hold(replace(plan, **change))
    assert trainer.asked == []


def test_another_machine_and_another_quick_json_are_refused(plan, trainer, monkeypatch):
    race.hold(plan)
    with monkeypatch.context() as changed:
        changed.setattr(race.os, "cpu_count", lambda: 999)
        with pytest.raises(runs.InputError, match=r"cpus was .* and is now 999"):
            race.hold(plan)
    monkeypatch.setattr(race, "read_quick", lambda model: {"lr": 9})
    with pytest.raises(runs.InputError, match=r"DCGAN/quick\.json was"):
        race.hold(plan)
    (plan.folder / "race.json").write_text("{")
    with pytest.raises(runs.InputError, match="damaged"):
        race.hold(plan)


def test_a_failed_run_is_shown_and_stops_nothing(plan, trainer, capsys):
    trainer.answers["WGAN-0"] = (1, "loss_d is nan at step 7: the training has diverged")
    race_report.report(plan, race.hold(plan))
    assert trainer.names() == ["DCGAN-0", "WGAN-0", "DCGAN-1", "WGAN-1"]
    text = capsys.readouterr().out
    assert "WGAN-0 failed: loss_d is nan at step 7" in text and "1 of 2" in text
    assert not (plan.folder / "WGAN-0" / "evaluation.jsonl").exists()
    rows = list(csv.DictReader((plan.folder / "race.csv").read_text().splitlines()))
    assert ["nan" in row["failed"] for row in rows] == [False, True, False, False]
    means = json.loads((plan.folder / "race.json").read_text())["means"]
    assert means["WGAN"]["runs"] == 1 and means["WGAN"]["swd"]["spread"] is None
    assert "WGAN-0 failed: loss_d is nan" in (plan.folder / "race.html").read_text()
    trainer.asked.clear()
    race.hold(plan)  # it would only diverge again
    assert trainer.names() == []
    shutil.rmtree(plan.folder / "WGAN-0")
    trainer.answers.clear()
    record = race.hold(plan)
    assert trainer.names() == ["WGAN-0"] and record["failed"] == {}


def test_a_setting_that_train_py_refuses_ends_the_race(plan, trainer):
    trainer.answers["trial"] = (2, "--data nowhere: no such folder")
    with pytest.raises(runs.InputError, match="DCGAN: --data nowhere"):
        race.hold(plan)
    assert not plan.folder.exists() and len(trainer.asked) == 1
    trainer.answers = {"DCGAN-1": (2, "no space")}
    with pytest.raises(runs.InputError, match=r"DCGAN-1: no space"):
        race.hold(plan)
    assert trainer.names() == ["DCGAN-0", "WGAN-0", "DCGAN-1"]
    with pytest.raises(runs.InputError, match="one step of WGAN shows 40"):
        race.hold(replace(plan, name="y", images=39))


def test_what_is_unfinished_is_resumed_and_what_has_no_checkpoint_begins_anew(
    plan, trainer, capsys
):
    trainer.answers = {"WGAN-0": (130, "")}
    with pytest.raises(SystemExit, match="130"):
        race.hold(plan)
    assert "the same command goes on" in capsys.readouterr().out
    assert trainer.names() == ["DCGAN-0", "WGAN-0"]
    (plan.folder / "WGAN-0" / "checkpoint.pt").touch()
    (plan.folder / "DCGAN-1").mkdir()
    (plan.folder / "DCGAN-1" / "left_over").touch()
    trainer.asked.clear()
    trainer.answers.clear()
    race.hold(plan)
    assert [asked.get("--resume") for *_, asked in trainer.asked] == ["WGAN-0", None, None]
    assert not (plan.folder / "DCGAN-1" / "left_over").exists()


def test_means_and_spread_are_those_of_the_runs(plan, trainer, capsys):
    race_report.report(plan, race.hold(plan))
    rows = list(csv.DictReader((plan.folder / "race.csv").read_text().splitlines()))
    assert [(row["model"], row["seed"]) for row in rows] == [
        (model, str(seed)) for model, seed, _ in plan.runs()
    ]
    record, text = json.loads((plan.folder / "race.json").read_text()), capsys.readouterr().out
    for model in plan.models:
        swd = []
        for seed in range(2):
            line = (plan.folder / f"{model}-{seed}" / "evaluation.jsonl").read_text()
            swd.append(json.loads(line)["metrics"]["swd"]["value"])
        assert [float(row["swd"]) for row in rows if row["model"] == model] == swd
        assert record["means"][model]["swd"] == pytest.approx(
            {"mean": fmean(swd), "spread": stdev(swd)}
        )
        _, line = [line for line in text.splitlines() if line.startswith(f"{model} ")]
        assert line.endswith(race_report.spread(swd)) and " ± " in line
        assert line in text and race_report.spread(swd) in (plan.folder / "race.html").read_text()
    assert all(float(row["swd_floor"]) == 0.0123 for row in rows)
    assert [line.split()[-1] for line in text.splitlines() if "real pictures" in line] == ["0.0123"]
    with Image.open(plan.folder / "race.gif") as gif:
        assert gif.width > 2 * 500  # two models beside each other
    assert record["machine"]["cpus"] == os.cpu_count() and "device" in record["machine"]
    wrote = [line.split("/")[-1] for line in text.splitlines() if line.startswith("wrote")]
    assert wrote == ["race.json", "race.csv", "race.html", "race.gif"]


def test_one_race_at_a_time(plan, trainer):
    race.RACES.mkdir()
    with FileLock(race.RACES / ".lock"), pytest.raises(runs.InputError, match="another race"):
        race.hold(plan)
    assert trainer.asked == [] and not plan.folder.exists()
    race.hold(plan)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 3.0], "2.0 ± 1.4"),
        ([0.01234, 0.01236], "0.012350 ± 0.000014"),
        ([100.0, 300.0], "200 ± 141"),
        ([0.5], "0.5"),
        ([0.5, 0.5], "0.5"),
        ([float("nan"), 0.25], "0.25"),
        ([], "-"),
    ],
)
def test_a_mean_has_no_more_digits_than_its_spread_allows(values, text):
    assert race_report.spread(values) == text


def test_a_request_to_stop_whose_exception_is_lost_is_heeded(tmp_path):
    program = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (open("told", "w").close(), sys.exit(130)))
open("ready", "w").close()
time.sleep(60)
"""

    def watch():
        if (tmp_path / "ready").exists() and not race.REQUESTS:
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)

    with pytest.raises(KeyboardInterrupt), race.signals_interrupt():
        race.run_program([sys.executable, "-c", program], tmp_path, watch)
    assert (tmp_path / "told").exists()
    with pytest.raises(KeyboardInterrupt), race.signals_interrupt():
        race.REQUESTS.append(signal.SIGINT)  # one that comes as the program ends
        race.run_program([sys.executable, "-c", "pass"], tmp_path)


def test_without_evaluate_py_the_race_goes_on(plan, trainer, monkeypatch, capsys):
    monkeypatch.setattr(race, "EVALUATE", (sys.executable, str(TOP / "no_such.py")))
    race_report.report(plan, race.hold(plan))
    text = capsys.readouterr().out
    assert text.count("not evaluated: ") == 4 and "no_such.py" in text
    assert (plan.folder / "race.html").exists()


def test_a_program_is_told_once_to_stop_and_waited_for(tmp_path, monkeypatch):
    """The program stops at the first signal, but takes its time; a second would kill it."""
    program = """
import os, signal, time
got = []
signal.signal(signal.SIGINT, lambda *_: got.append(1))
open("ready", "w").close()
while not got: time.sleep(0.01)
time.sleep(0.7)
open("saved", "w").write(f"{len(got)} {os.getpgrp()}")
"""

    def watch():
        if (tmp_path / "ready").exists() and not done:
            done.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    done = []
    with pytest.raises(KeyboardInterrupt), race.signals_interrupt():
        race.run_program([sys.executable, "-c", program], tmp_path, watch)
    signals, group = map(int, (tmp_path / "saved").read_text().split())
    assert signals == 1
    assert group != os.getpgrp()  # a terminal's Ctrl-C goes to a group, and would reach it as well
    assert race.run_program(
        [sys.executable, "-c", "raise SystemExit('a.py: error: x: y')"], tmp_path
    ) == (
        1,
        "x: y",
    )
    code, reason = race.run_program(
        [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], "."
    )
    assert code == -9 and reason == "killed by signal 9"


def test_interrupted_and_gone_on_with_it_equals_one_that_was_not(plan, pictures, tmp_path):
    """The command, with the real train.py: stopped in the middle of a run, then started again."""
    script = f"""
import sys
sys.path.insert(0, {str(TOP)!r})
import compare, race, runs
race.RACES = runs.Path({str(race.RACES)!r})
race.EVALUATE = {race.EVALUATE!r}
with runs.plain_errors():
    compare.main()
"""
    command = [sys.executable, "-c", script, "--race", "--images", "1600", "--models", "DCGAN"]
    command += ["--seeds", "2", "--data", pictures, "--hold-out", "5", "--image-size", "16"]
    command += ["--width", "4", "--batch-size", "8", "--device", "cpu", "--num", "20"]
    command = [*map(str, command), "--name", "x"]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    how["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
    run = plan.folder / "DCGAN-0"
    with subprocess.Popen(command, start_new_session=True, **how) as first:
        while not (run / "metrics.csv").exists() and first.poll() is None:
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C does: to all in the terminal
        out, error = first.communicate(timeout=60)
    assert first.returncode == 130 and "the same command goes on" in out, error
    assert "Traceback" not in error
    stopped = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    assert "stopped     at step" in (run / "train.log").read_text()
    assert 0 < stopped < 200 and not json.loads((run / "run.json").read_text())["finished"]
    second = subprocess.run(command, timeout=120, **how)
    assert second.returncode == 0, second.stderr
    assert "200 steps, 1,600 images" in second.stdout
    assert not {path.name for path in tmp_path.iterdir()} & {"compare.html", "tensorboard"}
    files = load("DCGAN")
    for seed in range(2):
        run = plan.folder / f"DCGAN-{seed}"
        words = ["--config", str(run / "parameters.json"), "--runs-dir", str(tmp_path / "runs")]
        config = files.utils.parse_config(files.train.Config, [*words, "--name", str(seed)])
        assert config.seed == seed
        whole = load_file(files.train.train(config) / "generator.safetensors")
        for name, weight in load_file(run / "generator.safetensors").items():
            assert torch.equal(weight, whole[name]), name
