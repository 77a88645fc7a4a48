"""play.py: what each control does, the page as a program and in a browser, and how it ends."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import islice
from types import SimpleNamespace
from zipfile import ZipFile

import gradio as gr
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import FOLDERS, TOP
from filelock import FileLock
from gradio_client import Client
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import compare
import generate
import play
import runs

INCLUDED, SENT = "simpleGAN (included)", "Network.requestWillBeSent"
TINY = (4, 4, 1, 0.01, 10, 0)  # width, batch, n_critic, clip_value, lambda_gp, seed


def until(condition, seconds=180):
    """Wait for something that happens elsewhere, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Copy what play.py needs, and a zip of tiny images: nothing here writes to this checkout."""
    top = tmp_path_factory.mktemp("project") / "results"  # a name that means nothing out there
    others = shutil.ignore_patterns("tensorboard", "data", "__pycache__")
    for name in (*FOLDERS, "assets/weights", "results"):
        shutil.copytree(TOP / name, top / name, ignore=others)
    for file in (*TOP.glob("*.py"), TOP / "play.css"):
        shutil.copy(file, top)
    with ZipFile(top / "tiny.zip", "w") as archive:
        for i in range(16):
            pixels = np.random.default_rng(i).integers(256, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
            archive.writestr(f"{i}.png", file.getvalue())
    return top


@pytest.fixture
def here(project, monkeypatch):
    """Let the functions of play.py work in the copy, and leave no training behind."""
    for module in (play, runs):
        monkeypatch.setattr(module, "TOP", project)
    yield project
    play.end_trainings()
    play.TRAININGS.clear()


# ---- Explore ----


def test_the_sheet_and_the_image_are_those_of_generate(here):
    generator, about = runs.load_generator(here / "assets/weights/simpleGAN.safetensors")
    zs = list(islice(generate.noise(3, about["arguments"]["z_dim"]), 16))
    images = next(generate.draw(generator, zs, 16))
    assert play.sheet(INCLUDED, 3, 1) == generate.grid(images, 4, side=560)
    for blend, shown in ((0, 5), (1, 7)):
        image = np.array(play.draw(INCLUDED, 3, 1, 5, 7, blend, *[0] * 6).resize((32, 32), 0))
        assert np.abs(image.astype(int) - images[shown]).max() <= 1
    assert np.ptp([np.array(play.draw(INCLUDED, s, 0, 1, 2, 0)) for s in (1, 2)], 0).max() == 0


@pytest.mark.parametrize("model", ["simpleGAN", "DCGAN"])
def test_directions_are_those_that_change_the_first_layer_most(here, model):
    generator, z, directions = play.sheet_of(f"{model} (included)", 0, 1)
    first = next(layer for layer in generator.modules() if hasattr(layer, "weight"))
    shape = (-1, z.shape[1], 1, 1) if model == "DCGAN" else (-1, z.shape[1])
    with torch.no_grad():
        apart = first(directions.view(shape)) - first(torch.zeros_like(directions).view(shape))
        anywhere = torch.nn.functional.normalize(torch.randn(500, z.shape[1]), dim=1)
        others = first(anywhere.view(shape)) - first(0 * anywhere.view(shape))
    lengths = apart.flatten(1).norm(dim=1)
    assert (lengths.diff() <= 1e-4).all() and lengths[0] >= others.flatten(1).norm(dim=1).max()
    torch.testing.assert_close(directions @ directions.T, torch.eye(6), atol=1e-4, rtol=0)
    moved = play.draw(f"{model} (included)", 0, 1, 0, 1, 0, 4, 0, 0, 0, 0, 0)
    assert moved != play.draw(f"{model} (included)", 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0)


def test_a_click_chooses_an_image_and_a_walk_is_a_loop(here):
    picture, click = np.zeros((552, 552, 3)), SimpleNamespace(index=[300, 150])
    assert play.pick(picture, "first", 0, 1, click) == (6, 1)
    assert play.pick(picture, "second", 0, 1, click) == (0, 6)
    generator, zs, _ = play.sheet_of(INCLUDED, 0, 1)
    images = next(generate.draw(generator, zs, 16)).astype(int)
    with Image.open(play.walk(INCLUDED, 0, 1, 14).value["path"]) as gif:
        assert gif.n_frames > 60 and gif.info["loop"] == 0
        start = np.asarray(gif.convert("RGB").resize((32, 32), 0))
    assert np.abs(images - start).mean((1, 2, 3)).argmin() == 14


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "", None])
def test_only_listed_runs_are_read(here, name):
    for call in (play.sheet, play.draw):
        with pytest.raises(gr.Error, match=r"no such run|Choose a run"):
            call(name, 0, 1, *([0, 1, 0] if call is play.draw else []))
    with pytest.raises(gr.Error, match=r"not on this machine|no such run|Choose"):
        play.neighbor(name or INCLUDED, 0, 1, 0, 1, 0)


# ---- Train ----


def test_a_training_ends_goes_on_pauses_and_is_explored(here):
    data = play.keep_upload(str(here / "tiny.zip"))
    dropdown = play.start("WGAN", data, 16, 40, "steps", 1e-3, *TINY)
    name, run = dropdown.value, play.find(dropdown.value)
    assert run.parent == here / "WGAN/tensorboard/runs" and play.choose().value == name
    until(lambda: not play.is_training(run))
    assert play.state_of(run).startswith("Finished · step 40/40, loss_d")
    play.resume(name, 2, "seconds")
    until(lambda: not play.is_training(run))
    assert 2 <= runs.read_json(run / "parameters.json")["max_seconds"] <= 5

    frames = len(list(run.glob("frames/*.png")))
    play.resume(name, 100000, "steps")
    until(lambda: len(list(run.glob("frames/*.png"))) > frames and play.is_training(run))
    state, frame, slider, curves, seen = play.watch(name, 0, ())
    assert state.startswith("In training") and frame.size == (584, 584) and slider.value == seen[3]
    assert all(word in curves for word in ("Losses", "Clipped", "critic")) and seen[0] == name
    with pytest.raises(gr.Error, match="in training already"):
        play.resume(name, 5, "steps")
    play.pause(name)
    until(lambda: not play.is_training(run))
    assert play.state_of(run).startswith("Paused") and runs.read_facts(run)["model"] == "WGAN"

    with FileLock(run / ".lock"):
        assert play.state_of(run).startswith("In training by another program")
    assert play.state_of(run).startswith("Paused")

    now = play.watch(name, 99, ())[4]
    assert play.watch(name, now[3], now) == gr.skip()  # nothing is new
    assert play.watch(name, 0, now)[2].label == "Frame of step 0"
    pair = play.neighbor(name, 0, 1, 0, 1, 0, *[0] * 6)
    assert "nearest training image, at RMS distance" in pair.label
    assert "WGAN" in play.findings(name) and name in play.sources()


def test_what_train_py_refuses_is_shown_in_its_words(here):
    name = play.start("DCGAN", "no-such", 16, 5, "seconds", 1e-3, *TINY).value
    run = play.find(name)
    until(lambda: not play.is_training(run))
    assert play.state_of(run).startswith("Stopped: --data") and "no such" in play.state_of(run)
    with pytest.raises(gr.Error, match="not in training"):
        play.pause(name)


def test_settings_of_a_model_are_its_own(here):
    shown = {model: play.defaults(model) for model in FOLDERS}
    visible = {
        m: [k for k, s in zip(play.TRAINING, found, strict=True) if s.visible]
        for m, found in shown.items()
    }
    assert visible["WGAN"] == ["lr", "width", "batch_size", "n_critic", "clip_value", "seed"]
    assert "lambda_gp" in visible["WGAN-GP"] and "n_critic" not in visible["DCGAN"]
    assert shown["WGAN-GP"][0].value == json.loads((here / "WGAN-GP/quick.json").read_text())["lr"]


# ---- Plane and Compare ----


@pytest.mark.parametrize("kind", play.KINDS)
def test_the_plane_plays_steps_and_is_tuned(kind):
    values = [slider.value for slider in play.proper(kind)]
    plane, field, charts = play.reset("ring", kind, 8, 3, *values)
    assert "step 0<" in field and "Press Play" in charts
    assert getattr(plane.config, "minimax", False) == ("minimax" in kind)
    assert "step 1<" in play.one_step(plane)[0]
    playing = play.play(plane)
    assert "step 1<" not in next(playing)[0] and 2 <= plane.step <= 4
    play.tune(plane, kind, 9, 8, 2, 0.5, 2)
    updates = plane.config.k if "simple" in kind else plane.config.n_critic
    assert (plane.speed, plane.config.lr, updates) == (9, 1e8, 2)
    with pytest.raises(gr.Error, match="still opening"):
        next(play.play(None))
    with pytest.raises(gr.Error, match="diverged"):
        list(islice(playing, 50))


def test_probabilities_have_their_names(here):
    found = play.curves(here / "results/DCGAN/celeba")
    shown = [re.search(rf"{name} <b>([.\d]+)", found)[1] for name in (r"D\(x\), real", "generated")]
    assert float(shown[0]) > 0.5 > float(shown[1])  # as in every training that goes well


def test_comparison_is_that_of_compare(here):
    names = [f"results/{model}/celeba" for model in ("WGAN", "DCGAN")]
    table, file, gallery, figure = play.compared(names)
    found = compare.read_runs([here / name for name in names])
    assert table == compare.table(found).to_html(border=0)
    rows = pd.read_csv(file)
    assert list(rows["model"]) == ["WGAN", "DCGAN"] and list(rows["image_size"]) == [64, 64]
    assert len(figure.data) == len(compare.figure(found).data) and len(gallery.value) == 2
    with pytest.raises(gr.Error, match="Choose a run"):
        play.compared([])


# ---- The page ----


@pytest.fixture(scope="module")
def served(project):
    """Run play.py as a user would; at its end, nothing that it started may be left."""
    command = [sys.executable, "play.py", "--no-browser"]
    program = subprocess.Popen(
        command,
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = program.stdout.readline()
    yield SimpleNamespace(url=re.search(r"http://127\.0\.0\.1:\d+/", line)[0], program=program)
    children = psutil.Process(program.pid).children(recursive=True)
    program.send_signal(signal.SIGTERM)
    out, errors = program.communicate(timeout=60)
    assert program.returncode == 0 and "trainings save" in out and "Traceback" not in errors
    assert not any(child.is_running() for child in children)


def test_pages_have_planes_of_their_own_and_files_stay_private(served, project):
    one, other = (Client(served.url, verbose=False) for _ in range(2))
    start = ("ring", "WGAN", 8, 5, -3, 1, 0.1, 1)
    for client in (one, other):
        client.predict(*start, api_name="/reset")
    assert "step 1<" in one.predict(api_name="/one_step")[0]
    assert "step 2<" in one.predict(api_name="/one_step")[0]
    assert "step 1<" in other.predict(api_name="/one_step")[0]
    pick = next(d for d in one.config["dependencies"] if d["api_name"] == "pick")
    assert pick["inputs"][2:] == pick["outputs"]  # a click leaves the other choice as it is
    drawn = one.predict(INCLUDED, 0, 1, 0, 1, 0, *[0] * 6, api_name="/draw")
    assert Image.open(drawn).size == (544, 544)
    for file in (project / "play.py", project / "tiny.zip", "/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{served.url}gradio_api/file={file}")


@pytest.fixture
def browser():
    """Open a browser that reaches this machine alone."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.add_argument("--window-size=1400,1400")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.set_script_timeout(180)  # a busy machine draws slowly
        yield driver


def test_in_a_browser_each_tab_works_and_nothing_foreign_is_asked_for(served, browser, project):
    def errors():
        """Return what the console holds and empty it."""
        said = [line["message"] for line in browser.get_log("browser")]
        # Gradio logs a request that it drops because a newer one has replaced it.
        return [line for line in said if "AbortError" not in line]

    def shown(css, get="innerText"):
        script = "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent)"
        return browser.execute_script(f"{script}.map((e, i) => e.{get})", css)

    def click(css, text):
        place = until(lambda: [i for i, one in enumerate(shown(css)) if text in one])[0]
        shown(css, "dataset.place = i")  # a mark to find it by
        browser.execute_script(
            "document.querySelector(arguments[0]).click()", f"{css}[data-place='{place}']"
        )

    def write(css, place, text):
        until(lambda: len(shown(css)) > place)
        found = [e for e in browser.find_elements(By.CSS_SELECTOR, css) if e.is_displayed()]
        found[place].send_keys(Keys.CONTROL, "a")
        found[place].send_keys(str(text), Keys.TAB)

    def said(css, pattern):
        return until(lambda: re.search(pattern, " ".join(shown(css))))

    browser.get(served.url)
    until(lambda: len(shown("img")) > 1)
    before = shown("img", "src")[1]
    write("input[type=number]", 4, 0.5)  # from the first image to the second
    until(lambda: shown("img", "src")[1] != before)

    click("button[role=tab]", "Plane")
    click("button", "Play")
    said(".plane", r"step [1-9]\d")
    click("button", "Pause")
    time.sleep(1)
    text = shown(".plane")
    time.sleep(0.5)
    assert shown(".plane") == text

    click("button[role=tab]", "Train")
    write("input[type=text], textarea", 0, project / "tiny.zip")
    click("button", "Settings")
    write("input[type=number]", 3, 8)  # batch_size
    click("button", "Start")
    said(".prose", "In training")
    assert errors() == []
    browser.refresh()  # a new page finds it
    errors()  # the old page complains if the refresh cut off a request
    click("button[role=tab]", "Train")
    said(".prose", "In training")
    click("button", "Pause")
    said(".prose", "Paused")
    click("button", "Resume")
    said(".prose", "In training")  # until the program ends, see `served`

    click("button[role=tab]", "Compare")
    said(".table th", "swd")
    until(lambda: shown(".js-plotly-plot"))
    logs = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in logs if one["method"] == SENT]
    assert [url for url in asked if not url.startswith((served.url, "data:", "blob:"))] == []
    assert errors() == []


def test_a_busy_port_is_said(served, here):
    port = int(re.search(r":(\d+)/", served.url)[1])
    with pytest.raises(OSError, match=str(port)):
        play.serve("127.0.0.1", port, False)
