"""The weights that a backbone starts from: found, read, checked and hashed."""

import contextlib
import hashlib
import sys
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

from finetune.config import TIMM
from finetune.errors import Refused, nearest
from finetune.network.backbone import Backbone
from finetune.network.catalog import IMAGENET_MEAN, IMAGENET_STD, input_of, timm_settings, weights_of
from finetune.network.own import SHAPES_WEIGHTS, shapes_file
from finetune.network.weight_files import SUFFIXES, first_line, read_file


@dataclass(frozen=True)
class Weights:
    """What a backbone starts from."""

    state: dict[str, Tensor]
    """Parameters and buffers by the backbone's names; empty for `none`, and where the values were not kept."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per-channel normalisation the weights were trained with, for pixels in 0..1."""
    digests: Mapping[str, str]
    """SHA-256 of each tensor's dtype, shape and values, by name."""
    note: str = ""
    """What a person should know of how the file was read; mostly empty."""

    @property
    def digest(self) -> str:
        """The digest of all tensors; `none` where there are no weights."""
        return self.digest_of(self.digests.keys())

    def digest_of(self, names: Collection[str]) -> str:
        """The digest of the tensors among `names`; `none` where there are none."""
        chosen = sorted(name for name in names if name in self.digests)
        text = "".join(f"{name} {self.digests[name]}\n" for name in chosen)
        return hashlib.sha256(text.encode()).hexdigest() if chosen else "none"


def read_weights(
    backbone: Backbone, weights: str, digests: Mapping[str, str] | None = None, only: Collection[str] | None = None
) -> Weights:
    """Read the weights a backbone starts from, running no code that they may carry.

    >>> from finetune.network.backbone import build_backbone
    >>> read_weights(build_backbone("narrow_resnet50"), "SHAPES60_V1").mean
    (0.5, 0.5, 0.5)

    Args:
        backbone: What they are for; every parameter and buffer must be there in its shape.
        weights: A weight name (torchvision's for this network), `pretrained`, the path of a weights file, or `none`.
        digests: What an earlier call found in the same file, which is then not checked and hashed again.
        only: The tensors to read; all by default.

    Raises:
        Refused: no such name or file, not loadable, or not this network's; random weights are never used instead.
    """
    if weights == "none":
        return Weights({}, IMAGENET_MEAN, IMAGENET_STD, {})
    if weights.startswith(("http://", "https://")):
        raise Refused(
            f"model.weights={weights}: weights are not fetched from addresses; download the file, and give its path"
        )

    path = _find(backbone, weights, check=digests is None)
    known = input_of(backbone.name, weights)
    mean, std = known.mean, known.std

    # 1. The tensors, by the names that this network has for them
    own = {name for name in backbone.model.state_dict() if not _counts(name)}
    renamed = backbone.name.startswith((TIMM, "vit_"))  # by rules that need to see the file whole
    file = read_file(path, own, None if renamed else only)
    classifier = f"{backbone.classifier}."
    state = {name: _as_single(path, value) for name, value in file.tensors.items() if not name.startswith(classifier)}
    state, dropped = _without_heads(backbone, _as_named_here(backbone, state))
    if only is not None:
        state = {name: value for name, value in state.items() if name in only}

    # 2. What the file says of itself
    if "mean" in file.about and "std" in file.about:
        mean, std = (tuple(map(float, file.about[key].split())) for key in ("mean", "std"))

    # 3. All of the network, and nothing broken
    if digests is None:
        _must_fit(backbone, state, weights, file.place)
        digests = {name: _tensor_digest(value) for name, value in state.items()}

    notes = [file.note] if file.note else []
    if dropped:
        more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
        notes.append(f"model.weights={weights}: not {backbone.name}'s and left out: {', '.join(dropped[:3])}{more}")
    return Weights(state, mean, std, digests, "; ".join(notes))


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
    counters = {
        name: torch.zeros_like(value, device="cpu")
        for name, value in own.items()
        if value.is_meta and name.endswith("num_batches_tracked")
    }
    for name in own.keys() - counters.keys() - chosen.keys():
        del own[name]
    own.update(counters | chosen)
    backbone.model.load_state_dict(own, strict=False, assign=True)  # `own` knows its version, which MNASNets ask for
    backbone.refresh()


def _as_single(path: Path, value: Tensor) -> Tensor:
    """Values of a safetensors file in single precision; those of others keep the precision that their digest is of."""
    half = path.suffix.lower() == ".safetensors" and value.is_floating_point()
    return value.float() if half else value


def _tensor_digest(value: Tensor) -> str:
    digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _find(backbone: Backbone, weights: str, check: bool) -> Path:
    """The file that `weights` means, downloaded where it must be."""
    shipped = shapes_file(backbone.name)
    if weights in (SHAPES_WEIGHTS, "pretrained") and shipped:
        return shipped
    if weights == "pretrained" and backbone.name.startswith(TIMM):
        return _of_timm(backbone.name)
    return Path(weights).expanduser() if _is_path(weights) else _download(backbone.name, weights, check)


def _is_path(weights: str) -> bool:
    return weights.lower().endswith(SUFFIXES) or "/" in weights or Path(weights).expanduser().is_file()


def _download(backbone: str, weights: str, check: bool) -> Path:
    """torchvision's file of that name."""
    entries, name = weights_of(backbone), weights.rpartition(".")[2]
    if not entries:
        known = ["none", "a path"] + ([SHAPES_WEIGHTS] if shapes_file(backbone) else [])
        raise Refused(f"model.weights={weights}: {backbone} has no weights of that name; {nearest(weights, known)}")
    if name not in entries:
        known = [*entries, "none"]
        raise Refused(f"model.weights={weights}: {backbone} has no weights of that name; {nearest(name, known)}")

    entry = entries[name]
    file = Path(torch.hub.get_dir()) / "checkpoints" / str(entry.url).rpartition("/")[2]
    if not file.is_file():
        try:
            entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise Refused(
                f"model.weights={weights} could not be downloaded ({first_line(error)}); "
                f"put the file at {file}, or give model.weights=PATH to one you have"
            ) from error
    if check:
        refuse_other_bytes(file, file.stem.rpartition("-")[2])  # resnet50-0676ba61.pth
    return file


def _of_timm(name: str) -> Path:
    """timm's own file of a network's weights, from the cache of its hub or downloaded."""
    from huggingface_hub import hf_hub_download

    settings = timm_settings(name)
    repository, _, revision = str(settings.get("hf_hub_id") or "").partition("@")
    if not repository:
        raise Refused(f"model.weights=pretrained: timm has no weights for {name}; give model.weights=PATH to yours")

    file = str(settings.get("hf_hub_filename") or "model.safetensors")
    try:
        return Path(hf_hub_download(repository, file, revision=revision or None))
    except (OSError, RuntimeError, ValueError) as error:
        raise Refused(
            f"model.weights=pretrained: {file} of {repository} could not be downloaded ({first_line(error)}); "
            "give model.weights=PATH to one you have"
        ) from error


def _as_named_here(backbone: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as this network has them: renamed as timm does for other trainers' files, positions resampled."""
    own = backbone.model.state_dict()
    if all(name in state and state[name].shape == value.shape for name, value in own.items() if not _counts(name)):
        return state

    if backbone.name.startswith(TIMM):
        module = sys.modules[type(backbone.model).__module__]
        adapt = getattr(module, "checkpoint_filter_fn", None)
        with contextlib.suppress(KeyError, IndexError, RuntimeError, TypeError, AttributeError):  # not such a file
            return state if adapt is None else dict(adapt(dict(state), backbone.model))

    positions = "encoder.pos_embedding"
    if backbone.name.startswith("vit_") and positions in state and state[positions].shape != own[positions].shape:
        model = backbone.model
        return dict(interpolate_embeddings(model.image_size, model.patch_size, OrderedDict(state)))
    return state


def _counts(name: str) -> bool:
    """Whether a buffer only counts batches: old files lack those."""
    return name.endswith("num_batches_tracked")


def _without_heads(backbone: Backbone, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that may be the backbone's, and the names of the others: another classifier, a projection, a mask.

    What lies where the backbone's own tensors lie stays, so that a deeper network of the same kind is noticed.
    """
    own = backbone.model.state_dict().keys()
    places = {name.partition(".")[0] for name in own}
    kept = {n: v for n, v in state.items() if n in own or (n.partition(".")[0] in places and "." in n)}
    return kept, [name for name in state if name not in kept]


def _must_fit(backbone: Backbone, state: Mapping[str, Tensor], weights: str, place: str) -> None:
    own = backbone.model.state_dict()
    counters = set(filter(_counts, own))
    missing = sorted(own.keys() - state.keys() - counters)
    unknown = sorted(state.keys() - own.keys())
    shaped = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has another shape for", sorted(shaped))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise Refused(
                f"model.weights={weights} is not {backbone.name}'s: it {problem} {', '.join(names[:3])}{more}"
                f"{f' (nearest to it are those under {place})' if place else ''}; "
                f"give weights of {backbone.name} or the backbone they belong to"
            )
    broken = sorted(name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all())
    if broken:
        raise Refused(f"model.weights={weights} has NaN or infinite values in {broken[0]}; give an intact file")


def refuse_other_bytes(path: Path, prefix: str) -> None:
    """Make sure that a file is the one whose SHA-256 begins with `prefix`, lower-case hex.

    Raises:
        Refused: it is another, or only a part of it.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(prefix):
        raise Refused(
            f"{path} is not the file its name says: its SHA-256 is {digest[:12]}… and should begin with {prefix}; "
            "remove it, and it is downloaded again"
        )
