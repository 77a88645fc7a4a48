"""The folders stand alone, so they hold copies; these tests keep the copies equal."""

import ast
import difflib
import re
from collections import Counter

import pytest
from conftest import FOLDERS, TOP

COPIES = ("utils.py", "data.py")
SHARED_NETWORKS = {  # class or function of model.py: the folders where it is meant to be the same
    "Generator": ("DCGAN", "WGAN", "WGAN-GP"),
    "initialize": ("WGAN", "WGAN-GP"),
}
SHARED_FIELDS = [
    *("data", "data_dir", "hold_out", "image_size", "channels", "epochs", "max_steps"),
    *("max_seconds", "batch_size", "z_dim", "g_width", "d_width", "lr", "seed", "device"),
    *("runs_dir", "name", "resume", "precision", "log_every", "frame_every", "checkpoint_every"),
]
HELP_MAY_DIFFER = {"lr", "batch_size", "g_width", "d_width"}  # they name the paper's symbols


def imports(files):
    """Return the packages and modules that files import."""
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    found = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in found}


def assert_same(name, texts):
    """Or say which folder is the odd one, how it differs and how to mend it."""
    common = Counter(texts.values()).most_common(1)[0][0]
    first, *others = [folder for folder in texts if texts[folder] == common]
    lines = []
    for odd in (folder for folder in texts if texts[folder] != common):
        pair = common.splitlines(), texts[odd].splitlines(), f"{first}/{name}", f"{odd}/{name}"
        lines += [
            f"{odd}/{name} differs from that of {', '.join([first, *others])}.",
            f"Spread it:    for d in {' '.join([first, *others])}; do cp {odd}/{name} $d/; done",
            f"Take it back: cp {first}/{name} {odd}/",
            *difflib.unified_diff(*pair, lineterm=""),
        ]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("name", COPIES)
def test_support_files_are_the_same_everywhere_and_know_no_model(name):
    assert_same(name, {folder: (TOP / folder / name).read_bytes().decode() for folder in FOLDERS})
    source = (TOP / "WGAN" / name).read_text()
    assert not re.search(r"simpleGAN|DCGAN|WGAN|critic|discriminator", source)
    assert not imports([TOP / "WGAN" / name]) & {"model", "train"}


@pytest.mark.parametrize("name", SHARED_NETWORKS)
def test_shared_networks_are_the_same(name):
    texts = {}
    for folder in SHARED_NETWORKS[name]:
        source = (TOP / folder / "model.py").read_text()
        nodes = {n.name: n for n in ast.parse(source).body if hasattr(n, "name")}
        texts[folder] = ast.get_source_segment(source, nodes[name])
    assert_same("model.py", texts)


def test_model_files_import_torch_alone():
    assert imports(TOP / folder / "model.py" for folder in FOLDERS) == {"torch"}


def test_shared_settings_have_the_same_type_and_help():
    setting, seen = re.compile(r'^    (\w+): (.+) = .+\n    """((?:.|\n)+?)"""', re.M), {}
    for folder in FOLDERS:
        found = setting.findall((TOP / folder / "train.py").read_text())
        found = {name: (kind, name in HELP_MAY_DIFFER or text) for name, kind, text in found}
        for name in SHARED_FIELDS:
            assert name in found, f"{folder} has no setting {name} with help"
            assert seen.setdefault(name, found[name]) == found[name], f"{folder}: {name}"
