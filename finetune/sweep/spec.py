"""A W&B sweep file as a frozen value: `wandb sweep` and our own runner read the same YAML. Imports no torch."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.compose import no_such_key, override, refuse_bare_words, refuse_reach, shipped
from finetune.config import Config as Schema
from finetune.config import flat, is_meaningful
from finetune.errors import Refused, nearest
from finetune.records.metric import metric_values
from finetune.sweep.distribution import Distribution, number, read_distribution
from finetune.sweep.stopping import Hyperband, Race
from finetune.sweep.yaml_file import read_document

METHODS = ("grid", "random", "bayes")
METRICS = ("val/acc_best", "val/acc", "val/loss", "train/acc", "train/loss")
"""What a trial reports every epoch, and so what a sweep can optimise."""
_MOST = 1_000_000
"""Values of a parameter in a grid, and epochs of a band, at the most."""
_TOP = (
    "name",
    "description",
    "project",
    "entity",
    "command",
    "method",
    "metric",
    "parameters",
    "run_cap",
    "early_terminate",
)


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
    run_cap: int | None = None
    """Trials at the most."""
    spread: bool = False
    """Whether those of a grid come from all over it; otherwise they are its first ones, as W&B has it."""
    target: float | None = None
    """A value of the metric that ends the search once a trial reaches it."""
    stopping: Hyperband | Race | None = None
    """When a running trial is given up."""
    not_for_agents: tuple[str, ...] = ()
    """What keeps W&B's own agents from running the file, one sentence each."""

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """What `python -m finetune.train` gets for a trial with these parameters."""
        return [*self.fixed, *(override(key, value) for key, value in params.items())]

    @property
    def sign(self) -> int:
        """What makes larger better: 1 where the metric is maximized, -1 where it is minimized."""
        return 1 if self.goal == "maximize" else -1

    def curve(self, history: Sequence[dict[str, float]]) -> list[float]:
        """The metric after each epoch that has it, times `sign`."""
        return [self.sign * value for value in metric_values(self.metric, history)]


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


def read_sweep(path: Path, overrides: tuple[str, ...] = (), trials: int | None = None, race: bool = False) -> SweepSpec:
    """Read a sweep file.

    Args:
        path: YAML in W&B's sweep schema.
        overrides: Given beside the file for every trial; they follow, and so win over, those in its command.
        trials: Instead of the file's `run_cap`; those of a grid then come from all over it.
        race: Stop trials that can hardly become the best.

    Raises:
        Refused: what is unknown or cannot be honoured, by name; nothing in the file is executed.
    """
    raw = read_document(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("parameters"), dict) or not raw["parameters"]:
        raise Refused(f"{path} is not a sweep file: it must have `method` and `parameters`")
    for key in raw:
        if key not in _TOP:
            raise Refused(f"{path}: key {key!r} is not supported; {nearest(str(key), _TOP)}")
    name = str(raw.get("name") or path.stem)
    if not re.fullmatch(r"[^\W.][\w .+-]*", name):
        raise Refused(f"{path}: name {name!r} must be a plain word, for it names the folder under runs/")
    method = raw.get("method")
    if method not in METHODS:
        raise Refused(f"{path}: method {method!r} is not supported; {nearest(str(method), METHODS)}")
    goal, metric, target = _metric(path, raw.get("metric", {"name": "val/acc_best", "goal": "maximize"}))
    if race and (metric not in ("val/acc", "val/acc_best") or goal != "maximize"):
        raise Refused(f"{path}: a race compares accuracies, not {goal} {metric}; set metric.name to val/acc_best")
    if race and "early_terminate" in raw:
        raise Refused(f"{path}: early_terminate and --race both stop trials; use one of them")
    cap = raw.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        raise Refused(f"{path}: run_cap {cap!r} must be a whole number of at least 1")
    cap = trials or cap
    if method != "grid" and cap is None:
        raise Refused(f"{path}: method {method} never ends by itself; add run_cap: NUMBER, or give --trials")
    flattened = list(_flattened(path, raw["parameters"]))
    parameters = {key: _parameter(path, key, given, method) for key, given, _ in flattened}
    told = command_overrides(str(path), raw.get("command", []))
    refuse_bare_words(overrides)
    refuse_reach((*told, *overrides))
    _refuse_climbing(path, told, parameters)
    fixed = (*told, *overrides)
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        if key in parameters:
            raise Refused(f"{word}: {key} is swept by {path}; remove it from one of the two")
    return SweepSpec(
        name=name,
        method=method,
        goal=goal,
        metric=metric,
        parameters=parameters,
        fixed=fixed,
        run_cap=cap,
        spread=trials is not None,
        target=target,
        stopping=Race() if race else _stopping(path, raw["early_terminate"]) if "early_terminate" in raw else None,
        not_for_agents=tuple(_problems(raw, [key for key, _, nested in flattened if nested])),
    )


def _problems(raw: Mapping[str, Any], nested: list[str]) -> Iterator[str]:
    if "command" not in raw:
        yield "it has no command; copy the one of sweeps/local.yaml"
    if nested:
        yield f"nested parameters reach Hydra as one mapping; write dotted keys, such as {nested[0]}"


def _refuse_climbing(path: Path, told: tuple[str, ...], parameters: Mapping[str, Distribution]) -> None:
    """A file may say where to read, but not that something is written outside the folders it is run in."""
    swept = [f"{key}={value}" for key, given in parameters.items() for value in given.values]
    for word in (*told, *swept):
        key, _, value = word.partition("=")
        if key.lstrip("+") in ("out", "cache.dir") and ".." in Path(value).parts:
            raise Refused(f"{path}: {word} leads out of the folder; give --out or {key}=… beside the file instead")


def _metric(path: Path, given: Any) -> tuple[str, str, float | None]:
    if not isinstance(given, dict) or not set(given) <= {"name", "goal", "target"} or "name" not in given:
        raise Refused(f"{path}: metric must be {{name: …, goal: maximize | minimize, target: NUMBER}} and nothing else")
    goal = given.get("goal", "minimize")
    if goal not in ("maximize", "minimize"):
        raise Refused(f"{path}: metric.goal {goal!r} is not known; use maximize or minimize")
    if given["name"] not in METRICS:
        raise Refused(f"{path}: metric.name {given['name']!r} is not reported; choose from {', '.join(METRICS)}")
    target = given.get("target")
    return goal, given["name"], None if target is None else number(f"{path}: metric", "target", target)


def _stopping(path: Path, given: Any) -> Hyperband:
    where = f"{path}: early_terminate"
    known = {"type", "min_iter", "max_iter", "s", "eta", "strict"}
    if not isinstance(given, dict) or given.get("type") != "hyperband":
        raise Refused(f"{where} must be a mapping with type: hyperband")
    unknown = sorted(map(str, given.keys() - known))
    if unknown:
        raise Refused(f"{where}: {unknown[0]!r} is not supported; {nearest(unknown[0], known)}")
    if ("min_iter" in given) == ("max_iter" in given):
        raise Refused(f"{where}: give either min_iter, or max_iter with s")
    if ("max_iter" in given) != ("s" in given):
        raise Refused(f"{where}: max_iter and s belong together; s is the number of bands before max_iter")
    for name in ("min_iter", "max_iter", "s"):
        if name in given:
            epochs = number(where, name, given[name])
            if not epochs.is_integer() or not 1 <= epochs <= (100 if name == "s" else _MOST):
                raise Refused(f"{where}: {name} {given[name]!r} must be a whole number of at least 1")
    eta, strict = number(where, "eta", given.get("eta", 3)), given.get("strict", False)
    if not 1.01 <= eta <= 1000:
        raise Refused(
            f"{where}: eta {eta:g} must be above 1 and at most 1000; 3 keeps a third of the trials at each band"
        )
    if not isinstance(strict, bool):
        raise Refused(f"{where}: strict must be true or false, not {strict!r}")
    first, last, bands = (given.get(name) for name in ("min_iter", "max_iter", "s"))
    made = Hyperband(first, last, bands, eta, strict)
    if not made.bands:
        raise Refused(f"{where}: no band lies before max_iter {made.max_iter}; raise it, or lower eta")
    return made


def _flattened(path: Path, given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Each parameter by its dotted key, and whether the file nests it."""
    for name, inner in given.items():
        key = f"{prefix}{name}"
        if isinstance(inner, dict) and "parameters" in inner:
            if set(inner) != {"parameters"} or not isinstance(inner["parameters"], dict) or not inner["parameters"]:
                raise Refused(f"{path}: {key} must hold nested parameters and nothing else, or values")
            yield from _flattened(path, inner["parameters"], f"{key}.")
        else:
            yield key, inner, bool(prefix)


def command_overrides(path: str, command: Any) -> tuple[str, ...]:
    """The overrides that a sweep's command gives to every trial.

    Raises:
        Refused: it runs something else than `-m finetune.train`.
    """
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise Refused(f"{path}: command must be a list of words")
    if command and "${args_no_hyphens}" not in command:
        raise Refused(f"{path}: command must hold ${{args_no_hyphens}}, which passes the swept values to Hydra")
    if not command:
        return ()
    start = command.index("finetune.train") if "finetune.train" in command else 0
    if command[start - 1 : start] != ["-m"] or set(command[: start - 1]) - {"${env}", "${interpreter}"}:
        raise Refused(
            f"{path}: command must begin with ${{env}}, ${{interpreter}}, -m, finetune.train; a sweep file names no "
            "other program"
        )
    after = command[start + 1 :]
    return tuple(word for word in after if not word.startswith("${"))


def _parameter(path: Path, key: str, given: Any, method: str) -> Distribution:
    if key not in flat(Schema()):
        raise Refused(f"{path}: {no_such_key(key)}")
    made = read_distribution(f"{path}: {key}", key, given)
    if not is_meaningful(key) and len(made.values) != 1:  # its trials would be one trial, in one folder
        raise Refused(f"{path}: {key} changes no result, so it cannot be swept; give {key}=… beside the file")
    if method == "bayes" and any("${" in str(value) for value in made.values):
        raise Refused(
            f"{path}: {key}: method bayes learns from values as records have them; write them out, without ${{…}}"
        )
    if method == "grid" and made.kind in ("int_uniform", "q_uniform"):
        points = (made.bounds[1] - made.bounds[0]) / made.q
        if points > _MOST:
            raise Refused(f"{path}: {key}: a grid of {points:.1e} values never ends; narrow it, or use method: random")
    if method == "grid" and made.choices is None:
        raise Refused(f"{path}: {key}: a grid needs values to list, not a {made.kind} distribution; give `values: […]`")
    return made
