import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from finetune.storage import cache, store
from finetune.storage.cache import locked, make_room
from finetune.storage.store import Rows, StoreBuilder, open_store


def values(count: int, width: int = 6) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 2, width)).astype(np.float32)


def built(folder: Path, rows: np.ndarray, block: int = 3) -> store.Store:
    building = StoreBuilder(folder, rows.shape[1:], str(rows.dtype))
    for start in range(building.done, len(rows), block):
        building.append(rows[start : start + block], {"start": start})
    building.publish({"made": "here"})
    found = open_store(folder)
    assert found is not None
    return found


def test_rows_come_back_at_any_positions_in_the_order_asked(tmp_path: Path) -> None:
    rows = values(10)
    found = built(tmp_path / "a", rows)
    for chosen in ([3], [0, 1, 2], [9, 0, 4, 4, 5, 6], slice(2, 7), slice(None), [], np.array([8, 7])):
        np.testing.assert_array_equal(found.rows[chosen], rows[chosen])
    assert (found.rows.shape, len(found.rows), found.about) == ((10, 2, 6), 10, {"made": "here"})
    for outside in ([10], [-1]):
        with pytest.raises(IndexError, match=r"rows 0..9 are there"):
            found.rows[outside]


def test_bfloat16_is_kept_to_the_bit(tmp_path: Path) -> None:
    bits = np.arange(12, dtype=np.uint16).reshape(4, 3)
    building = StoreBuilder(tmp_path / "a", (3,), "bfloat16")
    building.append(bits)
    building.publish({})
    found = open_store(tmp_path / "a")
    assert found is not None
    np.testing.assert_array_equal(found.rows[:], bits)


def test_a_file_that_is_cut_while_open_is_an_error_and_no_crash(tmp_path: Path) -> None:
    found = built(tmp_path / "a", values(10))
    os.truncate(found.rows.file, 100)
    with pytest.raises(OSError, match="is truncated; remove its folder"):
        found.rows[:]


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "no manifest", "half a manifest"])
def test_a_damaged_store_is_set_aside(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a"
    built(folder, values(10))
    data, manifest = (folder / "rows.bin").read_bytes(), (folder / "manifest.json").read_text()
    changed = {"flip": data[:50] + bytes([data[50] ^ 1]) + data[51:], "cut": data[:-1], "grow": data + b"0"}
    (folder / "rows.bin").write_bytes(changed.get(damage, data))
    if damage == "half a manifest":
        (folder / "manifest.json").write_text(manifest[:20])
    if damage == "no manifest":
        (folder / "manifest.json").unlink()
    assert open_store(folder) is None
    assert not folder.exists()
    assert (tmp_path / "a.bad").is_dir()
    assert "was damaged; it is set aside as a.bad" in capsys.readouterr().err
    np.testing.assert_array_equal(built(folder, values(10)).rows[:], values(10))


@pytest.mark.parametrize("damage", ["nothing", "the last block is torn", "a block is flipped", "the log is torn"])
def test_a_build_goes_on_after_its_last_intact_block(tmp_path: Path, damage: str) -> None:
    rows = values(12)
    building = StoreBuilder(tmp_path / "a", rows.shape[1:], "float32")
    for start in (0, 3, 6):
        building.append(rows[start : start + 3], start)
    building.close()
    data = tmp_path / "a.part" / "rows.bin"
    whole = data.read_bytes()
    kept = 9
    if damage == "the last block is torn":
        os.truncate(data, len(whole) - 5)
        kept = 6
    if damage == "a block is flipped":
        data.write_bytes(whole[:150] + bytes([whole[150] ^ 1]) + whole[151:])  # in the second
        kept = 3
    if damage == "the log is torn":
        log = tmp_path / "a.part" / "blocks.jsonl"
        log.write_text(log.read_text()[:-4])
        kept = 6
    again = StoreBuilder(tmp_path / "a", rows.shape[1:], "float32")
    assert (again.done, again.notes) == (kept, [0, 3, 6][: kept // 3])
    again.close()
    assert open_store(tmp_path / "a") is None
    np.testing.assert_array_equal(built(tmp_path / "a", rows).rows[:], rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_several_processes_that_want_one_store_build_it_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; import numpy as np\n"
        "from finetune.storage.cache import *; from finetune.storage.store import *\n"
        "folder = Path(sys.argv[1])\n"
        "with locked(folder):\n"
        "    if open_store(folder) is None:\n"
        "        print('built'); time.sleep(0.3)\n"
        "        b = StoreBuilder(folder, (2,), 'uint8'); b.append(np.ones((3, 2), np.uint8)); b.publish({})\n"
        "print(open_store(folder).rows[:].sum())"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "c" / "a"], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [process.communicate()[0].split() for process in processes]
    assert sum("built" in words for words in said) == 1
    assert [words[-1] for words in said] == ["6"] * 4


def cache_of(tmp_path: Path, *names: str) -> Path:
    """Stores of 480 bytes of rows, each used a second after the one before."""
    for age, name in enumerate(names):
        built(tmp_path / name, values(10))
        os.utime(tmp_path / name / "manifest.json", (1000 + age, 1000 + age))
    return tmp_path


def left(cache: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in cache.glob("*/*") if path.is_dir()}


ALL = ("activations/a", "pixels/b", "activations/c")


def test_the_least_recently_used_go_first_and_only_as_many_as_must(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, *ALL)
    size = sum(file.stat().st_size for file in (tmp_path / "activations/a").iterdir())
    assert make_room(cache, {cache / "pixels/new": 100}, 4 * size)
    assert left(cache) == set(ALL)
    assert make_room(cache, {cache / "pixels/new": size}, 3 * size)
    assert left(cache) == {"pixels/b", "activations/c"}
    open_store(tmp_path / "pixels/b")  # used again
    assert make_room(cache, {cache / "pixels/new": size}, 2 * size)
    assert left(cache) == {"pixels/b"}
    assert not make_room(cache, {cache / "pixels/new": 2 * size}, size)
    assert left(cache) == {"pixels/b"}


def test_a_store_in_use_stays_whoever_uses_it(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, *ALL)
    code = (
        "import sys; from pathlib import Path; from finetune.storage.store import open_store\n"
        "kept = open_store(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "activations/a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()
    mine = open_store(tmp_path / "activations/c")
    assert mine is not None
    wanted = {cache / "pixels/new": 2000}
    assert not make_room(cache, wanted, 2500)
    assert left(cache) == set(ALL), "a store went, and there is no room all the same"
    np.testing.assert_array_equal(mine.rows[:], values(10))
    other.communicate()
    del mine
    assert make_room(cache, wanted, 2500)
    assert left(cache) == set()


def test_a_build_under_way_is_not_evicted_and_one_left_behind_is(tmp_path: Path) -> None:
    building = StoreBuilder(tmp_path / "activations/a", (6,), "float32")
    building.append(values(9, 3).reshape(9, 6))
    with locked(tmp_path / "activations/a"):
        assert not make_room(tmp_path, {tmp_path / "activations/b": 200}, 300)
        assert left(tmp_path) == {"activations/a.part"}
    building.close()
    assert make_room(tmp_path, {tmp_path / "activations/b": 200}, 300)
    assert left(tmp_path) == set()


def test_what_is_built_of_a_store_is_part_of_it_and_stays(tmp_path: Path) -> None:
    cache_of(tmp_path, "pixels/old")
    building = StoreBuilder(tmp_path / "activations/a", (6,), "float32")
    building.append(values(9, 3).reshape(9, 6))
    building.close()
    begun = sum(file.stat().st_size for file in building.part.iterdir())
    old = sum(file.stat().st_size for file in (tmp_path / "pixels/old").iterdir())
    assert make_room(tmp_path, {tmp_path / "activations/a": begun + 50}, begun + 50 + old)
    assert left(tmp_path) == {"activations/a.part", "pixels/old"}
    assert make_room(tmp_path, {tmp_path / "activations/a": begun + 50}, begun + 50)
    assert left(tmp_path) == {"activations/a.part"}


def test_rows_in_memory_are_asked_for_as_those_of_a_file(tmp_path: Path) -> None:
    rows = values(10)
    for chosen in ([3], [9, 0, 4, 4], slice(2, 7), slice(None), [], np.array([8, 7])):
        np.testing.assert_array_equal(store.RowsInMemory(rows)[chosen], rows[chosen])


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES])
def test_a_store_that_cannot_be_opened_now_is_left_as_it_is(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    built(tmp_path / "a", values(3))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        assert open_store(tmp_path / "a") is None
    assert open_store(tmp_path / "a") is not None
    assert not (tmp_path / "a.bad").exists()


def test_a_store_that_is_there_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_PATIENCE", 0.6)
    with FileLock(tmp_path / "a.lock"):
        with pytest.raises(cache.Unlockable), locked(tmp_path / "a"):
            pass
        built(tmp_path / "a", values(3))
        with locked(tmp_path / "a"):
            assert open_store(tmp_path / "a") is not None


def test_a_full_disk_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SPARE", 2**60)
    assert not make_room(tmp_path, {tmp_path / "pixels/a": 1}, 2**62)


def test_locks_that_a_file_system_lacks_are_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> None:
        raise OSError("no locks available")

    built(tmp_path / "a", values(3))
    monkeypatch.setattr(fcntl, "flock", lacking)
    found = open_store(tmp_path / "a")
    assert found is not None
    np.testing.assert_array_equal(found.rows[:], values(3))


def test_reading_all_of_a_store_does_not_grow_the_process(tmp_path: Path) -> None:
    building = StoreBuilder(tmp_path / "a", (1 << 18,), "uint8")
    for i in range(256):
        building.append(np.full((4, 1 << 18), i, np.uint8))
    building.publish({})
    code = (
        "import resource, sys; from pathlib import Path; from finetune.storage.store import open_store\n"
        "rows = open_store(Path(sys.argv[1])).rows; rows[[0]]\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "total = sum(int(rows[[i]][0, 0]) for i in range(len(rows)))\n"
        "print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    said = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True)
    total, grown = map(int, said.stdout.split())
    assert total == 4 * sum(range(256))
    assert grown < 16 * 1024, "kilobytes, of a store of 256 MB"


def test_what_a_manifest_says_is_what_is_there(tmp_path: Path) -> None:
    built(tmp_path / "a", values(7))
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (tmp_path / "a" / "rows.bin").stat().st_size == store.store_bytes(7, (2, 6), 4)
    assert {key: manifest[key] for key in ("count", "shape", "dtype")} == {
        "count": 7,
        "shape": [2, 6],
        "dtype": "float32",
    }
    assert [count for count, _ in manifest["blocks"]] == [3, 3, 1]


def test_rows_alone_need_no_store(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(12)))
    assert Rows(tmp_path / "f", 3, (4,), "uint8")[[2, 0]].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
