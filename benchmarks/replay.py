"""What a search and a verdict come to, replayed on recorded grids: `python benchmarks/replay.py [TABLE ...]`.

TABLE is a file of benchmarks/record.py; by default, all of benchmarks/recorded/. Each replay draws the seed that
explores, others for repeats, and the validation images with replacement. The truth is the accuracy in the best epoch,
mean over all seeds and images of the table. Prints, per table, what each way costs, how far what it names lies below
the best, how far the best accuracy that a search saw falls short of what all trials of the same sweep would have shown,
how often a verdict errs, and how much it can promise; then how good the model in hand is after a share of the grid's
cost.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, print_rows, write_json
from numpy.typing import NDArray
from record import read_table
from searches import SEARCHES, Draw, Recorded, Step, race

from finetune.report.judge import Comparison, compare, leader_of
from finetune.sweep.repeats import plan_repeats

SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Of a one-seed grid's cost, after which the model in hand is looked at."""
GRID_SEEDS = 3
RULE, GRIDS = "race + repeats", f"grid x {GRID_SEEDS} seeds, judged"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path, nargs="*", metavar="TABLE")
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--margin", type=float, default=2.0, help="points worth having")
    parser.add_argument("--same-images", action="store_true", help="draw no images")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    content: dict[str, Any] = {"sweeps": arguments.sweeps, "margin": arguments.margin, "tables": {}}
    for file in arguments.tables or sorted((HERE / "recorded").glob("*.npz")):
        recorded = Recorded(read_table(file))
        start = time.perf_counter()
        outcomes = replay(recorded, arguments.sweeps, arguments.margin / 100, new_images=not arguments.same_images)
        seconds = time.perf_counter() - start
        content["tables"][recorded.table.name] = report(recorded, outcomes) | {"seconds": round(seconds, 1)}
    write_json(arguments.json, content)


@dataclass(frozen=True)
class Verdict:
    """What a sweep said in the end."""

    chosen: Mapping[int, int]
    """The configuration that stands for each depth."""
    leader: int
    """The depth that it named."""
    comparisons: Mapping[int, Comparison]
    cost: float
    """In one-seed grids."""


@dataclass(frozen=True)
class Outcome:
    """What one replay came to."""

    cost: float
    """In one-seed grids."""
    regret: float
    """How far the configuration that it named lies below the best, 0..1."""
    open: float
    """Depths of which it said neither that they are worse nor that they are within the margin."""
    falsely_worse: bool
    """Whether it called a depth worse whose best configuration is better than the one it named;"""
    chosen_falsely_worse: bool
    """or one of which the configuration that it looked at is."""
    bound_holds: bool
    """Whether no depth's best configuration is better by more than the loss it told;"""
    chosen_bound_holds: bool
    """and no configuration that it looked at."""
    settled_short: bool
    """Whether it left nothing open, and what it named lies more than the margin below the best."""
    loss: float = 0.0
    """The most that it told taking its depth may lose, 0..1."""
    short: float = 0.0
    """Of a search: how much less it saw at best than the whole grid would have shown with its seed and images, 0..1."""


@dataclass(frozen=True)
class Outcomes:
    """Of one way, replays x figures."""

    rows: list[Outcome]
    in_hand: list[list[float]]
    """Replays x `SHARES`: how far the model in hand lies below the best configuration; empty for verdicts."""
    has_verdict: bool


def replay(recorded: Recorded, sweeps: int, margin: float, new_images: bool = True) -> dict[str, Outcomes]:
    """Every search and every verdict on the same draws."""
    outcomes = {RULE: Outcomes([], [], True), GRIDS: Outcomes([], [], True)}
    outcomes |= {name: Outcomes([], [], False) for name in SEARCHES}
    for i in range(sweeps):
        draw = Draw(recorded, np.random.default_rng(i), new_images)
        outcomes[RULE].rows.append(judged(repeat(draw, race(draw, np.random.default_rng(i)), margin), draw, margin))
        outcomes[GRIDS].rows.append(judged(grids(draw, margin), draw, margin))
        for name, search in SEARCHES.items():
            steps = search(draw, np.random.default_rng((i, 1)))
            outcomes[name].rows.append(searched(steps, draw))
            outcomes[name].in_hand.append(in_hand(steps, draw))
    return outcomes


def repeat(draw: Draw, steps: Sequence[Step], margin: float) -> Verdict:
    """The product's repeats, after an exploration."""
    chosen: dict[int, int] = {}
    for step in (step for step in steps if step.whole):
        depth = int(draw.table.depth[step.configuration])
        incumbent = chosen.setdefault(depth, step.configuration)
        if draw.curves[step.configuration][-1] > draw.curves[incumbent][-1]:
            chosen[depth] = step.configuration

    configurations = len(draw.curves)
    explored = {depth: draw.bits(configuration, draw.seed) for depth, configuration in chosen.items()}
    repeats: dict[int, list[NDArray[np.bool_]]] = {depth: [] for depth in chosen}
    cost = sum(map(draw.cost, steps))
    while not (plan := plan_repeats(explored, repeats, margin, most=configurations, tried=configurations)).done:
        for depth, seeds in plan.wanted.items():
            for seed in draw.fresh[len(repeats[depth]) : seeds]:
                repeats[depth].append(draw.bits(chosen[depth], seed))
                cost += float(draw.recorded.cost[chosen[depth], -1])
    return Verdict(chosen, plan.leader, plan.comparisons, cost)


def grids(draw: Draw, margin: float) -> Verdict:
    """The whole grid with several seeds; the best configuration of each depth by its mean, judged on the same seeds."""
    seeds = [draw.seed, *draw.fresh[: GRID_SEEDS - 1]]
    bits = [np.concatenate([draw.bits(c, seed) for seed in seeds]) for c in range(len(draw.curves))]
    chosen = {
        depth: max(np.flatnonzero(draw.table.depth == depth).tolist(), key=lambda c: float(bits[c].mean()))
        for depth in np.unique(draw.table.depth).tolist()
    }
    entrants = {depth: bits[configuration] for depth, configuration in chosen.items()}
    leader = leader_of(entrants)
    return Verdict(chosen, leader, compare(entrants, leader, margin), cost=float(len(seeds)))


def judged(verdict: Verdict, draw: Draw, margin: float) -> Outcome:
    """A verdict against the truth."""
    truth = draw.recorded.truth[:, -1]
    named = float(truth[verdict.chosen[verdict.leader]])
    gains = {depth: draw.recorded.best_of(depth) - named for depth in verdict.comparisons}
    chosen_gains = {depth: float(truth[verdict.chosen[depth]]) - named for depth in verdict.comparisons}
    worse = [depth for depth, row in verdict.comparisons.items() if row.standing == "worse"]
    still_open = sum(row.standing in ("open", "images") for row in verdict.comparisons.values())
    regret = float(truth.max()) - named
    return Outcome(
        cost=verdict.cost,
        regret=regret,
        open=still_open,
        falsely_worse=any(gains[depth] > 0 for depth in worse),
        chosen_falsely_worse=any(chosen_gains[depth] > 0 for depth in worse),
        bound_holds=all(gains[depth] <= row.loss for depth, row in verdict.comparisons.items()),
        chosen_bound_holds=all(chosen_gains[depth] <= row.loss for depth, row in verdict.comparisons.items()),
        settled_short=still_open == 0 and regret > margin,
        loss=max((row.loss for row in verdict.comparisons.values() if row.standing != "worse"), default=0.0),
    )


def searched(steps: Sequence[Step], draw: Draw) -> Outcome:
    """A search names the best of the trials that ran to their end, and says nothing of depths."""
    truth = draw.recorded.truth[:, -1]
    named = max((step.configuration for step in steps if step.whole), key=lambda c: draw.curves[c][-1])
    regret = float(truth.max() - truth[named])
    short = max(curve[-1] for curve in draw.curves) - draw.curves[named][-1]
    return Outcome(sum(map(draw.cost, steps)), regret, 0.0, False, False, True, True, False, short=short)


def in_hand(steps: Sequence[Step], draw: Draw) -> list[float]:
    """How far the model that looked best by then lies below the best configuration, after each of `SHARES`.

    It counts as good as its configuration truly is after so many epochs; before the first epoch's end, as chance.
    """
    truth = draw.recorded.truth
    spent, looks, best_looking = 0.0, 0.0, -1
    moments = [(0.0, 1 / draw.table.classes)]
    for step in steps:
        curve = draw.curves[step.configuration]
        for epoch in range(step.before + 1, step.epochs + 1):
            if curve[epoch - 1] > looks or step.configuration == best_looking:
                looks, best_looking = curve[epoch - 1], step.configuration
                moments.append((spent + draw.cost_until(step, epoch), float(truth[best_looking, epoch - 1])))
        spent += draw.cost(step)

    best = float(draw.recorded.truth[:, -1].max())
    times = [moment for moment, _ in moments]
    last = np.searchsorted(times, [share + 1e-9 for share in SHARES], side="right") - 1
    return [best - moments[i][1] for i in last]


def report(recorded: Recorded, outcomes: Mapping[str, Outcomes]) -> dict[str, Any]:
    """Prints a table's figures; returns them as the JSON has them."""
    configurations, seeds, epochs, images = recorded.table.right.shape
    size = f"{configurations} configurations x {seeds} seeds x {epochs} epochs x {images} images"
    figures = {name: figures_of(of_one) for name, of_one in outcomes.items()}
    print_rows(
        f"{recorded.table.name}: {size}",
        ["", "cost, one-seed grids (p90)", "points below the best", "saw less than the grid, points", "depths open",
         "a depth falsely called worse",
         "told to lose at most, points (p90)", "that bound holds", "settled, but more than the margin below"],
        [[name, *cells(row, outcomes[name].has_verdict)] for name, row in figures.items()],
    )  # fmt: skip
    searches = {name: row["in hand"] for name, row in figures.items() if not outcomes[name].has_verdict}
    print_rows(
        f"{recorded.table.name}: points that the model in hand lies below the best, by share of the grid's cost",
        ["", *(f"{share:.0%}" for share in SHARES)],
        [[name, *(f"{points:.1f}" for points in row)] for name, row in searches.items()],
    )
    return {"size": size, "ways": figures}


def figures_of(outcomes: Outcomes) -> dict[str, Any]:
    """Means over the replays; differences of accuracy in points."""
    columns = {key: np.array([asdict(row)[key] for row in outcomes.rows], float) for key in asdict(outcomes.rows[0])}
    told = [key for key in columns if key != "short"] if outcomes.has_verdict else ["cost", "regret", "short"]
    means = {key: float(columns[key].mean()) * (100 if key in ("regret", "short", "loss") else 1) for key in told}
    figures: dict[str, Any] = {key: round(mean, 4) for key, mean in means.items()}
    figures["cost, p90"] = round(float(np.quantile(columns["cost"], 0.9)), 4)
    if outcomes.has_verdict:
        figures["loss, p90"] = round(100 * float(np.quantile(columns["loss"], 0.9)), 4)
    if outcomes.in_hand:
        figures["in hand"] = (100 * np.mean(outcomes.in_hand, axis=0)).round(3).tolist()
    return figures


def cells(row: Mapping[str, Any], has_verdict: bool) -> list[str]:
    """A row of the first table; of what is claimed of depths, also the share among the configurations looked at."""
    first = [f"{row['cost']:.2f} ({row['cost, p90']:.2f})", f"{row['regret']:.2f}"]
    if not has_verdict:
        return [*first, f"{row['short']:.2f}", *["–"] * 5]
    worse = f"{row['falsely_worse']:.1%} ({row['chosen_falsely_worse']:.1%})"
    loss = f"{row['loss']:.1f} ({row['loss, p90']:.1f})"
    bound = f"{row['bound_holds']:.1%} ({row['chosen_bound_holds']:.1%})"
    return [*first, "–", f"{row['open']:.2f}", worse, loss, bound, f"{row['settled_short']:.1%}"]


if __name__ == "__main__":
    main()
