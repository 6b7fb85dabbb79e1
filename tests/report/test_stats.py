import inspect

import numpy as np
import pytest
from scipy import stats

from finetune.report.stats import (
    any_difference,
    difference,
    half_width,
    holm,
    rounding_step,
    runs_to_settle,
)


def scores(values: np.ndarray, first: int = 0) -> dict[int, float]:
    return {first + i: float(v) for i, v in enumerate(values)}


@pytest.mark.parametrize("n", [3, 5, 20])
def test_shared_seeds_are_scipys_paired_t_test_in_any_order(n: int) -> None:
    a, b = np.random.default_rng(n).normal(0.8, 0.02, (2, n))
    theirs = scores(b)
    found = difference(scores(a), dict(reversed(theirs.items())))
    expected = stats.ttest_rel(a, b)
    assert found is not None
    assert found.paired
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.mean == pytest.approx(np.mean(a - b))


@pytest.mark.parametrize(("n", "m"), [(3, 3), (3, 8), (12, 5)])
def test_other_seeds_are_scipys_welch_test(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.8, 0.02, n), rng.normal(0.7, 0.1, m)
    found = difference(scores(a), scores(b, first=100))
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert found is not None
    assert not found.paired
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_one_side_with_further_seeds_is_paired_over_the_shared_ones() -> None:
    a, b = np.random.default_rng(0).normal(0.8, 0.02, (2, 6))
    found = difference(scores(a), scores(b[:4]))
    assert found is not None
    assert (found.paired, found.repeats) == (True, 4)
    assert found.p == pytest.approx(stats.ttest_rel(a[:4], b[:4]).pvalue)
    half_shared = difference(scores(a), scores(b[:4], first=3))
    assert half_shared is not None
    assert not half_shared.paired


def test_two_seeds_give_no_verdict() -> None:
    assert difference({0: 0.9, 1: 0.9}, {0: 0.1, 1: 0.1, 2: 0.1}) is None
    assert any_difference([{0: 0.9, 1: 0.8}, {0: 0.1, 1: 0.1}]) is None


def test_equal_values_prove_nothing_when_accuracies_are_coarse() -> None:
    same, higher = scores(np.full(3, 0.5)), scores(np.full(3, 0.6))
    coarse, fine = difference(higher, same, step=0.1), difference(higher, same, step=0.001)
    assert coarse is not None
    assert fine is not None
    assert coarse.p > 0.05 > 0.001 > fine.p
    equal = difference(same, same)
    assert equal is not None
    assert equal.p == 1


def test_two_blocks_are_the_paired_t_test_and_many_are_a_linear_model() -> None:
    table = np.random.default_rng(1).normal(0.8, 0.02, (4, 5))
    two = any_difference([scores(row) for row in table[:2]])
    assert two == pytest.approx(stats.ttest_rel(table[0], table[1]).pvalue)
    groups, seeds = (index.ravel() for index in np.indices(table.shape))
    full = np.column_stack([np.eye(4)[groups], np.eye(5)[seeds][:, 1:]])
    reduced = np.column_stack([np.ones(20), np.eye(5)[seeds][:, 1:]])
    rss = [float(np.linalg.lstsq(x, table.ravel(), rcond=None)[1][0]) for x in (full, reduced)]
    expected = stats.f.sf((rss[1] - rss[0]) / 3 / (rss[0] / 12), 3, 12)
    assert any_difference([scores(row) for row in table]) == pytest.approx(expected)


def test_groups_of_other_seeds_are_compared_by_scipys_welch_anova() -> None:
    if "equal_var" not in inspect.signature(stats.f_oneway).parameters:
        pytest.skip("this SciPy has no Welch ANOVA to compare with")
    rng = np.random.default_rng(2)
    groups = [rng.normal(0.8, 0.01 * (i + 1), 3 + i) for i in range(4)]
    expected = stats.f_oneway(*groups, equal_var=False).pvalue
    assert any_difference([scores(group) for group in groups]) == pytest.approx(expected)


def test_holm_is_the_step_down_of_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.001]) == pytest.approx([0.6, 0.002])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interval_of_a_mean_covers_it_nineteen_times_out_of_twenty() -> None:
    rng = np.random.default_rng(3)
    for n in (3, 5):
        samples = rng.normal(0.8, 0.02, (1000, n))
        covered = [abs(row.mean() - 0.8) <= (half_width(row.tolist()) or 0) for row in samples]
        assert 0.93 <= np.mean(covered) <= 0.97  # four standard errors are 0.028


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_of_a_difference_covers_it(paired: bool) -> None:
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(1000):
        shared = rng.normal(0, 0.02, 4) if paired else np.zeros(4)
        a, b = 0.8 + shared + rng.normal(0, 0.01, 4), 0.75 + shared + rng.normal(0, 0.03, 4)
        found = difference(scores(a), scores(b, first=0 if paired else 10))
        assert found is not None
        covered.append(found.low <= 0.05 <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.98


def test_the_planned_runs_settle_the_difference_four_times_out_of_five() -> None:
    rng = np.random.default_rng(5)
    a, b = scores(np.array([0.80, 0.83, 0.81])), scores(np.array([0.78, 0.80, 0.80]))
    found = difference(a, b)
    assert found is not None
    more = runs_to_settle(found, comparisons=5)
    assert more is not None
    draws = rng.normal(found.mean, found.spread, (4000, found.repeats + more))
    settled = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05 / 5).mean()
    assert settled > 0.78
    fewer = rng.normal(found.mean, found.spread, (4000, found.repeats + more - 1))
    assert (stats.ttest_1samp(fewer, 0, axis=1).pvalue < 0.05 / 5).mean() < 0.82
    nothing = difference(a, a)
    assert nothing is not None
    assert runs_to_settle(nothing, 5) is None


def test_the_step_of_accuracies_is_one_image() -> None:
    assert rounding_step([0.75, 0.5, 0.875, 0.5]) == 0.125
    assert rounding_step([0.5]) == 0
