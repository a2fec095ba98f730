"""What the convolutional classifiers share: normalisation layers by name, and initialisation."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from robustlr.errors import unknown

Norm = Callable[[int], nn.Module]
"""Makes the normalisation layer of a number of channels."""

NORMS: Mapping[str, Norm] = MappingProxyType(
    {
        "batch": nn.BatchNorm2d,
        "layer": partial(nn.GroupNorm, 1),  # all channels and pixels of an image together
        "none": lambda channels: nn.Identity(),
    }
)


def norm_named(name: str) -> Norm:
    """Return the maker of the normalisation layers "batch", "layer" or "none".

    Raises:
        UserError: no normalisation is named so.
    """
    if name not in NORMS:
        raise unknown("normalisation", name, NORMS)
    return NORMS[name]


def initialise_convolutions(model: nn.Module) -> None:
    """Draw every convolution's weights as He et al. (2015) do, by fan-out.

    Linear layers keep torch's initialisation, biases included.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
