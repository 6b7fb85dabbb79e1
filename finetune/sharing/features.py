"""What the whole pretrained network makes of the images, before anything is trained: read from stores, or computed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from finetune.config import Config
from finetune.data.augment import Preprocess
from finetune.data.batches import as_tensor
from finetune.network.weights import Weights
from finetune.sharing.activations import compute_rows
from finetune.sharing.facts import Facts
from finetune.sharing.images import Images
from finetune.sharing.plan import shared_prefix
from finetune.sharing.prepare import open_activations
from finetune.sharing.requests import StoreRequest, feature_requests
from finetune.storage.parallel import Progress, no_progress


def pretrained_features(
    config: Config,
    images: Images,
    weights: Weights,
    preprocess: Preprocess,
    facts: Facts,
    progress: Progress = no_progress,
) -> dict[str, Tensor]:
    """Features of the training and validation images as they are, N x width, float32, on the CPU, by split.

    They are those of a trial that freezes everything, and share its store; with `cache.mode=off` they are computed, to
    the same bits.
    """
    requests = feature_requests(config, images, weights, preprocess)
    cut = requests[0].cut
    rows = open_activations(cut, requests, facts, progress).rows
    features = {split: as_tensor(views[0], slice(None)).float() for split, views in rows.items()}
    missing = [request for request in requests if not features.keys() >= request.splits.keys()]
    return features | (_computed(missing) if missing else {})


def _computed(requests: Sequence[StoreRequest]) -> dict[str, Tensor]:
    prefix = shared_prefix(requests[0])
    features: dict[str, Tensor] = {}
    for request in requests:
        modules = request.cut.modules
        blocks = compute_rows(prefix, request.source, [modules], 0, request.precision, row_bytes=1 << 20)
        parts = [torch.from_numpy(rows) for _, (rows,), _ in blocks]
        whole = torch.cat([part.view(torch.bfloat16) if part.dtype == torch.uint16 else part for part in parts]).float()
        for split, positions in request.splits.items():
            features[split] = whole if positions is None else whole[torch.from_numpy(np.asarray(positions))]
    return features
