"""The machine that trains: its device and memory, CUDA graphs, and several processes.

This file is the same, byte for byte, in every model folder; tests/test_copies.py holds it so.
"""

import ctypes
import itertools
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from utils import InputError, Precision, RunError

Step = Callable[[], dict[str, Tensor]]

# ---- Device ----


def pick_device(name: str, seed: int, precision: Precision) -> torch.device:
    """Find a device, set it up, seed the random numbers drawn on it, and meet other processes.

    Args:
        name: `auto`, or what torch calls it: `cpu`, `cuda`, `cuda:1`, `mps`. Each of several
            processes takes a GPU of its own.
        seed: of weights, noise and interpolation; all of torch's generators take it, and each
            of several processes draws other numbers from it.
        precision: with `fp32` products are exact to 24 bits; else a GPU rounds factors to 11.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        device = found or torch.device("cpu")
    else:
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"--device {name}: not to be had here ({reason})") from None
    if device.type == "cuda" and processes() > 1:
        number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= count:
            raise InputError(
                f"--device {name}: more processes than GPUs, of which there are {count}"
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    join_processes(device)
    torch.manual_seed(seed + (process() << 33))
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = True  # shapes never change, so the search pays
    if device.type == "cpu":
        torch.set_flush_denormal(True)
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: big gradients come and go at every step.

    By itself it gives blocks of over 32 MB back to the system at once, and getting
    them again costs a page fault for every 4 kB.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(option, 2**31 - 1)
        mallopt(-2, 2**28)  # M_TOP_PAD


def place(device: torch.device, precision: Precision, *networks: nn.Module) -> None:
    """Move networks to a device, in the memory layout and the precision that they run in.

    Of several processes all get the weights of the first.

    With `bf16` layers compute in bfloat16 where autocast holds that safe. What a network
    returns is float32, and so is all of it for an input that asks for its own gradient,
    as the x_hat of a gradient penalty does.
    """

    def lowered(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def lower(x: Tensor) -> Tensor:
            exact = x.is_leaf and x.requires_grad
            with torch.autocast(x.device.type, torch.bfloat16, enabled=not exact):
                return forward(x).float()

        return lower

    # what tensor cores take, and a little faster on CPUs too; on Apple's GPUs far slower
    layout = torch.preserve_format if device.type == "mps" else torch.channels_last
    for network in networks:
        network.to(device)
        for tensor in network.state_dict().values() if processes() > 1 else ():
            with together():
                dist.broadcast(tensor, 0)
        network.to(memory_format=layout)
        if precision == "bf16":
            network.forward = lowered(network.forward)


def graphed(step: Step, device: torch.device, enabled: bool) -> Step:
    """Record a training step as one CUDA graph and replay it: one launch instead of thousands.

    Where there is no CUDA, or `enabled` is false, the step is returned as it is. Recorded or
    not it does the same, as long as it touches the device alone and every tensor that
    it reads from outside stays in its place.
    """
    if device.type != "cuda" or not enabled:
        return step
    stream, graph, calls = torch.cuda.Stream(device), torch.cuda.CUDAGraph(), itertools.count()
    losses: dict[str, Tensor] = {}

    def replayed() -> dict[str, Tensor]:
        call = next(calls)
        if call < 3:  # as it is: cuDNN looks for kernels, optimisers make their state
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                losses.update(step())
            torch.cuda.current_stream(device).wait_stream(stream)
            return losses
        if call == 3:  # recording runs nothing
            # the mode: NCCL watches its work from a thread of its own
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                losses.update(step())
        graph.replay()
        return losses

    return replayed


def describe(device: torch.device, asked: str) -> str:
    """Name a device as its maker does, and say why it was taken."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    why = "the fastest that torch finds here" if asked == "auto" else f"--device {asked}"
    several = f"{processes()} processes, the first on " if processes() > 1 else ""
    return f"{several}{device} ({kind}), {why}"


# ---- Processes ----
# `torchrun --standalone --nproc-per-node=N train.py` starts N of them. Each trains on minibatches
# of its own, and all make the same steps, for they average their gradients.


def process() -> int:
    """Return the number of this process; only the first, 0, writes."""
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def together() -> Iterator[None]:
    """Say it in one line if another process is gone."""
    try:
        yield
    except RuntimeError as error:  # Gloo's and NCCL's own
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"another of the {processes()} processes has ended ({reason})") from None


def join_processes(device: torch.device) -> None:
    """Meet the other processes: over NCCL on GPUs, over Gloo on CPUs."""
    if processes() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with together():  # five minutes: longer than the others wait for the first to save
            dist.init_process_group(backend, timeout=timedelta(minutes=5))


def leave_processes() -> None:
    """Part from the other processes at the end."""
    if processes() > 1:
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Return what every process gave, in their order."""
    found = [value] * processes()
    if processes() > 1:
        with together():
            dist.all_gather_object(found, value)
    return found


def greatest(*numbers: float) -> list[float]:
    """Return of each number the greatest that a process has."""
    if processes() == 1:
        return list(numbers)
    found = torch.tensor(numbers, dtype=torch.float64)  # on the CPU: no GPU is waited for
    with together():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def average_gradients(*optimizers: Optimizer) -> None:
    """Let each optimiser step along the mean of the gradients of all processes.

    One flat all-reduce before each step, and not DistributedDataParallel, which does not work
    with a gradient penalty, nor with two passes through batch norm before one backward.
    """

    def average(optimizer: Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with together():
            dist.all_reduce(flat)
        parts = (flat / processes()).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    for optimizer in optimizers:
        if processes() > 1:
            optimizer.register_step_pre_hook(average)
