"""Settings: defaults, files and flags, and what is refused."""

import json
from dataclasses import asdict

import pytest
import torch
from conftest import FOLDERS, TOP, load


def parse(files, *argv):
    return files.utils.parse_config(files.train.Config, list(argv))


def refusal(files, *argv):
    with pytest.raises(files.utils.InputError) as caught:
        parse(files, *argv)
    return " ".join(str(caught.value).split())


@pytest.fixture
def settings_file(tmp_path):
    def write(content):
        path = tmp_path / "settings.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_without_arguments_settings_are_the_defaults(files):
    assert parse(files) == files.train.Config()


def test_a_flag_wins_over_the_file_wherever_it_stands(files, settings_file):
    path = settings_file({"epochs": 7, "batch_size": 32})
    for argv in (
        ["--epochs", "5", "--config", path],
        ["--config", path, "--epochs", "5"],
        ["--epochs=5", f"--config={path}"],
    ):
        config = parse(files, *argv)
        assert (config.epochs, config.batch_size) == (5, 32)


def test_the_last_of_several_files_wins(files, settings_file, tmp_path):
    second = tmp_path / "second.json"
    second.write_text('{"epochs": 9}')
    config = parse(
        files, "--config", settings_file({"epochs": 7, "seed": 3}), "--config", str(second)
    )
    assert (config.epochs, config.seed) == (9, 3)


def test_quick_json_is_found_from_anywhere(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(files, "--config", "quick.json").image_size == 32


@pytest.mark.parametrize("folder", FOLDERS)
def test_quick_json_changes_what_it_names_and_nothing_is_a_default(folder):
    files = load(folder)
    quick = json.loads((TOP / folder / "quick.json").read_text())
    defaults = asdict(files.train.Config())
    assert quick and all(defaults[name] != value for name, value in quick.items())


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--epoch", "5"], "--epoch"),
        (["--nonsense", "5"], "--nonsense"),
        (["stray"], "stray"),
        (["--lr", "abc"], "lr"),
        (["--lr", "nan"], "lr"),
        (["--lr", "inf"], "lr"),
        (["--lr", "0"], "lr"),
        (["--lr", "-1"], "lr"),
        (["--epochs", "0"], "epochs"),
        (["--epochs", "1.5"], "epochs"),
        (["--batch-size", "-4"], "batch_size"),
        (["--max-steps", "-1"], "max_steps"),
        (["--seed", "-1"], "seed"),
        (["--seed", "4294967296"], "seed"),
        (["--image-size", "48"], "image_size"),
        (["--image-size", "8"], "image_size"),
        (["--channels", "2"], "channels"),
        (["--lr"], "--lr"),
        (["--config"], "--config"),
        (["--config", "missing.json"], "missing.json"),
        (["--resume", "missing"], "missing"),
        (["--resume"], "no run to go on with"),
    ],
)
def test_bad_flags_are_refused_by_name(argv, named, tmp_path):
    text = refusal(load("WGAN-GP"), *argv, "--runs-dir", str(tmp_path / "runs"))
    assert named in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"epoch": 5}', "epoch"),
        ('{"epochs": "five"}', "epochs"),
        ('{"epochs": 5.5}', "epochs"),
        ('{"epochs": null}', "epochs"),
        ('{"epochs": true}', "epochs"),
        ('{"lr": NaN}', "lr"),
        ('{"lr": [1]}', "lr"),
        ('{"lr": 1' + "0" * 400 + "}", "too large"),
        ('{"image_size": 40}', "image_size"),
        ('{"data": 5}', "data"),
        ('{"epochs": 5', "settings.json holds no JSON object"),
        ("[1, 2]", "settings.json holds no JSON object"),
        ("", "settings.json holds no JSON object"),
    ],
)
def test_bad_files_are_refused_by_name(content, named, settings_file):
    for folder in ("simpleGAN", "WGAN-GP"):
        assert named in refusal(load(folder), "--config", settings_file(content))


def test_fractions_are_below_1():
    for folder in ("simpleGAN", "DCGAN", "WGAN-GP"):
        assert "beta1" in refusal(load(folder), "--beta1", "1")
        assert parse(load(folder), "--beta1", "0").beta1 == 0


def test_help_names_every_flag_with_its_meaning_and_default(files, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(files, "--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in asdict(files.train.Config()):
        assert "--" + name.replace("_", "-") in text
    assert "Images in a minibatch" in text and "default: 64" in text


def test_yes_and_no_are_flags_and_json_booleans(settings_file):
    files = load("simpleGAN")
    assert not parse(files, "--no-graphs").graphs
    assert parse(files, "--minimax").minimax
    config = parse(files, "--config", settings_file({"graphs": False, "minimax": True}))
    assert (config.graphs, config.minimax) == (False, True)
    assert "graphs" in refusal(files, "--config", settings_file({"graphs": "maybe"}))


def test_values_are_plain(files):
    config = files.utils.parse_config(
        files.train.Config, ["--lr", "1e-3", "--seed", "7", "--no-graphs", "--config", "quick.json"]
    )
    assert {type(value) for value in vars(config).values()} == {bool, int, float, str}


def test_a_run_with_flags_can_be_resumed(files, tmp_path, data_dir):
    flags = ["--config", "quick.json", "--lr", "3e-4", "--image-size", "16", "--batch-size", "8"]
    flags += ["--g-width", "4", "--d-width", "4", "--device", "cpu", "--data-dir", data_dir]
    flags += ["--runs-dir", str(tmp_path), "--name", "run"]
    for more in (["--max-steps", "2"], ["--max-steps", "3", "--resume", "run"]):
        config = files.utils.parse_config(files.train.Config, [*flags, *more])
        run = files.train.train(config)
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 3
