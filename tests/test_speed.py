"""What makes training fast must not change what is computed."""

import json
import platform
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import each_step, facts_of, load, rows_of, state_of, train


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_a_run_moves_between_gpu_and_cpu(files, tiny):
    train(files.folder, tiny | {"device": "cuda", "name": "run", "max_steps": 4})
    train(files.folder, tiny | {"device": "cpu", "resume": "run", "max_steps": 6})
    train(files.folder, tiny | {"device": "cuda", "resume": "run", "max_steps": 8})


def test_precision_sets_what_a_gpu_may_round():
    files = load("DCGAN")
    torch.set_flush_denormal(False)
    for precision, products, tf32 in (("fp32", "highest", False), ("tf32", "high", True)):
        files.utils.set_up(files.train.Config(device="cpu", precision=precision))
        assert torch.get_float32_matmul_precision() == products
        assert torch.backends.cudnn.allow_tf32 == tf32
    assert torch.tensor(1e-40) * 1 == 0  # numbers that small take a CPU far longer


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_step_reuses_the_memory_of_the_one_before(monkeypatch, tiny):
    import resource

    faults = []

    def count(*_):
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

    each_step(load("simpleGAN"), monkeypatch, count)
    wide = {"g_width": 512, "d_width": 512, "max_steps": 6, "frame_every": 9, "checkpoint_every": 9}
    train("simpleGAN", tiny | wide)
    assert min(np.diff(faults)) < 3_000  # of 4 kB each; over 100,000 a step without mallopt


DEVICES = [
    ("auto", None, 1, "cpu fp32"),
    ("auto", "cuda", 1, "cuda tf32"),
    ("auto", "cuda", 2, "cuda:1 tf32"),  # the second process takes the second GPU
    ("auto", "mps", 1, "mps fp32"),
    ("auto", "mps", 2, "cpu fp32"),  # Gloo has no operations for Apple's GPUs
    ("cpu", "cuda", 1, "cpu fp32"),
]


@pytest.mark.parametrize("asked, there, count, expected", DEVICES)
def test_a_device_is_chosen_and_a_precision_for_it(monkeypatch, asked, there, count, expected):
    files, joined = load("DCGAN"), []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(there))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(torch.cuda, "set_device", joined.append)
    join = lambda backend, **_: joined.append(backend)  # noqa: E731
    monkeypatch.setattr(files.utils.dist, "init_process_group", join)
    for name, value in (("WORLD_SIZE", count), ("RANK", count - 1), ("LOCAL_RANK", count - 1)):
        monkeypatch.setattr(files.utils, name, value)
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


def test_auto_takes_bfloat16_where_a_cpu_has_it(files, tiny, monkeypatch):
    """Its layers, that is: weights and losses stay in float32."""
    runs = {name: train(files.folder, tiny | {"precision": name}) for name in ("fp32", "bf16")}
    losses = [float(rows_of(runs[name])[0]["loss_g"]) for name in ("fp32", "bf16")]
    assert losses[0] == pytest.approx(losses[1], rel=0.2, abs=0.05) and losses[0] != losses[1]
    intel = {"avx512_bf16": True, "cpu_name": "Intel Xeon"}  # slower than fp32 without AMX
    cases = [({"avx2": True}, "fp32"), ({"avx512_bf16": True}, "bf16")]
    cases += [(intel, "fp32"), (intel | {"amx_bf16": True}, "bf16")]
    for number, (able, chosen) in enumerate(cases):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        run = train(files.folder, tiny | {"precision": "auto", "name": f"auto-{number}"})
        files_of_weights = (each / "generator.safetensors" for each in (run, runs[chosen]))
        assert len({file.read_bytes() for file in files_of_weights}) == 1
        assert facts_of(run)["precision"] == chosen
        assert f"), {chosen}\n" in (run / "train.log").read_text()
    kinds = {tensor.dtype for tensor in state_of(run)["generator"].values()}
    assert kinds <= {torch.float32, torch.int64}
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    train(files.folder, {"resume": run.name, "runs_dir": tiny["runs_dir"], "max_steps": 5})
    assert json.loads((run / "parameters.json").read_text())["precision"] == "bf16"


def test_networks_are_placed_in_the_layout_that_is_fast(files, tiny, monkeypatch):
    """Channels last for convolutions, and both optimizers fused where PyTorch can."""

    def look(config, dataset, device, batches, parts, arguments):
        raise LookupError(*parts.values())

    monkeypatch.setattr(files.train, "Run", look)
    with pytest.raises(LookupError) as caught:
        train(files.folder, tiny)
    networks = [part for part in caught.value.args if isinstance(part, torch.nn.Module)]
    tensors = [tensor for network in networks for tensor in network.parameters()]
    kernels = [tensor for tensor in tensors if tensor.ndim == 4 and tensor.shape[1] > 1]
    assert len(networks) == 2 and {tensor.device.type for tensor in tensors} == {"cpu"}
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    optimizers = [part for part in caught.value.args if isinstance(part, torch.optim.Adam)]
    assert all(optimizer.param_groups[0]["fused"] for optimizer in optimizers)
