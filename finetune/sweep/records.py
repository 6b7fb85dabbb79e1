"""What the trials of a sweep left in its folder. Imports no torch."""

import itertools
import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.compose import compose_config, override_values
from finetune.config import flat, key_of, trial_key, typed
from finetune.errors import Refused
from finetune.records.layout import (
    CHECKPOINT,
    HEARTBEAT,
    HYDRA,
    LAST,
    LOG,
    OVERRIDES,
    PREDICTIONS,
    PROGRESS,
    RECORD,
    SWEEP,
    TRIALS,
)
from finetune.records.read import finished_record
from finetune.records.result import Result
from finetune.storage.durable import write_durably
from finetune.sweep.search import Params, corners
from finetune.sweep.spec import SweepSpec
from finetune.sweep.yaml_file import read_document


def trial_keys(spec: SweepSpec) -> Callable[[Params], str]:
    """From the parameters of a trial to its key, as composing its config gives it; in microseconds without `${`."""
    swept = (str(value) for distribution in spec.parameters.values() for value in distribution.values)
    if any("${" in text for text in (*spec.fixed, *swept)):
        return lambda params: trial_key(compose_config(spec.overrides(params)))
    base = flat(compose_config(spec.overrides(corners(spec)[0])))
    return lambda params: key_of({**base, **{key: typed(key, value) for key, value in params.items()}})


def clear_attempt(trial: Path) -> None:
    """Remove what an unfinished attempt left, all but what the next goes on from."""
    for left in trial.glob("*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif left.name != LAST:
            left.unlink(missing_ok=True)


def unfinished_trials(folder: Path, keys: Collection[str]) -> list[tuple[Params, Path]]:
    """The trials that were under way when a sweep ended: the values of the swept `keys`, and each one's folder."""
    begun = {file.parent for name in (RECORD, LAST) for file in (folder / TRIALS).glob(f"*/{name}")}
    left = []
    for trial in sorted(trial for trial in begun if finished_record(trial) is None):
        given = override_values([f"{key}={text}" for key, text in overrides_of(trial).items()])
        if given.keys() >= set(keys):
            left.append(({key: typed(key, given[key]) for key in keys}, trial))
    return left


def refuse_without_trials(folder: Path) -> None:
    """Make sure that there are records of trials in a folder of a sweep, or of runs by key.

    Raises:
        Refused: there is none.
    """
    if not any(itertools.chain(folder.glob(f"*/{RECORD}"), folder.glob(f"{TRIALS}/*/{RECORD}"))):
        raise Refused(f"--reuse {folder} holds no trial records; give the folder of a sweep, such as runs/local")


def reused_record(
    spec: SweepSpec, params: Params, place: Path, others: Sequence[Path], data: Collection[str]
) -> Result | None:
    """The complete record of the same settings in one of the folders `others`, now also at `place`; None without one.

    `others` are folders of sweeps, or folders of runs by key. Records of other images, labels or weights than those
    whose digests are in `data` do not count.
    """
    for other in (folder for base in others for folder in (base / TRIALS / place.name, base / place.name)):
        result = finished_record(other)
        if result is not None and result.status == "complete" and _made_from(result) <= set(data):
            shown = {key: result.config[key] for key in (*override_values(spec.fixed), *params) if key in result.config}
            result = replace(result, params=shown)
            for kept in (CHECKPOINT, PREDICTIONS):
                if (other / kept).is_file():
                    write_durably(place / kept, (other / kept).read_bytes())
            result.save(place)  # last, so that no record lacks its model
            return result
    return None


def _made_from(result: Result) -> set[str | None]:
    """Digests of a trial's data and weights, as `Prepared` has them."""
    digests = result.digests
    return {f"{digests.get('dataset')}_{digests.get('split')}", digests.get("weights")}


def progress_of(trial: Path) -> dict[str, Any]:
    """What a running trial last said: its `history` and the number of `epochs`; empty before its first epoch's end."""
    try:
        state: dict[str, Any] = json.loads((trial / PROGRESS).read_text())
    except (OSError, ValueError):
        return {}
    return state


def heartbeat_of(trial: Path) -> str:
    """What changes when a running trial makes progress; empty before it has begun, as in a cluster's queue."""
    try:
        return (trial / HEARTBEAT).read_text()
    except (OSError, ValueError):
        return "started" if (trial / LOG).exists() else ""


def trials_under_way(folder: Path) -> list[Path]:
    """Folders of the trials of a running sweep that have begun, since it was last started, and not ended."""
    since = (folder / SWEEP).stat().st_mtime
    begun = sorted((folder / TRIALS).glob(f"*/{HEARTBEAT}"))
    return [beat.parent for beat in begun if finished_record(beat.parent) is None and beat.stat().st_mtime >= since]


def overrides_of(trial: Path) -> dict[str, str]:
    """What a trial was composed from, by key, as it was written; empty before it has begun."""
    try:
        return dict(word.partition("=")[::2] for word in read_document(trial / HYDRA / OVERRIDES))
    except (Refused, TypeError, AttributeError):
        return {}


def record_death(trial: Path, params: Params, exitcode: int, starts: int, stuck: bool) -> Result:
    """Write, and return, the record of a trial that left none: refused, killed from outside, or stuck."""
    log = trial / LOG
    words = log.read_text(errors="replace").strip().splitlines() if exitcode > 0 and log.exists() else []
    how = f"killed by signal {-exitcode}" if exitcode < 0 else words[-1] if words else f"exit code {exitcode}"
    if stuck:
        how = "no sign of progress, so it was ended"
    if starts > 1:
        how = f"{how}, at each of {starts} starts"
    return _write_record(trial, params, "failed", how)


def record_unlogged(trial: Path, result: Result, metric: str) -> Result:
    """Write, and return, a complete trial's record as failed: it never logged what the sweep optimises."""
    names = sorted({name for epoch in result.history for name in epoch} - {"epoch"})
    failed = replace(result, status="failed", reason=f"{metric} was never logged; logged were {', '.join(names)}")
    failed.save(trial)
    return failed


def record_unstarted(trial: Path, params: Params, reason: str) -> Result:
    """Write, and return, the record of a trial that was given up before it ran."""
    return _write_record(trial, params, "pruned", reason)


def _write_record(trial: Path, params: Params, status: str, reason: str) -> Result:
    depth, seed = params.get("model.freeze_depth"), params.get("seed", 0)
    result = Result(
        key=trial.name,
        status=status,
        reason=reason,
        freeze_depth=depth if isinstance(depth, int) else None,
        freeze_unit="block",
        seed=seed if isinstance(seed, int) else 0,
        val_acc_best=None,
        best_epoch=None,
        trained_parameters=0,
        params=params,
    )
    result.save(trial)
    (trial / LAST).unlink(missing_ok=True)
    return result
