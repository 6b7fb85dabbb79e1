"""What is told of a trial: its record, and its summary on a dashboard."""

import platform
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision

from finetune.compose import override_values
from finetune.config import Config, flat, trial_key
from finetune.network.backbone import build_backbone
from finetune.network.device import Precision
from finetune.network.freeze import depth_table
from finetune.network.network import Network
from finetune.records.result import Result
from finetune.trial.inputs import Inputs
from finetune.trial.module import FineTune
from finetune.trial.trainer import device_name, peak_memory_mb


def result_of(
    config: Config,
    overrides: Sequence[str],
    given: Inputs,
    module: FineTune,
    precision: Precision,
    seconds: dict[str, float],
    status: str,
    reason: str,
    test: dict[str, float],
    warnings: list[str],
) -> Result:
    """What a trial leaves, at whatever point it ended.

    Args:
        config: The trial's.
        overrides: What it was composed from.
        given: What it trained on and with.
        module: What was trained.
        precision: And where.
        seconds: By phase.
        status: One of `result.STATUSES`.
        reason: Why it did not end well; empty otherwise.
        test: Figures on the test set, by name.
        warnings: Sentences.
    """
    validated = bool(module.history) and not config.trainer.refit
    return Result(
        key=trial_key(config),
        status=status,
        reason=reason,
        freeze_depth=given.network.cut.plan.depth,
        freeze_unit=config.model.freeze_unit,
        seed=config.seed,
        val_acc_best=module.best_acc if validated else None,
        best_epoch=module.best_epoch if validated else None,
        trained_parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        params=_params(config, overrides),
        config=flat(config),
        history=module.history,
        last={**(module.history[-1] if module.history else {}), **test},
        classes=list(given.images.classes),
        seconds=seconds,
        images_per_second=round(len(given.images.splits["train"].images) * len(module.history) / seconds["train"], 1),
        peak_memory_mb=peak_memory_mb(precision.device),
        digests=digests_of(given),
        cache=_cache(given, len(module.history), bool(test)),
        versions=_versions(),
        host=platform.node(),
        device=device_name(precision.device),
        warnings=warnings,
    )


def digests_of(given: Inputs) -> dict[str, str]:
    """Of all that decides what comes out, besides the settings."""
    return {
        "weights": given.network.weights.digest,
        "frozen": given.network.cut.frozen_digest,
        "dataset": "-".join(store.digest for store in given.images.splits.values()),
        "split": given.images.split_digest,
        "augmentation": given.preprocess.augment.digest,
    }


def summary_of(config: Config, network: Network, result: Result) -> dict[str, Any]:
    """What a dashboard shows of a run besides its metrics: its cost, and its row of the depth table."""
    with torch.device("meta"):
        table = depth_table(build_backbone(config.model.backbone), config.model.freeze_unit, config.data.size)
    row = table[network.cut.plan.depth]
    return {
        **result.figures(),
        "frozen/last": row.name,
        "frozen/parameters": row.parameters,
        "frozen/parameter_share": row.parameter_share,
        "frozen/flop_share": row.flop_share,
    }


def _cache(given: Inputs, epochs: int, tested: bool) -> dict[str, Any]:
    """What became of the activations, with the seconds that they saved a trial of so many epochs."""
    if not given.saves:
        return given.cache
    times = {"train": epochs, "val": epochs, "test": int(tested)}
    saved = sum(seconds * times[split] for split, seconds in given.saves.items()) - given.spent
    return {**given.cache, "saved_seconds": round(max(0.0, saved), 3)}


def _params(config: Config, overrides: Sequence[str]) -> dict[str, Any]:
    settings = flat(config)
    return {key: settings[key] for key in override_values(overrides) if key in settings and key != "out"}


def _versions() -> dict[str, str]:
    modules = {"torch": torch, "torchvision": torchvision, "pytorch_lightning": pl}
    return {"python": platform.python_version(), **{name: str(m.__version__) for name, m in modules.items()}}
