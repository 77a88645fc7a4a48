"""plane.py takes the folders' own steps, measures rightly, and keeps trainings apart."""

import base64
import io
import re
from functools import partial
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


@pytest.mark.parametrize("model", MODELS)
def test_a_step_gives_the_weights_that_the_steps_of_the_folder_give(model):
    settings = {"lr": 1e-3, "d_lr": 4e-4, "n_critic": 3, "lambda_gp": 0.7, "clip_value": 0.13}
    start, plane = (planes.make_plane("ring", model, 24, 2, 5, **settings) for _ in range(2))
    planes.advance(plane, 2)
    train, critic, generator = load(model).train, start.critic, start.generator
    own = {"WGAN": {"clip_value": 0.13}, "WGAN-GP": {"lambda_gp": 0.7}}
    config = train.Config(z_dim=2, **own.get(model, {}))
    betas = {"simpleGAN": (0.5, 0.999), "WGAN-GP": (0.0, 0.9)}.get(model)
    make = partial(Adam, betas=betas, fused=True) if betas else RMSprop
    of_critic, of_generator = make(critic.parameters(), 4e-4), make(generator.parameters(), 1e-3)
    torch.set_rng_state(start.rng)
    step = getattr(train, "critic_step", None) or train.discriminator_step
    for _ in range(2):
        for _ in range(3):
            step(critic, generator, of_critic, planes.draw_real("ring", 128), config)
        train.generator_step(critic, generator, of_generator, torch.randn(128, 2), config)
    for ours, theirs in ((plane.generator, generator), (plane.critic, critic)):
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert plane.step == plane.history[-1]["step"] == 2


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


def transport(some, others):
    """Return the mean length of the best way from each point to one of the others."""
    costs = torch.cdist(some.flatten(1), others.flatten(1)).numpy()
    return costs[linear_sum_assignment(costs)].mean()


def test_measures_are_those_of_two_clouds_of_a_linear_critic_and_of_a_bowl():
    plane, shift = planes.make_plane("25 Gaussians", "WGAN-GP"), torch.tensor([1.7, 0.0])
    found, apart = planes.measure(plane), transport(plane.real, planes.look(plane)[0])
    floor = transport(*(planes.draw_real("25 Gaussians", 256) for _ in range(2)))
    assert found["true"] == pytest.approx(apart, rel=1e-4) and floor < apart / 3
    assert found["floor"] == pytest.approx(floor, rel=0.4)
    plane.critic = linear_critic()
    plane.generator = lambda z: plane.real.flip(0) + shift[:, None, None]
    expected = {"true": 1.7, "slope": 5, "told": 5, "estimate": -3 * 1.7}
    found = planes.measure(plane)
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-4)
    points, told = planes.look(plane)
    assert torch.equal(points, plane.real.flip(0).flatten(1) + shift)
    torch.testing.assert_close(told, W.expand(256, 2))  # up the critic's slope
    plane.critic.forward = lambda x: 1.5 * x.flatten(1).square().sum(1)  # of slope 3 |x|
    plane.real = torch.zeros(256, 2, 1, 1)
    found = planes.measure(plane)  # real points at 0, generated ones at `shift`
    assert found["slope"] == pytest.approx(3 * 1.7 / 2, rel=0.1)  # half way, on average
    assert found["told"] == pytest.approx(3 * 1.7)


@pytest.mark.parametrize("minimax", [False, True])
def test_arrows_of_the_simple_gan_follow_its_loss(minimax):
    plane = planes.make_plane("ring", "simpleGAN", minimax=minimax)
    plane.critic = linear_critic()
    points, told = planes.look(plane)
    d = (points @ W).sigmoid()[:, None]
    torch.testing.assert_close(told, (d if minimax else 1 - d) * W)


def test_looking_changes_nothing_and_trainings_do_not_disturb_each_other():
    make = partial(planes.make_plane, "two moons", "WGAN")
    alone, again, other, before = make(), make(), make(seed=1), torch.get_rng_state()
    planes.advance(alone, 4)
    again.layers = planes.LAYERS
    for _ in range(4):
        planes.advance(again, 1)
        planes.picture(again), planes.charts(again.history), planes.measure(again)
        planes.advance(other, 1)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(alone.rng, again.rng)
    assert torch.equal(alone.critic[1].weight, again.critic[1].weight)
    assert not torch.equal(alone.critic[1].weight, other.critic[1].weight)


@pytest.mark.parametrize("shape", [*planes.SHAPES, torch.tensor([[0.3, -1.1], [0.7, 0.2]])])
def test_real_points_lie_along_their_shape_and_all_over_it(shape):
    def polar(angle, radius=1.0):
        return torch.stack([angle.cos() * radius, angle.sin() * radius], 1)

    turn, grid = torch.linspace(0, torch.pi, 50), 0.55 * torch.arange(-2, 3)
    shift = torch.tensor([0.375, 0.18])
    lines = {
        "8 Gaussians": polar(torch.arange(8) * torch.pi / 4),
        "25 Gaussians": torch.cartesian_prod(grid, grid),
        "ring": polar(2 * turn[1:]),
        "two moons": torch.cat([0.75 * polar(turn) - shift, -0.75 * polar(turn) + shift]),
        "spiral": polar(3 * (torch.pi * turn).sqrt(), 3 * (torch.pi * turn).sqrt() / 8),
    }
    points, line = planes.draw_real(shape, 20000), lines[shape] if isinstance(shape, str) else shape
    apart, nearest = torch.cdist(points.flatten(1), line).min(1)
    assert points.shape == (20000, 2, 1, 1) and apart.max() < 0.3
    assert nearest.bincount(minlength=len(line)).min() > 5000 / len(line)  # fewer at the ends


def test_divergence_is_said_in_a_sentence():
    plane = planes.make_plane("ring", "WGAN-GP", lr=1e25)
    with pytest.raises(planes.InputError, match=r"diverged at step \d+. Press Reset"):
        planes.advance(plane, 5)


def lines_of(picture):
    """Read the corners of each line of the first or only picture, in the order of drawing."""
    paths = next(ElementTree.fromstring(picture).iter("svg")).iter("path")
    return [np.array(re.findall(r"[ML](\S+?) ([^LMh]+)", p.get("d")), float) for p in paths]


@pytest.mark.parametrize("model", MODELS)
def test_pictures_show_every_point_and_the_landscape(model):
    plane = planes.make_plane("ring", model)
    plane.critic = linear_critic()
    arrows, fake, real = lines_of(picture := planes.picture(plane))
    points, told = (found.numpy() for found in planes.look(plane))
    tails, tips, longest = arrows[0::5], arrows[1::5], np.linalg.norm(told, axis=1).max()
    places = (plane.real.flatten(1).numpy(), points, points[::2])
    for drawn, where in zip((real, fake, tails), places, strict=True):
        np.testing.assert_allclose(drawn, 200 + where * [125, -125], atol=0.06)
    np.testing.assert_allclose(tips - tails, told[::2] / longest * [37.5, -37.5], atol=0.11)
    data = re.search('href="data:image/png;base64,([^"]+)', picture)[1]
    shades = Image.open(io.BytesIO(base64.b64decode(data)))
    assert shades.getpixel((280, 5)) < shades.getpixel((5, 280))  # f(x) = 3x + 4y: dark top right
    assert shades.getpixel((54, 54)) < shades.getpixel((231, 231))  # f is 1, then -1


def test_layers_are_switched_and_vanishing_gradients_look_so():
    plane = planes.make_plane("ring", "WGAN")
    plane.generator, plane.layers = lambda z: 0.3 * z[:, :, None, None] + 0.1, ("manifold",)
    (grid,) = lines_of(picture := planes.picture(plane))
    lines = ((grid - 200) / [125, -125] - 0.1).reshape(18, 41, 2) / 0.3
    marks = torch.distributions.Normal(0, 1).icdf(torch.arange(1, 10) / 10).numpy()
    for some, axis in ((lines[:9], 0), (lines[9:], 1)):
        np.testing.assert_allclose(some[..., axis], marks[:, None].repeat(41, 1), atol=0.01)
    assert "<image" not in picture
    plane.critic, plane.layers = linear_critic(), ("arrows",)
    plane.critic[1].weight.data *= 0.0007  # slope 0.0035
    (arrows,) = lines_of(picture := planes.picture(plane))
    lengths = np.linalg.norm(arrows[1::5] - arrows[0::5], axis=1)
    np.testing.assert_allclose(lengths, 37.5 * 0.35, atol=0.1)
    assert "vanished: 0.0035" in picture


def test_curves_point_up_and_spikes_leave_the_picture():
    rows = [{"step": 10 + 3 * i, "loss_d": 0.7 + 0.01 * i, "own": i == 50} for i in range(101)]
    titles = re.findall("<figcaption>(.*?)</figcaption>", planes.charts(rows))
    assert [re.sub("<.*?>", "", title) for title in titles] == ["Lossesloss_d 1.7", "Own 0"]
    _, line = lines_of(planes.charts(rows))
    up = 87 - np.linspace(0.7, 1.7, 101) / 1.7 * 84
    np.testing.assert_allclose(line, np.stack([np.linspace(0, 300, 101), up], 1), atol=0.06)
    _, line = lines_of(planes.charts([*rows, {"step": 400, "loss_d": 900.0, "own": 0.0}]))
    assert line[-1, 1] < -1000 and line[0, 1] - line[100, 1] > 20  # the rest is not flattened
    _, line = lines_of(planes.charts([{"step": i, "told": 10.0**-i} for i in range(4)]))
    np.testing.assert_allclose(np.diff(line[:, 1]), 28, atol=0.1)  # logarithmic
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
