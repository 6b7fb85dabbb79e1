"""What trials are fed: images, weights and activations, found and stored once for one trial or for a whole sweep."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from finetune.activations import Source, build, measure_costs, row_shapes, store_key
from finetune.backbone import Weights, backbone_shapes, read_weights
from finetune.checkpoint import Cut, Network, build_network, find_cut
from finetune.config import Config, ModelConfig, digest_of
from finetune.cost import Costs, Decision, decide
from finetune.data.augment import Augment
from finetune.data.pixels import PixelStore, Transform, pixel_store
from finetune.data.preprocess import Preprocess
from finetune.data.samples import DataSet, load_samples
from finetune.data.shapes import EMBEDDED, embedded_folder
from finetune.freeze import SharedPrefix, depth_table, plan_freeze
from finetune.precision import Precision
from finetune.store import Rows, make_room, open_store, store_bytes

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it is, and the total."""


@dataclass(frozen=True)
class Shared:
    """What one trial found out that others need not: plain values, by names of what they belong to."""

    images: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    """Checked weights without their values."""
    stores: dict[str, tuple[bool, str]] = field(default_factory=dict)
    """By name of a store: whether it is to be used, being there and whole, and why."""

    def to_text(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Shared":
        """What `to_text` gave."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Images:
    """The pixels of a data set."""

    classes: tuple[str, ...]
    splits: dict[str, PixelStore]
    split_digest: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Inputs:
    """All that a trial trains on and with."""

    images: Images
    network: Network
    prefix: nn.Module
    """What runs before the suffix: nothing where all splits are stored."""
    preprocess: Preprocess
    stored: dict[str, list[Rows]]
    """Activations of the splits that have them, one store a view."""
    cache: dict[str, Any]
    """For the record."""


@dataclass(frozen=True)
class Want:
    """Activations that a trial could use."""

    config: Config
    source: Source
    cut: Cut
    precision: Precision
    passes: float
    """How often, by all trials together."""

    @property
    def at(self) -> int:
        """Modules before the cut."""
        return self.cut.modules

    @property
    def key(self) -> str:
        """Name of the store."""
        return store_key(self.source, self.config.model.backbone, self.cut.prefix_digest, self.at, self.precision)

    @property
    def cache(self) -> Path:
        """Folder of all stores."""
        return Path(self.config.cache.dir).expanduser()

    @property
    def folder(self) -> Path:
        """Of the store."""
        return self.cache / "activations" / self.key


def find_data(config: Config) -> DataSet:
    """The images of `config` by name, split.

    Raises:
        Refused: folders or tables that cannot be used, by name.
    """
    data, root = config.data, config.data.root
    if root == EMBEDDED:
        root = str(embedded_folder(Path(config.cache.dir).expanduser()))
    found = load_samples(root, data.csv, data.val_fraction, data.split_seed, data.use_val_as)
    return found.with_val_in_train() if config.trainer.refit else found


def store_pixels(config: Config, data: DataSet, progress: Progress = lambda what, done, total: None) -> dict[str, Any]:
    """The images of every split decoded and resized; what the cache has already is not done again.

    Raises:
        Refused: unreadable images, by name, or no room for the pixels.
    """
    transform = Transform(config.data.size, config.data.resize, config.data.interpolation)
    cache, threads = Path(config.cache.dir).expanduser(), config.data.workers or None

    def store(split: str) -> PixelStore:
        def show(done: int, total: int) -> None:
            progress(f"decoding {split} images", done, total)

        limit = int(config.cache.max_gb * 1e9)
        return pixel_store(data.splits[split], transform, cache, config.data.on_bad, threads, show, limit)

    return {split: store(split) for split in data.splits}


def find_images(config: Config, shared: Shared, progress: Progress = lambda what, done, total: None) -> Images:
    """The data set of `config`, looked for and decoded unless `shared` knows it; then it does.

    Raises:
        Refused: images that cannot be used.
    """
    name = digest_of([asdict(replace(config.data, batch_size=1, workers=0)), config.trainer.refit, config.cache.dir])
    known = shared.images.get(name)
    if known is not None:
        splits = {}
        for split, (digest, labels) in known["splits"].items():
            store = open_store(Path(config.cache.dir).expanduser() / "pixels" / digest, verify=False)
            if store is not None and len(store.rows) == len(labels):
                splits[split] = PixelStore(store.rows, np.asarray(labels, dtype=np.int64), digest)
        if splits.keys() == known["splits"].keys():
            return Images(tuple(known["classes"]), splits, known["split_digest"], tuple(known["warnings"]))
    data = find_data(config)
    stores = store_pixels(config, data, progress)
    warnings = (*data.warnings, *(text for store in stores.values() for text in store.warnings))
    shared.images[name] = {
        "classes": data.classes,
        "splits": {split: (store.digest, store.labels.tolist()) for split, store in stores.items()},
        "split_digest": data.split_digest,
        "warnings": warnings,
    }
    return Images(data.classes, stores, data.split_digest, warnings)


def find_weights(model: ModelConfig, shared: Shared) -> Weights:
    """The weights of a network, read and checked unless `shared` knows them; then it does.

    Raises:
        Refused: weights that cannot be used.
    """
    name = f"{model.backbone} {model.weights}"
    if name not in shared.weights:
        weights = read_weights(backbone_shapes(model.backbone), model.weights)
        shared.weights[name] = (weights.mean, weights.std, dict(weights.digests))
    mean, std, digests = shared.weights[name]
    return Weights({}, tuple(mean), tuple(std), digests)


def gather(config: Config, shared: Shared, progress: Progress = lambda what, done, total: None) -> Inputs:
    """Everything for one trial.

    Raises:
        Refused: data, weights or depth that cannot be used.
    """
    images = find_images(config, shared, progress)
    weights = find_weights(config.model, shared)
    cut, preprocess = find_cut(config.model, weights), _preprocess(config, weights)
    wants = _wants(config, images, cut, preprocess)
    missing = [want for want in wants if want.key not in shared.stores]
    spent = provide(missing, shared, progress) if missing else 0.0
    stored, saved = dict[str, list[Rows]](), -spent
    for split in {want.source.split: None for want in wants}:
        of_split = [want for want in wants if want.source.split == split]
        stores = [open_store(want.folder, verify=False) for want in of_split if shared.stores[want.key][0]]
        whole = [store for store in stores if store is not None]
        if len(whole) == len(of_split):
            stored[split] = [store.rows for store in whole]
            each = zip(of_split, whole, strict=True)
            saved += sum(w.passes * len(s.rows) * s.about["seconds_per_image"] for w, s in each)
    on_the_way = images.splits.keys() != stored.keys()
    network = build_network(config.model, len(images.classes), config.seed, weights, with_prefix=on_the_way)
    prefix = SharedPrefix.of(network.prefix) if on_the_way else nn.Identity()
    used = {split: "stored" if split in stored else "computed" for split in images.splits}
    cache: dict[str, Any] = {"mode": config.cache.mode, **used, "reason": _why(cut, wants, shared)}
    if stored:
        cache["saved_seconds"] = round(max(0.0, saved), 3)
    if preprocess.views is not None and preprocess.augment.random:
        cache["views"] = preprocess.views
    return Inputs(images, network, prefix, preprocess, stored, cache)


def planned_stores(configs: Iterable[Config]) -> dict[str, int]:
    """Bytes of the stores that trials with these configs could share, by what they hold; nothing is decoded.

    Raises:
        Refused: data that cannot be used, or a freeze depth out of range.
    """
    sizes: dict[str, int] = {}
    for config in configs:
        images = sum(len(samples) for samples in find_data(config).splits.values())
        size, model = config.data.size, config.model
        sizes[f"pixels, {size} px"] = store_bytes(images, (size, size, 3), 1)
        backbone = backbone_shapes(model.backbone)
        plan = plan_freeze(backbone, model.freeze_depth, model.freeze_unit, model.frozen_bn)
        if plan.cut:
            shape = depth_table(backbone, "block", size)[plan.cut].shape
            itemsize = 2 if Precision.of(config.trainer).bf16 else 4
            sizes[f"activations after {plan.cut} blocks, {size} px"] = store_bytes(images, shape, itemsize)
    return sizes


def prepare(trials: Iterable[tuple[Config, int]], stores: bool, shared: Shared, progress: Progress) -> None:
    """Check the configs of a sweep, each with the number of trials like it, and store what they share.

    Args:
        trials: The configs.
        stores: Store activations too, not just pixels: the trials will run on a machine like this one.
        shared: Gets all that was found out.
        progress: Called as the work goes on.

    Raises:
        Refused: the first config, data set or weights that cannot be used.
    """
    wants: dict[str, Want] = {}
    for config, count in trials:
        images, weights = find_images(config, shared, progress), find_weights(config.model, shared)
        cut = find_cut(config.model, weights)
        for want in _wants(config, images, cut, _preprocess(config, weights)) if stores and count else ():
            before = wants[want.key].passes if want.key in wants else 0.0
            wants[want.key] = replace(want, passes=before + want.passes * count)
    provide(list(wants.values()), shared, progress)


def provide(wants: list[Want], shared: Shared, progress: Progress) -> float:
    """Decide for each of these whether a store pays, and build those that do in one pass over each source.

    Returns:
        Seconds of computing that the stores took to build.
    """
    spent = 0.0
    families = defaultdict[str, list[Want]](list)
    for want in wants:
        families[repr((want.config.model.backbone, want.config.model.weights, want.precision, want.cache))].append(want)
    for family in families.values():
        undecided = []
        for want in family:
            if want.config.cache.mode == "off":
                shared.stores[want.key] = (False, "cache.mode=off")
            elif open_store(want.folder) is not None:
                shared.stores[want.key] = (True, "stored by an earlier trial")
            else:
                undecided.append(want)
        if not undecided:
            continue
        deepest = max(undecided, key=lambda want: want.at)
        known = find_weights(deepest.config.model, shared)
        prefix = SharedPrefix.of(build_network(deepest.config.model, 2, known=known).prefix)
        costs = measure_costs(prefix, deepest.source, deepest.precision, deepest.cache)
        sources = defaultdict[str, list[Want]](list)
        for want in undecided:
            sources[want.source.digest].append(want)
        for of_source in sources.values():
            spent += _build(of_source, prefix, costs, shared, progress)
    return spent


def _build(wants: list[Want], prefix: SharedPrefix, costs: Costs, shared: Shared, progress: Progress) -> float:
    """Decide on the stores of one source and build those that pay."""
    source, precision, cache = wants[0].source, wants[0].precision, wants[0].cache
    shapes = row_shapes(prefix, source, sorted({want.at for want in wants}), precision)
    images, chosen, planned = len(source.pixels.labels), list[Want](), 0
    for want in sorted(wants, key=lambda want: -want.at):  # the smallest first
        shape, dtype = shapes[want.at]
        row_bytes = store_bytes(1, shape, 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)
        decision = decide(costs, want.at, row_bytes, images, want.passes)
        if want.config.cache.mode == "on":
            decision = Decision(True, "cache.mode=on")
        limit = want.config.cache.max_gb
        if decision.pays and not make_room(cache, planned + images * row_bytes, int(limit * 1e9)):
            decision = Decision(False, f"{images * row_bytes / 1e9:.1f} GB do not fit into cache.max_gb={limit:g}")
        shared.stores[want.key] = (decision.pays, decision.reason)
        if decision.pays:
            chosen.append(want)
            planned += images * row_bytes
    if not chosen:
        return 0.0

    def show(done: int, total: int) -> None:
        progress(f"frozen layers, {source.split} images, {planned / 1e6:,.0f} MB", done, total)

    try:
        build(prefix, source, {want.at: want.folder for want in chosen}, precision, costs, show)
    except OSError as error:
        for want in chosen:
            shared.stores[want.key] = (False, f"the store could not be written: {error}")
        return 0.0
    return images * costs.compute[max(want.at for want in chosen)]


def _wants(config: Config, images: Images, cut: Cut, preprocess: Preprocess) -> list[Want]:
    """Every store that a trial could use, one a view of the training images."""
    if cut.modules == 0:
        return []
    precision, epochs = Precision.of(config.trainer), config.trainer.epochs
    views: dict[int | None, int] = {None: epochs}
    if preprocess.augment.random:
        count = preprocess.views
        views = {} if count is None else {v: len(range(v, epochs, count)) for v in range(min(count, epochs))}
    passes: dict[str, dict[int | None, int]] = {"train": views, "val": {None: epochs}, "test": {None: 1}}
    return [
        Want(config, Source(split, store, preprocess, config.seed, view), cut, precision, times)
        for split, store in images.splits.items()
        for view, times in passes[split].items()
    ]


def _preprocess(config: Config, weights: Weights) -> Preprocess:
    return Preprocess(weights.mean, weights.std, Augment.from_config(config.augment), config.cache.views)


def _why(cut: Cut, wants: list[Want], shared: Shared) -> str:
    """The reason for what happened to the training images."""
    if cut.modules == 0:
        return "nothing before the cut is frozen for good"
    reasons = [shared.stores[want.key][1] for want in wants if want.source.split == "train"]
    return reasons[0] if reasons else "augmented anew each epoch; cache.views=V would store V views"
