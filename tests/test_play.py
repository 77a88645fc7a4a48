"""play.py: what each control does, the page as a program and in a browser, and how it ends."""

import io
import json
import os
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
import psutil
import pytest
import torch
from conftest import ENVIRONMENT, FOLDERS, TOP
from gradio_client import Client
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

import compare
import generate
import play
import runs

INCLUDED = "simpleGAN (included)"
TINY = (4, 4, 1, 0.01, 10, 0)  # width, batch, n_critic, clip_value, lambda_gp, seed


def until(condition, seconds=60):
    """Wait for something that happens elsewhere, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Copy what play.py needs, and a zip of tiny images: nothing here writes to this checkout."""
    top = tmp_path_factory.mktemp("project")
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
    with Image.open(play.walk(INCLUDED, 0, 1, 14)["value"] if False else walked()) as gif:
        assert gif.n_frames > 60 and gif.info["loop"] == 0


def walked():
    return play.walk(INCLUDED, 0, 1, 14).value["path"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "", None])
def test_only_listed_runs_are_read(here, name):
    for call in (play.sheet, play.draw):
        with pytest.raises(gr.Error, match="no such run|Choose a run"):
            call(name, 0, 1, *([0, 1, 0] if call is play.draw else []))
    with pytest.raises(gr.Error, match=r"not on this machine|no such run|Choose"):
        play.neighbour(name or INCLUDED, 0, 1, 0, 1, 0)


# ---- Train ----


def test_a_training_starts_pauses_resumes_and_is_explored(here):
    data = play.keep_upload(str(here / "tiny.zip"))
    dropdown = play.start("WGAN", data, 16, 100000, "steps", 1e-3, *TINY)
    name, run = dropdown.value, play.find(dropdown.value)
    assert run.parent == here / "WGAN/tensorboard/runs" and play.choose().value == name
    until(lambda: (run / "metrics.csv").is_file())
    state, frame, slider, curves, seen = play.watch(name, 0, ())
    assert state.startswith("In training") and frame.size == (146, 146) and slider.value == 1
    assert all(word in curves for word in ("Losses", "Clipped", "critic")) and seen[0] == name
    with pytest.raises(gr.Error, match="in training already"):
        play.resume(name, 5, "steps")
    play.pause(name)
    until(lambda: not play.is_training(run))
    assert play.state_of(run).startswith("Paused") and (run / "checkpoint.pt").is_file()
    now = play.watch(name, 99, ())[4]
    assert play.watch(name, now[3], now) == gr.skip()  # nothing is new
    assert play.watch(name, 0, now)[2].label == "Frame of step 0"
    pair = play.neighbour(name, 0, 1, 0, 1, 0, *[0] * 6)
    assert "nearest training image, at RMS distance" in pair.label
    assert "Not judged" in play.findings(name)

    steps = compare.numbers_of(compare.read_runs([run])[0])["step"]
    play.start_training(run, f"--resume={run.name}", f"--max-steps={steps + 20:.0f}")
    until(lambda: play.state_of(run).startswith("Finished"))
    play.end_trainings()
    play.resume(name, 40, "steps")
    until(lambda: not play.is_training(run))
    last = compare.numbers_of(compare.read_runs([run])[0])["step"]
    assert steps + 60 <= last <= steps + 80 and play.state_of(run).startswith("Finished")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"data": "no-such"}, "no such dataset"), ({"size": 17}, "--image-size: must be one of")],
)
def test_what_train_py_refuses_is_shown_in_its_words(here, change, words):
    settings = {"data": "faces", "size": 16} | change
    name = play.start("DCGAN", *settings.values(), 5, "seconds", 1e-3, *TINY).value
    run = play.find(name)
    until(lambda: not play.is_training(run))
    assert play.state_of(run).startswith("Stopped: ") and words in play.state_of(run)
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
    assert "step 1<" in play.one_step(plane)[0]
    playing = play.play(plane)
    assert [re.search(r"step (\d+)", next(playing)[0])[1] for _ in range(2)] == [
        "4",
        "7",
    ] or plane.step > 2
    play.tune(plane, kind, 9, 20, 1, 0.5, 2)
    assert (
        plane.speed == 9 and plane.config.lr == 1e20 and plane.config.k == 1
        if "simple" in kind
        else plane.config.n_critic == 1
    )
    with pytest.raises(gr.Error, match="diverged"):
        list(islice(playing, 50))


def test_comparison_is_that_of_compare(here):
    names = [f"results/{model}/quick-faces" for model in ("WGAN", "DCGAN")]
    table, file, gallery, figure = play.compared(names)
    found = compare.read_runs([here / name for name in names])
    assert (table.iloc[:, 2:].to_numpy() == compare.table(found).to_numpy()).all()
    assert open(file).readline().strip() == "group,name,WGAN quick-faces,DCGAN quick-faces"
    assert len(figure.data) == len(compare.figure(found).data) and not gallery.visible
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
        env=ENVIRONMENT,
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
        yield driver


def test_in_a_browser_each_tab_works_and_nothing_foreign_is_asked_for(served, browser, project):
    def visible(css, text=""):
        found = browser.find_elements(By.CSS_SELECTOR, css)
        return [one for one in found if one.is_displayed() and text in one.text]

    def click(css, text):
        until(lambda: visible(css, text))[0].click()

    def source(number):
        found = visible("img")
        return found[number].get_attribute("src") if len(found) > number else None

    browser.get(served.url)
    before = until(lambda: source(1))
    slider = until(lambda: visible("input[type=range]"))[2]
    browser.execute_script(
        "arguments[0].value = 3; arguments[0].dispatchEvent(new Event('input'))", slider
    )
    until(lambda: source(1) != before)

    click("button[role=tab]", "Plane")
    click("button", "Play")
    until(lambda: re.search(r"step [1-9]\d", visible(".plane")[0].text))
    click("button", "Pause")
    time.sleep(1)
    text = visible(".plane")[0].text
    time.sleep(0.5)
    assert visible(".plane")[0].text == text

    click("button[role=tab]", "Train")
    box = until(lambda: visible("textarea, input[type=text]"))[0]
    box.clear()
    box.send_keys(str(project / "tiny.zip"))
    click("button", "Settings")
    batch = until(lambda: visible("input[aria-label=batch_size], input[type=number]"))[3]
    batch.clear()
    batch.send_keys("8")
    click("button", "Start")
    until(lambda: visible("span, p", "In training"))
    browser.refresh()  # a new page finds it
    click("button[role=tab]", "Train")
    until(lambda: visible("span, p", "In training"))
    click("button", "Pause")
    until(lambda: visible("span, p", "Paused"))

    click("button[role=tab]", "Compare")
    until(lambda: visible(".main-svg") and visible("td", "swd"))
    logs = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [
        m["params"]["request"]["url"] for m in logs if m["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith((served.url, "data:", "blob:"))] == []
    assert browser.get_log("browser") == []


def test_a_busy_port_is_said_in_one_line(served, project):
    port = served.url.split(":")[2].strip("/")
    command = [sys.executable, "play.py", "--no-browser", f"--port={port}"]
    done = subprocess.run(command, cwd=project, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 1 and re.fullmatch(r"play.py: error: .*port.*\n", done.stderr)
