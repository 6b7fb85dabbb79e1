"""GPUs that cannot be used, or have no memory: rows 55 and 56 of docs/reliability.md."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import gpu
from finetune.config import TRIALS_PER_GPU, TrainerConfig
from finetune.data.batches import PixelData
from finetune.errors import Refused
from finetune.gpu import find_gpu, is_out_of_memory, try_gpus
from finetune.network.device import Precision, device_named
from finetune.records.result import Result
from finetune.sharing import plan
from finetune.sweep import prepare as prepare_module
from finetune.sweep.launch import Slot, _run_trial
from finetune.sweep.prepare import Prepared, check_and_prepare
from finetune.visible_gpus import show_gpu, visible_gpus
from tests.faults.invariants import sweep_file
from tests.stub_driver import build_driver

OLD_DRIVER = RuntimeError(
    "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver by downloading"
)
AcceleratorError = getattr(torch, "AcceleratorError", RuntimeError)  # which it is in older releases
OLD_CARD = AcceleratorError("CUDA error: no kernel image is available for execution on the device\nCompile with")
FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
    AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18 GB, max allowed: 18.13 GB)."),
)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Call it with an error: this process has a GPU that answers with that."""

    def use(error: Exception, count: int = 1) -> None:
        def ones(*size: int, device: torch.device) -> torch.Tensor:
            raise error

        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(gpu.torch, "ones", ones)
        for known in (find_gpu, gpu._warn):
            known.cache_clear()

    for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "0")
    monkeypatch.delenv(TRIALS_PER_GPU, raising=False)
    yield use
    for known in (find_gpu, gpu._warn):
        known.cache_clear()


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OLD_DRIVER, "GPU 0 cannot be used: The NVIDIA driver on your system is too old (found version 12080)"),
        (OLD_CARD, "GPU 0 cannot be used: CUDA error: no kernel image is available for execution on the device"),
        *((full, "GPU 0 has no memory left: other programs hold it") for full in FULL),
    ],
)
def test_fault_55_a_gpu_that_cannot_be_used(
    broken: Any, capsys: pytest.CaptureFixture[str], error: Exception, why: str
) -> None:
    broken(error)
    for _ in range(2):
        assert Precision.of(TrainerConfig()) == Precision(torch.device("cpu"))
        assert device_named("auto") == torch.device("cpu")
    assert capsys.readouterr().err == f"warning: computing on the CPU, for {why}\n"
    assert visible_gpus() == ""  # nothing else stumbles over it

    with pytest.raises(Refused) as refusal:
        Precision.of(TrainerConfig(accelerator="gpu"))
    assert str(refusal.value) == f"trainer.accelerator=gpu, but {why}; set it to auto or cpu"
    with pytest.raises(Refused) as refusal:
        device_named("cuda")
    assert str(refusal.value) == f"cuda: {why}; give auto or cpu"


def test_whoever_asks_for_the_cpu_touches_no_gpu(broken: Any, capsys: pytest.CaptureFixture[str]) -> None:
    broken(AssertionError("it was touched"))
    assert Precision.of(TrainerConfig(accelerator="cpu")).device.type == device_named("cpu").type == "cpu"
    assert capsys.readouterr().err == ""


def test_a_trial_that_was_given_a_gpu_does_not_compute_elsewhere(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(FULL[1])
    monkeypatch.setenv(TRIALS_PER_GPU, "1")
    with pytest.raises(Refused, match="GPU 0 has no memory left: other programs hold it; it was given to this trial"):
        Precision.of(TrainerConfig())


def test_each_gpu_is_tried_by_itself(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(OLD_CARD, count=3)
    real, ones = torch.zeros, gpu.torch.ones
    monkeypatch.setattr(gpu.torch, "ones", lambda n, device: real(n) if device.index == 1 else ones(n, device=device))
    assert [trouble[:5] for trouble in try_gpus().values()] == ["GPU 0", "", "GPU 2"]


def test_what_memory_is_not() -> None:
    assert all(map(is_out_of_memory, FULL))
    assert not any(map(is_out_of_memory, (OLD_DRIVER, OLD_CARD, ValueError("out of memory"), OSError(28, "full"))))


@pytest.mark.parametrize("full", [FULL[1], pytest.param(FULL[2], marks=pytest.mark.slow)])
def test_fault_56_memory_that_is_missing_for_the_frozen_layers_ends_no_preparation(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: Exception
) -> None:
    from tests.test_gpu import requests

    def take(*_: Any) -> None:
        raise full

    monkeypatch.setattr(plan.SharedPrefix, "to", take)
    built = plan.build_stores(requests(fast, tmp_path, torch.device("cpu")))
    assert {choice.reason for choice in built.choices.values()} == {plan._NO_MEMORY.reason}


def test_fault_56_a_full_gpu_leaves_the_preparation_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def in_child(work: Any, configs: Any, stores: bool, name: str, precision: str, show: Any) -> Prepared:
        tried.append(name)
        return Prepared(name, (), (), (), out_of_memory=name != "2")

    monkeypatch.setattr(prepare_module, "in_child", in_child)
    assert check_and_prepare([], gpus=["0", "2", "3"]).shared == "2"
    assert check_and_prepare([], gpus=["0", "1"]).out_of_memory
    assert check_and_prepare([]).shared == ""
    assert tried == ["0", "2", "0", "1", ""]


def test_memory_that_training_lacks_is_taken_from_the_images(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the trial goes on from its last save, to the same record."""
    from finetune.compose import compose_config
    from finetune.trial import module as module_
    from finetune.trial.run import train

    settings = [*small, "trainer.save_every=0", "trainer.epochs=3"]
    expected = train(compose_config([*settings, f"out={tmp_path / 'roomy'}"]))
    steps = 0
    training_step = module_.FineTune.training_step

    def step(self: Any, *batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if self.trainer.datamodule.resident and steps == 5:
            raise FULL[0]
        return training_step(self, *batch)

    def keep(self: PixelData, stage: str) -> None:
        if self.on_gpu:
            self.keep_on(torch.device("cpu"), 2**30)

    monkeypatch.setattr(module_.FineTune, "training_step", step)
    monkeypatch.setattr(PixelData, "setup", keep)
    result = train(compose_config([*settings, f"out={tmp_path / 'scarce'}"]))
    said = capsys.readouterr()
    assert "warning: the GPU's memory ran out; going on without images kept in it" in said.err
    assert "going on in epoch 2 after batch 1" in said.out
    assert (result.status, result.history) == ("complete", expected.history)


@pytest.mark.parametrize("variables", [["CUDA_VISIBLE_DEVICES"], ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"]])
def test_a_gpu_is_named_to_cuda_and_to_rocm(monkeypatch: pytest.MonkeyPatch, variables: Sequence[str]) -> None:
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    for variable in variables:
        monkeypatch.setenv(variable, "0,1")
    show_gpu("1")
    assert visible_gpus() == "1"
    assert {name: value for name, value in os.environ.items() if name.endswith("VISIBLE_DEVICES")} == dict.fromkeys(
        variables, "1"
    )


@pytest.mark.parametrize(("slot", "seen"), [(Slot(None, 1), ""), (Slot("3", 1), "3")])
def test_a_trial_sees_the_gpu_of_its_slot_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slot: Slot, seen: str
) -> None:
    looked = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv(TRIALS_PER_GPU, "")  # put back as it was after the test
    monkeypatch.setattr("finetune.sweep.launch.end_with_parent", lambda: None)
    monkeypatch.setattr("finetune.sweep.launch.log_to", lambda file: None)
    monkeypatch.setattr("finetune.train.run_trial", lambda *_: looked.append(visible_gpus()))
    _run_trial([], tmp_path / "log", slot, {}, "", None)
    assert looked == [seen]


def _with_driver(folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"LD_LIBRARY_PATH": str(build_driver(folder)), "CUDA_VISIBLE_DEVICES": "0,1", "STUB_GPUS": "2"}
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        env={**os.environ, **variables, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"STUB_DRIVER": "12080"}, {"STUB_INIT": "2"}])
def test_fault_55_a_real_driver_that_is_too_old_or_finds_no_memory(
    small: list[str], tmp_path: Path, fault: dict[str, str]
) -> None:
    settings = [word for word in small if not word.startswith("trainer.accelerator")]
    why = "driver on your system is too old" if "STUB_DRIVER" in fault else "GPU 0 has no memory left"
    if torch.version.cuda is None or int(torch.version.cuda.split(".")[0]) < 13:
        pytest.skip("needs a PyTorch for CUDA 13, for which the driver is too old")

    file = sweep_file(tmp_path, {"model.freeze_depth": {"values": [3]}})
    words = ["sweep", file, "--no-repeats", "--out", tmp_path / "s", *settings, "trainer.epochs=1"]
    ended = _with_driver(tmp_path, "finetune.cli", *words, **fault)
    assert (ended.returncode, ended.stderr.count("warning: GPU 0")) == (0, 1), ended.stdout + ended.stderr
    assert why in ended.stderr
    (record,) = (tmp_path / "s").glob("trials/*/result.json")
    assert Result.load(record.parent).device.startswith("cpu")

    refused = _with_driver(tmp_path, "finetune.train", *settings, "trainer.accelerator=gpu", **fault)
    assert refused.returncode == 2
    assert why in refused.stderr
    assert "set it to auto or cpu" in refused.stderr
