"""Rows 16 and 45 to 49 of the fault table: what others may have put there, and what they may see."""

import io
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from finetune.compose import compose_config
from finetune.errors import Refused
from finetune.network.backbone import build_backbone
from finetune.network.checkpoint import load_checkpoint
from finetune.network.weights import read_weights
from finetune.records.layout import CHECKPOINT, PREDICTIONS, RECORD
from finetune.records.predictions import Predictions
from finetune.report.serve import server
from finetune.sharing.images import decode_splits, find_data
from finetune.storage.cache import locked
from finetune.storage.store import MANIFEST, StoreBuilder, open_store
from finetune.train import prepare
from finetune.trial.run import train
from tests.faults.invariants import PATIENCE, check_invariants, run, set_traps, sweep_file, terminal_records
from tests.network.test_backbone import scrambled

KEY = "c0ffee" + "5ec2e7" * 5 + "deed"
"""What W&B's keys look like: 40 hex digits."""


BY_PYTHON = ("importlib", "types")
"""What `python -m` itself imports from the current folder, unless it was started with -P, before it comes to us."""


class Bomb:
    """Unpickled, it makes a file named `ran` in the current folder."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (Path("ran"),))


@pytest.fixture
def bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A pickle in each of its dresses; at the end none of them has run."""
    monkeypatch.chdir(tmp_path)
    zipped, array = io.BytesIO(), io.BytesIO()
    torch.save({"conv1.weight": Bomb()}, zipped)
    np.savez(array, probabilities=np.array([Bomb()], dtype=object))
    yield {"raw": pickle.dumps(Bomb()), "torch": zipped.getvalue(), "numpy": array.getvalue()}
    assert not Path("ran").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("ran").exists(), "the bombs were duds"


def files_with(text: bytes, *folders: Path) -> list[Path]:
    return [file for folder in folders for file in folder.rglob("*") if file.is_file() and text in file.read_bytes()]


@pytest.mark.slow
def test_fault_16_a_key_in_the_environment_is_in_no_record_log_or_page(tmp_path: Path, fast: list[str]) -> None:
    space = {"model.freeze_depth": {"values": [17]}, "optim.lr": {"values": [0.01, 1e30]}}
    file = sweep_file(tmp_path, space)
    words = [*fast[:-2], "trainer.epochs=1", fast[-1], "logger=wandb", "logger.mode=offline"]
    folder, cache = tmp_path / "s", tmp_path / "cache"
    secret = {"WANDB_API_KEY": KEY, "FINETUNE_CACHE": str(cache)}
    code, said = run("sweep", file, "--no-repeats", *words, "--out", folder, "--workers", 1, **secret)
    assert code in (0, 3), said
    told, page = run("report", folder, **secret)
    assert told == 0, page
    assert list(folder.rglob("*.wandb")), "no run was logged"
    assert list(folder.glob("*.html")), "no page was written"
    assert KEY not in said + page
    assert files_with(KEY.encode(), folder, cache, tmp_path) == []
    assert files_with(b'"freeze_depth": 17', folder), "the search finds nothing whatever is there"
    check_invariants(folder, terminal_records(folder), cache)


@pytest.mark.parametrize("dress", ["raw", "torch", "numpy"])
def test_fault_45_a_pickle_in_place_of_weights_or_a_checkpoint_is_refused_by_name(
    bombs: dict[str, bytes], dress: str
) -> None:
    backbone = build_backbone("narrow_resnet50")
    for name in ("w.pth", "w.pt", "w.safetensors"):
        Path(name).write_bytes(bombs[dress])
        with pytest.raises(Refused, match=rf"model\.weights={name} (holds more than|cannot be read|is not a state_d)"):
            read_weights(backbone, name)
    Path(CHECKPOINT).write_bytes(bombs[dress])
    with pytest.raises(Refused, match=f"^{CHECKPOINT} is not a checkpoint of finetune"):
        load_checkpoint(Path(CHECKPOINT))
    Path(PREDICTIONS).write_bytes(bombs[dress])
    assert Predictions.load(Path()) is None


@pytest.mark.parametrize("dress", ["raw", "torch", "numpy"])
@pytest.mark.parametrize("file", ["rows.bin", "manifest.json"])
def test_fault_45_a_pickle_in_a_store_is_set_aside_by_name(
    tmp_path: Path, bombs: dict[str, bytes], dress: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pixels" / "a"
    building = StoreBuilder(folder, (4,), "uint8")
    building.append(np.zeros((8, 4), np.uint8))
    building.publish({})
    (folder / file).write_bytes(bombs[dress])
    assert open_store(folder) is None
    assert f"{folder} was damaged; it is set aside as a.bad" in capsys.readouterr().err
    assert (tmp_path / "pixels" / "a.bad" / file).read_bytes() == bombs[dress]


def test_fault_46_a_page_is_served_on_loopback_to_this_machine_alone(tmp_path: Path) -> None:
    with server([tmp_path]) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        address, port = http.server_address[:2]
        assert address == "127.0.0.1"
        for elsewhere in ("127.0.0.2", *addresses_of_this_machine()):
            with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
                socket.create_connection((elsewhere, port), timeout=2).close()
        for host, status in (("evil.example", 403), (f"evil.example:{port}", 403), ("", 403)):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/state", headers={"Host": host})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request)
            assert refused.value.code == status
            refused.value.close()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/state") as answer:
            assert answer.status == 200
        http.shutdown()


def addresses_of_this_machine() -> list[str]:
    """Those at which others would reach it."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    except OSError:
        found = set()
    return sorted(address for address in found if not address.startswith("127.0.0.1"))


def test_fault_47_a_lock_that_is_a_link_is_refused_and_its_target_untouched(tmp_path: Path, fast: list[str]) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    cache, words = tmp_path / "cache", [*fast, f"cache.dir={tmp_path / 'cache'}", f"out={tmp_path / 'r'}"]
    train(compose_config(words), words)
    for store in [entry for kind in ("pixels", "activations") for entry in (cache / kind).iterdir() if entry.is_dir()]:
        lock = store.with_name(f"{store.name}.lock")
        lock.unlink(missing_ok=True)
        lock.symlink_to(precious)
        with pytest.raises(Refused, match=rf"{lock} is a link, through which another file would be written; remove it"):
            open_store(store)
        with pytest.raises(Refused, match="is a link"), locked(store):
            pass
        lock.unlink()
        lock.symlink_to(tmp_path / "nothing there")
        with pytest.raises(Refused, match="is a link"), locked(store):
            pass
    record = (tmp_path / "r" / RECORD).read_bytes()
    with pytest.raises(Refused, match="is a link"):
        train(compose_config(words), words)
    assert precious.read_text() == "years of work"
    assert not (tmp_path / "nothing there").exists()
    assert (tmp_path / "r" / RECORD).read_bytes() == record


@pytest.mark.parametrize(
    ("open_to_all", "mode", "accepted"),
    [
        ("", 0o777, False),
        ("", 0o1777, True),  # as /tmp, where only its owner may remove a file
        ("pixels", 0o1777, False),  # where others could lay a store out first
        pytest.param("pixels", 0o777, False, marks=pytest.mark.slow),
        pytest.param("pixels/*[0-9a-f]", 0o777, False, marks=pytest.mark.slow),
        pytest.param("", 0o775, True, marks=pytest.mark.slow),
        pytest.param("pixels", 0o755, True, marks=pytest.mark.slow),
    ],
)
def test_fault_47_a_store_folder_that_others_can_write_is_refused(
    tmp_path: Path, fast: list[str], open_to_all: str, mode: int, accepted: bool
) -> None:
    cache, file = tmp_path / "cache", sweep_file(tmp_path, {"model.freeze_depth": {"values": [17]}})
    words = [*fast[:4], f"cache.dir={cache}", "trainer.accelerator=cpu", f"out={tmp_path / 'r'}"]
    decode_splits(compose_config(words), find_data(compose_config(words)))
    assert file.is_file()
    places = [place for place in cache.glob(open_to_all) if place.is_dir()] if open_to_all else [cache]
    assert places
    for place in places:
        place.chmod(mode)
    if accepted:
        decode_splits(compose_config(words), find_data(compose_config(words)))
    else:
        with pytest.raises(Refused, match=r"can be written by everybody, .*`chmod o-w /.*set cache\.dir to a folder"):
            train(compose_config(words), words)
        assert not (tmp_path / "r").exists()


def test_fault_48_weights_that_are_missing_or_partial_are_refused_by_path(tmp_path: Path, fast: list[str]) -> None:
    whole = scrambled(build_backbone("narrow_resnet50"))
    torch.save(whole, tmp_path / "cut.pth")
    safetensors.torch.save_file(whole, tmp_path / "cut.safetensors")
    torch.save({name: value for name, value in whole.items() if "layer3" not in name}, tmp_path / "few.pth")
    for name in ("cut.pth", "cut.safetensors"):
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size // 2)
    (tmp_path / "empty.pth").touch()
    (tmp_path / "folder.pth").mkdir()
    for name in ("absent.pth", "cut.pth", "cut.safetensors", "few.pth", "empty.pth", "folder.pth"):
        path = tmp_path / name
        words = [*fast, f"model.weights={path}", f"out={tmp_path / 'r'}"]
        with pytest.raises(Refused, match=rf"^model\.weights={path}\b"):
            train(compose_config(words), words)
        with pytest.raises(Refused, match=rf"^model\.weights={path}\b"):
            prepare([(words, 1)], True, print)
    assert not (tmp_path / "r").exists(), "a trial ran, on random weights"
    assert not list(tmp_path.rglob(MANIFEST)), "images were decoded before"


def test_fault_48_downloaded_weights_that_are_not_those_of_their_digest_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    state = scrambled(build_backbone("resnet18"))
    torch.save(state, file)
    whole = file.read_bytes()
    for given in (whole, whole[: len(whole) // 2], b""):
        file.write_bytes(given)
        with pytest.raises(Refused, match=rf"^{file} is not the file .* should begin with f37072fd; remove it"):
            read_weights(build_backbone("resnet18"), "IMAGENET1K_V1")


def test_fault_48_a_checkpoint_whose_frozen_weights_changed_is_refused_with_both_digests(
    tmp_path: Path, fast: list[str]
) -> None:
    path = tmp_path / "w.safetensors"
    state = scrambled(build_backbone("narrow_resnet50"))
    safetensors.torch.save_file(state, path)
    words = [*fast, f"model.weights={path}", "model.freeze_depth=9", "trainer.epochs=1", f"out={tmp_path / 'r'}"]
    result = train(compose_config(words), words)
    load_checkpoint(tmp_path / "r" / CHECKPOINT)
    state["layer1.0.conv1.weight"].view(-1)[0] += 1
    safetensors.torch.save_file(state, path)
    frozen = result.digests["frozen"][:12]
    with pytest.raises(
        Refused, match=rf"{CHECKPOINT} was trained on frozen weights {frozen}, but model\.weights={path}"
    ):
        load_checkpoint(tmp_path / "r" / CHECKPOINT)
    path.unlink()
    with pytest.raises(Refused, match=rf"model\.weights={path}: there is no such file"):
        load_checkpoint(tmp_path / "r" / CHECKPOINT)
    assert json.loads((tmp_path / "r" / RECORD).read_text())["digests"]["frozen"].startswith(frozen)


# 49


@pytest.mark.parametrize(
    ("command", "spared"),
    [
        pytest.param(
            ["finetune", "sweep", "{file}", "--no-repeats", "--out", "s", "--workers", "1"], (), marks=pytest.mark.slow
        ),
        pytest.param(["python", "-P", "-m", "finetune.train", "out=r"], (), marks=pytest.mark.slow),
        pytest.param(["python", "-m", "finetune.train", "out=r"], ("finetune", *BY_PYTHON), marks=pytest.mark.slow),
    ],
    ids=lambda words: " ".join(words[:3]) if isinstance(words, list) else "",
)
def test_fault_49_no_module_of_the_current_folder_is_run(
    tmp_path: Path, small: list[str], command: list[str], spared: tuple[str, ...]
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    ran = set_traps(place, spared)
    file = sweep_file(tmp_path, {"seed": {"values": [0]}})
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    program, *words = [word.format(file=file) for word in command]
    shown = subprocess.run(
        [str(Path(sys.executable).parent / program), *words, *small, "trainer.epochs=1"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ran() == []
    assert shown.returncode == 0, shown.stdout + shown.stderr


def test_fault_49_what_is_planted_would_be_run(tmp_path: Path) -> None:
    ran = set_traps(tmp_path)
    subprocess.run([sys.executable, "-c", "import random"], cwd=tmp_path, capture_output=True)
    assert ran() == ["random"]
