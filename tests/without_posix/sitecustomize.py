"""On PYTHONPATH, hides from Python and its children what Windows lacks: modules, functions, signals, ways to start.

What it cannot imitate: paths with backslashes, open files that are not moved, the console.
"""

import multiprocessing.context
import os
import signal
import sys

import psutil  # noqa: F401 - which asks Windows itself, but on Linux needs what is hidden now

for _module in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[_module] = None  # type: ignore[assignment]

_FUNCTIONS = "fork forkpty getpgid getuid geteuid killpg mkfifo posix_fadvise preadv sched_getaffinity setsid"
for _name in _FUNCTIONS.split():
    if hasattr(os, _name):
        delattr(os, _name)
for _name in ("SIGHUP", "pthread_sigmask"):
    delattr(signal, _name)

_contexts = multiprocessing.context._concrete_contexts
for _name in ("fork", "forkserver"):
    _contexts.pop(_name, None)
multiprocessing.context._default_context._default_context = _contexts["spawn"]
multiprocessing.context.DefaultContext.get_all_start_methods = lambda self: ["spawn"]  # type: ignore[method-assign]
multiprocessing.get_all_start_methods = lambda: ["spawn"]
