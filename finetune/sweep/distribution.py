"""Where the values of one swept parameter come from: W&B's distributions as quantile functions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

BASES: Mapping[str, tuple[str, ...]] = {
    "uniform": ("min", "max"),
    "log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "inv_log_uniform": ("min", "max"),
    "inv_log_uniform_values": ("min", "max"),
    "normal": ("mu", "sigma"),
    "log_normal": ("mu", "sigma"),
    "beta": ("a", "b"),
}
"""Continuous distributions with the names of their two numbers."""
_QUANTIZED = ("uniform", "log_uniform", "log_uniform_values", "normal", "log_normal", "beta")
DISTRIBUTIONS = ("constant", "categorical", "int_uniform", *BASES, *(f"q_{base}" for base in _QUANTIZED))


@dataclass(frozen=True)
class Distribution:
    """Where one parameter's values come from."""

    kind: str
    """One of `DISTRIBUTIONS`."""
    values: tuple[Any, ...] = ()
    """Of a categorical or constant."""
    probabilities: tuple[float, ...] = ()
    """Of the values, where they are not equally likely; they sum to 1."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """min and max, mu and sigma, or a and b; `log_uniform`'s are natural logarithms."""
    q: float = 1.0
    """Step to which a `q_` distribution rounds."""

    @property
    def choices(self) -> tuple[Any, ...] | None:
        """Every value, where they can be listed; else None."""
        if self.kind == "int_uniform":
            return tuple(range(int(self.bounds[0]), int(self.bounds[1]) + 1))
        if self.kind == "q_uniform":
            first, last = (round(bound / self.q) for bound in self.bounds)
            return tuple(self._step(i * self.q) for i in range(first, last + 1))
        return self.values or None

    @property
    def text(self) -> str:
        """For people: the values, or the distribution with its numbers."""
        if self.values:
            shares = f" with probabilities {list(self.probabilities)}" if self.probabilities else ""
            return f"{', '.join(map(str, self.values))}{shares}"
        step = f" in steps of {self.q:g}" if self.kind.startswith("q_") else ""
        return f"{self.kind} {self.bounds[0]:g} … {self.bounds[1]:g}{step}"

    def at(self, u: float) -> Any:
        """The value below which a share `u` of the distribution lies, 0 <= u < 1."""
        if self.values:
            return self.values[self._pick(u)]
        low, high = self.bounds
        if self.kind == "int_uniform":
            return int(low) + int(u * (int(high) - int(low) + 1))
        value = _quantile(self.kind.removeprefix("q_"), low, high, min(max(u, 1e-12), 1 - 1e-12))
        return self._step(value) if self.kind.startswith("q_") else value

    def _pick(self, u: float) -> int:
        if not self.probabilities:
            return int(u * len(self.values))
        total = 0.0
        for i, share in enumerate(self.probabilities):
            total += share
            if u < total:
                return i
        return len(self.values) - 1

    def _step(self, value: float) -> float | int:
        stepped = round(value / self.q) * self.q
        return int(stepped) if float(self.q).is_integer() else float(f"{stepped:.12g}")


def _quantile(base: str, a: float, b: float, u: float) -> float:
    if base == "uniform":
        return a + u * (b - a)
    if base == "log_uniform":
        return math.exp(a + u * (b - a))
    if base == "log_uniform_values":
        return float(math.exp(math.log(a) + u * (math.log(b) - math.log(a))))
    if base == "inv_log_uniform":
        return 1 / math.exp(a + (1 - u) * (b - a))
    if base == "inv_log_uniform_values":
        return 1 / math.exp(-math.log(a) + u * (math.log(a) - math.log(b)))
    if base == "beta":
        from scipy.special import betaincinv

        return float(betaincinv(a, b, u))
    value = NormalDist(a, b).inv_cdf(u)
    return math.exp(value) if base == "log_normal" else value
