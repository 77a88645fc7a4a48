"""Who moves, when, on what data and noise: the algorithms' order, step by step."""

import copy
import itertools

import numpy as np
import pytest
import torch
from conftest import FOLDERS, critic_step, load, make_critic
from torch.optim import Adam, Optimizer, RMSprop


def weights(network):
    return [p.detach().clone() for p in network.parameters()]


def same(network, before):
    return all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


def tiny_pair(files, channels=3):
    torch.manual_seed(0)
    return files.model.Generator(8, 16, channels, 4), make_critic(files, 16, channels, 4)


def inner_steps(folder):
    return 5 if folder.startswith("WGAN") else 1


def take_generator_step(files, critic, generator, optimizer, z):
    extra = (False,) if files.train.__name__ and hasattr(files.train.Config(), "minimax") else ()
    return files.train.generator_step(critic, generator, optimizer, z, *extra)


# ---- one step ----


def test_the_critic_step_moves_the_critic_alone(files):
    generator, critic = tiny_pair(files)
    before, critic_before = weights(generator), weights(critic)
    optimizer = RMSprop(critic.parameters(), 1e-3)
    config = files.train.Config(z_dim=8)
    critic_step(files)(critic, generator, optimizer, torch.rand(8, 3, 16, 16), config)
    assert same(generator, before)
    assert all(p.grad is None for p in generator.parameters())
    assert not same(critic, critic_before)


def test_the_generator_step_moves_the_generator_alone(files):
    generator, critic = tiny_pair(files)
    before, critic_before = weights(generator), weights(critic)
    for parameter in critic.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    take_generator_step(
        files, critic, generator, Adam(generator.parameters(), 1e-3), torch.randn(8, 8)
    )
    assert same(critic, critic_before)
    assert all((p.grad == 7).all() and p.requires_grad for p in critic.parameters())
    assert not same(generator, before)


def test_fakes_reach_the_critic_without_a_graph(files):
    generator, critic = tiny_pair(files)
    seen = []
    critic.register_forward_pre_hook(
        lambda _, inputs: seen.append((inputs[0].requires_grad, inputs[0].grad_fn))
    )
    config = files.train.Config(z_dim=8)
    critic_step(files)(
        critic, generator, Adam(critic.parameters()), torch.rand(8, 3, 16, 16), config
    )
    # x_hat of the penalty asks for a gradient, but is a leaf: it leads to no generator
    assert [grad_fn for _, grad_fn in seen] == [None] * len(seen)
    assert not any(needs for needs, _ in (seen[:2] if len(seen) > 1 else seen))


@pytest.mark.parametrize("folder", FOLDERS)
def test_real_and_fake_meet_in_no_batch_norm(folder):
    files = load(folder)
    generator, critic = tiny_pair(files)
    seen, fakes = [], []
    critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    generator.register_forward_hook(lambda _, __, output: fakes.append(output.detach().clone()))
    real = torch.rand(8, 3, 16, 16)
    config = files.train.Config(z_dim=8)
    critic_step(files)(critic, generator, Adam(critic.parameters()), real, config)
    take_generator_step(files, critic, generator, Adam(generator.parameters()), torch.randn(8, 8))
    if folder == "simpleGAN":  # no batch norm: one pass for both
        seen[0:1] = seen[0].chunk(2)
    assert torch.equal(seen[0], real)
    assert torch.equal(seen[1], fakes[0])
    assert torch.equal(seen[-1], fakes[-1])
    assert len(seen) == (4 if hasattr(files.train, "gradient_penalty") else 3)


def test_steps_go_downhill(files):
    generator, critic = tiny_pair(files)
    torch.manual_seed(3)
    real, z = torch.rand(64, 3, 16, 16), torch.randn(64, 8)
    config = files.train.Config(z_dim=8)
    generator_before, critic_before = copy.deepcopy(generator), copy.deepcopy(critic)

    def loss_of_critic():
        torch.manual_seed(5)  # the same noise each time
        again = copy.deepcopy(critic)
        still = torch.optim.SGD(again.parameters(), 0.0)
        return critic_step(files)(again, copy.deepcopy(generator_before), still, real, config)[
            "loss_d"
        ]

    before = loss_of_critic()
    torch.manual_seed(5)
    critic_step(files)(critic, generator, torch.optim.SGD(critic.parameters(), 1e-3), real, config)
    if not hasattr(files.train, "clip_weights"):  # the first clipping moves most weights
        assert loss_of_critic() < before

    def score():
        torch.manual_seed(5)  # the same dropout each time
        with torch.no_grad():
            return critic_before(generator(z)).mean()

    before = score()
    torch.manual_seed(5)
    take_generator_step(
        files, critic_before, generator, torch.optim.SGD(generator.parameters(), 1e-2), z
    )
    assert score() > before


# ---- clipping ----


def test_weights_are_clipped_after_every_update_and_when_the_generator_learns():
    files = load("WGAN")
    generator, critic = tiny_pair(files)
    optimizer = RMSprop(critic.parameters(), 5e-2)
    largest = []

    def look(*_):
        largest.append(max(p.abs().max().item() for p in critic.parameters()))

    for _ in range(3):
        files.train.critic_step(
            critic, generator, optimizer, torch.rand(8, 3, 16, 16), files.train.Config(z_dim=8)
        )
        look()
        handle = critic.register_forward_pre_hook(look)
        take_generator_step(
            files, critic, generator, RMSprop(generator.parameters()), torch.randn(8, 8)
        )
        handle.remove()
    assert len(largest) == 6 and max(largest) <= 0.01 + 1e-9


def test_the_first_clipping():
    files = load("WGAN")
    torch.manual_seed(0)
    critic = files.model.Critic(64, 3, 64)
    share = files.train.clip_weights(critic, 0.01)
    convolutions = torch.cat(
        [m.weight.detach().flatten() for m in critic.modules() if isinstance(m, torch.nn.Conv2d)]
    )
    assert (convolutions.abs() == torch.tensor(0.01)).float().mean() == pytest.approx(
        0.617, abs=0.01
    )
    assert convolutions.std() == pytest.approx(0.0086, abs=1e-4)
    assert all(
        (m.weight == 0.01).all() for m in critic.modules() if isinstance(m, torch.nn.BatchNorm2d)
    )
    assert share == pytest.approx(0.617, abs=0.01)


# ---- whole trainings, watched ----


class Watched:
    """Record what a training does: steps in order, noise, real minibatches, optimisers."""

    def __init__(self, files, config, monkeypatch):
        self.events, self.noise, self.real, self.parts = [], [], [], {}
        train, name = files.train, critic_step(files).__name__
        inner, outer, run = getattr(train, name), train.generator_step, train.Run

        def watched_inner(*args):
            self.events.append("C")
            self.real.append(args[3].clone())
            return inner(*args)

        def watched_outer(*args):
            self.events.append("G")
            return outer(*args)

        def watched_run(*args, **parts):
            self.parts = parts
            parts["generator"].register_forward_pre_hook(
                lambda net, inputs: self.noise.append(inputs[0].clone()) if net.training else None
            )
            return run(*args, **parts)

        monkeypatch.setattr(train, name, watched_inner)
        monkeypatch.setattr(train, "generator_step", watched_outer)
        monkeypatch.setattr(train, "Run", watched_run)
        self.path = train.train(config)


@pytest.fixture(params=FOLDERS)
def watched(request, tiny, monkeypatch):
    files = load(request.param)
    return request.param, Watched(files, tiny(files), monkeypatch)


def test_n_critic_steps_then_one_of_the_generator(watched):
    folder, run = watched
    assert "".join(run.events) == ("C" * inner_steps(folder) + "G") * 4


def test_every_step_has_new_real_images_and_new_noise(watched):
    folder, run = watched
    n = inner_steps(folder)
    assert len(run.real) == 4 * n
    assert len(run.noise) == 4 * (n + 1)
    flat = [tensor.flatten(1) for tensor in run.real]
    rows = torch.cat(flat)
    assert len(rows.unique(dim=0)) == len(rows)  # no image twice within a pass, let alone a batch
    noise = torch.cat(run.noise)
    assert len(noise.unique(dim=0)) == len(noise)


def test_noise_is_standard_normal(tiny, monkeypatch):
    files = load("WGAN-GP")
    run = Watched(files, tiny(files, z_dim=100, batch_size=64, max_steps=3), monkeypatch)
    z = torch.cat(run.noise).flatten()
    assert len(z) > 1e5
    assert abs(z.mean()) < 0.02 and abs(z.var() - 1) < 0.02
    assert abs(((z - z.mean()) ** 4).mean() / z.var() ** 2 - 3) < 0.1


def test_optimisers_are_those_of_the_design(files, tiny, monkeypatch):
    run = Watched(files, tiny(files, max_steps=1), monkeypatch)
    defaults = files.train.Config()
    optimisers = {name: part for name, part in run.parts.items() if isinstance(part, Optimizer)}
    assert len(optimisers) == 2
    expected = {
        "simpleGAN": (Adam, 5e-5, (0.9, 0.999)),
        "DCGAN": (Adam, 5e-5, (0.5, 0.999)),
        "WGAN": (RMSprop, 5e-5, None),
        "WGAN-GP": (Adam, 1e-4, (0.0, 0.9)),
    }[files.run_folder.HERE.name]
    for name, optimiser in optimisers.items():
        (group,) = optimiser.param_groups
        assert (type(optimiser), group["lr"], group.get("betas")) == expected
        assert group["lr"] == defaults.lr and group["weight_decay"] == 0
        assert group.get("momentum", 0) == 0 and group.get("alpha", 0.99) == 0.99
        owner = run.parts[name.removesuffix("_optimizer")]
        assert [id(p) for p in group["params"]] == [id(p) for p in owner.parameters()]


def test_rmsprop_moves_ten_step_sizes_at_first():
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = RMSprop([parameter], load("WGAN").train.Config().lr)
    parameter.grad = torch.tensor([1e-3, 1.0, -50.0])
    optimizer.step()
    torch.testing.assert_close(
        parameter.detach(), 5e-4 * torch.tensor([-1.0, -1.0, 1.0]), rtol=1e-3, atol=0
    )
    for _ in range(2000):
        before = parameter.detach().clone()
        optimizer.step()
    torch.testing.assert_close(
        (parameter.detach() - before).abs(), torch.full((3,), 5e-5), rtol=1e-3, atol=0
    )


def test_defaults_are_the_designs():
    expected = {
        "simpleGAN": {"z_dim": 64, "epochs": 50, "k": 1, "minimax": False},
        "DCGAN": {"z_dim": 100, "epochs": 50, "g_width": 128, "d_width": 64},
        "WGAN": {"z_dim": 100, "epochs": 30, "n_critic": 5, "clip_value": 0.01, "g_width": 64},
        "WGAN-GP": {"z_dim": 100, "epochs": 30, "n_critic": 5, "lambda_gp": 10.0, "g_width": 64},
    }
    for folder, values in expected.items():
        config = load(folder).train.Config()
        for name, value in (values | {"image_size": 64, "batch_size": 64, "data": "faces"}).items():
            assert getattr(config, name) == value, f"{folder}: {name}"


# ---- minibatches ----


def coded_images(count):
    """Make pictures whose first pixel is their number."""
    images = np.zeros((count, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images


def numbers(batch):
    return ((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_a_pass_shows_every_picture_once_and_the_next_in_another_order():
    data = load("WGAN").data
    batches = data.Batches(coded_images(100), 20, torch.device("cpu"), seed=0)
    batches.draw(15)
    passes = [[numbers(next(batches)) for _ in range(5)] for _ in range(3)]
    for one in passes:
        assert sorted(itertools.chain(*one)) == list(range(100))
    assert passes[0] != passes[1] != passes[2]


def test_left_over_pictures_get_their_turn_in_a_later_pass():
    data = load("WGAN").data
    batches = data.Batches(coded_images(50), 20, torch.device("cpu"), seed=0)
    batches.draw(22)
    one = [numbers(next(batches)) for _ in range(2)]
    assert len(set(itertools.chain(*one))) == 40
    seen = {n for _ in range(20) for n in numbers(next(batches))}
    assert seen == set(range(50))


def test_minibatches_go_on_where_their_state_was_taken():
    data = load("WGAN").data

    def make(seed):
        return data.Batches(coded_images(100), 20, torch.device("cpu"), seed)

    for taken in (0, 3, 5, 7):
        batches, other = make(1), make(2)
        for _ in range(taken):
            batches.draw(1)
        other.load_state_dict(copy.deepcopy(batches.state_dict()))
        for _ in range(12):
            batches.draw(1)
            other.draw(1)
            assert torch.equal(next(batches), next(other))


def test_bytes_become_values_from_minus_1_to_1():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    images[0], images[1] = 255, 128

    def only_batch(images):
        batches = load("WGAN").data.Batches(images, 2, torch.device("cpu"), 0)
        batches.draw(1)
        return next(batches)

    batch = only_batch(images)
    assert batch.shape == (2, 1, 4, 4) and batch.dtype == torch.float32
    assert sorted(batch.flatten().unique().tolist()) == pytest.approx(
        [128 / 127.5 - 1, 1], abs=1e-6
    )
    assert only_batch(images * 0).unique() == -1
