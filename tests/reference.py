"""Independent references of the update rules: NumPy, float64, one parameter, loops over rows.

Written from the papers' formulas alone; they share no code with ``robustlr.optim``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray


def _rows(p: Array) -> Array:
    """Return a view of ``p`` with a row for each neuron, or for the elements of a vector."""
    return p.reshape(p.shape[0], -1) if p.ndim > 1 else p.reshape(-1, 1)


def _constrained(p: Array, center: bool, normalize: bool) -> Array:
    p = p.copy()
    if p.ndim > 1:
        for row in _rows(p):
            if center:
                row -= row.mean()
            if normalize and np.linalg.norm(row) > 0:
                row /= np.linalg.norm(row)
    return p


def _quotient(a: Array, b: Array) -> Array:
    return np.asarray(np.divide(a, b, out=np.zeros_like(a), where=b != 0))


class Reference:
    p: Array

    def step(self, g: Array, lr: float) -> None:
        raise NotImplementedError


@dataclass
class Nero(Reference):
    """Learning by Turning, Algorithm 1, with bias correction and the scale fixed at the start."""

    p: Array
    beta: float = 0.999
    center: bool = True
    normalize: bool = True
    bias_scale: float = 0.01
    t: int = 0

    def __post_init__(self) -> None:
        self.p = _constrained(self.p, self.center, self.normalize)
        self.v = np.zeros(len(_rows(self.p)))
        self.scale = np.mean([np.linalg.norm(row) for row in _rows(self.p)])
        if self.scale == 0:
            self.scale = self.bias_scale

    def step(self, g: Array, lr: float) -> None:
        self.t += 1
        moved = self.p.copy()
        for i, (row, gradient) in enumerate(zip(_rows(moved), _rows(g), strict=True)):
            self.v[i] = self.beta * self.v[i] + (1 - self.beta) * gradient @ gradient
            size = np.sqrt(self.v[i] / (1 - self.beta**self.t))
            row -= lr * self.scale * gradient / size if size else 0
        self.p = _constrained(moved, self.center, self.normalize)


@dataclass
class Fromage(Reference):
    """On the distance between two neural networks, Algorithm 1."""

    p: Array
    p_bound: float | None = None
    cap: float | None = None

    def step(self, g: Array, lr: float) -> None:
        size, slope = np.linalg.norm(self.p), np.linalg.norm(g)
        if self.p_bound is not None and self.cap is None:
            self.cap = self.p_bound * float(size)
        ratio = size / slope if size and slope else 1.0
        self.p = (self.p - lr * ratio * g) / np.sqrt(1 + lr**2)
        now = np.linalg.norm(self.p)
        if self.cap is not None and now > self.cap:
            self.p = self.p * self.cap / now


@dataclass
class Madam(Reference):
    """Multiplicative weight updates, with the code's caps and optional constraints."""

    p: Array
    p_scale: float = 3.0
    g_bound: float = 10.0
    center: bool = False
    normalize: bool = False
    t: int = 0

    def __post_init__(self) -> None:
        self.v = np.zeros_like(self.p)
        self.cap = self.p_scale * np.sqrt(np.mean(self.p**2))

    def step(self, g: Array, lr: float) -> None:
        self.t += 1
        self.v = 0.999 * self.v + 0.001 * g**2
        d = np.clip(
            _quotient(g, np.sqrt(self.v / (1 - 0.999**self.t))), -self.g_bound, self.g_bound
        )
        self.p = np.clip(self.p * np.exp(-lr * d * np.sign(self.p)), -self.cap, self.cap)
        self.p = _constrained(self.p, self.center, self.normalize)


@dataclass
class LAMB(Reference):
    """LAMB as the Nero paper's code has it."""

    p: Array
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    bias_correction: bool = False
    clamp: float = 10.0
    center: bool = False
    normalize: bool = False
    t: int = 0

    def __post_init__(self) -> None:
        self.m, self.v = np.zeros_like(self.p), np.zeros_like(self.p)

    def step(self, g: Array, lr: float) -> None:
        self.t += 1
        b1, b2 = self.betas
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        m, v = self.m, self.v
        if self.bias_correction:
            m, v = m / (1 - b1**self.t), v / (1 - b2**self.t)
        u = m / (np.sqrt(v) + self.eps) + self.weight_decay * self.p
        size, length = min(float(np.linalg.norm(self.p)), self.clamp), np.linalg.norm(u)
        ratio = size / length if size and length else 1.0
        self.p = _constrained(self.p - lr * ratio * u, self.center, self.normalize)


@dataclass
class LARS(Reference):
    """Large Batch Training of Convolutional Networks."""

    p: Array
    momentum: float = 0.9
    weight_decay: float = 0.0
    trust_coefficient: float = 0.001
    eps: float = 1e-8
    always_adapt: bool = False

    def __post_init__(self) -> None:
        self.m = np.zeros_like(self.p)

    def step(self, g: Array, lr: float) -> None:
        size, slope = np.linalg.norm(self.p), np.linalg.norm(g)
        ratio: float = 1.0
        if (self.weight_decay or self.always_adapt) and size and slope:
            ratio = float(
                self.trust_coefficient * size / (slope + self.weight_decay * size + self.eps)
            )
        self.m = self.momentum * self.m + ratio * (g + self.weight_decay * self.p)
        self.p = self.p - lr * self.m


# The inner optimizers of the rotational variants: direction(g, p, t), without decay


@dataclass
class AdamInner:
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    l2_in_second: float = 0.0
    m: Array | float = 0.0
    v: Array | float = 0.0

    def direction(self, g: Array, p: Array, t: int) -> Array:
        b1, b2 = self.betas
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * (g + self.l2_in_second * p) ** 2
        return self.m / (1 - b1**t) / (np.sqrt(self.v / (1 - b2**t)) + self.eps)


@dataclass
class SGDInner:
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    m: Array | float = 0.0

    def direction(self, g: Array, p: Array, t: int) -> Array:
        if not self.momentum:
            return g
        self.m = g if t == 1 else self.momentum * self.m + (1 - self.dampening) * g
        return np.asarray(g + self.momentum * self.m if self.nesterov else self.m)


@dataclass
class LionInner:
    betas: tuple[float, float] = (0.9, 0.99)
    m: Array | float = 0.0

    def direction(self, g: Array, p: Array, t: int) -> Array:
        b1, b2 = self.betas
        u = np.sign(b1 * self.m + (1 - b1) * g)
        self.m = b2 * self.m + (1 - b2) * g
        return np.asarray(u)


@dataclass
class Plain(Reference):
    """An inner optimizer by itself, with decoupled decay or with L2 regularisation."""

    p: Array
    inner: AdamInner | SGDInner | LionInner
    weight_decay: float
    coupled: bool
    t: int = 0

    def step(self, g: Array, lr: float) -> None:
        self.t += 1
        if self.coupled:
            g = g + self.weight_decay * self.p
        kept = 1.0 if self.coupled else 1 - lr * self.weight_decay
        self.p = kept * self.p - lr * self.inner.direction(g, self.p, self.t)


@dataclass
class Rotational(Reference):
    """Rotational Equilibrium, Algorithm 1, for a parameter that rotates."""

    p: Array
    inner: AdamInner | SGDInner | LionInner
    angle: Callable[[float], float]
    rotation_beta: float = 0.9
    center: bool = True
    per_neuron: bool = True
    rotation_eps: float = 1e-8
    slow_portion: float = 0.0
    fast_portion: float = 0.0
    speed_factor: float = 1.0
    t: int = 0
    n: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.center:
            for row in self._split(self.p):
                norm = np.linalg.norm(row)
                row -= row.mean()
                row *= norm / np.linalg.norm(row)
        self.n = [float(np.linalg.norm(row)) for row in self._split(self.p)]
        self.nu = [0.0] * len(self.n)
        slow, fast = (int(x * len(self.n)) for x in (self.slow_portion, self.fast_portion))
        self.speed = np.ones(len(self.n))
        self.speed[:slow] /= self.speed_factor
        self.speed[slow : slow + fast] *= self.speed_factor

    def _split(self, p: Array) -> Array:
        return _rows(p) if self.per_neuron else p.reshape(1, -1)

    def step(self, g: Array, lr: float) -> None:
        self.t += 1
        directions = self._split(self.inner.direction(g, self.p, self.t))
        for i, (w, u) in enumerate(zip(self._split(self.p), directions, strict=True)):
            if self.center:
                u = u - u.mean()
            u = u - w * (u @ w) / self.n[i] ** 2
            self.nu[i] = self.rotation_beta * self.nu[i] + (1 - self.rotation_beta) * (u @ u)
            size = np.sqrt(self.nu[i] / (1 - self.rotation_beta**self.t)) + self.rotation_eps
            w -= self.angle(lr) * self.speed[i] * self.n[i] * u / size
            w *= self.n[i] / np.linalg.norm(w)
