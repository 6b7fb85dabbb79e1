"""Which number format is faster on this processor: measured once, and remembered in the cache."""

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from finetune.config import Config, digest_of
from finetune.gpu import CPU
from finetune.network.device import Precision
from finetune.network.freeze import cut_of
from finetune.storage.durable import sealed, unsealed, write_durably
from finetune.storage.permissions import refuse_shared_writing
from finetune.storage.system import processor_name
from finetune.trial.timing import UnitSeconds, time_units

_BUDGET = 2.0
"""Seconds for each format of a network."""
_NOISE = 1.05
"""Times the 32-bit time that bf16 may take at a single depth, for timings of equal work differ by as much."""
_WORTH = 0.9
"""Times the 32-bit time that all depths together must stay below: another format is not taken for a few percent."""


def faster_on_cpu(trials: Sequence[tuple[Config, int]]) -> str:
    """`bf16` where that is faster for these kinds of trials together, and slower at no depth of theirs; else `32`.

    One format for all of them: what trials of different depths reach is compared.

    Args:
        trials: A config of each kind, and how many trials there are of it.

    Raises:
        Refused: a depth that the network does not have; or others could have written to the cache.
    """
    ratios = list[float]()
    full = half = 0.0
    for config, count in trials:
        modules = cut_of(config).modules
        own_full, own_half = (_step(_units(config, bf16), modules) for bf16 in (False, True))
        ratios.append(own_half / own_full)
        full += count * own_full
        half += count * own_half

    return "bf16" if max(ratios) <= _NOISE and half <= _WORTH * full else "32"


def _step(units: UnitSeconds, modules: int) -> float:
    """Seconds an image through the frozen units before a cut, and forward and back through those behind it."""
    return sum(units.frozen[:modules]) + sum(units.trained[modules:])


def _units(config: Config, bf16: bool) -> UnitSeconds:
    """As timed here, or as an earlier process timed them on such a processor."""
    precision = Precision(CPU, bf16)
    network = config.model.backbone, config.data.size, config.data.batch_size
    machine = processor_name(), torch.get_num_threads(), str(torch.__version__)
    kept = Path(config.cache.dir).expanduser() / "precision" / f"{digest_of([*machine, *network, precision.name])}.json"
    refuse_shared_writing(kept)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = unsealed(kept.read_bytes())
        return UnitSeconds(tuple(values["frozen"]), tuple(values["trained"]), float(values["optimizer"]))

    units = time_units(*network, precision, budget=_BUDGET, average=statistics.median)
    about: dict[str, Any] = {"processor": machine[0], "network": list(network), "format": precision.name}
    with contextlib.suppress(OSError):  # a read-only cache, or a full disk: it is timed again
        write_durably(kept, sealed({**about, **asdict(units)}))
    return units
