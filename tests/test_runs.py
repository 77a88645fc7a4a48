"""runs.py: finding and reading run folders, generators and images; --help of every script."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load, load_images, train, write_images
from safetensors.torch import save_file

import runs

InputError, TOP = runs.utils().InputError, runs.TOP
SCRIPTS = [file.name for file in TOP.glob("*.py") if "__main__" in file.read_text()]
# A generator of a user's own: other arguments, and a number that its weights do not hold.
MODEL = """import torch, utils
class Generator(torch.nn.Module):
    def __init__(self, latent, colors):
        super().__init__()
        self.layer, self.shift = torch.nn.Linear(latent, colors * 256), torch.tensor(utils.SHIFT)
    def forward(self, z):
        return torch.tanh(self.layer(z).unflatten(1, (-1, 16, 16)) + self.shift)
"""


def write_run(folder, settings=None, **facts):
    folder.mkdir(parents=True)
    facts = {"format": 1, "model": "WGAN", "started": "2026-01-01T09:00:00"} | facts
    settings = dict.fromkeys(runs.SETTINGS, 7) | (settings or {})
    for name, content in (("run", facts), ("parameters", settings)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_model(folder, shift):
    """Write a model folder whose files leave a trace beside them when they are run."""
    folder.mkdir(parents=True)
    files = {"model": MODEL, "utils": f"SHIFT = {shift}\n", "data": "", "train": ""}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(f"{text}open({str(folder / 'trace')!r}, 'a')\n")
    return folder


def write_weights(run, model):
    run.mkdir(parents=True, exist_ok=True)
    state = {"layer.weight": torch.randn(768, 7), "layer.bias": torch.randn(768)}
    about = {"format": 1, "model": model, "z_dim": 7, "arguments": {"latent": 7, "colors": 3}}
    save_file(state, run / "generator.safetensors", {"about": json.dumps(about)})
    return state


@pytest.fixture
def top(tmp_path, monkeypatch):  # of a repository without runs
    for folder in ("WGAN", "DCGAN", "AGAN", "../my-gan", "assets/weights"):
        (tmp_path / "top" / folder).mkdir(parents=True)
        (tmp_path / "top" / folder / "train.py").touch()
    monkeypatch.setattr(runs, "TOP", tmp_path / "top")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "top"


def test_a_run_is_found_by_path_or_name_or_as_the_newest(top):
    assert runs.models() == ["DCGAN", "WGAN", "AGAN"]  # as the papers appeared, then others
    old = write_run(top / "WGAN/tensorboard/runs/b", started="2026-01-01T09:00:00+05:45")
    new = write_run(top / "WGAN/tensorboard/runs/a", started="2026-01-01T04:00:00+00:00")
    copy = write_run(Path("my-gan/tensorboard/runs/b"), model="unheard of")
    for text, run in (("WGAN", new), (top / "WGAN", new), ("b", old), (old, old), ("my-gan", copy)):
        assert runs.find_run(str(text)) == run
        assert runs.find_weights(str(text)) == (run / "generator.safetensors", run)
    assert runs.find_runs(["b", "WGAN", str(old)]) == [old, new]
    other = write_run(top / "AGAN/tensorboard/runs/c")
    assert runs.find_runs([]) == [new, other]
    write_run(top / "DCGAN/tensorboard/runs/b")
    with pytest.raises(InputError, match=r"^b: several runs"):
        runs.find_run("b")


def test_a_damaged_run_is_named_and_hides_no_other(top, capsys):
    good, *damaged = (write_run(top / "WGAN/tensorboard/runs" / name) for name in "abcdef")
    facts = (good / "run.json").read_text()
    texts = ("", "[1]", "{}", facts.replace("1,", "2,", 1), facts.replace("T09", "noon"))
    for run, content in zip(damaged, texts, strict=True):
        (run / "run.json").write_text(content)
    assert runs.runs_in(top / "WGAN") == [runs.find_run("WGAN")] == [good]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 10 and all(str(run / "run.json") in " ".join(said) for run in damaged)
    (good / "parameters.json").write_text('{"lr": 1, "epochs": 2}')
    with pytest.raises(InputError, match=r"parameters.json is damaged \(it lacks data, "):
        runs.images_per_step(good)


@pytest.mark.parametrize("script", ["evaluate", "compare", "doctor", "generate", "make_gif"])
def test_scripts_name_a_damaged_run_in_one_line(script, tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run")
    (run / "run.json").write_text("[1]")
    monkeypatch.setattr(sys, "argv", [f"{script}.py", str(run)])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith(f"{script}.py: error: ") and str(run) in line


def test_a_model_without_runs_has_the_included_weights(top):
    included = top / "assets/weights/WGAN.safetensors"
    included.touch()
    for text in ("WGAN", top / "WGAN", "top/WGAN/", included):
        assert runs.find_weights(str(text)) == (included, None)
    for text, complaint in (("DCGAN", "no run"), ("my-gan", "no run"), ("x/y", "not a run")):
        with pytest.raises(InputError, match=f"^{text}: {complaint}"):
            runs.find_weights(text)


def test_frames_are_what_the_training_writes_in_order_of_steps(tmp_path):
    assert runs.frames_of(tmp_path) == []
    (tmp_path / "frames").mkdir()
    for name in ("1000000", "999999", "000000", "000006 (1)", "12", "000007-copy", ".000008"):
        (tmp_path / "frames" / f"{name}.png").touch()
    assert [frame.stem for frame in runs.frames_of(tmp_path)] == ["000000", "999999", "1000000"]


def test_images_of_a_step_count_every_update_and_process(tmp_path):
    """Earlier runs do not say them: batch size 7, times updates, times processes."""
    for settings, facts, images in (
        ({"n_critic": 5}, {"processes": 6}, 210),
        ({"k": 3}, {}, 21),
        ({}, {"processes": 2}, 14),
        ({"k": 3}, {"images_per_step": 66}, 66),
    ):
        assert runs.images_per_step(write_run(tmp_path / str(images), settings, **facts)) == images


def test_a_generator_is_rebuilt_by_its_own_folder_and_never_by_a_strangers(top, monkeypatch):
    write_model(top / "Mine", 0.37)
    theirs = write_model(Path("theirs/Mine").resolve(), -0.61)
    inside, outside = (folder / "tensorboard/runs/x" for folder in (top / "Mine", theirs))
    monkeypatch.chdir(theirs)
    monkeypatch.syspath_prepend("")  # as in a notebook
    cases = [(inside, "DCGAN", None, 0.37), (outside, "Mine", None, 0.37)]
    for run, model, model_dir, shift in [*cases, (outside, "Mine", Path("."), -0.61)]:
        assert not Path("trace").exists()
        state, z = write_weights(run, model), torch.randn(5, 7)
        generator, about = runs.load_generator(run, model_dir)
        product = z @ state["layer.weight"].T + state["layer.bias"]
        torch.testing.assert_close(generator(z), (product.view(5, 3, 16, 16) + shift).tanh())
        assert [about[name] for name in ("z_dim", "image_size", "channels")] == [7, 16, 3]
    Path("trace").unlink()
    for i, model in enumerate(("Else", "../theirs/Mine", str(theirs), ".", "AGAN")):
        run = write_run(outside.with_name(str(i)), model=model)
        write_weights(run, model)
        for reading in (runs.load_generator, runs.load_images):
            with pytest.raises(InputError, match=r"--model-dir|AGAN: there is no (model|data)\.py"):
                reading(run)
    assert not Path("trace").exists()


def test_weights_that_do_not_fit_are_named(tmp_path):
    arguments = {"z_dim": 8, "image_size": 16, "channels": 1, "width": 4}
    model = runs.load_file_of("simpleGAN", "model").Generator(**arguments).eval()
    about = {"format": 1, "model": "simpleGAN", "step": 4, "arguments": arguments}  # as before
    save_file(model.state_dict(), tmp_path / "generator.safetensors", {"about": json.dumps(about)})
    generator, found = runs.load_generator(tmp_path)
    assert (found["z_dim"], found["channels"], generator.training) == (8, 1, False)
    assert torch.equal(generator(torch.ones(1, 8)), model(torch.ones(1, 8)))
    for changes in ({"format": 9}, {"model": "DCGAN"}, {"arguments": arguments | {"width": 5}}):
        save_file(model.state_dict(), tmp_path / "x", {"about": json.dumps(about | changes)})
        with pytest.raises(InputError, match=r"x: damaged, or trained by another model.py"):
            runs.load_generator(tmp_path / "x")
    for name, content in (("generator.safetensors", b""), ("y", b'{"a": ')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: damaged"):
            runs.load_generator(tmp_path / name)


def test_each_folder_gets_its_own_files_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "utils", runs)
    path, before = list(sys.path), {*sys.modules}
    folders = [write_model(tmp_path / name, shift) for name, shift in (("a", 0.3), ("b", 0.7))]
    for i in (0, 1, 0, 0):
        assert (0.3, 0.7)[i] == runs.load_file_of(folders[i], "model").utils.SHIFT
        assert sys.modules["utils"] is runs and {*sys.modules} == before and sys.path == path


def test_the_images_of_a_run_are_found_by_its_cache_or_again(tiny, tmp_path):
    images = np.arange(20, dtype=np.uint8).repeat(16 * 16 * 3).reshape(20, 16, 16, 3)
    settings = {"data": str(write_images(tmp_path / "images", images)), "hold_out": 5}
    run = train("DCGAN", tiny | settings | {"data_dir": str(tmp_path / "cache")})
    trained, held_out = (images[:, 0, 0, 0].tolist() for images in runs.load_images(run))
    assert len(trained) == 15 and sorted(trained + held_out) == list(range(20))
    for file in (tmp_path / "cache").rglob("*.*"):
        file.unlink()
    assert runs.load_images(run)[0][:, 0, 0, 0].tolist() == trained
    facts = (run / "run.json").read_text()
    (run / "run.json").write_text(facts.replace('digest": "', 'digest": "0'))
    with pytest.raises(InputError, match="not those it was trained on"):
        runs.load_images(run)


def test_drawn_faces_have_others_of_their_kind(tmp_path):
    found = load_images(load("WGAN"), "faces", tmp_path, 16, 1)
    settings = {"data": "faces", "data_dir": str(tmp_path), "image_size": 16, "channels": 1}
    run = write_run(tmp_path / "run", settings, pictures={"digest": found.digest})
    trained, others = runs.load_images(run, more_faces=301)
    assert (trained.shape, others.shape) == (found.images.shape, (301, 16, 16, 1))
    assert not {image.tobytes() for image in trained} & {image.tobytes() for image in others}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_waits_for_nothing_slow(script):
    command = [sys.executable, "-X", "importtime", TOP / script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "--" in done.stdout
    assert not imported & {"torch", "torchvision", "gradio", "matplotlib", "scipy", "ot"}
