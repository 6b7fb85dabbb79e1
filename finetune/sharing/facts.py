"""What the trials of a sweep find out once: facts on images, weights and stores, handed on from process to process."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.config import Config
from finetune.data.levels import Levels
from finetune.data.remembered import file_state
from finetune.network.backbone import backbone_shapes
from finetune.network.weights import Weights, read_weights


@dataclass(frozen=True)
class SplitFacts:
    """The decoded images of one split."""

    digest: str
    """The pixel store's."""
    labels: tuple[int, ...]
    positions: tuple[int, ...] | None = None
    """Which rows of the store they are, where that holds those of all folds; None is all."""


@dataclass(frozen=True)
class ImageFacts:
    """A data set that was looked through and decoded."""

    classes: tuple[str, ...]
    """In label order."""
    splits: Mapping[str, SplitFacts]
    """`train` and `val`, and `test` where there is one."""
    split_digest: str
    """Names which image is in which split with which label."""
    warnings: tuple[str, ...]
    val_paths: tuple[str, ...]
    """The validation images' files, in order."""
    levels: Levels | None = None
    """How pixels of more than 8 bits were scaled; None where there are none."""


@dataclass(frozen=True)
class WeightFacts:
    """Weights that were read and checked; their values are not here."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    digests: Mapping[str, str]
    """SHA-256 of each tensor, by name."""
    note: str = ""
    """How the file was read, where a person should know."""


GPU_FULL = "the GPU had no memory left"
"""How a reason ends where that was why nothing was stored."""


@dataclass(frozen=True)
class StoreChoice:
    """Whether a store of activations is used, and why, in words."""

    used: bool
    reason: str


@dataclass(frozen=True)
class Facts:
    """What is known before a trial begins, so that it need not be found out again.

    A trial that knows nothing, `Facts()`, finds out everything itself and comes to the same record.
    """

    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    """By `sharing.images.images_key`."""
    weights: Mapping[str, WeightFacts] = field(default_factory=dict)
    """By `weights_key`."""
    stores: Mapping[str, StoreChoice] = field(default_factory=dict)
    """By the name of the store."""
    folders: tuple[str, ...] = ()
    """The folders of all stores in use, so that they are kept as long as they may be read."""
    trials_per_gpu: int = 1
    """How many of the sweep's trials can share a GPU; no trial asks."""
    precision: str = ""
    """What `trainer.precision=auto` comes to on a CPU, where that was measured: `32` or `bf16`."""

    @property
    def gpu_out_of_memory(self) -> bool:
        """Whether stores are missing for want of memory on a GPU."""
        return any(choice.reason.endswith(GPU_FULL) for choice in self.stores.values())

    @property
    def datasets(self) -> tuple[str, ...]:
        """Digests of the images and their labels: `DATASET_SPLIT`, each as the record of a trial on them has it."""
        digests = set()
        for images in self.images.values():
            dataset = "-".join(split.digest for split in images.splits.values())
            digests.add(f"{dataset}_{images.split_digest}")
        return tuple(sorted(digests))

    @property
    def weight_digests(self) -> tuple[str, ...]:
        """Digests of the pretrained weights, each as the record of a trial that starts from them has it."""
        return tuple(sorted({Weights({}, (), (), known.digests).digest for known in self.weights.values()}))

    def to_text(self) -> str:
        """These facts as JSON, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Facts":
        """The facts that `to_text` wrote."""
        raw = json.loads(text)
        return cls(
            images={key: _image_facts(values) for key, values in raw["images"].items()},
            weights={
                key: WeightFacts(tuple(values["mean"]), tuple(values["std"]), values["digests"], values["note"])
                for key, values in raw["weights"].items()
            },
            stores={name: StoreChoice(**values) for name, values in raw["stores"].items()},
            folders=tuple(raw["folders"]),
            precision=raw["precision"],
        )


def as_decided(config: Config, precision: str) -> Config:
    """The config with a number format that was decided on, where it leaves that open; an empty one decides nothing.

    >>> as_decided(Config(), "bf16").trainer.precision, as_decided(Config(), "").trainer.precision
    ('bf16', 'auto')
    """
    if not precision or config.trainer.precision != "auto":
        return config
    return replace(config, trainer=replace(config.trainer, precision=precision))


def _image_facts(raw: Mapping[str, Any]) -> ImageFacts:
    splits = {split: _split_facts(values) for split, values in raw["splits"].items()}
    return ImageFacts(
        classes=tuple(raw["classes"]),
        splits=splits,
        split_digest=raw["split_digest"],
        warnings=tuple(raw["warnings"]),
        val_paths=tuple(raw["val_paths"]),
        levels=None if raw.get("levels") is None else Levels.parse(raw["levels"]),
    )


def _split_facts(raw: Mapping[str, Any]) -> SplitFacts:
    positions = raw.get("positions")
    return SplitFacts(raw["digest"], tuple(raw["labels"]), None if positions is None else tuple(positions))


def weights_key(config: Config) -> str:
    """Equal where the same weights are meant, from a file that has not changed, for images of the same size."""
    model = config.model
    return f"{model.backbone} {config.data.size} {model.weights} {file_state(Path(model.weights).expanduser())}"


def find_weights(config: Config, facts: Facts) -> Weights:
    """The weights of a trial's network: as `facts` knows them, without values, or read and checked.

    Raises:
        Refused: weights that cannot be used.
    """
    known = facts.weights.get(weights_key(config))
    if known is None:
        model = config.model
        weights = read_weights(backbone_shapes(model.backbone, config.data.size), model.weights)
        return Weights({}, weights.mean, weights.std, weights.digests, weights.note)
    return Weights({}, known.mean, known.std, known.digests, known.note)
