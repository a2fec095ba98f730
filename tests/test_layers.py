import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlr.optim import Nero, RVAdamW
from robustlr.optim.layers import (
    add_gains,
    bake,
    gain_penalty,
    normalize_weights,
    standardize_weights,
)
from robustlr.optim.neurons import parameter_groups


def _model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.Flatten(),
        nn.Linear(54, 5),
        nn.Linear(5, 3, bias=False),
    )


X = torch.randn(7, 2, 4, 4, generator=torch.Generator().manual_seed(1))
EVERY: list[Any] = [
    add_gains,
    standardize_weights,
    lambda model: standardize_weights(model, gain=True),
    lambda model: standardize_weights(model, keep_init=False),
    normalize_weights,
]


@pytest.mark.parametrize("change", EVERY)
def test_a_changed_model_trains_bakes_and_loads(change: Any) -> None:
    model = change(_model())
    for make in (Nero, RVAdamW):
        optimizer = make(parameter_groups(model), lr=0.01)
        before = copy.deepcopy(model.state_dict())
        torch.autograd.backward(model(X).square().mean())
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
        assert len(moved) >= 4
    other = change(_model())
    other.load_state_dict(model.state_dict())
    model.eval()
    expected = model(X)
    torch.testing.assert_close(other.eval()(X), expected)
    baked = bake(model)
    assert {n for n, _ in baked.named_parameters()} == {n for n, _ in _model().named_parameters()}
    torch.testing.assert_close(baked(X), expected)


def test_standardised_rows_have_mean_0_and_their_first_deviation() -> None:
    plain, model = _model(), standardize_weights(_model())
    for index in (0, 4, 5):
        old, new = (_rows(each[index].weight) for each in (plain, model))
        torch.testing.assert_close(new.mean(1), torch.zeros(len(new)), atol=1e-6, rtol=0)
        torch.testing.assert_close(new.std(1), old.std(1), rtol=1e-3, atol=0)
    scaled = standardize_weights(_model(), keep_init=False)
    torch.testing.assert_close(
        _rows(scaled[4].weight).std(1), torch.full((5,), 54**-0.5), rtol=1e-3, atol=0
    )


def test_normalised_rows_are_balanced_and_transposed_ones_along_axis_1() -> None:
    model = normalize_weights(_model())
    for index in (0, 4, 5):
        rows = _rows(model[index].weight)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
        torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)), atol=1e-6, rtol=0)
    weight = model[2].weight.reshape(2, 2, 3, 4)  # 2 groups, 2 inputs and 3 outputs each
    torch.testing.assert_close(weight.square().sum((1, 3)), torch.ones(2, 3))


def test_gains_start_at_one_and_scale_rows() -> None:
    model = add_gains(_model())
    torch.testing.assert_close(model(X), _model()(X))
    gain = model[4].parametrizations.weight[0].gain
    with torch.no_grad():
        gain[1] = 3.0
    torch.testing.assert_close(model[4].weight[1], 3 * _model()[4].weight[1])
    assert gain.dim() == 1  # so that weight decay leaves it alone
    decayed, rest = parameter_groups(model)[0], parameter_groups(model)[-1]
    assert not any(p is gain for p in decayed["params"])
    assert rest["weight_decay"] == 0.0


def test_a_standardised_layer_ignores_scale_and_shift_of_its_weights() -> None:
    model = standardize_weights(_model(), gain=True).eval()
    expected = model(X)
    with torch.no_grad():
        raw = model[4].parametrizations.weight.original
        raw.mul_(10.0).add_(2.0)
    torch.testing.assert_close(model(X), expected, rtol=1e-3, atol=1e-4)


def test_the_gain_penalty_pulls_gains_toward_one() -> None:
    model = _model()
    assert gain_penalty(model).item() == 0.0
    with torch.no_grad():
        model[1].weight.fill_(3.0)
    penalty = gain_penalty(model)
    assert penalty.item() == 4 * (3.0 - 1) ** 2
    torch.autograd.backward(penalty)
    torch.testing.assert_close(model[1].weight.grad, torch.full((4,), 4.0))
    assert gain_penalty(nn.Linear(2, 2)).item() == 0.0


def _rows(weight: Tensor) -> Tensor:
    return weight.detach().reshape(weight.shape[0], -1)
