"""Trials, sweeps and predictions on a pretended GPU: nothing mixes places, and no step waits."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.compose import compose_config
from finetune.errors import Interrupted
from finetune.export.classifier import load_classifier
from finetune.export.predict import probabilities_of
from finetune.network.device import Precision
from finetune.records.layout import CHECKPOINT, LAST
from finetune.records.result import Result
from finetune.sweep.prepare import usable_gpus
from finetune.sweep.run import run_sweep
from finetune.trial.module import FineTune
from finetune.trial.run import train
from tests.faults.invariants import spec_of
from tests.forked import GPUS
from tests.models import random_weights, terminate_at
from tests.pretended_gpu import H100, PretendedGpu, pretended_gpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pretended_gpu() as one:
        yield one


class Steps:
    """What the GPU is given for each batch of training after the first."""

    def __init__(self, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch):
        self.marks: list[tuple[int, Counter[str]]] = []
        before = FineTune.on_train_batch_start

        def start(module: FineTune, batch: Any, index: int) -> None:
            self.marks.append((index, Counter(gpu.counts)))
            before(module, batch, index)

        monkeypatch.setattr(FineTune, "on_train_batch_start", start)

    def each(self, what: str) -> set[int]:
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return {later[what] - earlier[what] for (i, earlier), (j, later) in pairs if 0 < i < j}


def on_gpu(words: list[str], out: Path, *more: str) -> Result:
    words = [*(word for word in words if "accelerator" not in word), *more, f"out={out}"]
    return train(compose_config(words), words)


@pytest.mark.parametrize(
    "settings",
    [
        ["augment=strong", "cache.mode=off", "trainer.precision=32"],
        ["augment=strong", "cache.mode=on", "cache.views=2"],
        pytest.param(["augment=strong", "cache.mode=off"], marks=pytest.mark.slow),
        pytest.param(["cache.mode=on", "trainer.precision=32"], marks=pytest.mark.slow),
    ],
)
def test_a_trial_waits_in_no_step(
    small: list[str], tmp_path: Path, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    steps = Steps(gpu, monkeypatch)
    more = ["trainer.save_every=1000", "trainer.grad_clip=1", "model.head.dropout=0.2", f"cache.dir={tmp_path / 'c'}"]
    result = on_gpu(small, tmp_path / "trial", *settings, *more)
    assert (result.status, result.device) == ("complete", H100)
    assert result.peak_memory_mb == pytest.approx(gpu.most_in_use / 2**20, abs=0.1)
    assert steps.each("waits") == {0}
    assert steps.each("kernels") != {0}


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "at_once", "kernels"), [(17, 2, 26), (14, 2, 125)])
def test_what_a_step_from_stores_asks_of_a_gpu(
    images: Path,
    tmp_path: Path,
    gpu: PretendedGpu,
    monkeypatch: pytest.MonkeyPatch,
    depth: int,
    at_once: int,
    kernels: int,
) -> None:
    """Short steps are taken several within one of Lightning's; here two, for its epoch to have four of those."""
    monkeypatch.setattr("finetune.trial.steps._MOST", 2)
    steps = Steps(gpu, monkeypatch)
    weights = random_weights("resnet50", tmp_path / "weights.pth")
    words = ["model=resnet50", f"model.weights={weights}", f"model.freeze_depth={depth}", "cache.mode=on"]
    words += ["trainer.save_every=1000"]
    words += [f"data.root={images}", "data.size=32", "data.batch_size=3", "trainer.epochs=1"]
    assert on_gpu(words, tmp_path / "trial").status == "complete"
    assert steps.each("waits") == {0}
    assert max(steps.each("kernels")) <= at_once * kernels


@pytest.mark.slow
def test_an_interrupted_trial_goes_on(
    small: list[str], tmp_path: Path, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["trainer.precision=32", "augment=strong", "trainer.save_every=0"]
    whole = on_gpu(small, tmp_path / "whole", *settings)
    terminate_at(2, monkeypatch)
    with pytest.raises(Interrupted):
        on_gpu(small, tmp_path / "stopped", *settings)
    assert (tmp_path / "stopped" / LAST).exists()
    again = on_gpu(small, tmp_path / "stopped", *settings)
    assert again.history == whole.history


@pytest.mark.slow
def test_memory_that_runs_out_in_training_is_taken_from_the_images(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    settings = ["model.freeze_depth=0", "cache.mode=off"]
    with pretended_gpu() as gpu:
        on_gpu(small, tmp_path / "roomy", *settings)
        with_images = gpu.most_in_use

    with pretended_gpu(memory=with_images - 1000):
        result = on_gpu(small, tmp_path / "scarce", *settings)
    assert (result.status, result.device) == ("complete", H100)
    assert "going on without images kept in it" in capsys.readouterr().err


@pytest.mark.slow
def test_predictions(small: list[str], images: Path, tmp_path: Path, gpu: PretendedGpu) -> None:
    on_gpu(small, tmp_path / "trial")
    files = sorted(images.rglob("*.png"))[:6]
    model = load_classifier(tmp_path / "trial" / CHECKPOINT)
    before = gpu.counts["copies"]
    there = [row for _, row in probabilities_of(model, files, device="cuda")]
    assert gpu.counts["copies"] > before
    here = [row for _, row in probabilities_of(load_classifier(tmp_path / "trial" / CHECKPOINT), files, device="cpu")]
    np.testing.assert_allclose(np.array(there), np.array(here), rtol=1e-5)


def test_a_trial_on_apples(small: list[str], tmp_path: Path) -> None:
    with pretended_gpu("mps") as gpu:
        assert Precision.of(compose_config([]).trainer) == Precision(torch.device("mps"))
        result = on_gpu(small, tmp_path / "trial", "augment=strong", "model.head.dropout=0.2", "trainer.grad_clip=1")
        assert gpu.most_in_use > 0
    assert (result.status, result.device) == ("complete", "Apple's GPU")


@pytest.mark.slow
def test_a_sweep_on_three_gpus(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv(GPUS, "3")
    assert usable_gpus() == ("0", "1", "2")

    words = [word for word in small if "accelerator" not in word]
    sweep = run_sweep(spec_of(tmp_path, words, {"model.freeze_depth": {"values": [0, 2, 4]}}), tmp_path / "s")
    assert [result.status for result in sweep.results] == ["complete"] * 3
    assert {result.device for result in sweep.results} == {H100}


@pytest.mark.slow
def test_the_benchmark_runs_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv(GPUS, "1")
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--json", str(tmp_path / "gpu.json")])
    import gpu as benchmark

    with pretended_gpu():
        benchmark.main()
    assert (tmp_path / "gpu.json").exists()
