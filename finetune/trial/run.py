"""One trial, from config to record: `train` reads from top to bottom, sees the whole config and hands its parts on."""

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn

from finetune.config import Config, flat, trial_key
from finetune.console import stages
from finetune.data.augment import build_mix
from finetune.data.balance import class_weights
from finetune.data.batches import PixelData
from finetune.errors import Interrupted, Pruned, message_of, one_line
from finetune.gpu import is_out_of_memory
from finetune.network.catalog import NetworkInput, with_input
from finetune.network.device import Precision
from finetune.network.network import Network, build_network
from finetune.network.parts import FrozenPrefix, SharedPrefix, Suffix, arrange_in_memory, first_contiguous
from finetune.records.layout import LAST
from finetune.records.metric import Incumbent
from finetune.records.result import Result
from finetune.sharing.facts import Facts, as_decided
from finetune.sharing.features import pretrained_features
from finetune.sharing.images import open_images
from finetune.sharing.prepare import open_activations
from finetune.sharing.requests import preprocess_of, requests_of
from finetune.storage.parallel import Progress
from finetune.trial import signals
from finetune.trial.callback import Heartbeat, TrialCallback
from finetune.trial.folder import open_folder, refuse_another, save_best
from finetune.trial.module import FineTune
from finetune.trial.probe import fit_head
from finetune.trial.record import Ending, cache_account, digests_of, result_of, summary_of
from finetune.trial.resume import Unfinished
from finetune.trial.steps import steps_of
from finetune.trial.trainer import (
    build_module,
    build_trainer,
    close_loggers,
    logger_warnings,
    peak_memory_mb,
    quieten,
)


def train(
    config: Config, overrides: Sequence[str] = (), facts: Facts | None = None, incumbent: Incumbent | None = None
) -> Result:
    """Run one trial in this process and leave its record and checkpoint in `config.out`.

    It goes on from where an unfinished attempt in that folder stopped.

    ```python
    result = train(compose_config(["experiment=embedded", "model.freeze_depth=8", "out=runs/one"]))
    print(result.val_acc_best)
    ```

    Args:
        config: The trial's.
        overrides: What it was composed from.
        facts: What other trials found out about data, weights and stores.
        incumbent: What the trial must be better than for its checkpoint to be kept.

    Raises:
        Refused: the config, the data or the weights cannot be used, or `config.out` holds another trial; nothing was
            written to it.
        BaseException: whatever stopped the training, after it was recorded as the reason.
    """
    facts = facts or Facts()
    result = _train(config, overrides, facts, incumbent)
    if result is None:
        gc.collect()  # the error, and what it refers to, refer to each other
        print("warning: the GPU's memory ran out; going on without images kept in it", file=sys.stderr)
        result = _train(config, overrides, facts, incumbent, keep_on_gpu=False)
        assert result is not None
    return result


def _train(
    config: Config, overrides: Sequence[str], facts: Facts, incumbent: Incumbent | None, keep_on_gpu: bool = True
) -> Result | None:
    """`train`, once; None where a GPU's memory ran out that the images took a part of, unless not `keep_on_gpu`."""
    clock, out, asked = _Clock(), Path(config.out), config
    refuse_another(out, trial_key(asked))
    config = as_decided(with_input(asked), facts.precision)
    quieten()
    pl.seed_everything(config.seed, workers=True, verbose=False)

    # 1. What it trains on, and where the network is cut
    heartbeat = Heartbeat(out)
    with _preparing(heartbeat) as progress:
        images, weights, cut = open_images(config, facts, progress)
        preprocess = preprocess_of(config, weights)

        # The frozen prefix is a pure function of the images, so its output may come from a store that another trial
        # filled: the losses are the same either way (tests/sharing/test_activations.py).
        requests = requests_of(config, images, weights, cut, preprocess)
        activations = open_activations(cut, requests, facts, progress)

        # 2. What it trains
        with_prefix = images.splits.keys() != activations.rows.keys()
        classes, size = len(images.classes), config.data.size
        network = build_network(config.model, weights, cut, classes, config.seed, with_prefix, size)

    warnings = [*images.warnings, *([weights.note] if weights.note else []), *activations.warnings]
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"activations: {activations.reason}")
    clock.stop("data")

    balance = class_weights(config.data.class_weights, images.splits["train"].labels, images.classes)
    probe = None
    if config.model.head.init == "probe":
        features = pretrained_features(config, images, weights, preprocess, facts)
        labels = {split: torch.from_numpy(images.splits[split].labels) for split in features}
        probe = fit_head(network.head, features, labels, balance, config.optim.label_smoothing)
        print(f"head fitted to pretrained features in {probe.seconds:.1f} s: val/acc {probe.val_acc:.4f}")
        clock.stop("probe")

    precision = Precision.of(config.trainer)
    network = _as_it_runs(network, cut.modules, config, precision, with_prefix)
    batches = PixelData(images.splits, preprocess, config.data.batch_size, config.seed, activations.rows)
    batches.on_gpu = keep_on_gpu
    steps = steps_of(network, batches, precision.device)
    if steps is not None:
        batches.at_once = steps.at_once
    module = build_module(
        network,
        config.optim,
        frozenset(activations.rows),
        metric=config.trainer.metric,
        class_weights=balance,
        mix=build_mix(config.augment, len(images.classes)),
        steps=steps,
        by_graph=(
            config.trainer.graphs == "auto"
            and "train" in activations.rows
            and keep_on_gpu
            and precision.format != "fp16"  # whose scaling of losses a recording that fails would leave half-way
        ),
    )

    # 3. Where it goes on from, and who looks after it while Lightning does the loop
    digests = digests_of(images, weights, cut, preprocess)
    identity = {"key": trial_key(asked), **digests, "precision": precision.name, "torch": str(torch.__version__)}
    if batches.at_once > 1:
        identity["batches at once"] = str(batches.at_once)
    unfinished = Unfinished.load(out, identity)
    callback = TrialCallback(out, heartbeat, identity, config.trainer.save_every, unfinished)
    trainer = build_trainer(config.trainer, config.logger, out, precision, callback)
    if unfinished is not None:
        batches.start = unfinished.epoch, unfinished.batches - 1  # the last batch is repeated: trial/resume.py
        print(f"going on in epoch {unfinished.epoch + 1} after batch {unfinished.batches}")
    open_folder(out, asked, overrides)
    clock.stop("setup")

    # 4. Train, test, and keep the model if it is the best so far
    def work() -> dict[str, float]:
        test = _fit(config, module, trainer, batches)
        if incumbent is None or incumbent.matched_by(module.history):
            save_best(out, config, module, images, weights, cut.freeze_depth, digests["frozen"])
        return test

    signals.defer(True)
    ending = _ending_of(work)
    if ending.error is not None and is_out_of_memory(ending.error) and batches.resident:
        signals.defer(False)
        return None
    clock.stop("train")
    clock.add("train", unfinished.seconds if unfinished else 0.0)
    with contextlib.suppress(RuntimeError):  # of a GPU that failed; the ending says so
        if augmenting := batches.augmenting.seconds:
            clock.seconds["augment"] = round(augmenting, 3)
            print(f"augmentation took {augmenting:.1f} of {clock.seconds['train']:.1f} s of training")

    # 5. The record
    epochs, tested = len(module.history), bool(ending.test)
    result = result_of(
        asked,
        overrides,
        network_input=NetworkInput(config.data.size, config.data.interpolation, weights.mean, weights.std),
        images=images,
        cut=cut,
        module=module,
        precision=precision,
        digests=digests,
        cache=cache_account(config.cache.mode, images, activations, preprocess, epochs, tested),
        seconds=clock.seconds,
        ending=ending,
        warnings=[*warnings, *logger_warnings(trainer)],
        probe=probe,
    )
    result.save(out)
    if ending.status != "interrupted":
        (out / LAST).unlink(missing_ok=True)
    heartbeat.end()
    signals.defer(False)
    close_loggers(trainer, ending.error, lambda: summary_of(config, cut, result))
    if ending.error is not None:
        raise ending.error
    return result


@contextlib.contextmanager
def _preparing(heartbeat: Heartbeat) -> Iterator[Progress]:
    """Show what comes before training; each step of it is a sign of progress."""

    def show_and_count(what: str, done: int, total: int) -> None:
        heartbeat.count()
        show(what, done, total)

    try:
        with stages() as show:
            yield show_and_count
    except BaseException:
        heartbeat.end()
        raise


def _as_it_runs(network: Network, modules: int, config: Config, precision: Precision, with_prefix: bool) -> Network:
    """The network arranged for speed, its prefix, of so many modules, folded; without one where all is stored."""
    assert isinstance(network.prefix, FrozenPrefix)
    assert isinstance(network.suffix, Suffix)
    first = first_contiguous(config.model.backbone, config.data.size, precision)
    arrange_in_memory(network.suffix, None if first is None else first - modules)
    prefix = SharedPrefix.of(network.prefix, first, precision.dtype) if with_prefix else nn.Identity()
    return Network(prefix, network.suffix, network.head)


def _ending_of(work: Callable[[], dict[str, float]]) -> Ending:
    """Do `work`, which returns the figures on the test set."""
    try:
        return Ending("complete", test=work())
    except Interrupted as interrupt:
        return Ending("interrupted", f"stopped by a signal (exit {interrupt.code})", error=interrupt)
    except Pruned as pruned:
        return Ending("pruned", str(pruned))
    except Exception as failure:
        return Ending("failed", one_line(failure), error=failure)


def _fit(config: Config, module: FineTune, trainer: pl.Trainer, batches: PixelData) -> dict[str, float]:
    """Train; then, where there is a test set, the figures of the best epoch on it."""
    for logger in trainer.loggers:
        logger.log_hyperparams(flat(config))

    torch.manual_seed(config.seed)  # dropout draws the same whatever was computed before
    try:
        trainer.fit(module, datamodule=batches)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(
            f"{message_of(error)} With data.batch_size={config.data.batch_size} and "
            f"model.freeze_depth={config.model.freeze_depth}, {peak_memory_mb(trainer.strategy.root_device):.0f} MiB "
            "were in use at the most; lower data.batch_size or freeze more"
        ) from error

    if config.trainer.refit:  # whose last epoch counts, for its validation images were trained on
        module.best_state = module.network.trained_state()
    if "test" not in batches.stores:
        return {}

    module.network.load_trained_state(module.best_state)
    return {name: float(value) for name, value in trainer.test(module, batches, verbose=False)[0].items()}


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
        """Add an earlier attempt's seconds."""
        for name in (phase, "total"):
            self.seconds[name] = round(self.seconds[name] + seconds, 3)
