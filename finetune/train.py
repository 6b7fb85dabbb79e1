"""The ways a trial starts: from the command line, `python -m finetune.train KEY=VALUE …`, and from a sweep."""

import contextlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from finetune.compose import as_overrides, checked, compose_config, explain, override, refuse_reach, register, shipped
from finetune.config import Config
from finetune.errors import Interrupted, Refused, one_line
from finetune.plugin import take_plugin
from finetune.records.layout import RECORD
from finetune.records.metric import Incumbent
from finetune.sharing.facts import Facts, as_decided
from finetune.sharing.networks import divide_network
from finetune.sharing.prepare import prepare as prepare_sharing
from finetune.storage.durable import refuse_unwritable, remove_leftovers
from finetune.storage.parallel import Progress
from finetune.trial import signals
from finetune.trial.calibration import Calibration
from finetune.trial.calibration import calibrate as measure
from finetune.trial.precision import faster_on_cpu as faster_format
from finetune.trial.precision import file_of_sweep, format_of
from finetune.trial.run import train
from finetune.trial.wandb_logger import tell_refusal
from finetune.visible_gpus import show_gpu

register()


def prepare(
    configs: Sequence[tuple[Sequence[str], int]], stores: bool, progress: Progress, precision: str = ""
) -> Facts:
    """Check the configs of a sweep's trials, given as overrides with the number of trials like them, and store what
    they share, activations only if `stores`; returns what was found out, and the `precision` that was decided on.

    Raises:
        Refused: the first config, data set or weights that cannot be used.
    """
    trials = [(as_decided(compose_config(overrides), precision), count) for overrides, count in configs]
    for cache in {config.cache.dir for config, _ in trials}:
        remove_leftovers(Path(cache).expanduser())
    return replace(prepare_sharing(trials, stores, progress), precision=precision)


def divide_networks(configs: Sequence[Sequence[str]]) -> None:
    """Find out where the networks of trials, given as overrides, can be cut, once for all processes forked from this.

    What is wrong with one of them its trials will say.
    """
    for overrides in configs:
        with contextlib.suppress(Refused):
            divide_network(compose_config(overrides))


def calibrate(configs: Sequence[tuple[Sequence[str], int]]) -> Calibration:
    """What kinds of trials cost here, given as overrides with the number of trials like them.

    Raises:
        Refused: a config, data set or weights that cannot be used.
    """
    return measure([(compose_config(overrides), count) for overrides, count in configs])


def faster_on_cpu(configs: Sequence[tuple[Sequence[str], int]]) -> str:
    """`bf16` or `32`: which is faster here for trials, given as overrides with the number of trials like them.

    Raises:
        Refused: a config that cannot be used.
    """
    return faster_format([(compose_config(overrides), count) for overrides, count in configs])


def format_for(overrides: Sequence[str], sweep: str) -> str:
    """What `trainer.precision=auto` comes to on this CPU for the trials of a sweep of W&B's; empty where it is set.

    Raises:
        Refused: a config that cannot be used.
    """
    config = compose_config(overrides)
    return format_of(config, file_of_sweep(config, sweep))


def run_trial(
    overrides: Sequence[str],
    shared: str = "",
    incumbent: Incumbent | None = None,
    listen: bool = True,
    precision: Path | None = None,
) -> int:
    """`python -m finetune.train OVERRIDES` in this process, with tracebacks; returns the exit code.

    Args:
        overrides: The trial's.
        shared: What `prepare` returned, as text.
        incumbent: What the trial must be better than for its checkpoint to be kept.
        listen: Those of finetune/trial/signals.py end the trial as interrupted; otherwise they are left alone.
        precision: A file in which the first trial of a sweep notes the number format for all of them; without one it
            is what `shared` says.
    """

    def run() -> None:
        config, known = compose_config(overrides), Facts.from_text(shared) if shared else Facts()
        if precision is not None:
            known = replace(known, precision=format_of(config, precision))
        _train_and_tell(config, overrides, known, incumbent)

    return _exit_code(run, debug=True, listen=listen)


def main() -> int:
    """The command `python -m finetune.train`; returns the exit code."""
    debug = "--debug" in sys.argv
    try:
        words = _with_files(take_plugin([word for word in sys.argv[1:] if word != "--debug"]))
    except Refused as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return 2
    sys.argv = [sys.argv[0], *as_overrides(words)]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    return _exit_code(_from_command_line, debug)


def _with_files(words: Sequence[str]) -> list[str]:
    """The words, with settings in place of each JSON file of them, as W&B's agent passes `${args_json_file}`.

    Raises:
        Refused: a file cannot be read, or holds something else.
    """
    settings = list[str]()
    for word in words:
        if "=" in word or not word.endswith(".json"):
            settings.append(word)
            continue

        try:
            values = json.loads(Path(word).read_text())
        except (OSError, ValueError) as error:
            raise Refused(f"{word} cannot be read ({error}); give a JSON file of settings, or KEY=VALUE") from error
        if not isinstance(values, dict):
            raise Refused(f'{word} holds no settings; give a JSON file such as {{"optim.lr": 0.01}}')
        settings += [override(key, value) for key, value in values.items()]
    return settings


def _train_and_tell(
    config: Config, overrides: Sequence[str], facts: Facts | None = None, incumbent: Incumbent | None = None
) -> None:
    if config.trainer.accelerator == "cpu":
        show_gpu("")  # AdamW would ask in each step what a GPU is at, and begin CUDA to ask
    if facts is None:  # a trial that none of our sweeps prepared
        sweep = os.environ.get("WANDB_SWEEP_ID")
        facts = Facts(precision=format_of(config, file_of_sweep(config, sweep) if sweep else None))
    try:
        result = train(config, overrides, facts, incumbent)
    except Interrupted:
        words = [word for word in overrides if not word.startswith("out=")]
        command = shlex.join([*words, override("out", config.out)])
        print(f"to go on: python -m finetune.train {command}", file=sys.stderr)
        raise
    found = "refit" if result.val_acc_best is None else f"val/acc_best {result.val_acc_best:.4f}"
    print(result.reason or f"{found} at freeze_depth {result.freeze_depth}; record: {Path(config.out) / RECORD}")


def _from_command_line() -> None:
    raised: list[BaseException] = []
    refuse_reach([word for word in sys.argv[1:] if not word.startswith("-")])

    @hydra.main(config_path=str(shipped("conf").resolve()), config_name="config", version_base="1.3")
    def run(raw: DictConfig) -> None:
        try:
            config = checked(raw)
            refuse_unwritable(Path(config.out), "the folder")
            _train_and_tell(config, list(HydraConfig.get().overrides.task))
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
        tell_refusal(text)
    except Interrupted as interrupt:
        code, text = interrupt.code, "interrupted"
    except Exception as failure:
        code, text = 1, f"failed: {one_line(failure)} (--debug shows where)"
        if debug:
            traceback.print_exc()
    print(text, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
