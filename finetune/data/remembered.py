"""What was found out of files, kept in the cache until a file changes: fifty thousand are not read at every start."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from finetune.config import digest_of
from finetune.storage.durable import sealed, unsealed, write_durably
from finetune.storage.permissions import refuse_shared_writing

_SETTLED = 3.0
"""Seconds since the last change of a file after which another change shows in its times: those of FAT are 2 s apart,
and of other file systems a few milliseconds. What is younger is found out again at the next start."""
_AT_ONCE = 16
"""Files that a thread takes at once."""


def file_state(file: Path) -> str:
    """Changes when the file does, as far as a look at its entry tells; empty where there is none.

    Size and time of modification alone would not do, for whoever changes a file can set both. The time of change of
    the entry (ctime) cannot be set.
    """
    try:
        status = file.stat()
    except OSError:
        return ""
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def remembered(
    find_out: Callable[[Path], Any],
    paths: Sequence[Path],
    cache: Path,
    what: str,
    lasts: Callable[[Any], bool],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Path, tuple[str, Any]]:
    """`find_out` of each file, from the cache where the file has not changed since, else in threads; and its state.

    Args:
        find_out: From a file to what JSON can hold.
        paths: The files; one may be named twice.
        cache: Folder of all stores.
        what: Names `find_out`, with the versions of all that its answer depends on.
        lasts: Whether an answer holds as long as its file stays; that a file could not be read may be of the moment.
        progress: Called with files done and their total, as they are read.

    Returns:
        For each file its `file_state` from before it was read, and the answer.

    Raises:
        Refused: others could have written to the cache; or what `find_out` raises.
    """
    if not paths:
        return {}

    root = os.path.commonpath({path.absolute().parent for path in paths})
    names = {path: str(path.absolute()) for path in paths}
    kept = cache / "files" / f"{digest_of([what, root])}.json"
    refuse_shared_writing(kept)
    known = _read(kept)

    # 1. What is known already
    now = time.time()
    states = {path: file_state(path) for path in names}
    answers = dict[Path, Any]()
    for path, name in names.items():
        state, answer = known.get(name, ("", None))
        if state and state == states[path]:
            answers[path] = answer

    # 2. The others, a few at once, for handing one over takes as long as reading a small file
    unknown = [path for path in names if path not in answers]
    some = [unknown[i : i + _AT_ONCE] for i in range(0, len(unknown), _AT_ONCE)]
    with ThreadPoolExecutor() as pool:
        for chunk, new_answers in zip(some, pool.map(lambda chunk: list(map(find_out, chunk)), some), strict=True):
            answers.update(zip(chunk, new_answers, strict=True))
            progress(len(answers), len(names))

    # 3. Those that another change would show of are remembered, beside others of the same folder that are still there
    new = {
        names[path]: (states[path], answers[path])
        for path in unknown
        if lasts(answers[path]) and _is_settled(states[path], now)
    }
    if new:
        left = {name: entry for name, entry in known.items() if name in new or Path(name).exists()}
        with contextlib.suppress(OSError):  # a read-only cache, or a full disk: it is found out again
            write_durably(kept, sealed({"files": {**left, **new}}))
    return {path: (states[path], answers[path]) for path in names}


def _is_settled(state: str, now: float) -> bool:
    changed = int(state.split()[-1]) if state else 0
    return bool(state) and changed / 1e9 + _SETTLED < now


def _read(kept: Path) -> dict[str, Any]:
    """What was written before, by name; nothing where that cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return dict(unsealed(kept.read_bytes())["files"])
    return {}
