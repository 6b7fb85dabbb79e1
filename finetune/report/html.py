"""The report as one self-contained HTML page. Imports no torch."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from finetune.durable import write_durably
from finetune.report.table import Group, Table, accuracy_text, label, tabulate, verdict
from finetune.result import Result

REPORT = "report.html"
_BLUE, _ORANGE = "#0072b2", "#d55e00"  # from Okabe and Ito's colour-blind safe palette
_PLOT = {"responsive": True, "displayModeBar": False}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #1b1b1b;
  background: #fff }}
h1 {{ font-size: 1.5rem }} table {{ border-collapse: collapse }} .wide {{ overflow-x: auto }}
th, td {{ padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }}
th:last-child, td:last-child {{ text-align: left }} tr.winner td {{ font-weight: 600 }}
</style></head><body>
<h1>{title}</h1>
<p>{verdict}</p>
{figure}
<div class="wide"><table><tr><th>freeze depth</th><th>trials</th><th>best val/acc</th><th>s a trial</th>
<th>with</th></tr>
{rows}
</table></div>
<p>{counts}. Points are trials; the line joins the best configuration of each depth; bars are 95 % intervals over
seeds.</p>
</body></html>
"""


def write_report(folder: Path, records: Sequence[Result]) -> Path:
    """Write `report.html` into `folder`: no script, font or image is fetched when it is opened. Returns its path."""
    table = tabulate(records)
    title = f"Validation accuracy against frozen depth: {folder.name}"
    path = folder / REPORT
    page = _PAGE.format(
        title=html.escape(title),
        verdict=html.escape(verdict(table)),
        figure=figure(table, records).to_html(full_html=False, include_plotlyjs=True, config=_PLOT),
        rows="\n".join(_rows(table)),
        counts=", ".join(f"{count} {status}" for status, count in table.counts.items()),
    )
    write_durably(path, page.encode())
    return path


def figure(table: Table, records: Sequence[Result]) -> go.Figure:
    """Validation accuracy against frozen depth: every trial a point, the best of each depth a line."""
    complete = [r for r in records if r.status == "complete" and r.val_acc_best is not None]
    best = table.best_per_depth
    widths = [group.half_width for group in best]
    units = sorted({r.freeze_unit for r in complete}) or ["block"]
    plot = go.Figure()
    plot.add_scatter(
        x=[r.freeze_depth for r in complete],
        y=[r.val_acc_best for r in complete],
        mode="markers",
        name="trial",
        marker={"color": _BLUE, "opacity": 0.55, "size": 8},
        text=[f"{label(r.params, table.swept)} seed={r.seed}" for r in complete],
        hovertemplate="k=%{x}<br>val/acc %{y:.4f}<br>%{text}<extra></extra>",
    )
    plot.add_scatter(
        x=[group.freeze_depth for group in best],
        y=[group.mean for group in best],
        mode="lines+markers",
        name="best per depth",
        line={"color": _ORANGE, "width": 3},
        marker={"size": 9, "symbol": "diamond"},
        error_y={"array": [w or 0 for w in widths], "visible": any(w is not None for w in widths)},
        text=[label(group.params, table.swept) for group in best],
        hovertemplate="k=%{x}<br>mean val/acc %{y:.4f}<br>%{text}<extra></extra>",
    )
    plot.update_layout(
        template="plotly_white",
        xaxis={"title": f"freeze depth k ({units[0]}s frozen, counted from the input)", **_ticks(best)},
        yaxis={"title": "best validation accuracy", "tickformat": ".0%"},
        legend={"orientation": "h", "y": 1.08},
        margin={"l": 60, "r": 20, "t": 30, "b": 55},
        height=480,
    )
    return plot


def _ticks(best: Sequence[Group]) -> dict[str, Any]:
    """Every depth of a backbone counted in blocks gets its number; the axis ends beside the outermost points."""
    depths = [group.freeze_depth for group in best]
    if not depths:
        return {}
    return {"range": [min(depths) - 0.5, max(depths) + 0.5]} | ({"dtick": 1} if max(depths) <= 20 else {})


def _rows(table: Table) -> list[str]:
    rows = []
    for group in table.best_per_depth:
        mark = ' class="winner"' if group == table.winner else ""
        trials = sum(len(g.accuracies) for g in table.groups if g.freeze_depth == group.freeze_depth)
        cells = (
            group.freeze_depth,
            trials,
            accuracy_text(group),
            f"{group.seconds:.1f}",
            label(group.params, table.swept),
        )
        rows.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>")
    return rows
