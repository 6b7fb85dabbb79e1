"""The winner's figures are scikit-learn's."""

from statistics import NormalDist

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from finetune.errors import Refused
from finetune.records.predictions import Predictions
from finetune.records.scores import Confusion, calibration, class_numbers, wilson_interval

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 300)
SURE = RNG.dirichlet(np.ones(5), 300).astype(np.float32)  # the fifth class has no image
SURE[:, 3] *= 0.1  # and the fourth is hardly ever predicted
SURE /= SURE.sum(1, keepdims=True)
FOUND = Predictions(SURE, LABELS, (), np.zeros(0, np.int64), np.zeros((0, 64, 64, 3), np.uint8))
CONFUSION = Confusion.of(FOUND, list("abcde"))


def test_confusions() -> None:
    np.testing.assert_array_equal(CONFUSION.counts, confusion_matrix(LABELS, SURE.argmax(1), labels=range(5)))


def test_precision_and_recall_of_each_class() -> None:
    precision, recall, _, images = precision_recall_fscore_support(
        LABELS, SURE.argmax(1), labels=range(5), zero_division=np.nan
    )
    for i, found in enumerate(CONFUSION.per_class):
        assert found.images == images[i]
        for ours, theirs in ((found.precision, precision[i]), (found.recall, recall[i])):
            assert (ours is None) == np.isnan(theirs)
            assert ours is None or ours == pytest.approx(theirs)


def test_calibration() -> None:
    right = SURE.argmax(1) == LABELS
    accuracy, confidence = calibration_curve(right, SURE.max(1), n_bins=10)
    found = calibration(FOUND)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.confidence == pytest.approx(confidence, rel=1e-5)
    assert sum(found.images) == 300
    weights = np.array(found.images) / 300
    assert found.error == pytest.approx(float((abs(accuracy - confidence) * weights).sum()), rel=1e-4)


@pytest.mark.parametrize(("right", "images"), [(0, 20), (9, 10), (450, 500)])
def test_the_interval_of_an_accuracy_ends_where_the_score_test_is_just_rejected(right: int, images: int) -> None:
    low, high = wilson_interval(right, images)
    assert low == 0 or right > 0
    for bound in (low, high):
        if 0 < bound < 1:
            error = (bound * (1 - bound) / images) ** 0.5
            assert abs(right / images - bound) / error == pytest.approx(NormalDist().inv_cdf(0.975))


def test_a_class_is_known_however_its_accents_are_written() -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert class_numbers([apart, "tea"], ["tea", composed], "x").tolist() == [1, 0]
    assert class_numbers([composed], [apart, "tea"], "x").tolist() == [0]
    with pytest.raises(Refused, match=r"x: the model knows no class 'cafe'; did you mean"):
        class_numbers(["cafe"], ["tea", composed], "x")
