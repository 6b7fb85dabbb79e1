"""When to stop a trial early: Hyperband as W&B's sweeps mean it. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

_FAR = 1_000_000
"""Epochs that no trial has."""


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

    def verdict(self, own: Sequence[float], everyone: Sequence[Sequence[float]]) -> tuple[float, float] | None:
        """The value and the threshold it misses, if a running trial should stop; else None.

        Args:
            own: The trial's metric after each epoch; larger is better.
            everyone: The same for all trials of the sweep, ended or running, this one's among them.
        """
        band = max((band for band in self.bands if band <= len(own)), default=None)
        if band is None:
            return None
        there = sorted((values[band - 1] for values in everyone if len(values) >= band), reverse=True)
        threshold = there[int(1 / self.eta * len(there))]
        value = own[band - 1] if self.strict else max(own)
        return (value, threshold) if value < threshold else None
