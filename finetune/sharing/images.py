"""What the trials of a sweep find out once: images, decoded, and weights, checked and hashed."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import Config, digest_of
from finetune.data.decode import Transform
from finetune.data.files import LEAKAGE_REMEDY, leakage_warning, leaked_images
from finetune.data.pixels import PixelStore, pixel_store
from finetune.data.samples import DataSet, load_samples
from finetune.data.shapes import EMBEDDED, embedded_folder
from finetune.errors import Refused
from finetune.network.freeze import find_cut
from finetune.sharing.facts import Shared, find_weights
from finetune.storage.parallel import Progress
from finetune.storage.store import open_store


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
    leaks = leaked_images(apart)
    if leaks and config.data.on_leak == "refuse":
        raise Refused(f"{leakage_warning(leaks)}; {LEAKAGE_REMEDY}")
    told = [leakage_warning(leaks)] if leaks else []
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
