"""Finds how deep a pretrained network should stay frozen, with which learning rate and which head."""

import contextlib
import os

if os.environ.get("HOME") == "":
    # As containers and job schedulers leave it. The libraries and we would take it for the root folder, and put caches
    # and downloads there.
    with contextlib.suppress(ImportError, KeyError):
        import pwd

        os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
