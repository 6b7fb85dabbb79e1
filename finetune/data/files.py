"""What image files hold byte for byte: digest, format, and whether splits share any. Decodes nothing."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL

from finetune.data.decode import is_deep
from finetune.data.formats import BEGINNING, FORMATS, HEIF_VERSION, format_of_bytes
from finetune.data.remembered import remembered
from finetune.errors import Refused, counted

VERSION = 1
"""Changes when `Content` comes to hold something else."""

_NAMED = 5
"""Groups of equal files that a sentence names."""
LEAKAGE_REMEDY = "remove them from one, or set data.on_leak=warn"
"""What to do where images that lie in several splits are refused."""


_SHALLOW = frozenset({"JPEG", "GIF", "WEBP", "BMP", "AVIF", "HEIF", "QOI"})
"""Formats of which Pillow gives 8 bits a channel, so that their headers need no look."""


@dataclass(frozen=True)
class Content:
    """What is known of a file's bytes."""

    digest: str
    """SHA-256; empty where the file may not be read."""
    format: str
    """Pillow's name for what the file begins like; empty when that is none that is known."""
    is_deep: bool
    """Whether it is an image of more than 8 bits a channel."""
    state: str
    """The file's `file_state` from before it was read; it has these contents as long as that stays."""


def contents(paths: Sequence[Path], cache: Path) -> dict[Path, Content]:
    """Digest and format of each file, each read once; later calls read only what has changed since.

    Args:
        paths: The files.
        cache: Folder of all stores, where the answers are kept.

    Raises:
        Refused: a file is gone, or reading it fails; or others could have written to the cache.
    """
    what = f"contents {VERSION}, Pillow {PIL.__version__} {HEIF_VERSION}"
    of_files = remembered(_read_content, paths, cache, what, lasts=lambda answer: answer[0] != "")
    return {path: Content(digest, form, deep, state) for path, (state, (digest, form, deep)) in of_files.items()}


def _read_content(path: Path) -> tuple[str, str, bool]:
    """Digest, format and whether it is deep; empty for a file that may not be read."""
    try:
        with path.open("rb") as file:
            beginning = file.read(BEGINNING)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:  # an unreadable image like others, as whoever decodes it will see
        return "", "", False
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); restore it or leave it out") from error

    form = format_of_bytes(beginning)
    if form == "PNG":  # the commonest of those that can be, whose header need not be parsed
        return digest, form, beginning[24:25] == b"\x10"  # bits a channel
    return digest, form, form not in _SHALLOW and is_deep(path)


def misnamed(formats: Mapping[Path, str]) -> str:
    """One sentence on files whose name says another format than they have, a PNG named .jpg; empty without any."""
    mismatches = []
    for path, name in formats.items():
        named = FORMATS.get(path.suffix.lower(), name)
        if name != named and not (named == "TGA" and name == ""):  # a TGA begins with nothing by which to know it
            mismatches.append((path, name))
    if not mismatches:
        return ""

    first, name = mismatches[0]
    is_not = counted(len(mismatches), "file", ("is not what its name says", "are not what their names say"))
    return f"{is_not} (read anyway): {first} is {name or 'of another kind'}"


def leaked_images(splits: Mapping[str, Mapping[Path, str]]) -> list[tuple[Path, ...]]:
    """Images that lie in more than one split, byte for byte: groups of paths, one a split.

    Args:
        splits: The digest of every file, by split.
    """
    first_by_split: dict[str, dict[str, Path]] = {}
    """By digest, then by split: the first file that has it."""
    for split, digests in splits.items():
        for path, digest in digests.items():
            first_by_split.setdefault(digest, {}).setdefault(split, path)
    return [tuple(paths.values()) for paths in first_by_split.values() if len(paths) > 1]


def leakage_warning(shared: Sequence[Sequence[Path]]) -> str:
    """One sentence on what `leaked_images` gave."""
    lie = counted(len(shared), "image", ("lies", "lie"))
    return f"{lie} in several splits, so validation is too kind: {equal_files(shared)}"


def equal_files(groups: Sequence[Sequence[Path]]) -> str:
    """The names in the first few groups of equal files, such as `a.png = b.png; c.png = d.png; and 3 more`."""
    named = [" = ".join(map(str, group)) for group in groups[:_NAMED]]
    more = len(groups) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")
