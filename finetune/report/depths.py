"""What each freeze depth is called and how much it freezes, looked up without torch.

The backbones themselves would say it too, but building one takes torch and seconds; a test compares the file with them.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.records.result import Result

_FILE = Path(__file__).with_name("depths.json")
SIZE = 224
"""Height and width of the images that the shares of FLOPs are for, pixels."""


@dataclass(frozen=True)
class Depths:
    """Entry k of each field belongs to freeze depth k."""

    names: tuple[str, ...]
    """The last thing frozen."""
    parameters: tuple[float, ...]
    """Share of the backbone's parameters frozen, 0..1."""
    flops: tuple[float, ...]
    """Share of the forward pass before the cut, 0..1."""
    in_shares: bool = False
    """Whether depths are shares of these, 0..1, instead of their number."""

    def place(self, depth: float) -> int | None:
        """The entry that a depth stands for; None where there are not so many."""
        last = len(self.names) - 1
        place = round(depth * last) if self.in_shares else int(depth)
        return place if place <= last else None


def depths_of(backbone: str, unit: str) -> Depths | None:
    """The depths of a backbone that ships; None for another.

    >>> depths_of("resnet18", "stage").names
    ('(nothing)', 'stem', 'layer1', 'layer2', 'layer3', 'layer4')
    """
    in_shares = unit == "share"
    row = _tables().get(backbone, {}).get("block" if in_shares else unit)
    return row and Depths(tuple(row["names"]), tuple(row["parameters"]), tuple(row["flops"]), in_shares)


def common_depths(records: Sequence[Result]) -> Depths | None:
    """The depths that the numbers of all these trials stand for; None where their backbones or units differ."""
    kinds = {(str(record.config.get("model.backbone")), record.freeze_unit) for record in records}
    return depths_of(*kinds.pop()) if len(kinds) == 1 else None


def unit_names(records: Sequence[Result]) -> str:
    """What k counts in these trials: `blocks`."""
    names = {"share of the blocks" if r.freeze_unit == "share" else f"{r.freeze_unit}s" for r in records}
    return ", ".join(sorted(names))


def margin(records: Sequence[Result]) -> float:
    """How far an axis of freeze depths goes beyond the last one."""
    return 0.05 if {record.freeze_unit for record in records} == {"share"} else 0.5


def deepest(backbone: str, unit: str) -> int | None:
    """The freeze depth that leaves only the head to train; None for an unknown backbone."""
    if unit == "share":
        return 1
    depths = depths_of(backbone, unit)
    return None if depths is None else len(depths.names) - 1


@functools.cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return tables
