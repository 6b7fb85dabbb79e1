import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.storage.durable import write_durably
from finetune.storage.faults import Injected
from finetune.sweep.children import CONTEXT


def test_points_are_listed_while_the_file_of_arms_is_there(tmp_path: Path, arm: Callable[..., Path]) -> None:
    write_durably(tmp_path / "early", b"1")
    reached = arm()
    write_durably(tmp_path / "a", b"1")
    assert reached.read_text().splitlines() == [
        f"{point} {tmp_path}/a" for point in ("write", "fsync", "rename", "sync")
    ]


def test_a_fault_happens_at_its_point_path_and_number(tmp_path: Path, arm: Callable[..., Path]) -> None:
    arm("rename */b 2 raise:now", "write */c 0 full")
    for name, data in (("a", b"1"), ("a", b"2"), ("b", b"1")):
        write_durably(tmp_path / name, data)
    with pytest.raises(Injected, match="now"):
        write_durably(tmp_path / "b", b"2")
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            write_durably(tmp_path / "c", b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "b").read_bytes() == b"1"


def test_a_kill_reaches_the_process_that_comes_to_the_point(tmp_path: Path, arm: Callable[..., Path]) -> None:
    arm("rename */x 2 kill")
    write_durably(tmp_path / "x", b"old")
    child = CONTEXT.Process(target=write_durably, args=(tmp_path / "x", b"new"))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "x").read_bytes() == b"old"
