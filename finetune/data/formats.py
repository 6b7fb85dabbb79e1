"""What kind of file is this? By its name and by its first bytes; decodes nothing."""

import re
from pathlib import Path

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".apng": "PNG",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".jpx": "JPEG2000",
    ".tga": "TGA",
}
"""What Pillow calls a file with that ending. A file so named is an image, or a broken one."""
BEGINNING = 32
"""Bytes from which a format is known."""
_MAGIC = {
    "JPEG": (rb"\xff\xd8\xff",),
    "PNG": (rb"\x89PNG\r\n\x1a\n",),
    "GIF": (rb"GIF8[79]a",),
    "WEBP": (rb"RIFF.{4}WEBP",),
    # the size of the header that follows the name tells a picture from text that begins with BM
    "BMP": (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",),
    "TIFF": (rb"II\*\0", rb"MM\0\*", rb"MM\*\0", rb"II\0\*", rb"II\+\0", rb"MM\0\+"),
    "PPM": (rb"P[1-7fF]\s",),
    "JPEG2000": (rb"\xff\x4f\xff\x51", rb"\0\0\0\x0cjP  \r\n\x87\n"),
    "AVIF": (rb".{4}ftyp(avif|avis)",),
    "HEIF": (rb".{4}ftyp(heic|heix|hevc|hevx|heim|heis|hevm|hevs|mif1|msf1)",),
    "QOI": (rb"qoif",),
    "PSD": (rb"8BPS",),
    "DDS": (rb"DDS ",),
}
"""How a file of each format begins, as regular expressions."""
_BEGINNINGS = {name: re.compile(b"|".join(patterns), re.DOTALL) for name, patterns in _MAGIC.items()}
_NOT_IMAGES = (
    (re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE), "a web page, saved in place of the image"),
    (re.compile(rb"\s*(<\?xml|<svg)", re.IGNORECASE), "a drawing or XML; export it as PNG"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer; run `git lfs pull`"),
    (re.compile(rb"%PDF"), "a PDF; export its pages as PNG"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript; export it as PNG"),
    (re.compile(rb"PK\x03\x04"), "a zip archive; unpack it"),
    (re.compile(rb"\0\x05\x16\x07"), "what macOS keeps beside a file; remove it"),
)
"""What else is found under the name of an image, by its first bytes."""

_HEIF_REMEDY = "which `pip install pillow-heif` lets Pillow read"
_PICTURES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), _HEIF_REMEDY),
    **dict.fromkeys((".dcm", ".dicom"), "which are DICOM; convert them to PNG or TIFF"),
    ".pdf": "which are PDF; export their pages as PNG",
    **dict.fromkeys((".svg", ".eps", ".ai", ".wmf", ".emf"), "which are drawings; export them as PNG"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"), "which are videos; extract their frames"),
    **dict.fromkeys((".nii", ".mha", ".mhd", ".nrrd"), "which are volumes; save their slices as PNG or TIFF"),
    **dict.fromkeys((".npy", ".npz", ".h5", ".hdf5", ".mat"), "which are arrays; save them as PNG or TIFF"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".gz", ".7z", ".rar"), "which are archives; unpack them"),
    **dict.fromkeys(
        (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
        "which are a camera's raw files; develop them to JPEG or TIFF",
    ),
}
"""Pictures that are not read, and what to do with them, by the ending of their name."""
_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".tmp", ".bak", ".old", ".orig", ".swp")

_SYSTEM_NAMES = frozenset(
    {
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "picasa.ini",
        "__macosx",
        "__pycache__",
        "lost+found",
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "network trash folder",
        "temporary items",
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "@__thumb",
        "_gsdata_",
    }
)
"""What operating systems, network disks and archive programs leave in folders, in lower case."""


def is_system(name: str) -> bool:
    """Whether a file or folder is of an operating system's making, or hidden.

    >>> is_system(".DS_Store"), is_system("__MACOSX"), is_system("cat.jpg")
    (True, True, False)
    """
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def has_image_name(path: Path) -> bool:
    """Whether a name says that a file is an image of a kind that is read.

    >>> has_image_name(Path("cat.JPG")), has_image_name(Path("notes.txt"))
    (True, False)
    """
    return path.suffix.lower() in FORMATS


def is_image(path: Path) -> bool:
    """Whether an ordinary file is an image, by its name, or by what it holds where the name does not say."""
    if has_image_name(path):
        return True

    if path.name.lower().endswith(("~", *_UNFINISHED)):  # a copy, or the beginning of one, of an image beside it
        return False
    if path.suffix.lower() in _PICTURES:  # a camera's raw file would be taken for the small TIFF that it begins like
        return False
    return format_of(path) not in _UNREAD


def format_of(path: Path) -> str:
    """Pillow's name for what a file begins like; empty when it is no known format, or cannot be read."""
    return format_of_bytes(_beginning(path, BEGINNING))


def _beginning(path: Path, size: int) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        if path.stat().st_size == 0:  # as those in /proc are, of which some can be waited for without end
            return b""
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def format_of_bytes(beginning: bytes) -> str:
    """Pillow's name for the format of a file with these first bytes; empty when it is none that is known.

    >>> format_of_bytes(b"GIF89a...")
    'GIF'
    """
    return next((name for name, pattern in _BEGINNINGS.items() if pattern.match(beginning)), "")


def unread_kind(path: Path) -> tuple[str, str] | None:
    """A picture's kind that is not read, and what to do with it; None for anything else.

    >>> unread_kind(Path("scan.DCM"))
    ('.dcm', 'which are DICOM; convert them to PNG or TIFF')
    """
    suffix = path.suffix.lower()
    if suffix in _PICTURES:
        return suffix, _PICTURES[suffix]
    if format_of(path) in _UNREAD - {""}:
        return ".heic", _HEIF_REMEDY
    return (".dcm", _PICTURES[".dcm"]) if _is_dicom(path) else None


def _is_dicom(path: Path) -> bool:
    """Whether a file is of medical devices, which give it no ending: DICOM has its name after 128 free bytes."""
    return _beginning(path, 132)[128:] == b"DICM"


def what_else(path: Path) -> str:
    """What a file is that Pillow knows for no image: a few words for a message."""
    with path.open("rb") as file:
        beginning = file.read(64)
    if not beginning:
        return "empty"
    form = format_of_bytes(beginning)
    if form in _UNREAD - {""}:
        return f"HEIC, {_HEIF_REMEDY}"
    if form:
        return f"{form}, damaged or of a kind that Pillow does not read"
    return next((kind for pattern, kind in _NOT_IMAGES if pattern.match(beginning)), "not an image")


def _register_heif() -> str:
    """Let Pillow read HEIC where pillow-heif is installed, whose version is returned."""
    try:
        import pillow_heif
    except ImportError:
        return ""

    pillow_heif.register_heif_opener()
    return str(pillow_heif.__version__)


_UNREAD = {"", "HEIF"}
"""Formats, as `format_of` names them, that are not read."""
HEIF_VERSION = _register_heif()
"""Of pillow-heif; empty where it is not installed."""
if HEIF_VERSION:
    _UNREAD.remove("HEIF")
    for _suffix in (".heic", ".heif", ".hif"):
        FORMATS[_suffix] = "HEIF"
        del _PICTURES[_suffix]
