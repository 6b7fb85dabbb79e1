"""One trial, from config to record: `python -m finetune.train KEY=VALUE …`.

The composition root: it sees the whole config and hands its parts on.
"""

import contextlib
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune import activation_plan, signals
from finetune.account import digests_of, result_of, summary_of
from finetune.checkpoint import InputSpec, Network, save_checkpoint
from finetune.compose import (
    as_overrides,
    checked,
    compose_config,
    explain,
    override,
    refuse_reach,
    register,
    shipped,
)
from finetune.config import Config, flat, trial_key
from finetune.data.datamodule import PixelData
from finetune.durable import remove_leftovers, write_durably
from finetune.errors import Interrupted, Pruned, Refused
from finetune.faults import reach
from finetune.heartbeat import Heartbeat
from finetune.inputs import gather
from finetune.metric import Beat
from finetune.module import FineTune
from finetune.precision import Precision
from finetune.predictions import predictions_of
from finetune.progress import stages
from finetune.result import CHECKPOINT, LAST, STOP, Result
from finetune.shared import Images, Progress, Shared, find_data
from finetune.trainer import (
    build_module,
    build_trainer,
    close_loggers,
    logger_warnings,
    peak_memory_mb,
    quieten,
)
from finetune.unfinished import Keeper, Unfinished

register()


def train(
    config: Config, overrides: Sequence[str] = (), shared: Shared | None = None, beat: Beat | None = None
) -> Result:
    """Run one trial in this process and leave its record and checkpoint in `config.out`.

    It goes on from where an unfinished attempt in that folder stopped.

    Args:
        config: The trial's.
        overrides: What it was composed from.
        shared: What other trials found out about data, weights and stores.
        beat: What the trial must be better than for its checkpoint to be kept.

    Raises:
        Refused: the config, the data or the weights cannot be used; nothing was written to `config.out`.
        BaseException: whatever stopped the training, after it was recorded as the reason.
    """
    clock = _Clock()
    quieten()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    out = Path(config.out)
    heartbeat = Heartbeat(out)
    try:
        with stages() as progress:
            given = gather(config, shared or Shared(), _beating(progress, heartbeat))
    except BaseException:
        heartbeat.end()
        raise
    images, network = given.images, given.network
    for text in given.warnings:
        print(f"warning: {text}", file=sys.stderr)
    print(f"activations: {given.cache['reason']}")
    clock.stop("data")
    module = build_module(given.prefix, network.suffix, network.head, config.optim, frozenset(given.stored))
    precision = Precision.of(config.trainer)
    trial = {
        "key": trial_key(config),
        **digests_of(given),
        "precision": precision.name,
        "torch": str(torch.__version__),
    }
    unfinished = Unfinished.load(out, trial)
    keeper = Keeper(out, heartbeat, trial, config.trainer.save_every, unfinished)
    trainer = build_trainer(config.trainer, config.logger, out, precision, keeper)
    batches = PixelData(images.splits, given.preprocess, config.data.batch_size, config.seed, given.stored)
    if unfinished is not None:
        batches.start = unfinished.epoch, unfinished.batches - 1
        print(f"going on in epoch {unfinished.epoch + 1} after batch {unfinished.batches}")
    _open_folder(out, config, overrides)
    clock.stop("setup")
    status, reason = "complete", ""
    test: dict[str, float] = {}
    error: BaseException | None = None
    signals.hold(True)
    try:
        test = _fit(config, module, trainer, batches)
        if beat is None or beat.by(module.history):
            _save_best(out, config, module, images, network)
    except Interrupted as interrupt:
        status, reason, error = "interrupted", f"stopped by a signal (exit {interrupt.code})", interrupt
    except Pruned as pruned:
        status, reason = "pruned", str(pruned)
    except Exception as failure:
        status, reason, error = "failed", _one_line(failure), failure
    clock.stop("train")
    clock.add("train", unfinished.seconds if unfinished else 0.0)
    if augmenting := batches.augmenting.seconds:
        clock.seconds["augment"] = round(augmenting, 3)
        print(f"augmentation took {augmenting:.1f} of {clock.seconds['train']:.1f} s of training")
    ended = status, reason, test, [*given.warnings, *logger_warnings(trainer)]
    result = result_of(config, overrides, given, module, precision, clock.seconds, *ended)
    result.save(out)
    if status != "interrupted":
        (out / LAST).unlink(missing_ok=True)
    heartbeat.end()
    signals.hold(False)
    close_loggers(trainer, error, lambda: summary_of(config, network, result))
    if error is not None:
        raise error
    return result


def _fit(config: Config, module: FineTune, trainer: pl.Trainer, batches: PixelData) -> dict[str, float]:
    """Train; then, where there is a test set, the figures of the best epoch on it."""
    for logger in trainer.loggers:
        logger.log_hyperparams(flat(config))
    torch.manual_seed(config.seed)  # dropout draws the same whatever was computed before
    try:
        trainer.fit(module, datamodule=batches)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
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


def _beating(progress: Progress, heartbeat: Heartbeat) -> Progress:
    def beat(what: str, done: int, total: int) -> None:
        heartbeat.beat()
        progress(what, done, total)

    return beat


def _save_best(out: Path, config: Config, module: FineTune, images: Images, network: Network) -> None:
    model = replace(config.model, freeze_depth=network.cut.plan.depth)
    pixels = config.data.size, config.data.resize, config.data.interpolation
    given_to = InputSpec(*pixels, network.weights.mean, network.weights.std)
    reach("checkpoint", out / CHECKPOINT)
    frozen = network.cut.frozen_digest
    save_checkpoint(out / CHECKPOINT, module.best_state, model, images.classes, frozen, given_to)
    _save_predictions(out, config, module, images)


def _save_predictions(out: Path, config: Config, module: FineTune, images: Images) -> None:
    """What the best epoch said of each validation image, for the report on the winner."""
    val, root, paths = images.splits["val"], config.data.root, tuple[Path, ...]()
    with contextlib.suppress(Refused, OSError):  # the images may be gone by now
        paths = find_data(config).splits["val"].paths
    folder = Path(root).expanduser() if root and Path(root).expanduser().is_dir() else None
    predictions_of(module.best_probabilities.numpy(), val.labels, paths, folder, lambda i: val.images[i]).save(out)


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


def _open_folder(out: Path, config: Config, overrides: Sequence[str]) -> None:
    (out / ".hydra").mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    (out / STOP).unlink(missing_ok=True)  # meant for an earlier attempt
    given = {"config": OmegaConf.structured(config), "overrides": OmegaConf.create(list(overrides))}
    for name, values in given.items():
        write_durably(out / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(values).encode())


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def prepare(configs: Sequence[tuple[Sequence[str], int]], stores: bool, progress: Progress) -> Shared:
    """Check the configs of a sweep's trials, given as overrides with the number of trials like them, and store what
    they share, activations only if `stores`; returns what was found out.

    Raises:
        Refused: the first config, data set or weights that cannot be used.
    """
    shared, given = Shared(), [(compose_config(overrides), count) for overrides, count in configs]
    for cache in {config.cache.dir for config, _ in given}:
        remove_leftovers(Path(cache).expanduser())
    activation_plan.prepare(given, stores, shared, progress)
    return shared


def run_trial(overrides: Sequence[str], shared: str = "", beat: Beat | None = None, listen: bool = True) -> int:
    """`python -m finetune.train OVERRIDES` in this process, with tracebacks; returns the exit code.

    Args:
        overrides: The trial's.
        shared: What `prepare` returned, as text.
        beat: What the trial must be better than for its checkpoint to be kept.
        listen: Those of finetune/signals.py end the trial as interrupted; otherwise they are left alone.
    """
    known = Shared.from_text(shared) if shared else Shared()
    run = lambda: _train_and_tell(compose_config(overrides), overrides, known, beat)  # noqa: E731
    return _exit_code(run, debug=True, listen=listen)


def main() -> int:
    """The command `python -m finetune.train`; returns the exit code."""
    debug = "--debug" in sys.argv
    sys.argv = [sys.argv[0], *as_overrides([word for word in sys.argv[1:] if word != "--debug"])]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    return _exit_code(_from_command_line, debug)


def _train_and_tell(
    config: Config, overrides: Sequence[str], shared: Shared | None = None, beat: Beat | None = None
) -> None:
    try:
        result = train(config, overrides, shared, beat)
    except Interrupted:
        words = [word for word in overrides if not word.startswith("out=")]
        command = shlex.join([*words, override("out", config.out)])
        print(f"to go on: python -m finetune.train {command}", file=sys.stderr)
        raise
    found = "refit" if result.val_acc_best is None else f"val/acc_best {result.val_acc_best:.4f}"
    print(result.reason or f"{found} at freeze_depth {result.freeze_depth}")


def _from_command_line() -> None:
    raised: list[BaseException] = []
    refuse_reach([word for word in sys.argv[1:] if not word.startswith("-")])

    @hydra.main(config_path=str(shipped("conf").resolve()), config_name="config", version_base="1.3")
    def run(raw: DictConfig) -> None:
        try:
            _train_and_tell(checked(raw), list(HydraConfig.get().overrides.task))
        except BaseException as error:  # Hydra would print its own account of it
            raised.append(error)

    try:
        run()
    except (HydraException, OmegaConfBaseException, ValueError, ArithmeticError) as error:
        raise explain(error, [word for word in sys.argv[1:] if "=" in word]) from error
    if raised:
        raise raised[0]


def _exit_code(run: Callable[[], None], debug: bool, listen: bool = True) -> int:
    """Run; what went wrong is told in one line, and as a traceback under `debug`."""
    try:
        if listen:
            signals.listen()
        run()
        return 0
    except Refused as refusal:
        code, text = 2, f"refused: {refusal}"
    except Interrupted as interrupt:
        code, text = interrupt.code, "interrupted"
    except Exception as failure:
        code, text = 1, f"failed: {_one_line(failure)} (--debug shows where)"
        if debug:
            traceback.print_exc()
    print(text, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
