"""bf16 is taken on a processor where it was measured to be faster, and slower nowhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.compose import compose_config
from finetune.config import Config
from finetune.network.device import Precision
from finetune.trial import precision
from finetune.trial.precision import faster_on_cpu, file_of_sweep, format_of
from finetune.trial.timing import UnitSeconds
from tests.pretended_gpu import pretended_gpu

FULL = (1.0, 1.0, 1.0, 1.0, 1.0, 0.1)
Half = Callable[..., list[str]]


@pytest.fixture
def kinds(small: list[str], tmp_path: Path) -> list[tuple[Config, int]]:
    words = [*small, f"cache.dir={tmp_path}/cache"]
    return [(compose_config([*words, f"model.freeze_depth={depth}"]), 4) for depth in (0, "all")]


@pytest.fixture
def bf16_takes(monkeypatch: pytest.MonkeyPatch) -> Half:
    """Set the shares of 32-bit's time that bf16 takes frozen and trained; returns which formats were timed."""

    def substitute(frozen: float, trained: float) -> list[str]:
        timed = list[str]()

        def time_units(name: str, size: int, batch: int, of: Precision, **how: Any) -> UnitSeconds:
            timed.append(of.name)
            shares = (frozen, trained) if of.has_16_bits else (1.0, 1.0)
            seconds = [tuple(share * second for second in FULL) for share in shares]
            return UnitSeconds(seconds[0], seconds[1], 0.1)

        monkeypatch.setattr(precision, "time_units", time_units)
        return timed

    return substitute


@pytest.mark.parametrize(
    ("frozen", "trained", "format_"),
    [
        (0.5, 0.5, "bf16"),
        (4.0, 4.0, "32"),
        (1.04, 0.6, "bf16"),  # at one depth within the noise, and at the other much faster
        (1.2, 0.5, "32"),  # together faster, but where all is frozen slower
        (0.95, 0.95, "32"),  # not worth it
    ],
)
def test_it_is_taken_where_it_is_faster_and_slower_at_no_depth(
    kinds: list[tuple[Config, int]], bf16_takes: Half, frozen: float, trained: float, format_: str
) -> None:
    bf16_takes(frozen, trained)
    assert faster_on_cpu(kinds) == format_


def test_it_is_timed_once_for_a_processor_and_a_network(
    kinds: list[tuple[Config, int]], bf16_takes: Half, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = bf16_takes(0.5, 0.5)
    assert faster_on_cpu(kinds) == faster_on_cpu(kinds[:1]) == "bf16"
    assert timed == ["cpu 32", "cpu bf16"]
    kept = [json.loads(file.read_text()) for file in (tmp_path / "cache" / "precision").glob("*.json")]
    assert {values["format"] for values in kept} == {"cpu 32", "cpu bf16"}
    assert all(values["processor"] for values in kept)

    monkeypatch.setattr(precision, "processor_name", lambda: "another")
    faster_on_cpu(kinds)
    assert len(timed) == 4


@pytest.fixture
def has_bf16(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    return lambda has: monkeypatch.setattr(precision, "processor_has_bf16", lambda: has)


@pytest.mark.parametrize(
    ("frozen", "trained", "format_"),
    [
        (0.5, 0.5, "bf16"),
        (1.2, 0.3, "32"),  # faster for this trial, and slower where more is frozen
        (4.0, 4.0, "32"),
    ],
)
def test_a_trial_alone_takes_what_is_faster_at_every_depth(
    kinds: list[tuple[Config, int]],
    bf16_takes: Half,
    has_bf16: Callable[[bool], None],
    frozen: float,
    trained: float,
    format_: str,
) -> None:
    has_bf16(True)
    timed = bf16_takes(frozen, trained)
    assert [format_of(config) for config, _ in kinds] == [format_] * 2
    assert timed == ["cpu 32", "cpu bf16"]


def test_nothing_is_measured_where_the_format_is_given_or_a_gpu_computes_or_the_processor_lacks_bf16(
    small: list[str], bf16_takes: Half, has_bf16: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = bf16_takes(0.5, 0.5)
    has_bf16(True)
    assert format_of(compose_config([*small, "trainer.precision=32"])) == ""
    has_bf16(False)
    assert format_of(compose_config(small)) == ""
    has_bf16(True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pretended_gpu():
        assert format_of(compose_config([*small, "trainer.accelerator=gpu"])) == ""
    assert timed == []


@pytest.mark.parametrize(("first_has", "decided"), [(True, "bf16"), (False, "32")])
def test_the_first_trial_of_a_sweep_decides_for_those_on_other_processors(
    kinds: list[tuple[Config, int]],
    bf16_takes: Half,
    has_bf16: Callable[[bool], None],
    tmp_path: Path,
    first_has: bool,
    decided: str,
) -> None:
    timed = bf16_takes(0.5, 0.5)
    (first, _), (second, _) = kinds
    file = file_of_sweep(first, "abc")
    assert file == file_of_sweep(second, "abc") != file_of_sweep(second, "abd")
    has_bf16(first_has)
    assert format_of(first, file) == decided
    measured = len(timed)
    has_bf16(not first_has)
    assert format_of(second, file) == decided
    assert len(timed) == measured

    file.write_text("damaged")
    assert format_of(second, file) == ("32" if first_has else "bf16")
