"""The notebook runs from top to bottom, with tiny settings, in a copy of the repository."""

import shutil

import pytest
from conftest import TOP

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def test_the_notebook_runs(tmp_path, data_dir, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    copy = tmp_path / "playground"
    left_out = shutil.ignore_patterns(
        ".*", "data", "tensorboard", "results", "tests", "__pycache__"
    )
    shutil.copytree(TOP, copy, ignore=left_out)
    notebook = nbformat.read(TOP / "playground.ipynb", 4)
    (parameters,) = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    ]
    tiny = "--image-size 16 --g-width 4 --d-width 4 --batch-size 8 --max-steps 6 --device cpu"
    tiny += f" --log-every 2 --frame-every 2 --data-dir {data_dir}"
    parameters.source = f'MODEL = "WGAN-GP"\nSECONDS = 60\nFLAGS = "{tiny}"'
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(copy)}}
    )
    client.execute()
    text, pictures = "", 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            text += output.get("text", "")
            pictures += any(kind.startswith("image/") for kind in output.get("data", {}))
    assert "Traceback" not in text and "error:" not in text, text
    assert text.count("finished    6 steps") == 4
    assert pictures == 5  # curves, real and generated, two GIFs, the four
    (run,) = (copy / "WGAN-GP" / "tensorboard" / "runs").iterdir()
    assert (run / "walk.gif").exists() and (copy / "comparison.html").exists()
    assert (run / "evaluation.jsonl").exists()


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(TOP / "playground.ipynb", 4)
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")
