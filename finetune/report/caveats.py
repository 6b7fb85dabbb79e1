"""What could be wrong with a sweep's conclusions, one sentence each."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from finetune.records.predictions import Predictions
from finetune.records.result import Result
from finetune.records.scores import wilson_interval
from finetune.report.stats import REPEATS
from finetune.report.table import Group, Table, short

_EDGE = 0.05
"""Share of a range, on its scale, that counts as its edge."""
_IMBALANCE = 3
"""Times as many images in the largest class as in the smallest that are worth a word."""


def doubts(records: Sequence[Result], table: Table, predictions: Predictions | None = None) -> list[str]:
    """Reasons to distrust the verdict, those that most often matter first.

    Args:
        records: Of the sweep.
        table: Made from them.
        predictions: Of one of its trials, which know the validation images.
    """
    found = [*_edges(table), *_few(table), *_seeds(table), *_still_improving(records)]
    return [*found, *_images(records, predictions), *_mixed(records), *_failures(records)]


def _edges(table: Table) -> Iterator[str]:
    """The winner's numbers, and its head, against what was tried."""
    winner = table.winner
    for key in table.swept if winner else ():
        value = winner.params.get(key) if winner else None
        tried = [_size(group.params[key]) for group in table.groups if key in group.params]
        sizes = [size for size in tried if size is not None]
        own = _size(value)
        if own is None or len(set(sizes)) < 2 or len(sizes) < len(tried):
            continue
        low, high = min(sizes), max(sizes)
        log = low > 0 and high / low >= 10
        at = (math.log(own / low) / math.log(high / low)) if log else (own - low) / (high - low)
        natural_low = key == "model.head.hidden" or low == 0  # nothing lies below
        if at >= 1 - _EDGE or (at <= _EDGE and not natural_low):
            end, beyond = ("highest", "larger") if at > 0.5 else ("lowest", "smaller")
            name = "head" if key == "model.head.hidden" else short(key)
            yield f"The best {name}, {_text(value)}, is at the {end} end of what was tried: try {beyond} ones."


def _size(value: Any) -> float | None:
    """A number as it is, a head's widths by their sum."""
    if isinstance(value, list) and all(isinstance(width, int) for width in value):
        return float(sum(value))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _few(table: Table) -> Iterator[str]:
    depths = table.best_per_depth
    few = [g.freeze_depth for g in depths if len(g.seeds) < REPEATS]
    if few:
        yield f"Fewer than {REPEATS} seeds behind the best of {_ks(few)}: its accuracy may be luck."
    tried = Counter(group.freeze_depth for group in table.groups)
    usual = statistics.median(tried.values()) if tried else 0
    short_of = sorted(depth for depth, count in tried.items() if count < usual / 2)
    if short_of:
        yield (
            f"{_ks(short_of)} got fewer than half as many configurations as the usual depth ({usual:g}); "
            "its best may still be undiscovered."
        )


def _ks(depths: Sequence[int]) -> str:
    names = [f"k={depth}" for depth in depths]
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")


def _seeds(table: Table) -> Iterator[str]:
    """Whether each seed alone would have chosen the same depth."""
    groups = [group for group in table.best_per_depth if len(group.seeds) >= 2]
    shared = set.intersection(*(set(group.seeds) for group in groups)) if len(groups) > 1 else set[int]()

    def ahead(seed: int) -> Group:
        return max(groups, key=lambda group: (group.scores[seed], group.freeze_depth))

    chosen = {seed: ahead(seed).freeze_depth for seed in sorted(shared)}
    if len(set(chosen.values())) > 1:
        each = ", ".join(f"seed {seed}: k={depth}" for seed, depth in list(chosen.items())[:6])
        yield f"The seeds disagree on the best depth ({each})."


def _still_improving(records: Sequence[Result]) -> Iterator[str]:
    stopped = [r for r in records if r.status == "pruned"]
    rising = [r for r in stopped if _rises(r)]
    if rising:
        yield f"{len(rising)} of {len(stopped)} stopped trials were still improving: they may deserve more epochs."
    complete = [r for r in records if r.status == "complete" and len(r.history) > 1]
    late = [r for r in complete if r.best_epoch == r.history[-1]["epoch"] and _rises(r)]
    if len(late) > len(complete) / 2:
        yield (
            f"{len(late)} of {len(complete)} complete trials were best in their last epoch: more epochs may change the "
            "order, most of all for depths that train much."
        )


def _rises(record: Result) -> bool:
    curve = [epoch["val/acc"] for epoch in record.history]
    return len(curve) > 1 and curve[-1] > max(curve[:-1])


def _images(records: Sequence[Result], predictions: Predictions | None) -> Iterator[str]:
    if predictions is not None:
        counts = np.bincount(predictions.labels, minlength=predictions.probabilities.shape[1])
        if counts.max() > _IMBALANCE * max(1, counts.min()):
            yield (
                f"The classes are unbalanced ({counts.min()} to {counts.max()} validation images): accuracy favours "
                "the large ones; look at each class's recall."
            )
        images, right = len(predictions.labels), int((predictions.predicted == predictions.labels).sum())
        low, high = wilson_interval(right, images)
        yield (
            f"There are {images} validation images. The intervals are over seeds; other images of the same kind could "
            f"shift all accuracies by about {(high - low) / 2:.3f}, and the best of many trials "
            "looks a little better on the images that chose it than on new ones."
        )
    yield from sorted({warning for record in records for warning in record.warnings})
    views = sorted({int(r.cache["views"]) for r in records if isinstance(r.cache.get("views"), int)})
    if views:
        yield (
            f"Training saw a store of {', '.join(map(str, views))} fixed augmented views, not new ones each epoch; "
            "repeat the best with cache.mode=off before relying on a small difference."
        )


def _mixed(records: Sequence[Result]) -> Iterator[str]:
    complete = [r for r in records if r.status == "complete"]
    for name, what in (("dataset", "images"), ("split", "splits"), ("weights", "pretrained weights")):
        digests = {r.digests[name] for r in complete if r.digests.get(name)}
        if len(digests) > 1 and not (name == "dataset" and len({str(r.config.get("data.size")) for r in complete}) > 1):
            yield f"The trials used {len(digests)} different {what}: their accuracies compare only within each."
    units = sorted({r.freeze_unit for r in complete})
    if len(units) > 1:
        yield f"k counts {' in some trials and '.join(f'{unit}s' for unit in units)} in others: depths do not compare."


def _failures(records: Sequence[Result]) -> Iterator[str]:
    reasons = Counter(r.reason for r in records if r.status == "failed")
    for reason, count in reasons.most_common(3):
        yield f"{count} trial{'s' * (count > 1)} failed: {reason[:200]}"
