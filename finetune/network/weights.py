"""The weights that a backbone starts from: read, checked, hashed; nothing in a file is executed."""

import hashlib
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.errors import Refused, nearest
from finetune.network.backbone import Backbone

SHAPES_WEIGHTS = "SHAPES60_V1"
SHAPES_FILE = Path(__file__).parent / "shipped" / "narrow_resnet50_shapes60.safetensors"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Weights:
    """What a backbone starts from."""

    state: dict[str, Tensor]
    """Parameters and buffers by the backbone's names; empty for `none`."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per-channel normalisation the weights were trained with, for pixels in 0..1."""
    digests: Mapping[str, str]
    """SHA-256 of each tensor's dtype, shape and values, by name."""

    @property
    def digest(self) -> str:
        """Of all tensors; `none` where there are no weights."""
        return self.digest_of(self.digests.keys())

    def digest_of(self, names: Collection[str]) -> str:
        """Of the tensors among `names`; `none` where there are none."""
        chosen = sorted(name for name in names if name in self.digests)
        text = "".join(f"{name} {self.digests[name]}\n" for name in chosen)
        return hashlib.sha256(text.encode()).hexdigest() if chosen else "none"


def read_weights(
    backbone: Backbone, weights: str, digests: Mapping[str, str] | None = None, only: Collection[str] | None = None
) -> Weights:
    """Read the weights a backbone starts from, running no code that they may carry.

    Args:
        backbone: What they are for; every parameter and buffer must be there in its shape.
        weights: A weight name (torchvision's for this network), a .pth or .safetensors path, or `none`.
        digests: What an earlier call found in the same file, which is then not checked and hashed again.
        only: The tensors to read; all by default.

    Raises:
        Refused: no such name or file, not loadable, or not this network's; random weights are never used instead.
    """
    if weights == "none":
        return Weights({}, IMAGENET_MEAN, IMAGENET_STD, {})
    if weights == SHAPES_WEIGHTS and backbone.name == "narrow_resnet50":
        state, mean, std = _read_file(SHAPES_FILE, only)
    elif weights.endswith((".pth", ".pt", ".safetensors")):
        state, mean, std = _read_file(Path(weights).expanduser(), only)
    else:
        state, mean, std = _download(backbone.name, weights, only, check=digests is None)
    state = {name: value for name, value in state.items() if not name.startswith(f"{backbone.classifier}.")}
    if digests is None:
        _must_fit(backbone, state, weights)
        digests = {name: _tensor_digest(value) for name, value in state.items()}
    return Weights(state, mean, std, digests)


def load_state(backbone: Backbone, state: Mapping[str, Tensor], only: frozenset[str] | None = None) -> None:
    """Give the backbone a copy of the tensors of `state`; with `only`, of the named ones and nothing else.

    A backbone that was built on the meta device is real afterwards as far as `state` goes; its BatchNorms' counters,
    which old weight files lack, start at 0.
    """
    own = backbone.model.state_dict()
    chosen = {
        name: value.to(own[name].dtype, copy=True)
        for name, value in state.items()
        if name in own and (only is None or name in only)
    }
    counters = {n: torch.zeros_like(v, device="cpu") for n, v in own.items() if v.is_meta and v.dtype == torch.int64}
    backbone.model.load_state_dict(counters | chosen, strict=False, assign=True)


def _tensor_digest(value: Tensor) -> str:
    total = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
    total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


Read = tuple[dict[str, Tensor], tuple[float, ...], tuple[float, ...]]


def _read_file(path: Path, only: Collection[str] | None) -> Read:
    if not path.is_file():
        raise Refused(f"model.weights={path}: there is no such file; give the path of a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                names = [name for name in file.keys() if only is None or name in only]  # noqa: SIM118
                state = {name: file.get_tensor(name) for name in names}
            state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
            mean, std = (tuple(map(float, about[key].split())) if key in about else None for key in ("mean", "std"))
            return state, mean or IMAGENET_MEAN, std or IMAGENET_STD
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise Refused(f"model.weights={path} cannot be read: {_first_line(error)}; give an intact file") from error
    except Exception as error:  # torch.load's own pickle error derives from none of the above
        raise Refused(
            f"model.weights={path} holds more than tensors, which is not loaded because it could run code; "
            f"save its state_dict alone"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise Refused(f"model.weights={path} is not a state_dict of tensors; save model.state_dict() and nothing else")
    chosen = {name: value for name, value in state.items() if only is None or name in only}
    return chosen, IMAGENET_MEAN, IMAGENET_STD


def _download(backbone: str, weights: str, only: Collection[str] | None, check: bool) -> Read:
    if backbone in ("cnn5", "narrow_resnet50"):
        known = ["none", "a path"] + ([SHAPES_WEIGHTS] if backbone == "narrow_resnet50" else [])
        raise Refused(f"model.weights={weights}: {backbone} has no weights of that name; {nearest(weights, known)}")
    entries = torchvision.models.get_model_weights(backbone)
    name = weights.rpartition(".")[2]
    if name not in entries.__members__:
        known = [*entries.__members__, "none"]
        raise Refused(f"model.weights={weights}: {backbone} has no weights of that name; {nearest(name, known)}")
    entry = entries[name]
    preset = entry.transforms()
    file = Path(torch.hub.get_dir()) / "checkpoints" / str(entry.url).rpartition("/")[2]
    if not file.is_file():
        try:
            entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise Refused(
                f"model.weights={weights} could not be downloaded ({_first_line(error)}); "
                f"put the file at {file}, or give model.weights=PATH to one you have"
            ) from error
    if check:
        refuse_other_bytes(file, file.stem.rpartition("-")[2])  # resnet50-0676ba61.pth
    return _read_file(file, only)[0], tuple(preset.mean), tuple(preset.std)


def _must_fit(backbone: Backbone, state: Mapping[str, Tensor], weights: str) -> None:
    own = backbone.model.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state.keys() - counters)
    unknown = sorted(state.keys() - own.keys())
    shaped = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has another shape for", sorted(shaped))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise Refused(
                f"model.weights={weights} is not {backbone.name}'s: it {problem} {', '.join(names[:3])}{more}; "
                f"give weights of {backbone.name} or the backbone they belong to"
            )
    broken = sorted(name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all())
    if broken:
        raise Refused(f"model.weights={weights} has NaN or infinite values in {broken[0]}; give an intact file")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def refuse_other_bytes(path: Path, prefix: str) -> None:
    """Make sure that a file is the one whose SHA-256 begins with `prefix`, lower-case hex.

    Raises:
        Refused: it is another, or only a part of it.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(prefix):
        raise Refused(
            f"{path} is not the file its name says: its SHA-256 is {found[:12]}… and should begin with {prefix}; "
            "remove it, and it is downloaded again"
        )
