"""Random damage and fuzzing: no traceback, no hang, no memory over 2 GB, no code that runs.

The long form, python -m pytest -m long, damages a thousand files of each kind.
"""

import dataclasses
import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FOLDERS, load
from hostile import RED, ordinary_pictures, zipped

pytest.importorskip("hypothesis")
pytest.importorskip("resource")  # Windows has none
import damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SEED = 1
ORDINARY = ordinary_pictures()
KINDS = ("generators", "json", "pictures", "zips", "hostile")
COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
short = settings(max_examples=50, derandomize=True, **COMMON)
long = settings(max_examples=3000, **COMMON)


# ---- random damage ----


@pytest.fixture
def run(tiny, tmp_path):
    """Train on a folder of pictures."""
    (tmp_path / "p").mkdir()
    for i in range(8):
        (tmp_path / "p" / f"{i}.png").write_bytes(RED)
    config = tiny(load("DCGAN"), data=str(tmp_path / "p"), max_steps=2)
    return load("DCGAN").train.train(config)


def damaged(kinds, count, run, tmp_path, record=None):
    """Damage files in a program of its own, and check what it tells."""
    (tmp_path / "work").mkdir()
    program = Path(__file__).with_name("damage.py")
    argv = [sys.executable, program, ",".join(kinds), count, SEED, run, tmp_path / "work"]
    done = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, timeout=60 + 10 * count
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, line in zip(kinds, done.stdout.splitlines(), strict=True):
        found = json.loads(line)
        print(line)
        assert found["kind"] == kind and found["read"] + found["refused"] == count
        assert found["refused"] > count / 10 and (found["read"] or kind == "hostile")
        assert found["longest_seconds"] < 10 and found["peak_gb"] < 2


def test_a_few_damaged_files(run, tmp_path):
    damaged(KINDS, 20, run, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_damaged_files(kind, run, tmp_path):
    damaged([kind], 100 if kind == "hostile" else 1000, run, tmp_path)


LARGE = """
import os, resource, sys
sys.path[:0] = sys.argv[1:3]
import data, hostile, machine, pictures
from PIL import Image
os.cpu_count = lambda: 64
side, folder = 7000, sys.argv[3] + "/p"
os.mkdir(folder)
for mode, kind, how in (
    ("RGBA", "PNG", {}), ("LA", "PNG", {}), ("I;16", "PNG", {}), ("P", "GIF", {"transparency": 0}),
    ("F", "TIFF", {"compression": "tiff_adobe_deflate"}), ("RGBA", "TIFF", {}),
    ("RGBA", "WEBP", {"lossless": True, "method": 0}), ("CMYK", "JPEG", {"progressive": True}),
):
    size = {"WEBP": 5000, "JPEG": 9400}.get(kind, side)
    picture = hostile.encoded(Image.new(mode, (size, size)), kind, **how)
    for i in range(2):
        open(f"{folder}/{mode} {i}.{kind}".lower(), "wb").write(picture)
picture = None
pictures.give_back()
if os.fork() == 0:  # so that the memory of making them does not count
    machine.keep_freed_memory()  # as in a training
    found = data.load_pictures(folder, sys.argv[3], 16, "data", 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(len(found.images), len(found.skipped), round(peak * 1024 / 1e9, 2), flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.long
def test_large_pictures_side_by_side(tmp_path):
    here = Path(__file__).parent
    argv = [sys.executable, "-c", LARGE, here.parent.parent / "DCGAN", here, tmp_path]
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=300)
    print(done.stdout, done.stderr[-2000:])
    count, skipped, peak = done.stdout.split()
    assert (int(count), int(skipped)) == (16, 0) and float(peak) < 2


# ---- settings ----

FIELDS = sorted({f.name for name in FOLDERS for f in dataclasses.fields(load(name).train.Config)})
NUMBERS = st.integers() | st.floats(allow_subnormal=False)  # torch rounds those to 0
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(max_size=20)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
LIKELY = st.sampled_from(
    [64, 1, 3, 0.5, 1e-4, -1, 2**70, True, "data", "faces", "auto", "bf16", ""]
)
ODD = [
    "config",
    "help",
    "print_config",
    "lr.x",
    ".",
    "",
    "__path__",
    "LR",
    "batch-size",
    "no_graphs",
]
NAMES = st.sampled_from(FIELDS) | st.sampled_from(ODD) | st.text(max_size=9)
OBJECTS = st.dictionaries(NAMES, LIKELY | VALUES, max_size=5)
FLAGS = ["--no-graphs", "--config", *("--" + name.replace("_", "-") for name in FIELDS)]
WORDS = st.text(max_size=12) | LIKELY.map(str) | PLAIN.map(json.dumps)
LINES = st.lists(
    st.sampled_from(FLAGS) | WORDS | st.builds("{}={}".format, st.sampled_from(FLAGS), WORDS),
    max_size=6,
).filter(lambda argv: not {"-h", "--help"} & set(argv))


def as_json(values):
    return values.map(lambda value: json.dumps(value).encode())


def check_settings(folder, content, argv, place):
    """Settings are refused in words, or are those of the file and the flags in their bounds."""
    files = load(folder)
    parse, config = files.utils.parse_config, files.train.Config
    (place / "x.json").write_bytes(content)
    try:
        found = parse(config, ["--config", str(place / "x.json"), *argv, "--runs-dir", str(place)])
    except (files.utils.InputError, OSError) as error:  # what ends in one line
        assert str(error).strip()
        return
    assert found.batch_size > 0 < found.lr < math.inf and found.image_size in range(16, 1025)
    assert found.channels in ("data", 1, 3) and isinstance(found.data, str)
    (place / "x.json").write_text(json.dumps(dataclasses.asdict(found)))
    assert parse(config, ["--config", str(place / "x.json")]) == found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("settings")


def settings_of_any_kind(place, folder, content, argv):
    check_settings(folder, content, argv, place)


def files_that_hold_anything(place, content):
    check_settings("WGAN", content, [], place)


def zips_of_anything(place, names, contents, spoilt, seed):
    """Names and contents of all kinds, and then a few bytes changed."""
    data = load("WGAN").data
    entries = {n: ORDINARY.get(c, c) for n, c in zip(names, contents, strict=False)}
    packed = zipped(place / "x.zip", entries)
    if spoilt:
        packed.write_bytes(damage.spoil(random.Random(seed), packed.read_bytes()))
    before = set(place.parent.rglob("*"))
    try:
        found = data.load_pictures(str(packed), str(place / "d"), 16, "data", 1)
        assert len(found.images) + len(found.skipped) <= len(entries)
        assert all(line.isprintable() for line in found.skipped)
    except (data.InputError, data.RunError) as error:
        assert str(error).strip()
    finally:
        new = set(place.parent.rglob("*")) - before
        shutil.rmtree(place / "d", ignore_errors=True)
    assert all(path.is_relative_to(place / "d") for path in new)


ANY_SETTINGS = {
    "folder": st.sampled_from(FOLDERS),
    "content": as_json(OBJECTS),
    "argv": LINES,
}
ANY_CONTENT = {
    "content": st.binary(max_size=200)
    | as_json(VALUES)
    | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
}
NAMES_IN_ZIPS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)
ANY_ZIP = {
    "names": st.lists(NAMES_IN_ZIPS.map(lambda name: name + ".png"), max_size=4),
    "contents": st.lists(st.sampled_from(list(ORDINARY)) | st.binary(), min_size=4, max_size=4),
    "spoilt": st.booleans(),
    "seed": st.integers(0, 2**32),
}

test_settings = short(given(**ANY_SETTINGS)(settings_of_any_kind))
test_files_of_settings = short(given(**ANY_CONTENT)(files_that_hold_anything))
test_zips = short(given(**ANY_ZIP)(zips_of_anything))
test_many_settings = pytest.mark.long(long(given(**ANY_SETTINGS)(settings_of_any_kind)))
test_many_files_of_settings = pytest.mark.long(long(given(**ANY_CONTENT)(files_that_hold_anything)))
test_many_zips = pytest.mark.long(long(given(**ANY_ZIP)(zips_of_anything)))


@pytest.mark.parametrize(
    "content",
    [
        *(b"[" * 10**5, b'{"a":' * 10**5, b'{"epochs": ' + b"9" * 10**6 + b"}", b"\xff\xfe"),
        *(b'{"config": false}', b'{"config": "quick.json"}', b'{"lr": {"lr": 1}}', bytes(2**20)),
        *(b'{"epochs": 1e999}', b'{"lr": 1e-999}', b'{"seed": NaN}', b'{"data": "\\ud800"}'),
    ],
)
def test_files_of_settings_that_are_made_to_harm(place, content):
    check_settings("WGAN-GP", content, [], place)
