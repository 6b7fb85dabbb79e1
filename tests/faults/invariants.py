"""What holds after every fault, and the means to look."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from finetune.records.layout import RECORD
from finetune.records.result import Result
from finetune.storage.cache import KINDS
from finetune.storage.store import open_store
from finetune.sweep.spec import SweepSpec, read_sweep
from tests.forked import Command

PATIENCE = 300.0
"""Seconds after which something that is waited for hangs, on however slow a machine."""


def spec_of(place: Path, fixed: Sequence[str], parameters: Mapping[str, object], **more: object) -> SweepSpec:
    """A sweep of one epoch a trial over `parameters`, from a file written to `place`."""
    return read_sweep(sweep_file(place, parameters, **more), (*fixed, "trainer.epochs=1"))


def sweep_file(place: Path, parameters: Mapping[str, object], **more: object) -> Path:
    raw = {"method": "grid", "metric": {"name": "val/acc_best", "goal": "maximize"}, **more, "parameters": parameters}
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    return file


def start(*words: object, **environment: str) -> Command:
    """The command `finetune WORDS` in a session of its own, forked from the warm server, as its trials are."""
    return Command("finetune.cli", [*map(str, words)], Path.cwd(), {**os.environ, **environment})


def start_anew(*words: object) -> subprocess.Popen[str]:
    """The same in a new interpreter: it starts a server of its own, and the process group is all that belongs to it."""
    return subprocess.Popen(
        [sys.executable, "-m", "finetune.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(*words: object, **environment: str) -> tuple[int, str]:
    """The exit code of `finetune WORDS`, and what it printed."""
    process = start(*words, **environment)
    text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode is not None
    return process.returncode, text


def wait_for(reached: Callable[[], object]) -> None:
    """Wait for a condition; the limit only ends a hang."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Clock:
    """The real clock, that can be put ahead; for whoever asks `time.monotonic()`."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


def terminal_records(folder: Path) -> dict[str, bytes]:
    """The bytes of every record of a sweep that is not to run again, by key."""
    files = sorted(folder.glob(f"trials/*/{RECORD}"))
    return {file.parent.name: file.read_bytes() for file in files if Result.load(file.parent).status != "interrupted"}


def check_invariants(folder: Path, before: Mapping[str, bytes], cache: Path | None = None) -> None:
    """Finished records are as they were `before`; records are named by their keys; stores pass; nothing is left over.

    Call it after the next start of the sweep has ended.
    """
    after = terminal_records(folder)
    assert {key: after.get(key) for key in before} == dict(before), "a finished record was changed or lost"
    for key in after:
        assert Result.load(folder / "trials" / key).key == key
    for store in (entry for kind in KINDS for entry in ((cache or folder) / kind).glob("*") if entry.is_dir()):
        if not store.name.endswith((".bad", ".part")):
            assert open_store(store) is not None, f"{store} fails its checksums"
    left = [path for root in filter(None, (folder, cache)) for path in root.rglob(".*.tmp")]
    assert not left, f"temporary files survive: {left}"
    assert not living(str(folder)), "processes survive"


def living(word: str, patience: float = 60.0) -> list[int]:
    """Processes with `word` in their open files or arguments that are still there after `patience` seconds."""
    deadline = time.monotonic() + patience
    while (found := _using(word)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _using(word: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            open_files = [str(link.readlink()) for link in (entry / "fd").iterdir()]
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if any(word in name for name in [*open_files, words]):
            found.append(int(entry.name))
    return found


TRAPS = (
    *("finetune", "train", "config", "data", "types", "random", "queue", "code", "string", "token", "copy", "signal"),
    *("threading", "tempfile", "importlib", "multiprocessing", "logging", "selectors", "socket", "json", "enum"),
    *("torch", "torchvision", "numpy", "PIL", "yaml", "hydra", "omegaconf", "wandb", "pytorch_lightning", "submitit"),
)
"""Names that modules of a user's own have, as well as ours, the libraries' or the standard library's."""


def set_traps(folder: Path, spared: Sequence[str] = ()) -> Callable[[], list[str]]:
    """Put modules of these names into a folder; the function that is returned lists those that were run since."""
    marks = folder / "marks.txt"
    for name in set(TRAPS) - set(spared):
        (folder / f"{name}.py").write_text(
            f"open({str(marks)!r}, 'a').write({name!r} + '\\n')\nraise SystemExit({name!r})\n"
        )
    return lambda: marks.read_text().split() if marks.exists() else []
