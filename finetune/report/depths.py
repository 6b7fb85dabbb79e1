"""What each freeze depth is called and how much it freezes, looked up without torch. A test holds the file true."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def depths_of(backbone: str, unit: str) -> Depths | None:
    """Of a backbone that ships; None for another."""
    found = _tables().get(backbone, {}).get(unit)
    return found and Depths(tuple(found["names"]), tuple(found["parameters"]), tuple(found["flops"]))


def deepest(backbone: str, unit: str) -> int | None:
    """The freeze depth that leaves the head alone; None for an unknown backbone."""
    found = depths_of(backbone, unit)
    return None if found is None else len(found.names) - 1


@functools.cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(_FILE.read_text())
    return tables
