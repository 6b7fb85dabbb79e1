"""A W&B sweep file as a frozen value: `wandb sweep` and our own runner read the same YAML. Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.compose import nearest, no_such_key, shipped
from finetune.config import Config as Schema
from finetune.config import digest_of, flat
from finetune.errors import Refused
from finetune.sweep.distribution import BASES, DISTRIBUTIONS, Distribution

METHODS = ("grid", "random", "bayes")
_TOP = ("name", "description", "project", "entity", "program", "command", "method", "metric", "parameters", "run_cap")


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep is."""

    name: str
    method: str
    """`grid`, `random` or `bayes`."""
    goal: str
    """`maximize` or `minimize` the metric."""
    metric: str
    parameters: Mapping[str, Distribution]
    """By dotted Hydra key."""
    fixed: tuple[str, ...]
    """Overrides that every trial gets: those in the file's command, then those given beside the file."""
    run_cap: int | None
    """Trials at the most."""

    @property
    def digest(self) -> str:
        """Names the space, the search and the fixed overrides: a sweep folder holds trials of one digest."""
        space = {key: vars(distribution) for key, distribution in self.parameters.items()}
        return digest_of([self.method, self.goal, self.metric, space, list(self.fixed)])


def find_sweep(name: str) -> Path:
    """The sweep file `name`: a path, or the name of a shipped one.

    Raises:
        Refused: neither exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = {file.name: file for file in sorted(shipped("sweeps").glob("*.yaml"))}
    stem = path.name if path.suffix else f"{path.name}.yaml"
    if stem in known and path.parent in (Path(), Path("sweeps")):
        return known[stem]
    raise Refused(f"{name}: there is no such sweep file; shipped ones: {', '.join(known)}")


def read_sweep(path: Path, overrides: tuple[str, ...] = ()) -> SweepSpec:
    """Read a sweep file.

    Args:
        path: YAML in W&B's sweep schema.
        overrides: Given beside the file for every trial; they follow, and so win over, those in its command.

    Raises:
        Refused: what is unknown or cannot be honoured, by name; nothing in the file is executed.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Refused(f"{path} is not a readable YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("parameters"), dict) or not raw["parameters"]:
        raise Refused(f"{path} is not a sweep file: it must have `method` and `parameters`")
    for key in raw:
        if key not in _TOP:
            raise Refused(f"{path}: key {key!r} is not supported; {nearest(str(key), _TOP)}")
    method = raw.get("method")
    if method not in METHODS:
        raise Refused(f"{path}: method {method!r} is not supported; use one of {', '.join(METHODS)}")
    metric = raw.get("metric", {"name": "val/acc_best", "goal": "maximize"})
    if not isinstance(metric, dict) or not set(metric) <= {"name", "goal"} or "name" not in metric:
        raise Refused(f"{path}: metric must be {{name: …, goal: maximize | minimize}} and nothing else")
    if metric.get("goal", "minimize") not in ("maximize", "minimize"):
        raise Refused(f"{path}: metric.goal {metric['goal']!r} is not known; use maximize or minimize")
    cap = raw.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        raise Refused(f"{path}: run_cap {cap!r} must be a whole number of at least 1")
    if method != "grid" and cap is None:
        raise Refused(f"{path}: method {method} never ends by itself; add run_cap: NUMBER")
    parameters = {str(key): _distribution(path, str(key), given, method) for key, given in raw["parameters"].items()}
    fixed = (*_command_overrides(path, raw.get("command", [])), *overrides)
    for override in overrides:
        key = override.partition("=")[0]
        if key in parameters:
            raise Refused(f"{override}: {key} is swept by {path}; remove it from one of the two")
    return SweepSpec(
        name=str(raw.get("name") or path.stem),
        method=method,
        goal=metric.get("goal", "minimize"),
        metric=metric["name"],
        parameters=parameters,
        fixed=fixed,
        run_cap=cap,
    )


def override(key: str, value: Any) -> str:
    """`key=value` as Hydra reads it back with the value's type; the same text that W&B's agent passes where it can."""
    if value is None:
        return f"{key}=null"
    if isinstance(value, str) and not re.fullmatch(r"[\w./:@%+-]+", value):
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"{key}='{quoted}'"
    return f"{key}={value}"


def _command_overrides(path: Path, command: Any) -> tuple[str, ...]:
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise Refused(f"{path}: command must be a list of words")
    if command and "${args_no_hyphens}" not in command:
        raise Refused(f"{path}: command must hold ${{args_no_hyphens}}, which passes the swept values to Hydra")
    if command and "finetune.train" not in command:
        raise Refused(f"{path}: command must run `-m finetune.train`; a sweep file names no other program")
    after = command[command.index("finetune.train") + 1 :] if command else []
    return tuple(word for word in after if not word.startswith("${"))


def _distribution(path: Path, key: str, given: Any, method: str) -> Distribution:
    where = f"{path}: {key}"
    if key not in flat(Schema()):
        raise Refused(f"{path}: {no_such_key(key)}")
    if not isinstance(given, dict):
        given = {"value": given}
    if "parameters" in given:
        raise Refused(f"{where}: nested parameters are not supported; write dotted keys ({key}.name: …)")
    known = {"value", "values", "probabilities", "distribution", "min", "max", "mu", "sigma", "a", "b", "q"}
    unknown = sorted(map(str, given.keys() - known))
    if unknown:
        raise Refused(f"{where}: {unknown[0]!r} is not supported; {nearest(unknown[0], known)}")
    kind = given.get("distribution") or _implied(where, given)
    if kind not in DISTRIBUTIONS:
        raise Refused(f"{where}: distribution {kind!r} is not supported; {nearest(str(kind), DISTRIBUTIONS)}")
    if kind in ("constant", "categorical"):
        return _listed(where, kind, given)
    names = ("min", "max") if kind == "int_uniform" else BASES[kind.removeprefix("q_")]
    defaults = {"mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0}
    low, high = (_number(where, name, given.get(name, defaults.get(name))) for name in names)
    if names == ("min", "max") and not low < high:
        raise Refused(f"{where}: min {low:g} must be below max {high:g}")
    if "values" in kind and low <= 0:
        raise Refused(f"{where}: min {low:g} of a {kind} distribution must be above 0")
    if kind == "int_uniform" and not (low.is_integer() and high.is_integer()):
        raise Refused(f"{where}: min and max of an int_uniform distribution must be whole numbers")
    q = _number(where, "q", given.get("q", 1))
    if q <= 0:
        raise Refused(f"{where}: q {q:g} must be above 0")
    made = Distribution(kind, bounds=(low, high), q=q)
    if method == "grid" and made.choices is None:
        raise Refused(f"{where}: a grid needs values to list, not a {kind} distribution; give `values: […]`")
    return made


def _implied(where: str, given: Mapping[str, Any]) -> str:
    if "values" in given:
        return "categorical"
    if "value" in given:
        return "constant"
    if "min" in given and "max" in given:
        whole = all(isinstance(given[name], int) for name in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    raise Refused(f"{where}: give `value`, `values`, or `min` and `max`")


def _listed(where: str, kind: str, given: Mapping[str, Any]) -> Distribution:
    values = [given.get("value")] if kind == "constant" else given.get("values")
    if not isinstance(values, list) or not values:
        raise Refused(f"{where}: values must be a list with at least one entry")
    for value in values:
        if isinstance(value, dict):
            raise Refused(f"{where}: a value cannot be a mapping; sweep its keys one by one")
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
            raise Refused(f"{where}: YAML reads {value} as text; write {float(value):.1e} with a dot")
    shares = given.get("probabilities") or ()
    if shares and (len(shares) != len(values) or abs(sum(shares) - 1) > 1e-6 or min(shares) < 0):
        raise Refused(f"{where}: probabilities must be {len(values)} shares that sum to 1")
    return Distribution(kind, tuple(values), tuple(shares))


def _number(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = f"; write {float(value):.1e} with a dot" if isinstance(value, str) and _is_float(value) else ""
        raise Refused(f"{where}: {name} must be a number, not {value!r}{hint}")
    return float(value)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
