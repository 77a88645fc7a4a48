"""The README's commands work, and its links and pictures are there."""

import ast
import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest
from conftest import FOLDERS, TOP, load
from packaging.requirements import Requirement

import compare
import doctor
import evaluate
import generate
import make_gif

SCRIPTS = {f"{m.__name__}.py": m for m in (compare, doctor, evaluate, generate, make_gif)}

README = (TOP / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
COMMANDS = [line for block in BLOCKS for line in block.strip().splitlines()]
INLINE = re.findall(r"`((?:python|tensorboard|scripts/)[^`\n]* [^`\n]+)`", README)


def parts_of(command):
    """Split a line at &&; say in which folder each part runs."""
    folder = "."
    for part in command.split("&&"):
        words = shlex.split(part.strip(" ()"))
        if words[0] == "cd":
            folder = words[1]
        else:
            yield folder, words
        if part.rstrip().endswith(")"):
            folder = "."


def check(folder, words):
    """Run or parse one command; return whether it was understood."""
    program, *arguments = words
    if program == "python" and arguments[0] == "train.py":
        files = load(folder)
        arguments = [a if a != "--resume" else "--seed=0" for a in arguments[1:]]
        if "--seed=0" in arguments:  # there is no run to resume here
            arguments = [a for a in arguments if a != "slower"]
        files.utils.parse_config(files.train.Config, arguments)
    elif program == "torchrun":
        launch, _, settings = shlex.join(arguments).partition(" train.py ")
        assert launch == "--standalone --nproc-per-node=2"
        files = load(folder)
        files.utils.parse_config(files.train.Config, shlex.split(settings))
    elif program == "python" and arguments[0] in SCRIPTS:
        SCRIPTS[arguments[0]].parse_arguments(arguments[1:] or ["WGAN"])
    elif program == "python" and arguments[0].startswith("benchmarks/"):
        ast.parse((TOP / arguments[0]).read_text())
    elif words[:3] == ["python", "-m", "pytest"]:
        assert words[3:] in (["-n", "2"], ["-m", "long"])
    elif program.startswith("scripts/"):
        folder = re.fullmatch(r"scripts/train_(.+)\.sh", program)[1]
        files = load(folder)
        assert (TOP / program).stat().st_mode & 0o111
        files.utils.parse_config(files.train.Config, arguments)
    elif program == "tensorboard":
        assert arguments in (["--logdir=tensorboard/runs"], ["--logdir=."])
    elif program == "pip":
        assert arguments == ["install", "-r", "requirements.txt"]
    elif program == "diff":
        done = subprocess.run(words, cwd=TOP, capture_output=True, text=True)
        assert done.returncode == 1 and "+++ WGAN-GP/train.py" in done.stdout
    else:
        return False
    return True


@pytest.mark.parametrize("command", COMMANDS + INLINE)
def test_every_command_is_understood(command):
    if "--help" in command:
        command = command.replace(" --help", "")
    command = command.replace("MODEL", "WGAN")
    for folder, words in parts_of(command):
        if folder == "." and words[:2] == ["python", "train.py"]:
            folder = "WGAN-GP"
        assert check(folder, words), f"nobody checks {words}"


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 12
    assert "python -m pytest -n 2" in COMMANDS
    assert {f"cd {folder} && python train.py --config quick.json" for folder in FOLDERS} <= set(
        COMMANDS
    )


def test_the_speed_table_is_the_record(monkeypatch):
    monkeypatch.syspath_prepend(TOP / "benchmarks")
    import throughput

    record = json.loads((TOP / "results" / "speed" / "throughput-2-cores.json").read_text())
    assert throughput.table(record["figures"]) in README


def test_links_and_pictures_are_there():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    local = [target for target in targets if not target.startswith("http")]
    assert len(local) >= 5
    for target in local:
        assert (TOP / target).exists(), target


def test_the_table_names_what_is_there():
    table = README.split("## What is where")[1].split("##")[0]
    for path in re.findall(r"`([A-Za-z_-]+(?:/|\.py|\.html|\.ipynb))`", table):
        assert (TOP / path).exists() or (TOP / "WGAN" / path).exists(), path
    for path in TOP.iterdir():
        hidden = path.name.startswith((".", "__")) or path.suffix in (".md", ".toml", ".txt")
        if not hidden and path.name not in ("LICENSE",):
            assert path.name in table, f"the README does not say what {path.name} is"


def test_the_diff_of_the_two_wassersteins_shows_the_papers_alone():
    texts = [(TOP / folder / "train.py").read_text() for folder in ("WGAN", "WGAN-GP")]
    papers = re.compile(r"RMSprop|Adam|betas|Algorithm 1, lines")
    for start, end in (("    g_width:", "\n\n\n"), ("def generator_step(", "def nothing")):
        parts = [text[text.index(start) :].split(end)[0].splitlines() for text in texts]
        mine, theirs = ([line for line in part if not papers.search(line)] for part in parts)
        assert mine == theirs and len(mine) > 20


def test_requirements_are_installed_and_have_a_lower_bound():
    lines = [
        line.split("#")[0].strip() for line in (TOP / "requirements.txt").read_text().splitlines()
    ]
    for requirement in map(Requirement, filter(None, lines)):
        assert version(requirement.name) in requirement.specifier
        assert ">=" in str(requirement.specifier)


def test_every_import_is_in_the_requirements():
    names = {"PIL": "pillow"}
    wanted = {re.split(r"[><=\s]", line)[0] for line in (TOP / "requirements.txt").open()}
    found = set()
    for file in [*TOP.glob("*.py"), *TOP.glob("*/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    ours = {file.stem for file in [*TOP.glob("*.py"), *TOP.glob("*/*.py")]}
    third = {
        names.get(n, n).replace("_", "-") for n in found - ours if n not in sys.stdlib_module_names
    }
    assert third - {"packaging", "and"} <= wanted, third - wanted


def test_the_project_speaks_of_itself_alone():
    words = re.compile(r"(?<![\w./])/(?:work|root|home)/|pypi\.org|(?<!no-)\bsandbox\b", re.I)
    for file in subprocess.run(
        ["git", "ls-files"], cwd=TOP, capture_output=True, text=True
    ).stdout.split():
        path = TOP / file
        if path.suffix in (".py", ".md", ".json", ".csv", ".txt", ".toml", ".sh", ".yml", ".log"):
            found = words.search(path.read_text())
            assert not found or file.endswith("test_readme.py"), f"{file}: {found}"
