"""What was found out of a file holds as long as the file stays, and not one edit longer."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data import check, files, remembered
from finetune.data.check import inspect_images
from finetune.data.files import contents
from finetune.data.samples import DataSet, Samples
from finetune.errors import Refused

Look = Callable[[Sequence[Path]], dict[Path, str]]


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written just now count as settled."""
    monkeypatch.setattr(remembered, "_SETTLED", 0.0)


@pytest.fixture
def read() -> list[Path]:
    """The files that `look` read."""
    return []


@pytest.fixture
def look(tmp_path: Path, read: list[Path]) -> Look:
    def first_byte(path: Path) -> str:
        read.append(path)
        return path.read_bytes()[:1].decode() if path.exists() else "gone"

    def of(paths: Sequence[Path]) -> dict[Path, str]:
        found = remembered.remembered(first_byte, paths, tmp_path / "cache", "byte", lasts=lambda byte: byte != "")
        return {path: byte for path, (_, byte) in found.items()}

    return of


def write(path: Path, data: str) -> Path:
    """Write a file so that its times differ from all before, however coarse the clock of the file system."""
    before = path.stat().st_ctime_ns if path.exists() else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data)
    while path.stat().st_ctime_ns == before:
        path.write_text(data)
    return path


def keeping_size_and_mtime(path: Path, change: Callable[[Path], object]) -> None:
    stat = path.stat()
    change(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def replace_by_another(path: Path) -> None:
    other = write(path.with_name("other"), "z")
    other.replace(path)


@pytest.mark.usefixtures("old")
def test_a_file_is_read_once_and_again_where_an_edit_keeps_its_size_and_mtime(
    tmp_path: Path, look: Look, read: list[Path]
) -> None:
    a, b = (write(tmp_path / "files" / name, name) for name in "ab")
    assert look([a, b]) == look([b, a, a]) == {a: "a", b: "b"}
    assert sorted(read) == [a, b]
    for change in (lambda path: write(path, "x"), replace_by_another):
        read.clear()
        keeping_size_and_mtime(a, change)
        assert look([a, b])[a] == a.read_text()
        assert read == [a]
    read.clear()
    assert look([b]) == {b: "b"}
    assert read == []


def test_a_file_that_was_changed_just_now_is_not_trusted_to_show_the_next_change(
    tmp_path: Path, look: Look, read: list[Path]
) -> None:
    a = write(tmp_path / "a", "a")
    assert look([a]) == look([a]) == {a: "a"}
    assert read == [a, a]


@pytest.mark.usefixtures("old")
def test_an_answer_of_the_moment_and_a_file_that_is_gone_are_not_remembered(
    tmp_path: Path, look: Look, read: list[Path]
) -> None:
    empty, gone = write(tmp_path / "a", ""), tmp_path / "gone"
    assert look([empty, gone]) == look([empty, gone]) == {empty: "", gone: "gone"}
    assert read == [empty, gone] * 2


@pytest.mark.usefixtures("old")
def test_what_is_kept_is_of_files_that_are_there(tmp_path: Path, look: Look, read: list[Path]) -> None:
    a, b, c = (write(tmp_path / "files" / name, name) for name in "abc")
    look([a, b])
    b.unlink()
    look([a, c])
    (kept,) = (tmp_path / "cache" / "files").iterdir()
    assert [name in kept.read_text() for name in (f'"{a}"', f'"{b}"', f'"{c}"')] == [True, False, True]
    read.clear()
    kept.write_bytes(kept.read_bytes().replace(b'"a"', b'"x"'))  # damage, which the checksum shows
    assert look([a, c]) == {a: "a", c: "c"}
    assert read == [a, c]


@pytest.mark.usefixtures("old")
def test_a_cache_that_cannot_be_written_is_done_without_and_one_that_all_can_write_refused(
    tmp_path: Path, look: Look, read: list[Path]
) -> None:
    a = write(tmp_path / "files" / "a", "a")
    (tmp_path / "cache").write_text("a file in its place")
    assert look([a]) == look([a]) == {a: "a"}
    assert read == [a, a]
    (tmp_path / "cache").unlink()
    look([a])
    (tmp_path / "cache" / "files").chmod(0o777)
    with pytest.raises(Refused, match="can be written by everybody"):
        look([a])


@pytest.mark.usefixtures("old")
def test_contents_are_of_the_bytes_after_an_edit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = write(tmp_path / "a", "a")
    first = contents([a], tmp_path / "cache")[a]
    keeping_size_and_mtime(a, lambda path: write(path, "b"))
    second = contents([a], tmp_path / "cache")[a]
    assert [first.digest, second.digest] == [hashlib.sha256(text).hexdigest() for text in (b"a", b"b")]
    monkeypatch.setattr(files, "_read_content", lambda path: pytest.fail("read again"))
    assert contents([a], tmp_path / "cache") == {a: second}


@pytest.mark.usefixtures("old")
def test_a_second_check_decodes_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        Image.fromarray(np.full((9, 9, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    paths = tuple(tmp_path / f"{i}.png" for i in range(4))
    data = DataSet(("x", "y"), {"train": Samples(paths, (0, 0, 1, 1)), "val": Samples(paths[:1], (0,))})
    first = inspect_images(data, tmp_path / "cache")
    decoded, decode = list[Path](), check.decode
    monkeypatch.setattr(check, "decode", lambda path, levels: decoded.append(path) or decode(path, levels))
    assert inspect_images(data, tmp_path / "cache") == first
    assert decoded == []
    paths[2].write_bytes(paths[2].read_bytes()[:40])
    assert list(inspect_images(data, tmp_path / "cache").unreadable) == decoded == [paths[2]]
