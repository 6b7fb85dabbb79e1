"""What a trial's folder gets besides its record: its settings, the best model, and what that said of the images."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from omegaconf import OmegaConf

from finetune.config import Config
from finetune.errors import Refused
from finetune.network.checkpoint import InputSpec, save_checkpoint
from finetune.network.weights import Weights
from finetune.records.layout import CHECKPOINT, CONFIG, HYDRA, OVERRIDES, STOP
from finetune.records.predictions import predictions_of
from finetune.records.result import Result
from finetune.sharing.images import Images
from finetune.storage.durable import remove_leftovers, write_durably
from finetune.storage.faults import reach
from finetune.trial.module import FineTune


def refuse_another(out: Path, key: str) -> None:
    """Make sure that `out` holds no finished record of another trial than that of `key`.

    Raises:
        Refused: it does.
    """
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged record is nothing to keep
        there = Result.load(out)
        if there.status == "complete" and there.key != key:
            raise Refused(f"out={out} holds the record of another trial, {there.key}; give another folder")


def open_folder(out: Path, config: Config, overrides: Sequence[str]) -> None:
    """Make the folder, without what an earlier attempt left half-written, and note the trial's settings in it."""
    (out / HYDRA).mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    (out / STOP).unlink(missing_ok=True)  # meant for an earlier attempt
    documents = {CONFIG: OmegaConf.structured(config), OVERRIDES: OmegaConf.create(list(overrides))}
    for name, values in documents.items():
        write_durably(out / HYDRA / name, OmegaConf.to_yaml(values).encode())


def save_best(
    out: Path,
    config: Config,
    module: FineTune,
    images: Images,
    weights: Weights,
    freeze_depth: int | float,
    frozen_digest: str,
) -> None:
    """Write the checkpoint of the best epoch, and what that said of the validation images."""
    reach("checkpoint", out / CHECKPOINT)
    model = replace(config.model, freeze_depth=freeze_depth)  # `all` as a number
    data = config.data
    levels = None if images.levels is None else asdict(images.levels)
    preprocessing = InputSpec(data.size, data.resize, data.interpolation, weights.mean, weights.std, levels)
    save_checkpoint(out / CHECKPOINT, module.best_state, model, images.classes, frozen_digest, preprocessing)

    if not config.trainer.refit:  # whose weights are of the last epoch, and whose validation images were trained on
        _save_predictions(out, config, module, images)


def _save_predictions(out: Path, config: Config, module: FineTune, images: Images) -> None:
    """Write what the best epoch said of each validation image, for the report on the winner."""
    val, root = images.splits["val"], config.data.root
    paths = list(map(Path, images.val_paths))
    folder = Path(root).expanduser() if root and Path(root).expanduser().is_dir() else None
    probabilities = module.best_probabilities.numpy()
    predictions_of(probabilities, val.labels, paths, folder, lambda i: val.images[i]).save(out)
