import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
CHANGES = "# Changelog\n\n## Unreleased\n\n- Something for users.\n\n## 0.1.0\n\n- The first.\n"
PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "freeze-depth"
dynamic = ["version"]
description = "a package"
requires-python = ">=3.11"
readme = "README.md"
[tool.hatch.version]
path = "finetune/__init__.py"
[tool.hatch.build.targets.wheel]
packages = ["finetune"]
"""


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a repository, all of it committed."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "somebody@example.org")
    (tmp_path / "finetune").mkdir()
    files = {
        "finetune/__init__.py": '__version__ = "0.1.0"\n',
        "pyproject.toml": PYPROJECT,
        "README.md": "# a package\n",
        "CHANGELOG.md": CHANGES,
        ".gitignore": "dist/\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def git(project: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=project, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("version", "change", "why"),
    [
        ("0.2", "", "is no version"),
        ("0.2.0", "touch new", "not committed"),
        ("0.2.0", "git tag v0.2.0", "tagged already"),
        ("0.2.0", "sed -i '/Something/d' CHANGELOG.md && git commit -qam none", "says nothing"),
    ],
)
def test_what_is_not_ready_is_refused_and_left_alone(
    project: Path, script: ModuleType, version: str, change: str, why: str
) -> None:
    subprocess.run(change or "true", shell=True, cwd=project, check=True)
    before = git(project, "log", "--oneline")
    with pytest.raises(SystemExit, match=why):
        script.release(project, version)
    assert git(project, "log", "--oneline") == before
    assert not (project / "dist").exists()


def test_failing_tests_end_a_release_before_anything_is_written(project: Path, script: ModuleType) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        script.release(project, "0.2.0", checks=[["false"]])
    assert git(project, "status", "--porcelain") == ""
    assert git(project, "tag") == ""


@pytest.mark.slow
def test_a_release_is_a_tagged_commit_with_wheel_and_sdist(project: Path, script: ModuleType) -> None:
    keep = [sys.executable, "-c", "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(parents=True)"]
    script.release(project, "0.2.0", checks=[["true"]], kept=keep)
    assert git(project, "describe") == "v0.2.0"
    assert git(project, "status", "--porcelain") == ""
    assert (project / "finetune" / "__init__.py").read_text() == '__version__ = "0.2.0"\n'
    assert "## Unreleased\n\n## 0.2.0 (20" in (project / "CHANGELOG.md").read_text()
    built = {file.name for file in (project / "dist").iterdir()}
    assert built == {"freeze_depth-0.2.0-py3-none-any.whl", "freeze_depth-0.2.0.tar.gz"}
    assert (project / "tests" / "kept" / "0.2.0").is_dir()
