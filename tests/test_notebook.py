"""The notebook runs from top to bottom, with tiny settings, in a copy of the repository."""

import shutil

import nbclient
import nbformat
import pytest
from conftest import TOP

TINY = "--image-size 16 --batch-size 8 --device cpu"


@pytest.mark.long
def test_the_notebook_runs(tmp_path, data_dir):
    copy, left_out = tmp_path / "playground", (".*", "data", "tensorboard", "results", "tests")
    shutil.copytree(TOP, copy, ignore=shutil.ignore_patterns(*left_out, "__pycache__", "race"))
    notebook = nbformat.read(TOP / "playground.ipynb", 4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    often = "--max-steps 6 --log-every 2 --frame-every 2 --g-width 4 --d-width 4"
    race = f"--images 96 --seeds 1 --width 4 --hold-out 100 --num 100 --data-dir {data_dir}"
    cell.source = f'MODEL = "WGAN-GP"\nFLAGS = "{TINY} {often} --data-dir {data_dir}"'
    cell.source += f'\nRACE = "{TINY} {race} --models simpleGAN"'
    resources = {"metadata": {"path": str(copy)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    kinds = [kind for output in outputs for kind in output.get("data", ())]
    assert "error:" not in text and "Traceback" not in text, text
    assert not [output for output in outputs if output.output_type == "error"]
    assert kinds.count("image/gif") == 3 and kinds.count("image/png") == 1
    assert any("plotly" in kind for kind in kinds)
    (run,) = (copy / "WGAN-GP" / "tensorboard" / "runs").iterdir()
    assert (run / "evaluation.jsonl").is_file() and list(copy.glob("race/*/race.html"))
