"""What speaks against relying on a sweep's conclusions, one sentence each."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from finetune.config import limits
from finetune.errors import counted
from finetune.records.metric import followed_by, sign_of
from finetune.records.predictions import Predictions
from finetune.records.ranking import NetworkDepth, depth_name, fold_of, network_of
from finetune.records.result import Result
from finetune.records.scores import wilson_interval
from finetune.report.bits import resizing_of
from finetune.report.stats import REPEATS
from finetune.report.table import Group, Table, label, short, value_text

_EDGE = 0.05
"""Share of a range, on its scale, that counts as its edge."""
_RATE = "optim.lr"
_IMBALANCE = 3
"""Times as many images in the largest class as in the smallest that are worth a sentence."""


def caveats(
    records: Sequence[Result],
    table: Table,
    predictions: Predictions | None = None,
    judged: bool = False,
    through: bool = True,
) -> list[str]:
    """Reasons not to rely on the verdict, those that most often matter first.

    Args:
        records: The sweep's.
        table: Made from them.
        predictions: One of its trials', which know the validation images.
        judged: Whether the verdict itself holds for new seeds and new images, and says what few of them leave open.
        through: Whether all that the sweep was to try was tried.

    >>> from pathlib import Path
    >>> from finetune.records.read import read_records
    >>> from finetune.report.table import tabulate
    >>> records = read_records(Path("runs/local"))
    >>> for sentence in caveats(records, tabulate(records)):
    ...     print(sentence)
    The best lr, 0.01, is at the highest end of what was tried: try larger ones.
    18 of 18 complete trials were best in their last epoch: more epochs may change the order, most of all for ...
    1 trial failed: out of memory <b>
    """
    return [
        *_edges(records, table, through),
        *_few_trials(records, table, judged),
        *(() if judged else _disagreement(table)),
        *_still_improving(records),
        *_validation_images(predictions, judged, table),
        *_warnings(records),
        *_grouped(records, judged),
        *_mixed(records),
        *_failures(records),
    ]


def _edges(records: Sequence[Result], table: Table, through: bool) -> Iterator[str]:
    """The winner's numbers, and its head, where they are the largest or the smallest that were tried."""
    winner = table.winner
    if winner is None:
        return

    for key in table.swept:
        place = _place(winner, key, _tried(records))
        if place is None:
            continue

        share, lowest, highest = place
        least, most = limits(key)
        if key == "data.batch_size":
            least = 2  # of one image BatchNorm has no statistics
        nothing_below = key == "model.head.hidden" or lowest <= max(least, 0)
        nothing_above = highest >= most
        if (share >= 1 - _EDGE and not nothing_above) or (share <= _EDGE and not nothing_below):
            end, beyond = ("highest", "larger") if share > 0.5 else ("lowest", "smaller")
            name = "head" if key == "model.head.hidden" else short(key)
            value = value_text(winner.params[key])
            if through:
                yield f"The best {name}, {value}, is at the {end} end of what was tried: try {beyond} ones."
            else:
                yield f"The best {name}, {value}, is at the {end} end, but {beyond} ones are perhaps not reached yet."


def _tried(records: Sequence[Result]) -> list[Result]:
    """Also trials that were stopped, or not started, for others were better."""
    return [record for record in records if record.status in ("complete", "pruned")]


def _place(winner: Group, key: str, records: Sequence[Result]) -> tuple[float, float, float] | None:
    """Where on the range of what was tried the winner's value lies, 0..1, and the range; None without one."""
    tried = [_size(record.params[key]) for record in records if key in record.params]
    sizes = [size for size in tried if size is not None]
    own = _size(winner.params.get(key))
    if own is None or len(set(sizes)) < 2 or len(sizes) < len(tried):
        return None

    low, high = min(sizes), max(sizes)
    if low > 0 and high / low >= 10:  # such ranges are searched by their logarithm
        return math.log(own / low) / math.log(high / low), low, high
    return (own - low) / (high - low), low, high


def _size(value: Any) -> float | None:
    """A number as it is, a head's widths by their sum."""
    if isinstance(value, list) and all(isinstance(width, int) for width in value):
        return float(sum(value))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _few_trials(records: Sequence[Result], table: Table, judged: bool) -> Iterator[str]:
    few_seeds = [table.name(group) for group in table.best_per_depth if len(group.seeds) < REPEATS]
    if few_seeds and not judged:
        yield f"Fewer than {REPEATS} seeds behind the best of {_some(few_seeds)}: its accuracy may be luck."

    known = [record for record in _tried(records) if record.freeze_depth is not None]
    configurations = {(table.at(record), label(record.params, table.swept)) for record in known}
    tried = Counter(where for where, _ in configurations)
    usual = statistics.median(tried.values()) if tried else 0
    neglected = sorted(where for where, count in tried.items() if count < usual / 2)
    if neglected:
        yield (
            f"{_some(list(map(depth_name, neglected)))} got fewer than half as many configurations as the usual depth "
            f"({usual:g}); its best may still be undiscovered."
        )

    narrow = _narrow_rates([record for record in known if table.at(record) not in neglected], table)
    if narrow:
        yield (
            f"Less than half of the range of learning rates was tried at {_some(narrow)}; "
            f"{'its' if len(narrow) == 1 else 'their'} best may still be undiscovered."
        )


def _narrow_rates(records: Sequence[Result], table: Table) -> list[str]:
    """The depths that got learning rates of a part of the range alone: `k=4 (0.002 to 0.008)`.

    The best rate depends on the depth, so one that drew large ones alone looks worse than it is. One whose own best
    lies between others is left out.
    """
    tried: dict[NetworkDepth, list[float]] = {}
    for record in records:
        rate = record.params.get(_RATE)
        if isinstance(rate, int | float) and rate > 0:
            tried.setdefault(table.at(record), []).append(rate)
    if not tried:
        return []

    narrowest = math.sqrt(max(map(max, tried.values())) / min(map(min, tried.values())))
    best = {table.at(group): group.params.get(_RATE) for group in table.best_per_depth}
    names = []
    for where, rates in sorted(tried.items()):
        low, high = min(rates), max(rates)
        if high / low < narrowest and best.get(where, low) in (low, high):
            names.append(f"{depth_name(where)} ({low:.2g} to {high:.2g})")
    return names


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")


def _disagreement(table: Table) -> Iterator[str]:
    """Whether each seed alone would have chosen the same depth."""
    groups = [group for group in table.best_per_depth if len(group.seeds) >= 2]
    if len(groups) < 2:
        return

    chosen = {}
    for repeat in groups[0].scores:
        if all(repeat in group.scores for group in groups):
            best = max(groups, key=lambda group: (group.scores[repeat], group.freeze_depth))
            chosen[repeat] = table.name(best)

    if len(set(chosen.values())) > 1:
        each = ", ".join(f"{repeat}: {name}" for repeat, name in list(chosen.items())[:6])
        yield f"The seeds disagree on the best depth ({each})."


def _still_improving(records: Sequence[Result]) -> Iterator[str]:
    # a race grants what whole trials gained from there on, so its losers are no doubt
    stopped = [r for r in records if r.status == "pruned" and r.reason.startswith("stopped")]
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
    """Whether the last epoch is better than all before it."""
    metric = followed_by(record.config)
    curve = [sign_of(metric) * epoch[metric] for epoch in record.history]
    return len(curve) > 1 and curve[-1] > max(curve[:-1])


def _validation_images(predictions: Predictions | None, judged: bool, table: Table) -> Iterator[str]:
    if predictions is None:
        return

    counts = np.bincount(predictions.labels, minlength=predictions.probabilities.shape[1])
    if counts.max() > _IMBALANCE * max(1, counts.min()) and table.objective.name == "val/acc":
        yield (
            f"The classes are unbalanced ({counts.min()} to {counts.max()} validation images): accuracy favours "
            "the large ones; look at each class's recall, or sweep for it (trainer.metric=val/balanced_acc)."
        )

    if judged:
        return

    images = len(predictions.labels)
    low, high = wilson_interval(predictions.right, images)
    yield (
        f"There are {images} validation images. The intervals are over seeds; other images of the same kind could "
        f"shift all accuracies by about {(high - low) / 2:.3f}, and the best of many trials "
        "looks a little better on the images that chose it than on new ones."
    )


def _warnings(records: Sequence[Result]) -> Iterator[str]:
    yield from sorted({warning for record in records for warning in record.warnings})

    views = sorted({int(r.cache["views"]) for r in records if isinstance(r.cache.get("views"), int)})
    if views:
        yield (
            f"Training saw a store of {', '.join(map(str, views))} fixed augmented views, not new ones each epoch; "
            "repeat the best with cache.mode=off before relying on a small difference."
        )


def _grouped(records: Sequence[Result], judged: bool) -> Iterator[str]:
    groups = sorted({str(r.config["data.groups"]) for r in records if r.config.get("data.groups")})
    if groups and judged:
        yield (
            f"Images belong together (data.groups={groups[0]}), and the error over images takes each for itself: on "
            "groups that are new, accuracies may differ by more than the intervals say."
        )


def _mixed(records: Sequence[Result]) -> Iterator[str]:
    """What is not the same in all trials, though comparing them takes that it is."""
    complete = [r for r in records if r.status == "complete"]
    networks = sorted({network_of(r) for r in complete})
    for name, things in (("dataset", "images"), ("split", "splits"), ("weights", "pretrained weights")):
        digests = {r.digests[name] for r in complete if r.digests.get(name)}
        # a swept size makes other pixels of the same images, folds are splits that are meant, and networks have weights
        explained = {
            "dataset": len(set(map(resizing_of, complete))),
            "split": len({fold_of(r) for r in complete}),
            "weights": len(networks),
        }
        if len(digests) > explained[name]:
            yield f"The trials used {len(digests)} different {things}: their accuracies compare only within each."

    formats = sorted({r.number_format for r in complete if r.precision})
    if len(formats) > 1 and len({r.params.get("trainer.precision") for r in complete}) == 1:
        yield (
            f"Some trials computed in {formats[0]}, others in {formats[1]}, as their machines had it: small "
            "differences between them may come from that. Set trainer.precision for all."
        )

    units = sorted({r.freeze_unit for r in complete})
    if len(networks) > 1 and units != ["share"]:
        yield (
            f"k counts the {' or '.join(f'{unit}s' for unit in units)} of {len(networks)} networks, so equal k of two "
            "of them are not equally deep; sweep model.freeze_unit=share to lay their curves over each other."
        )
    elif len(units) > 1:
        yield f"k counts {' in some trials and '.join(f'{unit}s' for unit in units)} in others: depths do not compare."


def _failures(records: Sequence[Result]) -> Iterator[str]:
    reasons = Counter(r.reason for r in records if r.status == "failed")
    for reason, count in reasons.most_common(3):
        yield f"{counted(count, 'trial')} failed: {reason[:200]}"
