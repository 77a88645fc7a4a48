"""Disks that are full, and files that were damaged on them."""

import dataclasses
import os
import random
import resource
import shutil
import signal
import subprocess

import pytest
import torch
from breaking import compare, run_in_child, weights
from conftest import load


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 2 MB, where that is allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder, left: int) -> None:
    """Leave so many bytes on a small disk."""
    free = shutil.disk_usage(folder).free
    (folder / "ballast").write_bytes(bytes(max(0, free - left)))


@pytest.mark.parametrize("length", ["short", pytest.param("long", marks=pytest.mark.long)])
def test_a_full_disk_costs_nothing_that_was_saved(length, tiny, small_disk):
    files = load("DCGAN")
    config = tiny(files, max_steps=30, checkpoint_every=3, frame_every=2, log_every=1)
    whole = files.train.train(dataclasses.replace(config, name="whole"))
    needed = sum(file.stat().st_size for file in whole.rglob("*") if file.is_file())
    spaces = range(0, 2 * needed, needed // {"short": 4, "long": 60}[length])
    config = dataclasses.replace(config, runs_dir=str(small_disk / "runs"))
    run = small_disk / "runs" / "run"
    named = set()

    def job():
        begun = any(run.glob("checkpoint*.pt"))
        name = {"resume": "run"} if begun else {"name": "run"}
        with files.utils.plain_errors():
            files.train.train(dataclasses.replace(config, **name))

    for left in spaces:
        shutil.rmtree(small_disk / "runs", ignore_errors=True)
        (small_disk / "runs").mkdir()
        fill(small_disk, left)
        code, said = run_in_child(job)
        if code:
            assert code == 1 and "Traceback" not in said, said
            line = said.splitlines()[-1]
            assert "cannot be written (" in line and "No space left on device" in line, said
            named.add(line.split(" cannot")[0].split("/")[-1])
        steps = [torch.load(file, weights_only=True)["step"] for file in run.glob("checkpoint*.pt")]
        (small_disk / "ballast").unlink()
        if not steps:  # it did not get that far
            shutil.rmtree(run)
        code, said = run_in_child(job)
        assert code == 0 or "steps are done" in said, said
        if any(steps) and code == 0:
            assert f"from step {max(steps)}\n" in said
        compare(whole, run)
    assert len(named) >= {"short": 3, "long": 6}[length], named
    print(f"full disks: {len(spaces)}; what could not be written: {sorted(named)}")


@pytest.mark.parametrize("limit", [450, 3_000, 9_000, 20_000, 70_000])
def test_files_that_may_not_grow_end_in_one_line(limit, tiny):
    files = load("WGAN")
    config = tiny(files, name="run", max_steps=40, frame_every=1, log_every=1, checkpoint_every=2)
    files.data.load_pictures("faces", config.data_dir, 16, "data", 8)

    def job(config=config):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with files.utils.plain_errors():
            files.train.train(config)

    code, said = run_in_child(job)
    assert code == 1 and "Traceback" not in said, said
    assert "cannot be written (" in said and "File too large" in said
    run = files.utils.runs_folder(config.runs_dir) / "run"
    if any(run.glob("checkpoint*.pt")):
        steps = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
        files.train.train(dataclasses.replace(config, resume="run", max_steps=steps + 2))
        whole = files.train.train(dataclasses.replace(config, name="whole", max_steps=steps + 2))
        compare(whole, run)
    assert limit < 70_000 or steps >= 2


def damage(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, swap two parts, or blank a part."""
    kind = rng.choice(["flip", "flip", "cut", "swap", "blank"])
    if kind == "cut":
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 5, 100])):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    else:
        size = rng.randint(1, len(changed) // 3)
        a, b = rng.randrange(len(changed) - size), rng.randrange(len(changed) - size)
        other = changed[b : b + size] if kind == "swap" else bytes(size)
        changed[b : b + size] = changed[a : a + size] if kind == "swap" else changed[b : b + size]
        changed[a : a + size] = other
    return bytes(changed)


def test_a_checkpoint_that_ends_anywhere_for_want_of_room_is_named(tiny):
    """What torch raises for that depends on where it had to end."""
    files = load("DCGAN")
    config = tiny(files, max_steps=2, g_width=16, d_width=16)
    whole = files.train.train(config)
    sizes = {file.name: file.stat().st_size for file in whole.glob("*.*")}
    most = sizes.pop("checkpoint.pt")
    assert 2 * max(sizes.values()) < most

    for limit in range(most // 2, most, most // 50):

        def job(limit=limit):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with files.utils.plain_errors():
                files.train.train(config)

        code, said = run_in_child(job)
        assert code == 1 and "Traceback" not in said, said
        assert "checkpoint.pt cannot be written (File too large)" in said.splitlines()[-1]


@pytest.mark.parametrize("length", ["short", pytest.param("long", marks=pytest.mark.long)])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(length, tiny, tmp_path):
    files = load("WGAN-GP")
    run = files.train.train(tiny(files, max_steps=4))
    newest, before = run / "checkpoint.pt", run / "checkpoint.before.pt"
    good = newest.read_bytes()
    states = {
        step: torch.load(file, weights_only=True) for step, file in ((4, newest), (2, before))
    }
    rng, taken = random.Random(0), {4: 0, 2: 0}
    for _ in range({"short": 100, "long": 1000}[length]):
        newest.write_bytes(damage(good, rng))
        state, passed = files.utils.read_checkpoint(run)
        assert state.pop("settings") == states[state["step"]]["settings"]
        same = {name: part for name, part in states[state["step"]].items() if name != "settings"}
        torch.testing.assert_close(state, same, rtol=0, atol=0)
        taken[state["step"]] += 1
        assert (state["step"] == 2) == bool(passed)
        assert not passed or passed[0].startswith("checkpoint.pt: ")
    assert taken[2] > 10 * taken[4]  # a flip in a time stamp does no harm
    print(f"damaged checkpoints: {sum(taken.values())}, of which {taken[4]} harmlessly")


def test_two_damaged_checkpoints_are_an_error_that_names_both(tiny):
    files = load("DCGAN")
    run = files.train.train(tiny(files, name="run"))
    for name in ("checkpoint.pt", "checkpoint.before.pt"):
        (run / name).write_bytes((run / name).read_bytes()[:5000])
    with pytest.raises(files.utils.RunError) as caught:
        files.train.train(tiny(files, resume="run", max_steps=6))
    assert "checkpoint.pt:" in str(caught.value) and "checkpoint.before.pt:" in str(caught.value)


def test_a_run_whose_newest_checkpoint_is_damaged_still_ends_the_same(tiny):
    files = load("WGAN")
    whole = files.train.train(tiny(files, name="whole", max_steps=8))
    part = files.train.train(tiny(files, name="part", max_steps=6))
    content = bytearray((part / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (part / "checkpoint.pt").write_bytes(content)
    files.train.train(tiny(files, resume="part", max_steps=8))
    assert "taking the one before it" in (part / "train.log").read_text()
    assert weights(whole)["step"] == 8
    compare(whole, part)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_runs_no_code(tiny, tmp_path):
    files = load("DCGAN")
    run = files.train.train(tiny(files, name="run"))
    for name in ("checkpoint.pt", "checkpoint.before.pt"):
        torch.save({"step": 2, "bomb": Bomb(tmp_path / "executed")}, run / name)
    with pytest.raises(files.utils.RunError, match="no checkpoint"):
        files.train.train(tiny(files, resume="run", max_steps=6))
    assert not (tmp_path / "executed").exists()
    torch.load(run / "checkpoint.pt", weights_only=False)
    assert (tmp_path / "executed").exists()  # the bomb is a real one


def test_one_training_in_a_folder(tiny):
    files = load("DCGAN")
    config = tiny(files, name="run", max_steps=50)
    seen = []

    def other():
        with files.utils.plain_errors():
            files.train.train(dataclasses.replace(config, name="", resume="run", max_steps=60))

    step = files.train.generator_step

    def once(*args):
        if len(seen) == 0 and any(files.utils.runs_folder(config.runs_dir).glob("run/check*.pt")):
            seen.append(run_in_child(other))
        return step(*args)

    files.train.generator_step = once
    try:
        files.train.train(config)
    finally:
        files.train.generator_step = step
    code, said = seen[0]
    assert code == 2 and "another training is going on" in said
