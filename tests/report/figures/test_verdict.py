"""The verdict's pictures: leads with the bound that decides them, and the time of trials by what they were for."""

import plotly.graph_objects as go
import pytest

from finetune.records.ranking import Objective
from finetune.report.figures.verdict import SPENT, lead_figure, spent, spent_figure
from finetune.report.judge import Comparison
from finetune.report.standing import Depth
from finetune.report.table import Group, tabulate
from tests.report.test_table import record


def depth(k: int, standing: str, comparison: Comparison | None = None, name: str = "") -> Depth:
    return Depth(name or f"k={k}", Group(k, {}, (0.5, 0.6), 1.0, (1, 2)), standing, comparison)


DEPTHS = [
    depth(0, "worse", Comparison(0.17, 0.06, 0.05, -0.08, "worse", 500)),
    depth(8, "images", Comparison(0.01, 0.03, -0.05, 0.04, "images", 900)),
    depth(11, "best"),
    depth(14, "within", Comparison(0.03, 0.02, -0.02, 0.01, "within", 500)),
    depth(17, "within", Comparison(0.05, 0.04, -0.01, -0.005, "within", 500)),
]


def rows(trace: go.Scatter) -> dict[str, float]:
    return dict(zip(trace.y, trace.x, strict=True))


def test_each_lead_has_its_interval_its_mark_and_the_bound_that_decides() -> None:
    plot = lead_figure(DEPTHS, Objective(margin=0.02))
    margin, bounds, *leads = plot.data
    assert (margin.name, margin.x) == ("margin", (None,))
    assert [(trace.name, trace.marker.symbol, rows(trace)) for trace in leads] == [
        ("not better by the margin", "diamond", {"k=14": pytest.approx(3), "k=17": pytest.approx(5)}),
        ("worse", "triangle-down", {"k=0": pytest.approx(17)}),
        ("too few images to tell", "square-open", {"k=8": pytest.approx(1)}),
    ]
    assert list(leads[0].error_x.array) == pytest.approx([2, 4])
    # the least lead of one that is worse; else minus what taking the best may lose, which is never less than nothing
    assert rows(bounds) == pytest.approx({"k=0": 5, "k=8": -4, "k=14": -1, "k=17": 0})
    assert list(plot.layout.yaxis.categoryarray) == ["k=0", "k=8", "k=14", "k=17"]
    assert plot.layout.xaxis.title.text == "lead of k=11 in points"


def test_the_margin_is_a_band_left_of_zero() -> None:
    band, zero = lead_figure(DEPTHS, Objective(margin=0.03)).layout.shapes
    assert (band.x0, band.x1) == (-3, 0)
    assert zero.x0 == zero.x1 == 0


def test_another_metric_is_drawn_in_its_own_unit() -> None:
    plot = lead_figure(DEPTHS, Objective("val/loss", "minimize", 0.02))
    assert plot.layout.xaxis.title.text == "lead of k=11 in val/loss"
    assert rows(plot.data[3]) == {"k=0": 0.17}


def test_configurations_are_named_by_their_settings() -> None:
    best, other = "head.hidden=[] lr=0.001 weight_decay=0.0001", "lr=<i>"
    plot = lead_figure([depth(4, "best", name=best), depth(4, "worse", DEPTHS[0].comparison, other)], Objective())
    assert rows(plot.data[2]) == {"lr=‹i›": pytest.approx(17)}
    assert plot.layout.xaxis.title.text == "lead of the best in points"


SWEEP = [
    record(4, 0.5),
    record(4, 0.3, status="pruned", optim__lr=1),
    record(11, 0.8),
    record(11, 0.8, 1),
    record(11, 0.8, 2),
    record(11, None, 3, "failed"),
    record(None, None, 3, "failed"),
]
"""Trials of 2 s, and a second more for each seed."""
BY_0 = Objective(explored_by=0)


def test_the_seconds_of_trials_are_kept_by_what_they_were_for() -> None:
    k4, k11 = ("", 4), ("", 11)
    assert spent(SWEEP, tabulate(SWEEP, BY_0)) == {
        "explored whole": {k4: [2], k11: [2]},
        "stopped or not started": {k4: [2]},
        "repeats with new seeds": {k11: [3, 4]},
        "failed or interrupted": {k11: [5]},
    }
    assert spent(SWEEP, tabulate(SWEEP))["explored whole"] == {k4: [2], k11: [2, 3, 4]}


def test_bars_are_stacked_by_depth_and_count_their_trials() -> None:
    plot = spent_figure(spent(SWEEP[:5], tabulate(SWEEP[:5], BY_0)))
    assert [trace.name for trace in plot.data] == list(SPENT)[:3]  # nothing failed
    repeats = plot.data[2]
    assert (list(repeats.y), list(repeats.x)) == (["k=4", "k=11"], [0, 7])
    assert list(repeats.text) == ["", "2"]
    assert list(repeats.customdata) == ["0 trials", "2 trials"]
    assert plot.layout.barmode == "stack"
    assert plot.layout.xaxis.title.text == "seconds of trial time"
    patterns = [trace.marker.pattern.shape for trace in plot.data]
    assert len(set(patterns)) == 3  # not by colour alone


@pytest.mark.parametrize(("seconds", "length", "unit"), [(600, 10, "minutes"), (36000, 10, "hours")])
def test_long_sweeps_are_told_in_larger_units(seconds: float, length: float, unit: str) -> None:
    plot = spent_figure({"explored whole": {("", 4): [seconds / 2] * 2, ("", 11): [1]}})
    assert plot.data[0].x[0] == pytest.approx(length)
    assert list(plot.data[0].text) == ["2", ""]  # no room for a number
    assert plot.layout.xaxis.title.text == f"{unit} of trial time"
