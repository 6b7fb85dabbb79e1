"""What the trials of a sweep left in its folder. Imports no torch."""

import functools
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.compose import compose_config, override_values
from finetune.config import PLACES, flat, key_of, typed
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
from finetune.records.ranking import BACKBONE
from finetune.records.read import finished_record
from finetune.records.result import Result
from finetune.storage.durable import write_durably
from finetune.sweep.search import DEPTH, Params, corners
from finetune.sweep.spec import SweepSpec
from finetune.sweep.yaml_file import read_document


def trial_settings(spec: SweepSpec) -> Callable[[Params], dict[str, Any]]:
    """From the parameters of a trial to all its settings, as composing its config gives them, `out` apart.

    That takes microseconds instead of a tenth of a second: the swept values are put into the settings of one composed
    trial of each network. Where a value refers to others by `${`, each trial is composed.
    """
    swept = (str(value) for distribution in spec.parameters.values() for value in distribution.values)
    if any("${" in text for text in (*spec.fixed, *swept)):
        return lambda params: flat(compose_config(spec.overrides(params)))

    first = corners(spec)[0]

    @functools.cache
    def of_network(name: str | None) -> dict[str, Any]:
        """A network of its own leaves other settings open, such as the size of its images."""
        network = {} if name is None else {BACKBONE: name}
        return flat(compose_config(spec.overrides({**first, **network})))

    return lambda params: {
        **of_network(params.get(BACKBONE)),
        **{key: typed(key, value) for key, value in params.items()},
    }


def clear_attempt(trial: Path) -> None:
    """Remove what an unfinished attempt left, all but what the next goes on from."""
    for entry in trial.glob("*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != LAST:
            entry.unlink(missing_ok=True)


def unfinished_trials(folder: Path, keys: Collection[str]) -> list[tuple[Params, Path]]:
    """The trials that were under way when a sweep ended: the values of the swept `keys`, and each one's folder."""
    begun = {file.parent for name in (RECORD, LAST) for file in (folder / TRIALS).glob(f"*/{name}")}
    unfinished = []
    for trial in sorted(trial for trial in begun if finished_record(trial) is None):
        values = override_values([f"{key}={text}" for key, text in overrides_of(trial).items()])
        if values.keys() >= set(keys):
            unfinished.append(({key: typed(key, values[key]) for key in keys}, trial))
    return unfinished


def refuse_without_trials(folder: Path) -> None:
    """Make sure that there are records of trials in a folder of a sweep, or of runs by key.

    Raises:
        Refused: there is none.
    """
    if not _record_files(folder):
        raise Refused(f"--reuse {folder} holds no trial records; give the folder of a sweep, such as runs/local")


class ReusableRecords:
    """Complete records of other folders, found by the settings and the data they were made from.

    Where images and weights lay then does not matter: their digests say what they were.
    """

    def __init__(self, spec: SweepSpec, folders: Sequence[Path], data: Collection[str]):
        """
        Args:
            spec: The sweep that may use them.
            folders: Folders of sweeps, or of runs by key.
            data: Digests of the sweep's images, labels and weights; a record of others does not count.
        """
        self._spec = spec
        self._places = [key for key in PLACES if key not in spec.parameters]  # swept ones are settings like any other
        self._found = dict[str, Path]()
        for record in (file for folder in folders for file in _record_files(folder)):
            result = finished_record(record.parent)
            if result is not None and result.status == "complete" and _made_from(result) <= set(data):
                self._found.setdefault(self._without_places(result.config), record.parent)

    def _without_places(self, settings: Mapping[str, Any]) -> str:
        return key_of({**settings, **dict.fromkeys(self._places)})

    def take(self, params: Params, settings: Mapping[str, Any], trial: Path) -> Result | None:
        """The record of the same settings, now also in `trial`; None without one.

        Args:
            params: The trial's.
            settings: All of its settings.
            trial: Its folder, named by its key.
        """
        folder = self._found.get(self._without_places(settings))
        if folder is None:
            return None

        result = Result.load(folder)
        config = {**result.config, **{key: settings[key] for key in self._places}}
        result = replace(result, key=trial.name, config=config, params=_recorded_params(self._spec, params, config))
        for name in (CHECKPOINT, PREDICTIONS):
            if (folder / name).is_file():
                write_durably(trial / name, (folder / name).read_bytes())
        result.save(trial)  # last, so that no record lacks its model
        return result


def _record_files(folder: Path) -> list[Path]:
    """Of a sweep, or of runs by key."""
    return [*sorted(folder.glob(f"{TRIALS}/*/{RECORD}")), *sorted(folder.glob(f"*/{RECORD}"))]


def _made_from(result: Result) -> set[str | None]:
    """Digests of a trial's data and weights, as `Prepared` has them."""
    digests = result.digests
    return {f"{digests.get('dataset')}_{digests.get('split')}", digests.get("weights")}


def _recorded_params(spec: SweepSpec, params: Params, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a record calls a trial's `params`: the values of the fixed overrides, then of the swept ones."""
    keys = (*override_values(spec.fixed), *params)
    return {key: settings[key] for key in keys if key in settings and key != "out"}


def progress_of(trial: Path) -> dict[str, Any]:
    """What a running trial last said: its `history` and the number of `epochs`; empty before its first epoch's end."""
    try:
        state: dict[str, Any] = json.loads((trial / PROGRESS).read_text(encoding="utf-8"))
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
    heartbeats = sorted((folder / TRIALS).glob(f"*/{HEARTBEAT}"))
    return [
        heartbeat.parent
        for heartbeat in heartbeats
        if finished_record(heartbeat.parent) is None and heartbeat.stat().st_mtime >= since
    ]


def overrides_of(trial: Path) -> dict[str, str]:
    """What a trial was composed from, by key, as it was written; empty before it has begun."""
    try:
        return dict(word.partition("=")[::2] for word in read_document(trial / HYDRA / OVERRIDES))
    except (Refused, TypeError, AttributeError):
        return {}


def unrecorded(
    trial: Path, spec: SweepSpec, params: Params, settings: Mapping[str, Any], status: str, reason: str
) -> Result:
    """Write, and return, the record of a trial that left none: it died, or was given up before it ran.

    Args:
        trial: Its folder.
        spec: The sweep.
        params: The trial's.
        settings: All that it was, or would have been, trained with; empty where they cannot be composed.
        status: `failed` or `pruned`.
        reason: Why.
    """
    config: dict[str, Any] = {**settings, "out": str(trial)} if settings else {}
    known = config or params
    depth, seed = known.get(DEPTH), known.get("seed")
    result = Result(
        key=trial.name,
        status=status,
        reason=reason,
        freeze_depth=depth if isinstance(depth, int | float) else None,  # what `all` means was not found out
        freeze_unit=known.get("model.freeze_unit", ""),
        seed=seed if isinstance(seed, int) else 0,
        val_acc_best=None,
        best_epoch=None,
        trained_parameters=0,
        params=_recorded_params(spec, params, known),
        config=config,
    )
    result.save(trial)
    (trial / LAST).unlink(missing_ok=True)
    return result


def cause_of_death(trial: Path, exitcode: int, starts: int, stuck: bool) -> str:
    """Why a trial left no record: it was refused, killed from outside, or stuck.

    Args:
        trial: Its folder.
        exitcode: Of the last start; negative for the signal that killed it.
        starts: How often it was started.
        stuck: Whether it was ended for want of progress.
    """
    log = trial / LOG
    lines = []
    if exitcode > 0 and log.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if stuck:
        cause = "no sign of progress, so it was ended"
    elif exitcode < 0:
        cause = f"killed by signal {-exitcode}"
    else:
        cause = lines[-1] if lines else f"exit code {exitcode}"
    return f"{cause}, at each of {starts} starts" if starts > 1 else cause


def record_unlogged(trial: Path, result: Result, metric: str) -> Result:
    """Write, and return, a complete trial's record as failed: it never logged what the sweep optimises."""
    names = sorted({name for epoch in result.history for name in epoch} - {"epoch"})
    failed = replace(result, status="failed", reason=f"{metric} was never logged; logged were {', '.join(names)}")
    failed.save(trial)
    return failed
