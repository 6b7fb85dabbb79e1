import math

import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from finetune.data.validation import choose_fold, grouped_folds, stratified, stratified_folds
from finetune.errors import Refused
from tests.data.test_groups import CLASSES, patients

SKEWED = {
    "balanced": (20, 20, 20),
    "skewed": (50, 30, 20),
    "odd": (7, 13, 29, 11),
    "a rare class": (100, 9, 4),
    "many classes": tuple(range(5, 25)),
}


@pytest.mark.parametrize("fraction", [0.07, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("case", SKEWED)
def test_counts_are_scikit_learns(case: str, fraction: float) -> None:
    counts = SKEWED[case]
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    if math.ceil(fraction * len(labels)) < len(counts) or len(labels) * (1 - fraction) < len(counts):
        pytest.skip("scikit-learn has no such split: fewer images in a part than classes")
    chosen = stratified(labels.tolist(), fraction, seed=3)
    ours = np.bincount(labels[chosen], minlength=len(counts))
    [(_, held_out)] = StratifiedShuffleSplit(1, test_size=fraction, random_state=3).split(labels, labels)
    theirs = np.bincount(labels[held_out], minlength=len(counts))
    assert np.abs(ours - theirs).max() <= 1
    shares = np.asarray(counts) * fraction
    if np.allclose(shares, np.rint(shares)):
        assert ours.tolist() == theirs.tolist() == np.rint(shares).astype(int).tolist()
    if shares.min() >= 1 and (np.asarray(counts) - shares).min() >= 1:
        assert len(chosen) == len(held_out)


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("counts", [(2, 2), (2, 3, 500), (3, 3, 3)])
def test_no_class_goes_into_one_part_whole(counts: tuple[int, ...], fraction: float) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    taken = np.bincount(labels[stratified(labels.tolist(), fraction, seed=0)], minlength=len(counts))
    assert (taken >= 1).all()
    assert (taken < counts).all()


def test_a_split_is_sorted_without_repeats_and_the_same_every_time() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200).tolist()
    first = stratified(labels, 0.25, seed=7)
    assert first == sorted(set(first))
    assert set(first) <= set(range(200))
    np.random.seed(99)  # the global generator must not matter
    assert stratified(labels, 0.25, seed=7) == first
    assert stratified(tuple(labels), 0.25, seed=7) == first
    assert stratified(labels, 0.25, seed=8) != first


@pytest.mark.parametrize("folds", [2, 3, 10])
def test_folds_have_every_class_at_its_share(folds: int) -> None:
    labels = np.random.default_rng(folds).permutation([0] * 31 + [1] * 10 + [2] * 12)
    fold = stratified_folds(labels.tolist(), folds, seed=4)
    for part in (fold, *(fold[labels == label] for label in range(3))):
        counts = np.bincount(part, minlength=folds)
        assert counts.max() - counts.min() <= 1
    assert np.array_equal(fold, stratified_folds(labels.tolist(), folds, seed=4))


@pytest.mark.parametrize("folds", [3, 5])
def test_folds_of_groups_keep_them_whole_and_have_every_class_at_about_its_share(folds: int) -> None:
    labels, groups = patients(80, seed=3)
    fold = grouped_folds(labels, groups, folds, seed=0)
    for group in set(groups):
        assert len({fold[i] for i, other in enumerate(groups) if other == group}) == 1

    shares = np.array([np.bincount(fold[np.array(labels) == label], minlength=folds) for label in range(3)])
    assert np.abs(shares / shares.sum(1, keepdims=True) - 1 / folds).max() <= 0.04
    assert np.array_equal(fold, grouped_folds(labels, groups, folds, seed=0))
    assert not np.array_equal(fold, grouped_folds(labels, groups, folds, seed=1))


def test_every_group_validates_once() -> None:
    labels, groups = patients(60, seed=4)
    chosen = [choose_fold(labels, groups, 4, fold, 0, CLASSES, "photos") for fold in range(4)]
    assert sorted(i for fold in chosen for i in fold) == list(range(len(labels)))


def test_too_few_groups_of_a_class_are_refused() -> None:
    labels, groups = [0, 0, 0, 1, 1, 1], ["a", "a", "b", "c", "d", "e"]
    with pytest.raises(Refused, match=r"photos: class ant has 2 groups for data\.folds=3; set data\.folds=2 or less"):
        choose_fold(labels, groups, 3, 0, 0, CLASSES[:2], "photos")
