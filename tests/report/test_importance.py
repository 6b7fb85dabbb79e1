"""What decides, as Optuna sees it; and the page's lines that make an Optuna study of a sweep."""

import re
from pathlib import Path

import optuna
import pytest

from finetune.records.read import read_records
from finetune.report.importance import importance
from tests.report.test_page_in_browser import save_sweep
from tests.report.test_table import record

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_importance_is_optunas_and_finds_the_setting_that_decides() -> None:
    records = [
        record(k, 0.5 + k / 100, s, optim__lr=lr) for k in range(0, 17, 2) for lr in (0.1, 0.2, 0.3) for s in range(2)
    ]
    found = importance(records, ["model.freeze_depth", "optim.lr"])
    assert sum(found.values()) == pytest.approx(1)
    assert found["model.freeze_depth"] > 0.9
    assert importance(records[:4], ["model.freeze_depth"]) == {}


@pytest.mark.slow
def test_the_lines_of_the_page_make_a_study_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_sweep(tmp_path / "runs" / "local")
    (lines,) = re.findall(r"```python\n(.*?)```", (DOCS / "report.md").read_text(), re.S)
    exec(compile(lines, "docs/report.md", "exec"), {})
    storage = optuna.storages.RDBStorage("sqlite:///study.db")
    study = optuna.load_study(study_name="local", storage=storage)
    records = read_records(Path("runs/local"))
    best = max((r for r in records if r.val_acc_best), key=lambda r: r.val_acc_best or 0)
    assert study.best_value == best.val_acc_best
    assert study.best_params == {"freeze_depth": best.freeze_depth, "lr": best.params["optim.lr"]}
    assert study.best_trial.intermediate_values == {int(e["epoch"]): e["val/acc"] for e in best.history}
    assert study.best_trial.user_attrs == {"trial": best.key, "seed": best.seed}
    assert [trial.state.name for trial in study.trials].count("COMPLETE") == 18
    assert [trial.state.name for trial in study.trials].count("FAIL") == 1
    storage.remove_session()
    storage.engine.dispose()
