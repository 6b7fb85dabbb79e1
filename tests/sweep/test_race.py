"""Which trials of an exploration can hardly become the best of their depth."""

from dataclasses import replace

import pytest

from finetune.sweep.race import RATE, Ended, fell_behind, lost_deeper, race_order
from finetune.sweep.search import DEPTH

HEAD = "model.head.hidden"

CURVE = [0.50, 0.70, 0.80]
WHOLE = [(0.01, CURVE)]


def test_a_trial_is_granted_the_largest_gain_of_the_whole_trials_of_its_rate() -> None:
    assert fell_behind([0.57], 0.01, WHOLE, images=10_000) is None, "0.57 + 0.8 * 0.30 is above 0.80"
    behind = fell_behind([0.40], 0.01, WHOLE, images=10_000)
    assert behind is not None
    assert (behind.epoch, behind.value) == (1, pytest.approx(0.64))
    assert behind.threshold == pytest.approx(0.80 - 1.5 * ((0.64 * 0.36 + 0.8 * 0.2) / 10_000) ** 0.5)
    slow_starter = (0.01, [0.10, 0.20, 0.75])
    assert fell_behind([0.40], 0.01, [*WHOLE, slow_starter], images=10_000) is None, "one like that gained 0.65"


def test_a_trial_is_granted_the_gain_of_the_next_larger_rate_and_of_no_smaller_one() -> None:
    """The larger the rate, the later a trial rises, so a smaller one tells nothing of what is to come."""
    assert fell_behind([0.10, 0.20], 0.1, WHOLE, images=10_000) is None
    assert fell_behind([0.10, 0.20], 0.003, WHOLE, images=10_000) is not None
    late = (0.1, [0.10, 0.20, 0.80])
    assert fell_behind([0.40], 0.003, [late, *WHOLE], images=10_000) is not None, "0.01 is nearer"
    assert fell_behind([0.40], 0.03, [late, *WHOLE], images=10_000) is None


def test_a_difference_that_may_be_chance_ends_no_trial() -> None:
    assert fell_behind([0.50], 0.01, WHOLE, images=100) is None
    assert fell_behind([0.50], 0.01, WHOLE, images=10_000) is not None
    assert fell_behind([0.45], 0.01, WHOLE, images=0) is None, "of older records one does not know how many images"


def test_the_first_epoch_that_tells_is_named_however_many_there_are() -> None:
    behind = fell_behind([0.57, 0.45, 0.40], 0.01, WHOLE, images=10_000)
    assert behind is not None
    assert behind.epoch == 2
    assert fell_behind([0.57, 0.45], 0.01, WHOLE, images=10_000) == behind


def test_the_first_of_a_depth_is_never_behind() -> None:
    assert fell_behind([0.01, 0.01], 0.01, [], images=10_000) is None


def ended(depth: float, rate: float, last: float, stopped: bool = False, **others: object) -> Ended:
    params = {DEPTH: depth, RATE: rate, **others}
    return Ended(depth, params, [last], whole=not stopped, stopped=stopped, images=10_000)


def lost(depth: float, rate: float, trials: list[Ended], **others: object) -> str:
    return lost_deeper(depth, {DEPTH: depth, RATE: rate, **others}, trials)


LOST = "at freeze depth 14 this learning rate lost to a smaller one"


def test_a_learning_rate_that_was_too_large_one_cut_deeper_is_not_started() -> None:
    trials = [ended(14, 0.01, 0.8), ended(14, 0.1, 0.5, stopped=True)]
    assert lost(11, 0.1, trials) == LOST
    assert lost(11, 0.01, trials) == ""
    assert lost(11, 0.03, trials) == "", "it was not tried there"
    assert lost(11, 0.1, [ended(14, 0.01, 0.8), ended(14, 0.1, 0.7)]) == LOST, "whole, and not the best"


def test_a_learning_rate_that_lost_by_chance_one_cut_deeper_is_started() -> None:
    near, error = 0.799, (2 * 0.8 * 0.2 / 10_000) ** 0.5
    assert 0.8 - near < 0.3 * error
    assert lost(11, 0.1, [ended(14, 0.01, 0.8), ended(14, 0.1, near)]) == ""
    several = [ended(14, 0.01, 0.8, head=2), ended(14, 0.1, 0.7, head=2), ended(14, 0.1, near, head=1)]
    assert lost(11, 0.1, several, head=2) == "", "with another head it came near"
    unknown = [replace(trial, images=0) for trial in (ended(14, 0.01, 0.8), ended(14, 0.1, near))]
    assert lost(11, 0.1, unknown) == LOST, "of older records one does not know how many images"


def test_a_learning_rate_that_failed_one_cut_deeper_is_started() -> None:
    failed = Ended(14, {DEPTH: 14, RATE: 0.1}, [], whole=False, stopped=False, images=0)
    assert lost(11, 0.1, [ended(14, 0.01, 0.8), failed]) == ""


def test_a_learning_rate_that_was_too_small_one_cut_deeper_is_started() -> None:
    """The more is trained, the smaller is the rate that suits it."""
    trials = [ended(14, 0.1, 0.8), ended(14, 0.01, 0.5, stopped=True)]
    assert lost(11, 0.01, trials) == ""


def test_a_head_that_was_larger_than_the_best_one_cut_deeper_is_not_started() -> None:
    """The more is trained, the less a larger head adds."""
    trials = [ended(14, 0.01, 0.8, **{HEAD: []}), ended(14, 0.01, 0.8, **{HEAD: [128]})]
    assert lost(11, 0.01, trials, **{HEAD: [128]}) == "at freeze depth 14 this head lost to a smaller one"
    assert lost(11, 0.01, trials, **{HEAD: []}) == ""
    assert lost(11, 0.03, trials, **{HEAD: [128]}) == "", "it was not tried there with this rate"
    larger = [ended(14, 0.01, 0.8, **{HEAD: []}), ended(14, 0.01, 0.81, **{HEAD: [128]})]
    assert lost(11, 0.01, larger, **{HEAD: [128]}) == ""
    assert lost(11, 0.01, larger, **{HEAD: []}) == "", "it may suit what has more to train"


def test_only_the_next_deeper_cut_and_the_same_settings_count() -> None:
    trials = [ended(17, 0.01, 0.8), ended(17, 0.1, 0.5, stopped=True), ended(14, 0.1, 0.8), ended(14, 0.01, 0.7)]
    assert lost(11, 0.1, trials) == ""
    heads = [ended(14, 0.01, 0.8, head=1), ended(14, 0.1, 0.5, stopped=True, head=1)]
    assert lost(11, 0.1, heads, head=2) == ""
    assert lost(11, 0.1, heads, head=1) == LOST
    assert lost_deeper(11, {DEPTH: 11}, [ended(14, 0.1, 0.5)]) == "", "no rate is swept"
    assert lost(11, 0.1, [ended(14, 0.1, 0.5, stopped=True)]) == "", "nothing was better there"
    assert lost(14, 0.1, [ended(14, 0.01, 0.8), ended(14, 0.1, 0.5, stopped=True)]) == "", "no cut was deeper"


def test_small_heads_come_first_and_large_rates_whatever_the_files_order() -> None:
    trials = [{"optim.lr": rate, "model.head.hidden": head} for head in ([64, 32], [], [128]) for rate in (0.1, 0.3)]
    ordered = [(trial["optim.lr"], trial["model.head.hidden"]) for trial in sorted(trials, key=race_order)]
    assert ordered == [(0.3, []), (0.1, []), (0.3, [64, 32]), (0.1, [64, 32]), (0.3, [128]), (0.1, [128])]
