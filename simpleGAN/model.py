"""Networks of the first GAN: Goodfellow et al. 2014, arXiv:1406.2661, section 3: two perceptrons.

Shapes: B batch, C channels, H = W = image_size. Images lie in [-1, 1].
This file needs torch alone, so a generator can be rebuilt from it and its saved weights.
"""

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Turn noise into square images through fully connected layers.

    With image_size 64 and width 128: z (B, z_dim) -> 128 -> 256 -> 512 -> 1024
    -> 4096 -> (B, C, 64, 64). ReLU follows every layer but the last, which ends in tanh.

    Args:
        z_dim: length of the noise vector, drawn from N(0, I).
        image_size: side in pixels.
        channels: 1 for gray images, 3 for color.
        width: units of the first hidden layer; the others have 2, 4, 8 and 32 times as many.
    """

    def __init__(self, z_dim: int, image_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.image_shape = (channels, image_size, image_size)
        layers = []
        units = z_dim
        for factor in (1, 2, 4, 8, 32):
            layers += [nn.Linear(units, factor * width), nn.ReLU(inplace=True)]
            units = factor * width
        layers += [nn.Linear(units, channels * image_size**2), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(initialize)

    def forward(self, z: Tensor) -> Tensor:
        """Map z (B, z_dim) to images (B, C, H, W) in [-1, 1]."""
        return self.layers(z).unflatten(1, self.image_shape).float()


class Discriminator(nn.Module):
    """Tell real images from generated ones through fully connected layers.

    With image_size 64 and width 128: images (B, C, 64, 64) -> 12288 pixels -> 4096
    -> 1024 -> 512 -> 256 -> 128 -> logits (B,). Leaky ReLU of slope 0.2 and dropout
    follow every layer but the last.

    Args:
        image_size: side in pixels.
        channels: 1 for gray images, 3 for color.
        width: units of the last hidden layer; those before it have 2, 4, 8 and 32 times as many.
        dropout: share of a layer's units that are left out at random while training.
    """

    def __init__(self, image_size: int, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        layers = [nn.Flatten()]
        units = channels * image_size**2
        for factor in (32, 8, 4, 2, 1):
            layers += [
                nn.Linear(units, factor * width),
                nn.LeakyReLU(0.2, inplace=True),
                nn.Dropout(dropout),
            ]
            units = factor * width
        layers += [nn.Linear(units, 1), nn.Flatten(start_dim=0)]
        self.layers = nn.Sequential(*layers)
        self.apply(initialize)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B,): above 0 means more likely real."""
        return self.layers(images).float()


@torch.no_grad()
def initialize(module: nn.Module) -> None:
    """Draw weights that keep signals their size through ReLU layers (He et al. 2015).

    Torch's own first weights shrink them at each of six layers: whatever z is, the first
    images are then nearly the same, and the generator tends to stay there.
    """
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)
