"""What a sweep costs besides training: `python benchmarks/overhead.py`.

Start-up: from launching a trial until it looks for its images, as a forked child and as a cold process, in turn.
Bookkeeping: reading 10,000 finished trials again at the start of a sweep, and a look at 1,000 running ones, which a
sweep on a cluster takes at every poll.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from finetune.config import key_of
from finetune.records.layout import PROGRESS, TRIALS
from finetune.records.result import Result
from finetune.sweep.coordinator import Coordinator
from finetune.sweep.distribution import Distribution
from finetune.sweep.launch import LocalLauncher, Slot
from finetune.sweep.prepare import check_and_prepare
from finetune.sweep.records import trial_settings
from finetune.sweep.search import Search, size
from finetune.sweep.spec import SweepSpec
from finetune.sweep.state import Options, Running, Sweep

ABSENT = "data.root=/nowhere"  # the trial ends where it would begin to read


def start_up(scratch: Path, repeats: int = 9) -> None:
    launcher = LocalLauncher([Slot(None, 1)])

    def forked() -> None:
        (job,) = launcher.start([([ABSENT], scratch / "trial")])
        while job.exitcode is None:
            launcher.wait([job])
        assert job.exitcode == 2

    def cold() -> None:
        ended = subprocess.run([sys.executable, "-m", "finetune.train", ABSENT], capture_output=True, check=False)
        assert ended.returncode == 2

    check_and_prepare([])  # the server has imported everything
    times: dict[str, list[float]] = {"forked": [], "cold": []}
    for _ in range(repeats):
        for name, run in (("forked", forked), ("cold", cold)):
            times[name].append(seconds(run))
    for name, values in times.items():
        print(f"start-up, {name}: median {statistics.median(values):.2f} s, {min(values):.2f} to {max(values):.2f}")
    ratios = [slow / fast for slow, fast in zip(times["cold"], times["forked"], strict=True)]
    print(f"cold / forked: median {statistics.median(ratios):.1f}, {min(ratios):.1f} to {max(ratios):.1f}")


def bookkeeping(scratch: Path, count: int = 10_000) -> None:
    lr = Distribution("log_uniform_values", bounds=(1e-5, 0.1))
    spec = SweepSpec("many", "random", "maximize", "val/acc_best", {"optim.lr": lr}, (), count)
    search, settings_of = Search(spec), trial_settings(spec)
    epoch = {"train/loss": 0.5, "train/acc": 0.8, "val/loss": 0.6, "val/acc": 0.7, "lr": 0.001}
    made = Result(
        "", "complete", "", 17, "block", 0, 0.7, 4, 1000, {}, history=[{"epoch": i, **epoch} for i in range(5)]
    )
    while (params := search.propose()) is not None:
        place = scratch / TRIALS / key_of(settings_of(params))
        place.mkdir(parents=True)
        replace(made, key=place.name, params=params).save(place)
    sweep = Sweep(spec, scratch, size(spec))
    took = seconds(_coordinator(sweep).run)
    assert len(sweep.finished) == count
    print(f"bookkeeping: {count} records read again in {took:.2f} s, {took / count * 1e6:.0f} µs a trial")


def _coordinator(sweep: Sweep) -> Coordinator:
    launcher, quiet = LocalLauncher([Slot(None, 1)]), lambda sweep, result: None
    return Coordinator(sweep, trial_settings(sweep.spec), Search(sweep.spec), launcher, Options(), quiet)


class Pending:
    """A job that goes on."""

    exitcode = None
    pid = None
    waits = False


def look(scratch: Path, count: int = 1_000) -> None:
    lr = Distribution("log_uniform_values", bounds=(1e-5, 0.1))
    spec = SweepSpec("many", "random", "maximize", "val/acc_best", {"optim.lr": lr}, (), count)
    sweep = Sweep(spec, scratch, count)
    history = [{"epoch": i, "val/acc": 0.5, "val/loss": 1.0, "train/acc": 0.5, "train/loss": 1.0} for i in range(20)]
    for i in range(count):
        place = scratch / f"running{i}"
        place.mkdir()
        (place / PROGRESS).write_text(json.dumps({"epochs": 20, "history": history, "images": 500}))
        sweep.running.append(Running({"optim.lr": 0.1}, place, Pending()))
    took = seconds(_coordinator(sweep).look)
    print(f"a look at {count} running trials: {took:.3f} s")


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        start_up(Path(folder))
        bookkeeping(Path(folder))
        look(Path(folder))
