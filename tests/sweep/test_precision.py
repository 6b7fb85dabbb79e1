"""What was measured becomes part of a sweep, once, and stays."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.errors import Refused
from finetune.records.layout import RECORD, SWEEP
from finetune.records.read import read_records
from finetune.storage import system
from finetune.sweep import estimate, precision
from finetune.sweep.cluster import ClusterLauncher, ClusterSettings
from finetune.sweep.launch import Slot
from finetune.sweep.precision import PRECISION, format_of_agents, with_measured_precision
from finetune.sweep.run import run_sweep
from finetune.sweep.spec import SweepSpec
from tests.models import finetune
from tests.sweep.conftest import Pretender, spec_of

RATES: dict[str, object] = {"optim.lr": {"values": [0.01, 0.001]}}
WORD = "trainer.precision=bf16"
Measure = Callable[[str], list[object]]


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """A processor with bf16 on which a format is faster; returns what was asked about."""

    def substitute(faster: str) -> list[object]:
        asked = list[object]()
        monkeypatch.setattr(precision, "processor_has_bf16", lambda: True)
        monkeypatch.setattr(
            precision, "in_child", lambda work, threads, question, trials: asked.append(trials) or faster
        )
        return asked

    return substitute


def test_the_faster_format_is_a_setting_of_the_sweep_where_nobody_chose_one(
    tmp_path: Path, fast: list[str], finds: Measure
) -> None:
    spec = spec_of(tmp_path, fast, RATES)
    asked = finds("bf16")
    assert with_measured_precision(spec, 0, 1).fixed == (*spec.fixed, WORD)
    ((_, count),) = asked[0]  # type: ignore[misc]
    assert count == 2
    for chosen in ("32", "bf16"):
        given = spec_of(tmp_path, [*fast, f"trainer.precision={chosen}"], RATES)
        assert with_measured_precision(given, 0, 1) == given
    swept = spec_of(tmp_path, fast, {"trainer.precision": {"values": ["32", "bf16"]}})
    assert with_measured_precision(swept, 0, 1) == swept
    assert len(asked) == 1
    finds("32")
    assert with_measured_precision(spec, 0, 1) == spec


def test_a_plan_reckons_with_the_format_that_the_sweep_would_have(
    tmp_path: Path, fast: list[str], finds: Measure, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spec_of(tmp_path, fast, RATES)
    reckoned = list[SweepSpec]()
    monkeypatch.setattr(estimate, "estimate_sweep", lambda spec, *_: reckoned.append(spec))
    for faster, found in (("bf16", WORD), ("32", "")):
        finds(faster)
        assert finetune(monkeypatch, "plan", tmp_path / "s.yaml", *fast) == 0
        said = capfd.readouterr().out
        assert (WORD in said, WORD in reckoned[-1].fixed) == (bool(found), bool(found))
        assert "store: pixels" in said


def test_without_bf16_in_the_processor_nothing_is_measured(
    tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "in_child", lambda *asked: pytest.fail("measured"))
    spec = spec_of(tmp_path, fast, RATES)
    assert with_measured_precision(spec, 0, 1) == spec


def test_a_sweep_keeps_it_wherever_it_goes_on(
    tmp_path: Path, fast: list[str], finds: Measure, pretended: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = spec_of(tmp_path, fast, RATES), tmp_path / "out"
    finds("bf16")
    run_sweep(spec, out)
    assert all(WORD in started for started in pretended.started)
    assert {record.config["trainer.precision"] for record in read_records(out)} == {"bf16"}
    assert json.loads((out / SWEEP).read_text())["measured"] == ["trainer.precision"]

    # on another machine, without bf16: its trials are there, and it is the same sweep
    monkeypatch.setattr(precision, "processor_has_bf16", lambda: False)
    pretended.started.clear()
    assert len(run_sweep(spec, out).finished) == 2
    assert pretended.started == []
    assert json.loads((out / SWEEP).read_text())["measured"] == ["trainer.precision"]
    with pytest.raises(Refused, match=r"trainer.precision was bf16 and would now be 32"):
        run_sweep(spec_of(tmp_path, [*fast, "trainer.precision=32"], RATES), out)


def test_a_sweep_that_was_begun_without_stays_as_it_is(
    tmp_path: Path, fast: list[str], finds: Measure, pretended: Pretender
) -> None:
    spec, out = spec_of(tmp_path, fast, RATES), tmp_path / "out"
    run_sweep(spec, out)
    before = (out / SWEEP).read_text()
    pretended.started.clear()
    assert finds("bf16") == []
    assert len(run_sweep(spec, out).finished) == 2
    assert pretended.started == []
    assert json.loads((out / SWEEP).read_text()) == json.loads(before)


@pytest.mark.parametrize(
    ("line", "most", "has"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile", "", True),
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile", "AVX512_CORE", False),
        ("flags\t\t: fpu avx2 avx512f", "", False),
        ("Features\t: fp asimd bf16", "", True),
    ],
)
def test_a_processor_says_what_it_can(line: str, most: str, has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    monkeypatch.setattr(Path, "read_text", lambda path: f"model name\t: Some: Chip\n{line}\n")
    assert system.processor_has_bf16() is has
    assert system.processor_name() == "Some: Chip"


WORDS = ["model.freeze_depth=3"]


def test_an_agent_takes_what_the_first_run_on_a_cpu_had_and_else_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [SimpleNamespace(config={}), SimpleNamespace(config={PRECISION: "auto"})]
    asked = list[object]()
    monkeypatch.setattr(precision, "runs_of", lambda entity, project, sweep: runs)
    monkeypatch.setattr(precision, "in_child", lambda work, *about: asked.append(about) or "32")
    assert format_of_agents(WORDS, "me/p/s", Slot(None, 2)) == "32"
    assert asked == [(2, "format_for", WORDS, "s")]
    runs += [SimpleNamespace(config={PRECISION: "bf16"}), SimpleNamespace(config={PRECISION: "32"})]
    assert format_of_agents(WORDS, "me/p/s", Slot(None, 2)) == "bf16"
    assert format_of_agents(WORDS, "me/p/s", Slot("0", 2)) == ""
    assert format_of_agents([WORD], "me/p/s", Slot(None, 2)) == ""
    assert len(asked) == 1


def test_an_agent_measures_where_the_server_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> list[object]:
        raise ValueError("no such project")

    monkeypatch.setattr(precision, "runs_of", fail)
    monkeypatch.setattr(precision, "in_child", lambda *about: "bf16")
    assert format_of_agents(WORDS, "me/p/s", Slot(None, 2)) == "bf16"


def test_a_child_is_asked_with_the_threads_of_a_trial(small: list[str], tmp_path: Path) -> None:
    words = [*small, f"cache.dir={tmp_path}"]
    assert precision.in_child(precision._ask, 2, "format_for", words, "s") == "32"  # the suite's processors lack bf16
    (file,) = (tmp_path / "precision").glob("sweep-*.json")
    assert json.loads(file.read_text())["trainer.precision"] == "32"
    with pytest.raises(Refused, match=r"seeed"):
        precision.in_child(precision._ask, 2, "format_for", ["seeed=1"], "s")


def test_jobs_of_a_cluster_share_a_decision_unless_some_ended_without(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    settings = ClusterSettings(cluster="local", parallel=1, minutes=1)
    file = tmp_path / "precision.json"
    assert ClusterLauncher(settings, tmp_path, {})._precision == file
    trial = tmp_path / "trials" / "a"
    trial.mkdir(parents=True)
    (trial / RECORD).touch()
    assert ClusterLauncher(settings, tmp_path, {})._precision is None
    file.touch()
    assert ClusterLauncher(settings, tmp_path, {})._precision == file
