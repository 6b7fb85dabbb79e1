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

from finetune.plugin import register_backbone

__all__ = ["__version__", "register_backbone"]
