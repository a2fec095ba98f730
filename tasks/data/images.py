"""Image data sets, whole on the device: ``DATA_SETS`` has the facts, ``load`` the images."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from numpy.random import RandomState
from torch import Tensor
from torch.nn.functional import interpolate

from robustlr.errors import unknown
from robustlr.task import Batch, LabelledPart, Splits
from robustlr.tasks.data.folder import image_folder
from robustlr.tasks.data.published import data_folder, read_cifar, read_mnist


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Facts of a data set: its shape, the sizes of its parts, and where it is from.

    ``mean`` and ``std`` are those of each channel over the training images, in units of 0..1.
    """

    classes: int
    channels: int
    size: int
    train: int
    validation: int
    test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


DATA_SETS: Mapping[str, DataSet] = {
    "digits": DataSet(
        classes=10,
        channels=1,
        size=8,
        train=1_078,
        validation=359,
        test=360,
        mean=(0.3048,),
        std=(0.3754,),
        source="scikit-learn's load_digits, from UCI's Optical Recognition of Handwritten Digits",
    ),
    "mnist": DataSet(
        classes=10,
        channels=1,
        size=28,
        train=55_000,
        validation=5_000,
        test=10_000,
        mean=(0.1307,),
        std=(0.3081,),
        source="LeCun, Cortes and Burges, The MNIST database of handwritten digits",
    ),
    "fashion-mnist": DataSet(
        classes=10,
        channels=1,
        size=28,
        train=55_000,
        validation=5_000,
        test=10_000,
        mean=(0.2860,),
        std=(0.3530,),
        source="Xiao, Rasul and Vollgraf, arXiv:1708.07747",
    ),
    "cifar10": DataSet(
        classes=10,
        channels=3,
        size=32,
        train=45_000,
        validation=5_000,
        test=10_000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),  # the mean of each image's own: Nero's and usual
        source="Krizhevsky, Learning multiple layers of features from tiny images, 2009",
    ),
    "cifar100": DataSet(
        classes=100,
        channels=3,
        size=32,
        train=45_000,
        validation=5_000,
        test=10_000,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        source="Krizhevsky, Learning multiple layers of features from tiny images, 2009",
    ),
    "imagenet": DataSet(
        classes=1_000,
        channels=3,
        size=224,
        train=1_231_167,
        validation=50_000,
        test=50_000,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        source="Russakovsky et al., arXiv:1409.0575",
    ),
}


def load(name: str, *, size: int | None = None, device: str = "cpu") -> Splits[LabelledPart]:
    """Return a data set: inputs uint8 ``[n, c, size, size]``, targets int64 ``[n]``.

    The three parts are on ``device`` and are read once per process; those of ImageNet are
    ``ImageFolderPart``s, which decode a batch when it is taken. Another ``size`` than the data
    set's own is resized to, bilinearly and antialiased. Test images are the published ones, and a
    fixed seed has picked the validation images: of the published training images at random, not
    class by class; of the digits 60/20/20 % by class.

    Raises:
        UserError: no data set has that name, or a file can be neither read nor downloaded.
    """
    if name not in DATA_SETS:
        raise unknown("data set", name, DATA_SETS)
    return _load(name, size or DATA_SETS[name].size, device)


@cache
def _load(name: str, size: int, device: str) -> Splits[LabelledPart]:
    if name == "imagenet":
        root = os.environ.get("ROBUSTLR_IMAGENET")
        folder = Path(root).expanduser() if root else data_folder() / "imagenet"
        return image_folder(folder, size=size, device=device)
    parts = _digits() if name == "digits" else _published(name)
    return Splits(
        *(Batch(_resized(part.inputs, size).to(device), part.targets.to(device)) for part in parts)
    )


def _resized(images: Tensor, size: int) -> Tensor:
    """Return images ``[n, c, h, w]`` as ``[n, c, size, size]``, a few at a time to save memory."""
    if images.shape[-1] == size:
        return images
    resized = (
        interpolate(some.float(), (size, size), mode="bilinear", antialias=True)
        for some in torch.split(images, 4096)
    )
    return torch.cat([some.round().to(torch.uint8) for some in resized])


def _digits() -> tuple[Batch, ...]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train, rest = train_test_split(
        range(len(labels)), test_size=0.4, stratify=labels, random_state=0
    )
    validation, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=0)
    # From 0..16 to 0..255, as the other sets' pixels.
    inputs = (torch.tensor(images).reshape(-1, 1, 8, 8) * 255 / 16).round().to(torch.uint8)
    whole = Batch(inputs, torch.tensor(labels, dtype=torch.int64))
    return tuple(whole.take(torch.tensor(part)) for part in (train, validation, test))


def _published(name: str) -> tuple[Batch, ...]:
    """Return a downloaded data set; its validation part is picked with seed 0."""
    facts = DATA_SETS[name]
    if name.startswith("cifar"):
        whole, test = read_cifar(name)
    else:
        whole, test = read_mnist(name, facts.train + facts.validation, facts.test)
    # RandomState: its numbers are the same in every version of NumPy.
    order = torch.from_numpy(RandomState(0).permutation(len(whole)))
    train, validation = order[facts.validation :], order[: facts.validation]
    return whole.take(train), whole.take(validation), test
