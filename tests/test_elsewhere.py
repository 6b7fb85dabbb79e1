"""Names, paths and consoles as other systems have them."""

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from finetune.commands.sweep import _folder_of
from finetune.compose import compose_config
from finetune.errors import Refused
from finetune.records.layout import SWEEP, folder_name
from finetune.sweep.spec import read_sweep
from tests.faults.invariants import run, sweep_file, terminal_records
from tests.kept import write
from tests.models import finetune

KEPT = Path(__file__).parent / "kept" / "0.1.0"
ODD_CLASSES = ("con", "nul.txt", "what: ants? <bees>", "end.", "end ")
"""Names that Linux allows and Windows does not: reserved, with characters of its own, with an end that it drops."""


@pytest.mark.parametrize("name", ["con", "AUX", "nul", "com1", "LPT9.v2", "prn.", "end.", "end "])
def test_no_folder_has_a_name_that_windows_keeps_or_shortens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = _folder_of(name).name
    assert folder == folder_name(name) != name
    assert not folder.endswith((".", " "))
    assert folder_name(folder) == folder
    assert _folder_of("explore") == Path("runs/explore")

    # a sweep that began there before stays there
    (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / name / SWEEP).touch()
    assert _folder_of(name).name == name


@pytest.mark.parametrize("root", ["C:\\photos\\new ones", "D:\\a\\tidy\\", "\\\\server\\share\\photos", "C:/photos"])
def test_a_place_with_drive_letter_and_backslashes_arrives_as_it_was_given(tmp_path: Path, root: str) -> None:
    assert compose_config([f"data.root={root}"]).data.root == root
    file = sweep_file(tmp_path, {"data.root": {"values": [root]}, "optim.lr": {"values": [0.1]}})
    spec = read_sweep(file, ())
    assert compose_config(spec.overrides({"data.root": root, "optim.lr": 0.1})).data.root == root


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_every_console_shows_what_there_is_to_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    shutil.copytree(KEPT, tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    write.weights(Path("weights.safetensors"))
    for split in ("train", "val"):
        Path("images", split, "class0").rename(Path("images", split, "schöne 猫"))
    for words, shown in (
        (["--help"], "Usage"),
        (["status", "runs/kept"], "pruned"),
        (["report", "runs/kept"], "freeze_depth=15"),
        (["compare", "runs/kept", "runs/kept"], "freeze"),
        (["best", "runs/kept"], "python -m finetune.train"),
        (["plan", "sweep.yaml"], "6 trials"),
        (["depths", "resnet18"], "layer4"),
        (["check", "images"], "sch"),
        (["sweep", "nowhere.yaml"], ""),
    ):
        output, errors = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        errors.reconfigure(errors="backslashreplace")  # as Python's own
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            patch.setattr(sys, "stderr", errors)
            code = finetune(patch, *words)
            output.flush()
            errors.flush()
        # click takes ASCII to be the wrong name of UTF-8
        said = output.buffer.getvalue().decode(encoding, errors="replace")
        refused = errors.buffer.getvalue().decode(encoding)
        assert shown in said, words
        assert (code, refused[:7]) == ((0, "") if shown else (2, "refused")), (words, refused)


@pytest.mark.parametrize("name", ["what: ants?", "a/b", "..", "a\\b", "<now>"])
def test_a_sweep_that_could_not_have_a_folder_of_its_name_is_refused(tmp_path: Path, name: str) -> None:
    file = sweep_file(tmp_path, {"optim.lr": {"values": [0.1]}}, name=name)
    with pytest.raises(Refused, match="names the folder under runs/") as refused:
        read_sweep(file, ())
    assert repr(name) in str(refused.value)


@pytest.mark.slow
def test_no_path_of_a_sweep_has_a_name_that_others_lack(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sweep and classes are called what Windows does not allow, and the images lie deeper than its 260 characters."""
    photos = tmp_path.joinpath(*["a folder whose name is fifty characters long, always"] * 6)
    for split, count in (("train", 8), ("val", 4)):
        for label, word in enumerate(ODD_CLASSES):
            (photos / split / word).mkdir(parents=True)
            for i in range(count):
                color = (50 * label, 10 * i, 100 if split == "train" else 90)
                Image.new("RGB", (40, 32), color).save(photos / split / word / f"{i}.png")
    assert len(str(photos)) > 260

    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    file = sweep_file(here, {"model.freeze_depth": {"values": [5, 3]}}, name="prn.v2.")
    words = [word for word in small if not word.startswith("data.root=")]
    code, said = run("sweep", file, *words, f"data.root={photos}", "cache.dir=cache", "cache.mode=on", "--no-repeats")
    assert code == 0, said
    (folder,) = (here / "runs").iterdir()
    assert len(terminal_records(folder)) == 2

    for command in (
        ["status", folder],
        ["report", folder],
        ["best", folder],
        ["export", folder, "model"],
        ["predict", folder, photos / "val", "--csv", "checkpoint.csv"],
        ["predict", "model", photos / "val", "--csv", "model.csv"],
        ["test", "model", photos / "val"],
    ):
        code, said = run(*command)
        assert code == 0, (command, said)

    # 1. What was written has a name that every system takes
    forbidden = set('<>:"|?*\\')
    for path in here.rglob("*"):
        assert path.name == folder_name(path.name), path
        assert forbidden.isdisjoint(path.name), path

    # 2. The classes arrive as they are called
    assert json.loads((here / "model" / "classes.json").read_text()) == sorted(ODD_CLASSES)
    for table in ("checkpoint.csv", "model.csv"):
        rows = list(csv.DictReader((here / table).read_text().splitlines()))
        assert len(rows) == 4 * len(ODD_CLASSES)
        assert set(ODD_CLASSES) <= rows[0].keys()


@pytest.mark.slow
def test_a_sweep_runs_in_a_folder_of_over_260_characters(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path.joinpath(*["a folder whose name is fifty characters long, always"] * 6)
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert len(str(deep)) > 260
    file = sweep_file(deep, {"model.freeze_depth": {"values": [5]}})
    code, said = run("sweep", file, *small, "cache.dir=cache", "cache.mode=on", "trainer.epochs=1", "--no-repeats")
    assert code == 0, said
    assert len(terminal_records(deep / "runs" / "sweep")) == 1
    assert run("predict", "runs/sweep", small[2].partition("=")[2])[0] == 0
    assert run("report", "runs/sweep")[0] == 0
