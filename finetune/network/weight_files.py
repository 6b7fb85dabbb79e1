"""Weights files as people have them: tensors by name, whatever they are wrapped in; nothing in a file is executed."""

import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.errors import Refused

SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".pkl", ".safetensors")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "teacher", "student", "ema", "model_ema")
"""Where training scripts put a network's tensors among other things, the usual place first."""


@dataclass(frozen=True)
class WeightFile:
    """The tensors of one network in a file, by the network's own names."""

    tensors: dict[str, Tensor]
    about: Mapping[str, str]
    """What a safetensors file says of itself."""
    note: str
    """Where in the file they were, in one sentence; empty where it holds them plainly."""
    place: str = ""
    """The same in words, whether or not all of them are there."""


@dataclass(frozen=True)
class _Place:
    """Where in a file a network's tensors may be."""

    wrapper: str
    """The key that holds them; empty for the file itself."""
    prefix: str
    """What stands before each name."""
    lacking: int
    """How many of the network's tensors are not there."""

    @property
    def words(self) -> str:
        parts = [repr(self.wrapper)] if self.wrapper else []
        return " and ".join([*parts, *([f"the prefix {self.prefix!r}"] if self.prefix else [])])


def read_file(path: Path, own: Collection[str], only: Collection[str] | None = None) -> WeightFile:
    """Read the tensors of a network whose tensors are called `own`; with `only`, those among its names.

    They may lie under a key such as `state_dict`, and their names may begin with `module.`, `backbone.` or the like.

    Raises:
        Refused: there is no such file, it cannot be read, or it holds more than tensors and plain values.
    """
    _refuse_what_is_no_file_of_weights(path)
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                readers = {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118
                return _picked(path, {"": readers}, own, only, about)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        if "weights_only" in str(error):  # torch's advice to switch the check off is not passed on
            raise _holds_code(path) from error
        raise Refused(f"model.weights={path} cannot be read: {first_line(error)}; give an intact file") from error
    except Refused:
        raise
    except Exception as error:  # torch.load's own pickle error derives from none of the above
        raise _holds_code(path) from error

    places = _tensor_mappings(content)
    if not places:
        raise Refused(f"model.weights={path} is not a state_dict of tensors; save model.state_dict() and nothing else")
    return _picked(path, places, own, only, {})


def _refuse_what_is_no_file_of_weights(path: Path) -> None:
    """Name what lies in the place of weights, where that can be told from the first bytes."""
    if not path.is_file():
        raise Refused(f"model.weights={path}: there is no such file; give the path of a .pth or .safetensors file")

    with path.open("rb") as file:
        begins = file.read(64).lstrip().lower()
    if begins.startswith(b"version https://git-lfs"):
        raise Refused(f"model.weights={path} is a Git LFS pointer, not the weights; `git lfs pull` fetches them")
    if begins.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Refused(f"model.weights={path} is a web page, not the weights; download the file that the page leads to")
    if zipfile.is_zipfile(path) and any(n.endswith("/constants.pkl") for n in zipfile.ZipFile(path).namelist()):
        raise Refused(
            f"model.weights={path} is a TorchScript program, which is not loaded because it could run code; "
            "save its state_dict alone"
        )


def _holds_code(path: Path) -> Refused:
    return Refused(
        f"model.weights={path} holds more than tensors, which is not loaded because it could run code; "
        "save its state_dict alone"
    )


def _tensor_mappings(content: Any) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """The mappings of names to tensors in a file, by the key that holds them, the likeliest first."""
    if not isinstance(content, Mapping):
        return {}

    inner = {str(key): value for key, value in content.items() if isinstance(value, Mapping)}
    keys = [*(key for key in _WRAPPERS if key in inner), *(key for key in inner if key not in _WRAPPERS)]
    mappings = {"": content, **{key: inner[key] for key in keys}}
    tensors = {key: _readers(mapping) for key, mapping in mappings.items()}
    return {key: readers for key, readers in tensors.items() if readers}


def _readers(mapping: Mapping[Any, Any]) -> dict[str, Callable[[], Tensor]]:
    """What gives each tensor; parameters that were saved with their gradient's wish come without it."""
    return {str(name): value.detach for name, value in mapping.items() if isinstance(value, Tensor)}


def _picked(
    path: Path,
    mappings: Mapping[str, Mapping[str, Callable[[], Tensor]]],
    own: Collection[str],
    only: Collection[str] | None,
    about: Mapping[str, str],
) -> WeightFile:
    """Read the tensors from the first place that has all of them, else from the one that lacks fewest."""
    places = [place for wrapper, mapping in mappings.items() for place in _places(wrapper, mapping, own)]
    place = min(places, key=lambda place: place.lacking)  # of equals, the first
    others = [other.words for other in places if other.lacking == 0 and other != place]

    note = ""
    if place.words and place.lacking == 0:
        note = f"model.weights={path}: taken are the tensors under {place.words}"
        note += f"; there are others under {', '.join(others)}" if others else ""

    tensors = {
        name.removeprefix(place.prefix): read
        for name, read in mappings[place.wrapper].items()
        if name.startswith(place.prefix)
    }
    chosen = {name: read() for name, read in tensors.items() if only is None or name in only}
    return WeightFile(chosen, about, note, place.words)


def _places(wrapper: str, names: Collection[str], own: Collection[str]) -> list[_Place]:
    """The prefixes under which some of `own` stand among `names`; none first."""
    probes = sorted(own)[:3]
    prefixes = dict.fromkeys(["", *(n.removesuffix(p) for n in names for p in probes if n.endswith(f".{p}"))])
    return [_Place(wrapper, prefix, sum(f"{prefix}{name}" not in names for name in own)) for prefix in prefixes]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
