"""Vision transformers: DeiT-tiny, and smaller ones for small images."""

from torch import nn
from torch.nn.utils import parametrize
from torchvision.models import VisionTransformer

from robustlr.errors import UserError
from robustlr.optim.layers import Gain, add_gains
from robustlr.optim.neurons import neurons


def vit(
    channels: int,
    classes: int,
    *,
    size: int,
    patch: int,
    layers: int,
    heads: int,
    width: int,
    gains: bool = False,
) -> nn.Module:
    """Return a vision transformer from images ``[n, channels, size, size]`` to ``[n, classes]``.

    DeiT-tiny (Touvron et al., 2021) has size 224, patch 16, 12 layers, 3 heads and width 192. The
    hidden layer of each block is four times as wide; there is no dropout. It is torchvision's, but
    its head and its class token start at a truncated normal of deviation 0.02, as DeiT's do:
    torchvision's start at zero, where a rotational optimizer finds no direction to turn.

    Args:
        channels: channels of an image.
        classes: numbers in one output.
        size: height and width of an image.
        patch: height and width of a patch; divides ``size``.
        layers: number of transformer blocks.
        heads: attention heads of each block; divides ``width``.
        width: numbers in one token.
        gains: whether each neuron of the weights has a learnable gain, as under Rotational
            Equilibrium's optimizers. Queries, keys and values have them too.

    Raises:
        UserError: the patches do not fill the image, or the heads do not share the width evenly.
    """
    if size % patch or width % heads:
        raise UserError(
            f"patch {patch} must divide size {size}, and heads {heads} must divide width {width}."
        )
    model = VisionTransformer(
        image_size=size,
        patch_size=patch,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=classes,
    )
    if channels != 3:  # torchvision knows only colour
        model.conv_proj = nn.Conv2d(channels, width, patch, stride=patch)
        nn.init.trunc_normal_(model.conv_proj.weight, std=(channels * patch**2) ** -0.5)
        nn.init.zeros_(model.conv_proj.bias)
    nn.init.trunc_normal_(model.heads.head.weight, std=0.02)
    nn.init.trunc_normal_(model.class_token, std=0.02)
    return _with_gains(model) if gains else model


def _with_gains(model: nn.Module) -> nn.Module:
    """Add gains to every weight; those of queries, keys and values are not a layer's of their own."""
    for module in list(model.modules()):
        if isinstance(module, nn.MultiheadAttention):
            weight = module.in_proj_weight
            parametrize.register_parametrization(
                module, "in_proj_weight", Gain(weight, neurons(weight))
            )
    return add_gains(model)
