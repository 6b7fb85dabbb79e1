"""How many trials share a GPU: heads alone leave it idle, for most of a step is spent on asking for it."""

from collections.abc import Sequence

from finetune.config import Config
from finetune.gpu import find_gpu, room_on_gpu
from finetune.network.backbone import backbone_shapes
from finetune.network.freeze import cut_of
from finetune.sharing.facts import Facts
from finetune.sharing.images import images_key
from finetune.sharing.requests import passes_of

_MOST = 4
"""Trials on a GPU at the most: what one may leave idle, they take."""
_OVERHEAD = 2 << 30
"""Bytes of a trial besides its features: CUDA, its libraries, and a store being filled."""


def trials_a_gpu(configs: Sequence[Config], facts: Facts) -> int:
    """How many trials of a sweep can share a GPU like this process's; 1 unless all train heads alone, from stores.

    Args:
        configs: Examples of all that the sweep trains.
        facts: What is known of their images.
    """
    gpu = find_gpu().device
    if gpu is None or gpu.type != "cuda" or not configs or not all(map(_trains_a_head_from_stores, configs)):
        return 1

    needed = max(_feature_bytes(config, facts) for config in configs)
    return max(1, min(_MOST, 2 * room_on_gpu(gpu) // (_OVERHEAD + 2 * needed)))  # features take half of a trial's share


def _trains_a_head_from_stores(config: Config) -> bool:
    units = len(backbone_shapes(config.model.backbone).units)
    is_stored = config.cache.mode != "off" and bool(passes_of(config)["train"])
    return is_stored and cut_of(config).modules > units


def _feature_bytes(config: Config, facts: Facts) -> int:
    """Of all that a trial reads, in 32-bit."""
    views = passes_of(config)
    splits = facts.images[images_key(config)].splits
    rows = sum(len(split.labels) * len(views[name]) for name, split in splits.items())
    return rows * backbone_shapes(config.model.backbone).width * 4
