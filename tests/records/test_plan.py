from pathlib import Path

from finetune.records.layout import SWEEP
from finetune.records.plan import is_through, planned
from finetune.storage.durable import sealed
from tests.report.test_table import record


def test_a_sweep_is_through_once_it_has_as_many_records_as_its_file_has_trials(tmp_path: Path) -> None:
    (tmp_path / SWEEP).write_bytes(sealed({"trials": 3, "space": {"optim.lr": "0.1, 0.2"}}))
    assert planned(tmp_path) == (3, ["optim.lr"])
    some = [record(4, 0.5), record(9, 0.5, status="pruned"), record(17, 0.5, status="interrupted")]
    assert not is_through([tmp_path], some)
    assert is_through([tmp_path], [*some, record(0, None, status="failed")])


def test_a_folder_without_a_plan_is_taken_for_through(tmp_path: Path) -> None:
    assert planned(tmp_path) is None
    assert is_through([tmp_path], [])
