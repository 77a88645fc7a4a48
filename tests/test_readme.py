"""What the READMEs and docs/ say is true: commands, links, numbers and requirements."""

import argparse
import json
import re
import runpy
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from conftest import TOP, load
from packaging.requirements import Requirement
from test_copies import imports

from runs import PAPERS

PAGES = {path: path.read_text("utf-8") for path in [*TOP.glob("*.md"), *TOP.glob("docs/*.md")]}
NAMES = ("README.md", "README.pt-BR.md", "docs/results.md", "docs/models.md")
README, BRAZILIAN, RESULTS, MODELS = (PAGES[TOP / name] for name in NAMES)
BLOCK, INLINE = re.compile(r"^```\w+\n(.*?)^```", re.M | re.S), re.compile(r"`([^`\n]+)`")
CODE = "\n".join(code for text in PAGES.values() for code in BLOCK.findall(text)).splitlines()
CODE += [code for text in PAGES.values() for code in INLINE.findall(BLOCK.sub("", text))]
PROGRAMS = ("python", "tensorboard", "scripts/train", "cd", "pip", "diff", "ruff", "torchrun")
COMMANDS = sorted({c for c in CODE if c.startswith(PROGRAMS) and " " in c and "--help" not in c})
OTHERS = [
    *("pip install -r requirements.txt", "pip install cosmic-ray", "tensorboard --logdir=."),
    *("python -m pytest -n 2", "python -m pytest -m long", "ruff check .", "ruff format ."),
    *("tensorboard --logdir=tensorboard/runs", "diff -u WGAN/train.py WGAN-GP/train.py"),
]


class Parsed(BaseException):
    """A script has understood its command line."""


def parse_script(script, flags, monkeypatch):
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
    line = re.sub(r"--resume( \w[\w-]*)?", "", shlex.join(flags))
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
        for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", text):
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            assert file.exists(), (path, target)
            if file.suffix == ".md" and anchor:  # GitHub's name for a heading
                titles = file.read_text("utf-8").lower().replace(" ", "-")
                titles = re.sub(r"[^\w\n#-]", "", titles)
                assert re.search(rf"^#+-{anchor}$", titles, re.M), (path, target)


def test_lines_that_the_experiments_change_are_there_once():
    found = re.findall(r"In `(\S+)`.*?```diff\n-(.*?)\n", PAGES[TOP / "docs/experiments.md"], re.S)
    assert len(found) == 2
    assert all((TOP / file).read_text().count(f"{line}\n") == 1 for file, line in found)


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
    return pd.read_csv(TOP / "results" / name)


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


TABLES = ["table", "default", "waiting", "race", "peers", "precision", "quick"]


@pytest.mark.parametrize("what", TABLES)
def test_the_tables_are_what_the_command_makes_of_the_records(what, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["figures.py", what])
    runpy.run_path(str(TOP / "results" / "figures.py"), run_name="__main__")
    made = capsys.readouterr().out.strip()
    assert made in RESULTS
    assert what != "race" or made.split("\n\n")[1] in README  # the first of two


@pytest.mark.parametrize("model", PAPERS)
def test_what_the_tables_of_the_models_repeat_and_the_speed_are_the_record(model):
    text = RESULTS.split("### Precision")[0]
    *_, speed, native = re.findall(rf"^\| {model} \|.*", text, re.M)
    faces = re.search(rf"^\| {model} \|.*", text.split("### When faces appear")[1], re.M)[0]
    paper, _ = re.findall(rf"^\| \[?{model}[] ].*", README, re.M)
    assert paper.split("|")[-2] == faces.split("|")[-2]  # minutes until faces appear
    names = ["fresh_images_per_second", "ratio_fresh", "reused_images_per_second", "ratio_reused"]
    names += ["ours_images_per_second", "share_of_limit", "peak_memory_gb"]
    for row, cores in ((speed, "2-cores"), (native, "2-cores-bf16")):
        figures = record(f"speed/throughput-{cores}.json")["figures"][PAPERS.index(model)]
        assert f"in {figures['precision']} |" in row
        assert shows(re.sub(r"x\)| in \w+", "", row), [figures[name] for name in names])


def test_numbers_in_the_text_are_the_record():
    page, plane = record("speed/page-2-cores.json")["figures"], record("landscapes.json")
    text = PAGES[TOP / "docs/play.md"].split("On two cores")[1].split("\n\n")[0]
    assert shows(text, [round(page.pop("start_seconds")), *page.values()])
    race = record("race/faces/race.json")
    values = [race["budget"]["seconds"], *map(race["conditions"].get, ("image_size", "hold_out"))]
    assert shows(README.split("A race on")[1].split("`swd`")[0], values)
    seconds = table("WGAN-GP/quick-faces/metrics.csv")["seconds"].iloc[-1]
    assert shows(README.split("This takes")[1].split("minutes")[0], [seconds / 60])
    tried = table("quick.csv").query("lr == 2e-4 or lr == 1e-3")  # the critics' in quick.json
    for model in ("WGAN", "WGAN-GP"):  # one critic update comes nearer than two, two than four
        seeds = tried[tried.model == model].pivot(index="seed", columns="n_critic")["frechet_lite0"]
        assert [*seeds] == [1, 2, 4] and len(seeds) == 2
        assert all(seeds[1] < seeds[2]) and all(seeds[2] < seeds[4])
    ours, theirs = (table("peers.csv")[i::2].reset_index()["steps"] for i in (0, 1))
    assert shows(README.split("**Fast.**")[1].split("times")[0], [(ours / theirs).mean()])
    exact, rounded = (table("precision.csv")[i::3].reset_index() for i in (0, 1))
    ratios = rounded["steps"] / exact["steps"]
    wins = (rounded["frechet_lite0"] < exact["frechet_lite0"]).sum()
    text = RESULTS.split("runs in bfloat16 have taken")[1].split("Runs in float32")[0]
    assert shows(text, [min(ratios), max(ratios), wins, len(ratios)])
    names = [f"{model}_median_norm" for model in ("simpleGAN", "WGAN", "WGAN-GP")]
    names.insert(1, "weights_at_the_bound")
    text = MODELS.split("- The discriminator's logit")[1].split("`python")[0]
    assert shows(text, [plane[name] for name in names])


def test_the_included_generators_data_and_defaults_are_as_the_pages_say():
    trained = {file.stem for file in (TOP / "assets" / "weights").glob("*.safetensors")}
    assert trained == {name + kind for name in PAPERS for kind in ("", "-celeba")}
    (faces,) = re.findall(r"`faces` \(default\) \| ([\d,]+) ", README)
    (celeba,) = re.findall(
        r"learned from ([\d,]+) photographs of CelebA", " ".join(RESULTS.split())
    )
    for model in PAPERS:
        folders = f"{model}/quick-faces", f"{model}/celeba"
        drawn, photographs = (record(f"{f}/run.json")["pictures"]["shape"][0] for f in folders)
        held_out = record(f"{folders[0]}/parameters.json")["hold_out"]
        assert shows(faces, [drawn + held_out]) and shows(celeba, [photographs])
        config = load(model).train.Config()
        title = model.replace("simpleGAN", "simple GAN")
        (row,) = (line for line in MODELS.splitlines() if line.startswith(f"| {title} | "))
        settings = config.lr, getattr(config, "beta1", None), getattr(config, "beta2", None)
        shown = re.findall(r"\d[\d.e-]*", row.split("|")[4])
        assert [*map(float, shown)] == [x for x in settings if x is not None]
    gan, dcgan, *others = (load(model).train.Config() for model in PAPERS)
    text = MODELS.split("over a minibatch of")[1].split("An epoch")[0]
    for other in others:
        assert shows(text, [gan.batch_size, dcgan.epochs, other.epochs])
    assert gan.epochs == dcgan.epochs


def test_requirements_are_what_each_part_imports_and_have_lower_bounds():
    pages = [TOP / "play.py", TOP / "plane.py"]
    files = {
        "Training": [file for model in PAPERS for file in (TOP / model).glob("*.py")],
        "Scripts": [*{*TOP.glob("*.py"), *TOP.glob("results/*.py")} - {*pages}],
        "The": pages,
        "Tests": [*TOP.glob("tests/*.py"), *TOP.glob("benchmarks/*.py")],
    }
    names = {"PIL": "pillow", "ot": "POT"}
    unseen = {"gdown", "tensorboard", "pytest-xdist", "ipykernel", "ruff"}  # nobody imports them
    before = {"av", "packaging", "nbformat", "jupyter_client", "gradio_client", "scipy"}  # brought
    before |= {file.stem for file in TOP.rglob("*.py")} | {"__future__", *sys.stdlib_module_names}
    for block in (TOP / "requirements.txt").read_text().strip().split("\n\n"):
        title, *lines = block.splitlines()
        required = {(r := Requirement(line.split("#")[0])).name: r.specifier for line in lines}
        assert all(version(name) in s and ">=" in str(s) for name, s in required.items())
        found = imports(files[re.search(r"\w+", title)[0]]) - before
        found = {names.get(name, name.replace("_", "-")) for name in found} - before
        assert found == required.keys() - unseen, title
        before |= required.keys()
