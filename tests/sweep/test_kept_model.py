"""Whatever a sweep optimises: the model that it keeps, `finetune best`, `export`, the card and the report's first line
are one and the same trial."""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune.compose import compose_config
from finetune.config import flat, trial_key
from finetune.records.layout import CHECKPOINT, SWEEP, TRIALS
from finetune.records.metric import Incumbent
from finetune.records.ranking import read_objective
from finetune.records.result import Result
from finetune.report.winner import find_winner, model_file, sweep_verdict
from finetune.sweep.run import run_sweep
from finetune.sweep.state import Options
from tests.models import finetune
from tests.sweep.conftest import Pretended, Pretender, spec_of

GRID = {
    "model.freeze_depth": {"values": [0, 8, 14]},
    "optim.lr": {"values": [0.001, 0.1]},
}
SEEDS = {**GRID, "seed": {"values": [0, 1, 2]}}


class Scripted(Pretender):
    """Trials whose accuracy and loss the test decides, and which keep their model as real ones do."""

    def __init__(self, epoch: Callable[[dict[str, Any]], dict[str, float]]) -> None:
        super().__init__()
        self.epoch = epoch

    def start(
        self, trials: Sequence[tuple[Sequence[str], Path]], incumbent: Incumbent | None = None
    ) -> list[Pretended]:
        (words, place), *_ = trials
        config = compose_config(words)
        settings = flat(config)
        epoch = {"epoch": 0, **self.epoch(settings)}
        swept = {word.partition("=")[0]: settings.get(word.partition("=")[0]) for word in words}
        known = {"config": settings, "history": [epoch], "digests": dict(self.digests), "seconds": {"total": 1.0}}
        depth = int(config.model.freeze_depth)
        if incumbent is None or incumbent.matched_by([epoch]):
            place.mkdir(parents=True, exist_ok=True)
            (place / CHECKPOINT).touch()
        accuracy = epoch["val/acc"]
        Result(trial_key(config), "complete", "", depth, "block", config.seed, accuracy, 0, 1, swept, **known).save(
            place
        )
        return [Pretended(0)]


def by_chance(settings: dict[str, Any]) -> dict[str, float]:
    """An accuracy of one digit, so that many are equal, and a loss that says something else."""
    rng = random.Random(repr((settings["model.freeze_depth"], settings["optim.lr"], settings["seed"])))
    return {"val/acc": rng.randint(4, 8) / 10, "val/loss": rng.randint(1, 9) / 10, "train/acc": rng.random()}


CASES = [
    (metric, goal, parameters)
    for metric, goal in (
        ("val/acc_best", "maximize"),
        ("val/acc", "maximize"),
        ("val/loss", "minimize"),
        ("train/acc", "maximize"),
    )
    for parameters in (GRID, SEEDS)
]
QUICK = (1, 4)


@pytest.mark.parametrize(
    ("metric", "goal", "parameters"),
    [case if i in QUICK else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(CASES)],
    ids=lambda given: given if isinstance(given, str) else f"{len(given)} parameters",
)
def test_fault_51_the_model_that_is_kept_is_the_winners(
    metric: str,
    goal: str,
    parameters: dict[str, Any],
    tmp_path: Path,
    fast: list[str],
    monkeypatch: pytest.MonkeyPatch,
    pretended: Pretender,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("finetune.sweep.run.LocalLauncher", lambda *given: Scripted(by_chance))
    spec = spec_of(tmp_path, fast, parameters, metric={"name": metric, "goal": goal})
    sweep = run_sweep(spec, tmp_path / "s")
    assert read_objective([tmp_path / "s"]).metric == metric

    winner = find_winner(tmp_path / "s")
    kept = [file.parent.name for file in (tmp_path / "s" / TRIALS).glob(f"*/{CHECKPOINT}")]
    assert kept == [winner.best.key]
    assert model_file(tmp_path / "s") == (tmp_path / "s" / TRIALS / winner.best.key / CHECKPOINT, "")
    if "seed" not in parameters:
        assert sweep.best is not None
        assert sweep.best.key == winner.best.key

    # its mean is the best there is, worked out anew
    sign = 1 if goal == "maximize" else -1
    means: dict[tuple[Any, Any], list[float]] = {}
    for result in sweep.results:
        value = result.val_acc_best if metric == "val/acc_best" else result.history[-1][metric]
        key = (result.params["model.freeze_depth"], result.params["optim.lr"])
        means.setdefault(key, []).append(sign * (value or 0))
    own = means[winner.group.params["model.freeze_depth"], winner.group.params["optim.lr"]]
    assert sum(own) / len(own) == pytest.approx(max(sum(values) / len(values) for values in means.values()))

    # what is said
    first = f"Best: freeze_depth={winner.group.freeze_depth} lr={winner.group.params['optim.lr']:.3g} with "
    assert sweep_verdict(tmp_path / "s" / TRIALS / winner.best.key).startswith(first)
    for command in ("report", "best", "status"):
        assert finetune(monkeypatch, command, tmp_path / "s") == 0
        said = capfd.readouterr().out
        assert first in said
        assert ("val/loss" in said) == (metric == "val/loss")
    page = (tmp_path / "s" / "report.html").read_text()
    assert re.search(r'class="lead">([^<]*)<', page)[1].startswith(first)  # type: ignore[index]
    assert (tmp_path / "s" / SWEEP).is_file()


def test_while_seeds_are_to_come_the_models_of_the_leading_configurations_are_kept(
    tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch, pretended: Pretender
) -> None:
    """The first seed is luckiest where the mean is worst: its model alone would be the wrong one."""
    luck = {(0, 0): 0.9, (0, 1): 0.1, (4, 0): 0.6, (4, 1): 0.7}
    monkeypatch.setattr(
        "finetune.sweep.run.LocalLauncher",
        lambda *given: Scripted(lambda s: {"val/acc": luck[s["model.freeze_depth"], s["seed"]], "val/loss": 0.5}),
    )
    parameters = {"seed": {"values": [0, 1]}, "model.freeze_depth": {"values": [0, 4]}}
    sweep = run_sweep(spec_of(tmp_path, fast, parameters), tmp_path / "s")
    assert sweep.best is not None
    assert (sweep.best.freeze_depth, sweep.best.seed) == (0, 0)  # the single best trial
    winner = find_winner(tmp_path / "s")
    assert (winner.best.freeze_depth, winner.best.seed) == (4, 1)
    kept = [file.parent.name for file in (tmp_path / "s" / TRIALS).glob(f"*/{CHECKPOINT}")]
    assert kept == [winner.best.key]


def test_after_repeats_the_model_of_the_winners_best_new_seed_is_left(
    tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch, pretended: Pretender
) -> None:
    """The explorer is the luckiest, of every configuration: it does not judge, and its model goes."""
    luck = {0: 0.2, 1: 0.01, 2: 0.03, 3: 0.02}
    monkeypatch.setattr(
        "finetune.sweep.run.LocalLauncher",
        lambda *given: Scripted(
            lambda s: {"val/acc": 0.5 + 0.02 * (s["model.freeze_depth"] == 8) + luck.get(s["seed"], 0), "val/loss": 0.5}
        ),
    )
    run_sweep(spec_of(tmp_path, fast, GRID), tmp_path / "s", Options(margin=0.5))
    winner = find_winner(tmp_path / "s")
    assert (winner.group.freeze_depth, winner.best.seed) == (8, 2)
    kept = [file.parent.name for file in (tmp_path / "s" / TRIALS).glob(f"*/{CHECKPOINT}")]
    assert kept == [winner.best.key]
