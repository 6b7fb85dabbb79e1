import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from finetune.commands.sweep import conclude, this_command
from finetune.records.layout import RECORD
from finetune.records.ranking import ACCURACY
from finetune.records.result import Result
from finetune.sweep.spec import read_sweep
from finetune.sweep.state import Finished, Sweep
from tests.models import finetune


@pytest.fixture
def file(tmp_path: Path) -> str:
    parameters = {"model.freeze_depth": {"values": [2, "all"]}, "seed": {"values": [0, 1]}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters}))
    return str(path)


@pytest.mark.slow
def test_sweep_then_status_then_report(
    file: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert finetune(monkeypatch, "sweep", file, *small, "trainer.epochs=1") == 0
    swept = capfd.readouterr().out
    lines = re.findall(r"^\[(\d)/4\] freeze_depth=\w+ seed=\d  val/acc [01]\.\d{3} ", swept, re.M)
    assert lines == ["1", "2", "3", "4"]
    rows = re.findall(r"^ +(2|5) +2 +[01]\.\d{3} ± \d\.\d{3} ", swept, re.M)
    assert rows == ["2", "5"]  # `all` is shown as the number it means
    assert "Best: freeze_depth=" in swept
    assert "plot and table: runs/mine/report.html" in swept
    page = Path("runs/mine/report.html")
    assert page.is_file()
    page.unlink()
    assert finetune(monkeypatch, "status", "runs/mine") == 0
    assert "4 complete" in capfd.readouterr().out
    assert finetune(monkeypatch, "report", "runs/mine") == 0
    assert re.findall(r"^ +(2|5) +2 ", capfd.readouterr().out, re.M) == ["2", "5"]
    assert page.is_file()


def test_exit_code_3_when_some_trials_failed_and_4_when_all_did(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rates in (("some", [1e30, 0.001]), ("none", [1e30])):
        grid = {"method": "grid", "parameters": {"optim.lr": {"values": rates}}}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(grid))
    assert (
        finetune(monkeypatch, "sweep", "some.yaml", "--no-repeats", *small, "model.freeze_depth=0", "--workers", "1")
        == 3
    )
    assert "[1/2] lr=1e+30  failed: FloatingPointError: train/loss became nan" in capfd.readouterr().out
    assert finetune(monkeypatch, "sweep", "none.yaml", "--no-repeats", *small, "model.freeze_depth=0") == 4
    assert "no trial succeeded; the first reason: FloatingPointError" in capfd.readouterr().out
    assert finetune(monkeypatch, "status", "runs/some") == 0
    said = capfd.readouterr().out
    assert "2 of 2 finished: 1 complete, 1 failed" in said
    assert "(lr=1e+30): FloatingPointError" in said
    assert "--retry-failed" in said


def test_brackets_in_paths_and_reasons_are_printed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, reason = tmp_path / "a [/b] :cat:", "[enforce fail at alloc.cpp:117] . [/usr/lib/x.so] :dog:"
    failed = Result("t", "failed", reason, 0, "block", 0, None, None, 0, {"seed": 0})
    failed.save(folder / "trials" / "t")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"method": "grid", "parameters": {"seed": {"values": [0]}}}))
    spec = read_sweep(tmp_path / "s.yaml")
    ended = Sweep(spec, folder, 1, ACCURACY, [Finished.of(spec, {"seed": 0}, failed)])
    ended.ended = f"the first 1 trials failed alike: {reason}"
    assert conclude(ended) == 4
    said = capfd.readouterr().out
    assert f"ended early: the first 1 trials failed alike: {reason}" in said
    assert f"no trial succeeded; the first reason: {reason} (mended?" in said
    assert f"plot and table: {folder}/report.html" in said
    ended.finished, ended.out_of_time = [], True
    monkeypatch.setattr(sys, "argv", ["/bin/finetune", "sweep", "s.yaml", f"data.root={folder}"])
    assert conclude(ended) == 4
    assert f"the same command continues: finetune sweep s.yaml 'data.root={folder}'\n" in capfd.readouterr().out


def test_a_spent_budget_with_a_best_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    epoch = {"epoch": 0, "val/acc": 0.5, "val/loss": 1.0, "train/acc": 0.5, "train/loss": 1.0}
    params = {"model.freeze_depth": 4, "seed": 0}
    result = Result("t", "complete", "", 4, "block", 0, 0.5, 0, 1, params, config=params, history=[epoch])
    result.save(tmp_path / "s" / "trials" / "t")
    parameters = {"model.freeze_depth": {"value": 4}, "seed": {"values": [0, 1, 2]}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"method": "grid", "parameters": parameters}))
    spec = read_sweep(tmp_path / "s.yaml")
    ended = Sweep(spec, tmp_path / "s", 3, ACCURACY, [Finished.of(spec, params, result)])
    ended.ended, ended.out_of_time = "the budget is spent", True
    monkeypatch.setattr(sys, "argv", ["/bin/finetune", "sweep", "s.yaml"])
    assert conclude(ended) == 0
    assert "2 trials not run yet; to go on, run the same command again: finetune sweep s.yaml" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["depths", "resnet5"], "model.backbone=resnet5 is not known; did you mean resnet50?"),
        (["depths", "resnet50", "--unit", "blok"], "unit 'blok' is not known; did you mean block?"),
        (["sweep", "nope.yaml"], "there is no such sweep file; shipped ones: "),
        (["report", "/no/such"], "/no/such holds no trial records"),
        (["report", "/no/such", "--png", "x.jpg"], "--png x.jpg is not the name of a PNG file"),
        (["sweep", "local.yaml", "--reuse", "nope"], "--reuse nope holds no trial records"),
        (["sweep", "local.yaml", "--launcher", "slrum"], "--launcher slrum: there is none of that name; give local,"),
        (["predict", "/no/such", "/no/such", "--csv", "/tmp"], "--csv /tmp is a folder; give the name of a file"),
        (["status", "/no/such"], "/no/such holds no trial records"),
        (["sweep", "local.yaml", "--workers", "0"], "Invalid value for '--workers'"),
        (["swep"], "No such command 'swep'. Did you mean 'sweep'?"),
        (["sweep", "local.yaml", "optim.lr=3"], "optim.lr is swept by"),
        (["sweep", "explore.yaml"], "data.root is not set"),
        (["sweep", "explore.yaml", "/usr"], "/usr is no setting; did you mean data.root=/usr?"),
        (["plan", "explore.yaml", "/a b.csv"], "/a b.csv is no setting; did you mean 'data.csv=/a b.csv'?"),
        (["sweep", "explore.yaml", "lr"], "lr is no setting; settings are given as KEY=VALUE, such as optim.lr=0.01"),
    ],
)
def test_what_cannot_be_done_gets_one_line_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert finetune(monkeypatch, *words) == 2
    error = capfd.readouterr().err
    assert error.startswith("refused: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_plan_names_the_bands_that_its_trials_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stopping = {"type": "hyperband", "min_iter": 2, "eta": 2}
    grid = {"method": "grid", "parameters": {"seed": {"values": [0, 1]}}, "early_terminate": stopping}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(grid))
    for epochs, told in ((9, "after 2, 4, 8 of 9 epochs"), (2, "never, in 2 epochs")):
        assert finetune(monkeypatch, "plan", tmp_path / "mine.yaml", f"trainer.epochs={epochs}") == 0
        assert f"stops trials behind the best 1/2 {told}" in capfd.readouterr().out


@pytest.mark.slow
def test_a_sweep_under_way_has_a_status(tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = {"model.freeze_depth": {"values": [17, 16]}, "trainer.epochs": {"values": [1000]}}
    Path("long.yaml").write_text(yaml.safe_dump({"method": "grid", "parameters": space}))
    words = [sys.executable, "-m", "finetune.cli"]
    fixed = [word for word in fast if not word.startswith("trainer.epochs")]
    running = subprocess.Popen(
        [*words, "sweep", "long.yaml", "--no-repeats", *fixed, "--workers", "1"], stdout=subprocess.DEVNULL
    )
    said = ""
    try:
        deadline = time.monotonic() + 300
        while "val/acc" not in said and time.monotonic() < deadline:
            said = subprocess.run([*words, "status", "runs/long"], capture_output=True, text=True).stdout
            time.sleep(0.3)
    finally:
        running.terminate()
        running.wait(timeout=30)
    assert said.startswith("0 of 2 finished\nunder way: freeze_depth=17 epochs=1000  epoch ")
    assert "/1000, val/acc 0." in said
    after = subprocess.run([*words, "status", "runs/long"], capture_output=True, text=True).stdout
    assert after.startswith("0 of 2 finished")
    assert "under way" not in after
    assert "nobody runs it now" in after


def test_help_without_arguments(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert finetune(monkeypatch) == 0
    out = capfd.readouterr().out
    assert all(command in out for command in ("sweep", "status", "report", "depths"))
    assert "..." not in out.partition("Commands:")[2]  # no summary is cut off


@pytest.mark.parametrize(
    ("started", "told"),
    [("/usr/bin/finetune", "finetune"), ("/x/finetune/__main__.py", "python -m finetune")],
)
def test_the_command_that_goes_on_is_the_one_that_was_typed(
    monkeypatch: pytest.MonkeyPatch, started: str, told: str
) -> None:
    monkeypatch.setattr("sys.argv", [started, "sweep", "my file.yaml"])
    assert this_command() == f"{told} sweep 'my file.yaml'"


def test_the_help_of_a_sweep_shows_what_matters_first(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finetune(monkeypatch, "sweep", "--help") == 0
    _, _, rest = capfd.readouterr().out.partition("\nOptions:\n")
    first, which, where = re.split(r"\nWhich trials:\n|\nWhere and how they run:\n", rest)
    assert re.findall(r"^  (--\w+|-h)", first, re.MULTILINE) == ["--out", "--budget", "--margin", "-h"]
    assert "--reuse" in which
    assert "--launcher" in where


def test_a_sweep_says_what_it_repeats_and_ends_with_a_verdict(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = {"method": "grid", "parameters": {"model.freeze_depth": {"values": [4, 5]}}}
    Path("s.yaml").write_text(yaml.safe_dump({**grid, "metric": {"name": "val/acc_best", "goal": "maximize"}}))
    assert finetune(monkeypatch, "sweep", "s.yaml", *small, "trainer.epochs=1") == 0
    said = capfd.readouterr().out
    assert "k=5 not better; k=4 alone is in reach; now 3 repeats with new seeds, about " in said
    assert "[5/5]" in said
    assert "Decided: take k=4. Every other is worse: k=5 by " in said
    assert re.search(r"^Expect [01]\.\d{3} ± 0\.\d{3} from k=\d on new images", said, re.MULTILINE)

    assert finetune(monkeypatch, "report", "runs/s") == 0
    assert "Expect" in capfd.readouterr().out
    assert finetune(monkeypatch, "status", "runs/s") == 0
    assert "5 of 5 finished: 5 complete" in capfd.readouterr().out


@pytest.mark.slow
def test_the_embedded_default_runs_and_its_weights_beat_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ten classes: chance is 0.1. Two depths of the shipped sweep, few epochs."""
    monkeypatch.chdir(tmp_path)
    shipped = Path(__file__).parent.parent / "sweeps" / "local.yaml"
    raw = yaml.safe_load(shipped.read_text())
    raw["parameters"] = {"model.freeze_depth": {"values": [8, 17]}, "optim.lr": {"values": [0.01]}}
    Path("local.yaml").write_text(yaml.safe_dump(raw))
    assert finetune(monkeypatch, "sweep", "local.yaml", "--no-repeats", "trainer.epochs=4") == 0
    assert "make sweep-local DATA=FOLDER" in capfd.readouterr().out
    found = {r.freeze_depth: r for r in (Result.load(f.parent) for f in Path("runs").glob(f"local/trials/*/{RECORD}"))}
    assert len(found[8].classes) == 10
    assert found[17].val_acc_best > 0.2
    assert found[8].val_acc_best > 0.3
