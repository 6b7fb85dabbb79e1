"""Finds how deep a pretrained network should stay frozen, with which learning rate and which head."""

import os
import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"] and any(word.startswith("finetune.") for word in sys.orig_argv):
    # `python -m finetune.train` looks for modules in the current folder first, where a user's own `random.py` would be
    # run in place of the library. (While Python looks for such a module, `sys.argv` holds `-m`.)
    here = sys.path[:1] == [os.getcwd()]  # noqa: PTH109 - pathlib is not there yet, and might be the user's
    if here and not os.path.samefile(".", f"{__path__[0]}/.."):  # noqa: PTH121
        del sys.path[0]

if sys.platform == "darwin":
    # What Apple's GPUs lack runs on the CPU, and PyTorch says so; it reads this once, when it is imported.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

if os.environ.get("HOME") == "":
    # As containers and job schedulers leave it. The libraries and we would take it for the root folder, and put caches
    # and downloads there.
    import contextlib

    with contextlib.suppress(ImportError, KeyError):
        import pwd

        os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir

from typing import TYPE_CHECKING, Any

from finetune.plugin import register_backbone

if TYPE_CHECKING:
    from finetune.api import load, read_records, run_sweep
    from finetune.trial.pretrained import FineTune, ImageData

__all__ = ["FineTune", "ImageData", "__version__", "load", "read_records", "register_backbone", "run_sweep"]

_PLACES = {
    "FineTune": "finetune.trial.pretrained",
    "ImageData": "finetune.trial.pretrained",
    "load": "finetune.api",
    "read_records": "finetune.api",
    "run_sweep": "finetune.api",
}
"""Where the names lie that are looked up when they are used, so that importing the package takes no time."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
