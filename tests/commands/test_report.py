"""`finetune report` and `finetune compare`, as commands."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from finetune.records.result import Result
from finetune.report.compare import compare, conclusions, other_settings
from finetune.report.table import tabulate
from tests.report.test_page_in_browser import save_sweep
from tests.report.test_table import record
from tests.test_cli import finetune


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    save_sweep(tmp_path / "mine")
    return tmp_path / "mine"


def run(patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], *words: str) -> str:
    assert finetune(patch, *words) == 0, capture.readouterr().err
    return capture.readouterr().out


def test_the_terminal_says_what_the_page_says(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = run(monkeypatch, capfd, "report", str(sweep))
    page = (sweep / "report.html").read_text()
    assert "Worse than k=11 beyond the noise of seeds" in out
    assert "18 complete, 1 failed" in out
    caveats = [line[2:] for line in out.splitlines() if line.startswith("- ")]
    assert "The best lr, 0.01, is at the highest end of what was tried: try larger ones." in caveats
    assert all(caveat.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#x27;") in page for caveat in caveats)
    assert f"page: {sweep / 'report.html'}" in out


def _read_only(dir: Path) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_the_picture_is_a_png_of_its_size(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, capfd, "report", str(sweep), "--png", str(tmp_path / "curve.png"))
    with Image.open(tmp_path / "curve.png") as image:
        assert (image.format, image.size) == ("PNG", (1600, 1000))
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 16) or []}
    assert (0xD5, 0x5E, 0x00) in colors  # the line
    (sweep / "file").touch()
    assert finetune(monkeypatch, "report", str(sweep), "--png", str(sweep / "file" / "curve.png")) == 2
    said = capfd.readouterr()
    assert "curve.png cannot be written" in said.err
    assert not said.out
    monkeypatch.setattr("tempfile.TemporaryFile", _read_only)
    assert finetune(monkeypatch, "report", str(sweep)) == 2
    said = capfd.readouterr()
    assert "report.html cannot be written" in said.err
    assert "Read-only file system); --serve shows it without a file" in said.err
    assert not said.out
    assert finetune(monkeypatch, "report", str(sweep), "--png", "curve.jpg") == 2
    assert "let it end in .png" in capfd.readouterr().err


def test_two_sweeps_are_one_report_and_a_trial_of_both_counts_once(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save_sweep(tmp_path / "again")
    record(14, 0.9, 0, optim__lr=0.01).save(tmp_path / "again" / "trials" / "other")
    out = run(monkeypatch, capfd, "report", str(sweep), str(tmp_path / "again"))
    assert "19 complete, 1 failed" in out


def shifted(by: float) -> list[Result]:
    return [
        replace(record(k, 0.5 + k / 100 + s / 200 + by + k * s / 5000, s), config={"data.size": 64 if by else 96})
        for k in (0, 9)
        for s in range(4)
    ]


def test_compare_sets_two_sweeps_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = shifted(0), shifted(0.1)
    rows = compare(ours, theirs)
    assert [row.freeze_depth for row in rows] == [0, 9]
    assert all(row.ahead and row.ahead.mean == pytest.approx(0.1) and row.ahead.paired for row in rows)
    assert all(row.p is not None and row.p < 0.01 for row in rows)
    assert other_settings(ours, theirs) == {"data.size": ("96", "64")}
    (first, *_) = conclusions(("a", "b"), ours, theirs)
    assert "b is 0.100 ahead, more than the noise of seeds" in first
    (same, *_) = conclusions(("a", "b"), ours, ours)
    assert "Neither is ahead." in same
    assert tabulate(ours).winner is not None
    for name, records in (("a", ours), ("b", theirs)):
        for each in records:
            each.save(tmp_path / name / "trials" / each.key)
    out = run(monkeypatch, capfd, "compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert "+0.100" in out
    assert "data.size: 96 → 64" in out
    assert finetune(monkeypatch, "compare", str(tmp_path / "a"), str(tmp_path / "none")) == 2
    assert "holds no trial records" in capfd.readouterr().err


def test_a_sweep_of_refits_is_said_to_have_nothing_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        replace(record(4, None, seed), key=f"k{seed}").save(tmp_path / "s" / "trials" / f"k{seed}")
    out = run(monkeypatch, capfd, "report", str(tmp_path / "s"), "--png", str(tmp_path / "x.png"))
    assert "2 trials are complete, but trained on the validation images too (trainer.refit), so there is no" in out
    assert "No trial is complete" not in out
    assert finetune(monkeypatch, "best", str(tmp_path / "s")) == 2
    assert "has no winner: its trials trained on the validation images too" in capfd.readouterr().err
