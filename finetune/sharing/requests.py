"""Which activations a trial could use: one request a store, and the bytes that all of them would take."""

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.config import AugmentConfig, Config, digest_of
from finetune.data.augment import Augment, Preprocess
from finetune.data.samples import DataSet
from finetune.network.backbone import backbone_shapes
from finetune.network.catalog import with_input
from finetune.network.depths import depth_table
from finetune.network.device import Precision
from finetune.network.freeze import Cut, cut_of, find_cut
from finetune.network.weights import Weights
from finetune.sharing.activations import Source, store_key
from finetune.sharing.images import Images, find_data, images_key
from finetune.storage.store import store_bytes


@dataclass(frozen=True)
class StoreRequest:
    """Activations that a trial could use: one store."""

    config: Config
    source: Source
    weights: Weights
    cut: Cut
    precision: Precision
    passes: float
    """How often all of them are gone through, by all trials together."""
    loads: float
    """How often all of them are read where a GPU keeps what it has read: once a trial."""
    splits: Mapping[str, NDArray[np.int64] | None]
    """By split of this trial that reads them, which ones; None is all."""

    @functools.cached_property
    def key(self) -> str:
        """The name of the store."""
        prefix_digest = self.weights.digest_of(self.cut.prefix)
        return store_key(self.source, self.config.model.backbone, prefix_digest, self.cut.modules, self.precision)

    @property
    def cache(self) -> Path:
        """The folder of all stores."""
        return Path(self.config.cache.dir).expanduser()

    @property
    def folder(self) -> Path:
        """The folder of this one."""
        return self.cache / "activations" / self.key

    @property
    def network(self) -> str:
        """Equal for requests that one prefix can answer."""
        model = self.config.model
        return repr((model.backbone, model.weights, self.config.data.size, self.precision, self.cache))

    @property
    def view_group(self) -> tuple[object, ...]:
        """Equal for the views of the same images at the same cut, which are of use only together."""
        source = self.source
        augmented = None if source.view is None else (source.preprocess.augment.digest, source.seed)
        return source.split, source.pixels.digest, augmented, self.cut.modules


def preprocess_of(config: Config, weights: Weights) -> Preprocess:
    """How the images of a trial become the network's input."""
    return Preprocess(weights.mean, weights.std, Augment.from_config(config.augment), config.cache.views)


def requests_of(
    config: Config, images: Images, weights: Weights, cut: Cut, preprocess: Preprocess
) -> list[StoreRequest]:
    """Every store that a trial could use, one a view of the training images."""
    if cut.modules == 0:
        return []

    precision = Precision.of(config.trainer)
    passes = passes_of(config)
    requests = dict[str, StoreRequest]()
    for split, pixels in images.splits.items():
        share, positions = len(pixels.images) / len(pixels.images.whole), pixels.images.positions
        for view, times in passes[split].items():
            source = Source(split, pixels, preprocess, config.seed, view)
            request = StoreRequest(config, source, weights, cut, precision, times * share, share, {split: positions})
            if (other := requests.get(request.key)) is not None:  # training and validation images of folds
                both = {**other.splits, **request.splits}
                passes_of_both, loads = other.passes + request.passes, other.loads + request.loads
                request = replace(other, passes=passes_of_both, loads=loads, splits=both)
            requests[request.key] = request
    return list(requests.values())


def feature_requests(config: Config, images: Images, weights: Weights, preprocess: Preprocess) -> list[StoreRequest]:
    """The stores of what the whole pretrained network makes of the training and validation images as they are.

    They are small, and stored wherever stores are allowed.
    """
    cut = find_cut(backbone_shapes(config.model.backbone, config.data.size), "all", config.model.freeze_unit)
    once = replace(
        config,
        augment=AugmentConfig(),
        trainer=replace(config.trainer, epochs=1),
        cache=replace(config.cache, mode="off" if config.cache.mode == "off" else "on"),
    )
    splits = {split: images.splits[split] for split in ("train", "val")}
    return requests_of(once, replace(images, splits=splits), weights, cut, preprocess)


def is_mixed(config: Config) -> bool:
    """Whether training images are mixed with others of their batch."""
    return config.augment.mixup > 0 or config.augment.cutmix > 0


def passes_of(config: Config) -> dict[str, dict[int | None, int]]:
    """How often a trial goes through each view of each split that could be stored; None is the images as they are."""
    epochs, count = config.trainer.epochs, config.cache.views
    train: dict[int | None, int] = {None: epochs}
    if is_mixed(config):  # and what the frozen layers make of a mixture is no mixture of what they make of its parts
        train = {}
    elif Augment.from_config(config.augment).random:
        train = {} if count is None else {view: len(range(view, epochs, count)) for view in range(min(count, epochs))}
    return {"train": train, "val": {None: epochs}, "test": {None: 1}}


def planned_stores(configs: Iterable[Config]) -> dict[str, int]:
    """Bytes of the stores that trials with these configs could share, by what they hold; nothing is decoded.

    Raises:
        Refused: data that cannot be used, or a freeze depth out of range.
    """
    data_sets = dict[str, DataSet]()
    sizes = defaultdict[str, dict[str, int]](dict)
    for config in map(with_input, configs):
        size, model = config.data.size, config.model
        pixels = images_key(replace(config, data=replace(config.data, fold=0)))  # folds share their stores
        if pixels not in data_sets:
            data_sets[pixels] = find_data(config)
        stored_as, images = _stored_as(data_sets[pixels])
        sizes[f"pixels, {size} px"][pixels] = store_bytes(sum(images.values()), (size, size, 3), 1)

        backbone, precision = backbone_shapes(model.backbone, size), Precision.of(config.trainer)
        cut = cut_of(config)
        if cut.modules == 0:
            continue

        blocks = min(cut.modules, len(backbone.units))
        shape = depth_table(backbone, "block", size)[blocks].shape
        stores = sizes[f"activations after {blocks} blocks of {model.backbone}, {size} px"]
        for split, views in passes_of(config).items():
            for view in views if split in stored_as else ():
                stored = stored_as[split]
                augmented = None if view is None else (view, config.seed, asdict(config.augment))
                name = digest_of([pixels, stored, augmented, model.weights, precision.name])
                stores[name] = store_bytes(images[stored], shape, precision.dtype.itemsize)

    return {what: sum(stores.values()) for what, stores in sizes.items()}


def _stored_as(data: DataSet) -> tuple[dict[str, str], dict[str, int]]:
    """By split, the name of the images that are stored together with its own; and by name, how many they are."""
    if data.folded is None:
        return {split: split for split in data.splits}, {split: len(images) for split, images in data.splits.items()}

    stored_as = {split: split if split == "test" else "folded" for split in data.splits}
    images = {"folded": len(data.folded)}
    if "test" in data.splits:
        images["test"] = len(data.splits["test"])
    return stored_as, images
