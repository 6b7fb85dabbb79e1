import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from finetune.sweep.distribution import Distribution
from finetune.sweep.search import Observation, Params, Search, corners, size
from finetune.sweep.spec import SweepSpec

SPACE = {
    "optim.lr": Distribution("log_uniform_values", bounds=(1e-5, 1.0)),
    "optim.weight_decay": Distribution("uniform", bounds=(0.0, 1.0)),
    "model.frozen_bn": Distribution("categorical", ("eval", "stats", "train")),
}
LISTED = {
    "model.freeze_depth": Distribution("categorical", (17, 0, 9)),
    "model.head.hidden": Distribution("categorical", ([], [256])),
    "trainer.epochs": Distribution("int_uniform", bounds=(1, 2)),
}


def spec_of(
    parameters: dict[str, Distribution], method: str, run_cap: int | None = None, goal: str = "maximize"
) -> SweepSpec:
    return SweepSpec("s", method, goal, "val/acc_best", parameters, fixed=(), run_cap=run_cap)


def run(
    spec: SweepSpec, seed: int = 0, value: Callable[[Params], float | None] = lambda params: None
) -> list[Observation]:
    """Every trial of a search, one after the other."""
    search = Search(spec, seed)
    tried: list[Observation] = []
    while (params := search.propose(tried)) is not None:
        tried.append(Observation(params, value(params)))
    return tried


def trials(spec: SweepSpec, seed: int = 0) -> list[Params]:
    return [trial.params for trial in run(spec, seed)]


def hill(params: Params) -> float:
    """Highest, 0, at lr 1e-3, weight decay 0.3 and `stats`."""
    distance = (math.log10(params["optim.lr"]) + 3) ** 2 + 4 * (params["optim.weight_decay"] - 0.3) ** 2
    return -float(distance + (params["model.frozen_bn"] != "stats"))


def test_a_grid_is_the_product_in_the_order_of_the_file() -> None:
    expected = [
        {"model.freeze_depth": depth, "model.head.hidden": hidden, "trainer.epochs": epochs}
        for depth, hidden, epochs in itertools.product((17, 0, 9), ([], [256]), (1, 2))
    ]
    spec = spec_of(LISTED, "grid")
    assert trials(spec) == trials(spec, seed=1) == expected
    assert size(spec) == 12


def test_a_grid_stops_at_its_cap_and_has_no_repeats() -> None:
    assert trials(spec_of(LISTED, "grid", 5)) == trials(spec_of(LISTED, "grid"))[:5]
    assert size(spec_of(LISTED, "grid", 5)) == 5
    assert size(spec_of(LISTED, "grid", 50)) == 12
    twice = {"seed": Distribution("categorical", (1, 2, 1))}
    assert trials(spec_of(twice, "grid")) == [{"seed": 1}, {"seed": 2}]


def test_some_trials_of_a_grid_can_come_from_all_over_it() -> None:
    space = {**LISTED, "model.freeze_depth": Distribution("categorical", (0, 5, 9, 14, 17, "all"))}
    whole = trials(spec_of(space, "grid"))
    few = {cap: trials(replace(spec_of(space, "grid", cap), spread=True)) for cap in (6, 12, 24, 100)}
    for cap, found in few.items():
        assert found == few[100][:cap]  # more trials are the same and others
    assert sorted(few[100], key=repr) == sorted(whole, key=repr)
    for cap, uneven in ((6, 1), (12, 2)):
        for key, distribution in space.items():
            counts = Counter(repr(params[key]) for params in few[cap])
            assert len(counts) == len(distribution.choices or ())
            assert max(counts.values()) - min(counts.values()) <= uneven


def test_some_trials_of_a_huge_grid_are_found_at_once() -> None:
    huge = {f"model.head.{i}": Distribution("categorical", tuple(range(100))) for i in range(8)}
    assert len(trials(replace(spec_of(huge, "grid", 50), spread=True))) == 50


def test_a_random_search_depends_on_its_seed_and_not_on_results() -> None:
    spec = spec_of(SPACE, "random", 20)
    first = trials(spec, seed=5)
    assert len(first) == size(spec) == 20
    assert [trial.params for trial in run(spec, 5, hill)] == first
    assert first != trials(spec, seed=6)
    assert {params["model.frozen_bn"] for params in first} == {"eval", "stats", "train"}


def test_a_random_search_draws_each_parameter_on_its_own() -> None:
    drawn = trials(spec_of(SPACE, "random", 300))
    shares = [(math.log10(p["optim.lr"]) / 5 + 1, p["optim.weight_decay"]) for p in drawn]
    assert abs(statistics.correlation(*zip(*shares, strict=True))) < 0.2
    for axis in zip(*shares, strict=True):
        assert statistics.quantiles(axis, n=4) == pytest.approx([0.25, 0.5, 0.75], abs=0.1)


def test_the_first_trials_of_a_random_search_stay_when_the_cap_grows() -> None:
    assert trials(spec_of(SPACE, "random", 40))[:15] == trials(spec_of(SPACE, "random", 15))


def test_a_random_search_without_repeats_exhausts_a_small_space() -> None:
    found = trials(spec_of(LISTED, "random", 100))
    assert sorted(found, key=repr) == sorted(trials(spec_of(LISTED, "grid")), key=repr)


def test_a_bayes_search_exhausts_a_small_space_without_repeats() -> None:
    small = {"seed": Distribution("int_uniform", bounds=(0, 3))}
    found = run(spec_of(small, "bayes", 100), value=lambda params: float(params["seed"]))
    assert sorted(trial.params["seed"] for trial in found) == [0, 1, 2, 3]


def test_a_bayes_search_knows_a_trial_that_was_read_back_from_its_record() -> None:
    spec = spec_of({"optim.weight_decay": Distribution("int_uniform", bounds=(0, 3))}, "bayes", 100)
    read_back = [Observation({"optim.weight_decay": float(n)}, float(n)) for n in range(3)]
    assert Search(spec).propose(read_back) == {"optim.weight_decay": 3}


def test_a_bayes_search_ends_at_its_cap_and_proposes_no_running_trial_again() -> None:
    spec = spec_of(LISTED, "bayes", 12)
    tried: list[Observation] = []
    while (params := Search(spec).propose(tried)) is not None:
        assert params not in [trial.params for trial in tried]
        tried.append(Observation(params, None, running=True))
    assert len(tried) == 12


def test_a_bayes_search_is_the_same_for_the_same_history() -> None:
    spec = spec_of(SPACE, "bayes", 14)
    one, two = run(spec, 3, hill), run(spec, 3, hill)
    assert one == two
    assert len({repr(trial.params) for trial in one}) == len(one) == 14
    assert run(spec, 4, hill) != one
    upside_down = [Observation(trial.params, -(trial.value or 0)) for trial in one[:13]]
    assert Search(spec, 3).propose(one[:13]) == one[13].params
    assert Search(spec, 3).propose(upside_down) != one[13].params


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_a_bayes_search_beats_a_random_one(goal: str) -> None:
    sign = 1 if goal == "maximize" else -1

    def mean_best(method: str) -> float:
        spec = spec_of(SPACE, method, 25, goal)
        searches = [run(spec, seed, lambda params: sign * hill(params)) for seed in range(6)]
        return statistics.fmean(max(hill(trial.params) for trial in search) for search in searches)

    assert mean_best("bayes") > mean_best("random") / 2  # both are below 0: half the distance to the top


def test_a_bayes_search_goes_on_over_failed_and_running_trials() -> None:
    spec = spec_of(SPACE, "bayes", 30)
    known = run(spec_of(SPACE, "bayes", 12), 0, hill)
    holes = [Observation(t.params, None if i % 3 else t.value, running=i % 3 == 1) for i, t in enumerate(known)]
    params = Search(spec).propose(holes)
    assert params is not None
    assert params not in [trial.params for trial in known]


def test_a_stopped_trial_is_never_taken_for_better_than_a_whole_one() -> None:
    """Its last value is of an early epoch, or of another one than those that it is compared with."""
    spec = spec_of(SPACE, "bayes", 30)
    known = run(spec_of(SPACE, "bayes", 14), 0, hill)
    corner = {"optim.lr": 0.9, "optim.weight_decay": 0.99, "model.frozen_bn": "train"}

    def next_after(value: float, stopped_after: int | None) -> Params | None:
        return Search(spec).propose([*known, Observation(corner, value, stopped_after=stopped_after)])

    assert next_after(99.0, 2) == next_after(-99.0, 2)
    assert next_after(99.0, None) != next_after(99.0, 2)
    nothing_yet = Observation(corner, None, stopped_after=0)
    assert Search(spec).propose([*known, nothing_yet]) is not None


EVERY_KIND = {
    "optim.lr": Distribution("q_log_uniform_values", bounds=(0.1, 9.0), q=0.1),
    "optim.weight_decay": Distribution("inv_log_uniform_values", bounds=(0.001, 0.1)),
    "augment.flip": Distribution("beta", bounds=(2.0, 2.0)),
    "augment.rotate": Distribution("log_normal", bounds=(1.0, 0.5)),
    "data.size": Distribution("q_uniform", bounds=(32.0, 224.0), q=32),
    "model.freeze_depth": Distribution("int_uniform", bounds=(0, 17)),
    "trainer.patience": Distribution("categorical", (None, 3), (0.2, 0.8)),
    "trainer.epochs": Distribution("constant", (3,)),
}


def test_a_bayes_search_searches_every_distribution() -> None:
    found = run(spec_of(EVERY_KIND, "bayes", 14), 0, lambda params: -params["optim.weight_decay"])
    assert len(found) == 14
    for params in (trial.params for trial in found):
        assert 0.001 <= params["optim.weight_decay"] <= 0.1
        assert params["data.size"] in range(32, 225, 32)
        assert params["trainer.patience"] in (None, 3)


def test_corners_use_every_listed_value_and_both_ends_of_a_range() -> None:
    spec = spec_of({**LISTED, **SPACE}, "random", 5)
    checked = corners(spec)
    assert all(list(params) == list(spec.parameters) for params in checked)

    def used(key: str) -> list[Any]:
        return [params[key] for params in checked]

    for key in ("model.freeze_depth", "model.head.hidden", "model.frozen_bn"):
        assert all(value in used(key) for value in spec.parameters[key].values)
    assert {1, 2} == set(used("trainer.epochs"))
    assert (min(used("optim.lr")), max(used("optim.lr"))) == pytest.approx((1e-5, 1.0))
    assert (min(used("optim.weight_decay")), max(used("optim.weight_decay"))) == pytest.approx((0, 1))
    assert len(checked) == 3


@pytest.mark.filterwarnings("ignore")  # the package's own
def test_a_grid_is_the_one_of_wandbs_own_engine() -> None:
    import sweeps

    config = {
        "method": "grid",
        "parameters": {
            "model.freeze_depth": {"values": [17, 0, 9]},
            "model.head.hidden": {"values": [[], [256]]},
            "trainer.epochs": {"min": 1, "max": 2},
        },
    }
    runs = []
    while (run_ := sweeps.next_run(config, runs)) is not None:
        runs.append(run_)
    theirs = [{key: entry["value"] for key, entry in run_.config.items()} for run_ in runs]
    assert sorted(theirs, key=repr) == sorted(trials(spec_of(LISTED, "grid")), key=repr)
