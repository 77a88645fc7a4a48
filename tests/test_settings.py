"""Settings: defaults, JSON files and flags, and what is refused, with which words."""

import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from conftest import TOP, load, parse, train


def refusal(folder, *argv):
    files = load(folder)
    with pytest.raises(files.utils.InputError) as caught:
        parse(files, *argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder, content, name="settings.json"):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, "utf-8")
    return folder / name


def test_a_flag_wins_over_files_and_the_last_file_over_the_others(files, tmp_path):
    one = write(tmp_path, {"epochs": 7, "batch_size": 32, "seed": 3})
    two = write(tmp_path, {"epochs": 9}, "two.json")
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


def test_values_have_the_types_of_their_defaults(files, tmp_path):
    path = write(tmp_path, {"lr": 1, "channels": 3, "graphs": False})  # the last is of earlier runs
    config = parse(files, "--config", path, "--seed", "7", "--max-seconds", "5")
    assert (config.lr, config.channels, config.seed, config.max_seconds) == (1.0, 3, 7, 5.0)
    defaults = asdict(files.train.Config())
    for name, value in asdict(config).items():
        assert type(value) is type(defaults[name]) or name == "channels", name


REFUSED = [
    (["--epoch", "5"], "--epoch: unknown; did you mean --epochs?"),
    (["--learning-rate=5"], "--learning-rate: unknown; did you mean --lr?"),
    (["--xyz=5"], "--xyz: unknown; see --help"),
    (["--lr", "fast"], "--lr: must be a valid number, not 'fast'"),
    (["--lr", "0"], "--lr: must be greater than 0, not 0"),
    (["--epochs", "1.5"], "--epochs: must be a valid integer, not '1.5'"),
    (["--max-steps", "-1"], "--max-steps: must be greater than or equal to 0, not -1"),
    (["--max-seconds", "-1"], "--max-seconds: must be greater than or equal to 0, not -1"),
    (["--seed", "4294967296"], "--seed: must be less than or equal to 4294967295, not"),
    (["--g-width", "16385"], "--g-width: must be less than or equal to 16384, not 16385"),
    (["--d-width", "0"], "--d-width: must be greater than or equal to 1, not 0"),
    (["--image-size", "48"], "--image-size: must be 16, 32, 64, 128, 256, 512 or 1024, not '48'"),
    (["--channels", "2"], "--channels: must be 'data', 1 or 3, not '2'"),
    (["--precision", "half"], "--precision: must be 'auto', 'fp32', 'tf32' or 'bf16', not 'half'"),
    (["--lr"], "--lr: expected one argument"),
    (["--config", "missing.json"], "missing.json: No such file or directory"),
    (["--resume", "missing"], "--resume missing: no run of this name in"),
    (["--resume"], "--resume latest: no run of this name in"),
    (["--resume", "a", "--name", "b"], "--name: a resumed run keeps its name"),
]


@pytest.mark.parametrize("argv, words", REFUSED, ids=lambda x: " ".join(x) if x else "")
def test_bad_flags_are_refused_in_plain_words(argv, words, tmp_path):
    assert words in refusal("WGAN-GP", *argv, "--runs-dir", tmp_path / "runs")
    assert not list(tmp_path.iterdir())


def test_limits_and_a_byte_order_mark_are_allowed(tmp_path):
    limits = {"seed": 2**32 - 1, "z_dim": 1, "g_width": 2**14, "max_seconds": 0.5}
    path = write(tmp_path, "\ufeff" + json.dumps(limits))
    assert asdict(parse(load("WGAN-GP"), "--config", path)).items() >= limits.items()


BAD_FILES = [
    ({"batchsize": 5}, "--batchsize: unknown; did you mean --batch-size?"),
    ({"epochs": "5"}, "--epochs: must be a valid integer, not '5'"),
    ({"epochs": True}, "--epochs: must be a valid integer, not True"),
    ('{"lr": NaN}', "--lr: must be a finite number, not nan"),
    ({"minimax": "maybe"}, "--minimax: must be a valid boolean, not 'maybe'"),
    ({"config": "other.json"}, "--config: unknown"),
    ('{"epochs": 5', "is not a JSON file"),
    ("[1, 2]", "is not a JSON file of one object"),
]


@pytest.mark.parametrize("content, words", BAD_FILES, ids=str)
def test_bad_files_are_refused_by_file_and_key(content, words, tmp_path):
    path = write(tmp_path, content)
    text = refusal("simpleGAN", "--config", path)
    assert text.startswith(str(path)) and words in text


def test_paths_are_stored_whole(files, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    config = parse(files, "--data", "../images", "--data-dir", "cache", "--runs-dir", "~/runs")
    places = tmp_path / "images", tmp_path / "cwd" / "cache", Path.home() / "runs"
    assert (config.data, config.data_dir, config.runs_dir) == (*map(str, places),)
    path = write(tmp_path, {"data": "images", "data_dir": "../cache"})  # they start at the file
    config = parse(files, "--config", path, "--data", "faces.zip")
    assert config.data == str(tmp_path / "cwd" / "faces.zip")
    assert config.data_dir == str(tmp_path.parent / "cache")
    for name in ("faces", "mnist", "fashion-mnist", "cifar10", "celeba"):
        assert parse(files, "--data", name).data == name


def test_a_config_in_python_is_checked_too():
    config = load("WGAN-GP").train.Config
    for wrong in ({"lr": -1.0}, {"epochs": 1.5}, {"epochs": "5"}, {"lr": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            config(**wrong)


def test_resume_brings_the_settings_of_the_run_and_flags_win(tiny, tmp_path):
    files = load("WGAN-GP")
    run = train("WGAN-GP", tiny | {"name": "run", "lr": 3e-3})
    (tmp_path / "more.json").write_text('{"log_every": 5, "frame_every": 5}')
    argv = ["--resume", "run", "--runs-dir", tmp_path / "runs", "--max-steps", 9]
    argv += ["--config", tmp_path / "more.json", "--frame-every", 7]
    config = parse(files, *argv)
    assert (config.lr, config.image_size) == (3e-3, 16)
    assert (config.max_steps, config.resume, config.name) == (9, "run", "")
    assert (config.log_every, config.frame_every) == (5, 7)
    saved = json.loads((run / "parameters.json").read_text())
    assert {"name", "resume", "runs_dir"}.isdisjoint(saved)


def test_every_setting_is_explained(files, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(files, "--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    source = (TOP / files.folder / "train.py").read_text()
    for field in fields(files.train.Config):
        assert "--" + field.name.replace("_", "-") in text
        written = re.search(rf' {field.name}: .*\n    """(.*)"""\n', source)[1]
        assert f"{written} (default: {getattr(files.train.Config(), field.name)!r})" in text
