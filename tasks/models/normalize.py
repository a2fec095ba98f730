"""From stored images to a network's inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Turns uint8 images ``[n, c, h, w]`` into floats (x / 255 - mean) / std, channel by channel.

    As a network's first layer it lets images stay a byte a pixel until they are on the device. Mean
    and deviation are constants of the data, so the state dict leaves them out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            channels = torch.tensor(list(values), dtype=torch.float32)[:, None, None]
            self.register_buffer(name, channels, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the images in float32, with the shape unchanged."""
        return (images.float() / 255 - self.mean) / self.std
