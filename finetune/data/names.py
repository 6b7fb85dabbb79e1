"""Names of splits, as people write them."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

SPLITS = ("train", "val", "test")
ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "eval": "val",
    "evaluation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Which split a name means, in lower case."""
_SPLIT_WORD = re.compile(rf"({'|'.join(ALIASES)})(set|data|images|imgs|folder|dir)?")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+")

Group = dict[str, list[Path]]
"""By split, the folders whose names say so, and that have the same addition to it."""


def split_named(name: str) -> tuple[str, str] | None:
    """The split that a folder's name says, and what else it says; None where it names no split.

    >>> split_named("Training"), split_named("seg_test"), split_named("bees")
    (('train', ''), ('test', 'seg'), None)
    """
    if name.lower() in ALIASES:
        return ALIASES[name.lower()], ""

    split = None
    rest = []
    for word in _WORDS.findall(name):  # digits are no part of it: train2017, test1
        match = _SPLIT_WORD.fullmatch(word.lower())
        if match is None:
            rest.append(word.lower())
        elif split is not None:  # train_test_images
            return None
        else:
            split = ALIASES[match[1]]
            rest += [match[2]] if match[2] else []
    return None if split is None else (split, " ".join(rest))


def named_like_splits(folders: Iterable[Path]) -> list[Group]:
    """The folders whose names say that they are splits, grouped by what else they say; the plain names come first."""
    groups = defaultdict[str, Group](dict)
    for folder in folders:
        named = split_named(folder.name)
        if named is not None:
            split, rest = named
            groups[rest].setdefault(split, []).append(folder)
    return [groups[rest] for rest in sorted(groups)]
