"""The run folder: what a training writes, and how it goes on from there.

This file is the same, byte for byte, in every model folder; tests/test_copies.py holds it so.

    parameters.json        every setting: what, not where
    run.json               facts: versions, device, commit, parameter counts, pictures
    events.out.tfevents.*  TensorBoard: scalars, frames, a grid of real images, settings
    metrics.csv            step, epoch, images, seconds, loss_d, loss_g, and the model's own
    train.log              what the terminal showed, without the bar
    frames/000000.png ...  what the same noise becomes, one picture for a step
    checkpoint.pt          all that resuming needs; checkpoint.before.pt is the one before
    generator.safetensors  weights, and how to build the generator that they belong to
"""

import csv
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from data import Pictures
from machine import describe, gather, greatest, leave_processes, process, processes
from utils import (
    BEFORE,
    FORMAT,
    HERE,
    MAY_DIFFER,
    InputError,
    RunError,
    find_run,
    git_commit,
    new_run,
    read_checkpoint,
    read_facts,
    settings_of,
    stop_signals,
    sync,
    write_aside,
    write_json,
    writing,
)


class Run:
    """A training run and its folder, the contract between training and every other script.

    `steps` is the loop: it counts generator updates, and between two of them
    logs, draws and saves what is due. `record` takes the losses of one update.

    Args:
        config: the settings of train.py.
        pictures: what is trained on.
        device: where the networks are.
        batches_per_step: minibatches of real images that one step shows.
        parts: all that resuming needs, by name; each has a `state_dict`. One is `generator`.

    Raises:
        InputError: the name is taken; nothing to resume, or under contradicting settings.
    """

    def __init__(
        self,
        config: Any,
        pictures: Pictures,
        device: torch.device,
        batches_per_step: int,
        **parts: Any,
    ) -> None:
        self.config, self.device, self.parts = config, device, parts
        self.cache = pictures.cache
        self.first = process() == 0  # of several processes only one writes
        batch = config.batch_size * processes()
        self.images_per_step = batches_per_step * batch
        self.steps_per_epoch = len(pictures.images) // batch
        self.last_step = min(config.epochs * self.steps_per_epoch, config.max_steps or math.inf)
        self.step, self.seconds, self.sums, self.summed, self.over = 0, 0.0, {}, 0, False
        self.generator_arguments = {
            "z_dim": config.z_dim,
            "image_size": config.image_size,
            "channels": pictures.images.shape[3],
            "width": config.g_width,
        }
        # Noise of its own: drawing frames leaves the training's random stream alone.
        noise = torch.Generator().manual_seed(config.seed + 2**32)
        self.fixed_z = torch.randn(64, config.z_dim, generator=noise).to(device)
        networks = {name: part for name, part in parts.items() if hasattr(part, "parameters")}
        self.facts = {
            "format": FORMAT,
            "model": HERE.name,
            "started": datetime.now().isoformat(),
            "finished": None,
            "device": describe(device, config.device),
            "processes": processes(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "git_commit": git_commit(),
            "parameters": {k: sum(p.numel() for p in n.parameters()) for k, n in networks.items()},
            "pictures": {"shape": list(pictures.images.shape), "digest": pictures.digest},
        }
        if config.resume:
            self.path = find_run(config.runs_dir, config.resume)
            self.restore()
        elif self.first:
            self.path = new_run(config.runs_dir, config.name)
        self.path = gather(getattr(self, "path", None))[0]
        self.open = ExitStack()  # what is closed at the end
        if self.first:
            with writing(self.path):
                self.occupy()
                self.introduce(pictures)
                self.open_events(pictures)

    def occupy(self) -> None:
        """Keep other trainings out of the folder, cut it off at this step, write the settings.

        Raises:
            InputError: another training is going on in it.
        """
        try:
            self.open.enter_context(FileLock(self.path / ".lock", timeout=0))
        except Timeout:
            raise InputError(f"another training is going on in {self.path}") from None
        if self.config.resume:
            cut_off(self.path, self.step)
        cache, here = self.cache.resolve(), self.path.resolve()
        same_drive = cache.drive == here.drive  # Windows knows no way from one to another
        self.facts["cache"] = os.path.relpath(cache, here) if same_drive else str(cache)
        write_json(self.path / "parameters.json", settings_of(self.config))
        write_json(self.path / "run.json", self.facts)

    def introduce(self, pictures: Pictures) -> None:
        """Say in a few lines what is trained, on what, and where it goes."""
        count, size, _, channels = pictures.images.shape
        self.say(f"device      {self.facts['device']}")
        self.say(f"pictures    {count:,} of {size}x{size}x{channels}: {self.config.data}")
        if len(pictures.held_out):
            self.say(f"held out    {len(pictures.held_out):,} more, which training never sees")
        self.say(f"cache       {pictures.cache}")
        if pictures.skipped:
            names = ", ".join(pictures.skipped[:5]) + ", ..." * (len(pictures.skipped) > 5)
            self.say(f"skipped     {len(pictures.skipped)} unreadable: {names}")
        counts = self.facts["parameters"].items()
        self.say("parameters  " + ", ".join(f"{name} {count:,}" for name, count in counts))
        self.say(f"run         {self.path}" + (f", from step {self.step}" if self.step else ""))

    def open_events(self, pictures: Pictures) -> None:
        """Begin a TensorBoard file; in a new run with the settings and a grid of real images."""
        # slow to import, so only once nothing can be wrong with the settings
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.events = self.open.enter_context(SummaryWriter(self.path))
        if self.step == 0:
            for summary in hparams(settings_of(self.config), {"loss_d": 0, "loss_g": 0}):
                self.events.file_writer.add_summary(summary)
            real = grid(torch.from_numpy(pictures.images[:64]).movedim(3, 1))
            self.events.add_image("real", real, 0, dataformats="HWC")

    def steps(self) -> Iterator[int]:
        """Yield the number of each step that is still to do; look after the run in between.

        Raises:
            RunError: a loss or a weight is not finite, or a file cannot be written.
            SystemExit: a signal asked to stop; the run is saved.
        """
        due, stop = self.config, 0.0
        hidden = None if self.first else True  # None: shown if there is a terminal
        self.bar = tqdm(total=self.last_step, initial=self.step, unit="step", disable=hidden)
        self.row_before = (self.step, self.seconds)
        self.line_before, hinted = 0.0, self.device.type != "cpu"
        with writing(self.path), self.open, self.bar, stop_signals() as signals:
            if self.step == 0:
                self.draw()
                self.save()
            while not self.over and not stop:
                began = time.perf_counter()
                yield self.step + 1
                self.seconds += time.perf_counter() - began
                self.step += 1
                self.bar.update()
                # all processes end at the same step
                stop, self.seconds = greatest(max(signals, default=0), self.seconds)
                self.over = self.step == self.last_step or 0 < due.max_seconds <= self.seconds
                if self.over or self.step % due.log_every == 0:
                    self.log()
                if self.over or self.step % due.frame_every == 0:
                    self.draw()
                if self.over or self.step % due.checkpoint_every == 0 or stop:
                    self.save()
                if not hinted and self.seconds > 10:
                    hinted = True
                    self.hint()
            self.end(int(stop))

    def end(self, signal: int) -> None:
        """Say how the training ended, and how to go on with one that was stopped.

        Raises:
            SystemExit: it was stopped.
        """
        if not self.over:
            resume = f"python {sys.argv[0]} --resume {self.path.name}"
            resume += f" --runs-dir {self.config.runs_dir}" if self.config.runs_dir else ""
            self.say(f"stopped     at step {self.step:,}, which is saved; to go on: {resume}")
            leave_processes()
            raise SystemExit(128 + signal)
        self.facts["finished"] = datetime.now().isoformat()
        if self.first:
            write_json(self.path / "run.json", self.facts)
        took = tqdm.format_interval(self.seconds)
        self.say(f"finished    {self.step:,} steps in {took} of training: {self.path}")
        leave_processes()

    def record(self, losses: dict[str, Tensor]) -> None:
        """Add the scalars of one step to the sums behind the next row, without waiting for them."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.summed += 1

    def log(self) -> None:
        """Write the means since the last row to metrics.csv, TensorBoard and the bar."""
        began = time.perf_counter()
        means = {name: float(total / self.summed) for name, total in self.sums.items()}
        self.seconds += time.perf_counter() - began  # a GPU finishes its steps here
        of_all = gather(means)  # what each process has seen
        means = {name: sum(one[name] for one in of_all) / len(of_all) for name in means}
        self.check_finite(means)
        steps, seconds = self.step - self.row_before[0], self.seconds - self.row_before[1]
        speed = steps * self.images_per_step / max(seconds, 1e-9)
        self.row_before, self.sums, self.summed = (self.step, self.seconds), {}, 0
        losses = {name: means.pop(name) for name in ("loss_d", "loss_g")} | means
        epoch = self.step / self.steps_per_epoch
        row = {"step": self.step, "epoch": round(epoch, 4)}
        row |= {"images": self.step * self.images_per_step, "seconds": round(self.seconds, 3)}
        row |= losses
        if not self.first:
            return
        with open(self.path / "metrics.csv", "a", newline="") as file:
            table = csv.DictWriter(file, row, lineterminator="\n")
            if file.tell() == 0:
                table.writeheader()
            table.writerow(row | {name: f"{value:.6g}" for name, value in losses.items()})
        for name, value in (losses | {"images_per_second": speed}).items():
            self.events.add_scalar(name, value, self.step)
        self.bar.set_description(f"epoch {math.ceil(epoch)}/{self.config.epochs}", refresh=False)
        text = f"loss_d {losses['loss_d']:.3f}, loss_g {losses['loss_g']:.3f}, {speed:.0f} images/s"
        self.bar.set_postfix_str(text, refresh=False)
        if self.over or time.monotonic() > self.line_before + 10:
            self.line_before = time.monotonic()
            left = tqdm.format_interval(self.seconds_left(seconds / steps))
            line = f"step {self.step}/{self.last_step}, {self.bar.desc}{text}, {left} left"
            self.say(line, terminal=self.bar.disable)

    def draw(self) -> None:
        """Save an 8x8 grid of what the generator makes of `fixed_z`, in eval mode."""
        if not self.first:
            return
        generator = self.parts["generator"].eval()
        with torch.no_grad():
            images = generator(self.fixed_z)
        generator.train()
        picture = grid(((images + 1) * 127.5).round().to("cpu", torch.uint8))
        with write_aside(self.path / "frames" / f"{self.step:06d}.png") as file:
            Image.fromarray(picture).save(file, "PNG")
        self.events.add_image("frames", picture, self.step, dataformats="HWC")

    def save(self) -> None:
        """Write generator.safetensors and checkpoint.pt, unless a number in them is not finite."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        self.check_finite(self.sums)
        for name in self.facts["parameters"]:
            self.check_finite({f"{name}.{key}": t.sum() for key, t in state[name].items()})
        about = {"format": FORMAT, "model": HERE.name, "step": self.step}
        about["arguments"] = self.generator_arguments
        state |= {"step": self.step, "seconds": self.seconds}
        state["settings"] = settings_of(self.config)
        # each process has its own noise, and its own sums
        state["own"] = gather(self.own_state())
        if not self.first:
            return
        weights = {key: value.cpu().contiguous() for key, value in state["generator"].items()}
        self.events.flush()
        for path in (self.path / "metrics.csv", *self.path.glob("events.*")):
            if path.exists():
                sync(path)
        with write_aside(self.path / "generator.safetensors") as file:
            # by its name, which copies nothing; one key, for the order of several would change
            save_file(weights, file.name, {"about": json.dumps(about)})
            sync(Path(file.name))
        with write_aside(self.path / "checkpoint.pt", keep=self.path / BEFORE) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # of ending the file, which hides why that was necessary
                raise error.__context__ or error from None

    def own_state(self) -> dict[str, Any]:
        """Return what differs from process to process: random numbers, and sums of losses."""
        own = {"rng": torch.get_rng_state(), "summed": self.summed}
        own["sums"] = {name: total.cpu() for name, total in self.sums.items()}
        if self.device.type == "cuda":
            own["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return own

    def restore(self) -> None:
        """Go back to the checkpoint.

        Raises:
            InputError: the settings are not those of the run, or nothing is left to do.
            RunError: no checkpoint can be read, or it does not fit the networks.
        """
        before, (state, damaged) = read_facts(self.path), read_checkpoint(self.path)
        for line in damaged:
            self.say(f"checkpoint  {line}; taking the one before it")
        saved = state["settings"]  # not of parameters.json, which anybody may have changed
        wrong = [
            f"{name} was {saved.get(name)} and is now {value}"
            for name, value in settings_of(self.config).items()
            if name not in MAY_DIFFER and saved.get(name, value) != value
        ]
        if before["format"] != FORMAT:
            wrong.append(f"it has format {before['format']}, this program writes {FORMAT}")
        if before["pictures"] != self.facts["pictures"]:
            wrong.append("the pictures are not those it was trained on")
        was = before.get("processes", 1)
        if was != processes():
            wrong.append(f"it was trained by {was} processes and now there are {processes()}")
        if state["step"] >= self.last_step:
            wrong.append(f"its {state['step']} steps are done; --epochs or --max-steps may grow")
        if 0 < self.config.max_seconds <= state["seconds"]:
            wrong.append(
                f"its {self.config.max_seconds:g} seconds are over; --max-seconds may grow"
            )
        if wrong:
            raise InputError(f"--resume {self.path.name}: {'; '.join(wrong)}")
        self.facts["started"] = before["started"]
        try:
            self.go_back(state)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise RunError(f"the checkpoint in {self.path} is none of this run ({error})") from None

    def go_back(self, state: dict[str, Any]) -> None:
        """Put every part, and what is random, into the state of a checkpoint."""
        for name, part in self.parts.items():
            for saved, own in zip(
                state[name].get("param_groups", []), getattr(part, "param_groups", []), strict=True
            ):
                saved["capturable"] = own["capturable"]  # goes with the device, not with the run
            part.load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        own = state["own"][process()]
        self.summed = own["summed"]
        self.sums = {name: total.to(self.device) for name, total in own["sums"].items()}
        torch.set_rng_state(own["rng"])
        if self.device.type == "cuda" and "cuda_rng" in own:
            torch.cuda.set_rng_state(own["cuda_rng"], self.device)

    def check_finite(self, values: dict[str, Any]) -> None:
        """Stop a run that has diverged while its last checkpoint is still good."""
        for name, value in values.items():
            if not math.isfinite(value):
                since = self.row_before[0] + 1
                steps = f"between steps {since} and" if since < self.step else "at step"
                exact = ", or --precision fp32" if self.config.precision == "bf16" else ""
                line = (
                    f"{name} is {float(value)} {steps} {self.step}: the training has diverged. "
                    f"The last checkpoint in {self.path} is kept. A new run with an --lr smaller "
                    f"than {self.config.lr:g} may do better{exact}"
                )
                self.say(f"error       {line}", terminal=False)
                raise RunError(line)

    def seconds_left(self, a_step: float) -> float:
        """Say how long the run will go on if each step takes so many seconds."""
        left = a_step * (self.last_step - self.step)
        limit = self.config.max_seconds
        return max(0.0, min(left, limit - self.seconds)) if limit else left

    def hint(self) -> None:
        """Say on a CPU how long the run will take, if that is long, and what is quicker."""
        hours = self.seconds_left(self.seconds / self.step) / 3600
        if hours > 1:
            quick = f"python {sys.argv[0]} --config quick.json"
            self.say(f"time left   about {hours:,.0f} hours on this CPU; for minutes: {quick}")

    def say(self, line: str, terminal: bool = True) -> None:
        """Print a line above the bar, and keep it in train.log."""
        if not self.first:
            return
        line = line.encode(errors="backslashreplace").decode()  # a path may hold any bytes
        if terminal:
            tqdm.write(line)
        with open(self.path / "train.log", "a", encoding="utf-8") as file:
            file.write(line + "\n")


def cut_off(run: Path, step: int) -> None:
    """Take out of a run folder what is from after `step` or ends half-way."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    for aside in (*run.glob(".*.[0-9]*"), *run.glob("frames/.*.[0-9]*"), *run.glob(".tmp*")):
        aside.unlink()  # a process was killed while it wrote
    if (run / "metrics.csv").exists():
        lines = (run / "metrics.csv").read_text(errors="replace").splitlines(keepends=True)
        header, *rows = [line for line in lines if line.endswith("\n")] or [""]
        rows = [row for row in rows if (n := row.split(",")[0]).isdecimal() and int(n) <= step]
        with write_aside(run / "metrics.csv") as file:
            file.write("".join([header, *rows]).encode())
    for frame in (run / "frames").glob("*.png"):
        if frame.stem.isdecimal() and int(frame.stem) > step:
            frame.unlink()
    for events in run.glob("events.out.tfevents.*"):
        with write_aside(events) as file:
            writer = RecordWriter(file)
            for record in RawEventFileLoader(str(events)).Load():
                if Event.FromString(record).step <= step:
                    writer.write(record)


def grid(images: Tensor) -> np.ndarray:
    """Lay images, uint8 (B, C, H, W), out eight to a row: uint8 (height, width, 3)."""
    from torchvision.utils import make_grid  # slow to import

    return make_grid(images, nrow=8).movedim(0, 2).numpy()
