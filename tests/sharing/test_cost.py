from dataclasses import replace
from pathlib import Path

import pytest

from finetune.sharing.cost import Costs, Disk, cumulative, decide, measure_disk

DISK = Disk(write=1e8, read=1e9, cold=2e8)
COSTS = Costs(DISK, cumulative([0.001, 0.002, 0.003]), memory=1e9)


def test_compute_adds_up_to_each_cut() -> None:
    assert COSTS.compute == pytest.approx((0, 0.001, 0.003, 0.006))


@pytest.mark.parametrize(
    ("at", "row_bytes", "rows", "passes", "pays"),
    [
        (1, 1_000_000, 100, 1, False),  # never for one pass
        (1, 1_000_000, 100, 2, False),
        (3, 1_000, 100, 2, True),  # small and deep: 6.011 ms against 12
        (1, 100_000, 100, 3, True),  # 1 + 1 + 0.3 ms against 3
        (1, 100_000, 100_000, 3, False),  # from the disk: 1 + 1 + 1.5 against 3
        (1, 100_000, 100_000, 9, True),
    ],
)
def test_a_store_pays_when_its_seconds_are_fewer(at: int, row_bytes: int, rows: int, passes: int, pays: bool) -> None:
    assert decide(COSTS, at, row_bytes, rows, passes).pays == pays


def test_what_a_gpu_keeps_is_read_once_a_trial() -> None:
    """13 ms to store 1 MB after two units, and 5 ms to read it from the disk, against 3 ms a pass."""
    assert not decide(COSTS, 2, 1_000_000, 100_000, passes=10).pays
    assert decide(COSTS, 2, 1_000_000, 100_000, passes=10, reads=1).pays


def test_the_batches_that_a_store_saves_are_those_of_a_trial() -> None:
    slow = replace(COSTS, in_batches=cumulative([0.004, 0.008, 0.012]))
    assert not decide(COSTS, 1, 1_000_000, 100, passes=3).pays
    assert decide(slow, 1, 1_000_000, 100, passes=5).pays
    assert not decide(COSTS, 1, 1_000_000, 100, passes=5).pays


def test_the_reason_gives_the_numbers_compared() -> None:
    said = decide(COSTS, 3, 100_000, 1000, 10).reason
    assert said == (
        "10 passes over 1000 images: to store 100 MB and read from memory takes 8 s, to compute each time 60 s"
    )


def test_a_disk_is_measured_and_nothing_stays_on_it(tmp_path: Path) -> None:
    disk = measure_disk(tmp_path / "cache")
    assert 1e5 < disk.write < 1e12
    assert 1e6 < disk.read < 1e12
    assert 1e5 < disk.cold < 1e12
    assert list((tmp_path / "cache").iterdir()) == []
