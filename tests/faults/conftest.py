import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def arm() -> Iterator[Callable[..., Path]]:
    """Arm faults, given as the lines of finetune/faults.py, in this process and all that it starts; none just records.

    Returns the file that lists the points reached from now on.
    """
    folder = Path(os.environ["FINETUNE_FAULTS"])

    def write(*lines: str) -> Path:
        (folder / "reached").write_text("")
        (folder / "arms").write_text("\n".join(lines))
        return folder / "reached"

    yield write
    (folder / "arms").unlink(missing_ok=True)
    (folder / "reached").unlink(missing_ok=True)
