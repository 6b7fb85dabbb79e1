"""The tests have the package's folders: every module has its namesake, or is named here with where it is tested."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    str(path.relative_to(ROOT / "finetune").with_suffix(""))
    for path in (ROOT / "finetune").rglob("*.py")
    if path.name != "__init__.py"
)
ELSEWHERE = {
    "__main__": "test_version.py",
    "commands/display": "test_cli.py",
    "commands/grouped_help": "test_cli.py",
    "commands/inspect": "data/test_check.py",
    "commands/model": "commands/test_predict.py",
    "commands/plan": "test_cli.py",
    "commands/sweep": "test_cli.py",
    "commands/wandb": "test_wandb.py",
    "console": "test_cli.py",
    "visible_gpus": "faults/test_gpus.py",
    "data/check_page": "data/test_check.py",
    "data/ambiguity": "data/test_splits.py",
    "data/contents": "data/test_splits.py",
    "data/extremes": "data/test_levels.py",
    "data/files": "data/test_samples.py",
    "data/names": "data/test_splits.py",
    "data/source": "data/test_samples.py",
    "errors": "test_cli.py",
    "export/card": "export/test_write.py",
    "export/classifier": "export/test_write.py",
    "export/predict": "commands/test_predict.py",
    "network/checkpoint": "test_train.py",
    "network/device": "trial/test_trainer.py",
    "network/network": "trial/test_module.py",
    "network/own": "network/test_backbone.py",
    "network/trace": "network/test_division.py",
    "records/intervals": "trial/test_metrics.py",
    "records/layout": "records/test_result.py",
    "records/metric": "sweep/test_run.py",
    "records/read": "report/test_table.py",
    "records/run_files": "test_wandb.py",
    "records/repeat": "commands/test_predict.py",
    "report/bits": "report/test_verdict.py",
    "report/compare": "commands/test_report.py",
    "report/figures/base": "report/test_page.py",
    "report/figures/predictions": "report/test_page.py",
    "report/figures/settings": "report/test_page.py",
    "report/figures/windows": "report/test_strategy.py",
    "report/figures/trials": "report/test_page.py",
    "report/page/page": "report/test_page.py",
    "report/page/predictions": "report/test_page.py",
    "report/serve": "report/test_page_in_browser.py",
    "report/wandb": "test_wandb.py",
    "report/wandb_runs": "test_wandb.py",
    "report/winner": "commands/test_predict.py",
    "sharing/facts": "sharing/test_activations.py",
    "report/decision": "report/test_verdict.py",
    "report/seeds_only": "report/test_verdict.py",
    "report/standing": "report/test_verdict.py",
    "sharing/features": "trial/test_probe.py",
    "sharing/images": "sharing/test_activations.py",
    "sharing/plan": "sharing/test_activations.py",
    "sharing/prepare": "sharing/test_activations.py",
    "sharing/requests": "sharing/test_activations.py",
    "storage/cache": "storage/test_store.py",
    "storage/faults": "faults/test_points.py",
    "storage/permissions": "storage/test_system.py",
    "storage/parallel": "sharing/test_activations.py",
    "sweep/attempts": "faults/test_coordinator.py",
    "sweep/children": "faults/test_coordinator.py",
    "sweep/coordinator": "sweep/test_run.py",
    "sweep/folder": "sweep/test_identity.py",
    "sweep/jobs": "sweep/test_run.py",
    "sweep/launch": "sweep/test_run.py",
    "sweep/preload": "sweep/test_run.py",
    "sweep/prepare": "sweep/test_run.py",
    "sweep/state": "sweep/test_run.py",
    "sweep/worker": "test_without_posix.py",
    "sweep/yaml_file": "sweep/test_spec.py",
    "trial/pretrained": "test_api.py",
    "trial/record": "test_train.py",
    "trial/run": "test_train.py",
    "trial/folder": "test_train.py",
    "trial/signals": "faults/test_trial.py",
    "trial/wandb_logger": "faults/test_wandb_faults.py",
    "sweep/wandb_launcher": "sweep/test_scheduler.py",
    "sweep/wandb_sweep": "sweep/test_agent.py",
}
"""Modules without a namesake, and the file whose tests go through them."""


def namesake(module: str) -> Path:
    folder, _, name = module.rpartition("/")
    return ROOT / "tests" / folder / f"test_{name}.py"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_tested_where_one_looks_for_it(module: str) -> None:
    if module not in ELSEWHERE:
        assert namesake(module).is_file(), f"add {namesake(module).relative_to(ROOT)}, or name its tests in ELSEWHERE"
        return

    assert not namesake(module).is_file(), "it has a namesake by now"
    assert (ROOT / "tests" / ELSEWHERE[module]).is_file()


def test_nothing_is_named_that_is_not_there() -> None:
    assert set(ELSEWHERE) <= set(MODULES)
