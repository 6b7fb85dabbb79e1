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
    """A launcher of one worker that trains nothing: it keeps the words of each start, and leaves the records."""

    capacity, longest_wait = 1, 0.0

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.digests = {"dataset": "pixels", "split": "labels", "weights": "weights"}
        self.status: Callable[[dict[str, str]], str] = lambda given: "complete"
        """Of the trial with these words, by key; empty where it dies."""

    def start(
        self, trials: Sequence[tuple[Sequence[str], Path]], incumbent: Incumbent | None = None
    ) -> list[Pretended]:
        (words, place), *_ = trials
        self.started.append(list(words))
        status = self.status(dict(word.partition("=")[::2] for word in words))
        if not status:
            return [Pretended(-9)]
        config = compose_config(words)
        params = {word.partition("=")[0]: flat(config).get(word.partition("=")[0]) for word in words}
        epoch = {"val/acc_best": config.optim.lr, "val/acc": config.optim.lr, "val/loss": 1 - config.optim.lr}
        history = [epoch] if status == "complete" else []
        settings = {"config": flat(config), "history": history, "digests": dict(self.digests)}
        Result(trial_key(config), status, status, 0, "block", 0, None, None, 0, params, **settings).save(place)
        (place / CHECKPOINT).touch()
        return [Pretended(0)]

    def wait(self, jobs: Sequence[Pretended]) -> None: ...
    def worker(self, job: Pretended) -> str:
        return "worker 0"

    def set_aside(self, worker: str) -> None: ...


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretender:
    """Sweeps of this test prepare and train nothing."""
    launcher = Pretender()

    def prepare(*given: object) -> Prepared:
        digests = launcher.digests
        return Prepared((), "", (f"{digests['dataset']}_{digests['split']}",), (digests["weights"],), ())

    monkeypatch.setattr("finetune.sweep.run.check_and_prepare", prepare)
    monkeypatch.setattr("finetune.sweep.run.LocalLauncher", lambda *given: launcher)
    return launcher


def spec_of(tmp_path: Path, fast: list[str], parameters: dict[str, object], **more: object) -> SweepSpec:
    raw = {"method": "grid", "metric": {"name": "val/acc_best", "goal": "maximize"}, **more, "parameters": parameters}
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    kept = [word for word in [*fast, "trainer.epochs=1"] if word.partition("=")[0] not in parameters]
    return read_sweep(path, tuple(kept))
