"""Train a WGAN with gradient penalty.

Paper: Improved Training of Wasserstein GANs, Gulrajani et al. 2017, arXiv:1704.00028.
Run:   python train.py                        the paper's size: for a GPU
       python train.py --config quick.json    minutes on a laptop
Read:  gradient_penalty, critic_step, generator_step, train.

Departures from the paper (its Algorithm 1 and section 5; the code's gan_64x64.py):
  1. Length: 30 epochs of len(images) // batch_size generator updates; theirs: 200,000 updates.
  2. Noise: 100 numbers; their code: 128.
  3. Networks: the DCGAN's with 4x4 kernels, no biases; their code: 5x5 kernels and biases.
  4. First weights: N(0, 0.02), norm gains N(1, 0.02); their code: uniform, gains 1.
  5. Order: first the critic, then the generator, as in Algorithm 1; their code begins every
     iteration but the first with the generator.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import machine
import utils
from data import Batches, load_pictures
from model import Critic, Generator
from run_folder import Run
from utils import Channels, ImageSize, Positive, Precision, Seed, Share, Size


@dataclass(frozen=True)
class Config:
    """Train a WGAN with gradient penalty (arXiv:1704.00028)."""

    lr: Positive = 1e-4
    """Adam's step size, alpha in Algorithm 1."""
    beta1: Share = 0.0
    """Adam's decay of the mean gradient."""
    beta2: Share = 0.9
    """Adam's decay of the mean squared gradient."""
    n_critic: PositiveInt = 5
    """Critic updates for each generator update."""
    lambda_gp: Positive = 10.0
    """Weight of the gradient penalty, lambda in Algorithm 1."""
    g_width: Size = 64
    """Feature maps of the generator's last hidden layer."""
    d_width: Size = 64
    """Feature maps of the critic's first layer."""
    z_dim: Size = 100
    """Length of the noise vector z."""
    image_size: ImageSize = 64
    """Side of the images in pixels."""
    channels: Channels = "data"
    """1 for grey, 3 for colour; by default what the data has."""
    batch_size: PositiveInt = 64
    """Images in a minibatch, m in Algorithm 1."""
    epochs: PositiveInt = 30
    """An epoch is len(images) // batch_size generator updates."""
    max_steps: NonNegativeInt = 0
    """Stop after so many generator updates, if the epochs do not end before; 0: no such limit."""
    max_seconds: NonNegativeFloat = 0.0
    """Stop after so many seconds of training; 0: no such limit."""
    data: str = "faces"
    """faces, mnist, fashion-mnist, cifar10, celeba, a folder of pictures or a zip of one."""
    data_dir: str = ""
    """Where downloads and the cache of decoded pictures lie; by default data/ beside train.py."""
    hold_out: NonNegativeInt = 0
    """So many pictures are kept from training, for evaluate.py to compare with."""
    seed: Seed = 0
    """Of everything random."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps ...; auto takes the fastest there is."""
    precision: Precision = "tf32"
    """Of a GPU's products: tf32, fp32 (exact) or bf16 (also on a CPU; changes results a little)."""
    graphs: bool = True
    """Replay each step as one CUDA graph on a GPU."""
    runs_dir: str = ""
    """Where run folders lie; by default tensorboard/runs/ beside train.py."""
    name: str = ""
    """Name of the run folder; by default date and time."""
    resume: str = ""
    """Go on with the run of this name, or with the newest."""
    log_every: PositiveInt = 50
    """Steps between two rows in metrics.csv."""
    frame_every: PositiveInt = 250
    """Steps between two frames."""
    checkpoint_every: PositiveInt = 1000
    """Steps between two checkpoints."""


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Say how far the critic's slope is from 1 between real and fake images.

    For each pair a point x_hat is drawn on the line that joins them
    (Algorithm 1, lines 4 and 6); its slope is the L2 norm of the critic's
    gradient over all pixels of that one image (line 7).

    Args:
        critic: (B, C, H, W) -> (B,). It must treat the images of a batch
            separately: under batch norm a per-image slope has no meaning.
        real: (B, C, H, W) in [-1, 1].
        fake: the same shape, detached from the generator.

    Returns:
        Batch mean of (slope - 1)^2: a scalar, 0 at best, not yet times lambda_gp;
        and the batch mean of the slope, detached.
    """
    epsilon = torch.rand(len(real), 1, 1, 1, device=real.device)  # one an image
    x_hat = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
    # Summing is safe: no score depends on another image, so each gradient is its own.
    (gradient,) = torch.autograd.grad(critic(x_hat).sum(), x_hat, create_graph=True)
    slope = gradient.flatten(1).norm(dim=1)  # (B,)
    return (slope - 1).square().mean(), slope.detach().mean()


def critic_step(
    critic: nn.Module, generator: nn.Module, optimizer: Optimizer, real: Tensor, config: Config
) -> dict[str, Tensor]:
    """Move the critic once (Algorithm 1, lines 3 to 9): score real above fake, with slope 1.

    Returns:
        `loss_d`, which falls; `wasserstein`, the critic's estimate of the distance,
        without the penalty; `penalty`; `slope`.
    """
    z = torch.randn(len(real), config.z_dim, device=real.device)
    with torch.no_grad():  # the generator stays where it is
        fake = generator(z)
    wasserstein = critic(real).mean() - critic(fake).mean()
    penalty, slope = gradient_penalty(critic, real, fake)
    loss = -wasserstein + config.lambda_gp * penalty
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()  # at once, so that the other network's gradients take their place
    losses = {"loss_d": loss, "wasserstein": wasserstein, "penalty": penalty, "slope": slope}
    return {name: value.detach() for name, value in losses.items()}


def generator_step(
    critic: nn.Module, generator: nn.Module, optimizer: Optimizer, z: Tensor
) -> dict[str, Tensor]:
    """Move the generator once (Algorithm 1, lines 11 and 12) to where the critic scores higher."""
    critic.requires_grad_(False)  # its own gradients are not needed here
    loss = -critic(generator(z)).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    critic.requires_grad_(True)
    return {"loss_g": loss.detach()}


def train(config: Config) -> Path:
    """Run Algorithm 1 from the start or from a checkpoint, and return the run folder."""
    device = machine.pick_device(config.device, config.seed, config.precision)
    wanted = (config.data, config.data_dir, config.image_size, config.channels)
    pictures = load_pictures(*wanted, config.batch_size, config.hold_out)
    channels = pictures.images.shape[3]
    generator = Generator(config.z_dim, config.image_size, channels, config.g_width)
    critic = Critic(config.image_size, channels, config.d_width)
    machine.place(device, config.precision, generator, critic)
    how = {"capturable": device.type == "cuda"}  # for the graph
    how |= {"betas": (config.beta1, config.beta2), "fused": True}
    generator_optimizer = Adam(generator.parameters(), config.lr, **how)
    critic_optimizer = Adam(critic.parameters(), config.lr, **how)
    machine.average_gradients(generator_optimizer, critic_optimizer)
    batches = Batches(pictures.images, config.batch_size, device, config.seed)
    parts = {"generator": generator, "critic": critic, "batches": batches}
    parts |= {"generator_optimizer": generator_optimizer, "critic_optimizer": critic_optimizer}
    run = Run(config, pictures, device, config.n_critic, **parts)

    def step() -> dict[str, Tensor]:
        """One iteration of the outer loop: what a graph records."""
        for _ in range(config.n_critic):  # Algorithm 1, line 2: a new minibatch each time
            real = next(batches)
            losses = critic_step(critic, generator, critic_optimizer, real, config)
        z = torch.randn(config.batch_size, config.z_dim, device=device)
        return losses | generator_step(critic, generator, generator_optimizer, z)

    step = machine.graphed(step, device, config.graphs)
    for _ in run.steps():
        batches.draw(config.n_critic)
        run.record(step())
    return run.path


if __name__ == "__main__":
    with utils.plain_errors():
        train(utils.parse_config(Config))
