"""What the READMEs and docs/ say is true: commands, links, numbers and requirements."""

import argparse
import ast
import csv
import json
import re
import runpy
import shlex
import sys
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import mean, stdev

import pytest
from conftest import TOP, load
from packaging.requirements import Requirement

from runs import PAPERS

PAGES = {path: path.read_text("utf-8") for path in [*TOP.glob("*.md"), *TOP.glob("docs/*.md")]}
NAMES = ("README.md", "README.pt-BR.md", "docs/results.md", "docs/models.md")
README, BRAZILIAN, RESULTS, MODELS = (PAGES[TOP / name] for name in NAMES)
BLOCK, INLINE = re.compile(r"^```\w+\n(.*?)^```", re.M | re.S), re.compile(r"`([^`\n]+)`")
CODE = "\n".join(code for text in PAGES.values() for code in BLOCK.findall(text)).splitlines()
CODE += [code for text in PAGES.values() for code in INLINE.findall(BLOCK.sub("", text))]
PROGRAMS = ("python", "tensorboard", "scripts/train", "cd", "pip", "diff", "ruff", "torchrun")
COMMANDS = sorted({c for c in CODE if c.startswith(PROGRAMS) and " " in c and "--help" not in c})
OTHERS = (
    "pip install -r requirements.txt",
    "pip install cosmic-ray",
    "python -m pytest -n 2",
    "ruff check .",
)
OTHERS += ("ruff format .", "python -m pytest -m long", "tensorboard --logdir=.")
OTHERS += ("tensorboard --logdir=tensorboard/runs", "diff -u WGAN/train.py WGAN-GP/train.py")


class Parsed(BaseException):
    """A script has understood its command line."""


def parse_script(script, flags, monkeypatch):
    """Run a script until it has parsed its command line."""
    parse = argparse.ArgumentParser.parse_args

    def stop(*arguments):
        parse(*arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [script, *flags])
    monkeypatch.syspath_prepend((TOP / script).parent)
    with pytest.raises(Parsed):
        runpy.run_path(str(TOP / script), run_name="__main__")


def parse_training(folder, flags, monkeypatch):
    """Parse the settings of a training. The run that it resumes does not exist here."""
    files = load("WGAN-GP" if folder == TOP else folder.name)
    monkeypatch.chdir(Path(files.train.__file__).parent)
    line = re.sub(r"--resume( \w+)?", "", shlex.join(flags))
    files.utils.parse_config(files.train.Config, shlex.split(line))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command, monkeypatch):
    folder = TOP
    for part in re.split("&&|;", command):
        match shlex.split(part.strip(" ()")):
            case ["cd", "LSGAN"]:  # the example of a copied folder
                folder = TOP / "DCGAN"
            case ["cd", name]:
                folder = (folder / name).resolve(strict=True)
            case ["torchrun", *flags]:  # its own come first
                parse_training(folder, flags[flags.index("train.py") + 1 :], monkeypatch)
            case ["python", "train.py", *flags]:
                parse_training(folder, flags, monkeypatch)
            case ["python", script, *flags] if script != "-m":
                parse_script(script.removeprefix("../"), flags, monkeypatch)
            case [script, *flags] if script.startswith("scripts/"):
                assert (TOP / script).stat().st_mode & 0o111
                name = re.fullmatch(r"scripts/train_(.+)\.sh", script)[1]
                parse_training(TOP / name, flags, monkeypatch)
            case words:
                assert shlex.join(words) in OTHERS
        folder = TOP if part.rstrip().endswith(")") else folder


def test_links_and_images_are_there():
    for path, text in PAGES.items():
        targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
        files = [path.parent / target.partition("#")[0] for target in targets]
        assert all(file.exists() for file in files), (path, targets)


def test_both_readmes_have_the_same_commands_images_and_numbers():
    forms = []
    for text in (README, BRAZILIAN):
        links = re.findall(r"\]\(((?!README)[^)]+)\)", text)
        plain = re.sub(r"\]\([^)]*\)|Python 3.10", "", INLINE.sub("", BLOCK.sub("", text)))
        if text is BRAZILIAN:  # 1.234,5 for 1,234.5
            plain = plain.translate(str.maketrans(".,", ",."))
        numbers = sorted(re.findall(r"\d[\d.,]*\d|\d", plain))
        shape = re.findall(r"^(?:#+|\|)", text, re.M)
        forms.append((BLOCK.findall(text), sorted(INLINE.findall(text)), links, numbers, shape))
        assert len(text.splitlines()) <= 200
    assert forms[0] == forms[1] and "\npython -m pytest -n 2\n" in README  # .ci/run runs it


def record(name):
    """Read a JSON file, or the last line of several."""
    text = (TOP / "results" / name).read_text()
    return json.loads(text.splitlines()[-1] if name.endswith(".jsonl") else text)


def table(name):
    """Read a CSV file: a dict of texts for each row."""
    with open(TOP / "results" / name, newline="") as file:
        return list(csv.DictReader(file))


def shows(text, values):
    """Compare the numbers in a text with values, to as many digits as the text has."""
    shown = re.findall(r"(?<![\w-])\d[\d,]*(?:\.\d+)?%?", text)
    forms = [f",.{len(n.strip('%').partition('.')[2])}{'%' if '%' in n else 'f'}" for n in shown]
    return shown == [format(float(v), form) for v, form in zip(values, forms, strict=True)]


def test_each_formula_is_on_its_line():
    rows = re.findall(r"\| \[(.*), (\d+)\]\(\.\./(.*)/train\.py#L(\d+)\) \| `(.*)` \|", MODELS)
    assert len(rows) == MODELS.count("train.py#L") and {row[0] for row in rows} == set(PAPERS)
    for model, number, folder, anchor, code in rows:
        line = (TOP / folder / "train.py").read_text().splitlines()[int(number) - 1]
        assert (model, number) == (folder, anchor) and line.strip().startswith(code)


@pytest.mark.parametrize("what", ["table", "waiting", "race", "peers", "precision"])
def test_the_tables_are_what_the_command_makes_of_the_records(what, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["figures.py", what])
    runpy.run_path(str(TOP / "results" / "figures.py"), run_name="__main__")
    made = capsys.readouterr().out.strip()
    assert made in RESULTS
    assert what != "race" or made.split("\n\n")[1] in README  # the first of two


@pytest.mark.parametrize("model", PAPERS)
def test_the_tables_of_the_models_are_the_record(model):
    *races, faces, speed, native = re.findall(rf"^\| {model} \|.*", RESULTS, re.M)
    paper, _ = re.findall(rf"^\| \[?{model}[] ].*", README, re.M)
    names = ("step", "images", "frechet_lite0", "swd", "diversity", "repetition")
    for race, data in zip(races, ("faces", "fashion-mnist"), strict=True):
        runs = [run for run in table(f"race/{data}/race.csv") if run["model"] == model]
        values = [[float(run[name]) for run in runs] for name in names]
        assert shows(race, [f(v) for v in values for f in (mean, stdev)])
    assert paper.split("|")[-2] == faces.split("|")[-2]  # minutes until faces appear
    names = [(f"{habit}_images_per_second", f"ratio_{habit}") for habit in ("fresh", "reused")]
    names = [*chain(*names), "ours_images_per_second", "share_of_limit", "peak_memory_gb"]
    for row, cores in ((speed, "2-cores"), (native, "2-cores-bf16")):
        figures = record(f"speed/throughput-{cores}.json")["figures"][PAPERS.index(model)]
        assert f"in {figures['precision']} |" in row
        assert shows(re.sub(r"x\)| in \w+", "", row), [figures[name] for name in names])


def test_numbers_in_the_text_are_the_record():
    page = record("speed/page-2-cores.json")["figures"]
    text = PAGES[TOP / "docs/play.md"].split("On two cores")[1].split("\n\n")[0]
    assert shows(text, [round(page.pop("start_seconds")), *page.values()])
    race, plane = record("race/faces/race.json"), record("landscapes.json")
    values = [race["budget"]["seconds"], *map(race["conditions"].get, ("image_size", "hold_out"))]
    assert shows(README.split("A race on")[1].split("`swd`")[0], values)
    rows = re.findall(r"^\| (.*), seed (\d) \|(.*)", RESULTS, re.M)
    assert 2 * len(rows) == len(table("n-critic.csv"))
    for row in rows:
        pair = [run for run in table("n-critic.csv") if (run["model"], run["seed"]) == row[:2]]
        pair.sort(key=lambda run: int(run["n_critic"]))
        names = ("step", "frechet_lite0", "swd", "repetition")
        assert shows(row[2], [run[name] for name in names for run in pair])
    pairs = zip(*(table("peers.csv")[i::2] for i in (0, 1)), strict=True)
    ratios = [int(a["steps"]) / int(b["steps"]) for a, b in pairs]
    assert shows(README.split("**Fast.**")[1].split("times")[0], [mean(ratios)])
    exact, rounded = (table("precision.csv")[i::3] for i in (0, 1))
    ratios = [int(b["steps"]) / int(a["steps"]) for a, b in zip(exact, rounded, strict=True)]
    near = [[float(run["frechet_lite0"]) for run in side] for side in (exact, rounded)]
    text = README.split("has bfloat16, the four models take")[1].split("times")[0]
    assert shows(text, [min(ratios), max(ratios)])
    wins = sum(b < a for a, b in zip(*near, strict=True))
    text = RESULTS.split("runs in bfloat16 have taken")[1].split("After as many")[0]
    assert shows(text, [min(ratios), max(ratios), wins, len(ratios)])
    names = [f"{model}_median_slope" for model in ("simpleGAN", "WGAN", "WGAN-GP")]
    names.insert(1, "weights_at_the_bound")
    text = MODELS.split("- The discriminator's logit")[1].split("`python")[0]
    assert shows(text, [plane[name] for name in names])


def test_the_included_generators_data_and_defaults_are_as_the_pages_say():
    trained = {file.stem for file in (TOP / "assets" / "weights").glob("*.safetensors")}
    assert trained == {name + kind for name in PAPERS for kind in ("", "-celeba")}
    facts = [record(f"{model}/quick-faces/run.json")["pictures"]["shape"][0] for model in PAPERS]
    held_out = [record(f"{model}/quick-faces/parameters.json")["hold_out"] for model in PAPERS]
    (count,) = re.findall(r"`faces` \(default\) \| ([\d,]+) ", README)
    assert all(shows(count, [sum(pair)]) for pair in zip(facts, held_out, strict=True))
    celebrities = [record(f"{model}/celeba/run.json")["pictures"]["shape"][0] for model in PAPERS]
    (count,) = re.findall(r"learned from ([\d,]+) photographs of CelebA", " ".join(RESULTS.split()))
    assert shows(count, set(celebrities))
    text = MODELS.split("over a minibatch of")[1].split("An epoch")[0]
    configs = [load(model).train.Config() for model in PAPERS]
    assert shows(text, [configs[0].batch_size, configs[1].epochs, configs[2].epochs])
    assert [config.epochs for config in configs] == [configs[1].epochs] * 2 + [
        configs[2].epochs
    ] * 2


def imports(files):
    """Return the packages that files import."""
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    found = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    own = {file.stem for file in TOP.rglob("*.py")} | {"__future__"}
    return {name.split(".")[0] for name in found} - own - set(sys.stdlib_module_names)


def test_requirements_are_what_each_part_imports_and_have_lower_bounds():
    groups, names = {}, {"PIL": "pillow", "ot": "POT"}
    for block in (TOP / "requirements.txt").read_text().strip().split("\n\n"):
        title, *lines = block.splitlines()
        wanted = [Requirement(line.split("#")[0]) for line in lines]
        assert all(version(r.name) in r.specifier and ">=" in str(r.specifier) for r in wanted)
        groups[title.strip("# ").split(":")[0].split(" ")[0]] = {r.name for r in wanted}
    pages = ("play.py", "plane.py")
    files = {
        "Training": [file for model in PAPERS for file in (TOP / model).glob("*.py")],
        "Scripts": [
            f for f in (*TOP.glob("*.py"), *TOP.glob("results/*.py")) if f.name not in pages
        ],
        "The": [TOP / name for name in pages],
        "Tests": [*TOP.glob("tests/*.py"), *TOP.glob("benchmarks/*.py")],
    }
    unseen = {"gdown", "tensorboard", "pytest-xdist", "ipykernel", "ruff"}  # nobody imports them
    brought = {"av", "packaging", "nbformat", "jupyter_client", "gradio_client", "scipy"}
    before = set()
    for title, listed in groups.items():
        found = {
            names.get(name, name.replace("_", "-")) for name in imports(files[title]) - brought
        }
        assert found - before == listed - unseen, title
        before |= listed
