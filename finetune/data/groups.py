"""Images that belong together: of one patient, site or video. Looks at names and labels."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data.contents import first_few
from finetune.errors import Refused, counted


def groups_in_names(paths: Iterable[Path], pattern: str) -> dict[Path, str]:
    """The group of each image, by its name.

    >>> groups_in_names([Path("ants/p07_left.jpg")], r"^(p\\d+)_")
    {PosixPath('ants/p07_left.jpg'): 'p07'}

    Args:
        paths: The images.
        pattern: A regular expression that is searched for in the file's name, or with a `/` in it in the whole path;
            the group is what its parentheses hold, or all that it matches where it has none.

    Raises:
        Refused: it is no regular expression, or an image has no match.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise Refused(
            f"data.groups={pattern} is no regular expression ({error}); give one that finds the group in a file's name"
        ) from error

    groups: dict[Path, str] = {}
    unmatched: list[Path] = []
    for path in paths:
        match = expression.search(path.as_posix() if "/" in pattern else path.name)
        if match is None:
            unmatched.append(path)
        else:
            groups[path] = "/".join(part or "" for part in match.groups() or (match[0],))

    if unmatched:
        images = counted(len(unmatched), "image")
        raise Refused(
            f"data.groups={pattern} finds no group in {images}, first {unmatched[0]}; give a regular expression that "
            "each name has, or a column of data.csv"
        )
    return groups


def choose_groups(
    labels: Sequence[int], groups: Sequence[str], fraction: float, seed: int, classes: Sequence[str], where: str
) -> list[int]:
    """Indices, sorted, of about `fraction` of the samples: whole groups, each class as near to its share as they allow.

    Groups are gone through in random order, and taken where that brings the shares nearer.

    >>> choose_groups([0, 0, 1, 1, 0, 1], ["a", "a", "b", "b", "c", "d"], 0.4, 0, ["ant", "bee"], "photos")
    [2, 3, 4]

    Args:
        labels: Class numbers.
        groups: The group of each.
        fraction: Share of the samples, 0..1.
        seed: Decides the order.
        classes: Names of the classes, for messages.
        where: Where the images are, for messages.

    Raises:
        Refused: a class cannot be on both sides.
    """
    names, group_numbers = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (group_numbers, np.asarray(labels)), 1)
    _refuse_single_groups(counts, names.tolist(), classes, where)

    # 1. Groups that bring the shares of the classes nearer to what is wanted
    present = counts.sum(0) > 0
    shares = counts[:, present] / counts[:, present].sum(0)
    taken = np.zeros(len(names), bool)
    for group in np.random.default_rng(seed).permutation(len(names)).tolist():
        if _distance(shares, taken, group, fraction) < _distance(shares, taken, None, fraction):
            taken[group] = True

    # 2. Of a class that is not among them yet, the one that takes them least far away
    for column in range(shares.shape[1]):
        if shares[taken, column].sum() > 0:
            continue
        candidates = np.flatnonzero((shares[:, column] > 0) & ~taken).tolist()
        best = min(candidates, key=lambda group: _distance(shares, taken, group, fraction))
        if np.isinf(_distance(shares, taken, best, fraction)):
            name = classes[int(np.flatnonzero(present)[column])]
            raise Refused(
                f"{where}: no choice of whole groups (data.groups) leaves images of class {name} both to train on and "
                "to validate on; add groups, or give a val/ folder or split"
            )
        taken[best] = True
    return np.flatnonzero(taken[group_numbers]).tolist()


def _distance(shares: NDArray[np.float64], taken: NDArray[np.bool_], group: int | None, fraction: float) -> float:
    """How far the classes' shares are from the wanted one, with `group` taken too; infinite where a class is used up.

    `shares` has a row for each group: which share of each class it holds.
    """
    total = shares[taken].sum(0) + (0 if group is None else shares[group])
    if (total > 1 - 1e-9).any():
        return float("inf")
    return float(((total - fraction) ** 2).sum())


def _refuse_single_groups(
    counts: NDArray[np.float64], names: Sequence[str], classes: Sequence[str], where: str
) -> None:
    for label, name in enumerate(classes):
        holders = np.flatnonzero(counts[:, label])
        if len(holders) == 1:
            raise Refused(
                f"{where}: all images of class {name} are of one group, {names[holders[0]]} (data.groups), which "
                "cannot be split into training and validation; add groups, or give a val/ folder or split"
            )


def group_leakage(groups: Mapping[str, Sequence[str]]) -> str:
    """A sentence on groups that lie in several splits; empty without any.

    Args:
        groups: By split, the group of each image.
    """
    splits = defaultdict[str, list[str]](list)
    for split, names in groups.items():
        for name in dict.fromkeys(names):
            splits[name].append(split)

    leaked = {name: places for name, places in splits.items() if len(places) > 1}
    if not leaked:
        return ""
    lie = counted(len(leaked), "group", ("lies", "lie"))
    named = [f"{name} in {' and '.join(places)}" for name, places in leaked.items()]
    return f"{lie} in several splits (data.groups): {first_few(named)}; what is measured there is too good"
