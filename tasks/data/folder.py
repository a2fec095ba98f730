"""Image folders in ImageNet's layout, ``train/CLASS/*.JPEG`` and ``val/CLASS/*.JPEG``.

Such a data set does not fit on a device: a part knows its files and labels, and decodes the images
of a batch when the training loop takes them.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustlr.errors import UnavailableError
from robustlr.task import Batch, LabelledPart, Splits

SUFFIXES = (".jpeg", ".jpg", ".png")
"""Files of a class folder that end otherwise are no images of the data set."""

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
"""The range of a random crop's share of the area and of its width by height, as in torchvision."""


class ImageFolderPart:
    """One ``Part`` of a data set, a folder of images that are read as they are taken.

    Args:
        folder: The folder of the class folders.
        files: Each image as CLASS/FILE.
        targets: The number of each image's class, int64 ``[n]``, on the device for the batches.
        size: Height and width of the images that ``take`` returns.
        threads: How many images are decoded at once; by default one per core that we may use.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        targets: Tensor,
        *,
        size: int = 224,
        threads: int | None = None,
    ) -> None:
        self.folder = folder
        self.files = files
        self.targets = targets
        self.size = size
        self.threads = threads or _cores()

    def __len__(self) -> int:
        return len(self.files)

    def take(self, index: Tensor, seed: int | None = None) -> Batch:
        """Return the images at ``index``, uint8 ``[n, 3, size, size]``, and their targets.

        With a seed (not negative; another one at each step) an image is a random resized crop,
        which ``seed`` and the image's place in the part decide, whatever thread decodes it. Without
        one it is resized to 256/224 of ``size`` along its shorter side and cut at the centre.

        Raises:
            UserError: a file is not an image.
        """
        device = self.targets.device
        places = index.tolist()
        shape = (len(places), self.size, self.size, 3)
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")

        def decode(slot: int) -> None:
            image = _read(self.folder / self.files[places[slot]])
            images[slot] = torch.from_numpy(np.array(_cut(image, self.size, seed, places[slot])))

        # A pool per batch costs a millisecond, and no fork or exit can find its threads at work.
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(decode, range(len(places))))
        inputs = images.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        return Batch(inputs, self.targets[index.to(device)])


def image_folder(root: Path, *, size: int = 224, device: str = "cpu") -> Splits[LabelledPart]:
    """Return the parts of an image folder as ``ImageFolderPart``s; ``test`` is its ``val``.

    Validation is a tenth of each class of ``train`` but 50 images at most, picked by a fixed seed.
    Classes are numbered in the order of their folders' names.

    Raises:
        UserError: a folder is missing or holds no images, or the two have other classes.
    """
    classes = {part: _classes(root, part) for part in ("train", "val")}
    for part, other in (("train", "val"), ("val", "train")):
        for name in classes[part]:
            if name not in classes[other]:
                raise UnavailableError(
                    f"{root / other} has no folder {name}, which {root / part} has: "
                    f"give every class one folder in both."
                )
    train, validation = _split(_files(root / "train", classes["train"]))
    test = _files(root / "val", classes["val"])
    parts = ("train", train), ("train", validation), ("val", test)
    return Splits(*(_part(root / name, files, size, device) for name, files in parts))


def _classes(root: Path, part: str) -> list[str]:
    """Return the names of the class folders in ``root/part``, sorted."""
    names = [path.name for path in (root / part).glob("*/") if not path.name.startswith(".")]
    if not names:
        raise UnavailableError(
            f"there is no class folder in {root / part}: put the images of ImageNet into "
            f"{root}/train/CLASS/ and {root}/val/CLASS/, or set ROBUSTLR_IMAGENET to the folder "
            f"that has train and val."
        )
    return sorted(names)


def _files(folder: Path, classes: Sequence[str]) -> list[list[str]]:
    """Return the images of each class as sorted CLASS/FILE."""
    files = []
    for name in classes:
        images = sorted(file for file in os.listdir(folder / name) if _is_image(file))
        if not images:
            raise UnavailableError(
                f"{folder / name} holds no image ({', '.join(SUFFIXES)}): "
                f"put the images of the class there."
            )
        files.append([f"{name}/{file}" for file in images])
    return files


def _is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES) and not file.startswith(".")


def _split(files: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the rest of each class, and its validation images."""
    random = np.random.RandomState(0)  # its numbers are the same in every version of NumPy
    rest, picked = [], []
    for images in files:
        chosen = set(random.permutation(len(images))[: min(50, math.ceil(len(images) / 10))])
        rest.append([image for place, image in enumerate(images) if place not in chosen])
        picked.append([image for place, image in enumerate(images) if place in chosen])
    return rest, picked


def _part(folder: Path, files: list[list[str]], size: int, device: str) -> ImageFolderPart:
    counts = torch.tensor([len(images) for images in files])
    targets = torch.arange(len(files)).repeat_interleave(counts).to(device)
    return ImageFolderPart(
        folder, [file for images in files for file in images], targets, size=size
    )


def _cores() -> int:
    """Return the number of cores that this process may use; a batch system may lend it a few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(path: Path) -> Image.Image:
    """Return the image of a file in RGB, whatever its own colours."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # PIL passes on whatever its decoders raise
        raise UnavailableError(
            f"{path} is not an image that PIL can read ({error}): replace it with a good copy."
        ) from error


def _cut(image: Image.Image, size: int, seed: int | None, place: int) -> Image.Image:
    """Return a square of the image: at random if there is a seed, else its centre."""
    if seed is not None:
        box = random_box(*image.size, np.random.default_rng((seed, place)))
        return image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    edge, shorter = size * 256 // 224, min(image.size)
    width, height = (side * edge // shorter for side in image.size)
    whole = image.resize((width, height), Image.Resampling.BILINEAR)
    return whole.crop(_centre(width, height, size, size))


def random_box(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw left, top, right and bottom of a crop with its area in ``AREA``, its shape in ``RATIO``.

    After ten draws that do not fit, it is the largest box at the centre with a shape in ``RATIO``.
    """
    for _ in range(10):
        area = width * height * random.uniform(*AREA)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left = int(random.integers(width - across + 1))
            top = int(random.integers(height - down + 1))
            return left, top, left + across, top + down
    across, down = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return _centre(width, height, across, down)


def _centre(width: int, height: int, across: int, down: int) -> tuple[int, int, int, int]:
    left, top = round((width - across) / 2), round((height - down) / 2)
    return left, top, left + across, top + down
