"""Random changes of training images, made on the device that holds them.

Each function takes uint8 images ``[n, c, h, w]`` and a generator on the same device, and returns
images of the same type and shape: every image is changed in its own way, new pixels are 0 (black),
and the same generator state gives the same images.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from robustlr.errors import unknown

MAX_DEGREES = 15.0
"""The largest angle of ``rotate``: that of Nero's CIFAR-10 runs (arXiv:2102.07227)."""

MAX_JITTER = 0.4
"""The largest change of ``jitter``, usual for ImageNet; Fromage's paper names none."""


def crop(images: Tensor, generator: Generator) -> Tensor:
    """Pad every side by an eighth with zeros and cut an image of the old size at random.

    This is the usual padding of 4 at 32 pixels, and of 1 at the 8 pixels of the digits.
    """
    count, _, height, width = images.shape
    top, left = height // 8, width // 8
    rows = _integers(2 * top + 1, count, generator) + _range(height, images)
    columns = _integers(2 * left + 1, count, generator) + _range(width, images)
    padded = pad(images, (left, left, top, top))
    return _pick(padded, rows[:, :, None], columns[:, None, :])


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror every other image, on average, left to right."""
    chance = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    return torch.where(chance < 0.5, images.flip(-1), images)


def rotate(images: Tensor, generator: Generator) -> Tensor:
    """Turn every image about its centre by an angle uniform in ±``MAX_DEGREES``."""
    share = torch.rand(len(images), generator=generator, device=images.device)
    return turn(images, (2 * share - 1) * math.radians(MAX_DEGREES))


def turn(images: Tensor, angles: Tensor) -> Tensor:
    """Turn each image counter-clockwise by its angle in radians, ``[n]``, to the nearest pixel."""
    height, width = images.shape[-2:]
    y = _range(height, images)[:, None] - (height - 1) / 2
    x = _range(width, images) - (width - 1) / 2
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    # Where each new pixel lay before the turn; y points down.
    rows = (cos * y + sin * x + (height - 1) / 2).round().long()
    columns = (cos * x - sin * y + (width - 1) / 2).round().long()
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    turned = _pick(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    return turned * inside[:, None]


def shift(images: Tensor, generator: Generator) -> Tensor:
    """Move every image by up to one pixel in each direction and repeat its border."""
    count, _, height, width = images.shape
    rows = _integers(3, count, generator) - 1 + _range(height, images)
    columns = _integers(3, count, generator) - 1 + _range(width, images)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    return _pick(images, rows[:, :, None], columns[:, None, :])


def jitter(images: Tensor, generator: Generator) -> Tensor:
    """Change brightness, contrast and saturation, in this order, each by up to ±``MAX_JITTER``."""
    shape = (3, len(images), 1, 1, 1)
    share = torch.rand(shape, generator=generator, device=images.device)
    brightness, contrast, saturation = 1 + MAX_JITTER * (2 * share - 1)
    changed = (images * brightness).clamp(0, 255)
    changed = _blend(changed, _grey(changed).mean(dim=(1, 2, 3), keepdim=True), contrast)
    changed = _blend(changed, _grey(changed), saturation)
    return changed.round().to(torch.uint8)


def _blend(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    return (share * images + (1 - share) * others).clamp(0, 255)


def _grey(images: Tensor) -> Tensor:
    """Return the brightness of each pixel as the eye sees it (ITU-R BT.601), ``[n, 1, h, w]``."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


AUGMENTATIONS: Mapping[str, Callable[[Tensor, Generator], Tensor]] = {
    "crop": crop,
    "flip": flip,
    "jitter": jitter,
    "rotate": rotate,
    "shift": shift,
}


def augment(images: Tensor, names: Sequence[str], generator: Generator) -> Tensor:
    """Return ``images`` after the augmentations ``names``, in that order.

    Raises:
        UserError: no augmentation has such a name.
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise unknown("augmentation", name, AUGMENTATIONS)
        images = AUGMENTATIONS[name](images, generator)
    return images


def _integers(bound: int, count: int, generator: Generator) -> Tensor:
    """Draw ``count`` integers below ``bound``, ``[count, 1]``."""
    return torch.randint(bound, (count, 1), generator=generator, device=generator.device)


def _range(size: int, images: Tensor) -> Tensor:
    return torch.arange(size, device=images.device)


def _pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels of each image at its rows and columns, which broadcast to ``[n, h, w]``."""
    image = torch.arange(images.shape[0], device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return images[image, channel, rows[:, None], columns[:, None]]
