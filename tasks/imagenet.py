"""ResNet-50 and DeiT-tiny on ImageNet; at small scale narrow and short ones on digits.

Paper scale is that of Learning by Turning for ResNet-50 and of Rotational Equilibrium for DeiT-tiny,
whose stronger augmentation (automatic augmentation, mixup, random erasing, drop path) is left out.
50,000 training images are kept to tune on. Rates start at a step's share of the warmup, not at 1e-6.
"""

from typing import TYPE_CHECKING, Any

from robustlr.scale import Scale
from robustlr.tasks._classification import classification

if TYPE_CHECKING:
    import torch


def _resnet50(channels: int, classes: int, *, size: int, **options: Any) -> "torch.nn.Module":
    from robustlr.tasks.models.resnet import bottleneck_resnet

    return bottleneck_resnet(channels, classes, **options)


def _vit(channels: int, classes: int, *, size: int, **options: Any) -> "torch.nn.Module":
    from robustlr.tasks.models.vit import vit

    return vit(channels, classes, size=size, **options)


imagenet_resnet50 = classification(
    name="imagenet-resnet50",
    summary="ResNet-50 on ImageNet (Learning by Turning, Figure 4).",
    classes=1000,
    scales={
        "small": Scale(
            data="digits",
            options={"blocks": (1, 2, 1), "width": 8, "small_images": True},
            augmentation=("shift",),
            steps=200,
            batch_size=64,
            schedule="cosine",
            warmup=1 / 90,
            worst=0.9,
            evaluations=5,
        ),
        "paper": Scale(
            data="imagenet",
            options={"blocks": (3, 4, 6, 3), "width": 64, "small_images": False},
            augmentation=("flip",),
            epochs=90,
            batch_size=400,
            schedule="cosine",
            warmup=1 / 90,
            evaluations=18,
        ),
    },
    build=_resnet50,
)

imagenet_deit_tiny = classification(
    name="imagenet-deit-tiny",
    summary="DeiT-tiny on ImageNet (Rotational Equilibrium).",
    classes=1000,
    scales={
        "small": Scale(
            data="digits",
            options={"patch": 2, "layers": 3, "heads": 3, "width": 48, "gains": False},
            augmentation=("shift",),
            label_smoothing=0.1,
            steps=300,
            batch_size=64,
            schedule="cosine",
            warmup=0.1,
            worst=0.9,
            evaluations=5,
        ),
        "paper": Scale(
            data="imagenet",
            options={"patch": 16, "layers": 12, "heads": 3, "width": 192, "gains": False},
            augmentation=("flip",),
            label_smoothing=0.1,
            epochs=300,
            batch_size=1024,
            schedule="cosine",
            warmup=5 / 300,
            evaluations=30,
        ),
    },
    build=_vit,
)
