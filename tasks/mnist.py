"""Perceptrons on MNIST and Fashion-MNIST, shallow to 100 layers deep; at small scale on digits.

Paper scale is that of Learning by Turning (five layers with reparameterised weights, and a hundred
layers) and of Fromage's Figure 3 (any depth). The learning rate falls by a factor an epoch.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from robustlr.scale import Scale
from robustlr.tasks._classification import classification, cnn, mlp


def _each_epoch(epochs: int) -> tuple[float, ...]:
    """Return the milestones of a schedule that multiplies by its factor after every epoch."""
    return tuple(epoch / epochs for epoch in range(1, epochs))


SMALL = Scale(
    data="digits",
    options={"depth": 5, "width": 64, "residual": False, "activation": "relu"},
    steps=700,
    batch_size=64,
    schedule="step",
    milestones=_each_epoch(50),
    factor=0.95,
)

mnist_mlp = classification(
    name="mnist-mlp",
    summary="A perceptron of any depth on MNIST (Fromage, Figure 3).",
    classes=10,
    scales={
        "small": SMALL,
        "paper": Scale(
            data="mnist",
            options={**SMALL.options, "width": 784},
            epochs=100,
            batch_size=250,
            schedule="step",
            milestones=_each_epoch(100),
            factor=0.95,
        ),
    },
    build=mlp,
)

_REPARAMETERISED: Mapping[str, Any] = {
    "depth": 5,
    "width": 784,
    "activation": "scaled-relu",
    "reparameterised": True,
    "weight_scale": 1.0,
}

mnist_mlp5 = classification(
    name="mnist-mlp5",
    summary="Five layers with centred, normalised weights on MNIST (Learning by Turning, Figure 3).",
    classes=10,
    scales={
        "small": replace(
            SMALL, options={**_REPARAMETERISED, "width": 64}, schedule="constant", steps=200
        ),
        "paper": Scale(data="mnist", options=_REPARAMETERISED, epochs=5, batch_size=250),
    },
    build=mlp,
)

_DEEP: Mapping[str, Any] = {"depth": 100, "width": 784, "activation": "scaled-relu"}

mnist_mlp100 = classification(
    name="mnist-mlp100",
    summary="A hundred layers without normalisation on MNIST (Learning by Turning, Figure 3).",
    classes=10,
    scales={
        "small": replace(
            SMALL,
            options={**_DEEP, "width": 64},
            steps=2500,
            milestones=(0.7, 0.8, 0.9),
            factor=0.3,
        ),
        "paper": Scale(
            data="mnist",
            options=_DEEP,
            epochs=50,
            batch_size=250,
            schedule="step",
            milestones=_each_epoch(50),
            factor=0.9,
        ),
    },
    build=mlp,
)

fashion_mlp = classification(
    name="fashion-mlp",
    summary="A perceptron of any depth on Fashion-MNIST.",
    classes=10,
    scales={"small": SMALL, "paper": replace(mnist_mlp.scales["paper"], data="fashion-mnist")},
    build=mlp,
)

fashion_cnn = classification(
    name="fashion-cnn",
    summary="A small batch-normalised convolutional network on Fashion-MNIST.",
    classes=10,
    scales={
        "small": Scale(
            data="digits",
            options={"width": 8, "norm": "batch"},
            augmentation=("shift",),
            steps=200,
            batch_size=64,
            schedule="cosine",
            warmup=0.1,
        ),
        "paper": Scale(
            data="fashion-mnist",
            options={"width": 32, "norm": "batch"},
            augmentation=("shift", "flip"),
            epochs=20,
            batch_size=128,
            schedule="cosine",
            warmup=0.05,
        ),
    },
    build=cnn,
)
