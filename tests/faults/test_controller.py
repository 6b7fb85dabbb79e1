"""Rows 40 and 41: W&B's controller is lost, or hands a trial out again."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from finetune.compose import compose_config
from finetune.config import trial_key
from finetune.records.result import Result
from tests.faults.invariants import check_invariants, terminal_records, wait_for
from tests.test_wandb import made, one_after_the_other, start
from tests.wandb_server import wandb_server


@pytest.mark.slow
def test_fault_40_the_current_trial_is_finished_and_recorded_when_the_controller_is_lost(
    tmp_path: Path, fast: list[str]
) -> None:
    with wandb_server(one_after_the_other([{"optim.lr": 0.01}, {"optim.lr": 0.02}])) as server:
        sweep = made(server, tmp_path, fast, epochs=40)
        agent = start(server, tmp_path, "finetune.cli", "agent", sweep, "--workers", "1")
        wait_for(lambda: "run0" in server.runs and server.runs["run0"].history)
    folder = tmp_path / "runs" / "real-sweep1"
    wait_for(lambda: list(folder.glob("trials/*/result.json")))
    os.killpg(agent.pid, signal.SIGKILL)  # W&B's client would go on asking for the next trial
    agent.communicate()
    (trial,) = (folder / "trials").iterdir()
    record = Result.load(trial)
    assert (record.status, record.key, len(record.history)) == ("complete", trial.name, 40)
    check_invariants(folder, terminal_records(folder))


@pytest.mark.parametrize("extra", ["_wandb={}", "_wandb={'desc': None, 'value': {'t': {'1': [1, 5]}}}", "_wandb=None"])
def test_fault_41_the_extra_word_of_a_requeued_run_changes_nothing(tmp_path: Path, fast: list[str], extra: str) -> None:
    words = [*fast, "trainer.epochs=1", "optim.lr=0.01"]
    assert trial_key(compose_config([*words, extra])) == trial_key(compose_config(words))


@pytest.mark.slow
@pytest.mark.long
def test_fault_41_a_requeued_trial_runs_under_the_same_key(tmp_path: Path, fast: list[str]) -> None:
    requeued = {"optim.lr": 0.01, "_wandb": {"desc": None}}
    with wandb_server(one_after_the_other([requeued])) as server:
        sweep = made(server, tmp_path, fast, epochs=1)
        agent = start(server, tmp_path, "finetune.cli", "agent", sweep, "--workers", "1")
        try:
            output, _ = agent.communicate(timeout=90)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGKILL)
        assert agent.returncode == 0, output
        assert [run.exitcode for run in server.sweep_runs()] == [0]
    (record,) = (Result.load(folder) for folder in (tmp_path / "runs" / "real-sweep1" / "trials").iterdir())
    assert (record.status, record.key) == (
        "complete",
        trial_key(compose_config([*fast, "trainer.epochs=1", "optim.lr=0.01"])),
    )
