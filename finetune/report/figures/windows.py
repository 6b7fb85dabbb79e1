"""The picture of windows: what training some units alone comes to, by the first and the last of them."""

from collections.abc import Sequence

import plotly.graph_objects as go

from finetune.records.metric import sign_of
from finetune.records.result import Result
from finetune.report.figures.base import SCALE, empty_figure, share_format
from finetune.report.strategy import WINDOW
from finetune.report.table import Table, setting


def windows_of(complete: Sequence[Result]) -> dict[tuple[int, int], list[Result]]:
    """The trials of each window, by its first unit and the one after its last."""
    windows: dict[tuple[int, int], list[Result]] = {}
    for record in complete:
        window = setting(record, WINDOW)
        if window:
            windows.setdefault((int(window[0]), int(window[1])), []).append(record)
    return windows


def windows_figure(complete: Sequence[Result], table: Table) -> go.Figure:
    """The best configuration of each window, a triangle of starts and ends; its cell holds the mean over seeds."""
    windows = windows_of(complete)
    best: dict[tuple[int, int], float] = {}
    for group in sorted(table.groups, key=lambda group: group.rank):
        for window, records in windows.items():
            if group.keys[0] in {record.key for record in records}:
                best.setdefault(window, table.mean_of(group))

    starts = sorted({start for start, _ in windows})
    ends = sorted({end for _, end in windows})
    plot = empty_figure("first unit that trains", "last unit that trains")
    plot.add_heatmap(
        x=[str(start) for start in starts],
        y=[str(end - 1) for end in ends],
        z=[[best.get((start, end)) for start in starts] for end in ends],
        colorscale=SCALE,
        reversescale=sign_of(table.objective.metric) < 0,
        texttemplate="%{z:.3f}",
        hovertemplate=f"units %{{x}} to %{{y}}<br>mean {table.objective.name} %{{z:.4f}}<extra></extra>",
        hoverongaps=False,
        colorbar={"thickness": 12, "tickformat": share_format(table.objective)},
    )
    plot.update_layout(xaxis_type="category", yaxis={"type": "category", "tickformat": ""})
    return plot
