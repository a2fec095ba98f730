import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlr.errors import UserError
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
)
from robustlr.optim.neurons import (
    describe,
    elements,
    has_fan_in,
    neurons,
    parameter_groups,
    whole,
)
from robustlr.registry import load_optimizer, load_task, optimizers
from robustlr.space import Value
from robustlr.task import Config

DECAYED = {"weight_decay": 0.1}
OURS: list[tuple[Any, dict[str, Any]]] = [
    (Nero, {}),
    (Nero, {"center": False, "normalize": False}),
    (Fromage, {}),
    (Fromage, {"p_bound": 1.0}),
    (Madam, {}),
    (Madam, {"center": True, "normalize": True}),
    (LAMB, DECAYED),
    (LAMB, {"center": True, "normalize": True, "bias_correction": True}),
    (LARS, DECAYED),
    (LARS, {"momentum": 0.0, "trust_coefficient": 1.0, "eps": 0.0, "always_adapt": True}),
    (Lion, DECAYED),
    (RVSGD, DECAYED | {"momentum": 0.9}),
    (RVSGD, {}),
    (RVAdamW, DECAYED),
    (RVAdamW, DECAYED | {"per_neuron": False}),
    (RVLion, DECAYED),
    (RVAdamL2, DECAYED),
    (RVAdamL2, DECAYED | {"slow_portion": 0.5, "fast_portion": 0.25, "speed_factor": 4.0}),
]
NAMES = [f"{make.__name__}-{'-'.join(map(str, options))}" for make, options in OURS]
every_class = pytest.mark.parametrize(("make", "options"), OURS, ids=NAMES)
every_path = pytest.mark.parametrize("path", ["kernels", "rules"])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take the steps with the kernels, or with the rules alone."""
    monkeypatch.setenv("ROBUSTLR_KERNELS", "1" if request.param == "kernels" else "0")
    return str(request.param)


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
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-7)  # Fromage shrinks by lr²/2


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


# What every class of ours does with the odd cases


def _parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Return one parameter of each kind; equal at every call."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 3, 2, 2, generator=generator)
    values = [
        torch.randn(5, 40, generator=generator),
        image.to(memory_format=torch.channels_last),
        torch.randn(6, 1, generator=generator),
        torch.randn(7, generator=generator),
        torch.zeros(3),
        torch.tensor(0.5),
    ]
    return [nn.Parameter(v.to(dtype)) for v in values]


def _steps(
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    count: int,
    seed: int = 0,
    sign: float = 1.0,
) -> None:
    generator = torch.Generator().manual_seed(100 + seed)  # not along the weights
    for _ in range(count):
        for parameter in parameters:
            gradient = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.grad = torch.empty_like(parameter).copy_(sign * gradient)
        optimizer.step()


def _same(
    one: list[nn.Parameter], other: list[nn.Parameter], rtol: float = 0.0, atol: float = 0.0
) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_loaded_state_continues_bit_for_bit(
    make: Any, options: dict[str, Any], dtype: torch.dtype
) -> None:
    parameters, resumed = _parameters(dtype), _parameters(dtype)
    optimizer = make(parameters, lr=0.01, **options)
    _steps(parameters, optimizer, 4)
    continued = make(resumed, lr=0.01, **options)
    with torch.no_grad():
        for parameter, value in zip(resumed, parameters, strict=True):
            parameter.copy_(value)
    saved = copy.deepcopy(optimizer.state_dict())
    continued.load_state_dict(saved)
    for each, by in ((parameters, optimizer), (resumed, continued)):
        _steps(each, by, 4, seed=1)
    _same(parameters, resumed)
    for value in saved["state"][0].values():  # and what was loaded is a copy
        assert value.data_ptr() not in {s.data_ptr() for s in continued.state[resumed[0]].values()}


@every_class
def test_the_state_of_other_parameters_is_refused(make: Any, options: dict[str, Any]) -> None:
    """And leaves the optimizer as it was; a kernel must never see state of another size."""
    ours = [nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5))]
    theirs = [nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(2))]
    optimizer, other = make(ours, lr=0.01, **options), make(theirs, lr=0.5, **options)
    for parameters, each in ((ours, optimizer), (theirs, other)):
        _steps(parameters, each, 1)
    wants_state = bool(set(other.state[theirs[0]]) - {"step", "cap", "scale"})
    before = copy.deepcopy(optimizer.state_dict())
    if wants_state:
        with pytest.raises(ValueError, match=r"does not fit a parameter of shape \(5, 4\)"):
            optimizer.load_state_dict(other.state_dict())
        assert str(optimizer.state_dict()) == str(before)
    if wants_state:
        lacking = copy.deepcopy(before)
        lacking["state"][0].pop(optimizer.kept[-1] if make is not Nero else "square_norm")
        late = set(optimizer._wanted(optimizer.param_groups[0]))
        if not {*optimizer.kept} <= late:
            with pytest.raises(ValueError, match="the state to load lacks"):
                optimizer.load_state_dict(lacking)
    momentum = torch.optim.SGD(ours, momentum=0.9)
    momentum.step()
    with pytest.raises(ValueError, match="the state to load is not"):
        optimizer.load_state_dict(momentum.state_dict())
    _steps(ours, optimizer, 1)


def test_what_began_as_rotational_stays_so() -> None:
    """A weight decay that a schedule sets to 0, or above it, must not change the state's meaning."""
    for path in ("1", "0"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ROBUSTLR_KERNELS", path)
            for first, then in ((0.1, 0.0), (0.0, 0.1)):
                parameter = nn.Parameter(torch.randn(4, 3))
                optimizer = RVAdamW([parameter], weight_decay=first)
                _steps([parameter], optimizer, 2)
                before = parameter.detach().clone()
                optimizer.param_groups[0]["weight_decay"] = then
                _steps([parameter], optimizer, 2)
                assert ("norm" in optimizer.state[parameter]) == (first > 0)
                assert torch.allclose(parameter, before, atol=1e-6) == (first > 0)


@every_path
@every_class
def test_resuming_before_the_optimizer_is_made(
    make: Any, options: dict[str, Any], path: str
) -> None:
    """Constraints at construction keep weights that already satisfy them, to the bit."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        parameters = _parameters(dtype)
        optimizer = make(parameters, lr=0.01, **options)
        _steps(parameters, optimizer, 5)
        resumed = [nn.Parameter(p.detach().clone()) for p in parameters]
        continued = make(resumed, lr=0.01, **options)
        continued.load_state_dict(optimizer.state_dict())
        for each, by in ((parameters, optimizer), (resumed, continued)):
            _steps(each, by, 3, seed=1)
        _same(parameters, resumed)


@every_path
@every_class
def test_state_in_another_order_and_state_of_others(
    make: Any, options: dict[str, Any], path: str
) -> None:
    """As a checkpoint in another format, or an optimizer around ours, leaves it."""
    parameters, others = _parameters(), _parameters()
    optimizer, other = make(parameters, lr=0.01, **options), make(others, lr=0.01, **options)
    _steps(parameters, optimizer, 2)
    _steps(others, other, 2)
    saved = other.state_dict()
    saved["state"] = {i: dict(sorted(state.items())) for i, state in saved["state"].items()}
    other.load_state_dict(saved)
    for parameter, state in other.state.items():
        reordered = {"another": torch.zeros_like(parameter), **dict(sorted(state.items()))}
        other.state[parameter] = reordered
    _steps(parameters, optimizer, 2, seed=1)
    _steps(others, other, 2, seed=1)
    _same(parameters, others)


@every_path
@every_class
def test_autograd_sees_that_weights_have_changed(
    make: Any, options: dict[str, Any], path: str
) -> None:
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = make(layers.parameters(), lr=0.01, **options)
    loss = layers(torch.ones(2, 3)).square().sum()
    torch.autograd.backward(loss, retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)


@every_class
def test_frozen_weights_are_not_touched_and_may_thaw(make: Any, options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    before = copy.deepcopy(model[0].state_dict())
    optimizer = make(model.parameters(), lr=0.01, **options)
    for frozen in (True, False):
        model[0].requires_grad_(not frozen)
        for _ in range(2):
            optimizer.zero_grad()
            torch.autograd.backward(model(torch.randn(6, 5)).square().sum())
            optimizer.step()
        assert torch.equal(model[0].state_dict()["weight"], before["weight"]) == frozen


def test_a_momentum_or_a_bound_that_is_set_later_counts() -> None:
    one, other = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))
    late, always = LARS([one], lr=1.0, momentum=0.0), LARS([other], lr=1.0, momentum=0.0)
    for optimizer in (late, always):
        _steps([*optimizer.param_groups[0]["params"]], optimizer, 1)
        _steps([*optimizer.param_groups[0]["params"]], optimizer, 1, seed=1)
    late.param_groups[0]["momentum"] = 0.9
    _steps([one], late, 2, seed=2)
    _steps([other], always, 2, seed=2)
    assert not torch.allclose(one, other)
    LARS([one]).load_state_dict(late.state_dict())
    bounded = nn.Parameter(torch.ones(4, 3))
    optimizer = Fromage([bounded], lr=0.5)
    _steps([bounded], optimizer, 1)
    optimizer.param_groups[0]["p_bound"] = 0.1
    size = float(bounded.detach().norm())
    _steps([bounded], optimizer, 3)
    assert float(bounded.detach().norm()) == pytest.approx(0.1 * size)


def test_a_rotation_of_ones_own_is_not_saved(tmp_path: Any) -> None:
    parameter = nn.Parameter(torch.randn(4, 3))
    optimizer = RVAdamL2([parameter], weight_decay=0.1, rotation=lambda group: group["lr"])
    _steps([parameter], optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    _steps([parameter], optimizer, 2)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"neuron_axis": 2}, "neuron_axis must be 0 or 1, not 2"),
        ({"neuron_axis": 1, "conv_groups": 0}, "conv_groups must be a whole number above 0, not 0"),
        ({"neuron_axis": 1, "conv_groups": 4}, r"must divide the first dimension of \(6, 2\)"),
    ],
)
def test_wrong_layouts_are_named(layout: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Nero([{"params": [nn.Parameter(torch.randn(6, 2))], **layout}])


@every_class
def test_saved_state_loads_with_weights_only(
    make: Any, options: dict[str, Any], tmp_path: Any
) -> None:
    parameters = _parameters()
    optimizer = make(parameters, lr=0.01, **options)
    _steps(parameters, optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


@every_path
@every_class
def test_maximizing_is_minimizing_the_negative(
    make: Any, options: dict[str, Any], path: str
) -> None:
    parameters, negated = _parameters(), _parameters()
    _steps(parameters, make(parameters, lr=0.01, **options), 5)
    _steps(negated, make(negated, lr=0.01, maximize=True, **options), 5, sign=-1.0)
    _same(parameters, negated)


@every_path
@every_class
def test_memory_format_makes_no_difference(make: Any, options: dict[str, Any], path: str) -> None:
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        parameter = nn.Parameter(_parameters()[1].detach().contiguous(memory_format=memory_format))
        _steps([parameter], make([parameter], lr=0.01, **options), 5)
        assert parameter.is_contiguous(memory_format=memory_format)
        results.append(parameter)
    _same(results[:1], results[1:], rtol=1e-4, atol=1e-6)


@every_path
@every_class
def test_groups_with_their_own_options_and_groups_added_later(
    make: Any, options: dict[str, Any], path: str
) -> None:
    """Three groups in one optimizer step as three optimizers do."""
    together, apart = _parameters()[:3], _parameters()[:3]
    optimizer = make([{"params": together[:1], "lr": 0.02}, {"params": together[1:2]}], **options)
    optimizer.add_param_group({"params": together[2:], "lr": 0.3})
    rates: list[dict[str, float]] = [{"lr": 0.02}, {}, {"lr": 0.3}]
    alone = [make([p], **options, **rate) for p, rate in zip(apart, rates, strict=True)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for one, other in zip(together, apart, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        optimizer.step()
        for each in alone:
            each.step()
    _same(together, apart)


@every_path
@every_class
def test_a_missing_gradient_is_a_step_not_taken(
    make: Any, options: dict[str, Any], path: str
) -> None:
    """A parameter that misses every second gradient ends where it would have without the gaps."""
    gappy, always = nn.Parameter(torch.ones(5, 4).cumsum(1)), nn.Parameter(torch.randn(3, 4))
    plain = nn.Parameter(gappy.detach().clone())
    both, alone = make([gappy, always], lr=0.01, **options), make([plain], lr=0.01, **options)
    torch.manual_seed(0)
    for step in range(6):
        always.grad, gappy.grad = torch.randn(3, 4), None
        if step % 2:
            plain.grad = gappy.grad = torch.randn(5, 4)
            alone.step()
        both.step()
    _same([gappy], [plain])


@every_path
@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_broke_the_released_code_does_not_break_ours(
    make: Any, options: dict[str, Any], path: str, dtype: torch.dtype
) -> None:
    """Fan-in 1, constant and zero rows, scalars, zero and tiny gradients, half precision."""
    values = {
        "fan-in 1": torch.ones(3, 1),
        "constant rows": torch.full((3, 4), 0.7),
        "zero rows": torch.zeros(3, 4),
        "channels_last": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(0.0),
        "empty": torch.zeros(0, 4),
    }
    for scale in (1.0, 0.0, 1e-4, 1e-25):
        for name, value in values.items():
            parameter = nn.Parameter(value.to(dtype))
            optimizer = make([parameter], lr=0.01, **options)
            for _ in range(3):
                parameter.grad = (scale * torch.randn(value.shape)).to(dtype)
                optimizer.step()
            assert parameter.isfinite().all(), (name, scale)


@every_path
@every_class
@pytest.mark.parametrize("bad", [math.inf, math.nan, 1e30])
def test_a_non_finite_gradient_is_forgotten(
    make: Any, options: dict[str, Any], path: str, bad: float
) -> None:
    """It moves nothing by itself, and afterwards the parameter trains on as before."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(3, 40))
    optimizer = make([parameter], lr=0.01, **options)
    for _ in range(2):
        parameter.grad = torch.randn(3, 40)
        optimizer.step()
    before = parameter.detach().clone()
    state = {
        name: value.clone() for name, value in optimizer.state[parameter].items() if name != "step"
    }
    parameter.grad = torch.randn(3, 40)
    parameter.grad[1, 2] = bad
    optimizer.step()
    assert parameter.isfinite().all()
    projected = make in (Madam, LAMB) and options.get("center")  # moves its neighbours' row
    if not projected:
        torch.testing.assert_close(parameter[1, 2], before[1, 2], rtol=1e-6, atol=0)
    for name, value in optimizer.state[parameter].items():
        assert value.isfinite().all(), name
        if name != "step" and value.dim() == 2:
            assert value[1, 2] == state[name][1, 2]
    moved = parameter.detach().clone()
    for _ in range(3):
        parameter.grad = torch.randn(3, 40)
        optimizer.step()
    assert (parameter != moved).all(1).all()


@every_path
@pytest.mark.parametrize(
    ("make", "options"), [(Nero, {}), (RVAdamW, DECAYED), (RVSGD, DECAYED), (RVLion, DECAYED)]
)
def test_a_neuron_with_a_non_finite_gradient_stays(
    make: Any, options: dict[str, Any], path: str
) -> None:
    parameter = nn.Parameter(torch.randn(3, 40))
    optimizer = make([parameter], lr=0.01, **options)
    before = parameter.detach().clone()
    parameter.grad = torch.randn(3, 40)
    parameter.grad[1, 2] = math.nan
    optimizer.step()
    assert torch.equal(parameter[1], before[1])
    assert not torch.allclose(parameter[0], before[0])


@every_path
def test_unseen_words_of_an_embedding_stay(path: str) -> None:
    for make, options in OURS:
        embedding = nn.Embedding(6, 4)
        optimizer = make(embedding.parameters(), lr=0.01, **options)
        before = embedding.weight.detach().clone()
        torch.autograd.backward((embedding(torch.tensor([1, 4])) * torch.arange(4.0)).sum())
        optimizer.step()
        assert embedding.weight.isfinite().all()
        assert not torch.equal(embedding.weight[1], before[1])
        if make is Nero or (make is RVSGD and options):
            torch.testing.assert_close(embedding.weight[0], before[0])


@every_class
def test_sparse_gradients_and_complex_parameters_are_refused(
    make: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"one of shape \(2, 3\) is torch.complex64"):
        make([nn.Parameter(torch.zeros(2, 3, dtype=torch.complex64))], **options)
    embedding = nn.Embedding(6, 4, sparse=True)
    optimizer = make(embedding.parameters(), **options)
    before = embedding.weight.detach().clone()
    torch.autograd.backward(embedding(torch.tensor([1])).sum())
    with pytest.raises(RuntimeError, match=r"shape \(6, 4\) has a sparse one"):
        optimizer.step()
    assert torch.equal(embedding.weight, before)


@every_class
def test_a_grad_scaler_skips_overflown_steps_and_takes_the_others(
    make: Any, options: dict[str, Any]
) -> None:
    parameter = nn.Parameter(torch.randn(4, 3))
    optimizer = make([parameter], lr=0.01, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    moved = []
    for factor in (1.0, math.inf, 1.0):
        before = parameter.detach().clone()
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale((factor * parameter * torch.arange(3.0)).sum()))
        scaler.step(optimizer)
        scaler.update()
        moved.append(not torch.equal(parameter, before))
    assert moved == [True, False, True]
    assert scaler.get_scale() == 4.0


def _compare_compiled(make: Any, options: dict[str, Any], backend: str) -> None:
    """Hold steps compiled as one graph, without a break, against steps that are not compiled."""
    models = [nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(8, 5)
    for model, compiled in zip(models, (False, True), strict=True):
        optimizer = make(model.parameters(), lr=torch.tensor(0.01), **options)
        step: Any = optimizer.step
        if compiled:
            torch._dynamo.reset()
            step = torch.compile(optimizer.step, backend=backend, fullgraph=True)
        for _ in range(4):
            optimizer.zero_grad()
            torch.autograd.backward(model(x).square().mean())
            step()
    _same([*models[0].parameters()], [*models[1].parameters()], rtol=1e-4, atol=1e-6)


@every_class
def test_compiled_steps_are_one_graph_and_the_same(make: Any, options: dict[str, Any]) -> None:
    """All but the code generation, which takes about ten seconds a class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its profiler
        _compare_compiled(make, options, "aot_eager")


@pytest.mark.parametrize(("make", "options"), [*{make: (make, o) for make, o in OURS}.values()])
def test_a_whole_compiled_training_step_with_code_generation(
    make: Any, options: dict[str, Any]
) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    other = copy.deepcopy(model)
    x = torch.randn(8, 5)

    def trainer(model: nn.Module) -> Any:
        optimizer = make(model.parameters(), lr=torch.tensor(0.01), **options)

        def step() -> None:
            optimizer.zero_grad()
            torch.autograd.backward(model(x).square().mean())
            optimizer.step()

        return step

    plain = trainer(model)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled: Any = torch.compile(trainer(other))
        for _ in range(4):
            plain()
            compiled()
    _same([*model.parameters()], [*other.parameters()], rtol=1e-4, atol=1e-6)


@every_class
def test_lr_can_be_a_tensor(make: Any, options: dict[str, Any]) -> None:
    parameters, others = _parameters(), _parameters()
    _steps(parameters, make(parameters, lr=0.01, **options), 3)
    _steps(others, make(others, lr=torch.tensor(0.01), **options), 3)
    _same(parameters, others, rtol=1e-6, atol=1e-7)
    again = _parameters()
    _steps(again, make(again, lr=torch.tensor([0.01]), **options), 3)
    _same(again, others)


def test_groups_may_freeze_vectors_and_choose_what_rotates() -> None:
    weight, bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.ones(4))
    optimizer = RVAdamW([weight, bias], lr=0.1, frozen_vectors=True)
    weight.grad, bias.grad = torch.randn(4, 3), torch.randn(4)
    optimizer.step()
    assert torch.equal(bias, torch.ones(4))
    assert not optimizer.state[bias]
    assert "norm" in optimizer.state[weight]
    plain = RVAdamW([{"params": [nn.Parameter(torch.randn(4, 3))], "rotational": False}])
    assert not plain.is_rotational(plain.param_groups[0]["params"][0], plain.param_groups[0])


@every_path
@pytest.mark.parametrize("groups", [1, 2])
def test_the_neurons_of_transposed_convolutions_lie_along_axis_1(path: str, groups: int) -> None:
    """The same neurons, laid out as a convolution's, take the same steps."""
    layer = nn.ConvTranspose2d(6, 8, 2, groups=groups, bias=False)
    outputs, inputs = 8, 6 // groups
    shape = (groups, inputs, 8 // groups, 4)
    for make, options in OURS:
        weight = layer.weight.detach().clone().reshape(shape).transpose(1, 2).contiguous()
        rows = nn.Parameter(weight.reshape(outputs, inputs, 2, 2))
        copied = copy.deepcopy(layer)
        optimizers = [
            make(parameter_groups(copied), lr=0.01, **options),
            make([rows], lr=0.01, **options),
        ]
        for _ in range(3):
            gradient = torch.randn(8, inputs, 2, 2)
            rows.grad = gradient
            swapped = gradient.reshape(groups, 8 // groups, inputs, 4).transpose(1, 2)
            copied.weight.grad = swapped.reshape(6, 8 // groups, 2, 2).contiguous()
            for optimizer in optimizers:
                optimizer.step()
        got = copied.weight.detach().reshape(shape).transpose(1, 2).reshape(rows.shape)
        torch.testing.assert_close(got, rows.detach(), rtol=1e-4, atol=1e-6)


def test_frozen_parameters_are_left_alone() -> None:
    for name in optimizers():
        model = _model()
        frozen = next(model.parameters()).requires_grad_(False)
        before = frozen.detach().clone()
        load_optimizer(name).build(model, {})
        assert torch.equal(frozen, before), name


def test_completion_knows_the_classes() -> None:
    import robustlr.optim

    assert {make.__name__ for make, _ in OURS} == set(dir(robustlr.optim))


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (Nero, {"beta": 1.0}, "beta must be at least 0 and below 1, not 1.0"),
    (Nero, {"bias_scale": -1}, "bias_scale must be at least 0, not -1"),
    (Nero, {"center": "no"}, "center must be True or False, not 'no'"),
    (LAMB, {"maximize": None}, "maximize must be True or False, not None"),
    (Fromage, {"p_bound": -1.0}, "p_bound must be at least 0, not -1.0"),
    (Madam, {"g_bound": -1.0}, "g_bound must be at least 0, not -1.0"),
    (Madam, {"p_scale": "3"}, "p_scale must be a number, not '3'"),
    (LAMB, {"clamp": math.nan}, "clamp must be at least 0, not nan"),
    (LAMB, {"betas": 0.9}, "betas must be two numbers, not 0.9"),
    (LARS, {"momentum": 1.0}, "momentum must be at least 0 and below 1, not 1.0"),
    (LARS, {"trust_coefficient": -1.0}, "trust_coefficient must be at least 0, not -1.0"),
    (Lion, {"betas": (0.9, 1.5)}, r"betas\[1\] must be at least 0 and below 1, not 1.5"),
    (RVAdamW, {"weight_decay": -0.1}, "weight_decay must be at least 0, not -0.1"),
    (RVAdamW, {"rotation_beta": 1.0}, "rotation_beta must be at least 0 and below 1, not 1.0"),
    (RVAdamW, {"slow_portion": 1.5}, "slow_portion must be at least 0 and at most 1, not 1.5"),
    (RVAdamW, {"slow_portion": 0.6, "fast_portion": 0.6}, "at most 1 together, not 1.2"),
    (RVAdamW, {"speed_factor": 0.5}, "speed_factor must be at least 1, not 0.5"),
    (RVAdamW, {"rotational": True, "weight_decay": 0.0}, "rotational=True needs weight_decay"),
    (RVSGD, {"nesterov": True}, "nesterov=True needs momentum above 0 and dampening 0"),
    (RVSGD, {"dampening": 2.0}, "dampening must be at least 0 and at most 1, not 2.0"),
    (LAMB, {"clamp": -1.0}, "clamp must be at least 0, not -1.0"),
    (RVAdamL2, {"rotation": 0.1}, "rotation must be a function of the group, not 0.1"),
]


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (make, {"lr": lr}, f"lr must be .* not {lr}")
        for make, _ in OURS
        for lr in (-1.0, math.nan, math.inf)
    ]
    + BAD,
)
def test_wrong_arguments_are_named(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.zeros(2))], **arguments)
    optimizer = make([nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], **arguments})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("task", ["digits-mlp", "digits-cnn"])
@pytest.mark.parametrize("name", optimizers())
def test_every_optimizer_trains_at_its_default_setting(name: str, task: str) -> None:
    """Guessing is wrong in 90 of 100 cases; the slowest, plain SGD at 1e-3, is seen to learn."""
    entry = load_optimizer(name)
    config = Config(
        task=task, optimizer=name, hyperparameters=dict(entry.default), seed=0, scale="small"
    )
    outcome = load_task(task).run(config, lambda step, value: None)
    assert not outcome.diverged
    assert outcome.value < 0.8


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
    for split in (neurons(parameter), elements(parameter), whole(parameter)):
        assert torch.equal(split.from_rows(split.to_rows(parameter), like=parameter), parameter)
    assert neurons(parameter).to_rows(parameter).shape == rows


def test_the_rows_of_transposed_convolutions() -> None:
    weight = torch.arange(6 * 4 * 3).reshape(6, 4, 3)  # 2 groups of 3 inputs and 4 outputs
    split = neurons(weight, axis=1, conv_groups=2)
    rows = split.to_rows(weight)
    assert rows.shape == (1, 8, 9)
    assert torch.equal(rows[0, 1], weight[:3, 1].flatten())
    assert torch.equal(rows[0, 5], weight[3:, 1].flatten())
    assert torch.equal(split.from_rows(rows, like=weight), weight)


def test_describe_says_what_is_neuronal_and_what_state_costs() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2), nn.Linear(100, 10)
    )
    floats = {}
    for name in optimizers():
        optimizer = load_optimizer(name).build(model, {})
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        facts = {f.name: f for f in describe(model, optimizer)}
        floats[name] = facts["3.weight"].state_per_parameter
    assert {n: f.neuronal for n, f in facts.items()} == {
        "0.weight": True,
        "0.bias": False,
        "1.weight": False,
        "1.bias": False,
        "2.weight": True,
        "2.bias": False,
        "3.weight": True,
        "3.bias": False,
    }
    assert (facts["2.weight"].neurons, facts["2.weight"].fan_in) == (4, 32)
    assert floats["nero"] == 0.011  # one for each of 10 neurons and one in all, of 1000
    assert floats["fromage"] == 0.0
    assert floats["madam"] == 1.001
    assert floats["adamw"] == floats["lamb"] == 2.0
    assert floats["rv-adamw"] == 2.02
    assert floats["rv-sgd"] == floats["rv-lion"] == 1.02
    assert describe(model)[0].state_per_parameter is None


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


@pytest.mark.parametrize("name", sorted(optimizers()))
def test_gradients_are_clipped_together_to_the_given_norm(name: str) -> None:
    norms = []
    for clip in (0.0, 0.25, 1e9):
        model = _model()
        optimizer = load_optimizer(name).build(model, {"gradient_clip": clip})
        torch.manual_seed(0)
        model(torch.rand(4, 1, 4, 4)).square().sum().mul(100).backward()
        optimizer.step()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
    assert norms[1] == pytest.approx(0.25, rel=1e-4)
    assert norms[0] == pytest.approx(norms[2])
    assert norms[0] > 1


def test_the_protocol_clips_unless_the_setting_says_another_norm() -> None:
    def norm(protocol: float, **hyperparameters: Value) -> float:
        model = _model()
        config = Config(task="t", optimizer="sgd", hyperparameters=hyperparameters, seed=0)
        optimizer = config.build_optimizer(model, protocol)
        model(torch.rand(4, 1, 4, 4)).square().sum().mul(100).backward()
        optimizer.step()
        return float(
            nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        )

    assert norm(0.5) == pytest.approx(0.5, rel=1e-4)
    assert norm(0.5, gradient_clip=0.25) == pytest.approx(0.25, rel=1e-4)
    assert norm(0.5, gradient_clip=0.0) > 1


def test_a_negative_norm_to_clip_to_is_refused() -> None:
    assert "gradient_clip must be at least 0, not -1" in str(
        load_optimizer("sgd").refuses({"gradient_clip": -1.0})
    )


def test_weight_decay_can_be_given_by_its_product_with_the_learning_rate() -> None:
    entry = load_optimizer("adamw")
    for lr in (0.001, 0.1):
        optimizer = entry.build(_model(), {"lr": lr, "lr_times_weight_decay": 0.0025})
        assert optimizer.param_groups[0]["weight_decay"] * lr == pytest.approx(0.0025)
    both = {"weight_decay": 0.1, "lr_times_weight_decay": 0.1}
    assert "not both" in str(entry.refuses(both))
    assert "lr_times_weight_decay" not in load_optimizer("nero").arguments
