"""The README's commands work, and its links and pictures are there."""

import ast
import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from conftest import FOLDERS, TOP, load
from packaging.requirements import Requirement

import compare
import doctor
import evaluate
import generate
import make_gif
import runs

sys.path.insert(0, str(TOP / "results"))
import figures

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
    elif program == "python" and arguments[0] == "results/figures.py":
        assert arguments[1] in figures.DRAWN
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


# ---- the README in Portuguese, and numbers ----

BRAZILIAN = (TOP / "README.pt-BR.md").read_text()


def swapped(text):
    """Write numbers as Brazilians do: 1.234,5 for 1,234.5."""
    return re.sub(r"(?<=\d)[.,](?=\d)", lambda mark: ",."["," in mark[0]], text)


def code_in(text):
    return re.findall(r"^```.*?^```", text, re.M | re.S), sorted(re.findall(r"`[^`\n]+`", text))


def numbers_in(text):
    """List the numbers outside code and addresses, without the marks inside them."""
    text = re.sub(r"^```.*?^```|`[^`\n]+`|\]\([^)]*\)", "", text, flags=re.M | re.S)
    return sorted(re.sub(r"[.,]", "", n) for n in re.findall(r"\d+(?:[.,]\d+)*", text))


def test_both_readmes_have_the_same_headings_commands_numbers_and_pictures():
    blocks, inline = zip(*map(code_in, (README, BRAZILIAN)), strict=True)
    assert blocks[0] == blocks[1]
    assert inline[0] == inline[1]
    for pattern in (r"^#+", r"\]\(((?!README)[^)]*)\)", r"^\|", r"^\*\*"):
        assert re.findall(pattern, README, re.M) == re.findall(pattern, BRAZILIAN, re.M)
    assert numbers_in(README) == numbers_in(BRAZILIAN)
    assert len(numbers_in(README)) > 100


def test_the_tables_are_those_of_the_record():
    for table in (figures.table_of_runs(), figures.table_of_race(), figures.table_of_waiting()):
        assert table in README
        assert swapped("\n".join(table.splitlines()[2:])) in BRAZILIAN


# What the prose on results says: where in results/ the number in it stands.
MEASURED = {
    "4.28 (DCGAN)": ("speed/waiting-2-cores.json", "figures", "DCGAN_first_step_seconds"),
    "6.55 seconds (simple GAN)": (
        "speed/waiting-2-cores.json",
        "figures",
        "simpleGAN_first_step_seconds",
    ),
    "2.01 seconds": ("speed/waiting-2-cores.json", "figures", "gif_of_100_frames_530x530_seconds"),
    "3,154 a second": ("speed/data-2-cores.json", "figures", 3, "packed_per_second"),
    "2,218 minibatches": ("speed/data-2-cores.json", "figures", 3, "batches_of_64_per_second"),
    "200,000 of them": ("speed/data-2-cores.json", "figures", 3, "pictures"),
    "5,000 horses": ("WGAN/horse/run.json", "pictures", "shape", 0),
    "810 pictures": ("WGAN/fashion/run.json", "pictures", "shape", 0),
    "for 120 seconds each": ("race/race.json", "budget", "seconds"),
    "1,000 of them held out": ("race/race.json", "conditions", "hold_out"),
    "steep (median slope 34.1)": ("landscapes.json", "simpleGAN_median_slope"),
    "83% lie at the clamp": ("landscapes.json", "weights_at_the_bound"),
    "small (median 0.00883)": ("landscapes.json", "WGAN_median_slope"),
    "near 1 (median 1.05)": ("landscapes.json", "WGAN-GP_median_slope"),
}
SETTINGS = {"64x64", "64", "32x32", "32", "3x3", "178x218", "100", "100%", "2.15.0", "1", "10"}


def test_numbers_in_the_text_of_the_results_stand_in_the_record():
    sections = re.findall(r"^## (?:Results|Speed)$.*?(?=^## )", README, re.M | re.S)
    sections += re.findall(r"^\*Eight Gaussians.*?\n\n", README, re.M | re.S)
    assert len(sections) == 3
    text = "\n".join(sections)
    text = re.sub(r"^```.*?^```|`[^`\n]+`|\]\([^)]*\)|^\|[^\n]*", "", text, flags=re.M | re.S)
    text = " ".join(text.split())
    for words, (file, *keys) in MEASURED.items():
        assert text.count(words) == 1, words
        value = json.loads((TOP / "results" / file).read_text())
        for key in keys:
            value = value[key]
        number = re.findall(r"[\d,.]*\d%?", words)[-1]
        digits = len(number.partition(".")[2])
        form = ".0%" if "%" in number else f",.{digits}f"
        assert format(value, form) == number, f"{words}: the record has {value}"
        text = text.replace(words, "")
    assert set(re.findall(r"\d[\d,.x]*%?(?<![,.])", text)) <= SETTINGS


def test_what_is_shipped_is_small_and_in_half_precision():
    from safetensors import safe_open

    for file in (TOP / "results").rglob("*"):
        assert file.is_dir() or file.stat().st_size < 500_000, file
    for file in (TOP / "assets").glob("*.*"):
        assert file.stat().st_size < 5e6, file
    for folder in FOLDERS:
        file = TOP / "assets" / "weights" / f"{folder}.safetensors"
        assert file.stat().st_size < 15_000_000
        with safe_open(file, "pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_weights_that_come_along_make_pictures_of_the_runs_kind(folder):
    """They are told from noise and from one another's mean by how near real faces they come."""
    generator, about = runs.load_generator(TOP / "assets" / "weights" / f"{folder}.safetensors")
    run = "quick-faces" if folder == "simpleGAN" else "faces-64"
    rows = (TOP / "results" / folder / run / "metrics.csv").read_text().splitlines()
    assert about["model"] == folder and about["step"] == int(rows[-1].split(",")[0])
    z = torch.randn(200, about["arguments"]["z_dim"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = generator(z).movedim(1, 3).numpy()
    faces = np.stack(list(load("DCGAN").data.draw_faces(200, images.shape[1]))) / 127.5 - 1
    assert np.abs(images.mean(0) - faces.mean(0)).mean() < 0.2  # 0.4 for grey
    assert 0.5 < images.std(0).mean() / faces.std(0).mean() < 1.5
