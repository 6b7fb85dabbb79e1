"""What the trials of a sweep find out once: images, decoded, and weights, checked and hashed."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.backbone import Weights, backbone_shapes, read_weights
from finetune.checkpoint import find_cut
from finetune.config import Config, ModelConfig, digest_of
from finetune.data.contents import WITHOUT_LEAKS, in_several, state_of, too_kind
from finetune.data.pixels import PixelStore, Transform, pixel_store
from finetune.data.samples import DataSet, load_samples
from finetune.data.shapes import EMBEDDED, embedded_folder
from finetune.errors import Refused
from finetune.store import open_store

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
    folders: list[str] = field(default_factory=list)
    """Of all stores in use, so that they are kept as long as they may be read."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """Digests of the images and their labels: `DATASET_SPLIT`, each as the record of a trial on them has it."""
        every = (
            f"{'-'.join(digest for digest, _ in known['splits'].values())}_{known['split_digest']}"
            for known in self.images.values()
        )
        return tuple(sorted(set(every)))

    @property
    def weight_digests(self) -> tuple[str, ...]:
        """Digests of the pretrained weights, each as the record of a trial that starts from them has it."""
        return tuple(sorted({Weights({}, (), (), digests).digest for _, _, digests in self.weights.values()}))

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
    val_paths: tuple[str, ...]
    """Of the validation images, in order."""


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


def images_key(config: Config) -> str:
    """Equal where the same images are looked for, split and decoded in the same way."""
    return digest_of([asdict(replace(config.data, batch_size=1, workers=0)), config.trainer.refit, config.cache.dir])


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
        Refused: images that cannot be used, or a network that cannot, before any image is decoded.
    """
    name = images_key(config)
    pixels, known = Path(config.cache.dir).expanduser() / "pixels", shared.images.get(name)
    if known is not None:
        splits = {}
        for split, (digest, labels) in known["splits"].items():
            store = open_store(pixels / digest, verify=False)
            if store is not None and len(store.rows) == len(labels):
                splits[split] = PixelStore(store.rows, np.asarray(labels, dtype=np.int64), digest)
        if splits.keys() == known["splits"].keys():
            classes, warnings, paths = (tuple(known[name]) for name in ("classes", "warnings", "val_paths"))
            return Images(classes, splits, known["split_digest"], warnings, paths)
    data = find_data(config)
    find_cut(config.model, find_weights(config.model, shared))  # what cannot be used is refused before the decoding
    stores = store_pixels(config, data, progress)
    if known is not None and [s.digest for s in stores.values()] != [digest for digest, _ in known["splits"].values()]:
        as_many = [len(store.labels) for store in stores.values()] == [len(y) for _, y in known["splits"].values()]
        places = {path if as_many else path.parent for s in data.splits.values() for path in s.paths}
        newest = max(places, key=lambda place: place.stat().st_ctime_ns)
        raise Refused(
            f"the images are not those that this sweep began with, and those are no longer in {config.cache.dir}; "
            f"{newest} was the last to change: restore it, or start another sweep"
        )
    apart = {split: store.contents for split, store in stores.items() if not (config.trainer.refit and split == "val")}
    leaks = in_several(apart)
    if leaks and config.data.on_leak == "refuse":
        raise Refused(f"{too_kind(leaks)}; {WITHOUT_LEAKS}")
    told = [too_kind(leaks)] if leaks else []
    paths = tuple(str(path) for path in data.splits["val"].paths if path in stores["val"].contents)
    warnings = (*data.warnings, *told, *(text for store in stores.values() for text in store.warnings))
    shared.images[name] = {
        "classes": data.classes,
        "splits": {split: (store.digest, store.labels.tolist()) for split, store in stores.items()},
        "split_digest": data.split_digest,
        "warnings": warnings,
        "val_paths": paths,
    }
    shared.folders.extend(str(pixels / store.digest) for store in stores.values())
    return Images(data.classes, stores, data.split_digest, warnings, paths)


def find_weights(model: ModelConfig, shared: Shared) -> Weights:
    """The weights of a network, read and checked unless `shared` knows them; then it does.

    Raises:
        Refused: weights that cannot be used.
    """
    name = f"{model.backbone} {model.weights} {state_of(Path(model.weights).expanduser())}"
    if name not in shared.weights:
        weights = read_weights(backbone_shapes(model.backbone), model.weights)
        shared.weights[name] = (weights.mean, weights.std, dict(weights.digests))
    mean, std, digests = shared.weights[name]
    return Weights({}, tuple(mean), tuple(std), digests)
