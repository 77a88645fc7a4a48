"""Train a DCGAN.

Paper: Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
       Networks, Radford, Metz and Chintala 2015, arXiv:1511.06434.
Run:   python train.py                        the paper's size: for a GPU
       python train.py --config quick.json    minutes on a laptop
Read:  discriminator_step, generator_step, train.

Departures from the paper (its section 4; the authors' train_uncond_dcgan.py):
  1. Adam's step size: 5e-5; theirs: 2e-4 (section 4).
  2. Minibatch: 64 images; theirs: 128 (section 4).
  3. Noise: N(0, I); theirs: uniform in [-1, 1] (figure 1 and code).
  4. Kernels: 4x4; their code: 5x5.
  5. Discriminator: from 64 feature maps; their code: from 128.
  6. Norm gains: N(1, 0.02), as in their code; section 4 has all weights around 0.
  7. Each step updates both networks; their code updates one per minibatch, in turn.
  8. No weight decay, as in the paper; their code: 1e-5 on every parameter.
  9. Samples: running averages in batch norm; their code: averages of the batch.
  10. Generator's first batch norm: per channel; their code: per unit.
  11. Length: 50 epochs of len(images) // batch_size generator updates; their code: 25 epochs,
     each with half as many.
"""

from pathlib import Path

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.optim import Adam, Optimizer

import utils
from data import Batches, load_images
from model import Discriminator, Generator
from utils import Channels, Fraction, ImageSize, Precision, Run, Seed, Width

utils.release_modules("data", "model", "utils")  # a second model imports its own


@dataclass(frozen=True, config=utils.STRICT)
class Config:
    """Train a DCGAN (arXiv:1511.06434)."""

    lr: PositiveFloat = 5e-5
    """Learning rate, Adam's step size."""
    beta1: Fraction = 0.5
    """Adam's decay of the mean gradient."""
    beta2: Fraction = 0.999
    """Adam's decay of the mean squared gradient."""
    g_width: Width = 128
    """Feature maps of the generator's last hidden layer."""
    d_width: Width = 64
    """Feature maps of the discriminator's first layer."""
    z_dim: Width = 100
    """Length of the noise vector z."""
    batch_size: PositiveInt = 64
    """Images in a minibatch."""

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
    epochs: PositiveInt = 50
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


def discriminator_step(
    discriminator: nn.Module,
    generator: nn.Module,
    optimizer: Optimizer,
    real: Tensor,
    config: Config,
) -> dict[str, Tensor]:
    """Update the discriminator once: towards 1 on real images, towards 0 on fake ones.

    Real and fake images pass separately, so that batch norm sees one kind at a time.

    Returns:
        `loss_d`, the sum of both cross entropies, 2 log 2 where it knows nothing;
        `d_real` and `d_fake`, the mean probabilities D(x) and D(G(z)).
    """
    z = torch.randn(len(real), config.z_dim, device=real.device)
    with torch.autocast(real.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        with torch.no_grad():  # the generator stays as it is
            fake = generator(z)
        real_logits, fake_logits = discriminator(real), discriminator(fake)
    loss = bce(real_logits, torch.ones_like(real_logits))
    loss = loss + bce(fake_logits, torch.zeros_like(fake_logits))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()  # now, so that the other network's gradients can reuse the memory
    return {
        "loss_d": loss.detach(),
        "d_real": real_logits.detach().sigmoid().mean(),
        "d_fake": fake_logits.detach().sigmoid().mean(),
    }


def generator_step(
    discriminator: nn.Module, generator: nn.Module, optimizer: Optimizer, z: Tensor, config: Config
) -> dict[str, Tensor]:
    """Update the generator once: raise the discriminator's belief that its images are real."""
    discriminator.requires_grad_(False)  # its own gradients are not needed here
    with torch.autocast(z.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = discriminator(generator(z))
    loss = bce(logits, torch.ones_like(logits))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    discriminator.requires_grad_(True)
    return {"loss_g": loss.detach()}


def train(config: Config) -> Path:
    """Train from the start or from a checkpoint, and return the run folder."""
    device, config = utils.set_up(config)
    dataset = load_images(config)
    shape = {"image_size": config.image_size, "channels": dataset.images.shape[3]}
    generator_arguments = {"z_dim": config.z_dim, **shape, "width": config.g_width}
    generator = Generator(**generator_arguments)
    discriminator = Discriminator(**shape, width=config.d_width)
    utils.place(device, generator, discriminator)
    adam = {"lr": config.lr, "betas": (config.beta1, config.beta2), "fused": True}
    generator_optimizer = Adam(generator.parameters(), **adam)
    discriminator_optimizer = Adam(discriminator.parameters(), **adam)
    batches = Batches(dataset.images, config.batch_size, device, config.seed)
    parts = {  # what resuming restores
        "generator": generator,
        "discriminator": discriminator,
        "generator_optimizer": generator_optimizer,
        "discriminator_optimizer": discriminator_optimizer,
        "batches": batches,
    }
    run = Run(config, dataset, device, 1, parts, generator_arguments)
    for _ in run.steps():
        losses = discriminator_step(
            discriminator, generator, discriminator_optimizer, next(batches), config
        )
        z = torch.randn(config.batch_size, config.z_dim, device=device)
        run.record(
            losses | generator_step(discriminator, generator, generator_optimizer, z, config)
        )
    return run.path


def main() -> None:
    """Train with the settings of the command line."""
    with utils.plain_errors():
        train(utils.parse_config(Config))


if __name__ == "__main__":
    main()
