"""Classification of scikit-learn's handwritten digits: real images that every installation has."""

from robustlr.scale import Scale
from robustlr.tasks._classification import classification, cnn, mlp, resnet

digits_mlp = classification(
    name="digits-mlp",
    summary="A two-hidden-layer perceptron on 8×8 handwritten digits.",
    classes=10,
    scales={
        "small": Scale(
            data="digits",
            options={"depth": 3, "width": 128},
            steps=800,
            batch_size=128,
            schedule="cosine",
            warmup=0.1,
        )
    },
    build=mlp,
)

digits_cnn = classification(
    name="digits-cnn",
    summary="A small batch-normalised convolutional network on 8×8 handwritten digits.",
    classes=10,
    scales={
        "small": Scale(
            data="digits",
            options={"width": 16},
            augmentation=("shift",),
            steps=200,
            batch_size=128,
            schedule="cosine",
            warmup=0.1,
        )
    },
    build=cnn,
)

digits_resnet = classification(
    name="digits-resnet",
    summary="A narrow residual network on 8×8 handwritten digits.",
    classes=10,
    scales={
        "small": Scale(
            data="digits",
            options={
                "blocks": (1, 1, 1),
                "width": 8,
                "norm": "batch",
                "preactivation": False,
                "standardised": False,
            },
            augmentation=("shift",),
            steps=200,
            batch_size=64,
            schedule="cosine",
            warmup=0.1,
        )
    },
    build=resnet,
)
