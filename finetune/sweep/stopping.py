"""When to stop a trial early, as a sweep file may ask for it: Hyperband as W&B's sweeps mean it. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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

    def verdict(self, own: Sequence[float], everyone: Sequence[Sequence[float]]) -> tuple[float, float] | None:
        """The value and the threshold it misses, if a running trial should stop; else None.

        Args:
            own: The trial's metric after each epoch; larger is better.
            everyone: The same for all trials of the sweep, ended or running, this one's among them.
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
