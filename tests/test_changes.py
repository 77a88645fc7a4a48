"""What a user changes first, and that everything else goes on working."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
from conftest import TINY, TOP, assert_equal, flags_of, rows_of, run_script, state_of, write_images
from jupyter_client.manager import start_new_kernel
from test_algorithm import networks
from test_processes import appears

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shells, terminals, signals")
NOT_COPIED = (".*", "__pycache__", "data", "tensorboard", "assets", "results", "tests", "docs")
HINGE = "loss = (1 - critic(real)).relu().mean() + (1 + critic(fake)).relu().mean()"
PARTS = """schedule = lr_scheduler.LinearLR(generator_optimizer, 1.0, 0.1, config.warmup)
    ema = swa_utils.AveragedModel(generator, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    parts = {"schedule": schedule, "ema": ema,"""
SETTINGS = """warmup: int = 7
    decay: float = 0.9
    '''Of the average.'''
    note: str = ""
    flip: bool = False
    z_dim: W"""
CHANGES = {  # in each file: what is there, what comes instead
    "HingedGAN/model.py": {
        "z_dim: int, image_size: int, channels: int, width: int": "latent, layout, width",
        "doublings = i": "z_dim, (image_size, channels) = latent, layout; doublings = i",
        "nn.Tanh()": "nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh()",
    },
    "HingedGAN/train.py": {
        '"z_dim": config.z_dim, **shape,': '"latent": config.z_dim, "layout": [*shape.values()],',
        "wasserstein = critic(real).mean() - critic(fake).mean()\n    loss = -wasserstein": HINGE,
        '"loss_d": loss.detach(), "wasserstein": wasserstein.detach()': '"hinge": loss.detach()',
    },
    "SquaredGAN/train.py": {
        "binary_cross_entropy_with_logits as bce": "mse_loss as bce",
        "import Adam, Optimizer": "import Adam, Optimizer, lr_scheduler, swa_utils",
        "z_dim: W": SETTINGS,
        "parts = {": PARTS,
        "return run.p": "    schedule.step(), ema.update_parameters(generator)\n    return run.p",
    },
}


def change(file: Path, changes: dict[str, str]) -> None:
    text = file.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, (file, old)
        text = text.replace(old, new)
    file.write_text(text)


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """Copy the repository, and add two models of a user's own."""
    top = tmp_path_factory.mktemp("copy") / "playground"
    shutil.copytree(TOP, top, ignore=shutil.ignore_patterns(*NOT_COPIED))
    write_images(top / "images", (211, 16, 16, 3))
    shutil.copytree(top / "WGAN", top / "HingedGAN")
    shutil.copytree(top / "DCGAN", top / "SquaredGAN")
    for file, changes in CHANGES.items():
        change(top / file, changes)
    return top


def train(script: Path, code: int = 0, **settings):
    """Run a train.py; return the run folder, or what it says of an error."""
    given = TINY | {"data": script.parent.parent / "images", "hold_out": 101} | settings
    done = run_script(script, given, cwd="/")
    assert done.returncode == code and bool(done.stderr) == bool(code), done.stderr
    run = script.parent / "tensorboard" / "runs" / (given.get("name") or given.get("resume", ""))
    return done.stderr if code else run


def test_the_lines_of_the_readme_are_the_hinge_loss(top):
    old, new = (
        re.findall(rf"^\{sign}(.*)", (top / "README.md").read_text(), re.M) for sign in "-+"
    )
    shutil.copytree(top / "DCGAN", top / "ReadmeGAN")
    change(top / "ReadmeGAN/train.py", {"\n".join(old[-3:-1]): new[-2], old[-1]: new[-1]})
    row = rows_of(train(top / "ReadmeGAN/train.py", max_steps=1, log_every=1, name="run"))[0]
    logits = -float(row["loss_g"])  # small at first, where the cross-entropies are 1.39 and 0.69
    assert abs(logits) < 0.3 and float(row["loss_d"]) == pytest.approx(2, abs=0.6)


def test_another_generator_in_another_folder_is_rebuilt_by_every_script(top):
    run = train(top / "HingedGAN" / "train.py", max_steps=4, name="run")
    train(top / "HingedGAN" / "train.py", max_steps=6, resume="run")
    assert json.loads((run / "run.json").read_text())["model"] == "HingedGAN"
    assert list(rows_of(run)[-1])[4:] == ["loss_g", "hinge", "clipped"]
    for script in ("evaluate", "make_gif", "compare", "doctor", "generate"):
        more = ["--num=101"] if script == "evaluate" else []
        done = run_script(top / f"{script}.py", "HingedGAN", *more, cwd=top)
        assert done.returncode == 0, (script, done.stderr)
    assert "HingedGAN, step 6" in done.stdout  # as the weights themselves say
    made = {"samples.png", "samples.gif", "evaluation.jsonl"}
    assert made <= {file.name for file in run.iterdir()}
    alone = shutil.move(top / "HingedGAN", top.with_name("alone"))  # with its run
    shutil.copytree(top / "images", top.with_name("images"))
    train(alone / "train.py", name="again", max_steps=2)
    argv = [alone / "tensorboard" / "runs" / "run", "--num=3", f"--out={alone / 'x.png'}"]
    assert run_script(top / "generate.py", *argv, cwd=top).returncode == 2
    assert run_script(top / "generate.py", *argv, f"--model-dir={alone}").returncode == 0


def test_a_loss_a_schedule_an_average_and_settings_of_ones_own_are_resumed(top):
    own = {"warmup": 11, "note": "a b", "flip": True, "lr": 3e-3}
    script = top / "SquaredGAN" / "train.py"
    whole = train(script, **own, max_steps=7, name="whole")
    part = train(script, **own, max_steps=4, name="part")
    train(script, resume="part", max_steps=7)
    assert_equal(whole, part)
    state = state_of(part)
    (group,) = state["generator_optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(3e-3 * (1 - 0.9 * 7 / 11))
    assert state["schedule"]["last_epoch"] == state["ema"]["n_averaged"] == 7
    settings = json.loads((part / "parameters.json").read_text())
    assert settings.items() >= {**own, "decay": 0.9}.items()
    for flag, value in (("warmup", "1.5"), ("decay", "much")):
        said = train(script, 2, **{flag: value})
        assert said.count("\n") == 1 and said.startswith(f"train.py: error: --{flag}: "), said
    change(script, {'"d_real":': '"contrast": fake.std(), "d_real":'})
    train(script, resume="part", max_steps=8)
    before, after = rows_of(part)[-2:]
    assert before["contrast"] == "" and float(after["contrast"]) > 0
    for name in ("doctor", "compare"):
        done = run_script(top / f"{name}.py", "SquaredGAN", cwd=top)
        assert done.returncode == 0, done.stderr


def test_models_share_a_notebook_and_an_interrupt_saves(top, tmp_path):
    settings = TINY | {"data_dir": str(tmp_path), "runs_dir": f"{tmp_path}/runs", "max_steps": 2}
    settings |= {"data": str(top / "images")}
    manager, client = start_new_kernel(cwd=str(tmp_path))

    def cell(code):
        said = []
        client.execute_interactive(code, timeout=300, output_hook=said.append)
        return " ".join(str(message["content"]) for message in said)

    def run(file, name, **more):
        return f"%run {file} {shlex.join(flags_of(settings | {'name': name} | more))}"

    def enter(folder, code):
        return f"import runpy, sys; sys.path.insert(0, '{TOP}/{folder}'); {code}; del sys.path[0]"

    argv = ["train.py", *flags_of(settings | {"name": "DCGAN"})]
    path = f"runpy.run_path('{TOP}/DCGAN/train.py', run_name='__main__')"
    call = f"import train; _ = train.train(train.Config(**{settings}, name='%s'))"
    cell("from threading import Thread; from time import sleep")
    cells = {name: enter(name, call % name) for name in ("simpleGAN", "WGAN-GP")}
    cells["WGAN"] = f"%cd {TOP}/WGAN\n{run('train.py', 'WGAN')}"
    cells["DCGAN"] = enter("DCGAN", f"sys.argv = {argv}; _ = {path}")
    try:
        for folder, code in cells.items():
            assert "finished    2 steps" in (said := cell(code)), said
            state = state_of(tmp_path / "runs" / folder)
            for part, network in zip(list(state)[:2], networks(folder, 16)[1:], strict=True):
                network.load_state_dict(state[part])  # strictly: the folder's own layers
        frame = tmp_path / "runs" / "cut" / "frames" / "000004.png"
        interrupt = lambda: appears(frame, client.is_alive) and manager.interrupt_kernel()  # noqa: E731
        Thread(target=interrupt).start()
        said = cell(run(f"{TOP}/DCGAN/train.py", "cut", max_steps=0, epochs=10**4))
        assert "--resume cut" in said, said
        assert "ZeroDivisionError" in cell("Thread(target=lambda: 1 / 0).start(); sleep(1)")
        steps = re.search("stopped     after ([0-9,]+) steps, which are saved", said)[1]
        assert state_of(tmp_path / "runs" / "cut")["step"] == int(steps.replace(",", ""))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_output_that_goes_away_ends_no_training(top, tmp_path):
    given = TINY | {"data": top / "images", "data_dir": tmp_path, "runs_dir": tmp_path / "runs"}
    given |= {"log_every": 1, "frame_every": 99, "checkpoint_every": 99, "max_steps": 50}
    master, slave = os.openpty()
    python = shlex.join(map(str, [sys.executable, TOP / "DCGAN" / "train.py", *flags_of(given)]))
    shells = {
        "pipe": "| head -3; exit ${PIPESTATUS[0]}",
        "full": "> /dev/full",
        "none": "<&- >&- 2>&-",
        "terminal": f"> {os.ttyname(slave)} 2>&1",
        "error": "--seed=-1 2>&-",
    }
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    for name, rest in shells.items():
        shells[name] = subprocess.Popen(["bash", "-c", f"{python} --name={name} {rest}"], **pipes)
    said = os.read(master, 999)
    os.close(slave)
    while b"run   " not in said:  # the terminal is closed as training starts
        said += os.read(master, 999)
    os.close(master)
    assert [shell.communicate(timeout=300)[1] for shell in shells.values()] == [b""] * 5
    assert [shell.returncode for shell in shells.values()] == [0, 0, 0, 0, 2]
    for run in (tmp_path / "runs").iterdir():
        assert (run / "train.log").read_text().splitlines()[-1].startswith("finished    50 steps")
        assert state_of(run)["step"] == 50
