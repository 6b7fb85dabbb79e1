"""Which number format is faster on this processor: measured once, and remembered in the cache."""

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from finetune.config import Config, digest_of
from finetune.gpu import CPU
from finetune.network.catalog import with_input
from finetune.network.device import Precision
from finetune.network.freeze import cut_of
from finetune.storage.durable import sealed, unsealed, write_durably
from finetune.storage.permissions import refuse_shared_writing
from finetune.storage.system import processor_has_bf16, processor_name
from finetune.trial.timing import UnitSeconds, time_units

_COMPARED = torch.float32, torch.bfloat16
_BUDGET = 2.0
"""Seconds for each format of a network."""
_NOISE = 1.05
"""Times the 32-bit time that bf16 may take at a single depth, for timings of equal work differ by as much."""
_WORTH = 0.9
"""Times the 32-bit time that all depths together must stay below: another format is not taken for a few percent."""
_DECIDED = "trainer.precision"
"""In the file that the trials of a sweep have in common."""
_PATIENCE = 60.0
"""Seconds that a process waits for another one's measurement before it makes its own."""


def faster_on_cpu(trials: Sequence[tuple[Config, int]]) -> str:
    """`bf16` where that is faster for these kinds of trials together, and slower at no depth of theirs; else `32`.

    One format for all of them: what trials of different depths reach is compared.

    Args:
        trials: A config of each kind, and how many trials there are of it.

    Raises:
        Refused: a depth that the network does not have; or others could have written to the cache.
    """
    steps = []
    for config, count in trials:
        modules = cut_of(config).modules
        full, half = (_step(_units(config, dtype), modules) for dtype in _COMPARED)
        steps.append((full, half, count))
    return _faster(steps)


def format_of(config: Config, sweep: Path | None = None) -> str:
    """What `trainer.precision=auto` comes to for a trial that no sweep of ours has decided for; empty elsewhere.

    A trial alone knows no others, yet is compared with them. So the format is not that of its own depth: it is bf16
    where that is faster at all depths of the network together, and slower at none. All trials of a network, image size
    and batch size on a machine come to the same.

    Args:
        config: The trial's.
        sweep: A file that trials of one sweep have in common: the first of them decides, also for other processors and
            networks; without bf16 in the processor, for 32-bit.

    Raises:
        Refused: a network that cannot be built, or no GPU where one was asked for.
    """
    if config.trainer.precision != "auto" or Precision.of(config.trainer).device.type != "cpu":
        return ""
    if sweep is None:
        return _faster_at_all_depths(config)

    with _in_turn(sweep):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(unsealed(sweep.read_bytes())[_DECIDED])

        decided = _faster_at_all_depths(config) or "32"
        with contextlib.suppress(OSError):
            write_durably(sweep, sealed({_DECIDED: decided, "processor": processor_name()}))
        return decided


def file_of_sweep(config: Config, sweep: str) -> Path:
    """Where the trials of a sweep of W&B's that run on this machine, by any agent, note their format."""
    return Path(config.cache.dir).expanduser() / "precision" / f"sweep-{digest_of(sweep)}.json"


def _faster_at_all_depths(config: Config) -> str:
    """`bf16` or `32`; empty where the processor lacks bf16, and nothing was measured."""
    if not processor_has_bf16():
        return ""

    network = with_input(config)
    full, half = (_units(network, dtype) for dtype in _COMPARED)
    cuts = range(len(full.frozen) + 1)
    return _faster([(_step(full, modules), _step(half, modules), 1) for modules in cuts])


@contextlib.contextmanager
def _in_turn(file: Path) -> Iterator[None]:
    """One process at a time; where there can be no locks, all at once."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(file.with_name(f"{file.name}.lock"), timeout=_PATIENCE))
        yield


def _faster(steps: Sequence[tuple[float, float, int]]) -> str:
    """By seconds of a step in 32-bit and in bf16, and how many trials take such steps."""
    slowest = max(half / full for full, half, _ in steps)
    all_full, all_half = (sum(step[i] * step[2] for step in steps) for i in (0, 1))
    return "bf16" if slowest <= _NOISE and all_half <= _WORTH * all_full else "32"


def _step(units: UnitSeconds, modules: int) -> float:
    """Seconds an image through the frozen units before a cut, and forward and back through those behind it."""
    return sum(units.frozen[:modules]) + sum(units.trained[modules:])


def _units(config: Config, dtype: torch.dtype) -> UnitSeconds:
    """As timed here, or as an earlier process timed them on such a processor."""
    precision = Precision(CPU, dtype)
    network = config.model.backbone, config.data.size, config.data.batch_size
    machine = processor_name(), torch.get_num_threads(), str(torch.__version__)
    kept = Path(config.cache.dir).expanduser() / "precision" / f"{digest_of([*machine, *network, precision.name])}.json"
    refuse_shared_writing(kept)
    with _in_turn(kept):  # of several trials that begin at once one measures, undisturbed by the others
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            values = unsealed(kept.read_bytes())
            return UnitSeconds(tuple(values["frozen"]), tuple(values["trained"]), float(values["optimizer"]))
        return _measured(network, precision, kept)


def _measured(network: tuple[str, int, int], precision: Precision, kept: Path) -> UnitSeconds:
    """Timed now, and kept."""
    units = time_units(*network, precision, budget=_BUDGET, average=statistics.median)
    about: dict[str, Any] = {"processor": processor_name(), "network": list(network), "format": precision.name}
    with contextlib.suppress(OSError):  # a read-only cache, or a full disk: it is timed again
        write_durably(kept, sealed({**about, **asdict(units)}))
    return units
