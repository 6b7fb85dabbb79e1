import numpy as np
import pytest
from scipy.stats import t, ttest_ind

from finetune.report.variance import Variance, error_of, moderated, over_images, t_limit


def test_two_samples_have_the_error_and_freedom_of_welch() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=5), 3 * rng.normal(size=9)
    error, freedom = error_of(over_images(first), over_images(second))
    welch = ttest_ind(first, second, equal_var=False)
    assert (first.mean() - second.mean()) / error == pytest.approx(welch.statistic)
    assert freedom == pytest.approx(welch.df)
    assert t_limit(0.025, freedom) == pytest.approx(t.isf(0.025, welch.df))


def test_a_variance_is_drawn_towards_the_others_and_never_below_its_own() -> None:
    drawn = moderated({"calm": Variance(1.0, 2), "restless": Variance(9.0, 2), "once": Variance(0.0, 0)}, usual=100.0)
    mean = (4 * 5.0 + 2 * 9.0) / 6
    assert drawn["restless"] == Variance(9.0, 2 + 4 * (mean / 9.0) ** 2)
    assert drawn["calm"] == Variance((4 * 5.0 + 2 * 1.0) / 6, 6)
    assert drawn["once"] == Variance(5.0, 4)


def test_the_further_a_variance_lies_above_the_others_the_less_they_count() -> None:
    def freedom(value: float) -> float:
        others = {name: Variance(1.0, 2) for name in range(5)}
        return moderated(others | {9: Variance(value, 2)}, usual=1.0)[9].freedom

    assert freedom(0.5) == freedom(1.0) == 6
    assert 5.9 < freedom(1.01) < 6, "no step where it is just above them"
    assert 6 > freedom(2.0) > freedom(10.0) > freedom(1000.0) > 2
    assert moderated({"alike": Variance(0.0, 2), "too": Variance(0.0, 2)}, 1.0)["too"] == Variance(0.0, 6)


def test_where_nothing_is_known_the_usual_is_taken() -> None:
    assert moderated({"once": Variance(0.0, 0)}, usual=0.25) == {"once": Variance(0.25, 4)}
    assert moderated({"twice": Variance(0.5, 1)}, usual=0.25)["twice"].value == 0.5
