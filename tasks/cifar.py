"""Convolutional networks on CIFAR-10 and CIFAR-100; at small scale narrow ones on digits.

Paper scale is that of Learning by Turning for VGG-11 and its ResNet-18, and of Rotational
Equilibrium for ResNet-20 and the ResNet-18 with layer norm. Both papers train on all 50,000 images;
here 5,000 of them are kept to tune on. Rotational Equilibrium's rates start at 1e-6 and end at 1e-5;
here they start at a step's share of the warmup and end at 0.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from robustlr.scale import Scale
from robustlr.tasks._classification import classification, resnet

if TYPE_CHECKING:
    import torch


def _vgg(channels: int, classes: int, *, size: int, **options: Any) -> "torch.nn.Module":
    from robustlr.tasks.models.vgg import vgg

    return vgg(channels, classes, size=size, **options)


def _nero_scale(options: dict[str, Any]) -> Scale:
    """Return Learning by Turning's protocol: 199 epochs, a fifth of the rate at 100, 150 and 180."""
    return Scale(
        data="cifar10",
        options=options,
        augmentation=("crop", "flip", "rotate"),
        epochs=199,
        batch_size=128,
        schedule="step",
        milestones=(99 / 199, 149 / 199, 179 / 199),
        factor=0.2,
        warmup=5 / 199,
        evaluations=20,
    )


def _rotational_scale(data: str, options: dict[str, Any], batch_size: int) -> Scale:
    """Return Rotational Equilibrium's protocol: 200 epochs of cosine after 5 of warmup."""
    return Scale(
        data=data,
        options=options,
        augmentation=("crop", "flip"),
        epochs=200,
        batch_size=batch_size,
        schedule="cosine",
        warmup=5 / 200,
        evaluations=20,
    )


def _small_scale(options: dict[str, Any], steps: int = 150) -> Scale:
    return Scale(
        data="digits",
        options=options,
        augmentation=("shift",),
        steps=steps,
        batch_size=64,
        schedule="step",
        milestones=(0.5, 0.75, 0.9),
        factor=0.2,
        warmup=0.1,
        evaluations=5,
    )


_VGG = {"layers": 11, "norm": "none"}
_RESNET = {
    "norm": "batch",
    "preactivation": False,
    "stem_relu": True,
    "standardised": False,
}

cifar10_vgg11 = classification(
    name="cifar10-vgg11",
    summary="VGG-11 without normalisation on CIFAR-10 (Learning by Turning).",
    classes=10,
    scales={
        "small": _small_scale(
            {**_VGG, "width": 8, "hidden": 64, "dropout": 0.1, "size": 16}, steps=250
        ),
        "paper": _nero_scale({**_VGG, "width": 64, "hidden": 4096, "dropout": 0.5}),
    },
    build=_vgg,
)

cifar10_resnet18 = classification(
    name="cifar10-resnet18",
    summary="ResNet-18 on CIFAR-10, without a ReLU after the stem (Learning by Turning).",
    classes=10,
    scales={
        "small": _small_scale({**_RESNET, "stem_relu": False, "blocks": (2, 2, 2), "width": 8}),
        "paper": _nero_scale({**_RESNET, "stem_relu": False, "blocks": (2, 2, 2, 2), "width": 64}),
    },
    build=resnet,
)

cifar10_resnet20 = classification(
    name="cifar10-resnet20",
    summary="ResNet-20 on CIFAR-10 (Rotational Equilibrium).",
    classes=10,
    scales={
        "small": _small_scale({**_RESNET, "blocks": (3, 3), "width": 8}),
        "paper": _rotational_scale(
            "cifar10", {**_RESNET, "blocks": (3, 3, 3), "width": 16}, batch_size=128
        ),
    },
    build=resnet,
)

_LAYER_NORM = {**_RESNET, "norm": "layer", "preactivation": True}

cifar100_resnet18_ln = classification(
    name="cifar100-resnet18-ln",
    summary="Pre-activation ResNet-18 with layer norm on CIFAR-100 (Rotational Equilibrium).",
    classes=100,
    scales={
        "small": replace(_small_scale({**_LAYER_NORM, "blocks": (2, 2, 2), "width": 8}), worst=0.9),
        "paper": _rotational_scale(
            "cifar100", {**_LAYER_NORM, "blocks": (2, 2, 2, 2), "width": 64}, batch_size=256
        ),
    },
    build=resnet,
)
