"""The four tasks of Fromage's Table 1, which reports how well the training data is fitted.

Paper scale is that of On the distance between two neural networks. Its loss and perplexity are running
means over training batches; here they are measured on all training examples, unaugmented and without
dropout. As elsewhere, validation images are kept from training. Its transformer has layer norm, its
residual network activates before each convolution, and the weight of its attention is learnt.
"""

import math
from dataclasses import replace
from typing import Any

from robustlr.scale import Scale
from robustlr.tasks._classification import TRAINING_LOSS
from robustlr.tasks.cgan import cifar10_cgan
from robustlr.tasks.cifar import cifar10_resnet18
from robustlr.tasks.imagenet import imagenet_resnet50
from robustlr.tasks.language_models import wikitext2_transformer

TRAINING_PERPLEXITY = "training perplexity"


def _fitting(scale: Scale, **changes: Any) -> Scale:
    """Return the scale with its metric measured on the training data, and other changes."""
    options = {**scale.options, **changes.pop("options", {})}
    changed = replace(scale, part="train", options=options, **changes)
    # There is more of it than of the validation data, too much to look at often in a short run.
    return replace(changed, evaluations=2) if changed.steps else changed


_RESNET18 = cifar10_resnet18.scales
_PREACTIVATION = {"preactivation": True, "stem_relu": True}

fromage_cifar10 = replace(
    cifar10_resnet18,
    name="fromage-cifar10",
    summary="How well a pre-activation ResNet-18 fits CIFAR-10 (Fromage, Table 1).",
    metric=TRAINING_LOSS,
    worst=math.log(10),
    scales={
        "small": _fitting(
            _RESNET18["small"],
            options=_PREACTIVATION,
            warmup=0.0,
            milestones=(150 / 350, 250 / 350),
            factor=0.1,
            metric=TRAINING_LOSS,
        ),
        "paper": _fitting(
            _RESNET18["paper"],
            options=_PREACTIVATION,
            augmentation=("crop", "flip"),
            epochs=350,
            warmup=0.0,
            milestones=(150 / 350, 250 / 350),
            factor=0.1,
            metric=TRAINING_LOSS,
            evaluations=35,
        ),
    },
)

_RESNET50 = imagenet_resnet50.scales
_IMAGENET: dict[str, Any] = {
    "schedule": "step",
    "warmup": 0.0,
    "milestones": (30 / 90, 60 / 90),
    "label_smoothing": 0.1,
    "gradient_clip": 5.0,
    "metric": TRAINING_LOSS,
}

fromage_imagenet = replace(
    imagenet_resnet50,
    name="fromage-imagenet",
    summary="How well a ResNet-50 fits ImageNet (Fromage, Table 1).",
    metric=TRAINING_LOSS,
    worst=math.log(1000),
    scales={
        "small": _fitting(_RESNET50["small"], **_IMAGENET, worst=math.log(10)),
        "paper": _fitting(
            _RESNET50["paper"],
            **_IMAGENET,
            augmentation=("flip", "jitter"),
            batch_size=1024,
            evaluations=3,  # each is a pass over all of ImageNet
        ),
    },
)

_CGAN = cifar10_cgan.scales

fromage_cgan = replace(
    cifar10_cgan,
    name="fromage-cgan",
    summary="The distance of generated images from CIFAR-10's training images (Fromage, Table 1).",
    scales={
        name: _fitting(scale, options={"learned_attention_weight": True})
        for name, scale in {**_CGAN, "small": replace(_CGAN["small"], steps=100)}.items()
    },
)

_WIKITEXT2 = wikitext2_transformer.scales

fromage_wikitext2 = replace(
    wikitext2_transformer,
    name="fromage-wikitext2",
    summary="How well a transformer with layer norm fits Wikitext-2 (Fromage, Table 1).",
    metric=TRAINING_PERPLEXITY,
    scales={
        name: _fitting(scale, options={"norm": True}, metric=TRAINING_PERPLEXITY)
        for name, scale in {**_WIKITEXT2, "small": replace(_WIKITEXT2["small"], steps=120)}.items()
    },
)
