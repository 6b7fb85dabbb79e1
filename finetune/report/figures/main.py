"""The pictures of a report in their order, and what is said of each."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from finetune.records.ranking import ACCURACY
from finetune.records.result import Result
from finetune.report.figures.base import ORANGE, Picture, bars
from finetune.report.figures.depth import configurations_figure, depth_figure
from finetune.report.figures.settings import importance_figure, parallel_figure, rates_figure
from finetune.report.figures.trials import curves_figure, order_figure, pareto_figure
from finetune.report.figures.verdict import lead_figure, spent, spent_figure
from finetune.report.figures.windows import windows_figure, windows_of
from finetune.report.table import Table, ranked, strategy_in
from finetune.report.verdict import Conclusions

_REASONS = 8
"""Different failures that have a bar, at the most."""


def pictures(
    records: Sequence[Result],
    shown: Sequence[Result],
    table: Table,
    conclusions: Conclusions,
    ended: Mapping[str, float],
) -> list[Picture]:
    """Those that the records have something to show in, the main one first.

    Args:
        records: The sweep's, which are counted.
        shown: Those of them that there is room for, which are drawn one by one.
        table: Made from the records.
        conclusions: Made from them.
        ended: When each trial ended, by key, in seconds since 1970.
    """
    complete = ranked(shown)
    if not complete:
        return list(_failures(records))

    explored_by = table.objective.explored_by
    return [
        *_of_verdict(complete, table, conclusions, explored_by),
        *_of_cost(records, complete, table, explored_by),
        *_of_settings(complete, table),
        *_over_time(complete, table, ended),
        *_failures(records),
    ]


def _of_verdict(
    complete: Sequence[Result], table: Table, conclusions: Conclusions, explored_by: int | None
) -> Iterator[Picture]:
    depths = conclusions.depths
    one_depth = len({depth.group.freeze_depth for depth in depths}) == 1
    title = _title(table)
    interval = _interval(conclusions)

    several_strategies = any(strategy_in(table, depth.group) for depth in depths)  # which have no place on one line
    if (one_depth or several_strategies) and len(depths) > 1:
        yield Picture(
            "configurations",
            f"{title} of the best configurations",
            f"Points are trials; a mark is the mean of a configuration's seeds, the best on top{interval}.",
            configurations_figure(table, complete, depths),
        )
    else:
        yield Picture(
            "depth",
            f"{title} against freeze depth",
            _of_curves(table, interval),
            depth_figure(table, complete, depths, explored_by),
        )

    if len(windows_of(complete)) > 1:
        note = "The best configuration of each window of units that trains, with the head; all else is frozen."
        yield Picture("windows", f"{title} by window", note, windows_figure(complete, table))

    if conclusions.judged and len(depths) > 1:
        best = next(depth.name for depth in depths if depth.standing == "best")
        holds = "new seeds and new images" if conclusions.by_image else "new seeds"
        yield Picture(
            "lead",
            f"Lead of {best} over the others",
            f"Thick: the 95 % interval of each lead alone, for {holds}. The tick is the bound that decides, with 95 % "
            "for all together: right of zero, the other is worse; in the shaded margin, it may be better by no more "
            "than that; left of it, nothing is decided.",
            lead_figure(depths, table.objective),
        )


def _of_curves(table: Table, interval: str) -> str:
    if table.networks:
        return (
            f"Points are trials; a line joins the best configuration of each depth of one network{interval}. "
            "Its trials have its colour, and a mark says how a depth stands against the best of all. At each depth "
            "the networks lie side by side."
        )
    return (
        f"Points are trials; the line joins the best configuration of each depth{interval}. Above: share of "
        "the parameters, and of the forward pass at 224 px, that is frozen."
    )


def _title(table: Table) -> str:
    """`Accuracy`, or the name of what the sweep optimises."""
    return "Accuracy" if table.objective == ACCURACY else table.objective.name


def _interval(conclusions: Conclusions) -> str:
    """What a caption says of the intervals of accuracies; nothing where there are none."""
    if all(depth.half_width is None for depth in conclusions.depths):
        return ""
    if conclusions.judged and conclusions.by_image:
        return ", with the 95 % interval of its mean for new seeds and new images"
    return ", with the 95 % interval of its mean over seeds"


def _of_cost(
    records: Sequence[Result], complete: Sequence[Result], table: Table, explored_by: int | None
) -> Iterator[Picture]:
    yield Picture(
        "time",
        f"{_title(table)} against cost",
        "The line is the Pareto front: no trial is both faster and better.",
        pareto_figure(complete, table),
    )
    if explored_by is not None or "pruned" in table.counts:
        yield Picture(
            "spent",
            "Where the trials went",
            "The time that the trials of each depth took; the numbers in the bars count them.",
            spent_figure(spent(records, table)),
        )


def _of_settings(complete: Sequence[Result], table: Table) -> Iterator[Picture]:
    if not {"optim.lr", "optim.head_lr", "optim.layer_decay"}.isdisjoint(table.swept):
        note = f"Mean {table.objective.words} of each cell's trials."
        yield Picture("rates", "Learning rate × depth", note, rates_figure(complete, table))

    yield Picture(
        "parallel",
        "All settings at once",
        "A line is a trial, bright where it is accurate; hover to see which.",
        parallel_figure(complete, table),
    )
    deciding = importance_figure(complete, table)
    if deciding is not None:
        yield Picture(
            "importance",
            "What decides",
            "Optuna's PED-ANOVA: how much a setting decides if a trial is a good one.",
            deciding,
        )


def _over_time(complete: Sequence[Result], table: Table, ended: Mapping[str, float]) -> Iterator[Picture]:
    if any(len(record.history) > 1 for record in complete):
        yield Picture(
            "curves",
            "Learning curves",
            "The best configuration of each depth, every seed; other trials in grey.",
            curves_figure(complete, table),
        )
    if ended:
        figure = order_figure(complete, table, ended)
        yield Picture("trials", "Trials over time", "The line is the best so far.", figure)


def _failures(records: Sequence[Result]) -> Iterator[Picture]:
    failed = [record for record in records if record.status == "failed"]
    # "… became nan in epoch 3": one reason, whichever epoch it was
    reasons = Counter(record.reason.partition(" in epoch")[0][:70] or "no reason" for record in failed)
    if reasons:
        figure = bars(dict(reasons.most_common(_REASONS)), "trials", ORANGE, "d")
        yield Picture("failures", "Failures by reason", "The reasons in full are in the trials' records.", figure)
