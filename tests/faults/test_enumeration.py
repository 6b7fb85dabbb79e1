"""A kill at every point of a sweep where something durable is written, in turn; then the same command again."""

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


def _coordinate(spec: SweepSpec, folder: Path) -> None:
    run_sweep(spec, folder, Options(workers=1))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_sweep_goes_on_after_a_kill_at_any_point(tmp_path: Path, fast: list[str], arm: Arm, part: int) -> None:
    words = [*fast, f"cache.dir={tmp_path / 'cache'}", "cache.mode=on", "trainer.save_every=0", "data.batch_size=24"]
    spec = spec_of(tmp_path, words, {"model.freeze_depth": {"values": [16]}})
    every = points(arm(), spec, tmp_path)
    whole = outcomes(tmp_path / "s")
    assert len(whole) == 1
    chosen = every[part::PARTS]
    print(f"{len(every)} points, of which {len(chosen)} here")  # `pytest -s` tells
    for point in chosen:
        shutil.rmtree(tmp_path / "s")
        shutil.rmtree(tmp_path / "cache")
        reached = arm(f"{point} kill")
        if BY_COORDINATOR.match(point):
            process = CONTEXT.Process(target=_coordinate, args=(spec, tmp_path / "s"))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL, point
        else:
            run_sweep(spec, tmp_path / "s", Options(workers=1))
        assert point.rpartition(" ")[0] in reached.read_text().splitlines(), point
        before = terminal_records(tmp_path / "s")
        arm()
        run_sweep(spec, tmp_path / "s", Options(workers=1))
        assert outcomes(tmp_path / "s") == whole, point
        check_invariants(tmp_path / "s", before, tmp_path / "cache")
