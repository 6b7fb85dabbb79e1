"""What a GPU is given. Tensors on `meta` stand for its own here: they have no numbers, and fail beside others."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.compose import compose_config
from finetune.config import TRIALS_PER_GPU
from finetune.data import batches as datamodule
from finetune.data.augment import Augment, Preprocess
from finetune.data.batches import PixelData
from finetune.network.device import Precision
from finetune.network.head import build_head
from finetune.network.network import Network
from finetune.network.parts import SharedPrefix
from finetune.records.result import Result
from finetune.sharing import activations, plan
from finetune.sharing.activations import Source
from finetune.sharing.facts import Facts
from finetune.sharing.images import open_images
from finetune.sharing.requests import StoreRequest, requests_of
from finetune.storage.store import RowsInMemory, open_store
from finetune.sweep import run as run_module
from finetune.sweep.launch import LocalLauncher, Slot, local_slots
from finetune.sweep.prepare import Prepared, check_and_prepare, gpu_names
from finetune.sweep.run import run_sweep
from finetune.sweep.state import Options
from finetune.trial.module import FineTune
from tests.faults.invariants import spec_of
from tests.models import adamw

GPU = torch.device("meta")
STRONG = Augment(flip=0.5, min_area=0.3, rotate=10, color=0.4, erase=0.5)


def requests(fast: list[str], tmp_path: Path, device: torch.device, *more: str) -> list[StoreRequest]:
    words = ["model.freeze_depth=9", "cache.views=2", "augment=strong", f"cache.dir={tmp_path / 'c'}", *more]
    config = compose_config([*fast, *words])
    images, weights, cut = open_images(config, Facts())
    preprocess = Preprocess(weights.mean, weights.std, STRONG, config.cache.views)
    found = requests_of(config, images, weights, cut, preprocess)
    return [replace(request, precision=Precision(device)) for request in found]


def test_frozen_layers_are_on_the_device_when_they_run(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(prefix: SharedPrefix, *rest: Any) -> Any:
        seen.append({tensor.device for tensor in (*prefix.parameters(), *prefix.buffers())})
        raise torch.OutOfMemoryError

    monkeypatch.setattr(plan, "measure_costs", look)
    built = plan.build_stores(requests(fast, tmp_path, GPU))
    assert built.seconds == 0
    assert seen == [{GPU}]
    assert set(built.choices.values()) == {plan._NO_MEMORY}
    assert not plan._NO_MEMORY.used


def test_a_gpu_that_runs_full_between_two_stores_keeps_the_first(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(prefix: SharedPrefix, source: Source, *rest: Any) -> Any:
        if source.view == 1:
            raise torch.OutOfMemoryError
        return activations.build(prefix, source, *rest)

    monkeypatch.setattr(plan, "build", scarce)
    asked = requests(fast, tmp_path, torch.device("cpu"), "cache.mode=on")
    choices = plan.build_stores(asked).choices
    for request in asked:
        assert choices[request.key].used == (open_store(request.folder) is not None)
    assert sorted(choice.used for choice in choices.values()) == [False, False, True]


def test_small_batches_are_timed_on_a_gpu_beside_large_blocks(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []

    def seconds(prefix: Any, source: Source, precision: Precision, count: int) -> tuple[float, ...]:
        timed.append(count)
        return (0.0, 1.0)

    monkeypatch.setattr(activations, "_seconds_of_modules", seconds)
    source = requests(fast, tmp_path, GPU)[0].source
    costs = activations.measure_costs(SharedPrefix(), source, Precision(GPU, torch.bfloat16), tmp_path, 32)
    assert (timed, costs.in_batches) == ([256, 32], (0.0, 1.0))
    costs = activations.measure_costs(SharedPrefix(), source, Precision(torch.device("cpu")), tmp_path, 32)
    assert (timed[2:], costs.in_batches) == ([SharedPrefix.CHUNK], None)


def test_a_request_is_read_once_a_trial_where_a_gpu_keeps_it(fast: list[str], tmp_path: Path) -> None:
    train = [request for request in requests(fast, tmp_path, GPU) if request.source.split == "train"]
    assert [(request.passes, request.loads) for request in train] == [(1, 1), (1, 1)]
    val = [request for request in requests(fast, tmp_path, GPU) if request.source.split == "val"]
    assert [(request.passes, request.loads) for request in val] == [(2, 1)]


@pytest.mark.parametrize(("size", "block"), [(32, 256), (224, 256), (448, 64), (2048, 16)])
def test_large_images_are_computed_in_small_blocks(size: int, block: int) -> None:
    class Pixels:
        images = RowsInMemory(np.broadcast_to(np.uint8(0), (1000, size, size, 3)))

    source = Source("train", Pixels(), Preprocess((0.5,) * 3, (0.5,) * 3, STRONG), 0, None)  # type: ignore[arg-type]
    assert activations._block(source, Precision(GPU, torch.bfloat16)) == block


def test_images_are_augmented_where_the_network_is() -> None:
    preprocess = Preprocess((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), STRONG)
    draws = preprocess.draws(4, seed=0, view=0)
    assert draws is not None
    x = preprocess(torch.zeros(4, 8, 8, 3, dtype=torch.uint8, device=GPU), draws.to(GPU))
    assert (x.device, x.shape) == (GPU, (4, 3, 8, 8))


def test_training_and_validation_mix_no_devices() -> None:
    suffix = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    module = FineTune(Network(torch.nn.Identity(), suffix, build_head(3, [8], 10, 0.1)), adamw).to(GPU)
    batch = torch.zeros(4, 3, 8, 8, device=GPU), torch.zeros(4, dtype=torch.int64, device=GPU)
    module._losses.note = lambda loss: None  # type: ignore[method-assign]
    module.training_step(batch, 0).backward()
    module.validation_step(batch, 0)
    assert {parameter.grad.device for parameter in module.parameters() if parameter.grad is not None} == {GPU}


def test_pixels_go_to_the_device_in_blocks(fast: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images(compose_config(fast), Facts())[0].splits
    monkeypatch.setattr(datamodule, "_COPIED", 5 * images["train"].images.row_bytes)
    data = PixelData(images, Preprocess((0.5,) * 3, (0.5,) * 3, STRONG), 8, seed=0)
    data.keep_on(torch.device("cpu"), room=2**30)
    for split, store in images.items():
        assert torch.equal(data._resident[split][0], torch.from_numpy(store.images[:]))


def test_a_split_that_finds_no_room_after_all_is_loaded(fast: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(datamodule, "_copied_to", full)
    images = open_images(compose_config(fast), Facts())[0].splits
    data = PixelData(images, Preprocess((0.5,) * 3, (0.5,) * 3, STRONG), 8, seed=0)
    data.keep_on(GPU, room=2**30)
    assert data._resident == {}
    assert len(next(iter(data.val_dataloader()))[0]) == 8


@pytest.mark.parametrize(
    ("visible", "seen", "names"),
    [
        ("", ["cuda:0", "cuda:1"], ["0", "1"]),
        ("2, 3", ["cuda:0", "cuda:1"], ["2", "3"]),
        ("0,1,9", ["cuda:0", "cuda:1"], ["0", "1"]),
        ("MIG-a,MIG-b", ["cuda:0"], ["MIG-a", "MIG-b"]),
        ("MIG-a", [], []),
        ("", ["mps"], ["mps"]),
        ("0", ["mps"], ["mps"]),
        ("", [], []),
    ],
)
def test_gpus_have_the_names_that_trials_can_be_given(visible: str, seen: list[str], names: list[str]) -> None:
    assert list(gpu_names(visible, dict.fromkeys(seen, ""))) == names


def test_a_gpu_that_cannot_be_used_keeps_its_name() -> None:
    assert gpu_names("4,7", {"cuda:0": "full", "cuda:1": ""}) == {"4": "full", "7": ""}


@pytest.mark.slow
def test_trials_know_how_many_share_their_gpu(tmp_path: Path) -> None:
    slots = local_slots(["0", "2"], workers=3)
    assert [(slot.gpu, slot.sharing) for slot in slots] == [("0", 2), ("2", 1), ("0", 2)]
    launcher = LocalLauncher([Slot("0", 1, sharing=2)])
    (job,) = launcher.start([([f"data.root=${{oc.env:{TRIALS_PER_GPU}}}"], tmp_path / "a")])
    while job.exitcode is None:
        launcher.wait([job])
    assert "data.root=2 is not a folder" in (tmp_path / "a" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("accelerator", "asked", "used"),
    [
        ("auto", "3", ["3"]),
        pytest.param("auto", "all", ["2", "3"], marks=pytest.mark.slow),
        pytest.param("cpu", "all", [], marks=pytest.mark.slow),
    ],
)
def test_a_sweep_is_prepared_on_a_gpu_that_it_may_use(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: str, asked: str, used: list[str]
) -> None:
    given: list[list[str]] = []

    def prepare(configs: Any, stores: bool = True, show: Any = None, gpus: Sequence[str] = ()) -> Prepared:
        given.append(list(gpus))
        return check_and_prepare(configs, stores, show, gpus)

    monkeypatch.setattr(run_module, "check_and_prepare", prepare)
    monkeypatch.setattr(run_module, "usable_gpus", lambda: ("2", "3"))
    words = [*(word for word in small if not word.startswith("trainer.")), f"trainer.accelerator={accelerator}"]
    spec = spec_of(tmp_path, [*words, "trainer.epochs=1"], {"model.freeze_depth": {"values": [5]}})
    run_sweep(spec, tmp_path / "s", Options(gpus=asked))
    assert given == [used]


@pytest.mark.gpu
@pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="needs a GPU")
@pytest.mark.parametrize("depth", ["0", "9", "all"])
@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_a_trial_on_a_gpu_is_the_same_from_stores(images: Path, tmp_path: Path, precision: str, depth: str) -> None:
    found = {}
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    for mode in ("off", "on"):
        words = [
            "model=narrow_resnet50",
            f"data.root={images}",
            "data.size=32",
            "data.batch_size=8",
            "trainer.epochs=3",
        ]
        words += [f"model.freeze_depth={depth}", "augment=strong", "cache.views=2", "trainer.grad_clip=1"]
        words += ["trainer.accelerator=gpu", f"trainer.precision={precision}"]
        words += [f"cache.mode={mode}", f"out={tmp_path / mode}"]
        subprocess.run([sys.executable, "-m", "finetune.train", *words], env=environment, check=True)
        found[mode] = Result.load(tmp_path / mode)
    assert not found["on"].device.startswith("cpu")

    # a gradient that is rounded to 16 bits another way in the first epoch is another network in the third
    epochs, near = (3, 1e-3) if precision == "32" else (1, 5e-3)
    for off, on in list(zip(found["off"].history, found["on"].history, strict=True))[:epochs]:
        assert on["train/loss"] == pytest.approx(off["train/loss"], rel=near)


@pytest.mark.gpu
@pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="needs a GPU")
@pytest.mark.parametrize("depth", ["9", "14", "all"])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_trial_on_a_gpu_is_the_same_by_graphs(images: Path, tmp_path: Path, precision: str, depth: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    found, said = {}, {}
    for graphs in ("off", "auto"):
        words = ["model=narrow_resnet50", f"data.root={images}", "data.size=32", "data.batch_size=5"]
        words += [f"model.freeze_depth={depth}", "model.head.dropout=0.3", "cache.mode=on", "trainer.epochs=60"]
        words += ["trainer.accelerator=gpu", f"trainer.precision={precision}", "trainer.grad_clip=1"]
        words += [f"trainer.graphs={graphs}", f"out={tmp_path / graphs}"]
        command = [sys.executable, "-m", "finetune.train", *words]
        said[graphs] = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        found[graphs] = Result.load(tmp_path / graphs).history
    assert "CUDA graph" not in said["off"]
    assert "steps are taken as a CUDA graph" in said["auto"]  # else the line says why not
    if depth == "all":  # no kernel of a head adds in an order of its own
        assert found["auto"] == found["off"]
    else:
        assert found["auto"][1]["train/loss"] == pytest.approx(found["off"][1]["train/loss"], rel=5e-2)
