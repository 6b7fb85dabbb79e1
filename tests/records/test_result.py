import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from finetune.records.layout import RECORD
from finetune.records.result import SCHEMA, STATUSES, Result, outcome

FULL = Result(
    key="0123456789ab",
    status="complete",
    reason="",
    freeze_depth=9,
    freeze_unit="block",
    seed=3,
    val_acc_best=0.1 + 0.2,
    best_epoch=1,
    trained_parameters=123,
    params={"optim.lr": 1e-05, "model.head.hidden": [256, 128], "trainer.patience": None},
    config={"data.root": '/Bücher/猫 "x" </script>\n', "seed": 3},
    history=[{"epoch": 0, "val/acc": 0.25}, {"epoch": 1, "val/acc": 0.3}],
    last={"val/acc": 0.3, "test/acc": 1.0},
    classes=["été", "猫"],
    seconds={"total": 1.25},
    images_per_second=12.5,
    digests={"weights": "abc"},
    versions={"torch": "2"},
    host="here",
    device="cpu",
    precision="32",
    warnings=["one"],
)
DIED = Result("k", "failed", "killed by signal 9", None, "block", 0, None, None, 0, {})


@pytest.mark.parametrize("result", [FULL, DIED, *(replace(FULL, status=status) for status in STATUSES)])
def test_what_was_saved_is_loaded(tmp_path: Path, result: Result) -> None:
    result.save(tmp_path)
    loaded = Result.load(tmp_path)
    assert loaded == result
    assert type(loaded.val_acc_best) is type(result.val_acc_best)
    assert json.loads((tmp_path / RECORD).read_text())["schema"] == SCHEMA


def test_saving_makes_the_folder_replaces_the_record_and_leaves_nothing_else(tmp_path: Path) -> None:
    DIED.save(tmp_path / "trials" / "k")
    FULL.save(tmp_path / "trials" / "k")
    assert Result.load(tmp_path / "trials" / "k") == FULL
    assert [path.name for path in (tmp_path / "trials" / "k").iterdir()] == [RECORD]


def without(name: str) -> str:
    return json.dumps({key: value for key, value in asdict(FULL).items() if key != name})


DAMAGED = {
    "nothing": "",
    "half a record": json.dumps(asdict(FULL))[:200],
    "no object": "[1, 2]",
    "null": "null",
    "an empty object": "{}",
    "another schema": json.dumps(asdict(replace(FULL, schema=SCHEMA + 1))),
    "no schema": without("schema"),
    "an unknown status": json.dumps(asdict(replace(FULL, status="fine"))),
    "a field missing": without("val_acc_best"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_no_record_of_this_schema_is_an_error_that_names_the_file(tmp_path: Path, case: str) -> None:
    (tmp_path / RECORD).write_text(DAMAGED[case])
    with pytest.raises(ValueError, match=rf"{tmp_path}/result\.json is not a record of schema {SCHEMA}: "):
        Result.load(tmp_path)


def test_bytes_that_are_no_text_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=rf"{tmp_path}/result\.json is not a record"):
        Result.load(tmp_path)


def test_no_record_is_no_damaged_record(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Result.load(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["val_acc_best", "images_per_second"])
def test_a_number_that_json_lacks_is_never_written_and_the_old_record_stays(
    tmp_path: Path, name: str, number: float
) -> None:
    FULL.save(tmp_path)
    broken: dict[str, Any] = {name: number}
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(FULL, **broken).save(tmp_path)
    assert Result.load(tmp_path) == FULL
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]


def test_the_outcome_leaves_out_time_place_and_cost() -> None:
    elsewhere = replace(FULL, seconds={"total": 9.0}, images_per_second=1.0, peak_memory_mb=2.0, host="there")
    assert outcome(elsewhere) == outcome(replace(FULL, device="cuda", versions={}))
    assert outcome(replace(FULL, val_acc_best=0.5)) != outcome(FULL)
    assert outcome(replace(FULL, history=[])) != outcome(FULL)
