"""play.py: what each control does, the page as a program and in a browser, and how it ends."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import FOLDERS, TOP, load, noise_images, run_script, write_images
from filelock import FileLock
from gradio_client import Client
from PIL import Image
from scipy.spatial import geometric_slerp
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from torch import nn

import compare
import generate
import play
import runs

INCLUDED, SENT = "simpleGAN (included)", "Network.requestWillBeSent"
TINY = {"lr": 7e-4, "batch_size": 5, "g_width": 6, "d_width": 3, "k": 2, "n_critic": 3}
TINY |= {"clip_value": 0.013, "lambda_gp": 7.5, "beta1": 0.3, "dropout": 0.2, "seed": 11}


def until(condition, seconds=180):
    """Wait for something that happens elsewhere, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return found


def images_in(text):
    """Decode the images of a piece of HTML."""
    found = re.findall(r"<img [^>]*base64,([^\"]+)", text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Copy what play.py needs, and a zip of tiny images: nothing here writes to this checkout."""
    top = tmp_path_factory.mktemp("project") / "results"  # a name that means nothing out there
    others = (".*", "tensorboard", "data", "race", "tests", "__pycache__")
    shutil.copytree(TOP, top, ignore=shutil.ignore_patterns(*others))
    write_images(top / "tiny", noise_images(16, 16, 16, 3))
    shutil.make_archive(top / "tiny", "zip", top / "tiny")
    return top


@pytest.fixture
def here(project, monkeypatch):
    """Let the functions of play.py work in the copy, and leave no training behind."""
    for module in (play, runs):
        monkeypatch.setattr(module, "TOP", project)
    yield project
    play.end_trainings()
    play.TRAININGS.clear()
    shutil.rmtree(project / "MyGAN", ignore_errors=True)


def write_run(top, model, name, started="2026-01-01T00:00:00", frames=(), rows=0, **rest):
    """Copy a record under another name and date; its step i ends after 0.5 + 1.25 i seconds."""
    run = top / model / "tensorboard/runs" / name
    shutil.copytree(top / f"results/{model}/celeba", run)
    facts = json.loads((run / "run.json").read_text()) | {"started": started} | rest
    (run / "run.json").write_text(json.dumps(facts))
    shutil.copy(top / f"assets/weights/{model}.safetensors", run / "generator.safetensors")
    shutil.rmtree(run / "frames")
    (run / "frames").mkdir()
    for step, shade in frames:
        Image.new("RGB", (6, 6), (shade, 0, 0)).save(run / f"frames/{step:06d}.png")
    lines = [f"{i},0,{64 * i},{0.5 + 1.25 * i},0.7,{i - 1}\n" for i in range(1, rows + 1)]
    (run / "metrics.csv").write_text("".join(["step,epoch,images,seconds,loss_d,loss_g\n", *lines]))
    return run


def test_the_image_is_that_of_a_great_circle_and_of_moves_along_the_directions(here):
    generator, about = runs.load_generator(here / "assets/weights/simpleGAN.safetensors")
    zs = torch.stack(list(islice(generate.noise(3, about["z_dim"]), 16)))
    images = next(generate.draw(generator, zs, 16))
    sheet = play.sheet(INCLUDED, 3, 1, None, 5, 7)
    np.testing.assert_array_equal(images_in(sheet), images)
    marks = re.findall(r'number="(\d+)" class="(\w+)".*?<span>(.*?)<', sheet)
    assert marks == [("5", "first", "5 first"), ("7", "second", "7 second")]
    weight = next(generator.parameters()).detach().double().numpy()
    _, vectors = np.linalg.eigh(weight.T @ weight)
    directions = play.load(INCLUDED)[2].double().numpy()
    for direction, expected in zip(directions, vectors.T[::-1], strict=False):
        assert abs(direction @ expected) > 0.999  # largest first; the sign is free
    moves = np.array([1.3, -2.1, 0.7, -0.4, 1.9, -2.7])
    for truncation, blend in ((1, 0), (0.83, 0.37), (0.9, 1)):
        one, other = truncation * zs[[4, 6]].double().numpy()
        lengths = np.linalg.norm([one, other], axis=1)
        z = geometric_slerp(one / lengths[0], other / lengths[1], blend)  # lengths change linearly
        z = z * np.interp(blend, (0, 1), lengths) + moves @ directions
        expected = next(generate.draw(generator, [torch.tensor(z).float()], 1))[0]
        drawn = play.draw(INCLUDED, 3, truncation, None, 5, 7, blend, *moves)
        assert np.abs(images_in(drawn)[0].astype(int) - expected).max() <= 2
    assert 'download="simpleGAN (included), seed 3, image 5.png"' in drawn


def test_a_click_chooses_and_a_walk_goes_from_one_image_to_the_other_and_back(here, monkeypatch):
    assert play.pick(3, SimpleNamespace(number=9)) == (9, 3)
    assert play.pick(9, SimpleNamespace(number=9))[0] == 9
    written = []
    write = lambda file, frames, *_: (written.extend(frames), file.write_bytes(b"film"))  # noqa: E731
    monkeypatch.setattr(play, "write_animation", write)
    shown = play.walk(INCLUDED, 2, 1, None, 14, 3)
    images = images_in(play.sheet(INCLUDED, 2, 1, None, 1, 2))
    frames = [np.asarray(frame.resize((32, 32), 0)).astype(int) for frame in written]
    nearest = [np.abs(images - frame).mean((1, 2, 3)).argmin() + 1 for frame in frames]
    assert nearest[0] == 14 and nearest[len(frames) // 2] == 3 and nearest[-1] == 14
    assert base64.b64encode(b"film").decode() in shown and "From image 14 to image 3" in shown
    with pytest.raises(play.InputError, match="two different"):
        play.walk(INCLUDED, 2, 1, None, 4, 4)


def test_what_is_not_listed_or_out_of_range_is_refused_in_a_sentence(here):
    out = {0: ("/etc/passwd", "../secret", None), 1: (2**32, 1.5, None), 4: (0, 17), 5: (99, 2.5)}
    for place, value in [(p, value) for p in out for value in out[p]]:
        choice = [INCLUDED, 0, 1, None, 1, 2, 0.5]
        choice[place] = value
        expected = r"no such run|Choose a run|must be a whole number from [01] to [\d,]+\."
        with pytest.raises(play.InputError, match=expected):
            play.draw(*choice)


def test_a_photograph_becomes_the_first_image(here, monkeypatch):
    tiny = nn.Sequential(nn.Linear(4, 768), nn.Tanh(), nn.Unflatten(1, (3, 16, 16)))
    about = {"model": "WGAN", "image_size": 16, "channels": 3, "z_dim": 4}
    monkeypatch.setattr(play, "load", lambda name: (tiny, about, torch.eye(4)))
    z0 = torch.tensor([0.7, -1.6, 0.2, 1.1])
    (photo,) = next(generate.draw(tiny, [z0], 1))
    *_, (own, truncation, first, *rest, _) = found = list(play.photograph("tiny", photo))
    start, *_, end = [float(re.search(r"distance (\S+) of", one[-1])[1]) for one in found]
    assert len(found) > 9 and end < start / 30 and own[0] == "tiny"
    torch.testing.assert_close(own[1], z0, atol=0.003, rtol=0)
    (drawn,) = images_in(play.draw("tiny", 9, truncation, own, first, 5, *rest))
    assert np.abs(drawn.astype(int) - photo).max() <= 2
    choices = (("tiny", own), ("tiny", None), ("x", own))
    mine, plain, other = (play.latents(name, 9, 1, z) for name, z in choices)
    assert torch.equal(mine, torch.cat([own[1][None], plain[1:]])) and torch.equal(other, plain)


@pytest.mark.parametrize("model", FOLDERS)
def test_settings_of_the_page_reach_train_py(here, model, monkeypatch):
    asked = []
    monkeypatch.setattr(play, "start_training", lambda run, *flags: asked.append((run, flags)))
    play.start(model, "some/images", 64, 37, "steps", *TINY.values())
    ((run, flags),) = asked
    files = load(model)
    config = files.utils.parse_config(files.train.Config, list(flags))
    assert run == here / model / "tensorboard/runs" / config.name
    own = {name for name in TINY if hasattr(config, name)}
    assert {"lr", "batch_size", "g_width", "d_width", "seed"} <= own
    given = {name: TINY[name] for name in own}
    given |= {"max_steps": 37, "image_size": 64, "max_seconds": 0}
    assert {name: getattr(config, name) for name in given} == given
    assert str(config.data).endswith("some/images") and config.epochs >= 10**6
    quick = json.loads((TOP / model / "quick.json").read_text())
    assert config.frame_every == quick["frame_every"]
    fields = dict(zip(play.SETTINGS, play.defaults(model), strict=True))
    assert {name for name, field in fields.items() if field.visible} == own
    expected = {name: quick.get(name, getattr(files.train.Config(), name)) for name in own}
    assert {name: fields[name].value for name in own} == expected
    for most in (0, -5, 1.5, None):
        with pytest.raises(play.InputError, match="time to train for must be a whole number"):
            play.start(model, "faces", 32, most, "seconds", *TINY.values())


def test_a_finished_run_gets_so_many_more(here, monkeypatch):
    asked = []
    monkeypatch.setattr(play, "start_training", lambda run, *flags: asked.append((run, *flags)))
    paused = write_run(here, "WGAN", "paused", rows=43, finished=None)
    more = (write_run(here, "WGAN", "more", rows=43), "--resume=more", "--epochs=1000000")
    asks = (("more", 17, "steps"), ("more", 29, "seconds"), ("paused", 9, "steps"))
    for name, most, unit in asks:
        play.resume(f"WGAN/{name}", most, unit)
    steps, seconds = ("--max-steps=60", "--max-seconds=0"), ("--max-seconds=83", "--max-steps=0")
    assert asked == [(*more, *steps), (*more, *seconds), (paused, "--resume=paused")]


def test_runs_are_listed_by_their_start_the_newest_first(here):
    for name, start in (("b", "09:00:00+05:00"), ("c", "05:00:00+00:00"), ("a", "04:30:00+00:00")):
        write_run(here, "DCGAN", f"at {name}", f"2026-11-29T{start}")
    names = play.run_names()
    assert [name[-1] for name in names if "/at " in name] == ["c", "a", "b"]
    recorded = [name.startswith("results/") for name in names]
    assert recorded == sorted(recorded) and recorded[-1] and "DCGAN/at b" in play.sources()
    (here / "DCGAN/tensorboard/runs/at b/run.json").write_text("{")
    assert "DCGAN/at b" not in play.run_names()


def test_frames_and_curves_are_those_of_the_run_and_of_the_slider(here):
    frames = [(0, 10), (20, 60), (1000, 90), (30, 120)]
    for name, count, rows in (("watched", 4, 5), ("other", 2, 900), ("empty", 0, 0)):
        write_run(here, "WGAN-GP", name, frames=frames[:count], rows=rows)
    seen, expected = (), {("watched", 0): (3, 90), ("watched", 2): (2, 120), ("other", 2): (1, 60)}
    for (run, asked), (place, shade) in expected.items():
        _, state, frame, slider, drawn, seen = play.watch(f"WGAN-GP/{run}", asked, seen)
        assert images_in(frame)[0][0, 0, 0] == shade and slider.value == place
        assert f"<b>{4 if run == 'watched' else 899}</b>" in drawn and 'role="status"' in state
    assert play.watch("WGAN-GP/other", 1, seen)[0]["__type__"] == "update"  # nothing is new
    Image.new("RGB", (6, 6)).save(here / "WGAN-GP/tensorboard/runs/other/frames/000040.png")
    assert play.watch("WGAN-GP/other", 1, seen)[3].value == 2  # at its end, it follows
    _, _, frame, slider, drawn, seen = play.watch("WGAN-GP/empty", 1, seen)
    assert (frame, drawn, slider.maximum, slider.interactive) == ("", "", 1, False)


def test_a_training_ends_goes_on_pauses_and_is_explored(here):
    data = play.keep_upload(str(here / "tiny.zip"))
    dropdown = play.start("WGAN", data, 16, 40, "steps", *TINY.values())
    name, run = dropdown.value, play.find(dropdown.value)
    assert run.parent == here / "WGAN/tensorboard/runs" and play.choose().value == name
    until(lambda: not play.is_training(run))
    state, line = play.state_of(run)
    assert state == "Finished" and line.startswith("step 40/40, loss_d")
    play.resume(name, 100000, "steps")
    until(lambda: len(list(run.glob("frames/*.png"))) > 3 and play.is_training(run))
    assert play.state_of(run)[0] == "In training"
    with pytest.raises(play.InputError, match="in training already"):
        play.resume(name, 5, "steps")
    play.pause(name)
    assert play.state_of(run)[0] in ("Saving", "Paused")
    until(lambda: not play.is_training(run))
    assert play.state_of(run)[0] == "Paused" and runs.read_facts(run)["model"] == "WGAN"
    assert runs.read_json(run / "parameters.json")["max_steps"] == 100040
    with FileLock(run / ".lock"):
        assert play.state_of(run)[0] == "In training by another program"
    said, near, extra = play.describe("WGAN-celeba (included)")
    assert "photographs of celebrities" in said and "not on this machine" in said
    assert (near.interactive, extra) == (False, "") and "drawn faces" in play.describe(INCLUDED)[0]
    assert name in play.sources() and play.describe(name)[1].interactive
    choice = (name, 4, 1, None, 3, 5, 0.3, 0.5)
    pair = play.neighbor(*choice)
    trained, _ = runs.load_images(run, more_faces=0)
    (image,) = images_in(play.draw(*choice))
    distances = np.square(trained.astype(float) - image).mean((1, 2, 3))
    assert f"at RMS distance {distances.min() ** 0.5:.1f} of 255" in pair


def test_a_start_that_fails_says_why_and_is_no_run(here):
    name = play.start("DCGAN", "no-such", 16, 5, "seconds", *TINY.values()).value
    assert name in play.run_names()  # while it starts
    until(lambda: not play.is_training(play.find(name)))
    state = play.watch(name, 0, ())[1]
    assert state.startswith('<p role="alert"><b>Stopped</b> --data') and "no such" in state
    assert name not in play.run_names() and name not in play.sources()
    with pytest.raises(play.InputError, match="not in training"):
        play.pause(name)


def test_the_report_speaks_in_words_of_the_page(here, monkeypatch):
    write_run(here, "DCGAN", "judged")
    advice = ["--d-width 32 (was 64)", "--r1 1.0 (was 0)", "--max-seconds 0 (was 9)", "Add images"]
    found = [play.doctor.Finding("too short", "It <ended>.", ["steps = 3"], advice, "A, b")]
    monkeypatch.setattr(play.doctor, "examine", lambda run: (found, {"few images": "step 3 of 9"}))
    words = re.sub("<[^>]*>", "\n", play.findings("DCGAN/judged"))
    assert "Try: d_width 32 (was 64)." in words and "Try: Add images." in words
    assert "Press Resume" in words and "few images (step 3 of 9)" in words and "&lt;ended" in words
    assert not re.search("--|r1|max.seconds|python", words)
    monkeypatch.setattr(play.doctor, "examine", lambda run: ([], {}))
    assert "No problems found" in play.findings("DCGAN/judged") and play.findings(None) == ""


def test_a_model_that_was_added_is_offered_with_its_own_settings(here):
    shutil.copytree(here / "DCGAN", here / "MyGAN", ignore=shutil.ignore_patterns("tensorboard"))
    fields = dict(zip(play.SETTINGS, play.defaults("MyGAN"), strict=True))
    assert fields["lr"].visible and not fields["n_critic"].visible
    values = [s.value for s in play.switch(None, [], "ring", "MyGAN", 2, 8, 2, 0)[4:]]
    plane = play.reset(None, [], "ring", "MyGAN", 2, 8, 2, 0, *values)[0]
    assert "step 1<" in next(play.train_plane(plane, "step"))[0]
    assert "MyGAN (included)" not in play.sources()


@pytest.mark.parametrize("kind", play.KINDS)
def test_sliders_of_the_plane_set_what_they_say(kind):
    live = (-2.3, -3.1, 7, 0.37, 4.3)
    plane, field, curves, _ = play.reset(None, ["arrows"], "ring", kind, 3, 20, 2, 41, *live)
    assert "step 0<" in field and "begin with" in curves and plane.layers == ["arrows"]
    assert plane.generator[0].weight.shape == (20, 2) and len(list(plane.critic.parameters())) == 6
    other = play.reset(None, ["arrows"], "ring", kind, 3, 20, 2, 40, *live)[0]
    assert not torch.equal(plane.real, other.real)
    rates = [o.param_groups[0]["lr"] for o in plane.optimizers]
    assert rates == pytest.approx([10**-2.3, 10**-3.1])
    given = {"n_critic": 7, "clip_value": 0.37, "lambda_gp": 4.3, "minimax": "minimax" in kind}
    assert {k: getattr(plane.config, k, given[k]) for k in given} == given
    for _, shown in zip(range(2), play.train_plane(plane, "play"), strict=False):
        assert f"step {plane.step}<" in shown[0]
    assert plane.step == 6  # as many updates for a picture as Speed says
    play.tune(plane, ["real points"], 5, -4, -2, 2, 0.5, 2)
    rates = [o.param_groups[0]["lr"] for o in plane.optimizers]
    assert rates == pytest.approx([1e-4, 1e-2]) and (plane.speed, plane.config.n_critic) == (5, 2)
    next(play.train_plane(plane, "play"))
    assert plane.step == 11
    shown, *sliders = play.switch(None, [], "ring", kind, 3, 20, 2, 41)[3:]
    visible = [slider.visible for slider in sliders]
    assert visible == [True, True, True, kind == "WGAN", kind == "WGAN-GP"]


def test_points_of_your_own_are_drawn_from(tmp_path):
    with pytest.raises(play.InputError, match="First draw points"):
        play.reset(None, [], play.OWN, "WGAN", 1, 8, 2, 0, -3, -3, 1, 0.1, 1)
    own, shape = play.trace("ring", None, SimpleNamespace(points=[[0.25, -0.5], [-0.75, 0.125]]))
    torch.testing.assert_close(own, 1.6 * torch.tensor([[0.25, -0.5], [-0.75, 0.125]]))
    more, _ = play.trace(shape, own, SimpleNamespace(points=[[0, 0]]))
    assert len(more) == 3 and len(play.trace("ring", own, SimpleNamespace(points=[[0, 0]]))[0]) == 1
    plane = play.reset(own, [], shape, "WGAN", 1, 8, 2, 0, -3, -3, 1, 0.1, 1)[0]
    apart = torch.cdist(plane.real.flatten(1), own).min(1)
    assert apart.values.max() < 0.15 and set(apart.indices.tolist()) == {0, 1}
    with pytest.raises(play.InputError, match="still opening"):
        next(play.train_plane(None, "play"))
    file = tmp_path / "points.csv"
    for text in ("1,10\n3,20\n1.5,10\n", "\ufeffx;y\r\n1,0;10\r\n3;20\r\n1,5;10\r\n"):
        file.write_text(text)
        own, shape = play.read_points(str(file))
        torch.testing.assert_close(own, torch.tensor([[-1.3, -1.3], [1.3, 1.3], [-0.65, -1.3]]))
    for text in ("", "x,y\n", "1,2,3\n4,5,6", "1\n2", "1,2\n3\n", "1,2\nx,4", "1,2\n3,inf", "\0"):
        file.write_text(text)
        with pytest.raises(play.InputError, match=r"points.csv does not hold two columns"):
            play.read_points(str(file))


def test_comparison_is_that_of_compare(here):
    names = [f"results/{model}/celeba" for model in ("WGAN", "DCGAN")]
    grids, table, file, figure = play.compared(names)
    found = compare.read_runs([here / name for name in names])
    assert table == compare.table(found).to_html(border=0)
    rows = pd.read_csv(file.value["path"])
    assert list(rows["model"]) == ["WGAN", "DCGAN"] and list(rows["image_size"]) == [64, 64]
    assert len(figure.data) == len(compare.figure(found).data) and len(images_in(grids)) == 2
    with pytest.raises(play.InputError, match="Choose a run"):
        play.compared([])


@pytest.fixture(scope="module")
def served(project, tmp_path_factory):
    """Run play.py as a user would; at its end, nothing that it started may be left."""
    scratch = tmp_path_factory.mktemp("scratch")
    environment = os.environ | dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    rest = {"cwd": project, "env": environment | {"TMPDIR": str(scratch)}, "text": True}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    program = subprocess.Popen([sys.executable, "play.py", "--no-browser"], **pipes, **rest)
    yield re.search(r"http://127\.0\.0\.1:\d+/", program.stdout.readline())[0]
    children = psutil.Process(program.pid).children(recursive=True)
    program.send_signal(signal.SIGTERM)
    out, errors = program.communicate(timeout=60)
    assert program.returncode == 0 and "trainings save" in out and "Traceback" not in errors
    assert not any(child.is_running() for child in children)
    assert list(scratch.glob("gan-playground-*")) == []


def test_pages_have_planes_of_their_own_and_files_stay_private(served, project):
    one, other = (Client(served, verbose=False) for _ in range(2))
    every = one.view_api(return_format="dict", print_info=False)["named_endpoints"]
    labels = {name: ", ".join(p["label"] for p in every[name]["parameters"]) for name in every}
    live = "Learning rate, log10, Critic's, log10, n_critic, Clamp, lambda"
    assert labels["/reset"] == f"Shown, Real points, Model, Speed, Width, Layers, Seed, {live}"
    assert labels["/tune"] == f"Shown, Speed, {live}"  # the tests above say what each place does
    assert labels["/start"] == f"Model, Images, Pixels, Train for, Unit, {', '.join(TINY)}"
    ends = "First image, Second image, From the first image to the second, Direction 1, Direction 2"
    assert labels["/draw"].startswith(f"Generator, Seed, Truncation, {ends}, Direction 3")
    for client in (one, other):
        client.predict([], "ring", "WGAN", 2, 8, 2, 0, -3, -3, 1, 0.1, 1, api_name="/reset")
    texts = [client.predict(api_name="/step")[0] for client in (one, one, other)]
    assert [re.search(r"step (\d+)<", text)[1] for text in texts] == ["1", "2", "1"]
    drawn, said = one.predict(INCLUDED, 0, 1, 99, 2, 0, *[0] * 6, api_name="/draw")
    assert drawn == "" and 'role="alert">The number of an image must be' in said
    assert one.predict(INCLUDED, 0, 1, 9, 2, 0, *[0] * 6, api_name="/draw")[1] == ""
    late = write_run(project, "DCGAN", "late")  # the list of this page was made before
    for event, rest in (("/watch", [0]), ("/findings", []), ("/pause", [])):
        one.predict("DCGAN/late", *rest, api_name=event)
    shutil.rmtree(late)
    for file in (project / "play.py", project / "tiny.zip", "/etc/passwd"):
        with pytest.raises(OSError, match="403"):
            urllib.request.urlopen(f"{served}gradio_api/file={file}")


@pytest.fixture
def browser():
    """Open a browser that reaches this machine alone."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver")
    options, alone = webdriver.ChromeOptions(), "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    for flag in ("headless=new", "no-sandbox", "window-size=1400,1400"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--host-resolver-rules={alone}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.set_script_timeout(180)  # a busy machine draws slowly
        yield driver


def test_in_a_browser_each_tab_works_by_keyboard_alone(served, browser, project):
    def errors():
        said = [line["message"] for line in browser.get_log("browser")]
        # Gradio logs a request that it drops because a newer one has replaced it.
        return [line for line in said if "AbortError" not in line]

    def shown(css, get="innerText"):
        every = "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent)"
        return browser.execute_script(f"{every}.map(e => e.{get})", css)

    def said(css, pattern):
        return until(lambda: re.search(pattern, " ".join(shown(css))))

    def use(pattern, *keys):
        """Press Tab until what has the focus is named so, then other keys."""
        for _ in range(150):
            webdriver.ActionChains(browser).send_keys(Keys.TAB).perform()
            reached = browser.switch_to.active_element
            if re.search(pattern, reached.accessible_name):
                return reached.send_keys(*keys)
        raise AssertionError(f"{pattern} is out of reach of the keyboard")

    browser.get(served)
    until(lambda: shown(".large img") and len(shown(".sheet img")) == 16)
    assert all(shown("img", "alt"))
    before = shown(".large img", "src")
    use("^Image 7", Keys.ENTER)  # an image of the sheet
    until(lambda: "7 first" in shown(".sheet button") and shown(".large img", "src") != before)
    assert "1 second" in shown(".sheet button")
    before = shown(".large img", "src")
    use("^range.*From the first", Keys.ARROW_RIGHT)
    until(lambda: shown(".large img", "src") != before)
    use("^Plane", Keys.ENTER)
    said(".plane", "step 0")
    use("^Play", Keys.ENTER)
    said(".plane", r"step [1-9]\d")
    use("^range.*lambda", Keys.HOME)
    use("^manifold", Keys.SPACE)
    said(".plane", "a grid of z")
    use("^Pause", Keys.ENTER)
    time.sleep(2)
    text = shown(".plane")
    time.sleep(1)
    assert shown(".plane") == text
    use("^Train", Keys.ENTER)
    use("^Images", Keys.CONTROL, "a", Keys.NULL, str(project / "tiny.zip"))
    use("^Settings", Keys.ENTER)
    use("^batch_size", "8")
    use("^Start", Keys.ENTER)
    said("[role=status]", "In training")
    assert errors() == []
    browser.refresh()  # a new page finds it
    errors()  # the old page complains if the refresh cut off a request
    for tab, words in (("Train", "In training"), ("Pause", "Paused"), ("Resume", "In training")):
        use(f"^{tab}", Keys.ENTER)
        said("[role=status]", words)  # until the program ends, see `served`
    use("^Compare", Keys.ENTER)
    said(".table th", "swd")
    use("^Runs", "WGAN-GP/fashion", Keys.ENTER)
    said(".table", "fashion")
    until(lambda: shown(".js-plotly-plot"))
    logs = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in logs if one["method"] == SENT]
    assert [url for url in asked if not url.startswith((served, "data:", "blob:"))] == []
    assert errors() == []


def test_a_busy_port_is_said(served):
    port = re.search(r":(\d+)/", served)[1]
    done = run_script(TOP / "play.py", "--no-browser", "--port", port)
    assert done.returncode == 2 and f"--port {port} is in use" in done.stderr
