"""What the trials of a sweep find out once and hand on."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.config import ModelConfig
from finetune.data.files import file_state
from finetune.network.backbone import backbone_shapes
from finetune.network.weights import Weights, read_weights


@dataclass(frozen=True)
class Shared:
    """What one trial found out that others need not: plain values, by names of what they belong to."""

    images: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    """Checked weights without their values."""
    stores: dict[str, tuple[bool, str]] = field(default_factory=dict)
    """By name of a store: whether it is to be used, being there and whole, and why."""
    folders: list[str] = field(default_factory=list)
    """Of all stores in use, so that they are kept as long as they may be read."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """Digests of the images and their labels: `DATASET_SPLIT`, each as the record of a trial on them has it."""
        every = (
            f"{'-'.join(digest for digest, _ in known['splits'].values())}_{known['split_digest']}"
            for known in self.images.values()
        )
        return tuple(sorted(set(every)))

    @property
    def weight_digests(self) -> tuple[str, ...]:
        """Digests of the pretrained weights, each as the record of a trial that starts from them has it."""
        return tuple(sorted({Weights({}, (), (), digests).digest for _, _, digests in self.weights.values()}))

    def to_text(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Shared":
        """What `to_text` gave."""
        return cls(**json.loads(text))


def find_weights(model: ModelConfig, shared: Shared) -> Weights:
    """The weights of a network, read and checked unless `shared` knows them; then it does.

    Raises:
        Refused: weights that cannot be used.
    """
    name = f"{model.backbone} {model.weights} {file_state(Path(model.weights).expanduser())}"
    if name not in shared.weights:
        weights = read_weights(backbone_shapes(model.backbone), model.weights)
        shared.weights[name] = (weights.mean, weights.std, dict(weights.digests))
    mean, std, digests = shared.weights[name]
    return Weights({}, tuple(mean), tuple(std), digests)
