"""runs.py: finding and reading run folders, generators and images."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_script
from PIL import Image
from safetensors.torch import save_file

import runs

RECORD = runs.TOP / "results/WGAN/quick-faces"


def write_run(folder, settings=None, **facts):
    folder.mkdir(parents=True)
    facts = {"format": 1, "model": "WGAN", "started": "2026-01-01T09:00:00"} | facts
    (folder / "run.json").write_text(json.dumps(facts))
    settings = runs.read_json(RECORD / "parameters.json") | (settings or {})
    (folder / "parameters.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def top(tmp_path, monkeypatch):  # of a repository without runs
    for file in ("WGAN/train.py", "DCGAN/train.py", "../my-gan/train.py", "assets/weights/x"):
        (tmp_path / "top" / file).parent.mkdir(parents=True)
        (tmp_path / "top" / file).touch()
    monkeypatch.setattr(runs, "TOP", tmp_path / "top")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "top"


def test_a_run_is_found_by_path_or_name_or_as_the_newest(top):
    old = write_run(top / "WGAN/tensorboard/runs/b")
    new = write_run(top / "WGAN/tensorboard/runs/a", started="2026-01-01T10:00:00")
    copy = write_run(Path("my-gan/tensorboard/runs/b"))
    for text, run in (("WGAN", new), (top / "WGAN", new), ("b", old), (old, old), ("my-gan", copy)):
        assert runs.find_run(str(text)) == run
        assert runs.find_weights(str(text)) == (run / "generator.safetensors", run)
    assert runs.find_runs(["b", "WGAN", str(old)]) == [old, new]
    assert runs.find_runs([]) == [new]
    write_run(top / "DCGAN/tensorboard/runs/b")
    with pytest.raises(runs.InputError, match=r"^b: several runs"):
        runs.find_run("b")


def test_a_damaged_run_is_named_and_hides_no_other(top, capsys):
    good, *damaged = (write_run(top / "WGAN/tensorboard/runs" / name) for name in "abcde")
    for run, content in zip(damaged, ("", "[1]", "{}", '{"format": 2}'), strict=True):
        (run / "run.json").write_text(content)
    assert runs.runs_in(top / "WGAN") == [runs.find_run("WGAN")] == [good]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 8 and all(str(run / "run.json") in " ".join(said) for run in damaged)
    (good / "parameters.json").write_text('{"lr": 1, "epochs": 2}')
    with pytest.raises(runs.InputError, match=r"parameters.json is damaged \(it lacks data, "):
        runs.images_per_step(good)


def test_a_model_without_runs_has_the_included_weights(top):
    included = (top / "assets/weights/x").rename(top / "assets/weights/WGAN.safetensors")
    for text in ("WGAN", top / "WGAN", "top/WGAN/", included):
        assert runs.find_weights(str(text)) == (included, None)
    for text, complaint in (("DCGAN", "no run"), ("my-gan", "no run"), ("x/y", "not a run")):
        with pytest.raises(runs.InputError, match=f"^{text}: {complaint}"):
            runs.find_weights(text)


def test_facts_that_cannot_be_understood_are_refused(tmp_path):
    new, odd = write_run(tmp_path / "new", format=2), write_run(tmp_path / "odd", model="my-gan")
    (write_run(tmp_path / "broken") / "run.json").write_text("[1]")
    for run in (new, odd, tmp_path / "broken", tmp_path / "missing"):
        with pytest.raises(runs.InputError, match=run.name):
            runs.read_facts(run)


def test_frames_come_in_order_of_steps(tmp_path):
    (tmp_path / "frames").mkdir()
    for name in ("1000000.png", "999999.png", "000000.png", "1.gif"):
        (tmp_path / "frames" / name).touch()
    assert [frame.stem for frame in runs.frames_of(tmp_path)] == ["000000", "999999", "1000000"]


def test_images_of_a_step_count_every_update_and_process(tmp_path):
    for i, settings, processes in ((80, {"n_critic": 5}, 2), (24, {"k": 3}, 1), (8, {}, 1)):
        run = write_run(tmp_path / str(i), processes=processes)
        settings = dict.fromkeys(runs.SETTINGS, 8) | settings
        (run / "parameters.json").write_text(json.dumps(settings))
        assert runs.images_per_step(run) == i


def test_a_generator_is_built_from_its_file_alone(tmp_path):
    arguments = {"z_dim": 8, "image_size": 16, "channels": 1, "width": 4}
    model = runs.load_file_of("simpleGAN", "model").Generator(**arguments).eval().half()
    about = {"format": 1, "model": "simpleGAN", "step": 4, "arguments": arguments}
    save_file(model.state_dict(), tmp_path / "generator.safetensors", {"about": json.dumps(about)})
    generator, found = runs.load_generator(tmp_path)
    assert found == about and not generator.training
    assert torch.equal(generator(torch.ones(1, 8)), model.float()(torch.ones(1, 8)))
    for changes in ({"format": 9}, {"model": "../x"}, {"arguments": arguments | {"width": 5}}):
        save_file(model.state_dict(), tmp_path / "x", {"about": json.dumps(about | changes)})
        with pytest.raises(runs.InputError, match="damaged, or not a generator from here"):
            runs.load_generator(tmp_path / "x")


def test_importing_files_of_the_models_leaves_no_trace(tmp_path):
    program = """import runs, sys
path, sys.modules["utils"] = list(sys.path), runs
loaded = [runs.load_file_of(model, name) for model in runs.MODELS for name in ("model", "data")]
assert sys.path == path and sys.modules.pop("utils") is runs
files = [str(getattr(module, "__file__", "")) for module in sys.modules.values()]
assert not [f for f in files if f.startswith(tuple(str(runs.TOP / m) for m in runs.MODELS))]"""
    (tmp_path / "x.py").write_text(f"import sys; sys.path.append({str(runs.TOP)!r}); {program}")
    done = run_script(tmp_path / "x.py")
    assert done.returncode == 0, done.stderr


def test_the_images_of_a_run_are_found_by_its_cache_or_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for i in range(20):
        Image.new("RGB", (20, 16), (i, 0, 0)).save(f"images/{i}.png")
    flags = "--data images --data-dir cache --runs-dir . --name x --hold-out 5 --max-steps 1"
    flags += " --image-size 16 --batch-size 8"
    assert run_script(runs.TOP / "DCGAN/train.py", *flags.split()).returncode == 0
    trained, held_out = (images[:, 0, 0, 0].tolist() for images in runs.load_images(Path("x")))
    assert len(trained) == 15 and sorted(trained + held_out) == list(range(20))
    for file in Path("cache").rglob("*.*"):
        file.unlink()
    assert runs.load_images(Path("x"))[0][:, 0, 0, 0].tolist() == trained
    facts = Path("x/run.json").read_text().replace('"digest": "', '"digest": "0')
    Path("x/run.json").write_text(facts)
    with pytest.raises(runs.InputError, match="not those it was trained on"):
        runs.load_images(Path("x"))


def test_a_run_on_record_has_its_faces_and_others_of_their_kind(tmp_path):
    run = write_run(tmp_path / "run", {"data_dir": str(tmp_path)}, **runs.read_facts(RECORD))
    trained, others = ({image.tobytes() for image in images} for images in runs.load_images(run))
    assert (len(trained), len(others)) == (10000, 2500) and not trained & others
    assert [len(images) for images in runs.load_images(run, more_faces=0)] == [10000, 0]


def test_errors_end_in_one_line_and_a_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/top/x.py"])
    for error, code, line in (
        (runs.InputError("a:\n b"), 2, "a: b"),
        (FileNotFoundError(2, "No such file", "x/y"), 1, "[Errno 2] No such file: 'x/y'"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("for 9 GiB"), 1, "not enough memory (for 9 GiB)"),
    ):
        with pytest.raises(SystemExit) as ended, runs.plain_errors():
            raise error
        assert (ended.value.code, capsys.readouterr().err) == (code, f"x.py: error: {line}\n")
    with pytest.raises(RuntimeError, match="memory_format"), runs.plain_errors():
        raise RuntimeError("a fault of ours: memory_format")
    with runs.plain_errors():  # a terminal may not have the letters of a name
        assert sys.stdout.errors == sys.stderr.errors == "backslashreplace"
