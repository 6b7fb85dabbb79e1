"""Rows 33 to 35 and 41 of the fault table: what a store and a trial are named by."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from finetune.compose import as_overrides, compose_config
from finetune.config import trial_key
from finetune.data import pixels
from finetune.network.backbone import build_backbone
from finetune.records.layout import LOG, RECORD
from finetune.records.result import Result
from finetune.sharing import activations
from finetune.sharing.facts import Facts
from finetune.sharing.images import open_images
from finetune.sharing.requests import preprocess_of, requests_of
from finetune.sweep.children import CONTEXT
from finetune.sweep.launch import LocalLauncher, Slot
from finetune.sweep.run import Options, run_sweep
from tests.faults.invariants import check_invariants, spec_of, terminal_records
from tests.network.test_backbone import scrambled


@pytest.mark.slow
def test_fault_33_two_sweeps_of_eight_processes_compute_each_key_once(
    tmp_path: Path, fast: list[str], arm: Callable[..., Path]
) -> None:
    cache = tmp_path / "cache"
    space = {"model.freeze_depth": {"values": [16, 17]}, "optim.lr": {"values": [0.01, 0.001]}}
    fixed = [*fast[:4], "trainer.accelerator=cpu", f"cache.dir={cache}", "cache.mode=on"]
    spec, folders = spec_of(tmp_path, fixed, space), (tmp_path / "a", tmp_path / "b")
    reached = arm()
    sweeps = [CONTEXT.Process(target=run_sweep, args=(spec, folder, Options(workers=4))) for folder in folders]
    for sweep in sweeps:
        sweep.start()
    for sweep in sweeps:
        sweep.join(120)
    assert [sweep.exitcode for sweep in sweeps] == [0, 0]
    passed = Counter(reached.read_text().splitlines())
    stores = [entry for kind in ("pixels", "activations") for entry in (cache / kind).iterdir() if entry.is_dir()]
    assert len(stores) == 2 + 2 * 2, "images of two splits, and their activations at two cuts"
    assert {store.name: passed[f"rename {store}"] for store in stores} == {store.name: 1 for store in stores}
    assert not list(cache.rglob("*.bad"))
    for folder in folders:
        assert len(terminal_records(folder)) == 4
        assert {Result.load(trial).status for trial in (folder / "trials").iterdir()} == {"complete"}
        check_invariants(folder, terminal_records(folder), cache)


@pytest.fixture
def named(tmp_path: Path, fast: list[str]) -> Callable[..., tuple[set[str], set[str]]]:
    """The names of a trial's pixel stores and of its activation stores, found anew at each call."""
    safetensors.torch.save_file(scrambled(build_backbone("narrow_resnet50")), tmp_path / "w.safetensors")
    base = [*fast, f"cache.dir={tmp_path / 'cache'}", f"model.weights={tmp_path / 'w.safetensors'}"]

    def names(*words: str) -> tuple[set[str], set[str]]:
        config = compose_config([*base, "model.freeze_depth=9", *words])
        images, weights, cut = open_images(config, Facts())
        requests = requests_of(config, images, weights, cut, preprocess_of(config, weights))
        return {store.digest for store in images.splits.values()}, {request.key for request in requests}

    return names


def test_fault_34_an_image_edited_with_size_and_mtime_kept_is_another_key(
    images: Path, named: Callable[..., tuple[set[str], set[str]]]
) -> None:
    before, again = named(), named()
    assert before == again
    assert list(map(len, before)) == [2, 2]
    for file in (images / "train" / "class0" / "0.png", images / "val" / "class2" / "3.png"):
        state = file.stat()
        Image.new("RGB", (40, 32), (1, 2, 3)).save(file, compress_level=0)
        data = file.read_bytes()
        file.write_bytes((data + bytes(state.st_size))[: max(len(data), state.st_size)])
        size = file.stat().st_size
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        first = named()
        Image.new("RGB", (40, 32), (3, 2, 1)).save(file, compress_level=0)
        file.write_bytes((file.read_bytes() + bytes(size))[:size])
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (size, state.st_mtime_ns)
        second = named()
        for old, new in zip(first, second, strict=True):
            assert len(old & new) == 1, "the other split keeps its store, and this one does not"


def test_fault_34_one_flipped_weight_is_another_key_where_it_lies_before_the_cut(
    tmp_path: Path, named: Callable[..., tuple[set[str], set[str]]]
) -> None:
    file, (pixels_before, before) = tmp_path / "w.safetensors", named()
    state = safetensors.torch.load_file(file)
    flipped = state["layer1.0.conv1.weight"].view(torch.int32)
    for part in (flipped, state["layer4.2.conv3.weight"].view(torch.int32)):
        part.view(-1)[5] ^= 1  # the last bit of one number
        stat = file.stat()
        safetensors.torch.save_file(state, file)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        pixels_after, after = named()
        assert pixels_after == pixels_before
        if part is flipped:
            assert not after & before
            flipped.view(-1)[5] ^= 1
        else:
            assert after == before, "what lies after the cut is not in the store"


@pytest.mark.parametrize(
    ("module", "name", "value", "decoded_anew"),
    [
        (pixels, "VERSION", 10**6, True),
        (pixels.PIL, "__version__", "0.0", True),
        (activations, "VERSION", 10**6, False),
        (torch, "__version__", "2.99.0", False),
    ],
)
def test_fault_34_another_version_of_code_or_library_is_another_key(
    named: Callable[..., tuple[set[str], set[str]]],
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    name: str,
    value: object,
    decoded_anew: bool,
) -> None:
    before = named()
    monkeypatch.setattr(module, name, value)
    after = named()
    assert (not before[0] & after[0]) == decoded_anew
    assert not before[1] & after[1]


@pytest.mark.parametrize("word", ["data.resize=crop", "data.interpolation=nearest", "data.size=40"])
def test_fault_34_another_transform_is_another_key(named: Callable[..., tuple[set[str], set[str]]], word: str) -> None:
    for old, new in zip(named(), named(word), strict=True):
        assert not old & new


@pytest.mark.parametrize("mode", ["auto", pytest.param("on", marks=pytest.mark.slow)])
def test_fault_35_random_images_without_a_count_of_views_are_not_stored_and_it_is_said(
    tmp_path: Path, fast: list[str], mode: str
) -> None:
    fixed = [*fast[:4], "trainer.accelerator=cpu", f"cache.mode={mode}", "augment=standard"]
    spec = spec_of(tmp_path, fixed, {"model.freeze_depth": {"values": [17]}})
    run_sweep(spec, tmp_path / "s", Options(workers=1))
    (trial,) = (tmp_path / "s" / "trials").iterdir()
    result = Result.load(trial)
    told = "augmented anew each epoch; cache.views=V would store V views"
    assert (result.status, result.cache["train"], result.cache["reason"]) == ("complete", "computed", told)
    assert f"activations: {told}" in (trial / LOG).read_text()
    check_invariants(tmp_path / "s", terminal_records(tmp_path / "s"))


@pytest.mark.slow
def test_fault_41_a_requeued_run_with_an_extra_argument_is_accepted_under_the_same_key(
    tmp_path: Path, fast: list[str]
) -> None:
    extra = ["_wandb={'desc': None, 'value': {'a,b': [1]}}", "_wandb=", "_wandb={}"]
    words = [*fast, "model.freeze_depth=17", "trainer.epochs=1"]
    for word in extra:
        assert as_overrides([*words, word]) == as_overrides(words)
        assert trial_key(compose_config([*words, word])) == trial_key(compose_config(words))
    places = [tmp_path / "first", tmp_path / "requeued"]
    launcher = LocalLauncher([Slot(None, 1), Slot(None, 1)])
    jobs = launcher.start([([*words, *more], place) for place, more in zip(places, ([], extra), strict=True)])
    while any(job.exitcode is None for job in jobs):
        launcher.wait(jobs)
    assert [job.exitcode for job in jobs] == [0, 0], (places[1] / LOG).read_text()
    first, requeued = map(Result.load, places)
    assert (first.key, first.status, first.history) == (requeued.key, requeued.status, requeued.history)
    assert not any("_wandb" in text for text in (requeued.params, requeued.config))
    assert (tmp_path / "requeued" / RECORD).is_file()
