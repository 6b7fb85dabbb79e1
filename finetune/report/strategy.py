"""Ways to fine-tune, told apart by settings: freezing the first units alone, or one of its rivals. Imports no torch."""

from collections.abc import Mapping
from typing import Any

WINDOW = "model.train_units"
_NAMES = {
    "model.head.init": {"probe": "probe first"},
    "optim.layer_decay": {},
    "optim.head_lr": {},
}
"""Settings that make a strategy, with the name that a value gives it; else it is named after the setting."""
_FREEZING: Mapping[str, Any] = {WINDOW: None, "model.head.init": "random", "optim.layer_decay": 1, "optim.head_lr": 1}
"""The values of freezing alone."""


def strategy_of(params: Mapping[str, Any]) -> str:
    """The name of a strategy; empty for freezing alone.

    >>> strategy_of({"model.head.init": "probe", "optim.layer_decay": 0.7, "optim.lr": 0.01})
    'probe first, layer decay'
    >>> strategy_of({"model.train_units": [4, 8]}), strategy_of({"optim.layer_decay": 1.0})
    ('units 4..7 alone', '')

    Args:
        params: Those settings that differ in a sweep; what all trials have in common is no strategy.
    """
    parts = []
    for key, freezing in _FREEZING.items():
        value = params.get(key, freezing)
        if value == freezing:
            continue
        if key == WINDOW:
            parts.append(
                f"units {value[0]}..{value[1] - 1} alone" if value[1] - value[0] > 1 else f"unit {value[0]} alone"
            )
        else:
            parts.append(_NAMES[key].get(value, key.rpartition(".")[2].replace("_", " ")))
    return ", ".join(parts)
