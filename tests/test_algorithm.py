"""What the papers prove or forbid, on networks small enough to know the answer."""

import inspect
import re
from dataclasses import asdict

import pytest
import torch
from conftest import FOLDERS, flags_of, load, parse, train, write_images
from torch import nn
from torch.optim import SGD, Adam, RMSprop

penalty_of = load("WGAN-GP").train.gradient_penalty


class Linear(nn.Module):
    """Score images by f(x) = w . x."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w.clone())

    def forward(self, images):
        return images.flatten(1) @ self.w


class Bowl(nn.Module):
    """Score f(x) = |x|^2 / 2, whose slope at x is |x|: it shows where the penalty looks."""

    def forward(self, images):
        self.seen = images.detach()
        return images.flatten(1).square().sum(1) / 2


class Fixed(nn.Module):
    """Generate the same images whatever the noise, shifted by its only weight."""

    def __init__(self, images):
        super().__init__()
        self.images, self.shift = images, nn.Parameter(torch.zeros(()))

    def forward(self, z):
        return self.images[: len(z)] + self.shift


def images_like(*shape):
    return torch.rand(*shape) * 2 - 1


def networks(folder, size=32, channels=3, width=4, z_dim=8):
    """Build both; what else the generator's opponent takes are the defaults of the settings."""
    torch.manual_seed(0)
    files = load(folder)
    generator = files.model.Generator(z_dim, size, channels, width)
    kind = getattr(files.model, "Critic", None) or files.model.Discriminator
    config, (_, _, _, *names) = vars(files.train.Config()), inspect.signature(kind).parameters
    more = {name: config[name] for name in names if name in config}
    return files, generator, kind(size, channels, width, **more)


def opponent_step(files):
    return getattr(files.train, "critic_step", None) or files.train.discriminator_step


def test_a_step_moves_one_network_and_leaves_the_other_alone(files):
    _, generator, critic = networks(files.folder)
    config, real = files.train.Config(z_dim=8), images_like(8, 3, 32, 32)
    before = [p.detach().clone() for p in generator.parameters()]
    opponent_step(files)(critic, generator, RMSprop(critic.parameters()), real, config)
    assert all(map(torch.equal, generator.parameters(), before))
    assert all(p.grad is None for p in generator.parameters())
    before = [p.detach().clone() for p in critic.parameters()]
    for parameter in critic.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    optimizer = Adam(generator.parameters())
    files.train.generator_step(critic, generator, optimizer, torch.randn(8, 8), config)
    assert all(map(torch.equal, critic.parameters(), before))
    assert all((p.grad == 7).all() and p.requires_grad for p in critic.parameters())


@pytest.mark.parametrize("folder", ["simpleGAN", "DCGAN"])
def test_the_gradient_survives_a_discriminator_that_is_sure_and_wrong(folder):
    train = load(folder).train
    sure = Linear(torch.full((4,), 30.0))  # a sigmoid with a clamped log has gradient 0
    fake, real = torch.eye(4)[:1].view(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    optimizer = SGD(sure.parameters(), 0.7)
    train.discriminator_step(sure, Fixed(fake), optimizer, real, train.Config())
    torch.testing.assert_close(sure.w.detach(), torch.tensor([29.3, 30, 30, 30]))


@pytest.mark.parametrize("folder", ["simpleGAN", "DCGAN"])
def test_the_best_discriminator_is_p_over_p_plus_q(folder):
    train, table = load(folder).train, Linear(torch.zeros(4))  # a logit for each of four images
    p, q = torch.tensor([10, 6, 4, 0]), torch.tensor([2, 4, 6, 8])  # how many are real, fake
    real, fake = (torch.eye(4).repeat_interleave(n, 0).view(20, 1, 2, 2) for n in (p, q))
    optimizer = Adam(table.parameters(), 0.2)
    for _ in range(1000):
        losses = train.discriminator_step(table, Fixed(fake), optimizer, real, train.Config())
    assert losses["loss_d"].item() == pytest.approx(0.943348, abs=3e-3)  # 2 log 2 - 2 JSD(p, q)
    torch.testing.assert_close(table.w.sigmoid(), p / (p + q), rtol=0, atol=1e-2)


def test_a_clipped_linear_critic_ends_at_the_corners():
    train = load("WGAN").train
    torch.manual_seed(1)
    shift = torch.tensor([1.0, -0.5, 0.3, -0.8])
    fake = images_like(64, 1, 2, 2)
    real = fake + shift.view(1, 1, 2, 2)
    critic = Linear(torch.zeros(4))
    optimizer = RMSprop(critic.parameters(), 5e-5)
    for _ in range(400):
        losses = train.critic_step(critic, Fixed(fake), optimizer, real, train.Config())
    torch.testing.assert_close(critic.w.detach(), 0.01 * shift.sign())
    assert losses["wasserstein"].item() == pytest.approx(0.01 * shift.abs().sum().item(), rel=1e-3)
    assert losses["clipped"].item() == 1


@pytest.mark.parametrize("scale", [0.37, 1.9])
def test_a_linear_critic_has_penalty_slope_minus_1_squared(scale):
    critic = Linear(scale * nn.functional.normalize(torch.randn(12), dim=0))
    penalty, slope = penalty_of(critic, images_like(5, 3, 2, 2), images_like(5, 3, 2, 2))
    assert slope.item() == pytest.approx(scale, rel=1e-5) and not slope.requires_grad
    assert penalty.item() == pytest.approx((scale - 1) ** 2, abs=1e-6)  # two-sided: 0.37 costs too
    penalty.backward()
    direction = critic.w.detach() / scale
    torch.testing.assert_close(critic.w.grad, 2 * (scale - 1) * direction, atol=1e-5, rtol=1e-4)


def test_the_penalty_is_taken_between_each_real_image_and_its_fake():
    real, fake, bowl = images_like(64, 3, 4, 4), images_like(64, 3, 4, 4), Bowl()
    penalty, slope = penalty_of(bowl, real, fake)
    x_hat = bowl.seen
    slopes = x_hat.flatten(1).norm(dim=1)
    assert penalty.item() == pytest.approx((slopes - 1).square().mean().item(), rel=1e-5)
    assert slope.item() == pytest.approx(slopes.mean().item(), rel=1e-5)
    epsilon = ((x_hat - fake) * (real - fake)).flatten(1).sum(1)
    epsilon = epsilon / (real - fake).flatten(1).square().sum(1)  # one per image
    on_the_line = epsilon[:, None, None, None] * (real - fake) + fake
    torch.testing.assert_close(x_hat, on_the_line, rtol=1e-4, atol=1e-5)
    assert epsilon.min() > 0 and epsilon.max() < 1 and epsilon.std() > 0.2
    penalty_of(bowl, real, fake)
    assert not torch.equal(bowl.seen, x_hat)  # new at every call


def test_a_flat_critic_has_penalty_1_and_finite_gradients():
    critic = Linear(torch.zeros(12))
    penalty, slope = penalty_of(critic, images_like(4, 3, 2, 2), images_like(4, 3, 2, 2))
    penalty.backward()
    assert (penalty.item(), slope.item()) == (1, 0)
    assert critic.w.grad.isfinite().all()


def test_bf16_layers_take_bfloat16_and_losses_stay_in_float32(files):
    real, z = images_like(8, 3, 32, 32), torch.randn(8, 8)

    def step(precision):
        _, generator, critic = networks(files.folder)
        kinds, config = [], files.train.Config(z_dim=8, precision=precision)
        for layer in [*generator.modules(), *critic.modules()]:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                layer.register_forward_hook(lambda _, inputs, output: kinds.append(output.dtype))
        losses = opponent_step(files)(critic, generator, SGD(critic.parameters(), 0), real, config)
        still = SGD(generator.parameters(), 0)
        losses |= files.train.generator_step(critic, generator, still, z, config)
        assert {value.dtype for value in losses.values()} == {torch.float32}
        return losses, kinds

    (exact, kinds), (close, other) = step("fp32"), step("bf16")
    assert (set(kinds), set(other)) == ({torch.float32}, {torch.bfloat16})
    for name, value in exact.items():
        assert close[name] == pytest.approx(value.item(), rel=0.1, abs=0.03), name


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("size, channels", [(16, 1), (128, 3)])
def test_shapes_and_range(folder, size, channels):
    _, generator, critic = networks(folder, size, channels)
    images = generator(torch.randn(5, 8))
    assert images.shape == (5, channels, size, size) and critic(images).shape == (5,)
    [m for m in generator.modules() if hasattr(m, "weight")][-1].weight.data *= 1e4
    assert generator(torch.randn(5, 8)).abs().max() == 1  # tanh, not a linear end


def test_defaults_are_the_designs():
    common = dict.fromkeys(("data_dir", "runs_dir", "name", "resume"), "") | {
        **{"image_size": 64, "channels": "data", "batch_size": 64, "data": "faces"},
        **{"max_steps": 0, "max_seconds": 0.0, "hold_out": 0, "seed": 0, "device": "auto"},
        **{"precision": "auto", "log_every": 50, "frame_every": 250, "checkpoint_every": 1000},
    }
    adam = {"lr": 5e-5, "beta2": 0.999, "epochs": 50, "g_width": 128}
    critics = {"z_dim": 100, "epochs": 30, "g_width": 64, "d_width": 64, "n_critic": 5}
    perceptrons = {"k": 1, "minimax": False, "dropout": 0.3, "d_width": 128}
    expected = {
        "simpleGAN": adam | perceptrons | {"beta1": 0.5, "z_dim": 64},
        "DCGAN": adam | {"beta1": 0.5, "z_dim": 100, "d_width": 64},
        "WGAN": critics | {"lr": 5e-5, "clip_value": 0.01},
        "WGAN-GP": critics | {"lr": 1e-4, "beta1": 0.0, "beta2": 0.9, "lambda_gp": 10.0},
    }
    for folder, values in expected.items():
        assert asdict(load(folder).train.Config()) == values | common


COUNT = (1, 3), (0, 1.5, -1, "nan")
SHARE = (0, 0.17), (1, 1.5, -0.1, "nan")
WEIGHT = (0, 0.3, 1, 1.5), (-1, "nan", "inf")
LIMITS = {"n_critic": COUNT, "k": COUNT, "dropout": SHARE, "beta1": SHARE, "beta2": SHARE}
LIMITS |= {"lambda_gp": WEIGHT, "clip_value": (WEIGHT[0][1:], (0, *WEIGHT[1]))}


def test_settings_of_the_papers_have_limits(files):
    for name in set(LIMITS) & set(asdict(files.train.Config())):
        allowed, refused = LIMITS[name]
        flag = "--" + name.replace("_", "-")
        assert [getattr(parse(files, flag, value), name) for value in allowed] == list(allowed)
        for value in refused:
            with pytest.raises(files.utils.InputError, match=f"^{flag}"):
                parse(files, flag, value)


def test_only_where_how_long_and_lr_may_change_on_resuming(files, tiny, tmp_path):
    for place in ("images", "moved"):
        write_images(tmp_path / place, (20, 16, 16, 3))
    run = train(files.folder, tiny | {"data": tmp_path / "images", "max_steps": 2, "name": "run"})
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    here = {"resume": "run", "runs_dir": tiny["runs_dir"]}
    with pytest.raises(files.utils.InputError, match="its 2 steps are done; raise --epochs or"):
        train(files.folder, here)
    now = {"data": tmp_path / "moved", "data_dir": tmp_path / "cache", "device": "auto"}
    now |= {"max_seconds": 1e6, "image_size": 32, "channels": 1, "precision": "bf16"}
    for name, value in asdict(parse(files, *flags_of(here))).items():
        if isinstance(value, bool):
            now[name] = not value
        elif isinstance(value, int | float):
            now.setdefault(name, value + 1 if isinstance(value, int) else value / 2 or 0.25)
    with pytest.raises(files.utils.InputError) as caught:
        train(files.folder, now | here)
    may = {"data", "data_dir", "device", "epochs", "max_steps", "max_seconds", "lr"}
    assert set(re.findall(r"(\w+) was \S+ and is now", str(caught.value))) == set(now) - may
    assert "seed was 0 and is now 1" in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
