"""The four algorithms once more, from the papers and none of this repository's code.

Explicit weights, layers from torch.nn.functional, Adam and RMSProp from their formulas.
Random numbers are drawn in the order that docs/reliability.md describes. A network is a
list of layers, each a list of tensors; `s` are the settings, named as in train.py.
"""

import itertools
import math
import random

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

# ---- Images and random numbers ----


def read(folder, image_size, channels):
    """Read the PNG files of a folder: sorted by path, shuffled with Python's seed 0."""
    files = sorted(folder.glob("*.png"))
    random.Random(0).shuffle(files)
    images = [np.asarray(Image.open(f).convert({1: "L", 3: "RGB"}[channels])) for f in files]
    return np.stack(images).reshape(-1, image_size, image_size, channels)


def minibatches(images, batch_size, seed, process, processes):
    """Passes over uint8 (N, H, W, C), each in a new order; process r takes every n-th batch.

    What is too little for a minibatch of each process is left out of a pass.
    """
    rng = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(images), generator=rng).numpy()
        for i in range(len(order) // (batch_size * processes)):
            start = (i * processes + process) * batch_size
            batch = torch.from_numpy(images[order[start : start + batch_size]])
            yield batch.permute(0, 3, 1, 2).float() / 127.5 - 1


def first_state(seed, process):
    """Return the state of a process's random numbers: each has a stream of its own."""
    if process:
        seed = int(np.random.SeedSequence(seed, spawn_key=(process,)).generate_state(1)[0])
    return torch.Generator().manual_seed(seed).get_state()


# ---- Weights ----


def first_weights(shapes):
    """Draw a network. A shape of length 4 is a convolution, 2 a linear layer, 1 a norm."""
    for shape in shapes:  # PyTorch's own first weights are drawn and then replaced
        if len(shape) > 1:
            torch.empty(shape).uniform_()
        if len(shape) == 2:
            torch.empty(shape[0]).uniform_()
    layers = []
    for shape in shapes:
        mean, deviation = {1: (1, 0.02), 2: (0, math.sqrt(2 / shape[-1])), 4: (0, 0.02)}[len(shape)]
        layer = [torch.empty(shape).normal_(mean, deviation).requires_grad_()]
        if len(shape) < 4:  # shift of a norm, bias of a linear layer
            layer.append(torch.zeros(shape[0], requires_grad=True))
        if len(shape) == 1:  # running mean and variance
            layer += [torch.zeros(shape), torch.ones(shape)]
        layers.append(layer)
    return layers


def parameters(network):
    return [tensor for layer in network for tensor in layer if tensor.requires_grad]


def with_own_averages(network):
    """Share the weights with another process, but not the running averages."""
    return [[t if t.requires_grad else t.clone() for t in layer] for layer in network]


def optimizer(network, s):
    """Adam, algorithm 1 of Kingma and Ba 2015; without its settings RMSProp, as in PyTorch.

    RMSProp is Adam without momentum and without the correction of early averages.
    """
    lr, beta1, beta2 = s["lr"], s.get("beta1", 0), s.get("beta2", 0.99)
    m, v = ([torch.zeros_like(p) for p in parameters(network)] for _ in range(2))
    count = itertools.count(1)

    def step(loss):
        t = next(count) if "beta1" in s else math.inf
        gradients = torch.autograd.grad(loss, parameters(network))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(parameters(network), gradients, strict=True)):
                m[i] = beta1 * m[i] + (1 - beta1) * g
                v[i] = beta2 * v[i] + (1 - beta2) * g * g
                p -= lr * (m[i] / (1 - beta1**t)) / ((v[i] / (1 - beta2**t)).sqrt() + 1e-8)

    return step


# ---- Networks ----


def conv_networks(s):
    """DCGAN, section 3: between 4x4 maps and images; norms on all layers but those at images."""
    doublings = int(math.log2(s["image_size"])) - 2
    up = [s["g_width"] * 2**i for i in reversed(range(doublings))]
    down = [s["d_width"] * 2**i for i in range(doublings)]
    generator, critic = [], [(down[0], s["channels"], 4, 4)]
    for above, below in itertools.pairwise([s["z_dim"], *up]):
        generator += [(above, below, 4, 4), (below,)]
    for above, below in itertools.pairwise(down):
        critic += [(below, above, 4, 4), (below,)]
    generator = first_weights([*generator, (up[-1], s["channels"], 4, 4)])
    return generator, first_weights([*critic, (1, down[-1], 4, 4)])


def generate(network, z):
    x = z[:, :, None, None]
    for i in range(0, len(network) - 1, 2):
        (kernel,), (gain, shift, mean, variance) = network[i : i + 2]
        x = F.conv_transpose2d(x, kernel, stride=2 if i else 1, padding=1 if i else 0)
        x = F.relu(F.batch_norm(x, mean, variance, gain, shift, training=True))
    return torch.tanh(F.conv_transpose2d(x, network[-1][0], stride=2, padding=1))


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


def perceptrons(s):
    pixels = s["channels"] * s["image_size"] ** 2
    generator = [s["z_dim"], *(f * s["g_width"] for f in (1, 2, 4, 8, 32)), pixels]
    discriminator = [pixels, *(f * s["d_width"] for f in (32, 8, 4, 2, 1)), 1]
    networks = generator, discriminator
    return [first_weights([(b, a) for a, b in itertools.pairwise(units)]) for units in networks]


def perceive(network, x, activation):
    for weight, bias in network[:-1]:
        x = activation(x @ weight.T + bias)
    weight, bias = network[-1]
    return x @ weight.T + bias


# ---- Algorithms, as one of several processes runs them ----
# Each yields a network with the loss that its update lowers, and after each iteration of the
# paper's outer loop what is logged.


def normal(real, s):
    return torch.randn(len(real), s["z_dim"])


def simple_gan(s, generator, discriminator, batches):
    """Goodfellow et al. 2014, Algorithm 1."""

    def fakes(z):
        return torch.tanh(perceive(generator, z, F.relu)).view(real.shape)

    def d(x):  # log D(x) is logsigmoid of this, log(1 - D(x)) logsigmoid of its negative
        hidden = lambda h: F.dropout(F.leaky_relu(h, 0.2), s["dropout"])  # noqa: E731
        return perceive(discriminator, x.flatten(1), hidden).flatten()

    while True:
        for _ in range(s["k"]):
            real = next(batches)
            fake = fakes(normal(real, s)).detach()
            on_real, on_fake = d(torch.cat([real, fake])).chunk(2)
            loss_d = -(F.logsigmoid(on_real) + F.logsigmoid(-on_fake)).mean()
            yield discriminator, loss_d
        logits = d(fakes(normal(real, s)))
        loss_g = F.logsigmoid(-logits).mean() if s["minimax"] else -F.logsigmoid(logits).mean()
        yield generator, loss_g
        means = {"d_real": on_real.sigmoid().mean(), "d_fake": on_fake.sigmoid().mean()}
        yield {"loss_d": loss_d, "loss_g": loss_g, **means}


def dcgan(s, generator, discriminator, batches):
    """Radford et al. 2015; the loss is Goodfellow's, real and fake batches pass separately."""
    while True:
        real = next(batches)
        fake = generate(generator, normal(real, s)).detach()
        on_real, on_fake = judge(discriminator, real), judge(discriminator, fake)
        loss_d = -(F.logsigmoid(on_real) + F.logsigmoid(-on_fake)).mean()
        yield discriminator, loss_d
        fake = generate(generator, normal(real, s))
        loss_g = -F.logsigmoid(judge(discriminator, fake)).mean()
        yield generator, loss_g
        means = {"d_real": on_real.sigmoid().mean(), "d_fake": on_fake.sigmoid().mean()}
        yield {"loss_d": loss_d, "loss_g": loss_g, **means}


def wgan(s, generator, critic, batches):
    """Arjovsky et al. 2017, Algorithm 1: ascend the difference, then clip every weight."""
    c = s["clip_value"]
    while True:
        for _ in range(s["n_critic"]):
            real = next(batches)
            fake = generate(generator, normal(real, s)).detach()
            difference = judge(critic, real).mean() - judge(critic, fake).mean()
            yield critic, -difference
            for p in parameters(critic):
                p.data = p.data.clip(-c, c)
        loss_g = -judge(critic, generate(generator, normal(real, s))).mean()
        yield generator, loss_g
        weights = torch.cat([p.flatten() for p in parameters(critic)])
        clipped = (weights.abs() == weights.abs().max()).float().mean()
        row = {"loss_d": -difference, "loss_g": loss_g, "wasserstein": difference}
        yield {**row, "clipped": clipped}


def wgan_gp(s, generator, critic, batches):
    """Gulrajani et al. 2017, Algorithm 1; the critic has layer norm."""
    while True:
        for _ in range(s["n_critic"]):
            real = next(batches)
            fake = generate(generator, normal(real, s)).detach()
            difference = judge(critic, real, False).mean() - judge(critic, fake, False).mean()
            epsilon = torch.rand(len(real), 1, 1, 1)
            x_hat = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
            scores = judge(critic, x_hat, False)
            (gradient,) = torch.autograd.grad(scores.sum(), x_hat, create_graph=True)
            norms = gradient.square().sum((1, 2, 3)).sqrt()
            penalty = ((norms - 1) ** 2).mean()
            loss_d = -difference + s["lambda_gp"] * penalty
            yield critic, loss_d
        loss_g = -judge(critic, generate(generator, normal(real, s)), False).mean()
        yield generator, loss_g
        row = {"loss_d": loss_d, "loss_g": loss_g, "wasserstein": difference}
        yield {**row, "penalty": penalty, "gradient_norm": norms.mean()}


ALGORITHMS = {"simpleGAN": simple_gan, "DCGAN": dcgan, "WGAN": wgan, "WGAN-GP": wgan_gp}


def train(folder, s, images, steps, processes=1):
    """Run an algorithm in one or several processes, which lower the mean of their losses.

    Returns:
        The first process's generator and its opponent, and means of what each step logs.
    """
    draw = perceptrons if folder == "simpleGAN" else conv_networks
    networks, states, algorithms, rows = [], [], [], []
    for r in range(processes):
        torch.set_rng_state(first_state(s["seed"], r))
        drawn = draw(s)
        states.append(torch.get_rng_state())
        networks = networks or drawn  # all start from the weights of the first process
        own = [with_own_averages(network) for network in networks] if r else networks
        batches = minibatches(images, s["batch_size"], s["seed"], r, processes)
        algorithms.append(ALGORITHMS[folder](s, *own, batches))
    move = {id(network): optimizer(network, s) for network in networks}
    while len(rows) < steps:
        found = []
        for r, algorithm in enumerate(algorithms):
            torch.set_rng_state(states[r])
            found.append(next(algorithm))
            states[r] = torch.get_rng_state()
        if isinstance(found[0], dict):
            rows.append({key: np.mean([row[key].item() for row in found]) for key in found[0]})
        else:
            move[id(found[0][0])](sum(loss for _, loss in found) / processes)
    return *networks, rows
