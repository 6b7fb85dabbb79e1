"""Images decoded and resized once, into a uint8 store that every trial shares."""

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from finetune.config import digest_of
from finetune.data.decode import Transform, decode
from finetune.data.files import Content, contents, misnamed
from finetune.data.formats import HEIF_VERSION
from finetune.data.levels import DEFAULT_LEVELS, Levels
from finetune.data.remembered import file_state
from finetune.data.samples import Samples
from finetune.errors import Refused, counted
from finetune.storage.cache import locked, make_room
from finetune.storage.parallel import in_order
from finetune.storage.store import PickedRows, Rows, RowsInMemory, Store, StoreBuilder, open_store, store_bytes
from finetune.storage.system import free_memory, usable_cores

_BLOCK = 64
"""Images that are written, and checked, at once."""
VERSION = 3
"""Part of every store's name; changes when the same file would come out as other pixels."""

ItemsDone = Callable[[int, int], None]
"""Called with the number of images done, and of all."""


@dataclass(frozen=True)
class PixelStore:
    """The pixels of one split."""

    images: Rows
    """N x size x size x 3, uint8, on disk, or in memory for want of one."""
    labels: NDArray[np.int64]
    """N."""
    digest: str
    """Names the contents of the files in their order, and the transform; equal digests, equal pixels."""
    warnings: tuple[str, ...] = ()
    contents: Mapping[Path, str] = field(default_factory=dict)
    """The digest of each file, where the images were just looked at."""

    def pick(self, samples: Samples) -> "PixelStore":
        """Those of `samples` that could be read, from the same store, with its digest but without its warnings."""
        position = {path: i for i, path in enumerate(self.contents)}
        positions = np.array([position[path] for path in samples.paths if path in position], dtype=np.int64)
        contents = {path: self.contents[path] for path in samples.paths if path in position}
        return PixelStore(PickedRows(self.images, positions), self.labels[positions], self.digest, contents=contents)


def pixel_store(
    samples: Samples,
    transform: Transform,
    cache: Path,
    on_bad: str = "refuse",
    threads: int | None = None,
    progress: ItemsDone = lambda done, total: None,
    max_bytes: int = 2**63,
    levels: Levels = DEFAULT_LEVELS,
    known: Mapping[Path, Content] | None = None,
) -> PixelStore:
    """The decoded samples, read from the cache or decoded into it first; an interrupted build is continued.

    Args:
        samples: Images and labels; the store keeps their order.
        transform: How each becomes size x size.
        cache: Folder of all stores; this one's name is the digest of contents, transform and Pillow's version.
        on_bad: `refuse`, or `skip` to leave unreadable images out with a warning.
        threads: Decoding threads; one per core by default.
        progress: Called with images done and total.
        max_bytes: Of all stores together; older ones go first.
        levels: Which values become black and white where files have more than 8 bits.
        known: The files' contents, where they were read already.

    Raises:
        Refused: unreadable images, all of them listed, or none left; or no room for the pixels.
    """
    known = contents(samples.paths, cache) if known is None else known
    digests = [known[path].digest for path in samples.paths]
    # nothing is added for ordinary images, so that stores of the first release keep their names
    added: list[object] = [] if levels == DEFAULT_LEVELS else [asdict(levels)]
    if HEIF_VERSION and any(known[path].format == "HEIF" for path in samples.paths):
        added.append(HEIF_VERSION)
    key = digest_of([digests, asdict(transform), PIL.__version__, VERSION, *added])
    states = [known[path].state for path in samples.paths]
    decoded = _decoder(samples, states, transform, levels, threads, progress)
    need = store_bytes(len(samples), (transform.size, transform.size, 3), 1)

    try:
        store, warnings = _stored(cache, key, samples, transform, on_bad, decoded, need, max_bytes)
        rows = store.rows
        problems = {int(i): why for i, why in store.about["bad"].items()}
    except OSError as error:
        if need > min(max_bytes, free_memory() / 2):
            raise Refused(
                f"{len(samples)} images of {transform.size} px need {need / 1e9:.1f} GB, which neither the disk of "
                f"{cache} nor the memory has ({error}); raise cache.max_gb or set cache.dir elsewhere"
            ) from error
        warnings = [f"the images are kept in memory, and decoded for each trial: {error}"]
        rows, problems = _in_memory(decoded, transform.size)

    bad = {samples.paths[i]: why for i, why in problems.items()}
    kept, left_out = _without(samples, bad, on_bad)
    names = misnamed({path: known[path].format for path in kept.paths})
    warnings += [sentence for sentence in (left_out, names) if sentence]
    labels = np.asarray(kept.labels, dtype=np.int64)
    return PixelStore(rows, labels, key, tuple(warnings), {path: known[path].digest for path in kept.paths})


def _without(samples: Samples, bad: dict[Path, str], on_bad: str) -> tuple[Samples, str]:
    """The samples that can be read, and a sentence on the others; empty without any.

    Raises:
        Refused: some cannot be read, and are not to be skipped; or none is left.
    """
    if not bad:
        return samples, ""
    if on_bad == "refuse":  # they were left out when the store was built
        raise _unreadable(bad)

    kept = samples.without(frozenset(bad))
    if len(kept) == 0:
        raise Refused("every image of a split is unreadable: " + _listed(bad))
    return kept, f"left out {counted(len(bad), 'unreadable image')}: {_listed(bad)}"


Decoded = Callable[[int], Generator[NDArray[np.uint8] | str, None, None]]
"""From the position of an image to it and all that follow, each as pixels or as what is wrong with it."""


def _decoder(
    samples: Samples,
    states: Sequence[str],
    transform: Transform,
    levels: Levels,
    threads: int | None,
    progress: ItemsDone,
) -> Decoded:
    def pixels(item: tuple[Path, str]) -> NDArray[np.uint8] | str:
        path, state = item
        image: NDArray[np.uint8] | str
        try:
            image = transform(decode(path, levels))
        except (ValueError, FileNotFoundError) as error:
            image = str(error)

        # the store's name tells what the files held before: it must not get the pixels of others
        if file_state(path) != state:
            raise Refused(f"{path} was changed or removed while the images were read; restore it and run again")
        return image

    def decoded(first: int) -> Generator[NDArray[np.uint8] | str, None, None]:
        items = list(zip(samples.paths, states, strict=True))[first:]
        images = in_order(pixels, items, threads or usable_cores())
        with contextlib.closing(images):
            for done, image in enumerate(images, first + 1):
                progress(done, len(samples))
                yield image

    return decoded


def _stored(
    cache: Path,
    key: str,
    samples: Samples,
    transform: Transform,
    on_bad: str,
    decoded: Decoded,
    need: int,
    max_bytes: int,
) -> tuple[Store, list[str]]:
    """The store of this name, built if need be, and what is to be said of it.

    Raises:
        OSError: it is not there, and there is no room for it.
        Refused: unreadable images, all of them listed.
    """
    folder = cache / "pixels" / key
    with locked(folder):
        was_there = folder.is_dir()
        store = open_store(folder)
        if store is not None:
            return store, []

        if need > max_bytes or not make_room(cache, {folder: need}, max_bytes):
            raise OSError(f"{cache} may hold {max_bytes / 1e9:g} GB, or its disk is full")
        _build(folder, samples, transform, on_bad, decoded)
        store = open_store(folder, verify=False)

    assert store is not None
    return store, [f"{folder} was damaged, and was built anew"] if was_there else []


def _build(folder: Path, samples: Samples, transform: Transform, on_bad: str, decoded: Decoded) -> None:
    started = time.perf_counter()
    builder = StoreBuilder(folder, (transform.size, transform.size, 3), "uint8")
    done = sum(note["images"] for note in builder.notes)
    with contextlib.closing(builder), contextlib.closing(decoded(done)) as images:
        try:
            for first in range(done, len(samples), _BLOCK):
                count = min(_BLOCK, len(samples) - first)
                block, bad = _next_block(images, first, count)
                rows = np.stack(block) if block else np.empty((0, *builder.shape), np.uint8)
                builder.append(rows, {"images": count, "bad": bad})

            unreadable = {i: why for note in builder.notes for i, why in note["bad"].items()}
            if unreadable and on_bad == "refuse":
                builder.drop()
                raise _unreadable({samples.paths[int(i)]: why for i, why in unreadable.items()})

            seconds = time.perf_counter() - started
            builder.publish({"transform": asdict(transform), "bad": unreadable, "seconds": round(seconds, 3)})
        except OSError:
            builder.drop()
            raise


def _next_block(
    images: Iterator[NDArray[np.uint8] | str], first: int, count: int
) -> tuple[list[NDArray[np.uint8]], dict[str, str]]:
    """The next `count` images: those that could be read, and by position what is wrong with the others."""
    block = list[NDArray[np.uint8]]()
    bad = dict[str, str]()
    for position, image in enumerate(itertools.islice(images, count), first):
        if isinstance(image, str):
            bad[str(position)] = image
        else:
            block.append(image)
    return block, bad


def _in_memory(decoded: Decoded, size: int) -> tuple[Rows, dict[int, str]]:
    images = list(decoded(0))
    bad = {i: image for i, image in enumerate(images) if isinstance(image, str)}
    good = [image for image in images if not isinstance(image, str)]
    return RowsInMemory(np.stack(good) if good else np.empty((0, size, size, 3), np.uint8)), bad


def _unreadable(bad: dict[Path, str]) -> Refused:
    images = counted(len(bad), "unreadable image")
    return Refused(f"{images}: {_listed(bad)}; mend or remove them, or set data.on_bad=skip")


def _listed(bad: dict[Path, str]) -> str:
    return ", ".join(f"{path} ({why})" for path, why in bad.items())
