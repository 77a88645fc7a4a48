"""Mutation testing: change one thing in a model folder, run the tests, see whether one fails.

Run:  python tests/mutate.py                                  all of TARGETS
      python tests/mutate.py WGAN-GP/train.py --lines 90-130  a part of one file

The tests run once on unchanged code, to find out which lines each executes and how long it takes.
A mutant then meets those that execute its statement, fastest first, in a fork of this process,
which has imported PyTorch. It lives in a temporary copy of the repository. Tests that start
programs are left out: they would take hours. Needs Linux.
"""

import argparse
import ast
import gc
import importlib
import os
import pickle
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, NoReturn

import programs
import pytest
from tqdm import tqdm

TOP = Path(__file__).resolve().parent.parent
FOLDERS = ("simpleGAN", "DCGAN", "WGAN", "WGAN-GP")
TARGETS = [f"{folder}/{name}" for folder in FOLDERS for name in ("train.py", "model.py")]
TARGETS += ["WGAN/utils.py", "WGAN/data.py"]  # changed in every folder where they are the same
TESTS = [
    f"tests/test_{name}.py"
    for name in ("algorithm", "oracle", "settings", "data", "speed", "run", "faults")
]
# Functions and constants for words, files, GPUs and several processes, and the faces' looks: their
# tests start programs, need a GPU or look at the whole.
SKIP_FUNCTIONS = ["plain_errors", "parse_config", "convert", "graphed", "gather", "git_commit"]
SKIP_FUNCTIONS += ["write_aside", "read_json", "write_json", "runs_folder", "new_run", "find_run"]
SKIP_FUNCTIONS += [
    "average_gradients",
    "read_checkpoint",
    "start",
    "end",
    "say",
    "download",
    "draw_16_faces",
]
SKIP_FUNCTIONS += ["BACKDROPS", "SKINS", "HAIRS", "SHIRTS", "IRISES", "FRAMES"]  # colors
SKIP_FUNCTIONS += ["THREADS"]  # of this machine
NOT_COPIED = shutil.ignore_patterns(".*", "assets", "results", "tensorboard", "data", "tmp")
IMPORTS = ("torchvision.datasets", "torch.utils.tensorboard", "docstring_parser")
IMPORTS += ("safetensors.torch", "filelock", "PIL.Image")  # slow ones, done once

QUIET = {
    "print",
    "say",
    "tqdm",
    "tqdm.write",
    "ctypes.CDLL(None).mallopt",
    "bar.update",
    "TypeVar",
}  # calls that only people notice
# Keyword arguments that change words, speed, or nothing without a GPU.
IDLE = {"help", "description", "desc", "unit", "strict", "inplace", "non_blocking", "fused"}
IDLE |= {"device"}
GPU = ".type == 'cuda'"  # what a CPU skips is not changed
OPERATORS = {
    **{ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult]},
    **{ast.FloorDiv: [ast.Mult], ast.Mod: [ast.FloorDiv], ast.Pow: [ast.Mult]},
    **{ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Eq: [ast.NotEq]},
    **{ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt], ast.NotEq: [ast.Eq]},
    **{ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn], ast.NotIn: [ast.In]},
    **{ast.And: [ast.Or], ast.Or: [ast.And]},
}


class Mutant(NamedTuple):
    """A changed file; `lines` are the changed statement's, or empty if an import executes it."""

    file: str
    line: int
    lines: range
    change: str  # [old => new] in its line
    source: bytes


class Test(NamedTuple):
    """What a run on unchanged code says of a test."""

    seconds: float
    lines: set[tuple[str, int]]
    folders: set[str]  # named by its parameters


# ---- Mutants ----


def mutants(file: str, source: bytes, skip: Iterable[str] = ()) -> Iterator[Mutant]:
    """Yield each mutant of a file once, but for the functions and constants named in `skip`."""
    text, seen = source.splitlines(keepends=True), {source}
    for node, new, lines in walk(ast.parse(source), range(0), False, set(skip)):
        first, last = node.lineno - 1, node.end_lineno - 1
        before, after = text[first][: node.col_offset], text[last][node.end_col_offset :]
        mutated = b"".join([*text[:first], before, new.encode(), after, *text[last + 1 :]])
        if mutated not in seen:
            seen.add(mutated)
            old = source.removeprefix(b"".join(text[:first]) + before)
            old = old.removesuffix(after + b"".join(text[last + 1 :]))
            change = f"{before.decode()}[{old.decode()} => {new}]{after.decode()}"
            yield Mutant(file, first + 1, lines, " ".join(change.split()), mutated)


def walk(node: ast.AST, lines: range, inside: bool, skip: set[str]) -> Iterator[tuple]:
    """Yield (node, new text, lines of its statement) for a node and all below it."""
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Expr(value=ast.Constant()):
            return
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return
        case ast.If(test, orelse=rest) if GPU in ast.unparse(test):
            for child in rest:  # what a CPU runs
                yield from walk(child, lines, inside, skip)
            return
        case ast.Compare() if ast.unparse(node).endswith(GPU):
            return
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) if name in skip:
            return
        case (
            ast.Assign([ast.Name(name)])
            | ast.AugAssign(ast.Name(name))
            | ast.AnnAssign(ast.Name(name))
        ) if name in skip and not inside:
            return
        case ast.keyword(arg=name) if name in IDLE:
            return
        case ast.Call(func) | ast.Expr(ast.Call(func)) if ast.unparse(func) in QUIET:
            return
    if isinstance(node, ast.stmt):  # of one with a body, what stands before the body
        body = getattr(node, "body", None)
        last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
        lines = range(node.lineno, last + 1)
    for old, new in changes(node):
        if inside or not isinstance(old, ast.stmt):  # without a constant no file can be imported
            text = new if isinstance(new, str) else ast.unparse(new)
            yield old, text, lines if inside else range(0)
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns"):
            within = inside or (field == "body" and isinstance(node, ast.FunctionDef))
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, lines, within, skip)


def changes(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | str]]:
    """Yield (node to replace, what replaces it)."""

    def changed(**fields: object) -> tuple[ast.AST, ast.AST]:
        return node, type(node)(**dict(ast.iter_fields(node)) | fields)

    match node:
        case ast.Constant(bool(value)):
            yield node, str(not value)
        case ast.Constant(int(n) | float(n)):
            yield node, str(n + 1 if isinstance(n, int) else 2 * n or 1.0)
            if n:
                yield node, f"(-{n})"
        case ast.Constant(str(text)) if " " not in text:  # a name, not a message
            yield node, repr(text + "_")
        case ast.BinOp(left, ast.BitOr(), right):  # of dictionaries
            yield from ((node, side) for side in (left, right))
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op):
            yield from (changed(op=new()) for new in OPERATORS.get(type(op), []))
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                for new in OPERATORS[type(op)]:
                    yield changed(ops=[*ops[:i], new(), *ops[i + 1 :]])
        case ast.UnaryOp(_, operand) if not isinstance(operand, ast.Constant):
            yield node, f"({ast.unparse(operand)})"
        case ast.Call(_, args, keywords):
            for i, keyword in enumerate(keywords):
                if keyword.arg not in IDLE:
                    yield changed(keywords=keywords[:i] + keywords[i + 1 :])
            for i, (a, b) in enumerate(pairwise(args)):
                yield changed(args=[*args[:i], b, a, *args[i + 2 :]])
        case ast.Slice(lower, upper):
            yield from ((bound, "") for bound in (lower, upper) if bound)
        case ast.If(test) | ast.IfExp(test):
            yield from ((test, new) for new in ("True", "False"))
        case ast.While(test):
            yield test, "False"
        case ast.comprehension(ifs=tests):
            yield from ((test, new) for test in tests for new in ("True", "False"))
        case ast.withitem(ast.Call() as call, None):
            yield call, "__import__('contextlib').nullcontext()"
        case ast.FunctionDef(decorator_list=decorators):
            yield from ((decorator, "(lambda function: function)") for decorator in decorators)
        case ast.Return(ast.AST()):
            yield node, "return None"
    if isinstance(node, ast.Assign | ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield node, "pass"


# ---- Tests, in forks of this process ----


class Watch:
    """A pytest plugin that finds out what each test executes, and skips what starts Python."""

    def __init__(self, top: Path, targets: list[str]) -> None:
        self.out, self.tests, self.shared = top / "tests.pickle", {}, {}
        self.names = {str(path): file for file in targets for path in copies(top, file)}
        sys.addaudithook(self.audit)
        programs.start = self.skip

    def audit(self, event, args):
        if event == "subprocess.Popen" and sys.executable in map(str, args[1]):
            self.skip()

    def skip(self, *_):
        self.skipped = True
        pytest.skip("a process of its own: nobody knows what it executes")

    def trace(self, frame, *_):
        name = self.names.get(frame.f_code.co_filename)
        if name:
            self.lines.add((name, frame.f_lineno))
        return self.trace if name else None

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        before, self.lines, start = self.lines, set(), time.monotonic()
        result = yield
        if fixturedef.scope != "function":  # every test that uses it needs all this
            self.shared[fixturedef.argname] = time.monotonic() - start, self.lines
        self.lines |= before
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.lines, self.skipped, start = set(), False, time.monotonic()
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        result = yield
        sys.settrace(None)
        threading.settrace(None)
        shared = [self.shared[name] for name in item.fixturenames if name in self.shared]
        seconds = time.monotonic() - start + sum(seconds for seconds, _ in shared)
        lines = self.lines.union(*(lines for _, lines in shared))
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        folders = {value for value in values if isinstance(value, str) and value in FOLDERS}
        if not self.skipped:
            self.tests[item.nodeid] = Test(seconds, lines, folders)
        return result

    def pytest_sessionfinish(self):
        self.out.write_bytes(pickle.dumps(self.tests))


class Select:
    """A pytest plugin that runs the named tests, in their order."""

    def __init__(self, names: list[str]) -> None:
        self.order = {name: i for i, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid in self.order]
        items.sort(key=lambda item: self.order[item.nodeid])


def run_pytest(top: Path, files: Iterable[str], plugin: object, seconds: int = -1) -> NoReturn:
    """Run tests in a copy of the repository, and end this process with pytest's exit code."""
    code = 70
    try:
        os.setsid()  # a group, to be killed together with what the tests start
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(top)
        log = os.open("log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30,) * 2)
        os.mkdir("tmp")
        os.environ["TMPDIR"] = tempfile.tempdir = str(top / "tmp")
        options = [f"--rootdir={top}", f"--basetemp={top}/tmp/pytest", "-p", "no:cacheprovider"]
        code = pytest.main([*files, "-x", *options], [plugin])
    finally:
        os._exit(code)


# ---- The parent ----


def copies(top: Path, file: str) -> list[Path]:
    """Return the paths of a file in all folders where it is the same."""
    paths = [top / folder / Path(file).name for folder in FOLDERS]
    return [p for p in paths if p.exists() and p.read_bytes() == (top / file).read_bytes()]


def end(pid: int) -> None:
    """End a child and the processes that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def run_unchanged(top: Path, targets: list[str], files: list[str]) -> dict[str, Test]:
    """Run all tests, and return what they execute."""
    pid = os.fork() or run_pytest(top, files, Watch(top, targets))
    try:
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            sys.exit(f"{(top / 'log').read_text()}\nThe tests fail on unchanged code.")
    finally:
        end(pid)
    return pickle.loads((top / "tests.pickle").read_bytes())


def start(mutant: Mutant, place: Path, top: Path, tests: dict[str, Test]) -> tuple[int, float]:
    """Start the tests that may notice a mutant; return the child's number and its deadline."""
    shutil.copytree(top, place, ignore=NOT_COPIED)
    folders = set()
    for path in copies(top, mutant.file):
        (place / path.relative_to(top)).write_bytes(mutant.source)
        folders.add(path.parent.name)

    def may_notice(test: Test) -> bool:
        elsewhere = test.folders and Path(mutant.file).parts[0] not in test.folders
        if elsewhere:  # a file that four folders share meets the tests of one
            return False
        if mutant.lines:
            return not test.lines.isdisjoint((mutant.file, line) for line in mutant.lines)
        return not test.folders or not test.folders.isdisjoint(folders)

    names = [name for name, test in tests.items() if may_notice(test)]
    names.sort(key=lambda name: tests[name].seconds)
    files = dict.fromkeys(name.partition("::")[0] for name in names or tests)
    # of the processor, so that a busy machine kills no mutant; the deadline is for what sleeps
    limit = 10 + 3 * sum(tests[name].seconds for name in names)
    pid = os.fork() or run_pytest(place, files, Select(names), int(limit))
    return pid, time.monotonic() + 4 * limit


def run(todo: list[Mutant], top: Path, tests: dict[str, Test], jobs: int) -> tuple[list[str], int]:
    """Run the tests on each mutant; return the survivors, and how many ran out of time."""
    queue, running, survivors, late = list(enumerate(todo))[::-1], {}, [], 0
    bar = tqdm(total=len(todo), unit=" mutants", smoothing=0)
    try:
        while queue or running:
            while queue and len(running) < jobs:
                number, mutant = queue.pop()
                place = top.with_name(str(number))
                pid, deadline = start(mutant, place, top, tests)
                running[pid] = mutant, place, deadline
            time.sleep(0.01)
            for pid, (*_, deadline) in running.items():
                if time.monotonic() > deadline:
                    end(pid)
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                mutant, place, _ = running.pop(pid)
                end(pid)
                shutil.rmtree(place, ignore_errors=True)
                code = os.waitstatus_to_exitcode(status)
                late += code in (-signal.SIGXCPU, -signal.SIGKILL)
                if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                    survivors.append(f"{mutant.file}:{mutant.line}: {mutant.change}")
                    bar.write(survivors[-1])
                bar.set_postfix(survived=len(survivors), late=late, refresh=False)
                bar.update()
    finally:
        bar.close()
        for pid in running:
            end(pid)
    return survivors, late


def main() -> None:
    """Find out which mutants no test notices."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="FOLDER/FILE.py")
    parser.add_argument("--lines", default="1-99999", metavar="FIRST-LAST", help="these alone")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="a sample: each N-th mutant"
    )
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default: 2)")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="tests/test_x.py")
    parser.add_argument("--skip-functions", nargs="*", default=SKIP_FUNCTIONS, metavar="NAME")
    parser.add_argument("--out", type=Path, help="write the survivors to this file as well")
    args = parser.parse_args()
    first, last = map(int, args.lines.split("-"))

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C, with all cleaning up
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in IMPORTS:
        importlib.import_module(name)
    sys.path[:] = [path for path in sys.path if not path.startswith(str(TOP))]
    tqdm.monitor_interval = 0  # a thread of its own, which a fork would not have
    gc.freeze()  # the children need not look through all that was imported
    with tempfile.TemporaryDirectory(prefix="mutate-", ignore_cleanup_errors=True) as folder:
        top = Path(folder).resolve() / "unchanged"
        shutil.copytree(TOP, top, ignore=NOT_COPIED)
        todo = [
            mutant
            for file in args.targets
            for mutant in mutants(file, (top / file).read_bytes(), args.skip_functions)
            if first <= mutant.line <= last
        ][:: args.every]
        tests = run_unchanged(top, args.targets, args.tests)
        begin = time.monotonic()
        survivors, late = run(todo, top, tests, args.jobs)
    minutes = (time.monotonic() - begin) / 60
    if args.out:
        args.out.write_text("".join(f"{line}\n" for line in survivors))
    killed = len(todo) - len(survivors)
    print(
        f"{killed} of {len(todo)} mutants killed ({killed / len(todo):.1%}), {late} of them by "
        f"the time limit, in {minutes:.1f} minutes ({len(todo) / minutes:.0f} a minute)"
    )


if __name__ == "__main__":
    main()
