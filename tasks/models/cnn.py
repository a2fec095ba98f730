"""A convolutional network that trains in seconds on one CPU core."""

from torch import nn

from robustlr.tasks.models.convolution import norm_named


def cnn(
    channels: int, classes: int, *, size: int, width: int = 16, norm: str = "batch"
) -> nn.Sequential:
    """Return a small convolutional network, ``[n, channels, size, size]`` to ``[n, classes]``.

    Its three 3×3 convolutions have ``width``, ``2 width`` and ``2 width`` channels; the last two
    halve the height and the width of an image.

    Raises:
        UserError: there is no such normalisation.
    """
    make_norm = norm_named(norm)
    layers: list[nn.Module] = []
    inputs = channels
    for outputs, stride in ((width, 1), (2 * width, 2), (2 * width, 2)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            make_norm(outputs),
            nn.ReLU(),
        ]
        inputs = outputs
    pixels = -(-size // 4)  # of each row and column, rounded up
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * pixels**2, classes))
