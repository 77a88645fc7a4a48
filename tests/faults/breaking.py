"""What the tests of faults share: children that may die, and runs that must be equal."""

import io
import os
import sys
import tempfile
import threading
import time
import traceback

import torch
from safetensors.torch import load_file
from tqdm import tqdm


def run_in_child(job, *signals: tuple[float, int]) -> tuple[int, str]:
    """Fork and do a job there.

    Args:
        job: takes nothing.
        signals: what the child is sent: after so many more seconds, which.

    Returns:
        How it ended: its exit code, or -9 if it was killed; and what it printed.
    """
    with tempfile.TemporaryFile("w+", buffering=1) as said:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
                sys.stderr = sys.stdout
                tqdm.set_lock(threading.RLock())  # the one of forks stays locked if one is killed
                job()
                code = 0
            except SystemExit as exit:
                code = exit.code
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        for seconds, number in signals:
            time.sleep(seconds)
            os.kill(child, number)  # it is still there, if only as a zombie
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read()


def weights(run):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    del state["seconds"], state["settings"]
    return state


def compare(whole, killed) -> None:
    """Assert that two runs hold the same but for the time they took, and nothing left over."""
    torch.testing.assert_close(weights(whole), weights(killed), rtol=0, atol=0)
    a, b = (load_file(run / "generator.safetensors") for run in (whole, killed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows = [
        [line.split(",")[:3] + line.split(",")[4:] for line in file.read_text().splitlines()]
        for file in (whole / "metrics.csv", killed / "metrics.csv")
    ]
    assert rows[0] == rows[1]
    names = [
        sorted(frame.name for frame in (run / "frames").glob("*.png")) for run in (whole, killed)
    ]
    assert names[0] == names[1]
    assert all(
        (whole / "frames" / name).read_bytes() == (killed / "frames" / name).read_bytes()
        for name in names[0]
    )
    left = {path.name for path in killed.rglob(".*")}
    assert left == {".lock"}
