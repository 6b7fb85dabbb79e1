"""What systems do differently; Windows' ways by taking away what it lacks, of which test_without_posix.py does more."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.storage import permissions, system
from finetune.storage.system import (
    alone,
    has_modes,
    is_alive,
    is_stopped,
    open_to_read,
    peak_resident,
    read_at,
    replace,
)

PACKAGE = Path(system.__file__).parents[1]
POSIX_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_FUNCTIONS = {
    "fork",
    "getpgid",
    "getuid",
    "kill",
    "killpg",
    "posix_fadvise",
    "preadv",
    "sched_getaffinity",
    "setsid",
}
"""Of `os`; `kill` is there on Windows, but ends the process that it asks after."""
WINDOWS_SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}


def posix_names(source: str) -> set[str]:
    """What a module takes of Python that Windows lacks: `fcntl`, `os.fork`, `signal.SIGKILL`."""
    used = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                used |= {alias.name for alias in names} & POSIX_MODULES
            case ast.ImportFrom(module=str(module), names=names):
                used |= {module} & POSIX_MODULES
                used |= {f"{module}.{alias.name}" for alias in names if module in ("os", "signal")}
            case ast.Attribute(value=ast.Name(id="os" | "signal" as module), attr=name):
                used.add(f"{module}.{name}")
    signals = {f"signal.{name}" for name in dir(signal) if name.startswith("SIG") and name not in WINDOWS_SIGNALS}
    absent = signals | {f"os.{name}" for name in POSIX_FUNCTIONS} | {"signal.pthread_sigmask", "signal.setitimer"}
    return used & (POSIX_MODULES | absent)


def test_what_windows_lacks_is_asked_for_in_one_module() -> None:
    used = {str(file.relative_to(PACKAGE)): posix_names(file.read_text()) for file in PACKAGE.rglob("*.py")}
    assert {"fcntl", "resource", "os.preadv", "signal.pthread_sigmask"} <= used.pop("storage/system.py")
    assert used.pop("__init__.py") == {"pwd", "os.getuid"}  # before anything may be imported, and done without
    assert {file: names for file, names in used.items() if names} == {}


def test_a_process_is_alive_stopped_and_gone() -> None:
    child = subprocess.Popen(["/bin/sleep", "60"])
    try:
        assert (is_alive(child.pid), is_stopped(child.pid)) == (True, False)
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        assert (is_alive(child.pid), is_stopped(child.pid)) == (True, True)
    finally:
        child.kill()
        child.wait()
    assert (is_alive(child.pid), is_stopped(child.pid), is_stopped(None)) == (False, False, False)


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_of_memory_is_in_bytes_on_linux_and_on_a_mac(
    monkeypatch: pytest.MonkeyPatch, platform: str, unit: int
) -> None:
    class Usage:
        ru_maxrss = 300_000

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(system.resource, "getrusage", lambda who: Usage)
    assert peak_resident() == 300_000 * unit


def test_without_resource_the_peak_is_what_the_process_has_now(monkeypatch: pytest.MonkeyPatch) -> None:
    before = peak_resident()
    monkeypatch.setattr(system, "resource", None)
    assert 10 << 20 < peak_resident() <= before + (8 << 20)


@pytest.mark.parametrize("has_preadv", [True, False])
def test_bytes_are_read_from_an_offset_up_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_preadv: bool
) -> None:
    if not has_preadv:
        monkeypatch.delattr(os, "preadv")
    (tmp_path / "file").write_bytes(b"0123\r\n6789")
    descriptor = open_to_read(tmp_path / "file")
    into = bytearray(6)
    assert read_at(descriptor, memoryview(into), 4) == 6
    assert into == b"\r\n6789"
    assert read_at(descriptor, memoryview(into), 8) == 2
    assert into[:2] == b"89"
    os.close(descriptor)


def test_what_is_shared_is_nobodys_alone(tmp_path: Path) -> None:
    file = tmp_path / "manifest"
    file.touch()
    with file.open() as opened:
        system.share(opened.fileno())
        with pytest.raises(BlockingIOError), alone(file):
            pass
    with alone(file):
        pass


def test_without_locks_a_file_is_alone_where_it_can_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "fcntl", None)
    (tmp_path / "manifest").write_text("kept")
    with alone(tmp_path / "manifest"):
        assert (tmp_path / "manifest").read_text() == "kept"
    with pytest.raises(FileNotFoundError), alone(tmp_path / "nothing"):
        pass


def test_on_windows_a_file_that_is_read_is_replaced_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = Path.replace
    refusals = [PermissionError("in use"), PermissionError("in use")]

    def busy(source: Path, target: Path) -> Path:
        if refusals:
            raise refusals.pop()
        return really(source, target)

    (tmp_path / "new").write_text("new")
    monkeypatch.setattr(Path, "replace", busy)
    with pytest.raises(PermissionError):  # anywhere else a refusal is one
        replace(tmp_path / "new", tmp_path / "old")

    with monkeypatch.context() as patch:
        patch.setattr(system, "_IS_WINDOWS", True)
        replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"
    assert not refusals


def test_modes_mean_something_here_and_nothing_where_all_files_get_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert has_modes(tmp_path)

    really = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **options: _open_to_all(really(path, **options)))
    assert not has_modes(tmp_path)
    store = tmp_path / "cache" / "pixels" / "a"
    store.mkdir(parents=True)
    file = tmp_path / "cache" / "files" / "a.json"
    file.parent.mkdir()
    file.touch()
    for place in (store, file, store):
        permissions.refuse_shared_writing(place)
    assert capsys.readouterr().err.count("lies on a disk without permissions") == 1


def _open_to_all(status: os.stat_result) -> os.stat_result:
    return os.stat_result((status.st_mode | 0o777, *status[1:]))
