"""Where the values of one swept parameter come from: W&B's distributions, as files write them and as quantiles."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from finetune.config import Config, leaves, typed
from finetune.errors import Refused, nearest

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

_AT_MOST_ONE = {
    "optim.lr",
    "optim.weight_decay",
    *(key for key, _, field in leaves(Config()) if (field.metadata.get("high") or math.inf) <= 1),
}
"""Settings of which a value above 1 cannot be meant."""
_NUMBERS = {**BASES, "int_uniform": ("min", "max")}
_PARAMETER = {"value", "values", "probabilities", "distribution", "min", "max", "mu", "sigma", "a", "b", "q"}


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


def read_distribution(where: str, key: str, entry: Any) -> Distribution:
    """One entry of a sweep file's `parameters`.

    >>> read_distribution("s.yaml: optim.lr", "optim.lr", {"min": 0, "max": 0.1})
    Distribution(kind='uniform', values=(), probabilities=(), bounds=(0.0, 0.1), q=1.0)

    Args:
        where: File and key, for messages.
        key: The setting whose type listed values get.
        entry: What the file says.

    Raises:
        Refused: what is unknown, contradictory or out of range.
    """
    if not isinstance(entry, dict):
        raise Refused(f"{where} must be a mapping such as {{value: {entry}}} or {{values: […]}}")
    unknown = sorted(map(str, entry.keys() - _PARAMETER))
    if unknown:
        raise Refused(f"{where}: {unknown[0]!r} is not supported; {nearest(unknown[0], _PARAMETER)}")

    kind = _kind(where, entry)
    names = _entry_names(kind)
    strangers = sorted(entry.keys() - {"distribution", *names})
    if strangers:
        raise Refused(
            f"{where}: {strangers[0]!r} does not belong to a {kind} distribution, which has {', '.join(names)}"
        )

    if kind in ("constant", "categorical"):
        return _listed(where, key, kind, entry)
    distribution = _continuous(where, kind, entry)
    _refuse_exponents(where, key, distribution)
    return distribution


def _kind(where: str, entry: Mapping[str, Any]) -> str:
    """The distribution an entry names, or the one that W&B takes it for."""
    kind = entry.get("distribution")
    if kind == "categorical_w_probabilities":
        if "probabilities" not in entry:
            raise Refused(f"{where}: a categorical_w_probabilities distribution needs probabilities")
        return "categorical"
    if kind:
        if not isinstance(kind, str) or kind not in DISTRIBUTIONS:
            raise Refused(f"{where}: distribution {kind!r} is not supported; {nearest(str(kind), DISTRIBUTIONS)}")
        return kind

    if "values" in entry:
        return "categorical"
    if "value" in entry:
        return "constant"
    if "min" in entry and "max" in entry:
        whole = isinstance(entry["min"], int) and isinstance(entry["max"], int)
        return "int_uniform" if whole else "uniform"
    raise Refused(f"{where}: give `value`, `values`, or `min` and `max`")


def _entry_names(kind: str) -> tuple[str, ...]:
    """What an entry of this distribution may hold."""
    if kind == "constant":
        return ("value",)
    if kind == "categorical":
        return ("values", "probabilities")
    names = _NUMBERS[kind.removeprefix("q_")]
    return (*names, "q") if kind.startswith("q_") else names


def _continuous(where: str, kind: str, entry: Mapping[str, Any]) -> Distribution:
    """A distribution of two numbers, and of a step where it has one."""
    names = _NUMBERS[kind.removeprefix("q_")]
    defaults = {"mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0}
    low, high = (number(where, name, entry.get(name, defaults.get(name))) for name in names)
    q = number(where, "q", entry.get("q", 1))

    if names == ("min", "max") and not low < high:
        raise Refused(f"{where}: min {low:g} must be below max {high:g}")
    for name, value in zip(names, (low, high), strict=True):
        if value <= 0 and (name in ("sigma", "a", "b") or (name == "min" and "values" in kind)):
            raise Refused(f"{where}: {name} {value:g} of a {kind} distribution must be above 0")
    if kind == "int_uniform" and not (low.is_integer() and high.is_integer()):
        raise Refused(f"{where}: min and max of an int_uniform distribution must be whole numbers")
    if q <= 0:
        raise Refused(f"{where}: q {q:g} must be above 0")

    distribution = Distribution(kind, bounds=(low, high), q=q)
    if not all(map(math.isfinite, _ends(distribution))):
        raise Refused(f"{where}: the ends of this {kind} distribution are too large for a number")
    return distribution


def _ends(distribution: Distribution) -> tuple[float, float]:
    """The smallest and the largest value; infinite where one is no number any more."""
    try:
        return distribution.at(0.0), distribution.at(1.0)
    except (ArithmeticError, ValueError):
        return math.inf, math.inf


def _refuse_exponents(where: str, key: str, distribution: Distribution) -> None:
    """Make sure that nobody gives values to a distribution that takes their logarithms.

    `log_uniform` with min 0.0001 and max 0.1 draws learning rates from 1.0001 to 1.105, for W&B as here.
    """
    base = distribution.kind.removeprefix("q_")
    low, high = distribution.bounds
    if key not in _AT_MOST_ONE:
        return

    if base == "log_normal" and low >= 0:
        raise Refused(
            f"{where}: mu of a {distribution.kind} distribution is a logarithm, so mu {low:g} draws values around "
            f"{math.exp(low):.4g}; give a mu below 0, such as {math.log(0.001):.1f} for 0.001"
        )
    if base in ("log_uniform", "inv_log_uniform"):
        inverse = base.startswith("inv")
        smallest, largest = (math.exp(-high), math.exp(-low)) if inverse else (math.exp(low), math.exp(high))
        if largest > 1 or (inverse and high <= 1):
            raise Refused(
                f"{where}: min and max of a {distribution.kind} distribution are logarithms, so it draws from "
                f"{smallest:.4g} to {largest:.4g}; use distribution: {distribution.kind}_values to give the values"
            )


def _listed(where: str, key: str, kind: str, entry: Mapping[str, Any]) -> Distribution:
    """A constant, or one of a list."""
    values = [entry.get("value")] if kind == "constant" else entry.get("values")
    if not isinstance(values, list) or not values:
        raise Refused(f"{where}: values must be a list with at least one entry")

    probabilities = entry.get("probabilities", [])
    if not isinstance(probabilities, list):
        raise Refused(f"{where}: probabilities must be a list")
    shares = [number(where, "a probability", share) for share in probabilities]
    if shares and (len(shares) != len(values) or abs(sum(shares) - 1) > 1e-6 or min(shares) < 0):
        raise Refused(f"{where}: probabilities must be {len(values)} shares that sum to 1")
    return Distribution(kind, tuple(_value(where, key, value) for value in values), tuple(shares))


def _value(where: str, key: str, value: Any) -> Any:
    """One listed value with the type of its key."""
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, dict):
            raise Refused(f"{where}: a value cannot be a mapping; sweep its keys one by one")
        if part is not None and not isinstance(part, str | int | float):
            raise Refused(f"{where}: {part} is a {type(part).__name__}; give numbers, words, or lists of them")
        if isinstance(part, float) and not math.isfinite(part):
            raise Refused(f"{where}: {part} is not a finite number")
        if isinstance(part, int) and abs(part) >= 2**63:
            raise Refused(f"{where}: a value is too large a whole number; give one below 2^63")

    try:
        setting = typed(key, value)
    except ValueError:
        raise Refused(f"{where}: {value!r} is not a number") from None
    if isinstance(value, str) and not isinstance(setting, str):
        raise Refused(f"{where}: YAML reads {value} as text; write {_dotted(setting)}")
    return setting


def _dotted(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.1e} with a dot"


def number(where: str, name: str, value: Any) -> float:
    """A finite number of a sweep file.

    Raises:
        Refused: it is none, or YAML read it as text.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = f"; write {float(value):.1e} with a dot" if isinstance(value, str) and _is_float(value) else ""
        raise Refused(f"{where}: {name} must be a number, not {value!r}{hint}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise Refused(f"{where}: {name} is too large a whole number; give one below 2^63")
    if not math.isfinite(value):
        raise Refused(f"{where}: {name} {value} is not a finite number")
    return float(value)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
