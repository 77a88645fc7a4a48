"""Networks of the WGAN-GP: Gulrajani et al. 2017, arXiv:1704.00028, section 4.

Both are the DCGAN's (arXiv:1511.06434), without the sigmoid and with layer norm in the
critic: under batch norm the score of one image would depend on the others, and a
gradient penalty per image would have no meaning ("No critic batch normalization").

Shapes: B batch, C channels, H = W = image_size. Images lie in [-1, 1].
This file needs torch alone, so a generator can be rebuilt from it and its saved weights.
"""

from torch import Tensor, nn


class Generator(nn.Module):
    """Turn noise into square images, doubling the side at every layer.

    With image_size 64 and width 128: z (B, z_dim) -> (B, 1024, 4, 4)
    -> (B, 512, 8, 8) -> (B, 256, 16, 16) -> (B, 128, 32, 32) -> (B, C, 64, 64).
    Batch norm and ReLU follow every layer but the last, which ends in tanh.

    Args:
        z_dim: length of the noise vector, drawn from N(0, I).
        image_size: side in pixels, a power of two from 16 up.
        channels: 1 for gray images, 3 for color.
        width: feature maps of the last hidden layer; each layer before it has twice as many.
    """

    def __init__(self, z_dim: int, image_size: int, channels: int, width: int) -> None:
        super().__init__()
        doublings = image_size.bit_length() - 3  # from 4 pixels to image_size
        maps = width * 2 ** (doublings - 1)
        layers = [
            # the projection of z onto 4x4 maps: on a 1x1 input this is a matrix product
            nn.ConvTranspose2d(z_dim, maps, kernel_size=4, bias=False),
            nn.BatchNorm2d(maps),
            nn.ReLU(inplace=True),
        ]
        for _ in range(doublings - 1):
            layers += [
                nn.ConvTranspose2d(maps, maps // 2, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(maps // 2),
                nn.ReLU(inplace=True),
            ]
            maps //= 2
        layers += [
            nn.ConvTranspose2d(maps, channels, 4, stride=2, padding=1, bias=False),
            nn.Tanh(),
        ]
        self.layers = nn.Sequential(*layers)
        self.apply(initialize)

    def forward(self, z: Tensor) -> Tensor:
        """Map z (B, z_dim) to images (B, C, H, W) in [-1, 1]."""
        return self.layers(z[:, :, None, None]).float()


class Critic(nn.Module):
    """Score images, higher for real than for generated ones, halving the side at every layer.

    With image_size 64 and width 64: images (B, C, 64, 64) -> (B, 64, 32, 32)
    -> (B, 128, 16, 16) -> (B, 256, 8, 8) -> (B, 512, 4, 4) -> scores (B,).
    Leaky ReLU of slope 0.2 throughout; layer norm on every hidden layer but the first.

    Args:
        image_size: side in pixels, a power of two from 16 up.
        channels: 1 for gray images, 3 for color.
        width: feature maps of the first layer; each layer after it has twice as many.
    """

    def __init__(self, image_size: int, channels: int, width: int) -> None:
        super().__init__()
        halvings = image_size.bit_length() - 3  # from image_size to 4 pixels
        layers = [
            nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for _ in range(halvings - 1):
            layers += [
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(1, 2 * width),  # layer norm over (C, H, W); one gain per channel
                nn.LeakyReLU(0.2, inplace=True),
            ]
            width *= 2
        # a weighted sum over all maps and pixels that are left
        layers += [nn.Conv2d(width, 1, kernel_size=4, bias=False), nn.Flatten(start_dim=0)]
        self.layers = nn.Sequential(*layers)
        self.apply(initialize)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to scores (B,), any numbers: only differences have meaning."""
        return self.layers(images).float()


def initialize(module: nn.Module) -> None:
    """Draw convolution weights from N(0, 0.02) and norm gains from N(1, 0.02); shifts are 0.

    The paper names none; these are the DCGAN's. The gains are centered on 1, as in the
    authors' code: around 0 every norm layer would all but switch its input off.
    """
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
