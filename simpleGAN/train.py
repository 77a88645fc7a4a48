"""Train the first GAN: two multilayer perceptrons.

Paper: Generative Adversarial Nets, Goodfellow et al. 2014, arXiv:1406.2661.
Run:   python train.py                        full size: for a GPU
       python train.py --config quick.json    minutes on a laptop
Read:  discriminator_step, generator_step, train.

Departures from the paper (its section 5 and Algorithm 1; the authors' mnist.yaml):
  1. Optimizer: Adam, step 5e-5, beta1 0.5; theirs: momentum 0.5 to 0.7, step 0.1, decaying.
  2. Generator's loss: -log D(G(z)), which section 3 advises and their code has; Algorithm 1
     has log(1 - D(G(z))), here with --minimax.
  3. Minibatch: 64 images; their code: 100.
  4. Noise: 64 numbers from N(0, I); their code: 100, uniform with variance 1.
  5. Discriminator: leaky ReLU, dropout 0.3; theirs: maxout, dropout (in the code 0.2, then 0.5).
  6. Images: in [-1, 1] from tanh; their code: in [0, 1] from a sigmoid.
  7. Layers: five hidden, of 128 to 4096 units; their code: two, of 1200 (generator) or 240.
  8. First weights: He's, normal; their code: uniform, last biases from the mean image.
  9. Order: discriminator before generator, as in Algorithm 1; their code: both at once.
  10. Length: 50 epochs of len(images) // batch_size generator updates; their code: no end.
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
    """Train the first GAN (arXiv:1406.2661)."""

    lr: PositiveFloat = 5e-5
    """Learning rate, Adam's step size."""
    beta1: Fraction = 0.5
    """Adam's decay of the mean gradient."""
    beta2: Fraction = 0.999
    """Adam's decay of the mean squared gradient."""
    k: PositiveInt = 1
    """Discriminator updates for each generator update, k in Algorithm 1."""
    minimax: bool = False
    """Let the generator minimize log(1 - D(G(z))), as in Algorithm 1, instead of -log D(G(z))."""
    dropout: Fraction = 0.3
    """Share of the discriminator's hidden units left out at random."""
    g_width: Width = 128
    """Units of the generator's first hidden layer; the last has 32 times as many."""
    d_width: Width = 128
    """Units of the discriminator's last hidden layer; the first has 32 times as many."""
    z_dim: Width = 64
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
    """Update the discriminator once (Algorithm 1, inner loop): to 1 on real, to 0 on fake images.

    Returns:
        `loss_d`, the sum of both cross entropies, 2 log 2 where it knows nothing;
        `d_real` and `d_fake`, the mean probabilities D(x) and D(G(z)).
    """
    z = torch.randn(len(real), config.z_dim, device=real.device)
    with torch.autocast(real.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        with torch.no_grad():  # the generator stays as it is
            fake = generator(z)
        # One pass for both reads the weights once; with batch norm they would have to be separate.
        real_logits, fake_logits = discriminator(torch.cat([real, fake])).chunk(2)
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
    """Update the generator once (Algorithm 1, outer loop): its images are to pass as real."""
    discriminator.requires_grad_(False)  # its own gradients are not needed here
    with torch.autocast(z.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = discriminator(generator(z))
    if config.minimax:
        loss = -bce(logits, torch.zeros_like(logits))  # log(1 - D(G(z))), flat where D is sure
    else:
        loss = bce(logits, torch.ones_like(logits))  # -log D(G(z)): same fixed point, steeper
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    discriminator.requires_grad_(True)
    return {"loss_g": loss.detach()}


def train(config: Config) -> Path:
    """Run Algorithm 1 from the start or from a checkpoint, and return the run folder."""
    device, config = utils.set_up(config)
    dataset = load_images(config)
    shape = {"image_size": config.image_size, "channels": dataset.images.shape[3]}
    generator_arguments = {"z_dim": config.z_dim, **shape, "width": config.g_width}
    generator = Generator(**generator_arguments)
    discriminator = Discriminator(**shape, width=config.d_width, dropout=config.dropout)
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
    run = Run(config, dataset, device, config.k, parts, generator_arguments)
    for _ in run.steps():
        for _ in range(config.k):  # Algorithm 1, inner loop: a new minibatch each time
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
