"""Classification of scikit-learn's handwritten digits: real images that every installation has."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from robustlr.task import Batch, Scale, Splits, SupervisedTask

if TYPE_CHECKING:
    import torch


def _mlp() -> "torch.nn.Module":
    from robustlr.tasks.models.small import mlp

    return mlp()


def _cnn() -> "torch.nn.Module":
    from robustlr.tasks.models.small import cnn

    return cnn()


def _data(device: str) -> Splits:
    from robustlr.tasks.data.digits import digits

    return digits(device)


def _cross_entropy(model: "torch.nn.Module", batch: Batch) -> "torch.Tensor":
    from torch.nn.functional import cross_entropy

    return cross_entropy(model(batch.inputs).float(), batch.targets)


def _error(model: "torch.nn.Module", split: Batch) -> float:
    wrong = model(split.inputs).argmax(dim=-1) != split.targets
    return float(wrong.float().mean())


def _shift(batch: Batch, generator: "torch.Generator") -> Batch:
    """Move every image by up to one pixel in each direction, filling with its corner's value."""
    import torch
    from torch.nn.functional import pad

    images = batch.inputs
    count, _, height, width = images.shape
    shifts = torch.randint(3, (2, count, 1), generator=generator, device=images.device)
    rows = shifts[0] + torch.arange(height, device=images.device)
    columns = shifts[1] + torch.arange(width, device=images.device)
    padded = pad(images, (1, 1, 1, 1), mode="replicate")
    index = torch.arange(count, device=images.device)[:, None, None]
    moved = padded[index, 0, rows[:, :, None], columns[:, None, :]]
    return Batch(moved.unsqueeze(1), batch.targets)


CHANCE_LOSS = math.log(10)

digits_mlp = SupervisedTask(
    name="digits-mlp",
    summary="A two-hidden-layer perceptron on 8×8 handwritten digits.",
    metric="validation error",
    worst=0.9,
    scales={"small": Scale(steps=800, batch_size=128, schedule="cosine", warmup=0.1)},
    model=_mlp,
    data=_data,
    loss=_cross_entropy,
    evaluate=_error,
    loss_bound=2 * CHANCE_LOSS,
)

digits_cnn = replace(
    digits_mlp,
    name="digits-cnn",
    summary="A small batch-normalised convolutional network on 8×8 handwritten digits.",
    scales={"small": Scale(steps=200, batch_size=128, schedule="cosine", warmup=0.1)},
    model=_cnn,
    augment=_shift,
)
