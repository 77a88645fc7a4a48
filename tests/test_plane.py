"""plane.py takes the folders' own steps, measures rightly, and keeps trainings apart."""

import base64
import io
import math
import re
from copy import deepcopy
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import load
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.optim import Adam, RMSprop

import plane as planes

MODELS = ["simpleGAN", "WGAN", "WGAN-GP"]
W = torch.tensor([3.0, 4.0])


def linear_critic():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False), nn.Flatten(0))
    critic[1].weight.data[:] = W
    return critic


class Bowl(nn.Module):
    def forward(self, x):  # of slope 3 |x|
        return 1.5 * x.flatten(1).square().sum(1)


@pytest.mark.parametrize("model", MODELS)
def test_a_step_gives_the_weights_that_the_steps_of_the_folder_give(model):
    settings = {"lr": 1e-3, "d_lr": 4e-4, "n_critic": 3, "lambda_gp": 0.7, "clip_value": 0.13}
    plane = planes.make_plane("ring", model, width=24, depth=2, seed=5, **settings)
    layers = [layer.weight.shape for layer in plane.generator if hasattr(layer, "weight")]
    assert layers == [(24, 2), (24, 24), (2, 24)]
    generator, critic = deepcopy(plane.generator), deepcopy(plane.critic)
    planes.advance(plane, 2)

    train = load(model).train
    own = {"WGAN": {"clip_value": 0.13}, "WGAN-GP": {"lambda_gp": 0.7}}
    config = train.Config(z_dim=2, **own.get(model, {}))
    betas = {"simpleGAN": (0.9, 0.999), "WGAN-GP": (0.0, 0.9)}
    make = {"WGAN": lambda p, lr: RMSprop(p, lr)}
    make = make.get(model, lambda p, lr: Adam(p, lr, betas[model], fused=True))
    of_critic, of_generator = make(critic.parameters(), 4e-4), make(generator.parameters(), 1e-3)
    torch.set_rng_state(planes.make_plane("ring", model, width=24, depth=2, seed=5).rng)
    step = getattr(train, "critic_step", None) or train.discriminator_step
    for _ in range(2):
        for _ in range(3):
            step(critic, generator, of_critic, planes.draw_real("ring", planes.BATCH), config)
        train.generator_step(critic, generator, of_generator, torch.randn(128, 2), config)
    for ours, theirs in ((plane.generator, generator), (plane.critic, critic)):
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert plane.step == 2 and plane.history[-1]["step"] == 2


def test_slow_motion_and_single_updates_move_one_network_at_a_time():
    plane = planes.make_plane("ring", "WGAN", n_critic=3)
    moved = []
    for said in planes.train_on(plane, "slow"):
        state = [next(net.parameters()).sum().item() for net in (plane.critic, plane.generator)]
        moved.append((re.split("[.:] ?", said)[1].split()[0], *state))
    names, critic, generator = zip(*moved, strict=True)
    assert names == ("Critic", "Critic", "Critic", "Generator")
    assert len({*critic[:3]}) == 3 and critic[2] == critic[3]
    assert len({*generator[:3]}) == 1 and generator[2] != generator[3]
    whole = planes.make_plane("ring", "WGAN", n_critic=3)
    planes.advance(whole, 1)
    assert torch.equal(whole.generator[0].weight, plane.generator[0].weight)
    steps = [plane.step for how in ("critic", "generator") for _ in planes.train_on(plane, how)]
    assert steps == [1, 2]


def test_measures_are_those_of_a_linear_critic_and_a_shifted_copy():
    plane, shift = planes.make_plane("spiral", "WGAN-GP"), torch.tensor([0.37, -0.23])
    plane.critic = linear_critic()
    plane.generator = lambda z: plane.real.flip(0) + shift[:, None, None]
    found = planes.measure(plane)
    expected = {"true": math.hypot(0.37, 0.23), "slope": 5, "told": 5, "estimate": -0.19}
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-4)
    points, told = planes.look(plane)
    assert torch.equal(points, plane.real.flip(0).flatten(1) + shift)
    torch.testing.assert_close(told, W.expand(256, 2))  # up the critic's slope


def test_measures_are_those_of_any_two_clouds():
    plane, far = planes.make_plane("25 Gaussians", "WGAN-GP"), torch.tensor([1.7, 0.0])
    costs = torch.cdist(plane.real.flatten(1), planes.look(plane)[0]).numpy()
    best = costs[linear_sum_assignment(costs)].mean()
    found = planes.measure(plane)
    assert found["true"] == pytest.approx(best, rel=1e-4)
    others = [planes.draw_real("25 Gaussians", 256).flatten(1) for _ in range(2)]
    costs = torch.cdist(*others).numpy()
    floor = costs[linear_sum_assignment(costs)].mean()
    assert found["floor"] == pytest.approx(floor, rel=0.4) and floor < best / 3
    plane.critic, plane.real = Bowl(), torch.zeros(256, 2, 1, 1)
    plane.generator = lambda z: far[:, None, None].expand(len(z), 2, 1, 1).clone()
    found = planes.measure(plane)
    assert found["slope"] == pytest.approx(3 * 1.7 / 2, rel=0.1)  # half way, on average
    assert found["told"] == pytest.approx(3 * 1.7) and found["true"] == pytest.approx(1.7)


@pytest.mark.parametrize("minimax", [False, True])
def test_arrows_of_the_simple_gan_follow_its_loss(minimax):
    plane = planes.make_plane("ring", "simpleGAN", minimax=minimax)
    plane.critic = linear_critic()
    points, told = planes.look(plane)
    d = (points @ W).sigmoid()[:, None]
    torch.testing.assert_close(told, (d if minimax else 1 - d) * W)


def test_looking_changes_nothing_and_trainings_do_not_disturb_each_other():
    alone, other = (planes.make_plane("two moons", "WGAN", seed=seed) for seed in (0, 1))
    planes.advance(alone, 4)
    again, before = planes.make_plane("two moons", "WGAN"), torch.get_rng_state()
    again.layers = planes.LAYERS
    for _ in range(4):
        planes.advance(again, 1)
        planes.picture(again), planes.charts(again.history), planes.measure(again)
        planes.advance(other, 1)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(alone.rng, again.rng)
    assert torch.equal(alone.critic[1].weight, again.critic[1].weight)
    assert not torch.equal(alone.critic[1].weight, other.critic[1].weight)


def polar(angle, radius=1.0):
    return torch.stack([angle.cos() * radius, angle.sin() * radius], 1)


@pytest.mark.parametrize(
    "shape", [*planes.SHAPES, torch.tensor([[0.3, -1.1], [0.7, 0.2]])], ids=str
)
def test_real_points_lie_along_their_shape_and_all_over_it(shape):
    turn, grid = torch.linspace(0, torch.pi, 50), 0.55 * torch.arange(-2, 3)
    shift = torch.tensor([0.375, 0.18])
    lines = {
        "8 Gaussians": polar(torch.arange(8) * torch.pi / 4),
        "25 Gaussians": torch.cartesian_prod(grid, grid),
        "ring": polar(2 * turn),
        "two moons": torch.cat([0.75 * polar(turn) - shift, -0.75 * polar(turn) + shift]),
        "spiral": polar(3 * turn, 3 * turn / 8),
    }
    points = planes.draw_real(shape, 4000)
    apart = torch.cdist(points.flatten(1), lines[shape] if isinstance(shape, str) else shape)
    assert points.shape == (4000, 2, 1, 1)
    assert apart.min(1).values.max() < 0.3 and apart.min(0).values.max() < 0.1


def test_bad_input_and_divergence_are_said_in_a_sentence():
    with pytest.raises(planes.InputError, match="'cube': no such points"):
        planes.make_plane("cube", "WGAN")
    plane = planes.make_plane("ring", "WGAN-GP", lr=1e25)
    with pytest.raises(planes.InputError, match=r"diverged at step \d+. Press Reset"):
        for _ in range(5):
            planes.advance(plane, 1)


def corners_of(path):
    return np.array(re.findall(r"[ML](\S+?) ([^LMh]+)", path), float)


@pytest.mark.parametrize("model", MODELS)
def test_pictures_show_every_point_and_the_landscape(model):
    plane = planes.make_plane("ring", model)
    plane.critic = linear_critic()
    field = ElementTree.fromstring(planes.picture(plane))
    arrows, fake, real = [corners_of(line.get("d")) for line in field.iter("path")]
    np.testing.assert_allclose(real, 200 + plane.real.flatten(1).numpy() * [125, -125], atol=0.06)
    points, told = (found.numpy() for found in planes.look(plane))
    np.testing.assert_allclose(fake, 200 + points * [125, -125], atol=0.06)
    tails, tips = arrows[0::5], arrows[1::5]
    np.testing.assert_allclose(tails, 200 + points[::2] * [125, -125], atol=0.06)
    longest = np.linalg.norm(told, axis=1).max()
    np.testing.assert_allclose(tips - tails, told[::2] / longest * [37.5, -37.5], atol=0.11)
    data = next(field.iter("image")).get("href").partition(",")[2]
    shades = Image.open(io.BytesIO(base64.b64decode(data)))
    assert shades.getpixel((280, 5)) < shades.getpixel((5, 280))  # f(x) = 3x + 4y: dark top right
    assert shades.getpixel((54, 54)) < shades.getpixel((231, 231))  # f is 1, then -1


def test_layers_are_switched_and_vanishing_gradients_look_so():
    plane = planes.make_plane("ring", "WGAN")
    plane.generator, plane.layers = lambda z: 0.3 * z[:, :, None, None] + 0.1, ("manifold",)
    field = ElementTree.fromstring(planes.picture(plane))
    (grid,) = [corners_of(line.get("d")) for line in field.iter("path")]
    lines = ((grid - 200) / [125, -125] - 0.1).reshape(18, 41, 2) / 0.3
    marks = torch.distributions.Normal(0, 1).icdf(torch.arange(1, 10) / 10).numpy()
    np.testing.assert_allclose(lines[:9, :, 0], marks[:, None].repeat(41, 1), atol=0.01)
    np.testing.assert_allclose(lines[9:, :, 1], marks[:, None].repeat(41, 1), atol=0.01)
    assert list(field.iter("image")) == []
    plane.critic, plane.layers = linear_critic(), ("arrows",)
    plane.critic[1].weight.data *= 0.0007  # slope 0.0035
    (arrows,) = ElementTree.fromstring(text := planes.picture(plane)).iter("path")
    assert "vanished: 0.0035" in text
    arrows = corners_of(arrows.get("d"))
    lengths = np.linalg.norm(arrows[1::5] - arrows[0::5], axis=1)
    np.testing.assert_allclose(lengths, 37.5 * 0.35, atol=0.1)


def test_curves_point_up_and_spikes_leave_the_picture():
    rows = [
        {"step": 10 + 3 * i, "loss_d": 0.7 + 0.01 * i, "own": float(i == 50)} for i in range(101)
    ]
    drawn = list(ElementTree.fromstring(planes.charts(rows)).iter("figure"))
    titles = ["".join(figure.find("figcaption").itertext()) for figure in drawn]
    assert titles == ["Lossesloss_d 1.7", "Own 0"]
    _, line = [corners_of(path.get("d")) for path in drawn[0].iter("path")]
    up = 87 - np.array([0.7 + 0.01 * i for i in range(101)]) / 1.7 * 84
    np.testing.assert_allclose(line, np.stack([np.linspace(0, 300, 101), up], 1), atol=0.06)
    rows += [{"step": 400, "loss_d": 900.0, "own": 0.0}]
    line = list(next(ElementTree.fromstring(planes.charts(rows)).iter("figure")).iter("path"))[1]
    line = corners_of(line.get("d"))
    assert line[-1, 1] < -1000 and line[0, 1] - line[100, 1] > 20  # the rest is not flattened
    logarithmic = [{"step": i, "told": 10.0**-i} for i in range(4)]
    figure = next(ElementTree.fromstring(planes.charts(logarithmic)).iter("figure"))
    line = corners_of(list(figure.iter("path"))[1].get("d"))
    np.testing.assert_allclose(np.diff(line[:, 1]), 28, atol=0.1)
    assert "begin with the first" in planes.charts([])


def test_a_long_history_is_thinned_evenly():
    plane = planes.make_plane("ring", "simpleGAN", width=4)
    for step in range(1, 3332):
        plane.history.append({"step": step})
        if len(plane.history) > planes.ROWS:
            plane.history = planes.thin(plane.history)
    steps = np.array([row["step"] for row in plane.history])
    assert steps[0] == 1 and steps[-1] == 3331 and len(steps) <= planes.ROWS
    assert np.diff(steps).min() > 0 and np.diff(steps).max() < 3 * 3331 / 200
    planes.record(plane)
    assert plane.history[-1]["step"] == 0 and len(plane.history) == 1  # a newer start
