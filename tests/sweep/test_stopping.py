import random

import pytest

from finetune.sweep.stopping import Hyperband, read_hyperband


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


@pytest.mark.parametrize("given", [{}, {"strict": True}, {"strict": False}])
def test_what_strict_is_by_default_is_what_wandbs_engine_fills_in(given: dict[str, bool]) -> None:
    entry = {"type": "hyperband", "min_iter": 3, **given}
    from sweeps.config.schema import fill_validate_early_terminate

    filled = fill_validate_early_terminate({"early_terminate": dict(entry)})["early_terminate"]
    rule = read_hyperband("x.yaml", entry)
    assert (rule.strict, rule.eta) == (filled["strict"], filled["eta"])
