"""Files that a W&B run keeps. Imports neither torch nor W&B's client, whose run it is given."""

import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def keep_files(run: Any, folder: Path, names: Sequence[str]) -> None:
    """Have a run keep those of the files `names` that lie in `folder`, as they are now and under their own names.

    They are copied into the run's own folder first: the client would link to them, and say so in a warning.
    """
    literally = (
        {"glob": False} if "glob" in inspect.signature(run.save).parameters else {}
    )  # no `[…]` in a path matches
    for name in names:
        if (folder / name).is_file():
            copy = Path(run.dir) / name
            shutil.copyfile(folder / name, copy)
            run.save(copy, base_path=run.dir, policy="now", **literally)
