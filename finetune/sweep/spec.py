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
from finetune.sweep.distribution import Distribution, read_distribution
from finetune.sweep.goal import followed_metric, read_metric
from finetune.sweep.stopping import Hyperband, read_hyperband
from finetune.sweep.yaml_file import read_document

METHODS = ("grid", "random", "bayes")
_MOST = 1_000_000
"""Values of a parameter in a grid, at the most."""
_READ = ("name", "command", "method", "metric", "metrics", "parameters", "run_cap", "early_terminate", "scheduler")
_IGNORED = ("description", "project", "entity", "controller", "apiVersion", "kind")
"""What W&B's schema has and no trial depends on: where a sweep is shown, and who proposes its trials."""
_ELSEWHERE = {
    "program": "use command, as sweeps/local.yaml has it: a sweep file runs finetune.train and no other program",
    "job": "remove it, and run the file with `finetune sweep --launcher slurm`, or with agents",
    "image_uri": "remove it, and run the file with `finetune sweep --launcher slurm`, or with agents",
}
"""What W&B's schema has and cannot be honoured here, with what to do instead."""


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
    stopping: Hyperband | None = None
    """The file's own rule of when a running trial is given up."""
    not_for_agents: tuple[str, ...] = ()
    """What keeps W&B's own agents from running the file, one sentence each."""
    read_otherwise: tuple[str, ...] = ()
    """What W&B would do with the file that is not done here, one sentence each."""

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


def read_sweep(path: Path, overrides: tuple[str, ...] = (), trials: int | None = None) -> SweepSpec:
    """Read a sweep file.

    Args:
        path: YAML in W&B's sweep schema.
        overrides: Given beside the file for every trial; they follow, and so win over, those in its command.
        trials: Instead of the file's `run_cap`; those of a grid then come from all over it.

    Raises:
        Refused: what is unknown or cannot be honoured, by name; nothing in the file is executed.
    """
    raw = read_document(path)
    _check_keys(path, raw)
    raw, read_otherwise = _without_scheduler(path, raw)
    name, method = _name(path, raw), _method(path, raw)

    # 1. What is searched for, and for how long
    metric, goal, target = read_metric(path, raw.get("metric", {"name": "val/acc_best", "goal": "maximize"}), method)
    stopping = None
    if "early_terminate" in raw:
        stopping = read_hyperband(f"{path}: early_terminate", raw["early_terminate"])
    run_cap = _run_cap(path, raw, trials, method)

    # 2. Where: the swept settings, and the fixed ones
    entries = list(_flattened(path, raw["parameters"]))
    parameters = {key: _parameter(path, key, entry, method) for key, entry, _ in entries}
    from_command = command_overrides(str(path), raw.get("command", []))
    refuse_bare_words(overrides)
    refuse_reach((*from_command, *overrides))
    _refuse_climbing(path, from_command, parameters)
    _refuse_swept_and_fixed(path, overrides, parameters)
    metric, goal = followed_metric(path, metric, goal, target, (*from_command, *overrides), parameters)

    return SweepSpec(
        name=name,
        method=method,
        goal=goal,
        metric=metric,
        parameters=parameters,
        fixed=(*from_command, *overrides),
        run_cap=run_cap,
        spread=trials is not None,
        target=target,
        stopping=stopping,
        not_for_agents=tuple(_problems(raw, [key for key, _, nested in entries if nested])),
        read_otherwise=read_otherwise,
    )


def _check_keys(path: Path, raw: Any) -> None:
    if not isinstance(raw, dict) or not isinstance(raw.get("parameters"), dict) or not raw["parameters"]:
        raise Refused(f"{path} is not a sweep file: it must have `method` and `parameters`")

    for key in raw:
        if key in _ELSEWHERE:
            raise Refused(f"{path}: key {key!r} is not supported; {_ELSEWHERE[key]}")
        if key not in (*_READ, *_IGNORED):
            raise Refused(f"{path}: key {key!r} is not supported; {nearest(str(key), (*_READ, *_IGNORED))}")

    if raw.get("kind", "sweep") != "sweep":
        raise Refused(f"{path}: kind {raw['kind']!r} is not supported; remove it, or set kind: sweep")


def _without_scheduler(path: Path, raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """A file of W&B's schema for its sweep scheduler in terms of the one before; and what is read otherwise.

    Of several `metrics` the first one is optimised; `method: custom` has the scheduler propose trials, as bayes does.
    """
    older, notes = dict(raw), []
    if older.pop("scheduler", None) is not None:
        notes.append("scheduler: `finetune sweep` proposes the trials itself")
    if older.get("method") == "custom":
        older["method"] = "bayes"
        notes.append("method custom: read as bayes")

    metrics = older.pop("metrics", None)
    if metrics is not None:
        if not isinstance(metrics, list) or not metrics or "metric" in older:
            raise Refused(f"{path}: metrics must be a list of one or more, without metric beside it")
        names = [read_metric(path, entry, str(older.get("method")))[0] for entry in metrics]
        older["metric"] = metrics[0]
        if names[1:]:
            notes.append(f"metrics: {names[0]} is optimised; {', '.join(names[1:])} stands in the records alone")
    return older, tuple(notes)


def _name(path: Path, raw: Mapping[str, Any]) -> str:
    name = str(raw.get("name") or path.stem)
    if not re.fullmatch(r"[^\W.][\w .+-]*", name):
        raise Refused(f"{path}: name {name!r} must be a plain word, for it names the folder under runs/")
    return name


def _method(path: Path, raw: Mapping[str, Any]) -> str:
    method = raw.get("method")
    if method not in METHODS:
        raise Refused(f"{path}: method {method!r} is not supported; {nearest(str(method), METHODS)}")
    return str(method)


def _run_cap(path: Path, raw: Mapping[str, Any], trials: int | None, method: str) -> int | None:
    cap = raw.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        raise Refused(f"{path}: run_cap {cap!r} must be a whole number of at least 1")

    cap = trials or cap
    if method != "grid" and cap is None:
        raise Refused(f"{path}: method {method} never ends by itself; add run_cap: NUMBER, or give --trials")
    return cap


def _problems(raw: Mapping[str, Any], nested: Sequence[str]) -> Iterator[str]:
    """What keeps W&B's agents from running a file."""
    if "command" not in raw:
        yield "it has no command; copy the one of sweeps/local.yaml"
    if nested:
        yield f"nested parameters reach Hydra as one mapping; write dotted keys, such as {nested[0]}"


def _refuse_climbing(path: Path, overrides: Sequence[str], parameters: Mapping[str, Distribution]) -> None:
    """A file may say where to read, but not that something is written outside the folders it is run in."""
    swept = [f"{key}={value}" for key, distribution in parameters.items() for value in distribution.values]
    for word in (*overrides, *swept):
        key, _, value = word.partition("=")
        if key.lstrip("+") in ("out", "cache.dir") and ".." in Path(value).parts:
            raise Refused(f"{path}: {word} leads out of the folder; give --out or {key}=… beside the file instead")


def _refuse_swept_and_fixed(path: Path, overrides: Sequence[str], parameters: Mapping[str, Distribution]) -> None:
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        if key in parameters:
            raise Refused(f"{word}: {key} is swept by {path}; remove it from one of the two")


def _flattened(path: Path, parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Each parameter by its dotted key, and whether the file nests it."""
    for name, entry in parameters.items():
        key = f"{prefix}{name}"
        if not isinstance(entry, dict) or "parameters" not in entry:
            yield key, entry, bool(prefix)
            continue

        inner = entry["parameters"]
        if set(entry) != {"parameters"} or not isinstance(inner, dict) or not inner:
            raise Refused(f"{path}: {key} must hold nested parameters and nothing else, or values")
        yield from _flattened(path, inner, f"{key}.")


def _parameter(path: Path, key: str, entry: Any, method: str) -> Distribution:
    if key not in flat(Schema()):
        raise Refused(f"{path}: {no_such_key(key)}")

    distribution = read_distribution(f"{path}: {key}", key, entry)
    if not is_meaningful(key) and len(distribution.values) != 1:  # its trials would be one trial, in one folder
        raise Refused(f"{path}: {key} changes no result, so it cannot be swept; give {key}=… beside the file")
    if method == "bayes" and any("${" in str(value) for value in distribution.values):
        raise Refused(
            f"{path}: {key}: method bayes learns from values as records have them; write them out, without ${{…}}"
        )
    if method == "grid":
        _refuse_endless(f"{path}: {key}", distribution)
    return distribution


def _refuse_endless(where: str, distribution: Distribution) -> None:
    """A grid needs values that can be listed, and not too many."""
    if distribution.kind in ("int_uniform", "q_uniform"):
        low, high = distribution.bounds
        points = (high - low) / distribution.q
        if points > _MOST:
            raise Refused(f"{where}: a grid of {points:.1e} values never ends; narrow it, or use method: random")
    elif distribution.choices is None:
        raise Refused(
            f"{where}: a grid needs values to list, not a {distribution.kind} distribution; give `values: […]`"
        )


def command_overrides(where: str, command: Any) -> tuple[str, ...]:
    """The overrides that a sweep's command gives to every trial.

    Args:
        where: The file or the sweep, for messages.
        command: Its `command`, a list of words.

    Raises:
        Refused: it runs something else than `-m finetune.train`.
    """
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise Refused(f"{where}: command must be a list of words")
    if not command:
        return ()
    if not {"${args_no_hyphens}", "${args_json_file}"} & set(command):
        raise Refused(f"{where}: command must hold ${{args_no_hyphens}}, which passes the swept values to Hydra")

    start = command.index("finetune.train") if "finetune.train" in command else 0
    if command[start - 1 : start] != ["-m"] or set(command[: start - 1]) - {"${env}", "${interpreter}", "-P"}:
        raise Refused(
            f"{where}: command must begin with ${{env}}, ${{interpreter}}, -m, finetune.train; a sweep file names no "
            "other program"
        )
    return tuple(word for word in command[start + 1 :] if not word.startswith("${"))
