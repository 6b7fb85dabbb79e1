"""A kill at every point of a sweep where something durable is written, a few in each; then the same command again."""

import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.records.result import Result, outcome
from finetune.sweep.children import CONTEXT
from finetune.sweep.run import run_sweep
from finetune.sweep.spec import SweepSpec
from finetune.sweep.state import Options
from tests.faults.invariants import check_invariants, spec_of, terminal_records

Arm = Callable[..., Path]
PARTS = 4
BY_COORDINATOR = re.compile(r"(tell \S+|\w+ \S+/sweep\.json)")
"""Points that the coordinator passes itself."""


def outcomes(folder: Path) -> dict[str, dict[str, object]]:
    return {key: outcome(Result.load(folder / "trials" / key)) for key in terminal_records(folder)}


def points(reached: Path, spec: SweepSpec, place: Path) -> list[str]:
    """`POINT PATH N` of all that a sweep from nothing passes."""
    run_sweep(spec, place / "s", Options(workers=1))
    seen: Counter[str] = Counter()
    found = []
    for line in reached.read_text().splitlines():
        seen[line] += 1
        found.append(f"{line} {seen[line]}")
    return found


def dealt(points: list[str]) -> list[list[str]]:
    """The points in groups that one sweep survives: its preparation and its trial may be started twice more."""
    coordinator = [point for point in points if BY_COORDINATOR.match(point)]
    preparation = [point for point in points if "/cache/" in point]
    trial = [point for point in points if point not in (*coordinator, *preparation)]
    count = max(len(coordinator), -(-len(preparation) // 2), -(-len(trial) // 2))
    return [preparation[i::count] + coordinator[i::count] + trial[i::count] for i in range(count)]


def _coordinate(spec: SweepSpec, folder: Path) -> None:
    run_sweep(spec, folder, Options(workers=1))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_sweep_goes_on_after_a_kill_at_any_point(tmp_path: Path, small: list[str], arm: Arm, part: int) -> None:
    words = [*small, f"cache.dir={tmp_path / 'cache'}", "cache.mode=on", "trainer.save_every=0", "data.batch_size=24"]
    spec = spec_of(tmp_path, words, {"model.freeze_depth": {"values": [4]}})
    every = points(arm(), spec, tmp_path)
    whole = outcomes(tmp_path / "s")
    assert len(whole) == 1

    groups = dealt(every)
    assert sorted(point for group in groups for point in group) == sorted(every)
    assert max(map(len, groups)) <= 5
    print(f"{len(every)} points in {len(groups)} sweeps")  # `pytest -s` tells
    for group in groups[part::PARTS]:
        shutil.rmtree(tmp_path / "s")
        shutil.rmtree(tmp_path / "cache")
        reached = arm(*(f"{point} kill" for point in group))
        if any(BY_COORDINATOR.match(point) for point in group):
            process = CONTEXT.Process(target=_coordinate, args=(spec, tmp_path / "s"))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL, group
        run_sweep(spec, tmp_path / "s", Options(workers=1))
        passed = Counter(reached.read_text().splitlines())
        for point in group:
            name, _, times = point.rpartition(" ")
            assert passed[name] >= int(times), group

        before = terminal_records(tmp_path / "s")
        arm()
        run_sweep(spec, tmp_path / "s", Options(workers=1))
        assert outcomes(tmp_path / "s") == whole, group
        check_invariants(tmp_path / "s", before, tmp_path / "cache")
