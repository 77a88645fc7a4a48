"""The four algorithms once more, from the papers and none of this repository's code.

Explicit weights, layers from torch.nn.functional, Adam and RMSProp from their formulas.
Random numbers are drawn in the order that docs/reliability.md describes. A network is a
list of layers, each a list of tensors; `settings` are the names and values of train.py.
"""

import itertools
import math
import random

import numpy as np
import torch
from torch.nn import functional as F

# ---- What the four share ----


def image_order(files):
    """Sort by path, shuffle with Python's generator of seed 0; held-out images are the last."""
    files = sorted(files)
    random.Random(0).shuffle(files)
    return files


def minibatches(images, batch_size, seed):
    """Passes over uint8 (N, H, W, C), each in a new order, without the incomplete last batch."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(images), generator=rng).numpy()
        for start in range(0, len(order) - batch_size + 1, batch_size):
            batch = torch.from_numpy(images[order[start : start + batch_size]])
            yield batch.permute(0, 3, 1, 2).float() / 127.5 - 1


def first_weights(shapes, rng=None):
    """Draw a network. A shape of length 4 is a convolution, 2 a linear layer, 1 a norm."""
    for shape in shapes:  # PyTorch's own first weights are drawn and then replaced
        if len(shape) > 1:
            torch.empty(shape).uniform_(generator=rng)
        if len(shape) == 2:
            torch.empty(shape[0]).uniform_(generator=rng)
    layers = []
    for shape in shapes:
        mean, deviation = {1: (1, 0.02), 2: (0, math.sqrt(2 / shape[-1])), 4: (0, 0.02)}[len(shape)]
        layer = [torch.empty(shape).normal_(mean, deviation, generator=rng).requires_grad_()]
        if len(shape) < 4:  # shift of a norm, bias of a linear layer
            layer.append(torch.zeros(shape[0], requires_grad=True))
        if len(shape) == 1:  # running mean and variance
            layer += [torch.zeros(shape), torch.ones(shape)]
        layers.append(layer)
    return layers


def parameters(network):
    return [tensor for layer in network for tensor in layer if tensor.requires_grad]


def adam(network, lr, beta1, beta2):
    """Kingma and Ba 2015, algorithm 1."""
    m, v = ([torch.zeros_like(p) for p in parameters(network)] for _ in range(2))
    count = itertools.count(1)

    @torch.no_grad()
    def step(loss):
        t = next(count)
        gradients = torch.autograd.grad(loss, parameters(network))
        for i, (p, g) in enumerate(zip(parameters(network), gradients, strict=True)):
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g * g
            p -= lr * (m[i] / (1 - beta1**t)) / ((v[i] / (1 - beta2**t)).sqrt() + 1e-8)

    return torch.enable_grad()(step)


def rmsprop(network, lr):
    """Tieleman and Hinton 2012, with PyTorch's smoothing of 0.99."""
    v = [torch.zeros_like(p) for p in parameters(network)]

    def step(loss):
        gradients = torch.autograd.grad(loss, parameters(network))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(parameters(network), gradients, strict=True)):
                v[i] = 0.99 * v[i] + 0.01 * g * g
                p -= lr * g / (v[i].sqrt() + 1e-8)

    return step


# ---- Networks ----


def conv_generator(z_dim, image_size, channels, width, rng=None):
    """DCGAN, section 3: from 4x4 maps up, batch norm and ReLU on all layers but the last."""
    maps = [width * 2**i for i in reversed(range(int(math.log2(image_size)) - 2))]
    shapes = []
    for above, below in zip([z_dim, *maps], maps, strict=False):
        shapes += [(above, below, 4, 4), (below,)]
    return first_weights([*shapes, (maps[-1], channels, 4, 4)], rng)


def generate(network, z):
    x = z[:, :, None, None]
    for i in range(0, len(network) - 1, 2):
        (kernel,), (gain, shift, mean, variance) = network[i : i + 2]
        x = F.conv_transpose2d(x, kernel, stride=2 if i else 1, padding=1 if i else 0)
        x = F.relu(F.batch_norm(x, mean, variance, gain, shift, training=True))
    return torch.tanh(F.conv_transpose2d(x, network[-1][0], stride=2, padding=1))


def conv_critic(image_size, channels, width, rng=None):
    """DCGAN, section 3: down to 4x4 maps, a norm on all layers but the first and the last."""
    maps = [width * 2**i for i in range(int(math.log2(image_size)) - 2)]
    shapes = [(width, channels, 4, 4)]
    for above, below in itertools.pairwise(maps):
        shapes += [(below, above, 4, 4), (below,)]
    return first_weights([*shapes, (1, maps[-1], 4, 4)], rng)


def judge(network, x, batch_norm=True):
    x = F.leaky_relu(F.conv2d(x, network[0][0], stride=2, padding=1), 0.2)
    for i in range(1, len(network) - 1, 2):
        (kernel,), (gain, shift, mean, variance) = network[i : i + 2]
        x = F.conv2d(x, kernel, stride=2, padding=1)
        if batch_norm:
            x = F.batch_norm(x, mean, variance, gain, shift, training=True)
        else:  # layer norm over (C, H, W) with a gain for each channel
            x = F.layer_norm(x, x.shape[1:]) * gain[:, None, None] + shift[:, None, None]
        x = F.leaky_relu(x, 0.2)
    return F.conv2d(x, network[-1][0]).flatten()


def perceptron(units, rng=None):
    return first_weights([(below, above) for above, below in itertools.pairwise(units)], rng)


def perceive(network, x, activation):
    for weight, bias in network[:-1]:
        x = activation(x @ weight.T + bias)
    weight, bias = network[-1]
    return x @ weight.T + bias


# ---- Algorithms: from endless minibatches to both networks and what every step logs ----


def simple_gan(batches, settings, steps, noise=torch.randn, rngs=(None,)):
    """Goodfellow et al. 2014, Algorithm 1; several `rngs` stand for as many processes."""
    s, side, channels, rows = settings, settings["image_size"], settings["channels"], []
    pixels, wide = channels * side**2, [f * s["g_width"] for f in (1, 2, 4, 8, 32)]
    narrow = [f * s["d_width"] for f in (32, 8, 4, 2, 1)]
    drawn = [
        (perceptron([s["z_dim"], *wide, pixels], rng), perceptron([pixels, *narrow, 1], rng))
        for rng in rngs
    ]
    generator, discriminator = drawn[0]
    move_g, move_d = (adam(n, s["lr"], s["beta1"], s["beta2"]) for n in drawn[0])

    def fakes(z):
        return torch.tanh(perceive(generator, z, F.relu)).view(-1, channels, side, side)

    def d(x):  # log D(x) is logsigmoid of this, log(1 - D(x)) logsigmoid of its negative
        hidden = lambda h: F.dropout(F.leaky_relu(h, 0.2), s["dropout"])  # noqa: E731
        return perceive(discriminator, x.flatten(1), hidden).flatten()

    for _ in range(steps):
        for _ in range(s["k"]):
            real = next(batches)
            fake = fakes(noise(len(real), s["z_dim"])).detach()
            on_real, on_fake = d(torch.cat([real, fake])).chunk(2)
            loss_d = -(F.logsigmoid(on_real) + F.logsigmoid(-on_fake)).mean()
            move_d(loss_d)
        logits = d(fakes(noise(len(real), s["z_dim"])))
        loss_g = F.logsigmoid(-logits).mean() if s["minimax"] else -F.logsigmoid(logits).mean()
        move_g(loss_g)
        means = {"d_real": on_real.sigmoid().mean(), "d_fake": on_fake.sigmoid().mean()}
        rows.append({"loss_d": loss_d, "loss_g": loss_g, **means})
    return generator, discriminator, rows


def conv_networks(s):
    side, channels = s["image_size"], s["channels"]
    generator = conv_generator(s["z_dim"], side, channels, s["g_width"])
    return generator, conv_critic(side, channels, s["d_width"])


def dcgan(batches, settings, steps):
    """Radford et al. 2015; the loss is Goodfellow's, real and fake batches pass separately.

    With r1 the regularizer R1 of Mescheder et al. 2018, section 4.1.
    """
    s, rows = settings, []
    generator, discriminator = conv_networks(s)
    move_g, move_d = (adam(n, s["lr"], s["beta1"], s["beta2"]) for n in (generator, discriminator))
    for _ in range(steps):
        real = next(batches).requires_grad_()
        fake = generate(generator, torch.randn(len(real), s["z_dim"])).detach()
        on_real, on_fake = judge(discriminator, real), judge(discriminator, fake)
        loss_d = -(F.logsigmoid(on_real) + F.logsigmoid(-on_fake)).mean()
        slopes = torch.autograd.grad(on_real.sum(), real, create_graph=True)[0]
        penalty = (slopes**2).sum((1, 2, 3)).mean()
        move_d(loss_d + s["r1"] / 2 * penalty)
        fake = generate(generator, torch.randn(len(real), s["z_dim"]))
        loss_g = -F.logsigmoid(judge(discriminator, fake)).mean()
        move_g(loss_g)
        means = {"d_real": on_real.sigmoid().mean(), "d_fake": on_fake.sigmoid().mean()}
        own = {"penalty": penalty} if s["r1"] else {}
        rows.append({"loss_d": loss_d, "loss_g": loss_g, **means, **own})
    return generator, discriminator, rows


def wgan(batches, settings, steps):
    """Arjovsky et al. 2017, Algorithm 1: ascend the difference, then clip every weight."""
    s, rows = settings, []
    generator, critic = conv_networks(s)
    move_g, move_c = rmsprop(generator, s["lr"]), rmsprop(critic, s["lr"])
    c = s["clip_value"]
    for _ in range(steps):
        for _ in range(s["n_critic"]):
            real = next(batches)
            fake = generate(generator, torch.randn(len(real), s["z_dim"])).detach()
            difference = judge(critic, real).mean() - judge(critic, fake).mean()
            move_c(-difference)
            for p in parameters(critic):
                p.data = p.data.clip(-c, c)
        loss_g = -judge(critic, generate(generator, torch.randn(len(real), s["z_dim"]))).mean()
        move_g(loss_g)
        weights = torch.cat([p.flatten() for p in parameters(critic)])
        clipped = (weights.abs() == weights.abs().max()).float().mean()
        row = {"loss_d": -difference, "loss_g": loss_g, "wasserstein": difference}
        rows.append({**row, "clipped": clipped})
    return generator, critic, rows


def wgan_gp(batches, settings, steps):
    """Gulrajani et al. 2017, Algorithm 1; the critic has layer norm."""
    s, rows = settings, []
    generator, critic = conv_networks(s)
    move_g, move_c = (adam(n, s["lr"], s["beta1"], s["beta2"]) for n in (generator, critic))
    for _ in range(steps):
        for _ in range(s["n_critic"]):
            real = next(batches)
            fake = generate(generator, torch.randn(len(real), s["z_dim"])).detach()
            difference = judge(critic, real, False).mean() - judge(critic, fake, False).mean()
            epsilon = torch.rand(len(real), 1, 1, 1)
            x_hat = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
            scores = judge(critic, x_hat, False)
            (slopes,) = torch.autograd.grad(scores.sum(), x_hat, create_graph=True)
            slopes = slopes.square().sum((1, 2, 3)).sqrt()
            penalty = ((slopes - 1) ** 2).mean()
            loss_d = -difference + s["lambda_gp"] * penalty
            move_c(loss_d)
        fake = generate(generator, torch.randn(len(real), s["z_dim"]))
        loss_g = -judge(critic, fake, False).mean()
        move_g(loss_g)
        row = {"loss_d": loss_d, "loss_g": loss_g, "wasserstein": difference}
        rows.append({**row, "penalty": penalty, "slope": slopes.mean()})
    return generator, critic, rows


ORACLES = {"simpleGAN": simple_gan, "DCGAN": dcgan, "WGAN": wgan, "WGAN-GP": wgan_gp}


def stack(files, image_size, channels):
    """Read image files of the right size with nothing but Pillow's conversion."""
    from PIL import Image

    mode = {1: "L", 3: "RGB"}[channels]
    images = [np.asarray(Image.open(file).convert(mode)) for file in files]
    return np.stack(images).reshape(-1, image_size, image_size, channels)
