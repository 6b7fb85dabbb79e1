"""The picture for a slide is what the records say."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from finetune.records.ranking import Objective
from finetune.records.result import Result
from finetune.report.figures.depth import beside
from finetune.report.png import depth_picture, write_png
from finetune.report.standing import compare_depths
from finetune.report.table import tabulate
from tests.report.figures.test_main import EXPLORED
from tests.report.test_table import record

SWEEP = [
    replace(record(depth, 0.5 + depth / 100 + seed / 50, seed), config={"model.backbone": "resnet50"})
    for depth in (0, 4, 11)
    for seed in (0, 1, 2)
]


def test_trials_are_points_and_the_best_of_each_depth_a_line_with_its_intervals() -> None:
    table = tabulate(SWEEP)
    (axes,) = depth_picture(SWEEP, table, "mine").axes
    points, bars = axes.collections
    left = beside([0, 11])  # or the intervals would hide them
    assert points.get_offsets().tolist() == [[(r.freeze_depth or 0) - left, r.val_acc_best] for r in SWEEP]
    line = axes.lines[0]
    assert line.get_xydata().tolist() == [[group.freeze_depth, group.mean] for group in table.best_per_depth]
    for segment, group in zip(bars.get_segments(), table.best_per_depth, strict=True):
        assert segment[:, 1].tolist() == pytest.approx([group.mean - group.half_width, group.mean + group.half_width])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0\nnothing", "4\nlayer1.2", "11\nlayer3.2"]
    assert axes.get_xlabel() == "freeze depth k (blocks)"
    assert axes.get_title(loc="left") == "mine"


def test_one_seed_has_no_interval() -> None:
    single = [r for r in SWEEP if r.seed == 0]
    figure = depth_picture(single, tabulate(single), "mine")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "trial",
        "the best",
        "too few seeds",
        "best configuration of each depth",
    ]


def test_marks_and_intervals_are_those_of_the_verdict() -> None:
    table = tabulate(EXPLORED, Objective(explored_by=0))
    figure = depth_picture(EXPLORED, table, "mine")
    (axes,) = figure.axes
    assert table.winner is not None
    depths = compare_depths(EXPLORED, table, table.winner).depths
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:2] == ["trial that explored", "repeat with a new seed"]
    assert texts[-1].endswith("95 % interval for new seeds and new images")
    for segment, depth in zip(axes.collections[2].get_segments(), depths, strict=True):
        assert depth.half_width is not None
        assert segment[1, 1] - segment[0, 1] == pytest.approx(2 * depth.half_width)
    marks = {line.get_marker(): line.get_xdata().tolist() for line in axes.lines if line.get_linestyle() == "None"}
    assert marks["*"] == [11]
    assert marks["v"] == [4]


@pytest.mark.parametrize("records", [[], [record(None, None, 0, "failed")]])
def test_a_picture_without_a_complete_trial_says_so(records: list[Result]) -> None:
    (axes,) = depth_picture(records, tabulate(records), "mine").axes
    assert [text.get_text() for text in axes.texts] == ["No trial is complete yet."]


@pytest.mark.parametrize("title", ["a $ and a $", "猫 <b> \\frac", "long " * 60])
def test_any_folder_has_a_picture_of_its_size(tmp_path: Path, title: str) -> None:
    write_png(tmp_path / "curve.png", SWEEP, tabulate(SWEEP), title)
    with Image.open(tmp_path / "curve.png") as image:
        assert (image.format, image.size) == ("PNG", (1600, 1000))


def test_matplotlib_is_imported_for_the_picture_alone_and_asks_for_no_screen() -> None:
    code = (
        "import sys, finetune.commands.report, finetune.report.page.page, finetune.report.png as png\n"
        "from finetune.report.table import tabulate\n"
        "assert 'matplotlib' not in sys.modules\n"
        "png.depth_picture([], tabulate([]), 'x')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent.parent)
