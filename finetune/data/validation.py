"""Which of the training images validate, where no others are given. Looks at labels and groups."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.data.groups import choose_groups
from finetune.errors import Refused, counted


def choose_part(
    labels: Sequence[int], groups: Sequence[str], fraction: float, seed: int, classes: Sequence[str], where: str
) -> list[int]:
    """Indices, sorted, of a part of the samples that has every class at its share, of whole groups if there are any.

    Args:
        labels: Class numbers.
        groups: The group of each, or nothing.
        fraction: Share of the samples, 0..1.
        seed: Which of them.
        classes: Names of the classes, for messages.
        where: Where the images are, for messages.

    Raises:
        Refused: a class cannot be on both sides.
    """
    for label, count in Counter(labels).items():
        if count < 2:
            raise Refused(
                f"{where}: class {classes[label]} has one image, which cannot be split into training and validation; "
                "add images, or give a val/ folder"
            )
    if groups:
        return choose_groups(labels, groups, fraction, seed, classes, where)
    return stratified(labels, fraction, seed)


def choose_fold(
    labels: Sequence[int],
    groups: Sequence[str],
    folds: int,
    fold: int,
    seed: int,
    classes: Sequence[str],
    where: str,
) -> list[int]:
    """Indices, sorted, of one of several folds, each with every class at its share, of whole groups if there are any.

    Args:
        labels: Class numbers.
        groups: The group of each, or nothing.
        folds: How many there are.
        fold: Which of them, 0..folds - 1.
        seed: Which sample lies where.
        classes: Names of the classes, for messages.
        where: Where the images are, for messages.

    Raises:
        Refused: there is no such fold, or too little of a class for so many.
    """
    if fold >= folds:
        raise Refused(f"data.fold={fold}: with data.folds={folds} the last one is {folds - 1}")

    what = "group" if groups else "image"
    for label, name in enumerate(classes):
        own = [i for i, other in enumerate(labels) if other == label]
        count = len({groups[i] for i in own}) if groups else len(own)
        if count < folds:
            few = f"set data.folds={count} or less, or add {what}s" if count > 1 else f"add {what}s"
            raise Refused(f"{where}: class {name} has {counted(count, what)} for data.folds={folds}; {few}")

    chosen = grouped_folds(labels, groups, folds, seed) if groups else stratified_folds(labels, folds, seed)
    return np.flatnonzero(chosen == fold).tolist()


def stratified(labels: Sequence[int], fraction: float, seed: int) -> list[int]:
    """Indices, sorted, of `ceil(fraction * N)` samples with each class at its share, but never all or none of a class.

    scikit-learn's split refuses fractions that leave a class out; ours is for small sets, where that is common.

    >>> stratified([0, 0, 0, 0, 1, 1], 0.5, seed=0)
    [0, 2, 5]

    Args:
        labels: At least two of every class.
        fraction: Share of the samples, 0..1.
        seed: Which of them.
    """
    array = np.asarray(labels)
    classes, counts = np.unique(array, return_counts=True)
    wanted = math.ceil(fraction * len(array))

    # each class's share, rounded down; what is then missing goes to the largest remainders
    exact = counts * (wanted / len(array))
    take = np.floor(exact).astype(int)
    missing = wanted - take.sum()
    take[np.argsort(-(exact - take), kind="stable")[:missing]] += 1
    take = np.clip(take, 1, counts - 1)

    generator = np.random.default_rng(seed)
    chosen = [
        generator.permutation(np.flatnonzero(array == label))[:count]
        for label, count in zip(classes, take, strict=True)
    ]
    return sorted(int(i) for i in np.concatenate(chosen))


def stratified_folds(labels: Sequence[int], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each sample, 0..folds - 1: each class is dealt out in random order, one class after another.

    >>> stratified_folds([0, 0, 0, 0, 1, 1], folds=2, seed=0).tolist()
    [1, 0, 0, 1, 1, 0]

    Args:
        labels: The samples' classes.
        folds: How many; no two differ by more than one sample, nor by more than one of a class.
        seed: Which sample lies where.
    """
    array = np.asarray(labels)
    generator = np.random.default_rng(seed)
    by_class = np.concatenate([generator.permutation(np.flatnonzero(array == label)) for label in np.unique(array)])

    fold = np.empty(len(array), dtype=np.int64)
    fold[by_class] = np.arange(len(array)) % folds
    return fold


def grouped_folds(labels: Sequence[int], groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each sample, 0..folds - 1: the largest group first, each goes where its classes are most wanting.

    The same in outline as scikit-learn's StratifiedGroupKFold.

    >>> grouped_folds([0, 0, 1, 1, 0, 1], ["a", "a", "b", "b", "c", "d"], folds=2, seed=0).tolist()
    [0, 0, 1, 1, 1, 0]

    Args:
        labels: The samples' classes.
        groups: The group of each.
        folds: How many.
        seed: Decides between equals.
    """
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    _, columns = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.zeros((len(names), columns.max() + 1))
    np.add.at(counts, (numbers, columns), 1)
    shares = counts / counts.sum(0)

    order = np.random.default_rng(seed).permutation(len(names))
    largest_first = order[np.argsort(-shares[order].sum(1), kind="stable")]
    of_fold, fold = np.zeros((folds, shares.shape[1])), np.empty(len(names), dtype=np.int64)
    for group in largest_first:
        # how much more uneven the classes lie in the folds, with the group in each of them
        growth = ((of_fold + shares[group]) ** 2 - of_fold**2).sum(1)
        fold[group] = np.lexsort((of_fold.sum(1), growth.round(12)))[0]
        of_fold[fold[group]] += shares[group]
    return fold[numbers]
