"""What is told of a trial: its record, and its summary on a dashboard."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision

from finetune.compose import override_values
from finetune.config import Config, flat, trial_key
from finetune.data.augment import Preprocess
from finetune.network.backbone import backbone_shapes
from finetune.network.catalog import NetworkInput
from finetune.network.depths import depth_row
from finetune.network.device import Precision
from finetune.network.freeze import Cut
from finetune.network.weights import Weights
from finetune.records.correct import pack_labels
from finetune.records.metric import PLAIN
from finetune.records.result import Result
from finetune.sharing.images import Images
from finetune.sharing.prepare import Activations
from finetune.trial.module import FineTune
from finetune.trial.probe import Probe
from finetune.trial.trainer import device_name, peak_memory_mb


@dataclass(frozen=True)
class Ending:
    """How training ended."""

    status: str
    """One of `records.result.STATUSES`."""
    reason: str = ""
    """Why it did not end well; empty otherwise."""
    test: Mapping[str, float] = field(default_factory=dict)
    """Figures on the test set, by name."""
    error: BaseException | None = None


def result_of(
    config: Config,
    overrides: Sequence[str],
    *,
    network_input: NetworkInput,
    images: Images,
    cut: Cut,
    module: FineTune,
    precision: Precision,
    digests: dict[str, str],
    cache: dict[str, Any],
    seconds: dict[str, float],
    ending: Ending,
    warnings: list[str],
    probe: Probe | None = None,
) -> Result:
    """What a trial leaves, at whatever point it ended.

    Args:
        config: The trial's.
        overrides: What it was composed from.
        network_input: The size of its images, and how they were resized and normalised.
        images: What it trained on.
        cut: What was frozen.
        module: What was trained.
        precision: On which device, and in what format.
        digests: As `digests_of` gives them.
        cache: As `cache_account` gives it.
        seconds: By phase.
        ending: How training ended.
        warnings: Sentences.
        probe: What fitting the head came to, where it was fitted.
    """
    validated = bool(module.history) and not config.trainer.refit
    last_epoch = module.history[-1] if module.history else {}
    trained_images = len(images.splits["train"].images) * len(module.history)
    return Result(
        key=trial_key(config),
        status=ending.status,
        reason=ending.reason,
        freeze_depth=cut.freeze_depth,
        freeze_unit=config.model.freeze_unit,
        seed=config.seed,
        val_acc_best=module.best_acc if validated else None,
        best_epoch=module.best_epoch if validated else None,
        trained_parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        params=_params(config, overrides),
        config=flat(config),
        input={**asdict(network_input), "mean": list(network_input.mean), "std": list(network_input.std)},
        history=module.history,
        correct=module.correct if validated and len(module.correct) == len(module.history) else [],
        val_images=len(images.splits["val"].images),
        val_labels="" if module.metric in PLAIN else pack_labels(images.splits["val"].labels),
        probe_val_acc=None if probe is None else probe.val_acc,
        last={**last_epoch, **ending.test},
        classes=list(images.classes),
        seconds=seconds,
        images_per_second=round(trained_images / seconds["train"], 1),
        peak_memory_mb=peak_memory_mb(precision.device),
        digests=digests,
        cache=cache,
        versions=_versions(),
        host=platform.node(),
        device=device_name(precision.device),
        precision=precision.format,
        warnings=warnings,
    )


def digests_of(images: Images, weights: Weights, cut: Cut, preprocess: Preprocess) -> dict[str, str]:
    """Digests of all that decides what comes out, besides the settings."""
    return {
        "weights": weights.digest,
        "frozen": weights.digest_of(cut.frozen_part),
        "dataset": "-".join(store.digest for store in images.splits.values()),
        "split": images.split_digest,
        "augmentation": preprocess.augment.digest,
    }


def cache_account(
    mode: str, images: Images, activations: Activations, preprocess: Preprocess, epochs: int, tested: bool
) -> dict[str, Any]:
    """What became of the activations, with the seconds that they saved a trial of so many epochs.

    Args:
        mode: `cache.mode`.
        images: By split.
        activations: What was stored of them.
        preprocess: Whose augmented views were repeated, if they were.
        epochs: How many were trained.
        tested: Whether the test set was gone through.
    """
    used = {split: "stored" if split in activations.rows else "computed" for split in images.splits}
    account: dict[str, Any] = {"mode": mode, **used, "reason": activations.reason}
    if preprocess.views is not None and preprocess.augment.random:
        account["views"] = preprocess.views

    if activations.saves:
        passes = {"train": epochs, "val": epochs, "test": int(tested)}
        saved = sum(seconds * passes[split] for split, seconds in activations.saves.items())
        account["saved_seconds"] = round(max(0.0, saved - activations.seconds), 3)
    return account


def summary_of(config: Config, cut: Cut, result: Result) -> dict[str, Any]:
    """What a dashboard shows of a run besides its metrics: its cost, and its row of the depth table."""
    backbone = backbone_shapes(config.model.backbone, config.data.size)
    row = depth_row(backbone, cut.freeze_depth, config.model.freeze_unit, config.data.size)
    return {
        **result.figures(),
        "frozen/last": row.name,
        "frozen/parameters": row.parameters,
        "frozen/parameter_share": row.parameter_share,
        "frozen/flop_share": row.flop_share,
    }


def _params(config: Config, overrides: Sequence[str]) -> dict[str, Any]:
    settings = flat(config)
    return {key: settings[key] for key in override_values(overrides) if key in settings and key != "out"}


def _versions() -> dict[str, str]:
    modules = {"torch": torch, "torchvision": torchvision, "pytorch_lightning": pl}
    return {"python": platform.python_version(), **{name: str(m.__version__) for name, m in modules.items()}}
