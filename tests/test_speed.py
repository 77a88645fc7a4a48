"""What makes training fast must not change what is computed."""

import csv
import dataclasses

import pytest
import torch
from conftest import FOLDERS, load, make_critic

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")


def rows_of(run):
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("enabled", [True, False])
def test_without_cuda_the_step_is_run_as_it_is(files, enabled):
    def step():
        return {}

    assert files.machine.graphed(step, torch.device("cpu"), enabled) is step
    assert files.machine.graphed(step, torch.device("mps"), enabled) is step


@needs_cuda
def test_a_graph_is_eager_up_to_rounding(files, tiny):
    config = tiny(files, device="cuda", precision="fp32", max_steps=20, image_size=32, log_every=1)
    torch.backends.cudnn.deterministic = True
    eager = files.train.train(dataclasses.replace(config, graphs=False, name="eager"))
    graph = files.train.train(dataclasses.replace(config, graphs=True, name="graph"))
    for one, other in zip(rows_of(eager), rows_of(graph), strict=True):
        for name in one.keys() - {"seconds"}:
            assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-3, abs=1e-4), name


@needs_cuda
def test_a_run_moves_between_gpu_and_cpu(files, tiny):
    files.train.train(tiny(files, device="cuda", name="run", max_steps=4))
    files.train.train(tiny(files, device="cpu", resume="run", max_steps=6))
    files.train.train(tiny(files, device="cuda", resume="run", max_steps=8))


@pytest.mark.parametrize("graphs", [True, False])
def test_graphs_change_nothing_on_a_cpu(files, tiny, graphs):
    run = files.train.train(tiny(files, graphs=graphs, name=f"graphs{graphs}"))
    other = files.train.train(tiny(files, name=f"other{graphs}"))
    assert (run / "generator.safetensors").read_bytes() == (
        other / "generator.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("folder", FOLDERS)
def test_bf16_is_near_and_keeps_losses_in_float32(folder, tiny):
    files = load(folder)
    exact = files.train.train(tiny(files, precision="fp32", max_steps=2))
    lower = files.train.train(tiny(files, precision="bf16", max_steps=2, checkpoint_every=1))
    for name in ("loss_d", "loss_g"):
        one, other = (float(rows_of(run)[0][name]) for run in (exact, lower))
        assert other == pytest.approx(one, rel=0.2, abs=0.05) and other != one
    state = torch.load(lower / "checkpoint.before.pt", weights_only=True)
    assert {t.dtype for t in state["own"][0]["sums"].values()} == {torch.float32}
    assert {t.dtype for t in state["generator"].values()} <= {torch.float32, torch.int64}


def test_bf16_leaves_the_gradient_penalty_in_float32():
    files = load("WGAN-GP")
    torch.manual_seed(0)
    critic, plain = make_critic(files, 16, 3, 8), make_critic(files, 16, 3, 8)
    plain.load_state_dict(critic.state_dict())
    files.machine.place(torch.device("cpu"), "bf16", critic)
    files.machine.place(torch.device("cpu"), "fp32", plain)
    real, fake = torch.rand(2, 8, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert not torch.equal(critic(real), plain(real)) and critic(real).dtype == torch.float32
    penalties = []
    for network in (critic, plain):
        torch.manual_seed(1)
        penalties.append(files.train.gradient_penalty(network, real, fake)[0])
    assert torch.equal(*penalties)


def test_precision_sets_what_a_gpu_may_round():
    machine = load("DCGAN").machine
    machine.pick_device("cpu", 0, "fp32")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    machine.pick_device("cpu", 0, "tf32")
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32


def test_the_host_part_of_minibatches_keeps_their_place():
    """A graph reads the memory where the first minibatches lay: it must never move."""
    import numpy as np

    images = np.zeros((64, 4, 4, 3), np.uint8)
    batches = load("WGAN").data.Batches(images, 8, torch.device("cpu"), 0)
    places = set()
    for _ in range(20):
        batches.draw(3)
        places.add(batches.chosen.data_ptr())
    assert len(places) == 1


def test_optimisers_are_fused_where_they_can_be(files, tiny, monkeypatch):
    seen = {}

    def look(*args, **parts):
        seen.update(parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(files.train, "Run", look)
    with pytest.raises(KeyboardInterrupt):
        files.train.train(tiny(files))
    for name, part in seen.items():
        if name.endswith("optimizer") and isinstance(part, torch.optim.Adam):
            assert part.param_groups[0]["fused"]
