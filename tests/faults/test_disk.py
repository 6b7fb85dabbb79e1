"""Stores, checkpoints and records against kills, damage, full and read-only disks, and locks."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from finetune.errors import Refused
from finetune.network.checkpoint import load_checkpoint
from finetune.records.layout import CHECKPOINT, LAST, RECORD
from finetune.records.result import Result, outcome
from finetune.storage import cache as cache_module
from finetune.storage.cache import KINDS, Unlockable, locked
from finetune.storage.store import open_store
from finetune.sweep.children import CONTEXT
from finetune.sweep.run import run_sweep
from finetune.sweep.spec import SweepSpec
from finetune.sweep.state import Options
from tests.faults.invariants import PATIENCE, check_invariants, run, spec_of, sweep_file, terminal_records, wait_for
from tests.forked import Command
from tests.models import draw, small_trial

Arm = Callable[..., Path]
DEPTHS = {"model.freeze_depth": {"values": [2, 5]}}
ONE = {"model.freeze_depth": {"values": [5]}}
BY_BATCH = {"model.freeze_depth": {"values": [4]}}
"""A trial whose batches are steps: a head alone takes several at once."""
PACKAGE = Path(__file__).parent.parent.parent / "finetune"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, small_weights: Path) -> list[str]:
    """Of sweeps where activations are stored, on images that all tests here share; `own_cache` says where."""
    images = draw(tmp_path_factory.mktemp("disk") / "images")
    return [*small_trial(images, small_weights), "cache.mode=on"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def stores(cache: Path) -> list[Path]:
    return [entry for kind in KINDS for entry in sorted((cache / kind).glob("*")) if entry.is_dir()]


def outcomes(folder: Path) -> dict[str, dict[str, object]]:
    return {key: outcome(Result.load(folder / "trials" / key)) for key in terminal_records(folder)}


def without_warnings(records: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    return {key: {**record, "warnings": []} for key, record in records.items()}


@dataclass(frozen=True)
class Undisturbed:
    """A sweep that nothing disturbed."""

    outcomes: dict[str, dict[str, object]]
    cache: Path
    """All its stores; to be copied."""


def undisturbed(place: Path, spec: SweepSpec) -> Undisturbed:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(place / "cache"))
        run_sweep(spec, place / "s")
    return Undisturbed(outcomes(place / "s"), place / "cache")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Undisturbed:
    """The sweep over DEPTHS."""
    place = tmp_path_factory.mktemp("two")
    return undisturbed(place, spec_of(place, words, DEPTHS))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Undisturbed:
    """The sweep over ONE."""
    place = tmp_path_factory.mktemp("one")
    return undisturbed(place, spec_of(place, words, ONE))


SAVED = ("trainer.epochs=3", "trainer.save_every=0")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Undisturbed:
    """The sweep over BY_BATCH, of three epochs, saved after each batch."""
    place = tmp_path_factory.mktemp("saved")
    return undisturbed(place, replace(spec_of(place, words, BY_BATCH), fixed=(*words, *SAVED)))


@pytest.fixture
def whole(two: Undisturbed) -> dict[str, dict[str, object]]:
    """The outcomes of the sweep over DEPTHS that nothing disturbs."""
    return two.outcomes


@pytest.mark.slow
@pytest.mark.parametrize("point", ["write {}/activations/*/rows.bin", "rename {}/activations/????????????"])
def test_fault_17_a_store_whose_build_is_killed_is_invisible_and_built_by_the_next(
    tmp_path: Path, words: list[str], arm: Arm, whole: dict[str, dict[str, object]], point: str
) -> None:
    cache = tmp_path / "cache"
    arm(*(f"{point.format(cache)} {i} kill" for i in (1, 2, 3)))  # at each of three starts of the preparation
    with pytest.raises(RuntimeError, match="died 3 times, with exit code -9"):
        run_sweep(spec_of(tmp_path, words, DEPTHS), tmp_path / "s")
    assert not terminal_records(tmp_path / "s")
    half = [store for store in stores(cache) if store.name.endswith(".part")]
    assert half
    assert not any(store.with_name(store.name.removesuffix(".part")).exists() for store in half)
    run_sweep(spec_of(tmp_path, words, DEPTHS), tmp_path / "s")
    assert outcomes(tmp_path / "s") == whole
    assert not [store for store in stores(cache) if store.name.endswith((".part", ".bad"))]
    check_invariants(tmp_path / "s", {}, cache)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["truncated", "zeroed", "flipped"])
@pytest.mark.parametrize("file", ["rows.bin", "manifest.json"])
def test_fault_18_a_damaged_region_of_a_store_is_caught_and_built_anew(
    tmp_path: Path, words: list[str], one: Undisturbed, kind: str, damage: str, file: str
) -> None:
    spec, cache = spec_of(tmp_path, words, ONE), tmp_path / "cache"
    shutil.copytree(one.cache, cache)
    victim = next(store for store in stores(cache) if store.parent.name == kind) / file
    data = victim.read_bytes()
    at = 2 * len(data) // 3
    victim.write_bytes(
        {
            "truncated": data[:at],
            "zeroed": data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :],
            "flipped": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        }[damage]
    )
    if victim.read_bytes() == data:
        pytest.skip("these bytes are zero anyway")
    sweep = run_sweep(spec, tmp_path / "s")
    assert without_warnings(outcomes(tmp_path / "s")) == without_warnings(one.outcomes)
    (bad,) = [store for store in stores(cache) if store.name.endswith(".bad")]
    assert bad.name == f"{victim.parent.name}.bad"
    assert open_store(victim.parent) is not None
    if kind == "pixels":
        assert all("was damaged, and was built anew" in text for r in sweep.results for text in r.warnings)
    check_invariants(tmp_path / "s", {}, cache)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["write", "fsync", "rename", "sync"])
def test_fault_20_a_kill_while_a_checkpoint_is_saved_leaves_the_one_before(
    tmp_path: Path, words: list[str], arm: Arm, saved: Undisturbed, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    elsewhere = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    assert elsewhere.stat().st_dev != tmp_path.stat().st_dev, "a temporary folder on another disk"
    spec = replace(spec_of(tmp_path, words, BY_BATCH), fixed=(*words, *SAVED))
    arm(f"{point} {tmp_path}/s/*/{LAST} 4 kill")
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    sweep = run_sweep(spec, tmp_path / "s")
    assert [note.split()[2:] for note in sweep.notes] == [
        ["ended", "by", "itself", "with", "exit", "code", "-9;", "it", "was", "started", "again"]
    ]
    (log,) = (tmp_path / "s").glob("trials/*/log.txt")
    # three batches an epoch: the fourth save is of the second epoch's first; renamed, it counts
    assert (
        f"going on in epoch {2 if point == 'sync' else 1} after batch {1 if point == 'sync' else 3}" in log.read_text()
    )
    assert outcomes(tmp_path / "s") == saved.outcomes
    check_invariants(tmp_path / "s", {}, tmp_path / "cache")


@pytest.mark.slow
def test_fault_20_a_kill_while_the_best_is_saved_costs_no_record(tmp_path: Path, words: list[str], arm: Arm) -> None:
    spec = spec_of(tmp_path, words, DEPTHS)
    arm(f"rename */s/*/{CHECKPOINT} 1 kill")
    sweep = run_sweep(spec, tmp_path / "s")
    assert [result.status for result in sweep.results] == ["complete", "complete"]
    assert len(sweep.notes) == 1
    assert sweep.best is not None
    network, classes = load_checkpoint(tmp_path / "s" / "trials" / sweep.best.key / CHECKPOINT)
    assert len(classes) == 3
    assert not network.training
    check_invariants(tmp_path / "s", {}, tmp_path / "cache")


def _hold(folder: Path, told: Path, seconds: float) -> None:
    with locked(folder):
        told.touch()
        time.sleep(seconds)


def test_fault_22_a_peer_goes_on_when_the_holder_of_a_lock_is_killed(tmp_path: Path) -> None:
    holder = CONTEXT.Process(target=_hold, args=(tmp_path / "pixels" / "a", tmp_path / "held", 3600))
    holder.start()
    wait_for((tmp_path / "held").exists)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    with locked(tmp_path / "pixels" / "a"):  # an hour of the holder's is left
        holder.join()
    assert holder.exitcode == -signal.SIGKILL


def limited(limit: int, *words: object) -> tuple[int, str]:
    """The exit code of `finetune WORDS` where no file may get longer than `limit` bytes, and what it printed."""
    process = Command("finetune.cli", [*map(str, words)], Path.cwd(), os.environ, longest_file=limit)
    text, _ = process.communicate(PATIENCE)
    assert process.returncode is not None
    return process.returncode, text


@pytest.mark.slow
def test_fault_29_without_room_for_the_pixels_a_sweep_trains_from_memory(tmp_path: Path, words: list[str]) -> None:
    file, given = sweep_file(tmp_path, {"optim.lr": {"values": [0.001, 0.01]}}), [*words, "model.freeze_depth=5"]
    given += ["data.size=64", "trainer.epochs=1"]
    assert run("sweep", file, "--no-repeats", *given, "--out", tmp_path / "whole")[0] == 0
    shutil.rmtree(tmp_path / "cache")
    # the pixels take 295 and 147 kB; activations, records, logs and checkpoints less than 100
    code, said = limited(120_000, "sweep", file, "--no-repeats", *given, "--out", tmp_path / "s")
    assert "2 complete" in said
    assert code == 4, said  # the page, which takes 5 MB, could not be written either
    for key in terminal_records(tmp_path / "s"):
        record = Result.load(tmp_path / "s" / "trials" / key)
        assert any("are kept in memory" in text and "File too large" in text for text in record.warnings)
    assert without_warnings(outcomes(tmp_path / "s")) == without_warnings(outcomes(tmp_path / "whole"))
    assert not [store for store in stores(tmp_path / "cache") if store.name.endswith(".part")]
    check_invariants(tmp_path / "s", {}, tmp_path / "cache")


@pytest.mark.slow
def test_fault_29_without_room_for_activations_a_sweep_computes_them(
    tmp_path: Path, words: list[str], arm: Arm, whole: dict[str, dict[str, object]]
) -> None:
    arm(f"write {tmp_path}/cache/activations/*/rows.bin 0 full")
    sweep = run_sweep(spec_of(tmp_path, words, DEPTHS), tmp_path / "s")
    for result in sweep.results:
        assert result.cache["train"] == "computed"
        assert any("could not be written" in text and "No space left" in text for text in result.warnings)
    assert without_warnings(outcomes(tmp_path / "s")) == without_warnings(whole)
    assert not list((tmp_path / "cache" / "activations").glob("*.part"))
    arm()
    run_sweep(spec_of(tmp_path, words, DEPTHS), tmp_path / "t")
    check_invariants(tmp_path / "s", {}, tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("what", [CHECKPOINT, RECORD])
def test_fault_30_a_full_disk_tears_no_checkpoint_and_no_record(
    tmp_path: Path, words: list[str], arm: Arm, what: str
) -> None:
    spec = spec_of(tmp_path, words, DEPTHS)
    run_sweep(spec, tmp_path / "s")
    before = terminal_records(tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "trials" / max(before))
    kept = {key: data for key, data in before.items() if key != max(before)}
    file = sweep_file(tmp_path, DEPTHS)
    arm(f"write {tmp_path}/s/*/{what} 0 full")
    code, said = run("sweep", file, "--no-repeats", *words, "trainer.epochs=1", "--out", tmp_path / "s")
    assert {key: data for key, data in terminal_records(tmp_path / "s").items() if key in kept} == kept
    if what == CHECKPOINT and code == 3:
        assert "No space left on device" in said
    else:
        assert (code, "make room, then run the same command again" in said) == (4, True) or code == 0, said
    arm()
    run_sweep(spec, tmp_path / "s", Options(retry_failed=True))
    assert outcomes(tmp_path / "s").keys() == before.keys()
    assert all(record["status"] == "complete" for record in outcomes(tmp_path / "s").values())
    check_invariants(tmp_path / "s", kept, tmp_path / "cache")


@pytest.mark.slow
def test_fault_31_a_read_only_cache_is_read_and_the_rest_computed(
    tmp_path: Path, words: list[str], whole: dict[str, dict[str, object]]
) -> None:
    cache = tmp_path / "cache"
    run_sweep(spec_of(tmp_path, words, ONE), tmp_path / "first")
    names = {store.name for store in stores(cache)}
    mounted = subprocess.run(
        ["mount", "--bind", "-o", "ro", str(cache), str(cache)], capture_output=True, text=True, check=False
    )
    if mounted.returncode == 0:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(cache)], check=False, capture_output=True)
    elif os.geteuid() == 0:
        pytest.skip(f"permissions do not bind root, and it may not mount here: {mounted.stderr.strip()}")
    else:
        for folder in (cache, *(cache / kind for kind in KINDS)):
            folder.chmod(0o555)
    try:
        sweep = run_sweep(spec_of(tmp_path, words, DEPTHS), tmp_path / "s")
    finally:
        subprocess.run(["umount", str(cache)], check=False, capture_output=True)
        for folder in (cache, *(cache / kind for kind in KINDS)):
            folder.chmod(0o755)
    used = {result.freeze_depth: result.cache["train"] for result in sweep.results}
    assert used == {2: "computed", 5: "stored"}
    assert {store.name for store in stores(cache)} == names
    assert {k: r["history"] for k, r in outcomes(tmp_path / "s").items()} == {
        k: r["history"]
        for k, r in whole.items()  # type: ignore[index]
    }


def test_fault_32_a_file_system_without_locks_is_used_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path / "pixels" / "a"):
        pass
    assert re.search("a.lock cannot be locked .*; another process may do the same work", capsys.readouterr().err)


def test_fault_32_a_lock_that_somebody_keeps_without_working_is_given_up(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_module._PATIENCE < 30
    monkeypatch.setattr(cache_module, "_PATIENCE", 1.0)
    (tmp_path / "pixels").mkdir()
    with (tmp_path / "pixels" / "a.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with (
            pytest.raises(Unlockable, match="held for 1 s by a process that builds nothing"),
            locked(tmp_path / "pixels" / "a"),
        ):
            raise AssertionError


def test_nothing_but_the_helper_opens_a_durable_file_for_writing() -> None:
    writes = re.compile(
        r"""\.write_(text|bytes)\(|open\([^)]*["'][rwax+bt]*[wax+][rwax+bt]*["']|os\.open\(|O_(WRONLY|RDWR)"""
        r"""|shutil\.(copy|move)|\.rename\(|os\.(rename|replace)\(|(?<!safetensors\.)torch\.save\(|save_file\(|np\.savez?\("""
    )
    allowed = {
        "storage/durable.py": "the helper",
        "storage/faults.py": "what tests read",
        "trial/callback.py": "a sign of life, which nobody goes on from",
        "sweep/launch.py": "logs",
        "sweep/children.py": "logs",
        "sweep/cluster.py": "logs",
        "sweep/wandb_launcher.py": "logs, and a sign of life",
        "sweep/wandb_sweep.py": "a temporary file",
        "records/run_files.py": "copies for W&B's client to send",
        "export/write.py": "into a folder that the helper publishes",
        "storage/store.py": "os.open for reading",
        "storage/system.py": "the helper's rename; a manifest that is locked, not written; reading, syncing",
        "sharing/cost.py": "measures the disk",
        "trial/timing.py": "a trial in a temporary folder, to time it",
        "export/card.py": "code that a model card shows",
    }
    found = {
        str(file.relative_to(PACKAGE)): line.strip()
        for file in sorted(PACKAGE.rglob("*.py"))
        for line in file.read_text().splitlines()
        if writes.search(line) and not line.strip().startswith(("#", '"'))
    }
    assert not found.keys() - allowed, found
    opened = {
        opening
        for name in ("store", "system")
        for opening in re.findall(r"(?:os|file)\.open\(.*", (PACKAGE / "storage" / f"{name}.py").read_text())
    }
    assert opened - {'file.open("rb") as file:'} == {
        "os.open(folder / MANIFEST, os.O_RDONLY)",
        'os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))',
        "os.open(path, os.O_RDWR if _IS_WINDOWS else os.O_RDONLY)",
        'file.open("r+b") as opened:  # NFS locks no file opened for reading',
    }


def test_a_changed_record_or_checkpoint_is_noticed(tmp_path: Path, words: list[str]) -> None:
    spec = spec_of(tmp_path, words, ONE)
    sweep = run_sweep(spec, tmp_path / "s")
    assert sweep.best is not None
    trial = tmp_path / "s" / "trials" / sweep.best.key
    data = (trial / CHECKPOINT).read_bytes()
    (trial / CHECKPOINT).write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    with pytest.raises(Refused, match="checksum differs"):
        load_checkpoint(trial / CHECKPOINT)
    record = json.loads((trial / RECORD).read_text())
    (trial / RECORD).write_text(json.dumps({**record, "val_acc_best": 1.5}))
    with pytest.raises(ValueError, match="checksum differs"):
        Result.load(trial)
    assert run_sweep(spec, tmp_path / "s").best is not None  # the trial ran again
    assert outcome(Result.load(trial)) == outcome(sweep.best)
