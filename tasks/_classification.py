"""What the image classification tasks share: data by name, a loss, a metric, and augmentation."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from robustlr.scale import CONDITIONS, Scale
from robustlr.task import Batch, LabelledPart, Part, Splits, SupervisedTask

if TYPE_CHECKING:
    import torch

EVALUATION_PIXELS = 2**20
"""Pixels evaluated at once, in each channel: 1,024 images of CIFAR, 20 of ImageNet."""

TRAINING_LOSS = "training loss"
"""The metric of scales that ask how well the training data is fitted."""

Build = Callable[..., "torch.nn.Module"]
"""Called as ``build(channels, classes, size=…, **options)`` with the facts of the scale's data."""


def mlp(channels: int, classes: int, *, size: int, **options: Any) -> "torch.nn.Module":
    """Return a perceptron; see ``models/mlp.py``. Torch is imported when a model is built."""
    from robustlr.tasks.models.mlp import mlp

    return mlp(channels * size**2, classes, **options)


def cnn(channels: int, classes: int, *, size: int, **options: Any) -> "torch.nn.Module":
    """Return a small convolutional network; see ``models/cnn.py``."""
    from robustlr.tasks.models.cnn import cnn

    return cnn(channels, classes, size=size, **options)


def resnet(channels: int, classes: int, *, size: int, **options: Any) -> "torch.nn.Module":
    """Return a residual network of basic blocks for any ``size``; see ``models/resnet.py``."""
    from robustlr.tasks.models.resnet import resnet

    return resnet(channels, classes, **options)


def classification(*, build: Build, classes: int, **facts: Any) -> SupervisedTask:
    """Return a task that classifies images; ``classes`` are those of its largest data set."""
    return SupervisedTask(
        metric="validation error",
        worst=1 - 1 / classes,
        loss_bound=_loss_bound,
        conditions=(*CONDITIONS, "label_smoothing", "gain_penalty"),
        model=_model(build),
        data=load,
        loss=_loss,
        evaluate=_evaluate,
        augment=_augment,
        **facts,
    )


def load(scale: Scale, device: str) -> Splits[LabelledPart]:
    """Return the scale's data set, in the size that its options name."""
    from robustlr.tasks.data.images import load

    return load(scale.data, size=scale.options.get("size"), device=device)


def _model(build: Build) -> Callable[[Scale], "torch.nn.Module"]:
    def model(scale: Scale) -> "torch.nn.Module":
        from torch import nn

        from robustlr.tasks.data.images import DATA_SETS
        from robustlr.tasks.models.normalize import Normalize

        facts = DATA_SETS[scale.data]
        options = {"size": facts.size, **scale.options}
        network = build(facts.channels, facts.classes, **options)
        return nn.Sequential(Normalize(facts.mean, facts.std), network)

    return model


def _loss(model: "torch.nn.Module", batch: Batch, scale: Scale) -> "torch.Tensor":
    from torch.nn.functional import cross_entropy

    outputs = model(batch.inputs).float()
    return cross_entropy(outputs, batch.targets, label_smoothing=scale.label_smoothing)


def _evaluate(model: "torch.nn.Module", part: Part, scale: Scale) -> float:
    """Return the share of a part's images that are classified wrongly, or their mean loss."""
    import torch

    total = 0.0
    everything = torch.arange(len(part))
    at_once = max(1, EVALUATION_PIXELS // part.take(everything[:1]).inputs[0, 0].numel())
    for index in torch.split(everything, at_once):
        batch = part.take(index)
        if scale.metric == TRAINING_LOSS:
            total += float(_loss(model, batch, scale)) * len(batch)
        else:
            total += float((model(batch.inputs).argmax(dim=-1) != batch.targets).sum())
    return total / len(part)


def _loss_bound(scale: Scale) -> float:
    """Return twice the loss of a model that takes every class for equally likely."""
    from robustlr.tasks.data.images import DATA_SETS

    return 2 * math.log(DATA_SETS[scale.data].classes)


def _augment(batch: Batch, scale: Scale, generator: "torch.Generator") -> Batch:
    from robustlr.tasks.data.augment import augment

    return Batch(augment(batch.inputs, scale.augmentation, generator), batch.targets)
