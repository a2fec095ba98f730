"""A training run that can be killed and taken up again, with the same end as without the kill.

The saved state is replaced as a whole or not at all, and is read back as tensors and plain values
only: reading it runs no code, whoever wrote it.
"""

import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_map_only

from robustlr.errors import say, seconds
from robustlr.scale import Scale
from robustlr.signals import StopRequested, stopping
from robustlr.task import CHECKPOINT, Config, Report

SECONDS = seconds("ROBUSTLR_SAVE_SECONDS", 60)
"""How often a run is saved: what a killed run loses at most."""


FORMAT = 2
"""Of what is saved: raised by a change of a run's parts."""


class Stateful(Protocol):
    """A model, optimizer or schedule: what has a state worth saving."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: Any) -> Any:
        """Go on from a state."""


class Run:
    """The state of one training run: its parts, the generators of chance, and what it reported.

    ``folder`` is where the checkpoint is kept; without it nothing is. It stays when the run ends:
    whoever has stored the result deletes it. A checkpoint is taken up by the same configuration
    and protocol (``scale``) on the same kind of device alone. Every value reported is
    saved too, and reported again when the run goes on, so that a trial's curve is whole wherever it
    is stored.
    """

    def __init__(
        self,
        config: Config,
        scale: Scale,
        report: Report,
        folder: Path | None,
        parts: Sequence[Stateful],
        noise: torch.Generator,
    ) -> None:
        self.config, self.folder = config, folder
        # Others may compute other bits.
        versions = [FORMAT, version("robustlr"), torch.__version__]
        identity = [asdict(config), asdict(scale), noise.device.type, versions]
        self._identity = json.dumps(identity, sort_keys=True)
        self._send = report
        self._parts = parts
        self._noise = noise
        self._reports: list[tuple[int, float]] = []
        self._saved = time.monotonic()

    @property
    def last(self) -> float:
        """The value reported last."""
        return self._reports[-1][1]

    @property
    def _path(self) -> Path | None:
        return None if self.folder is None else self.folder / CHECKPOINT

    def report(self, step: int, value: float) -> None:
        """Report the tuning metric at a step."""
        self._reports.append((step, value))
        self._send(step, value)

    def resume(self) -> int:
        """Take up the saved state, if there is one of this very configuration.

        Returns:
            The number of steps that are done: 0 for a new run.
        """
        state = self._read()
        if state is None:
            return 0
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self._set_chance(state["chance"])
        for step, value in state["reports"]:
            self.report(step, value)
        return int(state["step"])

    def save_if_due(self, step: int) -> None:
        """Save after ``step`` if the last save is ``SECONDS`` old, or the process shall stop.

        Raises:
            StopRequested: the process shall stop.
        """
        if stopping():
            self.save(step)
            raise StopRequested
        if time.monotonic() - self._saved >= SECONDS:
            self.save(step)

    def save(self, step: int) -> None:
        """Replace the saved state by that after ``step``."""
        if self._path is None:
            return
        state = {
            "identity": self._identity,
            "step": step,
            "parts": [part.state_dict() for part in self._parts],
            "chance": self._chance(),
            "reports": self._reports,
        }
        self.write(CHECKPOINT, partial(_save, state))
        self._saved = time.monotonic()

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Have ``write`` make the file ``name`` in the folder, whole or not at all.

        A full disk costs the file, not the run: the next call tries again.
        """
        if self.folder is None:
            return
        unfinished = self.folder / f".{os.getpid()}.{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(unfinished)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(self.folder / name)
        except OSError as error:
            say(f"{self.folder / name} cannot be written, and training goes on: {error}")
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        if self._path is None or not self._path.exists():
            return None
        for cut in self._path.parent.glob(f".*.{CHECKPOINT}"):  # by a kill as it was written
            cut.unlink(missing_ok=True)
        try:
            # On the CPU first: each part moves its state to where it lives.
            state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception as error:  # a file that is no checkpoint can raise anything
            say(f"{self._path} cannot be read, so the run starts anew: {error}")
            return None
        return state if state.get("identity") == self._identity else None

    def _chance(self) -> dict[str, torch.Tensor]:
        states = {"torch": torch.get_rng_state(), "noise": self._noise.get_state()}
        if self._noise.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._noise.device)
        return states

    def _set_chance(self, states: Mapping[str, torch.Tensor]) -> None:
        torch.set_rng_state(states["torch"])
        self._noise.set_state(states["noise"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self._noise.device)


def _save(state: Mapping[str, Any], path: Path) -> None:
    """Write a state by Python's own file: torch's writer hides why it failed."""
    buffer = io.BytesIO()
    # Of trials that train together each saves its own part of a tensor, and not the whole.
    torch.save(tree_map_only(torch.Tensor, torch.clone, state), buffer)
    path.write_bytes(buffer.getbuffer())
