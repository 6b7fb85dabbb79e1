"""The command that repeats a trial from its record. Imports no torch."""

import shlex
from collections.abc import Mapping
from typing import Any

from finetune.compose import override
from finetune.config import NOT_MEANINGFUL, Config, flat


def repeat_overrides(config: Mapping[str, Any]) -> list[str]:
    """Every setting that decides what comes out and is not the schema's default, as overrides.

    Args:
        config: A record's, by dotted key.
    """
    usual = flat(Config())
    skipped = tuple(f"{name}." for name in NOT_MEANINGFUL)
    return [
        override(key, value)
        for key, value in config.items()
        if not f"{key}.".startswith(skipped) and (key not in usual or usual[key] != value)
    ]


def repeat_command(config: Mapping[str, Any]) -> str:
    """A line for a shell that trains the same trial again."""
    return shlex.join(["python", "-m", "finetune.train", *repeat_overrides(config)])
