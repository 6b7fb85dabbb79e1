"""Sweeps under random SIGKILLs against an undisturbed one: `make soak`, `python -m tests.soak [--seeds N] [--pairs N]`.

A seed is a sweep of 30 trials whose workers and coordinator are killed 25 times, at random moments; one kill in
five is the coordinator's, and the same command is given again after it. A trial that was killed twice since its
coordinator began is spared, for a third death rightly fails it (fault 28). Then the wall time of a whole sweep under
ten kills is measured against an undisturbed one, in turn. Exit code 1 when anything was lost.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path

from finetune.records.layout import RECORD
from finetune.records.result import Result, outcome
from finetune.storage.cache import KINDS
from finetune.storage.store import open_store
from tests.faults.invariants import living, sweep_file
from tests.models import draw

TRIALS, KILLS, FEW = 30, 25, 10
RATES = (0.001, 0.003, 0.01)
OF_COORDINATOR = 5
"""One kill in so many, from the second on."""
_TICK = 0.05
_PROMISED = 10.0
"""Seconds after which nothing of a killed sweep may be left."""
_PATIENCE = 900.0
"""Seconds that one sweep may take."""


@dataclass
class Figures:
    """What one sweep under kills came to, in the terms of the fault table."""

    kills: int = 0
    of_coordinator: int = 0
    lost: int = 0
    """Finished records that later were not there."""
    duplicated: int = 0
    """Finished records that were written once more."""
    corrupt: int = 0
    """Stores that fail their checksums."""
    left: int = 0
    """Processes still there ten seconds after their coordinator, and temporary files at the end."""
    records: int = 0
    """Terminal ones."""
    differ: int = 0
    """Records that are not those of the undisturbed sweep, but for time and cost."""
    best_equal: bool = False
    seconds: float = 0.0
    exitcode: int | None = None
    seen: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    """Of each finished record: which file, and when it was written."""

    def sound(self, trials: int) -> bool:
        """Whether nothing was lost."""
        wrong = (self.lost, self.duplicated, self.corrupt, self.left, self.differ, self.exitcode)
        return not any(wrong) and self.records == trials and self.best_equal

    def look(self, folder: Path) -> None:
        """Note new finished records, and those that were written again."""
        for file in folder.glob(f"trials/*/{RECORD}"):
            try:
                state, key = file.stat(), file.parent.name
                now = state.st_ino, state.st_mtime_ns
                if self.seen.get(key) != now and Result.load(file.parent).status != "interrupted":
                    self.duplicated += key in self.seen
                    self.seen[key] = now
            except (FileNotFoundError, ValueError):
                continue  # cleared for the next attempt; one that does not come back is counted as lost


def workers(folder: Path) -> dict[int, str]:
    """The processes that write the log of a trial, with its key."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            written = (entry / "fd" / "1").readlink() if entry.name.isdigit() else Path()
        except OSError:
            continue
        if written.is_relative_to(folder / "trials"):
            found[int(entry.name)] = written.parent.name
    return found


class Soak:
    """One sweep on one set of images, run as often as needed, each time from nothing."""

    def __init__(self, place: Path, trials: int = TRIALS, epochs: int = 4):
        """`trials` is a multiple of three; files go below `place`."""
        self.place, self.trials = place, trials
        depths = range(18 - trials // len(RATES), 18)
        file = sweep_file(place, {"model.freeze_depth": {"values": [*depths]}, "optim.lr": {"values": [*RATES]}})
        images = draw(place / "images", train=16)
        settings = ["model=narrow_resnet50", f"data.root={images}", "data.size=32", "data.batch_size=8"]
        settings += [f"trainer.epochs={epochs}", "trainer.accelerator=cpu", "trainer.save_every=0", "cache.mode=on"]
        self.words = ["sweep", str(file), "--no-repeats", *settings, "--workers", "2"]
        self.expected: dict[str, dict[str, object]] = {}
        self.undisturbed = self.run("undisturbed", 0, 0)
        self.expected = self._outcomes(place / "undisturbed")
        assert len(self.expected) == trials, f"the undisturbed sweep left {len(self.expected)} of {trials} records"

    def run(self, name: str, seed: int, kills: int) -> Figures:
        """Run the sweep from nothing in the folder `name`, with `kills` kills at moments that `seed` decides."""
        folder, cache = self.place / name, self.place / f"{name}-cache"
        chance, figures = random.Random(seed), Figures()
        pause = 0.0 if not kills else 1.4 * self.undisturbed.seconds / kills
        began = time.monotonic()
        coordinator, deaths = self._start(folder, cache), Counter[str]()
        due = time.monotonic() + chance.uniform(0, pause)
        try:
            while (exitcode := coordinator.poll()) is None:
                assert time.monotonic() - began < _PATIENCE, f"{name} hangs"
                time.sleep(_TICK)
                figures.look(folder)
                if figures.kills == kills or time.monotonic() < due:
                    continue
                if figures.kills % OF_COORDINATOR == 1:
                    coordinator.kill()
                    coordinator.wait()
                    figures.of_coordinator += 1
                    figures.left += len(living(str(folder), _PROMISED))
                    coordinator, deaths = self._start(folder, cache), Counter()
                else:
                    victims = [(pid, key) for pid, key in sorted(workers(folder).items()) if deaths[key] < 2]
                    if not victims:
                        continue
                    pid, key = chance.choice(victims)
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    deaths[key] += 1
                figures.kills += 1
                due = time.monotonic() + chance.uniform(0, pause)
        finally:
            coordinator.kill()  # when this process is ended itself
        figures.seconds, figures.exitcode = time.monotonic() - began, exitcode
        self._judge(figures, folder, cache)
        return figures

    def _start(self, folder: Path, cache: Path) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "finetune.cli", *self.words, "--out", str(folder)]
        environment = {**os.environ, "FINETUNE_CACHE": str(cache)}  # an override would be in the records
        with folder.with_name(f"{folder.name}.txt").open("ab") as said:
            return subprocess.Popen(words, stdout=said, stderr=said, env=environment, start_new_session=True)

    def _outcomes(self, folder: Path) -> dict[str, dict[str, object]]:
        found = [Result.load(file.parent) for file in folder.glob(f"trials/*/{RECORD}")]
        return {result.key: outcome(result) for result in found if result.status != "interrupted"}

    def _judge(self, figures: Figures, folder: Path, cache: Path) -> None:
        figures.look(folder)
        got = self._outcomes(folder)
        figures.records, figures.lost = len(got), len(figures.seen.keys() - got)
        figures.differ = sum(got.get(key) != expected for key, expected in self.expected.items())
        figures.best_equal = not self.expected or _best(got) == _best(self.expected)
        stores = [store for kind in KINDS for store in (cache / kind).glob("*") if store.is_dir()]
        stores = [store for store in stores if not store.name.endswith((".bad", ".part"))]
        figures.corrupt = sum(open_store(store) is None for store in stores)
        figures.left += len(living(str(folder), _PROMISED))
        figures.left += sum(1 for root in (folder, cache) for _ in root.rglob(".*.tmp"))


def _best(outcomes: dict[str, dict[str, object]]) -> tuple[float, set[str]]:
    """The best accuracy, and the trials that have it."""
    values = {key: float(str(told["val_acc_best"])) for key, told in outcomes.items() if told["status"] == "complete"}
    best = max(values.values(), default=float("nan"))
    return best, {key for key, value in values.items() if value == best}


def main() -> int:
    """Soak, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=3, help="undisturbed and with ten kills, in turn")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        soak = Soak(Path(scratch))
        shown = [one.name for one in fields(Figures) if one.name != "seen"]
        print(f"undisturbed: {soak.undisturbed.seconds:.1f} s\nseed  " + "  ".join(shown), flush=True)
        sound = True
        for seed in range(asked.seeds):
            figures = soak.run(f"seed{seed}", seed, KILLS)
            cells = [f"{getattr(figures, name):{len(name)}.4g}" for name in shown]
            print(f"{seed:4}  " + "  ".join(cells), flush=True)
            sound = sound and figures.sound(TRIALS) and figures.kills == KILLS
        ratios = []
        for pair in range(asked.pairs):
            plain = soak.run(f"plain{pair}", pair, 0)
            killed = soak.run(f"killed{pair}", 1000 + pair, FEW)
            sound = sound and plain.sound(TRIALS) and killed.sound(TRIALS) and killed.kills == FEW
            ratios.append(killed.seconds / plain.seconds)
            told = f"{killed.kills} kills, {killed.of_coordinator} of the coordinator"
            print(f"{told}: {killed.seconds:.1f} s, undisturbed {plain.seconds:.1f} s: x {ratios[-1]:.2f}", flush=True)
        if ratios:
            print(f"wall time under ten kills, median of {len(ratios)}: x {statistics.median(ratios):.2f} (reach 1.5)")
        print("nothing lost" if sound else "SOMETHING WAS LOST")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
