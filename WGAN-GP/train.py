"""Train a WGAN with gradient penalty.

Paper: Improved Training of Wasserstein GANs, Gulrajani et al. 2017, arXiv:1704.00028.
Run:   python train.py                        the paper's size: for a GPU
       python train.py --config quick.json    minutes on a laptop
Read:  gradient_penalty, critic_step, generator_step, train.

Departures from the paper (its Algorithm 1 and section 5; the authors' gan_64x64.py):
  1. Length: 30 epochs of len(images) // batch_size generator updates; theirs: 200,000 updates.
  2. Noise: 100 numbers; their code: 128.
  3. Networks: DCGAN with 4x4 kernels, no biases; theirs: residual, or DCGAN with 5x5 and biases.
  4. First weights: N(0, 0.02), norm gains N(1, 0.02); their code: uniform, gains 1.
  5. Order: critic before generator, as in Algorithm 1; their code: generator, then critic.
  6. Samples: running averages in batch norm; their code: averages of the batch.
"""

from pathlib import Path

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import utils
from data import Batches, load_images
from model import Critic, Generator
from utils import Channels, Fraction, ImageSize, Precision, Run, Seed, Width

utils.release_modules("data", "model", "utils")  # a second model imports its own


@dataclass(frozen=True, config=utils.STRICT)
class Config:
    """Train a WGAN with gradient penalty (arXiv:1704.00028)."""

    lr: PositiveFloat = 1e-4
    """Learning rate, Adam's step size, alpha in Algorithm 1."""
    beta1: Fraction = 0.0
    """Adam's decay of the mean gradient."""
    beta2: Fraction = 0.9
    """Adam's decay of the mean squared gradient."""
    n_critic: PositiveInt = 5
    """Critic updates for each generator update."""
    lambda_gp: NonNegativeFloat = 10.0
    """Weight of the gradient penalty, lambda in Algorithm 1."""
    g_width: Width = 64
    """Feature maps of the generator's last hidden layer."""
    d_width: Width = 64
    """Feature maps of the critic's first layer."""
    z_dim: Width = 100
    """Length of the noise vector z."""
    batch_size: PositiveInt = 64
    """Images in a minibatch, m in Algorithm 1."""

    # The same for every model: images, length, device, run folder.
    data: str = "faces"
    """faces (drawn), mnist, fashion-mnist, cifar10, celeba, a folder of images or a .zip of one."""
    data_dir: str = ""
    """Folder for downloads and decoded images; by default data/ beside train.py."""
    hold_out: NonNegativeInt = 0
    """Number of images kept from training; evaluate.py takes its floor from them."""
    image_size: ImageSize = 64
    """Side of the images in pixels."""
    channels: Channels = "data"
    """1 for gray, 3 for color, data for what the images have."""
    epochs: PositiveInt = 30
    """Length; an epoch is len(images) // batch_size generator updates."""
    max_steps: NonNegativeInt = 0
    """Stop after this many generator updates; 0 for no limit but --epochs."""
    max_seconds: NonNegativeFloat = 0.0
    """Stop after this many seconds of training; 0 for no limit but --epochs."""
    seed: Seed = 0
    """Random seed for weights, noise and data order."""
    device: str = "auto"
    """auto for the fastest available, or cpu, cuda, cuda:1, mps ..."""
    precision: Precision = "auto"
    """auto (by device), fp32 (exact), tf32 (products on a GPU) or bf16 (layers in bfloat16)."""
    runs_dir: str = ""
    """Folder of the run folders; by default tensorboard/runs/ beside train.py."""
    name: str = ""
    """Name of the run folder; by default date and time."""
    resume: str = ""
    """Resume the run of this name, or the newest if no name is given."""
    log_every: PositiveInt = 50
    """Steps between two rows in metrics.csv."""
    frame_every: PositiveInt = 250
    """Steps between two frames."""
    checkpoint_every: PositiveInt = 1000
    """Steps between two checkpoints."""


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Penalize gradient norms of the critic other than 1, between real and fake images.

    For each pair a point x_hat is drawn on the line between them (Algorithm 1, lines 4 and 6).
    The norm is over all pixels of that one image (line 7), in float32 at any precision.

    Args:
        critic: (B, C, H, W) -> (B,), each image on its own: batch norm would couple them.
        real: (B, C, H, W) in [-1, 1].
        fake: The same shape, detached from the generator.

    Returns:
        Batch means of (norm - 1)^2, not yet times lambda_gp, and of the norm, detached.
    """
    epsilon = torch.rand(len(real), 1, 1, 1, device=real.device)  # one per image
    x_hat = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
    scores = critic(x_hat)
    # Of the sum, because no score depends on another image: each gradient is its own.
    # create_graph, because the loss holds these gradients and is differentiated itself.
    (gradient,) = torch.autograd.grad(scores.sum(), x_hat, create_graph=True)
    norm = gradient.flatten(1).norm(dim=1)  # (B,)
    return (norm - 1).square().mean(), norm.detach().mean()


def critic_step(
    critic: nn.Module, generator: nn.Module, optimizer: Optimizer, real: Tensor, config: Config
) -> dict[str, Tensor]:
    """Update the critic once (Algorithm 1, lines 3 to 9): real above fake, with gradient norm 1.

    Returns:
        `loss_d`, which the update lowers; `wasserstein`, the critic's estimate of the
        distance, without the penalty; `penalty`; `gradient_norm`.
    """
    z = torch.randn(len(real), config.z_dim, device=real.device)
    with torch.autocast(real.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        with torch.no_grad():  # the generator stays as it is
            fake = generator(z)
        wasserstein = critic(real).mean() - critic(fake).mean()
        penalty, norm = gradient_penalty(critic, real, fake)
    loss = -wasserstein + config.lambda_gp * penalty
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()  # now, so that the other network's gradients can reuse the memory
    losses = {"loss_d": loss, "wasserstein": wasserstein, "penalty": penalty, "gradient_norm": norm}
    return {name: value.detach() for name, value in losses.items()}


def generator_step(
    critic: nn.Module, generator: nn.Module, optimizer: Optimizer, z: Tensor, config: Config
) -> dict[str, Tensor]:
    """Update the generator once (Algorithm 1, lines 11 and 12): raise the critic's scores."""
    critic.requires_grad_(False)  # its own gradients are not needed here
    with torch.autocast(z.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        loss = -critic(generator(z)).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    critic.requires_grad_(True)
    return {"loss_g": loss.detach()}


def train(config: Config) -> Path:
    """Run Algorithm 1 from the start or from a checkpoint, and return the run folder."""
    device, config = utils.set_up(config)
    dataset = load_images(config)
    shape = {"image_size": config.image_size, "channels": dataset.images.shape[3]}
    generator_arguments = {"z_dim": config.z_dim, **shape, "width": config.g_width}
    generator = Generator(**generator_arguments)
    critic = Critic(**shape, width=config.d_width)
    utils.place(device, generator, critic)
    adam = {"lr": config.lr, "betas": (config.beta1, config.beta2), "fused": True}
    generator_optimizer = Adam(generator.parameters(), **adam)
    critic_optimizer = Adam(critic.parameters(), **adam)
    batches = Batches(dataset.images, config.batch_size, device, config.seed)
    parts = {  # what resuming restores
        "generator": generator,
        "critic": critic,
        "generator_optimizer": generator_optimizer,
        "critic_optimizer": critic_optimizer,
        "batches": batches,
    }
    run = Run(config, dataset, device, config.n_critic, parts, generator_arguments)
    for _ in run.steps():
        for _ in range(config.n_critic):  # Algorithm 1, line 2: a new minibatch each time
            losses = critic_step(critic, generator, critic_optimizer, next(batches), config)
        z = torch.randn(config.batch_size, config.z_dim, device=device)
        run.record(losses | generator_step(critic, generator, generator_optimizer, z, config))
    return run.path


def main() -> None:
    """Train with the settings of the command line."""
    with utils.plain_errors():
        train(utils.parse_config(Config))


if __name__ == "__main__":
    main()
