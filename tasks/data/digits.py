"""scikit-learn's handwritten digits: 1,797 real images of 8×8 pixels in ten classes."""

from functools import cache

import torch

from robustlr.task import Batch, Splits


@cache
def digits(device: str) -> Splits:
    """Return the digits, ``[n, 1, 8, 8]`` with mean 0 and variance 1, 60/20/20 % by class.

    The split is fixed: every trial trains, validates and tests on the same images.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train, rest = train_test_split(
        range(len(labels)), test_size=0.4, stratify=labels, random_state=0
    )
    validation, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=0)
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
    inputs = (inputs - inputs[train].mean()) / inputs[train].std()
    whole = Batch(inputs.to(device), torch.tensor(labels, dtype=torch.int64, device=device))
    return Splits(*(whole.take(torch.tensor(part)) for part in (train, validation, test)))
