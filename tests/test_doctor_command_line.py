"""doctor.py as a program: what it reads, what it prints, and that it writes nothing."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import FOLDERS, TOP, load
from PIL import Image
from safetensors.torch import load_file, save_file

import doctor
import run_record
import runs


def call(monkeypatch, capsys, *argv):
    monkeypatch.setattr("sys.argv", ["doctor.py", *map(str, argv)])
    doctor.main()
    return capsys.readouterr().out


@pytest.fixture
def run(tiny):
    """Train for a moment on drawn faces; the widths of the text do not hang on names."""
    files = load("DCGAN")
    return files.train.train(tiny(files, hold_out=300, name="short"))


def files_in(folder):
    """Say what is in a folder, and when each thing was changed."""
    paths = sorted(folder.rglob("*"))
    return {p: (p.stat().st_mtime_ns, p.is_dir() or p.read_bytes()) for p in paths}


def test_a_report_on_a_run(run, monkeypatch, capsys):
    text = call(monkeypatch, capsys, run)
    first, second, *_ = text.splitlines()
    assert first == "DCGAN short: step 4, 9,700 pictures of 16x16x3, finished"
    assert second == str(run)
    assert "Nothing wrong to be seen." in text
    assert "not seen: diverged, memorising, too few pictures." in text
    assert "discriminator has won: metrics.csv has 2 rows, and this takes 4." in text
    assert max(map(len, text.splitlines()[2:])) <= 92
    text = " ".join(text.split())
    assert "collapsed: the run is too young: 4 steps of size 5e-05, and this takes 2,000." in text


def test_a_finding_comes_with_its_evidence_advice_and_source(run, monkeypatch, capsys):
    header = (run / "metrics.csv").read_text().splitlines()[0]
    rows = [f"{5 * i},1,1,1,0.001,{9 + i / 10},0.999,0.0001" for i in range(1, 13)]
    (run / "metrics.csv").write_text("\n".join([header, *rows]) + "\n50000,1")  # being written
    text = call(monkeypatch, capsys, run)
    assert text.startswith("DCGAN short: step 60,")
    assert "1. The discriminator has won: it is sure of real" in text
    assert "evidence  loss_d = 0.001 at steps 50 to 60 (below 0.1)" in text
    assert "loss_g = 10.1 at steps 50 to 60 (above 7)" in text
    assert "try       --d-width 2: a weaker discriminator; this run's was 4" in text
    assert "source    GAN, arXiv:1406.2661, section 3" in text
    assert text.count("evidence  ") == text.count("try       ") == 1  # under each other
    again = f"cd DCGAN && python train.py --config {run / 'parameters.json'} ..."
    assert again in text.replace("\n", "")
    assert "Nothing wrong" not in text


def test_runs_are_found_by_path_name_and_model(monkeypatch, capsys, tmp_path, tiny):
    for model in FOLDERS:
        (tmp_path / model).mkdir()
        (tmp_path / model / "train.py").touch()
    monkeypatch.setattr(runs, "TOP", tmp_path)
    monkeypatch.setattr(runs.model_runs, "__defaults__", (tmp_path,))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(runs.InputError, match="no run of any model yet"):
        call(monkeypatch, capsys)
    for model, name in (("DCGAN", "old"), ("DCGAN", "new"), ("WGAN", "other")):
        run = tmp_path / model / "tensorboard" / "runs" / name
        run.mkdir(parents=True)
        facts = {"format": 1, "model": model, "started": "2026" if name == "old" else "2027"}
        (run / "run.json").write_text(json.dumps(facts))
        shutil.copy(TOP / "results" / model / "quick-faces" / "parameters.json", run)
    assert call(monkeypatch, capsys, "old").startswith("DCGAN old: step 0")
    assert call(monkeypatch, capsys, "DCGAN").startswith("DCGAN new")
    assert call(monkeypatch, capsys, tmp_path / "DCGAN").startswith("DCGAN new")
    both = call(monkeypatch, capsys)
    assert "DCGAN new" in both and "WGAN other" in both and "Nothing can be told yet" in both
    (tmp_path / "WGAN" / "tensorboard" / "runs" / "other" / "run.json").write_text(
        '{"format": 1, "model": "BigGAN", "started": "2027"}'
    )
    for wrong in ("nowhere", "WGAN-GP", tmp_path, "other"):
        with pytest.raises(runs.InputError):
            call(monkeypatch, capsys, wrong)


def test_missing_parts_stop_no_other_check(run, monkeypatch, capsys, data_dir, tmp_path):
    def lost(change):
        kept = tmp_path / "kept"
        shutil.copytree(run, kept)
        facts = json.loads((kept / "run.json").read_text())
        facts["cache"] = str((run / facts["cache"]).resolve())
        (kept / "run.json").write_text(json.dumps(facts))
        change(kept, facts)
        found, nothing, unknown = doctor.examine(run_record.read_record(kept))
        shutil.rmtree(kept)
        assert not found
        return nothing, unknown

    nothing, unknown = lost(lambda kept, _: (kept / "metrics.csv").unlink())
    assert nothing == ["memorising", "too few pictures"]
    assert unknown["diverged"] == "there is no metrics.csv yet"
    nothing, unknown = lost(lambda kept, _: (kept / "metrics.csv").write_text("step,x\n1,2,3\n"))
    assert "damaged" in unknown["diverged"]
    nothing, unknown = lost(lambda kept, _: (kept / "metrics.csv").write_text("step\n1\n2\n3\n4\n"))
    assert unknown["discriminator has won"] == "the run says nothing of 'loss_d'"
    nothing, unknown = lost(lambda kept, _: (kept / "generator.safetensors").write_bytes(b"no"))
    assert nothing == ["diverged", "too few pictures"]
    assert "generator.safetensors is damaged" in unknown["memorising"]
    (run / "parameters.json").unlink()
    with pytest.raises(runs.InputError, match=r"parameters\.json: no such file"):
        call(monkeypatch, capsys, run)


def test_weights_that_are_no_numbers_are_a_divergence(run):
    weights, about = load_file(run / "generator.safetensors"), runs.load_generator(run)[1]
    next(w for w in weights.values() if w.is_floating_point()).view(-1)[0] = torch.nan
    save_file(weights, run / "generator.safetensors", {"about": json.dumps(about)})
    found, _, unknown = doctor.examine(run_record.read_record(run))
    assert list(found) == ["diverged"] and "there are no samples" in unknown["memorising"]


def test_advice_says_where_a_run_lies(run, monkeypatch, tmp_path):
    record = run_record.read_record(run)
    assert record.resume == f"--resume short --runs-dir {run.parent}"
    assert record.repeat == str(run / "parameters.json")
    home = tmp_path / "DCGAN" / "tensorboard"
    home.mkdir(parents=True)
    run = run.parent.rename(home / "runs") / "short"
    monkeypatch.setattr(run_record, "TOP", tmp_path)
    record = run_record.read_record(run)
    assert record.resume == "--resume short"
    assert record.repeat == "tensorboard/runs/short/parameters.json"


def test_a_divergence_counts_only_since_the_last_start(run):
    with open(run / "train.log", "a") as log:
        log.write("loss_d is nan at step 3: the training has diverged.\n")
    assert "loss_d is nan" in doctor.examine(run_record.read_record(run))[0]["diverged"].seen
    with open(run / "train.log", "a") as log:
        log.write("device      cpu\nrun         here, from step 2\nfinished    4 steps\n")
    assert not doctor.examine(run_record.read_record(run))[0]


@pytest.mark.parametrize("left", ["cache", "digest", "pictures"])
def test_pictures_are_found_in_three_ways_and_nothing_is_written(
    left, tiny, tmp_path, monkeypatch, capsys
):
    files, pictures = load("DCGAN"), tmp_path / "pictures"
    pictures.mkdir()
    for i, face in enumerate(files.data.draw_faces(90, 16)):
        Image.fromarray(face).save(pictures / f"{i}.png")
    where = {"data": str(pictures), "data_dir": str(tmp_path / "data")}
    run = files.train.train(tiny(files, hold_out=60, **where))
    facts = json.loads((run / "run.json").read_text())
    settings = json.loads((run / "parameters.json").read_text())
    if left != "cache":
        del facts["cache"]
    if left != "digest":
        settings["data_dir"] = str(tmp_path / "elsewhere")
    if left != "pictures":
        shutil.rmtree(pictures)
    (run / "run.json").write_text(json.dumps(facts))
    (run / "parameters.json").write_text(json.dumps(settings))
    monkeypatch.setattr(run_record.tempfile, "tempdir", str(tmp_path))
    before = files_in(tmp_path)
    assert "not seen: diverged, memorising." in call(monkeypatch, capsys, run)
    assert files_in(tmp_path) == before


def test_pictures_that_would_be_downloaded_are_not(run):
    settings = json.loads((run / "parameters.json").read_text()) | {"data": "mnist"}
    facts = json.loads((run / "run.json").read_text()) | {"cache": "gone"}
    facts["pictures"]["digest"] = "of others"
    (run / "parameters.json").write_text(json.dumps(settings))
    (run / "run.json").write_text(json.dumps(facts))
    record = run_record.read_record(run)
    assert record.trained is None and "mnist are no longer in" in record.missing["trained"]


def test_long_work_shows_a_bar(run, monkeypatch):
    seen = set()

    def tqdm(items, name, *rest, **how):
        assert how["disable"] is None  # only where there is a terminal
        seen.add(name)
        return items

    for module in (run_record, sys.modules["generate"]):
        monkeypatch.setattr(module, "tqdm", tqdm)
    doctor.examine(run_record.read_record(run))
    assert seen == {"drawing", "shrinking", "nearest"}


def test_the_command_line(run, tmp_path):
    def python(*argv):
        argv = [sys.executable, TOP / "doctor.py", *argv]
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)

    done = python(run)
    assert done.returncode == 0 and done.stdout.startswith("DCGAN short") and not done.stderr
    done = python("nowhere")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "nowhere: not a run" in done.stderr


def test_help_has_examples_that_work(capsys):
    with pytest.raises(SystemExit):
        doctor.parse_arguments(["--help"])
    examples = [line for line in capsys.readouterr().out.splitlines() if "python doctor.py" in line]
    assert len(examples) == 4
    for example in examples:
        words = example.split("  ")[2].split()
        assert doctor.parse_arguments(words[2:])
