"""What one trial is fed: images, its network, and the activations that are stored for it."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune.config import Config
from finetune.data.augment import Preprocess
from finetune.network.device import Precision
from finetune.network.freeze import Cut, find_cut
from finetune.network.network import Network, build_network
from finetune.network.parts import SharedPrefix, contiguous_from, lay_out
from finetune.sharing.facts import Shared, find_weights
from finetune.sharing.images import Images, find_images
from finetune.sharing.plan import UNWRITTEN, Want, preprocess_of, provide, wants_of
from finetune.storage.parallel import Progress
from finetune.storage.store import Rows, open_store


@dataclass(frozen=True)
class Inputs:
    """All that a trial trains on and with."""

    images: Images
    network: Network
    prefix: nn.Module
    """What runs before the suffix: nothing where all splits are stored."""
    preprocess: Preprocess
    stored: dict[str, list[Rows]]
    """Activations of the splits that have them, one store a view."""
    cache: dict[str, Any]
    """For the record."""
    saves: dict[str, float]
    """Seconds that the activations of a stored split save each time it is gone through."""
    spent: float
    """Seconds that this trial took to compute activations for them."""
    warnings: tuple[str, ...]
    """Those of the images, and of stores."""


def gather(config: Config, shared: Shared, progress: Progress = lambda what, done, total: None) -> Inputs:
    """Everything for one trial.

    Raises:
        Refused: data, weights or depth that cannot be used.
    """
    images = find_images(config, shared, progress)
    weights = find_weights(config.model, shared)
    cut, preprocess = find_cut(config.model, weights), preprocess_of(config, weights)
    wants = wants_of(config, images, cut, preprocess)
    missing = [want for want in wants if want.key not in shared.stores]
    spent = provide(missing, shared, progress) if missing else 0.0
    stored, saves, precision = dict[str, list[Rows]](), dict[str, float](), Precision.of(config.trainer)
    for split in {want.source.split: None for want in wants}:
        of_split = [want for want in wants if want.source.split == split]
        stores = [open_store(want.folder, verify=False) for want in of_split if shared.stores[want.key][0]]
        whole = [store for store in stores if store is not None]
        if len(whole) == len(of_split):
            stored[split] = [store.rows for store in whole]
            saves[split] = (
                sum(len(s.rows) * s.about["seconds_per_image"] for s in whole) / len(whole) / precision.threads
            )
    on_the_way = images.splits.keys() != stored.keys()
    network = build_network(config.model, len(images.classes), config.seed, weights, with_prefix=on_the_way)
    light = contiguous_from(config.model.backbone, config.data.size, precision)
    lay_out(network.suffix, None if light is None else light - cut.modules)
    prefix = SharedPrefix.of(network.prefix, light) if on_the_way else nn.Identity()
    used = {split: "stored" if split in stored else "computed" for split in images.splits}
    cache: dict[str, Any] = {"mode": config.cache.mode, **used, "reason": _why(cut, wants, shared)}
    if preprocess.views is not None and preprocess.augment.random:
        cache["views"] = preprocess.views
    unwritten = {reason for want in wants if (reason := shared.stores[want.key][1]).startswith(UNWRITTEN)}
    warnings = (*images.warnings, *sorted(unwritten))
    return Inputs(images, network, prefix, preprocess, stored, cache, saves, spent, warnings)


def _why(cut: Cut, wants: list[Want], shared: Shared) -> str:
    """The reason for what happened to the training images."""
    if cut.modules == 0:
        return "nothing before the cut is frozen for good"
    reasons = [shared.stores[want.key][1] for want in wants if want.source.split == "train"]
    return reasons[0] if reasons else "augmented anew each epoch; cache.views=V would store V views"
