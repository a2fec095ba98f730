"""Every optimizer against an independent float64 reference, and what the theory promises of each."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustlr.optim import (
    LAMB,
    LARS,
    RVSGD,
    Fromage,
    Lion,
    Madam,
    Nero,
    RVAdamL2,
    RVAdamW,
    RVLion,
    rules,
)
from tests import reference
from tests.reference import AdamInner, LionInner, Plain, Reference, Rotational, SGDInner

DOUBLE = torch.float64
MATRICES = [(4, 3), (5, 2, 3, 3), (3, 1, 2, 2), (2, 9)]
VECTORS: list[tuple[int, ...]] = [(7,), ()]

shapes = st.sampled_from([*MATRICES, *VECTORS])
lrs = st.floats(1e-4, 1.0)
betas = st.tuples(st.floats(0.0, 0.99), st.floats(0.5, 0.9999))
decays = st.sampled_from([0.0, 0.01, 0.5])
switch = st.booleans()

turning = {
    "rotation_beta": st.floats(0.0, 0.999),
    "center": switch,
    "per_neuron": switch,
    "rotation_eps": st.sampled_from([1e-8, 1e-2]),
}
portions = st.sampled_from([(0.0, 0.0, 1.0), (0.5, 0.0, 3.0), (0.25, 0.25, 5.0), (0.0, 1.0, 2.0)])


def _weights(shape: tuple[int, ...], zero: bool = False) -> Tensor:
    p = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    return torch.zeros_like(p) if zero else p


def _compare(optimizer: torch.optim.Optimizer, expected: Reference, lr: float) -> None:
    """Hold an optimizer of one parameter against its reference.

    The learning rate changes, one gradient is zero, and one is missing.
    """
    (parameter,) = optimizer.param_groups[0]["params"]
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        gradient = torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)
        if step == 5:
            parameter.grad = None
            optimizer.step()
            continue
        if step == 7:
            gradient = torch.zeros_like(gradient)
        if step == 11:
            lr = lr / 3
            optimizer.param_groups[0]["lr"] = lr
        parameter.grad = gradient
        optimizer.step()
        expected.step(gradient.numpy().copy(), lr)
        np.testing.assert_allclose(parameter.detach().numpy(), expected.p, rtol=1e-10, atol=1e-10)


def _array(p: Tensor) -> np.ndarray:
    return p.detach().numpy().copy()


@settings(max_examples=60)
@given(shapes, lrs, st.floats(0.0, 0.9999), switch, switch, switch, st.sampled_from([0.01, 1.0]))
def test_nero(
    shape: tuple[int, ...],
    lr: float,
    beta: float,
    center: bool,
    normalize: bool,
    zero: bool,
    bias_scale: float,
) -> None:
    p = nn.Parameter(_weights(shape, zero and len(shape) < 2))
    options: dict[str, Any] = {"beta": beta, "center": center, "normalize": normalize}
    options |= {"bias_scale": bias_scale}
    expected = reference.Nero(_array(p), **options)
    _compare(Nero([p], lr=lr, **options), expected, lr)


@given(shapes, lrs, st.sampled_from([None, 0.5, 1.0, 2.0]), switch)
def test_fromage(shape: tuple[int, ...], lr: float, p_bound: float | None, zero: bool) -> None:
    p = nn.Parameter(_weights(shape, zero))
    _compare(Fromage([p], lr=lr, p_bound=p_bound), reference.Fromage(_array(p), p_bound), lr)


@given(shapes, lrs, st.floats(0.5, 5.0), st.floats(0.1, 20.0), switch, switch)
def test_madam(
    shape: tuple[int, ...],
    lr: float,
    p_scale: float,
    g_bound: float,
    center: bool,
    normalize: bool,
) -> None:
    p = nn.Parameter(_weights(shape))
    options: dict[str, Any] = {"p_scale": p_scale, "g_bound": g_bound}
    options |= {"center": center, "normalize": normalize}
    _compare(Madam([p], lr=lr, **options), reference.Madam(_array(p), **options), lr)


@settings(max_examples=60)
@given(shapes, lrs, betas, decays, switch, st.sampled_from([0.5, 10.0, math.inf]), switch, switch)
def test_lamb(
    shape: tuple[int, ...],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    bias_correction: bool,
    clamp: float,
    center: bool,
    normalize: bool,
) -> None:
    p = nn.Parameter(_weights(shape))
    options: dict[str, Any] = {"betas": betas, "weight_decay": weight_decay, "clamp": clamp}
    options |= {"bias_correction": bias_correction, "center": center, "normalize": normalize}
    options |= {"eps": 1e-3 if bias_correction else 1e-6}
    _compare(LAMB([p], lr=lr, **options), reference.LAMB(_array(p), **options), lr)


@given(shapes, lrs, st.sampled_from([0.0, 0.9]), decays, st.sampled_from([1e-3, 1.0]), switch)
def test_lars(
    shape: tuple[int, ...],
    lr: float,
    momentum: float,
    weight_decay: float,
    trust: float,
    always_adapt: bool,
) -> None:
    p = nn.Parameter(_weights(shape))
    options: dict[str, Any] = {"momentum": momentum, "weight_decay": weight_decay}
    options |= {"trust_coefficient": trust, "always_adapt": always_adapt}
    options |= {"eps": 1e-8 if always_adapt else 0.1}
    _compare(LARS([p], lr=lr, **options), reference.LARS(_array(p), **options), lr)


@given(shapes, lrs, betas, decays)
def test_lion(
    shape: tuple[int, ...], lr: float, betas: tuple[float, float], weight_decay: float
) -> None:
    p = nn.Parameter(_weights(shape))
    expected = Plain(_array(p), LionInner(betas), weight_decay, coupled=False)
    _compare(Lion([p], lr=lr, betas=betas, weight_decay=weight_decay), expected, lr)


def _rotational(
    p: Tensor,
    inner: Any,
    angle: Callable[[float], float],
    weight_decay: float,
    coupled: bool,
    options: dict[str, Any],
) -> Reference:
    if p.dim() < 2 or weight_decay == 0:
        return Plain(_array(p), inner, weight_decay, coupled)
    if isinstance(inner, AdamInner) and coupled:
        inner.l2_in_second = weight_decay
    return Rotational(_array(p), inner, angle, **options)


@st.composite
def turns(draw: st.DrawFn) -> dict[str, Any]:
    slow, fast, factor = draw(portions)
    options = {name: draw(strategy) for name, strategy in turning.items()}
    return options | {"slow_portion": slow, "fast_portion": fast, "speed_factor": factor}


@settings(max_examples=60)
@given(shapes, lrs, betas, decays, turns())
def test_rv_adamw(
    shape: tuple[int, ...],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    options: dict[str, Any],
) -> None:
    p, b1 = nn.Parameter(_weights(shape)), betas[0]

    def angle(lr: float) -> float:
        return math.sqrt(2 * lr * weight_decay * (1 - b1) / (1 + b1))

    expected = _rotational(p, AdamInner(betas), angle, weight_decay, False, options)
    _compare(RVAdamW([p], lr=lr, betas=betas, weight_decay=weight_decay, **options), expected, lr)


@settings(max_examples=60)
@given(shapes, lrs, betas, decays, turns(), switch)
def test_rv_adam_l2(
    shape: tuple[int, ...],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    options: dict[str, Any],
    own: bool,
) -> None:
    p, b1 = nn.Parameter(_weights(shape)), betas[0]

    def angle(lr: float) -> float:
        return lr / 2 if own else math.sqrt(2 * lr * weight_decay * (1 - b1) / (1 + b1))

    rotation = (lambda group: group["lr"] / 2) if own else None
    expected = _rotational(p, AdamInner(betas), angle, weight_decay, True, options)
    made = RVAdamL2(
        [p], lr=lr, betas=betas, weight_decay=weight_decay, rotation=rotation, **options
    )
    _compare(made, expected, lr)


@settings(max_examples=60)
@given(
    shapes,
    lrs,
    st.sampled_from([(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.5, False), (0.9, 0.0, True)]),
    decays,
    turns(),
)
def test_rv_sgd(
    shape: tuple[int, ...],
    lr: float,
    inner: tuple[float, float, bool],
    weight_decay: float,
    options: dict[str, Any],
) -> None:
    p = nn.Parameter(_weights(shape))
    momentum, dampening, nesterov = inner

    def angle(lr: float) -> float:
        return math.sqrt(2 * lr * weight_decay / (1 + momentum))

    expected = _rotational(p, SGDInner(*inner), angle, weight_decay, True, options)
    made = RVSGD([p], lr, momentum, dampening, weight_decay, nesterov, **options)
    _compare(made, expected, lr)


@settings(max_examples=60)
@given(shapes, lrs, betas, decays, turns())
def test_rv_lion(
    shape: tuple[int, ...],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    options: dict[str, Any],
) -> None:
    p, (b1, b2) = nn.Parameter(_weights(shape)), betas

    def angle(lr: float) -> float:
        return math.sqrt(math.pi * lr * weight_decay) * math.sqrt(
            (1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)
        )

    expected = _rotational(p, LionInner(betas), angle, weight_decay, False, options)
    _compare(RVLion([p], lr=lr, betas=betas, weight_decay=weight_decay, **options), expected, lr)


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (RVAdamW, torch.optim.AdamW),
        (RVAdamL2, torch.optim.Adam),
        (RVSGD, torch.optim.SGD),
    ],
)
def test_variants_that_rotate_nothing_are_torchs_optimizers(ours: Any, torchs: Any) -> None:
    extra = {"momentum": 0.9, "dampening": 0.3} if ours is RVSGD else {}
    parameters = [nn.Parameter(_weights((4, 3))) for _ in range(2)]
    made = [
        ours([{"params": parameters[:1], "rotational": False}], lr=0.1, weight_decay=0.1, **extra),
        torchs(parameters[1:], lr=0.1, weight_decay=0.1, **extra),
    ]
    for _ in range(10):
        gradient = torch.randn(4, 3, dtype=DOUBLE)
        for parameter, optimizer in zip(parameters, made, strict=True):
            parameter.grad = gradient
            optimizer.step()
    torch.testing.assert_close(parameters[0], parameters[1], rtol=0, atol=1e-12)


# What the theory promises

VARIANTS = [
    (RVSGD, {"momentum": 0.9}, lambda lr, wd: math.sqrt(2 * lr * wd / 1.9)),
    (RVAdamW, {}, lambda lr, wd: math.sqrt(2 * lr * wd * 0.1 / 1.9)),
    (RVAdamL2, {}, lambda lr, wd: math.sqrt(2 * lr * wd * 0.1 / 1.9)),
    (
        RVLion,
        {},
        lambda lr, wd: math.sqrt(math.pi * lr * wd * (0.01 + 0.81 * 0.01 / 1.99)),
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("make", [Nero, Madam, LAMB])
@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(2, 40)),
    lr=st.floats(1e-4, 0.5),
    center=switch,
    normalize=switch,
)
def test_balance_constraints_hold_after_every_step(
    make: Any, dtype: torch.dtype, shape: tuple[int, int], lr: float, center: bool, normalize: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
    optimizer = make([parameter], lr=lr, center=center, normalize=normalize)
    for _ in range(4):
        parameter.grad = torch.randn(shape, generator=generator, dtype=dtype)
        optimizer.step()
        weight = parameter.detach()
        norms = weight.norm(dim=1)
        small = 50 * torch.finfo(dtype).eps
        if center:
            assert (weight.mean(1).abs() <= small * norms).all()
        if normalize:
            assert ((norms - 1).abs() <= small).all()


@pytest.mark.parametrize(("make", "inner", "angle"), VARIANTS)
@settings(max_examples=15, deadline=None)
@given(shape=st.tuples(st.integers(1, 9), st.integers(3, 40)), lr=st.floats(1e-5, 0.3))
def test_rotational_variants_keep_every_norm(
    make: Any, inner: dict[str, Any], angle: Any, shape: tuple[int, int], lr: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, generator=generator))
    norms = parameter.detach().norm(dim=1)
    optimizer = make([parameter], lr=lr, weight_decay=0.1, **inner)
    for _ in range(5):
        parameter.grad = torch.randn(shape, generator=generator)
        optimizer.step()
        torch.testing.assert_close(parameter.detach().norm(dim=1), norms, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("make", "inner", "angle"), VARIANTS)
def test_rotational_variants_turn_at_the_predicted_rate(
    make: Any, inner: dict[str, Any], angle: Any
) -> None:
    """Rotational Equilibrium, Table 1; the portions turn as much slower and faster."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(20, 64, dtype=DOUBLE))
    optimizer = make(
        [parameter],
        lr=0.01,
        weight_decay=0.1,
        slow_portion=0.25,
        fast_portion=0.25,
        speed_factor=3.0,
        **inner,
    )
    turned = []
    for _ in range(600):
        before = parameter.detach().clone()
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        cosine = nn.functional.cosine_similarity(before, parameter.detach())
        turned.append(torch.acos(cosine.clamp(-1, 1)).numpy())
    mean = np.mean(turned[100:], axis=0)
    predicted = angle(0.01, 0.1)
    assert mean[10:].mean() == pytest.approx(predicted, rel=0.015)
    assert mean[:5].mean() == pytest.approx(predicted / 3, rel=0.015)
    assert mean[5:10].mean() == pytest.approx(predicted * 3, rel=0.03)


def test_a_nero_step_turns_each_neuron_by_about_lr() -> None:
    parameter = nn.Parameter(torch.randn(50, 1000, dtype=DOUBLE))
    optimizer = Nero([parameter], lr=0.01)
    for _ in range(20):
        before = parameter.detach().clone()
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        angle = torch.acos((before * parameter.detach()).sum(1).clamp(-1, 1))
        np.testing.assert_allclose(angle.numpy(), 0.01, rtol=0.1)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize(
    "make", [Nero, Fromage, Madam, lambda p, lr: LARS(p, lr, 0.9, always_adapt=True, eps=0.0)]
)
def test_the_scale_of_the_gradient_does_not_matter(make: Any, scale: float) -> None:
    results = []
    for factor in (1.0, scale):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(6, 10, dtype=DOUBLE))
        optimizer = make([parameter], lr=0.01)
        for _ in range(5):
            parameter.grad = factor * torch.randn_like(parameter)
            optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_lion_and_rv_lion_see_only_signs() -> None:
    results = []
    for factor in (1.0, 1e4):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(6, 10, dtype=DOUBLE))
        optimizer = RVLion([parameter], lr=0.01, weight_decay=0.1)
        for _ in range(5):
            parameter.grad = factor * torch.randn_like(parameter)
            optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("factor", [0.1, 10.0])
@pytest.mark.parametrize("make", [Nero, Fromage, LAMB])
def test_relative_steps_are_the_same_for_weights_of_any_scale(make: Any, factor: float) -> None:
    """The network function of a scale-invariant layer is followed whatever its weights' norm."""
    angles = []
    for scale in (1.0, factor):
        torch.manual_seed(0)
        parameter = nn.Parameter(scale * torch.randn(6, 10, dtype=DOUBLE))
        options = {"clamp": math.inf, "eps": 0.0} if make is LAMB else {}
        optimizer = make([parameter], lr=0.01, **options)
        for _ in range(5):
            # the gradient of a scale-invariant function shrinks as its weights grow
            parameter.grad = torch.randn_like(parameter) / scale
            optimizer.step()
        angles.append(nn.functional.normalize(parameter.detach().flatten(), dim=0))
    torch.testing.assert_close(angles[0], angles[1], rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.floats(-5.0, 5.0))
def test_a_shift_of_the_gradient_does_not_turn_centred_neurons(shift: float) -> None:
    """With centred rows and updates, a constant added to a row's direction drops out."""
    results = []
    for added in (0.0, shift):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(6, 10, dtype=DOUBLE))
        optimizer = RVSGD([parameter], lr=0.1, weight_decay=0.1)
        for _ in range(5):
            parameter.grad = torch.randn_like(parameter) + added
            optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-10)


def test_lars_grows_as_figure_2_of_fromage_says_and_fromage_does_not() -> None:
    """A scale-invariant layer's gradient is orthogonal to its weights: norms grow by (1+lr²)^½."""
    steps, lr = 2000, 0.03
    norms = {}
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "lars": lambda p: LARS(p, lr, 0.0, trust_coefficient=1.0, eps=0.0, always_adapt=True),
        "fromage": lambda p: Fromage(p, lr),
    }
    for name, make in makers.items():
        torch.manual_seed(0)
        layer = nn.Linear(20, 10, bias=False, dtype=DOUBLE)
        optimizer = make(layer.parameters())
        start = float(layer.weight.detach().norm())
        for _ in range(steps):
            x, y = torch.randn(8, 20, dtype=DOUBLE), torch.randn(8, 10, dtype=DOUBLE)
            out = layer(x)
            loss = (out / layer.weight.norm() - y).square().mean()  # invariant to the scale
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        norms[name] = float(layer.weight.detach().norm()) / start
    assert norms["lars"] == pytest.approx((1 + lr**2) ** (steps / 2), rel=1e-9)
    assert norms["fromage"] == pytest.approx(1.0, rel=1e-9)


# Many trials at once

SIZE = (3, 4, 6)  # trials, rows, row length


def _per_trial(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)[:, None, None]


ONE_STEP: dict[str, Callable[..., Any]] = {
    "nero": lambda w, g, h: rules.nero(
        w,
        g,
        torch.ones_like(w[..., :1]),
        scale=h,
        step=h * 10,
        lr=h,
        beta=h,
        center=True,
        normalize=True,
    ),
    "madam": lambda w, g, h: rules.madam(
        w, g, w.square(), cap=3 * h, step=h * 10, lr=h, g_bound=h, center=True, normalize=True
    ),
    "fromage": lambda w, g, h: (rules.fromage(w, g, lr=h, cap=9 * h),),
    "lars": lambda w, g, h: rules.lars(
        w, g, w, lr=h, momentum=h, weight_decay=h, trust_coefficient=h, eps=h, adapt=True
    ),
    "lamb": lambda w, g, h: rules.lamb(
        w,
        g,
        w,
        w.square(),
        step=10 * h,
        lr=h,
        beta1=h,
        beta2=h,
        eps=h,
        weight_decay=h,
        bias_correction=True,
        clamp=1.0,
        center=True,
        normalize=True,
    ),
    "sgd": lambda w, g, h: rules.sgd_direction(
        g, w, g.isfinite(), step=10 * h, momentum=h, dampening=h, nesterov=True
    ),
    "adam": lambda w, g, h: rules.adam_direction(
        g, w, w.square(), g.isfinite(), step=10 * h, beta1=h, beta2=h, eps=h, squared=g + h * w
    ),
    "lion": lambda w, g, h: rules.lion_direction(g, w, g.isfinite(), beta1=h, beta2=h),
    "descend": lambda w, g, h: (rules.descend(w, g, g.isfinite(), lr=h, weight_decay=h),),
    "rotate": lambda w, g, h: rules.rotate(
        w,
        g,
        torch.ones_like(w[..., :1]),
        g.isfinite().all(-1, keepdim=True),
        norm=rules.row_norm(w),
        step=10 * h,
        rotation=rules.lion_rotation(h, h, h, h),
        rotation_beta=h,
        rotation_eps=h,
        center=True,
    ),
}


@pytest.mark.parametrize("name", ONE_STEP)
def test_many_trials_step_as_each_alone(name: str) -> None:
    """Each with hyperparameters of its own; one of them has a gradient that is not finite."""
    torch.manual_seed(0)
    weight, gradient = torch.randn(SIZE, dtype=DOUBLE), torch.randn(SIZE, dtype=DOUBLE)
    gradient[2, 1, 3] = math.inf
    numbers = _per_trial(0.1, 0.3, 0.7)
    together = ONE_STEP[name](weight, gradient, numbers)
    for trial in range(3):
        one = slice(trial, trial + 1)
        alone = ONE_STEP[name](weight[one], gradient[one], numbers[one])
        for many, single in zip(together, alone, strict=True):
            torch.testing.assert_close(many[one], single, rtol=1e-13, atol=1e-13)
            assert single.isfinite().all()
