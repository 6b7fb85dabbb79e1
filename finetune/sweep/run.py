"""The sweep on this machine: ask, launch, watch, record, resume. Imports no torch."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from finetune.compose import compose_config
from finetune.config import trial_key
from finetune.durable import write_durably
from finetune.errors import Refused
from finetune.result import CHECKPOINT, PROGRESS, RECORD, Result
from finetune.sweep.launch import LOG, Slot, check_and_prepare, slots, start_trial
from finetune.sweep.search import Params, Tried, corners, propose, size
from finetune.sweep.spec import SweepSpec, override

SWEEP = "sweep.json"
TRIALS = "trials"


@dataclass
class Running:
    """A trial under way."""

    params: Params
    folder: Path
    process: ForkServerProcess
    slot: Slot
    started: float = field(default_factory=time.monotonic)


@dataclass
class Sweep:
    """The state of one sweep: what finished, what runs. Rebuilt from the records at every start."""

    spec: SweepSpec
    folder: Path
    seed: int
    total: int
    finished: list[tuple[Params, Result]] = field(default_factory=list)
    """In the order in which this process learned of them."""
    running: list[Running] = field(default_factory=list)

    @property
    def best(self) -> Result | None:
        """The finished trial with the best metric."""
        valued = [(result_value(self.spec, result), i) for i, (_, result) in enumerate(self.finished)]
        ranked = [(v if self.spec.goal == "maximize" else -v, -i) for v, i in valued if v is not None]
        return self.finished[-max(ranked)[1]][1] if ranked else None


def result_value(spec: SweepSpec, result: Result) -> float | None:
    """The metric the sweep optimises, of a complete trial; else None."""
    if result.status != "complete":
        return None
    return result.val_acc_best if spec.metric == "val/acc_best" else result.last.get(spec.metric)


def run_sweep(
    spec: SweepSpec,
    folder: Path,
    workers: int | None = None,
    seed: int = 0,
    watch: Callable[[Sweep, Result | None], None] = lambda sweep, ended: None,
) -> Sweep:
    """Run, or continue, a sweep until no trial is left; every trial leaves its record under `folder/trials/`.

    Args:
        spec: The sweep.
        folder: Where it lives; a sweep of another space that is there already is left alone.
        workers: Trials at a time; by default one a GPU, else one a core and four at the most.
        seed: Of the search, not of the trials.
        watch: Called a few times a second, and with each trial's record as it ends.

    Raises:
        Refused: bad values, data or weights, or another sweep in `folder`; nothing was written.
        KeyboardInterrupt: passed on after the running trials were stopped; a later call continues.
    """
    _same_sweep(spec, folder, seed)
    checks = [_overrides(spec, params) for params in corners(spec)]
    gpus = check_and_prepare(checks)
    write_durably(folder / SWEEP, json.dumps(_identity(spec, seed), indent=1).encode())
    sweep = Sweep(spec, folder, seed, size(spec), _learned_from(spec, folder))
    free = slots(gpus, workers)
    exhausted = False
    try:
        while not exhausted or sweep.running:
            while free and not exhausted:
                params = propose(spec, seed, _tried(sweep))
                if params is None:
                    exhausted = True
                    break
                place = folder / TRIALS / trial_key(compose_config(_overrides(spec, params)))
                before = finished_record(place)
                if before is not None:
                    sweep.finished.append((params, before))
                    continue
                shutil.rmtree(place, ignore_errors=True)  # what an interrupted attempt left
                slot = free.pop(0)
                process = start_trial(_overrides(spec, params), place, slot)
                sweep.running.append(Running(params, place, process, slot))
            watch(sweep, None)
            wait([trial.process.sentinel for trial in sweep.running], timeout=0.25)
            for trial in [trial for trial in sweep.running if not trial.process.is_alive()]:
                sweep.running.remove(trial)
                free.append(trial.slot)
                result = finished_record(trial.folder) or _record_death(trial)
                best = sweep.best
                sweep.finished.append((trial.params, result))
                for loser in {trial.folder.name, best.key if best else ""} - {sweep.best.key if sweep.best else ""}:
                    (sweep.folder / TRIALS / loser / CHECKPOINT).unlink(missing_ok=True)
                watch(sweep, result)
    finally:
        _stop(sweep.running)
    return sweep


def finished_record(trial: Path) -> Result | None:
    """The record of a trial that need not run again: complete, pruned or failed."""
    try:
        result = Result.load(trial)
    except (FileNotFoundError, ValueError):
        return None
    return None if result.status == "interrupted" else result


def progress_of(trial: Path) -> dict[str, Any]:
    """What a running trial last said: `epoch`, `epochs`, `val/acc`, `val/acc_best`; empty before its first epoch."""
    try:
        state: dict[str, Any] = json.loads((trial / PROGRESS).read_text())
    except (OSError, ValueError):
        return {}
    return state


def _learned_from(spec: SweepSpec, folder: Path) -> list[tuple[Params, Result]]:
    """The records a bayes search starts from, oldest first; the other searches come to each in its turn."""
    if spec.method != "bayes":
        return []
    records = sorted((folder / TRIALS).glob(f"*/{RECORD}"), key=lambda file: file.stat().st_mtime_ns)
    results = [result for record in records if (result := finished_record(record.parent)) is not None]
    return [({key: result.params[key] for key in spec.parameters}, result) for result in results]


def _overrides(spec: SweepSpec, params: Params) -> list[str]:
    return [*spec.fixed, *(override(key, value) for key, value in params.items())]


def _tried(sweep: Sweep) -> list[Tried]:
    ended = [Tried(params, result_value(sweep.spec, result)) for params, result in sweep.finished]
    return ended + [Tried(trial.params, None, running=True) for trial in sweep.running]


def _identity(spec: SweepSpec, seed: int) -> dict[str, Any]:
    return {"name": spec.name, "digest": spec.digest, "seed": seed, "swept": list(spec.parameters), "fixed": spec.fixed}


def _same_sweep(spec: SweepSpec, folder: Path, seed: int) -> None:
    if not (folder / SWEEP).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise Refused(f"{folder} holds other files and no sweep; give --out another folder")
        return
    old, new = json.loads((folder / SWEEP).read_text()), json.loads(json.dumps(_identity(spec, seed)))
    for name in ("fixed", "seed", "digest"):
        if old[name] != new[name]:
            raise Refused(
                f"{folder} holds a sweep whose {name} was {old[name]} and would now be {new[name]}; "
                "give --out another folder, or the same file and overrides to continue it"
            )


def _record_death(trial: Running) -> Result:
    """The record of a trial that ended without leaving one: refused, or killed from outside."""
    code = trial.process.exitcode or 0
    words = (trial.folder / LOG).read_text(errors="replace").strip().splitlines() if code > 0 else []
    how = f"killed by signal {-code}" if code < 0 else words[-1] if words else f"exit code {code}"
    depth = trial.params.get("model.freeze_depth")
    result = Result(
        key=trial.folder.name,
        status="failed",
        reason=how,
        freeze_depth=depth if isinstance(depth, int) else None,
        freeze_unit="block",
        seed=0,
        val_acc_best=None,
        best_epoch=None,
        trained_parameters=0,
        params=trial.params,
    )
    result.save(trial.folder)
    return result


def _stop(running: Sequence[Running]) -> None:
    for trial in running:
        trial.process.terminate()
    for trial in running:
        trial.process.join(timeout=5)
        if trial.process.is_alive():
            trial.process.kill()
            trial.process.join()
