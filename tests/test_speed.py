"""What makes training fast must not change what is computed."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import load, rows_of, train

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")


@needs_cuda
def test_a_run_moves_between_gpu_and_cpu(files, tiny):
    train(files.folder, tiny | {"device": "cuda", "name": "run", "max_steps": 4})
    train(files.folder, tiny | {"device": "cpu", "resume": "run", "max_steps": 6})
    train(files.folder, tiny | {"device": "cuda", "resume": "run", "max_steps": 8})


def test_a_run_in_bf16_keeps_weights_and_sums_in_float32(files, tiny):
    run = train(files.folder, tiny | {"precision": "bf16", "max_steps": 3})
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert {t.dtype for t in state["generator"].values()} <= {torch.float32, torch.int64}
    exact = train(files.folder, tiny | {"precision": "fp32", "max_steps": 3})
    for name in ("loss_d", "loss_g"):
        one, other = (float(rows_of(r)[0][name]) for r in (exact, run))
        assert other == pytest.approx(one, rel=0.2, abs=0.05) and other != one


def test_precision_sets_what_a_gpu_may_round():
    files = load("DCGAN")
    torch.set_flush_denormal(False)
    for precision, products, tf32 in (("fp32", "highest", False), ("tf32", "high", True)):
        files.utils.set_up(files.train.Config(device="cpu", precision=precision))
        assert torch.get_float32_matmul_precision() == products
        assert torch.backends.cudnn.allow_tf32 == tf32
    assert torch.tensor(1e-40) * 1 == 0  # numbers that small take a CPU far longer


@pytest.mark.parametrize(
    "asked, there, count, expected",
    [
        ("auto", None, 1, "cpu fp32"),
        ("auto", "cuda", 1, "cuda tf32"),
        ("auto", "cuda", 2, "cuda:1 tf32"),  # the second process takes the second GPU
        ("auto", "mps", 1, "mps fp32"),
        ("auto", "mps", 2, "cpu fp32"),  # Gloo has no operations for Apple's GPUs
        ("cpu", "cuda", 1, "cpu fp32"),
    ],
)
def test_a_device_is_chosen_and_a_precision_for_it(monkeypatch, asked, there, count, expected):
    files, joined = load("DCGAN"), []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(there))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(torch.cuda, "set_device", joined.append)
    monkeypatch.setattr(
        files.utils.dist, "init_process_group", lambda backend, **_: joined.append(backend)
    )
    for name, value in (("WORLD_SIZE", count), ("RANK", count - 1), ("LOCAL_RANK", count - 1)):
        monkeypatch.setenv(name, str(value))
    with monkeypatch.context() as patch:
        made = lambda _, device: SimpleNamespace(device=torch.device(device))  # noqa: E731
        patch.setattr(torch, "empty", made)
        device, config = files.utils.set_up(files.train.Config(device=asked))
    files.utils.place(device)
    assert f"{device} {config.precision}" == expected
    if there == "cuda" and count == 2:
        assert joined == [torch.device("cuda:1"), "cpu:gloo,cuda:nccl"]
    else:
        assert joined == ["gloo"] * (count - 1)


def test_a_device_that_is_not_there_is_refused_in_one_line():
    files = load("DCGAN")
    for name in ("toaster", "cuda:99"):
        with pytest.raises(files.utils.InputError) as caught:
            files.utils.set_up(files.train.Config(device=name))
        assert str(caught.value).startswith(f"--device {name}: not available (")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "feature, chosen", [("avx512_bf16", "bf16"), ("amx_bf16", "bf16"), ("avx2", "fp32")]
)
def test_auto_takes_bfloat16_where_a_cpu_has_it(files, tiny, monkeypatch, feature, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True})
    auto, asked = (
        train(files.folder, tiny | {"precision": name, "name": name, "max_steps": 2})
        for name in ("auto", chosen)
    )
    assert (auto / "generator.safetensors").read_bytes() == (
        asked / "generator.safetensors"
    ).read_bytes()
    for name in ("parameters.json", "run.json"):
        assert json.loads((auto / name).read_text())["precision"] == chosen
    assert f"), {chosen}\n" in (auto / "train.log").read_text()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    train(files.folder, {"resume": "auto", "runs_dir": tiny["runs_dir"], "max_steps": 3})
    assert json.loads((auto / "parameters.json").read_text())["precision"] == chosen


def test_networks_are_placed_in_the_layout_that_is_fast(files, tiny, monkeypatch):
    """Channels last for convolutions, and both optimizers fused where PyTorch can."""
    seen = {}

    class Looked(BaseException):
        pass

    def look(*arguments):
        seen.update(arguments[-1])
        raise Looked

    monkeypatch.setattr(files.train, "Run", look)
    with pytest.raises(Looked):
        train(files.folder, tiny)
    for name, part in seen.items():
        if isinstance(part, torch.nn.Module):
            kernels = [p for p in part.parameters() if p.ndim == 4 and p.shape[1] > 1]
            assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
        if isinstance(part, torch.optim.Adam):
            assert part.param_groups[0]["fused"], name
