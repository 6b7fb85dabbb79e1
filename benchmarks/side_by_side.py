"""What a race costs with several trials at a time: `python benchmarks/side_by_side.py [TABLE ...]`.

TABLE is a file of benchmarks/record.py; by default, all of benchmarks/recorded/. A trial that starts before those it is
compared with have ended may run in vain. Each replay is one exploration, epoch by epoch, with the product's rules of
who is stopped and who starts next, beside one in which trials just start in their order. Prints the work of both, in
one-seed grids, and the time they take, in what a grid would take on as many workers.
"""

import argparse
import heapq
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import HERE, print_rows, write_json
from record import read_table
from searches import Draw, Recorded, in_race_order, settings_of

from finetune.records.ranking import ACCURACY
from finetune.sweep.standings import next_of_race, why_lost
from finetune.sweep.state import Finished, Running, Sweep, Waiting

WORKERS = (1, 2, 4, 8)
Choose = Callable[[Sweep], Waiting]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path, nargs="*", metavar="TABLE")
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    rows = []
    for file in given.tables or sorted((HERE / "recorded").glob("*.npz")):
        recorded = Recorded(read_table(file))
        rng = np.random.default_rng(0)
        draws = [Draw(recorded, rng) for _ in range(given.sweeps)]
        for workers in WORKERS:
            row: dict[str, Any] = {"table": recorded.table.name, "workers": workers}
            for name, choose in (("in order", first), ("chosen", next_of_race)):
                costs = np.array([explore(draw, workers, choose) for draw in draws])
                row |= {
                    f"{name}: work": float(costs[:, 0].mean()),
                    f"{name}: time": workers * float(costs[:, 1].mean()),
                }
            rows.append(row)
            print(row, flush=True)
    shown = [[f"{value:.2f}" if isinstance(value, float) else value for value in row.values()] for row in rows]
    print_rows("a race side by side", list(rows[0]), shown)
    write_json(given.json, {"sweeps": given.sweeps, "rows": rows})


def first(sweep: Sweep) -> Waiting:
    """The next in the order."""
    return sweep.ahead[0]


def explore(draw: Draw, workers: int, choose: Choose) -> tuple[float, float]:
    """The work of one exploration, and how long it took, both in one-seed grids on one worker."""
    exploration = Exploration(draw, workers, choose)
    while exploration.goes_on():
        pass
    return exploration.work, exploration.now


class Exploration:
    """One exploration on several workers, epoch by epoch."""

    def __init__(self, draw: Draw, workers: int, choose: Choose):
        self._draw, self._workers, self._choose = draw, workers, choose
        self._order = in_race_order(draw)
        self._ran = [0] * len(self._order)
        self._stopped = set[int]()
        self._due: list[tuple[float, int]] = []
        """When the next epoch of each running trial ends, and its place."""
        grid: Any = SimpleNamespace(method="grid")
        self._sweep = Sweep(grid, Path(), len(self._order), ACCURACY)
        self._sweep.ahead = [
            Waiting(settings_of(draw, configuration), Path(), place) for place, configuration in enumerate(self._order)
        ]
        self.work = self.now = 0.0

    def goes_on(self) -> bool:
        """Start what can start, and go to the end of the next epoch; whether there was one."""
        self._start()
        if not self._due:
            return False

        self.now, place = heapq.heappop(self._due)
        self._ran[place] += 1
        self.work += self._epoch(place, self._ran[place])
        self._settle()
        if self._ran[place] == len(self._curve(place)) or place in self._stopped:
            running = next(trial for trial in self._sweep.running if trial.place == place)
            self._sweep.running.remove(running)
            whole = self._ran[place] == len(self._curve(place))
            self._finish(running, "complete" if whole else "pruned", settled=False)
            self._settle()
        else:
            heapq.heappush(self._due, (self.now + self._epoch(place, self._ran[place] + 1), place))
        return True

    def _start(self) -> None:
        sweep = self._sweep
        while len(sweep.running) < self._workers and sweep.ahead:
            trial = self._choose(sweep)
            sweep.ahead.remove(trial)
            if self._why_lost(trial):
                self._finish(trial, "pruned", settled=True)
                continue
            job: Any = None
            sweep.running.append(Running(trial.params, Path(), job, trial.place))
            heapq.heappush(self._due, (self.now + self._epoch(trial.place, 1), trial.place))

    def _settle(self) -> None:
        sweep = self._sweep
        for trial in sorted(sweep.finished, key=lambda trial: trial.place):
            reason = None if trial.settled else self._why_lost(trial)
            if reason is not None:
                if reason:
                    trial.result.status = "pruned"
                sweep.finished[sweep.finished.index(trial)] = replace(trial, settled=True)
        for running in sweep.running:
            if self._why_lost(running):
                self._stopped.add(running.place)

    def _why_lost(self, trial: Finished | Running | Waiting) -> str | None:
        curve = self._curve(trial.place)
        seen = curve[: min(self._ran[trial.place], len(curve) - 1)]
        return why_lost(trial.place, trial.params, seen, len(self._draw.images), self._sweep)

    def _finish(self, trial: Running | Waiting, status: str, settled: bool) -> None:
        result: Any = SimpleNamespace(status=status, val_labels="", val_images=len(self._draw.images))
        curve = self._curve(trial.place)[: self._ran[trial.place]]
        self._sweep.finished.append(Finished(trial.params, result, curve, trial.place, settled))

    def _curve(self, place: int) -> list[float]:
        return self._draw.curves[self._order[place]]

    def _epoch(self, place: int, number: int) -> float:
        """What an epoch of a trial takes, in one-seed grids; the first is 1."""
        until = self._draw.recorded.cost[self._order[place]]
        return float(until[number - 1] - (until[number - 2] if number > 1 else 0.0))


if __name__ == "__main__":
    main()
