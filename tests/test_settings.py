"""Settings: defaults, JSON files and flags, and what is refused, with which words."""

import json
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path

import docstring_parser
import pytest
from conftest import FOLDERS, TOP, load, train


def parse(files, *argv):
    return files.utils.parse_config(files.train.Config, list(map(str, argv)))


def refusal(folder, *argv):
    files = load(folder)
    with pytest.raises(files.utils.InputError) as caught:
        parse(files, *argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def settings_file(tmp_path):
    def write(content, name="settings.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_without_arguments_settings_are_the_defaults_and_stay(files):
    assert parse(files) == files.train.Config()
    with pytest.raises(FrozenInstanceError):
        parse(files).lr = 1.0


def test_a_flag_wins_over_files_and_the_last_file_over_the_others(files, settings_file):
    one = settings_file({"epochs": 7, "batch_size": 32, "seed": 3})
    two = settings_file({"epochs": 9}, "two.json")
    for argv in (
        ["--batch-size", "5", "--config", one, "--config", two],
        ["--config", one, f"--config={two}", "--batch-size=5"],
    ):
        config = parse(files, *argv)
        assert (config.epochs, config.batch_size, config.seed) == (9, 5, 3)


def test_quick_json_is_found_from_anywhere_and_holds_no_default(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = json.loads((TOP / files.folder / "quick.json").read_text())
    config, defaults = asdict(parse(files, "--config", "quick.json")), asdict(files.train.Config())
    for name, value in defaults.items():
        assert config[name] == quick.get(name, value)
        assert name not in quick or quick[name] != value


def test_values_have_the_types_of_their_defaults(files, settings_file):
    path = settings_file({"lr": 1, "graphs": False, "channels": 3})
    config = parse(files, "--config", path, "--seed", "7", "--max-seconds", "5")
    assert (config.lr, config.graphs, config.channels, config.seed) == (1.0, False, 3, 7)
    defaults = asdict(files.train.Config())
    for name, value in asdict(config).items():
        assert type(value) is type(defaults[name]) or name == "channels", name


def test_switches(settings_file):
    files = load("simpleGAN")
    assert not parse(files, "--no-graphs").graphs
    assert parse(files, "--minimax").minimax
    config = parse(files, "--config", settings_file({"graphs": False, "minimax": True}))
    assert (config.graphs, config.minimax) == (False, True)


REFUSED = [
    (["--batchsize", "5"], "--batchsize: unknown; did you mean --batch-size?"),
    (["--epoch", "5"], "--epoch: unknown; did you mean --epochs?"),
    (["--xyz=5"], "--xyz: unknown; see --help"),
    (["stray"], "stray: unknown; see --help"),
    (["--lr", "fast"], "--lr: must be a positive number, not 'fast'"),
    (["--lr", "nan"], "--lr: must be a positive number, not 'nan'"),
    (["--lr", "inf"], "--lr: must be a positive number, not 'inf'"),
    (["--lr", "0"], "--lr: must be a positive number, not '0'"),
    (["--lr", "-1"], "--lr: must be a positive number, not '-1'"),
    (["--epochs", "0"], "--epochs: must be a positive whole number, not '0'"),
    (["--epochs", "1.5"], "--epochs: must be a positive whole number, not '1.5'"),
    (["--max-steps", "-1"], "--max-steps: must be a whole number from 0 up, not '-1'"),
    (["--max-seconds", "-1"], "--max-seconds: must be a number from 0 up, not '-1'"),
    (["--max-seconds", "inf"], "--max-seconds: must be a number from 0 up, not 'inf'"),
    (["--seed", "4294967296"], "--seed: must be a whole number from 0 to 4294967295, not"),
    (["--g-width", "16385"], "--g-width: must be a whole number from 1 to 16384, not '16385'"),
    (["--d-width", "0"], "--d-width: must be a whole number from 1 to 16384, not '0'"),
    (["--beta1", "1"], "--beta1: must be a number from 0 to below 1, not '1'"),
    (["--beta2", "-0.1"], "--beta2: must be a number from 0 to below 1, not '-0.1'"),
    (["--image-size", "48"], "--image-size: must be one of 16, 32, 64, 128, 256, 512, 1024, not"),
    (["--channels", "2"], "--channels: must be one of data, 1, 3, not '2'"),
    (["--precision", "half"], "--precision: must be one of auto, fp32, tf32, bf16, not 'half'"),
    (["--lr"], "--lr: expected one argument"),
    (["--config", "missing.json"], "missing.json: No such file or directory"),
    (["--resume", "missing"], "--resume missing: no run of this name in"),
    (["--resume"], "--resume latest: no run of this name in"),
]


@pytest.mark.parametrize("argv, words", REFUSED, ids=lambda x: " ".join(x) if x else "")
def test_bad_flags_are_refused_in_plain_words(argv, words, tmp_path):
    text = refusal("WGAN-GP", *argv, "--runs-dir", tmp_path / "runs")
    assert text.startswith(words) or text.endswith(words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv",
    [
        ["--seed", "0"],
        ["--seed", "4294967295"],
        ["--z-dim", "1", "--g-width", "16384"],
        ["--beta1", "0", "--hold-out", "0", "--max-seconds", "0.5"],
    ],
)
def test_limits_are_allowed(argv):
    assert parse(load("WGAN-GP"), *argv)


@pytest.mark.parametrize(
    "content, words",
    [
        ({"batchsize": 5}, "--batchsize: unknown; did you mean --batch-size?"),
        ({"epochs": "five"}, "--epochs: must be a positive whole number, not 'five'"),
        ({"epochs": 5.5}, "--epochs: must be a positive whole number, not '5.5'"),
        ({"epochs": None}, "--epochs: must be a positive whole number, not 'None'"),
        ({"epochs": True}, "--epochs"),
        ({"lr": [1]}, "--lr: must be a positive number, not '[1]'"),
        ('{"lr": NaN}', "--lr: must be a positive number, not 'nan'"),
        ({"graphs": "maybe"}, "--graphs"),
        ({"config": "other.json"}, "config"),
        ('{"epochs": 5', "is not a JSON file"),
        ("[1, 2]", "holds no JSON object but a list"),
        ("", "is not a JSON file"),
    ],
    ids=str,
)
def test_bad_files_are_refused_by_file_and_key(content, words, settings_file):
    path = settings_file(content)
    text = refusal("simpleGAN", "--config", path)
    assert text.startswith(str(path)) and words in text


def test_a_byte_order_mark_is_allowed(tmp_path):
    path = tmp_path / "settings.json"
    path.write_bytes(b'\xef\xbb\xbf{"epochs": 4}')
    assert parse(load("WGAN"), "--config", path).epochs == 4


def test_paths_are_stored_whole(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse(files, "--data", "images", "--data-dir", "cache", "--runs-dir", "../runs")
    assert (config.data, config.data_dir) == (str(tmp_path / "images"), str(tmp_path / "cache"))
    assert Path(config.runs_dir) == tmp_path / ".." / "runs"
    for name in ("faces", "mnist", "fashion-mnist", "cifar10", "celeba"):
        assert parse(files, "--data", name).data == name


def test_resume_brings_the_settings_of_the_run_and_flags_win(tiny, tmp_path):
    files = load("WGAN-GP")
    run = train("WGAN-GP", tiny | {"name": "run", "lr": 3e-3, "graphs": False})
    (tmp_path / "more.json").write_text('{"log_every": 5, "frame_every": 5}')
    argv = ["--resume", "run", "--runs-dir", tmp_path / "runs", "--max-steps", 9]
    argv += ["--config", tmp_path / "more.json", "--frame-every", 7]
    config = parse(files, *argv)
    assert (config.lr, config.graphs, config.image_size) == (3e-3, False, 16)
    assert (config.max_steps, config.resume, config.name) == (9, "run", "")
    assert (config.log_every, config.frame_every) == (5, 7)
    assert {"name", "resume", "runs_dir"}.isdisjoint(
        json.loads((run / "parameters.json").read_text())
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_setting_is_explained(folder, capsys):
    files = load(folder)
    with pytest.raises(SystemExit) as caught:
        parse(files, "--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    docs = docstring_parser.parse_from_object(files.train.Config).params
    helps = {parameter.args[1]: parameter.description for parameter in docs}
    for field in fields(files.train.Config):
        assert "--" + field.name.replace("_", "-") in text
        assert " ".join(f"{helps[field.name]} (default: {field.default!r})".split()) in text
