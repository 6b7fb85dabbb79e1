import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from finetune.network.network import Network
from finetune.records.layout import HEARTBEAT
from finetune.trial import callback
from finetune.trial.callback import Heartbeat, TrialCallback
from finetune.trial.module import FineTune
from tests.models import adamw


def test_it_changes_with_progress_and_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(callback.time, "monotonic", lambda: now)
    trial, seen = Heartbeat(tmp_path), []
    for _ in range(12):
        trial.count()
        now += 0.25
        seen.append((tmp_path / HEARTBEAT).read_text())
    assert sorted(set(seen), key=int) == ["1\n", "5\n", "9\n"]
    trial.end()
    trial.end()
    assert not list(tmp_path.iterdir())


def test_it_makes_no_folder(tmp_path: Path) -> None:
    Heartbeat(tmp_path / "none").count()
    assert not list(tmp_path.iterdir())


def test_saving_takes_at_most_a_fiftieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, saves = 1000.0, list[float]()

    def save(*_: Any) -> None:
        nonlocal now
        saves.append(now)
        now += cost

    monkeypatch.setattr(callback, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(callback, "state_of", lambda *_: SimpleNamespace(save=save))
    trainer: Any = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=None)))
    trainer.fit_loop.epoch_loop.batch_progress = SimpleNamespace(is_last_batch=False)
    for weights, cost, expected in ((1000, 0.01, 5.0), (1000, 1.0, 50.0), (2_500_000, 0.01, 5.0)):
        network = Network(nn.Identity(), nn.Identity(), nn.Linear(weights, 1))
        module = FineTune(network, adamw)
        saves.clear()
        ours = TrialCallback(tmp_path, Heartbeat(tmp_path), {}, save_every=5.0)
        begun = now
        ours.on_train_start(trainer, module)
        while len(saves) < 4:
            now += 0.5
            ours.on_train_batch_end(trainer, module, None, None, 0)
        first = 10.0 if weights > 1000 else 5.0  # 16 bytes a weight, 200 MB/s, fifty times
        assert saves[0] - begun == pytest.approx(first, abs=1)
        assert [b - a - cost for a, b in itertools.pairwise(saves)] == pytest.approx([expected] * 3, abs=1)
