"""Networks of a user's own, under names of their own: from a file that `--plugin` names, or an installed package."""

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import Refused

PLUGIN = "FINETUNE_PLUGIN"
"""Environment variable: the file of `--plugin`, for the processes that a command starts."""
_GROUP = "finetune.backbones"
"""The entry points of packages: a name, and what builds that network."""
_BUILDERS: dict[str, Callable[[], Any]] = {}


def register_backbone(name: str, build: Callable[[], Any]) -> None:
    """Make a network known as `model.backbone=NAME`.

    ```python
    finetune.register_backbone("mine", lambda: MyNetwork(depth=12))
    ```

    Args:
        name: Not that of another network.
        build: Returns the `torch.nn.Module`, randomly initialised: images, N x 3 x H x W, to features, N x width, or to
            logits by a last linear layer, which the head then replaces. It is traced with `torch.fx`: outside of its
            blocks the forward pass must not decide by values.
    """
    _BUILDERS[name] = build


def registered() -> dict[str, Callable[[], Any]]:
    """What builds each registered network, by name.

    Raises:
        Refused: the plugin's file cannot be run.
    """
    if file := os.environ.get(PLUGIN):
        _run(file)
    return {**_of_packages(), **_BUILDERS}


def take_plugin(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command without `--plugin FILE`, which is noted for this process and those it starts.

    Raises:
        Refused: there is no such file.
    """
    left = list[str]()
    words = iter(arguments)
    for word in words:
        option, _, value = word.partition("=")
        if option != "--plugin":
            left.append(word)
            continue

        file = Path(value or next(words, "")).expanduser()
        if not file.is_file():
            raise Refused(f"--plugin {file}: there is no such file; give the Python file that registers your networks")
        os.environ[PLUGIN] = str(file.resolve())
    return left


@functools.cache
def _run(file: str) -> None:
    """Run the plugin's file, once a process."""
    spec = importlib.util.spec_from_file_location("finetune_plugin", file)
    if spec is None or spec.loader is None:
        raise Refused(f"--plugin {file} is no Python file; give one whose name ends in .py")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Exception as error:  # whatever the user's code raises
        raise Refused(f"--plugin {file} failed: {type(error).__name__}: {error}; mend it") from error


@functools.cache
def _of_packages() -> dict[str, Callable[[], Any]]:
    points = importlib.metadata.entry_points(group=_GROUP)
    return {point.name: functools.partial(_loaded, point) for point in points}


def _loaded(point: importlib.metadata.EntryPoint) -> Any:
    try:
        build = point.load()
    except Exception as error:  # whatever the package raises when it is imported
        raise Refused(
            f"model.backbone={point.name} is {point.value} of an installed package, which cannot be loaded "
            f"({type(error).__name__}: {error}); mend that package, or take another network"
        ) from error
    return build()
