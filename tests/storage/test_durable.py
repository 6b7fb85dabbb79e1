import errno
import os
from pathlib import Path

import pytest

from finetune.storage import durable
from finetune.storage.durable import published_folder, write_durably


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_write_makes_the_folders_and_replaces_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "record.json"
    write_durably(path, b"a long first version")
    assert path.read_bytes() == b"a long first version"
    write_durably(path, b"short")
    assert path.read_bytes() == b"short"
    assert names(path.parent) == ["record.json"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    durable.refuse_unwritable(pipe, "--csv")
    write_durably(pipe, b"rows")
    assert os.read(reader, 100) == b"rows"
    assert pipe.is_fifo()
    os.close(reader)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="files have no names by their numbers")
def test_a_file_that_is_open_already_is_written_to_by_its_number(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        write_durably(Path(f"/dev/fd/{out.fileno()}"), b"rows")
    assert (tmp_path / "out").read_bytes() == b"rows"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("point", ["fsync", "replace"])
def test_a_write_that_stops_midway_keeps_the_old_bytes_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, error: BaseException
) -> None:
    path = tmp_path / "record.json"
    write_durably(path, b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os if point == "fsync" else Path, point, fail)
    with pytest.raises(type(error)):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["record.json"]


def test_the_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    write_durably(path, b"old")
    steps: list[tuple[str, bytes]] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(handle: int) -> None:
        place = Path(f"/proc/self/fd/{handle}").readlink()
        steps.append(("folder" if place.is_dir() else "file", path.read_bytes()))
        fsync(handle)

    def record_replace(temporary: Path, target: Path) -> Path:
        assert (temporary.parent, target) == (tmp_path, path)  # a rename within one folder cannot cross disks
        assert temporary.read_bytes() == b"new"
        steps.append(("rename", path.read_bytes()))
        return replace(temporary, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    write_durably(path, b"new")
    assert steps == [("file", b"old"), ("rename", b"old"), ("folder", b"new")]


def test_a_folder_appears_filled_and_only_when_the_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "stores" / "abc"
    with published_folder(folder) as building:
        (building / "inner").mkdir()
        (building / "inner" / "file").write_bytes(b"data")
        assert not folder.exists()
        assert building.parent == folder.parent
    assert names(folder.parent) == ["abc"]
    assert (folder / "inner" / "file").read_bytes() == b"data"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_vanishes_when_its_block_does_not_end_well(tmp_path: Path, error: type[BaseException]) -> None:
    def build() -> None:
        with published_folder(tmp_path / "abc") as building:
            (building / "inner").mkdir()
            (building / "inner" / "file").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        build()
    assert names(tmp_path) == []


def test_every_file_of_a_folder_reaches_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, synced = tmp_path / "abc", []

    def record(path: Path) -> None:
        synced.append((path.name, folder.exists()))

    monkeypatch.setattr(durable, "sync", record)
    with published_folder(folder) as building:
        (building / "inner").mkdir()
        (building / "inner" / "file").write_bytes(b"data")
    *before, last = synced
    assert {"file", "inner", building.name} == {name for name, _ in before}
    assert not any(published for _, published in before)
    assert last == (tmp_path.name, True)


def test_a_folder_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    def publish(text: str) -> None:
        with published_folder(tmp_path / "abc") as building:
            (building / "file").write_text(text)

    publish("first")
    with pytest.raises(OSError, match="not empty"):
        publish("second")
    assert (tmp_path / "abc" / "file").read_text() == "first"
    assert names(tmp_path) == ["abc"]
