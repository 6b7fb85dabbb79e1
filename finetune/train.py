"""One trial, from config to record: `python -m finetune.train KEY=VALUE …`.

The composition root: it sees the whole config and hands its parts on.
"""

import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
import torchvision
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.backbone import build_backbone
from finetune.checkpoint import Network, Preprocessing, build_network, save_checkpoint
from finetune.compose import as_overrides, checked, compose_config, explain, override_values, register, shipped
from finetune.config import Config, HeadConfig, flat, trial_key
from finetune.data.augment import Augment
from finetune.data.datamodule import PixelData
from finetune.data.pixels import PixelStore, Transform, pixel_store
from finetune.data.samples import DataSet, load_samples
from finetune.data.shapes import EMBEDDED, embedded_folder
from finetune.errors import Interrupted, Pruned, Refused
from finetune.freeze import depth_table
from finetune.module import FineTune
from finetune.result import CHECKPOINT, STOP, Result
from finetune.trainer import build_module, build_trainer, close_loggers, device_name, peak_memory_mb, quieten

register()


def find_data(config: Config) -> DataSet:
    """The images of `config` by name, split.

    Raises:
        Refused: folders or tables that cannot be used, by name.
    """
    data, root = config.data, config.data.root
    if root == EMBEDDED:
        root = str(embedded_folder(Path(config.cache.dir).expanduser()))
    found = load_samples(root, data.csv, data.val_fraction, data.split_seed, data.use_val_as)
    return found.with_val_in_train() if config.trainer.refit else found


def store_pixels(config: Config, data: DataSet) -> dict[str, PixelStore]:
    """The images of every split decoded and resized; what the cache has already is not done again.

    Raises:
        Refused: unreadable images, by name.
    """
    transform = Transform(config.data.size, config.data.resize, config.data.interpolation)
    cache, threads = Path(config.cache.dir).expanduser(), config.data.workers or None
    return {
        split: pixel_store(samples, transform, cache, config.data.on_bad, threads, _show(split))
        for split, samples in data.splits.items()
    }


def prepare(configs: Sequence[Sequence[str]]) -> None:
    """Check the configs of a sweep's trials, given as overrides, and fill the stores that they share.

    Raises:
        Refused: the first config, data set or weights that cannot be used.
    """
    composed = [compose_config(overrides) for overrides in configs]
    datasets = {repr(config.data): (config, find_data(config)) for config in composed}
    for model in {repr(replace(c.model, head=HeadConfig())): c.model for c in composed}.values():
        build_network(model, num_classes=2)
    for config, data in datasets.values():
        store_pixels(config, data)


def train(config: Config, overrides: Sequence[str] = ()) -> Result:
    """Run one trial in this process and leave its record and checkpoint in `config.out`.

    Raises:
        Refused: the config, the data or the weights cannot be used; nothing was written to `config.out`.
        BaseException: whatever stopped the training, after it was recorded as the reason.
    """
    clock = _Clock()
    quieten()
    data = find_data(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    network = build_network(config.model, len(data.classes))
    clock.stop("setup")
    stores = store_pixels(config, data)
    warnings = [*data.warnings, *(text for store in stores.values() for text in store.warnings)]
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)
    clock.stop("data")
    out = Path(config.out)
    module = build_module(network.prefix, network.suffix, network.head, len(data.classes), config.optim)
    trainer = build_trainer(config.trainer, config.logger, out)
    _open_folder(out, config, overrides)
    status, reason = "complete", ""
    test: dict[str, float] = {}
    error: BaseException | None = None
    try:
        test = _fit(config, module, trainer, stores, network)
        model = replace(config.model, freeze_depth=network.plan.depth)
        pixels = config.data.size, config.data.resize, config.data.interpolation
        preprocessing = Preprocessing(*pixels, network.weights.mean, network.weights.std)
        save_checkpoint(out / CHECKPOINT, module.best_state, model, data.classes, network.frozen_digest, preprocessing)
    except Interrupted as interrupt:
        status, reason, error = "interrupted", f"stopped by a signal (exit {interrupt.code})", interrupt
    except Pruned as pruned:
        status, reason = "pruned", str(pruned)
    except Exception as failure:
        status, reason, error = "failed", _one_line(failure), failure
    clock.stop("train")
    result = Result(
        key=trial_key(config),
        status=status,
        reason=reason,
        freeze_depth=network.plan.depth,
        freeze_unit=config.model.freeze_unit,
        seed=config.seed,
        val_acc_best=module.best_acc if module.history and not config.trainer.refit else None,
        best_epoch=module.best_epoch if module.history and not config.trainer.refit else None,
        trained_parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        params=_params(config, overrides),
        config=flat(config),
        history=module.history,
        last={**(module.history[-1] if module.history else {}), **test},
        classes=list(data.classes),
        seconds=clock.seconds,
        images_per_second=round(len(stores["train"].images) * len(module.history) / clock.seconds["train"], 1),
        peak_memory_mb=peak_memory_mb(trainer),
        digests={
            "weights": network.weights.digest,
            "frozen": network.frozen_digest,
            "dataset": "-".join(store.digest for store in stores.values()),
            "split": data.split_digest,
            "augmentation": Augment.from_config(config.augment).digest,
        },
        versions=_versions(),
        host=platform.node(),
        device=device_name(trainer),
        warnings=warnings,
    )
    result.save(out)
    close_loggers(trainer, error, lambda: _summary(config, network, result))
    if error is not None:
        raise error
    return result


def _fit(
    config: Config, module: FineTune, trainer: pl.Trainer, stores: dict[str, PixelStore], network: Network
) -> dict[str, float]:
    """Train; then, where there is a test set, the figures of the best epoch on it."""
    augment = Augment.from_config(config.augment)
    mean, std = network.weights.mean, network.weights.std
    batches = PixelData(stores, augment, mean, std, config.data.batch_size, config.seed)
    for logger in trainer.loggers:
        logger.log_hyperparams(flat(config))
    trainer.fit(module, datamodule=batches)
    if config.trainer.refit:
        module.best_state = module.trained_state()
    if "test" not in stores:
        return {}
    module.load_trained_state(module.best_state)
    return {name: float(value) for name, value in trainer.test(module, batches, verbose=False)[0].items()}


def _summary(config: Config, network: Network, result: Result) -> dict[str, Any]:
    """What a dashboard shows of a run besides its metrics: its cost, and its row of the depth table."""
    with torch.device("meta"):
        table = depth_table(build_backbone(config.model.backbone), config.model.freeze_unit, config.data.size)
    row = table[network.plan.depth]
    return {
        **result.figures(),
        "frozen/last": row.name,
        "frozen/parameters": row.parameters,
        "frozen/parameter_share": row.parameter_share,
        "frozen/flop_share": row.flop_share,
    }


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


def _open_folder(out: Path, config: Config, overrides: Sequence[str]) -> None:
    (out / ".hydra").mkdir(parents=True, exist_ok=True)
    (out / STOP).unlink(missing_ok=True)  # meant for an earlier attempt
    (out / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    (out / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(list(overrides))))


def _params(config: Config, overrides: Sequence[str]) -> dict[str, Any]:
    settings = flat(config)
    return {key: settings[key] for key in override_values(overrides) if key in settings and key != "out"}


def _show(split: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if done == total or (sys.stdout.isatty() and done % 50 == 0):
            print(f"\rdecoded {done}/{total} {split} images", end="\n" if done == total else "", flush=True)

    return show


def _versions() -> dict[str, str]:
    modules = {"torch": torch, "torchvision": torchvision, "pytorch_lightning": pl}
    return {"python": platform.python_version(), **{name: str(m.__version__) for name, m in modules.items()}}


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _on_signal(number: int, frame: FrameType | None) -> None:
    raise Interrupted(130 if number == signal.SIGINT else 143)


def run_trial(overrides: Sequence[str], signals: bool = True) -> int:
    """`python -m finetune.train OVERRIDES` in this process, with tracebacks; returns the exit code.

    With `signals`, SIGINT and SIGTERM end the trial as interrupted; otherwise they are left alone.
    """
    return _exit_code(lambda: _train_and_tell(compose_config(overrides), overrides), debug=True, signals=signals)


def main() -> int:
    """The command `python -m finetune.train`; returns the exit code."""
    debug = "--debug" in sys.argv
    sys.argv = [sys.argv[0], *as_overrides([word for word in sys.argv[1:] if word != "--debug"])]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    return _exit_code(_from_command_line, debug)


def _train_and_tell(config: Config, overrides: Sequence[str]) -> None:
    result = train(config, overrides)
    found = "refit" if result.val_acc_best is None else f"val/acc_best {result.val_acc_best:.4f}"
    print(result.reason or f"{found} at freeze_depth {result.freeze_depth}")


def _from_command_line() -> None:
    raised: list[BaseException] = []

    @hydra.main(config_path=str(shipped("conf").resolve()), config_name="config", version_base="1.3")
    def run(raw: DictConfig) -> None:
        try:
            _train_and_tell(checked(raw), list(HydraConfig.get().overrides.task))
        except BaseException as error:  # Hydra would print its own account of it
            raised.append(error)

    try:
        run()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error, [word for word in sys.argv[1:] if "=" in word]) from error
    if raised:
        raise raised[0]


def _exit_code(run: Callable[[], None], debug: bool, signals: bool = True) -> int:
    """Run; what went wrong is told in one line, and as a traceback under `debug`."""
    for number in (signal.SIGINT, signal.SIGTERM) if signals else ():
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a script
            signal.signal(number, _on_signal)
    try:
        run()
        return 0
    except Refused as refusal:
        code, text = 2, f"refused: {refusal}"
    except Interrupted as interrupt:
        code, text = interrupt.code, "interrupted; the same command starts over"
    except Exception as failure:
        code, text = 1, f"failed: {_one_line(failure)} (--debug shows where)"
        if debug:
            traceback.print_exc()
    print(text, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
