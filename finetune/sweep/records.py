"""The folder of a sweep: whose it is, and what its trials left there. Imports no torch."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.compose import compose_config, override_values
from finetune.config import flat, key_of, typed
from finetune.durable import write_durably
from finetune.errors import Refused
from finetune.predictions import PREDICTIONS
from finetune.result import CHECKPOINT, PROGRESS, RECORD, Result
from finetune.sweep.launch import LOG
from finetune.sweep.search import Params, corners
from finetune.sweep.spec import SweepSpec

SWEEP = "sweep.json"
TRIALS = "trials"


def refuse_another(spec: SweepSpec, folder: Path, seed: int) -> None:
    """Make sure that `folder` is new or holds this very sweep.

    Raises:
        Refused: it holds another, or something else; the message says old and new.
    """
    if not (folder / SWEEP).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise Refused(f"{folder} holds other files and no sweep; give --out another folder")
        return
    old, new = json.loads((folder / SWEEP).read_text()), json.loads(json.dumps(_identity(spec, seed)))
    for name in ("fixed", "seed", "digest"):
        if old[name] != new[name]:
            raise Refused(
                f"{folder} holds a sweep whose {name} was {old[name]} and would now be {new[name]}; give the same file "
                f"and overrides to continue it, or `--out ANOTHER --reuse {folder}` to extend it"
            )


def claim(spec: SweepSpec, folder: Path, seed: int) -> None:
    """Write into `folder` which sweep it holds."""
    write_durably(folder / SWEEP, json.dumps(_identity(spec, seed), indent=1).encode())


def _identity(spec: SweepSpec, seed: int) -> dict[str, Any]:
    return {"name": spec.name, "digest": spec.digest, "seed": seed, "swept": list(spec.parameters), "fixed": spec.fixed}


def trial_keys(spec: SweepSpec) -> Callable[[Params], str]:
    """From the parameters of a trial to its key, as composing its config would give it, but in microseconds."""
    base = flat(compose_config(spec.overrides(corners(spec)[0])))
    return lambda params: key_of({**base, **{key: typed(key, value) for key, value in params.items()}})


def finished_record(trial: Path) -> Result | None:
    """The record of a trial that need not run again: complete, pruned or failed."""
    try:
        result = Result.load(trial)
    except (FileNotFoundError, ValueError):
        return None
    return None if result.status == "interrupted" else result


def records_by_age(folder: Path) -> list[Result]:
    """The finished records of a sweep, oldest first."""
    files = sorted((folder / TRIALS).glob(f"*/{RECORD}"), key=lambda file: file.stat().st_mtime_ns)
    return [result for file in files if (result := finished_record(file.parent)) is not None]


def reused_record(spec: SweepSpec, params: Params, place: Path, others: Sequence[Path]) -> Result | None:
    """The finished record of the same settings in one of the folders `others`, now also at `place`; None without one.

    `others` are folders of sweeps, or folders of runs by key.
    """
    for other in (folder for base in others for folder in (base / TRIALS / place.name, base / place.name)):
        result = finished_record(other)
        if result is not None and result.status != "failed":
            shown = {key: result.config[key] for key in (*override_values(spec.fixed), *params) if key in result.config}
            result = replace(result, params=shown)
            result.save(place)
            for kept in (CHECKPOINT, PREDICTIONS):
                if (other / kept).is_file():
                    shutil.copyfile(other / kept, place / kept)
            return result
    return None


def progress_of(trial: Path) -> dict[str, Any]:
    """What a running trial last said: its `history` and the number of `epochs`; empty before its first epoch's end."""
    try:
        state: dict[str, Any] = json.loads((trial / PROGRESS).read_text())
    except (OSError, ValueError):
        return {}
    return state


def record_death(trial: Path, params: Params, exitcode: int) -> Result:
    """Write, and return, the record of a trial that ended without leaving one: refused, or killed from outside."""
    log = trial / LOG
    words = log.read_text(errors="replace").strip().splitlines() if exitcode > 0 and log.exists() else []
    how = f"killed by signal {-exitcode}" if exitcode < 0 else words[-1] if words else f"exit code {exitcode}"
    return _write_record(trial, params, "failed", how)


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
    return result
