"""Programs in processes of their own, forked from a server that has imported PyTorch.

All but that, which takes seconds, is as from the command line; but atexit calls no functions.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent


def become(script: str, arguments: list[str], cwd: str, environment: dict, said: list[str]) -> None:
    """Be a program; its output and its errors go to two files."""
    for number, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):  # which nohup ignores
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=environment.get("PYTHONIOENCODING"))
    os.chdir(cwd)
    sys.argv = [script, *arguments]
    others = [path for path in sys.path if not Path(path).is_relative_to(TOP)]
    sys.path[:] = [str(Path(script).resolve().parent), *others]
    runpy.run_path(script, run_name="__main__")


def start(script, arguments, cwd, environment, said):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["programs", "torch.utils.tensorboard", "torchvision.utils"])
    rest = list(map(str, arguments)), str(cwd or os.getcwd()), environment, list(map(str, said))
    process = context.Process(target=become, args=(str(script), *rest))
    process.start()
    return process
