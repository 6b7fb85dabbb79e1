"""The command `finetune sweep` in this process, and what a refusal must look like."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune.records.read import read_records
from finetune.report.caveats import caveats
from finetune.report.table import tabulate
from tests.faults.invariants import sweep_file
from tests.models import finetune

ONE_TRIAL = {"model.freeze_depth": {"values": ["all"]}}


class Sweeps:
    """Sweeps of one trial of one epoch, by the command that a person would type."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
        self.folder = place / "sweep"
        self._place, self._monkeypatch, self._capfd = place, monkeypatch, capfd

    def run(self, words: Sequence[object], file: Path | None = None) -> tuple[int, str, str]:
        """The exit code, and what was printed to the two streams."""
        file = file or sweep_file(self._place, ONE_TRIAL)
        self._capfd.readouterr()
        code = finetune(
            self._monkeypatch, "sweep", file, "--no-repeats", *words, "trainer.epochs=1", "--out", self.folder
        )
        shown = self._capfd.readouterr()
        return code, shown.out, shown.err

    def refused(self, words: Sequence[object], file: Path | None = None) -> str:
        """The one line with which a sweep is refused before any trial; nothing is written."""
        code, out, err = self.run(words, file)
        lines = err.strip().splitlines()
        assert code == 2, out + err
        assert len(lines) == 1, lines
        assert lines[0].startswith("refused: ")
        assert "Traceback" not in out
        assert not self.folder.exists()
        return lines[0]

    def warned(self, words: Sequence[object]) -> list[str]:
        """The report's caveats on a sweep that ran all the same."""
        code, out, err = self.run(words)
        assert code == 0, out + err
        records = read_records(self.folder)
        assert [record.status for record in records] == ["complete"]
        told = caveats(records, tabulate(records))
        assert set(records[0].warnings) <= set(told)
        return told
