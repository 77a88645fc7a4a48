"""Train a Wasserstein GAN with weight clipping.

Paper: Wasserstein GAN, Arjovsky, Chintala and Bottou 2017, arXiv:1701.07875.
Run:   python train.py                        the paper's size: for a GPU
       python train.py --config quick.json    minutes on a laptop
Read:  critic_step, generator_step, train.

Departures from the paper (its Algorithm 1 and section 4; the authors' main.py):
  1. Length: 30 epochs of len(images) // batch_size generator updates; the paper gives none,
     their code: 25 epochs, each one pass of the critic over the images.
  2. Critic updates: always n_critic, as in Algorithm 1; their code: 100 before each of the
     first 25 generator updates and before every 500th.
  3. Clipping: after each update, as in line 7; their code: before it.
  4. Signs: the critic scores real images higher, as in line 5; their code: lower.
  5. Samples: running averages in batch norm; their code: averages of the batch.
"""

from pathlib import Path

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.optim import Optimizer, RMSprop

import utils
from data import Batches, load_images
from model import Critic, Generator
from utils import Channels, ImageSize, Precision, Run, Seed, Width

utils.release_modules("data", "model", "utils")  # a second model imports its own


@dataclass(frozen=True, config=utils.STRICT)
class Config:
    """Train a Wasserstein GAN with weight clipping (arXiv:1701.07875)."""

    lr: PositiveFloat = 5e-5
    """Learning rate, RMSProp's step size, alpha in Algorithm 1."""
    n_critic: PositiveInt = 5
    """Critic updates for each generator update."""
    clip_value: PositiveFloat = 0.01
    """Bound of all critic weights, c in Algorithm 1."""
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


def critic_step(
    critic: nn.Module, generator: nn.Module, optimizer: Optimizer, real: Tensor, config: Config
) -> dict[str, Tensor]:
    """Update the critic once (Algorithm 1, lines 3 to 7): real above fake, weights clipped.

    Returns:
        `loss_d`, which the update lowers; `wasserstein`, the critic's estimate of the
        distance, up to an unknown factor; `clipped`, the share of weights at the bound.
    """
    z = torch.randn(len(real), config.z_dim, device=real.device)
    with torch.autocast(real.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        with torch.no_grad():  # the generator stays as it is
            fake = generator(z)
        wasserstein = critic(real).mean() - critic(fake).mean()
    loss = -wasserstein
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()  # now, so that the other network's gradients can reuse the memory
    clipped = clip_weights(critic, config.clip_value)
    return {"loss_d": loss.detach(), "wasserstein": wasserstein.detach(), "clipped": clipped}


@torch.no_grad()
def clip_weights(critic: nn.Module, bound: float) -> Tensor:
    """Clip every parameter to [-bound, bound] (line 7), the norms' gains and shifts too.

    Returns:
        The share of parameters at the bound: a scalar in [0, 1].
    """
    at_bound, total = 0, 0
    for parameter in critic.parameters():
        parameter.clamp_(-bound, bound)
        at_bound = at_bound + (parameter.abs() == bound).sum()
        total += parameter.numel()
    return at_bound / total


def generator_step(
    critic: nn.Module, generator: nn.Module, optimizer: Optimizer, z: Tensor, config: Config
) -> dict[str, Tensor]:
    """Update the generator once (Algorithm 1, lines 9 to 11): raise the critic's scores."""
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
    generator_optimizer = RMSprop(generator.parameters(), config.lr)
    critic_optimizer = RMSprop(critic.parameters(), config.lr)
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
