"""plane.py takes the folders' own steps, measures rightly, and keeps trainings apart."""

import base64
import io
import re
from copy import deepcopy
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import FOLDERS, load
from PIL import Image
from torch import nn
from torch.optim import Adam, RMSprop

import plane as planes
from runs import InputError

MODELS = [folder for folder in FOLDERS if folder != "DCGAN"]
W = torch.tensor([3.0, 4.0])


def linear_critic():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False), nn.Flatten(0))
    critic[1].weight.data[:] = W
    return critic


@pytest.mark.parametrize("model", MODELS)
def test_a_step_gives_the_weights_that_the_steps_of_the_folder_give(model):
    plane = planes.make_plane("ring", model, lr=1e-3, n_critic=3, lambda_gp=0.5, clip_value=0.1)
    generator, critic = deepcopy(plane.generator), deepcopy(plane.critic)
    planes.advance(plane, 2)

    train = load(model).train
    own = {"simpleGAN": {"k": 3}, "WGAN": {"n_critic": 3, "clip_value": 0.1}}
    own["WGAN-GP"] = {"n_critic": 3, "lambda_gp": 0.5}
    config = train.Config(lr=1e-3, z_dim=2, **own[model])
    betas = {"simpleGAN": (0.9, 0.999), "WGAN-GP": (0.0, 0.9)}
    make = {"WGAN": lambda p: RMSprop(p, 1e-3)}
    make = make.get(model, lambda p: Adam(p, 1e-3, betas[model], fused=True))
    of_critic, of_generator = make(critic.parameters()), make(generator.parameters())
    torch.set_rng_state(planes.make_plane("ring", model).rng)
    step = getattr(train, "critic_step", None) or train.discriminator_step
    for _ in range(2):
        for _ in range(3):
            step(critic, generator, of_critic, planes.draw_real("ring", planes.BATCH), config)
        train.generator_step(critic, generator, of_generator, torch.randn(128, 2), config)
    for ours, theirs in ((plane.generator, generator), (plane.critic, critic)):
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert plane.step == 2 and plane.history[-1]["step"] == 2


def test_measures_are_those_of_a_linear_critic_and_a_shifted_copy():
    plane, shift = planes.make_plane("spiral", "WGAN-GP"), torch.tensor([0.6, -0.8])
    plane.critic = linear_critic()
    plane.generator = lambda z: plane.real.flip(0) + shift[:, None, None]
    found = planes.measure(plane)
    expected = {"true": 1.0, "slope": 5.0, "told": 5.0, "estimate": -float(W @ shift)}
    assert found == pytest.approx(expected, abs=1e-4)
    points, told = planes.look(plane)
    assert torch.equal(points, plane.real.flip(0).flatten(1) + shift)
    torch.testing.assert_close(told, W.expand(256, 2))  # up the critic's slope


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
    for _ in range(4):
        planes.advance(again, 1)
        planes.picture(again), planes.charts(again), planes.measure(again)
        planes.advance(other, 1)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(alone.rng, again.rng)
    assert torch.equal(alone.critic[1].weight, again.critic[1].weight)
    assert not torch.equal(alone.critic[1].weight, other.critic[1].weight)


def polar(angle, radius=1.0):
    return torch.stack([angle.cos() * radius, angle.sin() * radius], 1)


@pytest.mark.parametrize("shape", planes.SHAPES)
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
    apart = torch.cdist(points.flatten(1), lines[shape])
    assert points.shape == (4000, 2, 1, 1)
    assert apart.min(1).values.max() < 0.3 and apart.min(0).values.max() < 0.1


def test_settings_change_while_it_runs():
    plane = planes.make_plane("ring", "WGAN", clip_value=0.1)
    planes.tune(plane, 7, lr=1e-2, clip_value=0.02, n_critic=1, lambda_gp=3.0)
    planes.advance(plane, 1)
    most = max(p.abs().max().item() for p in plane.critic.parameters())
    assert plane.speed == 7 and most == pytest.approx(0.02)
    assert [o.param_groups[0]["lr"] for o in plane.optimizers] == [1e-2] * 2
    assert plane.history[-1]["clipped"] > 0.1
    planes.advance(plane, 1000, seconds=0)
    assert plane.step == 2  # the time was over


def test_bad_input_and_divergence_are_said_in_a_sentence():
    with pytest.raises(InputError, match="'cube': no such points"):
        planes.make_plane("cube", "WGAN")
    plane = planes.make_plane("ring", "WGAN-GP", lr=1e25)
    with pytest.raises(InputError, match=r"diverged at step \d+. Press Reset"):
        for _ in range(5):
            planes.advance(plane, 1)


@pytest.mark.parametrize("model", MODELS)
def test_pictures_show_every_point_and_the_landscape(model):
    plane = planes.make_plane("ring", model)
    plane.critic = linear_critic()
    field = ElementTree.fromstring(planes.picture(plane))
    arrows, fake, real = [line.get("d") for line in field.iter("path")]
    assert [real.count("M"), arrows.count("M"), fake.count("M")] == [256, 128, 256]
    x, y = map(float, real[1:].split("h")[0].split())
    assert plane.real[0].flatten().tolist() == pytest.approx(
        [(x - 200) / 125, (200 - y) / 125], abs=1e-2
    )
    corners = re.findall(r"M(\S+) (\S+)L(\S+) ([^L]+)", arrows)
    tails, tips = np.array(corners, float).reshape(-1, 2, 2).swapaxes(0, 1)
    points, told = (found[::2].numpy() for found in planes.look(plane))
    np.testing.assert_allclose(tails, 200 + points * [125, -125], atol=0.06)
    longest = np.linalg.norm(planes.look(plane)[1], axis=1).max()
    np.testing.assert_allclose(tips - tails, told / longest * [37.5, -37.5], atol=0.11)
    data = next(field.iter("image")).get("href").partition(",")[2]
    shades = Image.open(io.BytesIO(base64.b64decode(data)))
    assert shades.getpixel((280, 5)) < shades.getpixel((5, 280))  # f(x) = 3x + 4y: dark top right
    assert shades.getpixel((54, 54)) < shades.getpixel((231, 231))  # f is 1, then -1
    assert "Press Play" in planes.charts(plane)
    planes.advance(plane, 1), planes.advance(plane, 1)
    curves = ElementTree.fromstring(planes.charts(plane))
    titles = [title.text for title in curves.iter("b")]
    assert f"{plane.history[-1]['slope']:.3g}" in titles
    assert "Losses" in titles and ("Weights at the clamp" in titles) == (model == "WGAN")


def test_a_long_history_keeps_its_ends():
    plane = planes.make_plane("ring", "simpleGAN", width=4)
    plane.history += [{"step": -n} for n in range(planes.ROWS)]
    planes.advance(plane, 1)
    kept = [row["step"] for row in plane.history]
    assert kept == [*range(0, -planes.ROWS, -2), 1]
