"""One trial, from config to record: the composition root, which sees the whole config and hands its parts on."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from finetune.config import Config, flat, trial_key
from finetune.console import stages
from finetune.data.batches import PixelData
from finetune.errors import Interrupted, Pruned, Refused, one_line
from finetune.network.checkpoint import InputSpec, save_checkpoint
from finetune.network.device import Precision
from finetune.network.network import Network
from finetune.records.layout import CHECKPOINT, CONFIG, HYDRA, LAST, OVERRIDES, STOP
from finetune.records.metric import Incumbent
from finetune.records.predictions import predictions_of
from finetune.records.result import Result
from finetune.sharing.facts import Shared
from finetune.sharing.images import Images
from finetune.storage.durable import remove_leftovers, write_durably
from finetune.storage.faults import reach
from finetune.storage.parallel import Progress
from finetune.trial import signals
from finetune.trial.callback import Heartbeat, Keeper
from finetune.trial.inputs import Inputs, gather
from finetune.trial.module import FineTune
from finetune.trial.record import digests_of, result_of, summary_of
from finetune.trial.resume import Unfinished
from finetune.trial.trainer import build_module, build_trainer, close_loggers, logger_warnings, peak_memory_mb, quieten


def train(
    config: Config, overrides: Sequence[str] = (), shared: Shared | None = None, incumbent: Incumbent | None = None
) -> Result:
    """Run one trial in this process and leave its record and checkpoint in `config.out`.

    It goes on from where an unfinished attempt in that folder stopped.

    Args:
        config: The trial's.
        overrides: What it was composed from.
        shared: What other trials found out about data, weights and stores.
        incumbent: What the trial must be better than for its checkpoint to be kept.

    Raises:
        Refused: the config, the data or the weights cannot be used, or `config.out` holds another trial; nothing was
            written to it.
        BaseException: whatever stopped the training, after it was recorded as the reason.
    """
    clock = _Clock()
    out = Path(config.out)
    _refuse_another(out, trial_key(config))
    quieten()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    heartbeat = Heartbeat(out)
    given = _gather(config, shared or Shared(), heartbeat)
    clock.stop("data")
    network, precision = given.network, Precision.of(config.trainer)
    module = build_module(given.prefix, network.suffix, network.head, config.optim, frozenset(given.stored))
    trial = _identity(config, given, precision)
    unfinished = Unfinished.load(out, trial)
    keeper = Keeper(out, heartbeat, trial, config.trainer.save_every, unfinished)
    trainer = build_trainer(config.trainer, config.logger, out, precision, keeper)
    batches = PixelData(given.images.splits, given.preprocess, config.data.batch_size, config.seed, given.stored)
    if unfinished is not None:
        batches.start = unfinished.epoch, unfinished.batches - 1
        print(f"going on in epoch {unfinished.epoch + 1} after batch {unfinished.batches}")
    _open_folder(out, config, overrides)
    clock.stop("setup")

    def work() -> dict[str, float]:
        test = _fit(config, module, trainer, batches)
        if incumbent is None or incumbent.improved_by(module.history):
            _save_best(out, config, module, given.images, network)
        return test

    signals.hold(True)
    ending = _ending_of(work)
    clock.stop("train")
    clock.add("train", unfinished.seconds if unfinished else 0.0)
    with contextlib.suppress(RuntimeError):  # of a GPU that failed; the ending says so
        if augmenting := batches.augmenting.seconds:
            clock.seconds["augment"] = round(augmenting, 3)
            print(f"augmentation took {augmenting:.1f} of {clock.seconds['train']:.1f} s of training")
    told = ending.status, ending.reason, ending.test, [*given.warnings, *logger_warnings(trainer)]
    result = result_of(config, overrides, given, module, precision, clock.seconds, *told)
    result.save(out)
    if ending.status != "interrupted":
        (out / LAST).unlink(missing_ok=True)
    heartbeat.end()
    signals.hold(False)
    close_loggers(trainer, ending.error, lambda: summary_of(config, network, result))
    if ending.error is not None:
        raise ending.error
    return result


def _refuse_another(out: Path, key: str) -> None:
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged record is nothing to keep
        there = Result.load(out)
        if there.status == "complete" and there.key != key:
            raise Refused(f"out={out} holds the record of another trial, {there.key}; give another folder")


def _gather(config: Config, shared: Shared, heartbeat: Heartbeat) -> Inputs:
    """What the trial trains on and with; a heartbeat for each step of it."""
    try:
        with stages() as progress:
            given = gather(config, shared, _beating(progress, heartbeat))
    except BaseException:
        heartbeat.end()
        raise
    for text in given.warnings:
        print(f"warning: {text}", file=sys.stderr)
    print(f"activations: {given.cache['reason']}")
    return given


def _beating(progress: Progress, heartbeat: Heartbeat) -> Progress:
    def beat(what: str, done: int, total: int) -> None:
        heartbeat.beat()
        progress(what, done, total)

    return beat


def _identity(config: Config, given: Inputs, precision: Precision) -> dict[str, str]:
    """All that an unfinished attempt must have in common with this one for it to go on."""
    digests = digests_of(given)
    return {"key": trial_key(config), **digests, "precision": precision.name, "torch": str(torch.__version__)}


@dataclass(frozen=True)
class _Ending:
    """How training ended."""

    status: str
    reason: str = ""
    test: dict[str, float] = field(default_factory=dict)
    """Figures on the test set, by name."""
    error: BaseException | None = None


def _ending_of(work: Callable[[], dict[str, float]]) -> _Ending:
    """Do `work`, which returns the figures on the test set."""
    try:
        return _Ending("complete", test=work())
    except Interrupted as interrupt:
        return _Ending("interrupted", f"stopped by a signal (exit {interrupt.code})", error=interrupt)
    except Pruned as pruned:
        return _Ending("pruned", str(pruned))
    except Exception as failure:
        return _Ending("failed", one_line(failure), error=failure)


_NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""What errors of other kinds say where memory was missing: PyTorch's on a CPU, CUDA's and its libraries'."""


def _fit(config: Config, module: FineTune, trainer: pl.Trainer, batches: PixelData) -> dict[str, float]:
    """Train; then, where there is a test set, the figures of the best epoch on it."""
    for logger in trainer.loggers:
        logger.log_hyperparams(flat(config))
    torch.manual_seed(config.seed)  # dropout draws the same whatever was computed before
    try:
        trainer.fit(module, datamodule=batches)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in _NO_MEMORY):
            raise
        raise torch.OutOfMemoryError(
            f"{' '.join(str(error).split())} With data.batch_size={config.data.batch_size} and "
            f"model.freeze_depth={config.model.freeze_depth}, {peak_memory_mb(trainer.strategy.root_device):.0f} MiB "
            "were in use at the most; lower data.batch_size or freeze more"
        ) from error
    if config.trainer.refit:
        module.best_state = module.trained_state()
    if "test" not in batches.stores:
        return {}
    module.load_trained_state(module.best_state)
    return {name: float(value) for name, value in trainer.test(module, batches, verbose=False)[0].items()}


def _save_best(out: Path, config: Config, module: FineTune, images: Images, network: Network) -> None:
    model = replace(config.model, freeze_depth=network.cut.plan.depth)
    pixels = config.data.size, config.data.resize, config.data.interpolation
    given_to = InputSpec(*pixels, network.weights.mean, network.weights.std)
    reach("checkpoint", out / CHECKPOINT)
    frozen = network.cut.frozen_digest
    save_checkpoint(out / CHECKPOINT, module.best_state, model, images.classes, frozen, given_to)
    if not config.trainer.refit:  # whose weights are of the last epoch, and whose validation images were trained on
        _save_predictions(out, config, module, images)


def _save_predictions(out: Path, config: Config, module: FineTune, images: Images) -> None:
    """What the best epoch said of each validation image, for the report on the winner."""
    val, root, paths = images.splits["val"], config.data.root, list(map(Path, images.val_paths))
    folder = Path(root).expanduser() if root and Path(root).expanduser().is_dir() else None
    predictions_of(module.best_probabilities.numpy(), val.labels, paths, folder, lambda i: val.images[i]).save(out)


def _open_folder(out: Path, config: Config, overrides: Sequence[str]) -> None:
    (out / HYDRA).mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    (out / STOP).unlink(missing_ok=True)  # meant for an earlier attempt
    given = {CONFIG: OmegaConf.structured(config), OVERRIDES: OmegaConf.create(list(overrides))}
    for name, values in given.items():
        write_durably(out / HYDRA / name, OmegaConf.to_yaml(values).encode())


class _Clock:
    """Seconds by phase, each from the end of the one before."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def stop(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = round(now - self.last, 3)
        self.seconds["total"] = round(now - self.started, 3)
        self.last = now

    def add(self, phase: str, seconds: float) -> None:
        """Of an earlier attempt."""
        for name in (phase, "total"):
            self.seconds[name] = round(self.seconds[name] + seconds, 3)
