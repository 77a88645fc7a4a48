"""What the scripts at the top read: generators and pictures of a run."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TOP, load
from PIL import Image
from safetensors.torch import load_file, save_file

import runs


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for i in range(20):
        (folder / str(i // 10)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (i, 2 * i, 99)).save(folder / str(i // 10) / f"{i}.png")
    return folder


def test_a_generator_is_built_from_a_run_or_its_file(files, tiny):
    run = files.train.train(tiny(files))
    z = torch.randn(3, 8)
    for path in (run, run / "generator.safetensors"):
        generator, about = runs.load_generator(path)
        assert not generator.training and about["step"] == 4
        own = files.model.Generator(**about["arguments"]).eval()
        own.load_state_dict(load_file(run / "generator.safetensors"))
        assert torch.equal(generator(z), own(z))


def test_weights_of_half_precision_serve_too(tiny, tmp_path):
    files = load("DCGAN")
    run = files.train.train(tiny(files))
    generator, about = runs.load_generator(run)
    half = {k: t.half() if t.is_floating_point() else t for k, t in generator.state_dict().items()}
    save_file(half, tmp_path / "half.safetensors", {"about": json.dumps(about)})
    small, _ = runs.load_generator(tmp_path / "half.safetensors")
    z = torch.randn(3, 8)
    torch.testing.assert_close(small(z), generator(z), atol=0.01, rtol=0)
    assert small(z).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": 9}, "format is 9"),
        ({"model": "../../elsewhere"}, "no model"),
        ({"arguments": {"z_dim": 8, "image_size": 16, "channels": 3, "width": 5}}, "do not belong"),
        ({"arguments": {"z_dim": 8, "image_size": 16, "channels": 3}}, "damaged"),
        # petabytes, were it built
        ({"arguments": {"z_dim": 8, "image_size": 2**30, "channels": 3, "width": 2**20}}, "."),
    ],
)
def test_weights_that_are_not_ours_are_refused(tiny, tmp_path, change, complaint):
    files = load("DCGAN")
    run = files.train.train(tiny(files))
    weights = load_file(run / "generator.safetensors")
    about = {"format": 1, "model": "DCGAN", "step": 4, "arguments": {}} | change
    save_file(weights, tmp_path / "x.safetensors", {"about": json.dumps(about)})
    with pytest.raises(runs.InputError, match=complaint):
        runs.load_generator(tmp_path / "x.safetensors")


def test_the_pictures_of_a_run_are_found_by_its_cache_or_again(tiny, pictures):
    files = load("DCGAN")
    run = files.train.train(tiny(files, data=str(pictures), hold_out=5))
    trained, held_out = runs.load_pictures(run)
    assert trained.shape == (15, 16, 16, 3) and held_out.shape == (5, 16, 16, 3)
    reds = {int(picture[0, 0, 0]) for picture in (*trained, *held_out)}
    assert reds == set(range(20))
    assert {int(p[0, 0, 0]) for p in held_out} != set(range(15, 20))  # from all over the folder
    facts = json.loads((run / "run.json").read_text())
    assert facts["pictures"]["shape"] == [15, 16, 16, 3]
    (run / facts["cache"]).unlink()
    (run / facts["cache"]).with_suffix(".json").unlink()
    again, _ = runs.load_pictures(run)
    assert (again == trained).all()


def test_pictures_that_have_changed_are_refused(tiny, pictures):
    files = load("DCGAN")
    run = files.train.train(tiny(files, data=str(pictures)))
    (run / json.loads((run / "run.json").read_text())["cache"]).unlink()
    (pictures / "0" / "3.png").unlink()
    with pytest.raises(runs.InputError, match="not those"):
        runs.load_pictures(run)
    for picture in pictures.rglob("*.png"):
        picture.unlink()
    with pytest.raises(runs.InputError, match="no picture"):
        runs.load_pictures(run)


def test_more_faces_can_be_drawn(tiny):
    files = load("WGAN")
    trained, held_out = runs.load_pictures(files.train.train(tiny(files, channels=1)))
    assert trained.shape == (10000, 16, 16, 1) and held_out.shape == (2500, 16, 16, 1)
    assert not (np.asarray(held_out[:100, None]) == trained[None, :100]).all((2, 3, 4)).any()
    assert abs(trained.mean() - held_out.mean()) < 2


def test_training_never_sees_what_is_held_out(files, tiny, pictures):
    config = tiny(files, data=str(pictures), hold_out=12)
    found = files.data.load_pictures(str(pictures), config.data_dir, 16, "data", 8, 12)
    batches = files.data.Batches(found.images, 8, torch.device("cpu"), 0)
    batches.draw(10)
    reds = {round((float(next(batches)[i, 0, 0, 0]) + 1) * 127.5) for _ in range(5) for i in (0, 7)}
    assert reds <= {int(picture[0, 0, 0]) for picture in found.images}
    with pytest.raises(files.utils.InputError, match="--hold-out 13"):
        files.train.train(tiny(files, data=str(pictures), hold_out=13))


def test_a_reader_that_leaves_early_is_no_error():
    """As in `python doctor.py | head -1`; what is printed stays in the buffer until the end."""
    words = "import runs\nwith runs.plain_errors(): print('one line' + {} * ' and more')"
    for length in (0, 100_000):
        program = [sys.executable, "-c", words.format(length)]
        reader, writer = os.pipe()
        os.close(reader)
        run = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, cwd=TOP)
        os.close(writer)
        assert run.stderr == b"" and run.returncode == 141
