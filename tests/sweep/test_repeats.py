"""What a sweep repeats, as a function of what its trials came to."""

from collections.abc import Mapping

import numpy as np

from finetune.report.judge import FIRST_LOOK, Comparison
from finetune.report.variance import Bits
from finetune.sweep.repeats import Repeats, _nearest_first, plan_repeats

IMAGES, MARGIN = 400, 0.02


def row(accuracy: float, seed: int, noise: float = 0.005) -> Bits:
    """One seed on the images, which are as easy or hard for all."""
    ease = np.random.default_rng(99).random(IMAGES)
    rng = np.random.default_rng(seed)
    return (ease + 0.05 * rng.normal(size=IMAGES) < accuracy + noise * rng.normal())[None]


EXPLORED = {0: row(0.40, 1), 9: row(0.80, 2), 14: row(0.79, 3)}


def plan(repeated: Mapping[int, list[Bits | None]], margin: float = MARGIN, most: int = 50) -> Repeats[int]:
    return plan_repeats(EXPLORED, repeated, margin, most, tried=18)


def test_what_is_within_reach_of_the_best_gets_three_new_seeds() -> None:
    first = plan({})
    assert (first.wanted, first.done, first.leader, first.open) == ({9: 3, 14: 3}, False, 9, (14,))
    halfway = plan({9: [row(0.8, 10)]})
    assert (halfway.wanted, halfway.done, halfway.open) == (first.wanted, False, (14,)), "a killed sweep wants the same"


def test_more_seeds_follow_only_where_they_would_tell() -> None:
    three = {9: [row(0.80, s, 0.02) for s in range(3)], 14: [row(0.785, 20 + s, 0.02) for s in range(3)]}
    told = plan(three, margin=0.2)
    assert told.done
    (other,) = told.comparisons.keys() - {0}
    assert told.comparisons[other].standing == "within"
    assert told.comparisons[0].standing == "worse"
    assert told.open == ()

    restless = {9: [row(0.80, s, 0.05) for s in range(3)], 14: [row(0.80, 20 + s, 0.05) for s in range(3)]}
    untold = plan(restless, margin=0.06)
    (other,) = untold.comparisons.keys() - {0}
    assert untold.comparisons[other].standing == "open"
    assert (untold.wanted, untold.done) == ({9: FIRST_LOOK + 1, 14: FIRST_LOOK + 1}, False)
    assert untold.open == (other,)
    assert plan(restless, margin=0.06, most=6).done, "as many repeats as there may be"


def test_where_not_all_can_be_repeated_the_nearest_to_the_best_are() -> None:
    rows = {name: Comparison(lead, 0.05, 0.0, 0.05, "open", 400) for name, lead in ((4, 0.02), (14, 0.01), (17, 0.03))}
    wanted, asked = {4: 3, 9: 3, 14: 3}, {4: 5, 9: 5, 14: 5, 17: 3}
    granted = [_nearest_first(wanted, asked, rows, 9, most) for most in (11, 13, 15, 18)]
    assert granted[0] == wanted, "the best needs another, too"
    assert granted[1] == {4: 3, 9: 5, 14: 5}
    assert granted[2] == {4: 5, 9: 5, 14: 5}
    assert granted[3] == {4: 5, 9: 5, 14: 5, 17: 3}


def test_a_plan_does_not_depend_on_repeats_that_came_later() -> None:
    """Records that lie there from a call with a narrower margin, or of another folder, change no earlier look."""
    more = {name: [row(0.8, 10 * name + s) for s in range(8)] for name in (9, 14)}
    three = {name: rows[:3] for name, rows in more.items()}
    now, later = plan(three, most=6), plan(more, most=6)
    assert now.done
    assert later.comparisons == now.comparisons


def test_a_repeat_that_failed_is_not_tried_again_and_judges_nothing() -> None:
    failed: dict[int, list[Bits | None]] = {9: [None, None, None], 14: [row(0.79, s) for s in range(3)]}
    planned = plan(failed, most=6)
    assert planned.done
    assert planned.leader == 14, "of those with new seeds"


def test_the_seed_that_explored_judges_where_it_chose_nothing() -> None:
    explored = {9: row(0.80, 2), 14: row(0.79, 3)}
    repeated: dict[int, list[Bits | None]] = {k: [row(0.8, 10 * k + s) for s in range(3)] for k in explored}
    chose = plan_repeats(explored, repeated, MARGIN, 6, tried=6)
    chose_none = plan_repeats(explored, repeated, MARGIN, 6, tried=2)
    all_rows = {k: np.concatenate([explored[k], *repeated[k]]) for k in explored}  # type: ignore[list-item]
    (name,) = chose_none.comparisons
    lead = all_rows[chose_none.leader].mean() - all_rows[name].mean()
    assert chose_none.comparisons[name].lead == lead
    assert chose.comparisons != chose_none.comparisons


def test_one_configuration_alone_is_repeated_for_the_accuracy_to_expect() -> None:
    alone = plan_repeats({9: EXPLORED[9]}, {}, MARGIN, 1, tried=1)
    assert (alone.wanted, alone.done) == ({9: 3}, False)
    assert plan_repeats({9: EXPLORED[9]}, {9: [row(0.8, s) for s in range(3)]}, MARGIN, 1, tried=1).done
