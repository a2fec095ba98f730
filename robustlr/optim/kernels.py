"""The fast path: compiles ``kernels.c`` at its first use, and runs it over whole groups at once.

The kernels take dense float32 parameters on the CPU (where a C compiler is found) and on CUDA
(through NVRTC, which comes with torch). Everything else is left to the rules in ``rules.py``:
other types and memory layouts, ``torch.compile`` (which fuses the rules itself), and everything if
the environment sets ``ROBUSTLR_KERNELS=0``.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robustlr.optim.neurons import Split

if TYPE_CHECKING:
    from robustlr.optim.base import RuleOptimizer

_SOURCE = Path(__file__).with_name("kernels.c")
_HEADER = _SOURCE.with_suffix(".h")
_FLAGS = ["-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math"]
_FLAGS += ["-fno-signed-zeros", "-fassociative-math"]  # sums in SIMD lanes; NaN stays NaN
_TUNING: tuple[list[str], ...] = (  # what the compiler knows decides; the first that works
    ["-march=native", "-mprefer-vector-width=512", "-fopenmp"],
    ["-mcpu=native", "-fopenmp"],
    ["-march=native"],
    [],
)
_UNIT = {"cpu": 16384, "cuda": 4096}  # elements a unit of work: enough for a core, few for a GPU
_BATCH = {"cpu": 65536, "cuda": 1 << 62}  # elements of parameters that are taken together
_THREADS = 256  # of a CUDA block, which takes a unit
_TURNING = ("sgd", "adamw", "adam_l2", "lion")  # kernels that need scratch for a whole row
# A CUDA block gets 48 KiB unasked on every GPU; on the CPU, float32 sums are less exact beyond
_LONGEST_TURNED = {"cpu": 65536, "cuda": 12000}
_SMALLEST_SCRATCH = 1024  # CUDA's BLOCK in kernels.h
_WITH_WORK = ("lamb",)  # kernels that keep updates between their passes,
_WORK = {"cpu": 1 << 22, "cuda": 0}  # of parameters no larger than this: others are computed twice
_RELATIVE = ("fromage", "lars", "lamb")  # kernels that take several passes on CUDA

Launch = Callable[[str, "Plan", Tensor, float], None]


class Member(NamedTuple):
    """A parameter to step, its rows, its state in the kernel's order, and what counts its steps.

    ``gradient`` lies in memory as all its gradients will; its hyperparameters begin at ``numbers``
    among those of the launch.
    """

    parameter: Tensor
    gradient: Tensor
    split: Split
    state: list[Tensor]
    step: Tensor
    numbers: int = 0


@dataclass
class Plan:
    """What a step over some parameters needs to know, kept while they stay where they are."""

    taken: list[Tensor]
    rest: list[Tensor]
    host: Tensor  # [taken, 12], as struct Parameter in kernels.h, without the gradients
    pinned: Tensor | None  # for a table that a CUDA graph captures
    table: Tensor  # on the device, with the gradients
    units: Tensor  # [units, 5], as struct Unit
    sums: Tensor
    totals: Tensor
    work: Tensor
    longest: int
    kept: list[Tensor]  # what the table points to
    layout: list[Any] = field(default_factory=list)
    gradients: list[int] = field(default_factory=list)
    numbers: tuple[list[float | None], Tensor] | None = None


_plans: WeakKeyDictionary[Any, dict[int, Plan]] = WeakKeyDictionary()


def forget(optimizer: "RuleOptimizer") -> None:
    """Drop what is known of the optimizer's parameters and state; the next step looks again."""
    _plans.pop(optimizer, None)


def step(
    optimizer: "RuleOptimizer", group: dict[str, Any], parameters: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Take the group's step for the parameters that a kernel can take; return the others.

    Every parameter has a gradient, and state whose step already counts this one.
    """
    if not parameters or torch.compiler.is_compiling():
        return parameters
    launch = launcher(parameters[0].device.type)
    if launch is None:
        return parameters
    plans = _plans.setdefault(optimizer, {})
    found = plans.get(id(group))
    names = ("step", *optimizer.kept)
    # The plan depends on where things are; it keeps what it points to alive
    layout = [
        (p.data_ptr(), _gradient(p).stride(), *[s[n].data_ptr() for n in names if n in s])
        for p, s in ((p, optimizer.state[p]) for p in parameters)
    ]
    if found is None or found.layout != layout:
        found = plans[id(group)] = plan(optimizer.kernel, _members(optimizer, group, parameters))
        found.layout = layout
    if found.taken:
        aim(found, [_gradient(p).data_ptr() for p in found.taken])
        numbers = _on_device(found, optimizer._numbers(group))
        launch(optimizer.kernel, found, numbers, -1.0 if group["maximize"] else 1.0)
        torch.autograd.graph.increment_version(found.taken)  # autograd must see the change
    return found.rest


def _members(
    optimizer: "RuleOptimizer", group: dict[str, Any], parameters: Sequence[Tensor]
) -> Iterator[Member]:
    for parameter in parameters:
        state = optimizer.state[parameter]
        kept = [state[name] for name in optimizer.kept if name in state]
        split = optimizer._split(parameter, group)
        yield Member(parameter, _gradient(parameter), split, kept, state["step"])


def plan(kernel: str, members: Iterable[Member]) -> Plan:
    """Return what a step over ``members`` needs; those that the kernel cannot take are its rest."""
    taken: list[Tensor] = []
    rest: list[Tensor] = []
    rows: list[list[int]] = []
    units: list[list[int]] = []
    kept: list[Tensor] = []
    device = torch.device("cpu")
    longest, batch, batched, largest = _SMALLEST_SCRATCH, 0, 0, 0
    turns = kernel in _TURNING
    for member in members:
        parameter, _, split, tensors, step, numbers = member
        length = parameter.numel() // max(1, split.rows)
        fits = split.axis == 0 and _fits(member, length, turns=turns)
        if not fits or (taken and parameter.device != device):
            rest.append(parameter)
            continue
        device = parameter.device
        each = max(1, _UNIT[device.type] // length)
        starts = range(0, split.rows, each)
        pointers = [value.data_ptr() for value in tensors] + [0] * (4 - len(tensors))
        row = [parameter.data_ptr(), 0, *pointers, step.data_ptr()]
        rows.append([*row, split.rows, length, len(units), len(starts), numbers])
        if batched and batched + parameter.numel() > _BATCH[device.type]:
            batch, batched = batch + 1, 0
        works = kernel in _WITH_WORK and parameter.numel() <= _WORK[device.type]
        units += [
            [
                len(taken),
                start,
                min(start + each, split.rows),
                batch,
                batched + start * length if works else -1,
            ]
            for start in starts
        ]
        batched += parameter.numel()
        largest = max(largest, batched) if works else largest
        taken.append(parameter)
        kept += [parameter, step, *tensors]
        longest = max(longest, length) if turns else longest
    host = torch.tensor(rows, dtype=torch.int64)
    return Plan(
        taken=taken,
        rest=rest,
        host=host,
        pinned=torch.empty_like(host).pin_memory() if device.type == "cuda" else None,
        table=host,
        units=torch.tensor(units, dtype=torch.int64).to(device),
        sums=torch.empty(len(units), 3, dtype=torch.float64, device=device),
        totals=torch.empty(len(taken), 3, dtype=torch.float64, device=device),
        work=torch.empty(largest, device=device),
        longest=longest,
        kept=kept,
    )


def _fits(member: Member, length: int, *, turns: bool) -> bool:
    """Return whether a kernel can take a parameter whose rows have ``length`` elements."""
    parameter, gradient, _, state, step, _ = member
    dense = parameter.is_contiguous() or (
        parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    )
    same = [gradient, *(value for value in state if value.shape == parameter.shape)]
    everything = (parameter, gradient, step, *state)
    return (
        dense
        and not (turns and length > _LONGEST_TURNED[parameter.device.type])
        and all(type(t) in (Tensor, nn.Parameter) for t in everything)  # no DTensor and the like
        and all(t.dtype == torch.float32 for t in everything)
        and all(t.device == parameter.device for t in everything)
        and all(_stride(t) == _stride(parameter) for t in same)
    )


def _gradient(parameter: Tensor) -> Tensor:
    return parameter.grad  # type: ignore[return-value]  # those without one never come here


def _stride(tensor: Tensor) -> list[int]:
    """Return the strides that matter: those of dimensions with more than one element."""
    return [by for by, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def aim(plan: Plan, gradients: list[int]) -> None:
    """Point the table at where the gradients are now."""
    if gradients == plan.gradients:
        return
    host = plan.host.clone()
    host[:, 1] = torch.tensor(gradients)
    plan.table, captured = _uploaded(host, plan.units.device, plan.pinned)
    plan.gradients = [] if captured else gradients


def _on_device(plan: Plan, numbers: Sequence[Any]) -> Tensor:
    """Return the hyperparameters as float64 on the device; tensors among them are not read here."""
    known = [None if isinstance(number, Tensor) else float(number) for number in numbers]
    if plan.numbers is None or plan.numbers[0] != known:
        host = torch.tensor([number or 0.0 for number in known], dtype=torch.float64)
        uploaded, captured = _uploaded(host, plan.units.device, None)
        plan.numbers = [] if captured else known, uploaded
    for index, number in enumerate(numbers):
        if isinstance(number, Tensor):
            plan.numbers[1][index].copy_(number.reshape(()))
    return plan.numbers[1]


_captured: list[tuple[Tensor, Tensor]] = []


def _uploaded(host: Tensor, device: torch.device, pinned: Tensor | None) -> tuple[Tensor, bool]:
    """Copy to the device without waiting; return the copy, and whether a graph captured the copying.

    A captured copy is made anew at each replay, and not before, so both sides of it are kept.
    ``pinned`` is memory for it, for none can be pinned while a graph is captured.
    """
    if device.type == "cpu":
        return host, False
    if not torch.cuda.is_current_stream_capturing():
        return host.pin_memory().to(device, non_blocking=True), False
    kept = host.pin_memory() if pinned is None else pinned.copy_(host)
    copy = kept.to(device, non_blocking=True)
    _captured.append((kept, copy))
    return copy, True


def launcher(device: str) -> Launch | None:
    """Return what runs a pass on this kind of device, or None where the rules must do."""
    return _launcher(device, os.environ.get("ROBUSTLR_KERNELS", "1"))


@functools.cache
def _launcher(device: str, switch: str) -> Launch | None:
    if switch == "0":
        return None
    if device == "cpu":
        return _cpu_launcher()
    if device != "cuda" or torch.version.cuda is None:
        return None
    try:
        _cuda_kernel("totals_of_parameters", torch.device("cuda", torch.cuda.current_device()))
    except (AttributeError, OSError, RuntimeError):  # a torch without NVRTC
        return None
    return _launch_on_cuda


# CPU


def _cpu_launcher() -> Launch | None:
    path = compiled()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # no OpenMP library, or a folder that nothing may be run from
        return None

    def launch(name: str, plan: Plan, numbers: Tensor, direction: float) -> None:
        pointers = (plan.table, plan.units, numbers, plan.sums, plan.totals)
        table, units, h, sums, totals = (ctypes.c_void_p(t.data_ptr()) for t in pointers)
        getattr(library, name)(
            table,
            units,
            len(plan.units),
            h,
            ctypes.c_double(direction),
            sums,
            totals,
            ctypes.c_void_p(plan.work.data_ptr()),
            plan.longest,
            torch.get_num_threads(),
        )

    return launch


def compiled() -> Path | None:
    """Return the compiled kernels for this CPU, made at the first call; None without a compiler.

    They are kept in the user's cache folder, by source, compiler and processor, so that machines
    that share a home share nothing else.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None or platform.system() == "Windows":
        return None
    key = [
        _SOURCE.read_text(),
        _HEADER.read_text(),
        compiler,
        *_FLAGS,
        str(_TUNING),
        platform.platform(),
        _processor(),
    ]
    name = "kernels-" + hashlib.sha256("\n".join(key).encode()).hexdigest()[:16] + ".so"
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():
                continue
            if (folder / name).exists():
                return folder / name
            handle, made = tempfile.mkstemp(dir=folder, suffix=".so")
        except OSError:  # a home that cannot be written, as on some clusters' nodes
            continue
        os.close(handle)
        if any(_compile(compiler, tuning, made) for tuning in _TUNING):
            Path(made).replace(folder / name)  # at once, for workers that start together
            return folder / name
        Path(made).unlink()
        return None
    return None


def _folders() -> Iterator[Path]:
    """Yield the folders that may hold the compiled kernels, none that another user could fill."""
    with contextlib.suppress(RuntimeError):  # a user without a home
        cache = os.environ.get("XDG_CACHE_HOME")
        yield (Path(cache) if cache else Path.home() / ".cache") / "robustlr"
    yield Path(tempfile.gettempdir()) / f"robustlr-{os.getuid()}"


def _compile(compiler: str, tuning: list[str], out: str) -> bool:
    command = [compiler, *_FLAGS, *tuning, "-o", out, str(_SOURCE), "-lm"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


# CUDA


@functools.cache
def _cuda_kernel(name: str, device: torch.device) -> Any:
    with torch.cuda.device(device):
        return torch.cuda._compile_kernel(
            _SOURCE.read_text(), name, cuda_include_dirs=[str(_SOURCE.parent)]
        )


def _launch_on_cuda(name: str, plan: Plan, numbers: Tensor, direction: float) -> None:
    passes = (f"{name}_sums", "totals_of_parameters", name) if name in _RELATIVE else (name,)
    pointers = (plan.sums, plan.totals, plan.work)
    args = [plan.table, plan.units, len(plan.units), numbers, direction, *pointers]
    with torch.cuda.device_of(plan.table):  # type: ignore[no-untyped-call]
        for each in passes:
            _cuda_kernel(each, plan.table.device)(
                grid=(len(plan.units), 1, 1),
                block=(_THREADS, 1, 1),
                args=[*args, plan.longest, 0],
                shared_mem=4 * plan.longest,
            )
