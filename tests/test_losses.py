"""Losses and penalty against values that can be worked out by hand."""

import copy
import math

import pytest
import torch
from conftest import load
from torch import nn
from torch.optim import Adam, RMSprop

LOG2 = math.log(2)


class Constant(nn.Module):
    """Answer the same for every image; `value` is the only weight."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(value)))

    def forward(self, images):
        return self.value.expand(len(images)) + 0 * images.flatten(1).sum(1)


class Linear(nn.Module):
    """Score images by f(x) = w . x."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w.clone())

    def forward(self, images):
        return images.flatten(1) @ self.w


class Fixed(nn.Module):
    """Generate the same images whatever the noise; a weight that does nothing suits optimisers."""

    def __init__(self, images):
        super().__init__()
        self.images, self.idle = images, nn.Parameter(torch.zeros(()))

    def forward(self, z):
        return self.images[: len(z)] + self.idle


def images_like(*shape):
    return torch.rand(*shape) * 2 - 1


# ---- cross entropies ----


@pytest.mark.parametrize("folder", ["simpleGAN", "DCGAN"])
def test_a_discriminator_that_knows_nothing_has_loss_2_log_2(folder):
    train = load(folder).train
    nothing, generator = Constant(0.0), Fixed(images_like(8, 1, 4, 4))
    losses = train.discriminator_step(
        nothing,
        generator,
        Adam(nothing.parameters(), 1e-9),
        images_like(8, 1, 4, 4),
        train.Config(),
    )
    assert losses["loss_d"].item() == pytest.approx(2 * LOG2, abs=1e-6)
    assert losses["d_real"] == losses["d_fake"] == 0.5


def generator_gradient(folder, logit, *extra):
    """Return loss and gradient by the logit of one generator step."""
    train = load(folder).train

    class Passing(nn.Module):
        def forward(self, images):
            return images.flatten()

    generator = Fixed(torch.full((1, 1, 1, 1), logit))
    optimizer = torch.optim.SGD(generator.parameters(), 1.0)
    loss = train.generator_step(Passing(), generator, optimizer, torch.zeros(1, 2), *extra)[
        "loss_g"
    ]
    return loss.item(), -generator.idle.item()


def test_generator_losses():
    for folder, extra in (("DCGAN", ()), ("simpleGAN", (False,))):
        loss, gradient = generator_gradient(folder, 0.0, *extra)
        assert loss == pytest.approx(LOG2, abs=1e-6)
        assert gradient == pytest.approx(-0.5, abs=1e-6)
    loss, _ = generator_gradient("simpleGAN", 0.0, True)
    assert loss == pytest.approx(-LOG2, abs=1e-6)


def test_minimax_saturates_where_the_other_loss_is_steep():
    _, minimax = generator_gradient("simpleGAN", -10.0, True)
    _, steep = generator_gradient("simpleGAN", -10.0, False)
    assert minimax == pytest.approx(-4.54e-5, rel=1e-2)
    assert steep == pytest.approx(-0.99995, rel=1e-4)
    assert steep / minimax == pytest.approx(math.exp(10), rel=1e-2)


@pytest.mark.parametrize("folder", ["simpleGAN", "DCGAN"])
def test_the_gradient_survives_a_discriminator_that_is_sure_and_wrong(folder):
    train = load(folder).train
    sure = Constant(30.0)  # says "real" to the fakes; a sigmoid with a clamped log has gradient 0
    optimizer = torch.optim.SGD(sure.parameters(), 1.0)
    fakes = images_like(4, 1, 2, 2)
    train.discriminator_step(sure, Fixed(fakes), optimizer, images_like(4, 1, 2, 2), train.Config())
    assert 30.0 - sure.value.item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("folder", ["simpleGAN", "DCGAN"])
@pytest.mark.parametrize(
    ("p", "q", "loss"),
    [
        ([0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], 0.943348),  # 2 log 2 - 2 JSD
        ([0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25], 2 * LOG2),
        ([0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5], 0.0),
    ],
)
def test_the_best_discriminator_is_p_over_p_plus_q(folder, p, q, loss):
    train = load(folder).train

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(4))

        def forward(self, images):
            return self.logits[images.flatten().long()]

    def batch(shares):
        counts = [round(10 * 2 * s) for s in shares]
        return torch.cat([torch.full((n, 1, 1, 1), float(i)) for i, n in enumerate(counts)])

    table = Table()
    optimizer = Adam(table.parameters(), 0.2)
    for _ in range(1200):
        losses = train.discriminator_step(
            table, Fixed(batch(q)), optimizer, batch(p), train.Config()
        )
    assert losses["loss_d"].item() == pytest.approx(loss, abs=2e-3)
    for logit, a, b in zip(table.logits.sigmoid().tolist(), p, q, strict=True):
        if a + b:
            assert logit == pytest.approx(a / (a + b), abs=1e-2)


# ---- Wasserstein ----


@pytest.mark.parametrize("folder", ["WGAN", "WGAN-GP"])
def test_the_estimate_is_real_minus_fake_and_ignores_a_constant(folder):
    train = load(folder).train
    real, fake, w = images_like(6, 1, 2, 2), images_like(6, 1, 2, 2), torch.randn(4) * 0.1

    class Shifted(Linear):
        def forward(self, images):
            return super().forward(images) + 7

    expected = ((real - fake).flatten(1) @ w).mean().item()
    for critic in (Linear(w), Shifted(w)):
        before = copy.deepcopy(critic)
        losses = train.critic_step(
            critic, Fixed(fake), torch.optim.SGD(critic.parameters(), 0.0), real, train.Config()
        )
        assert losses["wasserstein"].item() == pytest.approx(expected, abs=1e-5)
        generator = Fixed(fake)
        optimizer = torch.optim.SGD(generator.parameters(), 0.0)
        loss_g = train.generator_step(before, generator, optimizer, torch.zeros(6, 2))["loss_g"]
        assert loss_g.item() == pytest.approx(-before(fake).mean().item(), abs=1e-5)
    same = train.critic_step(
        critic, Fixed(real), torch.optim.SGD(critic.parameters(), 0.0), real, train.Config()
    )
    assert same["wasserstein"].item() == 0


def test_the_wgan_loss_is_minus_the_estimate():
    train = load("WGAN").train
    critic = Linear(torch.randn(4))
    losses = train.critic_step(
        critic,
        Fixed(images_like(6, 1, 2, 2)),
        RMSprop(critic.parameters()),
        images_like(6, 1, 2, 2),
        train.Config(),
    )
    assert losses["loss_d"] == -losses["wasserstein"]


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


@pytest.mark.parametrize("folder", ["WGAN", "WGAN-GP"])
def test_the_estimate_grows_with_the_distance_and_pulls_the_right_way(folder):
    train = load(folder).train
    torch.manual_seed(0)
    noise, estimates = torch.randn(256, 1, 1, 1), []
    for shift in (0.0, 1.0, 2.0, -2.0):
        critic = nn.Sequential(
            nn.Flatten(), nn.Linear(1, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1), nn.Flatten(0)
        )
        optimizer = Adam(critic.parameters(), 5e-3, (0.0, 0.9))
        # With a large lambda a slope of the wrong sign is a trap: the way out leads over 0.
        config = train.Config(lambda_gp=0.1) if folder == "WGAN-GP" else train.Config()
        for _ in range(300):
            real = torch.randn(256, 1, 1, 1)
            losses = train.critic_step(critic, Fixed(noise + shift), optimizer, real, config)
        estimates.append(abs(losses["wasserstein"].item()))
        if shift:
            generator = Fixed(noise + shift)
            step = torch.optim.SGD(generator.parameters(), 1.0)
            train.generator_step(critic, generator, step, torch.zeros(256, 2))
            assert generator.idle.item() * shift < 0  # moves towards the real images
    assert estimates[0] < estimates[1] < min(estimates[2:])


# ---- gradient penalty ----


def penalty_of(critic, real, fake):
    return load("WGAN-GP").train.gradient_penalty(critic, real, fake)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_linear_critic_has_penalty_slope_minus_1_squared(scale):
    w = torch.randn(12)
    critic = Linear(scale * w / w.norm())
    penalty, slope = penalty_of(critic, images_like(5, 3, 2, 2), images_like(5, 3, 2, 2))
    assert slope.item() == pytest.approx(scale, rel=1e-5)
    assert penalty.item() == pytest.approx((scale - 1) ** 2, abs=1e-6)  # two-sided: 0.5 costs too
    penalty.backward()
    norm = critic.w.detach().norm()
    torch.testing.assert_close(
        critic.w.grad, 2 * (norm - 1) * critic.w.detach() / norm, atol=1e-5, rtol=1e-4
    )


def test_the_slope_is_taken_over_all_pixels_and_channels_of_an_image():
    critic = Linear(torch.full((3 * 64 * 64,), (3 * 64 * 64) ** -0.5))
    penalty, _ = penalty_of(critic, images_like(4, 3, 64, 64), images_like(4, 3, 64, 64))
    assert penalty.item() == pytest.approx(0, abs=1e-6)  # over the channels alone: 0.969


class Bowl(nn.Module):
    """Score f(x) = |x|^2 / 2, whose slope at x is |x|: it shows where the penalty looks."""

    def forward(self, images):
        self.seen = images.detach()
        return images.flatten(1).square().sum(1) / 2


def test_the_penalty_is_taken_between_each_real_image_and_its_fake():
    real, fake, bowl = images_like(64, 3, 4, 4), images_like(64, 3, 4, 4), Bowl()
    penalty, _ = penalty_of(bowl, real, fake)
    x_hat = bowl.seen
    slopes = x_hat.flatten(1).norm(dim=1)
    assert penalty.item() == pytest.approx((slopes - 1).square().mean().item(), rel=1e-5)
    epsilon = (x_hat - fake) / (real - fake)
    spread = epsilon.flatten(1).amax(1) - epsilon.flatten(1).amin(1)
    assert spread.median() < 1e-3  # one number for all pixels of an image
    one = epsilon.flatten(1).median(1).values
    assert one.min() >= -1e-4 and one.max() <= 1.0001
    assert one.unique().numel() == 64 and one.std() > 0.2  # another for every image
    ways = (x_hat - real).flatten(1).norm(dim=1) + (x_hat - fake).flatten(1).norm(dim=1)
    torch.testing.assert_close(ways, (real - fake).flatten(1).norm(dim=1), rtol=1e-4, atol=1e-4)
    penalty_of(bowl, real, fake)
    assert not torch.equal(bowl.seen, x_hat)  # and another at every call


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_epsilon_1_is_at_the_real_image(epsilon, monkeypatch):
    real, fake, bowl = images_like(4, 1, 2, 2), images_like(4, 1, 2, 2), Bowl()
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, epsilon))
    penalty_of(bowl, real, fake)
    torch.testing.assert_close(bowl.seen, real if epsilon else fake)


def test_a_flat_critic_has_penalty_1_and_finite_gradients():
    critic = Linear(torch.zeros(12))
    penalty, slope = penalty_of(critic, images_like(4, 3, 2, 2), images_like(4, 3, 2, 2))
    penalty.backward()
    assert (penalty.item(), slope.item()) == (1, 0)
    assert critic.w.grad.isfinite().all()


def test_the_penalty_of_a_batch_is_the_mean_of_its_images(monkeypatch):
    torch.manual_seed(0)
    critic = load("WGAN-GP").model.Critic(16, 3, 4)
    real, fake = images_like(5, 3, 16, 16), images_like(5, 3, 16, 16)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 0.3))
    together = penalty_of(critic, real, fake)[0]
    alone = torch.stack([penalty_of(critic, real[i : i + 1], fake[i : i + 1])[0] for i in range(5)])
    torch.testing.assert_close(together, alone.mean(), rtol=1e-4, atol=1e-6)


def test_the_critic_pays_lambda_times_the_penalty_and_the_generator_pays_none():
    train = load("WGAN-GP").train
    w = torch.randn(4)
    critic, real, fake = Linear(w), images_like(6, 1, 2, 2), images_like(6, 1, 2, 2)
    optimizer = torch.optim.SGD(critic.parameters(), 0.0)
    losses = train.critic_step(critic, Fixed(fake), optimizer, real, train.Config(lambda_gp=10.0))
    extra = (losses["loss_d"] + losses["wasserstein"]).item()
    assert extra == pytest.approx(10 * (w.norm().item() - 1) ** 2, rel=1e-4, abs=1e-5)
    generator = Fixed(fake)
    loss = train.generator_step(
        critic, generator, torch.optim.SGD(generator.parameters(), 0.0), torch.zeros(6, 2)
    )
    assert loss["loss_g"].item() == pytest.approx(-critic(fake).mean().item(), abs=1e-5)


@pytest.mark.parametrize(("distance", "lambda_gp"), [(1.0, 10.0), (1.0, 0.1), (2.0, 1.0)])
def test_the_slope_settles_at_1_plus_d_over_2_lambda(distance, lambda_gp):
    """Two points d apart: slope 1 + d/2L, estimate d + d^2/2L, -loss d + d^2/4L. Not d."""
    train = load("WGAN-GP").train
    real, fake = torch.full((4, 1, 1, 1), distance), torch.zeros(4, 1, 1, 1)
    critic = Linear(torch.tensor([0.5]))
    optimizer = Adam(critic.parameters(), 0.02, (0.0, 0.9))
    config = train.Config(lambda_gp=lambda_gp)
    for i in range(1500):
        optimizer.param_groups[0]["lr"] = 0.05 if i < 1000 else 1e-3
        losses = train.critic_step(critic, Fixed(fake), optimizer, real, config)
    d, two = distance, 2 * lambda_gp
    assert losses["slope"].item() == pytest.approx(1 + d / two, rel=2e-3)
    assert losses["wasserstein"].item() == pytest.approx(d + d * d / two, rel=2e-3)
    assert -losses["loss_d"].item() == pytest.approx(d + d * d / (2 * two), rel=2e-3)


def test_weights_are_not_clipped_in_wgan_gp():
    train = load("WGAN-GP").train
    critic = Linear(torch.ones(4))
    train.critic_step(
        critic,
        Fixed(images_like(4, 1, 2, 2)),
        Adam(critic.parameters(), 1e-4),
        images_like(4, 1, 2, 2),
        train.Config(),
    )
    assert critic.w.abs().max() > 0.9
