"""Train a DCGAN.

Paper: Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
       Networks, Radford, Metz and Chintala 2015, arXiv:1511.06434.
Run:   python train.py                        the paper's size: for a GPU
       python train.py --config quick.json    minutes on a laptop
Read:  discriminator_step, generator_step, train.

Departures from the paper (its section 4; the code's train_uncond_dcgan.py):
  1. Adam's step size: 5e-5; theirs: 2e-4 (section 4).
  2. Minibatch: 64 images; theirs: 128 (section 4).
  3. Noise: N(0, I); theirs: uniform in [-1, 1] (figure 1 and code).
  4. Kernels: 4x4; their code: 5x5.
  5. Discriminator: from 64 feature maps; their code: from 128.
  6. Norm gains: N(1, 0.02), as in their code; section 4 has all weights around 0.
  7. Each step moves both networks; their code moves one on each minibatch, in turn.
  8. No weight decay, as in the paper; their code: 1e-5 on every parameter.
  9. Samples: running averages in batch norm; their code: averages of the batch.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.optim import Adam, Optimizer

import machine
import utils
from data import Batches, load_pictures
from model import Discriminator, Generator
from run_folder import Run
from utils import Channels, ImageSize, Positive, Precision, Seed, Share, Size


@dataclass(frozen=True)
class Config:
    """Train a DCGAN (arXiv:1511.06434)."""

    lr: Positive = 5e-5
    """Adam's step size."""
    beta1: Share = 0.5
    """Adam's decay of the mean gradient."""
    beta2: Share = 0.999
    """Adam's decay of the mean squared gradient."""
    g_width: Size = 128
    """Feature maps of the generator's last hidden layer."""
    d_width: Size = 64
    """Feature maps of the discriminator's first layer."""
    z_dim: Size = 100
    """Length of the noise vector z."""
    image_size: ImageSize = 64
    """Side of the images in pixels."""
    channels: Channels = "data"
    """1 for grey, 3 for colour; by default what the data has."""
    batch_size: PositiveInt = 64
    """Images in a minibatch."""
    epochs: PositiveInt = 50
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


def discriminator_step(
    discriminator: nn.Module,
    generator: nn.Module,
    optimizer: Optimizer,
    real: Tensor,
    config: Config,
) -> dict[str, Tensor]:
    """Move the discriminator once: towards 1 on real images, towards 0 on fake ones.

    Real and fake go through it apart, so that batch norm sees one kind at a time.

    Returns:
        `loss_d`, the sum of both cross entropies, 2 log 2 where it knows nothing;
        `d_real` and `d_fake`, the mean probabilities D(x) and D(G(z)).
    """
    z = torch.randn(len(real), config.z_dim, device=real.device)
    with torch.no_grad():  # the generator stays where it is
        fake = generator(z)
    real_logits, fake_logits = discriminator(real), discriminator(fake)
    loss = bce(real_logits, torch.ones_like(real_logits))
    loss = loss + bce(fake_logits, torch.zeros_like(fake_logits))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()  # at once, so that the other network's gradients take their place
    return {
        "loss_d": loss.detach(),
        "d_real": real_logits.detach().sigmoid().mean(),
        "d_fake": fake_logits.detach().sigmoid().mean(),
    }


def generator_step(
    discriminator: nn.Module, generator: nn.Module, optimizer: Optimizer, z: Tensor
) -> dict[str, Tensor]:
    """Move the generator once: to where the discriminator takes its images for real."""
    discriminator.requires_grad_(False)  # its own gradients are not needed here
    logits = discriminator(generator(z))
    loss = bce(logits, torch.ones_like(logits))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    discriminator.requires_grad_(True)
    return {"loss_g": loss.detach()}


def train(config: Config) -> Path:
    """Train from the start or from a checkpoint, and return the run folder."""
    device = machine.pick_device(config.device, config.seed, config.precision)
    wanted = (config.data, config.data_dir, config.image_size, config.channels)
    pictures = load_pictures(*wanted, config.batch_size, config.hold_out)
    channels = pictures.images.shape[3]
    generator = Generator(config.z_dim, config.image_size, channels, config.g_width)
    discriminator = Discriminator(config.image_size, channels, config.d_width)
    machine.place(device, config.precision, generator, discriminator)
    how = {"capturable": device.type == "cuda"}  # for the graph
    how |= {"betas": (config.beta1, config.beta2), "fused": True}
    generator_optimizer = Adam(generator.parameters(), config.lr, **how)
    discriminator_optimizer = Adam(discriminator.parameters(), config.lr, **how)
    machine.average_gradients(generator_optimizer, discriminator_optimizer)
    batches = Batches(pictures.images, config.batch_size, device, config.seed)
    parts = {"generator": generator, "discriminator": discriminator, "batches": batches}
    parts |= {
        "generator_optimizer": generator_optimizer,
        "discriminator_optimizer": discriminator_optimizer,
    }
    run = Run(config, pictures, device, 1, **parts)

    def step() -> dict[str, Tensor]:
        """One iteration of the outer loop: what a graph records."""
        real = next(batches)
        losses = discriminator_step(discriminator, generator, discriminator_optimizer, real, config)
        z = torch.randn(config.batch_size, config.z_dim, device=device)
        return losses | generator_step(discriminator, generator, generator_optimizer, z)

    step = machine.graphed(step, device, config.graphs)
    for _ in run.steps():
        batches.draw(1)
        run.record(step())
    return run.path


if __name__ == "__main__":
    with utils.plain_errors():
        train(utils.parse_config(Config))
