"""Which finetune this is, and whether another package of that name is in its way. Imports no torch."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

from finetune import __version__

_PACKAGE = Path(__file__).parent
DISTRIBUTION = "freeze-depth"
"""What `pip list` calls this; `finetune` is another project there."""


def full_version() -> str:
    """The release, and in a checkout its commit and whether files were changed since.

    `0.1.0` when installed, else like `0.1.0 (checkout 953455a, changed)`.
    """
    checkout = _PACKAGE.parent
    if not (checkout / ".git").exists():
        return __version__

    git = ["git", "-C", str(checkout)]
    try:
        commit = _output([*git, "rev-parse", "--short", "HEAD"])
        changes = _output([*git, "status", "--porcelain"])
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout of somebody else's
        return f"{__version__} (checkout)"
    return f"{__version__} (checkout {commit}{', changed' if changes else ''})"


def _output(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - words of ours
    return ended.stdout.strip()


def is_newer(version: str) -> bool:
    """Whether a release, as files name what wrote them, may write what this one does not know.

    The third number of a release says nothing of that: what it changes is mended, not new.

    >>> is_newer("99.0.0"), is_newer("0.1.0"), is_newer("")
    (True, False, False)
    """
    return _numbers(version) > _numbers(__version__)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def mixed_packages() -> str:
    """What to do where the other project called `finetune` was installed into the folder of this one; empty if not."""
    try:
        other = importlib.metadata.distribution("finetune")
    except importlib.metadata.PackageNotFoundError:
        return ""

    ours = "stay frozen" in (other.metadata["Summary"] or "")  # installed before it was called freeze-depth
    elsewhere = Path(str(other.locate_file("finetune"))).resolve() != _PACKAGE
    if ours or elsewhere:
        return ""
    return (
        f"another package called finetune ({other.version}) is installed here, and both write into {_PACKAGE}; "
        f"`pip uninstall -y finetune {DISTRIBUTION}`, then install the one you need"
    )
