"""Train the first GAN: two perceptrons.

Paper: Generative Adversarial Nets, Goodfellow et al. 2014, arXiv:1406.2661.
Run:   python train.py                        full size: for a GPU
       python train.py --config quick.json    minutes on a laptop
Read:  discriminator_step, generator_step, train.

Departures from the paper (its section 5 and Algorithm 1; the code's mnist.yaml):
  1. Optimiser: Adam with step size 5e-5; theirs: momentum 0.5 rising to 0.7, step size 0.1.
  2. Generator's loss: -log D(G(z)), which section 3 advises and their code has; Algorithm 1
     has log(1 - D(G(z))), here with --minimax.
  3. Minibatch: 64 images; their code: 100.
  4. Noise: 64 numbers from N(0, I); their code: 100, uniform with variance 1.
  5. Discriminator: leaky ReLU, dropout 0.3; theirs: maxout, dropout (in the code 0.2, then 0.5).
  6. Images: in [-1, 1] from tanh; their code: in [0, 1] from a sigmoid.
  7. Layers: five hidden, of 128 to 4096 units; their code: two, of 1200 (generator) or 240.
  8. First weights: He's, normal; their code: uniform up to 0.05 (generator), 0.005.
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
    """Train the first GAN (arXiv:1406.2661)."""

    lr: Positive = 5e-5
    """Adam's step size."""
    beta1: Share = 0.9
    """Adam's decay of the mean gradient."""
    beta2: Share = 0.999
    """Adam's decay of the mean squared gradient."""
    k: PositiveInt = 1
    """Discriminator updates for each generator update, k in Algorithm 1."""
    minimax: bool = False
    """Let the generator minimise log(1 - D(G(z))), as in Algorithm 1, instead of -log D(G(z))."""
    dropout: Share = 0.3
    """Share of the discriminator's hidden units left out at random."""
    g_width: Size = 128
    """Units of the generator's first hidden layer; the last has 32 times as many."""
    d_width: Size = 128
    """Units of the discriminator's last hidden layer; the first has 32 times as many."""
    z_dim: Size = 64
    """Length of the noise vector z."""
    image_size: ImageSize = 64
    """Side of the images in pixels."""
    channels: Channels = "data"
    """1 for grey, 3 for colour; by default what the data has."""
    batch_size: PositiveInt = 64
    """Images in a minibatch, m in Algorithm 1."""
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
    """Move the discriminator once (Algorithm 1, inner loop): to 1 on real, to 0 on fake images.

    Returns:
        `loss_d`, the sum of both cross entropies, 2 log 2 where it knows nothing;
        `d_real` and `d_fake`, the mean probabilities D(x) and D(G(z)).
    """
    z = torch.randn(len(real), config.z_dim, device=real.device)
    with torch.no_grad():  # the generator stays where it is
        fake = generator(z)
    # One pass for both reads the weights once; with batch norm they would have to go apart.
    real_logits, fake_logits = discriminator(torch.cat([real, fake])).chunk(2)
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
    discriminator: nn.Module, generator: nn.Module, optimizer: Optimizer, z: Tensor, minimax: bool
) -> dict[str, Tensor]:
    """Move the generator once (Algorithm 1, outer loop): to where its images are taken for real."""
    discriminator.requires_grad_(False)  # its own gradients are not needed here
    logits = discriminator(generator(z))
    if minimax:
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
    device = machine.pick_device(config.device, config.seed, config.precision)
    wanted = (config.data, config.data_dir, config.image_size, config.channels)
    pictures = load_pictures(*wanted, config.batch_size, config.hold_out)
    channels = pictures.images.shape[3]
    generator = Generator(config.z_dim, config.image_size, channels, config.g_width)
    discriminator = Discriminator(config.image_size, channels, config.d_width, config.dropout)
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
    run = Run(config, pictures, device, config.k, **parts)

    def step() -> dict[str, Tensor]:
        """One iteration of the outer loop: what a graph records."""
        for _ in range(config.k):  # Algorithm 1, inner loop: a new minibatch each time
            real = next(batches)
            losses = discriminator_step(
                discriminator, generator, discriminator_optimizer, real, config
            )
        z = torch.randn(config.batch_size, config.z_dim, device=device)
        return losses | generator_step(
            discriminator, generator, generator_optimizer, z, config.minimax
        )

    step = machine.graphed(step, device, config.graphs)
    for _ in run.steps():
        batches.draw(config.k)
        run.record(step())
    return run.path


if __name__ == "__main__":
    with utils.plain_errors():
        train(utils.parse_config(Config))
