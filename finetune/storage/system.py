"""What operating systems do differently: locks, processes, memory, what is synced and replaced. Imports no torch.

Linux is what this was written on. macOS has all that is asked for here but the page cache's; Windows lacks `fcntl`,
`resource`, half of the signals, and the descriptors of folders.
"""

import contextlib
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

END_CODES = {
    getattr(signal, name): code
    for name, code in (("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143), ("SIGHUP", 143))
    if hasattr(signal, name)
}
"""The signals that ask a process to end, as far as this system has them, and the exit code that each asks for."""

KILLED = -int(getattr(signal, "SIGKILL", 9))
"""The exit code of a process that was ended without being asked, as `multiprocessing` tells it on Linux."""

_IS_WINDOWS = os.name == "nt"
_POSITION = threading.Lock()
_REPLACED_WITHIN = 2.0
"""Seconds that a reader may take who, on Windows, keeps a file from being replaced."""


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there, whoever owns it."""
    return bool(psutil.pid_exists(pid))


def is_stopped(pid: int | None) -> bool:
    """Whether a process of this machine was stopped, as by Ctrl-Z, and may yet be continued."""
    if pid is None:
        return False
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """What the processor calls itself."""
    return _processor("model name") or platform.processor() or platform.machine()


def processor_has_bf16() -> bool:
    """Whether the processor has instructions for bf16; not where the system does not say, as only Linux does.

    Nor where oneDNN, which computes convolutions, was told to leave them alone (its `ONEDNN_MAX_CPU_ISA`).
    """
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if most in ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"):
        return False
    flags = {*_processor("flags").split(), *_processor("Features").split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _processor(key: str) -> str:
    """What Linux says of the first core."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def free_memory() -> float:
    """Bytes that the page cache may take: half of what is available."""
    return float(psutil.virtual_memory().available / 2)


def peak_resident() -> int:
    """Bytes that this process has had in memory at the most; the present ones where nobody keeps the most."""
    if resource is None:
        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def drop_from_page_cache(descriptor: int) -> None:
    """Have the next reading of this file come from its disk, where the system can be asked to."""
    with contextlib.suppress(AttributeError, OSError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes that start meanwhile get no Ctrl-C, until `unblock_interrupts` there; Windows knows nothing like it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_interrupts() -> None:
    """Let a Ctrl-C reach this process, which may have been started under `interrupts_blocked`."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def open_to_read(path: Path) -> int:
    """A descriptor of a file whose bytes are read as they are."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def read_at(descriptor: int, into: memoryview, offset: int) -> int:
    """Read bytes from `offset` on, as many as `into` has or there are; returns how many. Threads may share it."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [into], offset)

    with _POSITION:  # of which a descriptor has one
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(into))
    into[: len(data)] = data
    return len(data)


def share(descriptor: int) -> None:
    """Hold an open file together with others: nobody gets it `alone` until it is closed.

    Windows moves no folder in which a file is open, so nothing needs to be done there.

    Raises:
        OSError: the file system knows no locks, or somebody has it alone.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_SH)


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """Have a file that nobody else shares.

    Raises:
        OSError: somebody does, or the file system knows no locks.
    """
    if fcntl is None:
        file.rename(file)  # Windows refuses it while anybody has the file open
        yield
        return

    with file.open("r+b") as opened:  # NFS locks no file opened for reading
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`, whether or not that is there.

    On Windows a file that somebody has open is not replaced: who reads it will be done in a moment.

    Raises:
        OSError: it cannot be, now and for the next two seconds.
    """
    deadline = time.monotonic() + _REPLACED_WITHIN
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            if not _IS_WINDOWS or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk when this returns."""
    if _IS_WINDOWS and path.is_dir():  # which opens no folders
        return

    descriptor = os.open(path, os.O_RDWR if _IS_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def has_modes(folder: Path) -> bool:
    """Whether permissions mean something there; exFAT, NTFS, SMB and WSL's Windows folders give all files the same.

    Tried with a folder that only its owner may enter. Where none can be made, they are taken to mean something.
    """
    if _IS_WINDOWS:
        return False
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".modes-") as probe:
            return Path(probe).stat().st_mode & 0o077 == 0
    except OSError:
        return True
