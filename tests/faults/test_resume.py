"""Going on with a run folder any file of which is damaged: exactly, or refused in one line."""

import dataclasses
import json
import os
import random
import re
import resource
import shutil
import time

import pytest
import torch
from breaking import run_in_child, weights
from conftest import load

pytest.importorskip("resource")  # Windows has none
from damage import spoil, spoil_json

EXACT = ("metrics.csv", "events", "train.log", "generator.safetensors", "checkpoint.pt")
JSON = ("run.json", "parameters.json")


@pytest.fixture
def run(tiny):
    files = load("DCGAN")
    return files.train.train(tiny(files, name="run", log_every=1, checkpoint_every=1))


def go_on(files, run, *flags):
    """Do what train.py --resume does."""
    with files.utils.plain_errors():
        argv = ["--runs-dir", str(run.parent), "--resume", run.name, *flags]
        files.train.train(files.utils.parse_config(files.train.Config, argv))


def refusal(files, run, capsys, *flags):
    with pytest.raises(SystemExit) as caught:
        go_on(files, run, *flags)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("length", ["short", pytest.param("long", marks=pytest.mark.long)])
def test_damage_at_random(length, run, tmp_path):
    files = load("DCGAN")
    whole = run.with_name("whole")
    shutil.copytree(run, whole)
    go_on(files, whole, "--max-steps", "6")
    rng = random.Random(0)
    count = {"short": 28, "long": 1000}[length]
    work = tmp_path / "work"
    work.mkdir()

    def job():
        os.chdir(work)
        codes, longest = {}, 0.0
        for trial in range(count):
            target = run.with_name(f"damaged{trial}")
            shutil.copytree(run, target)
            name = (*EXACT, *JSON)[trial % 7]
            (file,) = target.glob(name + "*" * (name == "events"))
            change = spoil_json if name in JSON else spoil
            file.write_bytes(change(rng, file.read_bytes()))
            began = time.monotonic()
            try:
                code = go_on(files, target, "--max-steps", "6") or 0
            except SystemExit as exit:
                code = exit.code
            longest = max(longest, time.monotonic() - began)
            assert code == 0 if name in EXACT else code in (0, 1, 2), (trial, name, code)
            if name in EXACT:
                state, same = weights(target), weights(whole)
                torch.testing.assert_close(state, same, rtol=0, atol=0)
            kind = "json" if name in JSON else "other"
            codes[f"{kind} {code}"] = codes.get(f"{kind} {code}", 0) + 1
            shutil.rmtree(target)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print("found", json.dumps(codes | {"longest": longest, "peak": peak}))

    code, said = run_in_child(job)
    assert code == 0 and "Traceback" not in said, said[-3000:]
    found = json.loads(re.search("found (.*)", said)[1])
    print(length, found)
    assert found["json 2"] > 0 and found["json 0"] > 0
    assert found["longest"] < 10 and found["peak"] < 2


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize(
    "content", [b"", b"[1]", b'{"a": ', b"\xff", b"[" * 10**5, b"{}" + b" " * 2**20]
)
def test_json_that_is_damaged_is_named(name, content, run, capsys):
    (run / name).write_bytes(content)
    files = load("DCGAN")
    assert f"{run / name} holds no JSON object" in refusal(files, run, capsys)
    if name == "run.json":  # it says which run is the newest
        (run.parent / "other").mkdir()
        assert str(run / name) in refusal(files, run.with_name("latest"), capsys)


def test_rows_that_are_none_are_cut_off(run):
    good = (run / "metrics.csv").read_bytes()
    (run / "metrics.csv").write_bytes(good + b"x,1\n\xff\n\n1.5,2\n9,9\n-1\n5")
    go_on(load("DCGAN"), run, "--max-steps", "5")
    after = (run / "metrics.csv").read_bytes()
    assert (
        after.startswith(good) and after[len(good) :].startswith(b"5,") and after.count(b"\n") == 6
    )


@pytest.mark.parametrize("content", ["{}", '{"format": 1, "started": 5, "pictures": {}}'])
def test_facts_that_lack_something_are_named(content, run, capsys):
    (run / "run.json").write_text(content)
    assert f"{run / 'run.json'} is damaged" in refusal(load("DCGAN"), run, capsys)


def test_settings_are_those_of_the_checkpoint(run, capsys):
    files, file = load("DCGAN"), run / "parameters.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps(before | {"lr": 0.3, "d_width": 6}))
    line = refusal(files, run, capsys, "--max-steps", "6")
    assert "d_width was 4 and is now 6" in line and "lr was 5e-05 and is now 0.3" in line
    go_on(files, run, "--max-steps", "6", "--lr", "5e-5", "--d-width", "4")
    assert json.loads(file.read_text()) == before | {"max_steps": 6}


def test_a_checkpoint_of_another_run_is_refused(run, tiny, capsys):
    files = load("DCGAN")
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    for change in ({"generator": {}}, {"own": []}, {"generator_optimizer": None}):
        torch.save(state | change, run / "checkpoint.pt")
        with pytest.raises(files.utils.RunError, match="none of this run"):
            files.train.train(
                tiny(files, resume="run", log_every=1, checkpoint_every=1, max_steps=9)
            )
    for change in ({"step": "4"}, {"settings": None}, {"own": 1}):
        for name in ("checkpoint.pt", "checkpoint.before.pt"):
            torch.save(state | change, run / name)
        with pytest.raises(files.utils.RunError, match="no checkpoint of this program"):
            files.train.train(tiny(files, resume="run", max_steps=9))


def test_other_folders_among_the_runs_are_no_runs(run, capsys):
    (run.parent / "a").mkdir()
    (run.parent / "a" / "checkpoint.pt").touch()
    if os.name != "nt":
        (run.parent / "b").mkdir()
        os.mkfifo(run.parent / "b" / "run.json")
        (run.parent / "b" / "checkpoint.pt").touch()
    go_on(load("DCGAN"), run.with_name("latest"), "--max-steps", "5")
    assert (run / "frames" / "000005.png").exists()


def test_a_network_that_no_memory_holds_is_one_line(tiny):
    files = load("DCGAN")
    config = dataclasses.replace(tiny(files), g_width=2**14)  # one layer alone has 34 GB

    def job():
        resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
        with files.utils.plain_errors():
            files.train.train(config)

    code, said = run_in_child(job)
    assert code == 1 and "error: out of memory: " in said.splitlines()[-1]
    assert "Traceback" not in said
