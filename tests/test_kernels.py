"""The kernels against the rules, on the CPU, and as CUDA on threads where there is no GPU."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustlr.optim import kernels
from tests.test_optim import NAMES, OURS, _parameters, _same, _steps

HERE = Path(__file__).parent

every_class = pytest.mark.parametrize(("make", "options"), OURS, ids=NAMES)
needs_compiler = pytest.mark.skipif(kernels.compiled() is None, reason="there is no C compiler")


@pytest.fixture(autouse=True)
def _apart() -> Iterator[None]:
    """Forget which launcher was chosen, before and after each test."""
    kernels._launcher.cache_clear()
    yield
    kernels._launcher.cache_clear()


def _shapes(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _with_rules(make: Any, options: dict[str, Any], parameters: list[nn.Parameter]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLR_KERNELS", "0")
        _steps(parameters, make(parameters, lr=0.01, **options), 6)


def _taken(optimizer: Any) -> int:
    return sum(len(plan.taken) for plan in kernels._plans[optimizer].values())


@needs_compiler
@every_class
@settings(max_examples=10, deadline=None)
@given(
    shapes=st.lists(
        st.one_of(
            st.tuples(st.integers(1, 9), st.integers(2, 700)),
            st.tuples(st.integers(1, 5), st.integers(1, 4), st.just(3), st.just(3)),
            st.tuples(st.integers(1, 40)),
            st.just(()),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_kernels_take_the_steps_of_the_rules(
    make: Any, options: dict[str, Any], shapes: list[tuple[int, ...]]
) -> None:
    fast, plain = _shapes(shapes), _shapes(shapes)
    optimizer = make(fast, lr=0.01, **options)
    _steps(fast, optimizer, 6)
    _with_rules(make, options, plain)
    assert _taken(optimizer) == len(shapes)
    _same(fast, plain, rtol=1e-4, atol=3e-6)


@needs_compiler
@every_class
def test_large_parameters_of_many_units(make: Any, options: dict[str, Any]) -> None:
    shapes: list[tuple[int, ...]] = [(300, 200), (40000,), (7, 20000), (3, 4), (1100, 1000)]
    fast, plain = _shapes(shapes), _shapes(shapes)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        _steps(fast, make(fast, lr=0.01, **options), 6)
    finally:
        torch.set_num_threads(threads)
    _with_rules(make, options, plain)
    _same(fast, plain, rtol=1e-3, atol=1e-5)


@needs_compiler
@every_class
def test_the_number_of_threads_makes_no_difference(make: Any, options: dict[str, Any]) -> None:
    """Several units each, and few enough elements for torch's own sums to take one thread."""
    shapes: list[tuple[int, ...]] = [(150, 200), (30000,), (3, 4), (9, 3000)]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            parameters = _shapes(shapes)
            _steps(parameters, make(parameters, lr=0.01, **options), 3)
            results.append(parameters)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        _same(results[0], other)


@needs_compiler
@every_class
def test_moved_and_replaced_tensors_are_followed(make: Any, options: dict[str, Any]) -> None:
    """Fresh gradients, weights at a new address and a cleared state; nothing stale is written."""
    fast, plain = _parameters(), _parameters()
    with pytest.MonkeyPatch.context() as patch:
        for parameters, switch in ((fast, "1"), (plain, "0")):
            patch.setenv("ROBUSTLR_KERNELS", switch)
            optimizer = make(parameters, lr=0.01, **options)
            _steps(parameters, optimizer, 2)
            for state in optimizer.state.values():
                for value in state.values():
                    value.data = value.data.clone(memory_format=torch.preserve_format)
            for parameter in parameters:
                parameter.data = parameter.data.clone(memory_format=torch.preserve_format)
            _steps(parameters, optimizer, 2, seed=1)
            optimizer.load_state_dict(optimizer.state_dict())
            _steps(parameters, optimizer, 2, seed=2)
            for state in optimizer.state.values():
                for name, value in state.items():
                    state[name] = value.clone(memory_format=torch.preserve_format)
            _steps(parameters, optimizer, 2, seed=3)
            optimizer.state.clear()
            _steps(parameters, optimizer, 2, seed=4)
    _same(fast, plain, rtol=1e-3, atol=1e-5)


@needs_compiler
def test_what_the_kernels_cannot_take_is_left_to_the_rules() -> None:
    make, options = OURS[0]
    weights = [
        nn.Parameter(torch.randn(4, 3)),
        nn.Parameter(torch.randn(4, 3, dtype=torch.float64)),
        nn.Parameter(torch.randn(3, 4).t()),
        nn.Parameter(torch.randn(4, 3).bfloat16()),
    ]
    optimizer = make(weights, **options)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    before = [weight.detach().clone() for weight in weights]
    optimizer.step()
    assert _taken(optimizer) == 1
    for weight, old in zip(weights, before, strict=True):
        assert not torch.equal(weight, old)


def test_without_a_compiler_the_rules_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert kernels.compiled() is None
    parameters = _parameters()
    make, options = OURS[0]
    optimizer = make(parameters, lr=0.01, **options)
    _steps(parameters, optimizer, 2)
    assert optimizer not in kernels._plans


@needs_compiler
def test_a_home_that_cannot_be_written_and_a_compiler_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    found = kernels.compiled()
    assert found is not None
    assert found.is_relative_to(tmp_path)
    assert kernels.compiled() == found
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert kernels.compiled() is None
    assert not [*(tmp_path / "other").rglob("*.so")]


@needs_compiler
def test_kernels_that_cannot_be_loaded_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_text("not a library")
    monkeypatch.setattr(kernels, "compiled", lambda: broken)
    parameters = _parameters()
    make, options = OURS[0]
    optimizer = make(parameters, lr=0.01, **options)
    _steps(parameters, optimizer, 2)
    assert optimizer not in kernels._plans


class _Subclass(torch.Tensor):
    pass


def test_tensors_with_their_own_memory_are_left_to_the_rules() -> None:
    parameter = nn.Parameter(torch.randn(4, 3).as_subclass(_Subclass))
    make, options = OURS[0]
    optimizer = make([parameter], lr=0.01, **options)
    _steps([parameter], optimizer, 2)
    assert _taken(optimizer) == 0


# CUDA


@pytest.fixture(scope="module")
def on_threads(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Compile the CUDA form of the kernels against an emulation of a block by threads."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    out = tmp_path_factory.mktemp("cuda") / "kernels.so"
    command = [compiler, "-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-x", "c++"]
    command += ["-include", str(HERE / "cuda_on_threads.h"), str(kernels._SOURCE), "-o", str(out)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(out))


@every_class
def test_cuda_kernels_on_threads_take_the_steps_of_the_rules(
    make: Any,
    options: dict[str, Any],
    on_threads: ctypes.CDLL,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The blocks' reductions, barriers and passes, without a GPU; addresses and launches too."""

    def kernel(name: str, device: torch.device) -> Any:
        def launch(grid: Any, block: Any, args: list[Any], shared_mem: int) -> None:
            table, units, count, numbers, direction, *sums, longest, _ = args
            assert shared_mem >= 4 * max(1024, longest)
            pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (table, units)]
            on_threads.on_threads(
                getattr(on_threads, name),
                grid[0],
                block[0],
                *pointers,
                count,
                ctypes.c_void_p(numbers.data_ptr()),
                ctypes.c_double(direction),
                *(ctypes.c_void_p(tensor.data_ptr()) for tensor in sums),
                longest,
            )

        return launch

    monkeypatch.setattr(kernels, "_cuda_kernel", kernel)
    monkeypatch.setattr(kernels, "_launcher", _OnCuda())
    monkeypatch.setattr(kernels, "_THREADS", 64)
    monkeypatch.setitem(kernels._UNIT, "cpu", 128)
    monkeypatch.setitem(kernels._BATCH, "cpu", kernels._BATCH["cuda"])
    monkeypatch.setitem(kernels._WORK, "cpu", kernels._WORK["cuda"])
    shapes: list[tuple[int, ...]] = [(3, 70), (2, 150), (90,), (4, 2)]
    fast, plain = _shapes(shapes), _shapes(shapes)
    optimizer = make(fast, lr=0.01, **options)
    _steps(fast, optimizer, 3)
    assert _taken(optimizer) == len(shapes)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_launcher", lambda device, switch: None)
        _steps(plain, make(plain, lr=0.01, **options), 3)
    _same(fast, plain, rtol=1e-4, atol=3e-6)


class _OnCuda:
    def __call__(self, device: str, switch: str) -> kernels.Launch:
        return kernels._launch_on_cuda

    def cache_clear(self) -> None:
        pass


def test_nvrtc_compiles_every_kernel() -> None:
    utils = pytest.importorskip("torch.cuda._utils")
    try:
        utils._get_gpu_rtc_library()
    except (AttributeError, OSError, AssertionError):
        pytest.skip("this torch has no NVRTC")
    names = {make.kernel for make, _ in OURS} | {"totals_of_parameters"}
    names |= {f"{name}_sums" for name in kernels._RELATIVE}
    source = kernels._SOURCE.read_text()
    for name in sorted(names):
        binary, _ = utils._nvrtc_compile(source, name, "80", [str(kernels._SOURCE.parent)])
        assert binary


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@every_class
def test_cuda_takes_the_steps_of_the_cpu(make: Any, options: dict[str, Any]) -> None:
    shapes: list[tuple[int, ...]] = [(300, 200), (40000,), (16, 3, 3, 3), (3, 4), (90, 900)]
    host = _shapes(shapes)
    device = [nn.Parameter(p.detach().cuda()) for p in host]
    optimizer = make(device, lr=0.01, **options)
    other = make(host, lr=0.01, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        for one, two in zip(host, device, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            two.grad = one.grad.cuda()
        other.step()
        optimizer.step()
    assert _taken(optimizer) == len(shapes)
    _same(host, [nn.Parameter(p.detach().cpu()) for p in device], rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@every_class
def test_steps_can_be_captured_in_a_cuda_graph(make: Any, options: dict[str, Any]) -> None:
    parameters, plain = (
        [nn.Parameter(p.detach().cuda()) for p in _shapes([(30, 20), (7,)])] for _ in range(2)
    )
    lr = torch.tensor(0.01, device="cuda")
    for each in (*parameters, *plain):
        each.grad = torch.ones_like(each).cumsum(0)
    captured, direct = make(parameters, lr=lr, **options), make(plain, lr=lr, **options)
    for _ in range(3):
        captured.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for _ in range(3):
        graph.replay()
    for _ in range(6):
        direct.step()
    _same(parameters, plain, rtol=1e-5, atol=1e-6)
