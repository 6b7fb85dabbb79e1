"""A YAML file as plain values: nothing in it is executed, and no text of it grows without bound. Imports no torch."""

from pathlib import Path
from typing import Any

import yaml

from finetune.errors import Refused, message_of

_LONGEST = 1_000_000
"""Characters of a file, and values in it, at the most."""


def read_document(path: Path) -> Any:
    """What the file holds.

    Raises:
        Refused: it cannot be read, is no YAML, has a key twice, or holds more than a million characters or values.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > _LONGEST:
            raise ValueError(f"more than {_LONGEST} characters")
        values = yaml.load(text, _OnceLoader)  # noqa: S506 - a SafeLoader
        if _values_in(values, {}) > _LONGEST:
            raise ValueError("aliases that multiply")
    except Exception as error:  # what a date, a number or a tag makes of a text is raised in many kinds
        raise Refused(f"{path} is not a readable YAML file: {message_of(error)}") from error
    return values


def _values_in(value: Any, known: dict[int, int]) -> int:
    """How many values this one holds once every alias is written out; one inside itself counts once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = 1
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_values_in(item, known) for item in inner)
    return known[id(value)]


class _OnceLoader(yaml.SafeLoader):
    """Plain YAML in which no key may come twice, and no mapping is merged into another."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen or name == "<<":
                why = f"key {name!r} comes twice" if name in seen else "<< is not supported; write the keys out"
                raise yaml.constructor.ConstructorError(None, None, why, node.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
