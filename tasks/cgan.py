"""Class-conditional generative adversarial networks: on CIFAR-10, and on digits.

Paper scale is that of Learning by Turning and of Fromage: a BigGAN-like pair with spectral norm, the
hinge loss, one discriminator step a generator step, and the same learning rate for both. Its metric
is the papers' FID, of images that are each stretched to the full range; ``paper-fid`` has the standard
one, and ``paper-frechet`` needs no download. The papers train on all 50,000 images; here 5,000 are kept.
The worst values of digits are about those of untrained generators; CIFAR's are round guesses.

Both players have the same optimizer. (The authors' code gave Adam's discriminator a beta1 of 0.9, their
text says 0.) The attention's weight is 1, as Learning by Turning has it; the condition
``learned_attention_weight`` makes it Fromage's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustlr.scale import CONDITIONS, Scale
from robustlr.task import Config, Outcome, Report, Task, build_checked


@dataclass(frozen=True, kw_only=True)
class GanTask(Task):
    """A generator and a discriminator, trained by the loop in ``_adversarial.py``.

    The metric is a Fréchet distance, by its name in ``models/frechet.py``, of images generated for
    the labels of a part from the images of that part.
    """

    def run(
        self, config: Config, report: Report, device: str = "cpu", folder: Path | None = None
    ) -> Outcome:
        """Train both networks."""
        from robustlr.tasks._adversarial import train

        return train(self, config, report, device, folder)

    def check(self, scale: Scale) -> None:
        """Build both networks once, if a condition changed how they are built."""
        if all(scale.options != own.options for own in self.scales.values()):
            from robustlr.tasks._adversarial import networks

            build_checked(networks, scale)


_PAPER: Mapping[str, Any] = {"width": 64, "learned_attention_weight": False}
_SMALL: Mapping[str, Any] = {**_PAPER, "width": 8, "embedding": 16, "momentum": 0.1}

PAPER = Scale(
    data="cifar10",
    options={**_PAPER, "labels": 1000, "embedding": 80, "momentum": 0.001},
    augmentation=("flip",),
    epochs=120,
    batch_size=256,
    schedule="step",
    milestones=(100 / 120,),
    evaluations=12,
    metric="fid_minmax",
    worst=300.0,
)

cifar10_cgan = GanTask(
    name="cifar10-cgan",
    summary="A BigGAN-like conditional generator of CIFAR-10 images (Learning by Turning, Fromage).",
    metric="fid_minmax",
    worst=300.0,
    conditions=CONDITIONS,
    scales={
        "small": Scale(
            data="digits",
            options={**_SMALL, "size": 16, "labels": 10},
            steps=150,
            batch_size=32,
            schedule="step",
            milestones=(100 / 120,),
            evaluations=3,
            metric="frechet_small",
            worst=180.0,
        ),
        "paper": PAPER,
        "paper-fid": replace(PAPER, metric="fid"),
        "paper-frechet": replace(PAPER, metric="frechet_small", worst=180.0),
    },
)

digits_cgan = GanTask(
    name="digits-cgan",
    summary="The same kind of generator for 8×8 handwritten digits.",
    metric="frechet_small",
    worst=400.0,
    conditions=CONDITIONS,
    scales={
        "small": Scale(
            data="digits",
            options={**_SMALL, "width": 16, "size": 8, "labels": 10},
            steps=1500,
            batch_size=64,
            schedule="step",
            milestones=(100 / 120,),
            evaluations=6,
            metric="frechet_small",
        )
    },
)
