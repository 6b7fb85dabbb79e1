import random

import pytest

from finetune.sweep.stopping import EndedTrial, Hyperband, Race, read_hyperband


def test_bands_lie_eta_apart() -> None:
    assert Hyperband(min_iter=3, eta=3).bands[:4] == (3, 9, 27, 81)
    assert Hyperband(max_iter=27, s=2, eta=3).bands == (3, 9)
    assert Hyperband(max_iter=20, s=9, eta=2).bands == (1, 2, 5, 10)
    assert len(Hyperband(min_iter=1, eta=2000).bands) < 4


def test_before_the_first_band_nothing_is_stopped() -> None:
    assert Hyperband(min_iter=3).verdict([0.1, 0.1], [[0.9] * 9, [0.8] * 9, [0.1, 0.1]]) is None


def test_the_worst_two_thirds_stop_at_a_band_with_what_they_missed() -> None:
    everyone = [[0.1 * i] * 2 for i in range(9)]
    stopping = Hyperband(min_iter=2, eta=3)
    stopped = [own for own in everyone if stopping.verdict(own, everyone)]
    assert stopped == everyone[:5]  # the threshold is the value with a third of the trials ahead of it
    assert stopping.verdict([0.2, 0.3], everyone) == (0.3, 0.5)


def test_a_strict_rule_forgets_what_a_trial_reached_before_the_band() -> None:
    everyone = [[0.9, 0.2, 0.2], [0.1, 0.5, 0.5], [0.3, 0.3, 0.3]]
    assert Hyperband(min_iter=2, eta=3).verdict(everyone[0], everyone) is None
    assert Hyperband(min_iter=2, eta=3, strict=True).verdict(everyone[0], everyone) == (0.2, 0.3)


@pytest.mark.filterwarnings("ignore")  # the package's own
@pytest.mark.parametrize("goal", ["maximize", "minimize"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "rule", [{"min_iter": 2, "eta": 2}, {"max_iter": 27, "s": 2}, {"max_iter": 9, "s": 1, "eta": 2.5}]
)
def test_the_same_trials_stop_as_under_wandbs_own_engine(rule: dict[str, float], strict: bool, goal: str) -> None:
    import sweeps

    sign = 1 if goal == "maximize" else -1
    config = {
        "method": "random",
        "metric": {"name": "m", "goal": goal},
        "early_terminate": {"type": "hyperband", "strict": strict, **rule},
        "parameters": {"x": {"min": 0, "max": 9}},
    }
    ours = Hyperband(**{"strict": strict, **rule})
    stopped = 0
    for seed in range(200):
        source = random.Random(seed)
        histories = [[source.random() for _ in range(source.randint(0, 12))] for _ in range(source.randint(1, 9))]
        runs = [
            sweeps.SweepRun(name=str(i), state=sweeps.RunState.running, history=[{"m": value} for value in history])
            for i, history in enumerate(histories)
        ]
        theirs = {int(run.name) for run in sweeps.stop_runs(config, runs)}
        signed = [[sign * value for value in history] for history in histories]
        assert {i for i, own in enumerate(signed) if ours.verdict(own, signed)} == theirs
        stopped += len(theirs)
    assert stopped > 20


def test_a_race_stops_what_is_behind_by_more_than_chance() -> None:
    best, near, far = [0.5, 0.8, 0.9], [0.45, 0.78], [0.30, 0.60]
    race = Race(z=2)
    assert race.verdict(near, [best, near, far], images=100) is None
    behind = race.verdict(far, [best, near, far], images=100)
    assert behind is not None
    value, threshold = behind
    error = (0.6 * 0.4 / 100 + 0.8 * 0.2 / 100) ** 0.5
    assert (value, threshold) == (0.60, pytest.approx(0.8 - 2 * error))
    assert race.verdict(far, [best, near, far], images=20) is None, "chance is larger on fewer images"
    assert race.verdict(best, [best, near, far], images=10_000) is None, "the best goes on"


def test_a_race_compares_after_equally_many_epochs() -> None:
    slow, ahead = [0.3], [0.3, 0.5, 0.9]
    assert Race().verdict(slow, [slow, ahead], images=1000) is None
    assert Race().verdict(slow, [slow, [0.9]], images=1000) is not None


def ended(depth: float, **lrs: tuple[float, bool]) -> list[EndedTrial]:
    return [EndedTrial(depth, lr, "seed 0", value, stopped) for lr, (value, stopped) in lrs.items()]


HEAD = ended(17, small=(0.5, True), large=(0.9, False))
AT_14 = ended(14, small=(0.8, True), large=(0.6, True))
AT_8 = ended(8, small=(0.8, False), large=(0.5, True))


def test_settings_that_lost_at_the_two_next_deeper_depths_are_not_started() -> None:
    tried = [*HEAD, *AT_14, *AT_8]
    assert Race().lost_before(4, "large", "seed 0", tried) == (8, 14)
    assert Race().lost_before(4, "small", "seed 0", tried) is None, "the best of a depth never lost, stopped or not"
    assert Race().lost_before(4, "new", "seed 0", tried) is None
    assert Race().lost_before(4, "large", "seed 1", tried) is None
    assert Race().lost_before(8, "large", "seed 0", [*HEAD, *AT_14]) is None, "the head alone says nothing"
    assert Race().lost_before(4, "large", "seed 0", [*HEAD, *AT_14, *ended(8, large=(0.5, True))]) is None
    not_stopped = ended(8, small=(0.8, False), large=(0.7, False))
    assert Race().lost_before(4, "large", "seed 0", [*HEAD, *AT_14, *not_stopped]) is None


@pytest.mark.parametrize("given", [{}, {"strict": True}, {"strict": False}])
def test_what_strict_is_by_default_is_what_wandbs_engine_fills_in(given: dict[str, bool]) -> None:
    entry = {"type": "hyperband", "min_iter": 3, **given}
    from sweeps.config.schema import fill_validate_early_terminate

    filled = fill_validate_early_terminate({"early_terminate": dict(entry)})["early_terminate"]
    rule = read_hyperband("x.yaml", entry)
    assert (rule.strict, rule.eta) == (filled["strict"], filled["eta"])
