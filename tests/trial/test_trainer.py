import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from finetune.compose import compose_config
from finetune.config import LoggerConfig, TrainerConfig, flat
from finetune.errors import Refused
from finetune.network.device import Precision, device_named
from finetune.trial.callback import Heartbeat, TrialCallback
from finetune.trial.run import train
from finetune.trial.trainer import build_loggers, build_trainer


def built(settings: TrainerConfig, out: Path) -> pl.Trainer:
    return build_trainer(
        settings, LoggerConfig("none"), out, Precision.of(settings), TrialCallback(out, Heartbeat(out), {}, 5.0)
    )


def test_auto_precision_is_full_on_a_cpu(tmp_path: Path) -> None:
    for asked, given in (("auto", "32-true"), ("32", "32-true"), ("bf16", "bf16-mixed")):
        settings = TrainerConfig(precision=asked, accelerator="cpu")
        assert built(settings, tmp_path).precision == given


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(Refused, match="torch finds no GPU here; set it to auto or cpu"):
        Precision.of(TrainerConfig(accelerator="gpu"))


def test_a_job_of_several_tasks_trains_as_any_other_process_does(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NTASKS": "8", "JOB_ID": "7", "JOB_NAME": "wrap", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    overrides = [*fast, "trainer.epochs=1", f"out={tmp_path / 'r'}"]
    assert train(compose_config(overrides), overrides).status == "complete"


def test_a_node_with_srun_is_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with warnings.catch_warnings(record=True) as news:
        warnings.simplefilter("always")
        built(TrainerConfig(accelerator="cpu"), tmp_path)
    assert not [str(told.message) for told in news if "srun" in str(told.message)]


def test_auto_logger_is_wandb_under_an_agent_else_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    assert build_loggers(LoggerConfig("auto"), tmp_path) == []
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert [type(logger).__name__ for logger in build_loggers(LoggerConfig("auto"), tmp_path)] == ["PatientLogger"]


@pytest.mark.filterwarnings("ignore")  # its imports' own
def test_tensorboards_event_file_has_our_metrics(small: list[str], tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = [*small, "logger=tensorboard", f"out={tmp_path / 'r'}"]
    result = train(compose_config(words), words)
    events = event_accumulator.EventAccumulator(str(tmp_path / "r")).Reload()
    for name in ("val/acc", "train/loss", "lr"):
        logged = [event.value for event in events.Scalars(name)]
        assert logged == pytest.approx([epoch[name] for epoch in result.history])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # its imports' own
def test_a_run_of_mlflow_has_our_metrics(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    words = [*small, "logger=mlflow", "logger.project=mine", f"out={tmp_path / 'r'}"]
    result = train(compose_config(words), words)
    (run,) = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val/acc"] == pytest.approx(result.history[-1]["val/acc"])


def test_a_logger_whose_package_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refused, match="logger=mlflow needs a package that is not installed; pip install mlflow"):
        compose_config(["experiment=embedded", "logger=mlflow"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the client's own
def test_an_offline_wandb_run_has_flat_dotted_config_and_our_metrics(fast: list[str], tmp_path: Path) -> None:
    overrides = [*fast, "logger=wandb", "logger.mode=offline", "model.head.hidden=[8]", f"out={tmp_path / 'r'}"]
    config = compose_config(overrides)
    result = train(config, overrides)
    (log,) = (tmp_path / "r").glob("wandb/offline-run-*/*.wandb")
    shown = subprocess.run(
        [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--summary", "--json", str(log)],
        capture_output=True,
        text=True,
        check=True,
    )
    run = json.loads(shown.stdout)
    assert run["config"] == flat(config)
    assert (run["state"], run["project"]) == ("finished", "finetune")
    assert run["summary"]["val/acc_best"] == pytest.approx(result.val_acc_best)
    assert run["summary"]["frozen/last"] == "layer4.2"
    assert run["summary"]["frozen/flop_share"] == 1
    assert run["summary"]["seconds/total"] == pytest.approx(result.seconds["total"])
    assert {"images_per_second", "peak_memory_mb", "trained_parameters"} <= set(run["summary"])
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "lr", "epoch"} <= set(run["summary"])


def test_no_step_on_a_cpu_asks_a_driver_for_gpus(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def count() -> int:
        nonlocal asked
        asked += 1
        return 0

    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning sets it
    monkeypatch.setattr("torch.cuda.device_count", count)
    result = train(compose_config([*fast, "trainer.epochs=4", f"out={tmp_path / 'r'}"]))
    assert result.status == "complete"
    assert asked < 4 * 3  # steps


def test_32_bits_are_computed_in_32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32 for a trial or a prediction; and who imports the package keeps what they have set."""
    for choose in (lambda: Precision.of(TrainerConfig(accelerator="cpu")), lambda: device_named("auto")):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        choose()
        assert not torch.backends.cudnn.allow_tf32
