"""Run folders and weights by strangers: checked before memory is taken, and never run."""

import json
import os
import pickle
import re
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TOP, load
from hostile import RED
from safetensors.torch import load_file, save_file

import runs


@pytest.fixture
def folder(tmp_path):
    """Make a folder with one good picture in it."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "good.png").write_bytes(RED)
    return tmp_path / "p"


@pytest.fixture
def run(tiny, folder):
    for i in range(8):
        (folder / f"{i}.png").write_bytes(RED)
    return load("DCGAN").train.train(tiny(load("DCGAN"), data=str(folder)))


@pytest.fixture
def canary(tmp_path):
    """Give Python source, and a class whose pickle runs it; the file appears if anything does."""
    file = tmp_path / "canary"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (file,)

    yield SimpleNamespace(file=file, code=f"open({str(file)!r}, 'w').close()\n", bomb=Bomb())
    assert not file.exists()


def change(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", ["run.json", "parameters.json"])
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[1]", b'"text"', b"null", b"1", b"NaN", b"\xff\xfe{}", b'{"a": "\xff"}'),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"{}" + b" " * 2**20),
    ],
)
def test_json_that_is_damaged_is_refused_by_name(run, name, content):
    (run / name).write_bytes(content)
    with pytest.raises(runs.InputError, match=re.escape(str(run / name)) + " is damaged"):
        runs.load_pictures(run)
    (run / name).unlink()
    with pytest.raises(runs.InputError, match=f"{name}: no such file"):
        runs.load_pictures(run)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(("run.json", {"model": value}) for value in (1, None, ["DCGAN"], "../DCGAN", "", "a\0")),
        *(("run.json", {"started": value}) for value in (1, None, {})),
        *(("run.json", {"cache": value}) for value in (1, None, ["x"])),
        *(("run.json", {"format": value}) for value in (2, None, "1", [1])),
        *(("run.json", {"pictures": value}) for value in (1, [], {}, {"shape": 5, "digest": ""})),
        ("run.json", {"pictures": {"shape": [10, 32, 32, 3], "digest": ""}}),  # the size is 16
        *(("parameters.json", {"batch_size": value}) for value in ("8", None, -8, 8.0, True)),
        *(("parameters.json", {"image_size": value}) for value in (2**30, 17, -16, "16", [16])),
        *(("parameters.json", {"channels": value}) for value in (2, "3", None, [3], {})),
        *(("parameters.json", {"hold_out": value}) for value in (-1, "1", None, 1.5)),
        *(("parameters.json", {"data": value}) for value in (1, None, ["faces"])),
        *(("parameters.json", {"data_dir": value}) for value in (1, None)),
    ],
)
def test_values_of_another_kind_are_refused(run, name, changes):
    change(run / name, **changes)
    with pytest.raises(runs.InputError, match=re.escape(str(run))):
        runs.load_pictures(run)


@pytest.mark.parametrize(("side", "other"), [(1024, 16), (4096, 4096), (1, 1)])
def test_pictures_of_a_size_that_cannot_be_are_not_drawn(run, side, other):
    facts = json.loads((run / "run.json").read_text())
    (run / facts["cache"]).unlink()
    change(run / "run.json", pictures=facts["pictures"] | {"shape": [9, other, other, 3]})
    change(run / "parameters.json", data="faces", image_size=side)
    began = time.monotonic()
    with pytest.raises(runs.InputError, match="do not tell of its pictures"):
        runs.load_pictures(run)
    assert time.monotonic() - began < 2


def test_pictures_of_another_shape_are_not_the_runs(run):
    facts = json.loads((run / "run.json").read_text())
    change(run / "run.json", pictures=facts["pictures"] | {"shape": [8, 16, 16, 3]})
    with pytest.raises(runs.InputError, match="not those it was trained on"):
        runs.load_pictures(run)


def test_no_folder_is_made_where_a_run_says(run, tmp_path, monkeypatch):
    before, _ = runs.load_pictures(run)
    skip = shutil.ignore_patterns("data", "tensorboard", "__pycache__")
    shutil.copytree(TOP / "DCGAN", tmp_path / "top" / "DCGAN", ignore=skip)
    monkeypatch.setattr(runs, "TOP", tmp_path / "top")
    change(run / "parameters.json", data_dir=str(tmp_path / "anywhere"))
    (run / json.loads((run / "run.json").read_text())["cache"]).unlink()
    assert np.array_equal(before, runs.load_pictures(run)[0])
    assert not (tmp_path / "anywhere").exists() and (tmp_path / "top/DCGAN/data/cache").is_dir()


def test_images_per_step_and_frames_of_strange_runs(run):
    change(run / "parameters.json", n_critic="many")
    with pytest.raises(runs.InputError, match="n_critic: 'many'"):
        runs.images_per_step(run)
    (run / "parameters.json").write_text("{}")
    with pytest.raises(runs.InputError, match="no batch_size"):
        runs.images_per_step(run)
    frames = runs.frames_of(run)
    for name in ("x.png", "-1.png", "1e3.png", "000001 (copy).png", "½.png"):
        (run / "frames" / name).touch()
    assert runs.frames_of(run) == frames


@pytest.mark.parametrize("place", ["/dev/zero", "pipe", "..", "nowhere", "other.bytes", "a\0b"])
def test_a_run_may_point_to_any_cache_and_gets_its_own_pictures(run, place):
    (run / "other.bytes").write_bytes(bytes(16))
    (run / "other.json").write_text('{"shape": [1, 4, 4, 1], "digest": "", "skipped": []}')
    if place == "pipe" and os.name != "nt":
        os.mkfifo(run / "pipe")
        os.mkfifo(run / "pipe.json")
    before, _ = runs.load_pictures(run)
    change(run / "run.json", cache=place)
    after, _ = runs.load_pictures(run)
    assert np.array_equal(before, after)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"image_size": value} for value in (2**30, 10**30, 48, 2048, 0, -16, True, "16", 16.0)),
        *({"width": value} for value in (0, -4, 2**40, None, [4], 4.0)),
        *({"z_dim": value} for value in (0, 2**31, "8", {})),
        *({"channels": value} for value in (0, 2, 4, "data")),
        *({"more": 1}, {"self": 1}, {"__class__": 1}),
    ],
)
def test_generators_of_no_possible_size_are_refused(run, arguments):
    weights = load_file(run / "generator.safetensors")
    about = {"format": 1, "model": "DCGAN", "step": 4}
    about["arguments"] = {"z_dim": 8, "image_size": 16, "channels": 3, "width": 4} | arguments
    save_file(weights, run / "x.safetensors", {"about": json.dumps(about)})
    began = time.monotonic()
    with pytest.raises(
        runs.InputError, match=r"x\.safetensors is damaged, or no generator of ours"
    ):
        runs.load_generator(run / "x.safetensors")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "about",
    [
        *("", "{", "[]", "null", "1", '"DCGAN"', "[" * 100_000, '{"format": 1}', '{"format": []}'),
        *('{"format": 1, "model": ["DCGAN"]}', '{"format": 1, "model": "DCGAN", "arguments": [8]}'),
        '{"format": 1, "model": "DCGAN", "arguments": {"width": ' + "9" * 5000 + "}}",
    ],
)
def test_generators_that_tell_nonsense_of_themselves_are_refused(run, about):
    save_file(load_file(run / "generator.safetensors"), run / "x.safetensors", {"about": about})
    with pytest.raises(runs.InputError, match=r"x\.safetensors"):
        runs.load_generator(run / "x.safetensors")


# ---- code ----


def test_pickles_in_the_place_of_weights_are_not_run(run, canary, tiny, folder):
    files = load("DCGAN")
    for write in (
        lambda file: file.write_bytes(pickle.dumps(canary.bomb)),
        lambda file: torch.save({"about": canary.bomb}, file),
        lambda file: torch.save(canary.bomb, file, _use_new_zipfile_serialization=False),
    ):
        write(run / "generator.safetensors")
        with pytest.raises(runs.InputError, match="safetensors is damaged"):
            runs.load_generator(run)
        write(run / "checkpoint.pt")
        write(run / "checkpoint.before.pt")
        with pytest.raises((files.utils.InputError, files.utils.RunError, pickle.UnpicklingError)):
            files.train.train(tiny(files, data=str(folder), resume=run.name, max_steps=9))


def test_programs_beside_a_strangers_run_are_not_run(run, canary, tmp_path, monkeypatch):
    theirs = tmp_path / "theirs" / "DCGAN"
    shutil.copytree(run, theirs / "tensorboard" / "runs" / "x")
    for name in ("train", "model", "data", "utils", "pictures", "faces", "run_folder", "runs"):
        for place in (theirs, theirs / "tensorboard" / "runs" / "x"):
            (place / f"{name}.py").write_text(canary.code)
    monkeypatch.chdir(theirs)
    for name in ("utils", "data", "pictures", "faces", "model"):
        sys.modules.pop(name, None)
    found = runs.find_run(".")
    assert found.name == "x"
    assert runs.load_generator(found)[1]["model"] == "DCGAN"
    assert len(runs.load_pictures(found)[0]) == 9


@pytest.mark.parametrize("where", ["absolute", "relative"])
def test_a_runs_model_is_no_path_to_a_program(run, canary, tmp_path, where):
    (tmp_path / "theirs").mkdir()
    for name in ("data", "model"):
        (tmp_path / "theirs" / f"{name}.py").write_text(canary.code)
    model = str(tmp_path / "theirs")
    model = model if where == "absolute" else os.path.relpath(model, TOP)
    change(run / "run.json", model=model)
    weights = load_file(run / "generator.safetensors")
    about = {"format": 1, "model": model, "step": 4, "arguments": {}}
    save_file(weights, run / "generator.safetensors", {"about": json.dumps(about)})
    file = run / "generator.safetensors"
    for call, named in (
        (lambda: runs.load_pictures(run), run),
        (lambda: runs.load_generator(run), file),
        (lambda: runs.load_file_of(model, "data"), ""),
    ):
        with pytest.raises(runs.InputError, match=f"{named}.*there is no model"):
            call()
