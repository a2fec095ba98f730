"""Independent references of the update rules: NumPy, float64, one parameter, loops over rows.

Written from the papers' formulas alone; they share no code with ``robustlr.optim``.
"""

from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray


def _unit_rows(p: Array, center: bool, normalize: bool) -> Array:
    p = p.copy()
    for row in p.reshape(p.shape[0], -1):
        if center:
            row -= row.mean()
        if normalize and np.linalg.norm(row) > 0:
            row /= np.linalg.norm(row)
    return p


def _row_norms(p: Array) -> Array:
    return np.array([np.linalg.norm(row) for row in p.reshape(p.shape[0], -1)])


@dataclass
class NeroReference:
    """Learning by Turning, Algorithm 1, with bias correction and the scale fixed at the start."""

    p: Array
    beta: float = 0.999
    center: bool = True
    normalize: bool = True
    bias_scale: float = 0.01
    t: int = 0

    def __post_init__(self) -> None:
        self.matrix = self.p.ndim > 1
        if self.matrix:
            self.p = _unit_rows(self.p, self.center, self.normalize)
            self.v = np.zeros(self.p.shape[0])
            self.scale = _row_norms(self.p).mean()
        else:
            self.v = np.zeros_like(self.p)
            self.scale = np.abs(self.p).mean()
        if self.scale == 0:
            self.scale = self.bias_scale

    def step(self, g: Array, lr: float) -> None:
        self.t += 1
        squared = _row_norms(g) ** 2 if self.matrix else g**2
        self.v = self.beta * self.v + (1 - self.beta) * squared
        root = np.sqrt(self.v / (1 - self.beta**self.t))
        if self.matrix:
            root = root.reshape(-1, *[1] * (self.p.ndim - 1))
        direction = np.divide(g, root, out=np.zeros_like(g), where=root > 0)
        self.p = self.p - lr * self.scale * direction
        if self.matrix:
            self.p = _unit_rows(self.p, self.center, self.normalize)


@dataclass
class RVAdamWReference:
    """Rotational Equilibrium, Algorithm 1 with AdamW's direction and Table 1's rotation."""

    p: Array
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    rotation_beta: float = 0.9
    center: bool = True
    per_neuron: bool = True
    rotation_eps: float = 1e-8
    t: int = 0
    n: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rotational = self.p.ndim > 1 and self.weight_decay != 0
        self.m, self.v = np.zeros_like(self.p), np.zeros_like(self.p)
        if self.rotational and self.center:
            for row in self._rows(self.p):
                norm = np.linalg.norm(row)
                row -= row.mean()
                row *= norm / np.linalg.norm(row)
        self.nu = [0.0] * len(self._rows(self.p))

    def _rows(self, p: Array) -> Array:
        return p.reshape(p.shape[0], -1) if self.per_neuron and p.ndim > 1 else p.reshape(1, -1)

    def step(self, g: Array, lr: float) -> None:
        self.t += 1
        b1, b2 = self.betas
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        d = self.m / (1 - b1**self.t) / (np.sqrt(self.v / (1 - b2**self.t)) + self.eps)
        if not self.rotational:
            self.p = self.p - lr * self.weight_decay * self.p - lr * d
            return
        angle = np.sqrt(2 * lr * self.weight_decay * (1 - b1) / (1 + b1))
        self.n = self.n or [float(np.linalg.norm(row)) for row in self._rows(self.p)]
        for i, (w, u) in enumerate(zip(self._rows(self.p), self._rows(d), strict=True)):
            if self.center:
                u = u - u.mean()
            u = u - w * (u @ w) / self.n[i] ** 2
            self.nu[i] = self.rotation_beta * self.nu[i] + (1 - self.rotation_beta) * (u @ u)
            size = np.sqrt(self.nu[i] / (1 - self.rotation_beta**self.t)) + self.rotation_eps
            w -= angle * self.n[i] * u / size
            w *= self.n[i] / np.linalg.norm(w)
