"""What image files hold byte for byte: digest, format, and whether splits share any. Decodes nothing."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from finetune.data.formats import BEGINNING, FORMATS, format_of_bytes
from finetune.errors import Refused, counted

_NAMED = 5
"""Groups of equal files that a sentence names."""
LEAKAGE_REMEDY = "remove them from one, or set data.on_leak=warn"
"""What to do where images that lie in several splits are refused."""


@dataclass(frozen=True)
class Content:
    """What is known of a file's bytes."""

    digest: str
    """SHA-256; size and time of change are not trusted."""
    format: str
    """Pillow's name for what the file begins like; empty when that is none that is known."""


def contents(paths: Sequence[Path]) -> list[Content]:
    """Digest and format of each file, in order, each read once; both empty for one that may not be read.

    Raises:
        Refused: a file is gone, or reading it fails.
    """

    def read(path: Path) -> Content:
        try:
            with path.open("rb") as file:
                beginning = file.read(BEGINNING)
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except PermissionError:  # an unreadable image like others, as whoever decodes it will see
            return Content("", "")
        except OSError as error:
            raise Refused(f"{path} cannot be read ({error.strerror}); restore it or leave it out") from error
        return Content(digest, format_of_bytes(beginning))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, paths))


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


def file_state(file: Path) -> str:
    """Changes when the file does, as far as a look at its entry tells; empty where there is none."""
    try:
        status = file.stat()
    except OSError:
        return ""
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
