import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from finetune.report.html import REPORT, figure, write_report
from finetune.report.table import tabulate, verdict
from finetune.result import Result
from tests.test_table import record

SWEEP = [record(depth, 0.5 + depth / 100, seed, optim__lr=0.01) for depth in (4, 11, 17) for seed in (0, 1)]
SWEEP += [record(11, 0.9 + seed / 10, seed, optim__lr=0.02) for seed in (0, 1)]


class Page(HTMLParser):
    """The tags of a page with their attributes, the text of its table's rows, its style and the rest of its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = {"style": "", "script": "", "": ""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        last = self.tags[-1][0] if self.tags else ""
        self.text[last if last in self.text else ""] += data
        if last == "td" and data.strip():
            self.rows[-1].append(data)

    @property
    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}


def page_of(folder: Path, records: Sequence[Result] = SWEEP) -> Page:
    path = write_report(folder, records)
    assert path == folder / REPORT
    assert [entry.name for entry in folder.iterdir()] == [REPORT]
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_fetches_nothing_and_is_small_enough_to_mail(tmp_path: Path) -> None:
    page = page_of(tmp_path / "mine")
    for _, attributes in page.tags:
        assert not attributes.keys() & {"src", "href", "srcset", "data", "action", "background"}
    assert not page.names & {"link", "img", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"@import|url\(", page.text["style"])
    assert "Plotly.newPlot" in page.text["script"]
    assert (tmp_path / "mine" / REPORT).stat().st_size < 6_000_000


def test_the_page_names_the_winner_and_has_a_row_for_each_depth(tmp_path: Path) -> None:
    page = page_of(tmp_path / "mine")
    header, *rows = page.rows
    assert header == []
    assert rows == [
        ["4", "2", "0.540 ± 0.000", "2.5", "lr=0.01"],
        ["11", "4", "0.950 ± 0.635", "2.5", "lr=0.02"],
        ["17", "2", "0.670 ± 0.000", "2.5", "lr=0.01"],
    ]
    marked = [attributes.get("class") for tag, attributes in page.tags if tag == "tr"]
    assert marked == [None, None, "winner", None]
    best = "Best: freeze_depth=11 lr=0.02 with val/acc 0.950 ± 0.635, mean of 2 seeds with its 95 % interval."
    assert best in page.text[""]
    assert "Validation accuracy against frozen depth: mine" in page.text[""]
    assert "8 complete" in page.text[""]


HOSTILE = "</script><script>alert(1)</script><b>&amp;\"'{0}{title}"


def test_markup_in_names_and_parameters_stays_text(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "")
    plain = page_of(tmp_path / "plain")
    page = page_of(folder, [record(depth, 0.5, data__root=f"{HOSTILE}{depth}") for depth in (4, 17)])
    assert page.names == plain.names  # `b` is no tag of it
    assert len([tag for tag, _ in page.tags if tag == "script"]) == len([t for t, _ in plain.tags if t == "script"])
    assert page.rows[1][-1] == f"data.root={HOSTILE}4"
    assert f"against frozen depth: {folder.name}" in page.text[""]
    assert "alert(1)</script>" not in (folder / REPORT).read_text()


def test_one_seed_has_no_interval_to_tell() -> None:
    words = verdict(tabulate([record(17, 0.75)])).split()
    assert " ".join(words) == "Best: freeze_depth=17 with val/acc 0.750, one seed: no interval."


@pytest.mark.parametrize("records", [[], [record(None, None, 0, "failed"), record(4, None, 1, "interrupted")]])
def test_a_page_without_a_complete_trial_says_so(tmp_path: Path, records: list[Result]) -> None:
    page = page_of(tmp_path / "mine", records)
    assert "No trial is complete yet." in page.text[""]
    assert page.rows == [[]]
    assert ("1 failed, 1 interrupted" in page.text[""]) == bool(records)


def test_the_figure_shows_every_trial_and_joins_the_best_of_each_depth() -> None:
    trials, best = figure(tabulate(SWEEP), [*SWEEP, record(4, 0.99, 2, "failed")]).data
    expected = sorted((result.freeze_depth or 0, result.val_acc_best) for result in SWEEP)
    assert sorted(zip(trials.x, trials.y, strict=True)) == expected
    assert list(best.x) == [4, 11, 17]
    assert list(best.y) == pytest.approx([0.54, 0.95, 0.67])
    assert list(best.error_y.array) == pytest.approx([0, 0.05 * 12.7062, 0], rel=1e-4)
    assert best.error_y.visible


def test_the_figure_of_single_seeds_has_no_bars() -> None:
    records = [record(depth, 0.5) for depth in (4, 17)]
    assert not figure(tabulate(records), records).data[1].error_y.visible
