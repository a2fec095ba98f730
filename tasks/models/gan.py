"""The class-conditional BigGAN-like generator and discriminator of Learning by Turning and Fromage.

Every convolution, linear layer and embedding has spectral norm (Miyato et al., 2018) with one power
iteration a training forward, orthogonal weights and biases N(0, 0.01²). Weights that spectral norm
holds cannot be deep-copied once a training forward has run; copy the state dict instead.
"""

from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, one_hot, relu, scaled_dot_product_attention
from torch.nn.utils import spectral_norm

from robustlr.errors import UserError

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear, nn.Embedding)

SCORE_SCALE = 10.0
"""What the discriminator's score is multiplied by, against the hinge loss's margin of 1."""


def _convolution(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return _spectral(layer, torch.zeros(1, inputs, kernel, kernel))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return _spectral(nn.Linear(inputs, outputs), torch.zeros(1, inputs))


def _embedding(classes: int, features: int) -> nn.Embedding:
    return _spectral(nn.Embedding(classes, features), torch.zeros(1, dtype=torch.long))


def _spectral(layer: Layer, example: Tensor) -> Layer:
    nn.init.orthogonal_(layer.weight)
    if not isinstance(layer, nn.Embedding) and layer.bias is not None:
        nn.init.normal_(layer.bias, std=0.01)
    layer = spectral_norm(layer)
    # The estimate of the largest singular value starts at random vectors. Without this first
    # iteration, an evaluation before training would see weights many times too large.
    with torch.no_grad():
        layer(example)
    return layer


def _resizing_blocks(size: int, width: int) -> int:
    """Return how many blocks halve or double the maps: up to 3, down to maps no smaller than 4×4."""
    blocks = 0
    while blocks < 3 and size % 2 == 0 and size >= 8:
        size //= 2
        blocks += 1
    if not blocks:
        raise UserError(f"images of {size}×{size} pixels cannot be halved; give an even size >= 8.")
    if width % 8:
        raise UserError(f"width must be a multiple of 8, for attention's sake, and is {width}.")
    return blocks


class NonLocal(nn.Module):
    """Lets each pixel attend to all, unscaled, and adds the result (Zhang et al., 2019: SAGAN).

    Queries and keys have an eighth of the channels, values half of them; keys and values are
    pooled 2×2. What is added is weighted by 1, or by a learned scalar that starts there.
    """

    def __init__(self, channels: int, *, learned_weight: bool = False) -> None:
        super().__init__()
        self.query = _convolution(channels, channels // 8, 1)
        self.key = _convolution(channels, channels // 8, 1)
        self.value = _convolution(channels, channels // 2, 1)
        self.out = _convolution(channels // 2, channels, 1)
        self.weight = nn.Parameter(torch.ones(())) if learned_weight else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return maps of the shape of ``inputs``, ``[n, channels, h, w]``."""
        query = self.query(inputs).flatten(2).mT  # [n, h w, channels / 8]
        key, value = (
            nn.functional.max_pool2d(layer(inputs), 2).flatten(2).mT
            for layer in (self.key, self.value)
        )
        attended = scaled_dot_product_attention(query, key, value, scale=1.0)
        added: Tensor = self.out(torch.unflatten(attended.mT, 2, inputs.shape[2:]))
        return inputs + (added if self.weight is None else self.weight * added)


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain is 1 + a linear function of a condition, and whose shift is another."""

    def __init__(self, channels: int, condition: int, momentum: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False, momentum=momentum)
        self.gain = _linear(condition, channels)
        self.shift = _linear(condition, channels)

    def forward(self, inputs: Tensor, condition: Tensor) -> Tensor:
        """Return maps of the shape of ``inputs``; ``condition`` is ``[n, condition]``."""
        gain, shift = (layer(condition)[:, :, None, None] for layer in (self.gain, self.shift))
        outputs: Tensor = self.norm(inputs) * (1 + gain) + shift
        return outputs


class GeneratorBlock(nn.Module):
    """A pre-activation residual block that doubles height and width, by nearest neighbour."""

    def __init__(self, inputs: int, outputs: int, condition: int, momentum: float) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(inputs, condition, momentum)
        self.conv1 = _convolution(inputs, outputs)
        self.norm2 = ConditionalBatchNorm(outputs, condition, momentum)
        self.conv2 = _convolution(outputs, outputs)
        self.skip = _convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, inputs: Tensor, condition: Tensor) -> Tensor:
        """Return maps ``[n, outputs, 2 h, 2 w]`` of maps ``[n, inputs, h, w]``."""
        hidden = self.conv1(_doubled(relu(self.norm1(inputs, condition))))
        hidden = self.conv2(relu(self.norm2(hidden, condition)))
        # the order of a 1×1 convolution and the doubling does not matter, but its cost does
        outputs: Tensor = hidden + _doubled(self.skip(inputs))
        return outputs


def _doubled(maps: Tensor) -> Tensor:
    return interpolate(maps, scale_factor=2.0)


class Generator(nn.Module):
    """Makes images in [-1, 1] of given classes from noise.

    The defaults and ``Generator(3, 1000)`` are the papers' for CIFAR-10, which has an embedding of
    1000 classes and uses 10. Images of 8, 16 and at least 32 pixels have 1, 2 and 3 blocks, of
    which fewer are narrower at the start. The noise is split: one chunk makes the first maps, and
    one conditions each block, together with the class embedding. Attention comes before the last of
    several blocks.

    Args:
        channels: channels of an image.
        classes: number of classes that can be asked for.
        size: height and width of an image.
        width: channels of the last block, a multiple of 8; earlier ones have up to four times that.
        embedding: numbers that stand for a class.
        chunk: numbers of noise for the first maps and for each block.
        attention: whether there is attention.
        learned_attention_weight: whether a learned scalar weights it (Fromage) or 1 does (Nero).
        momentum: how fast the conditional batch norms' statistics for evaluation follow training;
            the papers' value wants many thousand steps.

    Raises:
        UserError: the size cannot be halved to at least 4, or the width is not a multiple of 8.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        size: int = 32,
        width: int = 64,
        embedding: int = 80,
        chunk: int = 20,
        attention: bool = True,
        learned_attention_weight: bool = False,
        momentum: float = 0.001,
    ) -> None:
        super().__init__()
        blocks = _resizing_blocks(size, width)
        widths = [4 * width, 4 * width, 2 * width, width][-(blocks + 1) :]
        self.classes, self.chunk, self.noise_size = classes, chunk, chunk * (blocks + 1)
        self.start_shape = (widths[0], size >> blocks, size >> blocks)
        self.embedding = _linear(classes, embedding)
        self.start = _linear(chunk, widths[0] * (size >> blocks) ** 2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(inputs, outputs, embedding + chunk, momentum)
            for inputs, outputs in pairwise(widths)
        )
        self.attention: nn.Module = nn.Identity()
        if attention and blocks > 1:
            self.attention = NonLocal(widths[-2], learned_weight=learned_attention_weight)
        self.norm = nn.BatchNorm2d(width)
        self.image = _convolution(width, channels)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return images ``[n, channels, size, size]``.

        Args:
            noise: ``[n, noise_size]``, normally distributed.
            labels: ``[n]``, integers below ``classes``.
        """
        first, *chunks = torch.split(noise, self.chunk, dim=1)
        embedding = self.embedding(one_hot(labels, self.classes).to(noise.dtype))
        maps = torch.unflatten(self.start(first), 1, self.start_shape)
        for index, (block, chunk) in enumerate(zip(self.blocks, chunks, strict=True), start=1):
            if index == len(self.blocks):
                maps = self.attention(maps)
            maps = block(maps, torch.cat([embedding, chunk], dim=1))
        return torch.tanh(self.image(relu(self.norm(maps))))


class DiscriminatorBlock(nn.Module):
    """A residual block of two convolutions that may halve height and width, by averaging."""

    def __init__(
        self, inputs: int, outputs: int, *, preactivation: bool = True, halve: bool = True
    ) -> None:
        super().__init__()
        self.preactivation = preactivation
        self.conv1 = _convolution(inputs, outputs)
        self.conv2 = _convolution(outputs, outputs)
        self.pool = nn.AvgPool2d(2) if halve else nn.Identity()
        self.skip = _convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return maps ``[n, outputs, h, w]``, or half as high and wide, of ``[n, inputs, h, w]``."""
        hidden = self.conv1(relu(inputs) if self.preactivation else inputs)
        hidden = self.conv2(relu(hidden))
        outputs: Tensor = self.pool(hidden) + self.skip(self.pool(inputs))
        return outputs


class Discriminator(nn.Module):
    """Scores how real images of given classes look, by projection (Miyato and Koyama, 2018).

    ``Discriminator(3, 1000)`` is the papers' for CIFAR-10. Smaller images have fewer of the blocks
    that halve them; attention comes before the last of several.

    Args:
        channels: channels of an image.
        classes: number of classes.
        size: height and width of an image.
        width: channels of the first block, a multiple of 8; later ones have up to four times that.
        attention: whether there is attention.
        learned_attention_weight: whether a learned scalar weights it (Fromage) or 1 does (Nero).

    Raises:
        UserError: the size cannot be halved to at least 4, or the width is not a multiple of 8.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        size: int = 32,
        width: int = 64,
        attention: bool = True,
        learned_attention_weight: bool = False,
    ) -> None:
        super().__init__()
        blocks = _resizing_blocks(size, width)
        widths = [width, 2 * width, 4 * width][:blocks]
        layers: list[nn.Module] = [DiscriminatorBlock(channels, width, preactivation=False)]
        for inputs, outputs in pairwise(widths):
            if attention and outputs == widths[-1]:
                layers.append(NonLocal(inputs, learned_weight=learned_attention_weight))
            layers.append(DiscriminatorBlock(inputs, outputs))
        self.features = nn.Sequential(
            *layers, DiscriminatorBlock(widths[-1], widths[-1], halve=False), nn.ReLU()
        )
        self.score = _linear(widths[-1], 1)
        self.embedding = _embedding(classes, widths[-1])

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return scores ``[n]``, higher for more real.

        Args:
            images: ``[n, channels, size, size]``, in [-1, 1].
            labels: ``[n]``, integers below ``classes``.
        """
        features = self.features(images).mean(dim=(2, 3))
        matched = (features * self.embedding(labels)).sum(dim=1)
        score: Tensor = SCORE_SCALE * (self.score(features).squeeze(1) + matched)
        return score
