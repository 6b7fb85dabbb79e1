"""What `make setup` asks of an installer, in whose place something stands that only says what it was asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = '#!/bin/sh\nif [ "$1" = -m ]; then mkdir -p "$3"; fi\n'
"""Makes environments of nothing."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def setup(project: Path, *words: str, path: str | None = None) -> tuple[int, list[str]]:
    """The exit code of `make setup`, and the lines it printed; an installation's begins with `install`."""
    environment = {"PATH": path or f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    make = shutil.which("make")
    assert make is not None
    installers = ("INSTALL=echo install", "CPU_INSTALL=echo install cpu", "UV=uv")
    command = [make, "--silent", "setup", *installers, "PYTHON=./python", *words]
    ran = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    return ran.returncode, (ran.stdout + ran.stderr).splitlines()


def test_the_lock_file_is_installed_once(project: Path) -> None:
    code, lines = setup(project)
    assert code == 0
    assert lines[1:] == ["install --no-deps -r requirements.lock", "install --no-deps --no-build-isolation -e ."]
    assert setup(project) == (0, [])


def test_with_pytorch_for_the_cpu_the_locked_versions_are_installed_without_what_cuda_is_made_of(project: Path) -> None:
    code, lines = setup(project, "TORCH=cpu")
    assert code == 0
    installed = ["install cpu --no-deps -r .venv/cpu.txt", "install --no-deps --no-build-isolation -e ."]
    assert lines[1:] == installed

    locked = (project / "requirements.lock").read_text().splitlines()
    cuda = ("nvidia-", "cuda-", "triton==")
    assert sum(line.startswith(cuda) for line in locked) > 10
    rest = [line for line in locked if not line.startswith(cuda)]
    assert (project / ".venv" / "cpu.txt").read_text().splitlines() == rest

    code, (said,) = setup(project, "TORCH=gpu", "VENV=other")
    assert code == 2
    assert "TORCH=gpu is not known; TORCH=cpu is PyTorch without CUDA" in said


def test_the_active_environment_gets_what_it_lacks(project: Path) -> None:
    active = project / "active"
    active.mkdir()
    (active / "python").write_text(f"#!/bin/sh\necho {active}\n")  # as it would answer where it lies
    (active / "python").chmod(0o755)
    path = f"{active}{os.pathsep}/usr/bin{os.pathsep}/bin"
    assert setup(project, "VENV=none", path=path) == (0, ["install -e ."])
    assert not (project / ".venv").exists()

    # again, until the command is there
    assert setup(project, "VENV=none", path=path) == (0, ["install -e ."])
    (active / "finetune").touch()
    os.utime(active / "finetune", (0, 0))
    assert setup(project, "VENV=none", path=path) == (0, [])

    (active / "finetune").unlink()
    assert setup(project, "VENV=none", "TORCH=cpu", path=path) == (0, ["install cpu -e ."])


def test_without_a_python_on_the_path_there_is_no_active_environment(project: Path) -> None:
    (project / "bin").mkdir()
    (project / "bin" / "bash").symlink_to("/bin/bash")
    code, (said,) = setup(project, "VENV=none", path=str(project / "bin"))
    assert code == 2
    assert "VENV=none takes the python of the path, and there is none" in said
