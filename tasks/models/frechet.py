"""Fréchet distances between sets of images, by which image generators are judged.

The features of each set are taken as a Gaussian, and the distance is that of the two Gaussians.
The metrics differ in their features, so values of one cannot be compared with another's:

- ``fid``: the Fréchet inception distance of Heusel et al. (arXiv:1706.08500).
- ``fid_minmax``: the same of images that are each stretched to the full range of pixels first, the
  real ones too, as in the papers on Fromage and Nero.
- ``frechet_small``: the features of a small classifier, trained here on the same data; no download.
"""

import hashlib
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustlr.errors import UnavailableError, unknown
from robustlr.task import LabelledPart, Splits
from robustlr.tasks.data.published import data_folder

METRICS = ("fid", "fid_minmax", "frechet_small")

BATCH_SIZE = 64  # of images in an extractor: Inception's largest activations then fill 0.4 GB


class Gaussian(NamedTuple):
    """A normal distribution in float64: its mean ``[d]`` and the root ``[d, d]`` of its covariance."""

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> "Gaussian":
        """Return the Gaussian with that mean and covariance, which may be singular."""
        values, vectors = torch.linalg.eigh(covariance)
        rounding = len(values) * torch.finfo(values.dtype).eps * values.max()
        return cls(mean, (vectors * values.where(values > rounding, 0).sqrt()) @ vectors.T)

    @classmethod
    def fit(cls, features: Tensor) -> "Gaussian":
        """Return the Gaussian with the mean and the unbiased covariance of features ``[n, d]``.

        Raises:
            ValueError: there are fewer than two rows, or one is not finite.
        """
        if len(features) < 2 or not features.isfinite().all():
            raise ValueError(f"{len(features)} feature vectors: give at least 2, all finite")
        features = features.double()
        return cls.of(features.mean(dim=0), torch.cov(features.T))


def frechet(one: Gaussian, other: Gaussian) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance of two Gaussians.

    The trace of √(C₁C₂) is the sum of the singular values of √C₁√C₂; from the eigenvalues of C₁C₂
    it would lose half its digits where a covariance is singular, with fewer images than features.
    """
    shift = (one.mean - other.mean).square().sum()
    spread = one.root.square().sum() + other.root.square().sum()  # the traces of C₁ and C₂
    overlap = torch.linalg.svdvals(one.root @ other.root).sum()
    return max(0.0, float(shift + spread - 2 * overlap))


class FrechetDistance:
    """The Fréchet distance of generated images from a fixed set of real ones: smaller is better.

    Keep the object for all evaluations of a process: it looks at the real images once.

    Args:
        real: Real images, uint8 ``[n, c, h, w]``.
        extractor: What ``extractor`` returns; it is moved to the images' device.
    """

    def __init__(self, real: Tensor, extractor: nn.Module) -> None:
        self._extractor = extractor
        self._real = self._fit(real)

    def __call__(self, fake: Tensor) -> float:
        """Return the distance of ``fake``, uint8 ``[n, c, h, w]``; few images bias it upward.

        Raises:
            ValueError: the images are not uint8, or fewer than two.
        """
        return frechet(self._real, self._fit(fake))

    @torch.no_grad()
    def _fit(self, images: Tensor) -> Gaussian:
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}: give torch.uint8")
        extractor = self._extractor.to(images.device).eval()
        with torch.autocast(images.device.type, enabled=False):  # the caller may train in bfloat16
            features = [extractor(some).cpu() for some in torch.split(images, BATCH_SIZE)]
        return Gaussian.fit(torch.cat(features))


def extractor(metric: str, data: Splits[LabelledPart], classes: int) -> nn.Module:
    """Return the network that makes a metric's features; only ``frechet_small`` looks at the data.

    Raises:
        UserError: there is no such metric, or what it needs is missing.
    """
    if metric not in METRICS:
        raise unknown("Fréchet distance", metric, METRICS)
    if metric == "frechet_small":
        return small_classifier(data, classes)
    return Inception(minmax=metric == "fid_minmax")


class Inception(nn.Module):
    """The pool3 features ``[n, 2048]`` of TensorFlow's Inception, as torch-fidelity ports it.

    With ``minmax`` the images go to the network as in the papers: each is stretched to the full
    range, then resized as pytorch-fid does it, by the centres of pixels. (The papers stretched a
    generator's images before they were rounded to 8 bits.)

    Raises:
        UserError: torch-fidelity or the network's weights are missing.
    """

    def __init__(self, *, minmax: bool = False) -> None:
        super().__init__()
        self.minmax = minmax
        self.network = _inception_network()

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of uint8 images ``[n, 1 or 3, h, w]``."""
        if self.minmax:
            size = (self.network.INPUT_IMAGE_SIZE,) * 2
            resized = functional.interpolate(minmax(images).float(), size, mode="bilinear")
            images = resized.round().to(torch.uint8)  # the network resizes no image of its size
        features: Tensor = self.network(images.expand(-1, 3, -1, -1))[0]
        return features


def minmax(images: Tensor) -> Tensor:
    """Return uint8 images ``[n, c, h, w]``, each stretched over all its channels to 0..255.

    This is what torchvision's ``save_image(image, file, normalize=True)`` does to one image.
    """
    low, high = (bound(images, dim=(1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    span = (high - low).clamp(min=1)  # an image of one colour becomes black
    return ((images - low) / span * 255 + 0.5).to(torch.uint8)


def _inception_network() -> Any:
    instead = "or choose a scale whose metric is frechet_small, which is no FID."
    try:
        fidelity = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise UnavailableError(
            f"FID needs the package torch-fidelity ({error}): pip install 'robustlr[fid]', {instead}"
        ) from error
    url = fidelity.URL_INCEPTION_V3
    file = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
    try:
        with torch.random.fork_rng(devices=[]):  # weights are drawn before they are loaded
            return fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    except Exception as error:  # no network, a full disk, or whatever a damaged file raises
        raise UnavailableError(
            f"FID needs the weights of Inception, which cannot be loaded ({error}): "
            f"download {url} to {file}, {instead}"
        ) from error


class SmallClassifier(nn.Module):
    """A convolutional network in float64 with 32 features before its linear layer.

    It is smooth and normalised throughout, so that training hardly amplifies rounding: two threads
    instead of one, or no vector instructions, changed the features of digits by less than 1e-13.
    Images of height and width ``size`` are halved until that is 4 or less.
    """

    FEATURES = 32

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 16
        while size > 4:
            layers += [_block(channels, width), nn.AvgPool2d(2)]
            channels, width, size = width, self.FEATURES, size // 2
        layers += [_block(channels, self.FEATURES), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.body = nn.Sequential(*layers)
        self.standardise = nn.BatchNorm1d(self.FEATURES, affine=False, dtype=torch.float64)
        self.head = nn.Linear(self.FEATURES, classes, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[n, 32]`` of uint8 images, of about mean 0 and variance 1."""
        features: Tensor = self.standardise(self.body(images.double() / 127.5 - 1))
        return features

    def logits(self, images: Tensor) -> Tensor:
        """Return the scores of the classes, ``[n, classes]``, of uint8 images."""
        return functional.linear(self(images), self.head.weight, self.head.bias)


def _block(inputs: int, outputs: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, dtype=torch.float64)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs, dtype=torch.float64), nn.SiLU())


class _Recipe(NamedTuple):
    """How the small classifier is trained: it sees each digit 18 times, and half of CIFAR once."""

    steps: int = 300
    batch_size: int = 64
    lr: float = 0.1  # falls linearly to 0
    momentum: float = 0.9
    seed: int = 0


def small_classifier(data: Splits[LabelledPart], classes: int) -> SmallClassifier:
    """Return the extractor of ``frechet_small``: a classifier trained on the data's training part.

    Images are square, uint8 ``[n, c, size, size]``; targets are below ``classes``. It is trained
    once, on one core (2 s for 8×8 pixels, 5 s for 16×16, 20 s for 32×32), and kept in the folder of
    downloaded data. Torch's random state is left alone.

    Raises:
        UserError: the folder cannot be written to.
    """
    images, labels = (part.cpu() for part in data.train.take(torch.arange(len(data.train))))
    recipe, shape = _Recipe(), (images.shape[1], images.shape[-1], classes)
    with _apart():
        model = SmallClassifier(*shape)
        file = _file(f"{recipe} {model} {tuple(images.shape)}", images, labels)
        if not _load(model, file):
            torch.default_generator.manual_seed(recipe.seed)  # manual_seed would seed GPUs too
            model = SmallClassifier(*shape)  # a damaged file may have changed the first one
            _train(model, images, labels, recipe)
            _save(model, file)
    return model.requires_grad_(False).eval()


@contextmanager
def _apart() -> Iterator[None]:
    """Leave torch's random state alone; use one thread, as two on busy cores took ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def _train(model: SmallClassifier, images: Tensor, labels: Tensor, recipe: _Recipe) -> None:
    needed = recipe.steps * recipe.batch_size
    epochs = [torch.randperm(len(images)) for _ in range(0, needed, len(images))]
    # Not Adam: it divides by gradients that can be mere rounding.
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, nesterov=True)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / recipe.steps)
    for index in torch.split(torch.cat(epochs)[:needed], recipe.batch_size):
        loss = functional.cross_entropy(model.logits(images[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()


def _file(what: str, images: Tensor, labels: Tensor) -> Path:
    """Return where the classifier is kept that ``what`` and its training data decide."""
    digest = hashlib.sha256(what.encode())
    for tensor in (images, labels):
        digest.update(tensor.contiguous().numpy().data)
    return data_folder() / "frechet_small" / f"{digest.hexdigest()[:32]}.pt"


def _load(model: SmallClassifier, file: Path) -> bool:
    """Load the weights and return whether there were any."""
    try:
        model.load_state_dict(torch.load(file, weights_only=True))
    except Exception:  # there is no file, or a damaged one, which raises anything: make it anew
        return False
    return True


def _save(model: SmallClassifier, file: Path) -> None:
    """Write the weights so that other processes see the whole file or none."""
    temporary = file.with_name(f"{file.name}.{uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), temporary)
        os.replace(temporary, file)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
        raise UnavailableError(
            f"cannot write to {file.parent} ({error}): set ROBUSTLR_DATA to a folder you can write."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
