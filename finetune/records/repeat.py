"""The command that repeats a trial from its record. Imports no torch."""

import shlex
from collections.abc import Mapping
from typing import Any

from finetune.compose import override
from finetune.config import Config, flat, is_meaningful


def repeat_overrides(config: Mapping[str, Any]) -> list[str]:
    """Every setting that decides what comes out and is not the schema's default, as overrides.

    Args:
        config: A record's, by dotted key.

    >>> repeat_overrides({"seed": 1, "optim.lr": 0.01, "optim.name": "adamw", "out": "runs/mine"})
    ['seed=1', 'optim.lr=0.01']
    """
    defaults = flat(Config())
    deciding = {key: value for key, value in config.items() if is_meaningful(key)}
    return [override(key, value) for key, value in deciding.items() if key not in defaults or defaults[key] != value]


def repeat_command(config: Mapping[str, Any]) -> str:
    """A line for a shell that trains the same trial again.

    >>> repeat_command({"model.freeze_depth": 9, "data.root": "my images"})
    "python -m finetune.train model.freeze_depth=9 'data.root=my images'"
    """
    return shlex.join(["python", "-m", "finetune.train", *repeat_overrides(config)])
