"""Multilayer perceptrons of any depth: plain, residual, or with weights balanced as they are used."""

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor, nn

from robustlr.errors import UserError, unknown
from robustlr.optim.layers import normalize_weights


class ScaledReLU(nn.Module):
    """The ReLU times √2: a symmetric input keeps its mean square (Learning by Turning, App. A)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return √2 max(0, x)."""
        return nn.functional.relu(inputs) * 2**0.5


class Residual(nn.Module):
    """Adds its input to what ``body`` makes of it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        """Return x + body(x)."""
        outputs: Tensor = inputs + self.body(inputs)
        return outputs


ACTIVATIONS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {"relu": nn.ReLU, "scaled-relu": ScaledReLU}
)


def mlp(
    inputs: int,
    classes: int,
    *,
    depth: int,
    width: int,
    residual: bool = False,
    reparameterised: bool = False,
    weight_scale: float = 1.0,
    bias: bool = True,
    activation: str = "relu",
) -> nn.Sequential:
    """Return a perceptron from images ``[n, ...]`` of ``inputs`` numbers to ``[n, classes]``.

    Learning by Turning has 784 inputs, width 784, depth 5 or 100 and the scaled ReLU. Fromage ("On
    the distance between two neural networks") has the same with the plain ReLU, and residual.

    Args:
        inputs: numbers in one image.
        classes: numbers in one output.
        depth: number of linear layers; 1 is a linear classifier.
        width: neurons of each hidden layer.
        residual: whether a hidden layer as wide as its input is x + activation(Wx + b).
        reparameterised: whether every layer is without bias and computes with its weight's rows
            centred and normalised, from raw weights N(0, ``weight_scale``²).
        weight_scale: for reparameterised layers alone; it does not change the network's function.
        bias: whether layers that are not reparameterised have biases.
        activation: "relu" or "scaled-relu".

    Raises:
        UserError: no such activation, a depth below 1, or a weight scale that nothing would use.
    """
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    if depth < 1:
        raise UserError(f"a perceptron has at least 1 linear layer, so depth cannot be {depth}.")
    if weight_scale != 1.0 and not reparameterised:
        raise UserError("weight_scale is for reparameterised layers; add reparameterised=True.")
    bias = bias and not reparameterised
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth - 1):
        layer = nn.Sequential(nn.Linear(inputs, width, bias=bias), ACTIVATIONS[activation]())
        layers.append(Residual(layer) if residual and inputs == width else layer)
        inputs = width
    model = nn.Sequential(*layers, nn.Linear(inputs, classes, bias=bias))
    return _reparameterised(model, weight_scale) if reparameterised else model


def _reparameterised(model: nn.Sequential, weight_scale: float) -> nn.Sequential:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=weight_scale)
    return normalize_weights(model)
