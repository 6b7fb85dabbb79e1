"""Images decoded and resized once, into a uint8 store that every trial shares."""

import contextlib
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from finetune.config import digest_of
from finetune.data.decode import Transform, decode
from finetune.data.files import contents, misnamed, state_of
from finetune.data.samples import Samples
from finetune.errors import Refused, counted
from finetune.storage.cache import locked, make_room
from finetune.storage.parallel import free_memory, in_order
from finetune.storage.store import Rows, RowsInMemory, StoreBuilder, open_store, store_bytes

_BLOCK = 64
"""Images that are written, and checked, at once."""
VERSION = 3
"""Part of every store's name; changes when the same file would come out as other pixels."""


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


def pixel_store(
    samples: Samples,
    transform: Transform,
    cache: Path,
    on_bad: str = "refuse",
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    max_bytes: int = 2**63,
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

    Raises:
        Refused: unreadable images, all of them listed, or none left; or no room for the pixels.
    """
    states = [state_of(path) for path in samples.paths]
    found = dict(zip(samples.paths, contents(samples.paths), strict=True))
    key = digest_of([[found[path].digest for path in samples.paths], asdict(transform), PIL.__version__, VERSION])
    folder = cache / "pixels" / key
    need = store_bytes(len(samples), (transform.size, transform.size, 3), 1)
    warnings = list[str]()
    decoded = _decoded(samples, states, transform, threads, progress)
    try:
        with locked(folder):
            damaged = folder.is_dir()
            store = open_store(folder)
            if store is None:
                warnings += [f"{folder} was damaged, and was built anew"] * damaged
                if need > max_bytes or not make_room(cache, {folder: need}, max_bytes):
                    raise OSError(f"{cache} may hold {max_bytes / 1e9:g} GB, or its disk is full")
                _build(folder, samples, transform, on_bad, decoded)
                store = open_store(folder, verify=False)
        assert store is not None
        rows, unreadable = store.rows, {int(i): why for i, why in store.about["bad"].items()}
    except OSError as error:
        if need > min(max_bytes, free_memory() / 2):
            raise Refused(
                f"{len(samples)} images of {transform.size} px need {need / 1e9:.1f} GB, which neither the disk of "
                f"{cache} nor the memory has ({error}); raise cache.max_gb or set cache.dir elsewhere"
            ) from error
        warnings.append(f"the images are kept in memory, and decoded for each trial: {error}")
        rows, unreadable = _in_memory(decoded, transform.size)
    bad = {samples.paths[i]: why for i, why in unreadable.items()}
    if bad and on_bad == "refuse":
        raise _unreadable(bad)
    kept = samples.without(frozenset(bad))
    if len(kept) == 0:
        raise Refused("every image of a split is unreadable: " + _listed(bad))
    if bad:
        warnings.append(f"left out {counted(len(bad), 'unreadable image')}: {_listed(bad)}")
    if odd := misnamed({path: found[path].format for path in kept.paths}):
        warnings.append(odd)
    digests = {path: found[path].digest for path in kept.paths}
    return PixelStore(rows, np.asarray(kept.labels, dtype=np.int64), key, tuple(warnings), digests)


Decoded = Callable[[int], Generator[NDArray[np.uint8] | str, None, None]]
"""From the position of an image to it and all that follow, each as pixels or as what is wrong with it."""


def _decoded(
    samples: Samples,
    states: Sequence[str],
    transform: Transform,
    threads: int | None,
    progress: Callable[[int, int], None],
) -> Decoded:
    def pixels(known: tuple[Path, str]) -> NDArray[np.uint8] | str:
        path, state = known
        found: NDArray[np.uint8] | str
        try:
            found = transform(decode(path))
        except (ValueError, FileNotFoundError) as error:
            found = str(error)
        if state_of(path) != state:
            raise Refused(f"{path} was changed or removed while the images were read; restore it and run again")
        return found

    def decoded(first: int) -> Generator[NDArray[np.uint8] | str, None, None]:
        known = list(zip(samples.paths, states, strict=True))[first:]
        images = in_order(pixels, known, threads or os.cpu_count() or 1)
        with contextlib.closing(images):
            for done, image in enumerate(images, first + 1):
                progress(done, len(samples))
                yield image

    return decoded


def _build(folder: Path, samples: Samples, transform: Transform, on_bad: str, decoded: Decoded) -> None:
    building = StoreBuilder(folder, (transform.size, transform.size, 3), "uint8")
    started, seen = time.perf_counter(), sum(note["images"] for note in building.notes)
    with contextlib.closing(building), contextlib.closing(decoded(seen)) as images:
        try:
            for first in range(seen, len(samples), _BLOCK):
                block, bad = list[NDArray[np.uint8]](), dict[str, str]()
                for i in range(first, min(first + _BLOCK, len(samples))):
                    image = next(images)
                    if isinstance(image, str):
                        bad[str(i)] = image
                    else:
                        block.append(image)
                shaped = np.stack(block) if block else np.empty((0, *building.shape), np.uint8)
                building.append(shaped, {"images": len(block) + len(bad), "bad": bad})
            unreadable = {i: why for note in building.notes for i, why in note["bad"].items()}
            if unreadable and on_bad == "refuse":
                building.drop()
                raise _unreadable({samples.paths[int(i)]: why for i, why in unreadable.items()})
            seconds = time.perf_counter() - started
            building.publish({"transform": asdict(transform), "bad": unreadable, "seconds": round(seconds, 3)})
        except OSError:
            building.drop()
            raise


def _in_memory(decoded: Decoded, size: int) -> tuple[Rows, dict[int, str]]:
    images = list(decoded(0))
    bad = {i: image for i, image in enumerate(images) if isinstance(image, str)}
    good = [image for image in images if not isinstance(image, str)]
    return RowsInMemory(np.stack(good) if good else np.empty((0, size, size, 3), np.uint8)), bad


def _unreadable(bad: dict[Path, str]) -> Refused:
    found = counted(len(bad), "unreadable image")
    return Refused(f"{found}: {_listed(bad)}; mend or remove them, or set data.on_bad=skip")


def _listed(bad: dict[Path, str]) -> str:
    return ", ".join(f"{path} ({why})" for path, why in bad.items())
