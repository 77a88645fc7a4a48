"""Networks: shapes, ranges, parameter counts, what the papers forbid, first weights."""

import copy

import pytest
import torch
from conftest import FOLDERS, load, make_critic
from torch import nn

CONVOLUTIONAL = FOLDERS[1:]


def networks(folder, size=64, channels=3, g_width=64, d_width=64, z_dim=100):
    torch.manual_seed(0)
    files = load(folder)
    generator = files.model.Generator(z_dim, size, channels, g_width)
    return generator, make_critic(files, size, channels, d_width)


def count(network):
    return sum(p.numel() for p in network.parameters())


def of_kind(network, *kinds):
    return [module for module in network.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(("size", "channels"), [(16, 1), (32, 3), (128, 1)])
def test_shapes_and_range(folder, size, channels):
    generator, critic = networks(folder, size, channels, 4, 4)
    images = generator(torch.randn(5, 100))
    assert images.shape == (5, channels, size, size)
    assert images.abs().max() <= 1
    assert isinstance(list(generator.modules())[-1], nn.Tanh)
    assert critic(images).shape == (5,)
    big = [m for m in generator.modules() if hasattr(m, "weight")][-1]
    big.weight.data *= 1e4
    assert generator(torch.randn(5, 100)).abs().max() == 1  # tanh, not a linear end


def test_parameter_counts():
    for channels, g, d in ((3, 3_576_704, 2_765_568), (1, 3_574_656, 2_763_520)):
        for folder in CONVOLUTIONAL:
            assert tuple(map(count, networks(folder, channels=channels))) == (g, d)
    generator, discriminator = networks("simpleGAN", g_width=128, d_width=128, z_dim=64)
    assert (count(generator), count(discriminator)) == (55_240_576, 55_220_225)


def test_the_default_dcgan_is_the_papers_figure():
    config = load("DCGAN").train.Config()
    generator, _ = networks(
        "DCGAN", config.image_size, 3, config.g_width, config.d_width, config.z_dim
    )
    maps = [layer.in_channels for layer in of_kind(generator, nn.ConvTranspose2d)]
    assert maps == [100, 1024, 512, 256, 128]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_parameter_is_dead(folder):
    generator, critic = networks(folder, 32, 3, 4, 4)
    critic(generator(torch.randn(4, 100))).sum().backward()
    for name, parameter in [*generator.named_parameters(), *critic.named_parameters()]:
        assert parameter.grad is not None, name


@pytest.mark.parametrize("folder", CONVOLUTIONAL)
def test_layers_are_those_of_the_papers(folder):
    generator, critic = networks(folder)
    assert not of_kind(generator, nn.Linear, nn.MaxPool2d, nn.AvgPool2d)
    assert not of_kind(critic, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.Sigmoid, nn.ELU)
    assert len(of_kind(generator, nn.BatchNorm2d)) == len(of_kind(generator, nn.ReLU)) == 4
    assert {m.negative_slope for m in of_kind(critic, nn.LeakyReLU)} == {0.2}
    norm = nn.GroupNorm if folder == "WGAN-GP" else nn.BatchNorm2d
    assert len(of_kind(critic, norm)) == 3
    g, c = list(generator.layers), list(critic.layers)
    assert isinstance(g[-1], nn.Tanh) and isinstance(g[-2], nn.ConvTranspose2d)
    assert isinstance(c[0], nn.Conv2d) and isinstance(c[1], nn.LeakyReLU)  # no norm on the input
    for network in (g, c):
        for layer in of_kind(nn.Sequential(*network), nn.Conv2d, nn.ConvTranspose2d):
            assert layer.bias is None and layer.kernel_size == (4, 4)


def test_no_batch_norm_in_the_wgan_gp_critic():
    _, critic = networks("WGAN-GP")
    assert not of_kind(critic, nn.modules.batchnorm._BatchNorm, nn.modules.batchnorm._LazyNormBase)
    assert {m.num_groups for m in of_kind(critic, nn.GroupNorm)} == {1}


def test_group_norm_of_one_group_is_layer_norm_with_a_gain_per_channel():
    _, critic = networks("WGAN-GP")
    norm = of_kind(critic, nn.GroupNorm)[0]
    x = torch.randn(3, norm.num_channels, 8, 8) * 3 + 1
    mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), unbiased=False, keepdim=True)
    plain = (x - mean) / (var + norm.eps).sqrt()
    expected = plain * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("folder", CONVOLUTIONAL)
def test_first_weights(folder):
    for network in networks(folder):
        for layer in of_kind(network, nn.Conv2d, nn.ConvTranspose2d):
            weight, n = layer.weight, layer.weight.numel()
            assert abs(weight.mean()) < 4 * 0.02 / n**0.5
            assert abs(weight.std() - 0.02) < 4 * 0.02 / (2 * n) ** 0.5
        for layer in of_kind(network, nn.BatchNorm2d, nn.GroupNorm):
            n = layer.weight.numel()
            assert abs(layer.weight.mean() - 1) < 4 * 0.02 / n**0.5
            assert abs(layer.weight.std() - 0.02) < 5 * 0.02 / (2 * n) ** 0.5
            assert (layer.bias == 0).all()


@pytest.mark.parametrize("folder", CONVOLUTIONAL)
def test_the_untrained_generator_is_not_switched_off(folder):
    generator, _ = networks(folder)
    assert 0.03 < generator(torch.randn(16, 100)).std() < 0.3  # gains around 0 give under 0.001


@pytest.mark.parametrize("folder", ["WGAN", "WGAN-GP"])
def test_scores_have_no_bounds(folder):
    _, critic = networks(folder, 32, 3, 4, 4)
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    before = critic(images)
    of_kind(critic, nn.Conv2d)[-1].weight.data *= 1000
    after = critic(images)
    torch.testing.assert_close(after, before * 1000, rtol=1e-3, atol=1e-3)
    assert after.abs().max() > 1


def test_a_score_of_the_wgan_gp_critic_depends_on_its_own_image_alone():
    _, critic = networks("WGAN-GP", 32, 3, 4, 8)
    images = (torch.rand(6, 3, 32, 32) * 2 - 1).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(images)[2], images)
    assert gradient[2].abs().sum() > 0
    gradient[2] = 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("folder", CONVOLUTIONAL)
def test_samples_do_not_depend_on_their_batch_and_leave_no_trace(folder):
    generator, _ = networks(folder, 32, 3, 8, 8)
    generator(torch.randn(32, 100))  # some running averages
    generator.eval()
    before = copy.deepcopy(generator.state_dict())
    z = torch.randn(8, 100)
    torch.testing.assert_close(generator(z)[:1], generator(z[:1]), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in generator.state_dict().items())


def test_leaky_relu_lets_the_penalty_through():
    _, critic = networks("WGAN-GP", 16, 1, 4, 4)
    x = (torch.rand(4, 1, 16, 16)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    grads = [p.grad for p in critic.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)
    assert sum(g.abs().sum() for g in grads) > 0
