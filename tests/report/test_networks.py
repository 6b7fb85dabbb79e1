"""A sweep over several networks is one report: a contender is a network at a depth."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.commands.report import print_conclusions
from finetune.console import console
from finetune.records.ranking import Objective, configurations, depth_name
from finetune.records.result import Result
from finetune.report.bits import columns_of
from finetune.report.caveats import caveats
from finetune.report.compare import compare, conclusions
from finetune.report.figures.depth import beside, depth_figure, places
from finetune.report.figures.main import pictures
from finetune.report.figures.settings import importance_figure, parallel_figure, rates_figure
from finetune.report.figures.trials import curves_figure, pareto_figure
from finetune.report.figures.verdict import spent as spent_by
from finetune.report.figures.verdict import spent_figure
from finetune.report.page.page import page
from finetune.report.png import depth_picture
from finetune.report.table import best_of_each, contender_of, tabulate
from finetune.report.verdict import conclude
from tests.report.figures.test_main import with_images
from tests.report.test_table import record

A, B = "resnet50", "timm/convnext_tiny"
MEANS = {(A, 0): 0.50, (A, 0.5): 0.80, (A, 1): 0.60, (B, 0): 0.55, (B, 0.5): 0.70, (B, 1): 0.90}
"""Half of A's blocks frozen is its best, of B's all."""
SECONDS = {A: 10.0, B: 20.0}


def trial(
    network: str, depth: float, accuracy: float, seed: int = 0, status: str = "complete", lr: float = 0.01
) -> Result:
    """A trial of a sweep over networks; each has weights of its own, and takes the images in its own way."""
    bare = record(None, accuracy, seed, status, model__backbone=network, optim__lr=lr)
    return replace(
        bare,
        key=f"{network}-{depth}-{seed}-{lr}",
        freeze_depth=depth,
        freeze_unit="share",
        params={**bare.params, "model.freeze_depth": depth},
        config={"model.backbone": network, "model.freeze_depth": depth, "model.freeze_unit": "share", "optim.lr": lr},
        input={"size": 224, "interpolation": "bilinear" if network == A else "bicubic"},
        seconds={"total": SECONDS[network] * (1.5 - depth)},
        history=[{"epoch": 0, "val/acc": accuracy / 2}, {"epoch": 1, "val/acc": accuracy}],
    )


def digested(records: Sequence[Result]) -> list[Result]:
    """The records with which images were right, and with digests as networks of different input leave them."""
    return [
        replace(r, digests={"split": "s", "dataset": r.input["interpolation"], "weights": r.config["model.backbone"]})
        for r in with_images(records)
    ]


SWEEP = digested(
    [
        *(trial(network, depth, mean) for (network, depth), mean in MEANS.items()),
        *(trial(network, depth, mean - 0.2, lr=0.1) for (network, depth), mean in MEANS.items()),
        *(
            trial(network, depth, MEANS[network, depth], seed)
            for network, depth in ((A, 0.5), (B, 1))
            for seed in (1, 2, 3)
        ),
    ]
)
TABLE = tabulate(SWEEP, Objective(explored_by=0))


def test_the_best_of_each_network_at_each_depth_is_compared_under_both_names() -> None:
    best = best_of_each(TABLE)
    assert list(best) == [f"{network} k={depth:g}" for network, depth in MEANS]
    assert all(group.params["optim.lr"] == 0.01 for group in best.values())
    assert [(group.network, group.freeze_depth) for group in best.values()] == list(MEANS)
    assert {contender_of(TABLE, each) for each in SWEEP} == set(best)
    assert TABLE.networks == (A, B)
    assert [TABLE.trials_at(group) for group in TABLE.best_per_depth] == [2, 5, 2, 2, 2, 5]


def test_trials_of_two_networks_that_are_alike_otherwise_are_no_repeats_of_each_other() -> None:
    """Also where the network was chosen by a group of settings, which no parameter tells."""
    alike = [replace(each, params={"model.freeze_depth": 0.5}) for each in SWEEP if each.freeze_depth == 0.5]
    for trials in configurations(alike):
        assert len({each.config["model.backbone"] for each in trials}) == 1


def test_weights_that_belong_to_each_network_are_no_setting_that_was_swept() -> None:
    own = [replace(r, params={**r.params, "model.weights": f"{r.config['model.backbone']}.pth"}) for r in SWEEP]
    assert tabulate(own).swept == ("optim.lr",)
    two = [replace(r, params={**r.params, "model.weights": f"{r.seed % 2}.pth"}) for r in SWEEP]
    assert tabulate(two).swept == ("model.weights", "optim.lr")


def test_one_network_alone_is_compared_by_its_depths() -> None:
    table = tabulate([each for each in SWEEP if each.config["model.backbone"] == A])
    assert list(best_of_each(table)) == [0, 0.5, 1]
    assert table.networks == ()
    assert table.name(table.best_per_depth[1]) == "k=0.5" == depth_name(("", 0.5))


def test_the_verdict_names_the_best_network_and_its_depth_and_the_best_of_each() -> None:
    found = conclude(SWEEP, TABLE)
    assert found.judged
    assert found.by_image, "other pixels of the same images: each network takes them in its own way"
    said = " ".join(found.sentences)
    assert f"Best: {B} freeze_depth=1 lr=0.01 with val/acc" in said
    assert f"Decided: take {B} k=1. Every other is worse:" in said
    assert f"The best trains the head alone ({B} k=1)." in said
    assert f"The best of each network: {B} k=1 " in said
    assert f"s a trial; {A} k=0.5 " in said
    assert "One freeze depth" not in said
    assert {depth.standing for depth in found.depths} == {"best", "worse"}


def test_the_head_alone_is_that_of_the_best_network() -> None:
    means = {**MEANS, (B, 0.5): 0.95}
    records = digested([trial(*where, mean, seed) for where, mean in means.items() for seed in (0, 1, 2)])
    said = " ".join(conclude(records, tabulate(records)).sentences)
    assert f"The head alone ({B} k=1) is " in said


def test_images_that_networks_take_in_the_same_way_must_be_the_same() -> None:
    assert columns_of([SWEEP], TABLE.objective) is not None
    other = replace(SWEEP[0], digests={**SWEEP[0].digests, "dataset": "other images"})
    assert columns_of([[*SWEEP, other]], TABLE.objective) is None


def test_there_is_no_caveat_on_comparing_networks_by_shares() -> None:
    assert not [
        sentence for sentence in caveats(SWEEP, TABLE, judged=True) if "network" in sentence or "different" in sentence
    ]


def test_each_network_has_a_curve_its_own_colour_and_a_place_in_the_legend() -> None:
    plot = depth_figure(TABLE, SWEEP, conclude(SWEEP, TABLE).depths, explored_by=0)
    curves = [trace for trace in plot.data if trace.mode == "lines" and trace.name in (A, B)]
    aside = places(TABLE, beside([0, 1]))
    assert [[x - aside[curve.name] for x in curve.x] for curve in curves] == [pytest.approx([0, 0.5, 1])] * 2
    assert aside[A] < 0 < aside[B], "their intervals lie side by side"
    means = [TABLE.mean_of(group) for group in TABLE.best_per_depth]
    assert [list(curve.y) for curve in curves] == [means[:3], means[3:]]
    assert len({(curve.line.color, curve.line.dash) for curve in curves}) == 2
    points = [trace for trace in plot.data if trace.name == "trial that explored"]
    assert [trace.marker.color for trace in points] == [curve.line.color for curve in curves]
    assert [trace.showlegend for trace in points] == [True, False]
    assert points[1].text[0].startswith(f"{B} k=0 ")
    assert list(plot.layout.xaxis.tickvals) == [0, 0.5, 1]


def test_accuracy_against_cost_tells_networks_apart_by_colour_and_mark() -> None:
    *networks, front = pareto_figure(SWEEP, TABLE).data
    assert [trace.name for trace in networks] == [A, B]
    assert len({(trace.marker.color, trace.marker.symbol) for trace in networks}) == 2
    assert sum(len(trace.x) for trace in networks) == len(SWEEP)
    assert (front.name, max(front.y)) == ("Pareto front", max(each.val_acc_best or 0 for each in SWEEP))


def test_every_other_picture_has_the_networks_name() -> None:
    spent = spent_figure(spent_by(SWEEP, TABLE))
    assert list(spent.layout.yaxis.categoryarray) == [f"{network} k={depth:g}" for network, depth in MEANS]
    (cells,) = rates_figure(SWEEP, TABLE).data
    assert len(cells.x) == len(MEANS)
    assert list(parallel_figure(SWEEP, TABLE).layout.xaxis.ticktext) == ["network", "k", "lr", "val/acc"]
    importance = importance_figure(SWEEP, TABLE)
    assert importance is not None
    assert "backbone" in importance.data[0].y
    assert f"{B} k=1" in {trace.name for trace in curves_figure(SWEEP, TABLE).data}
    found = {each.name: each for each in pictures(SWEEP, SWEEP, TABLE, conclude(SWEEP, TABLE), {})}
    assert found["lead"].title == f"Lead of {B} k=1 over the others"
    assert "one network" in found["depth"].note


def test_tables_have_a_column_of_networks_on_the_page_and_in_the_terminal(tmp_path: Path) -> None:
    text = page([tmp_path], SWEEP)
    assert text.count('<th class="text">network</th>') == 2
    assert f"<td class=text>{B}</td><td>1</td>" in text
    with console.capture() as said:
        print_conclusions([tmp_path], SWEEP)
    assert "network" in said.get()
    assert '<th class="text">network</th>' not in page(
        [tmp_path], [r for r in SWEEP if r.config["model.backbone"] == A]
    )


def test_the_picture_for_a_slide_has_a_line_a_network() -> None:
    (axes,) = depth_picture(SWEEP, TABLE, "mine").axes
    _, labels = axes.get_legend_handles_labels()
    assert [label.partition(":")[0] for label in labels if "best configuration" in label] == [A, B]


def test_two_sweeps_are_compared_network_by_network() -> None:
    rows = compare(SWEEP, SWEEP)
    assert [(row.network, row.freeze_depth) for row in rows] == list(MEANS)
    ours, theirs = ([r for r in SWEEP if r.config["model.backbone"] == name] for name in (A, B))
    assert [(row.network, row.freeze_depth) for row in compare(ours, theirs)] == [("", 0), ("", 0.5), ("", 1)]
    assert f"Best of x: {B} k=1" in next(conclusions(("x", "y"), SWEEP, SWEEP))


@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_a_share_stays_what_it_is(depth: float) -> None:
    (group,) = tabulate([trial(A, depth, 0.5)]).groups
    assert group.freeze_depth == depth
