"""What augmentation makes of images."""

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from robustlr.errors import UserError
from robustlr.tasks.data.augment import (
    AUGMENTATIONS,
    augment,
    crop,
    flip,
    jitter,
    rotate,
    shift,
    turn,
)


def _generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def _noise(count: int, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    shape = (count, channels, height, width)
    return torch.randint(1, 256, shape, generator=_generator(9)).to(torch.uint8)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("height", [8, 17, 32])
def test_an_augmentation_follows_from_its_generator(name: str, height: int) -> None:
    before = _noise(6, height, 12)[:1].expand(6, -1, -1, -1)
    kept = before.clone()
    after = AUGMENTATIONS[name](before, _generator())
    assert after.dtype == torch.uint8
    assert after.shape == before.shape
    assert torch.equal(before, kept)
    assert torch.equal(AUGMENTATIONS[name](before, _generator()), after)
    assert not torch.equal(AUGMENTATIONS[name](before, _generator(1)), after)
    assert len({image.numpy().tobytes() for image in after}) > 1
    assert AUGMENTATIONS[name](before[:0], _generator()).shape == (0, 3, height, 12)


def test_crop_moves_by_up_to_an_eighth_and_fills_with_zeros() -> None:
    before = _noise(1).expand(2000, -1, -1, -1)
    after = crop(before, _generator())
    padded = torch.nn.functional.pad(before[0], (4, 4, 4, 4))
    windows = {
        padded[:, top : top + 32, left : left + 32].numpy().tobytes(): (top, left)
        for top in range(9)
        for left in range(9)
    }
    offsets = [windows[image.numpy().tobytes()] for image in after]
    counts = np.bincount([9 * top + left for top, left in offsets], minlength=81)
    assert counts.min() > 5  # of 24.7 expected: all 81 offsets, alike often
    assert counts.max() < 50


def test_crop_takes_a_bright_pixel_along() -> None:
    before = torch.zeros(400, 1, 32, 32, dtype=torch.uint8)
    before[:, 0, 10, 20] = 255
    places = crop(before, _generator()).nonzero()
    assert len(places) == 400
    assert set((places[:, 2] - 10).tolist()) == set((places[:, 3] - 20).tolist()) == {*range(-4, 5)}


def test_flip_mirrors_half_of_the_images_and_twice_is_none() -> None:
    before = _noise(400)
    after = flip(before, _generator())
    mirrored = (after == before.flip(-1)).flatten(1).all(1)
    same = (after == before).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 160 < int(mirrored.sum()) < 240
    assert torch.equal(flip(after, _generator()), before)


def test_turn_by_nothing_and_by_a_right_angle_are_exact() -> None:
    for size in (8, 9, 32):
        before = _noise(3, size, size)
        assert torch.equal(turn(before, torch.zeros(3)), before)
        quarter = turn(before, torch.full((3,), torch.pi / 2))
        assert torch.equal(quarter, before.rot90(1, (-2, -1)))


def test_turn_agrees_with_torchvision() -> None:
    from torchvision.transforms import functional

    before = _noise(1, 28, 32)
    for degrees in (-15.0, -7.3, 1.0, 12.5):
        ours = turn(before, torch.tensor([degrees]).deg2rad())
        assert (
            ours == functional.rotate(before, degrees)
        ).double().mean() > 0.995  # ties are rounded freely


def test_rotate_turns_by_up_to_fifteen_degrees() -> None:
    before = torch.zeros(500, 1, 65, 65, dtype=torch.uint8)
    before[:, :, 32, 60:] = 255  # a short bar to the right of the centre
    after = rotate(before, _generator())
    places = after.nonzero().double()
    angles = torch.atan2(32 - places[:, 2], places[:, 3] - 32).rad2deg()
    assert -16.5 < float(angles.min()) < -14
    assert 14 < float(angles.max()) < 16.5
    full = rotate(torch.full_like(before, 200), _generator())
    assert set(full.flatten().tolist()) == {0, 200}
    assert (full[..., 20:45, 20:45] == 200).all()


def test_shift_moves_by_one_pixel_and_repeats_the_border() -> None:
    before = _noise(1, 8, 8).expand(500, -1, -1, -1)
    after = shift(before, _generator())
    padded = np.pad(before[0].numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    windows = {
        padded[:, top : top + 8, left : left + 8].tobytes() for top in range(3) for left in range(3)
    }
    assert {image.numpy().tobytes() for image in after} == windows


def test_jitter_changes_brightness_contrast_and_saturation_within_its_bounds() -> None:
    flat = torch.full((400, 3, 4, 4), 100, dtype=torch.uint8)
    bright = jitter(flat, _generator())
    assert (bright == bright[:, :1, :1, :1]).all()  # a grey image has no contrast or saturation
    assert bright.min() in range(60, 64)
    assert bright.max() in range(137, 141)
    pixels = flat.clone()
    pixels[:, 0, :2] = 180
    spread = jitter(pixels, _generator()).float().std(dim=(1, 2, 3)) / bright.float().mean(
        (1, 2, 3)
    )
    assert spread.min() < 0.7 * spread.median()
    assert spread.max() > 1.3 * spread.median()


def test_augment_applies_each_in_order() -> None:
    before, generator = _noise(8), _generator()
    expected = rotate(flip(crop(before, generator), generator), generator)
    assert torch.equal(augment(before, ("crop", "flip", "rotate"), _generator()), expected)
    assert augment(before, (), generator) is before
    with pytest.raises(UserError, match=r'did you mean "rotate"\?'):
        augment(before, ("rotated",), generator)
