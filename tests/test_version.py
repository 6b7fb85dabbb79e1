import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from finetune import __version__, version
from finetune.__main__ import main
from finetune.version import full_version, is_newer, mixed_packages

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_a_checkout_says_its_commit_and_whether_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a"]
    (tmp_path / "file").touch()
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(version, "_PACKAGE", tmp_path / "finetune")
    assert re.fullmatch(rf"{re.escape(__version__)} \(checkout [0-9a-f]{{7,}}\)", full_version())
    (tmp_path / "file").write_text("changed")
    assert re.fullmatch(rf"{re.escape(__version__)} \(checkout [0-9a-f]{{7,}}, changed\)", full_version())

    shutil.rmtree(tmp_path / ".git")
    assert full_version() == __version__


def test_newer_releases_are_told_from_this_one() -> None:
    major, minor, patch = map(int, __version__.split(".")[:3])
    assert is_newer(f"{major}.{minor + 10}.0")
    assert is_newer(f"{major + 1}.0.0")
    assert not is_newer(f"{major}.{minor}.{patch + 1}")
    assert not is_newer(__version__)
    assert not is_newer("0.0.9")


class Other(importlib.metadata.Distribution):
    """Another project's distribution, installed in `place`."""

    def __init__(self, place: Path, summary: str):
        self.place, self.summary = place, summary

    def read_text(self, filename: str) -> str | None:
        return f"Name: finetune\nVersion: 0.8.9\nSummary: {self.summary}\n" if filename == "METADATA" else None

    def locate_file(self, path: object) -> Path:
        return self.place / str(path)


@pytest.mark.parametrize(
    ("summary", "here", "mixed"),
    [
        ("Simplified deep learning for text", True, True),
        ("Simplified deep learning for text", False, False),
        ("How deep should a pretrained network stay frozen?", True, False),
    ],
)
def test_two_packages_in_one_folder_are_named_and_the_command_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    summary: str,
    here: bool,
    mixed: bool,
) -> None:
    other = Other(ROOT if here else tmp_path, summary)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: other)
    assert bool(mixed_packages()) == mixed

    monkeypatch.setattr("finetune.cli.main", lambda: 0)
    assert main() == 0
    said = capsys.readouterr().err
    assert ("another package called finetune (0.8.9) is installed here" in said) == mixed
