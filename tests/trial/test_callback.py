from pathlib import Path

import pytest

from finetune.records.layout import HEARTBEAT
from finetune.trial import callback as heartbeat
from finetune.trial.callback import Heartbeat


def test_it_changes_with_progress_and_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now)
    trial, seen = Heartbeat(tmp_path), []
    for _ in range(12):
        trial.beat()
        now += 0.25
        seen.append((tmp_path / HEARTBEAT).read_text())
    assert sorted(set(seen), key=int) == ["1\n", "5\n", "9\n"]
    trial.end()
    trial.end()
    assert not list(tmp_path.iterdir())


def test_it_makes_no_folder(tmp_path: Path) -> None:
    Heartbeat(tmp_path / "none").beat()
    assert not list(tmp_path.iterdir())
