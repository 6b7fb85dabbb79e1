"""What the replays of benchmarks/replay.py rest on: the table, and what a draw's searches and verdict come to."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

DEPTHS, RATES, SEEDS, EPOCHS, IMAGES = (9, 4), (0.03, 0.01), 9, 5, 400


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import replay

    return replay


@pytest.fixture
def table(replay: ModuleType) -> Any:
    """Depth 9 with the smaller rate is best, by far; every trial rises by the epoch."""
    from record import Table

    rng = np.random.default_rng(0)
    configurations = [(depth, rate) for depth in DEPTHS for rate in RATES]
    reached = np.array([0.5, 0.9, 0.4, 0.6])[:, None, None, None]
    shares = reached * np.linspace(0.6, 1, EPOCHS)[:, None]
    right = rng.random((len(configurations), SEEDS, EPOCHS, IMAGES)) < shares
    seconds = np.ones((len(configurations), SEEDS))
    elapsed = np.broadcast_to(np.linspace(0.2, 1, EPOCHS), (*seconds.shape, EPOCHS))
    depth, rate = (np.array(column) for column in zip(*configurations, strict=True))
    return Table("drawn", right, seconds, elapsed, depth, rate, np.array(["[]"] * len(configurations)), classes=10)


def test_a_table_comes_back_as_it_was_written(replay: ModuleType, table: Any, tmp_path: Path) -> None:
    from record import read_table, write_table

    write_table(table, tmp_path / "drawn.npz")
    again = read_table(tmp_path / "drawn.npz")
    assert (again.name, again.classes) == ("drawn", 10)
    for name in ("right", "depth", "rate", "head"):
        assert np.array_equal(getattr(again, name), getattr(table, name)), name
    assert np.allclose(again.elapsed, table.elapsed)


def test_a_difference_that_is_plain_is_found_and_cheaper_by_a_race(replay: ModuleType, table: Any) -> None:
    outcomes = replay.replay(replay.Recorded(table), sweeps=4, margin=0.02)
    figures = {name: replay.figures_of(of_one) for name, of_one in outcomes.items()}
    drawing = "TPE + halving (Optuna)"  # may never come to the best of so few
    assert all(row["regret"] == 0 for name, row in figures.items() if name != drawing), figures
    assert figures["grid"]["cost"] == pytest.approx(1)
    assert figures["race"]["cost"] < 1
    rule = figures[replay.RULE]
    assert (rule["open"], rule["falsely_worse"], rule["bound_holds"]) == (0, 0, 1)
    assert rule["cost"] > figures["race"]["cost"]
    assert figures[replay.GRIDS]["cost"] == pytest.approx(replay.GRID_SEEDS)


def test_the_tables_are_small_and_hold_their_names(replay: ModuleType) -> None:
    from record import read_table

    tables = sorted((ROOT / "benchmarks" / "recorded").glob("*.npz"))
    assert tables
    for file in tables:
        assert file.stat().st_size < 1_000_000
        assert read_table(file).name == file.stem


def test_a_folder_of_an_earlier_run_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from common import workplace

    with workplace(tmp_path / "new") as place:
        (place / "cache").mkdir()
    with pytest.raises(SystemExit, match="holds what an earlier run left"), workplace(tmp_path / "new"):
        pass
