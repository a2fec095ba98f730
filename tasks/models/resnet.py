"""Residual networks: basic blocks for CIFAR-sized images, and bottleneck blocks (ResNet-50)."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from robustlr.optim.layers import standardize_weights
from robustlr.tasks.models.convolution import Norm, initialise_convolutions, norm_named


class PreactivationBlock(nn.Module):
    """Normalises and activates before each of its two convolutions (He et al., 2016, Figure 1).

    Where the shape changes, the skip is a bare 1×1 convolution of the first activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return maps ``[n, outputs, h / stride, w / stride]`` of maps ``[n, inputs, h, w]``."""
        active = nn.functional.relu(self.norm1(inputs))
        skip = inputs if self.shortcut is None else self.shortcut(active)
        hidden = nn.functional.relu(self.norm2(self.conv1(active)))
        outputs: Tensor = self.conv2(hidden) + skip
        return outputs


def resnet(
    channels: int,
    classes: int,
    *,
    blocks: Sequence[int] = (2, 2, 2, 2),
    width: int = 64,
    norm: str = "batch",
    preactivation: bool = False,
    stem_relu: bool = True,
    standardised: bool = False,
) -> nn.Sequential:
    """Return a residual net of basic blocks from images ``[n, channels, h, w]`` to ``[n, classes]``.

    Learning by Turning's ResNet-18 has ``stem_relu=False``; that of Fromage and of most of
    Rotational Equilibrium has ``preactivation=True``; the latter's ResNet-20 is ``blocks=(3, 3, 3),
    width=16``. Where the shape changes, the skip is a 1×1 convolution, and its norm.

    Args:
        channels: channels of an image.
        classes: numbers in one output.
        blocks: number of blocks in each stage; each stage after the first halves height and width.
        width: channels of the first stage; each later stage has twice those of the one before.
        norm: "batch", "layer" (over all channels and pixels, with a gain for each channel) or
            "none". Convolutions have no biases.
        preactivation: whether blocks normalise and activate before their convolutions; the stem is
            then a bare convolution, and a last norm and ReLU come before the mean pool.
        stem_relu: whether a ReLU follows the stem's norm.
        standardised: whether the convolutions' weights are standardised.

    Raises:
        UserError: there is no such normalisation.
    """
    make_norm = norm_named(norm)
    last = width * 2 ** (len(blocks) - 1)

    def block(inputs: int, planes: int, stride: int) -> nn.Module:
        if preactivation:
            return PreactivationBlock(inputs, planes, stride, make_norm)
        return _torchvision_block(BasicBlock, inputs, planes, stride, make_norm)

    stem: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    end: list[nn.Module] = []
    if preactivation:
        end = [make_norm(last), nn.ReLU(inplace=True)]
    else:
        stem += [make_norm(width), nn.ReLU(inplace=True)] if stem_relu else [make_norm(width)]
    model = nn.Sequential(*stem, *_stages(width, blocks, block), *end, *_head(last, classes))
    initialise_convolutions(model)
    return standardize_weights(model, types=(nn.Conv2d,)) if standardised else model


def bottleneck_resnet(
    channels: int,
    classes: int,
    *,
    blocks: Sequence[int] = (3, 4, 6, 3),
    width: int = 64,
    small_images: bool = False,
) -> nn.Sequential:
    """Return a residual net of bottleneck blocks from ``[n, channels, h, w]`` to ``[n, classes]``.

    The defaults are torchvision's ResNet-50. ``small_images`` has a 3×3 convolution for a stem,
    which keeps height and width, in the place of a 7×7 convolution and a pool, which quarter them.
    """
    make_norm = norm_named("batch")
    stem: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=False)
        if small_images
        else nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
        make_norm(width),
        nn.ReLU(inplace=True),
    ]
    if not small_images:
        stem.append(nn.MaxPool2d(3, stride=2, padding=1))

    def block(inputs: int, planes: int, stride: int) -> nn.Module:
        return _torchvision_block(Bottleneck, inputs, planes, stride, make_norm)

    last = width * 2 ** (len(blocks) - 1) * Bottleneck.expansion
    stages = _stages(width, blocks, block, expansion=Bottleneck.expansion)
    model = nn.Sequential(*stem, *stages, *_head(last, classes))
    initialise_convolutions(model)
    return model


def _torchvision_block(
    kind: type[BasicBlock | Bottleneck], inputs: int, planes: int, stride: int, norm: Norm
) -> nn.Module:
    """Return torchvision's post-activation block, with its skip if the shape changes."""
    outputs, skip = planes * kind.expansion, None
    if stride > 1 or inputs != outputs:
        skip = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm(outputs)
        )
    block: nn.Module = kind(inputs, planes, stride, skip, norm_layer=norm)
    return block


def _stages(
    width: int,
    blocks: Sequence[int],
    make: Callable[[int, int, int], nn.Module],
    *,
    expansion: int = 1,
) -> list[nn.Module]:
    """Return the blocks, each from ``make(input channels, planes, stride)``, in order."""
    made: list[nn.Module] = []
    inputs = width
    for stage, count in enumerate(blocks):
        planes = width * 2**stage
        for index in range(count):
            made.append(make(inputs, planes, 2 if stage > 0 and index == 0 else 1))
            inputs = planes * expansion
    return made


def _head(features: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]
