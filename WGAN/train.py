"""Train a Wasserstein GAN with weight clipping.

Paper: Wasserstein GAN, Arjovsky, Chintala and Bottou 2017, arXiv:1701.07875.
Run:   python train.py                        the paper's size: for a GPU
       python train.py --config quick.json    minutes on a laptop
Read:  critic_step, generator_step, train.

Departures from the paper (its Algorithm 1 and section 4; the code's main.py):
  1. Length: 30 epochs of len(images) // batch_size generator updates; the paper names none,
     their code: 25 epochs, each one pass of the critic over the images.
  2. Critic updates: always n_critic, as in Algorithm 1; their code: 100 before each of the
     first 25 generator updates and before every 500th.
  3. Clipping: after each update, as in line 7; their code: before it.
  4. Signs: the critic scores real images higher, as in line 5; their code: lower.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer, RMSprop

import machine
import utils
from data import Batches, load_pictures
from model import Critic, Generator
from run_folder import Run
from utils import Channels, ImageSize, Positive, Precision, Seed, Size


@dataclass(frozen=True)
class Config:
    """Train a Wasserstein GAN with weight clipping (arXiv:1701.07875)."""

    lr: Positive = 5e-5
    """RMSProp's step size, alpha in Algorithm 1."""
    n_critic: PositiveInt = 5
    """Critic updates for each generator update."""
    clip_value: Positive = 0.01
    """Bound of all critic weights, c in Algorithm 1."""
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


def critic_step(
    critic: nn.Module, generator: nn.Module, optimizer: Optimizer, real: Tensor, config: Config
) -> dict[str, Tensor]:
    """Move the critic once (Algorithm 1, lines 3 to 7): score real above fake, weights clipped.

    Returns:
        `loss_d`, which falls; `wasserstein`, the critic's estimate of the distance, up to
        a factor that nobody knows; `clipped`, the share of weights that lie at the bound.
    """
    z = torch.randn(len(real), config.z_dim, device=real.device)
    with torch.no_grad():  # the generator stays where it is
        fake = generator(z)
    wasserstein = critic(real).mean() - critic(fake).mean()
    loss = -wasserstein
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()  # at once, so that the other network's gradients take their place
    clipped = clip_weights(critic, config.clip_value)
    return {"loss_d": loss.detach(), "wasserstein": wasserstein.detach(), "clipped": clipped}


@torch.no_grad()
def clip_weights(critic: nn.Module, bound: float) -> Tensor:
    """Clip every parameter to [-bound, bound] (line 7), gains and shifts of the norms too.

    Returns:
        The share of them that lie at the bound: a scalar in [0, 1].
    """
    at_bound, total = 0, 0
    for parameter in critic.parameters():
        parameter.clamp_(-bound, bound)
        at_bound = at_bound + (parameter.abs() == bound).sum()
        total += parameter.numel()
    return at_bound / total


def generator_step(
    critic: nn.Module, generator: nn.Module, optimizer: Optimizer, z: Tensor
) -> dict[str, Tensor]:
    """Move the generator once (Algorithm 1, lines 9 to 11) to where the critic scores higher."""
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
    generator_optimizer = RMSprop(generator.parameters(), config.lr, **how)
    critic_optimizer = RMSprop(critic.parameters(), config.lr, **how)
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
