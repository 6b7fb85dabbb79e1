"""Sharing never changes a result."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.compose import compose_config
from finetune.config import Config, ModelConfig
from finetune.data.batches import as_tensor
from finetune.network.backbone import backbone_shapes, build_backbone
from finetune.network.device import Precision
from finetune.network.freeze import find_cut
from finetune.network.network import build_network
from finetune.network.parts import FrozenPrefix, SharedPrefix, split_at
from finetune.network.weights import load_state, read_weights
from finetune.records.result import Result
from finetune.sharing import plan
from finetune.sharing.activations import Source, build, measure_costs, row_shapes
from finetune.sharing.cost import Costs, Decision
from finetune.sharing.facts import Facts
from finetune.sharing.images import open_images
from finetune.sharing.prepare import Activations, open_activations, prepare
from finetune.sharing.requests import planned_stores, preprocess_of, requests_of
from finetune.storage import parallel
from finetune.storage.store import open_store
from finetune.trial.record import cache_account
from finetune.trial.run import train
from tests.network.test_backbone import scrambled

CPU = Precision(torch.device("cpu"))


def run(words: list[str], out: Path) -> Result:
    return train(compose_config([*words, f"out={out}"]), words)


def both(fast: list[str], tmp_path: Path, *words: str) -> tuple[Result, Result]:
    """The same trial computing everything, and from stores."""
    given = [*fast, f"cache.dir={tmp_path / 'cache'}", *words]
    return run([*given, "cache.mode=off"], tmp_path / "off"), run([*given, "cache.mode=on"], tmp_path / "on")


MORE_CUTS = [(1, "block"), (5, "block"), (9, "block"), (14, "block"), (40, "tensor"), (100, "tensor"), (29, "layer")]
CUTS = [
    (17, "block"),
    (3, "stage"),
    *(pytest.param(*cut, marks=pytest.mark.slow) for cut in MORE_CUTS),
]


@pytest.mark.parametrize(("depth", "unit"), CUTS)
def test_a_cached_run_equals_an_uncached_one_to_the_bit(fast: list[str], tmp_path: Path, depth: int, unit: str) -> None:
    words = [f"model.freeze_depth={depth}", f"model.freeze_unit={unit}", "data.batch_size=7", "model.head.dropout=0.3"]
    off, on = both(fast, tmp_path, *words)
    assert (off.cache["train"], off.cache["val"]) == ("computed", "computed")
    assert (on.cache["train"], on.cache["val"]) == ("stored", "stored")
    assert off.history == on.history
    assert off.key == on.key


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["model.rest=scratch", "data.batch_size=40", "optim=sgd"])
def test_other_trials_are_equal_too(fast: list[str], tmp_path: Path, extra: str) -> None:
    off, on = both(fast, tmp_path, "model.freeze_depth=4", extra)
    assert on.cache["train"] == "stored"
    assert off.history == on.history


@pytest.mark.slow
@pytest.mark.parametrize("depth", [4, 6, 8])  # units lie contiguous from the seventh on
def test_trials_are_equal_whatever_the_layout_at_the_cut(fast: list[str], tmp_path: Path, depth: int) -> None:
    torch.save(scrambled(build_backbone("resnet18")), tmp_path / "w.pth")
    words = [f"model.weights={tmp_path / 'w.pth'}", "model.backbone=resnet18", f"model.freeze_depth={depth}"]
    off, on = both(fast, tmp_path, *words)
    assert on.cache["train"] == "stored"
    assert off.history == on.history


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["augment=strong", "cache.views=1"]])
def test_bf16_is_equal_to_a_thousandth(fast: list[str], tmp_path: Path, more: list[str]) -> None:
    off, on = both(fast, tmp_path, "model.freeze_depth=9", "trainer.precision=bf16", *more)
    assert on.cache["train"] == "stored"
    for epoch, other in zip(off.history, on.history, strict=True):
        assert all(math.isclose(value, other[name], rel_tol=1e-3) for name, value in epoch.items())


@pytest.mark.slow
def test_fixed_views_are_equal_stored_and_drawn(fast: list[str], tmp_path: Path) -> None:
    words = ["model.freeze_depth=9", "augment=strong", "trainer.epochs=3"]
    off, on = both(fast, tmp_path, *words, "cache.views=2")
    assert (on.cache["train"], on.cache["views"]) == ("stored", 2)
    assert off.history == on.history
    fresh = run([*fast, *words, "cache.mode=off"], tmp_path / "fresh")
    assert fresh.history[:2] == off.history[:2]
    assert fresh.history[2] != off.history[2]
    assert fresh.key != off.key


@pytest.mark.slow
def test_without_views_random_images_are_computed_and_validation_is_stored(fast: list[str], tmp_path: Path) -> None:
    off, on = both(fast, tmp_path, "model.freeze_depth=9", "augment=standard")
    assert (on.cache["train"], on.cache["val"]) == ("computed", "stored")
    assert "cache.views=V" in on.cache["reason"]
    assert on.seconds["augment"] > 0
    assert off.history == on.history


@pytest.mark.parametrize(
    "words",
    [pytest.param(["model.freeze_depth=0"], marks=pytest.mark.slow), ["model.freeze_depth=5", "model.frozen_bn=stats"]],
)
def test_what_is_no_pure_function_is_not_stored(fast: list[str], tmp_path: Path, words: list[str]) -> None:
    _, on = both(fast, tmp_path, *words)
    assert on.cache["train"] == on.cache["val"] == "computed"
    assert on.cache["reason"] == "nothing before the cut is frozen for good"
    assert not (tmp_path / "cache" / "activations").exists()


@pytest.mark.parametrize("name", ["resnet18", "narrow_resnet50", "cnn5"])
def test_folding_stays_within_a_ten_thousandth(name: str) -> None:
    backbone = build_backbone(name)
    load_state(backbone, scrambled(backbone))
    prefix, _ = split_at(backbone, find_cut(backbone, "all", "block"))
    x = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected, found = prefix(x), SharedPrefix.of(prefix)(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in SharedPrefix.of(prefix).modules())


def test_an_image_has_the_same_activations_in_any_batch() -> None:
    prefix = shared_prefix(9)
    x = torch.randn(37, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = prefix(x)
    for chosen in ([0], [36, 2, 2], list(range(20)), list(range(36, -1, -1))):
        assert torch.equal(prefix(x[chosen]), whole[chosen])


def shared_prefix(depth: int | str) -> SharedPrefix:
    model, backbone = ModelConfig("narrow_resnet50", "SHAPES60_V1", depth), backbone_shapes("narrow_resnet50")
    cut = find_cut(backbone, depth, "block")
    network = build_network(model, read_weights(backbone, model.weights), cut, classes=3)
    assert isinstance(network.prefix, FrozenPrefix)
    return SharedPrefix.of(network.prefix)


def source(fast: list[str], split: str = "train") -> Source:
    config = compose_config(fast)
    images, weights, _ = open_images(config, Facts())
    return Source(split, images.splits[split], preprocess_of(config, weights), 0, None)


def opened(config: Config, facts: Facts) -> Activations:
    """The activations that a trial reads."""
    images, weights, cut = open_images(config, facts)
    return open_activations(cut, requests_of(config, images, weights, cut, preprocess_of(config, weights)), facts)


@pytest.fixture
def folded(fast: list[str], tmp_path: Path) -> list[str]:
    """Overrides of trials on five folds."""
    flat = tmp_path / "images" / "train"
    return [*fast, f"data.root={flat}", "data.folds=4", f"cache.dir={tmp_path / 'cache'}", "cache.mode=on"]


@pytest.mark.parametrize(
    "augment", [[], pytest.param(["augment=strong", "cache.views=1"], marks=pytest.mark.slow)], ids=["", "augmented"]
)
def test_folds_share_their_stores_and_come_out_as_without(
    folded: list[str], tmp_path: Path, augment: list[str]
) -> None:
    words = [*folded, "model.freeze_depth=17", *augment]
    for fold in (0, 3):
        given = [*words, f"data.fold={fold}"]
        plain, stored = run([*given, "cache.mode=off"], tmp_path / "off"), run(given, tmp_path / f"on{fold}")
        assert (stored.history, stored.correct) == (plain.history, plain.correct)
        assert stored.val_images == 6
        shutil.rmtree(tmp_path / "off")

    stores = list((tmp_path / "cache" / "activations").iterdir())
    assert len([store for store in stores if store.is_dir()]) == 1 + len(augment) // 2
    assert len([store for store in (tmp_path / "cache" / "pixels").iterdir() if store.is_dir()]) == 1


def test_a_sweep_prepares_folds_once_and_their_trials_find_them(folded: list[str]) -> None:
    configs = [compose_config([*folded, "model.freeze_depth=17", f"data.fold={fold}"]) for fold in range(4)]
    facts = Facts.from_text(prepare([(config, 1) for config in configs], stores=True).to_text())
    assert len(facts.stores) == 1
    for config in configs:
        images, _, _ = open_images(config, facts)
        afresh, _, _ = open_images(config, Facts())
        activations = opened(config, facts)
        assert activations.seconds == 0
        for split, pixels in afresh.splits.items():
            assert images.splits[split].labels.tolist() == pixels.labels.tolist()
            assert images.splits[split].images[:].tobytes() == pixels.images[:].tobytes()
            assert len(activations.rows[split][0]) == len(pixels.labels)
    assert planned_stores(configs[:1]) == planned_stores(configs)


def test_one_pass_stores_what_each_cut_would_have_stored_alone(fast: list[str], tmp_path: Path) -> None:
    images, prefix = source(fast), shared_prefix("all")
    costs = measure_costs(prefix, images, CPU, tmp_path)
    at = (1, 5, 9, 14, 18)
    together, _ = build(prefix, images, {i: tmp_path / f"together{i}" for i in at}, CPU, costs)
    x = images.images(slice(None), None, CPU.device)
    for i in at:
        alone = build(prefix, images, {i: tmp_path / f"alone{i}"}, CPU, costs)[0][i]
        assert alone.rows[:].tobytes() == together[i].rows[:].tobytes()
        stored = as_tensor(alone.rows, slice(None))
        expected = prefix.activations(x, [i])[0]
        assert torch.equal(stored.permute(0, 3, 1, 2) if stored.ndim == 4 else stored, expected)
        shape, dtype = row_shapes(prefix, images, [i], CPU)[i]
        assert (alone.rows.shape[1:], alone.rows.dtype) == (shape, dtype)
    assert together[18].rows.row_bytes == 512 * 4, "pooled features"


def test_an_interrupted_build_is_continued_and_a_full_disk_leaves_nothing(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, prefix = source(fast), shared_prefix(9)
    costs = measure_costs(prefix, images, CPU, tmp_path)
    monkeypatch.setattr("finetune.sharing.activations._BLOCK", 16)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(prefix, images, {9: tmp_path / "a", 5: tmp_path / "b"}, CPU, costs, interrupt)
    seen: list[int] = []
    continued, _ = build(
        prefix, images, {9: tmp_path / "a", 5: tmp_path / "b"}, CPU, costs, lambda done, total: seen.append(done)
    )
    assert seen == [24], "the first 16 of 24 images were there"
    fresh, seconds = build(prefix, images, {9: tmp_path / "c"}, CPU, costs)
    assert seconds > 0
    assert build(prefix, images, {9: tmp_path / "c"}, CPU, costs)[1] == 0, "nothing was computed again"
    assert continued[9].rows[:].tobytes() == fresh[9].rows[:].tobytes()

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("finetune.storage.store.StoreBuilder.append", full)
    with pytest.raises(OSError, match="No space left"):
        build(prefix, images, {9: tmp_path / "d"}, CPU, costs)
    assert not list(tmp_path.glob("d*/*"))


def test_blocks_wait_one_at_a_time_where_memory_is_short(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, prefix = source(fast), shared_prefix(9)
    costs = measure_costs(prefix, images, CPU, tmp_path)
    usual, _ = build(prefix, images, {9: tmp_path / "a"}, CPU, costs)
    allowed = []

    def in_order(*given: Any) -> Any:
        allowed.append(given[-1])
        return parallel.in_order(*given)

    monkeypatch.setattr("finetune.sharing.activations._BLOCK", 16)
    monkeypatch.setattr("finetune.sharing.activations.free_memory", lambda: 1.0)
    monkeypatch.setattr("finetune.sharing.activations.in_order", in_order)
    short, _ = build(prefix, images, {9: tmp_path / "b"}, CPU, costs)
    assert allowed == [1]
    assert short[9].rows[:].tobytes() == usual[9].rows[:].tobytes()


@pytest.mark.slow
def test_all_views_are_stored_or_none(fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*fast, f"cache.dir={tmp_path / 'cache'}", "augment=standard", "cache.views=2", "trainer.epochs=3"]
    asked = []

    def pays(costs: Costs, modules: int, row_bytes: int, rows: int, passes: float, reads: float) -> Decision:
        asked.append((rows, passes))
        return Decision(True, "it does")

    monkeypatch.setattr("finetune.sharing.plan.decide", pays)
    planned = planned_stores([compose_config([*words, "model.freeze_depth=9"])])
    (_, pixels), (_, activations) = planned.items()
    view = activations * 24 // (2 * 24 + 12)
    for limit, stored in (
        (pixels + activations + 100_000, {"train", "val"}),
        (pixels + activations - view // 2, {"val"}),
    ):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        asked.clear()
        given = opened(compose_config([*words, "model.freeze_depth=9", f"cache.max_gb={limit / 1e9:.9f}"]), Facts())
        assert sorted(asked) == [(12, 3.0), (48, 1.5)]
        assert set(given.rows) == stored
        views = len(list((tmp_path / "cache" / "activations").glob("*/manifest.json")))
        assert views == (3 if "train" in stored else 1)
        assert ("it does" if "train" in stored else "do not fit into cache.max_gb") in given.reason


def test_a_cache_that_cannot_be_made_is_done_without(fast: list[str], tmp_path: Path) -> None:
    words = [*fast, "cache.dir=/proc/no/cache", "cache.mode=on", "model.freeze_depth=9", f"out={tmp_path / 'r'}"]
    result = train(compose_config(words), words)
    assert result.status == "complete"
    assert result.cache["train"] == "computed"
    assert "could not be written" in result.cache["reason"]


def test_what_is_saved_is_told_of_the_epochs_that_ran(fast: list[str], tmp_path: Path) -> None:
    config = compose_config([*fast, f"cache.dir={tmp_path / 'cache'}", "cache.mode=on", "model.freeze_depth=9"])
    images, weights, _ = open_images(config, Facts())
    preprocess = preprocess_of(config, weights)
    activations = replace(opened(config, Facts()), saves={"train": 2.0, "val": 1.0, "test": 7.0}, seconds=4.0)
    told = [
        cache_account("on", images, activations, preprocess, epochs, tested)["saved_seconds"]
        for epochs, tested in ((0, False), (1, False), (3, False), (3, True))
    ]
    assert told == [0, 0, 5, 12]


@pytest.mark.slow
def test_a_trial_trains_on_when_its_store_cannot_be_written(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*fast, "model.freeze_depth=9", f"cache.dir={tmp_path / 'cache'}"]
    expected = run([*words, "cache.mode=off"], tmp_path / "off")

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(plan, "build", full)
    result = run([*words, "cache.mode=on"], tmp_path / "on")
    assert (
        result.cache["reason"]
        == "the frozen layers run anew in each epoch, for their store could not be written: No space left on device"
    )
    assert result.history == expected.history


def test_too_little_room_is_a_reason_not_to_store(fast: list[str], tmp_path: Path) -> None:
    words = [*fast, "model.freeze_depth=2", f"cache.dir={tmp_path / 'cache'}", "cache.mode=on", "cache.max_gb=0.0002"]
    result = run(words, tmp_path / "r")
    assert result.cache["train"] == "computed"
    assert "do not fit into cache.max_gb=0.0002" in result.cache["reason"]
    stores = (tmp_path / "cache").rglob("rows.bin")
    assert sum(file.stat().st_size for file in stores) <= 0.0002e9


@pytest.mark.slow
def test_a_store_is_named_by_everything_upstream_and_nothing_downstream(fast: list[str], tmp_path: Path) -> None:
    weights = scrambled(build_backbone("narrow_resnet50"))
    torch.save(weights, tmp_path / "w.pth")
    flipped = {name: value.clone() for name, value in weights.items()}
    flipped["layer1.0.conv1.weight"].view(-1)[0] += 1
    torch.save(flipped, tmp_path / "flipped.pth")
    late = {name: value.clone() for name, value in weights.items()}
    late["layer4.2.conv3.weight"].view(-1)[0] += 1
    torch.save(late, tmp_path / "late.pth")
    base = [*fast, f"cache.dir={tmp_path / 'cache'}", "model.freeze_depth=9", f"model.weights={tmp_path / 'w.pth'}"]

    def names(*words: str) -> set[str]:
        config = compose_config([*base, *words])
        images, weights, cut = open_images(config, Facts())
        requests = requests_of(config, images, weights, cut, preprocess_of(config, weights))
        return {request.key for request in requests}

    assert len(names()) == 2
    for same in (
        "optim.lr=0.5",
        "model.head.hidden=[7]",
        "seed=5",
        "data.batch_size=3",
        "model.rest=scratch",
        "model.freeze_unit=tensor model.freeze_depth=84",
        f"model.weights={tmp_path / 'late.pth'}",
    ):
        assert names(*same.split()) == names(), same
    for other in (
        "model.freeze_depth=8",
        "data.size=40",
        "data.resize=pad",
        "trainer.precision=bf16",
        f"model.weights={tmp_path / 'flipped.pth'}",
    ):
        assert not names(other) & names(), other
    assert names("augment=standard", "cache.views=1") != names("augment=strong", "cache.views=1")
    assert names("augment=standard", "cache.views=1") != names("augment=standard", "cache.views=1", "seed=1")
    assert names("augment=standard", "cache.views=1") < names("augment=standard", "cache.views=2")


def test_preparing_a_sweep_leaves_nothing_for_its_trials_to_look_up(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = [*fast, f"cache.dir={tmp_path / 'cache'}", "cache.mode=on"]
    configs = [compose_config([*base, f"model.freeze_depth={k}"]) for k in (0, 5, 17)]
    facts = prepare([(config, 2) for config in configs], stores=True)
    assert len(list((tmp_path / "cache" / "activations").glob("*/manifest.json"))) == 4

    weights = read_weights(backbone_shapes("narrow_resnet50"), "SHAPES60_V1")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this was done before")

    for name in (
        "images.find_samples",
        "images.find_extremes",
        "images.pixel_store",
        "plan.measure_costs",
        "plan.build",
    ):
        monkeypatch.setattr(f"finetune.sharing.{name}", never)
    monkeypatch.setattr("finetune.network.weights._tensor_digest", never)
    monkeypatch.setattr("finetune.storage.store._is_whole", never)
    known = Facts.from_text(facts.to_text())
    assert known == facts
    for config in configs:
        assert set(opened(config, known).rows) == (set() if config.model.freeze_depth == 0 else {"train", "val"})
        _, found, cut = open_images(config, known)
        assert found.digest_of(cut.frozen_part) == weights.digest_of(cut.frozen_part)


@pytest.mark.slow
def test_stores_take_what_was_planned(fast: list[str], tmp_path: Path) -> None:
    base = [*fast, f"cache.dir={tmp_path / 'cache'}", "cache.mode=on", "data.size=64"]
    configs = [compose_config([*base, f"model.freeze_depth={k}"]) for k in (0, 4, 8)]
    planned = planned_stores(configs)
    assert list(planned) == [
        "pixels, 64 px",
        "activations after 4 blocks of narrow_resnet50, 64 px",
        "activations after 8 blocks of narrow_resnet50, 64 px",
    ]
    prepare([(config, 1) for config in configs], stores=True)
    on_disk = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert on_disk == pytest.approx(sum(planned.values()), rel=0.05)


@pytest.mark.slow
def test_views_are_planned_as_they_will_be_stored(fast: list[str]) -> None:
    def planned(*words: str) -> int:
        return list(planned_stores([compose_config([*fast, "model.freeze_depth=9", *words])]).values())[1]

    train_, val = planned("augment=standard", "cache.views=1"), planned("augment=standard")
    assert planned() == train_
    views = train_ - val
    assert (views, val) == (24 * val // 12, val)
    assert planned("augment=standard", "cache.views=3", "trainer.epochs=5") == 3 * views + val
    assert planned("augment=standard", "cache.views=3", "trainer.epochs=2") == 2 * views + val


def test_a_store_that_vanished_since_is_no_failure(fast: list[str], tmp_path: Path) -> None:
    words = [*fast, f"cache.dir={tmp_path / 'cache'}", "cache.mode=on", "model.freeze_depth=9"]
    config = compose_config(words)
    facts = prepare([(config, 1)], stores=True)
    expected = opened(config, facts)
    for folder in (tmp_path / "cache" / "activations").glob("*/"):
        if open_store(folder) is not None:
            folder.rename(folder.with_name("elsewhere" + folder.name))
    given = opened(config, facts)
    assert (set(expected.rows), set(given.rows)) == ({"train", "val"}, set())


def test_shapes_of_a_backbone_are_not_its_values() -> None:
    assert all(parameter.is_meta for parameter in backbone_shapes("resnet50").model.parameters())
