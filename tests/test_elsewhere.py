"""Names, paths and consoles as other systems have them."""

import io
import shutil
import sys
from pathlib import Path

import pytest

from finetune.commands.sweep import _folder_of
from finetune.compose import compose_config
from finetune.records.layout import SWEEP, folder_name
from finetune.sweep.spec import read_sweep
from tests.faults.invariants import run, sweep_file, terminal_records
from tests.kept import write
from tests.models import finetune

KEPT = Path(__file__).parent / "kept" / "0.1.0"


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
