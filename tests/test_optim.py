import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustlr.errors import UserError
from robustlr.optim import Nero, RVAdamW
from robustlr.optim.neurons import as_rows, has_fan_in, parameter_groups
from robustlr.registry import load_optimizer, optimizers
from tests.reference import NeroReference, RVAdamWReference

SHAPES = [(4, 3), (5, 2, 3, 3), (3, 1, 2, 2), (7,), (), (6, 1), (2, 9)]
DOUBLE = torch.float64


def _model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        loss = model(torch.randn(8, 1, 4, 4, generator=generator).to(dtype)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# Promises of every optimizer in the folder


@pytest.mark.parametrize("name", optimizers())
def test_every_entry_says_where_it_comes_from_and_its_values_are_arguments(name: str) -> None:
    entry = load_optimizer(name)
    assert entry.summary
    assert entry.paper
    assert entry.default_source
    assert {*entry.default, *entry.space} <= {*entry.arguments}
    assert "lr" in entry.space
    assert "lr" in entry.default


@pytest.mark.parametrize("name", optimizers())
def test_same_seed_same_trajectory(name: str) -> None:
    models = [_model(), _model()]
    for model in models:
        _train(model, load_optimizer(name).build(model, {}), 5)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", optimizers())
def test_a_zero_gradient_leaves_the_weights_alone(name: str) -> None:
    entry, model = load_optimizer(name), _model()
    undecayed = {"weight_decay": 0.0} if "weight_decay" in entry.arguments else {}
    optimizer = entry.build(model, undecayed)
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", optimizers())
def test_a_checkpoint_continues_the_same_trajectory(name: str) -> None:
    model = _model().double()
    optimizer = load_optimizer(name).build(model, {})
    _train(model, optimizer, 3)
    resumed = _model(seed=1).double()
    continued = load_optimizer(name).build(resumed, {})
    resumed.load_state_dict(model.state_dict())
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, by in ((model, optimizer), (resumed, continued)):
        _train(each, by, 3, seed=1)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", optimizers())
def test_a_closure_and_an_lr_scheduler_work(name: str) -> None:
    model = _model()
    optimizer = load_optimizer(name).build(model, {"lr": 0.01})
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(torch.ones(2, 1, 4, 4)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    loss = optimizer.step(closure)  # type: ignore[arg-type]
    assert isinstance(loss, Tensor)
    assert loss.item() > 0
    schedule.step()
    assert {group["lr"] for group in optimizer.param_groups} == {0.005}


@pytest.mark.parametrize("name", optimizers())
def test_parameters_without_gradient_stay(name: str) -> None:
    used, unused = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 4))
    model = nn.Module()
    model.register_parameter("used", used)
    model.register_parameter("unused", unused)
    optimizer = load_optimizer(name).build(model, {})
    before = unused.detach().clone()
    used.grad = torch.randn(3, 4)
    optimizer.step()
    assert torch.equal(unused, before)


# The maths


def _compare(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    reference: Any,
    p: Tensor,
    lr: float,
) -> None:
    """Hold an optimizer against its reference over steps with changing learning rates."""
    parameter = nn.Parameter(p.clone())
    optimizer = make([parameter])
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        gradient = torch.randn(p.shape, generator=generator, dtype=DOUBLE)
        if step == 7:
            gradient = torch.zeros_like(gradient)
        if step == 11:
            lr = lr / 3
            optimizer.param_groups[0]["lr"] = lr
        parameter.grad = gradient
        optimizer.step()
        reference.step(gradient.numpy().copy(), lr)
        np.testing.assert_allclose(parameter.detach().numpy(), reference.p, rtol=1e-10, atol=1e-10)


@settings(max_examples=40)
@given(
    shape=st.sampled_from([s for s in SHAPES if s != (6, 1)]),
    lr=st.floats(1e-4, 1.0),
    beta=st.floats(0.0, 0.9999),
    center=st.booleans(),
    normalize=st.booleans(),
    zero=st.booleans(),
)
def test_nero_follows_its_reference(
    shape: tuple[int, ...], lr: float, beta: float, center: bool, normalize: bool, zero: bool
) -> None:
    p = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    if zero and p.dim() < 2:
        p = torch.zeros_like(p)
    options: dict[str, Any] = {"beta": beta, "center": center, "normalize": normalize}
    reference = NeroReference(p.numpy().copy(), **options)
    _compare(lambda params: Nero(params, lr=lr, **options), reference, p, lr)


@settings(max_examples=40)
@given(
    shape=st.sampled_from([s for s in SHAPES if s != (6, 1)]),
    lr=st.floats(1e-4, 1.0),
    betas=st.tuples(st.floats(0.0, 0.99), st.floats(0.5, 0.9999)),
    weight_decay=st.sampled_from([0.0, 0.01, 0.5]),
    rotation_beta=st.floats(0.0, 0.999),
    center=st.booleans(),
    per_neuron=st.booleans(),
)
def test_rv_adamw_follows_its_reference(
    shape: tuple[int, ...],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    rotation_beta: float,
    center: bool,
    per_neuron: bool,
) -> None:
    p = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    options: dict[str, Any] = {"betas": betas, "weight_decay": weight_decay}
    options |= {"rotation_beta": rotation_beta, "center": center, "per_neuron": per_neuron}
    reference = RVAdamWReference(p.numpy().copy(), **options)
    _compare(lambda params: RVAdamW(params, lr=lr, **options), reference, p, lr)


def test_rv_adamw_without_decay_is_adamw() -> None:
    models = [_model().double(), _model().double()]
    _train(models[0], RVAdamW(models[0].parameters(), lr=0.01, weight_decay=0.0), 10)
    _train(models[1], torch.optim.AdamW(models[1].parameters(), lr=0.01, weight_decay=0.0), 10)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_nero_keeps_its_balance_constraints() -> None:
    model = _model().double()
    _train(model, Nero(model.parameters(), lr=0.1), 10)
    for parameter in filter(has_fan_in, model.parameters()):
        rows = as_rows(parameter.detach())
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones_like(rows[..., 0]))
        assert rows.mean(-1).abs().max() < 1e-12


def test_a_nero_step_turns_each_neuron_by_about_lr() -> None:
    parameter = nn.Parameter(torch.randn(50, 1000, dtype=DOUBLE))
    optimizer = Nero([parameter], lr=0.01)
    for _ in range(20):
        before = parameter.detach().clone()
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        angle = torch.acos((before * parameter.detach()).sum(1).clamp(-1, 1))
        np.testing.assert_allclose(angle.numpy(), 0.01, rtol=0.1)


def test_rv_adamw_keeps_norms_and_turns_at_the_predicted_rate() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(20, 64, dtype=DOUBLE))
    optimizer = RVAdamW([parameter], lr=0.01, weight_decay=0.1)
    norms = parameter.detach().norm(dim=1)
    angles = []
    for _ in range(400):
        before = parameter.detach().clone()
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        cosine = (before * parameter.detach()).sum(1) / norms**2
        angles.append(float(torch.acos(cosine.clamp(-1, 1)).mean()))
    torch.testing.assert_close(parameter.detach().norm(dim=1), norms)
    predicted = math.sqrt(2 * 0.01 * 0.1 * 0.1 / 1.9)
    assert np.mean(angles[100:]) == pytest.approx(predicted, rel=0.015)


@pytest.mark.parametrize("make", [Nero, RVAdamW])
def test_what_broke_the_released_code_does_not_break_ours(make: type[Any]) -> None:
    """Fan-in 1, constant and zero rows, channels_last, scalars, unseen rows, groups added later."""
    parameters = {
        "fan-in 1": torch.ones(3, 1),
        "constant rows": torch.full((3, 4), 0.7),
        "zero rows": torch.zeros(3, 4),
        "channels_last": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(0.0),
    }
    for name, value in parameters.items():
        parameter = nn.Parameter(value.clone(memory_format=torch.preserve_format))
        optimizer = make([parameter], lr=0.01)
        for _ in range(3):
            parameter.grad = torch.randn_like(parameter)
            if parameter.dim() > 1:
                parameter.grad[0] = 0  # a row without gradient, as of an unseen word
            optimizer.step()
        assert parameter.isfinite().all(), name
    late = nn.Parameter(torch.randn(3, 4))
    optimizer.add_param_group({"params": [late], "lr": 0.1})
    before = late.detach().clone()
    late.grad = torch.randn(3, 4)
    optimizer.step()
    assert not torch.equal(late, before)


def test_a_constant_row_keeps_its_norm_under_rv_adamw_and_turns() -> None:
    parameter = nn.Parameter(torch.full((2, 4), 0.7, dtype=DOUBLE))
    optimizer = RVAdamW([parameter], lr=0.1, weight_decay=0.1)
    for _ in range(5):
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    torch.testing.assert_close(parameter.detach().norm(dim=1), torch.full((2,), 1.4, dtype=DOUBLE))
    assert parameter.detach().std(dim=1).min() > 1e-3


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("make", [Nero, RVAdamW])
def test_a_non_finite_gradient_stops_a_neuron_for_one_step_only(
    make: type[Any], bad: float
) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(3, 4))
    optimizer = make([parameter], lr=0.01)
    before = parameter.detach().clone()
    gradient = torch.randn(3, 4)
    parameter.grad = gradient.clone()
    parameter.grad[1, 2] = bad
    optimizer.step()
    torch.testing.assert_close(parameter[1], before[1])
    assert not torch.allclose(parameter[0], before[0])
    parameter.grad = gradient
    for _ in range(3):
        optimizer.step()
    assert not torch.allclose(parameter[1], before[1])
    torch.testing.assert_close(parameter.detach().norm(dim=1), before.norm(dim=1))


def test_frozen_parameters_are_left_alone() -> None:
    for name in optimizers():
        model = _model()
        frozen = next(model.parameters()).requires_grad_(False)
        before = frozen.detach().clone()
        load_optimizer(name).build(model, {})
        assert torch.equal(frozen, before), name


def test_rotation_without_decay_is_refused() -> None:
    with pytest.raises(ValueError, match="rotational=True needs weight_decay above 0"):
        RVAdamW(
            [{"params": [nn.Parameter(torch.ones(2, 3))], "rotational": True}], weight_decay=0.0
        )


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (Nero, {"lr": -1.0}, "lr must be at least 0, not -1.0"),
        (Nero, {"beta": 1.0}, "beta must be at least 0 and below 1, not 1.0"),
        (Nero, {"lr": math.nan}, "lr must be at least 0, not nan"),
        (RVAdamW, {"betas": (0.9, 1.5)}, r"betas\[1\] must be at least 0 and below 1, not 1.5"),
        (RVAdamW, {"weight_decay": -0.1}, "weight_decay must be at least 0, not -0.1"),
    ],
)
def test_wrong_arguments_are_named(
    make: type[Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.zeros(2))], **arguments)


# Neurons and entries


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((4, 3), (1, 4, 3)),
        ((5, 2, 3, 3), (1, 5, 18)),
        ((6, 1), (1, 6, 1)),
        ((7,), (1, 7, 1)),
        ((), (1, 1, 1)),
    ],
)
def test_rows(shape: tuple[int, ...], rows: tuple[int, ...]) -> None:
    parameter = torch.randn(shape)
    assert has_fan_in(parameter) == (rows[-1] > 1)
    assert as_rows(parameter).shape == rows
    assert as_rows(parameter.expand(1, *shape), like=parameter).shape == rows


def test_gains_and_biases_are_not_decayed() -> None:
    weights, rest = parameter_groups(_model())
    assert [tuple(p.shape) for p in weights["params"]] == [(4, 1, 3, 3), (3, 16)]
    assert rest["weight_decay"] == 0.0
    assert len(rest["params"]) == 4
    optimizer = load_optimizer("adamw").build(_model(), {"weight_decay": 0.5})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


def test_beta1_and_beta2_become_betas() -> None:
    optimizer = load_optimizer("adam").build(_model(), {"beta1": 0.5, "lr": 0.1})
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_any_class_is_an_optimizer() -> None:
    entry = load_optimizer("torch.optim:RMSprop")
    assert entry.arguments["alpha"] == 0.99
    assert isinstance(entry.build(_model(), {"lr": 0.1}), torch.optim.RMSprop)


def test_unknown_optimizers_name_the_nearest() -> None:
    with pytest.raises(UserError, match='no optimizer is named "rvadamw"; did you mean "rv-adamw"'):
        load_optimizer("rvadamw")
