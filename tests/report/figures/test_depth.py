"""The main picture says what the table and the verdict say."""

from dataclasses import replace

import pytest

from finetune.records.result import Result
from finetune.report.figures.depth import beside, configurations_figure, depth_figure, span
from finetune.report.figures.verdict import MARKS
from finetune.report.standing import STANDINGS, Depth
from finetune.report.table import tabulate
from tests.report.test_table import record

SWEEP = [record(depth, 0.5 + depth / 100, seed, optim__lr=0.01) for depth in (4, 11, 17) for seed in (0, 1)]
SWEEP += [record(11, 0.9 + seed / 10, seed, optim__lr=0.02) for seed in (0, 1)]


def standing(records: list[Result], **standings: str) -> list[Depth]:
    """The best of each depth with these standings, and intervals of 3 points, 4 points, …"""
    best = tabulate(records).best_per_depth
    return [
        Depth(name, group, standings[name], half_width=0.03 + i / 100)
        for i, group in enumerate(best)
        for name in [f"k{group.freeze_depth}"]
    ]


def test_every_trial_is_a_point_and_the_best_of_each_depth_are_joined_with_their_intervals() -> None:
    depths = standing(SWEEP, k4="worse", k11="best", k17="within")
    trials, line, *_ = depth_figure(tabulate(SWEEP), SWEEP, depths).data
    places = sorted(zip((round(x + beside([4, 17]), 6) for x in trials.x), trials.y, strict=True))
    assert places == sorted((result.freeze_depth, result.val_acc_best) for result in SWEEP)
    assert trials.name == "trial"
    assert list(line.x) == [4, 11, 17]
    assert list(line.y) == pytest.approx([0.54, 0.95, 0.67])
    assert list(line.error_y.array) == pytest.approx([0.03, 0.04, 0.05])
    assert line.error_y.visible


def test_a_depth_has_the_mark_and_the_legend_of_its_standing() -> None:
    depths = standing(SWEEP, k4="worse", k11="best", k17="within")
    marks = depth_figure(tabulate(SWEEP), SWEEP, depths).data[2:]
    assert [(list(mark.x), mark.name, mark.marker.symbol) for mark in marks] == [
        ([11], "the best", "star"),
        ([17], "not better by the margin", "diamond"),
        ([4], "worse", "triangle-down"),
    ]
    undecided = standing(SWEEP, k4="images", k11="best", k17="open")
    marks = depth_figure(tabulate(SWEEP), SWEEP, undecided).data[2:]
    assert [mark.marker.symbol for mark in marks] == ["star", "square-open", "circle-open"]


def test_every_standing_has_a_shape_of_its_own() -> None:
    assert MARKS.keys() == STANDINGS.keys()
    assert len({mark.shape for mark in MARKS.values()}) == len(MARKS) == len({mark.letter for mark in MARKS.values()})


def test_repeats_are_told_from_the_trials_that_explored() -> None:
    depths = standing(SWEEP, k4="worse", k11="best", k17="within")
    explored, repeats = depth_figure(tabulate(SWEEP), SWEEP, depths, explored_by=0).data[:2]
    assert (explored.name, len(explored.x)) == ("trial that explored", 4)
    assert (repeats.name, len(repeats.x)) == ("repeat with a new seed", 4)
    assert explored.marker.symbol != repeats.marker.symbol
    assert "seed=1" in repeats.text[0]


def test_without_intervals_none_are_drawn() -> None:
    single = [r for r in SWEEP if r.seed == 0]
    depths = [replace(d, half_width=None) for d in standing(single, k4="few", k11="best", k17="few")]
    line = depth_figure(tabulate(single), single, depths).data[1]
    assert not line.error_y.visible


def test_the_axis_has_room_for_intervals_unless_they_are_wider_than_everything() -> None:
    (depth,) = standing([record(4, 0.6)], k4="best")
    table = tabulate([record(4, 0.6)])
    low, high = span([replace(depth, half_width=0.1)], [record(4, 0.6)], table)
    assert low < 0.5
    assert high > 0.7
    assert span([replace(depth, half_width=0.6)], [record(4, 0.6)], table) == pytest.approx([0.58, 0.62])


def test_the_axis_names_the_units_and_what_they_freeze() -> None:
    known = [replace(r, config={"model.backbone": "resnet50"}) for r in SWEEP]
    depths = standing(SWEEP, k4="worse", k11="best", k17="within")
    layout = depth_figure(tabulate(known), known, depths).layout
    assert layout.xaxis.ticktext == ("<b>4</b><br>layer1.2", "<b>11</b><br>layer3.2", "<b>17</b><br>layer4.2")
    assert layout.xaxis2.ticktext[1:] == ("22%<br>64%", "100%<br>100%")
    unknown = depth_figure(tabulate(SWEEP), SWEEP, depths).to_plotly_json()["layout"]
    assert "xaxis2" not in unknown
    assert "ticktext" not in unknown["xaxis"]


def test_configurations_are_rows_with_their_own_trials() -> None:
    records = [record(11, 0.5 + rate, seed, optim__lr=rate) for rate in (0.1, 0.2, 0.3) for seed in (0, 1)]
    table = tabulate(records)
    names = ("lr=0.3", "lr=0.2 and whatever else was <b>swept</b>")
    rows = [
        Depth(name, group, standing, half_width=0.02)
        for name, group, standing in zip(names, table.groups, ("best", "worse"), strict=False)
    ]
    plot = configurations_figure(table, records, rows)
    trials, best, worse = plot.data
    assert sorted(trials.x) == pytest.approx([0.7, 0.7, 0.8, 0.8])
    assert (list(best.y), list(best.x), best.marker.symbol) == (["lr=0.3"], [pytest.approx(0.8)], "star")
    assert list(worse.error_x.array) == [0.02]
    (name,) = worse.y
    assert "‹b›swept" in name
    assert max(map(len, name.split("<br>"))) <= 26  # a phone is 400 pixels wide
    assert list(plot.layout.yaxis.categoryarray) == ["lr=0.3", name]
