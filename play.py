"""Open a page in the browser that explores, trains, shows and compares GANs.

Examples:
    python play.py                            the page is for this machine alone
    python play.py --port 8000 --no-browser   only print its address

Nothing is fetched from elsewhere. A training is the folder's own train.py in a process of its
own: it goes on when the page is closed. When this program ends, the training saves and ends.
Below come what all tabs share, Explore, Train, Plane, Compare, and the program.
"""

import base64
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, partial, wraps
from inspect import isgeneratorfunction
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import runs

if __name__ == "__main__":  # --help and wrong flags are answered before imports that take seconds
    parser = ArgumentParser(None, SUPPRESS, __doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, help="default: the first that is free from 7860")
    risk = "others, with 0.0.0.0, can start trainings and read images here (default: 127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", help=risk)
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    arguments = parser.parse_args()

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is on by default, and read on import

import gradio as gr
import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor, nn

import compare
import doctor
import generate
import plane as planes
from make_gif import write_animation
from plane import address_of
from runs import TOP

InputError = runs.utils().InputError
COUNT, DIRECTIONS, SEARCH = 16, 6, 300  # images of a sheet; sliders; steps to a photograph
LOADING = Lock()  # reading the images of a run takes seconds and memory: one at a time
SCRIPT = (TOP / "play.js").read_text("utf-8")
QUIET = {"show_progress": "hidden", "trigger_mode": "always_last"}  # for events that come often
RAW = {"preprocess": False}  # a run may be chosen that is newer than the list Gradio checks it with
SETTINGS = ("lr", "batch_size", "g_width", "d_width", "k", "n_critic", "clip_value", "lambda_gp")
SETTINGS += ("beta1", "dropout", "seed")  # of a training, as far as a model has them
KINDS = {  # in the plane: the folder, its own settings, log10 of both learning rates, n_critic
    "WGAN-GP": ("WGAN-GP", {}, -3, 5),
    "WGAN": ("WGAN", {}, -3.7, 5),
    "simple GAN": ("simpleGAN", {}, -3, 1),
    "simple GAN, minimax": ("simpleGAN", {"minimax": True}, -3, 1),
}
OWN, PACE = "your own", 2  # real points in the plane; seconds for an update in slow motion
SLIDERS = (  # in the plane: label, smallest, largest, first value, step, what to look for
    ("Speed", 1, 50, 2, 1, "Generator updates for each picture."),
    ("Width", 4, 256, 64, 4, "Units in a layer. With 4 there cannot be eight peaks."),
    ("Layers", 1, 5, 3, 1, "Hidden layers of each network."),
    ("Seed", 0, 99, 0, 1, "The same seed repeats the training."),
    ("Learning rate, log10", -5, -1, -3, 0.1, "Above -2 the points leave; below -4 they stay."),
    ("Critic's, log10", -5, -1, -3, 0.1, "Its own learning rate. Low: it lags behind."),
    ("n_critic", 1, 20, 5, 1, "Critic updates for one of the generator. At 1 it lags behind."),
    ("Clamp", 0.01, 1, 0.1, 0.01, "Small: weights gather at the clamp, and arrows vanish."),
    ("lambda", 0, 10, 1, 0.1, "0: watch the gradient norms run away. 10: the points overshoot."),
)
TRAININGS: dict[Path, subprocess.Popen] = {}  # by run folder; all pages see them
PAUSED: set[Path] = set()  # those of them that were asked to save and end


def listen(events: list, function: Callable, inputs: Any, outputs: list, note: Any, **rest: Any):
    """Call a function on events; on bad input `note` says what is wrong, and images vanish."""
    streams = isgeneratorfunction(getattr(function, "func", function))

    @wraps(function)
    def stream(*inputs: Any) -> Iterator[list]:
        try:
            for found in function(*inputs) if streams else [function(*inputs)]:
                yield [*(found if isinstance(found, tuple) else [found] * len(outputs)), ""]
        except (InputError, OSError) as error:
            left = ["" if "drawn" in str(one.elem_classes) else gr.skip() for one in outputs]
            yield [*left, f'<p role="alert">{html.escape(str(error))}</p>']

    call = wraps(function)(lambda *inputs: next(stream(*inputs)))
    return gr.on(events, stream if streams else call, inputs, [*outputs, note], **rest)


def whole(name: str, value: float | None, low: int, high: int) -> int:
    """Return a number of the page, if it is a whole one in its range."""
    if value is None or value != int(value) or not low <= value <= high:
        raise InputError(f"{name} must be a whole number from {low:,} to {high:,}.")
    return int(value)


def embed(address: str, name: str, caption: str = "") -> str:
    """Show an image or an MP4, by its address, with a link that saves it under a name: HTML."""
    name, about = html.escape(name.replace("/", " ")), html.escape(caption or name)
    shown = f'<img src="{address}" alt="{about}">'
    if address.startswith("data:video"):
        shown = f'<video src="{address}" aria-label="{about}" controls loop autoplay muted></video>'
    save = f'<a href="{address}" download="{name}">Save</a>'
    return f"<figure>{shown}<figcaption>{html.escape(caption)} {save}</figcaption></figure>"


def name_of(run: Path) -> str:
    """Return what the page calls a run."""
    return run.relative_to(TOP).as_posix().replace("/tensorboard/runs/", "/")


def listed() -> dict[str, Path]:
    """Return all run folders by what the page calls them. No other run is ever read."""
    patterns = ("*/tensorboard/runs/*/run.json", "race/*/*/run.json", "results/*/*/run.json")
    found = [file.parent for pattern in patterns for file in TOP.glob(pattern)]
    return {name_of(run): run for run in [*found, *filter(is_training, TRAININGS)]}


def run_names() -> list[str]:
    """Return the names of the runs, the newest first, those on record last."""
    dated = {}
    for name, run in listed().items():
        with suppress(InputError, TypeError, ValueError):  # a damaged one is no run
            begun = f"{datetime.now()}" if is_training(run) else runs.read_facts(run)["started"]
            dated[name] = (name[:8] != "results/", datetime.fromisoformat(begun).astimezone())
    return sorted(dated, key=dated.get, reverse=True)


def included() -> dict[str, Path]:
    """Return the weights that come with the repository, by what the page calls them."""
    names = [f"{model}{data}" for data in ("", "-celeba") for model in runs.models()[::-1]]
    files = {f"{name} (included)": TOP / f"assets/weights/{name}.safetensors" for name in names}
    return {name: file for name, file in files.items() if file.is_file()}


def find(name: str | None) -> Path:
    """Find a run, or included weights, by what the page calls it."""
    known = included() | listed() | {name_of(run): run for run in TRAININGS}
    if name not in known:
        raise InputError(f"{name}: no such run." if name else "Choose a run first.")
    return known[name]


def sources() -> list[str]:
    """Return the names of what has a generator."""
    known = listed()
    own = [name for name in run_names() if (known[name] / "generator.safetensors").is_file()]
    return [*included(), *own]


@lru_cache(8)
def load_file(file: Path, _changed: float) -> tuple[nn.Module, dict, Tensor]:
    """Load a generator, what it says about itself, and its directions (DIRECTIONS, z_dim): SeFa."""
    generator, about = runs.load_generator(file)
    weight = next(generator.parameters()).detach()
    weight = weight if weight.dim() == 2 else weight.flatten(1).T  # (outputs, z_dim)
    if weight.shape[1] != about["z_dim"]:  # z enters elsewhere
        weight = torch.eye(about["z_dim"])
    return generator, about, torch.linalg.svd(weight, full_matrices=False).Vh[:DIRECTIONS]


def load(name: str | None) -> tuple[nn.Module, dict, Tensor]:
    """Load a generator by what the page calls it."""
    file = find(name)
    return load_file(file, file.stat().st_mtime)  # of a folder: when a file in it was replaced


def latents(name: str, seed: float, truncation: float, own: tuple | None) -> Tensor:
    """Return the z of the sheet, (COUNT, z_dim), drawn towards 0; a photograph's is the first."""
    noise = generate.noise(whole("The seed", seed, 0, 2**32 - 1), load(name)[1]["z_dim"])
    zs = list(islice(noise, COUNT))
    zs[:1] = own[1:] if own and own[0] == name else zs[:1]  # it is of one generator
    return torch.stack(zs) * truncation


def pair_of(base: tuple, *numbers: float) -> Tensor:
    """Return the z of the two images of the sheet that are chosen, (2, z_dim)."""
    return latents(*base)[[whole("The number of an image", n, 1, COUNT) - 1 for n in numbers]]


def sheet(*choice: Any) -> str:
    """Draw the images of a seed as buttons, and mark the two that are chosen: HTML."""
    base, (first, second) = choice[:4], choice[4:]
    images = next(generate.draw(load(base[0])[0], latents(*base), COUNT))
    buttons = ""
    for number, image in enumerate(images, 1):
        mark = "first" if number == first else "second" if number == second else ""
        buttons += f'<button data-number="{number}" class="{mark}"><img alt="Image" '
        buttons += f'src="{address_of(image)}"><span>{number} {mark}</span></button>'
    return f'<div class="sheet">{buttons}</div>'


def chosen(*choice: Any) -> np.ndarray:
    """Draw two images of the sheet blended, then moved: uint8 (1, H, W, C)."""
    base, (first, second, blend, *moves) = choice[:4], choice[4:]
    generator, _, directions = load(base[0])
    pair = pair_of(base, first, second)
    # there and back in 200 steps: the second image is the 100th
    z = generate.round_trip(pair, 200)[round(100 * blend)] if first != second else pair[0]
    z = z + torch.tensor(moves[: len(directions)], dtype=z.dtype) @ directions[: len(moves)]
    return next(generate.draw(generator, [z], 1))


def draw(*choice: Any) -> str:
    """Draw the image that the sliders make: HTML."""
    (image,), name = chosen(*choice), f"{choice[0]}, seed {choice[1]}, image {choice[4]}"
    return embed(address_of(image), f"{name}.png", f"{name}, as the sliders make it")


def pick(first: float, event: gr.EventData) -> tuple:
    """Make the image that was clicked the first, and the one before it the second."""
    return event.number, first if event.number != first else gr.skip()


def walk(*choice: Any) -> str:
    """Walk from the first image to the second and back: HTML with an MP4."""
    base, (first, second) = choice[:4], choice[4:]
    if first == second:
        raise InputError("A walk needs two different images: click another one.")
    way = generate.round_trip(pair_of(base, first, second), 72)
    images = np.concatenate(list(generate.draw(load(base[0])[0], way, 24)))
    frames = [generate.grid(image[None], 1, side=320, gap=0) for image in images]
    file = Path(tempfile.mkdtemp()) / "walk.mp4"
    write_animation(file, frames, [50] * len(frames), 10)
    data = base64.b64encode(file.read_bytes()).decode()
    about = f"From image {first} to image {second} of seed {base[1]} and back"
    return embed(f"data:video/mp4;base64,{data}", f"{base[0]}, {about}.mp4", about)


def neighbor(*choice: Any) -> str:
    """Draw the image beside the nearest one that the run was trained on: HTML."""
    image = chosen(*choice)
    with LOADING:
        training, _ = runs.load_images(find(choice[0]), more_faces=0)
    found, distances = generate.nearest(image, training)
    both = generate.grid(np.concatenate([image, training[found]]), 2, side=560)
    about = f"Right: the nearest training image, at RMS distance {distances[0]:.1f} of 255."
    return embed(address_of(both), f"{choice[0]}, nearest.png", about)


def photograph(name: str, pixels: np.ndarray) -> Iterator[tuple]:
    """Find the z whose image is nearest to a photograph, and show it as it goes, as image 1."""
    generator, about, _ = load(name)
    data = runs.load_file_of(about["model"], "data")
    photo = data.decode(pixels, about["image_size"], about["channels"])
    zs, target = latents(name, 0, 1, None), torch.tensor(photo).movedim(2, 0) / 127.5 - 1
    start, _ = generate.nearest(photo[None], next(generate.draw(generator, zs, COUNT)))
    optimizer = torch.optim.Adam([z := zs[start].requires_grad_()], lr=0.1)
    for step in range(SEARCH + 1):
        loss = (generator(z) - target).square().mean()
        if step % 20 == 0:
            said = f"RMS distance {127.5 * loss.item() ** 0.5:.1f} of 255, step {step} of {SEARCH}"
            yield (name, z.detach().clone()[0]), 1, 1, 0, *[0] * DIRECTIONS, f"<p>{said}</p>"
        z.grad = torch.autograd.grad(loss, z)[0]
        optimizer.step()


def describe(name: str | None) -> tuple:
    """Return what a generator has learned, and empty what was found with the one before."""
    (_, about, _), file, cache, data = load(name), find(name), "", "drawn faces"
    if file.is_dir():
        data, cache = runs.read_settings(file)["data"], runs.read_facts(file).get("cache", "")
    elif "-celeba" in name:
        data = "7,000 photographs of celebrities"
    here = bool(cache) and (file / cache).is_file()
    said = f"Learned from {data}, {about['image_size']} pixels a side, in {about['step']:,} steps."
    said += "" if here else " Its training images are not on this machine."
    return f"<p>{html.escape(said)}</p>", gr.Button(interactive=here), ""


def explore_tab(page: gr.Blocks) -> None:
    """Lay out the first tab."""
    small, names = {"size": "sm", "min_width": 120}, sources()
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            name, learned = gr.Dropdown(names, label="Generator"), gr.HTML()
            with gr.Row():
                seed = gr.Number(0, label="Seed", min_width=90)
                first = gr.Number(1, label="First image", min_width=90)
                second = gr.Number(2, label="Second image", min_width=90)
            images = gr.HTML(js_on_load=SCRIPT + "choosing(element, trigger, watch)")
        with gr.Column(scale=4, min_width=300):
            image, note = gr.HTML(elem_classes="drawn large"), gr.HTML(elem_classes="note")
            blend = gr.Slider(0, 1, 0, step=0.01, label="From the first image to the second")
            info = "Shorter z: images more alike, and paler."
            truncation = gr.Slider(0.7, 1, 1, step=0.05, label="Truncation", info=info)
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                labels = [f"Direction {i + 1}" for i in range(DIRECTIONS)]
                moves = [gr.Slider(-6, 6, 0, label=label, min_width=200) for label in labels]
            loop = gr.Button("Walk from the first to the second", **small)
            near = gr.Button("Nearest training image", **small)
            words = "Your photograph (stays on this machine)"
            photo = gr.Image(label=words, sources=["upload"], height=200)
            extra = gr.HTML(elem_classes="drawn")
    own, quiet = gr.State(), gr.HTML(visible=False)
    pair = [name, seed, truncation, own, first, second]
    choice = [*pair, blend, *moves]
    listen([page.load, *(one.change for one in pair)], sheet, pair, [images], quiet, **QUIET)
    events = [page.load, *(one.change for one in choice)]  # not queued, which is a third faster
    listen(events, draw, choice, [image], note, queue=False, **QUIET)
    images.select(pick, first, [first, second])
    listen([loop.click], walk, pair, [extra], note)
    listen([near.click], neighbor, choice, [extra], note)
    out = [own, truncation, first, blend, *moves, extra]
    listen([photo.upload], photograph, [name, photo], out, note)
    listen([name.change, page.load], describe, name, [learned, near, extra], quiet, **QUIET)
    page.load(lambda: gr.Dropdown(sources()), None, name)


def start_training(run: Path, *flags: str) -> None:
    """Start train.py in a session of its own: a terminal's Ctrl-C ends it once, through here."""
    command = [sys.executable, TOP / run.parts[-4] / "train.py", f"--runs-dir={run.parent}", *flags]
    rest = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "start_new_session": True}
    with Path(tempfile.gettempdir(), run.name).open("w") as errors:
        TRAININGS[run] = subprocess.Popen(command, stderr=errors, **rest)
    PAUSED.discard(run)


def is_training(run: Path) -> bool:
    """Tell whether this program trains a run now."""
    return run in TRAININGS and TRAININGS[run].poll() is None


def end_trainings() -> None:
    """Ask every training to save and end, and wait for it."""
    for process in TRAININGS.values():
        process.terminate()  # nothing, where it has ended
    for process in TRAININGS.values():
        process.wait()


def choose(run: Path | None = None) -> dict:
    """Renew the list of runs; choose this one, or else one in training, or else the newest."""
    names = [name for name in run_names() if name.count("/") == 1]
    return gr.Dropdown(names, value=name_of(run) if run else next(iter(names), None))


def keep_upload(file: str) -> str:
    """Copy an uploaded zip to where it stays, for resuming, and return its path."""
    kept = TOP / "data" / "uploads" / f"{time.time_ns()}-{Path(file).name}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    return str(shutil.copy(file, kept))


def settings_of(model: str) -> dict[str, Any]:
    """Return the settings of a model, of its quick.json or else of its train.py."""
    quick = TOP / model / "quick.json"
    settings = vars(planes.train_of(model).Config())
    return settings | (runs.read_json(quick) if quick.is_file() else {})


def defaults(model: str) -> tuple:
    """Return a field for each setting; it is hidden if the model does not have it."""
    known, fields = settings_of(model), planes.train_of(model).Config.__pydantic_fields__
    about = {name: field.description for name, field in fields.items()}
    shown = {name: {"visible": name in known, "info": about.get(name)} for name in SETTINGS}
    return tuple(gr.Number(known.get(name), **rest) for name, rest in shown.items())


def start(model: str, data: str, size: int, most: float, unit: str, *settings: float) -> dict:
    """Start a training with the settings of the page; train.py checks them."""
    limit = whole("The time to train for", most, 1, 10**8)
    name, quick = f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"[:-3], TOP / model / "quick.json"
    flags = [f"--name={name}", f"--data={data}", f"--image-size={size}", "--epochs=1000000"]
    flags += [f"--max-{unit}={limit}", *([f"--config={quick}"] if quick.is_file() else [])]
    known, given = settings_of(model), zip(SETTINGS, settings, strict=True)
    flags += [f"--{k.replace('_', '-')}={value}" for k, value in given if k in known]
    run = TOP / model / "tensorboard" / "runs" / name
    start_training(run, *flags)
    return choose(run)


def pause(name: str) -> None:
    """Ask a training to save and end."""
    run = find(name)
    if not is_training(run):
        raise InputError(f"{name} is not in training here.")
    TRAININGS[run].terminate()
    PAUSED.add(run)


def resume(name: str, most: float, unit: str) -> None:
    """Resume a training; one that is finished gets so many more seconds or steps."""
    run, limits = find(name), []
    if is_training(run):
        raise InputError(f"{name} is in training already.")
    if runs.read_facts(run).get("finished"):
        column, other = ("step", "seconds") if unit == "steps" else ("seconds", "steps")
        done = compare.numbers_of(compare.read_runs([run])[0])[column]
        total = round(done + whole("The time to train for", most, 1, 10**8))
        limits = ["--epochs=1000000", f"--max-{unit}={total}", f"--max-{other}=0"]
    start_training(run, f"--resume={run.name}", *limits)


def state_of(run: Path) -> tuple[str, str]:
    """Say how a training stands, and what its log or its complaint says last."""
    log, begun = run / "train.log", (run / "run.json").is_file()
    state = "Finished" if begun and runs.read_facts(run).get("finished") else "Paused"
    if is_training(run):
        state = "In training" if begun else "Starting: reading the images"
        state = "Saving" if run in PAUSED else state
    elif run in TRAININGS and 0 < TRAININGS[run].returncode < 128:
        said = Path(tempfile.gettempdir(), run.name).read_text(errors="replace")
        line = (said.strip().splitlines() or ["no reason given"])[-1]
        return "Stopped", line.partition(": error: ")[2] or line
    elif (run / ".lock").is_file():  # held by its train.py
        try:
            with FileLock(run / ".lock", timeout=0):
                pass
        except Timeout:
            state = "In training by another program"
    lines = log.read_text("utf-8", "replace").splitlines() if log.is_file() else []
    return state, next((line for line in reversed(lines) if line.startswith("step ")), "")


def watch(name: str | None, position: float, seen: tuple) -> tuple:
    """Return the list of runs, how one stands, a frame, the slider and the curves, if new.

    `seen` is what the page shows: a slider at its end follows the newest frame.
    """
    names = [name for name in run_names() if name.count("/") == 1]
    if not name:
        return gr.Dropdown(names), *[gr.skip()] * 5
    (state, detail), frames = state_of(find(name)), runs.frames_of(find(name))
    now, last = (name, names, state, detail, len(frames), position), len(frames) - 1
    if now == seen:
        return (gr.skip(),) * 6
    known = gr.skip() if seen[1:2] == (names,) else gr.Dropdown(names)
    kind = "alert" if state == "Stopped" else "status"
    said = f'<p role="{kind}"><b>{state}</b> {html.escape(detail)}</p>'
    if not frames:
        slider = gr.Slider(0, 1, 0, label="Frame", interactive=False)
        return known, said, "", slider, "", now
    at = int(position) if seen[:1] == (name,) and position < seen[4] - 1 else last
    label = f"Frame of step {int(frames[at].stem):,}"
    slider = gr.Slider(0, max(1, last), at, step=1, label=label, interactive=last > 0)
    frame = embed(address_of(Image.open(frames[at])), f"{name}, {label.lower()}.png", label)
    rows = compare.read_runs([find(name)])[0].rows.to_dict("records")
    rows = [{name: x for name, x in row.items() if x == x} for row in rows]  # without gaps
    return known, said, frame, slider, planes.charts(rows), (*now[:5], at)


def findings(name: str | None) -> str:
    """Return what doctor.py finds in a run, in words of this page: HTML."""
    if not name or not (find(name) / "run.json").is_file():
        return ""
    with LOADING:
        found, unjudged = doctor.examine(find(name))
    said = "" if found else "<p>No problems found in what can be judged so far.</p>"
    for one in found:
        named = (s.removeprefix("--").partition(" ") for s in one.advice)
        advice = [f"{flag.replace('-', '_')} {rest}" for flag, _, rest in named]
        kept = [line for line in advice if line[0].isupper() or line.split()[0] in SETTINGS]
        kept += ["Press Resume to train for longer"] * any(s.startswith("max_") for s in advice)
        lines = [f"Seen: {'; '.join(one.evidence)}.", *(f"Try: {s}." for s in kept), one.source]
        said += f"<p><b>{html.escape(f'{one.name.capitalize()}: {one.summary}')}</b></p><ul>"
        said += "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"
    for check, reason in unjudged.items():
        said += f"<p>Not judged yet: {html.escape(f'{check} ({reason})')}.</p>"
    return f'<div class="report">{said}</div>'


def train_tab(page: gr.Blocks) -> None:
    """Lay out the second tab."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            model = gr.Radio(runs.models(), value=runs.models()[-1], label="Model")
            info = "faces (drawn), or the path of a folder or a zip file on this machine"
            data = gr.Textbox("faces", label="Images", info=info)
            upload = gr.UploadButton("Upload a zip file of images", file_types=[".zip"], size="sm")
            with gr.Row():
                size = gr.Dropdown([16, 32, 64, 128], value=32, label="Pixels", min_width=120)
                most = gr.Number(300, label="Train for", min_width=90)
                unit = gr.Dropdown(["seconds", "steps"], label="Unit", min_width=140)
            with gr.Accordion("Settings", open=False), gr.Row():
                own = [gr.Number(label=name, info=" ", min_width=200) for name in SETTINGS]
            with gr.Row():
                begin = gr.Button("Start", variant="primary", min_width=80)
                halt, again = gr.Button("Pause", min_width=80), gr.Button("Resume", min_width=80)
            note, quiet = gr.HTML(elem_classes="note"), gr.HTML(visible=False)
        with gr.Column(scale=3, min_width=300):
            name, state = gr.Dropdown([], label="Run"), gr.HTML("<p>No run yet. Press Start.</p>")
            frame = gr.HTML(elem_classes="drawn")
            position = gr.Slider(0, 1, 0, step=1, label="Frame", interactive=False)
        with gr.Column(scale=2, min_width=300):
            drawn, said, seen = gr.HTML(), gr.HTML(), gr.State(())
    listen([model.change, page.load], defaults, model, own, note, **QUIET)
    listen([upload.upload], keep_upload, upload, [data], note)
    shown = [name, state, frame, position, drawn, seen]
    listen([begin.click], start, [model, data, size, most, unit, *own], [name], note)
    listen([halt.click], pause, name, [], note, **RAW)
    listen([again.click], resume, [name, most, unit], [], note, **RAW)
    events, asked = [gr.Timer(1).tick, name.change, position.input], [name, position, seen]
    listen(events, watch, asked, shown, quiet, **QUIET, **RAW)
    name.change(lambda: "", None, said, **QUIET)  # what was said of another run
    listen([gr.Timer(20).tick, name.change], findings, name, [said], quiet, **QUIET, **RAW)
    page.load(choose, None, name)


def kinds() -> dict[str, tuple]:
    """Return KINDS, without those whose folder is gone, and with the models that were added."""
    known = {kind: rest for kind, rest in KINDS.items() if rest[0] in runs.models()}
    return known | {m: (m, {}, -3, 1) for m in runs.models() if m not in runs.PAPERS}


def reset(own: Tensor | None, layers: list, shape: str, kind: str, *sliders: float) -> tuple:
    """Start anew."""
    (speed, *network), live, (folder, rest, *_) = sliders[:4], sliders[4:], kinds()[kind]
    if shape == OWN and own is None:
        raise InputError("First draw points of your own into the picture, or load a CSV file.")
    plane = planes.make_plane(own if shape == OWN else shape, folder, *map(int, network), **rest)
    return plane, tune(plane, layers, speed, *live), planes.charts(plane.history), ""


def switch(own: Tensor | None, layers: list, shape: str, kind: str, *sliders: float) -> tuple:
    """Start another model anew, with settings at which it learns."""
    folder, _, lr, n_critic = kinds()[kind]
    values, known = (lr, lr, n_critic, 0.1, 1), settings_of(folder)
    shown = [True, True, True, "clip_value" in known, "lambda_gp" in known]
    live = [gr.Slider(value=v, visible=one) for v, one in zip(values, shown, strict=True)]
    return *reset(own, layers, shape, kind, *sliders[:4], *values), *live


def tune(plane: planes.Plane, layers: list, speed: float, *live: float) -> str:
    """Change settings while it runs, and draw it."""
    lr, d_lr, n_critic, clip, penalty = live
    plane.speed, plane.layers, fields = int(speed), layers, {"lr": 10**lr, "d_lr": 10**d_lr}
    fields |= {"n_critic": int(n_critic), "clip_value": clip, "lambda_gp": penalty}
    planes.tune(plane, **fields)
    return planes.picture(plane)


def train_plane(plane: planes.Plane | None, how: str) -> Iterator[tuple]:
    """Train and draw: play or slow motion until Pause, or one update of both networks or of one."""
    if plane is None:
        raise InputError("The page is still opening. Try again in a moment.")
    while True:
        for words in planes.train_on(plane, how):
            words = f'<p role="status">{words}</p>'
            yield planes.picture(plane), planes.charts(plane.history), words
            time.sleep(PACE if how == "slow" else 0)
        if how not in ("play", "slow"):
            return


def trace(shape: str, own: Tensor | None, event: gr.EventData) -> tuple[Tensor, str]:
    """Add points that were drawn into the picture, each from -1 to 1, to one's own."""
    points = planes.SIDE * torch.tensor(event.points, dtype=torch.float32)
    return torch.cat([own, points]) if shape == OWN and own is not None else points, OWN


def read_points(file: str) -> tuple[Tensor, str]:
    """Read points of one's own from a CSV file of two columns, each scaled to the picture."""
    text = Path(file).read_text("utf-8-sig", "replace")
    text = text.replace(",", "." if ";" in text else ";")  # in 0,5;1,5 the commas are decimal
    with suppress(ValueError, IndexError):  # rows of several lengths, or none at all
        rows = np.genfromtxt(text.splitlines(), delimiter=";", ndmin=2)
        points = torch.tensor(rows[int(np.isnan(rows[0]).all()) :])  # without a header
        low, high = points.aminmax(dim=0)
        if points.shape[1] == 2 and points.isfinite().all():
            points = (2 * points - low - high) / (high - low).clamp(min=1e-12)
            return 1.3 * points.float(), OWN
    raise InputError(f"{Path(file).name} does not hold two columns of numbers.")


def plane_tab(page: gr.Blocks) -> None:
    """Lay out the third tab."""
    plane, own, small = gr.State(), gr.State(), {"size": "sm", "min_width": 70}
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            field = gr.HTML(js_on_load=SCRIPT + "drawing(element, trigger)")
            with gr.Row():
                words = ("Play", "Slow motion", "Step", "Critic alone", "Generator alone")
                begin = [gr.Button(word, elem_classes=word, **small) for word in words]
                halt, anew = gr.Button("Pause", **small), gr.Button("Reset", **small)
            told, note = gr.HTML(), gr.HTML(elem_classes="note")
        with gr.Column(scale=3, min_width=300):
            drawn = gr.HTML()
        with gr.Column(scale=4, min_width=300):
            with gr.Row():
                shape = gr.Dropdown([*planes.SHAPES, OWN], label="Real points", min_width=150)
                kind = gr.Dropdown(list(kinds()), label="Model", min_width=150)
            upload = gr.UploadButton("Your own points from a CSV file", size="sm")
            layers = gr.CheckboxGroup(planes.LAYERS, value=[*planes.LAYERS[:4]], label="Shown")
            with gr.Row(elem_classes="sliders"):
                keys = ("label", "minimum", "maximum", "value", "step", "info")
                sliders = [gr.Slider(**dict(zip(keys, one, strict=True))) for one in SLIDERS]
                sliders[-2].visible = False  # the clamp, until a WGAN is chosen
    out, hidden, playing = [field, drawn, told], {"note": note, "show_progress": "hidden"}, []
    for button, how in zip(begin, ("play", "slow", "step", "critic", "generator"), strict=True):
        rest = {"api_name": how, "cancels": [*playing], "concurrency_limit": None, **hidden}
        playing.append(listen([button.click], partial(train_plane, how=how), plane, out, **rest))
    halt.click(None, cancels=playing)
    hidden, out, live = hidden | {"cancels": playing}, [plane, *out], sliders[4:]
    asked = [own, layers, shape, kind, *sliders]
    events = [anew.click, page.load, own.change, *(s.input for s in (shape, *sliders[1:4]))]
    listen(events, reset, asked, out, **hidden)
    listen([kind.input], switch, asked, [*out, *live], **hidden)
    events, asked = [one.input for one in (layers, sliders[0], *live)], [plane, layers, sliders[0]]
    listen(events, tune, [*asked, *live], [field], note, **QUIET)
    listen([field.input], trace, [shape, own], [own, shape], note)
    listen([upload.upload], read_points, upload, [own, shape], note)


def compared(names: list[str]) -> tuple:
    """Return the table of runs, a CSV file of it, the last grids and the curves."""
    found = compare.read_runs([find(name) for name in names or [None]])
    file = Path(tempfile.mkdtemp()) / "compare.csv"
    compare.settings_and_numbers(found).to_csv(file, index=False)
    grids = ""
    for run in found:
        for frame in runs.frames_of(run.path)[-1:]:
            about = f"{run.label}, step {int(frame.stem):,}"
            grids += embed(address_of(Image.open(frame)), f"{about}.png", about)
    file = gr.DownloadButton(value=str(file), interactive=True)
    table = compare.table(found).to_html(border=0)
    return f'<div class="grids">{grids}</div>', table, file, compare.figure(found)


def compare_tab(tab: gr.Tab) -> None:
    """Lay out the fourth tab; it is slow to draw, so it is filled when it is opened."""
    known = run_names()
    first = [name for m in runs.models() if (name := f"results/{m}/celeba") in known]
    with gr.Row():
        choice = {"multiselect": True, "label": "Runs", "scale": 4, "min_width": 300}
        names = gr.Dropdown(known, value=first or known[:2], **choice)
        file = gr.DownloadButton("Numbers as CSV", scale=1, min_width=120)
    note, grids = gr.HTML(elem_classes="note"), gr.HTML(elem_classes="drawn")
    table, curves = gr.HTML(elem_classes="drawn table"), gr.Plot(show_label=False)
    tab.select(lambda: gr.Dropdown(run_names()), None, names)
    listen([names.change, tab.select], compared, names, [grids, table, file, curves], note, **QUIET)


def serve(host: str, port: int | None, browser: bool) -> gr.Blocks:
    """Serve the page in the background."""
    parts = re.split("^## (.+)$", (TOP / "docs/play.md").read_text("utf-8"), flags=re.M)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    torch.set_num_threads(1)  # for small networks a second thread costs more than it brings
    with gr.Blocks(title="GAN playground", analytics_enabled=False) as page:
        gr.Markdown("# GAN playground")
        tabs = {"Explore": explore_tab, "Train": train_tab, "Plane": plane_tab}
        for name, fill in (tabs | {"Compare": compare_tab}).items():
            about, _, more = sections[name].strip().partition("\n\n")  # more is to unfold
            with gr.Tab(name) as tab:
                gr.Markdown(about)
                with gr.Accordion("What is what, and exercises", open=False):
                    gr.Markdown(more)
                fill(tab if name == "Compare" else page)
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", **fonts)
    server = {"server_name": host, "server_port": port, "inbrowser": browser, "quiet": True}
    server |= {"share": False, "ssr_mode": False, "prevent_thread_lock": True, "footer_links": []}
    local = [os.environ.get("no_proxy"), "127.0.0.1,localhost"]  # gradio asks whether it serves
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, local))
    try:
        page.launch(**server, theme=theme, css_paths=TOP / "play.css", max_file_size="2gb")
    except OSError as error:
        raise InputError(f"--port {port} is in use, or --host {host} is another's") from error
    return page


def main() -> None:
    """Serve the page until Ctrl-C; then the trainings save and end."""
    runs.heed_signals()
    with tempfile.TemporaryDirectory("", "gan-playground-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            page = serve(arguments.host, arguments.port, not arguments.no_browser)
            print(f"open {page.local_url} in a browser; Ctrl-C ends", flush=True)
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            print("ending; trainings save")
        finally:
            end_trainings()
            gr.close_all(verbose=False)  # so that nothing writes to a folder that is removed


if __name__ == "__main__":
    with runs.utils().plain_errors():
        main()
