"""The networks of the image tasks: sizes as published, and the properties that studies rest on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from robustlr.errors import UserError
from robustlr.optim import Nero
from robustlr.tasks.models.gan import Discriminator, Generator, NonLocal
from robustlr.tasks.models.mlp import ScaledReLU, mlp
from robustlr.tasks.models.normalize import Normalize
from robustlr.tasks.models.resnet import bottleneck_resnet, resnet
from robustlr.tasks.models.vgg import vgg
from robustlr.tasks.models.vit import vit

Make = Callable[[], nn.Module]

DEIT_TINY = partial(vit, 3, 1000, size=224, patch=16, layers=12, heads=3, width=192)
SMALL_VIT = partial(vit, 1, 10, size=8, patch=2, layers=2, heads=3, width=48)

CLASSIFIERS: dict[str, tuple[int, int, Make]] = {  # channels and size of an image, and the network
    "linear": (1, 8, partial(mlp, 64, 10, depth=1, width=0)),
    "mlp": (1, 8, partial(mlp, 64, 10, depth=3, width=32, activation="scaled-relu")),
    "mlp without biases": (1, 8, partial(mlp, 64, 10, depth=3, width=32, bias=False)),
    "residual mlp": (1, 8, partial(mlp, 64, 10, depth=4, width=64, residual=True)),
    "reparameterised mlp": (1, 8, partial(mlp, 64, 10, depth=3, width=64, reparameterised=True)),
    "vgg-11 on 8×8": (1, 8, partial(vgg, 1, 10, width=4, hidden=16, size=8)),
    "vgg-11 on 16×16": (1, 16, partial(vgg, 1, 10, width=4, hidden=16, norm="batch", size=16)),
    "vgg-11 on 28×28": (1, 28, partial(vgg, 1, 10, width=4, hidden=16, size=28)),
    "vgg-11 on 64×64": (3, 64, partial(vgg, 3, 10, width=4, hidden=16, size=64)),
    "vgg-13": (1, 16, partial(vgg, 1, 10, layers=13, width=4, hidden=0, norm="layer", size=16)),
    "resnet-18": (1, 16, partial(resnet, 1, 10, width=4)),
    "resnet-18, no stem relu": (3, 8, partial(resnet, 3, 10, width=4, stem_relu=False)),
    "resnet-18, preactivation": (1, 16, partial(resnet, 1, 10, width=4, preactivation=True)),
    "resnet-20": (1, 8, partial(resnet, 1, 10, blocks=(3, 3, 3), width=4)),
    "resnet, layer norm": (1, 8, partial(resnet, 1, 10, blocks=(1, 1), width=4, norm="layer")),
    "resnet, no norm": (1, 8, partial(resnet, 1, 10, blocks=(1, 1), width=4, norm="none")),
    "resnet, standardised": (
        1,
        8,
        partial(resnet, 1, 10, blocks=(1, 1), width=4, norm="layer", standardised=True),
    ),
    "small bottleneck": (
        1,
        8,
        partial(bottleneck_resnet, 1, 10, blocks=(1, 1, 1), width=4, small_images=True),
    ),
    "bottleneck": (3, 32, partial(bottleneck_resnet, 3, 10, blocks=(1, 1, 1, 1), width=4)),
    "vit": (1, 8, SMALL_VIT),
    "vit in colour": (3, 8, partial(vit, 3, 10, size=8, patch=2, layers=2, heads=3, width=48)),
    "vit with gains": (1, 8, partial(SMALL_VIT, gains=True)),
}
GANS: dict[str, Make] = {
    f"{kind.__name__} of {size}×{size}": partial(kind, 1, 10, size=size, width=8)
    for kind in (Generator, Discriminator)
    for size in (8, 16, 28, 32)
}
EVERY: dict[str, Make] = {name: make for name, (_, _, make) in CLASSIFIERS.items()} | GANS


def _seeded(make: Make, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return make()


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _counts(model: nn.Module) -> tuple[int, int]:
    parameters = list(model.parameters())
    return len(parameters), sum(parameter.numel() for parameter in parameters)


# sizes as published


@pytest.mark.parametrize(
    ("make", "tensors", "numbers"),
    [
        pytest.param(partial(vgg, 3, 10), 14, 28_141_258, id="nero-vgg-11"),
        pytest.param(partial(resnet, 3, 10, stem_relu=False), 62, 11_173_962, id="nero-resnet-18"),
        pytest.param(
            partial(resnet, 3, 10, blocks=(3, 3, 3), width=16), 65, 272_474, id="resnet-20"
        ),
        pytest.param(DEIT_TINY, 152, 5_717_416, id="deit-tiny"),
        pytest.param(partial(bottleneck_resnet, 3, 1000), 161, 25_557_032, id="resnet-50"),
        pytest.param(partial(Generator, 3, 1000), 56, 2_183_091, id="nero-generator"),
        pytest.param(partial(Discriminator, 3, 1000), 33, 2_644_129, id="nero-discriminator"),
    ],
)
def test_a_network_of_the_papers_has_the_published_size(
    make: Make, tensors: int, numbers: int
) -> None:
    assert _counts(make()) == (tensors, numbers)


def test_attention_learns_its_weight_in_fromage_alone() -> None:
    for kind, (tensors, numbers) in (
        (Generator, (56, 2_183_091)),
        (Discriminator, (33, 2_644_129)),
    ):
        learned = kind(3, 1000, learned_attention_weight=True)
        assert _counts(learned) == (tensors + 1, numbers + 1)


def test_the_perceptron_of_the_papers_has_784_neurons_a_layer_with_biases() -> None:
    assert _counts(mlp(784, 10, depth=5, width=784)) == (10, 4 * (784 + 1) * 784 + 7850)
    assert _counts(mlp(784, 10, depth=5, width=784, reparameterised=True))[0] == 5


def test_resnet_50_computes_what_torchvisions_does() -> None:
    theirs = torchvision.models.resnet50().eval()
    ours = bottleneck_resnet(3, 1000).eval()
    with torch.no_grad():
        for ours_one, theirs_one in zip(ours.parameters(), theirs.parameters(), strict=True):
            ours_one.copy_(theirs_one)
        images = _random(1, 3, 64, 64)
        torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (partial(vgg, 3, 10), 32),
        (partial(resnet, 3, 10), 32),
        (partial(resnet, 3, 10, preactivation=True), 32),
        (DEIT_TINY, 224),
        (partial(bottleneck_resnet, 3, 1000), 224),
        (partial(Discriminator, 3, 1000), 32),
    ],
)
@torch.no_grad()
def test_a_network_of_the_papers_takes_images_of_their_size(make: Make, size: int) -> None:
    model, images = make(), _random(2, 3, size, size)
    if isinstance(model, Discriminator):
        assert model(images, torch.tensor([0, 9])).shape == (2,)
    else:
        assert model(images).shape[0] == 2
        assert model(images).shape[1] in (10, 1000)


@torch.no_grad()
def test_the_generator_of_the_papers_makes_images_between_minus_1_and_1() -> None:
    model = Generator(3, 1000)
    assert model.noise_size == 80
    images = model(_random(2, 80), torch.tensor([0, 9]))
    assert images.shape == (2, 3, 32, 32)
    assert images.abs().max() <= 1


# promises of every network


@pytest.mark.parametrize("name", EVERY)
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    first, second, other = (_seeded(EVERY[name], seed) for seed in (0, 0, 1))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    pairs = zip(first.parameters(), other.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_takes_a_step_of_nero(name: str) -> None:
    channels, size, make = CLASSIFIERS[name]
    model, images = _seeded(make), _random(4, channels, size, size)
    optimizer = Nero(model.parameters())
    scores = model(images)
    assert scores.shape == (4, 10)
    torch.autograd.backward(cross_entropy(scores, torch.arange(4)))
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        assert model.eval()(images).isfinite().all()


@pytest.mark.parametrize("size", [8, 16, 28, 32])
@pytest.mark.parametrize("learned", [False, True])
def test_generator_and_discriminator_take_a_step_of_nero(size: int, learned: bool) -> None:
    options: Any = {"size": size, "width": 8, "learned_attention_weight": learned}
    generator = _seeded(partial(Generator, 1, 10, **options))
    discriminator = _seeded(partial(Discriminator, 1, 10, **options))
    parameters = [*generator.parameters(), *discriminator.parameters()]
    optimizer = Nero(parameters)
    labels = torch.arange(4)
    images = generator(_random(4, generator.noise_size), labels)
    assert images.shape == (4, 1, size, size)
    scores = discriminator(images, labels)
    assert scores.shape == (4,)
    torch.autograd.backward(scores.mean())
    assert all(parameter.grad is not None for parameter in parameters)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in parameters)


@pytest.mark.parametrize(
    "make",
    [
        partial(mlp, 64, 10, depth=2, width=8, activation="tanh"),
        partial(mlp, 64, 10, depth=0, width=8),
        partial(mlp, 64, 10, depth=2, width=8, weight_scale=2.0),
        partial(vgg, 1, 10, layers=16),
        partial(vgg, 1, 10, norm="foo"),
        partial(resnet, 1, 10, norm="foo"),
        partial(vit, 1, 10, size=8, patch=3, layers=1, heads=1, width=4),
        partial(vit, 1, 10, size=8, patch=2, layers=1, heads=3, width=4),
        partial(Generator, 1, 10, size=7),
        partial(Discriminator, 1, 10, size=4),
        partial(Generator, 1, 10, width=12),
    ],
)
def test_an_option_that_cannot_be_is_refused(make: Make) -> None:
    with pytest.raises(UserError):
        make()


# perceptrons


def test_a_residual_layer_adds_its_input_wherever_the_widths_agree() -> None:
    model = _seeded(partial(mlp, 6, 3, depth=3, width=6, residual=True))
    first, second, last = (m for m in model.modules() if isinstance(m, nn.Linear))
    images = _random(4, 1, 2, 3)
    hidden = images.flatten(1)
    for layer in (first, second):
        hidden = hidden + relu(layer(hidden))
    torch.testing.assert_close(model(images), last(hidden))
    narrow = _seeded(partial(mlp, 6, 3, depth=2, width=5, residual=True))
    plain = _seeded(partial(mlp, 6, 3, depth=2, width=5))
    torch.testing.assert_close(narrow(images), plain(images))


def test_the_scaled_relu_keeps_the_mean_square() -> None:
    inputs = _random(100, 100)
    torch.testing.assert_close(ScaledReLU()(inputs), 2**0.5 * relu(inputs))
    assert abs(ScaledReLU()(inputs).square().mean() / inputs.square().mean() - 1) < 0.05


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_scale_of_raw_weights_leaves_a_reparameterised_perceptron_as_it_was(
    scale: float,
) -> None:
    make = partial(mlp, 64, 10, depth=5, width=64, reparameterised=True)
    images = _random(4, 1, 8, 8)
    model, scaled = _seeded(make), _seeded(partial(make, weight_scale=scale))
    raw, scaled_raw = (next(each.parameters()) for each in (model, scaled))
    torch.testing.assert_close(scaled_raw, scale * raw)
    torch.testing.assert_close(scaled(images), model(images))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(100.0)
    torch.testing.assert_close(scaled(images), model(images))


def test_weights_of_reparameterised_perceptrons_are_drawn_at_their_scale() -> None:
    make = partial(mlp, 784, 10, depth=2, width=784, reparameterised=True, weight_scale=100.0)
    raw = next(_seeded(make).parameters())
    assert abs(raw.std().item() - 100) < 1
    assert abs(raw.mean().item()) < 1


def test_a_perceptron_of_100_layers_runs_forward_and_back() -> None:
    model = _seeded(partial(mlp, 784, 10, depth=100, width=784, activation="scaled-relu"))
    assert _counts(model)[0] == 200
    torch.autograd.backward(cross_entropy(model(_random(4, 784)), torch.arange(4)))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# convolutions and attention


def test_convolutions_are_drawn_by_fan_out() -> None:
    for make in (partial(vgg, 3, 10, hidden=16), partial(resnet, 3, 10)):
        first, second = [m for m in _seeded(make).modules() if isinstance(m, nn.Conv2d)][:2]
        for layer in (first, second):
            expected = (2 / (9 * layer.out_channels)) ** 0.5
            assert abs(layer.weight.std().item() / expected - 1) < 0.05


def test_dropout_is_for_training_alone() -> None:
    model = _seeded(partial(vgg, 1, 10, width=4, hidden=64, size=8))
    images = _random(2, 1, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_layer_norm_takes_each_image_alone() -> None:
    for norm, alone in (("layer", True), ("batch", False)):
        model = _seeded(partial(resnet, 1, 10, blocks=(1, 1), width=4, norm=norm))
        images = _random(3, 1, 8, 8)
        assert torch.allclose(model(images)[:2], model(images[:2]), atol=1e-5) is alone


def test_a_standardised_resnet_ignores_the_scale_of_its_convolutions() -> None:
    make = partial(resnet, 1, 10, blocks=(1, 1), width=4, norm="none", standardised=True)
    model, images = _seeded(make), _random(2, 1, 8, 8)
    expected = model(images)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 4:
                assert name.endswith("weight.original")
                parameter.mul_(100.0)
    torch.testing.assert_close(model(images), expected, rtol=1e-2, atol=1e-3)


def test_a_preactivation_block_passes_its_input_on_unchanged() -> None:
    model = _seeded(partial(resnet, 1, 10, blocks=(2,), width=4, preactivation=True))
    with torch.no_grad():
        for block in model[1:3]:
            block.conv2.weight.zero_()
    maps = _random(2, 4, 8, 8)
    assert torch.equal(model[1:3](maps), maps)


def test_gains_leave_the_vision_transformer_as_it_was_and_can_change_each_of_its_weights() -> None:
    images = _random(2, 1, 8, 8)
    plain, model = _seeded(SMALL_VIT), _seeded(partial(SMALL_VIT, gains=True))
    for each in (plain, model):
        each.eval()
    with torch.no_grad():  # attention has a path of its own for inference
        torch.testing.assert_close(model(images), plain(images))
    torch.testing.assert_close(model(images), plain(images))
    gains = {name: p for name, p in model.named_parameters() if name.endswith("gain")}
    assert len(gains) == 1 + 2 * 4 + 1
    torch.autograd.backward(model(images).square().mean())
    assert all(gain.grad is not None and gain.grad.any() for gain in gains.values())


def test_no_weight_of_a_vision_transformer_starts_at_zero() -> None:
    for name, parameter in _seeded(SMALL_VIT).named_parameters():
        assert parameter.dim() == 1 or parameter.any(), name


# generators and discriminators


def _layers(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]


def test_weights_of_a_gan_start_orthogonal_and_biases_with_deviation_0_01() -> None:
    for model in (_seeded(partial(Generator, 3, 1000)), _seeded(partial(Discriminator, 3, 1000))):
        for layer in _layers(model):
            weight = layer.weight_orig.detach().flatten(1)
            short = weight if weight.shape[0] <= weight.shape[1] else weight.T
            torch.testing.assert_close(short @ short.T, torch.eye(len(short)), atol=1e-5, rtol=0)
        biases = torch.cat([p for n, p in model.named_parameters() if n.endswith("bias")])
        biases = biases[biases != 0]  # that of the last batch norm is zero
        assert abs(biases.std().item() / 0.01 - 1) < 0.05
        assert abs(biases.abs().mean().item() / 0.008 - 1) < 0.05  # Nero's bias scale


@torch.no_grad()
def test_weights_of_a_gan_have_their_size_before_any_training() -> None:
    model = _seeded(partial(Discriminator, 1, 10, size=16, width=8)).eval()
    model(_random(2, 1, 16, 16), torch.arange(2))
    for layer in _layers(model):
        torch.testing.assert_close(layer.weight, layer.weight_orig)


@pytest.mark.parametrize("kind", [Generator, Discriminator])
def test_training_forwards_hold_the_largest_singular_values_at_1(kind: Any) -> None:
    model = _seeded(partial(kind, 1, 10, size=16, width=8))
    with torch.no_grad():
        for layer in _layers(model):
            layer.weight_orig.normal_(std=3.0)
        first = _random(2, model.noise_size) if kind is Generator else _random(2, 1, 16, 16)
        for _ in range(60):
            model(first, torch.arange(2))
    for layer in _layers(model):
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2).item()
        assert 0.99 < largest < 1.1


@torch.no_grad()
def test_other_labels_give_other_images_and_other_scores() -> None:
    generator = _seeded(partial(Generator, 1, 10, size=16, width=8)).eval()
    noise = _random(1, generator.noise_size).expand(10, -1)
    images = generator(noise, torch.arange(10)).flatten(1)
    distances = torch.cdist(images, images) + 10 * torch.eye(10)
    assert distances.min() > 1e-3
    discriminator = _seeded(partial(Discriminator, 1, 10, size=16, width=8)).eval()
    scores = discriminator(_random(1, 1, 16, 16).expand(10, -1, -1, -1), torch.arange(10))
    assert len(scores.unique()) == 10


@torch.no_grad()
def test_every_chunk_of_the_noise_matters() -> None:
    generator = _seeded(partial(Generator, 1, 10, size=32, width=8, chunk=5)).eval()
    assert generator.noise_size == 20
    labels, noise = torch.zeros(1, dtype=torch.long), _random(1, 20)
    image = generator(noise, labels)
    for chunk in range(4):
        other = noise.clone()
        other[:, 5 * chunk : 5 * chunk + 5] += 1
        assert (generator(other, labels) - image).abs().max() > 1e-4


@torch.no_grad()
def test_smaller_images_have_fewer_blocks_and_attention_needs_two() -> None:
    for size, blocks in ((8, 1), (16, 2), (28, 2), (32, 3), (64, 3)):
        generator = Generator(1, 10, size=size, width=8)
        discriminator = Discriminator(1, 10, size=size, width=8)
        assert len(generator.blocks) == blocks
        for model in (generator, discriminator):
            attentions = [m for m in model.modules() if isinstance(m, NonLocal)]
            assert len(attentions) == (blocks > 1)
    for kind in (Generator, Discriminator):
        model = kind(1, 10, size=16, width=8, attention=False)
        assert not any(isinstance(m, NonLocal) for m in model.modules())


@torch.no_grad()
def test_attention_adds_a_softmax_over_pooled_pixels_without_scaling() -> None:
    layer = _seeded(partial(NonLocal, 16)).eval()
    maps = 3 * _random(2, 16, 4, 6)
    pool = nn.MaxPool2d(2)
    query = layer.query(maps).flatten(2)
    key, value = pool(layer.key(maps)).flatten(2), pool(layer.value(maps)).flatten(2)
    weights = torch.einsum("ncq,nck->nqk", query, key).softmax(dim=-1)
    attended = torch.einsum("nqk,nck->ncq", weights, value).reshape(2, 8, 4, 6)
    torch.testing.assert_close(layer(maps), maps + layer.out(attended))


@torch.no_grad()
def test_the_score_is_ten_times_a_linear_one_and_the_match_with_the_class() -> None:
    model = _seeded(partial(Discriminator, 1, 10, size=8, width=8)).eval()
    images, labels = _random(3, 1, 8, 8), torch.tensor([1, 5, 5])
    scores = model(images, labels)
    features = model.features(images).mean(dim=(2, 3))
    matched = (features * model.embedding.weight[labels]).sum(dim=1)
    expected = 10 * (features @ model.score.weight[0] + model.score.bias + matched)
    torch.testing.assert_close(scores, expected)


# inputs


def test_images_of_bytes_become_normalised_floats_without_parameters_or_state() -> None:
    layer = Normalize([0.5, 0.25], [0.25, 0.5])
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 1, 1, 3).expand(1, 2, 1, 3)
    expected = torch.tensor([[[[-2.0, 2.0, -1.2]], [[-0.5, 1.5, -0.1]]]])
    torch.testing.assert_close(layer(images), expected)
    assert layer(images).dtype == torch.float32
    assert not list(layer.parameters())
    assert not layer.state_dict()
