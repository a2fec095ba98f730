"""The places for workers on this machine: which devices, how many workers each, how many threads."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from robustlr.errors import UserError


@dataclass(frozen=True)
class Slot:
    """A place for one worker: its device and the environment that shows it nothing else."""

    device: str
    environment: Mapping[str, str]

    @property
    def name(self) -> str:
        """The device's name on this machine, which workers that share it have in common."""
        return self.environment["ROBUSTLR_SLOT"]


def slots(
    devices: str | None = None,
    per_device: int | None = None,
    memory_fraction: float | None = None,
    fuse: str | None = None,
) -> list[Slot]:
    """Return the slots for ``devices``: "all" GPUs, "cpu", or GPU numbers as in "0,2".

    Without it they are all GPUs, or the CPU where there is none. A GPU gets one worker and the CPU
    one a core, or each ``per_device``. ``memory_fraction`` is what each worker may take of a GPU's
    memory, and ``fuse`` how many trials it trains as one program: a number, or "auto".

    Raises:
        UserError: there is no such device, no such memory, or no such number.
    """
    gpus = [] if devices == "cpu" else _gpus(devices)
    if memory_fraction is not None and not 0 < memory_fraction <= 1:
        raise UserError(f"--memory-fraction {memory_fraction:g}: it is above 0 and at most 1")
    if memory_fraction is not None and not gpus:
        raise UserError("--memory-fraction is for GPUs, and these workers have none")
    if fuse is not None and fuse != "auto" and not (fuse.isdecimal() and int(fuse) > 1):
        raise UserError(f'--fuse {fuse}: write "auto", or how many trials train together, above 1')
    fused = {} if fuse is None else {"ROBUSTLR_FUSE": fuse}
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if not gpus:
        # One thread whatever the number of workers: a sum's bits depend on how many threads share it.
        environment = {"CUDA_VISIBLE_DEVICES": "", "ROBUSTLR_SLOT": "cpu", **_threads(1), **fused}
        return [Slot("cpu", environment)] * (per_device or cores)
    number = len(gpus) * (per_device or 1)
    shared = {**_threads(max(1, cores // number)), **fused}
    if memory_fraction is not None:
        shared["ROBUSTLR_MEMORY_FRACTION"] = str(memory_fraction)
    return [
        Slot("cuda", {"CUDA_VISIBLE_DEVICES": gpu, "ROBUSTLR_SLOT": f"gpu{gpu}", **shared})
        for _ in range(per_device or 1)
        for gpu in gpus
    ]


def _threads(number: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(number))}


def _gpus(devices: str | None) -> list[str]:
    import torch

    present = [str(index) for index in range(torch.cuda.device_count())]
    # What this process may see can be a part of the machine, as on a cluster; GPU 0 is its first.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else present
    if devices is None:
        return names[: len(present)]
    wanted = present if devices == "all" else devices.split(",")
    if not all(device.isdigit() for device in wanted):
        raise UserError(f'--devices "{devices}": write "all", "cpu", or GPU numbers as in "0,2"')
    missing = [device for device in wanted if device not in present]
    if not present:
        raise UserError(f"--devices {devices}: torch sees no GPU here; use --devices cpu")
    if missing:
        raise UserError(
            f'--devices {devices}: there is no GPU "{missing[0]}"; there are: {", ".join(present)}'
        )
    return [names[int(device)] for device in wanted]
