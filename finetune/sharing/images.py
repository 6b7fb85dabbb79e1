"""The images of a trial and the network they meet: looked up among known facts, or found, checked and decoded."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from finetune.config import Config, digest_of
from finetune.data.balance import class_weights
from finetune.data.decode import Transform
from finetune.data.extremes import find_extremes
from finetune.data.files import LEAKAGE_REMEDY, Content, contents, leakage_warning, leaked_images
from finetune.data.levels import DEFAULT_LEVELS, Levels
from finetune.data.pixels import PixelStore, pixel_store
from finetune.data.samples import DataSet, Samples
from finetune.data.source import find_samples
from finetune.errors import Refused
from finetune.network.freeze import Cut, cut_of
from finetune.network.weights import Weights
from finetune.sharing.facts import Facts, ImageFacts, SplitFacts, find_weights
from finetune.storage.parallel import Progress, no_progress
from finetune.storage.store import PickedRows, open_store


@dataclass(frozen=True)
class Images:
    """The pixels of a data set."""

    classes: tuple[str, ...]
    splits: dict[str, PixelStore]
    split_digest: str
    warnings: tuple[str, ...]
    val_paths: tuple[str, ...]
    """The validation images' files, in order."""
    levels: Levels | None = None
    """How pixels of more than 8 bits were scaled; None where there are none."""

    @property
    def facts(self) -> ImageFacts:
        """What another trial on the same images need not find out again."""
        splits = {split: _facts_of(store) for split, store in self.splits.items()}
        return ImageFacts(self.classes, splits, self.split_digest, self.warnings, self.val_paths, self.levels)


def _facts_of(store: PixelStore) -> SplitFacts:
    positions = store.images.positions
    labels = tuple(store.labels.tolist())
    return SplitFacts(store.digest, labels, None if positions is None else tuple(positions.tolist()))


def open_images(config: Config, facts: Facts, progress: Progress = no_progress) -> tuple[Images, Weights, Cut]:
    """The images of a trial, what its network starts from, and where that is cut.

    Raises:
        Refused: images that cannot be used, or a network that cannot, before any image is decoded.
    """
    known = facts.images.get(images_key(config))
    images = None if known is None else _reopen(config, known)
    data = find_data(config) if images is None else None

    weights = find_weights(config, facts)
    cut = cut_of(config)

    if images is None:
        assert data is not None
        images = decode_images(config, data, known, progress)
    _refuse_unmeasurable(config, images)
    return images, weights, cut


def find_data(config: Config) -> DataSet:
    """The images of `config` by name, split.

    Raises:
        Refused: folders or tables that cannot be used, by name.
    """
    data = find_samples(config.data, Path(config.cache.dir).expanduser())
    return data.with_val_in_train() if config.trainer.refit else data


def images_key(config: Config) -> str:
    """Equal where the same images are looked for, split and decoded in the same way."""
    decides = asdict(replace(config.data, batch_size=1, workers=0, class_weights="none"))
    return digest_of([decides, config.trainer.refit, config.cache.dir])


def pixel_folder(config: Config, digest: str) -> Path:
    """The folder of a pixel store."""
    return Path(config.cache.dir).expanduser() / "pixels" / digest


def decode_splits(
    config: Config,
    data: DataSet,
    progress: Progress = no_progress,
    levels: Levels = DEFAULT_LEVELS,
    known: Mapping[Path, Content] | None = None,
) -> dict[str, PixelStore]:
    """The images of every split decoded and resized; what the cache has already is not done again.

    Raises:
        Refused: unreadable images, by name, or no room for the pixels.
    """
    transform = Transform(config.data.size, config.data.resize, config.data.interpolation)
    cache = Path(config.cache.dir).expanduser()
    threads = config.data.workers or None
    limit = int(config.cache.max_gb * 1e9)

    def decode_samples(what: str, samples: Samples) -> PixelStore:
        def show(done: int, total: int) -> None:
            progress(f"decoding {what} images", done, total)

        return pixel_store(samples, transform, cache, config.data.on_bad, threads, show, limit, levels, known)

    if data.folded is None:
        return {split: decode_samples(split, samples) for split, samples in data.splits.items()}

    # one store holds the images of all folds, from which trials of each fold pick theirs
    folded = decode_samples("training and validation", data.folded)
    splits = {
        split: decode_samples(split, samples) if split == "test" else folded.pick(samples)
        for split, samples in data.splits.items()
    }
    return {**splits, "train": replace(splits["train"], warnings=folded.warnings)}


def _reopen(config: Config, known: ImageFacts) -> Images | None:
    """Images that were decoded before, from their stores; None where one is gone."""
    splits = {}
    for split, facts in known.splits.items():
        store = open_store(pixel_folder(config, facts.digest), verify=False)
        if store is None:
            return None

        rows = store.rows
        if facts.positions is not None:
            rows = PickedRows(rows, np.asarray(facts.positions, dtype=np.int64))
        if len(rows) != len(facts.labels):
            return None
        splits[split] = PixelStore(rows, np.asarray(facts.labels, dtype=np.int64), facts.digest)

    return Images(known.classes, splits, known.split_digest, known.warnings, known.val_paths, known.levels)


def decode_images(
    config: Config, data: DataSet, known: ImageFacts | None = None, progress: Progress = no_progress
) -> Images:
    """Decode the images, and look for any that lie in several splits.

    `known` is what they were when the sweep began.
    """
    all_samples = [*data.splits.values(), *([data.folded] if data.folded else [])]
    cache = Path(config.cache.dir).expanduser()
    files = contents([path for samples in all_samples for path in samples.paths], cache)
    extremes = find_extremes(files, cache, config.data.workers or None)
    levels = None if extremes is None else extremes.levels
    splits = decode_splits(config, data, progress, levels or DEFAULT_LEVELS, files)
    _refuse_lost_classes(data, splits)
    if known is not None:
        _refuse_changed(config, data, splits, known)

    leakages = [sentence for sentence in (_leakage_warning(config, splits), data.group_leakage) if sentence]
    if leakages and config.data.on_leak == "refuse":
        raise Refused(f"{leakages[0]}; {LEAKAGE_REMEDY}")

    warnings = [*data.warnings, *leakages]
    if extremes is not None and extremes.note:
        warnings.append(extremes.note)
    for store in splits.values():
        warnings += store.warnings
    val_paths = tuple(str(path) for path in data.splits["val"].paths if path in splits["val"].contents)
    return Images(data.classes, splits, data.split_digest, tuple(warnings), val_paths, levels)


def _refuse_lost_classes(data: DataSet, splits: dict[str, PixelStore]) -> None:
    """Make sure that every class has an image to train on, once those that cannot be read are left out.

    Raises:
        Refused: one has none.
    """
    left = set(splits["train"].labels.tolist())
    lost = [name for label, name in enumerate(data.classes) if label not in left]
    if lost:
        raise Refused(
            f"every training image of class {lost[0]} is unreadable, so nothing is left to learn it from; "
            "mend them, or remove the class"
        )


def _refuse_unmeasurable(config: Config, images: Images) -> None:
    """Make sure that the loss and the metric have what they need of the images.

    Raises:
        Refused: there are not as many class weights as classes, or the metric is not defined.
    """
    class_weights(config.data.class_weights, images.splits["train"].labels, images.classes)

    present = np.unique(images.splits["val"].labels)
    if config.trainer.metric == "val/auroc" and len(present) < 2:
        raise Refused(
            f"trainer.metric=val/auroc compares a class with the rest, but all validation images are of "
            f"{images.classes[int(present[0])]}; add images of others, or take another metric"
        )


def _refuse_changed(config: Config, data: DataSet, splits: dict[str, PixelStore], known: ImageFacts) -> None:
    """Make sure that the images are those that the sweep began with.

    Raises:
        Refused: they are not; the message names the file or folder that was the last to change.
    """
    if [store.digest for store in splits.values()] == [facts.digest for facts in known.splits.values()]:
        return

    # as many images as before: one was edited; otherwise one was added or removed, which changes its folder
    as_many = [len(store.labels) for store in splits.values()] == [len(split.labels) for split in known.splits.values()]
    places = {path if as_many else path.parent for samples in data.splits.values() for path in samples.paths}
    newest = max(places, key=lambda place: place.stat().st_ctime_ns)
    raise Refused(
        f"the images are not those that this sweep began with, and those are no longer in {config.cache.dir}; "
        f"{newest} was the last to change: restore it, or start another sweep"
    )


def _leakage_warning(config: Config, splits: dict[str, PixelStore]) -> str:
    """A sentence on images that lie in several splits, byte for byte; empty without any."""
    digests = {split: store.contents for split, store in splits.items()}
    if config.trainer.refit:  # which trains on the validation images on purpose
        digests.pop("val")
    leaks = leaked_images(digests)
    return leakage_warning(leaks) if leaks else ""
