"""Open a page in the browser that explores, trains, shows and compares GANs.

Examples:
    python play.py                            the page is for this machine alone
    python play.py --port 8000 --no-browser   only print its address

Nothing is fetched from elsewhere. A training is the folder's own train.py in a process of its
own: it goes on when the page is closed. When this program ends, the training saves and ends.
"""

import argparse
import html
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache, wraps
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import IO, Any, NamedTuple

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is on by default, and read on import

import gradio as gr
import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image, ImageOps
from torch import Tensor, nn

import compare
import doctor
import generate
import plane as planes
import runs
from make_gif import write_animation
from runs import MODELS, TOP, InputError

COUNT, DIRECTIONS = 16, 6  # images on the sheet; sliders
LOADING = Lock()  # two threads must not import a folder's files at once
PIXELS = {"interactive": False, "format": "png", "elem_classes": "pixels", "buttons": ["download"]}
QUIET = {"show_progress": "hidden", "trigger_mode": "always_last"}  # for events that come often
TRAINING = {  # settings: the models that have them, their meaning
    "lr": (MODELS, "Size of a step. Too large: the losses jump. Too small: images stay gray."),
    "width": (MODELS, "Feature maps of both networks. Wider is better and slower."),
    "batch_size": (MODELS, "Images in an update. More are steadier and slower."),
    "n_critic": (MODELS[2:], "Critic updates for each of the generator's. Fewer: a weak critic."),
    "clip_value": (("WGAN",), "Bound of the critic's weights. Watch the share at the bound."),
    "lambda_gp": (("WGAN-GP",), "Weight of the gradient penalty. Watch the slopes."),
    "seed": (MODELS, "The same seed repeats the run."),
}
KINDS = {  # in the plane: the folder, whether the loss is minimax, log10 of lr, n_critic
    "simple GAN": ("simpleGAN", False, -3, 1),
    "simple GAN, minimax": ("simpleGAN", True, -3, 1),
    "WGAN": ("WGAN", False, -3.7, 5),
    "WGAN-GP": ("WGAN-GP", False, -3, 5),
}


class Training(NamedTuple):
    """A train.py that this program has started, and the file of its complaints."""

    process: subprocess.Popen
    errors: IO


TRAININGS: dict[Path, Training] = {}  # by run folder; all pages see them


def plainly(function: Callable) -> Callable:
    """Show bad input as a sentence in the page."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (InputError, OSError) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    return call


def run_folders() -> dict[str, Path]:
    """Return the run folders, the newest first, by what the page calls them."""
    patterns = ("*/tensorboard/runs/*/run.json", "race/*/*/run.json", "results/*/*/run.json")
    found = [file.parent for pattern in patterns for file in TOP.glob(pattern)]
    found = sorted({*found, *TRAININGS}, key=lambda run: run.name)
    own, recorded = (
        [run for run in found if (run.relative_to(TOP).parts[0] == "results") == kept]
        for kept in (False, True)
    )
    named = {run.relative_to(TOP).as_posix(): run for run in own[::-1] + recorded}
    return {name.replace("/tensorboard/runs/", "/"): run for name, run in named.items()}


def included() -> dict[str, Path]:
    """Return the generators that come with the repository, by what the page calls them."""
    names = [f"{model}{trained_on}" for trained_on in ("", "-celeba") for model in MODELS[::-1]]
    return {f"{name} (included)": TOP / f"assets/weights/{name}.safetensors" for name in names}


def find(name: str | None) -> Path:
    """Find a run, or included weights, by what the page calls it. Nothing else is ever read."""
    known = run_folders() | included()
    if name not in known:
        raise InputError(f"{name}: no such run." if name else "Choose a run first.")
    return known[name]


# ---- Explore ----


def sources() -> list[str]:
    """Return the names of what has a generator."""
    own = [n for n, run in run_folders().items() if (run / "generator.safetensors").is_file()]
    return [*included(), *own]


@lru_cache(8)
def load(file: Path, _changed: float) -> tuple[nn.Module, int, Tensor]:
    """Load a generator, its z_dim, and its directions, unit vectors (DIRECTIONS, z_dim).

    Along the first of them its first layer changes most: they are the right singular vectors of
    that layer's weight (SeFa, Shen and Zhou 2021, arXiv:2007.06600).
    """
    with LOADING:
        generator, about = runs.load_generator(file)
    weight = next(generator.parameters()).detach()
    weight = weight if weight.dim() == 2 else weight.flatten(1).T  # (outputs, z_dim)
    directions = torch.linalg.svd(weight, full_matrices=False).Vh[:DIRECTIONS]
    return generator, about["arguments"]["z_dim"], directions


def sheet_of(name: str, seed: float, truncation: float) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a generator, the z of a seed (COUNT, z_dim), drawn towards 0, and the directions."""
    file = find(name)
    file = file / "generator.safetensors" if file.is_dir() else file
    generator, z_dim, directions = load(file, file.stat().st_mtime)
    if not 0 <= (seed or 0) < 2**63:
        raise InputError(f"Seed {seed:g}: must be a whole number from 0 up.")
    zs = torch.stack(list(islice(generate.noise(int(seed or 0), z_dim), COUNT)))
    return generator, zs * truncation, directions


@plainly
def sheet(*base: Any) -> Image.Image:
    """Draw the images of a seed."""
    generator, zs, _ = sheet_of(*base)
    return generate.grid(next(generate.draw(generator, zs, COUNT)), 4, side=560)


def chosen(base: tuple, first: float, second: float, blend: float, *moves: float) -> np.ndarray:
    """Draw two images of the sheet blended, then moved: uint8 (1, H, W, C)."""
    generator, zs, directions = sheet_of(*base)
    z = zs[[int(first or 0) % COUNT, int(second or 0) % COUNT]]
    if blend and first != second:
        z = generate.round_trip(z, 200)[round(100 * blend)][None]  # the second is half-way round
    z = z[0] + torch.tensor(moves, dtype=z.dtype) @ directions[: len(moves)]
    return next(generate.draw(generator, [z], 1))


@plainly
def draw(*choice: Any) -> Image.Image:
    """Draw the image that the sliders make."""
    return generate.grid(chosen(choice[:3], *choice[3:]), 1, side=560, gap=0)


@plainly
def pick(
    picture: np.ndarray, which: str, first: float, second: float, event: gr.SelectData
) -> tuple:
    """Take the image of the sheet that was clicked as the first or the second."""
    (x, y), (height, width) = event.index, picture.shape[:2]
    clicked = int(4 * y // height * 4 + 4 * x // width)
    return (clicked, second) if which == "first" else (first, clicked)


@plainly
def walk(name: str, seed: float, truncation: float, first: float) -> dict:
    """Write a loop through the first image and the five after it as a GIF."""
    generator, zs, _ = sheet_of(name, seed, truncation)
    way = generate.round_trip(zs.roll(-int(first or 0), 0)[:6], 72)
    images = chain.from_iterable(generate.draw(generator, way, 24))
    frames = [generate.grid(image[None], 1, side=320, gap=0) for image in images]
    file = Path(tempfile.mkdtemp()) / "walk.gif"
    write_animation(file, frames, [50] * len(frames), 10)
    return gr.Image(str(file), label="Walk", visible=True)


@plainly
def neighbor(*choice: Any) -> dict:
    """Draw the image beside the nearest one that the run was trained on."""
    run = find(choice[0])
    if run.is_file() or not (run / str(runs.read_facts(run).get("cache"))).is_file():
        raise InputError(f"{choice[0]}: the images it was trained on are not on this machine.")
    image = chosen(choice[:3], *choice[3:])
    with LOADING:
        training, _ = runs.load_images(run)
    found, distances = generate.nearest(image, training)
    pair = generate.grid(np.concatenate([image, training[found]]), 2, side=560)
    label = f"Right: the nearest training image, at RMS distance {distances[0]:.1f} of 255"
    return gr.Image(pair, label=label, visible=True)


def explore_tab(page: gr.Blocks) -> None:
    """Lay out the first tab."""
    number = {"precision": 0, "minimum": 0, "min_width": 100}
    with gr.Row():
        with gr.Column(min_width=300):
            name = gr.Dropdown(sources(), value=sources()[0], label="Generator")
            with gr.Row():
                seed = gr.Number(0, label="Seed", **number)
                truncation = gr.Slider(0, 1, 1, label="Truncation", info="Less: more typical.")
            images = gr.Image(label="Images of this seed: click one", **PIXELS)
            with gr.Row():
                which = gr.Radio(["first", "second"], value="first", label="A click chooses")
                first = gr.Number(0, maximum=COUNT - 1, label="First image", **number)
                second = gr.Number(1, maximum=COUNT - 1, label="Second image", **number)
        with gr.Column(min_width=300):
            image = gr.Image(label="The image that the sliders make", **PIXELS)
            blend = gr.Slider(0, 1, 0, label="From the first image to the second")
            with gr.Row():
                labels = [f"Direction {i + 1}" for i in range(DIRECTIONS)]
                moves = [gr.Slider(-6, 6, 0, label=label, min_width=150) for label in labels]
            with gr.Row():
                back, loop = (
                    gr.Button("Reset directions", min_width=90),
                    gr.Button("Walk", min_width=90),
                )
                near = gr.Button("Nearest training image", min_width=90)
            extra = gr.Image(type="filepath", visible=False, **PIXELS)
    base = [name, seed, truncation]
    choice = [*base, first, second, blend, *moves]
    gr.on([one.change for one in base], sheet, base, images, api_name="sheet", **QUIET)
    drawing = QUIET | {"queue": False}  # at once: the queue costs a third of the answer's time
    gr.on([one.change for one in choice], draw, choice, image, api_name="draw", **drawing)
    images.select(pick, [images, which, first, second], [first, second], api_name="pick")
    back.click(lambda: [0] * DIRECTIONS, None, moves, api_name="reset_directions")
    loop.click(walk, [*base, first], extra, api_name="walk")
    near.click(neighbor, choice, extra, api_name="nearest")
    page.load(lambda: gr.Dropdown(sources()), None, name, api_name="sources")
    page.load(sheet, base, images, **QUIET).then(draw, choice, image, **QUIET)


# ---- Train ----


def start_training(run: Path, *flags: str) -> None:
    """Start train.py in a session of its own: a terminal's Ctrl-C ends it once, through here."""
    command = [sys.executable, TOP / run.parts[-4] / "train.py", f"--runs-dir={run.parent}", *flags]
    errors, none = tempfile.TemporaryFile("w+", errors="replace"), subprocess.DEVNULL  # noqa: SIM115
    streams = {"stdin": none, "stdout": none, "stderr": errors}
    TRAININGS[run] = Training(subprocess.Popen(command, **streams, start_new_session=True), errors)


def is_training(run: Path) -> bool:
    """Tell whether this program trains a run now."""
    return run in TRAININGS and TRAININGS[run].process.poll() is None


def end_trainings() -> None:
    """Ask every training to save and end, and wait for it."""
    active = [training.process for run, training in TRAININGS.items() if is_training(run)]
    for process in active:
        process.terminate()
    for process in active:
        process.wait()


def choose(run: Path | None = None) -> dict:
    """Renew the list of runs; choose this one, or else one in training, or else the newest."""
    known = {name: path for name, path in run_folders().items() if "tensorboard" in path.parts}
    first = [name for name, path in known.items() if path == run or (not run and is_training(path))]
    return gr.Dropdown(list(known), value=next(iter([*first, *known]), None))


@plainly
def keep_upload(file: str) -> str:
    """Copy an uploaded zip to where it stays, for resuming, and return its path."""
    kept = TOP / "data" / "uploads" / f"{time.time_ns()}-{Path(file).name}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    return str(shutil.copy(file, kept))


@plainly
def start(model: str, data: str, size: int, most: float, unit: str, *settings: float) -> dict:
    """Start a training with the settings of the page; train.py checks them."""
    if model not in MODELS or unit not in ("seconds", "steps"):
        raise InputError(f"{model}, {unit}: no such model or unit.")
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"[:-3]
    flags = [f"--config={TOP / model / 'quick.json'}", f"--name={name}", f"--data={data}"]
    flags += [f"--image-size={size}", "--epochs=1000000", f"--max-{unit}={most}"]
    for (setting, (models, _)), value in zip(TRAINING.items(), settings, strict=True):
        names = ("g-width", "d-width") if setting == "width" else (setting.replace("_", "-"),)
        flags += [f"--{flag}={value}" for flag in names if model in models]
    run = TOP / model / "tensorboard" / "runs" / name
    start_training(run, *flags)
    return choose(run)


@plainly
def pause(name: str) -> None:
    """Ask a training to save and end."""
    run = find(name)
    if not is_training(run):
        raise InputError(f"{name} is not in training here.")
    TRAININGS[run].process.terminate()


@plainly
def resume(name: str, most: float, unit: str) -> None:
    """Resume a training; one that is finished gets so many more seconds or steps."""
    run, limits = find(name), []
    if is_training(run):
        raise InputError(f"{name} is in training already.")
    if runs.read_facts(run).get("finished"):
        column, other = ("step", "seconds") if unit == "steps" else ("seconds", "steps")
        total = round(compare.numbers_of(compare.read_runs([run])[0])[column] + most)
        limits = ["--epochs=1000000", f"--max-{unit}={total}", f"--max-{other}=0"]
    start_training(run, f"--resume={run.name}", *limits)


def state_of(run: Path) -> str:
    """Say in a line how a training stands; the numbers are the last in its log."""
    log, begun = run / "train.log", (run / "run.json").is_file()
    state = "Finished" if begun and runs.read_facts(run).get("finished") else "Paused"
    if is_training(run):
        state = "In training" if begun else "Starting: reading the images"
    elif run in TRAININGS and 0 < TRAININGS[run].process.returncode < 128:
        TRAININGS[run].errors.seek(0)
        line = (TRAININGS[run].errors.read().strip().splitlines() or ["no reason given"])[-1]
        state = f"Stopped: {line.partition(': error: ')[2] or line}"
    elif (run / ".lock").is_file():  # held by its train.py
        try:
            with FileLock(run / ".lock", timeout=0):
                pass
        except Timeout:
            state = "In training by another program"
    lines = log.read_text("utf-8", "replace").splitlines() if log.is_file() else []
    steps = [line for line in lines if line.startswith("step ")]
    return " · ".join([state, *steps[-1:]])


def curves(run: Path) -> str:
    """Draw the columns of metrics.csv: HTML."""
    rows = compare.read_runs([run])[0].rows.dropna().to_dict("records")
    rows = rows[:: len(rows) // planes.ROWS + 1]
    if not rows:
        return ""
    second = "critic" if "wasserstein" in rows[0] else "discriminator"
    charts = {"Losses": {"loss_d": second, "loss_g": "generator"}}
    if "d_real" in rows[0]:
        charts["Probabilities"] = {"d_real": "D(x), real", "d_fake": "D(G(z)), generated"}
    single = ("wasserstein", "penalty", "slope", "clipped")
    charts |= {name.capitalize(): {name: ""} for name in single if name in rows[0]}
    drawn = (planes.chart(title, rows, names) for title, names in charts.items())
    return f'<div class="plane">{"".join(drawn)}</div>'


@plainly
def watch(name: str | None, position: float, seen: tuple) -> Any:
    """Return how a run stands, a frame, the slider and the curves, if anything is new.

    `seen` is what the page shows: a slider at its end follows the newest frame.
    """
    if not name:
        return gr.skip()
    run = find(name)
    state, frames = state_of(run), runs.frames_of(run) if runs.has_frames(run) else []
    now = (name, state, len(frames), position)
    if now == seen:
        return gr.skip()
    if not frames:
        return state, None, gr.skip(), "", now
    last = len(frames) - 1
    at = int(position) if seen[:1] == (name,) and position < seen[2] - 1 else last
    with Image.open(frames[at]) as file:
        frame = ImageOps.scale(file.convert("RGB"), max(1, 600 // file.width), 0)  # 0: nearest
    slider = gr.Slider(0, max(1, last), at, step=1, label=f"Frame of step {int(frames[at].stem):,}")
    return state, frame, slider, curves(run), (*now[:3], at)


@plainly
def findings(name: str | None) -> str:
    """Return what doctor.py says of a run: HTML."""
    if not name or not (find(name) / "run.json").is_file():
        return ""
    with LOADING:
        return f'<pre class="report">{html.escape(doctor.report(find(name)))}</pre>'


def defaults(model: str) -> list[dict]:
    """Return the settings that a model has, with the values of its quick.json and train.py."""
    quick, config = runs.read_json(TOP / model / "quick.json"), planes.train_of(model).Config
    fields = {name: "g_width" if name == "width" else name for name in TRAINING}
    values = [quick.get(field, getattr(config, field, 1)) for field in fields.values()]
    shown = [model in models for models, _ in TRAINING.values()]
    return [gr.Number(value, visible=one) for value, one in zip(values, shown, strict=True)]


def train_tab(page: gr.Blocks) -> None:
    """Lay out the second tab."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            model = gr.Radio(list(MODELS), value="DCGAN", label="Model")
            about = "faces (drawn), or the path of a folder or a zip file on this machine"
            data = gr.Textbox("faces", label="Images", info=about)
            upload = gr.UploadButton("Upload a zip file of images", file_types=[".zip"], size="sm")
            with gr.Row():
                size = gr.Dropdown([16, 32, 64, 128], value=32, label="Pixels", min_width=80)
                most = gr.Number(300, minimum=1, label="Train for", min_width=80)
                unit = gr.Dropdown(["seconds", "steps"], label="Unit", min_width=100)
            with gr.Accordion("Settings", open=False):
                settings = [gr.Number(label=k, info=info) for k, (_, info) in TRAINING.items()]
            with gr.Row():
                begin = gr.Button("Start", variant="primary", min_width=80)
                halt, again = gr.Button("Pause", min_width=80), gr.Button("Resume", min_width=80)
        with gr.Column(scale=3, min_width=300):
            name = gr.Dropdown([], label="Run")
            state = gr.Markdown("No run yet. Press Start.")
            frame = gr.Image(label="Images of the same noise, as they develop", **PIXELS)
            position = gr.Slider(0, 1, 0, step=1, label="Frame")
            drawn, said, seen = gr.HTML(), gr.HTML(), gr.State(())
    model.change(defaults, model, settings, api_name="defaults", **QUIET)
    upload.upload(keep_upload, upload, data, api_name="upload")
    begin.click(start, [model, data, size, most, unit, *settings], name, api_name="start")
    halt.click(pause, name, api_name="pause")
    again.click(resume, [name, most, unit], api_name="resume")
    often = [gr.Timer(1).tick, name.change, position.input]
    shown = [state, frame, position, drawn, seen]
    gr.on(often, watch, [name, position, seen], shown, api_name="watch", **QUIET)
    gr.on([gr.Timer(20).tick, name.change], findings, name, said, api_name="findings", **QUIET)
    page.load(choose, None, name, api_name="runs")
    page.load(defaults, model, settings, **QUIET)


# ---- In the plane ----


def fields_of(kind: str, lr: float, n_critic: float, clip: float, penalty: float) -> dict:
    """Return fields of a Config."""
    own = {"lr": 10**lr, "n_critic": int(n_critic), "clip_value": clip, "lambda_gp": penalty}
    return own | {"minimax": KINDS[kind][1]}


def proper(kind: str) -> list[dict]:
    """Return the sliders of a model, at values with which it learns."""
    values = [*KINDS[kind][2:], 0.1, 1]
    shown = [True, True, kind == "WGAN", kind == "WGAN-GP"]
    return [gr.Slider(value=v, visible=one) for v, one in zip(values, shown, strict=True)]


@plainly
def reset(shape: str, kind: str, width: float, speed: float, *live: float) -> tuple:
    """Start anew."""
    plane = planes.make_plane(shape, KINDS[kind][0], int(width), **fields_of(kind, *live))
    plane.speed = int(speed)
    return plane, planes.picture(plane), planes.charts(plane)


def ready(plane: planes.Plane | None) -> planes.Plane:
    """Return the training of a page, unless the page is still opening."""
    if plane is None:
        raise InputError("The page is still opening. Try again in a moment.")
    return plane


@plainly
def tune(plane: planes.Plane, kind: str, speed: float, *live: float) -> None:
    """Change settings while it runs."""
    planes.tune(ready(plane), int(speed), **fields_of(kind, *live))


@plainly
def one_step(plane: planes.Plane) -> tuple[str, str]:
    """Take one generator update."""
    planes.advance(ready(plane), 1)
    return planes.picture(plane), planes.charts(plane)


def play(plane: planes.Plane) -> Iterator[tuple[str, str]]:
    """Train and draw until Pause, or until the page is closed."""
    try:
        while True:
            planes.advance(ready(plane), plane.speed, seconds=0.02)  # for ten pictures a second
            yield planes.picture(plane), planes.charts(plane)
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None


def plane_tab(page: gr.Blocks) -> None:
    """Lay out the third tab: each setting says what to look for."""
    plane = gr.State()
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            field = gr.HTML()
            with gr.Row():
                small = {"size": "md", "min_width": 60}
                go = gr.Button("Play", variant="primary", **small)
                halt, step = gr.Button("Pause", **small), gr.Button("Step", **small)
                anew = gr.Button("Reset", **small)
        with gr.Column(scale=2, min_width=300):
            drawn = gr.HTML()
        with gr.Column(scale=2, min_width=300):
            info = "WGAN-GP covers all peaks; the simple GAN jumps from some to others."
            shape = gr.Dropdown(list(planes.SHAPES), label="Real points")
            kind = gr.Dropdown(list(KINDS), value="WGAN-GP", label="Model", info=info)
            info = "Generator updates for each picture. At 1 you can follow single points."
            speed = gr.Slider(1, 50, 5, step=1, label="Speed", info=info)
            info = "Above -2 the points leave the picture; below -4 hardly anything moves."
            lr = gr.Slider(-5, -1, -3, step=0.1, label="Learning rate, log10", info=info)
            info = "Updates of the second network for one of the generator. At 1 it lags behind."
            n_critic = gr.Slider(1, 20, 5, step=1, label="n_critic", info=info)
            info = "Small: weights gather at the clamp, and slopes and arrows vanish."
            clip = gr.Slider(0.01, 1, 0.1, label="Clamp", info=info, visible=False)
            info = "0: watch the slopes run away. 10: watch the points overshoot."
            penalty = gr.Slider(0, 10, 1, label="lambda", info=info)
            info = "Units in each layer. With 4, the landscape cannot have eight peaks."
            width = gr.Slider(4, 256, 64, step=4, label="Width", info=info)
    live, out = [lr, n_critic, clip, penalty], [plane, field, drawn]
    begin, own = [shape, kind, width, speed, *live], {"show_progress": "hidden"}
    playing = go.click(play, plane, out[1:], api_name="play", concurrency_limit=None, **own)
    own |= {"cancels": playing}
    halt.click(None, cancels=playing)
    step.click(one_step, plane, out[1:], api_name="one_step", **own)
    gr.on([anew.click, shape.input, width.release], reset, begin, out, api_name="reset", **own)
    kind.input(proper, kind, live, api_name="proper", **own).then(reset, begin, out)
    moved = [one.release for one in (speed, *live)]
    gr.on(moved, tune, [plane, kind, speed, *live], api_name="tune", **QUIET)
    page.load(reset, begin, out, api_name="plane", **QUIET)


# ---- Compare ----


@plainly
def compared(names: list[str]) -> tuple:
    """Return the table of runs, a CSV file of it, the last grids and the curves."""
    found = compare.read_runs([find(name) for name in names or [None]])
    file = Path(tempfile.mkdtemp()) / "compare.csv"
    compare.settings_and_numbers(found).to_csv(file, index=False)
    with_frames = [run for run in found if runs.has_frames(run.path)]
    last = [(runs.frames_of(run.path)[-1], run.label) for run in with_frames]
    grids = [(Image.open(frame), f"{label}, step {int(frame.stem):,}") for frame, label in last]
    gallery = gr.Gallery(grids, visible=bool(grids))
    return compare.table(found).to_html(border=0), str(file), gallery, compare.figure(found)


def compare_tab(tab: gr.Tab) -> None:
    """Lay out the fourth tab; it is slow to draw, so it is filled when it is opened."""
    first = [f"results/{model}/celeba" for model in MODELS]
    with gr.Row():
        known = list(run_folders())
        names = gr.Dropdown(
            known, value=first, multiselect=True, label="Runs", scale=4, min_width=300
        )
        file = gr.DownloadButton("Numbers as CSV", scale=1, min_width=120)
    grids = gr.Gallery(label="Last grids", columns=4, interactive=False, elem_classes="pixels")
    shown = [gr.HTML(elem_classes="table"), file, grids, gr.Plot(show_label=False)]
    names.change(compared, names, shown, api_name="compare", **QUIET)
    tab.select(lambda: gr.Dropdown(list(run_folders())), None, names, api_name="choices")
    tab.select(compared, names, shown, **QUIET)


# ---- The program ----


def serve(host: str, port: int | None, browser: bool) -> gr.Blocks:
    """Serve the page in the background."""
    torch.set_num_threads(1)  # for small networks a second thread costs more than it brings
    with gr.Blocks(title="GAN playground", analytics_enabled=False) as page:
        gr.Markdown("# GAN playground")
        for name, fill in {"Explore": explore_tab, "Train": train_tab, "Plane": plane_tab}.items():
            with gr.Tab(name):
                fill(page)
        with gr.Tab("Compare") as tab:
            compare_tab(tab)
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", **fonts)
    server = {"server_name": host, "server_port": port, "inbrowser": browser, "quiet": True}
    server |= {"share": False, "ssr_mode": False, "prevent_thread_lock": True, "footer_links": []}
    page.launch(**server, theme=theme, css_paths=TOP / "play.css", max_file_size="2gb")
    return page


def main() -> None:
    """Serve the page until Ctrl-C; then the trainings save and end."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--port", type=int, help="default: the first that is free from 7860")
    risk = "others, with 0.0.0.0, can start trainings and read images here (default: 127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", help=risk)
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    args = parser.parse_args()
    runs.heed_signals()
    for model in MODELS:
        planes.train_of(model)  # here, since two threads must not import at once
    with tempfile.TemporaryDirectory(prefix="gan-playground-") as scratch:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = scratch
        try:
            page = serve(args.host, args.port, not args.no_browser)
            print(f"open {page.local_url} in a browser; Ctrl-C ends", flush=True)
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            print("ending; trainings save")
        finally:
            end_trainings()


if __name__ == "__main__":
    with runs.plain_errors():
        main()
