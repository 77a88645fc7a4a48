"""Open a page in the browser that explores, trains, shows and compares GANs.

Examples:
    python play.py                            on http://127.0.0.1:7860, for this machine alone
    python play.py --port 8000 --no-browser   only print the address

Nothing is fetched from elsewhere. Trainings are the folders' own train.py, each in a process of
its own: closing the page does not end them, ending this program saves and ends them.
"""

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import lru_cache, wraps
from html import escape
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import IO, Any, NamedTuple

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is on by default, and read on import

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

import compare
import doctor
import generate
import plane as planes
import runs
from make_gif import write_animation
from runs import MODELS, TOP, InputError

COUNT, DIRECTIONS = 16, 6  # images on a sheet; sliders
PIXELS = {"interactive": False, "format": "png", "elem_classes": "pixels", "buttons": ["download"]}
LOADING = Lock()  # importing a folder's files is not for two threads at once
SETTINGS = {  # of a training: the models that have it, its start and its meaning
    "lr": (MODELS, 2e-4, "Size of a step. Too large: losses jump; too small: images stay grey."),
    "width": (MODELS, 32, "Feature maps of both networks: wider is better and slower."),
    "batch_size": (MODELS, 64, "Images in an update. Larger is steadier and slower."),
    "seed": (MODELS, 0, "The same seed gives the same run."),
    "n_critic": (("WGAN", "WGAN-GP"), 5, "Critic updates for each of the generator's."),
    "clip_value": (("WGAN",), 0.01, "Bound of the critic's weights."),
    "lambda_gp": (("WGAN-GP",), 10, "Weight of the penalty that keeps slopes near 1."),
}


class Training(NamedTuple):
    """A train.py that this program has started, and the file of its complaints."""

    process: subprocess.Popen
    errors: IO


TRAININGS: dict[Path, Training] = {}  # by run folder; every page sees them all


def plainly(function: Callable) -> Callable:
    """Show bad input as a sentence in the page."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (InputError, OSError) as error:
            raise gr.Error(escape(str(error)), print_exception=False) from None

    return call


def run_folders() -> dict[str, Path]:
    """Return the run folders, the newest first, by what the page calls them."""
    patterns = ("*/tensorboard/runs/*/run.json", "race/*/*/run.json", "results/*/*/run.json")
    found = [[file.parent for file in TOP.glob(pattern)] for pattern in patterns]
    found[0] += [run for run in TRAININGS if run not in found[0]]  # not yet on the disk
    order = [sorted(part, key=lambda run: run.name, reverse=True) for part in found]
    names = {run: str(run.relative_to(TOP).as_posix()) for part in order for run in part}
    return {name.replace("/tensorboard/runs/", "/"): run for run, name in names.items()}


def find(name: str | None) -> Path:
    """Find a run, or included weights, by what the page calls it: nothing else is ever read."""
    known = run_folders() | {
        f"{m} (included)": TOP / f"assets/weights/{m}.safetensors" for m in MODELS
    }
    if name not in known:
        raise InputError(f"{name}: no such run" if name else "Choose a run first.")
    return known[name]


# ---- Explore ----


def sources() -> list[str]:
    """Return what has a generator."""
    own = [n for n, run in run_folders().items() if (run / "generator.safetensors").is_file()]
    return [f"{model} (included)" for model in reversed(MODELS)] + own


@lru_cache(8)
def load(file: Path, changed: float) -> tuple[torch.nn.Module, dict, Tensor]:
    """Load a generator, what its file says about it, and its directions (DIRECTIONS, z_dim).

    Along the first, its first layer changes most, and so on: they are the right singular
    vectors of that layer's weight (Shen and Zhou 2021, arXiv:2007.06600, SeFa).
    """
    with LOADING:
        generator, about = runs.load_generator(file)
    first = next(generator.parameters()).detach()  # (units, z_dim) or (z_dim, maps, 4, 4)
    weight = first if first.dim() == 2 else first.flatten(1).T
    return generator, about, torch.linalg.svd(weight, full_matrices=False).Vh[:DIRECTIONS]


def load_named(name: str) -> tuple[torch.nn.Module, dict, Tensor]:
    """Load what the page calls `name`, anew if it has changed."""
    file = find(name)
    file = file / "generator.safetensors" if file.is_dir() else file
    return load(file, file.stat().st_mtime if file.is_file() else 0)


def noise(about: dict, seed: float, truncation: float) -> Tensor:
    """Return the z of a sheet, (COUNT, z_dim), drawn towards 0 by truncation."""
    if not 0 <= (seed or 0) < 2**63:
        raise InputError(f"Seed {seed:g}: must be a whole number from 0 up.")
    zs = generate.noise(int(seed or 0), about["arguments"]["z_dim"])
    return torch.stack(list(islice(zs, COUNT))) * truncation


@plainly
def sheet(name: str, seed: float, truncation: float) -> Image.Image:
    """Draw the images of a seed."""
    generator, about, _ = load_named(name)
    images = next(generate.draw(generator, noise(about, seed, truncation), COUNT))
    return generate.grid(images, 4, side=560)


def chosen(name, seed, truncation, first, second, blend, *moves) -> tuple[torch.nn.Module, Tensor]:
    """Return the generator and z (z_dim,): two images of the sheet blended, then moved."""
    generator, about, directions = load_named(name)
    z = noise(about, seed, truncation)[[int(first or 0) % COUNT, int(second or 0) % COUNT]]
    if first != second and blend:
        z = generate.round_trip(z, 200)[round(100 * blend)][None]  # the second is half-way round
    return generator, z[0] + torch.tensor(moves, dtype=z.dtype) @ directions[: len(moves)]


@plainly
def draw(*choice: Any) -> Image.Image:
    """Draw the image that the sliders choose."""
    generator, z = chosen(*choice)
    return generate.grid(next(generate.draw(generator, [z], 1)), 1, side=560, gap=0)


@plainly
def pick(
    picture: Any, which: str, first: float, second: float, event: gr.SelectData
) -> tuple[float, float]:
    """Take the image of the sheet that was clicked as the first or the second."""
    (x, y), (height, width) = event.index, picture.shape[:2]
    clicked = int(4 * y // height * 4 + 4 * x // width)
    return (clicked, second) if which == "first" else (first, clicked)


@plainly
def walk(name: str, seed: float, truncation: float, first: float) -> str:
    """Write a loop through the first image and the five after it as a GIF."""
    generator, about, _ = load_named(name)
    stops = noise(about, seed, truncation).roll(-int(first or 0), 0)[:6]
    images = [
        image
        for part in generate.draw(generator, generate.round_trip(stops, 72), 24)
        for image in part
    ]
    frames = [generate.grid(image[None], 1, side=320, gap=0) for image in images]
    file = Path(tempfile.mkdtemp()) / "walk.gif"
    write_animation(file, frames, [50] * len(frames), 10)
    return str(file)


@plainly
def neighbours(*choice: Any) -> tuple[Image.Image, str]:
    """Draw the chosen image beside the nearest image that the run was trained on."""
    run = find(choice[0])
    if run.is_file() or not (run / str(runs.read_facts(run).get("cache"))).is_file():
        raise InputError(f"{choice[0]}: the images it was trained on are not on this machine.")
    generator, z = chosen(*choice)
    with LOADING:
        training, _ = runs.load_images(run)
    image = next(generate.draw(generator, [z], 1))
    found, distance = generate.nearest(image, training)
    pair = generate.grid(
        torch.cat([torch.from_numpy(image), torch.from_numpy(training[found])]).numpy(), 2, side=560
    )
    return pair, f"Right: the nearest training image. RMS distance {distance[0]:.1f} of 255."


def explore_tab(page: gr.Blocks) -> None:
    """Lay out the first tab."""
    with gr.Row():
        with gr.Column():
            name = gr.Dropdown(sources(), value=sources()[0], label="Generator")
            with gr.Row():
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
                truncation = gr.Slider(0, 1, 1, label="Truncation (lower: more typical)")
            images = gr.Image(label="Images of this seed: click one", **PIXELS)
            with gr.Row():
                which = gr.Radio(["first", "second"], value="first", label="A click chooses")
                first = gr.Number(0, precision=0, minimum=0, maximum=15, label="First image")
                second = gr.Number(1, precision=0, minimum=0, maximum=15, label="Second image")
        with gr.Column():
            image = gr.Image(label="The image that the sliders make", **PIXELS)
            blend = gr.Slider(0, 1, 0, label="From the first to the second, along a great circle")
            with gr.Row():
                labels = [f"Direction {i + 1}" for i in range(DIRECTIONS)]
                moves = [gr.Slider(-6, 6, 0, label=label, min_width=150) for label in labels]
            with gr.Row():
                centre = gr.Button("Reset directions")
                loop, near = gr.Button("Walk"), gr.Button("Nearest training image")
            walked = gr.Image(label="Walk", type="filepath", visible=False, **PIXELS)
            pair = gr.Image(label="The image, and the nearest it was trained on", **PIXELS)
            said = gr.Markdown()
    base = [name, seed, truncation]
    choice = [*base, first, second, blend, *moves]
    quick = {"show_progress": "hidden", "trigger_mode": "always_last"}
    gr.on([one.change for one in base], sheet, base, images, api_name="sheet", **quick)
    gr.on([one.change for one in choice], draw, choice, image, api_name="draw", **quick)
    images.select(pick, [images, which, first, second], [first, second], api_name="pick")
    centre.click(lambda: [0] * DIRECTIONS, None, moves, api_name="reset_directions")
    loop.click(walk, [*base, first], walked, api_name="walk")
    near.click(neighbours, choice, [pair, said], api_name="neighbours")
    opened = page.load(lambda: gr.Dropdown(sources()), None, name, api_name="sources")
    opened.then(sheet, base, images).then(draw, choice, image)


# ---- Train ----


def start_training(model: str, flags: list[str], run: Path) -> None:
    """Start a folder's train.py in a session of its own: Ctrl-C here does not reach it twice."""
    command = [sys.executable, str(TOP / model / "train.py"), f"--runs-dir={run.parent}", *flags]
    errors, none = tempfile.TemporaryFile("w+", errors="replace"), subprocess.DEVNULL
    streams = {"stdin": none, "stdout": none, "stderr": errors}
    TRAININGS[run] = Training(subprocess.Popen(command, **streams, start_new_session=True), errors)


def is_training(run: Path) -> bool:
    """Tell whether this program trains a run now."""
    return run in TRAININGS and TRAININGS[run].process.poll() is None


def images_flag(data: str, folder: str, upload: str | None) -> str:
    """Return --data for drawn faces, a folder, or a zip file, which is kept for resuming."""
    if data == "Drawn faces":
        return "--data=faces"
    if data == "Folder":
        path = Path(folder.strip()).expanduser().absolute()
        if not folder.strip() or not path.is_dir():
            raise InputError(f"{folder or 'Folder'}: there is no such folder of images.")
        return f"--data={path}"
    if not upload:
        raise InputError("Choose a zip file of images first.")
    kept = TOP / "data" / "uploads" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{Path(upload).name}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    return f"--data={shutil.copy(upload, kept)}"


@plainly
def start(
    model: str,
    data: str,
    folder: str,
    upload: str | None,
    size: int,
    most: float,
    unit: str,
    *own: Any,
) -> dict:
    """Start a training with the settings of the page."""
    if model not in MODELS:
        raise InputError(f"{model}: no such model.")
    run = TOP / model / "tensorboard" / "runs" / f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"[:-3]
    flags = [
        "--config=quick.json",
        f"--name={run.name}",
        "--epochs=1000000",
        f"--image-size={size}",
    ]
    flags += [images_flag(data, folder, upload), f"--max-{unit}={most:g}"]
    for (name, (models, *_)), value in zip(SETTINGS.items(), own, strict=True):
        names = ("g-width", "d-width") if name == "width" else (name.replace("_", "-"),)
        flags += [f"--{flag}={value:g}" for flag in names if model in models]
    start_training(model, flags, run)
    return choose(run)


def choose(run: Path | None = None) -> dict:
    """Update the list of runs; choose one, otherwise the one in training or the newest."""
    known = {name: path for name, path in run_folders().items() if path.parts[-4] in MODELS}
    active = [
        name for name, path in known.items() if path == run or (not run and is_training(path))
    ]
    return gr.Dropdown(list(known), value=next(iter([*active, *known]), None))


@plainly
def pause(name: str) -> None:
    """Ask a training to save and end."""
    run = find(name)
    if not is_training(run):
        raise InputError(f"{name} is not being trained from this page.")
    TRAININGS[run].process.terminate()


@plainly
def resume(name: str, most: float, unit: str) -> None:
    """Resume a training; one that is finished goes on for as long again as the page says."""
    run, limits = find(name), []
    if is_training(run):
        raise InputError(f"{name} is being trained already.")
    if runs.read_facts(run).get("finished"):
        done = compare.numbers_of(compare.read_runs([run])[0])
        other = "steps" if unit == "seconds" else "seconds"
        total = done["step" if unit == "steps" else "seconds"] + most
        limits = ["--epochs=1000000", f"--max-{unit}={total:.0f}", f"--max-{other}=0"]
    start_training(run.parts[-4], [f"--resume={run.name}", *limits], run)


def progress(run: Path) -> tuple[str, list[dict]]:
    """Say in a line how a training stands; return its rows of metrics.csv as well."""
    if not (run / "run.json").is_file():
        state = "Starting: reading the images"
        return (state, []) if is_training(run) else (f"Failed: {complaint(run)}", [])
    one = compare.read_runs([run])[0]
    rows = one.rows.dropna().to_dict("records")
    state = "Finished" if one.facts.get("finished") else "Paused"
    if is_training(run):
        state = "Training"
    elif run in TRAININGS and 0 < TRAININGS[run].process.returncode < 128:
        state = f"Stopped: {complaint(run)}"
    if len(rows) < 2:
        return state, rows
    last, before = rows[-1], rows[-2]
    took, steps = last["seconds"] - before["seconds"], last["step"] - before["step"]
    words = [state, f"step {last['step']:,.0f}"]
    if state == "Training" and took > 0:
        setting = one.settings.get
        left = (
            [(setting("max_steps") - last["step"]) * took / steps] if setting("max_steps") else []
        )
        left += [setting("max_seconds") - last["seconds"]] if setting("max_seconds") else []
        words += [f"{(last['images'] - before['images']) / took:,.0f} images a second"]
        words += [f"{timedelta(seconds=max(0, round(min(left))))} left"] if left else []
    return " · ".join(words), rows


def complaint(run: Path) -> str:
    """Return the last line of what a training complained about."""
    if run not in TRAININGS:
        return "it has no run.json"
    errors = TRAININGS[run].errors
    errors.seek(0)
    line = (errors.read().strip().splitlines() or ["no reason given"])[-1]
    return line.partition(": error: ")[2] or line


def curves(model: str, rows: list[dict]) -> str:
    """Draw the columns of metrics.csv: HTML."""
    if not rows:
        return ""
    second, rest = "discriminator", ["wasserstein", "penalty", "slope", "clipped"]
    second = "critic" if "wasserstein" in rows[0] else second
    wanted = [("Losses", {"loss_d": second, "loss_g": "generator"})]
    if "d_real" in rows[0]:
        wanted += [("Probabilities", {"d_real": "D(x), real", "d_fake": "D(G(z)), generated"})]
    wanted += [(name.capitalize(), {name: ""}) for name in rest if name in rows[0]]
    thin = rows[:: len(rows) // planes.ROWS + 1]
    return (
        f'<div class="plane">{"".join(planes.chart(t, thin, names) for t, names in wanted)}</div>'
    )


@plainly
def watch(name: str | None, position: int, seen: tuple) -> Any:
    """Return how a run stands, its frame, the slider and its curves, if anything is new."""
    if not name:
        return "No run yet. Press Start.", None, gr.skip(), "", ()
    run = find(name)
    state, rows = progress(run)
    frames = sorted((run / "frames").glob("[0-9]*.png"), key=lambda frame: int(frame.stem))
    now = (name, state, len(rows), len(frames), position)
    if now == seen:
        return gr.skip()
    last = max(1, len(frames) - 1)
    follow = not seen or seen[0] != name or position >= seen[3] - 1
    at = min(last if follow else int(position), len(frames) - 1)
    frame = None
    if frames:
        with Image.open(frames[at]) as file:
            frame = file.convert("RGB")
    label = f"Frame: step {int(frames[at].stem):,}" if frames else "Frame"
    slider = gr.Slider(0, last, max(0, at), step=1, label=label)
    model = run.parts[-4]
    return f"**{state}**", frame, slider, curves(model, rows), (*now[:4], max(0, at))


@plainly
def findings(name: str) -> str:
    """Say what doctor.py finds: Markdown."""
    run = find(name)
    if not (run / "run.json").is_file():
        return ""
    with LOADING:
        found, unjudged = doctor.examine(run)
    text = "" if found else "No problems found" + " in what could be judged." * bool(unjudged)
    for one in found:
        text += f"**{one.name.capitalize()}.** {one.summary}\n\n"
        text += "".join(f"- evidence: {line}\n" for line in one.evidence)
        text += "".join(f"- try: {line}\n" for line in one.advice)
        text += f"- source: {one.source}\n\n"
    return text + "".join(f"\n\nNot judged: {name}: {why}." for name, why in unjudged.items())


def defaults(model: str) -> list[dict]:
    """Return the settings that a model has, with the values of its quick.json."""
    quick = runs.read_json(TOP / model / "quick.json")
    found = []
    for name, (models, value, _) in SETTINGS.items():
        value = quick.get("g_width" if name == "width" else name, value)
        found.append(gr.Number(value, visible=model in models))
    return found


def train_tab(page: gr.Blocks) -> None:
    """Lay out the second tab."""
    with gr.Row():
        with gr.Column(scale=2):
            model = gr.Radio(list(MODELS), value="DCGAN", label="Model")
            data = gr.Radio(
                ["Drawn faces", "Folder", "Zip file"], value="Drawn faces", label="Images"
            )
            folder = gr.Textbox(label="Path of the folder on this machine", visible=False)
            upload = gr.File(label="Zip file of images", file_types=[".zip"], visible=False)
            with gr.Row():
                size = gr.Radio([16, 32, 64, 128], value=32, label="Side in pixels")
                most = gr.Number(300, minimum=1, label="Length")
                unit = gr.Radio(["seconds", "steps"], value="seconds", label="Unit")
            with gr.Accordion("Settings", open=False):
                own = [
                    gr.Number(value, label=name, info=info, visible="DCGAN" in models)
                    for name, (models, value, info) in SETTINGS.items()
                ]
            with gr.Row():
                begin = gr.Button("Start", variant="primary")
                halt, again = gr.Button("Pause"), gr.Button("Resume")
        with gr.Column(scale=3):
            name = gr.Dropdown([], label="Run")
            said = gr.Markdown("No run yet. Press Start.")
            frame = gr.Image(label="What the generator makes of the same noise", **PIXELS)
            position = gr.Slider(0, 1, 0, step=1, label="Frame")
            drawn, examined = gr.HTML(), gr.Markdown()
    seen = gr.State(())
    model.change(defaults, model, own, api_name="defaults")
    data.change(
        lambda kind: [gr.update(visible=kind == "Folder"), gr.update(visible=kind == "Zip file")],
        data,
        [folder, upload],
        api_name="images",
    )
    begin.click(
        start, [model, data, folder, upload, size, most, unit, *own], name, api_name="start"
    )
    halt.click(pause, name, api_name="pause")
    again.click(resume, [name, most, unit], api_name="resume")
    watched = [said, frame, position, drawn, seen]
    live = {"show_progress": "hidden", "trigger_mode": "always_last"}
    gr.on(
        [gr.Timer(1).tick, name.change, position.input],
        watch,
        [name, position, seen],
        watched,
        api_name="watch",
        **live,
    )
    gr.on([gr.Timer(20).tick, name.change], findings, name, examined, api_name="findings", **live)
    page.load(choose, None, name, api_name="runs").then(defaults, model, own)


# ---- In the plane ----

HINTS = {
    "kind": "WGAN-GP covers all peaks. The simple GAN jumps from one to the next.",
    "speed": "Generator updates for each picture. At 1 you can follow a single point.",
    "lr": "Above -2 the points leave the picture; below -4 hardly anything moves.",
    "n_critic": "Updates of the second network for each of the generator's. At 1 its landscape lags behind.",
    "clip": "Small: weights pile up at the clamp, and slopes and arrows vanish.",
    "penalty": "0: watch the slopes run away. 10: the critic is held back, and the points overshoot.",
    "width": "Units in each hidden layer. With 4 the critic cannot tell the peaks apart.",
}
KINDS = {  # of networks and losses: the folder, its loss, and a start that learns in a minute
    "simple GAN": ("simpleGAN", False, 1e-3, 1),
    "simple GAN, minimax": ("simpleGAN", True, 1e-3, 1),
    "WGAN": ("WGAN", False, 2e-4, 5),
    "WGAN-GP": ("WGAN-GP", False, 1e-3, 5),
}


def fields_of(kind: str, lr: float, n_critic: int, clip: float, penalty: float) -> dict:
    """Return fields of a Config."""
    own = {"lr": 10**lr, "n_critic": int(n_critic), "clip_value": clip, "lambda_gp": penalty}
    return own | {"minimax": KINDS[kind][1]}


def proper(kind: str) -> list[dict]:
    """Return the settings that a model has, with values from which it learns."""
    lr, n_critic = KINDS[kind][2:]
    with_clip, with_penalty = kind == "WGAN", kind == "WGAN-GP"
    values = [math.log10(lr), n_critic, 0.1, 1]
    visible = [True, True, with_clip, with_penalty]
    return [gr.Slider(value=v, visible=w) for v, w in zip(values, visible, strict=True)]


@plainly
def tune(plane: planes.Plane, kind: str, speed: int, *own: float) -> None:
    """Change settings while it runs."""
    planes.tune(plane, int(speed), **fields_of(kind, *own))


@plainly
def reset(shape: str, kind: str, width: int, speed: int, *own: float) -> tuple:
    """Start anew."""
    if kind not in KINDS:
        raise InputError(f"{kind}: no such model.")
    settings = fields_of(kind, *own)
    plane = planes.make_plane(shape, KINDS[kind][0], int(width), **settings)
    plane.speed = int(speed)
    return plane, planes.picture(plane), planes.charts(plane)


@plainly
def one_step(plane: planes.Plane) -> tuple[str, str]:
    """Take one generator update."""
    planes.advance(plane, 1)
    return planes.picture(plane), planes.charts(plane)


def play(plane: planes.Plane) -> Iterator[tuple[str, str]]:
    """Train and draw until Pause, or until the page is closed."""
    try:
        while True:
            planes.advance(plane, plane.speed, 0.06)  # seconds, for ten pictures in each
            yield planes.picture(plane), planes.charts(plane)
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None


def plane_tab(page: gr.Blocks) -> None:
    """Lay out the third tab."""
    plane = gr.State()
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            field = gr.HTML()
            with gr.Row():
                run, halt = gr.Button("Play", variant="primary"), gr.Button("Pause")
                step, anew = gr.Button("One step"), gr.Button("Reset")
        with gr.Column(scale=2, min_width=300):
            drawn = gr.HTML()
        with gr.Column(scale=2, min_width=300):
            shape = gr.Dropdown(list(planes.SHAPES), value="8 Gaussians", label="Real points")
            kind = gr.Dropdown(list(KINDS), value="WGAN-GP", label="Model", info=HINTS["kind"])
            speed = gr.Slider(1, 50, 5, step=1, label="Speed", info=HINTS["speed"])
            lr = gr.Slider(
                -5, -1, -3, step=0.1, label="Learning rate, power of ten", info=HINTS["lr"]
            )
            n_critic = gr.Slider(1, 20, 5, step=1, label="n_critic", info=HINTS["n_critic"])
            clip = gr.Slider(0.01, 1, 0.1, label="Clamp", info=HINTS["clip"], visible=False)
            penalty = gr.Slider(0, 10, 1, label="lambda", info=HINTS["penalty"])
            width = gr.Slider(4, 256, 64, step=4, label="Width", info=HINTS["width"])
    live, begin, out = [lr, n_critic, clip, penalty], [shape, kind, width, speed], [field, drawn]
    started = run.click(
        play, plane, out, api_name="play", concurrency_limit=None, show_progress="hidden"
    )
    halt.click(None, None, None, cancels=started)
    own = {"show_progress": "hidden", "cancels": started}
    step.click(one_step, plane, out, api_name="one_step", **own)
    anew.click(reset, begin + live, [plane, *out], api_name="reset", **own)
    gr.on([shape.input, width.release], reset, begin + live, [plane, *out], api_name="renew", **own)
    kind.input(proper, kind, live, api_name="proper").then(
        reset, begin + live, [plane, *out], **own
    )
    gr.on(
        [one.release for one in (speed, *live)],
        tune,
        [plane, kind, speed, *live],
        None,
        api_name="tune",
    )
    page.load(reset, begin + live, [plane, *out], show_progress="hidden", api_name="first")


# ---- Compare ----


@plainly
def compared(names: list[str]) -> tuple:
    """Return the figure, the table, the last grids and a CSV file of runs."""
    if not names:
        raise InputError("Choose at least one run.")
    found = compare.read_runs([find(name) for name in names])
    table = compare.table(found).rename_axis(["", "name"]).reset_index()
    file = Path(tempfile.mkdtemp()) / "compare.csv"
    table.to_csv(file, index=False)
    ends = [
        (run, sorted((run.path / "frames").glob("[0-9]*.png"), key=lambda f: int(f.stem)))
        for run in found
    ]
    grids = [
        (Image.open(frames[-1]), f"{run.label}, step {int(frames[-1].stem):,}")
        for run, frames in ends
        if frames
    ]
    drawn = compare.figure(found)
    return drawn, table, gr.Gallery(grids, visible=bool(grids)), str(file)


def compare_tab(page: gr.Blocks) -> None:
    """Lay out the fourth tab."""
    first = [f"results/{model}/quick-faces" for model in MODELS]
    with gr.Row():
        names = gr.Dropdown(
            list(run_folders()), value=first, multiselect=True, label="Runs", scale=4
        )
        file = gr.DownloadButton("Table as CSV", scale=1)
    drawn, table = gr.Plot(show_label=False), gr.Dataframe(interactive=False, wrap=True)
    grids = gr.Gallery(label="Last grids", columns=4, interactive=False)
    outputs = [drawn, table, grids, file]
    names.change(compared, names, outputs, api_name="compare")
    opened = page.load(lambda: gr.Dropdown(list(run_folders())), None, names, api_name="choices")
    opened.then(compared, names, outputs)


# ---- The program ----


def build() -> gr.Blocks:
    """Lay out the page."""
    tabs = {
        "Explore": explore_tab,
        "Train": train_tab,
        "In the plane": plane_tab,
        "Compare": compare_tab,
    }
    with gr.Blocks(title="GAN playground", analytics_enabled=False) as page:
        gr.Markdown("# GAN playground")
        for name, fill in tabs.items():
            with gr.Tab(name):
                fill(page)
    return page


def open_page(host: str, port: int | None, browser: bool) -> gr.Blocks:
    """Serve the page in the background."""
    torch.set_num_threads(1)  # small networks: a second thread costs more than it brings
    for model in MODELS:
        planes.train_of(model)
    page = build()
    sans, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=sans, font_mono=mono)
    server = {"server_name": host, "server_port": port, "inbrowser": browser, "quiet": True}
    server |= {"share": False, "ssr_mode": False, "prevent_thread_lock": True, "footer_links": []}
    page.launch(**server, theme=theme, css_paths=TOP / "play.css", max_file_size="2gb")
    return page


def main() -> None:
    """Serve the page until Ctrl-C, then end the trainings: each saves first."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 lets other machines in, which can then start trainings and read folders of images here",
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    args = parser.parse_args()
    for name in {"SIGTERM", "SIGHUP", "SIGBREAK"} & {*dir(signal)}:
        signal.signal(getattr(signal, name), signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="gan-playground-") as scratch:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = scratch  # goes with the program
        try:
            page = open_page(args.host, args.port, not args.no_browser)
            print(f"open {page.local_url} in a browser; Ctrl-C ends", flush=True)
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            print("ending; trainings are saved")
        finally:
            end_trainings()


def end_trainings() -> None:
    """Ask every training to save and end, and wait for it."""
    for training in TRAININGS.values():
        if training.process.poll() is None:
            training.process.terminate()
    for training in TRAININGS.values():
        training.process.wait()


if __name__ == "__main__":
    with runs.plain_errors():
        main()
