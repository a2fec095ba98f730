"""VGG-11 and VGG-13 for small images (Simonyan and Zisserman, 2015)."""

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from robustlr.dropout import Dropout
from robustlr.errors import UserError
from robustlr.tasks.models.convolution import initialise_convolutions, norm_named

CONVOLUTIONS: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2)}
)
"""Convolutions before each pool, by the number of layers."""


def vgg(
    channels: int,
    classes: int,
    *,
    layers: int = 11,
    width: int = 64,
    hidden: int = 4096,
    dropout: float = 0.5,
    norm: str = "none",
    size: int = 32,
) -> nn.Sequential:
    """Return a VGG from images ``[n, channels, size, size]`` to ``[n, classes]``.

    The defaults are Learning by Turning's VGG-11 on CIFAR-10, whose convolutions have no biases.
    Rotational Equilibrium (App. H) has ``layers=13, hidden=0`` as it is, with ``norm="batch"``, and
    with all its weights standardised (``standardize_weights``).

    Args:
        channels: channels of an image.
        classes: numbers in one output.
        layers: 11 or 13.
        width: channels of the first convolution; the later ones have up to eight times as many.
        hidden: neurons of each of the two hidden layers at the end; 0 leaves a linear classifier.
        dropout: share of each of those hidden layers that is left out in training.
        norm: "none", "batch" or "layer", after each convolution.
        size: height and width of an image. A map of one pixel is pooled no further, so that images
            of 8×8 pixels work; above 32 the classifier sees more than one pixel.

    Raises:
        UserError: there is no such number of layers or normalisation.
    """
    if layers not in CONVOLUTIONS:
        known = " or ".join(map(str, CONVOLUTIONS))
        raise UserError(f"a VGG here has {known} layers, not {layers}.")
    make_norm = norm_named(norm)
    modules: list[nn.Module] = []
    for stage, count in enumerate(CONVOLUTIONS[layers]):
        outputs = width * min(2**stage, 8)
        for _ in range(count):
            modules += [
                nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                make_norm(outputs),
                nn.ReLU(inplace=True),
            ]
            channels = outputs
        if size > 1:
            modules.append(nn.MaxPool2d(2))
            size //= 2
    classifier = _classifier(channels * size**2, classes, hidden=hidden, dropout=dropout)
    model = nn.Sequential(*modules, nn.Flatten(), *classifier)
    initialise_convolutions(model)
    return model


def _classifier(inputs: int, classes: int, *, hidden: int, dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(2 if hidden else 0):
        layers += [nn.Linear(inputs, hidden), nn.ReLU(inplace=True), Dropout(dropout)]
        inputs = hidden
    return [*layers, nn.Linear(inputs, classes)]
