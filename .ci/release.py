"""`make release VERSION=0.2.0`: a tagged commit, and its wheel and sdist in `dist/`. Nothing is pushed or published."""

import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSION_FILE = Path("finetune", "__init__.py")
CHECKS = ((sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal"),)
"""What must pass: all tests."""
KEPT = (sys.executable, "tests/kept/write.py")
"""Writes what this release leaves behind, for the tests of later ones."""


def refuse_unready(root: Path, version: str) -> None:
    """Exit with a sentence unless `version` can be released from `root`."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"{version!r} is no version; give three numbers, such as 0.2.0")
    if _git(root, "status", "--porcelain"):
        sys.exit("the tree has changes that are not committed; commit or stash them")
    if _git(root, "tag", "--list", f"v{version}"):
        sys.exit(f"v{version} is tagged already; give the next version")
    if not _unreleased(root).strip():
        sys.exit("CHANGELOG.md says nothing under `## Unreleased`; write there what a user gets")


def release(root: Path, version: str, checks: Sequence[Sequence[str]] = CHECKS, kept: Sequence[str] = KEPT) -> None:
    """Test, write the version into its one place and the changelog, commit, tag and build."""
    refuse_unready(root, version)
    for command in checks:
        subprocess.run(command, cwd=root, check=True)

    file = root / VERSION_FILE
    file.write_text(re.sub(r'^__version__ = ".*"$', f'__version__ = "{version}"', file.read_text(), flags=re.M))
    changes = root / "CHANGELOG.md"
    today = datetime.now(UTC).date()
    changes.write_text(changes.read_text().replace("## Unreleased\n", f"## Unreleased\n\n## {version} ({today})\n", 1))
    subprocess.run([*kept, f"tests/kept/{version}"], cwd=root, check=True)

    _git(root, "add", "-A")
    _git(root, "commit", "-m", f"Release {version}")
    _git(root, "tag", "-a", f"v{version}", "-m", f"Release {version}")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"], cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *_built(root, version)], cwd=root, check=True)


def _unreleased(root: Path) -> str:
    """What the changelog says of the release to come."""
    _, _, rest = (root / "CHANGELOG.md").read_text().partition("## Unreleased\n")
    return rest.partition("\n## ")[0]


def _built(root: Path, version: str) -> list[str]:
    files = sorted(str(file) for file in (root / "dist").glob(f"*-{version}*"))
    assert len(files) == 2, files
    return files


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    release(ROOT, sys.argv[1])
