import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from finetune.compose import compose_config
from finetune.config import flat, trial_key
from finetune.records.layout import REPORT
from finetune.records.predictions import predictions_of
from finetune.records.repeat import repeat_command, repeat_overrides
from finetune.records.result import Result
from finetune.records.scores import Confusion
from finetune.report.figures.settings import rates_figure
from finetune.report.figures.trials import pareto_front
from finetune.report.page.page import SHOWN, write_report
from finetune.report.page.predictions import most_confused
from finetune.report.table import tabulate, winner_sentence
from tests.report.test_table import record

SWEEP = [record(depth, 0.5 + depth / 100, seed, optim__lr=0.01) for depth in (4, 11, 17) for seed in (0, 1)]
SWEEP += [record(11, 0.9 + seed / 10, seed, optim__lr=0.02) for seed in (0, 1)]


class Page(HTMLParser):
    """The tags of a page with their attributes, the rows of its table of depths, and its text by kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = {"style": "", "script": "", "": ""}
        self.table = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.table = dict(attrs).get("id") or ""
        if tag == "tr" and self.table == "depths":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        last = self.tags[-1][0] if self.tags else ""
        self.text[last if last in self.text else ""] += data
        if last in ("td", "span") and data.strip() and self.table == "depths":
            self.rows[-1].append(data)

    @property
    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}


def page_of(folder: Path, records: Sequence[Result] = SWEEP) -> Page:
    path = write_report(folder, records)
    assert path == folder / REPORT
    return Page(path.read_text(encoding="utf-8"))


def with_predictions(folder: Path) -> list[Result]:
    """Records of a sweep whose best trial left its predictions; two classes, one mistake."""
    classes = ["<b>cat", "dog"]
    records = [replace(r, classes=classes, config={"model.backbone": "resnet50"}) for r in SWEEP]
    best = max(records, key=lambda r: r.val_acc_best or 0)
    for r in records:
        r.save(folder / "trials" / r.key)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], np.float32)
    blank = np.full((3, 8, 8, 3), 200, np.uint8)
    paths = [folder / f"of_a-zoo_{i}.png" for i in range(3)]
    kept = predictions_of(probabilities, np.array([0, 1, 0]), paths, folder, lambda i: blank[i])
    kept.save(folder / "trials" / best.key)
    return records


def test_the_page_fetches_nothing_and_is_small_enough_to_mail(tmp_path: Path) -> None:
    page = page_of(tmp_path / "mine", with_predictions(tmp_path / "mine"))
    for tag, attributes in page.tags:
        assert not attributes.keys() & {"srcset", "data", "action", "background"}
        if "src" in attributes:
            assert tag == "img"
            assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
        assert str(attributes.get("href", "#")).startswith("#")
    assert not page.names & {"link", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"@import|url\(", page.text["style"])
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert (tmp_path / "mine" / REPORT).stat().st_size < 6_000_000


@pytest.mark.slow
def test_the_page_stays_small_with_many_trials(tmp_path: Path) -> None:
    config = flat(compose_config(["experiment=embedded"]))
    many = [
        replace(record(i % 18, 0.3 + i / 10000, i, optim__lr=0.01 + i / 1e6), key=f"{i:012x}", config=config)
        for i in range(2 * SHOWN)
    ]
    page = page_of(tmp_path / "mine", many)
    assert f"The {SHOWN} best of {2 * SHOWN} are shown." in page.text[""]
    assert (tmp_path / "mine" / REPORT).stat().st_size < 6_000_000


def test_the_page_names_the_winner_and_has_a_row_for_each_depth(tmp_path: Path) -> None:
    page = page_of(tmp_path / "mine")
    header, *rows = page.rows
    assert header == []
    assert rows == [
        ["4", "2", "0.540 ± 0.000", "2.5", "lr=0.01", "too few seeds"],
        ["11", "4", "0.950 ± 0.635", "2.5", "lr=0.02", "the best"],
        ["17", "2", "0.670 ± 0.000", "2.5", "lr=0.01", "too few seeds"],
    ]
    assert [tag for tag, _ in page.tags].count("span") >= len(rows), "a setting keeps to one line"
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "tr"].count("winner") == 1
    best = "Best: freeze_depth=11 lr=0.02 with val/acc 0.950 ± 0.635, mean of 2 seeds with its 95 % interval."
    assert best in page.text[""]
    assert "No verdict: fewer than 3 seeds say too little" in page.text[""]
    assert "Validation accuracy against freeze depth: mine" in page.text[""]
    assert "8 complete" in page.text[""]


def test_the_winner_is_shown_with_its_classes_and_mistakes(tmp_path: Path) -> None:
    text = page_of(tmp_path / "mine", with_predictions(tmp_path / "mine")).text[""]
    assert "the winning configuration, in its best epoch: 2 of 3 validation images right." in text
    assert "dog (70%), is <b>cat" in text
    assert "Expected calibration error" in text
    page = (tmp_path / "mine" / REPORT).read_text()
    assert "of_<wbr>a-<wbr>zoo_<wbr>2.<wbr>png" in page  # a long name breaks between its words
    (tmp_path / "other").mkdir()
    assert "winner's predictions" not in page_of(tmp_path / "other").text[""]


HOSTILE = "</script><script>alert(1)</script><b>&amp;\"'{0}{title}$title"


def test_markup_in_names_and_parameters_stays_text(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "")
    plain = page_of(tmp_path / "plain")
    page = page_of(folder, [record(depth, 0.5, data__root=f"{HOSTILE}{depth}") for depth in (4, 17)])
    assert page.names == plain.names  # `b` is no tag of it
    assert len([tag for tag, _ in page.tags if tag == "script"]) == len([t for t, _ in plain.tags if t == "script"])
    assert f"data.root={HOSTILE}4" in page.rows[1]
    assert f"against freeze depth: {folder.name}" in page.text[""]
    assert "alert(1)</script>" not in (folder / REPORT).read_text()


def test_one_seed_has_no_interval_to_tell() -> None:
    words = winner_sentence(tabulate([record(17, 0.75)])).split()
    assert " ".join(words) == "Best: freeze_depth=17 with val/acc 0.750, one seed: no interval."


@pytest.mark.parametrize("records", [[], [record(None, None, 0, "failed"), record(4, None, 1, "interrupted")]])
def test_a_page_without_a_complete_trial_says_so(tmp_path: Path, records: list[Result]) -> None:
    page = page_of(tmp_path / "mine", records)
    assert "No trial is complete yet." in page.text[""]
    assert page.rows == [[]]
    assert ("1 failed, 1 interrupted" in page.text[""]) == bool(records)


def test_a_learning_rate_that_was_no_override_has_its_cell() -> None:
    """Two sweeps in one report: one sweeps the rate, the other has the schema's."""
    swept = [record(4, 0.5, optim__lr=0.01), record(9, 0.7, optim__lr=0.01)]
    other = replace(record(4, 0.9), key="other", config={"optim.lr": 0.001})
    (cells,) = rates_figure([*swept, other], tabulate([*swept, other])).data
    assert list(cells.y) == ["0.001", "0.01"]
    assert [list(row) for row in cells.z] == [[0.9, None], [0.5, 0.7]]


def test_rates_of_its_own_have_rows_of_their_own() -> None:
    alike = record(4, 0.5, optim__lr=0.01)
    faster_head = record(4, 0.6, optim__lr=0.01, optim__head_lr=10.0)
    slower_units = record(9, 0.7, optim__lr=0.01, optim__head_lr=10.0, optim__layer_decay=0.7)
    records = [alike, faster_head, slower_units]
    (cells,) = rates_figure(records, tabulate(records)).data
    assert list(cells.y) == ["0.01", "0.01, head ×10", "0.01, head ×10, ×0.7 a unit"]
    assert [list(row) for row in cells.z] == [[0.5, None], [0.6, None], [None, 0.7]]


def test_many_learning_rates_are_put_into_bands_that_hold_every_trial() -> None:
    rates = np.geomspace(1e-5, 1e-1, 30)
    records = [record(4, 0.5, optim__lr=float(rate)) for rate in rates]
    (cells,) = rates_figure(records, tabulate(records)).data
    assert len(cells.y) == 8
    assert all(row == [0.5] for row in map(list, cells.z))


def with_many_classes(folder: Path, classes: int, trials: int) -> list[Result]:
    """A sweep whose best trial confuses everything with everything; names as long as a file's may be."""
    config = flat(compose_config(["experiment=embedded"]))
    rng = np.random.default_rng(0)
    epochs = [{"epoch": e, "val/acc": float(rng.random()), "train/acc": float(rng.random())} for e in range(20)]
    names = [f"<{i}>".ljust(250, "é") for i in range(classes)]
    records = [
        replace(
            record(i % 18, float(rng.random()), i, optim__lr=float(rng.random())),
            key=f"{i:012x}",
            config=config,
            history=epochs,
            classes=names,
        )
        for i in range(trials)
    ]
    best = max(records, key=lambda r: r.val_acc_best or 0)
    labels = np.repeat(np.arange(classes), 5)
    probabilities = np.zeros((len(labels), classes), np.float32)
    probabilities[np.arange(len(labels)), rng.integers(0, classes, len(labels))] = 1
    probabilities[0] = np.eye(classes, dtype=np.float32)[0]
    blank = rng.integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
    paths = [folder / f"{i}.png" for i in range(len(labels))]
    best.save(folder / "trials" / best.key)
    predictions_of(probabilities, labels, paths, folder, lambda i: blank[i]).save(folder / "trials" / best.key)
    return records


@pytest.mark.slow
def test_the_page_stays_small_with_many_classes(tmp_path: Path) -> None:
    classes = 2500
    records = with_many_classes(tmp_path / "mine", classes, trials=SHOWN + 1)
    page = page_of(tmp_path / "mine", records)
    assert (tmp_path / "mine" / REPORT).stat().st_size < 6_000_000
    assert f"of {classes} classes with the most frequent confusions." in page.text[""]
    assert f"The 500 of {classes} classes with the lowest recall." in page.text[""]
    assert "Confusions as a table, the 500 most frequent of" in page.text[""]
    assert "<é" not in (tmp_path / "mine" / REPORT).read_text()


def test_a_few_classes_are_all_shown(tmp_path: Path) -> None:
    page = page_of(tmp_path / "mine", with_many_classes(tmp_path / "mine", 40, trials=3))
    assert "most frequent confusions" not in page.text[""]
    page = page_of(tmp_path / "other", with_many_classes(tmp_path / "other", 41, trials=3))
    assert "of 41 classes with the most frequent confusions." in page.text[""]


def test_the_confusions_that_matter_are_in_the_picture() -> None:
    """60 classes; class 50 is often taken for 7, and 7 sometimes for 59; all else is right."""
    true = np.array([*range(60), *[50] * 9, *[7] * 4])
    predicted = np.array([*range(60), *[7] * 9, *[59] * 4])
    confusion = Confusion(tuple(f"c{i}" for i in range(60)), true, predicted)
    assert [(m.true, m.predicted, m.images) for m in confusion.mistakes] == [(50, 7, 9), (7, 59, 4)]
    shown = confusion.among(most_confused(confusion))
    assert shown.classes == ("c7", "c50", "c59")
    assert shown.counts.tolist() == [[1, 0, 4], [9, 1, 0], [0, 0, 1]]
    perfect = Confusion(confusion.classes, np.arange(60), np.arange(60))
    assert perfect.mistakes == []
    assert most_confused(perfect) == [0, 1]


def test_the_pareto_front_is_what_no_trial_beats() -> None:
    points = np.random.default_rng(0).uniform(size=(60, 2)).round(1)
    front = pareto_front([(float(c), float(v)) for c, v in points])
    beaten = {
        (c, v)
        for c, v in map(tuple, points.tolist())
        if any(c2 <= c and v2 >= v and (c2, v2) != (c, v) for c2, v2 in points.tolist())
    }
    assert set(front) == {tuple(point) for point in points.tolist()} - beaten


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=embedded", "model.freeze_depth=8", "optim.lr=0.01", "seed=2"],
        ["experiment=first_100", "data.root=/a b/'c'", "model.head.hidden=[64,32]"],
        ["data.root=x", "augment=strong", "trainer.patience=3", "optim=sgd"],
    ],
)
def test_the_command_of_a_trial_repeats_it(overrides: list[str]) -> None:
    config = compose_config(overrides)
    again = compose_config(repeat_overrides(flat(config)))
    assert trial_key(again) == trial_key(config)
    assert repeat_command(flat(config)).startswith("python -m finetune.train ")
