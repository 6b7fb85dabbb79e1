"""A sweep from its first check to its last trial; calling it again continues it. Imports no torch."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.compose import compose_config
from finetune.config import digest_of, key_of
from finetune.records.layout import RECORD, SWEEP, TRIALS
from finetune.records.ranking import BACKBONE, MARGIN, REPEATED, Objective
from finetune.records.result import Result
from finetune.storage.durable import remove_leftovers
from finetune.storage.parallel import Progress, no_progress
from finetune.storage.store import stores_in_use
from finetune.sweep.children import set_networks
from finetune.sweep.cluster import ClusterLauncher, read_cluster
from finetune.sweep.coordinator import Coordinator
from finetune.sweep.estimate import Estimate, estimate_sweep
from finetune.sweep.folder import alone, as_begun, claim, refuse_another, refuse_unusable
from finetune.sweep.jobs import Launcher
from finetune.sweep.launch import LocalLauncher, chosen_gpus, local_slots
from finetune.sweep.precision import PRECISION, with_measured_precision
from finetune.sweep.prepare import check_and_prepare, usable_gpus
from finetune.sweep.race import race_order
from finetune.sweep.records import ReusableRecords, refuse_without_trials, trial_settings
from finetune.sweep.search import Params, Search, corners, decides_store, planned_trials, sharing_order, size
from finetune.sweep.spec import SweepSpec
from finetune.sweep.state import Forecast, Options, Sweep

_AS_USUAL = Options()


def run_sweep(
    spec: SweepSpec,
    folder: Path,
    options: Options = _AS_USUAL,
    seed: int = 0,
    watch: Callable[[Sweep, Result | None], None] = lambda sweep, ended: None,
    show: Progress = no_progress,
    announce: Callable[[Estimate, bool], None] | None = None,
) -> Sweep:
    """Run, or continue, a sweep until no trial is left; every trial leaves its record under `folder/trials/`.

    ```python
    spec = read_sweep(find_sweep("explore.yaml"), ("data.root=photos",))
    sweep = run_sweep(spec, Path("runs/explore"))
    print(sweep.best)
    ```

    Args:
        spec: The sweep.
        folder: Where it lives; a sweep of another space that is there already is left alone.
        options: How it runs.
        seed: The seed of the search, not of the trials.
        watch: Called a few times a second, and with each trial's record as it ends.
        show: Called while data and activations are prepared, with what, how much of it, and the total.
        announce: Called first, with what the trials that are left will take, and whether they race; that is measured
            for it in 20 seconds at the most. Not with a budget, nor on a cluster.

    Raises:
        Refused: bad values, data or weights, or another sweep in `folder`; nothing was written.
        KeyboardInterrupt: passed on after the running trials were stopped; a later call continues.
    """
    deadline = math.inf if options.budget is None else time.monotonic() + options.budget

    # 1. What can be refused at once: before images are read, which may take minutes
    spec = as_begun(spec, folder)
    settings_of = trial_settings(spec)
    for other in options.reuse:
        refuse_without_trials(other)
    refuse_another(spec, folder, seed)
    refuse_unusable(folder)

    # 2. Where the trials run, and what they share
    set_networks(_networks(spec, seed))
    cluster = None if options.launcher == "local" else read_cluster(options.launcher)
    gpus = [] if cluster else chosen_gpus(usable_gpus(), options.gpus)
    if gpus and not _on_gpus(spec):
        gpus = []
    slots = local_slots(gpus, options.workers, options.trials_per_gpu or 1)
    measured: tuple[str, ...] = ()
    if cluster is None and not gpus and not (folder / SWEEP).is_file():
        as_written = spec
        spec = with_measured_precision(as_written, seed, slots[0].threads)
        measured = (PRECISION,) if spec != as_written else ()
        settings_of = trial_settings(spec)
    objective = objective_of(spec, settings_of, options.margin)
    sweep = Sweep(spec, folder, size(spec), objective)
    recorded = {file.parent.name for file in (folder / TRIALS).glob(f"*/{RECORD}")}
    estimate = None
    if announce is not None and cluster is None and options.budget is None:
        estimate = estimate_sweep(spec, slots, seed, lambda params: key_of(settings_of(params)) not in recorded)
        if estimate is not None:
            announce(estimate, sweep.races)

    # under a budget each trial stores what it needs, for many may never be reached
    stores = cluster is None and options.budget is None
    prepared = check_and_prepare([*_to_prepare(spec, seed), *_other_folds(spec)], stores, show, gpus)
    if options.trials_per_gpu is None:  # which takes the images to know; the estimate reckoned with one
        slots = local_slots(gpus, options.workers, prepared.trials_per_gpu)

    # 3. The folder once more, now that the digests of images and weights are known
    data = (*prepared.datasets, *prepared.weights)
    refuse_another(spec, folder, seed, data)
    refuse_unusable(folder)

    # 4. The trials
    search = Search(spec, seed, in_order(sweep, seed, options.budget))
    with alone(folder), stores_in_use(prepared.stores):
        remove_leftovers(folder)
        claim(spec, folder, seed, data, sweep.total, objective, measured)

        environment = {"WANDB_RUN_GROUP": spec.name}
        launcher: Launcher
        if cluster is None:
            launcher = LocalLauncher(slots, environment, prepared.shared)
        else:
            launcher = ClusterLauncher(cluster, folder, environment, prepared.shared)
        reusable = ReusableRecords(spec, options.reuse, data) if options.reuse else None
        started = time.monotonic()
        Coordinator(sweep, settings_of, search, launcher, options, watch, reusable, deadline).run()
        if estimate is not None and not sweep.taken:
            new = [(t.params, t.result) for t in sweep.finished if t.result.key not in recorded]
            sweep.forecast = Forecast(estimate.of_those_that_ran(new), time.monotonic() - started)
    return sweep


def objective_of(spec: SweepSpec, settings_of: Callable[[Params], dict[str, Any]], margin: float | None) -> Objective:
    """What a sweep optimises, and how its trials are judged."""
    objective = Objective(spec.metric, spec.goal)
    if margin is None or _repeats_itself(spec):
        return objective
    return replace(objective, margin=margin, explored_by=int(settings_of(corners(spec)[0])["seed"]))


def in_order(sweep: Sweep, seed: int, budget: float | None) -> Iterable[Params]:
    """The trials of a grid or random search as they are to run: side by side those that share stores."""
    spec = sweep.spec
    if spec.method == "bayes":
        return ()
    if sweep.races:  # which go by the next deeper cut, and by the larger learning rates
        return sorted(planned_trials(spec, seed), key=lambda params: (sharing_order(params), race_order(params)))
    if spec.target is not None or budget is not None:  # then it must not end lopsided
        return planned_trials(spec, seed, may_end_early=True)
    return sorted(planned_trials(spec, seed), key=sharing_order)


def _networks(spec: SweepSpec, seed: int) -> list[list[str]]:
    """The overrides of one trial of each network and image size of a sweep."""
    planned = corners(spec) if spec.method == "bayes" else planned_trials(spec, seed)
    examples = {digest_of([params.get(key) for key in (BACKBONE, "data.size")]): params for params in planned}
    return [spec.overrides(params) for params in examples.values()]


def _on_gpus(spec: SweepSpec) -> bool:
    """Whether some trial may use a GPU."""
    return any(compose_config(spec.overrides(end)).trainer.accelerator != "cpu" for end in corners(spec))


def _to_prepare(spec: SweepSpec, seed: int) -> list[tuple[list[str], int]]:
    """Trials that together use every value and every store of the sweep, with the number of trials like each."""
    ends = corners(spec)
    if spec.method == "bayes":
        return [(spec.overrides(params), max(1, size(spec) // len(ends))) for params in ends]

    examples = {_stores_of(end): end for end in ends}
    counts = Counter[str]()
    for params in planned_trials(spec, seed):
        name = _stores_of(params)
        examples.setdefault(name, params)
        counts[name] += 1

    only_checked = [(end, 0) for end in ends if end not in examples.values()]
    counted = [(params, counts[name]) for name, params in examples.items()]
    return [(spec.overrides(params), count) for params, count in [*only_checked, *counted]]


def races_by_default(spec: SweepSpec) -> bool:
    """Whether `finetune sweep` races with this file: it stops trials, and repeats what decides."""
    return Sweep(spec, Path(), size(spec), objective_of(spec, trial_settings(spec), margin=MARGIN)).races


def _repeats_itself(spec: SweepSpec) -> bool:
    """Whether the file says what is repeated."""
    return any(key in spec.parameters for key in REPEATED)


def _other_folds(spec: SweepSpec) -> list[tuple[list[str], int]]:
    """The folds that only repeats are judged on, to be looked up before the first trial; their stores are shared."""
    if _repeats_itself(spec):
        return []

    settings_of = trial_settings(spec)
    others = []
    for end in corners(spec):
        settings = settings_of(end)
        for fold in range(int(settings["data.folds"] or 0)):
            if fold != settings["data.fold"]:
                others.append((spec.overrides({**end, "data.fold": fold}), 0))
    return others


def _stores_of(params: Params) -> str:
    """Equal for trials that use the same stores."""
    return digest_of({key: value for key, value in params.items() if decides_store(key)})
