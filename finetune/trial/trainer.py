"""Lightning, set up for one trial: precision, loggers, early stopping, what is printed."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Callback, EarlyStopping, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger

from finetune.config import LoggerConfig, OptimConfig, TrainerConfig
from finetune.errors import Interrupted
from finetune.gpu import gpu_memory_mb
from finetune.network.device import Precision
from finetune.network.network import Network
from finetune.records.layout import RECORD_FILES
from finetune.records.metric import sign_of
from finetune.records.run_files import keep_files
from finetune.storage.system import peak_resident
from finetune.trial.callback import TrialCallback
from finetune.trial.groups import parameter_groups, rates
from finetune.trial.module import FineTune, Mix, constant, cosine
from finetune.trial.steps import Steps
from finetune.trial.wandb_logger import PatientLogger

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # batches are gathers from memory
    ".*in eval mode at the start of training.*",  # the frozen prefix
    ".*isinstance.treespec, LeafSpec.*",  # pytorch-lightning 2.6 on torch 2.14
    ".*Experiment logs directory .* exists and is not empty.*",  # the config is written there first
)
"""What Lightning says that is no news here."""


LIGHTNING_FORMATS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Lightning's names of number formats, by ours."""


def quieten() -> None:
    """Silence what Lightning says at every start; its other warnings stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for expected in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=expected)


def build_optimizer(optim: OptimConfig, network: Network) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, over what trains of `network`, in one kernel a group where there is one."""
    try:
        return _optimizer(optim, network, fused=True)
    except RuntimeError:  # of torch 2.4 on Apple's GPUs
        return _optimizer(optim, network, fused=False)


def _optimizer(optim: OptimConfig, network: Network, fused: bool) -> torch.optim.Optimizer:
    groups = parameter_groups(network, optim)
    if optim.name == "sgd":
        sgd = torch.optim.SGD(
            groups,
            optim.lr,
            optim.momentum,
            weight_decay=optim.weight_decay,
            nesterov=optim.momentum > 0,
            fused=fused,
        )
        if optim.momentum > 0:
            _begin_at_rest(sgd)
        return sgd
    return torch.optim.AdamW(groups, optim.lr, weight_decay=optim.weight_decay, fused=fused)


def _begin_at_rest(sgd: torch.optim.SGD) -> None:
    """Make the momentum, of zeros, which comes to the same.

    A fused optimizer makes it in its first step, and leaves it as the memory was where fp16 has that step left out.
    """
    for group in sgd.param_groups:
        for parameter in group["params"]:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def build_module(
    network: Network,
    optim: OptimConfig,
    stored: frozenset[str] = frozenset(),
    metric: str = "val/acc",
    class_weights: list[float] | None = None,
    mix: Mix | None = None,
    steps: Steps | None = None,
    by_graph: bool = False,
    kind: type[FineTune] = FineTune,
) -> FineTune:
    """The module that trains `network`; the batches of `stored` splits are activations."""
    schedule = partial(cosine if optim.schedule == "cosine" else constant, warmup=optim.warmup)
    optimizer = partial(build_optimizer, optim)
    return kind(
        network,
        optimizer,
        schedule,
        optim.label_smoothing,
        stored=stored,
        metric=metric,
        class_weights=class_weights,
        mix=mix,
        steps=steps,
        by_graph=by_graph,
        rates=rates(network, optim),
    )


def build_trainer(
    settings: TrainerConfig, logger: LoggerConfig, out: Path, precision: Precision, callback: TrialCallback
) -> pl.Trainer:
    """A Trainer on one device that keeps its files in `out`, with all that is ours in one `callback`."""
    if precision.device.type == "cpu":
        # AdamW asks in each step whether there is a GPU; NVML, which Lightning has it ask, takes 0.2 ms to answer
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    terminal = sys.stdout.isatty()
    callbacks: list[Callback] = [callback]
    if settings.patience is not None:
        callbacks.append(
            EarlyStopping(
                settings.metric, mode="max" if sign_of(settings.metric) > 0 else "min", patience=settings.patience
            )
        )
    if terminal:
        callbacks.append(RichProgressBar(leave=False))
    return pl.Trainer(
        accelerator=precision.device.type,
        devices=1,
        precision=LIGHTNING_FORMATS[precision.format],
        max_epochs=settings.epochs,
        gradient_clip_val=settings.grad_clip,
        logger=build_loggers(logger, out),
        callbacks=callbacks,
        plugins=[LightningEnvironment()],  # SLURM's, which Lightning finds by itself, refuses jobs of several tasks
        default_root_dir=out,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=terminal,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def build_loggers(logger: LoggerConfig, out: Path) -> list[Logger]:
    """The logger a config names: none, files in `out`, or a run of W&B or MLflow."""
    if logger.name == "csv":
        return [CSVLogger(out, name="", version="")]
    if logger.name == "tensorboard":
        return [TensorBoardLogger(out, name="", version="")]
    if logger.name == "mlflow":
        # where MLflow itself looks by default; Lightning's own default is a folder, which MLflow 3 refuses
        place = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        return [MLFlowLogger(logger.project, run_name=out.name, tracking_uri=place)]
    if logger.name == "wandb" or (logger.name == "auto" and "WANDB_SWEEP_ID" in os.environ):
        return [PatientLogger(logger.project, logger.mode == "offline", out)]
    return []


def logger_warnings(trainer: pl.Trainer) -> list[str]:
    """What a person should know of the loggers, for the record."""
    return [logger.warning for logger in trainer.loggers if isinstance(logger, PatientLogger) and logger.warning]


def close_loggers(trainer: pl.Trainer, error: BaseException | None, summary: Callable[[], dict[str, Any]]) -> None:
    """End a W&B run here, for a forked child runs no exit handlers that would; other loggers need nothing.

    It keeps the trial's record, by which others go on who see no more of the trial than its run. A run that SIGTERM
    stopped is marked as preempted, so that W&B hands it out again.
    """
    code = error.code if isinstance(error, Interrupted) else int(error is not None)
    for logger in trainer.loggers:
        if isinstance(logger, PatientLogger):
            run = logger.experiment
            run.summary.update(summary())
            keep_files(run, logger.out, RECORD_FILES)
            if code == 143:
                run.mark_preempting()
            logger.finish(code)


def device_name(device: torch.device) -> str:
    """What trained: the GPU's name, or the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple's GPU" if device.type == "mps" else f"cpu ({torch.get_num_threads()} threads)"


def peak_memory_mb(device: torch.device) -> float:
    """MiB at the most: the GPU's, or this process's resident set."""
    of_gpu = gpu_memory_mb(device)
    return round(peak_resident() / 2**20, 1) if of_gpu is None else of_gpu
