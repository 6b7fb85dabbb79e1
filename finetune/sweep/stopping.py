"""When to stop a trial early: Hyperband as W&B's sweeps mean it, or a race. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune.errors import Refused, nearest
from finetune.sweep.distribution import number

_FAR = 1_000_000
"""Epochs that no trial has."""
_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")


@dataclass(frozen=True)
class Hyperband:
    """At each band, an iteration number, only the best share `1 / eta` of the trials goes on."""

    min_iter: int | None = None
    """The first band; each next one is `eta` times as far. Exclusive with `max_iter`."""
    max_iter: int | None = None
    """The end of a trial; the `s` bands lie before it, each `eta` times as near to the start."""
    s: int | None = None
    eta: float = 3.0
    strict: bool = False
    """Compare a trial's value at the band; otherwise its best value so far, which spares more trials."""

    @property
    def bands(self) -> tuple[int, ...]:
        """Iterations after which trials are compared, ascending; an iteration is an epoch."""
        if self.max_iter is not None:
            before = (self.max_iter / self.eta**i for i in range(1, (self.s or 0) + 1))
            return tuple(sorted(int(band) for band in before if band >= 1))
        bands: list[int] = []
        while not bands or bands[-1] < _FAR:
            bands.append(int((self.min_iter or 1) * self.eta ** len(bands)))
        return tuple(bands)

    def verdict(
        self, own: Sequence[float], everyone: Sequence[Sequence[float]], images: int = 0
    ) -> tuple[float, float] | None:
        """The value and the threshold it misses, if a running trial should stop; else None.

        Args:
            own: The trial's metric after each epoch; larger is better.
            everyone: The same for all trials of the sweep, ended or running, this one's among them.
            images: Validation images; of no matter here.
        """
        band = max((band for band in self.bands if band <= len(own)), default=None)
        if band is None:
            return None

        at_band = sorted((values[band - 1] for values in everyone if len(values) >= band), reverse=True)
        threshold = at_band[int(1 / self.eta * len(at_band))]
        value = own[band - 1] if self.strict else max(own)
        return (value, threshold) if value < threshold else None


def read_hyperband(where: str, entry: Any) -> Hyperband:
    """A sweep file's `early_terminate`.

    Args:
        where: File and key, for messages.
        entry: What the file says.

    Raises:
        Refused: what is unknown, contradictory or out of range.
    """
    if not isinstance(entry, dict) or entry.get("type") != "hyperband":
        raise Refused(f"{where} must be a mapping with type: hyperband")
    unknown = sorted(map(str, entry.keys() - _KEYS))
    if unknown:
        raise Refused(f"{where}: {unknown[0]!r} is not supported; {nearest(unknown[0], _KEYS)}")

    if ("min_iter" in entry) == ("max_iter" in entry):
        raise Refused(f"{where}: give either min_iter, or max_iter with s")
    if "max_iter" in entry and "s" not in entry:
        raise Refused(f"{where}: max_iter and s belong together; s is the number of bands before max_iter")
    for name, most in (("min_iter", _FAR), ("max_iter", _FAR), ("s", 100)):
        if name in entry:
            count = number(where, name, entry[name])
            if not count.is_integer() or not 1 <= count <= most:
                raise Refused(f"{where}: {name} {entry[name]!r} must be a whole number of at least 1")

    eta, strict = number(where, "eta", entry.get("eta", 3)), entry.get("strict", True)
    if not 1.01 <= eta <= 1000:
        raise Refused(
            f"{where}: eta {eta:g} must be above 1 and at most 1000; 3 keeps a third of the trials at each band"
        )
    if not isinstance(strict, bool):
        raise Refused(f"{where}: strict must be true or false, not {strict!r}")

    if "min_iter" in entry:
        return Hyperband(min_iter=entry["min_iter"], eta=eta, strict=strict)  # W&B does not look at s then
    rule = Hyperband(max_iter=entry["max_iter"], s=entry["s"], eta=eta, strict=strict)
    if not rule.bands:
        raise Refused(f"{where}: no band lies before max_iter {rule.max_iter}; raise it, or lower eta")
    return rule


class EndedTrial(NamedTuple):
    """A trial that ended: where it was cut, its other settings, how good it became and whether it was stopped."""

    depth: float
    """Freeze depth; `all` is infinite."""
    others: object
    """Its other settings, the seed among them; compared, and not looked into."""
    seed: object
    value: float
    stopped: bool


@dataclass(frozen=True)
class Race:
    """A trial goes on while it may still be the best: until an epoch leaves it behind by more than chance.

    Compared are accuracies after equally many epochs, on the same validation images. Behind by more than chance is
    `z` standard errors of the difference of two such shares.
    """

    z: float = 1.5

    def verdict(
        self, own: Sequence[float], everyone: Sequence[Sequence[float]], images: int
    ) -> tuple[float, float] | None:
        """The value and the threshold it misses, if a running trial should stop; else None.

        Args:
            own: The trial's best accuracy so far after each epoch, 0..1.
            everyone: The same for all trials of the sweep, ended or running, this one's among them.
            images: Validation images.
        """
        value = own[-1]
        best = max(values[len(own) - 1] for values in everyone if len(values) >= len(own))
        error = math.sqrt((value * (1 - value) + best * (1 - best)) / images)
        threshold = best - self.z * error
        return (value, threshold) if value < threshold else None

    def lost_before(
        self, depth: float, others: object, seed: object, ended: Sequence[EndedTrial]
    ) -> tuple[float, float] | None:
        """The two next deeper depths, if the same settings lost at both, so that a trial here is not worth its start.

        Settings lose at a depth when they were stopped there and others did better. The more is trained, the smaller
        is the learning rate that suits it, so what lost with less to train loses with more. The deepest depth of a
        sweep, mostly the head alone, says nothing about the others, and the best of a depth never loses.
        """
        deeper = sorted({trial.depth for trial in ended if trial.depth > depth and trial.seed == seed})
        if len(deeper) < 3:
            return None

        for next_depth in deeper[:2]:
            trials = [trial for trial in ended if trial.depth == next_depth and trial.seed == seed]
            own = next((trial for trial in trials if trial.others == others), None)
            if own is None or not own.stopped or own.value >= max(trial.value for trial in trials):
                return None
        return deeper[0], deeper[1]
