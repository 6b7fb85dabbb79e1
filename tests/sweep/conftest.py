"""Sweeps that prepare and train nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from finetune.compose import compose_config
from finetune.config import flat, trial_key
from finetune.records.layout import CHECKPOINT
from finetune.records.metric import Incumbent
from finetune.records.result import Result
from finetune.sweep.prepare import Prepared
from finetune.sweep.spec import SweepSpec, read_sweep


@dataclass
class Pretended:
    """A trial that ended at once."""

    exitcode: int | None
    pid: int | None = None
    waits: bool = False

    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Pretender:
    """A launcher of one worker that trains nothing: it keeps the overrides of each start, and leaves the records."""

    capacity, longest_wait = 1, 0.0

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.digests = {"dataset": "pixels", "split": "labels", "weights": "weights"}
        self.status: Callable[[dict[str, str]], str] = lambda overrides: "complete"
        """The status of the trial with these overrides, by key; empty where it dies."""

    def start(
        self, trials: Sequence[tuple[Sequence[str], Path]], incumbent: Incumbent | None = None
    ) -> list[Pretended]:
        (overrides, folder), *_ = trials
        self.started.append(list(overrides))
        given = dict(word.partition("=")[::2] for word in overrides)
        status = self.status(given)
        if not status:
            return [Pretended(-9)]

        config = compose_config([*overrides, f"out={folder}"])
        settings, depth, lr = flat(config), config.model.freeze_depth, config.optim.lr
        complete = status == "complete"
        Result(
            key=trial_key(config),
            status=status,
            reason=status,
            freeze_depth=depth if isinstance(depth, int) else 17,
            freeze_unit=config.model.freeze_unit,
            seed=config.seed,
            val_acc_best=lr if complete else None,
            best_epoch=0 if complete else None,
            trained_parameters=1,
            params={key: settings[key] for key in given if key in settings},
            config=settings,
            history=[{"epoch": 0, "val/acc": lr, "val/loss": 1 - lr}] if complete else [],
            digests=dict(self.digests),
        ).save(folder)
        (folder / CHECKPOINT).touch()
        return [Pretended(0)]

    def wait(self, jobs: Sequence[Pretended]) -> None: ...
    def worker(self, job: Pretended) -> str:
        return "worker 0"

    def set_aside(self, worker: str) -> None: ...
    def end(self, jobs: Sequence[Pretended]) -> None: ...


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretender:
    """Sweeps of this test prepare and train nothing."""
    launcher = Pretender()

    def prepare(*given: object) -> Prepared:
        digests = launcher.digests
        return Prepared("", (f"{digests['dataset']}_{digests['split']}",), (digests["weights"],), ())

    monkeypatch.setattr("finetune.sweep.run.usable_gpus", tuple)
    monkeypatch.setattr("finetune.sweep.run.check_and_prepare", prepare)
    monkeypatch.setattr("finetune.sweep.run.LocalLauncher", lambda *given: launcher)
    return launcher


def spec_of(tmp_path: Path, fast: list[str], parameters: dict[str, object], **more: object) -> SweepSpec:
    raw = {"method": "grid", "metric": {"name": "val/acc_best", "goal": "maximize"}, **more, "parameters": parameters}
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    kept = [word for word in [*fast, "trainer.epochs=1"] if word.partition("=")[0] not in parameters]
    return read_sweep(path, tuple(kept))
