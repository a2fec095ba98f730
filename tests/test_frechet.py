import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch.nn import functional
from torchvision.utils import save_image

from robustlr.errors import UserError
from robustlr.task import Batch, Splits
from robustlr.tasks.data.images import load
from robustlr.tasks.models import frechet
from robustlr.tasks.models.frechet import FrechetDistance, Gaussian, SmallClassifier

INCEPTION = "torch_fidelity.feature_extractor_inceptionv3"


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLR_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def classifier(_folder: None) -> SmallClassifier:
    return frechet.small_classifier(load("digits"), 10)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def tiny() -> Splits[Batch]:
    """A data set on which the classifier trains in half a second: bright images and dark ones."""
    targets = torch.arange(40) % 2
    part = Batch(images(40, 1, 4, 4) // 2 + 127 * targets.byte().reshape(-1, 1, 1, 1), targets)
    return Splits(part, part, part)


# The distance of two Gaussians


@pytest.mark.parametrize("seed", range(3))
def test_gaussians_that_differ_along_their_axes_have_the_closed_form(seed: int) -> None:
    axes = torch.linalg.qr(random(6, 6, seed=seed))[0]
    widths = torch.tensor([[3.0, 1, 2, 0, 0, 5], [1.0, 1, 4, 2, 0, 0]], dtype=torch.float64)
    means = random(2, 6, seed=seed + 1)
    one, other = (
        Gaussian.of(mean, axes @ width.square().diag() @ axes.T)
        for mean, width in zip(means, widths, strict=True)
    )
    expected = (means[0] - means[1]).square().sum() + (widths[0] - widths[1]).square().sum()
    assert frechet.frechet(one, other) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("samples", [200, 10], ids=["regular", "singular"])
@pytest.mark.parametrize("seed", range(3))
def test_distance_agrees_with_the_root_of_scipy(samples: int, seed: int) -> None:
    one, other = random(samples, 16, seed=seed), random(samples, 16, seed=seed + 9)
    other = 0.5 + other @ random(16, 16, seed=seed) / 4
    covariances = [np.cov(features.numpy(), rowvar=False) for features in (one, other)]
    root = sqrtm(covariances[0])
    expected = (
        np.square((one.mean(0) - other.mean(0)).numpy()).sum()
        + np.trace(covariances[0] + covariances[1])
        - 2 * np.trace(sqrtm(root @ covariances[1] @ root)).real
    )
    distance = frechet.frechet(Gaussian.fit(one), Gaussian.fit(other))
    assert distance == pytest.approx(expected, rel=1e-11 if samples > 16 else 1e-5)


@pytest.mark.parametrize("samples", [200, 10], ids=["regular", "singular"])
def test_distance_is_symmetric_and_zero_from_itself(samples: int) -> None:
    one, other = Gaussian.fit(random(samples, 16)), Gaussian.fit(3 * random(samples, 16, seed=1))
    assert frechet.frechet(one, other) == pytest.approx(frechet.frechet(other, one), rel=1e-13)
    assert frechet.frechet(one, one) == pytest.approx(0, abs=1e-12)


def test_distance_of_singular_gaussians_keeps_its_digits() -> None:
    features = random(10, 100)
    shifted = Gaussian.fit(features + 1e-4)
    assert frechet.frechet(Gaussian.fit(features), shifted) == pytest.approx(100e-8, rel=1e-6)


def test_features_that_no_gaussian_fits_are_refused() -> None:
    for features in (random(1, 4), torch.full((5, 4), torch.nan)):
        with pytest.raises(ValueError, match="at least 2, all finite"):
            Gaussian.fit(features)


# Sets of images


class Pixels(nn.Module):
    """An extractor with a weight, in float32, that counts its images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        features: Tensor = self.linear(images.flatten(1) / 255)
        return features


def test_real_images_are_looked_at_once_and_in_batches() -> None:
    real, fake = images(100, 1, 4, 4), images(70, 1, 4, 4, seed=1)
    extractor = Pixels()
    distance = FrechetDistance(real, extractor)
    with torch.no_grad():
        one, other = Gaussian.fit(extractor(real)), Gaussian.fit(extractor(fake))
    extractor.seen = 0
    for _ in range(2):
        assert distance(fake) == pytest.approx(frechet.frechet(one, other), rel=1e-4)
    assert extractor.seen == 140


def test_mixed_precision_of_the_caller_does_not_reach_the_features() -> None:
    real, fake = images(100, 1, 4, 4), images(100, 1, 4, 4, seed=1)
    distance = FrechetDistance(real, Pixels())
    expected = distance(fake)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert distance(fake) == expected


def test_images_that_are_not_uint8_or_too_few_are_refused() -> None:
    distance = FrechetDistance(images(100, 1, 4, 4), Pixels())
    with pytest.raises(ValueError, match=r"torch\.float32: give torch\.uint8"):
        distance(torch.zeros(3, 1, 4, 4))
    with pytest.raises(ValueError, match="give at least 2"):
        distance(images(1, 1, 4, 4))


# frechet_small


def test_small_classifier_tells_the_digits_apart(classifier: SmallClassifier) -> None:
    held_out = load("digits").validation.take(torch.arange(359))
    with torch.no_grad():
        wrong = classifier.logits(held_out.inputs).argmax(dim=1) != held_out.targets
        features = classifier(held_out.inputs)
    assert wrong.double().mean() < 0.03
    assert features.mean(dim=0).abs().max() < 0.3
    assert ((features.std(dim=0) > 0.7) & (features.std(dim=0) < 1.4)).all()


def test_small_distance_ranks_sets_of_digits(classifier: SmallClassifier) -> None:
    data = load("digits")
    real, held_out = (part.take(torch.arange(359)) for part in (data.test, data.validation))
    distance = FrechetDistance(real.inputs, classifier)
    floor = distance(held_out.inputs)
    blobs = functional.interpolate(random(359, 1, 3, 3), size=(8, 8), mode="bicubic")
    black = torch.zeros_like(real.inputs)
    for bad in (images(359, 1, 8, 8), (128 + 80 * blobs).clamp(0, 255).byte(), black):
        assert distance(bad) > 100 * floor
    for digit in range(10):
        assert distance(held_out.inputs[held_out.targets == digit]) > 30 * floor
        assert distance(held_out.inputs[held_out.targets != digit]) > 1.3 * floor


def test_small_distance_rises_with_blur_and_with_noise(classifier: SmallClassifier) -> None:
    real = load("digits").test.take(torch.arange(360)).inputs
    distance = FrechetDistance(real, classifier)

    def blurred(width: int) -> Tensor:
        padded = functional.pad(real.double(), (width // 2,) * 4, mode="replicate")
        return functional.avg_pool2d(padded, width, stride=1).round().byte()

    def noisy(std: float) -> Tensor:
        return (real + std * random(*real.shape)).round().clamp(0, 255).byte()

    for change, amounts in ((blurred, (1, 3, 5, 7)), (noisy, (0, 10, 20, 40, 80))):
        values = [distance(change(amount)) for amount in amounts]
        assert values[0] == pytest.approx(0, abs=1e-10)
        assert values == sorted(values)
        assert values[-1] > 10


def test_training_hardly_amplifies_rounding(
    classifier: SmallClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = load("digits")
    train = frechet._train

    def train_from_elsewhere(model: SmallClassifier, *others: Any) -> None:
        with torch.no_grad():
            for seed, weight in enumerate(model.parameters()):
                weight.mul_(1 + 1e-15 * random(*weight.shape, seed=seed))
        train(model, *others)

    monkeypatch.setattr(frechet, "_train", train_from_elsewhere)
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path))
    other = frechet.small_classifier(data, 10)
    test = data.test.take(torch.arange(360)).inputs
    assert not torch.equal(other.head.weight, classifier.head.weight)
    torch.testing.assert_close(other(test), classifier(test), rtol=0, atol=1e-10)


def test_training_leaves_the_caller_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path / "one"))
    expected = frechet.small_classifier(tiny(), 2)
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path / "two"))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():  # as within an evaluation
            model = frechet.small_classifier(tiny(), 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name])


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[SmallClassifier, Path]:
    """A classifier and the file that it is kept in."""
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path))
    model = frechet.small_classifier(tiny(), 2)
    (file,) = (tmp_path / "frechet_small").iterdir()
    return model, file


def test_classifier_is_trained_once(
    kept: tuple[SmallClassifier, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = kept
    trained: list[Any] = []
    monkeypatch.setattr(frechet, "_train", lambda *given: trained.append(given))
    again = frechet.extractor("frechet_small", tiny(), 2)
    assert not trained
    whole = tiny().train.take(torch.arange(40))
    assert torch.equal(again(whole.inputs), model(whole.inputs))
    other = whole.take(torch.arange(39))
    frechet.small_classifier(Splits(other, other, other), 2)
    assert len(trained) == 1
    assert len(list(file.parent.iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "other bytes", "other weights"])
def test_damaged_file_is_made_anew(kept: tuple[SmallClassifier, Path], damage: str) -> None:
    model, file = kept
    whole = file.read_bytes()
    if damage == "other weights":
        weights = {name: weight + 1 for name, weight in model.state_dict().items()}
        torch.save({"other" if "head" in name else name: weights[name] for name in weights}, file)
    else:
        file.write_bytes({"empty": b"", "cut": whole[:2000], "other bytes": b"<html>"}[damage])
    again = frechet.small_classifier(tiny(), 2)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    torch.load(file, weights_only=True)
    assert list(file.parent.iterdir()) == [file]


def test_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path / "file"))
    monkeypatch.setattr(frechet, "_train", lambda *_: None)
    with pytest.raises(UserError, match="set ROBUSTLR_DATA to a folder you can write") as raised:
        frechet.small_classifier(tiny(), 2)
    assert str(tmp_path / "file") in str(raised.value)


# FID


def test_minmax_is_that_of_torchvision(tmp_path: Path) -> None:
    some = torch.stack([images(3, 8, 8, seed=seed) // (seed + 1) + 10 for seed in range(4)])
    for image, stretched in zip(some, frechet.minmax(some), strict=True):
        save_image(image / 255, tmp_path / "image.png", normalize=True)
        saved = torch.from_numpy(np.array(Image.open(tmp_path / "image.png"))).permute(2, 0, 1)
        assert torch.equal(saved, stretched)


def test_minmax_undoes_contrast_and_brightness() -> None:
    some = images(20, 3, 8, 8)
    some[:, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    assert torch.equal(frechet.minmax(some), some)
    changed = frechet.minmax(some // 2 + 60)
    assert (changed.int() - some.int()).abs().max() <= 2
    assert frechet.minmax(torch.full((1, 3, 2, 2), 77, dtype=torch.uint8)).eq(0).all()


def test_unknown_metric_is_refused() -> None:
    with pytest.raises(UserError, match='named "fid_min"; did you mean "fid_minmax"'):
        frechet.extractor("fid_min", tiny(), 2)


@pytest.mark.parametrize("metric", ["fid", "fid_minmax"])
def test_missing_package_is_named(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, INCEPTION, None)
    with pytest.raises(UserError, match=r"pip install 'robustlr\[fid\]', or .* frechet_small"):
        frechet.extractor(metric, tiny(), 2)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module in torch-fidelity's place; its network returns the mean of each channel."""

    class Network(nn.Module):
        INPUT_IMAGE_SIZE = 299

        def __init__(self, name: str, features: list[str]) -> None:
            super().__init__()
            assert features == ["2048"]
            torch.randn(3)

        def forward(self, images: Tensor) -> tuple[Tensor]:
            assert images.dtype == torch.uint8
            self.images = images
            return (images.double().mean(dim=(2, 3)),)

    module: Any = ModuleType(INCEPTION)
    module.URL_INCEPTION_V3 = "https://example.org/weights/inception-123.pth"
    module.FeatureExtractorInceptionV3 = Network
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, INCEPTION, module)
    return module


def test_missing_weights_are_named(
    fidelity: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(fidelity, "FeatureExtractorInceptionV3", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match="or choose a scale whose metric is frechet_small"
    ) as raised:
        frechet.extractor("fid", tiny(), 2)
    assert "no route to host" in str(raised.value)
    place = tmp_path / "hub" / "checkpoints" / "inception-123.pth"
    assert f"download {fidelity.URL_INCEPTION_V3} to {place}, " in str(raised.value)


def test_fid_sees_images_as_they_are_and_grey_ones_in_rgb(fidelity: Any) -> None:
    state = torch.get_rng_state()
    extractor = frechet.Inception()
    assert torch.equal(torch.get_rng_state(), state)
    for some in (images(5, 1, 8, 8), images(5, 3, 8, 8)):
        assert extractor(some).shape == (5, 3)
        assert torch.equal(extractor.network.images, some.expand(-1, 3, -1, -1))


def test_fid_minmax_ignores_contrast_and_fid_does_not(fidelity: Any) -> None:
    real = load("digits").test.take(torch.arange(100)).inputs
    plain, stretched = (
        FrechetDistance(real, frechet.extractor(metric, tiny(), 2))(real // 2)
        for metric in ("fid", "fid_minmax")
    )
    assert plain > 100
    assert stretched < 3


def test_real_network_takes_images_as_pytorch_fid_resizes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fidelity = pytest.importorskip(INCEPTION)
    monkeypatch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    some = images(2, 3, 32, 32)
    extractor = frechet.Inception(minmax=True)
    seen: list[Tensor] = []
    extractor.network.Conv2d_1a_3x3.register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    features = extractor(some)
    assert features.shape == (2, 2048)
    resized = functional.interpolate(frechet.minmax(some).float(), (299, 299), mode="bilinear")
    # All but the rounding to 8 bits, which torch-fidelity's network asks for.
    assert (seen[0] * 128 + 128 - resized).abs().max() <= 0.5001
